/* logits - see the header. Whole rows are walked in blocks of constant size that compilers turn into
 * vectors; the sum of exponentials is also built for AVX2 (same operations in the same order, so the
 * same bits). The first k of a row are found by collecting what lies above a rising cut and selecting
 * with a radix partition: linear for any input. */
#include "common/model/logits.h"

#include <float.h>
#include <math.h>

enum { LANES = 8, BLOCK = 16, INSERTION_MAX = 24 };

/* ---- exponential and logarithm ---- */

/* Four doubles as the compiler's own vector: one register with AVX2, two with SSE2 and NEON. By
 * pointer, because how such vectors are passed depends on the machine. */
typedef double f64x4 __attribute__((vector_size(32)));
typedef int64_t i64x4 __attribute__((vector_size(32)));
#define FLATTEN static inline __attribute__((always_inline))

/* e^z for each z <= 0. z = n ln2 + r with |r| <= ln2 / 2; Taylor to degree 12, whose first missing term
 * is below 2e-16. ln2 comes in two parts, the first with so few bits that n times it is exact. */
FLATTEN void exp4(f64x4 *z) {
    i64x4 zero = *z < -700.0;
    f64x4 x = (f64x4)((i64x4)*z & ~zero);         /* e^0 where the result is 0: no odd exponents */
    f64x4 n = x * 1.44269504088896340736 + 0x1.8p52;  /* adding 1.5 * 2^52 rounds to an integer */
    i64x4 exponent = (i64x4)n << 52;              /* which the low bits of the mantissa then are */
    n -= 0x1.8p52;
    f64x4 r = x - n * 0x1.62e42fee00000p-1;
    r -= n * 0x1.a39ef35793c76p-33;
    f64x4 p = r * (1.0 / 479001600) + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    *z = (f64x4)(((i64x4)p + exponent) & ~zero);
}

double logits_exp(double z) {
    f64x4 all = { z };
    exp4(&all);
    return all[0];
}

/* x = 2^k m with m in [sqrt(1/2), sqrt(2)); ln m = 2 atanh(s), s = (m-1)/(m+1), |s| < 0.172: s^23/23 is
 * below 1e-18. */
double logits_log(double x) {
    int k;
    double m = frexp(x, &k);
    if (m < 0.70710678118654752440) {
        m *= 2;
        k--;
    }
    double s = (m - 1) / (m + 1), z = s * s, p = 0;
    for (int i = 21; i >= 3; i -= 2) p = (p + 1.0 / i) * z;
    return k * 0.69314718055994530942 + (2 * s + 2 * s * p);
}

/* ---- whole rows ---- */

static int complain_about(const float *row, int n, struct err *e) {
    int i = 0;
    while (i < n - 1 && isfinite(row[i])) i++;
    return err_set(e, ERR_CORRUPT, "the logit of token %d is %s", i,
                   isnan(row[i]) ? "not a number" : "infinite");
}

/* The largest value; *odd is set when some value has the exponent of NaN and infinity. */
static float row_max(const float *row, int n, bool *odd) {
    float top[BLOCK];
    uint32_t exponent[BLOCK] = { 0 };
    for (int l = 0; l < BLOCK; l++) top[l] = -FLT_MAX;
    int i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        for (int l = 0; l < BLOCK; l++) {
            float x = row[i + l];
            uint32_t bits = f32_bits(x) & 0x7f800000u;
            top[l] = x > top[l] ? x : top[l];
            exponent[l] |= 0u - (uint32_t)(bits == 0x7f800000u);
        }
    }
    for (; i < n; i++) {
        top[0] = row[i] > top[0] ? row[i] : top[0];
        exponent[0] |= 0u - (uint32_t)!isfinite(row[i]);
    }
    for (int l = 1; l < BLOCK; l++) {
        top[0] = MAX(top[0], top[l]);
        exponent[0] |= exponent[l];
    }
    *odd = exponent[0] != 0;
    return top[0];
}

int logits_largest(const float *row, int n, uint64_t *key, struct err *e) {
    bool odd;
    float top = row_max(row, n, &odd);
    if (odd) return complain_about(row, n, e);
    int32_t id = 0;
    while (row[id] != top) id++;
    *key = logits_key(top, id);
    return 0;
}

/* Four of the row from i on; beyond its end -inf, which adds 0. */
FLATTEN void exp_of_row(const float *row, int n, int i, double top, double inv_t, f64x4 *out) {
    f64x4 z;
    if (i + 4 <= n) {
        z = (f64x4){ (double)row[i], (double)row[i + 1], (double)row[i + 2], (double)row[i + 3] };
    } else {
        for (int l = 0; l < 4; l++) z[l] = i + l < n ? (double)row[i + l] : -INFINITY;
    }
    z = (z - top) * inv_t;
    exp4(&z);
    *out = z;
}

