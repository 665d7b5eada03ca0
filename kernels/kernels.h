/* kernels - the operations of the model, one interface for every backend (cpu, cuda, metal).
 *
 * A `struct kernels` is one device with its memory and its queue. Operations are enqueued in program
 * order and may run later (the CPU runs them at once); kernels_finish waits and reports the first
 * failure. The schedule of the model is ordinary C in node/model_deepseek4.c; nothing here knows about
 * layers, files or networks. One thread at a time may use a `kernels`; tensors and memory belong to the
 * caller. Argument shapes are checked once, in kernels.c, for all backends.
 *
 * Dimensions are named by GGUF's words. All activations are f32. `n` = rows of the batch: every row is
 * one token of one sequence; rows of the same sequence are adjacent and in order of position ("segment").
 * Prefill and decode are the same thing with different segments. A row's result may not depend on the
 * other rows (design, promise 1): on the CPU every operation is bit-exact in that sense, and so is the
 * sum over experts, which is a tree over expert numbers (moe_experts). */
#ifndef KERNELS_H
#define KERNELS_H

#include "common/base/err.h"
#include "common/base/types.h"
#include "common/model/dtype.h"

/* What the state keeps of a row. official: FP8/FP4 rounding as the model was trained, rope values rounded
 * to f16 (the packed form for everyday use); wide: the same, rope values in f32; exact: no rounding,
 * everything f32. */
enum numerics { NUMERICS_OFFICIAL, NUMERICS_EXACT, NUMERICS_WIDE };
enum precision {
    PRECISION_FAST,
    PRECISION_F32
}; /* int8 activations for quantised weights, or f32 everywhere */

enum {
    HC_STREAMS = 4, HC_MIX = 24,                            /* 4 pre + 4 post + 16 comb */
    MOE_USED_MAX = 16,
    KV_PAGE = 64,                                           /* compressed entries in a page of state */
    KV_ROLLBACK = 16,                                       /* tokens that can always be taken back */
};

/* ---- memory ---- */

struct kernels;
struct kmem;                                                /* an allocation on the device */

struct tensor {
    void *data;                                             /* in the device's address space, inside mem */
    struct kmem *mem;
    enum dtype type;
    int64_t ne[3];                                          /* ne[0] fastest: row length; unused are 1 */
};

/* ---- the batch and the state it works on ---- */

struct kseg { /* rows row0 .. row0+n of one sequence, positions pos0 .. */
    int32_t row0, n, pos0, slot;                            /* slot: index into kv_layer.slices */
};

struct kbatch {
    int32_t n_rows, n_seg;
    const int32_t *token;                                   /* [n_rows] */
    const int32_t *pos;                                     /* [n_rows] */
    const int32_t *seg;                                     /* [n_rows] index into segs */
    const struct kseg *segs;
};

/* State of one layer of one sequence, device pointers. Written only by kv_commit and compress. */
struct kv_slice {
    uint8_t *raw;                 /* ring of raw_cap packed rows: position p in row p % raw_cap */
    float *hist;                  /* ring of hist_cap x [kv | score], each c * head_dim */
    float *idx_hist;              /* the same for the indexer's compressor, c * idx_dim */
    uint8_t **pages, **idx_pages; /* entry w: pages[w / KV_PAGE] + (w % KV_PAGE) * bytes */
};

struct kv_layer {                                           /* what is the same for all sequences */
    enum numerics numerics;
    int32_t head_dim, n_rot, idx_dim;
    int32_t ratio;                                          /* 0: no compressor */
    int32_t overlap; /* 1: ratio 4, pools two windows (c = 2); 0: c = 1 */
    int32_t n_swa, raw_cap, hist_cap;
    int32_t row_bytes, key_bytes;                           /* packed entry, packed indexer key */
    const struct kv_slice *slices;                          /* [slots], readable by the device */
};

/* Bytes of one stored row / key. official: E4M3 + exponents + f16 rope, padded with zeros to 16 bytes so
 * that a GPU reads a row in whole words / FP4 + exponents; exact: f32. */
