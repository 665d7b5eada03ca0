/* Quantised matrix product by panels, with AVX2: 16 weight rows x 256 columns as 16-bit integers, the
 * sub-block scales multiplied in (4096 at most), with the row as the lane; vpmaddwd multiplies two
 * columns of eight rows by a broadcast pair of activations. So every type with blocks of 256 is the
 * same plain sum, and a block of 32 only differs by having its own f32 scale.
 *
 * Rows are decoded in the order of memory and transposed afterwards, dword by dword. */
#include "kernels/cpu/mm_avx2.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/mm_codes_avx2.h"
#include "kernels/cpu/mm_generic.h"

enum { PANEL_ROWS = 16, PANEL_K = 256, TOKENS_MAX = 4 };

struct panel {
    int16_t q[PANEL_K / 2][2][16];                 /* [pair of columns][rows 0..7, 8..15][row, column] */
    int16_t min[8][2][16];                         /* the same of sub-blocks' minima */
    float d[8][PANEL_ROWS];                        /* per 32 columns, or [0] per 256 */
    float dmin[PANEL_ROWS];
};

/* An activation row's part of a panel. */
struct token {
    int16_t q[PANEL_K];
    int16_t sum[16];                               /* for the minima */
    float d[8];
};

struct sums {
    float f[PANEL_ROWS];
};

_Static_assert((sizeof(struct panel) | sizeof(struct token) | sizeof(struct sums)) % 32 == 0,
               "they lie behind one another in the scratch and are read by aligned vectors");

/* ---- decoding a row: 256 columns, or n_k with blocks of 32 ---- */

/* Only what the type has is set: d[0] for blocks of 256, minima and dmin where there are any. */
struct decoded {
    _Alignas(32) int16_t q[PANEL_K];
    int16_t min[16];
    float d[8], dmin;
};

INLINE void store(int16_t *to, __m256i v) {
    _mm256_store_si256((__m256i *)(void *)to, v);
}

INLINE float half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}

/* 32 signed bytes. */
INLINE void put_bytes(int16_t *to, __m256i v) {
    store(to, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)));
    store(to + 16, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1)));
}

/* 32 unsigned codes, less zero, times a scale for each half. */
INLINE void put_codes(int16_t *to, __m256i v, int zero, __m256i scale0, __m256i scale1) {
    __m256i a = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(v)),
            b = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(v, 1));
    if (zero) {
        a = _mm256_sub_epi16(a, _mm256_set1_epi16((short)zero));
        b = _mm256_sub_epi16(b, _mm256_set1_epi16((short)zero));
    }
    store(to, _mm256_mullo_epi16(a, scale0));
    store(to + 16, _mm256_mullo_epi16(b, scale1));
}

static void decode_q8_0(const uint8_t *p, int n_k, struct decoded *to) {
    for (int b = 0; b < n_k / 32; b++, p += 34) {
        put_bytes(to->q + 32 * b, _mm256_loadu_si256((const void *)(p + 2)));
        to->d[b] = half(p);
    }
}

