/* Attention on tensor cores for few tokens, cut so that one token fills the card: the bits are those of
 * attention_mma.cu.
 *
 *   score_kernel   one block is one token, 16 heads, one tile of rows      (norm and rope of the
 *     queries on the way in)
 *   value_kernel   one block is one token, 16 heads, 64 values             (loads run one tile ahead)
 *
 * Time is the latency of dependent loads - the chosen entry, its page, its row - so all addresses of a
 * tile are found at once, and rows are loaded several at a time. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/attention_mma.cuh"

enum {
    WARPS = 4, THREADS = WARPS * 32,
    GROUP = 16,                                  /* heads of a block */
    SLICE = 64,                                /* values of a block: one block of codes, or the rope values */
    LIST_ROWS = 640,                             /* row addresses at hand */
    ROWS_AT_ONCE = 8,                            /* of a warp in score_kernel */
};

/* ---- scores ---- */

/* A row's packed bytes, across the warp. */
struct row_regs {
    uint4 codes;
    uint32_t rope[2];
    uint8_t exponent;
};

static __device__ __forceinline__ void load_row(struct row_regs *r, const uint8_t *packed) {
    int lane = lane_id();
    r->codes = make_uint4(0, 0, 0, 0), r->rope[0] = r->rope[1] = 0, r->exponent = 0;
    if (!packed) return;                         /* no such row: zeros */
    const uint32_t *words = (const uint32_t *)(packed + NOPE) + 1 + lane;
    if (lane < NOPE / 16) {
        r->codes = *(const uint4 *)(packed + lane * 16);
        r->exponent = packed[NOPE + lane / 4];
    }
    r->rope[0] = words[0], r->rope[1] = words[1];
}

static __device__ __forceinline__ void store_row(__half *m, int row, const struct row_regs &r) {
    int lane = lane_id();
    if (lane < NOPE / 16) {
        __half2 scale = row_scale(r.exponent);
        uint2 a = codes_to_halves(r.codes.x, scale), b = codes_to_halves(r.codes.y, scale);
        uint2 c = codes_to_halves(r.codes.z, scale), d = codes_to_halves(r.codes.w, scale);
        *(uint4 *)(m + swizzled<DIM / 8>(row, 2 * lane)) = make_uint4(a.x, a.y, b.x, b.y);
        *(uint4 *)(m + swizzled<DIM / 8>(row, 2 * lane + 1)) = make_uint4(c.x, c.y, d.x, d.y);
    }
    uint32_t pair = __funnelshift_r(r.rope[0], r.rope[1], 24);
    *(uint32_t *)(m + swizzled<DIM / 8>(row, NOPE / 8 + lane / 4) + lane % 4 * 2) = pair;
}

/* What q_rope does (stream.cu), to the same bits, straight into shared memory. A warp takes every
 * fourth head. */
