/* attn_avx512 - attention's inner loops by hand for AVX-512; bit-equal to vec_body.inc's. */
#ifndef KERNELS_CPU_ATTN_AVX512_H
#define KERNELS_CPU_ATTN_AVX512_H

#include "common/base/types.h"

void kv_unpack_avx512(float *x, const uint8_t *row, int n_nope, int n_rot);
void attn_scores_avx512(float *z, int64_t z_stride, const float *q, int64_t q_stride,
                        const float *rows, int64_t row_stride, int n_head, int n_rows, int dim,
                        float scale);
void attn_mix_avx512(float *o, int64_t o_stride, const float *p, int64_t p_stride,
                     const float *rows, int64_t row_stride, int n_head, int n_rows, int dim);

#endif
