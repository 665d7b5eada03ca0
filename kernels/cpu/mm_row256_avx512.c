/* One activation row against types with blocks of 256, eight weight rows at a time. Per block and row a
 * type gives one vector whose
 * 16 dwords add up to isum; the vectors of eight rows are added by a transposing tree, and the running
 *   sums take one fma. The
 * activations are put into the order in which a type's codes unpack, once per call. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/mm_avx512.h"
#include "kernels/cpu/mm_iq2_avx512.h"
#include "kernels/cpu/mm_row_avx512.h"

/* A block of activations. */
struct block {
    __m512i q[8];                                  /* IQ2_XXS: 8, others: 4 */
    __m512i start;                                 /* IQ2_XXS: -64 * sums of 32, in both dwords of a qword */
    int16_t sum[16];                               /* of 16 each, or ([0..7], twice) of 32 each */
    float d;
};

/* What a block of eight rows needs before its codes: sub-block scales of four rows each, and sums that
 * do not depend on the codes. */
struct head {
    __m512i scale[2];
    __m256i minus;                                 /* to take off isum (types with a zero point) */
    __m256i msum;
    __m256 d, dmin;
};

/* A block of eight rows on its way to the running sums: lanes of four partial sums each, rows 0..3 and
 * 4..7. */
struct partial {
    __m512i low, high;
    __m256i minus, msum;
    __m256 d, dmin, dx;
};

INLINE __m512i load(const void *p) {
    return _mm512_loadu_si512(p);
}

/* For what is used several times: else the compiler reads memory again for each use, and an unaligned
 * vector costs 1.5 cycles. */
INLINE __m512i load_once(const void *p) {
    __m512i v = _mm512_loadu_si512(p);
    __asm__("" : "+v"(v));
    return v;
}

/* ---- things of eight rows ---- */

/* The 16 bytes at `at` of rows 4h .. 4h+3, a row per lane. */
INLINE __m512i head_4(const struct rows *rows, int h, int at) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(row_at(rows, 4 * h) + at)));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row_at(rows, 4 * h + 1) + at)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row_at(rows, 4 * h + 2) + at)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(row_at(rows, 4 * h + 3) + at)), 3);
}

/* Two vectors with four dwords per row, rows 0..3 and 4..7: the sum of each row. */
INLINE __m256i row_sums_4(__m512i a, __m512i b) {
    __m512i t = add_dwords(a, b);
    t = _mm512_add_epi32(t, _mm512_shuffle_epi32(t, _MM_PERM_BADC));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0), t));
}

/* Two vectors whose lanes hold a dword of each row, rows 0..3 and 4..7: the sum of the lanes. */
INLINE __m256i lanes_sum(__m512i a, __m512i b) {
    __m512i t = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    __m256i low = _mm512_castsi512_si256(t), high = _mm512_extracti64x4_epi64(t, 1);
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                            _mm256_permute2x128_si256(low, high, 0x31));
}

INLINE __m256i dwords(const struct rows *rows, int at) {
    int32_t w[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) memcpy(&w[r], row_at(rows, r) + at, 4);
    return _mm256_setr_epi32(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]);
}

INLINE __m256 low_halves(__m256i v) {
    return _mm256_cvtph_ps(_mm256_cvtepi32_epi16(v));
}

INLINE void head_d_dmin(struct head *r, __m256i d_dmin) {
    r->d = low_halves(d_dmin);
    r->dmin = low_halves(_mm256_srli_epi32(d_dmin, 16));
}

INLINE __m256 halves(const struct rows *rows, int at) {
    uint16_t h[ROWS];
    UNROLL
    for (int r = 0; r < ROWS; r++) memcpy(&h[r], row_at(rows, r) + at, 2);
    return _mm256_cvtph_ps(_mm_setr_epi16((short)h[0], (short)h[1], (short)h[2], (short)h[3],
                                          (short)h[4], (short)h[5], (short)h[6], (short)h[7]));
}

/* ---- sub-block scales, spread over the words that they multiply ---- */

#define WORDS_8(i) i, i, i, i, i, i, i, i

/* Words of scale byte a in lane 0, b, c, d in the others, of row r % 4 of the four whose 16 scale bytes
 * each are in `scales`. */
