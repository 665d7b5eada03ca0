/* The residual streams and everything that works row by row: embedding, hyper-connections, norms, rope
 * of the queries. */
#include "kernels/cpu/cpu.h"

#include "common/base/check.h"
#include "kernels/cpu/mathf.h"

#include <math.h>

/* 1 / sqrt(mean(x^2) + eps) */
static float rms_scale(const struct cpu *c, const float *x, int64_t n, float eps) {
    return 1.0f / sqrtf(c->simd->dot(x, x, n) / (float)n + eps);
}

/* ---- embedding ---- */

struct embed_job {
    const struct embed_args *a;
};

static void embed_task(void *ctx, int row, int thread) {
    (void)thread;
    const struct embed_args *a = ((const struct embed_job *)ctx)->a;
    int64_t n_embd = a->table->ne[0];
    uint64_t row_bytes = dtype_row_bytes(a->table->type, (uint64_t)n_embd);
    const uint8_t *from = (const uint8_t *)a->table->data + (uint64_t)a->batch->token[row] * row_bytes;
    float *out = f32_row(a->out, (int64_t)row * a->n_streams);
    dtype_decode(a->table->type, from, out, (uint64_t)n_embd);
    for (int s = 1; s < a->n_streams; s++) memcpy(out + s * n_embd, out, (size_t)n_embd * sizeof *out);
}

void cpu_embed(struct kernels *k, const struct embed_args *a) {
    struct embed_job job = { a };
    for (int32_t i = 0; i < a->batch->n_rows; i++)
        CHECK(a->batch->token[i] >= 0 && a->batch->token[i] < a->table->ne[1]);
    cpu_each(cpu_of(k), a->batch->n_rows, embed_task, &job);
}

/* ---- hyper-connections (spec 2.2) ---- */

/* m[j][k] at 4j+k: softmax of the rows, then columns and rows in turn until both sum to one. */
static void sinkhorn(float m[16], int n_rounds, float eps) {
    for (int j = 0; j < 4; j++) {
        float *row = m + 4 * j, top = MAX(MAX(row[0], row[1]), MAX(row[2], row[3]));
        float sum = 0;
        for (int i = 0; i < 4; i++) sum += row[i] = f32_exp(row[i] - top);
        for (int i = 0; i < 4; i++) row[i] = row[i] / sum + eps;
    }
    for (int round = 0; round < n_rounds; round++) {
        for (int j = 0; j < 4 && round > 0; j++) {  /* the softmax was the first row pass */
            float *row = m + 4 * j, sum = row[0] + row[1] + row[2] + row[3] + eps;
            for (int i = 0; i < 4; i++) row[i] /= sum;
        }
        for (int i = 0; i < 4; i++) {
            float sum = m[i] + m[4 + i] + m[8 + i] + m[12 + i] + eps;
            for (int j = 0; j < 4; j++) m[4 * j + i] /= sum;
        }
    }
}

struct hc_pre_job {
    const struct cpu *c;
    const struct hc_pre_args *a;
    const float *mix;                              /* [n][24] = fn . x, not yet times r */
};

static void hc_pre_task(void *ctx, int row, int thread) {
    (void)thread;
    const struct hc_pre_job *job = ctx;
    const struct hc_pre_args *a = job->a;
    int64_t n_embd = a->x->ne[0];
    const float *x = f32_row(a->x, (int64_t)row * HC_STREAMS), *mix = job->mix + (int64_t)row * HC_MIX;
    const float *scale = a->scale->data, *base = a->base->data;
    float r = rms_scale(job->c, x, n_embd * HC_STREAMS, a->rms_eps), pre[4];
    float *post = f32_row(a->post, row), *comb = f32_row(a->comb, row), *out = f32_row(a->out, row);
    for (int i = 0; i < 4; i++) pre[i] = f32_sigmoid(mix[i] * r * scale[0] + base[i]) + a->hc_eps;
    for (int i = 0; i < 4; i++) post[i] = 2.0f * f32_sigmoid(mix[4 + i] * r * scale[1] + base[4 + i]);
    for (int i = 0; i < 16; i++) comb[i] = mix[8 + i] * r * scale[2] + base[8 + i];
    sinkhorn(comb, a->n_sinkhorn, a->hc_eps);
    job->c->simd->hc_sum(out, x, pre, n_embd);
    job->c->simd->scale_mul(out, out, rms_scale(job->c, out, n_embd, a->rms_eps), a->norm->data, n_embd);
}

