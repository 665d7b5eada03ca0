/* The AVX-512 matrix product: which way for which shape. */
#include "kernels/cpu/mm_avx512.h"

#if defined(__x86_64__)

/* Up to here it is cheaper to walk the weight rows once per activation (they come from the L2 after the first time) than to
 * interleave them for panels. Measured with 2, 4 and 8 sequences on Zen 4. */
enum { ROWS_Q8_0_MAX = 4, ROWS_Q8_K_MAX = 2 };

static void rows_each(const struct mm_tile *t) {
    for (int i = 0; i < t->n_x; i++) {
        int32_t row = t->x_row ? t->x_row[i] : i;
        struct mm_tile one = *t;
        one.n_x = 1, one.x_row = &row, one.out = t->out + i * t->out_stride;
        if (t->kind == ACT_Q8_0) mm_row32_avx512(&one);
        else mm_row256_avx512(&one);
    }
}

void mm_avx512(const struct mm_tile *t) {
    if (t->kind == ACT_F32) mm_float_avx512(t);
    else if (t->n_x <= (t->kind == ACT_Q8_0 ? ROWS_Q8_0_MAX : ROWS_Q8_K_MAX)) rows_each(t);
    else mm_panel_avx512(t);
}
#endif
