/* Every operation that works row by row, and the products, against plain loops in double: odd sizes, no
 * rows and one row, poisoned results, guards behind every tensor; on the CPU with every table of inner
 * loops. The operations on the state are tested with whole models (test_model_vectors, test_model_mtp), and
 * so is that batches do not change a bit (test_model_bits). */
#include "tests/harness/device.h"

static const int row_counts[] = { 1, 5, 18 };

/* Small single things. */
static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static double rms_of(const float *x, int64_t n, double eps) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return 1 / sqrt(sum / (double)n + eps);
}

/* ---- embedding ---- */

static void embed_on(struct device *d) {
    static const struct { enum dtype type; int64_t n; } tables[] = {
        { DTYPE_F32, 37 }, { DTYPE_F16, 24 }, { DTYPE_Q8_0, 96 }, { DTYPE_Q4_K, 512 } };
    for (size_t t = 0; t < COUNT_OF(tables); t++)
        for (int n_streams = 1; n_streams <= 4; n_streams += 3)
            for (int n = 0; n <= 21; n += 7) {
                struct batch batch = { 0 };
                const float *table;
                int64_t width = tables[t].n;
                struct tensor weight = tensor_random(d, tables[t].type, width, 50, 1, 1, 0, &table),
                              out = tensor_out(d, width, n * n_streams);
                batch_add(&batch, 0, 3, n);
                kernels_embed(d->k, &(struct embed_args){ .out = &out,
                                                          .table = &weight,
                                                          .batch = &batch.b,
                                                          .n_streams = n_streams });
                const float *got = tensor_floats(d, &out);
                for (int64_t i = 0; i < n * n_streams * width; i++)
                    assert_true(got[i] == table[batch.token[i / width / n_streams] * width + i % width]);
                device_reset(d);
            }
}

static void embedding_copies_the_tokens_row_into_every_stream(void **state) {
    (void)state;
    device_each(embed_on);
}

/* ---- connections ---- */

static void sinkhorn(double m[4][4], int n_rounds, double eps) {
    for (int j = 0; j < 4; j++) {
        double sum = 0;
        for (int k = 0; k < 4; k++) sum += exp(m[j][k]);
        for (int k = 0; k < 4; k++) m[j][k] = exp(m[j][k]) / sum + eps;
    }
    for (int round = 0; round < n_rounds; round++) {
        for (int j = 0; j < 4 && round; j++) {
            double sum = m[j][0] + m[j][1] + m[j][2] + m[j][3] + eps;
            for (int k = 0; k < 4; k++) m[j][k] /= sum;
        }
        for (int k = 0; k < 4; k++) {
            double sum = m[0][k] + m[1][k] + m[2][k] + m[3][k] + eps;
            for (int j = 0; j < 4; j++) m[j][k] /= sum;
        }
    }
}

static double mix_of(const float *fn, const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)fn[i] * (double)x[i];
    return sum;
}

/* out = norm * RMS(sum of w[s] x[s]) */
static void check_collapsed(struct device *d, const float *got, const float *x, const double *w,
                            const float *norm, int64_t n, double eps) {
    double *sum = xcalloc((size_t)n, sizeof *sum), square = 0;
    for (int64_t i = 0; i < n; i++) {
        for (int s = 0; s < 4; s++) sum[i] += w[s] * (double)x[s * n + i];
        square += sum[i] * sum[i];
    }
    for (int64_t i = 0; i < n; i++)
        near_value(d, "collapsed", i, (double)got[i],
                   sum[i] / sqrt(square / (double)n + eps) * (double)norm[i], 1e-5);
    free(sum);
}

