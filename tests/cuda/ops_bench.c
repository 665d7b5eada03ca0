/* Speed of single operations on the card. */
#include "tests/cuda/ops.h"

#include <time.h>

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { BENCH_COPIES = 12, BENCH_ROUNDS = 6 };

/* Median time of one of `n` recorded operations; the first rounds (run, capture) do not count. */
#define BENCH(n, call)                                                     \
    ({                                                                     \
        double best_[BENCH_ROUNDS];                                        \
        for (int round_ = 0; round_ < BENCH_ROUNDS; round_++) {            \
            CHECK(kernels_finish(k, NULL) == 0);                           \
            double start_ = now();                                         \
            for (int i = 0; i < (n); i++) call;                            \
            CHECK(kernels_finish(k, NULL) == 0);                           \
            best_[round_] = now() - start_;                                \
        }                                                                  \
        double least_ = 1e9;                                               \
        for (int round_ = 2; round_ < BENCH_ROUNDS; round_++) least_ = MIN(least_, best_[round_]); \
        least_ / (n);                                                      \
    })

static struct tensor bench_tensor(enum dtype type, int64_t row, int64_t rows, int64_t n_e, bool weight) {
    struct tensor t = { .type = type, .ne = { row, rows, n_e } };
    struct kernels *k = side[GPU];
    struct err e;
    uint64_t bytes = dtype_row_bytes(type, (uint64_t)row) * (uint64_t)(rows * n_e);
    uint8_t *host = malloc(bytes);
    CHECK(host);
    if (type == DTYPE_F32) {
        for (uint64_t i = 0; i < bytes / 4; i++) ((float *)(void *)host)[i] = rng_normal(&chance);
    } else {                          /* random codes under tame scales: blocks encoded once, then repeated */
        uint64_t unit = dtype_row_bytes(type, 256) * 64, at = 0;
        float *some = xcalloc(256 * 64, 4);
        for (int i = 0; i < 256 * 64; i++) some[i] = 0.02f * rng_normal(&chance);
        uint8_t *blocks = xcalloc(1, unit);
        dtype_encode(type, some, blocks, 256 * 64);
        for (; at < bytes; at += unit) memcpy(host + at, blocks, MIN(unit, bytes - at));
        free(some), free(blocks);
    }
    t.mem = weight ? kernels_map(k, host, bytes, &t.data, &e) : kernels_alloc(k, bytes, &t.data, &e);
    if (!t.mem) fprintf(stderr, "ops_test: %s\n", e.text), exit(2);
    if (!weight) CHECK(kernels_upload(k, t.data, host, bytes, &e) == 0);
    free(host);
    return t;
}

static void bench_matmul(enum dtype type, int64_t n_in, int64_t n_out, int n_group) {
    struct kernels *k = side[GPU];
    static const int rows[] = { 1, 4, 16, 64, 512, 4096 };
    struct tensor w[BENCH_COPIES], in = bench_tensor(DTYPE_F32, n_in * n_group, 4096, 1, false),
                                   out = bench_tensor(DTYPE_F32, n_out, 4096, 1, false);
    for (int i = 0; i < BENCH_COPIES; i++) w[i] = bench_tensor(type, n_in, n_out, 1, true);
    double bytes = (double)dtype_row_bytes(type, (uint64_t)n_in) * (double)n_out;
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        int n = rows[r];
        double s = BENCH(
            BENCH_COPIES,
            (kernels_matmul(
                k, &(struct matmul_args){
                       .out = &out, .in = &in, .weight = &w[i], .n = n, .n_group = n_group })));
        printf("matmul %-8s %5lld -> %6lld x %4d: %8.1f us  %6.2f TB/s  %7.1f TFLOP/s\n",
               dtype_name(type), (long long)n_in, (long long)n_out, n, s * 1e6, bytes / s / 1e12,
               2 * (double)n_in * (double)n_out * n / s / 1e12);
    }
    for (int i = 0; i < BENCH_COPIES; i++) kernels_release(k, w[i].mem);
    kernels_release(k, in.mem), kernels_release(k, out.mem);
}

