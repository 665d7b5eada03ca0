/* mm_columns_avx512 - transposing dwords of 16 rows: from bytes that lie in rows to vectors with a row
 * per lane. */
#ifndef KERNELS_CPU_MM_COLUMNS_AVX512_H
#define KERNELS_CPU_MM_COLUMNS_AVX512_H

#include "common/base/types.h"
#include "kernels/cpu/inline.h"

#include <immintrin.h>

/* In each 128-bit lane: dword j of a[i] goes to dword i of a[j]. */
INLINE void transpose_lanes(__m512i a[4]) {
    __m512i t0 = _mm512_unpacklo_epi32(a[0], a[1]), t1 = _mm512_unpackhi_epi32(a[0], a[1]);
    __m512i t2 = _mm512_unpacklo_epi32(a[2], a[3]), t3 = _mm512_unpackhi_epi32(a[2], a[3]);
    a[0] = _mm512_unpacklo_epi64(t0, t2);
    a[1] = _mm512_unpackhi_epi64(t0, t2);
    a[2] = _mm512_unpacklo_epi64(t1, t3);
    a[3] = _mm512_unpackhi_epi64(t1, t3);
}

INLINE __m512i load_2x32(const void *low, const void *high) {
    __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256(low));
    return _mm512_inserti64x4(v, _mm256_loadu_si256(high), 1);
}

INLINE __m512i load_4x16(const uint8_t *const row[16], int i, int at) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(row[i] + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row[i + 4] + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row[i + 8] + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row[i + 12] + at)), 3);
}

/* out[j] = dword j of the 16 bytes at row[r] + at, r = lane. */
INLINE void columns_16(__m512i out[4], const uint8_t *const row[16], int at) {
    for (int i = 0; i < 4; i++) out[i] = load_4x16(row, i, at);
    transpose_lanes(out);
}

/* The same for 32 bytes. */
INLINE void columns_32(__m512i out[8], const uint8_t *const row[16], int at) {
    for (int i = 0; i < 4; i++) {
        __m512i a = load_2x32(row[i] + at, row[i + 4] + at), b = load_2x32(row[i + 8] + at, row[i + 12] + at);
        out[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        out[4 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
    }
    transpose_lanes(out);
    transpose_lanes(out + 4);
}

#endif