static void hc_pre_on(struct device *d) {
    static const struct { int64_t n_embd; enum dtype type; int n_sinkhorn; float hc_eps;
    } cases[] = { { 3, DTYPE_F32, 1, 1e-6f },
                  { 37, DTYPE_F16, 2, 1e-2f },
                  { 96, DTYPE_F16, 20, 1e-6f },
                  { 256, DTYPE_Q8_0, 7, 1e-3f } };
    for (size_t c = 0; c < COUNT_OF(cases); c++)
        for (size_t r = 0; r < COUNT_OF(row_counts); r++) {
            int64_t n_embd = cases[c].n_embd;
            int n = row_counts[r];
            const float *x, *fn, *scale, *base, *norm;
            struct tensor tx = tensor_f32(d, n_embd, n * 4, 2, &x),
                          tfn = tensor_random(d, cases[c].type, 4 * n_embd, 24, 1, 0.1f, 0, &fn);
            struct tensor ts = tensor_f32(d, 3, 1, 1, &scale), tb = tensor_f32(d, 24, 1, 1, &base);
            struct tensor tn = tensor_random(d, DTYPE_F32, n_embd, 1, 1, 0.2f, 1, &norm);
            struct tensor out = tensor_out(d, n_embd, n), post = tensor_out(d, 4, n),
                          comb = tensor_out(d, 16, n);
            kernels_hc_pre(d->k, &(struct hc_pre_args){ .out = &out,
                                                        .post = &post,
                                                        .comb = &comb,
                                                        .x = &tx,
                                                        .fn = &tfn,
                                                        .scale = &ts,
                                                        .base = &tb,
                                                        .norm = &tn,
                                                        .rms_eps = 1e-4f,
                                                        .hc_eps = cases[c].hc_eps,
                                                        .n_sinkhorn = cases[c].n_sinkhorn,
                                                        .n = n });
            const float *got = tensor_floats(d, &out), *got_post = tensor_floats(d, &post),
                        *got_comb = tensor_floats(d, &comb);
            for (int row = 0; row < n; row++, x += 4 * n_embd) {
                double rms = rms_of(x, 4 * n_embd, (double)1e-4f), pre[4], m[4][4];
                for (int i = 0; i < 4; i++) {
                    pre[i] = sigmoid(mix_of(fn + i * 4 * n_embd, x, 4 * n_embd) * rms *
                                         (double)scale[0] +
                                     (double)base[i]) +
                             (double)cases[c].hc_eps;
                    double want = 2 * sigmoid(mix_of(fn + (4 + i) * 4 * n_embd, x, 4 * n_embd) *
                                                  rms * (double)scale[1] +
                                              (double)base[4 + i]);
                    near_value(d, "post", row, (double)got_post[4 * row + i], want, 1e-5);
                    for (int k = 0; k < 4; k++)
                        m[i][k] = mix_of(fn + (8 + 4 * i + k) * 4 * n_embd, x, 4 * n_embd) * rms *
                                      (double)scale[2] +
                                  (double)base[8 + 4 * i + k];
                }
                sinkhorn(m, cases[c].n_sinkhorn, (double)cases[c].hc_eps);
                near_values(d, "comb", got_comb + 16 * row, &m[0][0], 16, 1e-5);
                check_collapsed(d, got + row * n_embd, x, pre, norm, n_embd, (double)1e-4f);
            }
            device_reset(d);
        }
}

static void connections_read_the_streams(void **state) {
    (void)state;
    device_each(hc_pre_on);
}

static void hc_post_on(struct device *d) {
    static const int64_t widths[] = { 1, 37, 256 };
    for (size_t c = 0; c < COUNT_OF(widths) * 2; c++)
        for (size_t r = 0; r < COUNT_OF(row_counts); r++) {
            int64_t w = widths[c / 2];
            int n = row_counts[r];
            const float *x, *y, *y2, *post, *comb;
            struct tensor tx = tensor_f32(d, w, n * 4, 1, &x), ty = tensor_f32(d, w, n, 1, &y),
                          ty2 = tensor_f32(d, w, n, 1, &y2);
            struct tensor tp = tensor_f32(d, 4, n, 1, &post), tc = tensor_f32(d, 16, n, 1, &comb);
            kernels_hc_post(d->k, &(struct hc_post_args){ .x = &tx,
                                                          .y = &ty,
                                                          .y2 = c % 2 ? &ty2 : NULL,
                                                          .post = &tp,
                                                          .comb = &tc,
                                                          .n = n });
            const float *got = tensor_floats(d, &tx);
            for (int64_t row = 0; row < n; row++)
                for (int64_t k = 0; k < 4; k++)
                    for (int64_t i = 0; i < w; i++) {
                        double in = (double)y[row * w + i] + (c % 2 ? (double)y2[row * w + i] : 0),
                               want = (double)post[4 * row + k] * in;
                        for (int64_t j = 0; j < 4; j++)
                            want += (double)comb[16 * row + 4 * j + k] *
                                    (double)x[(4 * row + j) * w + i];
                        near_value(d, "stream", row, (double)got[(4 * row + k) * w + i], want, 2e-6);
                    }
            device_reset(d);
        }
}

