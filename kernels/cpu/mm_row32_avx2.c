/* One activation row against types with blocks of 32, with AVX2: a vector is a block of one row, four
 * rows at a time.
 *
 * vpmaddubsw multiplies unsigned by signed and would saturate at 2^15: Q8_0 gives the weight's
 * magnitude and moves its sign to the activation (2 * 128 * 127 at most); the nibble types are made
 * unsigned, and what that adds is taken off the sum. */
#include "kernels/cpu/mm_avx2.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/mm_row_avx2.h"

/* What distinguishes the types. */
struct type32 {
    int bytes, head;                               /* of a block; of its scale */
    int zero;                                      /* by how much the bytes are too large */
    bool q8, mxfp4;
};

INLINE __m256i products(const uint8_t *p, struct type32 type, __m256i x) {
    if (type.q8) {
        __m256i w = load(p + 2);
        return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    }
    __m128i v = load_16(p + type.head);
    __m256i code = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
    if (type.mxfp4) {                              /* 12 + doubled value */
        const __m256i table =
            _mm256_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0, 12, 13, 14,
                             15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
        code = _mm256_shuffle_epi8(table, code);
    }
    return _mm256_maddubs_epi16(code, x);
}

/* 2^(e - 128), and the two subnormal ones. */
INLINE __m128 mxfp4_scales(const struct rows *rows) {
    __m128i one = _mm_set1_epi32(1);
    __m128i e = _mm_setr_epi32(row_at(rows, 0)[0], row_at(rows, 1)[0], row_at(rows, 2)[0],
                               row_at(rows, 3)[0]);
    __m128i bits = _mm_slli_epi32(_mm_sub_epi32(e, one), 23),
            small = _mm_sllv_epi32(_mm_set1_epi32(0x00200000), e);
    return _mm_castsi128_ps(_mm_blendv_epi8(bits, small, _mm_cmpgt_epi32(_mm_set1_epi32(2), e)));
}

INLINE void rows_dot(const struct mm_tile *t, struct type32 type, int j) {
    int64_t n = t->n_in / 32, x_row = t->x_row ? t->x_row[0] : 0;
    const int8_t *q = t->x->q + x_row * t->n_in;
    const float *d = t->x->d + x_row * n;
    const int32_t *sum = t->x->sum + x_row * n;
    const __m256i one = _mm256_set1_epi16(1);
    struct rows rows = rows_at(t, j);
    __m128 acc = _mm_setzero_ps();
    for (int64_t b = 0; b < n; b++, q += 32) {
        __m256i x = load(q), v[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; r++) v[r] = _mm256_madd_epi16(products(row_at(&rows, r), type, x), one);
        __m128i isum = row_sums(v);
        if (type.zero) isum = _mm_sub_epi32(isum, _mm_set1_epi32(type.zero * sum[b]));
        __m128 scale = type.mxfp4 ? mxfp4_scales(&rows) : halves(&rows, 0);
        acc = _mm_fmadd_ps(_mm_cvtepi32_ps(isum), _mm_mul_ps(scale, _mm_set1_ps(d[b])), acc);
        rows_next(&rows, type.bytes);
    }
    rows_store(&rows, t->out + j, acc);
}

void mm_row32_avx2(const struct mm_tile *t) {
    const struct type32 q8_0 = { 34, 2, 0, true, false }, q4_0 = { 18, 2, 8, false, false },
                        mxfp4 = { 17, 1, 12, false, true };
    CHECK(t->type == DTYPE_Q8_0 || t->type == DTYPE_Q4_0 || t->type == DTYPE_MXFP4);
    if (t->type == DTYPE_Q8_0)
        for (int j = 0; j < t->n_w; j += ROWS) rows_dot(t, q8_0, j);
    else if (t->type == DTYPE_Q4_0)
        for (int j = 0; j < t->n_w; j += ROWS) rows_dot(t, q4_0, j);
    else
        for (int j = 0; j < t->n_w; j += ROWS) rows_dot(t, mxfp4, j);
}
#endif
