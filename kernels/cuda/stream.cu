/* The residual streams and everything that works row by row.
 *
 * Hyper-connections run in two launches. The first cuts the channels in slices of 64: a block takes one
 * slice of all four streams, mixes in the sublayer's output (hc_post), and multiplies the new streams
 * with the slice's part of fn (hc_pre); each stream's value is read once for both. The second adds the
 * slices' sums and makes the collapsed, normed row; the mixing matrix takes twenty rounds of divisions,
 * so it has a block of its own beside it. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/hc.cuh"
#include "kernels/cuda/moe.cuh"

enum {
    SLICE_TOKENS = 16, /* a block's part of fn stays in registers for so many tokens */
    FINISH_THREADS = 1024,
    FINISH_QUADS = 2,                              /* n_embd <= FINISH_THREADS * FINISH_QUADS * 4 */
    ROW_THREADS = 256,
};

/* ---- embedding ---- */

static __global__ void embed_kernel(float *out, const uint8_t *table, enum dtype type,
                                    int64_t n_embd, uint64_t row_bytes, int n_streams,
                                    struct dbatch batch, const uint64_t *grid) {
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
           dim3(ROW_THREADS), 0, f32_of(a->out), (const uint8_t *)a->table->data, a->table->type,
           n_embd, dtype_row_bytes(a->table->type, (uint64_t)n_embd), a->n_streams, c->batch.d,
           c->iq2_grid);
}

/* ---- hyper-connections (spec 2.2) ---- */

struct slice_values {
    float x[HC_STREAMS][2];
};

/* A token's channels of this slice. */
static __device__ __forceinline__ void slice_load(struct slice_values *v,
                                                  const struct slice_args &a, const int *d, int t) {
    const float *x = a.x + (int64_t)(a.row_i ? a.row_i[t] : t) * HC_STREAMS * a.n_embd;
#pragma unroll
    for (int s = 0; s < HC_STREAMS; s++, x += a.n_embd)
#pragma unroll
        for (int h = 0; h < 2; h++) v->x[s][h] = d[h] < a.n_embd ? x[d[h]] : 0;
}

/* The sublayer's output; 0 where there is none. */
static __device__ __forceinline__ void slice_load_y(float *y, const struct slice_args &a, const int *d,
                                                    int t) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        y[h] = 0;
        if (a.y && d[h] < a.n_embd)
            y[h] = a.y[(int64_t)t * a.n_embd + d[h]] + (a.y2 ? a.y2[(int64_t)t * a.n_embd + d[h]] : 0);
    }
}

/* The same where the first part is still the experts' partial sums: every warp adds them up for itself, and
 * the first one writes them down. part: of this thread. */
static __device__ __forceinline__ void slice_sum_y(float *y, const struct slice_args &a, const int *d, int t,
                                                   const struct sum_order &order, float *part) {
    const int STRIDE = SLICE_WARPS * 32, HALF = MOE_USED_MAX * STRIDE;
#pragma unroll
    for (int h = 0; h < 2; h++)
        if (d[h] < a.n_embd) sum_parts_load<STRIDE>(part + h * HALF, order, a.experts, d[h]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t at = (int64_t)t * a.n_embd + d[h];
        y[h] = 0;
        if (d[h] >= a.n_embd) continue;
        float y2 = a.y2 ? a.y2[at] : 0, sum = sum_parts<STRIDE>(part + h * HALF, order);
        if (threadIdx.x < 32) a.experts.out[at] = sum;
        y[h] = sum + y2;
    }
}

/* hc_post: the streams mixed, and the sublayer's output added. */
static __device__ __forceinline__ void slice_mix(struct slice_values *v, const struct slice_args &a,
                                                 const float *y, int t) {
    const float4 *comb = (const float4 *)a.comb + t * 4;               /* row j: where stream j goes */
    float4 p = ((const float4 *)a.post)[t], c[HC_STREAMS];
    float post[HC_STREAMS] = { p.x, p.y, p.z, p.w };
    struct slice_values in = *v;
#pragma unroll
    for (int j = 0; j < HC_STREAMS; j++) c[j] = comb[j];
#pragma unroll
    for (int k = 0; k < HC_STREAMS; k++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = post[k] * y[h];
#pragma unroll
            for (int j = 0; j < HC_STREAMS; j++) {
                float w = k == 0 ? c[j].x : k == 1 ? c[j].y : k == 2 ? c[j].z : c[j].w;
                sum = fmaf(w, in.x[j][h], sum);
            }
            v->x[k][h] = sum;
        }
}

