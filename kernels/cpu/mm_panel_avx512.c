/* Quantised matrix product by panels: for each 32 weight rows, for each 256 columns: unpack the panel (it stays in L1), then run
 * it against all activation rows, 6 at a time. Running sums wait in the output between two panels. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "common/base/check.h"
#include "kernels/cpu/mm_avx512.h"
#include "kernels/cpu/mm_panel_avx512.h"

#define INLINE static inline __attribute__((always_inline))

/* What the micro-kernel reads of up to six activation rows; pointers to the rows' starts. */
struct tokens {
    const int8_t *q[TOKENS_MAX];
    const float *d[TOKENS_MAX];
    const int32_t *start[TOKENS_MAX];              /* -zero * sum of q, per sub-block */
    const int16_t *sum[TOKENS_MAX];                /* sums that the minima multiply */
    float *out[TOKENS_MAX];
    int n;
};

struct position {
    int64_t k;                                     /* first column */
    int n_k;
    __mmask16 mask[2];                             /* rows that exist */
};

INLINE __m512i broadcast(const void *p) {
    int32_t w;
    memcpy(&w, p, 4);
    return _mm512_set1_epi32(w);
}

INLINE __m512 sum_load(const struct position *at, const float *out, int c) {
    return at->k == 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(at->mask[c], out + 16 * c);
}

/* acc[t] += columns of dwords first .. first + n. */
INLINE void dot_columns(const struct panel *p, const struct tokens *x, const struct position *at, int first, int n, int n_t,
                        __m512i acc[2][TOKENS_MAX]) {
    for (int k = first; k < first + n; k++) {
        __m512i w0 = _mm512_load_si512(p->q[k][0]), w1 = _mm512_load_si512(p->q[k][1]);
#pragma GCC unroll 6
        for (int t = 0; t < n_t; t++) {
            __m512i q = broadcast(x->q[t] + at->k + 4 * k);
            acc[0][t] = _mm512_dpbusd_epi32(acc[0][t], w0, q);
            acc[1][t] = _mm512_dpbusd_epi32(acc[1][t], w1, q);
        }
    }
}

/* f = fma((float)isum, d * dx, f) */
INLINE __m512 scaled(__m512i isum, __m512 d, __m512 dx, __m512 f) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum), _mm512_mul_ps(d, dx), f);
}

INLINE void micro_32(const struct panel *p, const struct tokens *x, const struct position *at, int n_t) {
    __m512 f[2][TOKENS_MAX];
#pragma GCC unroll 6
    for (int t = 0; t < n_t; t++)
        for (int c = 0; c < 2; c++) f[c][t] = sum_load(at, x->out[t], c);
    for (int b = 0; b < at->n_k / 32; b++) {
        __m512i acc[2][TOKENS_MAX];
#pragma GCC unroll 6
        for (int t = 0; t < n_t; t++) acc[0][t] = acc[1][t] = broadcast(x->start[t] + at->k / 32 + b);
        dot_columns(p, x, at, 8 * b, 8, n_t, acc);
        __m512 d0 = _mm512_load_ps(p->d[b]), d1 = _mm512_load_ps(p->d[b] + 16);
#pragma GCC unroll 6
        for (int t = 0; t < n_t; t++) {
            __m512 dx = _mm512_set1_ps(x->d[t][at->k / 32 + b]);
            f[0][t] = scaled(acc[0][t], d0, dx, f[0][t]);
            f[1][t] = scaled(acc[1][t], d1, dx, f[1][t]);
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < n_t; t++)
        for (int c = 0; c < 2; c++) _mm512_mask_storeu_ps(x->out[t] + 16 * c, at->mask[c], f[c][t]);
}

/* sub: dwords per sub-block (64: the whole block, no scale); n_min: pairs of minima. */
INLINE void micro_256(const struct panel *p, const struct tokens *x, const struct position *at, int n_t, int sub, int n_min) {
    __m512i acc[2][TOKENS_MAX], part[2][TOKENS_MAX];
#pragma GCC unroll 6
    for (int t = 0; t < n_t; t++) acc[0][t] = acc[1][t] = _mm512_setzero_si512();
    for (int s = 0; s < 64 / sub; s++) {
#pragma GCC unroll 6
        for (int t = 0; t < n_t; t++) part[0][t] = part[1][t] = broadcast(x->start[t] + at->k / (4 * sub) + s);
        dot_columns(p, x, at, sub * s, sub, n_t, part);
        __m512i s0 = _mm512_load_si512(p->scale[s]), s1 = _mm512_load_si512(p->scale[s] + 16);
#pragma GCC unroll 6
        for (int t = 0; t < n_t; t++) {
            acc[0][t] = sub == 64 ? part[0][t] : _mm512_add_epi32(acc[0][t], _mm512_mullo_epi32(part[0][t], s0));
            acc[1][t] = sub == 64 ? part[1][t] : _mm512_add_epi32(acc[1][t], _mm512_mullo_epi32(part[1][t], s1));
        }
    }
    for (int c = 0; c < 2; c++) {
        __m512 d = _mm512_load_ps(p->d[0] + 16 * c), dmin = _mm512_load_ps(p->dmin + 16 * c);
#pragma GCC unroll 6
        for (int t = 0; t < n_t; t++) {
            __m512 dx = _mm512_set1_ps(x->d[t][at->k / 256]), f = sum_load(at, x->out[t], c);
            f = scaled(acc[c][t], d, dx, f);
            if (n_min) {
                __m512i msum = _mm512_setzero_si512();
                for (int i = 0; i < n_min; i++)
                    msum = _mm512_dpwssd_epi32(msum, _mm512_load_si512(p->min[i] + 16 * c),
                                               broadcast(x->sum[t] + at->k / 256 * (2 * n_min) + 2 * i));
                f = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum), _mm512_mul_ps(dmin, dx), f);
            }
            _mm512_mask_storeu_ps(x->out[t] + 16 * c, at->mask[c], f);
        }
    }
}

