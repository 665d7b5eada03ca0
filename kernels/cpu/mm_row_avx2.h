/* mm_row_avx2 - what the products of one activation row share with AVX2: four weight rows at a time,
 * summed by transposing trees. */
#ifndef KERNELS_CPU_MM_ROW_AVX2_H
#define KERNELS_CPU_MM_ROW_AVX2_H

enum { ROWS = 4 };

#include "kernels/cpu/mm_stream.h"

#include <immintrin.h>

INLINE __m256i load(const void *p) {
    return _mm256_loadu_si256(p);
}

INLINE __m128i load_16(const void *p) {
    return _mm_loadu_si128(p);
}

INLINE void rows_store(const struct rows *rows, float *out, __m128 sum) {
    float f[ROWS];
    _mm_storeu_ps(f, sum);
    memcpy(out, f, (size_t)rows->n * sizeof *f);
}

INLINE __m256i add_dwords(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

INLINE __m256i add_qwords(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/* The sum of each vector's eight dwords. */
INLINE __m128i row_sums(const __m256i v[ROWS]) {
    __m256i t = add_qwords(add_dwords(v[0], v[1]), add_dwords(v[2], v[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
}

/* The f16 at `at` of each row's block, as f32. */
INLINE __m128 halves(const struct rows *rows, int at) {
    uint16_t h[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) memcpy(&h[r], row_at(rows, r) + at, 2);
    return _mm_cvtph_ps(_mm_setr_epi16((short)h[0], (short)h[1], (short)h[2], (short)h[3], 0, 0, 0, 0));
}

#endif
