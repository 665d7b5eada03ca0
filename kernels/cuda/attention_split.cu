/* Attention on tensor cores for few tokens, cut so that one token fills the card: the bits are those of
 * attention_mma.cu.
 *
 *   score_kernel   one block is one token, 16 heads, one tile of rows; norm and rope of the queries
 *                  on the way in
 *   value_kernel   one block is one token, 16 heads, 64 values, ten tiles of rows at once
 *
 * Time is the latency of dependent loads - the chosen entry, its page, its row - so all addresses of a
 * tile are found at once, and rows are loaded several at a time. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/attention_mma.cuh"

enum {
    GROUP = 16,                                  /* heads of a block */
    SLICE = 64,                                /* values of a block: one block of codes, or the rope values */
    TILES_AT_ONCE = 10,                          /* of value_kernel: one CSA token's rows */
    VALUE_WARPS = 8, VALUE_THREADS = VALUE_WARPS * 32,
    SCORE_ROWS = 8,                              /* of a warp in score_kernel */
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

/* A warp's queries on their way: pairs of values of every WARPS-th head of the group. */
template <int WARPS> struct query_regs {
    static const int HEADS = GROUP / WARPS;
    float2 v[HEADS][DIM / 64];
};

template <int WARPS>
static __device__ __forceinline__ void load_query(query_regs<WARPS> *r, const float *q, int head0,
                                                  int n_head) {
#pragma unroll
    for (int h = 0; h < query_regs<WARPS>::HEADS; h++) {
        int head = min(head0 + (int)threadIdx.x / 32 + h * WARPS, n_head - 1);
        const float2 *x = (const float2 *)(q + (int64_t)head * DIM);
#pragma unroll
        for (int k = 0; k < DIM / 64; k++) r->v[h][k] = x[lane_id() + 32 * k];
    }
}

/* Queries to shared memory; eps > 0: what q_rope does (stream.cu), to the same bits, first. */
template <int WARPS>
static __device__ __forceinline__ void store_query(__half *m, const query_regs<WARPS> &from,
                                                   const float *rope, float eps) {
#pragma unroll
    for (int h = 0; h < query_regs<WARPS>::HEADS; h++) {
        int head = (int)threadIdx.x / 32 + h * WARPS;
        float square = 0, r = 1;
#pragma unroll
        for (int k = 0; k < DIM / 64; k++)
            square = fmaf(from.v[h][k].x, from.v[h][k].x, fmaf(from.v[h][k].y, from.v[h][k].y, square));
        if (eps > 0) r = 1.0f / sqrtf(warp_sum(square) / (float)DIM + eps);
#pragma unroll
        for (int k = 0; k < DIM / 64; k++) {
            int i = lane_id() + 32 * k, pair = i - NOPE / 2;
            float2 v = from.v[h][k];
            v.x *= r, v.y *= r;
            if (pair >= 0 && eps > 0) rope_pair(&v.x, &v.y, rope[2 * pair], rope[2 * pair + 1]);
            *(__half2 *)(m + swizzled<DIM / 8>(head, i / 4) + i % 4 * 2) = __floats2half2_rn(v.x, v.y);
        }
    }
}

