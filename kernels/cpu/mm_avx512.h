/* mm_avx512 - the parts of the AVX-512 matrix product; mm_avx512() chooses. */
#ifndef KERNELS_CPU_MM_AVX512_H
#define KERNELS_CPU_MM_AVX512_H

#include "kernels/cpu/simd.h"

void mm_avx512(const struct mm_tile *t);

void mm_panel_avx512(const struct mm_tile *t);     /* quantised, any n_x */
void mm_float_avx512(const struct mm_tile *t);     /* ACT_F32 */
void mm_row_q8_0_avx512(const struct mm_tile *t);  /* Q8_0, n_x = 1 */

#endif
