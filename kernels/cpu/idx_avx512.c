/* Scores of the lightning indexer by hand for AVX-512: 32 keys at a time become bytes with a key per
 * lane (12 + doubled value, unsigned for vpdpbusd), then meet the heads four by four. Products are
 * exact integers per block of 32; the scales are powers of two. */
#include "kernels/cpu/idx_avx512.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/mm_columns_avx512.h"

enum { KEYS = 32, HEADS = 4, BLOCKS_MAX = 8, HEADS_MAX = 256, ZERO = 12 };

struct keys {
    uint8_t q[8 * BLOCKS_MAX][2][64];              /* [dword][half]: four values of 16 keys */
    float scale[BLOCKS_MAX][KEYS];
};

/* 2^max(e, -126) */
INLINE __m512 pow2(__m512i e) {
    e = _mm512_max_epi32(e, _mm512_set1_epi32(-126));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(127)), 23));
}

INLINE void unpack_half(struct keys *keys, int c, const uint8_t *const row[16], int n_blocks) {
    /* vpermb looks at six bits of a byte, so the table repeats every 16 */
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    for (int b = 0; b < n_blocks; b++) {
        __m512i v[4];
        int8_t e[16];
        columns_16(v, row, 16 * b);
        for (int j = 0; j < 4; j++) {
            _mm512_store_si512(keys->q[8 * b + j][c], _mm512_permutexvar_epi8(v[j], table));
            _mm512_store_si512(keys->q[8 * b + 4 + j][c],
                               _mm512_permutexvar_epi8(_mm512_srli_epi16(v[j], 4), table));
        }
        for (int i = 0; i < 16; i++) e[i] = (int8_t)row[i][16 * n_blocks + b];
        _mm512_store_ps(keys->scale[b] + 16 * c,
                        pow2(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)e))));
    }
}

/* Per head and block: where the integer sum starts (-12 * sum of q), and the power of two. */
struct head_block {
    int32_t start;
    float scale;
};

static void heads_set(struct head_block *x, const int8_t *q, const int8_t *q_exp, int n) {
    const __m256i zero = _mm256_set1_epi8(ZERO);
    for (int i = 0; i < n; i++, q += 32) {
        __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), zero, _mm256_loadu_si256((const void *)q));
        __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
        t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
        int e = MAX(q_exp[i] - 2, -126);
        x[i] = (struct head_block){ -_mm_cvtsi128_si32(t), f32_from_bits((uint32_t)(e + 127) << 23) };
    }
}

INLINE __m512i broadcast(const int8_t *p) {
    int32_t w;
    memcpy(&w, p, 4);
    return _mm512_set1_epi32(w);
}

/* Adds heads 0 .. n_h to the scores of 32 keys. */
INLINE void add_heads(const struct keys *keys, const struct head_block *x, const int8_t *q,
                      const float *w, int n_blocks, int n_h, __m512 score[2]) {
    __m512 dot[2][HEADS];
    UNROLL
    for (int h = 0; h < n_h; h++) dot[0][h] = dot[1][h] = _mm512_setzero_ps();
    for (int b = 0; b < n_blocks; b++) {
        __m512i acc[2][HEADS];
        UNROLL
        for (int h = 0; h < n_h; h++) acc[0][h] = acc[1][h] = _mm512_set1_epi32(x[h * n_blocks + b].start);
        UNROLL
        for (int k = 0; k < 8; k++) {
            __m512i k0 = _mm512_load_si512(keys->q[8 * b + k][0]),
                    k1 = _mm512_load_si512(keys->q[8 * b + k][1]);
            UNROLL
            for (int h = 0; h < n_h; h++) {
                __m512i v = broadcast(q + (h * n_blocks + b) * 32 + 4 * k);
                acc[0][h] = _mm512_dpbusd_epi32(acc[0][h], k0, v);
                acc[1][h] = _mm512_dpbusd_epi32(acc[1][h], k1, v);
            }
        }
        __m512 s0 = _mm512_load_ps(keys->scale[b]), s1 = _mm512_load_ps(keys->scale[b] + 16);
        UNROLL
        for (int h = 0; h < n_h; h++) {
            __m512 scale = _mm512_set1_ps(x[h * n_blocks + b].scale);
            dot[0][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[0][h]), _mm512_mul_ps(scale, s0), dot[0][h]);
            dot[1][h] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[1][h]), _mm512_mul_ps(scale, s1), dot[1][h]);
        }
    }
    UNROLL
    for (int h = 0; h < n_h; h++)
        for (int c = 0; c < 2; c++)
            score[c] = _mm512_fmadd_ps(_mm512_set1_ps(w[h]),
                                       _mm512_max_ps(dot[c][h], _mm512_setzero_ps()), score[c]);
}

typedef __m512 floats;

INLINE floats floats_zero(void) {
    return _mm512_setzero_ps();
}

INLINE void floats_store(float *to, int n, const floats v[2]) {
    for (int half = 0; half < 2; half++) {
        int here = MIN(16, MAX(0, n - 16 * half));
        _mm512_mask_storeu_ps(to + 16 * half, (__mmask16)((1u << here) - 1), v[half]);
    }
}

#define IDX(name) name##_avx512
#include "kernels/cpu/idx_scores.inc"
#endif
