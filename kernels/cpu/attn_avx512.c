/* Attention by hand: every row of keys serves 64 heads, so both products are small matrix products in
 * registers.
 *
 *   scores   4 heads x 4 rows = 16 accumulators with lanes along the dimension (dot16), 8 loads for 16
 *            multiply-adds; the 16 sums are folded together in the order that dot16 prescribes
 *   mix      4 heads x 64 dimensions = 16 accumulators, rows one after the other */
#include "kernels/cpu/attn_avx512.h"
#include "kernels/cpu/inline.h"

#if defined(__AVX512F__) && defined(__AVX512VL__)
#include <immintrin.h>

static inline __mmask16 tail_mask(int n) {
    return n >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}

/* ---- rows ---- */

/* The code's exponent and mantissa, moved to their place in an f32, are the value times 2^-120. */
static inline __m512 unpack16(const uint8_t *code, __m512 scale) {
    __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)code));
    __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(c, 7), 31);
    __m512i rest = _mm512_and_si512(_mm512_slli_epi32(c, 20), _mm512_set1_epi32(0x07f00000));
    __m512 x = _mm512_castsi512_ps(_mm512_or_si512(sign, rest));
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1p120f)), scale);
}

void kv_unpack_avx512(float *x, const uint8_t *row, int n_nope, int n_rot) {
    const uint8_t *rot = row + n_nope + n_nope / 64;
    const int8_t *exps = (const int8_t *)(row + n_nope);
    for (int b = 0; b < n_nope / 64; b++) {
        __m512 scale = _mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_set1_ps((float)exps[b]));
        for (int i = 64 * b; i < 64 * b + 64; i += 16) _mm512_storeu_ps(x + i, unpack16(row + i, scale));
    }
    for (int i = 0; i < n_rot; i += 16) {
        __mmask16 lanes = tail_mask(n_rot - i);
        __m512i h = _mm512_maskz_cvtepu16_epi32(lanes, _mm256_maskz_loadu_epi16(lanes, rot + 2 * i));
        _mm512_mask_storeu_ps(x + n_nope + i, lanes, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(h)));
    }
}

/* ---- scores ---- */

