/* One activation row against types with blocks of 32. The rows stream from memory once; sums of several
 * blocks of eight rows are turned by transposing trees into vectors with a row per lane, where the
 * running sums take one fma per block. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "kernels/cpu/mm_avx512.h"
#include "kernels/cpu/mm_row_avx512.h"

/* ---- Q8_0: a vector is two blocks of one row ---- */

/* Of the activations, per two blocks: where the integer sums start (-128 * sum, in the first lane of
 * each half) and the scales, eight times each. */
struct pair {
    __m512i start;
    __m512 dx;
};

static void pairs_set(struct pair *x, const float *d, const int32_t *sum, int64_t n) {
    for (int64_t b = 0; b < n; b += 2, x++) {
        bool one = b + 1 == n;
        x->start = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, one ? 0 : -128 * sum[b + 1], 0, 0, 0, 0, 0,
                                    0, 0, -128 * sum[b]);
        x->dx = _mm512_insertf32x8(_mm512_set1_ps(d[b]), _mm256_set1_ps(one ? 0 : d[b + 1]), 1);
    }
}

INLINE __m512i q8_0_load(const uint8_t *p, bool one) {
    __m256i low = _mm256_loadu_si256((const void *)(p + 2));
    if (one) return _mm512_zextsi256_si512(low);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_loadu_si256((const void *)(p + 36)), 1);
}

/* Lane r: sum of the low 8 dwords of v[r]; lane 8 + r: of the high ones. */
INLINE __m512i half_sums(const __m512i v[ROWS]) {
    __m512i a = lane_sums(v), b = lane_sums(v + 4);
    return _mm512_add_epi32(_mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), b),
                            _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), b));
}

INLINE __m128i halves(const struct rows *rows, int at) {
    uint16_t h[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) memcpy(&h[r], row_at(rows, r) + at, 2);
    __m128i v = _mm_cvtsi32_si128(h[0]);
    v = _mm_insert_epi16(v, h[1], 1);
    v = _mm_insert_epi16(v, h[2], 2);
    v = _mm_insert_epi16(v, h[3], 3);
    v = _mm_insert_epi16(v, h[4], 4);
    v = _mm_insert_epi16(v, h[5], 5);
    v = _mm_insert_epi16(v, h[6], 6);
    return _mm_insert_epi16(v, h[7], 7);
}

INLINE __m256 q8_0_pair(const struct rows *rows, const int8_t *q, const struct pair *x, __m256 acc,
                        bool one) {
    __m512i v[ROWS], xq = one ? _mm512_zextsi256_si512(_mm256_loadu_si256((const void *)q))
                              : _mm512_loadu_si512(q);
    UNROLL
    for (int r = 0; r < ROWS; r++)
        v[r] = _mm512_dpbusd_epi32(
            x->start, _mm512_xor_si512(q8_0_load(row_at(rows, r), one), _mm512_set1_epi8(-128)),
            xq);
    __m256i d = _mm256_set_m128i(one ? _mm_setzero_si128() : halves(rows, 34), halves(rows, 0));
    __m512 f = _mm512_cvtepi32_ps(half_sums(v)), scale = _mm512_mul_ps(_mm512_cvtph_ps(d), x->dx);
    acc = _mm256_fmadd_ps(_mm512_castps512_ps256(f), _mm512_castps512_ps256(scale), acc);
    if (one) return acc;
    return _mm256_fmadd_ps(_mm512_extractf32x8_ps(f, 1), _mm512_extractf32x8_ps(scale, 1), acc);
}

static void q8_0_rows(const struct mm_tile *t, const struct pair *x, const int8_t *q, int j) {
    struct rows rows = rows_at(t, j);
    __m256 acc = _mm256_setzero_ps();
    for (; rows.bytes - rows.at >= 68; x++, q += 64) {
        acc = q8_0_pair(&rows, q, x, acc, false);
        rows_next(&rows, 68);
    }
    if (rows.at < rows.bytes) acc = q8_0_pair(&rows, q, x, acc, true);
    rows_store(&rows, t->out + j, acc);
}

/* ---- Q4_0 and MXFP4: a vector is the codes of four blocks of one row, a block per lane ---- */

/* Per four blocks: values 0..15 of each, values 16..31 of each; where the sums start; the scales, eight
 * times each. */
struct quad {
    __m512i q[2];
    __m512i start;
    __m512 d[2];
};

static void quads_set(struct quad *x, const int8_t *q, const float *d, const int32_t *sum,
                      int64_t n, int zero) {
    for (int64_t b = 0; b < n; b += 4, x++, q += 128) {
        memset(x, 0, sizeof *x);
        for (int i = 0; i < MIN(4, n - b); i++) {
            memcpy((int8_t *)&x->q[0] + 16 * i, q + 32 * i, 16);
            memcpy((int8_t *)&x->q[1] + 16 * i, q + 32 * i + 16, 16);
            ((int32_t *)&x->start)[4 * i] = -zero * sum[b + i];
            for (int r = 0; r < ROWS; r++) ((float *)x->d)[ROWS * i + r] = d[b + i];
        }
    }
}

struct quad_type {
    int bytes, head;                               /* of a block; of its scale */
    bool mxfp4;
};

/* Block i of the next four, or the last that exists. */
INLINE __m128i codes(const uint8_t *p, struct quad_type type, int i, int n) {
    return _mm_loadu_si128((const void *)(p + type.bytes * MIN(i, n - 1) + type.head));
}