INLINE __m256i block_nibbles(const uint8_t *p) {
    __m128i v = _mm_loadu_si128((const void *)p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
}

static void decode_q4_0(const uint8_t *p, int n_k, struct decoded *to) {
    for (int b = 0; b < n_k / 32; b++, p += 18) {
        put_bytes(to->q + 32 * b, _mm256_sub_epi8(block_nibbles(p + 2), _mm256_set1_epi8(8)));
        to->d[b] = half(p);
    }
}

static void decode_mxfp4(const uint8_t *p, int n_k, struct decoded *to) {
    const __m256i doubled =
        both_lanes(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    for (int b = 0; b < n_k / 32; b++, p += 17) {
        put_bytes(to->q + 32 * b, _mm256_shuffle_epi8(doubled, block_nibbles(p + 1)));
        to->d[b] = mm_mxfp4_scale(p[0]);
    }
}

/* Eight vectors of codes with a scale per 16 values, or per 32. */
#define DECODE_16(codes, zero)                                                                               \
    UNROLL                                                                                                   \
    for (int v = 0; v < 8; v++)                                                                              \
        put_codes(to->q + 32 * v, codes(p, v), zero, word_twice(v < 4 ? s.low : s.high, v % 4 * 2),          \
                  word_twice(v < 4 ? s.low : s.high, v % 4 * 2 + 1))
#define DECODE_32(codes)                                                                           \
    UNROLL                                                                                         \
    for (int v = 0; v < 8; v++)                                                                    \
    put_codes(to->q + 32 * v, codes(p, v), 0, word_twice(s.low, v), word_twice(s.low, v))

static void decode_q2_k(const uint8_t *p, int n_k, struct decoded *to) {
    struct scales s;
    (void)n_k;
    scales_q2_k(p, &s);
    DECODE_16(codes_q2_k, 0);
    store(to->min, _mm256_set_m128i(s.min[1], s.min[0]));
    to->d[0] = half(p + 80);
    to->dmin = half(p + 82);
}

static void decode_q3_k(const uint8_t *p, int n_k, struct decoded *to) {
    struct scales s;
    (void)n_k;
    scales_q3_k(p, &s);
    DECODE_16(codes_q3_k, 4);
    to->d[0] = half(p + 108);
}

static void decode_q4_k(const uint8_t *p, int n_k, struct decoded *to) {
    struct scales s;
    (void)n_k;
    scales_6bit(p, &s);
    DECODE_32(codes_q4_k);
    _mm_store_si128((__m128i *)(void *)to->min, s.min[0]);
    to->d[0] = half(p);
    to->dmin = half(p + 2);
}

static void decode_q5_k(const uint8_t *p, int n_k, struct decoded *to) {
    struct scales s;
    (void)n_k;
    scales_6bit(p, &s);
    DECODE_32(codes_q5_k);
    _mm_store_si128((__m128i *)(void *)to->min, s.min[0]);
    to->d[0] = half(p);
    to->dmin = half(p + 2);
}

static void decode_q6_k(const uint8_t *p, int n_k, struct decoded *to) {
    struct scales s;
    (void)n_k;
    scales_q6_k(p, &s);
    DECODE_16(codes_q6_k, 32);
    to->d[0] = half(p + 208);
}

static void decode_iq2_xxs(const uint8_t *p, int n_k, struct decoded *to) {
    (void)n_k;
    UNROLL
    for (int g = 0; g < 8; g++) {
        const uint8_t *group = p + 2 + 8 * g;
        __m256i v = _mm256_sign_epi8(iq2_magnitudes(group), iq2_signs(group)), scale = iq2_scale(group);
        store(to->q + 32 * g, _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)), scale));
        store(to->q + 32 * g + 16,
              _mm256_mullo_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1)), scale));
    }
    to->d[0] = half(p) * 0.125f;
}

static const struct panel_type {
    void (*decode)(const uint8_t *p, int n_k, struct decoded *to);
    int bytes;                                     /* of 256 columns */
    int n_d;                                       /* f32 scales of 256 columns */
    int n_min;                                     /* pairs of minima */
} types[DTYPE_IDS] = {
    [DTYPE_Q8_0] = { decode_q8_0, 272, 8, 0 },
    [DTYPE_Q4_0] = { decode_q4_0, 144, 8, 0 },
    [DTYPE_MXFP4] = { decode_mxfp4, 136, 8, 0 },
    [DTYPE_Q2_K] = { decode_q2_k, 84, 1, 8 },
    [DTYPE_Q3_K] = { decode_q3_k, 110, 1, 0 },
    [DTYPE_Q4_K] = { decode_q4_k, 144, 1, 4 },
    [DTYPE_Q5_K] = { decode_q5_k, 176, 1, 4 },
    [DTYPE_Q6_K] = { decode_q6_k, 210, 1, 0 },
    [DTYPE_IQ2_XXS] = { decode_iq2_xxs, 66, 1, 0 },
};

/* ---- from rows to a panel ---- */

