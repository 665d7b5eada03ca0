/* The lightning indexer: which compressed entries a token attends to.
 *
 *   queries   rope, Hadamard, FP4: f32 values of the codes                one block per row and head
 *   scores    per row and entry the sum over heads, ascending              one block per row and page of keys
 *   select    exact: larger score first, then lower index; ascending      one block per row
 * Packed keys of the serving model take index_mma.cu for the first two.
 *
 * Scores go through memory in groups of rows, so long contexts need no more than SCORES_BYTES of it. */
#include "kernels/cuda/index.cuh"
#include "kernels/cuda/rows.cuh"

enum {
    QUERY_THREADS = 128,
    SCORE_THREADS = 256,
    SELECT_THREADS = 1024,
    INDEX_DIM_MAX = 512,
    SCORES_BYTES = 512 << 20
};

/* Grid: rows x heads. */
static __global__ void __launch_bounds__(QUERY_THREADS) index_query_kernel(struct index_run a) {
    __shared__ float x[INDEX_DIM_MAX];
    device_wait();
    int i = (int)blockIdx.x, dim = a.layer.idx_dim, n_rot = a.layer.n_rot;
    if (n_visible(a, i) <= a.top_k) return;
    int64_t at = ((int64_t)i * a.n_head + blockIdx.y) * dim;
    for (int d = (int)threadIdx.x; d < dim; d += QUERY_THREADS) x[d] = a.q[at + d];
    __syncthreads();
    const float *rope = a.rope + (int64_t)i * n_rot;
    for (int p = (int)threadIdx.x; p < n_rot / 2; p += QUERY_THREADS)
        rope_pair(&x[dim - n_rot + 2 * p], &x[dim - n_rot + 2 * p + 1], rope[2 * p], rope[2 * p + 1]);
    __syncthreads();
    if (a.layer.numerics != NUMERICS_EXACT) {
        hadamard(x, dim);
        for (int b = (int)threadIdx.x / 32; b < dim / 32; b += QUERY_THREADS / 32) {
            int e;
            uint32_t code = fp4_code(x[32 * b + lane_id()], &e), n = code & 7;
            float value = 0.5f * (float)(n < 5 ? n : n == 5 ? 6 : n == 6 ? 8 : 12) * pow2(max(e, -126));
            x[32 * b + lane_id()] = code & 8 ? -value : value;
        }
        __syncthreads();
    }
    for (int d = (int)threadIdx.x; d < dim; d += QUERY_THREADS) ((float *)a.values)[at + d] = x[d];
}

/* Grid: rows of the group x pages. A warp takes one key at a time. */
static __global__ void __launch_bounds__(SCORE_THREADS) index_score_kernel(struct index_run a) {
    device_wait();
    int i = a.first + (int)blockIdx.x, n = n_visible(a, i), dim = a.layer.idx_dim, page = (int)blockIdx.y;
    if (n <= a.top_k || page * KV_PAGE >= n) return;
    const struct kv_slice *slice = &a.layer.slices[a.batch.segs[a.batch.seg[a.row0 + i]].slot];
    const uint8_t *keys = slice->idx_pages[page];
    const float *q = (const float *)a.values + (int64_t)i * a.n_head * dim,
                *weight = a.weight + (int64_t)i * a.n_head;
    float scale = 1.0f / sqrtf((float)dim * (float)a.n_head);
    for (int k = (int)threadIdx.x / 32; k < min(KV_PAGE, n - page * KV_PAGE); k += SCORE_THREADS / 32) {
        const uint8_t *key = keys + (int64_t)k * a.layer.key_bytes;
        float value[INDEX_DIM_MAX / 32], score = 0;
#pragma unroll
        for (int j = 0; j < INDEX_DIM_MAX / 32; j++)
            value[j] = 32 * j < dim ? key_value(a.layer, key, 32 * j + lane_id()) : 0;
        for (int h = 0; h < a.n_head; h++) {
            float dot = 0;
#pragma unroll
            for (int j = 0; j < INDEX_DIM_MAX / 32; j++)
                if (32 * j < dim) dot = fmaf(q[h * dim + 32 * j + lane_id()], value[j], dot);
            score = fmaf(weight[h] * scale, fmaxf(0.0f, warp_sum(dot)), score);
        }
        if (lane_id() == 0) a.scores[(int64_t)blockIdx.x * a.n_scored + page * KV_PAGE + k] = score;
    }
}

/* Order-preserving: a larger float has a larger key. */
static __device__ __forceinline__ uint32_t float_key(float x) {
    uint32_t u = __float_as_uint(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* The k-th largest key by four histogram passes; *n_above: how many are larger. All threads get the same. */
static __device__ uint32_t kth_key(const float *score, int n, int k, int *n_above) {
    __shared__ int count[256];
    __shared__ uint32_t chosen;
    __shared__ int above_shared;
    uint32_t prefix = 0, mask = 0;
    int above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = (int)threadIdx.x; i < 256; i += SELECT_THREADS) count[i] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < n; i += SELECT_THREADS) {
            uint32_t key = float_key(score[i]);
            if ((key & mask) == prefix) atomicAdd(&count[key >> shift & 255], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 255;
            while (above + count[digit] < k) above += count[digit--];
            chosen = (uint32_t)digit;
            above_shared = above;
        }
        __syncthreads();
        prefix |= chosen << shift;
        mask |= 255u << shift;
        above = above_shared;
        __syncthreads();
    }
    *n_above = above;
    return prefix;
}

