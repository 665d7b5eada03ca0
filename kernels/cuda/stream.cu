/* The residual streams and everything that works row by row.
 *
 * Hyper-connections run in two launches. The first cuts the channels in slices of 64: a block takes one
 * slice of all four streams, mixes in the sublayer's output (hc_post), and multiplies the new streams
 * with the slice's part of fn (hc_pre); each streams' value is read once for both. The second adds the
 * slices' sums and makes the collapsed, normed row; the mixing matrix takes twenty rounds of divisions,
 * so it has a block of its own beside it. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode.cuh"

enum {
    SLICE = 64,      /* channels: two per lane */
    SLICE_WARPS = 8, /* rows of fn are dealt to these */
    ROWS_PER_WARP = HC_MIX / SLICE_WARPS,
    SLICE_TOKENS = 16, /* a block's part of fn stays in registers for so many tokens */
    FINISH_THREADS = 512,
    ROW_THREADS = 256,
};

/* ---- embedding ---- */

static __global__ void embed_kernel(float *out, const uint8_t *table, enum dtype type, int64_t n_embd,
                                    uint64_t row_bytes, int n_streams, struct dbatch batch,
                                    const uint64_t *grid) {
    device_wait();
    int64_t d = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (d >= n_embd) return;
    float value = decode(type, table + (uint64_t)batch.token[blockIdx.x] * row_bytes, d, grid);
    for (int s = 0; s < n_streams; s++) out[((int64_t)blockIdx.x * n_streams + s) * n_embd + d] = value;
}

void run_embed(struct cuda *c, const struct embed_args *a) {
    int64_t n_embd = a->table->ne[0];
    CHECK(!a->table->mem || a->table->mem->layout == LAYOUT_FILE);
    launch(c, embed_kernel, dim3((unsigned)a->batch->n_rows, blocks_for(n_embd, ROW_THREADS)),
           dim3(ROW_THREADS), 0, f32_of(a->out), (const uint8_t *)a->table->data, a->table->type, n_embd,
           dtype_row_bytes(a->table->type, (uint64_t)n_embd), a->n_streams, c->batch.d, c->iq2_grid);
}

/* ---- hyper-connections (spec 2.2) ---- */

struct slice_args {
    float *x;                                      /* [n][4][n_embd] */
    const float *y, *y2, *post, *comb;             /* y NULL: streams stay as they are */
    const uint8_t *fn;                             /* NULL: no sums wanted */
    enum dtype fn_type;
    uint64_t fn_row_bytes;
    const uint64_t *grid;
    const int32_t *row_i;                          /* NULL: row t */
    float *sums;                                   /* [n][slices][n_fn + 1]: fn . x, then x . x */
    int n, n_embd, n_fn;
};

/* Grid: slices x groups of tokens. All warps hold the same channels and different rows of fn; the first
 * warp writes. */
