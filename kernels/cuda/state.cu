/* State: rounding and storing the raw KV rows, and the compressors that turn windows of tokens into entries.
 *
 * One kernel with parts; a block is one row of one part. When a step has few rows, everything that a
 * layer does between its first products and its attention is one launch: the queries' norm, the KV row
 * and its place in the ring, both compressors, and the choice of all entries. A window's projections
 * may lie partly in this batch and partly before it; the part before is in the history ring. Few new
 * rows never overwrite ring rows that are still read; many rows take a launch per part. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/rows.cuh"

enum { STATE_THREADS = 256, DIM_MAX = 2048, PARTS_MAX = 6 };

enum state_part { PART_NORM, PART_ROWS, PART_COMMIT, PART_ENTRIES, PART_KEYS, PART_SELECT };

/* ---- compressors ---- */

struct compressor {
    const float *kv, *score, *norm, *rope;
    const uint8_t *ape;
    enum dtype ape_type;
    uint64_t ape_row_bytes;
    const uint64_t *grid;
    struct kv_layer layer;
    struct dbatch batch;
    int dim, width;
    float eps;
    bool is_index, windows, history;
};

static __device__ __forceinline__ float *history_row(const struct compressor &a, const struct kv_slice &slice,
                                                     int pos) {
    float *ring = a.is_index ? slice.idx_hist : slice.hist;
    return ring + (int64_t)(pos % a.layer.hist_cap) * 2 * a.width;
}

static __device__ __forceinline__ float position_bias(const struct compressor &a, int pos, int d) {
    const uint8_t *row = a.ape + (uint64_t)(pos % a.layer.ratio) * a.ape_row_bytes;
    return a.ape_type == DTYPE_F16   ? f16_value(((const uint16_t *)row)[d])
           : a.ape_type == DTYPE_F32 ? ((const float *)row)[d]
                                     : decode_called(a.ape_type, row, d, a.grid);
}

/* The projection and the score of a token at pos, column d; the position bias is still to be added to
 * scores of this batch. Loads without a branch, so that many can be on their way. */
struct slot {
    float kv, score;
    bool past;
};

static __device__ __forceinline__ struct slot slot_at(const struct compressor &a,
                                                      const struct kv_slice &slice, const struct kseg &seg,
                                                      int pos, int d) {
    struct slot s;
    const float *past = history_row(a, slice, pos);
    int64_t at = (int64_t)(seg.row0 + max(pos - seg.pos0, 0)) * a.width;
    s.past = pos < seg.pos0;
    s.kv = (s.past ? past : a.kv + at)[d];
    s.score = (s.past ? past + a.width : a.score + at)[d];
    return s;
}

static __device__ __forceinline__ float slot_score(const struct compressor &a, const struct slot &s, int pos,
                                                   int d) {
    return s.past ? s.score : s.score + position_bias(a, pos, d);
}

/* Softmax over the window's slots for column d: the largest first, then the sums in order of position. */
static __device__ float pool(const struct compressor &a, const struct kv_slice &slice, const struct kseg &seg,
                             int pos, int d) {
    int ratio = a.layer.ratio, first = pos + 1 - ratio * (a.layer.overlap + 1);
    float top = -INFINITY, num = 0, den = 0;
    for (int pass = 0; pass < 2; pass++) {
#pragma unroll 4
        for (int p = max(first, 0); p <= pos; p++) {
            int column = a.layer.overlap && p > pos - ratio ? a.dim + d : d;
            struct slot s = slot_at(a, slice, seg, p, column);
            float score = slot_score(a, s, p, column);
            if (pass == 0) {
                top = fmaxf(top, score);
                continue;
            }
            float e = f32_exp(score - top);
            den += e;
            num = fmaf(e, s.kv, num);
        }
    }
    return num / den;
}

