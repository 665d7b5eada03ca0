/* simd - the inner loops of the CPU backend, one table per instruction set, chosen once at start.
 *
 * Every entry is defined here as arithmetic, down to the order of each rounding, and every table
 * computes exactly that: an answer depends neither on the instruction set, nor on how many rows a call
 * has, nor on how a matrix is cut into tiles. That is how promise 1 of the design (same tokens whatever
 * the split, batch, chunk or machine) holds on CPUs. All functions are single-threaded and touch only
 * their arguments.
 *
 * The two dot products
 *   dot16   lane[l] = fma(w[k], x[k], lane[l]) for k = l, l+16, l+32 ... (16 lanes, all zero at first),
 *           then lane[l] += lane[l+8] (l<8); lane[l] += lane[l+4] (l<4); lane[l] += lane[l+2]; lane[0]
 *           += lane[1]. A tail of n % 16 values touches only its own lanes. w[k] is what dtype_decode
 *           gives.
 *   dotq    weights and activations as integers per block b: acc = fma((float)isum_b, dw_b * dx_b,
 *           acc), b ascending, acc = 0 at first; isum_b is the exact integer sum over the block
 *           (sub-block scales applied in integers). Types with a minimum then do acc =
 *           fma(-(float)msum_b, dmin_b * dx_b, acc) within the same b. Per type:
 *             Q8_0    block  32  isum = sum q_w q_x                               dw = d
 *             Q4_0    block  32  isum = sum (nibble - 8) q_x                      dw = d
 *             MXFP4   block  32  isum = sum (2 * value) q_x                       dw = 2^(e-128)
 *             Q2_K    block 256  isum = sum_s (sc_s & 15) * sum q q_x             dw = d,  msum =
 *               sum_s (sc_s >> 4) * bsum_s
 *             Q3_K    block 256  isum = sum_s S_s * sum q q_x                     dw = d
 *             Q4_K Q5_K    256   isum = sum_s sc_s * sum q q_x                    dw = d,  msum =
 *               sum_s m_s * (bsum_2s + bsum_2s+1)
 *             Q6_K    block 256  isum = sum_s sc_s * sum (q - 32) q_x             dw = d
 *             IQ2_XXS block 256  isum = sum_s (2 S_s + 1) * sum (+-magnitude) q_x dw = d * 0.125
 *           The two factors dw_b * dx_b and dmin_b * dx_b are rounded to f32 before the fma. */
#ifndef KERNELS_CPU_SIMD_H
#define KERNELS_CPU_SIMD_H

#include "common/base/types.h"
#include "common/model/dtype.h"

/* How activations are prepared for a weight type. */
enum act_kind {
    ACT_F32,                                       /* f32 weights or --precision f32: dot16 */
    ACT_Q8_0,                                      /* int8 per  32: Q8_0 Q4_0 MXFP4: dotq */
    ACT_Q8_K,                                      /* int8 per 256: the K quants and IQ2_XXS: dotq */
    ACT_KINDS
};

/* Rows of activations, prepared once and read by every tile. Row r of each array starts at r * its row
 * length: f[n_in], q[n_in], d[n_in/32 or n_in/256], sum[n_in/32 (Q8_0) or n_in/16 (Q8_K)]. No alignment
 * beyond the element's (a group's rows start anywhere). */
struct act {
    enum act_kind kind;
    int64_t n_in;
    const float *f;
    int8_t *q;
    float *d;
    int32_t *sum;                                  /* sums of q over 32 (Q8_0) or over 16 (Q8_K) */
};

/* out[i * out_stride + j] = dot(weight row j, activation row x_row[i]) for i < n_x, j < n_w. */
struct mm_tile {
    enum dtype type;
    enum act_kind kind;                        /* ACT_F32 with a quantised type: decode exactly, then dot16 */
    const uint8_t *w;                              /* first weight row; rows row_bytes apart; NOT aligned */
    int64_t row_bytes, n_in;
    int n_w, n_x;
    const struct act *x;
    const int32_t *x_row;                          /* NULL: 0, 1, 2, ... */
    float *out;
    int64_t out_stride;
    void *scratch;                                 /* SIMD_SCRATCH bytes, 64-byte aligned, per thread */
};

enum {
    SIMD_SCRATCH = 1 << 20,                        /* stays inside an L2 */
    SIMD_N_IN_MAX = 65536,                         /* longest row (HC functions of Pro: 4 * 7168 = 28672) */
};

struct cpu_simd {
    const char *name;

    /* Any n_w, n_x >= 1. Fast for n_x = 1 (decode: streams the weights once at memory speed) and for
     * large n_x (prefill). */
    void (*matmul)(const struct mm_tile *t);

    /* Quantise one row of n values. Q8_0: per 32 amax = max |x|, d = amax / 127, q = clamp(round_even(x
     * / d), -127, 127), 0 when amax is 0 (the clamp acts only where d underflows). Q8_K: per 256 m =
     * the value of largest magnitude (first on ties), is = -127 / m, q = clamp(round_even(is * x),
     * -128, 127), d = 1 / is; all 0 when m is 0. Non-finite input gives unspecified but memory-safe
     * output. */
    void (*quant_q8_0)(const float *x, int64_t n, int8_t *q, float *d, int32_t *sum);
    void (*quant_q8_k)(const float *x, int64_t n, int8_t *q, float *d, int32_t *sum);

