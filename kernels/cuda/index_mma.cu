/* The indexer on tensor cores: packed FP4 keys of 128 values, 64 heads.
 *
 * Queries are rounded to FP4 and kept as f16, which holds their values exactly; so do the keys. A warp
 * keeps 32 keys in registers and lets rows of the batch go by; a block's keys are 256 neighbours. Per
 * row the scores of 64 heads are one f16 chain over the
 * 128 values, cut at zero, weighted, and summed: in a thread over its heads in order, then over the
 *   lanes of a column. */
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/index.cuh"

enum {
    KEYS_DIM = 128, KEY_BYTES = 68, HEADS = 64,
    QUERY_WARPS = 8,
    SCORE_WARPS = 8, WARP_KEYS = 32, BLOCK_KEYS = SCORE_WARPS * WARP_KEYS,
    ROWS_AT_ONCE = 16,                             /* that meet the same keys */
    QUERY_BYTES = HEADS * KEYS_DIM * 2,
};

/* Where value d of a block of 32 stands in a prepared query, so that a lane's key values come from one
 * word of codes: the lane t of the tensor core's B operand has values 4t..4t+3 (low nibbles) and
 * 16+4t.. (high nibbles). */
static __device__ __forceinline__ int query_place(int d) {
    int half = d / 16, t = d % 16 / 4, i = d % 4;
    return half * 16 + (i < 2 ? 2 * t + i : 8 + 2 * t + i - 2);
}

/* One warp per row and head. Lane l holds values l, l + 32, l + 64, l + 96: a block of 32 lies across
 * the lanes. */
static __global__ void __launch_bounds__(QUERY_WARPS * 32) query_kernel(struct index_run a) {
    device_wait();
    int64_t item = (int64_t)blockIdx.x * QUERY_WARPS + threadIdx.x / 32;
    int i = (int)(item / HEADS), lane = lane_id();
    if (i >= a.n || n_visible(a, i) <= a.top_k) return;
    const float *q = a.q + item * KEYS_DIM, *rope = a.rope + (int64_t)i * ROT;
    float x[4];
    for (int b = 0; b < 4; b++) x[b] = q[32 * b + lane];
    for (int b = 2; b < 4; b++) {                  /* the last 64 are rotated, neighbours in pairs */
        float other = __shfl_xor_sync(0xffffffffu, x[b], 1), cosine = rope[32 * (b - 2) + (lane & ~1)],
              sine = rope[32 * (b - 2) + (lane | 1)];
        x[b] = lane & 1 ? other * sine + x[b] * cosine : x[b] * cosine - other * sine;
    }
    for (int step = 1; step < 32; step *= 2)
        for (int b = 0; b < 4; b++) {
            float other = __shfl_xor_sync(0xffffffffu, x[b], step);
            x[b] = lane & step ? other - x[b] : x[b] + other;
        }
    float y[4] = { x[0] + x[1], x[0] - x[1], x[2] + x[3], x[2] - x[3] };
    x[0] = y[0] + y[2], x[1] = y[1] + y[3], x[2] = y[0] - y[2], x[3] = y[1] - y[3];
    uint16_t *out = (uint16_t *)a.values + item * KEYS_DIM;
    for (int b = 0; b < 4; b++) {
        float v = x[b] * 0.08838834764831845f;
        int e = ceil_log2(fmaxf(warp_max(fabsf(v)), 0x1.8p-124f) / 6.0f);
        float m = fabsf(v) * pow2(-e);
        int n = (m > 0.25f) + (m >= 0.75f) + (m > 1.25f) + (m >= 1.75f) + (m > 2.5f) + (m >= 3.5f) +
                (m > 5.0f);
        float value = 0.5f * (float)(n < 5 ? n : n == 5 ? 6 : n == 6 ? 8 : 12) * pow2(max(e, -126));
        out[32 * b + query_place(lane)] = __half_as_ushort(__float2half_rn(v < 0 ? -value : value));
    }
}

