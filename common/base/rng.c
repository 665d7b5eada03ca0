/* rng - see the header. A counter goes through a 64-bit mixer (two multiply-xorshift rounds with the
 * usual constants); the n-th number is mix(key + n * step) with an odd step, so a stream repeats after
 * 2^64 draws. */
#include "common/base/rng.h"

#include "common/base/check.h"

#define RNG_STEP UINT64_C(0x9e3779b97f4a7c15)      /* 2^64 / golden ratio, odd */

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* The seed is mixed before the position is added: neighbouring seeds must not share shifted sequences. */
uint64_t rng_at(uint64_t seed, uint64_t position) {
    return mix(mix(seed + RNG_STEP) + (position + 1) * RNG_STEP);
}

double rng_unit(uint64_t draw) {
    return (double)(draw >> 11) * 0x1p-53;
}

void rng_init(struct rng *r, uint64_t seed, uint64_t stream) {
    r->key = rng_at(mix(seed), stream);
    r->counter = 0;
}

uint64_t rng_u64(struct rng *r) {
    return mix(r->key + ++r->counter * RNG_STEP);
}

/* Draws from the incomplete last multiple of n are thrown away; fewer than one in two for any n. */
uint64_t rng_below(struct rng *r, uint64_t n) {
    CHECK(n > 0);
    uint64_t reject = (UINT64_MAX % n + 1) % n, draw;
    do draw = rng_u64(r); while (draw > UINT64_MAX - reject);
    return draw % n;
}

double rng_double(struct rng *r) {
    return rng_unit(rng_u64(r));
}

float rng_normal(struct rng *r) {
    int64_t sum = 0;
    for (int i = 0; i < 2; i++) {
        uint64_t draw = rng_u64(r);
        for (int k = 0; k < 64; k += 16) sum += (int64_t)(draw >> k & 0xffff);
    }
    sum = 2 * sum - 8 * 0xffff;                   /* centred; twice the value, so that it stays whole */
    /* One 16-bit draw has variance (65536^2 - 1) / 12; the divisor is the root of eight of them. */
    return (float)((double)sum * (0.5 / 53509.91992145008));
}