static void connections_write_the_streams(void **state) {
    (void)state;
    device_each(hc_post_on);
}

static void hc_head_on(struct device *d) {
    static const int32_t chosen[] = { 0, 3, 4, 17 };
    for (int all = 0; all < 2; all++)
        for (int64_t w = 37; w <= 96; w += 59) {
            int n = all ? 18 : (int)COUNT_OF(chosen);
            const float *x, *fn, *scale, *base, *norm;
            struct tensor tx = tensor_f32(d, w, 18 * 4, 2, &x),
                          tfn = tensor_random(d, DTYPE_F16, 4 * w, 4, 1, 0.2f, 0, &fn);
            struct tensor ts = tensor_f32(d, 1, 1, 1, &scale), tb = tensor_f32(d, 4, 1, 1, &base);
            struct tensor tn = tensor_random(d, DTYPE_F32, w, 1, 1, 0.2f, 1, &norm),
                          out = tensor_out(d, w, n);
            kernels_hc_head(d->k, &(struct hc_head_args){ .out = &out,
                                                          .x = &tx,
                                                          .fn = &tfn,
                                                          .scale = &ts,
                                                          .base = &tb,
                                                          .norm = &tn,
                                                          .row_i = all ? NULL : chosen,
                                                          .rms_eps = 1e-3f,
                                                          .hc_eps = 1e-2f,
                                                          .n = n });
            const float *got = tensor_floats(d, &out);
            for (int i = 0; i < n; i++) {
                const float *row = x + (all ? i : chosen[i]) * 4 * w;
                double weight[4];
                for (int s = 0; s < 4; s++)
                    weight[s] = sigmoid(mix_of(fn + s * 4 * w, row, 4 * w) *
                                            rms_of(row, 4 * w, (double)1e-3f) * (double)scale[0] +
                                        (double)base[s]) +
                                (double)1e-2f;
                check_collapsed(d, got + i * w, row, weight, norm, w, (double)1e-3f);
            }
            device_reset(d);
        }
}

static void the_head_takes_the_rows_that_are_asked_for(void **state) {
    (void)state;
    device_each(hc_head_on);
}

/* ---- norms and rows ---- */

static void rms_norm_on(struct device *d) {
    static const int64_t widths[] = { 1, 15, 64, 77, 512 };
    for (size_t c = 0; c < COUNT_OF(widths); c++)
        for (int in_place = 0; in_place < 2; in_place++) {
            int64_t w = widths[c];
            const float *x, *weight;
            struct tensor in = tensor_f32(d, w, 11, 3, &x), tw = tensor_f32(d, w, 1, 1, &weight),
                          out = tensor_out(d, w, 11);
            struct tensor *to = in_place ? &in : &out;
            kernels_rms_norm(d->k,
                             &(struct rms_norm_args){
                                 .out = to, .in = &in, .weight = &tw, .eps = 1e-5f, .n = 11 });
            const float *got = tensor_floats(d, to);
            for (int64_t i = 0; i < 11 * w; i++)
                near_value(d, "normed", i, (double)got[i],
                           (double)x[i] * rms_of(x + i / w * w, w, (double)1e-5f) *
                               (double)weight[i % w],
                           2e-6);
            device_reset(d);
        }
}

static void norms_are_root_mean_squares(void **state) {
    (void)state;
    device_each(rms_norm_on);
}