INLINE __m512i spread(__m512i scales, int r, int a, int b, int c, int d) {
    short at = (short)(r % 4 * 16);
    short i0 = (short)(at + a), i1 = (short)(at + b), i2 = (short)(at + c), i3 = (short)(at + d);
    const __m512i index = _mm512_set_epi16(WORDS_8(i3), WORDS_8(i2), WORDS_8(i1), WORDS_8(i0));
    return _mm512_maskz_permutexvar_epi8(0x5555555555555555, index, scales);
}

/* acc += scale * (pairs of q * x): pairs stay below 2^15 for every type (63 * 128 * 2). */
INLINE __m512i add_scaled(__m512i acc, __m512i q, __m512i x, __m512i scale) {
    return _mm512_dpwssd_epi32(acc, _mm512_maddubs_epi16(q, x), scale);
}

/* Words of each lane times sums of 32, or twice as many times sums of 16: four dwords per lane. */
INLINE __m512i dot_sums_8(__m512i words, const struct block *x) {
    return _mm512_madd_epi16(words, _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)x->sum)));
}

INLINE __m512i dot_sums_16(__m512i low_words, __m512i high_words, const struct block *x) {
    __m512i low = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)x->sum));
    __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(x->sum + 8)));
    return _mm512_dpwssd_epi32(_mm512_madd_epi16(low_words, low), high_words, high);
}

/* ---- Q2_K ---- */

INLINE void head_q2_k(const struct rows *rows, const struct block *x, struct head *out) {
    const __m512i low4 = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    __m512i msum[2];
    for (int h = 0; h < 2; h++) {
        __m512i head = head_4(rows, h, 0), min = _mm512_and_si512(_mm512_srli_epi16(head, 4), low4);
        out->scale[h] = _mm512_and_si512(head, low4);
        msum[h] = dot_sums_16(_mm512_unpacklo_epi8(min, zero), _mm512_unpackhi_epi8(min, zero), x);
    }
    out->msum = row_sums_4(msum[0], msum[1]);
    head_d_dmin(out, dwords(rows, 80));
}

/* Codes stay where they are in the byte (times 1, 4, 16; the last is moved down to 16); the scales make
 * up for it, and isum comes out 16 times too large. */
INLINE __m512i row_q2_k(const struct rows *rows, int r, const struct block *x, const struct head *head) {
    __m512i q = load_once(row_at(rows, r) + 16), top = _mm512_set1_epi8(48), scale = head->scale[r / 4];
    __m512i by_4 = _mm512_slli_epi16(scale, 2), by_16 = _mm512_slli_epi16(scale, 4);
    __m512i v =
        _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_and_si512(q, _mm512_set1_epi8(3)), x->q[0]),
                          spread(by_16, r, 0, 1, 8, 9));
    v = add_scaled(v, _mm512_and_si512(q, _mm512_set1_epi8(12)), x->q[1], spread(by_4, r, 2, 3, 10, 11));
    v = add_scaled(v, _mm512_and_si512(q, top), x->q[2], spread(scale, r, 4, 5, 12, 13));
    return add_scaled(v, _mm512_and_si512(_mm512_srli_epi16(q, 2), top), x->q[3],
                      spread(scale, r, 6, 7, 14, 15));
}

/* ---- Q3_K ---- */

/* Lane bytes: the 16 scales plus 32, from the 12 packed bytes in each lane. */
INLINE __m512i q3_k_scales(__m512i s) {
    const __m512i low4 = _mm512_set1_epi8(15), low2 = _mm512_set1_epi8(3);
    __m512i low = _mm512_shuffle_epi8(s, _mm512_set4_epi32(0x07060504, 0x03020100, 0x07060504, 0x03020100));
    low = _mm512_and_si512(_mm512_srlv_epi64(low, _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0)), low4);
    __m512i top = _mm512_shuffle_epi32(s, _MM_PERM_CCCC);
    top = _mm512_and_si512(_mm512_srlv_epi32(top, _mm512_set4_epi32(6, 4, 2, 0)), low2);
    return _mm512_or_si512(low, _mm512_slli_epi16(top, 4));
}

/* Scales are kept as bytes plus 32, which goes off again when they are words. */
INLINE void head_q3_k(const struct rows *rows, const struct block *x, struct head *out) {
    const __m512i bias = _mm512_set1_epi16(32), zero = _mm512_setzero_si512();
    __m512i minus[2];
    for (int h = 0; h < 2; h++) {
        /* bytes 94..109: two of the codes, then the scales, then d: 16 bytes that stay inside the block */
        __m512i scale = q3_k_scales(_mm512_bsrli_epi128(head_4(rows, h, 94), 2));
        minus[h] = dot_sums_16(_mm512_sub_epi16(_mm512_unpacklo_epi8(scale, zero), bias),
                               _mm512_sub_epi16(_mm512_unpackhi_epi8(scale, zero), bias), x);
        out->scale[h] = scale;
    }
    out->minus = _mm256_slli_epi32(row_sums_4(minus[0], minus[1]), 2);
    out->d = halves(rows, 108);
}

