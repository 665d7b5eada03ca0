/* The slices of hyper-connections for many tokens: what hc_slice_kernel (stream.cu) does, to the same bits,
 * in a third of its instructions.
 *
 * Four warps hold six rows of fn each and take four tokens at a time. Each warp mixes one of them, once,
 * and leaves the new streams in shared memory for all. Sums over a warp are not traded lane by lane:
 * every lane leaves its part in shared memory, and then one lane adds the 32 parts of one sum, in the
 * order of warp_sum. Memory is the limit: every stream is read and written once, 0.16 ms for 4096 tokens
 * of 4096 channels on an H200. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/hc.cuh"

enum {
    MANY_TOKENS = SLICE_WARPS,                     /* at a time */
    BLOCK_TOKENS = 64,                             /* that meet the same part of fn */
    MANY_SUMS = MANY_TOKENS * ROWS_PER_WARP + 1,   /* of a warp: its rows, and its token's square */
    PART_STRIDE = 36,                              /* 16-byte reads of eight lanes meet all banks */
};

/* What a warp reads of its token. */
struct many_token {
    float x[HC_STREAMS][2], y[2], y2[2];
    float4 post, comb[HC_STREAMS];
};

static __device__ __forceinline__ void token_load(struct many_token *v, const struct slice_args &a, int d,
                                                  int t) {
    const float *x = a.x + (int64_t)t * HC_STREAMS * a.n_embd + d;
#pragma unroll
    for (int s = 0; s < HC_STREAMS; s++)
#pragma unroll
        for (int h = 0; h < 2; h++) v->x[s][h] = x[(int64_t)s * a.n_embd + 32 * h];
    if (!a.y) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t at = (int64_t)t * a.n_embd + d + 32 * h;
        v->y[h] = a.y[at], v->y2[h] = a.y2 ? a.y2[at] : 0;
    }
    v->post = ((const float4 *)a.post)[t];
#pragma unroll
    for (int j = 0; j < HC_STREAMS; j++) v->comb[j] = ((const float4 *)a.comb)[t * HC_STREAMS + j];
}

static __device__ __forceinline__ float at4(const float4 &v, int i) {  /* i: a constant after unrolling */
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* hc_post: the streams mixed, and the sublayer's output added. */
static __device__ __forceinline__ void token_mix(float out[HC_STREAMS][2], const struct many_token &v) {
#pragma unroll
    for (int k = 0; k < HC_STREAMS; k++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = at4(v.post, k) * (v.y[h] + v.y2[h]);
#pragma unroll
            for (int j = 0; j < HC_STREAMS; j++) sum = fmaf(at4(v.comb[j], k), v.x[j][h], sum);
            out[k][h] = sum;
        }
}

/* The 32 parts of a sum, added as a butterfly over lanes would: distances 16, 8, 4, 2, 1. */
static __device__ __forceinline__ float parts_sum(const float *part) {
    float v[32];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float4 four = ((const float4 *)part)[i];
#pragma unroll
        for (int k = 0; k < 4; k++) v[4 * i + k] = at4(four, k);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) v[i] += v[i + 16];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += v[i + 8];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += v[i + 4];
    return (v[0] + v[2]) + (v[1] + v[3]);
}

/* Grid: slices x groups of tokens. */
static __global__ void __launch_bounds__(SLICE_WARPS * 32, 4)
    hc_many_kernel(const __grid_constant__ struct slice_args a) {
    __shared__ float2 streams[2][MANY_TOKENS][HC_STREAMS][32];
    __shared__ __align__(16) float parts[SLICE_WARPS][MANY_SUMS][PART_STRIDE];
    int warp = (int)threadIdx.x / 32, lane = lane_id(), slice = (int)blockIdx.x, d = slice * SLICE + lane;
    float w[ROWS_PER_WARP][HC_STREAMS][2];
#pragma unroll
    for (int i = 0; i < ROWS_PER_WARP * HC_STREAMS * 2; i++) {
        const uint16_t *fn =
            (const uint16_t *)(a.fn + (uint64_t)(warp + i / 8 * SLICE_WARPS) * a.fn_row_bytes);
        w[i / 8][i / 2 % HC_STREAMS][i % 2] =
            f16_value(fn[(int64_t)(i / 2 % HC_STREAMS) * a.n_embd + d + i % 2 * 32]);
    }
    device_wait();
    int begin = (int)blockIdx.y * BLOCK_TOKENS, end = min(a.n, begin + BLOCK_TOKENS), turn = 0;
    struct many_token own;
    token_load(&own, a, d, min(begin + warp, end - 1));
    for (int t0 = begin; t0 < end; t0 += MANY_TOKENS, turn ^= 1) {
        float x[HC_STREAMS][2], square = 0;
        if (a.y) token_mix(x, own);
#pragma unroll
        for (int s = 0; s < HC_STREAMS; s++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (!a.y) x[s][h] = own.x[s][h];
                square = fmaf(x[s][h], x[s][h], square);
            }
#pragma unroll
        for (int s = 0; s < HC_STREAMS; s++) streams[turn][warp][s][lane] = make_float2(x[s][0], x[s][1]);
        if (a.y && t0 + warp < end) {
            float *to = a.x + (int64_t)(t0 + warp) * HC_STREAMS * a.n_embd + d;
#pragma unroll
            for (int s = 0; s < HC_STREAMS; s++)
#pragma unroll
                for (int h = 0; h < 2; h++) to[(int64_t)s * a.n_embd + 32 * h] = x[s][h];
        }
        if (t0 + MANY_TOKENS < end) token_load(&own, a, d, min(t0 + MANY_TOKENS + warp, end - 1));
        parts[warp][MANY_SUMS - 1][lane] = square;
        __syncthreads();           /* all four are here; a warp that runs ahead writes the other half */
#pragma unroll
        for (int k = 0; k < MANY_TOKENS; k++) {
            float sum[ROWS_PER_WARP] = {};
#pragma unroll
            for (int s = 0; s < HC_STREAMS; s++) {
                float2 v = streams[turn][k][s][lane];
#pragma unroll
                for (int i = 0; i < ROWS_PER_WARP; i++)
                    sum[i] = fmaf(w[i][s][1], v.y, fmaf(w[i][s][0], v.x, sum[i]));
            }
#pragma unroll
            for (int i = 0; i < ROWS_PER_WARP; i++) parts[warp][k * ROWS_PER_WARP + i][lane] = sum[i];
        }
        __syncwarp();
        bool is_square = lane == MANY_SUMS - 1;
        int t = t0 + (is_square ? warp : lane / ROWS_PER_WARP),
            row = is_square ? HC_MIX : warp + lane % ROWS_PER_WARP * SLICE_WARPS;
        if (lane < MANY_SUMS && t < end)
            a.sums[((int64_t)t * gridDim.x + slice) * (HC_MIX + 1) + row] = parts_sum(parts[warp][lane]);
        __syncwarp();                              /* the parts are read: the next may come */
    }
}

bool run_slices_many(struct cuda *c, const struct slice_args *a) {
    if (a->n <= GRAPH_ROWS_MAX || !a->fn || a->fn_type != DTYPE_F16 || a->n_fn != HC_MIX || a->row_i ||
        a->n_embd % SLICE != 0)
        return false;
    launch(c, hc_many_kernel, dim3(blocks_for(a->n_embd, SLICE), blocks_for(a->n, BLOCK_TOKENS)),
           dim3(SLICE_WARPS * 32), 0, *a);
    return true;
}
