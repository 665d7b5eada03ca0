/* types - the few names every file uses: sizes, min/max, array length, and 16-bit floats.
 *
 * Header only, no state. The 16-bit conversions are exact IEEE (nearest, ties to even) and identical on every
 * machine; hot loops use SIMD instead of these. */
#ifndef BASE_TYPES_H
#define BASE_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ALIGN_UP(n, to) (((n) + (to) - 1) / (to) * (to))

static inline uint32_t f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float f32_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 1023;
    if (exp == 31) return f32_from_bits(sign | 0x7f800000 | man << 13);
    if (exp == 0) {                                   /* zero and subnormals: man * 2^-24, exact in f32 */
        float x = (float)man * 5.9604644775390625e-08f;
        return f32_from_bits(f32_bits(x) | sign);
    }
    return f32_from_bits(sign | (exp + 112) << 23 | man << 13);
}

static inline uint16_t f16_from_f32(float x) {
    uint32_t u = f32_bits(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00);              /* NaN */
    if (a >= 0x47800000) return (uint16_t)(sign | 0x7c00);             /* 65536 and more: infinity */
    if (a < 0x38800000) {                                              /* subnormal: units of 2^-24 */
        float units = f32_from_bits(a) + 0.5f;                         /* 0.5 has ulp 2^-24: the add rounds */
        return (uint16_t)(sign | (f32_bits(units) - 0x3f000000));
    }
    uint32_t round = 0xfff + (a >> 13 & 1);
    return (uint16_t)(sign | (a - 0x38000000 + round) >> 13);          /* may carry into infinity: right */
}

static inline float bf16_to_f32(uint16_t h) {
    return f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t bf16_from_f32(float x) {
    uint32_t u = f32_bits(x);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

#endif