static __global__ void __launch_bounds__(SLICE_WARPS * 32) hc_slice_kernel(struct slice_args a) {
    int warp = (int)threadIdx.x / 32, lane = lane_id(), slice = (int)blockIdx.x;
    int d[2] = { slice * SLICE + lane, slice * SLICE + 32 + lane };
    float w[ROWS_PER_WARP][HC_STREAMS][2];
    for (int i = 0; i < ROWS_PER_WARP; i++) {
        int row = warp + i * SLICE_WARPS;
        for (int s = 0; s < HC_STREAMS; s++)
            for (int h = 0; h < 2; h++) {
                bool there = a.fn && row < a.n_fn && d[h] < a.n_embd;
                w[i][s][h] = there ? decode(a.fn_type, a.fn + (uint64_t)row * a.fn_row_bytes,
                                            (int64_t)s * a.n_embd + d[h], a.grid)
                                   : 0;
            }
    }
    device_wait();
    for (int t = (int)blockIdx.y; t < a.n; t += (int)gridDim.y) {
        float *x = a.x + (int64_t)(a.row_i ? a.row_i[t] : t) * HC_STREAMS * a.n_embd;
        float in[HC_STREAMS][2];
        for (int s = 0; s < HC_STREAMS; s++)
            for (int h = 0; h < 2; h++) in[s][h] = d[h] < a.n_embd ? x[(int64_t)s * a.n_embd + d[h]] : 0;
        if (a.y) {
            const float *post = a.post + (int64_t)t * 4, *comb = a.comb + (int64_t)t * 16;
            for (int h = 0; h < 2; h++) {
                float y = 0, mixed[HC_STREAMS];
                if (d[h] < a.n_embd)
                    y = a.y[(int64_t)t * a.n_embd + d[h]] +
                        (a.y2 ? a.y2[(int64_t)t * a.n_embd + d[h]] : 0);
                for (int k = 0; k < HC_STREAMS; k++) {
                    mixed[k] = post[k] * y;
                    for (int j = 0; j < HC_STREAMS; j++) mixed[k] = fmaf(comb[4 * j + k], in[j][h], mixed[k]);
                }
                for (int k = 0; k < HC_STREAMS; k++) in[k][h] = mixed[k];
            }
            __syncthreads();                       /* everybody has read the old streams */
            for (int s = 0; s < HC_STREAMS && warp == 0; s++)
                for (int h = 0; h < 2; h++)
                    if (d[h] < a.n_embd) x[(int64_t)s * a.n_embd + d[h]] = in[s][h];
        }
        if (!a.sums) continue;
        float *sums = a.sums + ((int64_t)t * gridDim.x + slice) * (a.n_fn + 1);
        for (int i = 0; i < ROWS_PER_WARP; i++) {
            int row = warp + i * SLICE_WARPS;
            if (row >= a.n_fn) break;
            float sum = 0;
            for (int s = 0; s < HC_STREAMS; s++)
                for (int h = 0; h < 2; h++) sum = fmaf(w[i][s][h], in[s][h], sum);
            sum = warp_sum(sum);
            if (lane == 0) sums[row] = sum;
        }
        if (warp > 0) continue;
        float sum = 0;
        for (int s = 0; s < HC_STREAMS; s++)
            for (int h = 0; h < 2; h++) sum = fmaf(in[s][h], in[s][h], sum);
        sum = warp_sum(sum);
        if (lane == 0) sums[a.n_fn] = sum;
    }
}

struct finish_args {
    float *out, *post, *comb;                      /* comb NULL: head */
    const float *x, *sums, *scale, *base, *norm;
    const int32_t *row_i;
    int n_slices, n_fn, n_embd, n_sinkhorn;
    float rms_eps, hc_eps;
};

/* Lanes 0..15 hold m[lane / 4][lane % 4]; lane pairs differ in one bit, so sums over rows and columns are
 * two exchanges. */
static __device__ float sinkhorn(float m, int n_rounds, float eps) {
    float top = fmaxf(m, __shfl_xor_sync(0xffff, m, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffff, top, 2));
    m = f32_exp(m - top);
    for (int round = 0; round < n_rounds; round++) {
        float row = m + __shfl_xor_sync(0xffff, m, 1);
        row += __shfl_xor_sync(0xffff, row, 2);
        m = round == 0 ? m / row + eps : m / (row + eps);              /* the softmax is the first row pass */
        float column = m + __shfl_xor_sync(0xffff, m, 4);
        column += __shfl_xor_sync(0xffff, column, 8);
        m = m / (column + eps);
    }
    return m;
}

/* Grid: tokens x 2. Part 0 makes the row; part 1 the mixing matrix and post. */
static __global__ void __launch_bounds__(FINISH_THREADS) hc_finish_kernel(struct finish_args a) {
    extern __shared__ float row[];                 /* n_embd: the collapsed row */
    __shared__ float mix[HC_MIX + 1], shared[FINISH_THREADS / 32];
    device_wait();
    int t = (int)blockIdx.x, warp = (int)threadIdx.x / 32, lane = lane_id();
    const float *sums = a.sums + (int64_t)t * a.n_slices * (a.n_fn + 1);
    for (int v = warp; v <= a.n_fn; v += FINISH_THREADS / 32) {
        float sum = 0;
        for (int s = lane; s < a.n_slices; s += 32) sum += sums[s * (a.n_fn + 1) + v];
        sum = warp_sum(sum);
        if (lane == 0) mix[v] = sum;
    }
    __syncthreads();
    float r = 1.0f / sqrtf(mix[a.n_fn] / (float)(a.n_embd * HC_STREAMS) + a.rms_eps);
    if (blockIdx.y == 1) {
        if (warp != 0) return;
        if (lane < 4)
            a.post[t * 4 + lane] = 2.0f * f32_sigmoid(mix[4 + lane] * r * a.scale[1] + a.base[4 + lane]);
        if (lane < 16)
            a.comb[t * 16 + lane] =
                sinkhorn(mix[8 + lane] * r * a.scale[2] + a.base[8 + lane], a.n_sinkhorn, a.hc_eps);
        return;
    }
    float pre[HC_STREAMS], square = 0;
    for (int s = 0; s < HC_STREAMS; s++) pre[s] = f32_sigmoid(mix[s] * r * a.scale[0] + a.base[s]) + a.hc_eps;
    const float *x = a.x + (int64_t)(a.row_i ? a.row_i[t] : t) * HC_STREAMS * a.n_embd;
    for (int d = (int)threadIdx.x; d < a.n_embd; d += FINISH_THREADS) {
        float sum = pre[0] * x[d];
        for (int s = 1; s < HC_STREAMS; s++) sum = fmaf(pre[s], x[(int64_t)s * a.n_embd + d], sum);
        row[d] = sum;
        square = fmaf(sum, sum, square);
    }
    float scale = 1.0f / sqrtf(block_sum(square, shared) / (float)a.n_embd + a.rms_eps);
    for (int d = (int)threadIdx.x; d < a.n_embd; d += FINISH_THREADS)
        a.out[(int64_t)t * a.n_embd + d] = a.norm[d] * (row[d] * scale);
}

