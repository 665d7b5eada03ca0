/* ops - what the tests of single operations share: tensors that exist on the CPU and on the card, random
 * inputs, poisoned outputs, verdicts, and batches of rows. One file per family of operations has the cases.
 *
 * One thread; everything that a case makes lives until drop_all(). A failure to get memory or to reach the
 * card ends the program. */
#ifndef TESTS_CUDA_OPS_H
#define TESTS_CUDA_OPS_H

#include "common/base/check.h"
#include "common/base/rng.h"
#include "kernels/kernels.h"

#include <math.h>

enum { CPU, GPU, SIDES };

extern struct kernels *side[SIDES];
extern struct rng chance;
extern int n_cases, n_failed;
extern bool small;                                 /* only cases that a checking tool finishes soon */

/* ---- tensors on both sides ---- */

struct pair {
    struct tensor t[SIDES];
    float *host;                                   /* as uploaded; NULL for outputs */
    void *mapped;                                  /* weights: the CPU uses this memory itself */
    uint64_t bytes;
};

void *allocate(struct kernels *k, uint64_t bytes, struct tensor *t);
struct pair *pair_new(enum dtype type, int64_t row, int64_t rows);             /* no memory yet */
void upload(struct pair *p, const void *data);
void poison(struct pair *p);
struct pair *output(enum dtype type, int64_t row, int64_t rows);               /* poisoned */
struct pair *values(int64_t row, int64_t rows, float scale, float offset);     /* random */
struct pair *numbers(int64_t row, int64_t rows, const int32_t *data);
/* Random weights of a type, mapped. rows of all experts together. */
struct pair *weights(enum dtype type, int64_t row, int64_t rows, int64_t experts, float scale);
void drop_all(void);
void *fetch(const struct pair *p, int s);                                      /* the caller frees it */

struct tensor view_rows(const struct pair *p, int s, int row0, int n);        /* rows row0 .. row0+n */

extern const enum dtype decodable[12];             /* all types that rows may have */

#define BOTH(...)                                   \
    for (int s = 0; s < SIDES; s++) {               \
        struct kernels *k = side[s];                \
        __VA_ARGS__;                                \
    }

/* ---- verdicts ---- */

void name_case(const char *format, ...);
void verdict(bool ok, const char *format, ...);
/* The first n values (0: all): |gpu - cpu| / |cpu| at most tolerance. */
void compare(const struct pair *p, uint64_t n, double tolerance, const char *what);
/* Share of differing bytes; of each row only the first `used`. */
void compare_used(const struct pair *p, uint64_t used, double share, const char *what);
void compare_bytes(const struct pair *p, double share, const char *what);
/* Bits of the card's output, kept for comparing with another way to compute them. */
uint32_t *keep_bits(const struct pair *p);
void same_bits(const uint32_t *a, const uint32_t *b, uint64_t n, const char *what);

/* ---- batches ---- */

struct batch_memory {
    struct kbatch b;
    int32_t *token, *pos, *seg;
    struct kseg *segs;
};

void batch_add(struct batch_memory *m, int32_t slot, int32_t pos0, int32_t n);
void batch_free(struct batch_memory *m);

/* ---- the cases ---- */

void test_embed(void);
void test_hc(void);
void test_rows(void);
void test_replay(void);
void test_route(void);
void test_experts(void);
void test_matmul(void);
void test_matmul_group(void);
void test_state(void);
void test_chunks(void);

/* Rows row0 .. row0+n through a product, on both sides. */
void matmul_run(struct pair *out, struct pair *in, struct pair *w, int row0, int n, int n_group,
                bool f32_act);

double now(void);                                  /* seconds */
void bench(void);                                  /* speed of single operations on the card */

#endif