/* fn . x is a matrix product with 24 rows, always in f32 (spec 2.12). */
static float *hc_mix_logits(struct cpu *c, const struct tensor *x, const struct tensor *fn, int32_t n) {
    float *mix = cpu_scratch(c, SCRATCH_ROWS, (uint64_t)n * HC_MIX * sizeof *mix);
    struct act act;
    if (!mix || !cpu_act_prepare(c, &act, SCRATCH_ACT, ACT_F32, x->data, n, x->ne[0] * HC_STREAMS))
        return NULL;
    cpu_matmul_rows(c, fn, &act, n, mix);
    return mix;
}

void cpu_hc_pre(struct kernels *k, const struct hc_pre_args *a) {
    struct cpu *c = cpu_of(k);
    struct hc_pre_job job = { c, a, hc_mix_logits(c, a->x, a->fn, a->n) };
    if (job.mix) cpu_each(c, a->n, hc_pre_task, &job);
}

struct hc_post_job {
    const struct cpu *c;
    const struct hc_post_args *a;
    uint64_t stride;
    uint8_t *sums;                                 /* per thread: y + y2 */
};

static void hc_post_task(void *ctx, int row, int thread) {
    const struct hc_post_job *job = ctx;
    const struct hc_post_args *a = job->a;
    int64_t n_embd = a->x->ne[0];
    const float *y = f32_row(a->y, row);
    if (a->y2) {
        float *sum = (float *)(void *)(job->sums + job->stride * (uint64_t)thread);
        const float *y2 = f32_row(a->y2, row);
        for (int64_t i = 0; i < n_embd; i++) sum[i] = y[i] + y2[i];
        y = sum;
    }
    job->c->simd->hc_mix(f32_row(a->x, (int64_t)row * HC_STREAMS), y, f32_row(a->post, row),
                         f32_row(a->comb, row), n_embd);
}

void cpu_hc_post(struct kernels *k, const struct hc_post_args *a) {
    struct cpu *c = cpu_of(k);
    struct hc_post_job job = { .c = c, .a = a };
    job.sums = cpu_scratch_threads(c, (uint64_t)a->x->ne[0] * sizeof(float), &job.stride);
    if (job.sums) cpu_each(c, a->n, hc_post_task, &job);
}

struct hc_head_job {
    const struct cpu *c;
    const struct hc_head_args *a;
    float *x;                                      /* the chosen rows, adjacent */
    const float *mix;
};

static void hc_head_gather(void *ctx, int i, int thread) {
    (void)thread;
    const struct hc_head_job *job = ctx;
    int64_t row_floats = job->a->x->ne[0] * HC_STREAMS, row = job->a->row_i ? job->a->row_i[i] : i;
    memcpy(job->x + i * row_floats, (const float *)job->a->x->data + row * row_floats,
           (size_t)row_floats * sizeof(float));
}

static void hc_head_task(void *ctx, int i, int thread) {
    (void)thread;
    const struct hc_head_job *job = ctx;
    const struct hc_head_args *a = job->a;
    int64_t n_embd = a->x->ne[0];
    const float *x = job->x + i * n_embd * HC_STREAMS, *mix = job->mix + i * HC_STREAMS,
                *base = a->base->data;
    float r = rms_scale(job->c, x, n_embd * HC_STREAMS, a->rms_eps), w[4], *out = f32_row(a->out, i);
    for (int s = 0; s < 4; s++)
        w[s] = f32_sigmoid(mix[s] * r * *(const float *)a->scale->data + base[s]) + a->hc_eps;
    job->c->simd->hc_sum(out, x, w, n_embd);
    job->c->simd->scale_mul(out, out, rms_scale(job->c, out, n_embd, a->rms_eps), a->norm->data, n_embd);
}