typedef void micro_kernel(const struct panel *p, const struct tokens *x, const struct position *at);

#define MICRO(n_t)                                                                                                          \
    static void micro_32_##n_t(const struct panel *p, const struct tokens *x, const struct position *at) {                  \
        micro_32(p, x, at, n_t);                                                                                            \
    }                                                                                                                       \
    static void micro_sub32_##n_t(const struct panel *p, const struct tokens *x, const struct position *at) {               \
        micro_256(p, x, at, n_t, 8, 0);                                                                                     \
    }                                                                                                                       \
    static void micro_sub32_min_##n_t(const struct panel *p, const struct tokens *x, const struct position *at) {           \
        micro_256(p, x, at, n_t, 8, 4);                                                                                     \
    }                                                                                                                       \
    static void micro_sub16_##n_t(const struct panel *p, const struct tokens *x, const struct position *at) {               \
        micro_256(p, x, at, n_t, 4, 0);                                                                                     \
    }                                                                                                                       \
    static void micro_min_##n_t(const struct panel *p, const struct tokens *x, const struct position *at) {                 \
        micro_256(p, x, at, n_t, 64, 8);                                                                                    \
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

/* ---- activations ---- */

/* Values per sum that the micro-kernel reads, given sums of 32 (Q8_0) or of 16 (Q8_K). */
static const struct {
    int start, sum;                                /* 0: none */
} forms[PANEL_FORMS] = {
    [FORM_32] = { 32, 0 },
    [FORM_256_SUB32] = { 32, 0 },
    [FORM_256_SUB32_MIN] = { 32, 32 },
    [FORM_256_SUB16] = { 16, 0 },
    [FORM_256_MIN] = { 256, 16 },
};

/* to[i] = factor * (sum of `merge` neighbours) */
static void sums_scaled(int32_t *to, const int32_t *from, int64_t n, int merge, int factor) {
    for (int64_t i = 0; i < n; i++) {
        int32_t sum = from[merge * i];
        for (int m = 1; m < merge; m++) sum += from[merge * i + m];
        to[i] = sum * factor;
    }
}

static void sums_short(int16_t *to, const int32_t *from, int64_t n, int merge) {
    for (int64_t i = 0; i < n; i++) to[i] = (int16_t)(merge == 2 ? from[2 * i] + from[2 * i + 1] : from[i]);
}

/* Bytes of scratch per activation row. */
static int64_t token_bytes(const struct mm_tile *t) {
    return ALIGN_UP(t->n_in / 16 * 4, 64) + ALIGN_UP(t->n_in / 16 * 2, 64);
}