static void slices_run(struct cuda *c, const struct slice_args *a) {
    unsigned groups = (unsigned)(a->n <= GRAPH_ROWS_MAX ? a->n : blocks_for(a->n, SLICE_TOKENS));
    launch(c, hc_slice_kernel, dim3(blocks_for(a->n_embd, SLICE), groups), dim3(SLICE_WARPS * 32), 0, *a);
}

static struct slice_args slices_of(const struct tensor *x, int32_t n) {
    struct slice_args s = {};
    s.x = f32_of(x), s.n = n, s.n_embd = (int)x->ne[0];
    return s;
}

static void slices_add_post(struct slice_args *s, const struct hc_post_args *a) {
    s->y = f32_of(a->y), s->y2 = a->y2 ? f32_of(a->y2) : NULL, s->post = f32_of(a->post),
    s->comb = f32_of(a->comb);
}

static bool slices_add_fn(struct cuda *c, struct slice_args *s, const struct tensor *fn) {
    s->fn = (const uint8_t *)fn->data, s->fn_type = fn->type,
    s->fn_row_bytes = dtype_row_bytes(fn->type, (uint64_t)fn->ne[0]);
    s->n_fn = (int)rows_of(fn);
    s->grid = c->iq2_grid;
    s->sums = (float *)cuda_scratch(c, SCRATCH_HC,
                                    (uint64_t)s->n * blocks_for(s->n_embd, SLICE) *
                                        (uint64_t)(s->n_fn + 1) * sizeof(float));
    return s->sums != NULL;
}

static void finish_run(struct cuda *c, const struct slice_args *s, struct finish_args *f, unsigned parts) {
    f->x = s->x, f->sums = s->sums, f->row_i = s->row_i;
    f->n_slices = (int)blocks_for(s->n_embd, SLICE), f->n_fn = s->n_fn, f->n_embd = s->n_embd;
    launch(c, hc_finish_kernel, dim3((unsigned)s->n, parts), dim3(FINISH_THREADS),
           (size_t)s->n_embd * sizeof(float), *f);
}

void run_hc_post(struct cuda *c, const struct hc_post_args *a) {
    struct slice_args s = slices_of(a->x, a->n);
    slices_add_post(&s, a);
    slices_run(c, &s);
}

void run_hc_pre(struct cuda *c, const struct hc_pre_args *a, const struct hc_post_args *before) {
    struct slice_args s = slices_of(a->x, a->n);
    struct finish_args f = {};
    if (before) slices_add_post(&s, before);
    if (!slices_add_fn(c, &s, a->fn)) return;
    slices_run(c, &s);
    f.out = f32_of(a->out), f.post = f32_of(a->post), f.comb = f32_of(a->comb);
    f.scale = f32_of(a->scale), f.base = f32_of(a->base), f.norm = f32_of(a->norm);
    f.rms_eps = a->rms_eps, f.hc_eps = a->hc_eps, f.n_sinkhorn = a->n_sinkhorn;
    finish_run(c, &s, &f, 2);
}