/* to[j], step 32 words apart: dword j of each of eight rows. */
INLINE void transpose_8(const int16_t *from, int64_t stride, int16_t *to) {
    __m256i v[8], t[8];
    UNROLL
    for (int i = 0; i < 8; i++) v[i] = _mm256_load_si256((const void *)(from + i * stride));
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL
    for (int h = 0; h < 8; h += 4)
        for (int i = 0; i < 2; i++) {
            v[h + 2 * i] = _mm256_unpacklo_epi64(t[h + i], t[h + 2 + i]);
            v[h + 2 * i + 1] = _mm256_unpackhi_epi64(t[h + i], t[h + 2 + i]);
        }
    UNROLL
    for (int i = 0; i < 4; i++) {
        store(to + 32 * i, _mm256_permute2x128_si256(v[i], v[4 + i], 0x20));
        store(to + 32 * (4 + i), _mm256_permute2x128_si256(v[i], v[4 + i], 0x31));
    }
}

static void panel_set(struct panel *p, const struct panel_type *type,
                      const uint8_t *const row[PANEL_ROWS], int n_k) {
    struct decoded rows[8];
    for (int c = 0; c < 2; c++) {
        for (int r = 0; r < 8; r++) {
            type->decode(row[8 * c + r], n_k, &rows[r]);
            for (int b = 0; b < MIN(type->n_d, n_k / 32); b++) p->d[b][8 * c + r] = rows[r].d[b];
            if (type->n_min) p->dmin[8 * c + r] = rows[r].dmin;
        }
        for (int k = 0; k < n_k; k += 16) transpose_8(rows[0].q + k, sizeof rows[0] / 2, p->q[k / 2][c]);
        if (type->n_min) transpose_8(rows[0].min, sizeof rows[0] / 2, p->min[0][c]);
    }
}

/* ---- products ---- */

INLINE __m256i broadcast(const int16_t *pair) {
    int32_t w;
    memcpy(&w, pair, 4);
    return _mm256_set1_epi32(w);
}

INLINE __m256i row_pairs(const int16_t *p) {
    return _mm256_load_si256((const void *)p);
}

INLINE void dot_columns(const struct panel *p, const struct token *x, int first, int n, int n_t,
                        __m256i acc[2][TOKENS_MAX]) {
    for (int k = first; k < first + n; k++) {
        __m256i w0 = row_pairs(p->q[k][0]), w1 = row_pairs(p->q[k][1]);
        UNROLL
        for (int t = 0; t < n_t; t++) {
            __m256i q = broadcast(x[t].q + 2 * k);
            acc[0][t] = _mm256_add_epi32(acc[0][t], _mm256_madd_epi16(w0, q));
            acc[1][t] = _mm256_add_epi32(acc[1][t], _mm256_madd_epi16(w1, q));
            /* or all loads come first: a spill */
            __asm__ volatile("" : "+x"(acc[0][t]), "+x"(acc[1][t]) : : "memory");
        }
    }
}

INLINE void add_scaled(float *f, __m256i isum, const float *d, float dx) {
    __m256 scale = _mm256_mul_ps(_mm256_load_ps(d), _mm256_set1_ps(dx));
    _mm256_store_ps(f, _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), scale, _mm256_load_ps(f)));
}

INLINE void subtract_minima(float *f, const struct panel *p, const struct token *x, int c, int n_min) {
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < n_min; i++)
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(row_pairs(p->min[i][c]), broadcast(x->sum + 2 * i)));
    __m256 scale = _mm256_mul_ps(_mm256_load_ps(p->dmin + 8 * c), _mm256_set1_ps(x->d[0]));
    _mm256_store_ps(f, _mm256_fnmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_load_ps(f)));
}

/* len: columns of a block; n: of the panel. */
INLINE void micro(const struct panel *p, const struct token *x, struct sums *sums, int len, int n,
                  int n_min, int n_t) {
    for (int b = 0; b < n / len; b++) {
        __m256i acc[2][TOKENS_MAX];
        UNROLL
        for (int t = 0; t < n_t; t++) acc[0][t] = acc[1][t] = _mm256_setzero_si256();
        dot_columns(p, x, len / 2 * b, len / 2, n_t, acc);
        UNROLL
        for (int t = 0; t < n_t; t++) {
            add_scaled(sums[t].f, acc[0][t], p->d[b], x[t].d[b]);
            add_scaled(sums[t].f + 8, acc[1][t], p->d[b] + 8, x[t].d[b]);
        }
        for (int t = 0; t < (n_min ? n_t : 0); t++) {
            subtract_minima(sums[t].f, p, &x[t], 0, n_min);
            subtract_minima(sums[t].f + 8, p, &x[t], 1, n_min);
        }
    }
}

