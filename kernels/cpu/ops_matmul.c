/* Matrix products: activations are prepared once (quantised or borrowed), then the output is cut into
 * tiles of weight rows. A tile computes its rows for all activation rows, so a weight is read from
 * memory once per batch. */
#include "kernels/cpu/cpu.h"

enum {
    TILE_BYTES = 192 << 10,                      /* of weights per task in decode: some 8 us of memory time */
    TILE_ROWS_PREFILL = 64,
    ACT_ROWS_AT_ONCE = 8,                          /* rows quantised per task */
};

enum act_kind cpu_act_kind(const struct cpu *c, enum dtype type) {
    return c->base.config.precision == PRECISION_F32 ? ACT_F32 : act_kind_for(type);
}

void cpu_each(struct cpu *c, int64_t n, pool_task *run, void *ctx) {
    pool_run(c->pool, (int)n, run, ctx);
}

/* ---- activations ---- */

struct quant_job {
    const struct cpu *c;
    const struct act *act;
    const float *x;
    int64_t n;
};

static void quant_task(void *ctx, int task, int thread) {
    (void)thread;
    const struct quant_job *job = ctx;
    const struct act *act = job->act;
    int64_t n_in = act->n_in, end = MIN(job->n, ((int64_t)task + 1) * ACT_ROWS_AT_ONCE);
    for (int64_t row = (int64_t)task * ACT_ROWS_AT_ONCE; row < end; row++) {
        const float *x = job->x + row * n_in;
        if (act->kind == ACT_Q8_0)
            job->c->simd->quant_q8_0(x, n_in, act->q + row * n_in, act->d + row * (n_in / 32),
                                     act->sum + row * (n_in / 32));
        else
            job->c->simd->quant_q8_k(x, n_in, act->q + row * n_in, act->d + row * (n_in / 256),
                                     act->sum + row * (n_in / 16));
    }
}

bool cpu_act_prepare(struct cpu *c, struct act *act, enum cpu_scratch slot, enum act_kind kind,
                     const float *x, int64_t n, int64_t n_in) {
    *act = (struct act){ .kind = kind, .n_in = n_in, .f = x };
    if (kind == ACT_F32) return true;
    int64_t n_scale = kind == ACT_Q8_0 ? n_in / 32 : n_in / 256,
            n_sum = kind == ACT_Q8_0 ? n_in / 32 : n_in / 16;
    uint64_t q_bytes = ALIGN_UP((uint64_t)(n * n_in), 64u),
             d_bytes = ALIGN_UP((uint64_t)(n * n_scale) * 4, 64u);
    uint8_t *memory = cpu_scratch(c, slot, q_bytes + d_bytes + (uint64_t)(n * n_sum) * 4 + 64);
    if (!memory) return false;
    act->q = (int8_t *)memory;
    act->d = (float *)(void *)(memory + q_bytes);
    act->sum = (int32_t *)(void *)(memory + q_bytes + d_bytes);
    struct quant_job job = { c, act, x, n };
    pool_run(c->pool, (int)((n + ACT_ROWS_AT_ONCE - 1) / ACT_ROWS_AT_ONCE), quant_task, &job);
    return true;
}

/* ---- tiles ---- */

int cpu_tile_rows(const struct cpu *c, int64_t n_out, int64_t row_bytes, int64_t n_x) {
    int64_t rows = n_x >= 6 ? TILE_ROWS_PREFILL : MAX(1, TILE_BYTES / row_bytes);
    int64_t share = n_out / (4 * pool_threads(c->pool));               /* at least 4 tasks a thread */
    rows = MIN(rows, MAX(share, 1));
    return (int)(rows >= 16 ? rows / 16 * 16 : rows);
}

struct matmul_job {
    struct cpu *c;
    const struct tensor *weight;
    const struct act *act;
    float *out;
    int64_t n, n_out, group_rows, group_in;        /* weight rows of one group; its part of the input row */
    int tile_rows, tiles_per_group;
};