/* Codes plus 4. */
INLINE __m512i row_q3_k(const struct rows *rows, int r, const struct block *x, const struct head *head) {
    const __m512i low2 = _mm512_set1_epi8(3), bit2 = _mm512_set1_epi8(4), bias = _mm512_set1_epi16(32);
    __m512i q = load_once(row_at(rows, r) + 32), v = _mm512_setzero_si512();
    __m512i mask = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)row_at(rows, r)));
    /* bits 0..3 of half n: bits 4n + t of hmask */
    mask = _mm512_mask_srli_epi16(mask, 0xffff0000u, mask, 4);
    UNROLL
    for (int t = 0; t < 4; t++) {
        __m512i high = t < 2 ? _mm512_slli_epi16(mask, 2 - t) : _mm512_srli_epi16(mask, t - 2);
        __m512i code = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(q, 2 * t), low2),
                                       _mm512_and_si512(high, bit2));
        __m512i scale = spread(head->scale[r / 4], r, 2 * t, 2 * t + 1, 8 + 2 * t, 9 + 2 * t);
        v = add_scaled(v, code, x->q[t], _mm512_sub_epi16(scale, bias));
    }
    return v;
}

/* ---- Q4_K and Q5_K ---- */

/* Lane bytes 0..7: the scales, 8..15: the minima, from the 16 bytes that start a block. */
INLINE __m512i scales_6bit(__m512i head) {
    const __m512i keep = _mm512_set4_epi32(0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f);
    __m512i low = _mm512_shuffle_epi8(
        head, _mm512_set4_epi32(0x0f0e0d0c, 0x0b0a0908, 0x0f0e0d0c, 0x07060504));
    low = _mm512_srlv_epi32(low, _mm512_set4_epi32(4, 0, 0, 0));
    __m512i top = _mm512_shuffle_epi8(
        head, _mm512_set4_epi32(0x0b0a0908, (int)0x80808080, 0x07060504, (int)0x80808080));
    top = _mm512_and_si512(_mm512_srli_epi16(top, 2), _mm512_set1_epi8(48));
    return _mm512_ternarylogic_epi32(low, keep, top, 0xea);            /* (low & keep) | top */
}

INLINE void head_q4_k(const struct rows *rows, const struct block *x, struct head *out) {
    __m512i head[2], msum[2];
    for (int h = 0; h < 2; h++) {
        head[h] = head_4(rows, h, 0);
        out->scale[h] = scales_6bit(head[h]);
        msum[h] = dot_sums_8(_mm512_unpackhi_epi8(out->scale[h], _mm512_setzero_si512()), x);
    }
    out->msum = row_sums_4(msum[0], msum[1]);
    __m512i d = _mm512_permutex2var_epi32(
        head[0], _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0), head[1]);
    head_d_dmin(out, _mm512_castsi512_si256(d));
}

/* Sub-blocks in the order of the vectors: 0 and 2, 1 and 3, 4 and 6, 5 and 7. */
INLINE __m512i sum_by_32(__m512i q0, __m512i q1, __m512i q2, __m512i q3, __m512i scale, int r,
                         const struct block *x) {
    __m512i v = _mm512_madd_epi16(_mm512_maddubs_epi16(q0, x->q[0]), spread(scale, r, 0, 0, 2, 2));
    v = add_scaled(v, q1, x->q[1], spread(scale, r, 1, 1, 3, 3));
    v = add_scaled(v, q2, x->q[2], spread(scale, r, 4, 4, 6, 6));
    return add_scaled(v, q3, x->q[3], spread(scale, r, 5, 5, 7, 7));
}

INLINE __m512i row_q4_k(const struct rows *rows, int r, const struct block *x, const struct head *head) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i a = load_once(row_at(rows, r) + 16), b = load_once(row_at(rows, r) + 80);
    return sum_by_32(_mm512_and_si512(a, low), _mm512_and_si512(_mm512_srli_epi16(a, 4), low),
                     _mm512_and_si512(b, low), _mm512_and_si512(_mm512_srli_epi16(b, 4), low),
                     head->scale[r / 4], r, x);
}