/* Eight sums over the warp at once: lanes trade halves of the values until each holds one. Adds in the
 * order of warp_sum. The sum of value i ends in lanes whose bits 4, 3, 2 are i's bits 0, 1, 2. */
static __device__ __forceinline__ float warp_sum_8(float *v) {
#pragma unroll
    for (int step = 16, n = 4; step >= 4; step /= 2, n /= 2) {
        bool upper = lane_id() & step;
#pragma unroll
        for (int i = 0; i < n; i++) {
            float keep = upper ? v[2 * i + 1] : v[2 * i], give = upper ? v[2 * i] : v[2 * i + 1];
            v[i] = keep + __shfl_xor_sync(0xffffffffu, give, step);
        }
    }
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], 2);
    return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 1);
}

/* The warp's part of fn; zero where there is none. F16, the usual type, is loaded without a branch, all
 * at once. */
static __device__ __forceinline__ void slice_weights(float w[ROWS_PER_WARP][HC_STREAMS][2],
                                                     const struct slice_args &a, const int *d,
                                                     int warp) {
    bool half = a.fn_type == DTYPE_F16;
    uint16_t raw[ROWS_PER_WARP][HC_STREAMS][2];
#pragma unroll
    for (int i = 0; i < ROWS_PER_WARP * HC_STREAMS * 2 && half; i++) {
        int row = min(warp + i / 8 * SLICE_WARPS, a.n_fn - 1), s = i / 2 % HC_STREAMS;
        const uint16_t *fn = (const uint16_t *)(a.fn + (uint64_t)row * a.fn_row_bytes);
        raw[i / 8][s][i % 2] = fn[(int64_t)s * a.n_embd + min(d[i % 2], a.n_embd - 1)];
    }
#pragma unroll
    for (int i = 0; i < ROWS_PER_WARP * HC_STREAMS * 2; i++) {
        int row = warp + i / 8 * SLICE_WARPS, s = i / 2 % HC_STREAMS, h = i % 2;
        if (row >= a.n_fn || d[h] >= a.n_embd) w[i / 8][s][h] = 0;
        else if (half) w[i / 8][s][h] = f16_value(raw[i / 8][s][h]);
        else w[i / 8][s][h] = decode_called(a.fn_type, a.fn + (uint64_t)row * a.fn_row_bytes,
                                            (int64_t)s * a.n_embd + d[h], a.grid);
    }
}

/* Grid: slices x groups of tokens, AT_ONCE at a time. All warps hold the same channels and different rows
 * of fn; a stream is written by its warp. EXPERTS: one token per block, whose routing is older than the
 * kernel before. */