/* Two FP4 codes (low nibbles of bytes 0 and 1 of each half's low byte) as halves: the bits moved are
 * the value times 2^-14. */
static __device__ __forceinline__ uint32_t fp4_pair(uint32_t nibbles, __half2 scale) {
    uint32_t bits = (nibbles & 0x00080008u) << 12 | (nibbles & 0x00070007u) << 9;
    /* 2^14 */
    __half2 v = __hmul2(__hmul2(*(__half2 *)&bits, __half2half2(__ushort_as_half(0x7400))), scale);
    return *(uint32_t *)&v;
}

struct key_regs {
    uint32_t b[WARP_KEYS / 8][KEYS_DIM / 16][2];
};

/* Keys first .. first + 32 of a page table; keys past the end are zero. */
static __device__ __forceinline__ void load_keys(struct key_regs *k, uint8_t *const *pages,
                                                 int first, int n) {
    int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int j = 0; j < WARP_KEYS / 8; j++) {
        int key = first + 8 * j + g;
        bool there = key < n;
        const uint8_t *at = there ? pages[key / KV_PAGE] + key % KV_PAGE * KEY_BYTES : NULL;
        uint32_t exponents = there ? *(const uint32_t *)(at + KEYS_DIM / 2) : 0;
#pragma unroll
        for (int b = 0; b < KEYS_DIM / 32; b++) {
            uint32_t codes = there ? *(const uint32_t *)(at + 16 * b + 4 * t) : 0;
            int e = max(-14, min(15, (int)(int8_t)(exponents >> 8 * b & 255)));
            __half2 scale = __half2half2(__ushort_as_half((unsigned short)((e + 15) << 10)));
            uint32_t first_two = __byte_perm(codes, 0, 0x4140), last_two = __byte_perm(codes, 0, 0x4342);
            k->b[j][2 * b][0] = fp4_pair(first_two & 0x000f000f, scale);
            k->b[j][2 * b][1] = fp4_pair(last_two & 0x000f000f, scale);
            k->b[j][2 * b + 1][0] = fp4_pair(first_two >> 4 & 0x000f000f, scale);
            k->b[j][2 * b + 1][1] = fp4_pair(last_two >> 4 & 0x000f000f, scale);
        }
    }
}

static __device__ __forceinline__ void copy_query(__half *to, float *weight,
                                                  const struct index_run &a, int i) {
    const uint8_t *from = (const uint8_t *)a.values + (int64_t)i * QUERY_BYTES;
    for (int piece = (int)threadIdx.x; piece < QUERY_BYTES / 16; piece += SCORE_WARPS * 32) {
        uint32_t at = (uint32_t)__cvta_generic_to_shared(
            to + swizzled<KEYS_DIM / 8>(piece / (KEYS_DIM / 8), piece % (KEYS_DIM / 8)));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from + piece * 16)
                     : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (threadIdx.x < HEADS)
        weight[threadIdx.x] =
            a.weight[(int64_t)i * HEADS + threadIdx.x] / sqrtf((float)(KEYS_DIM * HEADS));
}

/* One row against the warp's keys. */
static __device__ __forceinline__ void score_row(float *score, const __half *q, const float *weight,
                                                 const struct key_regs &k, int first, int n) {
    int g = lane_id() / 4, t = lane_id() % 4;
    float total[WARP_KEYS / 8][2] = {};
#pragma unroll
    for (int m = 0; m < HEADS / 16; m++) {
        float c[WARP_KEYS / 8][4] = {};
#pragma unroll
        for (int s = 0; s < KEYS_DIM / 16; s++) {
            uint32_t a[4];
            load_a<KEYS_DIM / 8>(a, q, m * 16, 2 * s);
#pragma unroll
            for (int j = 0; j < WARP_KEYS / 8; j++) mma_16(c[j], a, k.b[j][s][0], k.b[j][s][1]);
        }
        float low = weight[m * 16 + g], high = weight[m * 16 + 8 + g];
#pragma unroll
        for (int j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                total[j][i] = fmaf(low, fmaxf(c[j][i], 0), total[j][i]);
                total[j][i] = fmaf(high, fmaxf(c[j][2 + i], 0), total[j][i]);
            }
    }
#pragma unroll
    for (int j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            for (int step = 4; step < 32; step *= 2)
                total[j][i] += __shfl_xor_sync(0xffffffffu, total[j][i], step);
            int key = first + 8 * j + 2 * t + i;
            if (g == 0 && key < n) score[key] = total[j][i];
        }
}

