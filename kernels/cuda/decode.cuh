/* decode - one value of a row in any type that a GGUF holds, and rows of the state. Plain and slow: for
 * tables, short vectors, the products at f32 precision, and the tests of everything faster. */
#ifndef KERNELS_CUDA_DECODE_CUH
#define KERNELS_CUDA_DECODE_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

static __device__ __forceinline__ float half_at(const uint8_t *p) {
    return f16_value((uint16_t)(p[0] | p[1] << 8));
}

static __device__ __forceinline__ uint32_t word_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Eight 6-bit scales and minima in 12 bytes (Q4_K, Q5_K). */
static __device__ __forceinline__ void scale_6bit(const uint8_t *s, int j, int *scale, int *min) {
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

static __device__ __forceinline__ float decode_q2_k(const uint8_t *p, int i) {
    int q = p[16 + 32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3, s = p[i / 16];
    return half_at(p + 80) * (float)(s & 15) * (float)q - half_at(p + 82) * (float)(s >> 4);
}

static __device__ __forceinline__ float decode_q3_k(const uint8_t *p, int i) {
    const uint8_t *s = p + 96;
    int k = i / 16, q = p[32 + 32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
    int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4, high = s[8 + k % 4] >> 2 * (k / 4) & 3;
    if (!(p[i % 32] >> i / 32 & 1)) q -= 4;
    return half_at(p + 108) * (float)((low | high << 4) - 32) * (float)q;
}

static __device__ __forceinline__ float decode_q4_k(const uint8_t *p, int i) {
    int q = p[16 + 32 * (i / 64) + i % 32] >> 4 * (i % 64 / 32) & 15, scale, min;
    scale_6bit(p + 4, i / 32, &scale, &min);
    return half_at(p) * (float)scale * (float)q - half_at(p + 2) * (float)min;
}

static __device__ __forceinline__ float decode_q5_k(const uint8_t *p, int i) {
    int q = (p[48 + 32 * (i / 64) + i % 32] >> 4 * (i % 64 / 32) & 15) +
            16 * (p[16 + i % 32] >> i / 32 & 1),
        scale, min;
    scale_6bit(p + 4, i / 32, &scale, &min);
    return half_at(p) * (float)scale * (float)q - half_at(p + 2) * (float)min;
}

static __device__ __forceinline__ float decode_q6_k(const uint8_t *p, int i) {
    int n = i / 128, r = i % 128;
    int low = p[64 * n + r % 64] >> 4 * (r / 64) & 15, high = p[128 + 32 * n + r % 32] >> 2 * (r / 32) & 3;
    return half_at(p + 208) * (float)(int8_t)p[192 + i / 16] * (float)((low | high << 4) - 32);
}

static __device__ __forceinline__ float decode_iq2_xxs(const uint8_t *p, int i, const uint64_t *grid) {
    const uint8_t *group = p + 2 + 8 * (i / 32);
    uint32_t word = word_at(group + 4), sign = word >> 7 * (i % 32 / 8) & 127;
    sign |= (__popc(sign) & 1) << 7;
    float magnitude = (float)(grid[group[i % 32 / 8]] >> 8 * (i % 8) & 255);
    float value = half_at(p) * (0.5f + (float)(word >> 28)) * 0.25f * magnitude;
    return sign >> i % 8 & 1 ? -value : value;
}

static __device__ __forceinline__ float decode_mxfp4(const uint8_t *p, int i) {
    int code = p[1 + i % 16] >> 4 * (i / 16) & 15, n = code & 7, e = p[0];
    /* doubled; times 2^(e-128), subnormal for e < 2 */
    float value = (float)(n < 5 ? n : n == 5 ? 6 : n == 6 ? 8 : 12);
    float scale = __uint_as_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
    return code & 8 ? -value * scale : value * scale;
}

/* Value i of a row; grid: the IQ2_XXS table (device memory). */
static __device__ float decode(enum dtype type, const uint8_t *row, int64_t i, const uint64_t *grid) {
    switch (type) {
    case DTYPE_F32: return ((const float *)row)[i];
    case DTYPE_F16: return f16_value(((const uint16_t *)row)[i]);
    case DTYPE_BF16: return __uint_as_float((uint32_t)((const uint16_t *)row)[i] << 16);
    case DTYPE_Q8_0: return half_at(row + i / 32 * 34) * (float)(int8_t)row[i / 32 * 34 + 2 + i % 32];
    case DTYPE_Q4_0: {
        const uint8_t *p = row + i / 32 * 18;
        return half_at(p) * (float)((p[2 + i % 16] >> 4 * (i % 32 / 16) & 15) - 8);
    }
    case DTYPE_MXFP4: return decode_mxfp4(row + i / 32 * 17, (int)(i % 32));
    case DTYPE_Q2_K: return decode_q2_k(row + i / 256 * 84, (int)(i % 256));
    case DTYPE_Q3_K: return decode_q3_k(row + i / 256 * 110, (int)(i % 256));
    case DTYPE_Q4_K: return decode_q4_k(row + i / 256 * 144, (int)(i % 256));
    case DTYPE_Q5_K: return decode_q5_k(row + i / 256 * 176, (int)(i % 256));
    case DTYPE_Q6_K: return decode_q6_k(row + i / 256 * 210, (int)(i % 256));
    case DTYPE_IQ2_XXS: return decode_iq2_xxs(row + i / 256 * 66, (int)(i % 256), grid);
    default: return 0.0f;
    }
}

/* For places that would otherwise hold many copies of it. */
static __device__ __noinline__ float decode_called(enum dtype type, const uint8_t *row, int64_t i,
                                                   const uint64_t *grid) {
    return decode(type, row, i, grid);
}

/* ---- rows of the state ---- */

/* E4M3: the code's exponent and mantissa, moved to their place in an f32, are the value times 2^-120. */
static __device__ __forceinline__ float e4m3_value(uint32_t code) {
    return __uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20) * 0x1p120f;
}

/* Nearest, ties to even; |v| <= 448. Below 2^-6 the step is 2^-9, which is the ulp of 2^14: the add
 * rounds. */
static __device__ __forceinline__ uint8_t e4m3_code(float v) {
    uint32_t u = __float_as_uint(v), a = u & 0x7fffffff;
    uint32_t small = __float_as_uint(__uint_as_float(a) + 16384.0f) - 0x46800000u;
    uint32_t normal = ((a + 0x7ffff + (a >> 20 & 1)) >> 20) - (120u << 3);
    return (uint8_t)((a < 0x3c800000 ? small : normal) | (u >> 24 & 0x80));
}

static __device__ __forceinline__ float row_value(const struct kv_layer &layer, const uint8_t *row, int d) {
    int n_nope = layer.head_dim - layer.n_rot;
    if (layer.numerics == NUMERICS_EXACT) return ((const float *)row)[d];
    if (d < n_nope) return e4m3_value(row[d]) * pow2((int8_t)row[n_nope + d / 64]);
    const uint8_t *rot = row + n_nope + n_nope / 64;
    return layer.numerics == NUMERICS_WIDE ? __uint_as_float(word_at(rot + 4 * (d - n_nope)))
                                           : half_at(rot + 2 * (d - n_nope));
}

/* One value of an FP4 key: block of 32, byte j = element j low, j+16 high; exponents behind the codes. */
static __device__ __forceinline__ float key_value(const struct kv_layer &layer, const uint8_t *key, int d) {
    if (layer.numerics == NUMERICS_EXACT) return ((const float *)key)[d];
    int b = d / 32, j = d % 32, code = key[16 * b + j % 16] >> 4 * (j / 16) & 15, n = code & 7;
    int e = max((int)(int8_t)key[layer.idx_dim / 2 + b], -126);
    float value = 0.5f * (float)(n < 5 ? n : n == 5 ? 6 : n == 6 ? 8 : 12) * pow2(e);
    return code & 8 ? -value : value;
}

/* ---- what happened before: rows of a segment's past and present ---- */

static __device__ __forceinline__ const uint8_t *window_row(const struct kv_layer &layer,
                                                            const struct kv_slice &slice,
                                                            const struct kseg &seg,
                                                            const uint8_t *rows, int p) {
    return p >= seg.pos0 ? rows + (int64_t)(seg.row0 + p - seg.pos0) * layer.row_bytes
                         : slice.raw + (int64_t)(p % layer.raw_cap) * layer.row_bytes;
}

static __device__ __forceinline__ const uint8_t *
entry_row(const struct kv_layer &layer, const struct kv_slice &slice, int entry) {
    return slice.pages[entry / KV_PAGE] + (int64_t)(entry % KV_PAGE) * layer.row_bytes;
}

#endif
