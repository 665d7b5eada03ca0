/* Attention on tensor cores for many tokens: packed rows of 512, any number of heads.
 *
 * One block is one token and HEADS heads; tiles of rows go by, outputs stay in registers. Few tokens
 * take attention_split.cu, which gives the same bits (attention_mma.cuh). Cards with less shared memory
 * use smaller tiles. */
#include "kernels/cuda/attention_mma.cuh"

enum {
    FUSED_WARPS = 8, FUSED_THREADS = FUSED_WARPS * 32,
    LIST_ROWS = 640,                             /* row addresses at hand: one CSA token's */
};

static __device__ __forceinline__ void copy16(void *shared, const void *global) {
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(global) : "memory");
}

/* ---- many tokens ---- */

template <int HEADS, int ROWS> struct fused_shared {
    __half q[HEADS * DIM], k[ROWS * DIM], p[HEADS * ROWS];
    uint8_t raw[ROWS * ROW_BYTES];
    float z[HEADS * (ROWS + 4)];
    float scale[HEADS], inverse[HEADS];
    const uint8_t *list[LIST_ROWS];
};

template <int HEADS, int ROWS>
static __device__ __forceinline__ void copy_rows(fused_shared<HEADS, ROWS> *s, int first, int n) {
    for (int i = (int)threadIdx.x; i < n * (ROW_BYTES / 16); i += FUSED_THREADS) {
        int row = i / (ROW_BYTES / 16), at = i % (ROW_BYTES / 16) * 16;
        copy16(s->raw + row * ROW_BYTES + at, s->list[first + row] + at);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* What q_rope does (stream.cu), to the same bits, on the way to shared memory: a warp per head, two heads
 * at a time. */
static __device__ __forceinline__ void rope_queries(__half *m, const float *q, const float *rope, int head0,
                                                    int heads, int n_head, float eps) {
#pragma unroll 2
    for (int head = (int)threadIdx.x / 32; head < heads; head += FUSED_WARPS) {
        const float2 *x = (const float2 *)(q + (int64_t)min(head0 + head, n_head - 1) * DIM);
        float2 v[DIM / 64];
        float square = 0;
#pragma unroll
        for (int k = 0; k < DIM / 64; k++) v[k] = x[lane_id() + 32 * k];
#pragma unroll
        for (int k = 0; k < DIM / 64; k++) square = fmaf(v[k].x, v[k].x, fmaf(v[k].y, v[k].y, square));
        float r = 1.0f / sqrtf(warp_sum(square) / (float)DIM + eps);
#pragma unroll
        for (int k = 0; k < DIM / 64; k++) {
            int i = lane_id() + 32 * k, pair = i - NOPE / 2;
            v[k].x *= r, v[k].y *= r;
            if (pair >= 0) rope_pair(&v[k].x, &v[k].y, rope[2 * pair], rope[2 * pair + 1]);
            *(__half2 *)(m + swizzled<DIM / 8>(head, i / 4) + i % 4 * 2) = __floats2half2_rn(v[k].x, v[k].y);
        }
    }
}

/* Scores of 16 heads x (ROWS * (HEADS / 16) / 8) rows per warp, to shared memory. */
template <int HEADS, int ROWS>
static __device__ __forceinline__ void scores(fused_shared<HEADS, ROWS> *s, float scale) {
    const int HEAD_GROUPS = HEADS / 16, WARP_ROWS = ROWS * HEAD_GROUPS / FUSED_WARPS, N = WARP_ROWS / 8;
    int warp = (int)threadIdx.x / 32, head0 = warp % HEAD_GROUPS * 16, row0 = warp / HEAD_GROUPS * WARP_ROWS;
    float c[N < 2 ? 2 : N][4] = {};
#pragma unroll 8
    for (int k = 0; k < DIM / 8; k += 2) {
        uint32_t a[4], b[4];
        load_a<DIM / 8>(a, s->q, head0, k);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            load_b_rows<DIM / 8>(b, s->k, N < 2 ? row0 & ~15 : row0 + 8 * j, k);
            bool upper = N < 2 && row0 & 8;        /* one group of 8 rows per warp: the half that is ours */
            mma_16(c[j], a, upper ? b[2] : b[0], upper ? b[3] : b[1]);
            if (N >= 2) mma_16(c[j + 1], a, b[2], b[3]);
        }
    }
    int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int j = 0; j < N; j++) {
        float *to = s->z + (head0 + g) * (ROWS + 4) + row0 + 8 * j + 2 * t;
        to[0] = scale * c[j][0], to[1] = scale * c[j][1];
        to[8 * (ROWS + 4)] = scale * c[j][2], to[8 * (ROWS + 4) + 1] = scale * c[j][3];
    }
}