/* The same for windows of few slots: all of them on their way at once. */
enum { POOL_FEW = 8 };
static __device__ __forceinline__ float pool_few(const struct compressor &a, const struct kv_slice &slice,
                                                 const struct kseg &seg, int pos, int d) {
    int ratio = a.layer.ratio, n = ratio * (a.layer.overlap + 1), first = pos + 1 - n;
    struct slot s[POOL_FEW];
    float score[POOL_FEW], top = -INFINITY, num = 0, den = 0;
#pragma unroll
    for (int i = 0; i < POOL_FEW; i++) {           /* places that do not exist read the last one */
        int p = i < n && first + i >= 0 ? first + i : pos;
        s[i] = slot_at(a, slice, seg, p, a.layer.overlap && p > pos - ratio ? a.dim + d : d);
    }
#pragma unroll
    for (int i = 0; i < POOL_FEW; i++) {
        int p = first + i;
        int column = a.layer.overlap && p > pos - ratio ? a.dim + d : d;
        score[i] = i < n && p >= 0 ? slot_score(a, s[i], p, column) : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < POOL_FEW; i++) top = fmaxf(top, score[i]);
#pragma unroll
    for (int i = 0; i < POOL_FEW; i++) {
        if (i >= n || first + i < 0) continue;
        float e = f32_exp(score[i] - top);
        den += e;
        num = fmaf(e, s[i].kv, num);
    }
    return num / den;
}

static __device__ __forceinline__ void finish_window(const struct compressor &a, const struct kv_slice &slice,
                                     const struct kseg &seg, int row, int pos, float *x, float *shared) {
    bool few = a.layer.ratio * (a.layer.overlap + 1) <= POOL_FEW;
#pragma unroll 2
    for (int d = (int)threadIdx.x; d < a.dim; d += STATE_THREADS)
        x[d] = few ? pool_few(a, slice, seg, pos, d) : pool(a, slice, seg, pos, d);
    __syncthreads();
    norm_and_rope(x, a.dim, a.norm, a.eps, a.rope + (int64_t)row * a.layer.n_rot, a.layer.n_rot, shared);
    int page = pos / a.layer.ratio / KV_PAGE, place = pos / a.layer.ratio % KV_PAGE;
    if (a.is_index) store_key(a.layer, slice.idx_pages[page] + (int64_t)place * a.layer.key_bytes, x);
    else store_row(a.layer, slice.pages[page] + (int64_t)place * a.layer.row_bytes, x);
}

static __device__ void run_compressor(const struct compressor &a, int row, float *x, float *shared) {
    int pos = a.batch.pos[row];
    struct kseg seg = a.batch.segs[a.batch.seg[row]];
    struct kv_slice slice = a.layer.slices[seg.slot];
    if (a.windows && (pos + 1) % a.layer.ratio == 0) finish_window(a, slice, seg, row, pos, x, shared);
    /* the last hist_cap rows are kept */
    if (!a.history || row - seg.row0 < seg.n - a.layer.hist_cap) return;
    float *to = history_row(a, slice, pos);
#pragma unroll 4
    for (int d = (int)threadIdx.x; d < a.width; d += STATE_THREADS) {
        struct slot s = slot_at(a, slice, seg, pos, d);
        float score = slot_score(a, s, pos, d);
        to[d] = s.kv, to[a.width + d] = score;
    }
}

/* ---- the other parts ---- */

struct normer {
    float *out;
    const float *in, *weight;
    struct act_out act;
    int n;
    float eps;
};

static __device__ void run_norm(const struct normer &a, int row, float *x, float *shared) {
    const float *in = a.in + (int64_t)row * a.n;
    float square = 0;
    for (int i = (int)threadIdx.x; i < a.n; i += STATE_THREADS) {
        x[i] = in[i];
        square = fmaf(x[i], x[i], square);
    }
    float r = 1.0f / sqrtf(block_sum(square, shared) / (float)a.n + a.eps);
    for (int i = (int)threadIdx.x; i < a.n; i += STATE_THREADS)
        a.out[(int64_t)row * a.n + i] = x[i] = a.weight[i] * (x[i] * r);
    __syncthreads();
    act_emit(a.act, row, x, a.n, (int)threadIdx.x / 32, STATE_THREADS / 32);
}

struct row_maker {
    uint8_t *rows;
    const float *kv, *norm, *rope;
    struct kv_layer layer;
    float eps;
    bool commit;                                 /* put each row into the ring at once */
};

/* Only the last raw_cap rows of a segment. Rows are a multiple of 16 bytes and so aligned. */
static __device__ void copy_to_ring(const struct row_maker &a, const struct dbatch &batch, int row) {
    struct kseg seg = batch.segs[batch.seg[row]];
    int i = row - seg.row0, bytes = a.layer.row_bytes;
    if (i < seg.n - a.layer.raw_cap) return;
    uint8_t *to = a.layer.slices[seg.slot].raw + (int64_t)((seg.pos0 + i) % a.layer.raw_cap) * bytes;
    const uint8_t *from = a.rows + (int64_t)row * bytes;
    for (int w = (int)threadIdx.x; w < bytes / 4; w += STATE_THREADS)
        ((uint32_t *)to)[w] = ((const uint32_t *)from)[w];
}

