/* mathf - the transcendental functions of the model as our own arithmetic, so that every machine rounds
 * alike.
 *
 * libm differs between systems in the last bit, and one bit can flip a rounding and then a token. These
 * are written with explicit fma and no branches, so that the compiler vectorises them and every
 * instruction set gives the same bits. Include only in files compiled with FMA (or accept a slow but
 * equal fmaf). */
#ifndef KERNELS_CPU_MATHF_H
#define KERNELS_CPU_MATHF_H

#include "common/base/types.h"

#include <math.h>

/* e^x: 0 below -87.3, finite maximum above 88.3 (callers never exceed it); relative error below 1.2e-7.
 * x = n ln2 + r, |r| <= ln2/2; e^r by a polynomial of degree 6 (Taylor coefficients: error 1e-8 at the
 * ends). */
static inline float f32_exp(float x) {
    x = x > 88.3f ? 88.3f : x;
    x = x < -87.3f ? -87.3f : x;
    float n = x * 1.44269504088896341f + 12582912.0f;               /* 1.5 * 2^23: rounds to an integer */
    uint32_t bits = f32_bits(n);
    n -= 12582912.0f;
    float r = __builtin_fmaf(n, -0.693145751953125f, x);  /* ln2 in two parts, the first with 16 bits */
    r = __builtin_fmaf(n, -1.42860682030941723e-6f, r);
    float p = 1.3888889225e-3f;
    p = __builtin_fmaf(p, r, 8.3333337680e-3f);
    p = __builtin_fmaf(p, r, 4.1666667908e-2f);
    p = __builtin_fmaf(p, r, 1.6666667163e-1f);
    p = __builtin_fmaf(p, r, 0.5f);
    p = __builtin_fmaf(p, r, 1.0f);
    p = __builtin_fmaf(p, r, 1.0f);
    return f32_from_bits(f32_bits(p) + (bits << 23));
}

static inline float f32_sigmoid(float x) {
    return 1.0f / (1.0f + f32_exp(-x));
}

/* log(1 + y) for 0 <= y <= 1: atanh series in s = y / (2 + y) <= 1/3; relative error below 2e-7. */
static inline float f32_log1p01(float y) {
    float s = y / (2.0f + y), z = s * s;
    float p = 0.1111111119f;                                        /* 1/9 + z/11 + ... */
    p = __builtin_fmaf(
        __builtin_fmaf(__builtin_fmaf(0.0666666701f, z, 0.0769230798f), z, 0.0909090936f), z, p);
    p = __builtin_fmaf(p, z, 0.1428571492f);
    p = __builtin_fmaf(p, z, 0.2f);
    p = __builtin_fmaf(p, z, 0.3333333433f);
    p = p * z;
    return 2.0f * __builtin_fmaf(s, p, s);
}

/* softplus(x) = max(x, 0) + log1p(e^-|x|): stable at both ends. */
static inline float f32_softplus(float x) {
    float a = x < 0 ? x : -x;
    return (x > 0 ? x : 0) + f32_log1p01(f32_exp(a));
}

#endif
