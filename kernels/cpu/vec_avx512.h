/* vec_avx512 - element-wise entries that the compiler does not vectorise well from vec_body.inc; the
 * same arithmetic by hand. Included by simd_avx512.c only. */
#ifndef KERNELS_CPU_VEC_AVX512_H
#define KERNELS_CPU_VEC_AVX512_H

#include "common/base/types.h"

#include <immintrin.h>
#include <math.h>

static float dot_avx512(const float *a, const float *b, int64_t n) {
    __m512 sum = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sum);
    __mmask16 mask = (__mmask16)((1u << (n - i)) - 1);  /* lanes past the end keep their value */
    sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i),
                                _mm512_maskz_loadu_ps(mask, b + i), sum, mask);
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
}

/* (a + b, a - b) of neighbours: where the second stands, its sign is turned and the swapped vector is
 * added. */
static inline __m512 butterfly(__m512 x, __m512 swapped, __mmask16 second) {
    __m512i turned = _mm512_mask_xor_epi32(_mm512_castps_si512(x), second, _mm512_castps_si512(x),
                                           _mm512_set1_epi32(INT32_MIN));
    return _mm512_add_ps(swapped, _mm512_castsi512_ps(turned));
}

/* dim: a multiple of 16, or 1 to 8. */
static void hadamard_avx512(float *x, int dim) {
    __m512 scale = _mm512_set1_ps((float)(1.0 / sqrt((double)dim)));
    __mmask16 mask = (__mmask16)(dim < 16 ? (1u << dim) - 1 : 0xffff);
    for (int i = 0; i < dim; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        if (dim > 1) v = butterfly(v, _mm512_permute_ps(v, 0xb1), 0xaaaa);
        if (dim > 2) v = butterfly(v, _mm512_permute_ps(v, 0x4e), 0xcccc);
        if (dim > 4) v = butterfly(v, _mm512_shuffle_f32x4(v, v, 0xb1), 0xf0f0);
        if (dim > 8) v = butterfly(v, _mm512_shuffle_f32x4(v, v, 0x4e), 0xff00);
        if (dim <= 16) v = _mm512_mul_ps(v, scale);
        _mm512_mask_storeu_ps(x + i, mask, v);
    }
    for (int stride = 16; stride < dim; stride *= 2)
        for (int i = 0; i < dim; i += 2 * stride)
            for (int j = i; j < i + stride; j += 16) {
                __m512 a = _mm512_loadu_ps(x + j), b = _mm512_loadu_ps(x + j + stride), f = scale;
                if (2 * stride < dim) f = _mm512_set1_ps(1.0f);        /* times one changes nothing */
                _mm512_storeu_ps(x + j, _mm512_mul_ps(_mm512_add_ps(a, b), f));
                _mm512_storeu_ps(x + j + stride, _mm512_mul_ps(_mm512_sub_ps(a, b), f));
            }
}

#endif
