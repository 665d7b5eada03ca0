/* vec_avx2 - element-wise entries that the compiler does not vectorise well from vec_body.inc; the same
 * arithmetic by hand. Included by simd_avx2.c only. */
#ifndef KERNELS_CPU_VEC_AVX2_H
#define KERNELS_CPU_VEC_AVX2_H

#include "common/base/types.h"

#include <immintrin.h>
#include <math.h>

static float dot_avx2(const float *a, const float *b, int64_t n) {
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    float lane[16];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        low = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), low);
        high = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), high);
    }
    _mm256_storeu_ps(lane, low);
    _mm256_storeu_ps(lane + 8, high);
    for (int l = 0; i + l < n; l++) lane[l] = __builtin_fmaf(a[i + l], b[i + l], lane[l]);
    __m256 h = _mm256_add_ps(_mm256_loadu_ps(lane), _mm256_loadu_ps(lane + 8));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

/* (a + b, a - b) of neighbours: where the second stands, its sign is turned and the swapped vector is
 * added. */
static inline __m256 butterfly(__m256 x, __m256 swapped, __m256i second) {
    __m256i sign = _mm256_and_si256(second, _mm256_set1_epi32(INT32_MIN));
    return _mm256_add_ps(swapped, _mm256_xor_ps(x, _mm256_castsi256_ps(sign)));
}

/* dim: 8 or more, a power of two. */
static void hadamard_avx2(float *x, int dim) {
    const __m256 scale = _mm256_set1_ps((float)(1.0 / sqrt((double)dim))), one = _mm256_set1_ps(1.0f);
    for (int i = 0; i < dim; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        v = butterfly(v, _mm256_permute_ps(v, 0xb1), _mm256_setr_epi32(0, -1, 0, -1, 0, -1, 0, -1));
        v = butterfly(v, _mm256_permute_ps(v, 0x4e), _mm256_setr_epi32(0, 0, -1, -1, 0, 0, -1, -1));
        v = butterfly(v, _mm256_permute2f128_ps(v, v, 1), _mm256_setr_epi32(0, 0, 0, 0, -1, -1, -1, -1));
        _mm256_storeu_ps(x + i, dim == 8 ? _mm256_mul_ps(v, scale) : v);
    }
    for (int stride = 8; stride < dim; stride *= 2) {
        __m256 f = 2 * stride < dim ? one : scale;                     /* times one changes nothing */
        for (int i = 0; i < dim; i += 2 * stride)
            for (int j = i; j < i + stride; j += 8) {
                __m256 a = _mm256_loadu_ps(x + j), b = _mm256_loadu_ps(x + j + stride);
                _mm256_storeu_ps(x + j, _mm256_mul_ps(_mm256_add_ps(a, b), f));
                _mm256_storeu_ps(x + j + stride, _mm256_mul_ps(_mm256_sub_ps(a, b), f));
            }
    }
}

#endif