/* Grid: tiles x tokens x groups of heads. A warp has eight rows. a.z: [token][head][z_stride]. */
template <int ROWS>
static __global__ void __launch_bounds__(ROWS * 4)
    score_kernel(const __grid_constant__ struct attention_run a) {
    extern __shared__ __align__(128) uint8_t memory[];
    __half *q = (__half *)memory, *k = q + GROUP * DIM;
    const int WARPS = ROWS / SCORE_ROWS;
    int i = (int)blockIdx.y, warp = (int)threadIdx.x / 32, lane = lane_id();
    int first = (int)blockIdx.x * ROWS, head0 = (int)blockIdx.z * GROUP, row0 = warp * SCORE_ROWS;
    struct token_rows rows(a, i);
    if (!a.rows_early) device_wait();
    rows.find_entries(a, i);
    int n = rows.n - first;
    unsigned long long own = 0;                  /* lane r: the address of the warp's row r */
    if (lane < SCORE_ROWS && row0 + lane < n) own = (unsigned long long)rows.at(a, first + row0 + lane);
    struct row_regs r[SCORE_ROWS];
#pragma unroll
    for (int j = 0; j < SCORE_ROWS; j++) load_row(&r[j], (const uint8_t *)__shfl_sync(0xffffffffu, own, j));
    if (a.rows_early) device_wait();
    if (n <= 0) return;
    query_regs<WARPS> query;
    load_query<WARPS>(&query, a.q + (int64_t)i * a.n_head * DIM, head0, a.n_head);
    store_query<WARPS>(q, query, a.rope + (int64_t)i * ROT, a.rope_eps);
#pragma unroll
    for (int j = 0; j < SCORE_ROWS; j++) store_row(k, row0 + j, r[j]);
    __syncthreads();
    float c[4] = {};
#pragma unroll 8
    for (int at = 0; at < DIM / 8; at += 2) {
        uint32_t m[4], b[4];
        load_a<DIM / 8>(m, q, 0, at);
        load_b_rows<DIM / 8>(b, k, row0 & ~15, at);
        bool upper = row0 & 8;                   /* of sixteen rows the half that is ours */
        mma_16(c, m, upper ? b[2] : b[0], upper ? b[3] : b[1]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int head = head0 + half * 8 + lane / 4, row = first + row0 + lane % 4 * 2;
        float *to = a.z + ((int64_t)i * a.n_head + head) * a.z_stride + row;
        if (head < a.n_head) to[0] = a.scale * c[2 * half], to[1] = a.scale * c[2 * half + 1];
    }
}

/* ---- values ---- */

template <int ROWS> struct value_shared {
    static const int LIST_ROWS = TILES_AT_ONCE * ROWS;
    __half v[LIST_ROWS * SLICE], p[TILES_AT_ONCE][GROUP * ROWS];
    float scale[TILES_AT_ONCE][GROUP], inverse[GROUP], out[GROUP * (SLICE + 2)];
    const uint8_t *list[LIST_ROWS];
};

/* The slice's values of all listed rows, as f16; rows past the end are zero. A thread takes quarters of
 * rows, 16 values, all of them loaded before the first is used. */
template <int ROWS> struct value_regs {
    static const int PIECES = TILES_AT_ONCE * ROWS * 4 / VALUE_THREADS;
    uint4 codes[PIECES];
    uint8_t exponent[PIECES];
};

template <int ROWS>
static __device__ __forceinline__ void load_codes(value_regs<ROWS> *r, const value_shared<ROWS> *s, int n,
                                                  int slice) {
#pragma unroll
    for (int i = 0; i < value_regs<ROWS>::PIECES; i++) {
        int piece = (int)threadIdx.x + i * VALUE_THREADS, row = piece / 4;
        r->codes[i] = make_uint4(0, 0, 0, 0), r->exponent[i] = 0;
        if (row >= n) continue;
        r->codes[i] = *(const uint4 *)(s->list[row] + slice * SLICE + piece % 4 * 16);
        r->exponent[i] = s->list[row][NOPE + slice];
    }
}

template <int ROWS>
static __device__ __forceinline__ void store_codes(value_shared<ROWS> *s, const value_regs<ROWS> &r, int n) {
#pragma unroll
    for (int i = 0; i < value_regs<ROWS>::PIECES; i++) {
        int piece = (int)threadIdx.x + i * VALUE_THREADS, row = piece / 4, quarter = piece % 4;
        if (row >= (n + ROWS - 1) / ROWS * ROWS) break;
        __half2 scale = row_scale(r.exponent[i]);
        uint2 a = codes_to_halves(r.codes[i].x, scale), b = codes_to_halves(r.codes[i].y, scale);
        uint2 c = codes_to_halves(r.codes[i].z, scale), d = codes_to_halves(r.codes[i].w, scale);
        *(uint4 *)(s->v + swizzled<SLICE / 8>(row, 2 * quarter)) = make_uint4(a.x, a.y, b.x, b.y);
        *(uint4 *)(s->v + swizzled<SLICE / 8>(row, 2 * quarter + 1)) = make_uint4(c.x, c.y, d.x, d.y);
    }
}

/* The rope values: f16 already, at an odd address. */
template <int ROWS>
static __device__ __forceinline__ void copy_rope(value_shared<ROWS> *s, int n) {
#pragma unroll 5
    for (int i = 0; i < value_regs<ROWS>::PIECES; i++) {
        int piece = (int)threadIdx.x + i * VALUE_THREADS, row = piece / 4, quarter = piece % 4;
        uint32_t w[9] = {};
        if (row < n)
#pragma unroll
            for (int j = 0; j < 9; j++)
                w[j] = ((const uint32_t *)(s->list[row] + NOPE))[1 + quarter * 8 + j];
#pragma unroll
        for (int j = 0; j < 8; j++) w[j] = __funnelshift_r(w[j], w[j + 1], 24);
        *(uint4 *)(s->v + swizzled<SLICE / 8>(row, 2 * quarter)) = make_uint4(w[0], w[1], w[2], w[3]);
        *(uint4 *)(s->v + swizzled<SLICE / 8>(row, 2 * quarter + 1)) = make_uint4(w[4], w[5], w[6], w[7]);
    }
}

/* What softmax_tile does, tile after tile, for one head by one warp: with all tiles' shuffles side by
 * side, because each waits for the one before. */
template <int ROWS>
static __device__ __forceinline__ void softmax_tiles(value_shared<ROWS> *s, int head, const float *z, int n,
                                                     float *m, float *l) {
    float z0[TILES_AT_ONCE], z1[TILES_AT_ONCE], top[TILES_AT_ONCE], sum[TILES_AT_ONCE];
    int lane = lane_id();
#pragma unroll
    for (int t = 0; t < TILES_AT_ONCE; t++) {
        int row = t * ROWS + lane;
        z0[t] = row < n ? z[row] : -INFINITY;
        z1[t] = ROWS > 32 && row + 32 < n ? z[row + 32] : -INFINITY;
        top[t] = fmaxf(z0[t], z1[t]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
#pragma unroll
        for (int t = 0; t < TILES_AT_ONCE; t++)
            top[t] = fmaxf(top[t], __shfl_xor_sync(0xffffffffu, top[t], step));
    float before = *m;
#pragma unroll
    for (int t = 0; t < TILES_AT_ONCE; t++) {
        top[t] = fmaxf(before, top[t]);
        float own = f32_exp(before - top[t]);
        if (lane == t) s->scale[t][head] = own;
        before = top[t];
        __half p0 = __float2half_rn(z0[t] == -INFINITY ? 0.0f : f32_exp(z0[t] - top[t]));
        __half p1 = __float2half_rn(z1[t] == -INFINITY ? 0.0f : f32_exp(z1[t] - top[t]));
        s->p[t][swizzled<ROWS / 8>(head, lane / 8) + lane % 8] = p0;
        if (ROWS > 32) s->p[t][swizzled<ROWS / 8>(head, lane / 8 + 4) + lane % 8] = p1;
        sum[t] = __half2float(p0) + __half2float(p1);
        z0[t] = own;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
#pragma unroll
        for (int t = 0; t < TILES_AT_ONCE; t++) sum[t] += __shfl_xor_sync(0xffffffffu, sum[t], step);
#pragma unroll
    for (int t = 0; t < TILES_AT_ONCE; t++) *l = t * ROWS < n ? fmaf(*l, z0[t], sum[t]) : *l;
    *m = before;
}

/* The block's outputs, 16 heads x 64 values in shared memory, to their place and to the form that
 * products read. */
static __device__ __forceinline__ void
write_outputs(const struct attention_run &a, const float *out, int i, int head0, int slice) {
    const int BLOCKS = SLICE / 32;
    for (int b = (int)threadIdx.x / 32; b < GROUP * BLOCKS; b += VALUE_WARPS) {
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

/* B from rows of values: 16 rows (k) x 8 values. */
static __device__ __forceinline__ void load_b_slice(uint32_t *r, const __half *m, int row0, int chunk) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(m + swizzled<SLICE / 8>(row0 + lane_id() % 16, chunk));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
}

/* Grid: slices of values x tokens x groups of heads. A warp owns 8 values, and the softmax of 2 heads. */
template <int ROWS>
static __global__ void __launch_bounds__(VALUE_THREADS)
    value_kernel(const __grid_constant__ struct attention_run a) {
    extern __shared__ __align__(128) uint8_t memory[];
    value_shared<ROWS> *s = (value_shared<ROWS> *)memory;
    const int WARP_HEADS = GROUP / VALUE_WARPS, LIST_ROWS = value_shared<ROWS>::LIST_ROWS;
    int i = (int)blockIdx.y, slice = (int)blockIdx.x, warp = (int)threadIdx.x / 32, lane = lane_id();
    int head0 = (int)blockIdx.z * GROUP;
    struct token_rows rows(a, i);
    float o[4] = {}, top[WARP_HEADS], sum[WARP_HEADS];
    for (int h = 0; h < WARP_HEADS; h++) {
        int head = head0 + warp * WARP_HEADS + h;
        top[h] = head < a.n_head ? a.sinks[head] : 0, sum[h] = 1;
    }
    rows.find_entries(a, i);                     /* older than the kernel before, as are the rows */
    for (int base = 0; base < rows.n; base += LIST_ROWS) {
        int n = min(LIST_ROWS, rows.n - base);
        __syncthreads();
        for (int r = (int)threadIdx.x; r < n; r += VALUE_THREADS) s->list[r] = rows.at(a, base + r);
        __syncthreads();
        value_regs<ROWS> v;
        if (slice < NOPE / SLICE) load_codes<ROWS>(&v, s, n, slice);
        else copy_rope<ROWS>(s, n);
        if (base == 0) device_wait();
#pragma unroll
        for (int h = 0; h < WARP_HEADS; h++) {
            int own = warp * WARP_HEADS + h, head = min(head0 + own, a.n_head - 1);
            softmax_tiles<ROWS>(s, own, a.z + ((int64_t)i * a.n_head + head) * a.z_stride + base, n, &top[h],
                                &sum[h]);
        }
        if (slice < NOPE / SLICE) store_codes<ROWS>(s, v, n);
        __syncthreads();
        for (int t = 0; t * ROWS < n; t++) {
            float low = s->scale[t][lane / 4], high = s->scale[t][8 + lane / 4];
            o[0] *= low, o[1] *= low, o[2] *= high, o[3] *= high;
#pragma unroll
            for (int k = 0; k < ROWS; k += 16) {
                uint32_t w[4], b[2];
                load_a<ROWS / 8>(w, s->p[t], 0, k / 8);
                load_b_slice(b, s->v, t * ROWS + k, warp);
                mma_16(o, w, b[0], b[1]);
            }
        }
    }
    for (int h = 0; h < WARP_HEADS; h++)
        if (lane == 0) s->inverse[warp * WARP_HEADS + h] = 1.0f / sum[h];
    __syncthreads();
    const float *rope = a.rope + (int64_t)i * ROT;
    for (int half = 0; half < 2; half++) {
        int own = half * 8 + lane / 4, d = warp * 8 + lane % 4 * 2, pair = slice * SLICE + d - NOPE;
        float x = o[2 * half] * s->inverse[own], y = o[2 * half + 1] * s->inverse[own];
        if (pair >= 0) rope_pair(&x, &y, rope[pair], -rope[pair + 1]);
        *(float2 *)(s->out + own * (SLICE + 2) + d) = make_float2(x, y);
    }
    __syncthreads();
    write_outputs(a, s->out, i, head0, slice);
}

/* ---- launching ---- */

template <int ROWS> static void launch_split(struct cuda *c, const struct attention_run *r) {
    unsigned groups = blocks_for(r->n_head, GROUP), n = (unsigned)r->n;
    size_t shared = (size_t)(GROUP + ROWS) * DIM * sizeof(__half);
    launch(c, score_kernel<ROWS>, dim3((unsigned)(r->z_stride / ROWS), n, groups), dim3(ROWS * 4), shared,
           *r);
    launch(c, value_kernel<ROWS>, dim3(DIM / SLICE, n, groups), dim3(VALUE_THREADS),
           sizeof(value_shared<ROWS>), *r);
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