static __device__ void run_rows(const struct row_maker &a, const struct dbatch &batch, int row, float *x,
                                float *shared) {
    int dim = a.layer.head_dim, n_rot = a.layer.n_rot;
    for (int d = (int)threadIdx.x; d < dim; d += STATE_THREADS) x[d] = a.kv[(int64_t)row * dim + d];
    __syncthreads();
    norm_and_rope(x, dim, a.norm, a.eps, a.rope + (int64_t)row * n_rot, n_rot, shared);
    store_row(a.layer, a.rows + (int64_t)row * a.layer.row_bytes, x);
    if (!a.commit) return;
    __syncthreads();                             /* the block reads what it wrote */
    copy_to_ring(a, batch, row);
}

struct selector {
    int32_t *sel, *n_sel;
    int ratio, top_k;
};

static __device__ void run_select(const struct selector &a, const struct dbatch &batch, int row) {
    int n = min((batch.pos[row] + 1) / a.ratio, a.top_k);
    for (int e = (int)threadIdx.x; e < n; e += STATE_THREADS) a.sel[(int64_t)row * a.top_k + e] = e;
    if (threadIdx.x == 0) a.n_sel[row] = n;
}

struct state_run {
    enum state_part part[PARTS_MAX];
    int n_parts;
    struct dbatch batch;
    struct normer norm;
    struct row_maker rows;
    struct compressor compress[2];
    struct selector select;
};

static __device__ __forceinline__ void fetch_floats(const float *p, int n) {
    for (int i = (int)threadIdx.x * 32; i < n; i += STATE_THREADS * 32) fetch_early(p + i);
}

static __device__ __forceinline__ void fetch_weights(const struct state_run &a) {
    enum state_part part = a.part[blockIdx.y];
    const struct kseg *seg = &a.batch.segs[a.batch.seg[blockIdx.x]];
    if (part == PART_ROWS && a.rows.commit) fetch_early(&a.rows.layer.slices[seg->slot]);
    if (part == PART_NORM) fetch_floats(a.norm.weight, a.norm.n);
    if (part == PART_ROWS) fetch_floats(a.rows.norm, a.rows.layer.head_dim);
    if (part != PART_ENTRIES && part != PART_KEYS) return;
    const struct compressor &c = a.compress[part == PART_KEYS];
    fetch_early(&c.layer.slices[seg->slot]);
    fetch_floats(c.norm, c.dim);
    if (c.layer.ratio <= POOL_FEW)
        fetch_floats((const float *)c.ape, (int)c.ape_row_bytes * c.layer.ratio / 4);
}

/* Grid: rows x parts. */
static __global__ void __launch_bounds__(STATE_THREADS)
    state_kernel(const __grid_constant__ struct state_run a) {
    __shared__ __align__(16) float x[DIM_MAX];
    __shared__ float shared[STATE_THREADS / 32];
    fetch_weights(a);
    device_wait();
    int row = (int)blockIdx.x;
    switch (a.part[blockIdx.y]) {
    case PART_NORM: run_norm(a.norm, row, x, shared); break;
    case PART_ROWS: run_rows(a.rows, a.batch, row, x, shared); break;
    case PART_COMMIT: copy_to_ring(a.rows, a.batch, row); break;
    case PART_ENTRIES: run_compressor(a.compress[0], row, x, shared); break;
    case PART_KEYS: run_compressor(a.compress[1], row, x, shared); break;
    case PART_SELECT: run_select(a.select, a.batch, row); break;
    }
}

/* ---- filling in ---- */

static void add_part(struct state_run *r, enum state_part part) {
    r->part[r->n_parts++] = part;
}

static void add_rows(struct state_run *r, const struct kv_rows_args *a, bool commit) {
    CHECK(a->layer->head_dim <= DIM_MAX);
    r->rows.rows = (uint8_t *)a->rows->data;
    r->rows.kv = f32_of(a->kv), r->rows.norm = f32_of(a->norm), r->rows.rope = f32_of(a->rope);
    r->rows.layer = *a->layer, r->rows.eps = a->eps, r->rows.commit = commit;
    add_part(r, PART_ROWS);
}