FLATTEN double exp_sum(const float *row, int n, double top, double inv_t) {
    f64x4 low = { 0 }, high = { 0 }, a, b;                            /* lanes 0..3 and 4..7 */
    int i = 0;
    for (; i < n / LANES * LANES; i += LANES) {
        exp_of_row(row, INT32_MAX, i, top, inv_t, &a);
        exp_of_row(row, INT32_MAX, i + 4, top, inv_t, &b);
        low += a;
        high += b;
    }
    exp_of_row(row, n, i, top, inv_t, &a);
    exp_of_row(row, n, i + 4, top, inv_t, &b);
    low += a;
    high += b;
    low += high;
    return (low[0] + low[2]) + (low[1] + low[3]);
}

FLATTEN void weights(const uint64_t *key, int n, double top, double inv_t, double *weight) {
    for (int i = 0; i < n; i += 4) {
        f64x4 z = { 0 };
        int have = MIN(4, n - i);
        for (int l = 0; l < have; l++) z[l] = ((double)logits_key_logit(key[i + l]) - top) * inv_t;
        exp4(&z);
        for (int l = 0; l < have; l++) weight[i + l] = z[l];
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static double exp_sum_avx2(const float *row, int n, double top,
                                                           double inv_t) {
    return exp_sum(row, n, top, inv_t);
}
__attribute__((target("avx2"))) static void weights_avx2(const uint64_t *key, int n, double top,
                                                         double inv_t, double *w) {
    weights(key, n, top, inv_t, w);
}
#endif

double logits_exp_sum(const float *row, int n, double top, double inv_t) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return exp_sum_avx2(row, n, top, inv_t);
#endif
    return exp_sum(row, n, top, inv_t);
}

void logits_weights(const uint64_t *key, int n, double top, double inv_t, double *weight) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        weights_avx2(key, n, top, inv_t, weight);
        return;
    }
#endif
    weights(key, n, top, inv_t, weight);
}

/* ---- order ---- */

static void insertion_sort(uint64_t *key, int n) {
    for (int i = 1; i < n; i++) {
        uint64_t moved = key[i];
        int j = i;
        for (; j > 0 && key[j - 1] < moved; j--) key[j] = key[j - 1];
        key[j] = moved;
    }
}

/* Puts the keys into descending order of the byte at `shift`; bucket b then is
 * key[start[b]..start[b-1]-1]. In place: each misplaced key is carried to its bucket's next free slot
 * until the cycle closes. */
static void partition_by_byte(uint64_t *key, int n, int shift, int start[257]) {
    int next[256], count[256] = { 0 };
    for (int i = 0; i < n; i++) count[key[i] >> shift & 255]++;
    int at = 0;
    for (int b = 255; b >= 0; b--) {
        start[b + 1] = next[b] = at;              /* start is kept one up: start[b] is b's end */
        at += count[b];
    }
    start[0] = n;
    for (int b = 255; b >= 0; b--) {
        while (next[b] < start[b]) {
            uint64_t moved = key[next[b]];
            int to = (int)(moved >> shift & 255);
            while (to != b) {
                uint64_t other = key[next[to]];
                key[next[to]++] = moved;
                moved = other;
                to = (int)(moved >> shift & 255);
            }
            key[next[b]++] = moved;
        }
    }
}

/* The first k of n in front; in order when `sorted`. Buckets that begin at k or later are left alone,
 * and without `sorted` so are those that end at k or before. Depth is at most 8: one byte of the key
 * each. */
static void select_keys(uint64_t *key, int n, int k, int shift, bool sorted) {
    if (n <= INSERTION_MAX) {
        insertion_sort(key, n);
        return;
    }
    int start[257];
    partition_by_byte(key, n, shift, start);
    if (shift == 0) return;
    for (int b = 255; b >= 0; b--) {
        int first = start[b + 1], end = start[b];
        if (first >= k) return;
        if (end - first > 1 && (sorted || end > k))
            select_keys(key + first, end - first, k - first, shift - 8, sorted);
    }
}

void logits_sort(uint64_t *key, int n, int k) {
    select_keys(key, n, k, 56, true);
}

/* Whether any of BLOCK values reaches the cut. */
static inline bool block_reaches(const float *row, float cut) {
    int hit = 0;
    for (int l = 0; l < BLOCK; l++) hit |= row[l] >= cut;
    return hit;
}

/* Keys above the cut gather behind the k best so far; when there are as many again, the k best of all
 * raise the cut. So each round of work on 2k keys is paid for by k keys that went over the cut. */
void logits_first(const float *row, int n, int k, uint64_t *key) {
    int room = k < n / 2 ? MAX(2 * k, MIN(n, 128)) : n, have = 0;
    uint64_t cut_key = 0;
    float cut = -INFINITY;
    for (int i = 0; i < n; i += BLOCK) {
        int end = MIN(i + BLOCK, n);
        if (end - i == BLOCK && !block_reaches(row + i, cut)) continue;
        for (int j = i; j < end; j++) {
            uint64_t candidate = logits_key(row[j], j);
            if (candidate <= cut_key) continue;
            key[have++] = candidate;
            if (have < room || room == n) continue;
            select_keys(key, have, k, 56, false);
            have = k;
            cut_key = key[0];
            for (int m = 1; m < k; m++) cut_key = MIN(cut_key, key[m]);
            cut = logits_key_logit(cut_key);
        }
    }
    logits_sort(key, have, k);
}
