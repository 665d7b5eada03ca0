/* hc - the first launch of a hyper-connection, which cuts the channels in slices: see stream.cu. */
#ifndef KERNELS_CUDA_HC_CUH
#define KERNELS_CUDA_HC_CUH

#include "kernels/cuda/cuda.h"

enum {
    SLICE = 64,      /* channels: two per lane */
    SLICE_WARPS = 4, /* rows of fn are dealt to these */
    ROWS_PER_WARP = HC_MIX / SLICE_WARPS,
};

struct slice_args {
    float *x;                                      /* [n][4][n_embd] */
    const float *y, *y2, *post, *comb;             /* y NULL: streams stay as they are */
    const uint8_t *fn;                             /* NULL: no sums wanted */
    enum dtype fn_type;
    uint64_t fn_row_bytes;
    const uint64_t *grid;
    const int32_t *row_i;                          /* NULL: row t */
    float *sums;                                   /* [n][slices][n_fn + 1]: fn . x, then x . x */
    struct experts_sum experts;      /* with parts: y is still to be made, of these (few tokens) */
    int n, n_embd, n_fn;
};

/* Many tokens (hc_many.cu), to the same bits; false: not of this kind. */
bool run_slices_many(struct cuda *c, const struct slice_args *a);

#endif