    float (*dot)(const float *a, const float *b, int64_t n);                              /* dot16 */
    /* y[i] = fma(a, x[i], y[i]) */
    void (*axpy)(float *y, float a, const float *x, int64_t n);
    /* out[i] = w[i] * (x[i] * r); w NULL: x[i] * r */
    void (*scale_mul)(float *out, const float *x, float r, const float *w, int64_t n);
    /* z[i] = f32_exp(z[i] - m) (mathf.h) */
    void (*exp_sub)(float *z, float m, int64_t n);
    /* h[i] = w * (silu(min(g, clamp)) * max(-clamp, min(u, clamp))), silu(g) = g / (1 + f32_exp(-g)) */
    void (*swiglu)(float *h, const float *g, const float *u, float clamp, float w, int64_t n);
    /* x[s][d] += ... : out[k][d] = fma over j=0..3 of m[j][k]*x[j][d], starting from post[k] * y[d]; in
     * place, n = row length */
    void (*hc_mix)(float *x, const float *y, const float *post, const float *m, int64_t n);
    /* out[d] = pre[0]*x[0][d], then fma for s = 1..3; returns nothing; streams n apart */
    void (*hc_sum)(float *out, const float *x, const float *pre, int64_t n);

    /* Compressor pooling, per element d: m = max_s score[s][d], e_s = f32_exp(score - m), den += e_s,
     * num = fma(e_s, kv[s][d], num), s ascending from 0; out = num / den */
    void (*softmax_pool)(float *out, const float *const *kv, const float *const *score, int n_slots,
                         int64_t n);
    /* s[i] = sqrtf(f32_softplus(logit[i])) */
    void (*router_score)(float *s, const float *logit, int64_t n);

    /* KV rows: n_nope values as E4M3 with one exponent per 64, then n_rot values f16 */
    void (*kv_pack)(uint8_t *row, const float *x, int n_nope, int n_rot);
    void (*kv_unpack)(float *x, const uint8_t *row, int n_nope, int n_rot);

    /* One token, a group of heads, a tile of rows: z[h * z_stride + r] = scale * dot16(q[h], row[r]) */
    void (*attn_scores)(float *z, int64_t z_stride, const float *q, int64_t q_stride,
                        const float *rows, int64_t row_stride, int n_head, int n_rows, int dim,
                        float scale);
    /* o[h][d] = fma(p[h * p_stride + r], rows[r][d], o[h][d]) for r ascending */
    void (*attn_mix)(float *o, int64_t o_stride, const float *p, int64_t p_stride,
                     const float *rows, int64_t row_stride, int n_head, int n_rows, int dim);

    /* Indexer keys, packed FP4: dim/2 code bytes (per block of 32: byte j = element j low, j+16 high),
     * then dim/32 exponents. fp4_pack rounds x (after the Hadamard) and stores; q side: codes doubled
     * to int8 (value * 2) and exponents. idx_scores: score[c] = sum_h fma(w[h], max(0, dot_hc), score),
     * h ascending from 0; dot_hc = sum over blocks b of fma((float)isum_b, s_b, dot), b ascending from
     * 0, s_b = 2^max(eq-2, -126) * 2^max(ek, -126). */
    void (*hadamard)(float *x, int dim);           /* strides 1, 2, 4 ...; then times (float)(1/sqrt(dim)) */
    void (*fp4_pack)(uint8_t *key, const float *x, int dim);
    void (*fp4_codes)(int8_t *q, int8_t *exp, const float *x, int dim);
    void (*idx_scores)(float *score, const int8_t *q, const int8_t *q_exp, const float *w,
                       int n_head, int dim, const uint8_t *keys, int64_t key_bytes, int n_keys);
};

extern const struct cpu_simd cpu_simd_generic;     /* plain C, the reference; every machine */
extern const struct cpu_simd cpu_simd_avx2;        /* AVX2 + FMA + F16C */
extern const struct cpu_simd cpu_simd_avx512;      /* F BW VL DQ VNNI VBMI (Ice Lake, Zen 4 and newer) */
extern const struct cpu_simd cpu_simd_neon;        /* ARMv8.2 dotprod + fp16 */
extern const struct cpu_simd cpu_simd_i8mm;        /* the same with i8mm */

/* The best table that this machine runs, or the one named by PLEIADES_SIMD (generic, avx2, avx512,
 * neon, i8mm) if it can. */
const struct cpu_simd *cpu_simd_select(void);
/* Table by name if compiled in and supported here, else NULL; and the list of those, for tests. */
const struct cpu_simd *cpu_simd_find(const char *name);
int cpu_simd_list(const struct cpu_simd **out, int max);

/* The activation kind that a weight type takes in `fast` precision. */
enum act_kind act_kind_for(enum dtype type);

#endif
