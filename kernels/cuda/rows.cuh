/* rows - writing the state's packed rows: a block of threads turns one f32 row in shared memory into a
 * KV row or an indexer key. */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/decode.cuh"

/* x *= weight / RMS(x), then the last n_rot values are rotated. shared: one float per warp. */
static __device__ __forceinline__ void norm_and_rope(float *x, int dim, const float *weight, float eps,
                                                     const float *rope, int n_rot, float *shared) {
    float square = 0;
    for (int d = (int)threadIdx.x; d < dim; d += (int)blockDim.x) square = fmaf(x[d], x[d], square);
    float r = 1.0f / sqrtf(block_sum(square, shared) / (float)dim + eps);
    for (int d = (int)threadIdx.x; d < dim; d += (int)blockDim.x) x[d] = weight[d] * (x[d] * r);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < n_rot / 2; i += (int)blockDim.x)
        rope_pair(&x[dim - n_rot + 2 * i], &x[dim - n_rot + 2 * i + 1], rope[2 * i], rope[2 * i + 1]);
    __syncthreads();
}

/* 64 values as E4M3 with one exponent, by one warp. */
static __device__ __forceinline__ void pack_64(uint8_t *code, uint8_t *exponent, const float *x) {
    float a = x[lane_id()], b = x[lane_id() + 32], amax = fmaxf(warp_max(fmaxf(fabsf(a), fabsf(b))), 1e-4f);
    int e = ceil_log2(amax / 448.0f);
    float inverse = pow2(-e);
    code[lane_id()] = e4m3_code(fmaxf(fminf(a * inverse, 448.0f), -448.0f));
    code[lane_id() + 32] = e4m3_code(fmaxf(fminf(b * inverse, 448.0f), -448.0f));
    if (lane_id() == 0) *exponent = (uint8_t)e;
}

static __device__ __forceinline__ void store_row(const struct kv_layer &layer, uint8_t *row, const float *x) {
    int n_nope = layer.head_dim - layer.n_rot, n_blocks = n_nope / 64, first = (int)threadIdx.x,
        step = (int)blockDim.x;
    if (layer.numerics == NUMERICS_EXACT) {
        for (int d = first; d < layer.head_dim; d += step) ((float *)row)[d] = x[d];
        return;
    }
    for (int b = first / 32; b < n_blocks; b += step / 32)
        pack_64(row + 64 * b, row + n_nope + b, x + 64 * b);
    uint8_t *rot = row + n_nope + n_blocks;
    int size = layer.numerics == NUMERICS_WIDE ? 4 : 2;                /* byte by byte: the place is odd */
    for (int i = first; i < layer.n_rot; i += step) {
        float value = x[n_nope + i];
        uint32_t bits = size == 4 ? __float_as_uint(value) : __half_as_ushort(__float2half_rn(value));
        for (int b = 0; b < size; b++) rot[i * size + b] = (uint8_t)(bits >> 8 * b);
    }
    for (int i = n_nope + n_blocks + size * layer.n_rot + first; i < layer.row_bytes; i += step) row[i] = 0;
}

/* Walsh-Hadamard over dim values, a power of two, then times 1/sqrt(dim). */
static __device__ __forceinline__ void hadamard(float *x, int dim) {
    for (int stride = 1; stride < dim; stride *= 2) {
        for (int i = (int)threadIdx.x; i < dim / 2; i += (int)blockDim.x) {
            int at = i / stride * 2 * stride + i % stride;
            float a = x[at], b = x[at + stride];
            x[at] = a + b;
            x[at + stride] = a - b;
        }
        __syncthreads();
    }
    float scale = (float)(1.0 / sqrt((double)dim));
    for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x) x[i] *= scale;
    __syncthreads();
}

/* E2M1 code with sign of a block's value per lane; the exponent in *e. */
static __device__ __forceinline__ uint32_t fp4_code(float x, int *e) {
    *e = ceil_log2(fmaxf(warp_max(fabsf(x)), 0x1.8p-124f) / 6.0f);     /* at least 6 * 2^-126 */
    float v = fabsf(x) * pow2(-*e);
    uint32_t n = (v > 0.25f) + (v >= 0.75f) + (v > 1.25f) + (v >= 1.75f) + (v > 2.5f) +
                 (v >= 3.5f) + (v > 5.0f);
    return n | (__float_as_uint(x) >> 28 & 8);
}

static __device__ __forceinline__ void store_key(const struct kv_layer &layer, uint8_t *key, float *x) {
    int dim = layer.idx_dim;
    if (layer.numerics == NUMERICS_EXACT) {
        for (int d = (int)threadIdx.x; d < dim; d += (int)blockDim.x) ((float *)key)[d] = x[d];
        return;
    }
    hadamard(x, dim);
    for (int b = (int)threadIdx.x / 32; b < dim / 32; b += (int)blockDim.x / 32) {
        int e;
        uint32_t code = fp4_code(x[32 * b + lane_id()], &e), high = __shfl_down_sync(0xffffffffu, code, 16);
        if (lane_id() < 16) key[16 * b + lane_id()] = (uint8_t)(code | high << 4);
        if (lane_id() == 0) key[dim / 2 + b] = (uint8_t)e;
    }
}

#endif
