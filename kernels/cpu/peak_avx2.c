#include "kernels/cpu/peak.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

enum { CHAINS = 10 };

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9)

/* Without VNNI a product of bytes is multiply-add to 16 bit, widen, add. */
static double int8_loop(long rounds) {
    __m256i x = _mm256_set1_epi8(3), one = _mm256_set1_epi16(1);
#define START(i) __m256i a##i = _mm256_set1_epi32(i);
    EACH(START)
#undef START
    for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = _mm256_add_epi32(a##i, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a##i), one));
        EACH(STEP)
#undef STEP
        __asm__ volatile("" : "+x"(x));
    }
#define KEEP(i) __asm__ volatile("" : : "x"(a##i));
    EACH(KEEP)
#undef KEEP
    return (double)rounds * CHAINS * 64;
}

static double f32_loop(long rounds) {
    __m256 x = _mm256_set1_ps(0.5f);
#define START(i) __m256 a##i = _mm256_set1_ps(i);
    EACH(START)
#undef START
    for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = _mm256_fmadd_ps(a##i, x, x);
        EACH(STEP)
#undef STEP
        __asm__ volatile("" : "+x"(x));
    }
#define KEEP(i) __asm__ volatile("" : : "x"(a##i));
    EACH(KEEP)
#undef KEEP
    return (double)rounds * CHAINS * 16;
}

const struct peak_loops peak_loops_avx2 = { int8_loop, f32_loop };
#else
const struct peak_loops peak_loops_avx2 = { 0 };
#endif