void run_hc_head(struct cuda *c, const struct hc_head_args *a) {
    struct slice_args s = slices_of(a->x, a->n);
    struct finish_args f = {};
    s.row_i = f.row_i = a->row_i;                  /* device memory by now (queue.cu) */
    if (!slices_add_fn(c, &s, a->fn)) return;
    slices_run(c, &s);
    f.out = f32_of(a->out), f.scale = f32_of(a->scale), f.base = f32_of(a->base), f.norm = f32_of(a->norm);
    f.rms_eps = a->rms_eps, f.hc_eps = a->hc_eps;
    finish_run(c, &s, &f, 1);
}

/* ---- norms and element-wise rows ---- */

static __global__ void __launch_bounds__(ROW_THREADS)
    rms_norm_kernel(float *out, const float *in, const float *weight, int64_t n, float eps) {
    __shared__ float shared[ROW_THREADS / 32];
    device_wait();
    const float *x = in + (int64_t)blockIdx.x * n;
    float square = 0;
    for (int64_t i = threadIdx.x; i < n; i += ROW_THREADS) square = fmaf(x[i], x[i], square);
    float r = 1.0f / sqrtf(block_sum(square, shared) / (float)n + eps);
    for (int64_t i = threadIdx.x; i < n; i += ROW_THREADS)
        out[(int64_t)blockIdx.x * n + i] = weight[i] * (x[i] * r);
}

void run_rms_norm(struct cuda *c, const struct rms_norm_args *a) {
    launch(c, rms_norm_kernel, dim3((unsigned)a->n), dim3(ROW_THREADS), 0, f32_of(a->out),
           (const float *)f32_of(a->in), (const float *)f32_of(a->weight), a->in->ne[0], a->eps);
}

static __global__ void add_streams_kernel(float *x, const float *e, int64_t n_embd) {
    device_wait();
    int64_t d = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (d >= n_embd) return;
    float add = e[(int64_t)blockIdx.x * n_embd + d];
    for (int s = 0; s < HC_STREAMS; s++) x[((int64_t)blockIdx.x * HC_STREAMS + s) * n_embd + d] += add;
}

void run_add_streams(struct cuda *c, const struct add_streams_args *a) {
    int64_t n_embd = a->e->ne[0];
    launch(c, add_streams_kernel, dim3((unsigned)a->n, blocks_for(n_embd, ROW_THREADS)),
           dim3(ROW_THREADS), 0, f32_of(a->x), (const float *)f32_of(a->e), n_embd);
}

static __global__ void swiglu_kernel(float *out, const float *gate, const float *up, float clamp, int64_t n) {
    device_wait();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = swiglu(gate[i], up[i], clamp);
}

void run_swiglu(struct cuda *c, const struct swiglu_args *a) {
    int64_t n = a->gate->ne[0] * a->n;
    launch(c, swiglu_kernel, dim3(blocks_for(n, ROW_THREADS)), dim3(ROW_THREADS), 0, f32_of(a->out),
           (const float *)f32_of(a->gate), (const float *)f32_of(a->up), a->clamp, n);
}

/* ---- queries: one warp per head, pairs of values per lane ---- */

static __global__ void __launch_bounds__(ROW_THREADS)
    q_rope_kernel(float *q, const float *rope, int64_t n_heads_all, int n_head, int head_dim, int n_rot,
                  float eps) {
    device_wait();
    int64_t head = (int64_t)blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32;
    if (head >= n_heads_all) return;
    float2 *x = (float2 *)(q + head * head_dim);
    const float2 *cs = (const float2 *)(rope + head / n_head * n_rot);
    float square = 0;
    for (int i = lane_id(); i < head_dim / 2; i += 32)
        square = fmaf(x[i].x, x[i].x, fmaf(x[i].y, x[i].y, square));
    float r = 1.0f / sqrtf(warp_sum(square) / (float)head_dim + eps);
    for (int i = lane_id(); i < head_dim / 2; i += 32) {
        float2 v = x[i];
        v.x *= r, v.y *= r;
        int pair = i - (head_dim - n_rot) / 2;
        if (pair >= 0) rope_pair(&v.x, &v.y, cs[pair].x, cs[pair].y);
        x[i] = v;
    }
}

void run_q_rope(struct cuda *c, const struct q_rope_args *a) {
    int64_t heads = (int64_t)a->n * a->n_head;
    launch(c, q_rope_kernel, dim3(blocks_for(heads, ROW_THREADS / 32)), dim3(ROW_THREADS), 0,
           f32_of(a->q), (const float *)f32_of(a->rope), heads, a->n_head, a->head_dim, a->n_rot, a->eps);
}