/* How many of the block's threads before this one have the flag; *total: of all. */
static __device__ int rank_of(bool flag, int *total) {
    __shared__ int warp_count[SELECT_THREADS / 32];
    unsigned lanes = __ballot_sync(0xffffffffu, flag);
    int warp = (int)threadIdx.x / 32, rank = __popc(lanes & ((1u << lane_id()) - 1));
    __syncthreads();
    if (lane_id() == 0) warp_count[warp] = __popc(lanes);
    __syncthreads();
    *total = 0;
    for (int w = 0; w < SELECT_THREADS / 32; w++) {
        if (w < warp) rank += warp_count[w];
        *total += warp_count[w];
    }
    return rank;
}

/* Grid: rows of the group. */
static __global__ void __launch_bounds__(SELECT_THREADS) index_select_kernel(struct index_run a) {
    device_wait();
    int i = a.first + (int)blockIdx.x, n = n_visible(a, i), n_above = 0, n_out = 0, n_ties_used = 0;
    int32_t *sel = a.sel + (int64_t)i * a.top_k;
    if (a.all || n <= a.top_k) {
        for (int e = (int)threadIdx.x; e < min(n, a.top_k); e += SELECT_THREADS) sel[e] = e;
        if (threadIdx.x == 0) a.n_sel[i] = min(n, a.top_k);
        return;
    }
    const float *score = a.scores + (int64_t)blockIdx.x * a.n_scored;
    uint32_t limit = kth_key(score, n, a.top_k, &n_above);
    int n_ties = a.top_k - n_above;                /* of those equal to the limit the lower indices win */
    for (int first = 0; first < n; first += SELECT_THREADS) {
        int e = first + (int)threadIdx.x, n_tied, n_taken;
        uint32_t key = e < n ? float_key(score[e]) : 0;
        int tie = rank_of(e < n && key == limit, &n_tied);
        bool taken = e < n && (key > limit || (key == limit && n_ties_used + tie < n_ties));
        int rank = rank_of(taken, &n_taken);
        if (taken) sel[n_out + rank] = e;
        n_ties_used += n_tied;
        n_out += n_taken;
    }
    if (threadIdx.x == 0) a.n_sel[i] = a.top_k;
}

void run_index_select(struct cuda *c, const struct index_select_args *a) {
    struct index_run r = {};
    r.sel = (int32_t *)a->sel->data, r.n_sel = (int32_t *)a->n_sel->data, r.layer = *a->layer,
    r.batch = c->batch.d;
    r.row0 = a->row0, r.n = a->n, r.n_head = a->n_head, r.top_k = a->top_k;
    int32_t n_max = c->batch.pos_bound / a->layer->ratio;
    r.all = !a->q || n_max <= a->top_k;
    if (r.all) {
        launch(c, index_select_kernel, dim3((unsigned)a->n), dim3(SELECT_THREADS), 0, r);
        return;
    }
    CHECK(a->layer->idx_dim <= INDEX_DIM_MAX && a->layer->idx_dim % 32 == 0);
    r.n_scored = (int)ALIGN_UP(n_max, 64);
    int32_t at_once =
        (int32_t)MIN((int64_t)a->n, MAX(SCORES_BYTES / (r.n_scored * (int64_t)sizeof(float)), 1));
    r.q = f32_of(a->q), r.weight = f32_of(a->weight), r.rope = f32_of(a->rope);
    r.values = cuda_scratch(c, SCRATCH_QUERY,
                            (uint64_t)a->n * (uint64_t)(a->n_head * a->layer->idx_dim) * sizeof(float));
    r.scores = (float *)cuda_scratch(c, SCRATCH_SCORES,
                                     (uint64_t)at_once * (uint64_t)r.n_scored * sizeof(float));
    if (!r.values || !r.scores) return;
    bool mma = index_fits_mma(c, a);
    if (mma) run_index_queries_mma(c, &r);
    else launch(c, index_query_kernel, dim3((unsigned)a->n, (unsigned)a->n_head), dim3(QUERY_THREADS), 0, r);
    for (r.first = 0; r.first < a->n; r.first += at_once) {
        r.n_group = MIN(at_once, a->n - r.first);
        if (mma) run_index_scores_mma(c, &r);
        else
            launch(c, index_score_kernel, dim3((unsigned)r.n_group, (unsigned)(r.n_scored / KV_PAGE)),
                   dim3(SCORE_THREADS), 0, r);
        launch(c, index_select_kernel, dim3((unsigned)r.n_group), dim3(SELECT_THREADS), 0, r);
    }
}
