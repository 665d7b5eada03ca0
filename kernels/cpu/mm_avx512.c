/* The AVX-512 matrix product: which way for which shape. */
#include "kernels/cpu/mm_avx512.h"

#if defined(__x86_64__)

void mm_avx512(const struct mm_tile *t) {
    if (t->kind == ACT_F32) mm_float_avx512(t);
    else if (t->n_x > 1) mm_panel_avx512(t);
    else if (t->kind == ACT_Q8_0) mm_row32_avx512(t);
    else mm_row256_avx512(t);
}
#endif
