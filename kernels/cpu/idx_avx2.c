/* Scores of the lightning indexer by hand for AVX2: eight keys at a time become bytes with a key per
 * lane (12 + doubled value, unsigned for vpmaddubsw; 8 * 2 * 24 * 12 stays far below 2^15, so a block
 * is added up in 16 bits), then meet the heads three by three. */
#include "kernels/cpu/mm_avx2.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/inline.h"

#include <immintrin.h>

enum { KEYS = 16, HEADS = 3, BLOCKS_MAX = 8, HEADS_MAX = 256, ZERO = 12 };

struct keys {
    uint8_t q[8 * BLOCKS_MAX][2][32];              /* [dword][half]: four values of eight keys */
    float scale[BLOCKS_MAX][KEYS];
};

/* Per head and block: what the integer sum is too large by, and the power of two. */
struct head_block {
    int32_t extra;
    float scale;
};

static float pow2(int e) {
    return f32_from_bits((uint32_t)(MAX(e, -126) + 127) << 23);
}

static void unpack_half(struct keys *keys, int c, const uint8_t *const row[8], int n_blocks) {
    const __m128i table = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0),
                  low = _mm_set1_epi8(15);
    for (int b = 0; b < n_blocks; b++)
        for (int i = 0; i < 8; i++) {
            __m128i v = _mm_loadu_si128((const void *)(row[i] + 16 * b));
            uint8_t q[32];
            _mm_storeu_si128((void *)q, _mm_shuffle_epi8(table, _mm_and_si128(v, low)));
            _mm_storeu_si128((void *)(q + 16),
                             _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(v, 4), low)));
            for (int k = 0; k < 8; k++) memcpy(keys->q[8 * b + k][c] + 4 * i, q + 4 * k, 4);
            keys->scale[b][8 * c + i] = pow2((int8_t)row[i][16 * n_blocks + b]);
        }
}

static void heads_set(struct head_block *x, const int8_t *q, const int8_t *q_exp, int n) {
    for (int i = 0; i < n; i++, q += 32) {
        int32_t sum = 0;
        for (int k = 0; k < 32; k++) sum += q[k];
        x[i] = (struct head_block){ ZERO * sum, pow2(q_exp[i] - 2) };
    }
}

INLINE __m256i broadcast(const int8_t *p) {
    int32_t w;
    memcpy(&w, p, 4);
    return _mm256_set1_epi32(w);
}

/* Adds heads 0 .. n_h to the scores of 16 keys. */
INLINE void add_heads(const struct keys *keys, const struct head_block *x, const int8_t *q,
                      const float *w, int n_blocks, int n_h, __m256 score[2]) {
    __m256 dot[2][HEADS];
    UNROLL
    for (int h = 0; h < n_h; h++) dot[0][h] = dot[1][h] = _mm256_setzero_ps();
    for (int b = 0; b < n_blocks; b++) {
        __m256i acc[2][HEADS];
        UNROLL
        for (int h = 0; h < n_h; h++) acc[0][h] = acc[1][h] = _mm256_setzero_si256();
        UNROLL
        for (int k = 0; k < 8; k++) {
            __m256i k0 = _mm256_load_si256((const void *)keys->q[8 * b + k][0]),
                    k1 = _mm256_load_si256((const void *)keys->q[8 * b + k][1]);
            UNROLL
            for (int h = 0; h < n_h; h++) {
                __m256i v = broadcast(q + (h * n_blocks + b) * 32 + 4 * k);
                acc[0][h] = _mm256_add_epi16(acc[0][h], _mm256_maddubs_epi16(k0, v));
                acc[1][h] = _mm256_add_epi16(acc[1][h], _mm256_maddubs_epi16(k1, v));
            }
        }
        UNROLL
        for (int h = 0; h < n_h; h++) {
            const struct head_block *at = &x[h * n_blocks + b];
            UNROLL
            for (int c = 0; c < 2; c++) {
                __m256i isum = _mm256_sub_epi32(_mm256_madd_epi16(acc[c][h], _mm256_set1_epi16(1)),
                                                _mm256_set1_epi32(at->extra));
                __m256 scale = _mm256_mul_ps(_mm256_set1_ps(at->scale),
                                             _mm256_load_ps(keys->scale[b] + 8 * c));
                dot[c][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), scale, dot[c][h]);
            }
        }
    }
    UNROLL
    for (int h = 0; h < n_h; h++) {
        UNROLL
        for (int c = 0; c < 2; c++)
            score[c] = _mm256_fmadd_ps(_mm256_set1_ps(w[h]),
                                       _mm256_max_ps(dot[c][h], _mm256_setzero_ps()), score[c]);
    }
}

typedef __m256 floats;

INLINE floats floats_zero(void) {
    return _mm256_setzero_ps();
}

INLINE void floats_store(float *to, int n, const floats v[2]) {
    float f[KEYS];
    _mm256_storeu_ps(f, v[0]);
    _mm256_storeu_ps(f + 8, v[1]);
    memcpy(to, f, (size_t)n * sizeof *f);
}

#define IDX(name) name##_avx2
#include "kernels/cpu/idx_scores.inc"
#endif
