/* Core attention, every case: any head size, f32 rows or packed ones. One block is one head of one token.
 *
 * The token's rows - its window by position, then its entries ascending - go by in chunks. A warp takes
 * a row for the scores; then each thread owns some values of the output and adds the chunk's rows in
 * order. All of it in f32. What a serving model uses (packed rows of 512) takes the tensor cores
 * instead: attention_mma.cu. */
#include "kernels/cuda/attention.cuh"

enum { HEAD_THREADS = 256, CHUNK = 64, VALUES_MAX = 8 };  /* head_dim <= HEAD_THREADS * VALUES_MAX */

/* Grid: rows x heads. */
static __global__ void __launch_bounds__(HEAD_THREADS) attention_kernel(struct attention_run a) {
    __shared__ float q[HEAD_THREADS * VALUES_MAX], z[CHUNK];
    device_wait();
    struct token_rows rows(a, (int)blockIdx.x);
    rows.find_entries(a, (int)blockIdx.x);
    int dim = a.layer.head_dim, n_rot = a.layer.n_rot, warp = (int)threadIdx.x / 32;
    float *out = a.q + ((int64_t)blockIdx.x * a.n_head + blockIdx.y) * dim, o[VALUES_MAX] = { 0 };
    float top = a.sinks[blockIdx.y], den = 1.0f;
    for (int d = (int)threadIdx.x; d < dim; d += HEAD_THREADS) q[d] = out[d];
    __syncthreads();
    for (int first = 0; first < rows.n; first += CHUNK) {
        int n = min(CHUNK, rows.n - first);
        for (int r = warp; r < n; r += HEAD_THREADS / 32) {
            const uint8_t *row = rows.at(a, first + r);
            float dot = 0;
            for (int d = lane_id(); d < dim; d += 32) dot = fmaf(q[d], row_value(a.layer, row, d), dot);
            dot = warp_sum(dot);
            if (lane_id() == 0) z[r] = a.scale * dot;
        }
        __syncthreads();
        float before = top;
        for (int r = 0; r < n; r++) top = fmaxf(top, z[r]);
        float shrink = f32_exp(before - top);
        den *= shrink;
#pragma unroll
        for (int i = 0; i < VALUES_MAX; i++) o[i] *= shrink;
        for (int r = 0; r < n; r++) {
            const uint8_t *row = rows.at(a, first + r);
            float p = f32_exp(z[r] - top);
            den += p;
#pragma unroll
            for (int i = 0; i < VALUES_MAX; i++) {
                int d = (int)threadIdx.x + i * HEAD_THREADS;
                if (d < dim) o[i] = fmaf(p, row_value(a.layer, row, d), o[i]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < VALUES_MAX; i++) {
        int d = (int)threadIdx.x + i * HEAD_THREADS;
        if (d < dim) q[d] = o[i] / den;
    }
    __syncthreads();
    const float *rope = a.rope + (int64_t)blockIdx.x * n_rot;
    for (int i = (int)threadIdx.x; i < n_rot / 2; i += HEAD_THREADS)
        rope_pair(&q[dim - n_rot + 2 * i], &q[dim - n_rot + 2 * i + 1], rope[2 * i], -rope[2 * i + 1]);
    __syncthreads();
    for (int d = (int)threadIdx.x; d < dim; d += HEAD_THREADS) out[d] = q[d];
}

bool attention_ropes(const struct cuda *c, const struct attention_args *a) {
    return attention_fits_mma(c, a->layer);
}

void run_attention(struct cuda *c, const struct attention_args *a, const struct q_rope_args *rope,
                   uint32_t wanted) {
    struct attention_run r = {};
    r.rows_early = c->state_at < c->n_launched;
    r.q = f32_of(a->q), r.rows = (const uint8_t *)a->rows->data;
    r.sinks = f32_of(a->sinks), r.rope = f32_of(a->rope);
    r.layer = *a->layer, r.batch = c->batch.d, r.row0 = a->row0, r.n = a->n, r.n_head = a->n_head;
    r.scale = 1.0f / sqrtf((float)a->layer->head_dim);
    if (a->sel) {
        r.sel = (const int32_t *)a->sel->data, r.n_sel = (const int32_t *)a->n_sel->data;
        r.sel_stride = (int)a->sel->ne[0];
    }
    if (attention_fits_mma(c, a->layer)) {
        int n_entries = !a->layer->ratio ? 0 : a->sel ? r.sel_stride : c->batch.pos_bound / a->layer->ratio;
        if (rope) r.rope_eps = rope->eps;
        if (a->n <= GRAPH_ROWS_MAX)
            r.act = act_out(c, wanted & 1 << ACT_Q8_0, r.q, (int64_t)a->n_head * a->layer->head_dim, a->n);
        run_attention_mma(c, &r, a->layer->n_swa + n_entries);
        return;
    }
    CHECK(a->layer->head_dim <= HEAD_THREADS * VALUES_MAX && !rope);
    launch(c, attention_kernel, dim3((unsigned)a->n, (unsigned)a->n_head), dim3(HEAD_THREADS), 0, r);
}
