/* Quantised matrix product by panels: for each 32 weight rows, for each 256 columns: unpack the panel
 * (it stays in L1), then run it against all activation rows, 6 at a time. The activation rows are
 * copied once per call into the order of use. */
#include "kernels/cpu/mm_panel_avx512.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/mm_avx512.h"
#include "kernels/cpu/mm_iq2_avx512.h"

/* Running sums of one activation row against the rows of a panel. */
struct sums {
    float f[2][16];
};

INLINE __m512i broadcast(const void *p) {
    int32_t w;
    memcpy(&w, p, 4);
    return _mm512_set1_epi32(w);
}

/* acc[t] += columns of dwords first .. first + n. */
INLINE void dot_columns(const struct panel *p, const struct token *x, int first, int n, int n_t,
                        __m512i acc[2][TOKENS_MAX]) {
    for (int k = first; k < first + n; k++) {
        __m512i w0 = _mm512_load_si512(p->q[k][0]), w1 = _mm512_load_si512(p->q[k][1]);
        UNROLL
        for (int t = 0; t < n_t; t++) {
            __m512i q = broadcast(x[t].q + 4 * k);
            acc[0][t] = _mm512_dpbusd_epi32(acc[0][t], w0, q);
            acc[1][t] = _mm512_dpbusd_epi32(acc[1][t], w1, q);
        }
    }
}

/* f = fma((float)isum, d * dx, f) */
INLINE __m512 scaled(__m512i isum, __m512 d, __m512 dx, __m512 f) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum), _mm512_mul_ps(d, dx), f);
}

INLINE void micro_32(const struct panel *p, const struct token *x, struct sums *sums, int n_blocks, int n_t) {
    __m512 f[2][TOKENS_MAX];
    UNROLL
    for (int t = 0; t < n_t; t++) {
        f[0][t] = _mm512_load_ps(sums[t].f[0]);
        f[1][t] = _mm512_load_ps(sums[t].f[1]);
    }
    for (int b = 0; b < n_blocks; b++) {
        __m512i acc[2][TOKENS_MAX];
        UNROLL
        for (int t = 0; t < n_t; t++) acc[0][t] = acc[1][t] = broadcast(x[t].start + b);
        dot_columns(p, x, 8 * b, 8, n_t, acc);
        __m512 d0 = _mm512_load_ps(p->d[b]), d1 = _mm512_load_ps(p->d[b] + 16);
        UNROLL
        for (int t = 0; t < n_t; t++) {
            __m512 dx = _mm512_set1_ps(x[t].d[b]);
            f[0][t] = scaled(acc[0][t], d0, dx, f[0][t]);
            f[1][t] = scaled(acc[1][t], d1, dx, f[1][t]);
        }
    }
    UNROLL
    for (int t = 0; t < n_t; t++) {
        _mm512_store_ps(sums[t].f[0], f[0][t]);
        _mm512_store_ps(sums[t].f[1], f[1][t]);
    }
}

/* sub: dwords per sub-block (64: the whole block, no scale); n_min: pairs of minima. */
INLINE void micro_256(const struct panel *p, const struct token *x, struct sums *sums, int n_t,
                      int sub, int n_min) {
    __m512i acc[2][TOKENS_MAX], part[2][TOKENS_MAX];
    UNROLL
    for (int t = 0; t < n_t; t++) acc[0][t] = acc[1][t] = _mm512_setzero_si512();
    for (int s = 0; s < 64 / sub; s++) {
        UNROLL
        for (int t = 0; t < n_t; t++) part[0][t] = part[1][t] = broadcast(x[t].start + s);
        dot_columns(p, x, sub * s, sub, n_t, part);
        __m512i s0 = _mm512_load_si512(p->scale[s]), s1 = _mm512_load_si512(p->scale[s] + 16);
        UNROLL
        for (int t = 0; t < n_t; t++) {
            acc[0][t] = sub == 64 ? part[0][t]
                                  : _mm512_add_epi32(acc[0][t], _mm512_mullo_epi32(part[0][t], s0));
            acc[1][t] = sub == 64 ? part[1][t]
                                  : _mm512_add_epi32(acc[1][t], _mm512_mullo_epi32(part[1][t], s1));
        }
    }
    for (int c = 0; c < 2; c++) {
        __m512 d = _mm512_load_ps(p->d[0] + 16 * c), dmin = _mm512_load_ps(p->dmin + 16 * c);
        UNROLL
        for (int t = 0; t < n_t; t++) {
            __m512 dx = _mm512_set1_ps(x[t].d[0]), f = _mm512_load_ps(sums[t].f[c]);
            f = scaled(acc[c][t], d, dx, f);
            if (n_min) {
                __m512i msum = _mm512_setzero_si512();
                for (int i = 0; i < n_min; i++)
                    msum = _mm512_dpwssd_epi32(msum, _mm512_load_si512(p->min[i] + 16 * c),
                                               broadcast(x[t].sum + 2 * i));
                f = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum), _mm512_mul_ps(dmin, dx), f);
            }
            _mm512_store_ps(sums[t].f[c], f);
        }
    }
}

