/* One activation row against Q8_0 weights: eight rows at a time, two blocks a step. A vector holds two blocks of one row; the
 * eight vectors' dwords are summed by a transposing tree that ends with a block per half and a row per lane, where the running sums
 * take one fma per block. The rows stream from memory once, fetched ahead into the L2. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "kernels/cpu/mm_avx512.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 8, BLOCK = 34, STEP = 2 * BLOCK, AHEAD = 1024 };

/* Of the activations, per two blocks: where the integer sums start (-128 * sum, in the first lane of each half) and the scales,
 * eight times each. */
struct step {
    __m512i start;
    __m512 dx;
};

INLINE __m512i weights(const uint8_t *p, bool one) {
    __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256((const void *)(p + 2)));
    if (one) return _mm512_zextsi256_si512(_mm512_castsi512_si256(v));
    return _mm512_inserti64x4(v, _mm256_loadu_si256((const void *)(p + BLOCK + 2)), 1);
}

INLINE __m512i add_dwords(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}

INLINE __m512i add_qwords(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Lane r: sum of the low 8 dwords of v[r]; lane 8 + r: of the high ones. */
INLINE __m512i sums(const __m512i v[ROWS]) {
    __m512i a = add_qwords(add_dwords(v[0], v[1]), add_dwords(v[2], v[3]));
    __m512i b = add_qwords(add_dwords(v[4], v[5]), add_dwords(v[6], v[7]));
    return _mm512_add_epi32(_mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), b),
                            _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), b));
}

INLINE __m128i halves(const uint8_t *const row[ROWS], int64_t at) {
    __m128i v = _mm_setzero_si128();
    uint16_t h[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) memcpy(&h[r], row[r] + at, 2);
    v = _mm_cvtsi32_si128(h[0]);
    v = _mm_insert_epi16(v, h[1], 1);
    v = _mm_insert_epi16(v, h[2], 2);
    v = _mm_insert_epi16(v, h[3], 3);
    v = _mm_insert_epi16(v, h[4], 4);
    v = _mm_insert_epi16(v, h[5], 5);
    v = _mm_insert_epi16(v, h[6], 6);
    return _mm_insert_epi16(v, h[7], 7);
}

INLINE __m256 step_sum(const uint8_t *const row[ROWS], int64_t at, const int8_t *q, const struct step *x, __m256 acc, bool one) {
    __m512i v[ROWS], xq = one ? _mm512_zextsi256_si512(_mm256_loadu_si256((const void *)q)) : _mm512_loadu_si512(q);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        v[r] = _mm512_dpbusd_epi32(x->start, _mm512_xor_si512(weights(row[r] + at, one), _mm512_set1_epi8(-128)), xq);
    __m256i d = _mm256_set_m128i(one ? _mm_setzero_si128() : halves(row, at + BLOCK), halves(row, at));
    __m512 f = _mm512_cvtepi32_ps(sums(v)), scale = _mm512_mul_ps(_mm512_cvtph_ps(d), x->dx);
    acc = _mm256_fmadd_ps(_mm512_castps512_ps256(f), _mm512_castps512_ps256(scale), acc);
    if (one) return acc;
    return _mm256_fmadd_ps(_mm512_extractf32x8_ps(f, 1), _mm512_extractf32x8_ps(scale, 1), acc);
}

static void steps_set(struct step *x, const struct act *act, int64_t row) {
    int64_t n = act->n_in / 32;
    const float *d = act->d + row * n;
    const int32_t *sum = act->sum + row * n;
    for (int64_t b = 0; b < n; b += 2, x++) {
        bool one = b + 1 == n;
        x->start = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, one ? 0 : -128 * sum[b + 1], 0, 0, 0, 0, 0, 0, 0, -128 * sum[b]);
        x->dx = _mm512_insertf32x8(_mm512_set1_ps(d[b]), _mm256_set1_ps(one ? 0 : d[b + 1]), 1);
    }
}

/* Rows j .. j+8 (a row that does not exist repeats the last). */
static void rows_dot(const struct mm_tile *t, const struct step *x, const int8_t *q, int j) {
    const uint8_t *row[ROWS], *end = t->w + t->n_w * t->row_bytes - 1;
    int n = MIN(ROWS, t->n_w - j);
    for (int r = 0; r < ROWS; r++) row[r] = t->w + (int64_t)MIN(j + r, t->n_w - 1) * t->row_bytes;
    __m256 acc = _mm256_setzero_ps();
    int64_t at = 0;
    for (; at + STEP <= t->row_bytes; at += STEP, x++, q += 64) {
        int64_t ahead = at + AHEAD < t->row_bytes ? at + AHEAD : at + AHEAD + (ROWS - 1) * t->row_bytes;
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) _mm_prefetch((const char *)MIN(row[r] + ahead, end), _MM_HINT_T1);
        acc = step_sum(row, at, q, x, acc, false);
    }
    if (at < t->row_bytes) acc = step_sum(row, at, q, x, acc, true);
    _mm256_mask_storeu_ps(t->out + j, (__mmask8)((1u << n) - 1), acc);
}

void mm_row_q8_0_avx512(const struct mm_tile *t) {
    int64_t row = t->x_row ? t->x_row[0] : 0;
    struct step *x = t->scratch;
    steps_set(x, t->x, row);
    for (int j = 0; j < t->n_w; j += ROWS) rows_dot(t, x, t->x->q + row * t->n_in, j);
}
#endif
