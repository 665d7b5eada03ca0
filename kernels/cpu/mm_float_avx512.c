/* dot16 products: the 16 lanes of a vector are the 16 lanes of the definition, so a running sum is one
 * register and a tile is 4 weight rows x 6 activation rows of them. F16 and BF16 become f32 on the way
 * in; quantised types are decoded first. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/inline.h"
#include "kernels/cpu/mm_avx512.h"

#include <immintrin.h>

enum { ROWS = 4, ROWS_MAX = 8, COLS = 6 };

/* A tile of two sets of rows; k counts values. */
struct tile {
    const uint8_t *w[ROWS_MAX];
    const float *x[COLS];
    float *out;                                    /* of the first weight row, first activation row */
    int64_t n, out_stride;
    int n_rows;                                  /* rows that exist; pointers of the others repeat the last */
    float scale;
};

INLINE __m512 load_f32(const uint8_t *w, int64_t k, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, w + 4 * k);
}

INLINE __m512 load_f16(const uint8_t *w, int64_t k, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, w + 2 * k));
}

INLINE __m512 load_bf16(const uint8_t *w, int64_t k, __mmask16 mask) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, w + 2 * k)), 16));
}

/* The four sums of four accumulators, in the order of dot16. */
INLINE __m128 sum_4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xb1));
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(
        _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), v));
}

INLINE void tile_dot(const struct tile *t, __m512 (*load)(const uint8_t *, int64_t, __mmask16),
                     int w_bytes, int n_w, int n_x, bool scaled) {
    __m512 acc[COLS][ROWS_MAX];
    int64_t k = 0;
    UNROLL
    for (int j = 0; j < n_w; j++)
        for (int i = 0; i < n_x; i++) acc[i][j] = _mm512_setzero_ps();
    for (; k + 16 <= t->n; k += 16) {
        __m512 w[ROWS_MAX];
        UNROLL
        for (int j = 0; j < n_w; j++) {
            w[j] = load(t->w[j], k, 0xffff);
            if (n_x <= 2 && k * w_bytes % 64 == 0)
                _mm_prefetch((const char *)t->w[j] + k * w_bytes + 1024, _MM_HINT_T1);
        }
        UNROLL
        for (int i = 0; i < n_x; i++) {
            __m512 x = _mm512_loadu_ps(t->x[i] + k);
            for (int j = 0; j < n_w; j++) acc[i][j] = _mm512_fmadd_ps(w[j], x, acc[i][j]);
        }
    }
    if (k < t->n) {                               /* only its own lanes: 0 * 0 would turn -0 into 0 */
        __mmask16 mask = (__mmask16)((1u << (t->n - k)) - 1);
        UNROLL
        for (int i = 0; i < n_x; i++)
            UNROLL
            for (int j = 0; j < n_w; j++)
                acc[i][j] = _mm512_mask3_fmadd_ps(load(t->w[j], k, mask),
                                                  _mm512_maskz_loadu_ps(mask, t->x[i] + k),
                                                  acc[i][j], mask);
    }
    UNROLL
    for (int i = 0; i < n_x; i++)
        for (int j = 0; j < n_w; j += 4) {
            __m128 sum = sum_4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]);
            if (scaled) sum = _mm_mul_ps(_mm_set1_ps(t->scale), sum);
            __mmask8 mask = (__mmask8)((1u << MIN(4, MAX(t->n_rows - j, 0))) - 1);
            _mm_mask_storeu_ps(t->out + i * t->out_stride + j, mask, sum);
        }
}

typedef void tile_fn(const struct tile *t);

#define TILE(type, bytes, n_w, n_x)                                       \
    static void tile_##type##_##n_x(const struct tile *t) {               \
        tile_dot(t, load_##type, bytes, n_w, n_x, false);                 \
    }
#define TILES(type, bytes)                                                                         \
    TILE(type, bytes, 8, 1)                                                                        \
    TILE(type, bytes, 8, 2) TILE(type, bytes, 4, 3) TILE(type, bytes, 4, 4)                        \
        TILE(type, bytes, 4, 5)                                                                    \
            TILE(type, bytes, 4, 6) static tile_fn *const tiles_##type[COLS] = {                   \
                tile_##type##_1, tile_##type##_2, tile_##type##_3,                                 \
                tile_##type##_4, tile_##type##_5, tile_##type##_6,                                 \
            };
TILES(f32, 4)
TILES(f16, 2)
TILES(bf16, 2)

static int rows_of(int n_x) {
    return n_x <= 2 ? 8 : 4;
}

#include "kernels/cpu/mm_float.inc"

void mm_float_avx512(const struct mm_tile *t) {
    multiply(t);
}
#endif
