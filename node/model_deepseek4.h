/* model_deepseek4 - the schedule of one forward pass over a range of layers, as ordinary C from top to
 * bottom.
 *
 * It owns the work tensors (sized once for n_rows_max rows) and calls kernels in the order of the model;
 * it knows no files and no network. Attention runs in blocks of MODEL_BLOCK rows, because 64 heads of 512
 * queries are the widest thing there is. Belongs to the stage's thread. */
#ifndef NODE_MODEL_DEEPSEEK4_H
#define NODE_MODEL_DEEPSEEK4_H

#include "node/kv_cache.h"
#include "node/rope.h"
#include "node/weights.h"

enum {
    MODEL_BLOCK = 128,    /* rows of queries at once, unless the backend likes more */
    MODEL_HEAD_ROWS = 16, /* rows of logits at once */
    MODEL_RATIOS_MAX = 4, /* different compress ratios in one model */
};

/* Every work tensor: name, row length (values), rows. R = n_rows_max, B = block, L = head rows. */
#define MODEL_TENSORS(X)                           \
    X(x, D, 4 * R)                                 \
    X(xn, D, R)                                    \
    X(y, D, R)                                     \
    X(y2, D, R)                                    \
    X(post, HC_STREAMS, R)                         \
    X(comb, HC_STREAMS * HC_STREAMS, R)            \
    X(qr, QL, R)                                   \
    X(kv_row, HD, R)                                \
    X(comp_kv, 2 * HD, R)                          \
    X(comp_score, 2 * HD, R)                       \
    X(idx_kv, 2 * ID, R)                           \
    X(idx_score, 2 * ID, R)                        \
    X(q, MAX(H * HD, IH * ID), B)                  \
    X(low, OL * OG, B)                             \
    X(idx_w, IH, B)                                \
    X(gate, FF * ES, R)                            \
    X(up, FF * ES, R)                              \
    X(route, E, R)                                 \
    X(route_w, EU, R)                              \
    X(rope_base, ROT, R)                           \
    X(rope_comp, ROT, R)                           \
    X(head, D, L)                                  \
    X(logits, V, L)

struct experts_lead;                               /* experts on other machines */

struct model {
    struct kernels *k;
    const struct hparams *hp;
    const struct weights *w;
    struct kv_cache *kv, *kv_mtp;                  /* kv_mtp: one layer, NULL without MTP */
    uint32_t n_rows_max, n_ratios;
    int32_t block;                                 /* rows of queries at once */
    uint32_t ratio[MODEL_RATIOS_MAX];
    struct rope_freqs freqs_base, freqs_comp;
#define MODEL_FIELD(name, row, rows) struct tensor name;
    MODEL_TENSORS(MODEL_FIELD)
#undef MODEL_FIELD
    struct tensor rows, ids, sel, n_sel;           /* packed KV rows; expert numbers; the indexer's choice */
    struct tensor rope_win[MODEL_RATIOS_MAX];      /* rope of windows that end at a row, per ratio */
    float *rope_host;
    struct experts_lead *lead;                     /* NULL: all experts are here */
    struct kmem *mem;
    uint64_t mem_bytes;
};

int model_init(struct model *m, struct kernels *k, const struct hparams *hp, const struct weights *w,
               struct kv_cache *kv, struct kv_cache *kv_mtp, uint32_t n_rows_max, enum numerics numerics,
               struct err *e);
void model_deinit(struct model *m);

/* Rope tables of a batch; before the layers. */
int model_begin(struct model *m, const struct kbatch *batch, struct err *e);
/* x = the embeddings of the batch's tokens. */
void model_embed(struct model *m, const struct kbatch *batch);
/* One layer over the rows of m->x, and the state of all of them. Streams of rows before `first` are not
 * computed: in the last layer nobody reads those that give no logits. Their values are undefined
 * afterwards. */
void model_layer(struct model *m, const struct kbatch *batch, uint32_t layer, int32_t first);
/* The two halves of a layer without their connections: from m->xn (normalised) to m->y; the FFN's output
 * is m->y + m->y2. */
void model_attention(struct model *m, const struct kbatch *batch, uint32_t layer);
void model_ffn(struct model *m, const struct kbatch *batch, uint32_t layer);
/* m->logits[i] = logits of batch row row_i[i], for n <= MODEL_HEAD_ROWS. */
void model_head(struct model *m, const int32_t *row_i, int32_t n);

/* MTP (spec 6.2): m->x holds the streams to draft from; afterwards the block's own streams. */
void model_mtp(struct model *m, const struct kbatch *batch);
void model_mtp_head(struct model *m, const int32_t *row_i, int32_t n);

#endif
