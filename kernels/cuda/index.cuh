/* index - what the indexer's kernels share. */
#ifndef KERNELS_CUDA_INDEX_CUH
#define KERNELS_CUDA_INDEX_CUH

#include "kernels/cuda/cuda.h"

struct index_run {
    float *q, *scores;
    void *values;                           /* prepared queries: f32 [n][n_head][dim]; for index_mma.cu f16 */
    const float *weight, *rope;
    int32_t *sel, *n_sel;
    struct kv_layer layer;
    struct dbatch batch;
    int row0, n, n_head, top_k;
    int first, n_group, n_scored;        /* of row0's rows: this group; its rows' scores are n_scored apart */
    bool all;                                      /* nobody needs scores */
};

static __device__ __forceinline__ int n_visible(const struct index_run &a, int i) {
    return (a.batch.pos[a.row0 + i] + 1) / a.layer.ratio;
}

/* index_mma.cu: FP4 keys of 128, 64 heads. */
bool index_fits_mma(const struct cuda *c, const struct index_select_args *a);
void run_index_queries_mma(struct cuda *c, const struct index_run *r);
void run_index_scores_mma(struct cuda *c, const struct index_run *r);

#endif