static void rows_on(struct device *d) {
    const float *x, *e, *g, *u;
    float big[3] = { 1e30f, -1e30f, 0 };
    struct tensor tx = tensor_f32(d, 37, 4 * 9, 1, &x), te = tensor_f32(d, 37, 9, 1, &e);
    kernels_add_streams(d->k, &(struct add_streams_args){ .x = &tx, .e = &te, .n = 9 });
    const float *got = tensor_floats(d, &tx);
    for (int64_t i = 0; i < 4 * 9 * 37; i++) assert_true(got[i] == x[i] + e[i / 148 * 37 + i % 37]);
    device_reset(d);
    for (int in_place = 0; in_place < 2; in_place++) {
        struct tensor tg = tensor_f32(d, 53, 9, 4, &g), tu = tensor_f32(d, 53, 9, 4, &u),
                      out = tensor_out(d, 53, 9);
        struct tensor *to = in_place ? &tg : &out;
        kernels_swiglu(d->k, &(struct swiglu_args){ .out = to, .gate = &tg, .up = &tu, .clamp = 3, .n = 9 });
        got = tensor_floats(d, to);
        for (int64_t i = 0; i < 9 * 53; i++) {
            double a = fmin((double)g[i], 3), b = fmax(-3, fmin((double)u[i], 3));
            near_value(d, "swiglu", i, (double)got[i], a * sigmoid(a) * b, 2e-6);
        }
        device_reset(d);
    }
    struct tensor tg = tensor_of(d, DTYPE_F32, 3, 1, big), tu = tensor_of(d, DTYPE_F32, 3, 1, big),
                  out = tensor_out(d, 3, 1);
    kernels_swiglu(d->k, &(struct swiglu_args){ .out = &out, .gate = &tg, .up = &tu, .clamp = 10, .n = 1 });
    got = tensor_floats(d, &out);
    near_value(d, "swiglu of 1e30", 0, (double)got[0], 10 * sigmoid(10) * 10, 2e-6);
    near_value(d, "swiglu of -1e30", 1, (double)got[1], 0, 1e-5);
    device_reset(d);
}

static void streams_are_added_and_gates_are_clamped(void **state) {
    (void)state;
    device_each(rows_on);
}

static void q_rope_on(struct device *d) {
    static const struct {
        int n_head, dim, n_rot;
    } cases[] = { { 1, 66, 2 }, { 3, 80, 16 }, { 5, 192, 64 }, { 8, 512, 64 } };
    for (size_t c = 0; c < COUNT_OF(cases); c++) {
        int n_head = cases[c].n_head, dim = cases[c].dim, n_rot = cases[c].n_rot, n = 7;
        const float *q, *rope;
        struct tensor tq = tensor_f32(d, n_head * dim, n, 3, &q), tr = tensor_f32(d, n_rot, n, 1, &rope);
        kernels_q_rope(d->k, &(struct q_rope_args){ .q = &tq,
                                                    .rope = &tr,
                                                    .eps = 1e-5f,
                                                    .n = n,
                                                    .n_head = n_head,
                                                    .head_dim = dim,
                                                    .n_rot = n_rot });
        const float *got = tensor_floats(d, &tq);
        for (int h = 0; h < n * n_head; h++) {
            const float *in = q + h * dim, *out = got + h * dim, *cs = rope + h / n_head * n_rot;
            double r = rms_of(in, dim, (double)1e-5f);
            for (int i = 0; i < dim - n_rot; i++)
                near_value(d, "query", i, (double)out[i], (double)in[i] * r, 3e-6);
            for (int i = 0; i < n_rot; i += 2) {
                double a = (double)in[dim - n_rot + i] * r, b = (double)in[dim - n_rot + i + 1] * r;
                near_value(d, "rotated", i, (double)out[dim - n_rot + i],
                           a * (double)cs[i] - b * (double)cs[i + 1], 3e-6);
                near_value(d, "rotated", i + 1, (double)out[dim - n_rot + i + 1],
                           a * (double)cs[i + 1] + b * (double)cs[i], 3e-6);
            }
        }
        device_reset(d);
    }
}

static void queries_are_normed_and_their_end_is_rotated(void **state) {
    (void)state;
    device_each(q_rope_on);
}

/* ---- products ---- */