static inline __m512 fold8(__m512 a, __m512 b) {   /* lane[l] + lane[l+8] of both */
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

static inline __m512 fold4(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

static inline __m512 fold2(__m512 a, __m512 b) {
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

static inline __m512 fold1(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

/* 16 vectors v[4r + h] to 16 sums: lane group h holds rows 0..3. */
static inline __m512 fold16(const __m512 v[16]) {
    __m512 four[4];
    UNROLL
    for (int i = 0; i < 4; i++)         /* all loops over accumulators unroll, or they would live in memory */
        four[i] = fold4(fold8(v[4 * i], v[4 * i + 1]), fold8(v[4 * i + 2], v[4 * i + 3]));
    return fold1(fold2(four[0], four[1]), fold2(four[2], four[3]));
}

static inline void scores_4x4(float *z, int64_t z_stride, const float *q, int64_t q_stride,
                              const float *rows, int64_t row_stride, int dim, __m512 scale) {
    __m512 sum[16];
    UNROLL
    for (int i = 0; i < 16; i++) sum[i] = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 16) {
        __mmask16 lanes = tail_mask(dim - d);
        __m512 h[4];
        UNROLL
        for (int i = 0; i < 4; i++) h[i] = _mm512_maskz_loadu_ps(lanes, q + i * q_stride + d);
        UNROLL
        for (int r = 0; r < 4; r++) {
            __m512 row = _mm512_maskz_loadu_ps(lanes, rows + r * row_stride + d);
            UNROLL
            for (int i = 0; i < 4; i++)
                sum[4 * r + i] = _mm512_mask3_fmadd_ps(h[i], row, sum[4 * r + i], lanes);
        }
    }
    /* fold1 puts vector 4i + j into lane group j, position i: group = head, position = row */
    __m512 all = _mm512_mul_ps(scale, fold16(sum));
    _mm_storeu_ps(z, _mm512_castps512_ps128(all));
    _mm_storeu_ps(z + z_stride, _mm512_extractf32x4_ps(all, 1));
    _mm_storeu_ps(z + 2 * z_stride, _mm512_extractf32x4_ps(all, 2));
    _mm_storeu_ps(z + 3 * z_stride, _mm512_extractf32x4_ps(all, 3));
}

static inline float score_1x1(const float *q, const float *row, int dim) {
    __m512 sum = _mm512_setzero_ps();
    for (int d = 0; d < dim; d += 16) {
        __mmask16 lanes = tail_mask(dim - d);
        sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(lanes, q + d),
                                    _mm512_maskz_loadu_ps(lanes, row + d), sum, lanes);
    }
    sum = fold8(sum, sum);
    sum = fold4(sum, sum);
    sum = fold2(sum, sum);
    return _mm512_cvtss_f32(fold1(sum, sum));
}

void attn_scores_avx512(float *z, int64_t z_stride, const float *q, int64_t q_stride,
                        const float *rows, int64_t row_stride, int n_head, int n_rows, int dim,
                        float scale) {
    int heads4 = n_head / 4 * 4, rows4 = n_rows / 4 * 4;
    __m512 scales = _mm512_set1_ps(scale);
    for (int r = 0; r < rows4; r += 4)             /* 4 rows stay in the first cache, the heads stream by */
        for (int h = 0; h < heads4; h += 4)
            scores_4x4(z + h * z_stride + r, z_stride, q + h * q_stride, q_stride,
                       rows + r * row_stride, row_stride, dim, scales);
    for (int h = 0; h < n_head; h++)
        for (int r = h < heads4 ? rows4 : 0; r < n_rows; r++)
            z[h * z_stride + r] = scale * score_1x1(q + h * q_stride, rows + r * row_stride, dim);
}

/* ---- weighted sum ---- */

static inline void mix_4x64(float *o, int64_t o_stride, const float *p, int64_t p_stride,
                            const float *rows, int64_t row_stride, int n_rows) {
    __m512 sum[16];
    UNROLL
    for (int i = 0; i < 16; i++) sum[i] = _mm512_loadu_ps(o + i / 4 * o_stride + i % 4 * 16);
    for (int r = 0; r < n_rows; r++) {
        const float *row = rows + r * row_stride;
        __m512 x[4];
        UNROLL
        for (int i = 0; i < 4; i++) x[i] = _mm512_loadu_ps(row + 16 * i);
        UNROLL
        for (int h = 0; h < 4; h++) {
            __m512 weight = _mm512_set1_ps(p[h * p_stride + r]);
            UNROLL
            for (int i = 0; i < 4; i++) sum[4 * h + i] = _mm512_fmadd_ps(weight, x[i], sum[4 * h + i]);
        }
    }
    UNROLL
    for (int i = 0; i < 16; i++) _mm512_storeu_ps(o + i / 4 * o_stride + i % 4 * 16, sum[i]);
}

static inline void mix_1x16(float *o, const float *p, const float *rows, int64_t row_stride,
                            int n_rows, int n) {
    __mmask16 lanes = tail_mask(n);
    __m512 sum = _mm512_maskz_loadu_ps(lanes, o);
    for (int r = 0; r < n_rows; r++)
        sum = _mm512_fmadd_ps(_mm512_set1_ps(p[r]), _mm512_maskz_loadu_ps(lanes, rows + r * row_stride), sum);
    _mm512_mask_storeu_ps(o, lanes, sum);
}

void attn_mix_avx512(float *o, int64_t o_stride, const float *p, int64_t p_stride,
                     const float *rows, int64_t row_stride, int n_head, int n_rows, int dim) {
    int heads4 = n_head / 4 * 4, dims64 = dim / 64 * 64;
    /* 64 dimensions of all rows stay in the first cache for all heads */
    for (int d = 0; d < dims64; d += 64)
        for (int h = 0; h < heads4; h += 4)
            mix_4x64(o + h * o_stride + d, o_stride, p + h * p_stride, p_stride, rows + d,
                     row_stride, n_rows);
    for (int h = 0; h < n_head; h++)
        for (int d = h < heads4 ? dims64 : 0; d < dim; d += 16)
            mix_1x16(o + h * o_stride + d, p + h * p_stride, rows + d, row_stride, n_rows, dim - d);
}
#endif
