/* dot16 products with AVX2: two vectors are the 16 lanes of the definition. A tile is 2 rows x 3 rows
 * of running sums (4 x 1 for a single activation); F16 and BF16 become f32 on the way in, quantised
 * types are decoded first. Attention's scores are the same product. */
#include "kernels/cpu/mm_avx2.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/inline.h"

#include <immintrin.h>

enum { ROWS_MAX = 4, COLS = 3 };

struct tile {
    const uint8_t *w[ROWS_MAX];
    const float *x[COLS];
    float *out;                                    /* of the first weight row, first activation row */
    int64_t n, out_stride;
    int n_rows;                                  /* rows that exist; pointers of the others repeat the last */
    float scale;
};

INLINE __m256 load_f32(const uint8_t *w, int64_t k) {
    return _mm256_loadu_ps((const float *)(const void *)w + k);
}

INLINE __m256 load_f16(const uint8_t *w, int64_t k) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)(w + 2 * k)));
}

INLINE __m256 load_bf16(const uint8_t *w, int64_t k) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(w + 2 * k))), 16));
}

INLINE float at_f32(const uint8_t *w, int64_t k) {
    float x;
    memcpy(&x, w + 4 * k, 4);
    return x;
}

INLINE float at_f16(const uint8_t *w, int64_t k) {
    uint16_t h;
    memcpy(&h, w + 2 * k, 2);
    return _cvtsh_ss(h);
}

INLINE float at_bf16(const uint8_t *w, int64_t k) {
    uint16_t h;
    memcpy(&h, w + 2 * k, 2);
    return bf16_to_f32(h);
}

struct format {
    __m256 (*load)(const uint8_t *w, int64_t k);
    float (*at)(const uint8_t *w, int64_t k);
    int bytes;
};

INLINE float lanes_sum(__m256 low, __m256 high) {
    __m256 h = _mm256_add_ps(low, high);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

/* The sum with a tail of n values that start at k. */
static float lanes_sum_tail(__m256 low, __m256 high, const struct tile *t, struct format format,
                            int j, int i, int64_t k) {
    float lane[16];
    _mm256_storeu_ps(lane, low);
    _mm256_storeu_ps(lane + 8, high);
    for (int l = 0; k + l < t->n; l++)
        lane[l] = __builtin_fmaf(format.at(t->w[j], k + l), t->x[i][k + l], lane[l]);
    return lanes_sum(_mm256_loadu_ps(lane), _mm256_loadu_ps(lane + 8));
}

INLINE void tile_dot(const struct tile *t, struct format format, int n_w, int n_x, bool scaled) {
    __m256 low[COLS][ROWS_MAX], high[COLS][ROWS_MAX];
    int64_t k = 0;
    UNROLL
    for (int i = 0; i < n_x; i++) {
        UNROLL
        for (int j = 0; j < n_w; j++) low[i][j] = high[i][j] = _mm256_setzero_ps();
    }
    for (; k + 16 <= t->n; k += 16) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            __m256 w[ROWS_MAX];
            UNROLL
            for (int j = 0; j < n_w; j++) w[j] = format.load(t->w[j], k + 8 * h);
            UNROLL
            for (int i = 0; i < n_x; i++) {
                __m256 x = _mm256_loadu_ps(t->x[i] + k + 8 * h);
                UNROLL
                for (int j = 0; j < n_w; j++) {
                    if (h == 0) low[i][j] = _mm256_fmadd_ps(w[j], x, low[i][j]);
                    else high[i][j] = _mm256_fmadd_ps(w[j], x, high[i][j]);
                }
            }
        }
        if (n_x == 1 && k * format.bytes % 64 == 0) {
            UNROLL
            for (int j = 0; j < n_w; j++)
                _mm_prefetch((const char *)t->w[j] + k * format.bytes + 1024, _MM_HINT_T1);
        }
    }
    UNROLL
    for (int i = 0; i < n_x; i++) {
        UNROLL
        for (int j = 0; j < n_w; j++) {
            float sum = k < t->n ? lanes_sum_tail(low[i][j], high[i][j], t, format, j, i, k)
                                 : lanes_sum(low[i][j], high[i][j]);
            if (j < t->n_rows) t->out[i * t->out_stride + j] = scaled ? t->scale * sum : sum;
        }
    }
}

typedef void tile_fn(const struct tile *t);