/* What rounding activations to int8 may do at most: half a step for each value of a block. */
static double quantisation_error(enum dtype type, const float *w, const float *x, int64_t n) {
    enum act_kind kind = act_kind_for(type);
    int64_t len = kind == ACT_Q8_0 ? 32 : 256;
    double error = 0;
    if (kind == ACT_F32) return 0;
    for (int64_t b = 0; b < n; b += len) {
        double amax = 0, sum = 0;
        for (int64_t i = b; i < b + len; i++) {
            amax = fmax(amax, fabs((double)x[i]));
            sum += fabs((double)w[i]);
        }
        error += amax / 254 * sum * 1.01;
    }
    return error;
}

static void check_product(struct device *d, enum dtype type, bool quantised, double got,
                          const float *w, const float *x, int64_t n) {
    double want = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        want += (double)w[i] * (double)x[i];
        size += fabs((double)w[i] * (double)x[i]);
    }
    double allowed = 1e-6 * size + 1e-7 + (quantised ? quantisation_error(type, w, x, n) : 0);
    if (!(fabs(got - want) <= allowed))
        fail_msg("%s: %s row of %lld: %.8g, expected %.8g +- %.2g", d->name, dtype_name(type),
                 (long long)n, got, want, allowed);
}

static void matmul_case(struct device *d, enum dtype type, int64_t n_in, int64_t n_out, int n,
                        int n_group, bool f32_act) {
    const float *w, *x;
    struct tensor tw = tensor_random(d, type, n_in, n_out * n_group, 1, 0.3f, 0, &w),
                  in = tensor_f32(d, n_in * n_group, n, 1, &x);
    struct tensor out = tensor_out(d, n_out * n_group, n);
    kernels_matmul(d->k, &(struct matmul_args){ .out = &out,
                                                .in = &in,
                                                .weight = &tw,
                                                .n = n,
                                                .n_group = n_group,
                                                .f32_act = f32_act });
    const float *got = tensor_floats(d, &out);
    for (int64_t row = 0; row < n; row++)
        for (int64_t o = 0; o < n_out * n_group; o++)
            check_product(d, type, d->precision == PRECISION_FAST && !f32_act,
                          (double)got[row * n_out * n_group + o], w + o * n_in,
                          x + row * n_in * n_group + o / n_out * n_in, n_in);
    device_reset(d);
}

static void matmul_on(struct device *d) {
    static const enum dtype any[] = { DTYPE_F32, DTYPE_F16, DTYPE_BF16 },
                            of_32[] = { DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_MXFP4 };
    static const enum dtype of_256[] = { DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K,
                                         DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_IQ2_XXS };
    static const int counts[] = { 0, 1, 2, 5, 6, 7, 9, 33 };
    for (size_t c = 0; c < COUNT_OF(counts); c++) {
        int n = counts[c], shift = (int)c;
        for (size_t t = 0; t < COUNT_OF(any); t++)
            matmul_case(d, any[t], 1 + 37 * shift, 3 + 5 * shift, n, 1, c % 2);
        for (size_t t = 0; t < COUNT_OF(of_32); t++) {
            matmul_case(d, of_32[t], 32 * (1 + shift), 1 + 9 * shift, n, 1, c % 3 == 0);
            matmul_case(d, of_32[t], 64, 21, n, 3, false);
        }
        for (size_t t = 0; t < COUNT_OF(of_256); t++)
            matmul_case(d, of_256[t], 256 * (1 + shift % 3), 1 + 11 * shift, n, 1, c % 4 == 0);
        matmul_case(d, DTYPE_F16, 40, 7, n, 5, false);
        matmul_case(d, DTYPE_Q4_K, 256, 17, n, 2, false);
    }
}

static void products_of_every_type_are_sums(void **state) {
    (void)state;
    device_each(matmul_on);
}

/* ---- experts ---- */