/* The fifth bits: bit s of byte i % 32 is sub-block s. In the vector of sub-blocks (s, s + 2) it goes
 * to bit 4. */
INLINE __m512i fifth(__m512i high, int s) {
    __m512i v = s < 4 ? _mm512_slli_epi16(high, 4 - s) : _mm512_srli_epi16(high, s - 4);
    return _mm512_and_si512(v, _mm512_set1_epi8(16));
}

INLINE __m512i row_q5_k(const struct rows *rows, int r, const struct block *x, const struct head *head) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i a = load_once(row_at(rows, r) + 48), b = load_once(row_at(rows, r) + 112);
    __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(row_at(rows, r) + 16)));
    high = _mm512_mask_srli_epi16(high, 0xffff0000u, high, 2);
    return sum_by_32(
        _mm512_or_si512(_mm512_and_si512(a, low), fifth(high, 0)),
        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(a, 4), low), fifth(high, 1)),
        _mm512_or_si512(_mm512_and_si512(b, low), fifth(high, 4)),
        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(b, 4), low), fifth(high, 5)),
        head->scale[r / 4], r, x);
}

/* ---- Q6_K ---- */

/* Signed scale bytes as words. */
INLINE __m512i spread_signed(__m512i scales, int r, int a, int b, int c, int d) {
    return _mm512_srai_epi16(_mm512_slli_epi16(spread(scales, r, a, b, c, d), 8), 8);
}

INLINE void head_q6_k(const struct rows *rows, const struct block *x, struct head *out) {
    __m512i minus[2], zero = _mm512_setzero_si512();
    for (int h = 0; h < 2; h++) {
        out->scale[h] = head_4(rows, h, 192);
        __m512i a = _mm512_unpacklo_epi8(zero, out->scale[h]), b = _mm512_unpackhi_epi8(zero, out->scale[h]);
        minus[h] = dot_sums_16(_mm512_srai_epi16(a, 8), _mm512_srai_epi16(b, 8), x);
    }
    out->minus = _mm256_slli_epi32(row_sums_4(minus[0], minus[1]), 5);
    out->d = halves(rows, 208);
}

INLINE __m512i row_q6_k(const struct rows *rows, int r, const struct block *x, const struct head *head) {
    const __m512i low = _mm512_set1_epi8(15), top2 = _mm512_set1_epi8(48);
    __m512i scale = head->scale[r / 4], v = _mm512_setzero_si512();
    UNROLL
    for (int n = 0; n < 2; n++) {
        __m512i q = load_once(row_at(rows, r) + 64 * n);
        __m512i high = _mm512_broadcast_i64x4(
            _mm256_loadu_si256((const void *)(row_at(rows, r) + 128 + 32 * n)));
        /* bits 0, 1: values 0..63; bits 4, 5: values 64..127 */
        high = _mm512_mask_srli_epi16(high, 0xffff0000u, high, 2);
        __m512i a = _mm512_or_si512(_mm512_and_si512(q, low),
                                    _mm512_and_si512(_mm512_slli_epi16(high, 4), top2));
        __m512i b = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(q, 4), low),
                                    _mm512_and_si512(high, top2));
        v = add_scaled(v, a, x->q[2 * n], spread_signed(scale, r, 8 * n, 8 * n + 1, 8 * n + 2, 8 * n + 3));
        v = add_scaled(v, b, x->q[2 * n + 1],
                       spread_signed(scale, r, 8 * n + 4, 8 * n + 5, 8 * n + 6, 8 * n + 7));
    }
    return v;
}

/* ---- IQ2_XXS ---- */

/* Two rows at once, because a lookup takes 64 indices: in qword i the dword of group i of the first
 * row, then of the second. */
INLINE struct iq2_codes iq2_pair(const uint8_t *first, const uint8_t *second) {
    __m512i a = load_once(first + 2), b = load_once(second + 2);
    return iq2_lookup(_mm512_mask_shuffle_epi32(a, 0xaaaa, b, _MM_PERM_CCAA),
                      _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB));
}

/* Dwords 2i, 2i + 1: the scaled sums of group i in the first row and in the second. */
INLINE __m512i iq2_sums(const struct iq2_codes *codes, const struct block *x) {
    __m512i v[8], sum[2] = { x->start, _mm512_setzero_si512() };
    iq2_values(codes, v);
    UNROLL
    for (int e = 0; e < 8; e++) sum[e % 2] = _mm512_dpbusd_epi32(sum[e % 2], v[e], x->q[e]);
    return _mm512_mullo_epi32(_mm512_add_epi32(sum[0], sum[1]), codes->scale);
}

