/* State: rounding and storing the raw KV rows, and the compressors that turn windows of tokens into
 * entries.
 *
 * One block per row. A window's projections may lie partly in this batch and partly before it; the part
 * before is in the history ring. Few new rows never overwrite ring rows that a window of the batch still
 * reads, so then one kernel does both; many rows take two launches. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/rows.cuh"

enum { KV_THREADS = 128, WINDOW_THREADS = 256, DIM_MAX = 2048 };

static __global__ void __launch_bounds__(KV_THREADS)
    kv_rows_kernel(uint8_t *rows, const float *kv, const float *norm, const float *rope,
                   struct kv_layer layer, float eps) {
    __shared__ float x[DIM_MAX], shared[KV_THREADS / 32];
    device_wait();
    int64_t row = blockIdx.x;
    for (int d = (int)threadIdx.x; d < layer.head_dim; d += KV_THREADS) x[d] = kv[row * layer.head_dim + d];
    __syncthreads();
    norm_and_rope(x, layer.head_dim, norm, eps, rope + row * layer.n_rot, layer.n_rot, shared);
    store_row(layer, rows + row * layer.row_bytes, x);
}

void run_kv_rows(struct cuda *c, const struct kv_rows_args *a) {
    CHECK(a->layer->head_dim <= DIM_MAX);
    launch(c, kv_rows_kernel, dim3((unsigned)a->n), dim3(KV_THREADS), 0, (uint8_t *)a->rows->data,
           (const float *)f32_of(a->kv), (const float *)f32_of(a->norm), (const float *)f32_of(a->rope),
           *a->layer, a->eps);
}

/* Grid: rows. The last raw_cap rows of every segment go to the ring. */
static __global__ void __launch_bounds__(KV_THREADS)
    kv_commit_kernel(const uint8_t *rows, struct kv_layer layer, struct dbatch batch) {
    device_wait();
    int row = (int)blockIdx.x;
    struct kseg seg = batch.segs[batch.seg[row]];
    int i = row - seg.row0;
    if (i < seg.n - layer.raw_cap) return;
    uint8_t *to = layer.slices[seg.slot].raw + (int64_t)((seg.pos0 + i) % layer.raw_cap) * layer.row_bytes;
    const uint8_t *from =
        rows + (int64_t)row * layer.row_bytes; /* rows are a multiple of 16 bytes and so aligned */
    for (int w = (int)threadIdx.x; w < layer.row_bytes / 4; w += KV_THREADS)
        ((uint32_t *)to)[w] = ((const uint32_t *)from)[w];
}

void run_kv_commit(struct cuda *c, const struct kv_commit_args *a) {
    launch(c, kv_commit_kernel, dim3((unsigned)a->batch->n_rows), dim3(KV_THREADS), 0,
           (const uint8_t *)a->rows->data, *a->layer, c->batch.d);
}

/* ---- compressors ---- */

struct compress_run {
    const float *kv, *score, *norm, *rope;
    const uint8_t *ape;
    enum dtype ape_type;
    uint64_t ape_row_bytes;
    const uint64_t *grid;
    struct kv_layer layer;
    struct dbatch batch;
    int dim, width;
    float eps;
    bool is_index;
};

static __device__ __forceinline__ float *history_row(const struct compress_run &a,
                                                     const struct kv_slice &slice, int pos) {
    float *ring = a.is_index ? slice.idx_hist : slice.hist;
    return ring + (int64_t)(pos % a.layer.hist_cap) * 2 * a.width;
}

/* The projection and the score with its position bias, of a token at pos, column d. */
static __device__ __forceinline__ void slot_at(const struct compress_run &a, const struct kv_slice &slice,
                                               const struct kseg &seg, int pos, int d, float *kv,
                                               float *score) {
    if (pos < seg.pos0) {
        const float *past = history_row(a, slice, pos);
        *kv = past[d];
        *score = past[a.width + d];
        return;
    }
    int64_t at = (int64_t)(seg.row0 + pos - seg.pos0) * a.width + d;
    *kv = a.kv[at];
    *score = a.score[at] +
             decode(a.ape_type, a.ape + (uint64_t)(pos % a.layer.ratio) * a.ape_row_bytes, d, a.grid);
}