void cpu_hc_head(struct kernels *k, const struct hc_head_args *a) {
    struct cpu *c = cpu_of(k);
    int64_t row_floats = a->x->ne[0] * HC_STREAMS;
    struct hc_head_job job = { .c = c, .a = a };
    job.x = cpu_scratch(c, SCRATCH_HIDDEN, (uint64_t)(a->n * row_floats) * sizeof(float));
    float *mix = cpu_scratch(c, SCRATCH_ROWS, (uint64_t)a->n * HC_STREAMS * sizeof(float));
    struct act act;
    if (!job.x || !mix || a->n == 0) return;
    cpu_each(c, a->n, hc_head_gather, &job);
    if (!cpu_act_prepare(c, &act, SCRATCH_ACT, ACT_F32, job.x, a->n, row_floats)) return;
    cpu_matmul_rows(c, a->fn, &act, a->n, mix);
    job.mix = mix;
    cpu_each(c, a->n, hc_head_task, &job);
}

/* ---- norms and element-wise rows ---- */

struct row_job {
    const struct cpu *c;
    const void *a;
};

static void rms_norm_task(void *ctx, int row, int thread) {
    (void)thread;
    const struct row_job *job = ctx;
    const struct rms_norm_args *a = job->a;
    int64_t n = a->in->ne[0];
    const float *in = f32_row(a->in, row);
    job->c->simd->scale_mul(f32_row(a->out, row), in, rms_scale(job->c, in, n, a->eps), a->weight->data, n);
}

void cpu_rms_norm(struct kernels *k, const struct rms_norm_args *a) {
    struct row_job job = { cpu_of(k), a };
    cpu_each(cpu_of(k), a->n, rms_norm_task, &job);
}

static void add_streams_task(void *ctx, int row, int thread) {
    (void)thread;
    const struct add_streams_args *a = ((const struct row_job *)ctx)->a;
    int64_t n_embd = a->e->ne[0];
    const float *e = f32_row(a->e, row);
    for (int s = 0; s < HC_STREAMS; s++) {
        float *x = f32_row(a->x, (int64_t)row * HC_STREAMS + s);
        for (int64_t i = 0; i < n_embd; i++) x[i] += e[i];
    }
}

void cpu_add_streams(struct kernels *k, const struct add_streams_args *a) {
    struct row_job job = { cpu_of(k), a };
    cpu_each(cpu_of(k), a->n, add_streams_task, &job);
}

static void swiglu_task(void *ctx, int row, int thread) {
    (void)thread;
    const struct row_job *job = ctx;
    const struct swiglu_args *a = job->a;
    job->c->simd->swiglu(f32_row(a->out, row), f32_row(a->gate, row), f32_row(a->up, row), a->clamp,
                         1.0f, a->gate->ne[0]);
}

void cpu_swiglu(struct kernels *k, const struct swiglu_args *a) {
    struct row_job job = { cpu_of(k), a };
    cpu_each(cpu_of(k), a->n, swiglu_task, &job);
}

void cpu_rope_row(float *x, const float *cs, int32_t n_rot, bool inverse) {
    for (int32_t i = 0; i < n_rot; i += 2) {
        float u = x[i], v = x[i + 1], cosine = cs[i], sine = inverse ? -cs[i + 1] : cs[i + 1];
        x[i] = u * cosine - v * sine;
        x[i + 1] = u * sine + v * cosine;
    }
}

static void q_rope_task(void *ctx, int row, int thread) {
    (void)thread;
    const struct row_job *job = ctx;
    const struct q_rope_args *a = job->a;
    for (int32_t h = 0; h < a->n_head; h++) {
        float *q = f32_row(a->q, row) + (int64_t)h * a->head_dim;
        job->c->simd->scale_mul(q, q, rms_scale(job->c, q, a->head_dim, a->eps), NULL, a->head_dim);
        cpu_rope_row(q + a->head_dim - a->n_rot, f32_row(a->rope, row), a->n_rot, false);
    }
}

void cpu_q_rope(struct kernels *k, const struct q_rope_args *a) {
    struct row_job job = { cpu_of(k), a };
    cpu_each(cpu_of(k), a->n, q_rope_task, &job);
}
