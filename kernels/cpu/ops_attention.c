/* Core attention: 64 heads against the rows of one token - the raw window, then the selected compressed
 * entries.
 *
 * One task is one token and a group of heads. Rows are unpacked 64 at a time into f32 (cheap beside the
 * products: every row serves all heads of the group), first for the scores, then again for the weighted
 * sum. Per head the sums run over the rows in order, so the result depends on nothing but the token's
 * own rows. */
#include "kernels/cpu/cpu.h"

#include <math.h>

enum {
    ROWS_AT_ONCE = 64, HEADS_MIN = 8,
    ROW_PAD = 16,                         /* floats: 64 rows at a power of two would share a few cache sets */
};

struct attention_job {
    struct cpu *c;
    const struct attention_args *a;
    int32_t n_groups, group_heads;                 /* head groups per token */
    int32_t n_rows_max;
    uint64_t stride, rows_offset, z_offset;
    uint8_t *threads;                              /* per thread: row pointers, tile, scores, ones */
    const float *ones;
    float scale;
};

/* The rows a token reads, in order. */
static int32_t row_list(const struct attention_job *job, int32_t i, const uint8_t **list) {
    const struct attention_args *a = job->a;
    const struct kv_layer *layer = a->layer;
    int32_t row = a->row0 + i, pos = a->batch->pos[row], n = 0;
    const struct kseg *seg = &a->batch->segs[a->batch->seg[row]];
    const struct kv_slice *slice = &layer->slices[seg->slot];
    for (int32_t p = MAX(0, pos - layer->n_swa + 1); p <= pos; p++)
        list[n++] = p >= seg->pos0 ? (const uint8_t *)a->rows->data +
                                         (int64_t)(seg->row0 + p - seg->pos0) * layer->row_bytes
                                   : slice->raw + (int64_t)(p % layer->raw_cap) * layer->row_bytes;
    if (!layer->ratio) return n;
    int32_t n_entries = a->sel ? ((const int32_t *)a->n_sel->data)[i] : (pos + 1) / layer->ratio;
    const int32_t *sel = a->sel ? (const int32_t *)a->sel->data + (int64_t)i * a->sel->ne[0] : NULL;
    for (int32_t j = 0; j < n_entries; j++) {
        int32_t entry = sel ? sel[j] : j;
        list[n++] = slice->pages[entry / KV_PAGE] + (int64_t)(entry % KV_PAGE) * layer->row_bytes;
    }
    return n;
}

static void unpack_rows(const struct attention_job *job, const uint8_t *const *list, int32_t n, float *tile) {
    const struct kv_layer *layer = job->a->layer;
    int32_t n_nope = layer->head_dim - layer->n_rot;
    for (int32_t i = 0; i < n; i++) {
        float *x = tile + (int64_t)i * (layer->head_dim + ROW_PAD);
        if (layer->numerics == NUMERICS_EXACT) {
            memcpy(x, list[i], (size_t)layer->row_bytes);
        } else if (layer->numerics == NUMERICS_WIDE) {
            job->c->simd->kv_unpack(x, list[i], n_nope, 0);
            memcpy(x + n_nope, list[i] + n_nope + n_nope / 64, (size_t)layer->n_rot * sizeof *x);
        } else {
            job->c->simd->kv_unpack(x, list[i], n_nope, layer->n_rot);
        }
    }
}

/* z becomes exp(z - m); gives 1 / (sum + exp(sink - m)). */
static float softmax_sink(const struct attention_job *job, float *z, int32_t n, float sink) {
    const struct cpu_simd *simd = job->c->simd;
    float m = sink, one_sink;
    for (int32_t i = 0; i < n; i++) m = MAX(m, z[i]);
    one_sink = sink;
    simd->exp_sub(&one_sink, m, 1);
    simd->exp_sub(z, m, n);
    return 1.0f / (one_sink + simd->dot(z, job->ones, n));
}