/* ---- activations ---- */

/* Which dword of the block goes where; 16 i + j: dword j of vector i. */
static void order_of(enum dtype type, uint8_t order[64]) {
    for (int i = 0; i < 64; i++) {
        int v = i / 16, j = i % 16, half = j / 8, at = j % 8;  /* of 32-value pieces, two per vector */
        switch (type) {
        case DTYPE_Q2_K:
        case DTYPE_Q3_K: order[i] = (uint8_t)(8 * (4 * half + v) + at); break;
        case DTYPE_Q4_K:
        case DTYPE_Q5_K: order[i] = (uint8_t)(8 * (4 * (v / 2) + 2 * half + v % 2) + at); break;
        default: order[i] = (uint8_t)i; break;
        }
    }
}

INLINE __m512i permuted(const __m512i q[4], const uint8_t *order) {
    __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)order));
    return _mm512_mask_blend_epi32(_mm512_cmpgt_epi32_mask(index, _mm512_set1_epi32(31)),
                                   _mm512_permutex2var_epi32(q[0], index, q[1]),
                                   _mm512_permutex2var_epi32(q[2], index, q[3]));
}

/* IQ2_XXS: q[e] has dword e of group i in both dwords of qword i. */
static void iq2_set(struct block *x, const __m512i from[4]) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 8, 8, 16, 16, 24, 24, 0, 0, 8, 8, 16, 16, 24, 24);
    __m512i v[4];
    for (int i = 0; i < 4; i++) v[i] = iq2_order(from[i]);
    for (int e = 0; e < 8; e++) {
        __m512i index = _mm512_add_epi32(twice, _mm512_set1_epi32(e));
        x->q[e] = _mm512_mask_blend_epi32(0xff00, _mm512_permutex2var_epi32(v[0], index, v[1]),
                                          _mm512_permutex2var_epi32(v[2], index, v[3]));
    }
}

static void blocks_set(struct block *x, const struct mm_tile *t) {
    int64_t n = t->n_in / 256, row = t->x_row ? t->x_row[0] : 0;
    const int8_t *q = t->x->q + row * t->n_in;
    const int32_t *sum = t->x->sum + row * n * 16;
    bool by_32 = t->type == DTYPE_Q4_K || t->type == DTYPE_Q5_K;
    uint8_t order[64];
    order_of(t->type, order);
    for (int64_t b = 0; b < n; b++, x++, q += 256, sum += 16) {
        const __m512i from[4] = { load(q), load(q + 64), load(q + 128), load(q + 192) };
        __m512i s = load(sum), pairs = _mm512_add_epi32(s, _mm512_srli_epi64(s, 32));
        if (t->type == DTYPE_IQ2_XXS) {
            iq2_set(x, from);
            x->start = _mm512_mullo_epi32(_mm512_shuffle_epi32(pairs, _MM_PERM_CCAA),
                                          _mm512_set1_epi32(-IQ2_ZERO));
        } else {
            for (int v = 0; v < 4; v++) x->q[v] = permuted(from, order + 16 * v);
        }
        _mm256_storeu_si256((__m256i *)(void *)x->sum, _mm512_cvtepi32_epi16(s));
        if (by_32) _mm_storeu_si128((__m128i *)(void *)x->sum, _mm512_cvtepi64_epi16(pairs));
        x->d = t->x->d[row * n + b];
    }
}

/* ---- rows ---- */

/* The processor looks some 160 vector results ahead, less than one block. So the program's order does
 * what it cannot: heads are read a block early, and a block's last steps, a long chain, come in the
 * middle of the next one. */

INLINE __m256 finish(const struct partial *p, enum dtype type, __m256 acc) {
    __m256i sum = lanes_sum(p->low, p->high);
    if (type == DTYPE_Q2_K) sum = _mm256_srai_epi32(sum, 4);
    if (type == DTYPE_Q3_K || type == DTYPE_Q6_K) sum = _mm256_sub_epi32(sum, p->minus);
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(p->d, p->dx), acc);
    if (type == DTYPE_Q2_K || type == DTYPE_Q4_K || type == DTYPE_Q5_K)
        acc = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(p->msum), _mm256_mul_ps(p->dmin, p->dx), acc);
    return acc;
}

