/* mm_avx512 - the parts of the AVX-512 matrix product; mm_avx512() chooses. */
#ifndef KERNELS_CPU_MM_AVX512_H
#define KERNELS_CPU_MM_AVX512_H

#include "kernels/cpu/simd.h"

void mm_avx512(const struct mm_tile *t);

void mm_panel_avx512(const struct mm_tile *t);     /* quantised, any n_x */
void mm_row32_avx512(const struct mm_tile *t);     /* Q8_0 Q4_0 MXFP4, n_x = 1 */
void mm_row256_avx512(const struct mm_tile *t);    /* the others, n_x = 1 */
void mm_float_avx512(const struct mm_tile *t);     /* ACT_F32 */

#endif
