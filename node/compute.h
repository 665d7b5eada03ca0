/* compute - what the compute thread of a node does: loads a range of layers, runs batches on it, closes
 * sequences.
 *
 * A job comes in, is carried out, and goes back with its answer; nothing else is shared. The thread that
 * calls compute_do owns the stage; only compute_give_up may be called from elsewhere. The core's slot
 * numbers are small numbers of its own; which sequence of the stage is meant by one is known here. Buffers
 * of a job belong to the job's owner and are large enough by compute_*_bytes. */
#ifndef NODE_COMPUTE_H
#define NODE_COMPUTE_H

#include "node/core.h"
#include "node/stage.h"
#include "node/streams.h"

enum compute_kind { COMPUTE_LOAD, COMPUTE_RUN, COMPUTE_SEQ_CLOSE, COMPUTE_EXPERTS };

struct compute_job {
    enum compute_kind kind;

    uint64_t epoch;                               /* LOAD */
    struct msg_assign assign;                     /* its lists are not looked at */
    struct stage_range helper[STAGE_HELPERS_MAX];  /* experts of its n_helper helpers */
    char model_path[1024];
    struct msg_ready ready;                       /* answer, as are the dimensions */
    uint32_t n_embd, n_vocab, n_expert_used;

    const struct node_job *run;                   /* RUN */
    struct payload in, out, kept, result;         /* for the owner's books */
    const void *x_in;                             /* streams as they travel; NULL: none */
    void *x_out;
    enum msg_wire_format wire_in, wire_out;
    float *logits;                                /* last stage: float[n_want][n_vocab] */
    uint8_t *parts;                               /* last stage: what is shipped of the rows */
    uint32_t parts_bytes;                         /* room, then what is used */
    struct msg_row_result *row;                   /* one per want */
    uint32_t row_room;

    struct msg_experts question;                  /* EXPERTS; the rest is in `in` and `out` */
    const void *question_data;                    /* rows, weights, ids */
    float *sums;
    uint32_t link;

    uint32_t slot;                                /* SEQ_CLOSE */

    int code;                                     /* answer */
    char text[MSG_TEXT_MAX];
    uint32_t compute_us;
};

struct compute_config {
    const struct stage_factory *factory;          /* NULL: the real model */
    const char *backend;
    int n_threads;
    uint64_t memory_bytes;                      /* that weights, state and buffers may take; 0: not limited */
    uint32_t n_slot_max;
    void (*progress)(void *ctx, uint64_t epoch, uint64_t done, uint64_t total);  /* on the compute thread */
    /* How helpers are asked, see stage_experts; on the compute thread. NULL: there are none. */
    int (*experts_ask)(void *ctx, uint32_t layer, uint32_t n_row, const float *rows, const float *weights,
                       const int32_t *ids, struct err *e);
    int (*experts_wait)(void *ctx, uint32_t helper_i, float *sums, struct err *e);
    void *ctx;
};

struct compute;

struct compute *compute_new(const struct compute_config *config);
void compute_free(struct compute *c);             /* NULL is fine */
void compute_do(struct compute *c, struct compute_job *job);
/* From any thread: a load of an epoch before this one ends soon, with ERR_CANCELLED. */
void compute_give_up(struct compute *c, uint64_t before_epoch);

/* Room that a batch needs. */
static inline uint64_t compute_streams_bytes(uint32_t n_embd, uint32_t n_row, enum msg_wire_format wire) {
    if (wire == MSG_WIRE_F16S) return streams_f16s_bytes(n_embd, n_row);
    return (uint64_t)n_row * HC_STREAMS * n_embd * sizeof(float);
}

static inline uint64_t compute_logits_bytes(uint32_t n_vocab, uint32_t n_want) {
    return (uint64_t)n_want * n_vocab * sizeof(float);
}

uint64_t compute_parts_bytes(uint32_t n_vocab, const struct msg_want *want, uint32_t n_want);

#endif