template <int AT_ONCE, bool EXPERTS>
static __global__ void __launch_bounds__(SLICE_WARPS * 32)
    hc_slice_kernel(const __grid_constant__ struct slice_args a) {
    __shared__ struct sum_order order;
    __shared__ float part[EXPERTS ? 2 * MOE_USED_MAX * SLICE_WARPS * 32 : 1];
    int warp = (int)threadIdx.x / 32, lane = lane_id(), slice = (int)blockIdx.x;
    int d[2] = { slice * SLICE + lane, slice * SLICE + 32 + lane };
    float w[ROWS_PER_WARP][HC_STREAMS][2];
    if (a.fn) slice_weights(w, a, d, warp);
    if (EXPERTS && threadIdx.x == 0) sum_order_find(&order, a.experts, (int)blockIdx.y);
    device_wait();
    if (EXPERTS) __syncthreads();
    for (int t0 = (int)blockIdx.y * AT_ONCE; t0 < a.n; t0 += (int)gridDim.y * AT_ONCE) {
        struct slice_values all[AT_ONCE];
        float y[AT_ONCE][2];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int t = min(t0 + k, a.n - 1);
            slice_load(&all[k], a, d, t);
            if (EXPERTS) slice_sum_y(y[k], a, d, t, order, part + threadIdx.x);
            else slice_load_y(y[k], a, d, t);
        }
        if (a.y) __syncthreads();                  /* everybody has read the old streams */
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int t = t0 + k;
            if (t >= a.n) break;
            struct slice_values &v = all[k];
            if (a.y) {
                slice_mix(&v, a, y[k], t);
                float *x = a.x + ((int64_t)t * HC_STREAMS + warp) * a.n_embd;
#pragma unroll
                for (int h = 0; h < 2; h++) {                          /* constant indices into v */
                    float low = warp & 1 ? v.x[1][h] : v.x[0][h], high = warp & 1 ? v.x[3][h] : v.x[2][h];
                    if (d[h] < a.n_embd) x[d[h]] = warp & 2 ? high : low;
                }
            }
            if (!a.sums) continue;
            float sum[8] = {};
#pragma unroll
            for (int s = 0; s < HC_STREAMS; s++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
#pragma unroll
                    for (int i = 0; i < ROWS_PER_WARP; i++) sum[i] = fmaf(w[i][s][h], v.x[s][h], sum[i]);
                    sum[6] = fmaf(v.x[s][h], v.x[s][h], sum[6]);
                }
            float total = warp_sum_8(sum);
            int i = (lane >> 4 & 1) | (lane >> 2 & 2) | (lane & 4),
                row = i == 6 ? a.n_fn : warp + i * SLICE_WARPS;
            bool ours = i < ROWS_PER_WARP ? row < a.n_fn : i == 6 && warp == 0;
            if (ours && lane % 4 == 0) a.sums[((int64_t)t * gridDim.x + slice) * (a.n_fn + 1) + row] = total;
        }
    }
}

struct finish_args {
    float *out, *post, *comb;                    /* comb NULL: head */
    const float *x, *sums, *scale, *base, *norm;
    const int32_t *row_i;
    int n_slices, n_fn, n_embd, n_sinkhorn;
    float rms_eps, hc_eps;
    struct act_out act;                          /* forms of the row that are wanted */
};

/* Lanes 0..15 hold m[lane / 4][lane % 4]; neighbours differ in one bit, so sums over rows and columns
 * are two exchanges. */
static __device__ float sinkhorn(float m, int n_rounds, float eps) {
    float top = fmaxf(m, __shfl_xor_sync(0xffff, m, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffff, top, 2));
    m = f32_exp(m - top);
    for (int round = 0; round < n_rounds; round++) {
        float row = m + __shfl_xor_sync(0xffff, m, 1);
        row += __shfl_xor_sync(0xffff, row, 2);
        /* the softmax is the first row pass */
        m = round == 0 ? __fdividef(m, row) + eps : __fdividef(m, row + eps);
        float column = m + __shfl_xor_sync(0xffff, m, 4);
        column += __shfl_xor_sync(0xffff, column, 8);
        m = __fdividef(m, column + eps);
    }
    return m;
}

static __device__ __forceinline__ float4 weighted(float w, float4 x, float4 sum) {
    return make_float4(fmaf(w, x.x, sum.x), fmaf(w, x.y, sum.y), fmaf(w, x.z, sum.z), fmaf(w, x.w, sum.w));
}

/* Grid: tokens x 2. Part 0 makes the row, four channels per thread at a time; part 1 the mixing matrix
 * and post. */
template <int QUADS>
static __global__ void __launch_bounds__(FINISH_THREADS)
    hc_finish_kernel(const __grid_constant__ struct finish_args a) {
    extern __shared__ __align__(16) float row[]; /* n_embd */
    __shared__ float mix[HC_MIX + 1], shared[FINISH_THREADS / 32];
    int t = (int)blockIdx.x, warp = (int)threadIdx.x / 32, lane = lane_id(), quads = a.n_embd / 4;
    bool makes_row = blockIdx.y == 0;
    float4 w[QUADS];
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int d = (int)threadIdx.x + i * FINISH_THREADS;
        if (makes_row && d < quads) w[i] = ((const float4 *)a.norm)[d];
    }
    float base = lane < a.n_fn ? a.base[lane] : 0;
    float scale_own = lane < 3 && (lane == 0 || a.comb) ? a.scale[lane] : 0;
    device_wait();
    const float4 *x = (const float4 *)(a.x + (int64_t)(a.row_i ? a.row_i[t] : t) * HC_STREAMS * a.n_embd);
    float4 v[QUADS][HC_STREAMS];          /* on their way while the sums are added */