static __device__ __forceinline__ void rope_queries(__half *m, const float *q, const float *rope,
                                                    int head0, int n_head, float eps) {
    for (int head = (int)threadIdx.x / 32; head < GROUP; head += WARPS) {
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

/* Grid: tiles x tokens x groups of heads. a.z: [token][head][z_stride]. */
template <int ROWS>
static __global__ void __launch_bounds__(THREADS)
    score_kernel(const __grid_constant__ struct attention_run a) {
    extern __shared__ __align__(128) uint8_t memory[];
    __half *q = (__half *)memory, *k = q + GROUP * DIM;
    const int WARP_ROWS = ROWS / WARPS, N = WARP_ROWS / 8;
    device_wait();
    int i = (int)blockIdx.y, warp = (int)threadIdx.x / 32, lane = lane_id();
    int first = (int)blockIdx.x * ROWS, head0 = (int)blockIdx.z * GROUP, row0 = warp * WARP_ROWS;
    struct token_rows rows(a, i);
    int n = rows.n - first;
    if (n <= 0) return;
    unsigned long long own = 0;                  /* lane r: the address of the warp's row r */
    if (lane < WARP_ROWS && row0 + lane < n) own = (unsigned long long)rows.at(a, first + row0 + lane);
#pragma unroll
    for (int r0 = 0; r0 < WARP_ROWS; r0 += ROWS_AT_ONCE) {
        struct row_regs r[ROWS_AT_ONCE];
#pragma unroll
        for (int r1 = 0; r1 < ROWS_AT_ONCE; r1++)
            load_row(&r[r1], (const uint8_t *)__shfl_sync(0xffffffffu, own, r0 + r1));
#pragma unroll
        for (int r1 = 0; r1 < ROWS_AT_ONCE; r1++) store_row(k, row0 + r0 + r1, r[r1]);
    }
    const float *queries = a.q + (int64_t)i * a.n_head * DIM;
    if (a.rope_eps > 0) rope_queries(q, queries, a.rope + (int64_t)i * ROT, head0, a.n_head, a.rope_eps);
    else load_queries<THREADS>(q, queries, head0, GROUP, a.n_head);
    __syncthreads();
    float c[N < 2 ? 2 : N][4] = {};
#pragma unroll 8
    for (int at = 0; at < DIM / 8; at += 2) {
        uint32_t m[4], b[4];
        load_a<DIM / 8>(m, q, 0, at);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            load_b_rows<DIM / 8>(b, k, N < 2 ? row0 & ~15 : row0 + 8 * j, at);
            bool upper = N < 2 && row0 & 8;      /* one group of 8 rows per warp: the half that is ours */
            mma_16(c[j], m, upper ? b[2] : b[0], upper ? b[3] : b[1]);
            if (N >= 2) mma_16(c[j + 1], m, b[2], b[3]);
        }
    }
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int head = head0 + half * 8 + lane / 4, row = first + row0 + 8 * j + lane % 4 * 2;
            float *to = a.z + ((int64_t)i * a.n_head + head) * a.z_stride + row;
            if (head < a.n_head) to[0] = a.scale * c[j][2 * half], to[1] = a.scale * c[j][2 * half + 1];
        }
}

/* ---- values ---- */

/* What a thread holds of a tile that is on its way: quarters (16 values) of rows, and scores of its
 * warp's heads. */
template <int ROWS> struct tile_regs {
    static const int PIECES = ROWS * 4 / THREADS, HEADS = GROUP / WARPS;
    uint32_t w[PIECES][9];
    uint8_t exponent[PIECES];
    float z[HEADS][2];
};

template <int ROWS>
static __device__ __forceinline__ void load_tile(tile_regs<ROWS> *t, const struct attention_run &a,
                                                 const uint8_t *const *list, int first, int n,
                                                 const float *z, int slice) {
#pragma unroll
    for (int i = 0; i < tile_regs<ROWS>::PIECES; i++) {
        int piece = (int)threadIdx.x + i * THREADS, r = piece / 4, quarter = piece % 4;
#pragma unroll
        for (int j = 0; j < 9; j++) t->w[i][j] = 0;
        t->exponent[i] = 0;
        if (r >= n) continue;
        const uint8_t *packed = list[r];
        if (slice < NOPE / SLICE) {
            uint4 codes = *(const uint4 *)(packed + slice * SLICE + quarter * 16);
            t->w[i][0] = codes.x, t->w[i][1] = codes.y, t->w[i][2] = codes.z, t->w[i][3] = codes.w;
            t->exponent[i] = packed[NOPE + slice];
        } else {
            const uint32_t *words = (const uint32_t *)(packed + NOPE) + 1 + quarter * 8;
#pragma unroll
            for (int j = 0; j < 9; j++) t->w[i][j] = words[j];
        }
    }
    int warp = (int)threadIdx.x / 32, lane = lane_id();
#pragma unroll
    for (int h = 0; h < tile_regs<ROWS>::HEADS; h++) {
        const float *row = z + (int64_t)(warp * tile_regs<ROWS>::HEADS + h) * a.z_stride + first;
        t->z[h][0] = lane < n ? row[lane] : -INFINITY;
        t->z[h][1] = ROWS > 32 && lane + 32 < n ? row[lane + 32] : -INFINITY;
    }
}