static void add_compress(struct cuda *c, struct state_run *r, const struct compress_args *a, bool windows,
                         bool history) {
    struct compressor *to = &r->compress[a->is_index];
    to->kv = f32_of(a->kv), to->score = f32_of(a->score), to->norm = f32_of(a->norm),
    to->rope = f32_of(a->rope);
    to->dim = a->is_index ? a->layer->idx_dim : a->layer->head_dim;
    to->width = to->dim * (a->layer->overlap + 1);
    to->ape = (const uint8_t *)a->ape->data, to->ape_type = a->ape->type;
    to->ape_row_bytes = dtype_row_bytes(a->ape->type, (uint64_t)to->width);
    to->grid = c->iq2_grid, to->layer = *a->layer, to->batch = c->batch.d;
    to->eps = a->eps, to->is_index = a->is_index, to->windows = windows, to->history = history;
    CHECK(to->dim <= DIM_MAX && (!a->ape->mem || a->ape->mem->layout == LAYOUT_FILE));
    add_part(r, a->is_index ? PART_KEYS : PART_ENTRIES);
}

static void launch_state(struct cuda *c, struct state_run *r, int32_t n) {
    r->batch = c->batch.d;
    launch(c, state_kernel, dim3((unsigned)n, (unsigned)r->n_parts), dim3(STATE_THREADS), 0, *r);
    c->state_at = c->n_launched;
}

void run_kv_rows(struct cuda *c, const struct kv_rows_args *a) {
    struct state_run r = {};
    add_rows(&r, a, false);
    launch_state(c, &r, a->n);
}

void run_kv_commit(struct cuda *c, const struct kv_commit_args *a) {
    struct state_run r = {};
    r.rows.layer = *a->layer, r.rows.rows = (uint8_t *)a->rows->data;
    add_part(&r, PART_COMMIT);
    launch_state(c, &r, a->batch->n_rows);
}

/* So few new rows that they overwrite nothing in the history that a window of the batch reads. */
static bool history_at_once(const struct cuda *c, const struct kv_layer *layer) {
    return c->batch.seg_rows_max <= layer->hist_cap - layer->ratio * (layer->overlap + 1) + 1;
}

void run_compress(struct cuda *c, const struct compress_args *a) {
    bool at_once = history_at_once(c, a->layer);
    struct state_run r = {};
    add_compress(c, &r, a, true, at_once);
    launch_state(c, &r, a->batch->n_rows);
    if (at_once) return;
    r = state_run{};
    add_compress(c, &r, a, false, true);
    launch_state(c, &r, a->batch->n_rows);
}

static void add_norm(struct cuda *c, struct state_run *r, const struct rms_norm_args *a, uint32_t wanted) {
    r->norm.out = f32_of(a->out), r->norm.in = f32_of(a->in), r->norm.weight = f32_of(a->weight);
    r->norm.eps = a->eps, r->norm.n = (int)a->in->ne[0];
    r->norm.act = act_out(c, wanted, r->norm.out, r->norm.n, a->n);
    add_part(r, PART_NORM);
}

void run_state(struct cuda *c, const struct state_ops *ops) {
    struct state_run r = {};
    bool norm_fits = ops->norm && ops->norm->in->ne[0] <= DIM_MAX && ops->norm->n == c->batch.view.n_rows;
    if (norm_fits) add_norm(c, &r, ops->norm, ops->norm_wanted);
    else if (ops->norm) run_rms_norm(c, ops->norm);
    if (ops->rows) add_rows(&r, ops->rows, ops->commit != NULL);
    for (int i = 0; i < 2; i++) {
        if (!ops->compress[i]) continue;
        if (history_at_once(c, ops->compress[i]->layer)) add_compress(c, &r, ops->compress[i], true, true);
        else run_compress(c, ops->compress[i]);
    }
    if (ops->select) {
        r.select.sel = (int32_t *)ops->select->sel->data,
        r.select.n_sel = (int32_t *)ops->select->n_sel->data;
        r.select.ratio = ops->select->layer->ratio, r.select.top_k = ops->select->top_k;
        add_part(&r, PART_SELECT);
    }
    if (r.n_parts) launch_state(c, &r, c->batch.view.n_rows);
}