int32_t kv_row_bytes(enum numerics numerics, int32_t head_dim, int32_t n_rot);
int32_t kv_key_bytes(enum numerics numerics, int32_t idx_dim);

/* ---- operations ---- */

#define KERNEL_OPS(X)                                                                                  \
    X(embed) X(hc_pre) X(hc_post) X(hc_head) X(matmul) X(rms_norm) X(add_streams) X(q_rope) X(kv_rows) \
    X(kv_commit) X(compress) X(index_select) X(attention) X(swiglu) X(moe_route) X(moe_experts)

/* out[n][n_streams][n_embd] = table[token], the same row in every stream */
struct embed_args {
    struct tensor *out;
    const struct tensor *table;                             /* [n_embd, n_vocab] */
    const struct kbatch *batch;
    int32_t n_streams;
};

/* r = 1/sqrt(mean(x^2) + rms_eps) over the 4*n_embd values; mix = r * fn . x; pre, post, comb from mix,
 * scale, base and sinkhorn (spec 2.2); collapsed = sum pre[s] x[s]; out = norm * RMS(collapsed) */
struct hc_pre_args {
    struct tensor *out, *post, *comb; /* [n_embd, n], [4, n], [16, n] (row j, column k: 4j+k) */
    const struct tensor *x;                                 /* [n_embd, 4, n] */
    const struct tensor *fn, *scale, *base, *norm;          /* [4*n_embd, 24], [3], [24], [n_embd] */
    float rms_eps, hc_eps;
    int32_t n_sinkhorn, n;
};

/* x[k] = post[k] (y + y2) + sum_j comb[j][k] x[j], in place; y2 may be NULL */
struct hc_post_args {
    struct tensor *x;
    const struct tensor *y, *y2, *post, *comb;
    int32_t n;
};

/* out = norm * RMS(sum_s w_s x[s]), w = sigmoid(scale * r * fn . x + base) + hc_eps, for the rows in
 * row_i (NULL: all n) */
struct hc_head_args {
    struct tensor *out;                                     /* [n_embd, n_out] */
    const struct tensor *x, *fn, *scale, *base, *norm;      /* fn [4*n_embd, 4], scale [1], base [4] */
    const int32_t *row_i;                                   /* host array, copied by the call */
    float rms_eps, hc_eps;
    int32_t n;
};

/* out[n][n_out] = in[n][n_group * n_in] * weight[n_out][n_in]^T; output o reads group o / (n_out /
 * n_group) of the input */
struct matmul_args {
    struct tensor *out;
    const struct tensor *in, *weight;                       /* weight [n_in, n_out] */
    int32_t n, n_group;                                     /* n_group 1: a plain matrix */
    bool f32_act; /* never quantise the activations (router, compressors) */
};

/* out = weight * in / sqrt(mean(in^2) + eps), rows of ne[0] */
struct rms_norm_args {
    struct tensor *out;
    const struct tensor *in, *weight;
    float eps;
    int32_t n;
};

/* x[n][4][n_embd] += e[n][n_embd], every stream (MTP) */
struct add_streams_args {
    struct tensor *x;
    const struct tensor *e;
    int32_t n;
};

/* each of n_head heads in place: RMS without weight, then rope on the last n_rot; rope rows [n][n_rot] =
 * cos, sin pairs */
struct q_rope_args {
    struct tensor *q;                                       /* [n_head * head_dim, n] */
    const struct tensor *rope;
    float eps;
    int32_t n, n_head, head_dim, n_rot;
};

/* rows[n][row_bytes] = pack( rope( norm * RMS(kv) ) ): the raw KV rows of this batch, rounded as they
 * will be stored */
struct kv_rows_args {
    struct tensor *rows;                                    /* bytes: type I8, [row_bytes, n] */
    const struct tensor *kv, *norm, *rope;
    const struct kv_layer *layer;
    float eps;
    int32_t n;
};