template <int ROWS>
static __device__ __forceinline__ void store_values(__half *v, const tile_regs<ROWS> &t, int slice) {
#pragma unroll
    for (int i = 0; i < tile_regs<ROWS>::PIECES; i++) {
        int piece = (int)threadIdx.x + i * THREADS, r = piece / 4, quarter = piece % 4;
        uint32_t out[8];
        __half2 scale = row_scale(t.exponent[i]);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint2 pair = codes_to_halves(t.w[i][j], scale);
            out[2 * j] = pair.x, out[2 * j + 1] = pair.y;
        }
        if (slice == NOPE / SLICE)
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = __funnelshift_r(t.w[i][j], t.w[i][j + 1], 24);
        *(uint4 *)(v + swizzled<SLICE / 8>(r, 2 * quarter)) = make_uint4(out[0], out[1], out[2], out[3]);
        *(uint4 *)(v + swizzled<SLICE / 8>(r, 2 * quarter + 1)) = make_uint4(out[4], out[5], out[6], out[7]);
    }
}

/* The block's outputs, 16 heads x 64 values in shared memory, to their place and to the form that
 * products read. */
static __device__ __forceinline__ void
write_outputs(const struct attention_run &a, const float *out, int i, int head0, int slice) {
    const int BLOCKS = SLICE / 32;
    for (int b = (int)threadIdx.x / 32; b < GROUP * BLOCKS; b += WARPS) {
        int head = b / BLOCKS, d = slice * SLICE + b % BLOCKS * 32 + lane_id();
        if (head0 + head >= a.n_head) break;
        float value = out[head * (SLICE + 2) + b % BLOCKS * 32 + lane_id()];
        int64_t to = (int64_t)(head0 + head) * DIM + d;
        a.q[(int64_t)i * a.n_head * DIM + to] = value;
        if (!(a.act.kinds & 1 << ACT_Q8_0)) continue;
        const struct act &act = a.act.act[ACT_Q8_0];
        float amax = warp_max(fabsf(value)), scale = amax / 127.0f, divisor = amax > 0 ? scale : 1.0f;
        int64_t at = to / 32 * act.n_pad + i;
        act.q[at * 32 + lane_id()] = (int8_t)quantise_by(value, divisor, 1.0f / divisor);
        if (lane_id() == 0) act.d[at] = scale;
    }
}

