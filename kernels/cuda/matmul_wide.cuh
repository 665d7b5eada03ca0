/* matmul_wide - products of Q8_0 with many rows: see matmul_wide.cu. */
#ifndef KERNELS_CUDA_MATMUL_WIDE_CUH
#define KERNELS_CUDA_MATMUL_WIDE_CUH

#include "kernels/cuda/cuda.h"

struct wide_run {
    const uint8_t *weight;                         /* in tiles (pack.cu) */
    float *out;
    struct act act;
    int n_in, n_out, n;
    int group_tiles;                               /* tiles that read the same part of the input */
};

void run_matmul_wide(struct cuda *c, const struct wide_run *r);

#endif
