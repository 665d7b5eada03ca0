/* core_private - the node core's inside, shared by core.c (links, assignment), core_work.c (sequences,
 * batches) and core_experts.c (helpers). */
#ifndef NODE_CORE_PRIVATE_H
#define NODE_CORE_PRIVATE_H

#include "node/core.h"

struct node_seq {
    uint64_t id;
    uint32_t slot, len, len_max; /* tokens after all posted jobs; the longest since it was opened */
};

struct node_batch {
    uint8_t state;
    bool dead;                                    /* over, but the device still works on it */
    uint64_t id;
    uint32_t from;                                /* link that waits for the credit; 0: none or returned */
    uint64_t arrived_ns, started_ns, computed_ns;
    uint32_t compute_us;
    struct payload in, out, kept; /* before the job; streams for the next hop; rows of the last stage */
    struct node_job job;
    struct node_job_seg *job_seg;                 /* these lie in `block` */
    struct msg_work work;
    void *block;
    size_t block_bytes;
};

struct node_question {                            /* to a helper */
    bool open;
    uint64_t batch, deadline_ns;
    uint32_t layer, n_row;
};

struct node {
    struct node_config config;
    struct peer_pace pace;
    uint64_t now_ns, first_ns, epoch;
    uint8_t state;
    bool stopped;

    struct peer coordinator, next, accepted[NODE_LINKS_MAX];
    bool next_wanted;
    struct peer helper_peer[MSG_HELPERS_MAX];
    struct node_question question[MSG_HELPERS_MAX];
    uint32_t n_helper;                            /* connected */
    int refused_code;                             /* of the last REFUSE, so that each reason is told once */

    bool has_assign, retired,
        loaded, holds_weights; /* retired: the plan of `assign` is over, and we are in no newer one */
    uint64_t assigned_by;                         /* incarnation of the coordinator that did */
    struct msg_assign assign;
    struct msg_helper helper[MSG_HELPERS_MAX];
    struct msg_key peer_key[MSG_NODES_MAX];
    struct msg_source source[MSG_SOURCES_MAX];
    struct msg_ready ready;
    struct msg_progress progress;
    int load_code;                                /* of the last load that failed in this epoch */
    char load_text[MSG_TEXT_MAX];

    struct node_seq *seq;                         /* ascending ids */
    uint32_t n_seq;
    struct pool slots;

    struct pool batches;
    struct node_batch *batch;
    uint32_t n_computing, n_sent;
    uint64_t last_batch, batch_done, seq_next;    /* newest taken; from SYNC */
    uint64_t dead[MSG_BATCHES_MAX];
    uint32_t n_dead;
    uint64_t *alive;                              /* of the last SYNC */
    uint32_t n_alive;

    struct msg_counters counters;
};

struct node_out *node_out(struct node_outs *outs, enum node_out_kind kind);
struct msg *node_send(struct node *n, struct node_outs *outs, uint32_t link, enum msg_kind kind);
struct msg *node_send_payload(struct node *n, struct node_outs *outs, uint32_t link, enum msg_kind kind,
                              struct payload p);
void node_give(struct node_outs *outs, struct payload *p);
void node_set_state(struct node *n, enum node_state to);

void node_link_lost(struct node *n, struct peer *p, uint32_t link, struct node_outs *outs);

/* core_experts.c */
void experts_connect(struct node *n, const struct msg_assign *a, struct node_outs *outs);
void experts_on_ask(struct node *n, const struct node_event *ev, struct payload *payload,
                    struct node_outs *outs);
void experts_on_answer(struct node *n, const struct node_event *ev, struct payload *payload,
                       struct node_outs *outs);
void experts_on_question(struct node *n, const struct node_event *ev, struct payload *payload,
                         struct node_outs *outs);
void experts_on_computed(struct node *n, const struct node_event *ev, struct payload *payload,
                         struct node_outs *outs);
void experts_give_up(struct node *n, uint32_t helper_i, int code, struct node_outs *outs);
void experts_timers(struct node *n, struct node_outs *outs);
uint64_t experts_deadline_ns(const struct node *n);

/* core_work.c */
void work_init(struct node *n);
void work_deinit(struct node *n);
void work_drop_all(struct node *n, struct node_outs *outs);                      /* a new epoch */
void work_on_work(struct node *n, const struct node_event *ev, struct payload *payload,
                  struct node_outs *outs);
void work_on_credit(struct node *n, const struct msg_credit *credit, struct node_outs *outs);
void work_on_sync(struct node *n, const struct msg_sync *sync, struct node_outs *outs);
void work_on_row_get(struct node *n, const struct msg_row_get *get, struct node_outs *outs);
void work_on_computed(struct node *n, const struct node_event *ev, struct payload *payload,
                      struct node_outs *outs);
void work_pump(struct node *n, struct node_outs *outs); /* starts and sends what can */
bool work_is_empty(const struct node *n); /* nothing queued, computing, held or sent */

#endif
