/* stage - the compute seam: a contiguous range of layers that takes a batch of rows and gives back what
 * comes after them.
 *
 * The caller (a node, the in-process engine, a test) knows sequences, positions and rows; what runs
 * behind the seam may be the real model (stage_model), or a stand-in for tests. One thread at a time
 * uses a stage. Everything passed in is borrowed for the call; results are written to the caller's
 * memory. A failed call leaves the lengths of all sequences as they were and may be repeated, unless it
 * had begun to compute more than KV_ROLLBACK tokens of a sequence: then every later use of that
 * sequence says so until it is taken back to 0 or closed. */
#ifndef NODE_STAGE_H
#define NODE_STAGE_H

#include "common/base/buf.h"
#include "common/model/hparams.h"
#include "kernels/kernels.h"

struct stage;

struct stage_seg {                                 /* consecutive tokens of one sequence */
    uint32_t slot, n;                              /* they get positions len(slot) .. len(slot) + n */
    const int32_t *token;
};

struct stage_batch {
    const struct stage_seg *segs;
    uint32_t n_seg, n_rows;                        /* n_rows: sum of the segments' n */
    const float *x_in;                 /* [n_rows][4][n_embd] streams; NULL on the stage with the embedding */
    float *x_out;                                  /* the same, after the last layer; NULL when not wanted */
    const int32_t *logit_rows;              /* stage with the head: rows whose logits are wanted, ascending */
    uint32_t n_logits;
    float *logits;                                 /* [n_logits][n_vocab] */
};

/* MTP: drafts from the streams after the last layer (spec 6.2). Row i pairs token[i] with x_in row i. */
struct stage_mtp_batch {
    const struct stage_seg *segs;
    uint32_t n_seg, n_rows;
    const float *x_in;                             /* main model's X, or the x_out of the draft before */
    float *x_out;                                  /* may be NULL */
    float *logits;                                 /* [n_rows][n_vocab] */
};

struct stage_ops {
    void (*close)(struct stage *s);
    int (*seq_open)(struct stage *s, uint32_t *slot, struct err *e);
    void (*seq_close)(struct stage *s, uint32_t slot);
    uint32_t (*seq_len)(const struct stage *s, uint32_t slot);
    int (*seq_rollback)(struct stage *s, uint32_t slot, uint32_t n_tokens, struct err *e);
    int (*seq_fork)(struct stage *s, uint32_t from, uint32_t n_tokens, uint32_t *slot, struct err *e);
    int (*seq_save)(struct stage *s, uint32_t slot, struct buf *out, struct err *e);
    int (*seq_restore)(struct stage *s, const void *data, size_t size, uint32_t *slot, struct err *e);
    int (*run)(struct stage *s, const struct stage_batch *batch, struct err *e);
    int (*run_mtp)(struct stage *s, const struct stage_mtp_batch *batch, struct err *e);
};

struct stage {                                     /* first member of every stage */
    const struct stage_ops *ops;
    struct hparams hp;
    uint32_t layer_begin, layer_end, n_rows_max;
    bool has_embed, has_head, has_mtp;
};

void stage_close(struct stage *s);                                         /* NULL is fine */
int stage_seq_open(struct stage *s, uint32_t *slot, struct err *e);
void stage_seq_close(struct stage *s, uint32_t slot);
uint32_t stage_seq_len(const struct stage *s, uint32_t slot);
/* See kv_cache.h for what can be taken back. */
int stage_seq_rollback(struct stage *s, uint32_t slot, uint32_t n_tokens, struct err *e);
int stage_seq_fork(struct stage *s, uint32_t from, uint32_t n_tokens, uint32_t *slot, struct err *e);
int stage_seq_save(struct stage *s, uint32_t slot, struct buf *out, struct err *e);
int stage_seq_restore(struct stage *s, const void *data, size_t size, uint32_t *slot, struct err *e);
/* At most n_rows_max rows. Token ids out of range, a full context, no memory: an error, nothing changed. */
int stage_run(struct stage *s, const struct stage_batch *batch, struct err *e);
/* Runs the MTP block on a slot of its own kind of state: the same slot numbers, lengths kept apart from
 * the main model's. */
int stage_run_mtp(struct stage *s, const struct stage_mtp_batch *batch, struct err *e);

/* ---- the real model ---- */

enum { STAGE_HELPERS_MAX = 16 };                   /* MSG_HELPERS_MAX */

struct stage_range { uint32_t begin, end; };

/* Routed experts that other machines hold for this stage. `ask` begins to get the sums of all helpers for
 * some rows of a layer and returns; what it is given stays until all waits are over. `wait` then gives
 * one helper's sums [n_row][n_embd]; it is called once for each helper after an ask that did not fail,
 * whatever the others said. Both are called by the thread in stage_run. */
struct stage_experts {
    struct stage_range own, helper[STAGE_HELPERS_MAX];         /* see node/experts.h */
    uint32_t n_helper;
    int (*ask)(void *ctx, uint32_t layer, uint32_t n_row, const float *rows, const float *weights,
               const int32_t *ids, struct err *e);
    int (*wait)(void *ctx, uint32_t helper_i, float *sums, struct err *e);
    void *ctx;
};

struct stage_config {
    const char *model_path;
    const char *mtp_path;                          /* NULL: no MTP block */
    uint32_t layer_begin, layer_end;               /* layer_end 0: to the last layer */
    enum numerics numerics;
    struct kernels_config kernels;
    uint32_t n_rows_max;                           /* 0: a good default */
    uint32_t n_slots, n_ctx_max;                   /* 0: 8 sequences, the model's own context */
    const struct stage_experts *experts;           /* NULL: all are here; copied */
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
};

enum { STAGE_ROWS_DEFAULT = 1024 };

int stage_model_open(struct stage **out, const struct stage_config *config, struct err *e);

/* Who makes the stage of a node. NULL stands for the real model; tests put something else in its place,
 * which need not look at a file. */
struct stage_factory {                             /* first member of whoever needs more */
    int (*open)(const struct stage_factory *f, struct stage **out, const struct stage_config *config,
                struct err *e);
};

struct stage_memory {                              /* bytes */
    uint64_t weights, state, work;
};
struct stage_memory stage_model_memory(const struct stage *s);             /* s from stage_model_open */
struct kernels *stage_model_kernels(struct stage *s);                      /* for timings */
uint64_t stage_model_state_bytes_for(const struct stage *s, uint32_t n_tokens);
const struct gguf *stage_model_gguf(const struct stage *s);                /* for the tokenizer */

#endif
