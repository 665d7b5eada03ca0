/* core (coordinator) - everything the coordinator decides: who belongs to the cluster, which plan
 * holds, which request runs, which rows travel in which batch, and what happens when an answer is late,
 * wrong or never comes.
 *
 * A struct and a step: events in, outs away, time is a field, the next deadline is a result. No clock,
 * no socket, no thread. Two seams call out, both pure from here: config.plan (which node takes which
 * layers; config.wanted asks ahead) and config.sample (the next token of a row). Belongs to the loop
 * thread of its shell; the simulation runs it beside the node cores in one process.
 *
 * Parts: cluster (membership, plan epochs), survey (links, before a plan), request (life of a request),
 * sequence (what the stages hold, and keep for the next prompt), scheduler (which rows next), pipeline
 * (batches in flight, deadlines, results). A request's tokens, prompt and emitted, are all that is needed to
 * compute its state again; so whatever is lost, the answer is: feed the tokens from a position that the
 * stages can go back to. */
#ifndef COORDINATOR_CORE_H
#define COORDINATOR_CORE_H

#include "common/base/pool.h"
#include "common/base/trace.h"
#include "common/wire/peer.h"

enum { COORD_NEED_MORE = 1, COORD_TRACES = 64 };

enum cluster_state { CL_WAITING, CL_LOADING, CL_SERVING, CL_STATES };
enum coord_node_state { ND_GONE, ND_JOINED, ND_LOADING, ND_READY, ND_FAILED, ND_STATES };

/* ---- the seams ---- */

struct coord_node_info {                          /* a node that may be used, as the planner sees it */
    const struct msg_hello *hello;
    uint32_t rtt_us;
    const struct msg_link *link;                              /* measured by it, to others */
    uint32_t n_link;
};

struct coord_plan_helper { uint32_t node, expert_begin, expert_end; };

struct coord_plan_stage {
    uint32_t node;                                            /* index into the infos */
    uint32_t layer_begin, layer_end;
    enum msg_wire_format wire;                                /* to the next stage */
    uint32_t expert_begin, expert_end, n_helper;
    struct coord_plan_helper helper[MSG_HELPERS_MAX];
    uint32_t us_row_1, us_row_n;            /* predicted: a batch of 1 and of n_rows_max rows; 0: not known */
};

struct coord_plan {
    uint64_t model_lo, model_hi;
    char model[MSG_NAME_MAX];
    uint32_t n_stage, n_slot, n_ctx_max, n_rows_max, n_credit, numerics, precision;
    struct coord_plan_stage stage[MSG_STAGES_MAX];
    struct msg_source source;       /* what we give ourselves to those without; no name: nothing */
    bool substitute;                              /* the wanted plan needs machines that are not here */
};

struct coord_sample {                                         /* one row, and whose it is */
    uint64_t tag;
    uint32_t position;                            /* of the token to be chosen, in the whole sequence */
    const struct msg_row_result *row;                         /* offset and bytes are inside `payload` */
    struct payload payload;
    bool known;                                   /* the prompt goes on with `token`: nothing is chosen, the
                                                   * seam notes how likely it was; out->spent_us only */
    int32_t token;
};

struct coord_sampled {
    int32_t token;
    bool end;                                                 /* this token is the last one */
    uint32_t spent_us;                                        /* what it took, for the account of time */
};

struct coord_config {
    char name[MSG_NAME_MAX];
    uint64_t incarnation;
    uint32_t ping_ms, ping_misses;
    uint32_t payload_bytes_max;

    uint32_t n_node_max, n_request_max;                       /* requests: queued and running */
    uint32_t n_seg_max, n_row_max, n_window_max;              /* of one batch; batches in flight */
    uint32_t n_item_max;                                      /* candidates per row */
    uint32_t n_keep_min;                          /* prompts of so many tokens are kept beside their answer */
    uint32_t n_park_max;                          /* finished sequences that are kept; 0: none */

    uint32_t n_node_expected;                                 /* the first plan waits for so many */
    uint32_t settle_ms;                                       /* then for this long without a newcomer */
    uint32_t rejoin_ms;                           /* after a loss: how long the others wait for its return */
    uint32_t survey_ms;                           /* for measuring links before the first plan; 0: none */
    uint32_t restore_ms;                          /* a machine of the wanted plan has to be back so long */
    uint32_t load_silent_ms, exclude_ms;          /* no progress: failed, and not asked again for this long */
    uint32_t stall_ms;                            /* requests end when there is no plan for this long */

    uint32_t n_extra;                             /* batches in flight beyond the number of stages */
    uint32_t bound_ms;                        /* how much a long prompt may delay other streams' next token */
    uint32_t chunk_first, chunk_min;              /* rows before anything is measured; never fewer than */
    uint32_t batch_floor_ms, batch_unknown_ms;    /* deadline: added to 4 x estimate; without an estimate */
    uint32_t retry_max, give_up_ms;           /* a request ends after more retries than this, and this long */
    uint32_t wedge_ms;                            /* nothing comes through for so long: a new epoch */

    int (*plan)(void *ctx, const struct coord_node_info *node, uint32_t n_node,
                struct coord_plan *out, struct err *e);
    /* Would `plan` give no substitute with these? Asked while one serves; NULL: there are no substitutes. */
    bool (*wanted)(void *ctx, const struct coord_node_info *node, uint32_t n_node);
    /* 0, COORD_NEED_MORE, or an error */
    int (*sample)(void *ctx, const struct coord_sample *s, struct coord_sampled *out);
    void *ctx;
    struct trace trace;
};

void coord_config_init(struct coord_config *c);  /* defaults for everything but name, incarnation and seams */

/* ---- events ---- */