/* Grid: tokens x head groups. */
template <int HEADS, int ROWS>
static __global__ void __launch_bounds__(FUSED_THREADS, 1) fused_kernel(struct attention_run a) {
    extern __shared__ __align__(128) uint8_t memory[];
    fused_shared<HEADS, ROWS> *s = (fused_shared<HEADS, ROWS> *)memory;
    const int WARP_HEADS = HEADS / FUSED_WARPS, M = HEADS / 16, N = DIM / FUSED_WARPS / 8;
    device_wait();
    int warp = (int)threadIdx.x / 32, lane = lane_id(), head0 = (int)blockIdx.y * HEADS;
    struct token_rows rows(a, (int)blockIdx.x);
    rows.find_entries(a, (int)blockIdx.x);
    float *q = a.q + (int64_t)blockIdx.x * a.n_head * DIM;
    const float *rope = a.rope + (int64_t)blockIdx.x * ROT;
    if (a.rope_eps > 0) rope_queries(s->q, q, rope, head0, HEADS, a.n_head, a.rope_eps);
    else load_queries<FUSED_THREADS>(s->q, q, head0, HEADS, a.n_head);
    float o[M][N][4] = {}, top[WARP_HEADS], sum[WARP_HEADS];
    for (int h = 0; h < WARP_HEADS; h++) {
        int head = head0 + warp * WARP_HEADS + h;
        top[h] = head < a.n_head ? a.sinks[head] : 0, sum[h] = 1;
    }
    for (int base = 0; base < rows.n; base += LIST_ROWS) {
        int n_list = min(LIST_ROWS, rows.n - base);
        __syncthreads();
        for (int r = (int)threadIdx.x; r < n_list; r += FUSED_THREADS) s->list[r] = rows.at(a, base + r);
        __syncthreads();
        copy_rows<HEADS, ROWS>(s, 0, min(ROWS, n_list));
        for (int first = 0; first < n_list; first += ROWS) {
            int n = min(ROWS, n_list - first);
            asm volatile("cp.async.wait_group 0;" ::: "memory");
            __syncthreads();                       /* raw rows are here; the tile before is used up */
            for (int r = warp; r < ROWS; r += FUSED_WARPS) {
                if (r < n) unpack_row<DIM / 8>(s->k, r, s->raw + r * ROW_BYTES);
                else clear_row<DIM / 8>(s->k, r);
            }
            __syncthreads();
            if (first + ROWS < n_list)
                copy_rows<HEADS, ROWS>(s, first + ROWS, min(ROWS, n_list - first - ROWS));
            scores<HEADS, ROWS>(s, a.scale);
            __syncthreads();
            for (int h = 0; h < WARP_HEADS; h++) {
                int head = warp * WARP_HEADS + h;
                const float *z = s->z + head * (ROWS + 4);
                float z0 = lane < n ? z[lane] : -INFINITY,
                      z1 = ROWS > 32 && lane + 32 < n ? z[lane + 32] : -INFINITY, scale;
                __half p0, p1;
                softmax_tile(z0, z1, &top[h], &sum[h], &scale, &p0, &p1);
                s->p[swizzled<ROWS / 8>(head, lane / 8) + lane % 8] = p0;
                if (ROWS > 32) s->p[swizzled<ROWS / 8>(head, lane / 8 + 4) + lane % 8] = p1;
                if (lane == 0) s->scale[head] = scale;
            }
            __syncthreads();
#pragma unroll
            for (int m = 0; m < M; m++) {
                float low = s->scale[m * 16 + lane / 4], high = s->scale[m * 16 + 8 + lane / 4];
#pragma unroll
                for (int j = 0; j < N; j++)
                    o[m][j][0] *= low, o[m][j][1] *= low, o[m][j][2] *= high, o[m][j][3] *= high;
            }
#pragma unroll
            for (int k = 0; k < ROWS; k += 16) {
                uint32_t p[M][4];
#pragma unroll
                for (int m = 0; m < M; m++) load_a<ROWS / 8>(p[m], s->p, m * 16, k / 8);
#pragma unroll
                for (int j = 0; j < N; j += 2) {
                    uint32_t b[4];
                    load_b_values<DIM / 8>(b, s->k, k, warp * N + j);
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        mma_16(o[m][j], p[m], b[0], b[1]);
                        mma_16(o[m][j + 1], p[m], b[2], b[3]);
                    }
                }
            }
        }
    }
    for (int h = 0; h < WARP_HEADS; h++)
        if (lane == 0) s->inverse[warp * WARP_HEADS + h] = 1.0f / sum[h];
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int head = m * 16 + half * 8 + lane / 4, d = (warp * N + j) * 8 + lane % 4 * 2;
                float x = o[m][j][2 * half] * s->inverse[head], y = o[m][j][2 * half + 1] * s->inverse[head];
                if (d >= NOPE) rope_pair(&x, &y, rope[d - NOPE], -rope[d - NOPE + 1]);
                if (head0 + head < a.n_head)
                    *(float2 *)(q + (int64_t)(head0 + head) * DIM + d) = make_float2(x, y);
            }
}

/* ---- choosing ---- */

template <int HEADS, int ROWS> static void run_fused(struct cuda *c, const struct attention_run *r) {
    launch(c, fused_kernel<HEADS, ROWS>, dim3((unsigned)r->n, blocks_for(r->n_head, HEADS)),
           dim3(FUSED_THREADS), sizeof(fused_shared<HEADS, ROWS>), *r);
}

bool attention_fits_mma(const struct cuda *c, const struct kv_layer *l) {
    return c->base.config.precision == PRECISION_FAST && l->numerics == NUMERICS_OFFICIAL &&
           l->head_dim == DIM && l->n_rot == ROT && l->row_bytes == ROW_BYTES;
}

void run_attention_mma(struct cuda *c, struct attention_run *r, int n_rows_max) {
    bool large = c->shared_max >= (int)sizeof(fused_shared<64, 64>);
    if (r->n <= GRAPH_ROWS_MAX) run_attention_split(c, r, n_rows_max, large ? 64 : 32);
    else if (large) run_fused<64, 64>(c, r);
    else run_fused<32, 32>(c, r);
}
