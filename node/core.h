/* core (node) - everything a node decides: whom it talks to, what it holds, which batch it computes,
 * refuses or passes on.
 *
 * A struct and a step: events in, outs away, time is a field, the next deadline is a result. No clock, no
 * socket, no thread, no device. Belongs to the loop thread of its shell; the simulation runs many in one
 * process. Limits: NODE_LINKS_MAX accepted links, n_batch_max batches, n_slot_max sequences.
 *
 *            ASSIGN            loaded            WORK                DRAIN, queue empty
 *   idle* ----------> loading -------> ready* ---------> serving* ----------------------> idle
 *     ^                 |  ^             |                  |  |                            (DRAINED)
 *     +--- load failed -+  +-------------+------------------+  +-- DRAIN --> draining --+
 *                                ASSIGN of a newer epoch, from any state                 +--> idle
 *            PING of a newer epoch: idle, from any state; the weights stay
 *
 *   a batch:   queued* --positions fit--> computing* --> held* (credit, link) --> sent* (CREDIT) --> over
 *                                              |
 *                                              +-- last stage --> kept* (rows may be asked for) --> over
 *   (* waits.) Any of them ends when SYNC or a newer WORK says that the batch is over. batch_end() is the
 * only way out: it gives back the payloads, and with the place the credit.
 *
 * Experts. A stage may have helpers, each with some experts of its layers. Its compute thread asks them
 * (EV_EXPERTS, one question per helper at a time) and waits for OUT_EXPERTS_DONE, which comes for every
 * question: answer, error, or deadline. On the helper a question is a job like any other (OUT_EXPERTS,
 * then EV_EXPERTS_COMPUTED).
 *
 * The shell's part. Jobs (LOAD, RUN, SEQ_CLOSE, EXPERTS) go to the compute thread in the order of the
 * outs; it checks again that a sequence holds `have` tokens, goes back to pos0, and runs. Slots in jobs
 * are numbers below n_slot that this core hands out. A payload in an event is ours; one in a SEND or RUN
 * is the shell's until it comes back or is freed. */
#ifndef NODE_CORE_H
#define NODE_CORE_H

#include "common/base/pool.h"
#include "common/base/trace.h"
#include "common/wire/peer.h"

enum {
    NODE_LINK_COORDINATOR = 1,
    NODE_LINK_NEXT = 2,      /* we connect: HELLO is ours */
    NODE_LINK_SURVEY = 3,    /* and above: the shell's, to measure; the core never sees them */
    NODE_LINK_HELPER = 8,    /* and above, one per helper: we connect */
    NODE_LINK_SOURCE = 24,   /* and above, one per source of weights: the shell's, the core never sees them */
    NODE_LINK_ACCEPTED = 32, /* and above: they connect */
    NODE_LINKS_MAX = 48,     /* accepted: previous stages, now and before, who fetches weights, tools */
    NODE_COMPUTING_MAX = 2   /* one runs, one waits in the ring: no gap between them */
};

enum node_state { NODE_IDLE, NODE_LOADING, NODE_READY, NODE_SERVING, NODE_DRAINING, NODE_STATES };
enum node_batch_state { NB_QUEUED, NB_COMPUTING, NB_HELD, NB_SENT, NB_KEPT, NB_OVER, NB_STATES };

struct node_config {
    struct msg_hello hello;                                   /* all about us; its arrays outlive the core */
    uint64_t incarnation;
    uint32_t ping_ms, ping_misses;
    uint32_t n_batch_max, n_slot_max; /* batches: at least twice the coordinator's window */
    uint32_t payload_bytes_max;
    uint32_t experts_ms; /* deadline of one question to a helper; 0: ten seconds */
    struct trace trace;
};

enum node_event_kind {
    NODE_EV_TICK,             /* the deadline came */
    NODE_EV_MSG,              /* link, msg, take_payload */
    NODE_EV_LINK_CLOSED,      /* link: an accepted one is gone for good */
    NODE_EV_PROGRESS,         /* load.epoch, load.progress */
    NODE_EV_LOADED,           /* load.epoch, load.code, load.text, load.ready */
    NODE_EV_COMPUTED,         /* done, take_payload */
    NODE_EV_EXPERTS,          /* link: NODE_LINK_HELPER + i, experts, take_payload */
    NODE_EV_EXPERTS_COMPUTED, /* link, epoch as in the out, experts_done, take_payload */
    NODE_EV_FILES,            /* files: what hello says of them changed; its array outlives the core */
    NODE_EV_STOP              /* say LEAVE; the shell exits when the outs are carried out */
};

