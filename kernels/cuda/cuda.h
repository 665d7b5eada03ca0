/* cuda - inside the CUDA backend: the device struct, its queue of operations, scratch memory and launching.
 *
 * An operation is only recorded when it is called (queue.cu). It runs when something needs its result:
 * a download, finish, an upload, or a full queue. So small batches, whose sequence of operations
 * repeats from step to step, run as one captured graph, and neighbouring operations can share a launch.
 * What changes between steps (tokens, positions, tables) lies in device memory at fixed addresses. One
 * thread at a time; the struct owns all that it points to, except tensors' memory, which belongs to
 * their kmem.
 *
 * One arithmetic per row: every kernel computes a row with the same operations in the same order
 * whatever the number of rows, so results do not depend on batch mates, chunks or the split of layers.
 * Kernels are compiled without contraction (-fmad=false): where we want fma we write it. */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include <cuda_runtime.h>

extern "C" {
#include "common/base/check.h"
#include "kernels/kernels.h"
}

enum {
    GRAPH_ROWS_MAX = 64,                           /* batches up to here repeat often enough for a graph */
    BATCH_ROWS_MAX = 1 << 16,
    STAGING_BYTES = 4 << 20,                       /* of small uploads between two runs of the queue */
    STAGING_BUFFERS = 4,
    PATCH_BYTES_MAX = 64 << 10,                    /* larger uploads go alone */
    PATCHES_MAX = 8192,
};

/* ---- memory ---- */

enum layout { LAYOUT_FILE, LAYOUT_TILES };         /* blocks as in the file, or rearranged by pack.cu */

struct kmem {
    uint8_t *data;
    uint64_t size;
    enum layout layout;
    bool is_weight;                                /* from map: may be rearranged */
    bool on_host;                                  /* pinned memory that the card reads over the bus */
    bool keep;                                     /* somebody reads it as in the file */
};

enum scratch_slot {              /* one user per slot at any time; contents live until the next user */
                    SCRATCH_ACT, /* prepared activations of matmul: two slots for each act_kind, in turn */
                    SCRATCH_ACT_LAST = SCRATCH_ACT + 5,
                    SCRATCH_ACT_EXPERTS, /* of the experts' first matrices */
                    SCRATCH_ACT_HIDDEN,  /* of the experts' last matrix */
                    SCRATCH_HIDDEN,      /* f32 hidden rows of the experts */
                    SCRATCH_PARTS,       /* f32 partial sums: one row per (row, expert) */
                    SCRATCH_LISTS,       /* who computes what: experts' lists */
                    SCRATCH_HC,          /* mixing logits, by slices */
                    SCRATCH_ATTENTION,   /* partial outputs by key ranges */
                    SCRATCH_QUERY,       /* indexer queries */
                    SCRATCH_SCORES,      /* indexer scores */
                    SCRATCH_PACK,        /* source of a rearrangement */
                    SCRATCH_SLOTS
};

/* ---- the batch, on the device ---- */

struct dbatch {
    const int32_t *token, *pos, *seg;
    const struct kseg *segs;
    int32_t n_rows, n_seg;
};

struct cuda_batch {
    struct dbatch d;                               /* fixed addresses */
    int32_t *host;                                 /* what is there now: token, pos, seg, segs */
    struct kbatch view;                            /* of host: what recorded operations point to */
    int32_t pos_bound;                        /* all positions are smaller; a power of two for graphs' sake */
    int32_t seg_rows_max;                          /* rows of the longest segment */
    int32_t *row_i;                                /* device: room for hc_head's rows */
    int32_t n_row_i;                               /* used since the queue last ran */
};

/* ---- prepared activations (act.cu) ---- */

enum act_kind {
    ACT_Q8_0,  /* int8 with a scale per 32: Q8_0, MXFP4 */
    ACT_Q8_K,  /* int8 with a scale per 256 and sums per 16: the K quants, IQ2_XXS */
    ACT_F16X2, /* two f16 with a power of two per 512: F16 */
    ACT_KINDS
};

/* Rows side by side per block, so that a tile of rows is contiguous. n_pad rows, n_pad a multiple of 8.
 * Q8_0: q[n_in/32][n_pad][32], d[n_in/32][n_pad]. Q8_K: q the same, d[n_in/256][n_pad],
 * sum[n_in/256][n_pad][16] as f16. F16X2: hi[n_in/16][n_pad][16], lo the same (halves; in q and sum),
 * d[ceil(n_in/512)][n_pad]: value = (hi + lo) * d. */