typedef void micro_kernel(const struct panel *p, const struct token *x, struct sums *sums, int n_blocks);

#define MICRO(n_t)                                                                                 \
    static void micro_32_##n_t(const struct panel *p, const struct token *x, struct sums *sums,    \
                               int n_blocks) {                                                     \
        micro_32(p, x, sums, n_blocks, n_t);                                                       \
    }                                                                                              \
    static void micro_sub32_##n_t(const struct panel *p, const struct token *x, struct sums *sums, \
                                  int n_blocks) {                                                  \
        (void)n_blocks;                                                                            \
        micro_256(p, x, sums, n_t, 8, 0);                                                          \
    }                                                                                              \
    static void micro_sub32_min_##n_t(const struct panel *p, const struct token *x,                \
                                      struct sums *sums, int n_blocks) {                           \
        (void)n_blocks;                                                                            \
        micro_256(p, x, sums, n_t, 8, 4);                                                          \
    }                                                                                              \
    static void micro_sub16_##n_t(const struct panel *p, const struct token *x, struct sums *sums, \
                                  int n_blocks) {                                                  \
        (void)n_blocks;                                                                            \
        micro_256(p, x, sums, n_t, 4, 0);                                                          \
    }                                                                                              \
    static void micro_min_##n_t(const struct panel *p, const struct token *x, struct sums *sums,   \
                                int n_blocks) {                                                    \
        (void)n_blocks;                                                                            \
        micro_256(p, x, sums, n_t, 64, 8);                                                         \
    }
MICRO(1)
MICRO(2)
MICRO(3)
MICRO(4)
MICRO(5)
MICRO(6)

#define MICROS(name) { name##_1, name##_2, name##_3, name##_4, name##_5, name##_6 }
static micro_kernel *const micros[PANEL_FORMS][TOKENS_MAX] = {
    [FORM_32] = MICROS(micro_32),
    [FORM_256_SUB32] = MICROS(micro_sub32),
    [FORM_256_SUB32_MIN] = MICROS(micro_sub32_min),
    [FORM_256_SUB16] = MICROS(micro_sub16),
    [FORM_256_MIN] = MICROS(micro_min),
};

/* n_t tokens against n_k columns. */
static void panel_dot(const struct panel_type *type, const struct panel *p, const struct token *x,
                      struct sums *sums, int n_t, int n_k) {
    micros[type->form][n_t - 1](p, x, sums, n_k / 32);
}

/* ---- activations ---- */

/* Eight sums of 32, four of them in each lane's order: even elements + odd elements of 16 sums of 16. */
INLINE __m256i pair_sums(const int32_t *s) {
    __m512i v = _mm512_loadu_si512(s);
    v = _mm512_add_epi32(v, _mm512_srli_epi64(v, 32));
    return _mm512_cvtepi64_epi32(v);
}

INLINE void put_q(struct token *to, const int8_t *q) {
    for (int i = 0; i < PANEL_K; i += 64) _mm512_store_si512(to->q + i, _mm512_loadu_si512(q + i));
}

static void token_q8_0(struct token *to, const int8_t *q, const float *d, const int32_t *sum,
                       int n_k, int zero) {
    __mmask8 mask = (__mmask8)((1u << n_k / 32) - 1);
    if (n_k == PANEL_K) put_q(to, q);
    else memcpy(to->q, q, (size_t)n_k);
    __m256i s = _mm256_maskz_loadu_epi32(mask, sum);
    _mm256_store_si256((__m256i *)(void *)to->start, _mm256_mullo_epi32(s, _mm256_set1_epi32(-zero)));
    _mm256_store_ps(to->d, _mm256_maskz_loadu_ps(mask, d));
}