static void route_on(struct device *d) {
    static const struct { int n_expert, n_used; bool hashed, biased;
    } cases[] = { { 16, 4, false, true }, { 8, 3, true, false },   { 256, 6, false, true },
                  { 5, 5, false, false }, { 33, 16, false, true }, { 20, 1, true, false } };
    for (size_t c = 0; c < COUNT_OF(cases); c++)
        for (int n = 1; n <= 19; n += 9) {
            int n_expert = cases[c].n_expert, n_used = cases[c].n_used;
            struct batch batch = { 0 };
            const float *logits, *bias;
            int32_t table[50 * 16];
            struct tensor tl = tensor_f32(d, n_expert, n, 4, &logits),
                          tb = tensor_f32(d, n_expert, 1, 0.3f, &bias);
            batch_add(&batch, 0, 1, n);
            for (int i = 0; i < 50 * n_used; i++) table[i] = (i / n_used * 3 + i % n_used * 7) % n_expert;
            for (int i = 0; i < 50 * n_used && n_used > 1; i++)
                table[i] = (i / n_used + (n_used - i % n_used) * (n_expert / n_used)) % n_expert;
            struct tensor tt = tensor_of(d, DTYPE_I32, n_used, 50, table);
            struct tensor ids = tensor_of(d, DTYPE_I32, n_used, n, NULL), weights = tensor_out(d, n_used, n);
            kernels_moe_route(d->k,
                              &(struct moe_route_args){ .ids = &ids,
                                                        .weights = &weights,
                                                        .logits = &tl,
                                                        .bias = cases[c].biased ? &tb : NULL,
                                                        .tid2eid = cases[c].hashed ? &tt : NULL,
                                                        .batch = &batch.b,
                                                        .scale = 1.5f,
                                                        .n_used = n_used });
            const int32_t *got = tensor_bytes_now(d, &ids);
            const float *weight = tensor_floats(d, &weights);
            for (int row = 0; row < n; row++) {
                double score[256], sum = 0;
                bool want[256] = { false };
                for (int e = 0; e < n_expert; e++)
                    score[e] = sqrt(log1p(exp((double)logits[row * n_expert + e])));
                for (int u = 0; u < n_used; u++) {
                    int best = -1;
                    for (int e = 0; e < n_expert; e++)
                        if (!want[e] &&
                            (best < 0 ||
                             score[e] + (cases[c].biased ? (double)bias[e] : 0) >
                                 score[best] + (cases[c].biased ? (double)bias[best] : 0)))
                            best = e;
                    want[cases[c].hashed ? table[batch.token[row] * n_used + u] : best] = true;
                }
                for (int e = 0; e < n_expert; e++) sum += want[e] ? score[e] : 0;
                for (int u = 0; u < n_used; u++) {
                    int32_t id = got[row * n_used + u];
                    assert_true(id >= 0 && id < n_expert && want[id]);
                    assert_true(u == 0 || id > got[row * n_used + u - 1]);
                    near_value(d, "weight", row, (double)weight[row * n_used + u],
                               score[id] / sum * 1.5, 2e-6);
                }
            }
            device_reset(d);
        }
}

static void experts_are_the_best_by_score_and_bias_or_by_table(void **state) {
    (void)state;
    device_each(route_on);
}

static void ties_on(struct device *d) {
    float logits[12] = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 }, bias[12] = { 0 };
    struct batch batch = { 0 };
    struct tensor tl = tensor_of(d, DTYPE_F32, 12, 1, logits),
                  ids = tensor_of(d, DTYPE_I32, 4, 1, NULL), weights = tensor_out(d, 4, 1);
    bias[7] = 1;
    struct tensor tb = tensor_of(d, DTYPE_F32, 12, 1, bias);
    batch_add(&batch, 0, 0, 1);
    kernels_moe_route(d->k, &(struct moe_route_args){ .ids = &ids,
                                                      .weights = &weights,
                                                      .logits = &tl,
                                                      .bias = &tb,
                                                      .batch = &batch.b,
                                                      .scale = 2,
                                                      .n_used = 4 });
    assert_memory_equal(tensor_bytes_now(d, &ids), ((const int32_t[]){ 0, 1, 2, 7 }), 16);
    /* the bias only selects */
    for (int i = 0; i < 4; i++) assert_true(tensor_floats(d, &weights)[i] == 0.5f);
    device_reset(d);
}

static void of_equal_experts_the_lower_numbers_win(void **state) {
    (void)state;
    device_each(ties_on);
}

struct experts_case {
    enum dtype gate, down;
    int64_t n_embd, n_ff;
    int n_expert, n_used, n;
};

