/* The AVX2 table: the shared element-wise source compiled for it, and matrix products by hand.
 *
 * Four weight rows at a time: one block of each is unpacked to int8 and meets every activation row.
 * Bytes are multiplied by vpmaddubsw with the sign moved to the activation: two products stay below 2 *
 * 128 * 127 = 32512, so nothing saturates; the sub-block scale is applied by vpmaddwd, which also
 * widens to 32 bits. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#define VEC(name) name##_avx2
#include "kernels/cpu/vec_body.inc"

#include <immintrin.h>

#define MM(name) mm_##name##_avx2
#define MM_PAIRS 0
#include "kernels/cpu/mm_block.inc"

/* ---- unpacking ---- */

static __m256i nibbles(const uint8_t *p) {         /* 16 bytes: low nibbles, then high ones */
    __m128i v = _mm_loadu_si128((const void *)p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
}

static void unpack_q4_0(const uint8_t *p, struct mm_block *b, int r) {
    _mm256_storeu_si256((void *)b->q[r], _mm256_sub_epi8(nibbles(p + 2), _mm256_set1_epi8(8)));
    b->d[r] = MM(f16_at)(p);
}

static void unpack_mxfp4(const uint8_t *p, struct mm_block *b, int r) {
    __m256i table = _mm256_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12,
                                     0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    _mm256_storeu_si256((void *)b->q[r], _mm256_shuffle_epi8(table, nibbles(p + 1)));
    b->d[r] = mm_mxfp4_scale(p[0]);
}

static void unpack_q2_k(const uint8_t *p, struct mm_block *b, int r) {
    __m256i three = _mm256_set1_epi8(3);
    for (int n = 0; n < 2; n++) {
        __m256i v = _mm256_loadu_si256((const void *)(p + 16 + 32 * n));
        __m256i *q = (__m256i *)(void *)(b->q[r] + 128 * n);
        _mm256_storeu_si256(q, _mm256_and_si256(v, three));
        _mm256_storeu_si256(q + 1, _mm256_and_si256(_mm256_srli_epi16(v, 2), three));
        _mm256_storeu_si256(q + 2, _mm256_and_si256(_mm256_srli_epi16(v, 4), three));
        _mm256_storeu_si256(q + 3, _mm256_and_si256(_mm256_srli_epi16(v, 6), three));
    }
    for (int s = 0; s < 16; s++) {
        b->scale[r][s] = p[s] & 15;
        b->min[r][s] = p[s] >> 4;
    }
    b->d[r] = MM(f16_at)(p + 80);
    b->dmin[r] = MM(f16_at)(p + 82);
}

static void unpack_q4_k(const uint8_t *p, struct mm_block *b, int r) {
    __m256i low = _mm256_set1_epi8(15);
    for (int i = 0; i < 4; i++) {
        __m256i v = _mm256_loadu_si256((const void *)(p + 16 + 32 * i)),
                *q = (__m256i *)(void *)(b->q[r] + 64 * i);
        _mm256_storeu_si256(q, _mm256_and_si256(v, low));
        _mm256_storeu_si256(q + 1, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
    }
    MM(unpack_scales)(p + 4, b, r);
    b->d[r] = MM(f16_at)(p);
    b->dmin[r] = MM(f16_at)(p + 2);
}

/* Four sign bytes to 32 byte masks: each byte is copied to its eight lanes, and each lane looks at its
 * own bit. */
static __m256i sign_masks(uint32_t signs) {
    __m256i copy = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2,
                                    2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)signs), copy);
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

static void unpack_iq2_xxs(const uint8_t *p, struct mm_block *b, int r) {
    for (int g = 0; g < 8; g++) {
        const uint8_t *group = p + 2 + 8 * g;
        uint32_t word, signs;
        memcpy(&word, group + 4, sizeof word);
        signs = iq2xxs_signs[word & 127] | (uint32_t)iq2xxs_signs[word >> 7 & 127] << 8 |
                (uint32_t)iq2xxs_signs[word >> 14 & 127] << 16 |
                (uint32_t)iq2xxs_signs[word >> 21 & 127] << 24;
        __m256i magnitude =
            _mm256_setr_epi64x((long long)iq2xxs_grid[group[0]], (long long)iq2xxs_grid[group[1]],
                               (long long)iq2xxs_grid[group[2]], (long long)iq2xxs_grid[group[3]]);
        __m256i minus = sign_masks(signs);
        _mm256_storeu_si256((void *)(b->q[r] + 32 * g),
                            _mm256_sub_epi8(_mm256_xor_si256(magnitude, minus), minus));
        b->scale[r][2 * g] = b->scale[r][2 * g + 1] = (int32_t)(2 * (word >> 28) + 1);
    }
    b->d[r] = MM(f16_at)(p) * 0.125f;
}