#pragma unroll
    for (int i = 0; i < QUADS; i++)
#pragma unroll
        for (int s = 0; s < HC_STREAMS; s++) {
            int d = (int)threadIdx.x + i * FINISH_THREADS;
            if (makes_row && d < quads) v[i][s] = x[(int64_t)s * quads + d];
        }
    const float *sums = a.sums + (int64_t)t * a.n_slices * (a.n_fn + 1);
    for (int f = warp; f <= a.n_fn; f += FINISH_THREADS / 32) {
        float sum = 0;
        for (int s = lane; s < a.n_slices; s += 32) sum += sums[s * (a.n_fn + 1) + f];
        sum = warp_sum(sum);
        if (lane == 0) mix[f] = sum;
    }
    __syncthreads();
    float r = 1.0f / sqrtf(mix[a.n_fn] / (float)(a.n_embd * HC_STREAMS) + a.rms_eps);
    /* lane f: the f-th logit; 0..3 pre, 4..7 post, the rest the mixing matrix */
    float logit = mix[min(lane, a.n_fn)] * r *
                      __shfl_sync(0xffffffffu, scale_own, lane < 4 ? 0 : lane < 8 ? 1 : 2) + base;
    if (!makes_row) {
        if (warp != 0) return;
        if (lane >= 4 && lane < 8) a.post[t * 4 + lane - 4] = 2.0f * f32_sigmoid(logit);
        float m = __shfl_sync(0xffffffffu, logit, (lane + 8) & 31);
        if (lane < 16) a.comb[t * 16 + lane] = sinkhorn(m, a.n_sinkhorn, a.hc_eps);
        return;
    }
    float own = f32_sigmoid(logit) + a.hc_eps, pre[HC_STREAMS], square = 0;
    for (int s = 0; s < HC_STREAMS; s++) pre[s] = __shfl_sync(0xffffffffu, own, s);
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        if ((int)threadIdx.x + i * FINISH_THREADS >= quads) break;
        float4 sum = make_float4(pre[0] * v[i][0].x, pre[0] * v[i][0].y, pre[0] * v[i][0].z,
                                 pre[0] * v[i][0].w);
        for (int s = 1; s < HC_STREAMS; s++) sum = weighted(pre[s], v[i][s], sum);
        square = fmaf(sum.x, sum.x, fmaf(sum.y, sum.y, fmaf(sum.z, sum.z, fmaf(sum.w, sum.w, square))));
        v[i][0] = sum;
    }
    float scale = 1.0f / sqrtf(block_sum(square, shared) / (float)a.n_embd + a.rms_eps);
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int d = (int)threadIdx.x + i * FINISH_THREADS;
        if (d >= quads) break;
        float4 sum = v[i][0];
        sum = make_float4(w[i].x * (sum.x * scale), w[i].y * (sum.y * scale), w[i].z * (sum.z * scale),
                          w[i].w * (sum.w * scale));
        ((float4 *)(a.out + (int64_t)t * a.n_embd))[d] = sum;
        ((float4 *)row)[d] = sum;
    }
    __syncthreads();
    act_emit(a.act, t, row, a.n_embd, warp, FINISH_THREADS / 32);
}

static void slices_run(struct cuda *c, const struct slice_args *a) {
    if (run_slices_many(c, a)) return;
    bool few = a->n <= GRAPH_ROWS_MAX;
    unsigned groups = few ? (unsigned)a->n : blocks_for(a->n, SLICE_TOKENS);
    CHECK(few || !a->experts.parts);
    dim3 grid(blocks_for(a->n_embd, SLICE), groups), block(SLICE_WARPS * 32);
    if (a->experts.parts) launch(c, hc_slice_kernel<1, true>, grid, block, 0, *a);
    else launch(c, few ? hc_slice_kernel<1, false> : hc_slice_kernel<4, false>, grid, block, 0, *a);
}

static struct slice_args slices_of(const struct tensor *x, int32_t n) {
    struct slice_args s = {};
    s.x = f32_of(x), s.n = n, s.n_embd = (int)x->ne[0];
    return s;
}