struct stack {                                        /* gate, up, down */
    struct tensor t[3];
    const float *w[3];
};

static struct tensor part_of(const struct tensor *t, int first, int n) {
    struct tensor part = *t;
    part.data = (uint8_t *)t->data +
                dtype_row_bytes(t->type, (uint64_t)t->ne[0]) * (uint64_t)(t->ne[1] * first);
    part.ne[2] = n;
    return part;
}

static const float *run_experts(struct device *d, const struct experts_case *c,
                                const struct stack *s, const struct tensor *x,
                                const struct tensor *ids, const struct tensor *weights, int begin,
                                int end) {
    struct tensor out = tensor_out(d, c->n_embd, c->n), part[3];
    for (int i = 0; i < 3; i++) part[i] = part_of(&s->t[i], begin, end - begin);
    kernels_moe_experts(d->k, &(struct moe_experts_args){ .out = &out,
                                                          .x = x,
                                                          .ids = ids,
                                                          .weights = weights,
                                                          .gate = &part[0],
                                                          .up = &part[1],
                                                          .down = &part[2],
                                                          .clamp = 2,
                                                          .n = c->n,
                                                          .n_used = c->n_used,
                                                          .e_begin = begin,
                                                          .e_end = end });
    return tensor_floats(d, &out);
}

/* want += weight * W2 (silu(min(W1 x)) * clamp(W3 x)); allowed: how far int8 activations may lead. */
static void add_expert(const struct experts_case *c, const struct stack *s, int e, double weight,
                       const float *x, double *want) {
    double *h = xcalloc((size_t)c->n_ff, sizeof *h);
    for (int64_t f = 0; f < c->n_ff; f++) {
        double g = mix_of(s->w[0] + (e * c->n_ff + f) * c->n_embd, x, c->n_embd),
               u = mix_of(s->w[1] + (e * c->n_ff + f) * c->n_embd, x, c->n_embd);
        g = fmin(g, 2), u = fmax(-2, fmin(u, 2));
        h[f] = weight * g * sigmoid(g) * u;
    }
    for (int64_t o = 0; o < c->n_embd; o++)
        for (int64_t f = 0; f < c->n_ff; f++)
            want[o] += (double)s->w[2][(e * c->n_embd + o) * c->n_ff + f] * h[f];
    free(h);
}