static const struct MM(type) MM(types)[DTYPE_IDS] = {
    [DTYPE_Q8_0] = { MM(unpack_q8_0), false, true },   [DTYPE_Q4_0] = { unpack_q4_0, false, true },
    [DTYPE_MXFP4] = { unpack_mxfp4, false, true },     [DTYPE_Q2_K] = { unpack_q2_k, true, false },
    [DTYPE_Q3_K] = { MM(unpack_q3_k), false, false },  [DTYPE_Q4_K] = { unpack_q4_k, true, true },
    [DTYPE_Q5_K] = { MM(unpack_q5_k), true, true },    [DTYPE_Q6_K] = { MM(unpack_q6_k), false, false },
    [DTYPE_IQ2_XXS] = { unpack_iq2_xxs, false, true },
};

/* ---- one block of four rows with one activation row ---- */

/* Eight lanes each of four sums to one vector of four. */
static inline __m128i sums4(__m256i a, __m256i b, __m256i c, __m256i d) {
    __m256i t = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
}

/* 32 products, pairs summed to 16 bits */
static inline __m256i products(const int8_t *w, __m256i x) {
    __m256i v = _mm256_loadu_si256((const void *)w);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(x, v));
}

static inline __m128i isum_32(const struct mm_block *b, const int8_t *q) {
    __m256i x = _mm256_loadu_si256((const void *)q), one = _mm256_set1_epi16(1);
    return sums4(_mm256_madd_epi16(products(b->q[0], x), one), _mm256_madd_epi16(products(b->q[1], x), one),
                 _mm256_madd_epi16(products(b->q[2], x), one), _mm256_madd_epi16(products(b->q[3], x), one));
}

/* Scales of values 32s .. 32s+15 in the low half, of the next 16 in the high half. */
static inline __m256i scales16(const int32_t *scale) {
    return _mm256_set_m128i(_mm_set1_epi16((short)scale[1]), _mm_set1_epi16((short)scale[0]));
}

static inline __m128i isum_256(const struct mm_block *b, const int8_t *q) {
    __m256i sum[MM_ROWS];
    for (int r = 0; r < MM_ROWS; r++) sum[r] = _mm256_setzero_si256();
    for (int s = 0; s < 16; s += 2) {
        __m256i x = _mm256_loadu_si256((const void *)(q + 16 * s));
        for (int r = 0; r < MM_ROWS; r++) {
            __m256i p = _mm256_madd_epi16(products(b->q[r] + 16 * s, x), scales16(b->scale[r] + s));
            sum[r] = _mm256_add_epi32(sum[r], p);
        }
    }
    return sums4(sum[0], sum[1], sum[2], sum[3]);
}

static inline __m128i msums(const struct mm_block *b, const int32_t *bsum) {
    __m256i x0 = _mm256_loadu_si256((const void *)bsum),
            x1 = _mm256_loadu_si256((const void *)(bsum + 8)), sum[MM_ROWS];
    for (int r = 0; r < MM_ROWS; r++)
        sum[r] = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_loadu_si256((const void *)b->min[r]), x0),
                                  _mm256_mullo_epi32(_mm256_loadu_si256((const void *)(b->min[r] + 8)), x1));
    return sums4(sum[0], sum[1], sum[2], sum[3]);
}

static inline void MM(step)(float *acc, const struct mm_block *b, const struct MM(type) * type,
                            int len, const int8_t *x, float dx, const int32_t *bsum) {
    __m128i isum = len == 32 ? isum_32(b, x) : isum_256(b, x);
    __m128 scale = _mm_set1_ps(dx), a = _mm_loadu_ps(acc);
    a = _mm_fmadd_ps(_mm_cvtepi32_ps(isum), _mm_mul_ps(_mm_loadu_ps(b->d), scale), a);
    if (type->has_min)
        a = _mm_fnmadd_ps(_mm_cvtepi32_ps(msums(b, bsum)), _mm_mul_ps(_mm_loadu_ps(b->dmin), scale),
                          a);
    _mm_storeu_ps(acc, a);
}

/* Q8_0, most of the bytes of a decode step, without the detour: four rows straight from memory,
 * accumulators in a register. With several activation rows the four weight rows are read again from the
 * first caches. */
static inline __m256i q8_sum(const uint8_t *block, __m256i x) {
    __m256i v = _mm256_loadu_si256((const void *)(block + 2));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(x, v)),
                             _mm256_set1_epi16(1));
}