INLINE __m512i quad_sums(const uint8_t *p, struct quad_type type, const struct quad *x, int n) {
    /* 12 + doubled value; vpermb looks at six bits of a byte, so the table repeats every 16 */
    const __m512i table = _mm512_broadcast_i32x4(
        type.mxfp4 ? _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
                   : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    __m512i v = _mm512_castsi128_si512(codes(p, type, 0, n));
    v = _mm512_inserti32x4(v, codes(p, type, 1, n), 1);
    v = _mm512_inserti32x4(v, codes(p, type, 2, n), 2);
    v = _mm512_inserti32x4(v, codes(p, type, 3, n), 3);
    __m512i sum = _mm512_dpbusd_epi32(x->start, _mm512_permutexvar_epi8(v, table), x->q[0]);
    return _mm512_dpbusd_epi32(sum, _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), table), x->q[1]);
}

/* 2^(e - 128) for bytes e, and the two subnormal ones. */
INLINE __m512 mxfp4_scales(__m128i bytes) {
    __m512i e = _mm512_cvtepu8_epi32(bytes), one = _mm512_set1_epi32(1);
    __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
    return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(bits, _mm512_cmple_epu32_mask(e, one),
                                                      _mm512_set1_epi32(0x00200000), e));
}

/* Scales of four blocks of every row: f[0] blocks 0 and 1, eight rows each; f[1] blocks 2 and 3. They
 * are within the 64 bytes that four blocks have at least; fewer blocks are read with a mask. */
INLINE void quad_scales(const struct rows *rows, struct quad_type type, int n, __m512 f[2]) {
    __mmask64 exist = n == 4 ? ~0ull : (1ull << n * type.bytes) - 1;
    __m512i v = _mm512_setzero_si512();
    if (type.mxfp4) {
        const __m512i index = _mm512_castsi256_si512(
            _mm256_setr_epi64x(0, 0x1111111111111111, 0x2222222222222222, 0x3333333333333333));
        UNROLL
        for (int r = 0; r < ROWS; r++)
            v = _mm512_mask_permutexvar_epi8(v, 0x01010101u << r, index,
                                             _mm512_maskz_loadu_epi8(exist, row_at(rows, r)));
        f[0] = mxfp4_scales(_mm512_castsi512_si128(v));
        f[1] = mxfp4_scales(_mm256_extracti128_si256(_mm512_castsi512_si256(v), 1));
    } else {
        const __m512i index = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_set_m128i(_mm_set1_epi16(9), _mm_set1_epi16(0))),
            _mm256_set_m128i(_mm_set1_epi16(27), _mm_set1_epi16(18)), 1);
        UNROLL
        for (int r = 0; r < ROWS; r++)
            v = _mm512_mask_permutexvar_epi16(v, 0x01010101u << r, index,
                                              _mm512_maskz_loadu_epi8(exist, row_at(rows, r)));
        f[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(v));
        f[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1));
    }
}

INLINE __m256 quad(const struct rows *rows, struct quad_type type, const struct quad *x, __m256 acc, int n) {
    __m512 scale[2];
    quad_scales(rows, type, n, scale);                                 /* first: the longest chain */
    __m512i v[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) v[r] = quad_sums(row_at(rows, r), type, x, n);
    __m512i low = lane_sums(v), high = lane_sums(v + 4);               /* a block per lane; rows 0..3, 4..7 */
    __m512 f[2] = {
        _mm512_cvtepi32_ps(
            _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high)),
        _mm512_cvtepi32_ps(
            _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high)),
    };
    UNROLL
    for (int i = 0; i < 2; i++) {
        scale[i] = _mm512_mul_ps(scale[i], x->d[i]);
        if (n > 2 * i)
            acc = _mm256_fmadd_ps(_mm512_castps512_ps256(f[i]), _mm512_castps512_ps256(scale[i]),
                                  acc);
        if (n > 2 * i + 1)
            acc = _mm256_fmadd_ps(_mm512_extractf32x8_ps(f[i], 1),
                                  _mm512_extractf32x8_ps(scale[i], 1), acc);
    }
    return acc;
}

INLINE void quad_rows(const struct mm_tile *t, struct quad_type type, const struct quad *x, int j) {
    struct rows rows = rows_at(t, j);
    __m256 acc = _mm256_setzero_ps();
    for (; rows.bytes - rows.at >= 4 * type.bytes; x++) {
        acc = quad(&rows, type, x, acc, 4);
        rows_next(&rows, 4 * type.bytes);
    }
    if (rows.at < rows.bytes) acc = quad(&rows, type, x, acc, (int)((rows.bytes - rows.at) / type.bytes));
    rows_store(&rows, t->out + j, acc);
}

void mm_row32_avx512(const struct mm_tile *t) {
    int64_t n = t->n_in / 32, row = t->x_row ? t->x_row[0] : 0;
    const int8_t *q = t->x->q + row * t->n_in;
    const float *d = t->x->d + row * n;
    const int32_t *sum = t->x->sum + row * n;
    if (t->type == DTYPE_Q8_0) {
        pairs_set(t->scratch, d, sum, n);
        for (int j = 0; j < t->n_w; j += ROWS) q8_0_rows(t, t->scratch, q, j);
    } else if (t->type == DTYPE_MXFP4) {
        quads_set(t->scratch, q, d, sum, n, 12);
        for (int j = 0; j < t->n_w; j += ROWS) quad_rows(t, (struct quad_type){ 17, 1, true }, t->scratch, j);
    } else {
        quads_set(t->scratch, q, d, sum, n, 8);
        for (int j = 0; j < t->n_w; j += ROWS)
            quad_rows(t, (struct quad_type){ 18, 2, false }, t->scratch, j);
    }
}
#endif
