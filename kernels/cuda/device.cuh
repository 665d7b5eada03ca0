/* device - what every kernel uses: waiting for the kernel before, sums in a fixed order, the model's
 * functions, 16-bit floats.
 *
 * exp, sigmoid and softplus are our own polynomials (the CPU backend's formulas), so a result does not
 * depend on the toolkit's library. Sums over a warp are butterflies: every lane ends with the same
 * bits. */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include <cuda_fp16.h>
#include <stdint.h>

/* First statement of every kernel, nearly: what earlier kernels wrote is visible after it. Before it only
 * two kinds of memory may be read: what no kernel writes (weights), and what kernels wrote that ended
 * before the one before us began - the batch and the state's tables, which come with a step. That holds
 * because each kernel lets the next one start only when its own wait is over. */
static __device__ __forceinline__ void device_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Asks for a line that will be needed after the wait: weights come from far away. */
static __device__ __forceinline__ void fetch_early(const void *p) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(p));
}

/* Asks for a part of some memory to be brought to the L2 cache, by the block's first warp. */
static __device__ __forceinline__ void fetch_to_l2(const uint8_t *at, uint64_t bytes, uint32_t part,
                                                   uint32_t n_parts) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const uint32_t PIECE = 8192;
    if (threadIdx.x >= 32) return;
    for (uint32_t i = part * 32 + threadIdx.x; i < bytes / PIECE; i += n_parts * 32)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at + (uint64_t)i * PIECE),
                     "r"(PIECE));
#endif
}

static __device__ __forceinline__ int lane_id() {
    return (int)(threadIdx.x & 31);
}

static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

/* Sum over the block in warp order; shared holds one float per warp. Every thread gets it. */
static __device__ __forceinline__ float block_sum(float x, float *shared) {
    x = warp_sum(x);
    __syncthreads();
    if (lane_id() == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int w = 0; w < (int)(blockDim.x / 32); w++) sum += shared[w];
    return sum;
}

static __device__ __forceinline__ float f32_exp(float x) {
    x = fminf(fmaxf(x, -87.3f), 88.3f);
    float n = fmaf(x, 1.44269504088896341f, 12582912.0f);              /* 1.5 * 2^23: rounds to an integer */
    uint32_t bits = __float_as_uint(n);
    n -= 12582912.0f;
    float r = fmaf(n, -0.693145751953125f, x);
    r = fmaf(n, -1.42860682030941723e-6f, r);
    float p = 1.3888889225e-3f;
    p = fmaf(p, r, 8.3333337680e-3f);
    p = fmaf(p, r, 4.1666667908e-2f);
    p = fmaf(p, r, 1.6666667163e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return __uint_as_float(__float_as_uint(p) + (bits << 23));
}

static __device__ __forceinline__ float f32_sigmoid(float x) {
    return 1.0f / (1.0f + f32_exp(-x));
}

static __device__ __forceinline__ float f32_log1p01(float y) {
    float s = y / (2.0f + y), z = s * s;
    float p = 0.1111111119f;
    p = fmaf(fmaf(fmaf(0.0666666701f, z, 0.0769230798f), z, 0.0909090936f), z, p);
    p = fmaf(p, z, 0.1428571492f);
    p = fmaf(p, z, 0.2f);
    p = fmaf(p, z, 0.3333333433f);
    p = p * z;
    return 2.0f * fmaf(s, p, s);
}

static __device__ __forceinline__ float f32_softplus(float x) {
    return fmaxf(x, 0.0f) + f32_log1p01(f32_exp(-fabsf(x)));
}

static __device__ __forceinline__ float swiglu(float gate, float up, float clamp) {
    float g = fminf(gate, clamp), u = fmaxf(fminf(up, clamp), -clamp);
    return g / (1.0f + f32_exp(-g)) * u;
}

static __device__ __forceinline__ float f16_value(uint16_t h) {
    return __half2float(__ushort_as_half(h));
}

static __device__ __forceinline__ float pow2(int e) {                  /* e in -126..127 */
    return __uint_as_float((uint32_t)(e + 127) << 23);
}

/* The exponent of the smallest power of two that is >= x; x positive and normal. */
static __device__ __forceinline__ int ceil_log2(float x) {
    uint32_t u = __float_as_uint(x);
    return (int)(u >> 23) - 127 + ((u & 0x7fffff) != 0);
}

static __device__ __forceinline__ void rope_pair(float *u, float *v, float cosine, float sine) {
    float a = *u, b = *v;
    *u = a * cosine - b * sine;
    *v = a * sine + b * cosine;
}

#endif