static void experts_case(struct device *d, const struct experts_case *c) {
    struct stack s;
    const float *x, *weight;
    int32_t ids[64 * MOE_USED_MAX];
    double *want = xcalloc((size_t)c->n_embd, sizeof *want);
    s.t[0] = tensor_random(d, c->gate, c->n_embd, c->n_ff, c->n_expert, 1 / sqrtf((float)c->n_embd),
                           0, &s.w[0]);
    s.t[1] = tensor_random(d, c->gate, c->n_embd, c->n_ff, c->n_expert, 1 / sqrtf((float)c->n_embd),
                           0, &s.w[1]);
    s.t[2] = tensor_random(d, c->down, c->n_ff, c->n_embd, c->n_expert, 1 / sqrtf((float)c->n_ff),
                           0, &s.w[2]);
    struct tensor tx = tensor_f32(d, c->n_embd, c->n, 1, &x), tw = tensor_f32(d, c->n_used, c->n, 1, &weight);
    for (int row = 0; row < c->n; row++)          /* ascending, different, some experts never */
        for (int u = 0; u < c->n_used; u++) {
            int room = c->n_expert - (c->n_used - u), low = u ? ids[row * c->n_used + u - 1] + 1 : 0;
            ids[row * c->n_used + u] = low + (int)rng_below(&d->rng, (uint64_t)MIN(room - low + 1, 4));
        }
    struct tensor ti = tensor_of(d, DTYPE_I32, c->n_used, c->n, ids);
    const float *got = run_experts(d, c, &s, &tx, &ti, &tw, 0, c->n_expert);
    double tolerance =
               d->precision == PRECISION_F32 || act_kind_for(c->gate) == ACT_F32 ? 1e-5 : 0.1,
           error = 0, size = 0;
    for (int row = 0; row < c->n; row++) {
        memset(want, 0, (size_t)c->n_embd * sizeof *want);
        for (int u = 0; u < c->n_used; u++)
            add_expert(c, &s, ids[row * c->n_used + u], (double)weight[row * c->n_used + u],
                       x + row * c->n_embd, want);
        near_values(d, "experts' sum", got + row * c->n_embd, want, c->n_embd, tolerance);
        for (int64_t i = 0; i < c->n_embd; i++) {
            error += ((double)got[row * c->n_embd + i] - want[i]) *
                     ((double)got[row * c->n_embd + i] - want[i]);
            size += want[i] * want[i];
        }
    }
    if (c->n && !(error <= size * 3e-4))
        fail_msg("%s: relative error %.2g of %s experts", d->name, sqrt(error / size),
                 dtype_name(c->gate));
    /* helpers' partial sums over aligned halves and quarters add up to the same bits */
    int half = c->n_expert / 2, quarter = c->n_expert / 4;
    bool aligned = c->n_expert == half * 2 && (half & (half - 1)) == 0;
    if (aligned) {
        const float *low = run_experts(d, c, &s, &tx, &ti, &tw, 0, half),
                    *high = run_experts(d, c, &s, &tx, &ti, &tw, half, c->n_expert);
        const float *q2 = run_experts(d, c, &s, &tx, &ti, &tw, half, half + quarter),
                    *q3 = run_experts(d, c, &s, &tx, &ti, &tw, half + quarter, c->n_expert);
        for (int64_t i = 0; i < c->n * c->n_embd; i++) {
            if (got[i] != low[i] + high[i])
                fail_msg("%s: value %lld: halves give %.9g, the whole %.9g", d->name, (long long)i,
                         (double)(low[i] + high[i]), (double)got[i]);
            if (high[i] != q2[i] + q3[i])
                fail_msg("%s: value %lld: quarters do not give their half", d->name, (long long)i);
        }
    }
    free(want);
    device_reset(d);
}

static void experts_on(struct device *d) {
    static const struct experts_case cases[] = { { DTYPE_F32, DTYPE_F32, 24, 20, 8, 3, 13 },
                                                 { DTYPE_F16, DTYPE_F16, 96, 64, 16, 8, 9 },
                                                 { DTYPE_Q8_0, DTYPE_Q8_0, 96, 64, 16, 16, 5 },
                                                 { DTYPE_MXFP4, DTYPE_MXFP4, 64, 96, 5, 2, 20 },
                                                 { DTYPE_Q4_K, DTYPE_Q4_K, 256, 256, 8, 6, 7 },
                                                 { DTYPE_IQ2_XXS, DTYPE_Q2_K, 256, 256, 4, 3, 11 },
                                                 { DTYPE_F32, DTYPE_F32, 40, 24, 4, 1, 1 },
                                                 { DTYPE_Q8_0, DTYPE_F16, 64, 32, 8, 4, 0 } };
    for (size_t i = 0; i < COUNT_OF(cases); i++) experts_case(d, &cases[i]);
}

static void experts_are_summed_as_a_tree_over_their_numbers(void **state) {
    (void)state;
    device_each(experts_on);
}

static void every_operation_has_a_name(void **state) {
    (void)state;
    for (int i = 0; i < KERNEL_COUNT; i++) assert_true(strlen(kernels_op_name((enum kernel_op)i)) > 2);
    assert_string_equal(kernels_op_name(KERNEL_COUNT), "?");
    assert_string_equal(kernels_op_name(KERNEL_moe_route), "moe_route");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(embedding_copies_the_tokens_row_into_every_stream),
        TEST(connections_read_the_streams),
        TEST(connections_write_the_streams),
        TEST(the_head_takes_the_rows_that_are_asked_for),
        TEST(norms_are_root_mean_squares),
        TEST(streams_are_added_and_gates_are_clamped),
        TEST(queries_are_normed_and_their_end_is_rotated),
        TEST(products_of_every_type_are_sums),
        TEST(experts_are_the_best_by_score_and_bias_or_by_table),
        TEST(of_equal_experts_the_lower_numbers_win),
        TEST(experts_are_summed_as_a_tree_over_their_numbers),
        TEST(every_operation_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