static void bench_experts(enum dtype gate, enum dtype down) {
    struct kernels *k = side[GPU];
    enum { COPIES = 3, USED = 6, EXPERTS = 256, N_MAX = 4096 };
    static const int rows[] = { 1, 4, 16, 64, 512, 4096 };
    struct tensor w[COPIES][3], x = bench_tensor(DTYPE_F32, 4096, N_MAX, 1, false),
                                out = bench_tensor(DTYPE_F32, 4096, N_MAX, 1, false);
    struct tensor ids = { .type = DTYPE_I32, .ne = { USED, N_MAX, 1 } },
                  weight = bench_tensor(DTYPE_F32, USED, N_MAX, 1, false);
    int32_t *host = xcalloc(USED * N_MAX, 4);
    for (int i = 0; i < N_MAX; i++)
        for (int u = 0; u < USED; u++)
            host[i * USED + u] =
                (int32_t)((uint64_t)(u * EXPERTS / USED) + rng_below(&chance, EXPERTS / USED));
    allocate(k, USED * N_MAX * 4, &ids);
    CHECK(kernels_upload(k, ids.data, host, USED * N_MAX * 4, NULL) == 0);
    for (int i = 0; i < COPIES; i++) {
        w[i][0] = bench_tensor(gate, 4096, 2048, EXPERTS, true),
        w[i][1] = bench_tensor(gate, 4096, 2048, EXPERTS, true);
        w[i][2] = bench_tensor(down, 2048, 4096, EXPERTS, true);
    }
    double each = (double)(dtype_row_bytes(gate, 4096) * 4096 + dtype_row_bytes(down, 2048) * 4096);
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        int n = rows[r], n_distinct = 0;
        bool seen[EXPERTS] = { false };
        for (int i = 0; i < n * USED; i++) n_distinct += !seen[host[i]], seen[host[i]] = true;
        double s =
            BENCH(COPIES * 4,
                  (kernels_moe_experts(k, &(struct moe_experts_args){ .out = &out,
                                                                      .x = &x,
                                                                      .ids = &ids,
                                                                      .weights = &weight,
                                                                      .gate = &w[i % COPIES][0],
                                                                      .up = &w[i % COPIES][1],
                                                                      .down = &w[i % COPIES][2],
                                                                      .clamp = 10,
                                                                      .n = n,
                                                                      .n_used = USED,
                                                                      .e_begin = 0,
                                                                      .e_end = EXPERTS })));
        printf("experts %s %s x %4d: %8.1f us  %6.2f TB/s  %7.1f TFLOP/s\n", dtype_name(gate),
               dtype_name(down), n, s * 1e6, each * n_distinct / s / 1e12,
               2.0 * USED * n * 3 * 4096 * 2048 / s / 1e12);
    }
    for (int i = 0; i < COPIES * 3; i++) kernels_release(k, w[i / 3][i % 3].mem);
    kernels_release(k, x.mem), kernels_release(k, out.mem), kernels_release(k, ids.mem),
        kernels_release(k, weight.mem);
    free(host);
}

void bench(void) {
    bench_matmul(DTYPE_Q8_0, 4096, 1024, 1);
    bench_matmul(DTYPE_Q8_0, 1024, 32768, 1);
    bench_matmul(DTYPE_Q8_0, 4096, 8192, 8);
    bench_matmul(DTYPE_Q8_0, 8192, 4096, 1);
    bench_matmul(DTYPE_F16, 4096, 1024, 1);
    bench_matmul(DTYPE_F16, 1024, 8192, 1);
    bench_experts(DTYPE_IQ2_XXS, DTYPE_Q2_K);
    bench_experts(DTYPE_Q4_K, DTYPE_Q4_K);
}