struct node_load {
    uint64_t epoch;
    struct msg_progress progress;
    struct msg_ready ready;
    int code;
    const char *text;
};

struct node_done {
    struct handle job;
    int code;                                                 /* < 0: nothing changed in any sequence */
    const char *text;
    const struct msg_row_result *row; /* last stage: one per want; parts lie in take_payload */
    uint32_t n_row, compute_us;
    struct payload take_kept; /* last stage: float[n_want][n_vocab], for MSG_ROW_GET */
};

struct node_event {
    uint64_t now_ns;
    enum node_event_kind kind;
    uint32_t link;
    const struct msg *msg;
    struct payload take_payload;
    struct node_load load;
    struct node_done done;
    uint64_t epoch;
    struct msg_experts experts;
    struct msg_experts_done experts_done;
    struct msg_files files;
};

/* have > pos0: go back first. open: a new sequence, have is 0; with fork: a copy of the first pos0 tokens in
 * slot `from`, have is pos0. */
struct node_job_seg {
    uint32_t slot, pos0, n, have, from;
    bool open, fork;
};

struct node_job {
    struct handle handle;
    uint64_t batch;
    const struct node_job_seg *seg;
    const int32_t *token;
    const struct msg_want *want;
    const struct msg_bias *bias;
    uint32_t n_seg, n_row, n_want, n_bias;
    struct payload take_in;                                   /* streams; none on stage 0 */
};

enum node_out_kind {
    NODE_OUT_SEND,         /* link, msg, payload (ours again: borrows) */
    NODE_OUT_CONNECT,      /* link, hop */
    NODE_OUT_DISCONNECT,   /* link: the next stage's, or a helper's */
    NODE_OUT_DROP,         /* link: an accepted one */
    NODE_OUT_LOAD,         /* assign, epoch; an unfinished older load is given up */
    NODE_OUT_SOURCES,      /* assign, epoch: while it loads, the sources of weights are others than before */
    NODE_OUT_RUN,          /* job: valid until its NODE_EV_COMPUTED */
    NODE_OUT_SEQ_CLOSE,    /* slot; it may be that the job that opened it failed */
    NODE_OUT_FREE,         /* payload */
    NODE_OUT_EXPERTS,      /* link, epoch, experts, payload: compute, and answer with both */
    NODE_OUT_EXPERTS_DONE, /* link, experts_done, payload: to the thread that asked */
    NODE_OUT_NOTICE        /* code, text: worth a line in the log, once */
};

struct node_out {
    enum node_out_kind kind;
    uint32_t link, slot;
    const struct msg *msg;
    struct payload payload;
    bool borrows; /* the shell copies the payload; the slot stays ours */
    uint64_t epoch;
    const struct msg_hop *hop;
    const struct msg_assign *assign;
    const struct node_job *job;
    struct msg_experts experts;
    struct msg_experts_done experts_done;
    int code;
    const char *text;
};

/* Carried out in order. What items point to is valid until the next step (jobs: until they are done). */
struct node_outs {
    struct node_out *item;
    struct msg *msg;
    uint32_t n, n_max, n_msg, n_msg_max;
    uint64_t deadline_ns;
};

struct node;

struct node *node_new(const struct node_config *config);
void node_free(struct node *n); /* NULL is fine; payloads that it holds are not given back */
void node_outs_init(struct node_outs *outs, const struct node_config *config);
void node_outs_deinit(struct node_outs *outs);

/* ev and what it points to are borrowed until the outs are carried out, except fields named take_*. Start
 * with a NODE_EV_TICK. */
void node_step(struct node *n, const struct node_event *ev, struct node_outs *outs);

struct node_view {
    enum node_state state;
    uint64_t epoch;
    uint32_t n_seq, n_batch, n_computing, n_sent;
    bool coordinator_up, next_up;
    uint32_t next_rtt_us;                                     /* 0: not measured */
    const struct msg_assign *assign;                          /* NULL before the first */
    struct msg_counters counters;
};
struct node_view node_view(const struct node *n);

/* Dies when the inside contradicts itself; for tests, after any step. */
void node_check(const struct node *n);
/* Payloads that the core holds; for the simulation's accounts. */
uint32_t node_payloads_held(const struct node *n);

#endif
