/* mm_row_avx512 - what the products of one activation row share: eight weight rows at a time, summed by
 * transposing trees. */
#ifndef KERNELS_CPU_MM_ROW_AVX512_H
#define KERNELS_CPU_MM_ROW_AVX512_H

enum { ROWS = 8 };

#include "kernels/cpu/mm_stream.h"

#include <immintrin.h>

INLINE void rows_store(const struct rows *rows, float *out, __m256 sum) {
    _mm256_mask_storeu_ps(out, (__mmask8)((1u << rows->n) - 1), sum);
}

/* ---- transposing sums: of neighbouring dwords, then qwords, of each 128-bit lane ---- */

INLINE __m512i add_dwords(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

INLINE __m512i add_qwords(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* In each lane, dword i is the sum of the lane's four dwords of v[i]. */
INLINE __m512i lane_sums(const __m512i v[4]) {
    return add_qwords(add_dwords(v[0], v[1]), add_dwords(v[2], v[3]));
}

#endif