/* the last raw_cap rows of every segment into the rings; after attention */
struct kv_commit_args {
    const struct tensor *rows;
    const struct kv_layer *layer;
    const struct kbatch *batch;
};

/* Compressor (spec 2.6). kv and score are the projections [c * dim, n]; score counts with the position
 * bias ape[pos % ratio], which a backend may add in place. Every window that ends in the batch is pooled
 * (rows of before the segment come from the history ring), normed, roped at its first position and
 * appended as entry pos / ratio; then the history ring takes the last rows. */
struct compress_args {
    struct tensor *kv, *score;
    const struct tensor *ape, *norm;                        /* [c * dim, ratio], [dim] */
    const struct tensor *rope; /* [n_rot, n]: row i = position pos_i + 1 - ratio (clamped to 0) */
    const struct kv_layer *layer;
    const struct kbatch *batch;
    float eps;
    bool is_index; /* false: entries of head_dim; true: indexer keys of idx_dim */
};

/* Indexer (spec 2.7): per row the entries that attention reads, ascending. n_visible = (pos+1)/ratio; all
 * of them when that is
 * <= top_k or when q is NULL (then the caller knows that every row has <= top_k). For rows row0 .. row0+n
 * of the batch; every tensor starts at row0. */
struct index_select_args {
    struct tensor *sel, *n_sel;                             /* I32 [top_k, n], [n] */
    struct tensor *q; /* [n_idx_head * idx_dim, n] projections; overwritten; may be NULL */
    const struct tensor *weight;                            /* [n_idx_head, n] projections, unscaled */
    const struct tensor *rope;
    const struct kv_layer *layer;
    const struct kbatch *batch;
    int32_t row0, n, n_head, top_k;
};

/* Core attention (spec 2.8), in place over q, for rows row0 .. row0+n of the batch (q, sel and rope start
 * at row0 too; `rows` is the whole batch's). Order of the sums: raw rows by position, then entries
 * ascending. Ends with the inverse rope. */
struct attention_args {
    struct tensor *q; /* [n_head * head_dim, n]: queries in, heads' outputs out */
    const struct tensor *rows, *sinks, *rope;
    const struct tensor *sel, *n_sel;                       /* NULL: all visible entries (or no compressor) */
    const struct kv_layer *layer;
    const struct kbatch *batch;
    int32_t row0, n, n_head;
};

/* out = silu(min(gate, clamp)) * clamp(up, -clamp, clamp); out may be gate */
struct swiglu_args {
    struct tensor *out;
    const struct tensor *gate, *up;
    float clamp;
    int32_t n;
};

/* ids ascending by number, weights = score / sum(scores, in that order) * scale; score =
 * sqrt(softplus(logit)). tid2eid: hash layers, ids from the token; else top n_used of score + bias, ties
 * to the lower number. */
struct moe_route_args {
    struct tensor *ids, *weights;                           /* I32 [n_used, n], F32 [n_used, n] */
    const struct tensor *logits, *bias,
        *tid2eid; /* [n_expert, n]; NULL or [n_expert]; NULL or I32 [n_used, n_vocab] */
    const struct kbatch *batch;
    float scale;
    int32_t n_used;
};

/* out = sum over the row's experts e in [e_begin, e_end) of W2_e . (weight * silu(min(W1_e x, c)) *
 * clamp(W3_e x)). The sum is a binary tree over expert numbers: two partial sums are added where their
 * numbers first share all higher bits. So an aligned power-of-two range of experts yields one partial
 * sum, whichever machine holds it. The three weight tensors hold exactly the experts of the range. */
struct moe_experts_args {
    struct tensor *out;                                     /* [n_embd, n] */
    const struct tensor *x, *ids, *weights;
    const struct tensor *gate, *up, *down; /* [n_embd, n_ff, n_e], same, [n_ff, n_embd, n_e] */
    float clamp;
    int32_t n, n_used, e_begin, e_end;
};

enum kernel_op {
#define KERNEL_ENUM(name) KERNEL_##name,
    KERNEL_OPS(KERNEL_ENUM)
#undef KERNEL_ENUM
    KERNEL_COUNT
};

