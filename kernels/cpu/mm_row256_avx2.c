/* One activation row against types with blocks of 256, with AVX2: four rows at a time; per row
 * vpmaddubsw forms pairs of products (below 2^15 for every type: 63 * 127 * 2), and vpmaddwd multiplies
 * by the sub-block's scale. */
#include "kernels/cpu/mm_avx2.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/mm_codes_avx2.h"
#include "kernels/cpu/mm_row_avx2.h"

/* Sums of a block of activations: of 16 values each, or in the first half of 32 each. */
struct block_sums {
    int16_t s[16];
};

INLINE __m256i add_scaled(__m256i acc, __m256i codes, const int8_t *x, __m256i scale) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, load(x)), scale));
}

/* Eight vectors with a scale per 16 values, or per 32. */
#define ROW_16(name, codes)                                                                                  \
    INLINE __m256i sum_##name(const uint8_t *p, const int8_t *x, const struct scales *s) {                   \
        __m256i acc = _mm256_setzero_si256();                                                                \
        UNROLL                                                                                               \
        for (int v = 0; v < 8; v++)                                                                          \
            acc = add_scaled(acc, codes(p, v), x + 32 * v, word_pair(v < 4 ? s->low : s->high, v % 4 * 2));  \
        return acc;                                                                                          \
    }
#define ROW_32(name, codes)                                                                    \
    INLINE __m256i sum_##name(const uint8_t *p, const int8_t *x, const struct scales *s) {     \
        __m256i acc = _mm256_setzero_si256();                                                  \
        UNROLL                                                                                 \
        for (int v = 0; v < 8; v++)                                                            \
            acc = add_scaled(acc, codes(p, v), x + 32 * v, word_twice(s->low, v));             \
        return acc;                                                                            \
    }
ROW_16(q2_k, codes_q2_k)
ROW_16(q3_k, codes_q3_k)
ROW_32(q4_k, codes_q4_k)
ROW_32(q5_k, codes_q5_k)
ROW_16(q6_k, codes_q6_k)

INLINE __m256i sum_iq2_xxs(const uint8_t *p, const int8_t *x) {
    __m256i acc = _mm256_setzero_si256();
    UNROLL
    for (int g = 0; g < 8; g++) {
        const uint8_t *group = p + 2 + 8 * g;
        __m256i signed_x = _mm256_sign_epi8(load(x + 32 * g), iq2_signs(group));
        __m256i pairs = _mm256_maddubs_epi16(iq2_magnitudes(group), signed_x);
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, iq2_scale(group)));
    }
    return acc;
}

/* The words of a row's minima (or scales, for a zero point) times the sums of the activations. */
INLINE __m128i dot_sums(__m128i low, __m128i high, const struct block_sums *x, bool sixteen) {
    __m128i sum = _mm_madd_epi16(low, load_16(x->s));
    return sixteen ? _mm_add_epi32(sum, _mm_madd_epi16(high, load_16(x->s + 8))) : sum;
}

INLINE __m256i row_dot(const uint8_t *p, const int8_t *x, const struct block_sums *sums,
                       enum dtype type, __m128i *side) {
    struct scales s;
    switch (type) {
    case DTYPE_Q2_K:
        scales_q2_k(p, &s);
        *side = dot_sums(s.min[0], s.min[1], sums, true);
        return sum_q2_k(p, x, &s);
    case DTYPE_Q3_K:
        scales_q3_k(p, &s);
        *side = _mm_slli_epi32(
            dot_sums(_mm256_castsi256_si128(s.low), _mm256_castsi256_si128(s.high), sums, true), 2);
        return sum_q3_k(p, x, &s);
    case DTYPE_Q4_K:
        scales_6bit(p, &s);
        *side = dot_sums(s.min[0], s.min[0], sums, false);
        return sum_q4_k(p, x, &s);
    case DTYPE_Q5_K:
        scales_6bit(p, &s);
        *side = dot_sums(s.min[0], s.min[0], sums, false);
        return sum_q5_k(p, x, &s);
    case DTYPE_Q6_K:
        scales_q6_k(p, &s);
        *side = _mm_slli_epi32(
            dot_sums(_mm256_castsi256_si128(s.low), _mm256_castsi256_si128(s.high), sums, true), 5);
        return sum_q6_k(p, x, &s);
    default:
        return sum_iq2_xxs(p, x);
    }
}

/* The sum of each row's four dwords. */
INLINE __m128i side_sums(const __m128i v[ROWS]) {
    return _mm_hadd_epi32(_mm_hadd_epi32(v[0], v[1]), _mm_hadd_epi32(v[2], v[3]));
}