static void matmul_task(void *ctx, int task, int thread) {
    const struct matmul_job *job = ctx;
    const struct tensor *w = job->weight;
    int64_t group = task / job->tiles_per_group;
    int64_t row0 = (int64_t)(task % job->tiles_per_group) * job->tile_rows;
    int64_t n_w = MIN(job->tile_rows, job->group_rows - row0);
    row0 += group * job->group_rows;
    uint64_t row_bytes = dtype_row_bytes(w->type, (uint64_t)w->ne[0]);
    struct mm_tile tile = {
        .type = w->type,
        .kind = job->act[group].kind,
        .w = (const uint8_t *)w->data + (uint64_t)row0 * row_bytes,
        .row_bytes = (int64_t)row_bytes,
        .n_in = w->ne[0],
        .n_w = (int)n_w,
        .n_x = (int)job->n,
        .x = &job->act[group],
        .out = job->out + row0,
        .out_stride = job->n_out,
        .scratch = cpu_mm_scratch(job->c, thread),
    };
    job->c->simd->matmul(&tile);
}

static void matmul_run(struct cpu *c, const struct tensor *weight, const struct act *act, int64_t n,
                       int64_t n_group, float *out) {
    int64_t n_out = weight->ne[1] * weight->ne[2];
    struct matmul_job job = {
        .c = c,
        .weight = weight,
        .act = act,
        .out = out,
        .n = n,
        .n_out = n_out,
        .group_rows = n_out / n_group,
    };
    int64_t row_bytes = (int64_t)dtype_row_bytes(weight->type, (uint64_t)weight->ne[0]);
    job.tile_rows = (int)MIN(cpu_tile_rows(c, n_out, row_bytes, n), job.group_rows);
    job.tiles_per_group = (int)((job.group_rows + job.tile_rows - 1) / job.tile_rows);
    pool_run(c->pool, (int)(job.tiles_per_group * n_group), matmul_task, &job);
}

void cpu_matmul_rows(struct cpu *c, const struct tensor *weight, const struct act *act, int64_t n,
                     float *out) {
    matmul_run(c, weight, act, n, 1, out);
}

/* A grouped product is n_group plain ones whose inputs lie side by side in a row. The prepared row is
 * the whole row, and a block of 32 or 256 never crosses a group's border, so a group's activations are
 * a strided view: gathered here once. */
static const float *gather_group(struct cpu *c, const struct matmul_args *a, float *to) {
    int64_t n_in = a->weight->ne[0];
    (void)c;
    for (int64_t g = 0; g < a->n_group; g++)
        for (int64_t row = 0; row < a->n; row++)
            memcpy(to + (g * a->n + row) * n_in, f32_row(a->in, row) + g * n_in,
                   (size_t)n_in * sizeof(float));
    return to;
}

enum { MATMUL_GROUPS_MAX = 64 };

void cpu_matmul(struct kernels *k, const struct matmul_args *a) {
    struct cpu *c = cpu_of(k);
    enum act_kind kind = a->f32_act ? ACT_F32 : cpu_act_kind(c, a->weight->type);
    int64_t n_in = a->weight->ne[0], n = a->n;
    if (n == 0) return;
    const float *x = a->in->data;
    if (a->n_group > 1 && n > 1) {                                     /* one row is already [group][n_in] */
        float *gathered = cpu_scratch(c, SCRATCH_ROWS, (uint64_t)(n * n_in * a->n_group) * sizeof(float));
        if (!gathered) return;
        x = gather_group(c, a, gathered);
    }
    struct act all, group[MATMUL_GROUPS_MAX];
    if (a->n_group > MATMUL_GROUPS_MAX) {
        err_set(&k->failed, ERR_UNSUPPORTED, "%d output groups, at most %d", a->n_group, MATMUL_GROUPS_MAX);
        return;
    }
    if (!cpu_act_prepare(c, &all, SCRATCH_ACT, kind, x, n * a->n_group, n_in)) return;
    int64_t n_scale = kind == ACT_Q8_0 ? n_in / 32 : n_in / 256,
            n_sum = kind == ACT_Q8_0 ? n_in / 32 : n_in / 16;
    for (int64_t g = 0; g < a->n_group; g++) {
        group[g] = all;
        group[g].f = all.f + g * n * n_in;
        if (kind == ACT_F32) continue;
        group[g].q = all.q + g * n * n_in;
        group[g].d = all.d + g * n * n_scale;
        group[g].sum = all.sum + g * n * n_sum;
    }
    matmul_run(c, a->weight, group, n, a->n_group, a->out->data);
}