static void token_q8_k(struct token *to, const int8_t *q, const float *d, const int32_t *sum,
                       enum panel_form form, int zero) {
    if (form == FORM_256_SUB32)                                        /* IQ2_XXS has its own order */
        for (int i = 0; i < PANEL_K; i += 64)
            _mm512_store_si512(to->q + i, iq2_order(_mm512_loadu_si512(q + i)));
    else put_q(to, q);
    to->d[0] = *d;
    __m256i by_32 = pair_sums(sum);
    if (form == FORM_256_SUB16)
        _mm512_store_si512(to->start,
                           _mm512_mullo_epi32(_mm512_loadu_si512(sum), _mm512_set1_epi32(-zero)));
    else
        _mm256_store_si256((__m256i *)(void *)to->start,
                           _mm256_mullo_epi32(by_32, _mm256_set1_epi32(-zero)));
    if (form == FORM_256_MIN)
        _mm256_store_si256((__m256i *)(void *)to->sum,
                           _mm512_cvtepi32_epi16(_mm512_loadu_si512(sum)));
    else _mm_store_si128((__m128i *)(void *)to->sum, _mm256_cvtepi32_epi16(by_32));
}

/* Row `row` of the activations, columns k..k+n_k. */
static void token_set(struct token *to, const struct mm_tile *t, const struct panel_type *type, int64_t row,
                      int64_t k, int n_k) {
    const struct act *act = t->x;
    const int8_t *q = act->q + row * act->n_in + k;
    if (act->kind == ACT_Q8_0) {
        int64_t at = (row * act->n_in + k) / 32;
        token_q8_0(to, q, act->d + at, act->sum + at, n_k, type->zero);
    } else {
        int64_t at = (row * act->n_in + k) / 256;
        token_q8_k(to, q, act->d + at, act->sum + 16 * at, type->form, type->zero);
    }
}

/* ---- driver ---- */

#include "kernels/cpu/mm_panel.inc"

/* Weights are fetched into the L2 this far ahead of use: 32 rows at once are too many streams for the
 * hardware's prefetcher. */
enum { AHEAD = 512 };

/* Asks for bytes `from` up to `to` of every row; what is past a row's end is at the start of the row
 * `jump` + row_bytes on. */
static int64_t fetch(const uint8_t *const row[PANEL_ROWS], int64_t row_bytes, int64_t jump,
                     int64_t from, int64_t to) {
    for (; from < to; from += 64) {
        int64_t at = from < row_bytes ? from : from + jump;
        for (int r = 0; r < PANEL_ROWS; r++) _mm_prefetch((const char *)row[r] + at, _MM_HINT_T1);
    }
    return from;
}

static void job_rows(const struct job *job, int j) {
    const struct mm_tile *t = job->t;
    const struct token *tokens = job->tokens;
    const uint8_t *row[PANEL_ROWS], *at[PANEL_ROWS];
    int n = MIN(PANEL_ROWS, t->n_w - j), bytes = job->type->block_bytes;
    for (int r = 0; r < PANEL_ROWS; r++)
        row[r] = at[r] = t->w + (int64_t)MIN(j + r, t->n_w - 1) * t->row_bytes;
    memset(job->sums, 0, (size_t)job->n_x * sizeof *job->sums);
    /* at the end nothing new */
    int64_t jump = j + PANEL_ROWS < t->n_w ? (PANEL_ROWS - 1) * t->row_bytes : -t->row_bytes;
    int64_t fetched = j == 0 ? 0 : AHEAD;
    for (int64_t k = 0, i = 0; k < t->n_in; k += PANEL_K, i++, tokens += job->n_x) {
        int n_k = (int)MIN(PANEL_K, t->n_in - k);
        fetched = fetch(row, t->row_bytes, jump, fetched, i * bytes + AHEAD);
        for (int c = 0; c < 2; c++) job->type->unpack(job->panel, c, at + 16 * c, n_k);
        for (int r = 0; r < PANEL_ROWS; r++) at[r] += bytes;
        job_panel(job, tokens, n_k);
    }
    __mmask16 mask[2] = { (__mmask16)((1u << MIN(n, 16)) - 1), (__mmask16)((1u << MAX(n - 16, 0)) - 1) };
    for (int i = 0; i < job->n_x; i++)
        for (int c = 0; c < 2; c++) {
            float *out = t->out + (job->first + i) * t->out_stride + j + 16 * c;
            _mm512_mask_storeu_ps(out, mask[c], _mm512_load_ps(job->sums[i].f[c]));
        }
}

void mm_panel_avx512(const struct mm_tile *t) {
    const struct panel_type *type = panel_type_of(t->type);
    CHECK(type);
    multiply(t, type);
}
#endif