/* Neighbouring f16 d and dmin of the four rows. */
INLINE void d_dmin(const struct rows *rows, int at, __m128 *d, __m128 *dmin) {
    __m128i v = _mm_setr_epi32((int)u32_at(row_at(rows, 0) + at), (int)u32_at(row_at(rows, 1) + at),
                               (int)u32_at(row_at(rows, 2) + at), (int)u32_at(row_at(rows, 3) + at));
    __m256 both = _mm256_cvtph_ps(
        _mm_shuffle_epi8(v, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)));
    *d = _mm256_castps256_ps128(both);
    *dmin = _mm256_extractf128_ps(both, 1);
}

struct type256 {
    enum dtype type;
    int bytes, d_at;
    bool has_min, has_zero;
};

INLINE void rows_dot(const struct mm_tile *t, struct type256 type, const struct block_sums *sums, int j) {
    int64_t n = t->n_in / 256, x_row = t->x_row ? t->x_row[0] : 0;
    const int8_t *q = t->x->q + x_row * t->n_in;
    const float *dx = t->x->d + x_row * n;
    struct rows rows = rows_at(t, j);
    __m128 acc = _mm_setzero_ps();
    for (int64_t b = 0; b < n; b++, q += 256) {
        __m256i v[ROWS];
        __m128i side[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) {
            v[r] = row_dot(row_at(&rows, r), q, sums + b, type.type, &side[r]);
            __asm__("" : "+x"(v[r]));              /* one row after the other: 16 registers hold no more */
        }
        __m128i isum = row_sums(v);
        __m128 d, dmin, x = _mm_set1_ps(dx[b]);
        if (type.has_min) d_dmin(&rows, type.d_at, &d, &dmin);
        else d = halves(&rows, type.d_at);
        if (type.type == DTYPE_IQ2_XXS) d = _mm_mul_ps(d, _mm_set1_ps(0.125f));
        if (type.has_zero) isum = _mm_sub_epi32(isum, side_sums(side));
        acc = _mm_fmadd_ps(_mm_cvtepi32_ps(isum), _mm_mul_ps(d, x), acc);
        if (type.has_min) acc = _mm_fnmadd_ps(_mm_cvtepi32_ps(side_sums(side)), _mm_mul_ps(dmin, x), acc);
        rows_next(&rows, type.bytes);
    }
    rows_store(&rows, t->out + j, acc);
}

static void sums_set(struct block_sums *to, const struct mm_tile *t) {
    int64_t n = t->n_in / 256, row = t->x_row ? t->x_row[0] : 0;
    const int32_t *sum = t->x->sum + row * n * 16;
    bool by_32 = t->type == DTYPE_Q4_K || t->type == DTYPE_Q5_K;
    for (int64_t b = 0; b < n; b++, sum += 16)
        for (int i = 0; i < (by_32 ? 8 : 16); i++)
            to[b].s[i] = (int16_t)(by_32 ? sum[2 * i] + sum[2 * i + 1] : sum[i]);
}

#define TYPE(name, ...)                                                                                  \
    static void dot_##name(const struct mm_tile *t, const struct block_sums *sums) {                     \
        for (int j = 0; j < t->n_w; j += ROWS) rows_dot(t, (struct type256){ __VA_ARGS__ }, sums, j);    \
    }
TYPE(q2_k, DTYPE_Q2_K, 84, 80, true, false)
TYPE(q3_k, DTYPE_Q3_K, 110, 108, false, true)
TYPE(q4_k, DTYPE_Q4_K, 144, 0, true, false)
TYPE(q5_k, DTYPE_Q5_K, 176, 0, true, false)
TYPE(q6_k, DTYPE_Q6_K, 210, 208, false, true)
TYPE(iq2_xxs, DTYPE_IQ2_XXS, 66, 0, false, false)

void mm_row256_avx2(const struct mm_tile *t) {
    struct block_sums *sums = t->scratch;
    CHECK(t->n_in / 256 * (int64_t)sizeof *sums <= SIMD_SCRATCH);
    sums_set(sums, t);
    switch (t->type) {
    case DTYPE_Q2_K: dot_q2_k(t, sums); break;
    case DTYPE_Q3_K: dot_q3_k(t, sums); break;
    case DTYPE_Q4_K: dot_q4_k(t, sums); break;
    case DTYPE_Q5_K: dot_q5_k(t, sums); break;
    case DTYPE_Q6_K: dot_q6_k(t, sums); break;
    default: dot_iq2_xxs(t, sums); break;
    }
}
#endif
