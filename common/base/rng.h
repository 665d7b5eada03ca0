/* rng - the only source of chance: equal seeds give equal numbers on every machine, compiler and backend.
 *
 * Two ways to draw. rng_at() is a pure function of (seed, position): what a sequence draws at position
 * 70 does not depend on who drew before, which is why a replayed stream repeats its text. struct rng is
 * a sequence for tests, simulations and synthetic weights; `stream` gives independent sequences under
 * one seed. Not for secrets. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

struct rng {
    uint64_t key, counter;
};

uint64_t rng_at(uint64_t seed, uint64_t position);
double rng_unit(uint64_t draw);                   /* [0, 1): the upper 53 bits of a draw */

void rng_init(struct rng *r, uint64_t seed, uint64_t stream);
uint64_t rng_u64(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t n);    /* 0..n-1, each equally likely; n > 0 */
double rng_double(struct rng *r);                 /* [0, 1) */

/* About normal (mean 0, deviation 1, never beyond 4.9): a sum of eight 16-bit draws. Integers up to the last
 * multiplication, so no libm decides the bits. */
float rng_normal(struct rng *r);

#endif
