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
    DIGIT_BITS = 11,
    DIGITS = 1 << DIGIT_BITS,
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

/* Sums of a value over the block's threads up to this one, without it; *total: over all. */
static __device__ __forceinline__ int sum_before(int value, int *total) {
    __shared__ int warps[SELECT_THREADS / 32];
    int warp = (int)threadIdx.x / 32, sum = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane_id() >= step) sum += other;
    }
    __syncthreads();
    if (lane_id() == 31) warps[warp] = sum;
    __syncthreads();
    int own = warps[lane_id()], all = own;         /* 32 warps, a lane each */
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(0xffffffffu, all, step);
        if (lane_id() >= step) all += other;
    }
    *total = __shfl_sync(0xffffffffu, all, 31);
    return sum - value + __shfl_sync(0xffffffffu, all - own, warp);
}

/* The k-th largest key, by its bits from the top in three steps; *n_above: how many are larger. In each
 * step the counts are added from the largest digit down, and one thread finds itself where the k-th key
 * is. */
static __device__ uint32_t kth_key(const float *score, int n, int k, int *n_above) {
    __shared__ int count[DIGITS], chosen, above_chosen;
    uint32_t prefix = 0, mask = 0;
    int above = 0;
    for (int shift = 32 - DIGIT_BITS; shift > -DIGIT_BITS; shift -= DIGIT_BITS) {
        int down = max(shift, 0);   /* the last digit overlaps the one before: those bits are fixed already */
        for (int i = (int)threadIdx.x; i < DIGITS; i += SELECT_THREADS) count[i] = 0;
        __syncthreads();
        for (int i = (int)threadIdx.x; i < n; i += SELECT_THREADS) {
            uint32_t key = float_key(score[i]);
            if ((key & mask) == prefix) atomicAdd(&count[key >> down & (DIGITS - 1)], 1);
        }
        __syncthreads();
        const int PER = DIGITS / SELECT_THREADS;
        int top = DIGITS - 1 - (int)threadIdx.x * PER, own = 0, total;
        for (int i = 0; i < PER; i++) own += count[top - i];
        int before = above + sum_before(own, &total);
        for (int i = 0; i < PER; i++) {
            if (before < k && before + count[top - i] >= k) chosen = top - i, above_chosen = before;
            before += count[top - i];
        }
        __syncthreads();
        prefix |= (uint32_t)chosen << down;
        mask |= (uint32_t)(DIGITS - 1) << down;
        above = above_chosen;
        __syncthreads();
    }
    *n_above = above;
    return prefix;
}

/* Grid: rows of the group. */
static __global__ void __launch_bounds__(SELECT_THREADS) index_select_kernel(struct index_run a) {
    device_wait();
    int i = a.first + (int)blockIdx.x, n = n_visible(a, i), n_above = 0, total;
    int32_t *sel = a.sel + (int64_t)i * a.top_k;
    if (a.all || n <= a.top_k) {
        for (int e = (int)threadIdx.x; e < min(n, a.top_k); e += SELECT_THREADS) sel[e] = e;
        if (threadIdx.x == 0) a.n_sel[i] = min(n, a.top_k);
        return;
    }
    const float *score = a.scores + (int64_t)blockIdx.x * a.n_scored;
    uint32_t limit = kth_key(score, n, a.top_k, &n_above);
    int n_ties = a.top_k - n_above;                /* of those equal to the limit the lower indices win */
    int per = (n + SELECT_THREADS - 1) / SELECT_THREADS, begin = min(n, (int)threadIdx.x * per),
        end = min(n, begin + per);
    int larger = 0, equal = 0;
    for (int e = begin; e < end; e++) {
        uint32_t key = float_key(score[e]);
        larger += key > limit, equal += key == limit;
    }
    int ties_before = sum_before(equal, &total);
    int ties = max(0, min(equal, n_ties - ties_before)), at = sum_before(larger + ties, &total);
    for (int e = begin; e < end; e++) {
        uint32_t key = float_key(score[e]);
        if (key > limit || (key == limit && ties-- > 0)) sel[at++] = e;
    }
    if (threadIdx.x == 0) a.n_sel[i] = a.top_k;
}

bool index_selects_all(const struct cuda *c, const struct index_select_args *a) {
    return !a->q || c->batch.pos_bound / a->layer->ratio <= a->top_k;
}

void run_index_select(struct cuda *c, const struct index_select_args *a) {
    struct index_run r = {};
    r.sel = (int32_t *)a->sel->data, r.n_sel = (int32_t *)a->n_sel->data, r.layer = *a->layer,
    r.batch = c->batch.d;
    r.row0 = a->row0, r.n = a->n, r.n_head = a->n_head, r.top_k = a->top_k;
    int32_t n_max = c->batch.pos_bound / a->layer->ratio;
    r.all = index_selects_all(c, a);
    if (r.all) {
        launch(c, index_select_kernel, dim3((unsigned)a->n), dim3(SELECT_THREADS), 0, r);
        c->state_at = c->n_launched;
        return;
    }
    CHECK(a->layer->idx_dim <= INDEX_DIM_MAX && a->layer->idx_dim % 32 == 0);
    r.n_scored = (int)ALIGN_UP(n_max, 64);
    int32_t at_once =
        (int32_t)MIN((int64_t)a->n, MAX(SCORES_BYTES / (r.n_scored * (int64_t)sizeof(float)), 1));
    r.q = f32_of(a->q), r.weight = f32_of(a->weight), r.rope = f32_of(a->rope);
    r.values =
        cuda_scratch(c, SCRATCH_QUERY,
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
            launch(c, index_score_kernel,
                   dim3((unsigned)r.n_group, (unsigned)(r.n_scored / KV_PAGE)), dim3(SCORE_THREADS),
                   0, r);
        launch(c, index_select_kernel, dim3((unsigned)r.n_group), dim3(SELECT_THREADS), 0, r);
    }
    c->state_at = c->n_launched;
}
