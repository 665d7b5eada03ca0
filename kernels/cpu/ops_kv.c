/* State: rounding and storing the raw KV rows, and the compressors that turn windows of tokens into entries.
 *
 * A window's projections may lie partly in this batch and partly before it; the part before is in the
 * history ring, which keeps enough rows for one window and KV_ROLLBACK tokens more, so taking tokens
 * back is only a smaller length. */
#include "kernels/cpu/cpu.h"

#include "common/base/check.h"

#include <math.h>

enum { COMPRESS_SLOTS_MAX = 1024, COMPRESS_WIDTH_MAX = 4096 };

/* ---- raw rows ---- */

struct kv_rows_job {
    const struct cpu *c;
    const struct kv_rows_args *a;
    uint64_t stride;
    uint8_t *rows;                                 /* per thread: one f32 row */
};

static void store_row(const struct cpu *c, const struct kv_layer *layer, uint8_t *row, const float *x) {
    int32_t n_nope = layer->head_dim - layer->n_rot;
    if (layer->numerics == NUMERICS_EXACT) {
        memcpy(row, x, (size_t)layer->row_bytes);
    } else if (layer->numerics == NUMERICS_WIDE) {
        c->simd->kv_pack(row, x, n_nope, 0);
        memcpy(row + n_nope + n_nope / 64, x + n_nope, (size_t)layer->n_rot * sizeof *x);
    } else {
        c->simd->kv_pack(row, x, n_nope, layer->n_rot);
    }
}

static void kv_rows_task(void *ctx, int row, int thread) {
    const struct kv_rows_job *job = ctx;
    const struct kv_rows_args *a = job->a;
    const struct kv_layer *layer = a->layer;
    const float *in = f32_row(a->kv, row);
    float *x = (float *)(void *)(job->rows + job->stride * (uint64_t)thread);
    float r = 1.0f / sqrtf(job->c->simd->dot(in, in, layer->head_dim) / (float)layer->head_dim + a->eps);
    job->c->simd->scale_mul(x, in, r, a->norm->data, layer->head_dim);
    cpu_rope_row(x + layer->head_dim - layer->n_rot, f32_row(a->rope, row), layer->n_rot, false);
    store_row(job->c, layer, (uint8_t *)a->rows->data + (int64_t)row * layer->row_bytes, x);
}

void cpu_kv_rows(struct kernels *k, const struct kv_rows_args *a) {
    struct cpu *c = cpu_of(k);
    struct kv_rows_job job = { .c = c, .a = a };
    job.rows = cpu_scratch_threads(c, (uint64_t)a->layer->head_dim * sizeof(float), &job.stride);
    if (job.rows) cpu_each(c, a->n, kv_rows_task, &job);
}

static void kv_commit_task(void *ctx, int seg_i, int thread) {
    (void)thread;
    const struct kv_commit_args *a = ctx;
    const struct kseg *seg = &a->batch->segs[seg_i];
    const struct kv_layer *layer = a->layer;
    const struct kv_slice *slice = &layer->slices[seg->slot];
    for (int32_t i = MAX(0, seg->n - layer->raw_cap); i < seg->n; i++)
        memcpy(slice->raw + (int64_t)((seg->pos0 + i) % layer->raw_cap) * layer->row_bytes,
               (const uint8_t *)a->rows->data + (int64_t)(seg->row0 + i) * layer->row_bytes,
               (size_t)layer->row_bytes);
}

void cpu_kv_commit(struct kernels *k, const struct kv_commit_args *a) {
    struct kv_commit_args copy = *a;
    cpu_each(cpu_of(k), a->batch->n_seg, kv_commit_task, &copy);
}

/* ---- compressors ---- */

struct compress_job {
    const struct cpu *c;
    const struct compress_args *a;
    int32_t dim, width;                            /* of an entry; of a projection: c * dim */
    int32_t n_done;
    int32_t *done;                                 /* rows whose token ends a window */
    uint64_t stride;
    uint8_t *rows;                                 /* per thread: one projection row */
};

static void ape_task(void *ctx, int row, int thread) {
    const struct compress_job *job = ctx;
    const struct compress_args *a = job->a;
    float *ape = (float *)(void *)(job->rows + job->stride * (uint64_t)thread),
          *score = f32_row(a->score, row);
    uint64_t row_bytes = dtype_row_bytes(a->ape->type, (uint64_t)job->width);
    int32_t phase = a->batch->pos[row] % a->layer->ratio;
    dtype_decode(a->ape->type, (const uint8_t *)a->ape->data + (uint64_t)phase * row_bytes, ape,
                 (uint64_t)job->width);
    for (int32_t i = 0; i < job->width; i++) score[i] += ape[i];
}

static float *history_row(const struct compress_job *job, const struct kv_slice *slice, int32_t pos) {
    float *ring = job->a->is_index ? slice->idx_hist : slice->hist;
    return ring + (int64_t)(pos % job->a->layer->hist_cap) * 2 * job->width;
}

