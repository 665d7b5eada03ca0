/* mm_row_avx512 - what the products of one activation row share: eight weight rows at a time, summed by
 * transposing trees, fetched ahead from memory. Eight streams are as many as the hardware follows at the
 * full speed of the memory.
 */
#ifndef KERNELS_CPU_MM_ROW_AVX512_H
#define KERNELS_CPU_MM_ROW_AVX512_H

#include "kernels/cpu/inline.h"
#include "kernels/cpu/simd.h"

#include <immintrin.h>

enum { ROWS = 8, AHEAD = 1024 };

/* Eight weight rows; one that does not exist repeats the last. */
struct rows {
    const uint8_t *p[ROWS];
    int64_t at, bytes;                             /* where in the row the next block starts; of the row */
    int64_t fetched, jump; /* asked for up to here; added to what is past the row's end: the next 8 rows */
    int n;
};

/* Rows j .. j+8. */
INLINE struct rows rows_at(const struct mm_tile *t, int j) {
    struct rows rows = { .bytes = t->row_bytes, .n = MIN(ROWS, t->n_w - j) };
    for (int r = 0; r < ROWS; r++) rows.p[r] = t->w + (int64_t)MIN(j + r, t->n_w - 1) * t->row_bytes;
    rows.jump = j + ROWS < t->n_w ? (ROWS - 1) * t->row_bytes : -t->row_bytes; /* at the end nothing new */
    rows.fetched = j == 0 ? 0 : AHEAD;
    return rows;
}

/* Goes on by n bytes and asks for what is AHEAD of there, each line once. */
INLINE void rows_next(struct rows *rows, int n) {
    rows->at += n;
    for (; rows->fetched < rows->at + AHEAD; rows->fetched += 64) {
        int64_t at = rows->fetched < rows->bytes ? rows->fetched : rows->fetched + rows->jump;
        UNROLL
        for (int r = 0; r < ROWS; r++) _mm_prefetch((const char *)rows->p[r] + at, _MM_HINT_T1);
    }
}

INLINE const uint8_t *row_at(const struct rows *rows, int r) {
    return rows->p[r] + rows->at;
}

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