/* Grid: slices of values x tokens x groups of heads. A warp owns 16 values, and the softmax of 4 heads. */
template <int ROWS>
static __global__ void __launch_bounds__(THREADS)
    value_kernel(const __grid_constant__ struct attention_run a) {
    __shared__ __align__(128) __half v[2][ROWS * SLICE], p[2][GROUP * ROWS];
    __shared__ float scales[2][GROUP], inverse[GROUP], out[GROUP * (SLICE + 2)];
    __shared__ const uint8_t *list[LIST_ROWS];
    const int WARP_HEADS = GROUP / WARPS;
    device_wait();
    int i = (int)blockIdx.y, slice = (int)blockIdx.x, warp = (int)threadIdx.x / 32, lane = lane_id();
    int head0 = (int)blockIdx.z * GROUP;
    struct token_rows rows(a, i);
    const float *z = a.z + ((int64_t)i * a.n_head + head0) * a.z_stride;
    float o[2][4] = {}, top[WARP_HEADS], sum[WARP_HEADS];
    for (int h = 0; h < WARP_HEADS; h++) {
        int head = head0 + warp * WARP_HEADS + h;
        top[h] = head < a.n_head ? a.sinks[head] : 0, sum[h] = 1;
    }
    for (int base = 0, turn = 0; base < rows.n; base += LIST_ROWS) {
        int n_list = min(LIST_ROWS, rows.n - base);
        __syncthreads();
        for (int r = (int)threadIdx.x; r < n_list; r += THREADS) list[r] = rows.at(a, base + r);
        __syncthreads();
        tile_regs<ROWS> t;
        load_tile<ROWS>(&t, a, list, base, min(ROWS, n_list), z, slice);
        for (int first = 0; first < n_list; first += ROWS, turn ^= 1) {
            store_values<ROWS>(v[turn], t, slice);
            float zs[WARP_HEADS][2];
            for (int h = 0; h < WARP_HEADS; h++) zs[h][0] = t.z[h][0], zs[h][1] = t.z[h][1];
            int next = first + ROWS;
            if (next < n_list)
                load_tile<ROWS>(&t, a, list + next, base + next, min(ROWS, n_list - next), z,
                                slice);
#pragma unroll
            for (int h = 0; h < WARP_HEADS; h++) {
                int own = warp * WARP_HEADS + h;
                float scale;
                __half p0, p1;
                softmax_tile(zs[h][0], zs[h][1], &top[h], &sum[h], &scale, &p0, &p1);
                p[turn][swizzled<ROWS / 8>(own, lane / 8) + lane % 8] = p0;
                if (ROWS > 32) p[turn][swizzled<ROWS / 8>(own, lane / 8 + 4) + lane % 8] = p1;
                if (lane == 0) scales[turn][own] = scale;
            }
            __syncthreads();            /* one barrier: the other turn's buffers are free when it is passed */
            float low = scales[turn][lane / 4], high = scales[turn][8 + lane / 4];
            for (int j = 0; j < 2; j++) o[j][0] *= low, o[j][1] *= low, o[j][2] *= high, o[j][3] *= high;
#pragma unroll
            for (int k = 0; k < ROWS; k += 16) {
                uint32_t w[4], b[4];
                load_a<ROWS / 8>(w, p[turn], 0, k / 8);
                load_b_values<SLICE / 8>(b, v[turn], k, warp * 2);
                mma_16(o[0], w, b[0], b[1]);
                mma_16(o[1], w, b[2], b[3]);
            }
        }
    }
    for (int h = 0; h < WARP_HEADS; h++)
        if (lane == 0) inverse[warp * WARP_HEADS + h] = 1.0f / sum[h];
    __syncthreads();
    const float *rope = a.rope + (int64_t)i * ROT;
    for (int j = 0; j < 2; j++)
        for (int half = 0; half < 2; half++) {
            int own = half * 8 + lane / 4, d = (warp * 2 + j) * 8 + lane % 4 * 2,
                pair = slice * SLICE + d - NOPE;
            float x = o[j][2 * half] * inverse[own], y = o[j][2 * half + 1] * inverse[own];
            if (pair >= 0) rope_pair(&x, &y, rope[pair], -rope[pair + 1]);
            *(float2 *)(out + own * (SLICE + 2) + d) = make_float2(x, y);
        }
    __syncthreads();
    write_outputs(a, out, i, head0, slice);
}

/* ---- launching ---- */

template <int ROWS> static void launch_split(struct cuda *c, const struct attention_run *r) {
    unsigned groups = blocks_for(r->n_head, GROUP), n = (unsigned)r->n;
    size_t shared = (size_t)(GROUP + ROWS) * DIM * sizeof(__half);
    launch(c, score_kernel<ROWS>, dim3((unsigned)(r->z_stride / ROWS), n, groups), dim3(THREADS), shared, *r);
    launch(c, value_kernel<ROWS>, dim3(DIM / SLICE, n, groups), dim3(THREADS), 0, *r);
}

void run_attention_split(struct cuda *c, struct attention_run *r, int n_rows_max, int tile) {
    int heads = (int)ALIGN_UP(r->n_head, GROUP);
    r->z_stride = (int)ALIGN_UP(n_rows_max, tile);
    uint64_t floats = (uint64_t)((r->n - 1) * r->n_head + heads) * (uint64_t)r->z_stride;
    r->z = (float *)cuda_scratch(c, SCRATCH_ATTENTION, floats * sizeof(float));
    if (!r->z) return;
    if (tile == 64) launch_split<64>(c, r);
    else launch_split<32>(c, r);
}
