#include "kernels/cpu/peak.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

enum { CHAINS = 12 };

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static double int8_loop(long rounds) {
    int8x16_t x = vdupq_n_s8(3);
#define START(i) int32x4_t a##i = vdupq_n_s32(i);
    EACH(START)
#undef START
    for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = vdotq_s32(a##i, x, x);
        EACH(STEP)
#undef STEP
        __asm__ volatile("" : "+w"(x));
    }
#define KEEP(i) __asm__ volatile("" : : "w"(a##i));
    EACH(KEEP)
#undef KEEP
    return (double)rounds * CHAINS * 32;
}

static double f32_loop(long rounds) {
    float32x4_t x = vdupq_n_f32(0.5f);
#define START(i) float32x4_t a##i = vdupq_n_f32(i);
    EACH(START)
#undef START
    for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = vfmaq_f32(x, a##i, x);
        EACH(STEP)
#undef STEP
        __asm__ volatile("" : "+w"(x));
    }
#define KEEP(i) __asm__ volatile("" : : "w"(a##i));
    EACH(KEEP)
#undef KEEP
    return (double)rounds * CHAINS * 8;
}

const struct peak_loops peak_loops_neon = { int8_loop, f32_loop };
#else
const struct peak_loops peak_loops_neon = { 0 };
#endif