static void slices_add_post(struct cuda *c, struct slice_args *s, const struct hc_post_args *a) {
    s->y = f32_of(a->y), s->y2 = a->y2 ? f32_of(a->y2) : NULL, s->post = f32_of(a->post),
    s->comb = f32_of(a->comb);
    if (!c->sum_waits.parts || c->sum_waits.out != s->y) return;
    s->experts = c->sum_waits;
    c->sum_waits = experts_sum{};
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

static void finish_run(struct cuda *c, const struct slice_args *s, struct finish_args *f, unsigned parts,
                       uint32_t wanted) {
    CHECK(s->n_embd % 4 == 0 && s->n_embd <= FINISH_THREADS * FINISH_QUADS * 4);
    f->x = s->x, f->sums = s->sums, f->row_i = s->row_i;
    f->n_slices = (int)blocks_for(s->n_embd, SLICE), f->n_fn = s->n_fn, f->n_embd = s->n_embd;
    f->act = act_out(c, wanted, f->out, s->n_embd, s->n);
    launch(c, s->n_embd <= FINISH_THREADS * 4 ? hc_finish_kernel<1> : hc_finish_kernel<FINISH_QUADS>,
           dim3((unsigned)s->n, parts), dim3(FINISH_THREADS), (size_t)s->n_embd * sizeof(float), *f);
}

void run_hc_post(struct cuda *c, const struct hc_post_args *a) {
    struct slice_args s = slices_of(a->x, a->n);
    slices_add_post(c, &s, a);
    slices_run(c, &s);
}

void run_hc_pre(struct cuda *c, const struct hc_pre_args *a, const struct hc_post_args *before,
                uint32_t wanted) {
    struct slice_args s = slices_of(a->x, a->n);
    struct finish_args f = {};
    if (before) slices_add_post(c, &s, before);
    if (!slices_add_fn(c, &s, a->fn)) return;
    slices_run(c, &s);
    f.out = f32_of(a->out), f.post = f32_of(a->post), f.comb = f32_of(a->comb);
    f.scale = f32_of(a->scale), f.base = f32_of(a->base), f.norm = f32_of(a->norm);
    f.rms_eps = a->rms_eps, f.hc_eps = a->hc_eps, f.n_sinkhorn = a->n_sinkhorn;
    finish_run(c, &s, &f, 2, wanted);
}

void run_hc_head(struct cuda *c, const struct hc_head_args *a, uint32_t wanted) {
    struct slice_args s = slices_of(a->x, a->n);
    struct finish_args f = {};
    s.row_i = f.row_i = a->row_i;                  /* device memory by now (queue.cu) */
    if (!slices_add_fn(c, &s, a->fn)) return;
    slices_run(c, &s);
    f.out = f32_of(a->out), f.scale = f32_of(a->scale), f.base = f32_of(a->base), f.norm = f32_of(a->norm);
    f.rms_eps = a->rms_eps, f.hc_eps = a->hc_eps;
    finish_run(c, &s, &f, 1, wanted);
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
    launch(c, add_streams_kernel, dim3((unsigned)a->n, blocks_for(n_embd, ROW_THREADS)), dim3(ROW_THREADS), 0,
           f32_of(a->x), (const float *)f32_of(a->e), n_embd);
}

static __global__ void swiglu_kernel(float *out, const float *gate, const float *up, float clamp, int64_t n) {
    device_wait();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = swiglu(gate[i], up[i], clamp);
}

void run_swiglu(struct cuda *c, const struct swiglu_args *a, uint32_t) {
    int64_t n = a->gate->ne[0] * a->n;
    launch(c, swiglu_kernel, dim3(blocks_for(n, ROW_THREADS)), dim3(ROW_THREADS), 0, f32_of(a->out),
           (const float *)f32_of(a->gate), (const float *)f32_of(a->up), a->clamp, n);
}

/* ---- queries: one warp per head, pairs of values per lane ---- */

static __global__ void __launch_bounds__(ROW_THREADS)
    q_rope_kernel(float *q, const float *rope, int64_t n_heads_all, int n_head, int head_dim,
                  int n_rot, float eps) {
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
    launch(c, q_rope_kernel, dim3(blocks_for(heads, ROW_THREADS / 32)), dim3(ROW_THREADS), 0, f32_of(a->q),
           (const float *)f32_of(a->rope), heads, a->n_head, a->head_dim, a->n_rot, a->eps);
}