/* Adds the slots of tokens first..last, columns from `column`; tokens before 0 do not exist. */
static int window_slots(const struct compress_job *job, const struct kseg *seg, int32_t first,
                        int32_t last, int32_t column, const float **kv, const float **score,
                        int n) {
    const struct compress_args *a = job->a;
    for (int32_t pos = MAX(first, 0); pos <= last; pos++, n++) {
        if (pos >= seg->pos0) {
            kv[n] = f32_row(a->kv, seg->row0 + pos - seg->pos0) + column;
            score[n] = f32_row(a->score, seg->row0 + pos - seg->pos0) + column;
        } else {
            kv[n] = history_row(job, &a->layer->slices[seg->slot], pos) + column;
            score[n] = kv[n] + job->width;
        }
    }
    return n;
}

static void store_entry(const struct compress_job *job, const struct kv_slice *slice, int32_t entry,
                        float *x) {
    const struct kv_layer *layer = job->a->layer;
    uint8_t *page = (job->a->is_index ? slice->idx_pages : slice->pages)[entry / KV_PAGE];
    if (!job->a->is_index) {
        store_row(job->c, layer, page + (int64_t)(entry % KV_PAGE) * layer->row_bytes, x);
        return;
    }
    uint8_t *key = page + (int64_t)(entry % KV_PAGE) * layer->key_bytes;
    if (layer->numerics == NUMERICS_EXACT) {
        memcpy(key, x, (size_t)layer->key_bytes);
        return;
    }
    job->c->simd->hadamard(x, layer->idx_dim);
    job->c->simd->fp4_pack(key, x, layer->idx_dim);
}

static void window_task(void *ctx, int done_i, int thread) {
    const struct compress_job *job = ctx;
    const struct compress_args *a = job->a;
    const struct kv_layer *layer = a->layer;
    int32_t row = job->done[done_i], pos = a->batch->pos[row], n = 0;
    const struct kseg *seg = &a->batch->segs[a->batch->seg[row]];
    const float *kv[COMPRESS_SLOTS_MAX], *score[COMPRESS_SLOTS_MAX];
    if (layer->overlap)
        n = window_slots(job, seg, pos + 1 - 2 * layer->ratio, pos - layer->ratio, 0, kv, score, n);
    n = window_slots(job, seg, pos + 1 - layer->ratio, pos, layer->overlap ? job->dim : 0, kv, score, n);
    float *x = (float *)(void *)(job->rows + job->stride * (uint64_t)thread);
    job->c->simd->softmax_pool(x, kv, score, n, job->dim);
    float r = 1.0f / sqrtf(job->c->simd->dot(x, x, job->dim) / (float)job->dim + a->eps);
    job->c->simd->scale_mul(x, x, r, a->norm->data, job->dim);
    cpu_rope_row(x + job->dim - layer->n_rot, f32_row(a->rope, row), layer->n_rot, false);
    store_entry(job, &layer->slices[seg->slot], pos / layer->ratio, x);
}

static void history_task(void *ctx, int seg_i, int thread) {
    (void)thread;
    const struct compress_job *job = ctx;
    const struct compress_args *a = job->a;
    const struct kseg *seg = &a->batch->segs[seg_i];
    size_t bytes = (size_t)job->width * sizeof(float);
    for (int32_t i = MAX(0, seg->n - a->layer->hist_cap); i < seg->n; i++) {
        float *to = history_row(job, &a->layer->slices[seg->slot], seg->pos0 + i);
        memcpy(to, f32_row(a->kv, seg->row0 + i), bytes);
        memcpy(to + job->width, f32_row(a->score, seg->row0 + i), bytes);
    }
}

void cpu_compress(struct kernels *k, const struct compress_args *a) {
    struct cpu *c = cpu_of(k);
    const struct kbatch *batch = a->batch;
    struct compress_job job = { .c = c, .a = a, .dim = a->is_index ? a->layer->idx_dim : a->layer->head_dim };
    job.width = job.dim * (a->layer->overlap + 1);
    CHECK(a->layer->ratio * (a->layer->overlap + 1) <= COMPRESS_SLOTS_MAX);
    job.rows = cpu_scratch_threads(c, (uint64_t)job.width * sizeof(float), &job.stride);
    job.done = cpu_scratch(c, SCRATCH_LISTS, (uint64_t)batch->n_rows * sizeof(int32_t));
    if (!job.rows || !job.done) return;
    for (int32_t row = 0; row < batch->n_rows; row++)
        if ((batch->pos[row] + 1) % a->layer->ratio == 0) job.done[job.n_done++] = row;
    cpu_each(c, batch->n_rows, ape_task, &job);
    cpu_each(c, job.n_done, window_task, &job);
    cpu_each(c, batch->n_seg, history_task, &job);
}