static void attention_task(void *ctx, int task, int thread) {
    const struct attention_job *job = ctx;
    const struct attention_args *a = job->a;
    const struct cpu_simd *simd = job->c->simd;
    int32_t dim = a->layer->head_dim, n_rot = a->layer->n_rot;
    int32_t i = task / job->n_groups, head0 = task % job->n_groups * job->group_heads;
    int32_t n_head = MIN(job->group_heads, a->n_head - head0);
    uint8_t *memory = job->threads + job->stride * (uint64_t)thread;
    const uint8_t **list = (const uint8_t **)(void *)memory;
    float *tile = (float *)(void *)(memory + job->rows_offset),
          *z = (float *)(void *)(memory + job->z_offset);
    float *q = f32_row(a->q, i) + (int64_t)head0 * dim;
    int32_t n = row_list(job, i, list);
    int64_t z_stride = job->n_rows_max;
    for (int32_t r = 0; r < n; r += ROWS_AT_ONCE) {
        int32_t part = MIN(ROWS_AT_ONCE, n - r);
        unpack_rows(job, list + r, part, tile);
        simd->attn_scores(z + r, z_stride, q, dim, tile, dim + ROW_PAD, n_head, part, dim, job->scale);
    }
    float norm[256];
    for (int32_t h = 0; h < n_head; h++)
        norm[h] = softmax_sink(job, z + h * z_stride, n, ((const float *)a->sinks->data)[head0 + h]);
    memset(q, 0, (size_t)n_head * (size_t)dim * sizeof *q);  /* the queries are used up: outputs go there */
    for (int32_t r = 0; r < n; r += ROWS_AT_ONCE) {
        int32_t part = MIN(ROWS_AT_ONCE, n - r);
        if (n > ROWS_AT_ONCE) unpack_rows(job, list + r, part, tile);
        simd->attn_mix(q, dim, z + r, z_stride, tile, dim + ROW_PAD, n_head, part, dim);
    }
    for (int32_t h = 0; h < n_head; h++) {
        simd->scale_mul(q + (int64_t)h * dim, q + (int64_t)h * dim, norm[h], NULL, dim);
        cpu_rope_row(q + (int64_t)h * dim + dim - n_rot, f32_row(a->rope, i), n_rot, true);
    }
}

static int32_t rows_max(const struct attention_args *a) {
    int32_t n = 0;
    for (int32_t i = 0; i < a->n; i++) {
        int32_t pos = a->batch->pos[a->row0 + i], entries = 0;
        if (a->layer->ratio)
            entries = a->sel ? ((const int32_t *)a->n_sel->data)[i] : (pos + 1) / a->layer->ratio;
        n = MAX(n, MIN(pos + 1, a->layer->n_swa) + entries);
    }
    return n;
}

void cpu_attention(struct kernels *k, const struct attention_args *a) {
    struct cpu *c = cpu_of(k);
    struct attention_job job = { .c = c, .a = a, .scale = 1.0f / sqrtf((float)a->layer->head_dim) };
    int n_threads = pool_threads(c->pool);
    if (a->n == 0) return;
    int32_t groups = a->n >= 2 * n_threads ? 1 : MAX(1, MIN(a->n_head / HEADS_MIN, 2 * n_threads));
    job.group_heads = MIN((a->n_head + groups - 1) / groups, 256);
    job.n_groups = (a->n_head + job.group_heads - 1) / job.group_heads;
    job.n_rows_max = ALIGN_UP(rows_max(a), 16);
    job.rows_offset = ALIGN_UP((uint64_t)job.n_rows_max * sizeof(void *), (uint64_t)64);
    job.z_offset = job.rows_offset + (uint64_t)ROWS_AT_ONCE *
                                         (uint64_t)(a->layer->head_dim + ROW_PAD) * sizeof(float);
    uint64_t size = job.z_offset + (uint64_t)job.group_heads * (uint64_t)job.n_rows_max * sizeof(float);
    job.threads = cpu_scratch_threads(c, size, &job.stride);
    float *ones = cpu_scratch(c, SCRATCH_LISTS, (uint64_t)job.n_rows_max * sizeof(float));
    if (!job.threads || !ones) return;
    for (int32_t i = 0; i < job.n_rows_max; i++) ones[i] = 1.0f;
    job.ones = ones;
    pool_run(c->pool, a->n * job.n_groups, attention_task, &job);
}
