/* The AVX2 matrix product: which way for which shape. */
#include "kernels/cpu/mm_avx2.h"

#if defined(__x86_64__)

void mm_avx2(const struct mm_tile *t) {
    if (t->kind == ACT_F32) mm_float_avx2(t);
    else if (t->n_x > 1) mm_panel_avx2(t);
    else if (t->kind == ACT_Q8_0) mm_row32_avx2(t);
    else mm_row256_avx2(t);
}
#endif