/* Softmax over the window's slots for column d: the largest first, then the sums in order of position. */
static __device__ float pool(const struct compress_run &a, const struct kv_slice &slice,
                             const struct kseg &seg, int pos, int d) {
    int ratio = a.layer.ratio, first = pos + 1 - ratio * (a.layer.overlap + 1);
    float top = -INFINITY, num = 0, den = 0, kv, score;
    for (int pass = 0; pass < 2; pass++) {
#pragma unroll 4
        for (int p = max(first, 0); p <= pos; p++) {
            int column = a.layer.overlap && p > pos - ratio ? a.dim + d : d;
            slot_at(a, slice, seg, p, column, &kv, &score);
            if (pass == 0) {
                top = fmaxf(top, score);
                continue;
            }
            float e = f32_exp(score - top);
            den += e;
            num = fmaf(e, kv, num);
        }
    }
    return num / den;
}

static __device__ void window_run(const struct compress_run &a, const struct kv_slice &slice,
                                  const struct kseg &seg, int row, int pos, float *x, float *shared) {
    for (int d = (int)threadIdx.x; d < a.dim; d += WINDOW_THREADS) x[d] = pool(a, slice, seg, pos, d);
    __syncthreads();
    norm_and_rope(x, a.dim, a.norm, a.eps, a.rope + (int64_t)row * a.layer.n_rot, a.layer.n_rot, shared);
    int entry = pos / a.layer.ratio;
    if (a.is_index)
        store_key(a.layer,
                  slice.idx_pages[entry / KV_PAGE] + (int64_t)(entry % KV_PAGE) * a.layer.key_bytes, x);
    else store_row(a.layer, slice.pages[entry / KV_PAGE] + (int64_t)(entry % KV_PAGE) * a.layer.row_bytes, x);
}

/* The last hist_cap rows of every segment. */
static __device__ void history_run(const struct compress_run &a, const struct kv_slice &slice,
                                   const struct kseg &seg, int row, int pos) {
    if (row - seg.row0 < seg.n - a.layer.hist_cap) return;
    float *to = history_row(a, slice, pos);
    for (int d = (int)threadIdx.x; d < a.width; d += WINDOW_THREADS)
        slot_at(a, slice, seg, pos, d, &to[d], &to[a.width + d]);
}

/* Grid: rows. */
static __global__ void __launch_bounds__(WINDOW_THREADS)
    compress_kernel(struct compress_run a, bool windows, bool history) {
    __shared__ float x[DIM_MAX], shared[WINDOW_THREADS / 32];
    device_wait();
    int row = (int)blockIdx.x, pos = a.batch.pos[row];
    struct kseg seg = a.batch.segs[a.batch.seg[row]];
    struct kv_slice slice = a.layer.slices[seg.slot];
    if (windows && (pos + 1) % a.layer.ratio == 0) window_run(a, slice, seg, row, pos, x, shared);
    if (history) history_run(a, slice, seg, row, pos);
}

void run_compress(struct cuda *c, const struct compress_args *a) {
    struct compress_run r = {};
    r.kv = f32_of(a->kv), r.score = f32_of(a->score), r.norm = f32_of(a->norm), r.rope = f32_of(a->rope);
    r.dim = a->is_index ? a->layer->idx_dim : a->layer->head_dim, r.width = r.dim * (a->layer->overlap + 1);
    r.ape = (const uint8_t *)a->ape->data, r.ape_type = a->ape->type,
    r.ape_row_bytes = dtype_row_bytes(a->ape->type, (uint64_t)r.width);
    r.grid = c->iq2_grid, r.layer = *a->layer, r.batch = c->batch.d, r.eps = a->eps, r.is_index = a->is_index;
    CHECK(r.dim <= DIM_MAX && (!a->ape->mem || a->ape->mem->layout == LAYOUT_FILE));
    dim3 grid((unsigned)a->batch->n_rows), block(WINDOW_THREADS);
    int32_t window = a->layer->ratio * (a->layer->overlap + 1);
    if (c->batch.seg_rows_max <= a->layer->hist_cap - window + 1) {
        launch(c, compress_kernel, grid, block, 0, r, true, true);
        return;
    }
    launch(c, compress_kernel, grid, block, 0, r, true, false);
    launch(c, compress_kernel, grid, block, 0, r, false, true);
}