/* ---- a device ---- */

struct kernels_config {
    const char *backend; /* "cpu", "cuda", "metal"; NULL: the best one here */
    enum precision precision;
    int n_threads;                                          /* cpu: 0 = all cores */
    int device;                                             /* cuda: card number */
    bool pin_threads;
};

struct kernels_ops {                                        /* filled in by each backend */
    const char *name;
    void (*close)(struct kernels *k);
    struct kmem *(*alloc)(struct kernels *k, uint64_t size, void **data, struct err *e);
    struct kmem *(*map)(struct kernels *k, const void *host, uint64_t size, void **data, struct err *e);
    void (*release)(struct kernels *k, struct kmem *mem);
    int (*upload)(struct kernels *k, void *to, const void *from_host, uint64_t size, struct err *e);
    int (*download)(struct kernels *k, void *to_host, const void *from, uint64_t size, struct err *e);
    int (*finish)(struct kernels *k, struct err *e);
#define KERNEL_FN(name) void (*name)(struct kernels *k, const struct name##_args *a);
    KERNEL_OPS(KERNEL_FN)
#undef KERNEL_FN
};

struct kernels {                                            /* first member of every backend's struct */
    const struct kernels_ops *ops;
    struct kernels_config config;
    struct err failed;  /* sticky: the first failure, reported by finish */
    int32_t block_rows; /* rows of queries that suit it best at once; 0: no opinion */
    bool timing; /* collect op_ns (cpu: always exact; gpu: only with a finish per op) */
    uint64_t op_ns[KERNEL_COUNT], op_calls[KERNEL_COUNT];
};

int kernels_open(struct kernels **out, const struct kernels_config *config, struct err *e);
void kernels_close(struct kernels *k);                                     /* NULL is fine */
const char *kernels_op_name(enum kernel_op op);

/* alloc: device memory, zeroed, 64-byte aligned or better. map: weights; no copy where the device can
 * read host memory (host must stay mapped), else an upload. Both give the device address in *data. */
struct kmem *kernels_alloc(struct kernels *k, uint64_t size, void **data, struct err *e);
struct kmem *kernels_map(struct kernels *k, const void *host, uint64_t size, void **data, struct err *e);
void kernels_release(struct kernels *k, struct kmem *mem);                 /* NULL is fine */
int kernels_upload(struct kernels *k, void *to, const void *from_host, uint64_t size, struct err *e);
int kernels_download(struct kernels *k, void *to_host, const void *from, uint64_t size,
                     struct err *e); /* waits */
int kernels_finish(struct kernels *k, struct err *e);

/* The operations: check the arguments (a wrong shape is our bug: CHECK), then run on the device. */
#define KERNEL_CALL(name) void kernels_##name(struct kernels *k, const struct name##_args *a);
KERNEL_OPS(KERNEL_CALL)
#undef KERNEL_CALL

/* Backends. Those not built in return ERR_UNSUPPORTED. */
int kernels_cpu_open(struct kernels **out, const struct kernels_config *config, struct err *e);
int kernels_cuda_open(struct kernels **out, const struct kernels_config *config, struct err *e);
int kernels_metal_open(struct kernels **out, const struct kernels_config *config, struct err *e);

/* The best that the processor does, measured now (some 200 ms): reading memory, int8 and f32
 * multiply-adds (2 operations each). A figure is 0 where there is no loop for the instruction set. */
struct kernels_peaks {
    double read_bytes_s, int8_ops_s, f32_ops_s;
    int n_threads;
};
int kernels_cpu_measure(struct kernels_peaks *out, int n_threads, struct err *e);
/* The same figures of any device, as its own matrix products reach them (0.3 s, 300 MiB or less of its memory
 * for that time): what a plan can count on, a little below the peaks. */
int kernels_measure(struct kernels *k, struct kernels_peaks *out, struct err *e);
const char *kernels_cpu_simd_name(void); /* the instruction set in use: "avx512" */

#endif