struct act {
    int8_t *q;
    float *d;
    uint16_t *sum;
    int32_t n_pad;
};

struct act_out {                                   /* forms of its rows that a kernel shall prepare */
    uint32_t kinds;                                /* bit per act_kind */
    struct act act[ACT_KINDS];
};

struct act_entry {                                 /* what a slot of SCRATCH_ACT holds */
    const float *x;
    int64_t n_in;
    int32_t n;
    struct act act;
};

/* ---- the sum over experts (moe.cu), which may be left to whoever reads it ---- */

struct experts_sum {
    float *out;
    const float *parts;                            /* NULL: there is none */
    const int32_t *ids, *slot;           /* slot NULL: a pair's own number, when its expert is in the range */
    int n_used, n_embd, e_begin, n_e;
};

/* ---- the device ---- */

struct queue;

struct cuda {
    struct kernels base;                           /* must be first */
    int device, n_sm;
    int shared_max;                                /* shared memory that a block may have */
    bool overlap_launches;                 /* programmatic dependent launch: compute capability 9 and later */
    bool wait_fully;               /* the next launch follows one that writes what may be read early */
    cudaStream_t stream;
    struct cuda_batch batch;
    struct queue *queue;
    struct {
        void *data;
        uint64_t size;
    } scratch[SCRATCH_SLOTS];
    struct act_entry act[ACT_KINDS][2];   /* two: a product may prepare its output while it reads its input */
    int act_turn[ACT_KINDS];                       /* the older one, which is overwritten next */
    const int32_t *listed_ids;                     /* the routing that SCRATCH_LISTS was made of (moe.cu) */
    struct experts_sum sum_waits;                  /* the next hc_post of its output makes it */
    uint64_t n_launched, state_at;                 /* launches so far; when the last one wrote state */
    uint64_t *iq2_grid;                            /* device: the format's table */
    uint32_t *iq2_selectors;                 /* device: the same, a nibble per value: 0, 1, 2 for 8, 25, 43 */
    struct {
        uint8_t *host, *device;                    /* host: STAGING_BUFFERS of STAGING_BYTES, pinned */
        cudaEvent_t done[STAGING_BUFFERS];
        int current;
        uint32_t n_patches;
        uint16_t order[PATCHES_MAX];               /* the patches by address */
        uint64_t used;
    } staging;
    uint8_t *bounce;                               /* pinned, for downloads */
};

static inline struct cuda *cuda_of(struct kernels *k) {
    return (struct cuda *)k;
}

/* False after recording the first failure. Nothing is launched once a failure is recorded. */
bool cuda_ok(struct cuda *c, cudaError_t rc, const char *what);
static inline bool cuda_failed(const struct cuda *c) {
    return c->base.failed.code != 0;
}

/* size bytes, 256-byte aligned, contents undefined; NULL after recording ERR_NOMEM. Growing forgets all
 * graphs. */
void *cuda_scratch(struct cuda *c, enum scratch_slot slot, uint64_t size);

/* Puts host bytes at a device address before the next run of the queue. */
bool cuda_patch(struct cuda *c, void *to, const void *from, uint64_t size);
void cuda_patches_run(struct cuda *c);

/* ---- queue ---- */

struct queue *queue_new(void);
void queue_free(struct cuda *c);
void queue_run(struct cuda *c);                    /* launches everything recorded */
void queue_forget_graphs(struct cuda *c);

/* Matrices of matmul operations that share their input are multiplied by one launch. */
enum { MATMUL_GROUP_MAX = 8 };

/* What the queue calls. `wanted`: the forms of the output (bits of act_kind) that the next operations
 * will read; preparing them in the same launch is optional. Several arguments: operations that share a
 * launch, NULL where there is none. */
void run_embed(struct cuda *c, const struct embed_args *a);
void run_hc_pre(struct cuda *c, const struct hc_pre_args *a, const struct hc_post_args *before,
                uint32_t wanted);
