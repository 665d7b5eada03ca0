/* The lightning indexer: which compressed entries a token attends to.
 *
 * Many rows (prefill): one task scores and selects for a whole row. Few rows (decode): the keys of one
 * row are cut into tasks. Either way a score is computed by the same arithmetic, and the selection is
 * exact: larger score first, then lower index. */
#include "kernels/cpu/cpu.h"

#include "common/base/check.h"

#include <math.h>

enum { KEY_PAGES_AT_ONCE = 32 };                   /* keys per task in decode: 32 pages of 64 */

struct index_job {
    struct cpu *c;
    const struct index_select_args *a;
    uint64_t query_bytes;                          /* one prepared query */
    uint64_t stride;
    uint8_t *threads;                              /* per thread: query, scores */
    /* decode: */
    uint8_t *query;
    float *scores;
    int32_t row, n_visible;
};

/* A prepared query: weights [n_head], then f32 rows (exact) or int8 codes and exponents. */
static float *query_weights(uint8_t *query) {
    return (float *)(void *)query;
}

static uint8_t *query_values(const struct index_job *job, uint8_t *query) {
    return query + ALIGN_UP((uint64_t)job->a->n_head * sizeof(float), (uint64_t)64);
}

static void query_prepare(const struct index_job *job, int32_t row, uint8_t *query) {
    const struct index_select_args *a = job->a;
    const struct kv_layer *layer = a->layer;
    int32_t dim = layer->idx_dim, n_head = a->n_head;
    float *w = query_weights(query), scale = 1.0f / sqrtf((float)dim * (float)n_head);
    const float *proj = f32_row(a->weight, row);
    uint8_t *values = query_values(job, query);
    for (int32_t h = 0; h < n_head; h++) {
        float *q = f32_row(a->q, row) + (int64_t)h * dim;
        w[h] = proj[h] * scale;
        cpu_rope_row(q + dim - layer->n_rot, f32_row(a->rope, row), layer->n_rot, false);
        if (layer->numerics == NUMERICS_EXACT) {
            memcpy(values + (int64_t)h * dim * 4, q, (size_t)dim * 4);
            continue;
        }
        job->c->simd->hadamard(q, dim);
        job->c->simd->fp4_codes((int8_t *)values + (int64_t)h * dim,
                                (int8_t *)values + (int64_t)n_head * dim + (int64_t)h * (dim / 32), q, dim);
    }
}

static void score_exact(const struct index_job *job, uint8_t *query, const uint8_t *keys, int32_t n,
                        float *score) {
    const struct index_select_args *a = job->a;
    int32_t dim = a->layer->idx_dim;
    const float *w = query_weights(query), *q = (const float *)(void *)query_values(job, query);
    for (int32_t i = 0; i < n; i++) {
        const float *key = (const float *)(const void *)(keys + (int64_t)i * a->layer->key_bytes);
        float sum = 0;
        for (int32_t h = 0; h < a->n_head; h++)
            sum = fmaf(w[h], MAX(0.0f, job->c->simd->dot(q + (int64_t)h * dim, key, dim)), sum);
        score[i] = sum;
    }
}

/* Scores of entries first .. first+n, first at a page's start. */
static void score_keys(const struct index_job *job, int32_t row, uint8_t *query, int32_t first,
                       int32_t n, float *score) {
    const struct index_select_args *a = job->a;
    const struct kv_layer *layer = a->layer;
    const struct kv_slice *slice = &layer->slices[a->batch->segs[a->batch->seg[a->row0 + row]].slot];
    uint8_t *values = query_values(job, query);
    for (int32_t done = 0; done < n; done += KV_PAGE) {
        const uint8_t *keys = slice->idx_pages[(first + done) / KV_PAGE];
        int32_t part = MIN(KV_PAGE, n - done);
        if (layer->numerics == NUMERICS_EXACT)
            score_exact(job, query, keys, part, score + done);
        else
            job->c->simd->idx_scores(score + done, (const int8_t *)values,
                                     (const int8_t *)values + (int64_t)a->n_head * layer->idx_dim,
                                     query_weights(query), a->n_head, layer->idx_dim, keys,
                                     layer->key_bytes, part);
    }
}

/* ---- selection ---- */

