/* cpu - inside the CPU backend: the device struct, its scratch memory, prepared activations and the
 * tile loop.
 *
 * Operations run at once on the caller's thread and the pool. Scratch grows to what the largest batch
 * needs and stays. When memory runs out an operation records the failure, computes nothing, and
 * kernels_finish reports it. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/cpu/pool.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

enum cpu_scratch {                                 /* one user per slot and operation */
    SCRATCH_ACT,                                   /* activations prepared for the first matrix */
    SCRATCH_ACT2,                                  /* hidden activations of the experts */
    SCRATCH_HIDDEN,                                /* f32 hidden rows of the experts */
    SCRATCH_LISTS,                                 /* row lists per expert, merge plans */
    SCRATCH_ROWS,                                  /* gathered rows, mixing logits */
    SCRATCH_THREADS,                               /* per thread: tile buffers */
    SCRATCH_SLOTS
};

struct cpu {
    struct kernels base;                           /* must be first */
    struct pool *pool;
    const struct cpu_simd *simd;
    void *mm_scratch;                              /* SIMD_SCRATCH bytes per thread */
    struct cpu_scratch_mem {
        void *data;
        uint64_t size;
    } scratch[SCRATCH_SLOTS];
};

static inline struct cpu *cpu_of(struct kernels *k) {
    return (struct cpu *)k;
}

/* size bytes, 64-byte aligned, contents undefined; NULL after recording ERR_NOMEM. */
void *cpu_scratch(struct cpu *c, enum cpu_scratch slot, uint64_t size);
/* The same, size_each bytes for every thread, rounded to cache lines; thread t's part at *stride * t. */
void *cpu_scratch_threads(struct cpu *c, uint64_t size_each, uint64_t *stride);
void *cpu_mm_scratch(struct cpu *c, int thread);

/* Which activation a weight of this type takes under the configured precision. */
enum act_kind cpu_act_kind(const struct cpu *c, enum dtype type);

/* Prepares n rows for weights of `kind`. ACT_F32 borrows x; others are written to scratch. false: no
 * memory (recorded). */
bool cpu_act_prepare(struct cpu *c, struct act *act, enum cpu_scratch slot, enum act_kind kind,
                     const float *x, int64_t n, int64_t n_in);

/* out[n][n_out] = act rows x weight rows, in parallel tiles. Plain matrix, all rows of act. */
void cpu_matmul_rows(struct cpu *c, const struct tensor *weight, const struct act *act, int64_t n,
                     float *out);

/* How many weight rows one task takes: enough bytes to be worth a task, enough tasks for every thread. */
int cpu_tile_rows(const struct cpu *c, int64_t n_out, int64_t row_bytes, int64_t n_x);

/* Rows in a loop over the pool: run(ctx, row, thread) for row < n. */
void cpu_each(struct cpu *c, int64_t n, pool_task *run, void *ctx);

/* Rotates n_rot values by cos, sin pairs (interleaved); inverse: back. */
void cpu_rope_row(float *x, const float *cs, int32_t n_rot, bool inverse);

static inline float *f32_row(const struct tensor *t, int64_t row) {
    return (float *)t->data + row * t->ne[0];
}

#define CPU_OP(name) void cpu_##name(struct kernels *k, const struct name##_args *a);
KERNEL_OPS(CPU_OP)
#undef CPU_OP

#endif
