/* request - a stream of tokens somebody waits for, and the sequence in which the stages hold its state.
 *
 *              slot and memory free      all tokens sent        result: one more token
 *   queued* ------------------------> prefill* ----------> decode* <------+
 *     ^  |                              |   |                |  |  |      |
 *     |  |   sequence lost, plan over   |   |                |  |  +------+
 *     +--|------------------------------+---|----------------+  |
 *        |                                  +------> drain* <---+  last token, cancelled, error
 *        +-- cancelled, error --> done <--- its batches are over -+                          (* waits;
 *          each with a deadline)
 *
 * A request is its tokens: prompt and emitted. n_sent of them are on their way or in the stages, n_held
 * are known to be in. Decode is the case where just one is unsent. The sequence is what the stages know
 * (sequence.h): a new one, or one that an earlier request left behind and whose tokens this one begins
 * with; then n_sent starts there. A replay is another sequence with the same tokens. Who asks how likely
 * the prompt's own tokens are gets a result for each of its rows, in order and once, whatever is lost on
 * the way: rows whose results did not come are computed again before anything goes on. Limits:
 * n_request_max requests; as many sequences as slots. Part of the coordinator core. */
#ifndef COORDINATOR_REQUEST_H
#define COORDINATOR_REQUEST_H

#include "coordinator/core.h"
#include "coordinator/sequence.h"

enum request_state { RQ_QUEUED, RQ_PREFILL, RQ_DECODE, RQ_DRAIN, RQ_DONE, RQ_STATES };
enum request_list { RL_NONE, RL_QUEUE, RL_PREFILL, RL_READY, RL_LISTS };

struct request {
    uint8_t state, list;
    int32_t prev, next;                           /* in the list; -1: end */
    uint64_t tag, order, turn;                    /* order of arrival; of going into batches */
    int32_t *token;                               /* room for n_total_max */
    uint32_t n_prompt, n_token, n_total_max;
    struct msg_want want;
    struct msg_bias *bias;
    uint64_t seq, from;                           /* 0: none; from: what seq is a copy of, until it exists */
    uint32_t n_sent, n_sent_max, n_held;
    uint32_t n_cached;                            /* of the prompt: taken over when it was first admitted */
    uint32_t n_scored;                            /* of the prompt: nothing (more) is to be told of these */
    bool admitted, copied, alone;    /* ever; began as a copy; its next segment travels alone (sequence.h) */
    uint32_t n_retry;
    uint64_t retry_first_ns, not_before_ns;       /* since the last token */
    uint64_t arrived_ns, deadline_ns,
        ready_ns; /* deadline 0: none; since when the next token could be computed */
    bool told;                                    /* DONE was sent; only its batches are awaited */
};

struct request_list_ends { int32_t first, last; uint32_t n; };

struct requests {
    struct pool pool;
    struct request *request;
    struct request_list_ends list[RL_LISTS];
    uint64_t order_next, turn_next;
    uint32_t n_decode;                            /* in RQ_DECODE */
    uint64_t check_ns;                            /* when the next request deadline may have come */
    uint64_t n_submitted, n_done, n_failed;
};

struct coord;

void requests_init(struct coord *c);
void requests_deinit(struct coord *c);

void requests_submit(struct coord *c, const struct coord_submit *s, struct coord_outs *outs);
void requests_cancel(struct coord *c, struct handle h, struct coord_outs *outs);
void requests_admit(struct coord *c);             /* from the queue, while there is room */
void requests_requeue_all(struct coord *c);       /* the plan is over: state in the stages is gone */
void requests_recheck(struct coord *c, struct coord_outs *outs);  /* a new plan may have a smaller context */
void requests_timers(struct coord *c, struct coord_outs *outs);
uint64_t requests_deadline_ns(const struct coord *c);
void requests_end_all(struct coord *c, int code, struct coord_outs *outs);
bool requests_active_or_queued(const struct coord *c);

/* For the pipeline. A segment left with a batch; came through; was lost with it; and the next token is
 * known. */
struct request *request_of_seq(struct coord *c, uint64_t seq);  /* NULL: the sequence is closing or over */
void request_sent(struct coord *c, struct request *r, uint32_t n);
void request_held(struct coord *c, uint64_t seq, uint32_t n_held);     /* so many tokens came through */
void request_flight_over(struct coord *c, uint64_t seq, struct coord_outs *outs);
void request_lost(struct coord *c, struct request *r, uint32_t pos0, bool must_replay, int code,
                  struct coord_outs *outs);
void request_token(struct coord *c, struct request *r, const struct coord_sampled *s,
                   struct coord_outs *outs);
void request_end(struct coord *c, struct request *r, int code, const char *text, struct coord_outs *outs);

struct request *request_first(struct coord *c, enum request_list list);
struct request *request_next(struct coord *c, const struct request *r);
void request_rotate(struct coord *c, struct request *r);               /* to the end of its list */
void requests_check(const struct coord *c);

#endif
