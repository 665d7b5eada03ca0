/* mm_avx2 - the parts of the AVX2 table: matrix products (mm_avx2() chooses) and what attention and the
 * indexer need. */
#ifndef KERNELS_CPU_MM_AVX2_H
#define KERNELS_CPU_MM_AVX2_H

#include "kernels/cpu/simd.h"

void mm_avx2(const struct mm_tile *t);

void mm_panel_avx2(const struct mm_tile *t);       /* quantised, any n_x */
void mm_row32_avx2(const struct mm_tile *t);       /* Q8_0 Q4_0 MXFP4, n_x = 1 */
void mm_row256_avx2(const struct mm_tile *t);      /* the others, n_x = 1 */
void mm_float_avx2(const struct mm_tile *t);       /* ACT_F32 */

/* As in struct cpu_simd. */
void attn_scores_avx2(float *z, int64_t z_stride, const float *q, int64_t q_stride,
                      const float *rows, int64_t row_stride, int n_head, int n_rows, int dim,
                      float scale);
void attn_mix_avx2(float *o, int64_t o_stride, const float *p, int64_t p_stride, const float *rows,
                   int64_t row_stride, int n_head, int n_rows, int dim);
void idx_scores_avx2(float *score, const int8_t *q, const int8_t *q_exp, const float *w, int n_head, int dim,
                     const uint8_t *keys, int64_t key_bytes, int n_keys);

#endif