void run_hc_post(struct cuda *c, const struct hc_post_args *a);
void run_hc_head(struct cuda *c, const struct hc_head_args *a, uint32_t wanted);
void run_matmul(struct cuda *c, const struct matmul_args *const *a, const uint32_t *wanted, int n);
void run_rms_norm(struct cuda *c, const struct rms_norm_args *a);
void run_add_streams(struct cuda *c, const struct add_streams_args *a);
void run_q_rope(struct cuda *c, const struct q_rope_args *a);
void run_kv_rows(struct cuda *c, const struct kv_rows_args *a);
void run_kv_commit(struct cuda *c, const struct kv_commit_args *a);
void run_compress(struct cuda *c, const struct compress_args *a);
void run_index_select(struct cuda *c, const struct index_select_args *a);
void run_attention(struct cuda *c, const struct attention_args *a, const struct q_rope_args *rope,
                   uint32_t wanted);
void run_swiglu(struct cuda *c, const struct swiglu_args *a, uint32_t wanted);
void run_moe_route(struct cuda *c, const struct moe_route_args *a, const struct moe_experts_args *experts,
                   const struct swiglu_args *swiglu, uint32_t swiglu_wanted);
/* sum_later: an hc_post of this run will read the sum, and nobody before it. */
void run_moe_experts(struct cuda *c, const struct moe_experts_args *a, bool sum_later);

/* What few rows of a layer need between its first products and its attention; independent of each
 * other, one launch (state.cu). */
struct state_ops {
    const struct rms_norm_args *norm;
    uint32_t norm_wanted;
    const struct kv_rows_args *rows;
    const struct kv_commit_args *commit;           /* of these rows; only with rows */
    const struct compress_args *compress[2];       /* entries, keys */
    const struct index_select_args *select;        /* of all there is */
};
void run_state(struct cuda *c, const struct state_ops *ops);

/* What the queue asks. */
uint32_t matmul_wants(struct cuda *c, const struct matmul_args *a);        /* forms of its input */
uint32_t experts_want(struct cuda *c, const struct moe_experts_args *a);
bool index_selects_all(const struct cuda *c, const struct index_select_args *a);
/* Can it take the queries' rope on itself? */
bool attention_ropes(const struct cuda *c, const struct attention_args *a);

/* ---- weights (pack.cu) ---- */

/* True if the weight lies in tiles now; rearranges it the first time if its type and shape allow. */
bool weight_in_tiles(struct cuda *c, const struct tensor *weight, int64_t rows_per_matrix);
enum act_kind act_kind_for(enum dtype type);       /* of a weight in tiles */

/* ---- activations (act.cu) ---- */

uint64_t act_bytes(enum act_kind kind, int64_t n_in, int64_t n_pad);
struct act act_at(void *memory, enum act_kind kind, int64_t n_in, int64_t n_pad);
/* Prepares rows of x (row r of the result is x row from[r], or r when from is NULL; from[r] < 0:
 * skipped). *n_dev, when not NULL, is how many there are really. */
void act_prepare(struct cuda *c, const struct act *act, enum act_kind kind, const float *x,
                 int64_t n_in, int32_t n, const int32_t *from, const int32_t *n_dev);
/* The same for matmul's input, kept until forgotten: consecutive operations often read the same rows.
 * NULL: no memory.
 * */
const struct act *act_of(struct cuda *c, enum act_kind kind, const float *x, int64_t n_in, int32_t n);
/* The forms of x that the calling operation will prepare itself; from now on act_of() finds them. */
struct act_out act_out(struct cuda *c, uint32_t kinds, const float *x, int64_t n_in, int32_t n);
void act_forget(struct cuda *c, const void *begin, const void *end);   /* these addresses were written */

/* ---- launching ---- */

/* Like kernel<<<grid, block, shared>>>(...) on our stream. The kernel must call device_wait()
 * (device.cuh). */
template <typename... P, typename... A>
static void launch(struct cuda *c, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args) {
    if (cuda_failed(c) || grid.x == 0 || grid.y == 0) return;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared,
    config.stream = c->stream;
    config.attrs = &attribute, config.numAttrs = c->overlap_launches && !c->wait_fully ? 1 : 0;
    c->wait_fully = false;
    if (shared > 32 << 10)                         /* a block may have 48 KiB with its own fixed part */
        cuda_ok(c,
                cudaFuncSetAttribute((const void *)kernel,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                "shared memory");
    c->n_launched++;
    cuda_ok(c, cudaLaunchKernelEx(&config, kernel, P(args)...), "launch");
}

static inline unsigned blocks_for(int64_t n, int64_t per_block) {
    return (unsigned)((n + per_block - 1) / per_block);
}

static inline int64_t rows_of(const struct tensor *t) {
    return t->ne[1] * t->ne[2];
}

static inline float *f32_of(const struct tensor *t) {
    return (float *)t->data;
}

#endif