/* Order-preserving: a larger float has a larger key. */
static inline uint32_t float_key(float x) {
    uint32_t u = f32_bits(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* The k-th largest key (1-based) by four histogram passes; *n_above: how many keys are larger than it. */
static uint32_t kth_key(const float *score, int32_t n, int32_t k, int32_t *n_above) {
    uint32_t prefix = 0, mask = 0;
    int32_t above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int32_t count[256] = { 0 };
        for (int32_t i = 0; i < n; i++) {
            uint32_t key = float_key(score[i]);
            if ((key & mask) == prefix) count[key >> shift & 255]++;
        }
        int digit = 255;
        while (above + count[digit] < k) above += count[digit--];
        prefix |= (uint32_t)digit << shift;
        mask |= 255u << shift;
    }
    *n_above = above;
    return prefix;
}

static void select_top(const float *score, int32_t n, int32_t k, int32_t *sel) {
    int32_t n_above, n_out = 0;
    uint32_t limit = kth_key(score, n, k, &n_above);
    int32_t n_ties = k - n_above;                  /* of those equal to the limit the lower indices win */
    for (int32_t i = 0; i < n; i++) {
        uint32_t key = float_key(score[i]);
        if (key > limit || (key == limit && n_ties-- > 0)) sel[n_out++] = i;
    }
}

static int32_t visible(const struct index_job *job, int32_t row) {
    return (job->a->batch->pos[job->a->row0 + row] + 1) / job->a->layer->ratio;
}

static void select_all(const struct index_job *job, int32_t row) {
    int32_t n = visible(job, row), *sel = (int32_t *)job->a->sel->data + (int64_t)row * job->a->top_k;
    CHECK(n <= job->a->top_k);
    ((int32_t *)job->a->n_sel->data)[row] = n;
    for (int32_t i = 0; i < n; i++) sel[i] = i;
}

static void select_row(const struct index_job *job, int32_t row, const float *score, int32_t n) {
    ((int32_t *)job->a->n_sel->data)[row] = job->a->top_k;
    select_top(score, n, job->a->top_k, (int32_t *)job->a->sel->data + (int64_t)row * job->a->top_k);
}

/* ---- tasks ---- */

static void index_row_task(void *ctx, int row, int thread) {
    const struct index_job *job = ctx;
    int32_t n = visible(job, row);
    if (n <= job->a->top_k) {
        select_all(job, row);
        return;
    }
    uint8_t *query = job->threads + job->stride * (uint64_t)thread;
    float *score = (float *)(void *)(query + job->query_bytes);
    query_prepare(job, row, query);
    score_keys(job, row, query, 0, n, score);
    select_row(job, row, score, n);
}

static void index_keys_task(void *ctx, int task, int thread) {
    (void)thread;
    const struct index_job *job = ctx;
    int32_t first = task * KEY_PAGES_AT_ONCE * KV_PAGE;
    score_keys(job, job->row, job->query, first,
               MIN(KEY_PAGES_AT_ONCE * KV_PAGE, job->n_visible - first), job->scores + first);
}

static void index_few_rows(struct index_job *job) {
    const int32_t per_task = KEY_PAGES_AT_ONCE * KV_PAGE;
    job->query = job->threads;
    job->scores = (float *)(void *)(job->threads + job->query_bytes);
    for (job->row = 0; job->row < job->a->n; job->row++) {
        job->n_visible = visible(job, job->row);
        if (job->n_visible <= job->a->top_k) {
            select_all(job, job->row);
            continue;
        }
        query_prepare(job, job->row, job->query);
        pool_run(job->c->pool, (job->n_visible + per_task - 1) / per_task, index_keys_task, job);
        select_row(job, job->row, job->scores, job->n_visible);
    }
}

void cpu_index_select(struct kernels *k, const struct index_select_args *a) {
    struct cpu *c = cpu_of(k);
    struct index_job job = { .c = c, .a = a };
    int32_t n_max = 0, n_rows = a->n;
    for (int32_t row = 0; row < n_rows; row++) n_max = MAX(n_max, visible(&job, row));
    if (!a->q || n_max <= a->top_k) {
        for (int32_t row = 0; row < n_rows; row++) select_all(&job, row);
        return;
    }
    uint64_t value_bytes = (uint64_t)a->n_head * (uint64_t)a->layer->idx_dim * 4;
    job.query_bytes = ALIGN_UP((uint64_t)a->n_head * sizeof(float), (uint64_t)64) +
                      ALIGN_UP(value_bytes, (uint64_t)64);
    job.threads = cpu_scratch_threads(c, job.query_bytes + (uint64_t)n_max * sizeof(float), &job.stride);
    if (!job.threads) return;
    if (n_rows >= 2 * pool_threads(c->pool)) cpu_each(c, n_rows, index_row_task, &job);
    else index_few_rows(&job);
}
