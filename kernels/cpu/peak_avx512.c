#include "kernels/cpu/peak.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>

enum { CHAINS = 12 };                              /* enough to hide the latency of 4 cycles twice over */

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static double int8_loop(long rounds) {
    __m512i x = _mm512_set1_epi8(3);
#define START(i) __m512i a##i = _mm512_set1_epi32(i);
    EACH(START)
#undef START
    for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = _mm512_dpbusd_epi32(a##i, x, x);
        EACH(STEP)
#undef STEP
        __asm__ volatile("" : "+v"(x));
    }
#define KEEP(i) __asm__ volatile("" : : "v"(a##i));
    EACH(KEEP)
#undef KEEP
    return (double)rounds * CHAINS * 128;
}

static double f32_loop(long rounds) {
    __m512 x = _mm512_set1_ps(0.5f);
#define START(i) __m512 a##i = _mm512_set1_ps(i);
    EACH(START)
#undef START
    for (long r = 0; r < rounds; r++) {
#define STEP(i) a##i = _mm512_fmadd_ps(a##i, x, x);
        EACH(STEP)
#undef STEP
        __asm__ volatile("" : "+v"(x));
    }
#define KEEP(i) __asm__ volatile("" : : "v"(a##i));
    EACH(KEEP)
#undef KEEP
    return (double)rounds * CHAINS * 32;
}

const struct peak_loops peak_loops_avx512 = { int8_loop, f32_loop };
#else
const struct peak_loops peak_loops_avx512 = { 0 };
#endif