static inline int q8_scale(const uint8_t *block) {
    uint16_t h;
    memcpy(&h, block, 2);
    return h;
}

static __m128 q8_rows(const uint8_t *w, int64_t row_bytes, int64_t n_blocks, const int8_t *q,
                      const float *dx) {
    enum { AHEAD = 640 };             /* bytes: pages are small, so the hardware's own prefetch stops often */
    __m128 acc = _mm_setzero_ps();
    for (int64_t b = 0; b < n_blocks; b++, w += 34, q += 32) {
        const uint8_t *w1 = w + row_bytes, *w2 = w1 + row_bytes, *w3 = w2 + row_bytes;
        __m256i x = _mm256_loadu_si256((const void *)q);
        __m128i isum = sums4(q8_sum(w, x), q8_sum(w1, x), q8_sum(w2, x), q8_sum(w3, x));
        __m128i h = _mm_cvtsi32_si128(q8_scale(w));
        h = _mm_insert_epi16(
            _mm_insert_epi16(_mm_insert_epi16(h, q8_scale(w1), 1), q8_scale(w2), 2), q8_scale(w3),
            3);
        acc = _mm_fmadd_ps(_mm_cvtepi32_ps(isum), _mm_mul_ps(_mm_cvtph_ps(h), _mm_set1_ps(dx[b])), acc);
        if (b % 2) continue;
        _mm_prefetch((const void *)(w + AHEAD), _MM_HINT_T0);
        _mm_prefetch((const void *)(w1 + AHEAD), _MM_HINT_T0);
        _mm_prefetch((const void *)(w2 + AHEAD), _MM_HINT_T0);
        _mm_prefetch((const void *)(w3 + AHEAD), _MM_HINT_T0);
    }
    return acc;
}

static void q8_tile(const struct mm_tile *t) {
    int64_t n_blocks = t->n_in / 32;
    for (int j = 0; j + MM_ROWS <= t->n_w; j += MM_ROWS)
        for (int i = 0; i < t->n_x; i++) {
            int64_t row = t->x_row ? t->x_row[i] : i;
            _mm_storeu_ps(t->out + i * t->out_stride + j,
                          q8_rows(t->w + j * t->row_bytes, t->row_bytes, n_blocks,
                                  t->x->q + row * t->n_in, t->x->d + row * n_blocks));
        }
}

/* ---- f32 activations ---- */

static const float *MM(decode_row)(const struct mm_tile *t, const uint8_t *p, float *to) {
    int64_t i = 0, n = t->n_in;
    if (t->type == DTYPE_F16)
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 2 * i))));
    if (i < n) dtype_decode(t->type, p + (t->type == DTYPE_F16 ? 2 * i : 0), to + i, (uint64_t)(n - i));
    return to;
}

/* dot16 of one weight row with up to four activation rows. */
static void MM(dots)(const float *w, const float *const *x, int n_x, int64_t n, float *out) {
    __m256 lane[4][2];
    for (int i = 0; i < 4; i++) lane[i][0] = lane[i][1] = _mm256_setzero_ps();
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) {
        __m256 low = _mm256_loadu_ps(w + k), high = _mm256_loadu_ps(w + k + 8);
        for (int i = 0; i < 4; i++) {
            lane[i][0] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x[i] + k), lane[i][0]);
            lane[i][1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x[i] + k + 8), lane[i][1]);
        }
    }
    for (int i = 0; i < n_x; i++) {
        float s[16];
        _mm256_storeu_ps(s, lane[i][0]);
        _mm256_storeu_ps(s + 8, lane[i][1]);
        for (int64_t rest = k; rest < n; rest++)
            s[rest - k] = __builtin_fmaf(w[rest], x[i][rest], s[rest - k]);
        for (int width = 8; width >= 1; width /= 2)
            for (int l = 0; l < width; l++) s[l] += s[l + width];
        out[i] = s[0];
    }
}

#include "kernels/cpu/mm_tiles.inc"

static void mm_avx2(const struct mm_tile *t) {
    struct mm_tile rest = *t;
    if (t->kind == ACT_Q8_0 && t->type == DTYPE_Q8_0) {
        int done = t->n_w / MM_ROWS * MM_ROWS;
        q8_tile(t);
        rest.w += done * t->row_bytes, rest.out += done, rest.n_w -= done;
    }
    if (rest.n_w) MM(matmul)(&rest);
}

const struct cpu_simd cpu_simd_avx2 = {
    .name = "avx2",
    .matmul = mm_avx2,
#include "kernels/cpu/vec_table.inc"
};
#endif