#define TILES(type, bytes)                                                                         \
    static void tile_##type##_1(const struct tile *t) {                                            \
        tile_dot(t, (struct format){ load_##type, at_##type, bytes }, 4, 1, false);                \
    }                                                                                              \
    static void tile_##type##_2(const struct tile *t) {                                            \
        tile_dot(t, (struct format){ load_##type, at_##type, bytes }, 2, 2, false);                \
    }                                                                                              \
    static void tile_##type##_3(const struct tile *t) {                                            \
        tile_dot(t, (struct format){ load_##type, at_##type, bytes }, 2, 3, false);                \
    }                                                                                              \
    static tile_fn *const tiles_##type[COLS] = { tile_##type##_1, tile_##type##_2,                 \
                                                 tile_##type##_3 };
TILES(f32, 4)
TILES(f16, 2)
TILES(bf16, 2)

static int rows_of(int n_x) {
    return n_x == 1 ? 4 : 2;
}

#include "kernels/cpu/mm_float.inc"

void mm_float_avx2(const struct mm_tile *t) {
    multiply(t);
}

/* ---- attention ---- */

static void tile_scores_1(const struct tile *t) {
    tile_dot(t, (struct format){ load_f32, at_f32, 4 }, 2, 1, true);
}

static void tile_scores_3(const struct tile *t) {
    tile_dot(t, (struct format){ load_f32, at_f32, 4 }, 2, 3, true);
}

/* The KV rows are the tile's weights, the heads its activations. */
void attn_scores_avx2(float *z, int64_t z_stride, const float *q, int64_t q_stride,
                      const float *rows, int64_t row_stride, int n_head, int n_rows, int dim,
                      float scale) {
    struct tile tile = { .n = dim, .out_stride = z_stride, .scale = scale };
    for (int r = 0; r < n_rows; r += 2) {          /* two rows stay in the first cache, the heads stream by */
        tile_rows(&tile, (const uint8_t *)(rows + r * row_stride), row_stride * 4, MIN(2, n_rows - r));
        for (int h = 0; h < n_head;) {
            int n = h + COLS <= n_head ? COLS : 1;
            for (int i = 0; i < n; i++) tile.x[i] = q + (h + i) * q_stride;
            tile.out = z + h * z_stride + r;
            (n == 1 ? tile_scores_1 : tile_scores_3)(&tile);
            h += n;
        }
    }
}

/* n_h heads x 32 dimensions in registers, rows one after the other. */
INLINE void mix(float *o, int64_t o_stride, const float *p, int64_t p_stride, const float *rows,
                int64_t row_stride, int n_rows, int n_h) {
    __m256 sum[3][4];
    UNROLL
    for (int h = 0; h < n_h; h++) {
        UNROLL
        for (int i = 0; i < 4; i++) sum[h][i] = _mm256_loadu_ps(o + h * o_stride + 8 * i);
    }
    for (int r = 0; r < n_rows; r++) {
        const float *row = rows + r * row_stride;
        UNROLL
        for (int h = 0; h < n_h; h++) {
            __m256 weight = _mm256_set1_ps(p[h * p_stride + r]);
            UNROLL
            for (int i = 0; i < 4; i++)
                sum[h][i] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(row + 8 * i), sum[h][i]);
        }
    }
    UNROLL
    for (int h = 0; h < n_h; h++) {
        UNROLL
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(o + h * o_stride + 8 * i, sum[h][i]);
    }
}

static void mix_rest(float *o, const float *p, const float *rows, int64_t row_stride, int n_rows, int n) {
    for (int d = 0; d < n; d++)
        for (int r = 0; r < n_rows; r++) o[d] = __builtin_fmaf(p[r], rows[r * row_stride + d], o[d]);
}

void attn_mix_avx2(float *o, int64_t o_stride, const float *p, int64_t p_stride, const float *rows,
                   int64_t row_stride, int n_head, int n_rows, int dim) {
    for (int d = 0; d < dim; d += 32)
        for (int h = 0; h < n_head;) {
            float *to = o + h * o_stride + d;
            if (d + 32 > dim) {
                mix_rest(to, p + h * p_stride, rows + d, row_stride, n_rows, dim - d);
                h++;
            } else if (h + 3 <= n_head) {
                mix(to, o_stride, p + h * p_stride, p_stride, rows + d, row_stride, n_rows, 3);
                h += 3;
            } else {
                mix(to, o_stride, p + h * p_stride, p_stride, rows + d, row_stride, n_rows, 1);
                h++;
            }
        }
}
#endif