typedef void micro_kernel(const struct panel *p, const struct token *x, struct sums *sums, int n, int n_min);

#define MICRO(n_t)                                                                                 \
    static void micro_32_##n_t(const struct panel *p, const struct token *x, struct sums *sums,    \
                               int n, int n_min) {                                                 \
        (void)n_min;                                                                               \
        micro(p, x, sums, 32, n, 0, n_t);                                                          \
    }                                                                                              \
    static void micro_256_##n_t(const struct panel *p, const struct token *x, struct sums *sums,   \
                                int n, int n_min) {                                                \
        micro(p, x, sums, PANEL_K, n, n_min, n_t);                                                 \
    }
MICRO(1)
MICRO(2)
MICRO(3)
MICRO(4)

static micro_kernel *const micros[2][TOKENS_MAX] = {
    { micro_32_1, micro_32_2, micro_32_3, micro_32_4 },
    { micro_256_1, micro_256_2, micro_256_3, micro_256_4 },
};

/* n_t tokens against n_k columns. */
static void panel_dot(const struct panel_type *type, const struct panel *p, const struct token *x,
                      struct sums *sums, int n_t, int n_k) {
    micros[type->n_d == 1][n_t - 1](p, x, sums, n_k, type->n_min);
}

/* ---- activations ---- */

static void token_set(struct token *to, const struct mm_tile *t, const struct panel_type *type, int64_t row,
                      int64_t k, int n_k) {
    const struct act *x = t->x;
    const int8_t *q = x->q + row * t->n_in + k;
    for (int i = 0; i < n_k; i += 16)
        store(to->q + i, _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(q + i))));
    if (t->kind == ACT_Q8_0) {
        for (int b = 0; b < n_k / 32; b++) to->d[b] = x->d[(row * t->n_in + k) / 32 + b];
        return;
    }
    const int32_t *sum = x->sum + (row * t->n_in + k) / 16;
    bool by_32 = type->n_min == 4;
    to->d[0] = x->d[(row * t->n_in + k) / 256];
    for (int i = 0; i < (by_32 ? 8 : 16); i++)
        to->sum[i] = (int16_t)(by_32 ? sum[2 * i] + sum[2 * i + 1] : sum[i]);
}

/* ---- driver ---- */

#include "kernels/cpu/mm_panel.inc"

/* Lines of the next panel, into the L2. */
static void fetch(const uint8_t *const row[PANEL_ROWS], int bytes) {
    for (int r = 0; r < PANEL_ROWS; r++)
        for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char *)row[r] + 2 * bytes + i, _MM_HINT_T1);
}

static void job_rows(const struct job *job, int j) {
    const struct mm_tile *t = job->t;
    const struct token *tokens = job->tokens;
    const uint8_t *row[PANEL_ROWS];
    for (int r = 0; r < PANEL_ROWS; r++) row[r] = t->w + (int64_t)MIN(j + r, t->n_w - 1) * t->row_bytes;
    memset(job->sums, 0, (size_t)job->n_x * sizeof *job->sums);
    for (int64_t k = 0; k < t->n_in; k += PANEL_K, tokens += job->n_x) {
        int n_k = (int)MIN(PANEL_K, t->n_in - k);
        if (k + 2 * PANEL_K < t->n_in) fetch(row, job->type->bytes);
        panel_set(job->panel, job->type, row, n_k);
        for (int r = 0; r < PANEL_ROWS; r++) row[r] += job->type->bytes;
        job_panel(job, tokens, n_k);
    }
    for (int i = 0; i < job->n_x; i++)
        memcpy(t->out + (job->first + i) * t->out_stride + j, job->sums[i].f,
               (size_t)MIN(PANEL_ROWS, t->n_w - j) * sizeof(float));
}

void mm_panel_avx2(const struct mm_tile *t) {
    CHECK(types[t->type].decode);
    multiply(t, &types[t->type]);
}
#endif