/* Grid: blocks of keys x groups of rows. */
static __global__ void __launch_bounds__(SCORE_WARPS * 32) score_kernel(struct index_run a) {
    __shared__ __align__(128) __half q[2][HEADS * KEYS_DIM];
    __shared__ float weight[2][HEADS];
    device_wait();
    int begin = (int)blockIdx.y * ROWS_AT_ONCE, end = min(a.n_group, begin + ROWS_AT_ONCE),
        first = (int)blockIdx.x * BLOCK_KEYS;
    int own = first + (int)threadIdx.x / 32 * WARP_KEYS, slot = -1, turn = 0;
    if (a.n_group <= GRAPH_ROWS_MAX) begin = (int)blockIdx.y, end = begin + 1;
    struct key_regs keys;
    bool ready = false;                            /* q[turn] holds the row's query */
    for (int r = begin; r < end; r++) {
        int i = a.first + r, n = n_visible(a, i);
        if (n <= a.top_k || first >= n) {
            ready = false;
            continue;
        }
        int row_slot = a.batch.segs[a.batch.seg[a.row0 + i]].slot;
        if (row_slot !=
            slot) { /* keys past this row's end may be visible to the next: load all there are in the block */
            int last = r;
            while (last + 1 < end &&
                   a.batch.segs[a.batch.seg[a.row0 + a.first + last + 1]].slot == row_slot)
                last++;
            load_keys(&keys, a.layer.slices[row_slot].idx_pages, own, n_visible(a, a.first + last));
            slot = row_slot;
        }
        if (!ready) copy_query(q[turn], weight[turn], a, i);
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();                           /* this query is here, and the other buffer is used up */
        int next = r + 1;
        ready = next < end && n_visible(a, a.first + next) > a.top_k && first < n_visible(a, a.first + next);
        if (ready) copy_query(q[turn ^ 1], weight[turn ^ 1], a, a.first + next);
        score_row(a.scores + (int64_t)r * a.n_scored, q[turn], weight[turn], keys, own, n);
        if (!ready) __syncthreads();               /* the same buffer may be filled next */
        else turn ^= 1;
    }
}

bool index_fits_mma(const struct cuda *c, const struct index_select_args *a) {
    return c->base.config.precision == PRECISION_FAST && a->layer->numerics == NUMERICS_OFFICIAL &&
           a->layer->idx_dim == KEYS_DIM && a->layer->n_rot == ROT &&
           a->layer->key_bytes == KEY_BYTES && a->n_head == HEADS;
}

void run_index_queries_mma(struct cuda *c, const struct index_run *r) {
    launch(c, query_kernel, dim3(blocks_for((int64_t)r->n * HEADS, QUERY_WARPS)),
           dim3(QUERY_WARPS * 32), 0, *r);
}

void run_index_scores_mma(struct cuda *c, const struct index_run *r) {
    unsigned groups =
        r->n_group <= GRAPH_ROWS_MAX ? (unsigned)r->n_group : blocks_for(r->n_group, ROWS_AT_ONCE);
    launch(c, score_kernel, dim3(blocks_for(r->n_scored, BLOCK_KEYS), groups), dim3(SCORE_WARPS * 32), 0, *r);
}