/* The block after the next, or again the last. */
INLINE struct rows rows_peek(const struct rows *rows, int bytes) {
    struct rows next = *rows;
    next.at = MIN(rows->at + bytes, rows->bytes - bytes);
    return next;
}

INLINE void
rows_dot(const struct mm_tile *t, const struct block *x, int j, enum dtype type, int bytes,
         void (*head_read)(const struct rows *, const struct block *, struct head *),
         __m512i (*row_sum)(const struct rows *, int, const struct block *, const struct head *)) {
    struct rows rows = rows_at(t, j);
    __m256 acc = _mm256_setzero_ps();
    struct partial last = { 0 };
    struct head head = { 0 }, next = { 0 };
    head_read(&rows, x, &head);
    for (; rows.at < rows.bytes; x++) {
        __m512i v[ROWS];
        struct rows ahead = rows_peek(&rows, bytes);
        head_read(&ahead, rows.at + bytes < rows.bytes ? x + 1 : x, &next);
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            v[r] = row_sum(&rows, r, x, &head);
            if (r == 3) acc = finish(&last, type, acc);
        }
        last = (struct partial){ lane_sums(v), lane_sums(v + 4), head.minus,          head.msum,
                                 head.d,       head.dmin,        _mm256_set1_ps(x->d) };
        head = next;
        rows_next(&rows, bytes);
    }
    rows_store(&rows, t->out + j, finish(&last, type, acc));
}

static void dot_iq2_xxs(const struct mm_tile *t, const struct block *x, int j) {
    enum { BYTES = 66 };
    struct rows rows = rows_at(t, j);
    __m256 acc = _mm256_setzero_ps();
    struct partial last = { 0 };
    struct iq2_codes pair = iq2_pair(row_at(&rows, 0), row_at(&rows, 1));
    for (; rows.at < rows.bytes; x++) {
        __m512i v[ROWS / 2];
        struct rows ahead = rows_peek(&rows, BYTES);
        __m256 d = _mm256_mul_ps(halves(&rows, 0), _mm256_set1_ps(0.125f));
        UNROLL
        for (int r = 0; r < ROWS; r += 2) {
            struct iq2_codes next = r < 6 ? iq2_pair(row_at(&rows, r + 2), row_at(&rows, r + 3))
                                          : iq2_pair(row_at(&ahead, 0), row_at(&ahead, 1));
            v[r / 2] = iq2_sums(&pair, x);
            pair = next;
            if (r == 0) acc = finish(&last, DTYPE_IQ2_XXS, acc);
        }
        last = (struct partial){ .low = add_qwords(v[0], v[1]),
                                 .high = add_qwords(v[2], v[3]),
                                 .d = d,
                                 .dx = _mm256_set1_ps(x->d) };
        rows_next(&rows, BYTES);
    }
    rows_store(&rows, t->out + j, finish(&last, DTYPE_IQ2_XXS, acc));
}

#define TYPE(name, head, type, bytes)                                                      \
    static void dot_##name(const struct mm_tile *t, const struct block *x, int j) {        \
        rows_dot(t, x, j, type, bytes, head_##head, row_##name);                           \
    }
TYPE(q2_k, q2_k, DTYPE_Q2_K, 84)
TYPE(q3_k, q3_k, DTYPE_Q3_K, 110)
TYPE(q4_k, q4_k, DTYPE_Q4_K, 144)
TYPE(q5_k, q4_k, DTYPE_Q5_K, 176)
TYPE(q6_k, q6_k, DTYPE_Q6_K, 210)

void mm_row256_avx512(const struct mm_tile *t) {
    struct block *x = t->scratch;
    CHECK(t->n_in / 256 * (int64_t)sizeof *x <= SIMD_SCRATCH);
    blocks_set(x, t);
    void (*dot)(const struct mm_tile *, const struct block *, int) = NULL;
    switch (t->type) {
    case DTYPE_Q2_K: dot = dot_q2_k; break;
    case DTYPE_Q3_K: dot = dot_q3_k; break;
    case DTYPE_Q4_K: dot = dot_q4_k; break;
    case DTYPE_Q5_K: dot = dot_q5_k; break;
    case DTYPE_Q6_K: dot = dot_q6_k; break;
    default: dot = dot_iq2_xxs; break;
    }
    for (int j = 0; j < t->n_w; j += ROWS) dot(t, x, j);
}
#endif