static void tokens_add(struct tokens *x, const struct mm_tile *t, const struct panel_type *type, int64_t i, uint8_t *scratch) {
    const struct act *act = t->x;
    int64_t row = t->x_row ? t->x_row[i] : i, n_in = t->n_in;
    int32_t *start = (int32_t *)(void *)scratch;
    int16_t *sum = (int16_t *)(void *)(scratch + ALIGN_UP(n_in / 16 * 4, 64));
    int per = act->kind == ACT_Q8_0 ? 32 : 16, at = x->n++;
    const int32_t *sums = act->sum + row * (n_in / per);
    int want = forms[type->form].start;
    if (type->zero == 0) memset(start, 0, (size_t)(n_in / want) * sizeof *start);
    else if (want == per) sums_scaled(start, sums, n_in / want, 1, -type->zero);
    else sums_scaled(start, sums, n_in / want, 2, -type->zero);
    if (forms[type->form].sum == 32) sums_short(sum, sums, n_in / 32, 2);
    if (forms[type->form].sum == 16) sums_short(sum, sums, n_in / 16, 1);
    x->q[at] = act->q + row * n_in;
    x->d[at] = act->d + row * (n_in / (act->kind == ACT_Q8_0 ? 32 : 256));
    x->start[at] = start;
    x->sum[at] = sum;
    x->out[at] = t->out + i * t->out_stride;
}

/* ---- driver ---- */

enum { GROUPS_MAX = 64 };

struct job {
    const struct mm_tile *t;
    const struct panel_type *type;
    struct tokens *groups;
    int n_groups;
    struct panel *panel;
};

/* Weight rows j .. j+32 for all groups. */
static void run_rows(const struct job *job, int j) {
    const struct mm_tile *t = job->t;
    const uint8_t *row[PANEL_ROWS];
    int n = MIN(PANEL_ROWS, t->n_w - j);
    for (int r = 0; r < PANEL_ROWS; r++) row[r] = t->w + (int64_t)MIN(j + r, t->n_w - 1) * t->row_bytes;
    struct position at = { .mask = { (__mmask16)((1u << MIN(n, 16)) - 1), (__mmask16)((1u << MAX(n - 16, 0)) - 1) } };
    for (; at.k < t->n_in; at.k += PANEL_K) {
        at.n_k = (int)MIN(PANEL_K, t->n_in - at.k);
        for (int c = 0; c < 2; c++) job->type->unpack(job->panel, c, row + 16 * c, at.n_k);
        for (int r = 0; r < PANEL_ROWS; r++) row[r] += job->type->block_bytes;
        for (int g = 0; g < job->n_groups; g++) {
            const struct tokens *x = &job->groups[g];
            micros[job->type->form][x->n - 1](job->panel, x, &at);
        }
    }
    for (int g = 0; g < job->n_groups; g++)
        for (int i = 0; i < job->groups[g].n; i++) job->groups[g].out[i] += PANEL_ROWS;
}

void mm_panel_avx512(const struct mm_tile *t) {
    struct job job = { .t = t, .type = panel_type_of(t->type), .panel = t->scratch };
    CHECK(job.type && act_kind_for(t->type) == t->kind);
    uint8_t *scratch = t->scratch;
    job.groups = (struct tokens *)(void *)(scratch + ALIGN_UP(sizeof(struct panel), 64));
    uint64_t used = ALIGN_UP(sizeof(struct panel), 64) + ALIGN_UP(GROUPS_MAX * sizeof(struct tokens), 64);
    int64_t max = MIN((int64_t)(SIMD_SCRATCH - used) / 2 / token_bytes(t), GROUPS_MAX * TOKENS_MAX);
    CHECK(max >= 1);
    for (int64_t i = 0, n; i < t->n_x; i += n) {
        n = MIN(max, t->n_x - i);
        job.n_groups = (int)((n + TOKENS_MAX - 1) / TOKENS_MAX);
        for (int g = 0, done = 0; g < job.n_groups; g++) {             /* as even as possible: 7 is 4 + 3 */
            struct tokens *x = &job.groups[g];
            int end = (int)(n * (g + 1) / job.n_groups);
            for (x->n = 0; done < end; done++) tokens_add(x, t, job.type, i + done, scratch + used + done * token_bytes(t));
        }
        for (int j = 0; j < t->n_w; j += PANEL_ROWS) run_rows(&job, j);
    }
}
#endif