enum coord_event_kind {
    COORD_EV_TICK,                                            /* the deadline came */
    COORD_EV_MSG,                                             /* link, msg, take_payload */
    COORD_EV_LINK_CLOSED,                                     /* link */
    COORD_EV_SUBMIT,                              /* submit: answered by ACCEPTED or DONE of the same step */
    COORD_EV_CANCEL,                                          /* request */
    COORD_EV_STOP                                             /* ends all requests and tells the nodes */
};

struct coord_submit {
    uint64_t tag;                                             /* of the shell; comes back in every out */
    const int32_t *token;                                     /* the prompt, copied */
    uint32_t n_token, n_new_max;
    struct msg_want want;                                     /* row and bias_begin are ours to fill */
    const struct msg_bias *bias;                              /* want.n_bias of them, copied */
    uint32_t deadline_ms;                                     /* from now to the last token; 0: none */
    bool scores;                                  /* sample() is asked about every token of the prompt but the
                                                   * first, once and in order, before anything is chosen */
};

struct coord_event {
    uint64_t now_ns;
    enum coord_event_kind kind;
    uint32_t link;                                            /* > 0 */
    const struct msg *msg;
    struct payload take_payload;
    struct coord_submit submit;
    struct handle request;
};

/* ---- outs ---- */

enum coord_out_kind {
    COORD_OUT_SEND,                                           /* link, msg */
    COORD_OUT_DROP,                                           /* link */
    COORD_OUT_ACCEPTED,                                       /* request, tag */
    COORD_OUT_TOKEN,                              /* request, tag, token, index: 0 for the first new one */
    COORD_OUT_DONE,                               /* tag, code, text, n_cached; the handle is dead */
    COORD_OUT_FREE,                                           /* payload */
    COORD_OUT_STATE,                            /* the cluster changed its state: text says to what and why */
    COORD_OUT_NOTICE                                          /* code, text: worth a line in the log */
};

struct coord_out {
    enum coord_out_kind kind;
    uint32_t link;
    const struct msg *msg;
    struct payload payload;
    struct handle request;
    uint64_t tag;
    int32_t token;
    uint32_t index;
    uint32_t n_cached;                            /* tokens of the prompt that were not computed again */
    int code;
    char text[96];
};

/* Carried out in order; what items point to is valid until the next step. */
struct coord_outs {
    struct coord_out *item;
    struct msg *msg;
    uint32_t n, n_max, n_msg, n_msg_max;
    uint64_t deadline_ns;
};

/* ---- what is shown ---- */

struct coord_batch_trace {                        /* where the time of one batch went; microseconds */
    uint64_t batch, launched_ns;
    uint32_t n_row, n_decode, n_stage;
    uint32_t total_us, wait_us, queue_us, compute_us, hold_us, wire_us, sample_us;
};

struct coord_totals {                            /* of tokens that came out of decode batches; microseconds */
    uint64_t n_token, n_prefill_row, n_batch, n_batch_dead, n_row_more;
    uint64_t n_cached_row;                                    /* taken over instead of computed */
    uint64_t wall_us;                                         /* token to token, summed over tokens */
    uint64_t wait_us, queue_us, compute_us, hold_us, wire_us, sample_us;      /* add up to wall_us */
    uint64_t stage_compute_us[MSG_STAGES_MAX], stage_queue_us[MSG_STAGES_MAX], stage_hold_us[MSG_STAGES_MAX];
    uint64_t stage_row[MSG_STAGES_MAX];                       /* of all batches */
};

struct coord_node_view {
    enum coord_node_state state;
    const struct msg_hello *hello;
    const struct peer *peer;
    const struct msg_ready *ready;
    struct msg_progress progress;
    const struct msg_link *link;                              /* measured by it */
    uint32_t n_link;
    int32_t stage_i;                                          /* -1: spare */
    bool is_helper;
    uint32_t layer_begin, layer_end;
};

struct coord_view {
    enum cluster_state state;
    uint64_t epoch, since_ns;
    const char *why;                                          /* not serving: what it waits for */
    const struct coord_plan *plan;                            /* of this epoch; NULL: none */
    uint32_t n_node, n_queued, n_active, n_decode, n_flying, n_window, n_slot, chunk;
    uint32_t n_parked;                                        /* sequences kept, nobody's */
    uint64_t parked_tokens, n_given_up;           /* tokens of those; how many had to make room */
    uint64_t n_request, n_done, n_failed;
    const struct coord_totals *totals;
    const struct coord_batch_trace *trace;                    /* the last COORD_TRACES, a ring */
    uint64_t n_trace;
};

struct coord_request_view {
    bool queued;
    uint32_t n_prompt, n_token, n_held;           /* tokens known; of them, known to be in the stages */
};

struct coord;

struct coord *coord_new(const struct coord_config *config);
void coord_free(struct coord *c);                             /* NULL is fine */
void coord_outs_init(struct coord_outs *outs, const struct coord_config *config);
void coord_outs_deinit(struct coord_outs *outs);

/* ev and what it points to are borrowed for the call, except fields named take_*. */
void coord_step(struct coord *c, const struct coord_event *ev, struct coord_outs *outs);

struct coord_view coord_view(const struct coord *c);
/* i < n_node_max; false: nobody */
bool coord_view_node(const struct coord *c, uint32_t i, struct coord_node_view *out);
/* false: it is over */
bool coord_view_request(const struct coord *c, struct handle h, struct coord_request_view *out);

/* Dies when the inside contradicts itself; for tests, after any step. */
void coord_check(const struct coord *c);
/* Tokens of each sequence that is kept, at most `room` of them; how many were written. */
uint32_t coord_view_parked(const struct coord *c, uint32_t *n_token, uint32_t room);
uint32_t coord_seqs_alive(const struct coord *c);             /* with the parked ones */

#endif
