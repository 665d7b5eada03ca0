/* act - preparing activations on the device: one warp, one stretch of one row. Kernels that make a row
 * which products will read prepare it in the same launch (act_out); act.cu prepares what nobody
 * prepared. */
#ifndef KERNELS_CUDA_ACT_CUH
#define KERNELS_CUDA_ACT_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

enum { ACT_STRETCH_Q8_0 = 128, ACT_STRETCH_Q8_K = 256, ACT_STRETCH_F16X2 = 512 };

static __device__ __forceinline__ int quantise(float v, int low) {
    return max(low, min(127, __float2int_rn(v)));
}

static __device__ __forceinline__ uint32_t four_bytes(int a, int b, int c, int d) {
    return (uint32_t)(a & 255) | (uint32_t)(b & 255) << 8 | (uint32_t)(c & 255) << 16 | (uint32_t)d << 24;
}

static __device__ __forceinline__ float abs_max(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

/* round(v / d), ties to even: through the reciprocal, and by division where that could round otherwise. */
static __device__ __forceinline__ int quantise_by(float v, float d, float inverse) {
    float r = v * inverse, q = rintf(r);
    if (fabsf(fabsf(r - q) - 0.5f) < 1e-3f || !(fabsf(r) < 200.0f)) return quantise(v / d, -127);
    return quantise(q, -127);
}

/* Four values per lane, a block of 32 in eight lanes. */
static __device__ __forceinline__ void act_q8_0(const struct act &act, int r, const float *x,
                                                int n_in, int stretch) {
    int i = stretch * ACT_STRETCH_Q8_0 + lane_id() * 4;
    float4 v = i < n_in ? *(const float4 *)(x + i) : make_float4(0, 0, 0, 0);
    float amax = abs_max(v);
#pragma unroll
    for (int step = 1; step < 8; step *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, step));
    if (i >= n_in) return;
    float d = amax / 127.0f, divisor = amax > 0 ? d : 1.0f, inverse = 1.0f / divisor;
    int64_t at = (int64_t)(i / 32) * act.n_pad + r;
    *(uint32_t *)(act.q + at * 32 + i % 32) =
        four_bytes(quantise_by(v.x, divisor, inverse), quantise_by(v.y, divisor, inverse),
                   quantise_by(v.z, divisor, inverse), quantise_by(v.w, divisor, inverse));
    if (i % 32 == 0) act.d[at] = d;
}

/* A block of 256 in registers, eight values per lane: codes, the block's scale, and the sum of this
 * lane's and its neighbour's codes. The value of largest magnitude, the first on ties, becomes -127. */
static __device__ __forceinline__ uint2 quantise_256(const float *v, float *d, int *sum) {
    float own = fmaxf(abs_max(*(const float4 *)v), abs_max(*(const float4 *)(v + 4))),
          amax = warp_max(own), first = 0;
#pragma unroll
    for (int j = 7; j >= 0; j--) first = fabsf(v[j]) == amax ? v[j] : first;
    unsigned lanes = __ballot_sync(0xffffffffu, own == amax);
    first = __shfl_sync(0xffffffffu, first, lanes ? __ffs((int)lanes) - 1 : 0);
    float inverse = amax > 0 ? -127.0f / first : 0.0f;
    int q[8];
    *sum = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) *sum += q[j] = quantise(inverse * v[j], -128);
    *sum += __shfl_xor_sync(0xffffffffu, *sum, 1);
    *d = amax > 0 ? 1.0f / inverse : 0.0f;
    return make_uint2(four_bytes(q[0], q[1], q[2], q[3]), four_bytes(q[4], q[5], q[6], q[7]));
}

static __device__ __forceinline__ void act_q8_k(const struct act &act, int r, const float *x, int stretch) {
    __align__(16) float v[8];
    *(float4 *)v = *(const float4 *)(x + stretch * ACT_STRETCH_Q8_K + lane_id() * 8);
    *(float4 *)(v + 4) = *(const float4 *)(x + stretch * ACT_STRETCH_Q8_K + lane_id() * 8 + 4);
    float d;
    int sum;
    uint2 bytes = quantise_256(v, &d, &sum);
    int64_t kb = (int64_t)stretch * 8 + lane_id() / 4, at = (int64_t)stretch * act.n_pad + r;
    *(uint2 *)(act.q + (kb * act.n_pad + r) * 32 + lane_id() % 4 * 8) = bytes;
    if (lane_id() % 2 == 0) act.sum[at * 16 + lane_id() / 2] = __half_as_ushort(__int2half_rn(sum));
    if (lane_id() == 0) act.d[at] = d;
}

/* Sixteen values per lane: one group of the layout. */
static __device__ __forceinline__ void act_f16x2(const struct act &act, int r, const float *x,
                                                 int n_in, int stretch) {
    int i = stretch * ACT_STRETCH_F16X2 + lane_id() * 16;
    float4 v[4];
    float amax = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j] = i < n_in ? *(const float4 *)(x + i + 4 * j) : make_float4(0, 0, 0, 0);
        amax = fmaxf(amax, abs_max(v[j]));
    }
    amax = warp_max(amax);
    int e = max((int)(__float_as_uint(amax) >> 23) - 127 - 14, -100);  /* amax * 2^-e lies in [2^14, 2^15) */
    float down = pow2(-e);
    if (lane_id() == 0) act.d[(int64_t)stretch * act.n_pad + r] = pow2(e);
    if (i >= n_in) return;
    __align__(16) __half hi[16], lo[16];
#pragma unroll
    for (int j = 0; j < 16; j++) {
        float value = ((const float *)v)[j] * down;
        hi[j] = __float2half_rn(value);
        lo[j] = __float2half_rn(value - __half2float(hi[j]));
    }
    int64_t at = ((int64_t)(i / 16) * act.n_pad + r) * 16;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        ((uint4 *)((uint16_t *)act.q + at))[j] = ((const uint4 *)hi)[j];
        ((uint4 *)(act.sum + at))[j] = ((const uint4 *)lo)[j];
    }
}

/* Row r in every form that is wanted, by warps `warp`, warp + n_warps ... x: 16-byte aligned, in shared
 * or device memory. */
static __device__ __forceinline__ void act_emit(const struct act_out &out, int r, const float *x,
                                                int n_in, int warp, int n_warps) {
    if (out.kinds & 1 << ACT_Q8_0)
        for (int s = warp; s * ACT_STRETCH_Q8_0 < n_in; s += n_warps)
            act_q8_0(out.act[ACT_Q8_0], r, x, n_in, s);
    if (out.kinds & 1 << ACT_Q8_K)
        for (int s = warp; s * ACT_STRETCH_Q8_K < n_in; s += n_warps) act_q8_k(out.act[ACT_Q8_K], r, x, s);
    if (out.kinds & 1 << ACT_F16X2)
        for (int s = warp; s * ACT_STRETCH_F16X2 < n_in; s += n_warps)
            act_f16x2(out.act[ACT_F16X2], r, x, n_in, s);
}

#endif
