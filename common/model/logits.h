/* logits - what is asked of a row of logits: the largest, the sum of exponentials, the first k in order.
 *
 * The one order of tokens is (logit descending, id ascending), packed into an integer key so that
 * larger keys come first and no tie is left over; -0 and +0 are the same logit. Exponential and
 * logarithm are our own arithmetic in double (multiplies and adds only), so the same row gives the same
 * bits on every machine and instruction set. Pure functions; any thread. */
#ifndef MODEL_LOGITS_H
#define MODEL_LOGITS_H

#include "common/base/err.h"
#include "common/base/types.h"

enum { LOGITS_MAX = 1 << 24 };                        /* tokens in a row: ids fit every sum and key below */

static inline uint64_t logits_key(float logit, int32_t id) {
    uint32_t u = f32_bits(logit + 0.0f);              /* -0 becomes +0 */
    u = u >> 31 ? ~u : u | 0x80000000u;
    return (uint64_t)u << 32 | (uint32_t)~id;
}

static inline float logits_key_logit(uint64_t key) {
    uint32_t u = (uint32_t)(key >> 32);
    return f32_from_bits(u >> 31 ? u & 0x7fffffffu : ~u);
}

static inline int32_t logits_key_id(uint64_t key) {
    return (int32_t)~(uint32_t)key;
}

/* e^z for z <= 0 (0 below -700) and ln x for normal x > 0; relative error below 1e-14. */
double logits_exp(double z);
double logits_log(double x);

/* The key of the largest of row[0..n-1], n >= 1. A NaN or an infinity in the row is ERR_CORRUPT and named. */
int logits_largest(const float *row, int n, uint64_t *key, struct err *e);

/* Sum of e^((row[i] - top) * inv_t), as defined: eight lanes, lane l takes i = l, l+8, l+16 ...; then
 * ((lane 0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). top is at least every row[i]; -inf in the row counts 0. */
double logits_exp_sum(const float *row, int n, double top, double inv_t);

/* weight[i] = e^((logit of key[i] - top) * inv_t). */
void logits_weights(const uint64_t *key, int n, double top, double inv_t, double *weight);

/* The k largest keys of the row, in order, to key[0..k-1]; 1 <= k <= n, key has room for n. */
void logits_first(const float *row, int n, int k, uint64_t *key);

/* Rearranges key[0..n-1] so that the first k are the k largest, descending. */
void logits_sort(uint64_t *key, int n, int k);

#endif
