/* moe - what routing leaves for the experts: which pairs (row, expert) there are, and who computes them. */
#ifndef KERNELS_CUDA_MOE_CUH
#define KERNELS_CUDA_MOE_CUH

#include "kernels/cuda/cuda.h"

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

#endif
