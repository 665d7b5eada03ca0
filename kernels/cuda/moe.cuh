/* moe - what routing leaves for the experts: which pairs (row, expert) there are, and who computes them. */
#ifndef KERNELS_CUDA_MOE_CUH
#define KERNELS_CUDA_MOE_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

enum { EXPERTS_MAX = 1024, ENTRY_PAIRS_FEW = 8, ENTRY_PAIRS_MANY = 64 };

/* Up to 8 or 64 pairs of one expert: pairs first .. first + n. The first eight rows and weights stand
 * here too, so that a block for few rows needs one load. */
struct entry {
    int32_t expert, first, n;
    int32_t row[ENTRY_PAIRS_FEW];
    float weight[ENTRY_PAIRS_FEW];
};

/* Pairs stand in the order of experts, each expert's from a multiple of 8. Where a pair stands within
 * its expert does not matter: its result is the same. */
struct lists {
    int32_t *row;                                /* [slots] of a pair, -1 for gaps */
    float *weight;                               /* [slots] */
    int32_t *slot;                               /* [n * n_used] where each pair is, -1 when not ours */
    struct entry *entries;
    int32_t *n_entries, *n_slots;                /* device counters */
    int n_slots_max, n_entries_max;
};

struct lists_run {
    struct lists l;
    const int32_t *ids;
    const float *weights;
    int n_pairs, n_used, e_begin, n_e, entry_pairs;
};

/* Room for the lists of an operation, in SCRATCH_LISTS: the same addresses for the same shapes. False:
 * no memory. */
bool lists_reserve(struct cuda *c, struct lists_run *l, const struct moe_experts_args *a);
void run_lists(struct cuda *c, const struct lists_run *l);

/* ---- the sum over experts ---- */

/* Which partial sums a row has, and in what order they are added. */
struct sum_order {
    int from[MOE_USED_MAX], target[MOE_USED_MAX], source[MOE_USED_MAX], n;
};

/* By one thread: of neighbouring partial sums those that share the most high bits are added first. */
static __device__ __forceinline__ void sum_order_find(struct sum_order *o, const struct experts_sum &a,
                                                      int row) {
    int id[MOE_USED_MAX], at[MOE_USED_MAX], n = 0, pair0 = row * a.n_used;
    for (int u = 0; u < a.n_used; u++) {
        int e = a.ids[pair0 + u];
        bool ours = e >= a.e_begin && e < a.e_begin + a.n_e;
        int slot = a.slot ? a.slot[pair0 + u] : ours ? pair0 + u : -1;
        if (slot < 0) continue;
        id[n] = e, at[n] = n, o->from[n++] = slot;
    }
    o->n = n;
    for (int left = n; left > 1; left--) {
        int best = 0;
        for (int i = 1; i + 1 < left; i++)
            if ((id[i] ^ id[i + 1]) < (id[best] ^ id[best + 1])) best = i;
        o->target[n - left] = at[best], o->source[n - left] = at[best + 1];
        for (int i = best + 1; i + 1 < left; i++) id[i] = id[i + 1], at[i] = at[i + 1];
    }
}

/* Value d of every partial sum of the row to part[0], part[STRIDE], ...: shared memory of this thread. */
template <int STRIDE>
static __device__ __forceinline__ void sum_parts_load(float *part, const struct sum_order &o,
                                                      const struct experts_sum &a, int d) {
#pragma unroll 8
    for (int i = 0; i < o.n; i++) part[i * STRIDE] = a.parts[(int64_t)o.from[i] * a.n_embd + d];
}

template <int STRIDE>
static __device__ __forceinline__ float sum_parts(float *part, const struct sum_order &o) {
    for (int i = 0; i + 1 < o.n; i++) part[o.target[i] * STRIDE] += part[o.source[i] * STRIDE];
    return o.n ? part[0] : 0;
}

#endif
