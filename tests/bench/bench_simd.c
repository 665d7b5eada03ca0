/* bench_simd - speed of the inner loops on one core.
 *
 *   bench_simd [-t TABLE] [-f FILTER]              TABLE: generic, avx2, ...; FILTER: part of a line's name
 *
 * Decode (one activation row): bytes of weights per cycle, from memory that fits the L2 and from memory
 * that does not, next to a plain read of the same memory. Prefill: 10^9 operations per second (2 per
 * weight and row) by number of rows. Then cycles per call of the element-wise entries. The best of
 * several runs counts, because others may use the machine. */
#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/sys/clock.h"
#include "kernels/cpu/simd.h"

#include <stdio.h>

enum { N_IN = 4096, ROWS_L2 = 64, L2_BYTES = 384 << 10, COLD_BYTES = 96 << 20, X_MAX = 64, RUNS_MIN = 7 };
#define SECONDS_MIN 0.05

static const struct cpu_simd *simd;
static const char *filter = "";
static double ghz;
static volatile float sink;

static double seconds(void) {
    return (double)clock_now_ns() * 1e-9;
}

/* A chain of additions is one cycle each everywhere. */
static double measure_ghz(void) {
    double best = 1e9;
    for (int run = 0; run < 20; run++) {
        uint64_t x = (uint64_t)run, n = 400000;
        double start = seconds();
        for (uint64_t i = 0; i < n; i++) {
#define STEP x += 1; __asm__ volatile("" : "+r"(x));
            STEP STEP STEP STEP STEP STEP STEP STEP
        }
        best = MIN(best, seconds() - start);
        sink = (float)x;
    }
    return 8 * 400000 / best * 1e-9;
}

typedef void bench_fn(void *ctx);

/* Seconds of one call. Runs are short, a fifth of a millisecond where a call is shorter, so that some
 * of the many fall between what else the machine does; the best counts. */
static double best_of(bench_fn *run, void *ctx) {
    double start = seconds(), best = 1e9, begin;
    run(ctx);
    int repeat = (int)MAX(1, 0.0002 / MAX(seconds() - start, 1e-8));
    begin = seconds();
    for (int r = 0; r < RUNS_MIN || seconds() - begin < SECONDS_MIN; r++) {
        start = seconds();
        for (int i = 0; i < repeat; i++) run(ctx);
        best = MIN(best, (seconds() - start) / repeat);
    }
    return best;
}

static bool wanted(const char *name) {
    return strstr(name, filter) != NULL;
}

static void *memory_new(size_t n) {
    void *p = NULL;
    CHECK(posix_memalign(&p, 4096, n) == 0);
    memset(p, 1, n);
    return p;
}

/* ---- matrix products ---- */

static const enum dtype types[] = {
    DTYPE_Q8_0, DTYPE_MXFP4, DTYPE_Q4_K, DTYPE_Q2_K, DTYPE_IQ2_XXS, DTYPE_Q4_0,
    DTYPE_Q3_K, DTYPE_Q5_K,  DTYPE_Q6_K, DTYPE_F16,  DTYPE_F32,
};

static void run_matmul(void *ctx) {
    simd->matmul(ctx);
}

/* Two consecutive tiles of a matrix, as a thread meets them. */
static void run_tiles(void *ctx) {
    struct mm_tile t = *(struct mm_tile *)ctx;
    int n_w = t.n_w;
    for (int j = 0; j < n_w; j += ROWS_L2, t.w += ROWS_L2 * t.row_bytes, t.out += ROWS_L2) {
        t.n_w = MIN(ROWS_L2, n_w - j);
        simd->matmul(&t);
    }
}

static struct act act_new(enum act_kind kind, float *x) {
    struct act a = { .kind = kind, .n_in = N_IN, .f = x };
    a.q = memory_new(X_MAX * N_IN);
    a.d = memory_new(X_MAX * N_IN / 32 * 4);
    a.sum = memory_new(X_MAX * N_IN / 16 * 4);
    for (int i = 0; i < X_MAX && kind != ACT_F32; i++) {
        if (kind == ACT_Q8_0)
            simd->quant_q8_0(x + i * N_IN, N_IN, a.q + i * N_IN, a.d + i * (N_IN / 32),
                             a.sum + i * (N_IN / 32));
        else
            simd->quant_q8_k(x + i * N_IN, N_IN, a.q + i * N_IN, a.d + i * (N_IN / 256),
                             a.sum + i * (N_IN / 16));
    }
    return a;
}

/* Scales like those of a model: tiny ones would measure how slow subnormal products are. */
static void mxfp4_scales(uint8_t *weights) {
    for (size_t i = 0; i + 17 <= COLD_BYTES; i += 17) weights[i] = 120;
}

static void bench_matmul(uint8_t *weights, float *x, float *out, void *scratch) {
    static const int n_xs[] = { 2, 3, 4, 6, 12, 24, 64 };
    printf("%-14s %9s %9s %9s |", "matmul", "L2 B/cyc", "mem B/cyc", "mem GB/s");
    for (size_t i = 0; i < COUNT_OF(n_xs); i++) printf(" x%-6d", n_xs[i]);
    printf(" Gop/s\n");
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        enum act_kind kind = act_kind_for(types[i]);
        int64_t row_bytes = (int64_t)dtype_row_bytes(types[i], N_IN);
        char name[64];
        snprintf(name, sizeof name, "matmul %s", dtype_name(types[i]));
        if (!wanted(name)) continue;
        if (types[i] == DTYPE_MXFP4) mxfp4_scales(weights);
        struct act act = act_new(kind, x);
        struct mm_tile t = {
            .type = types[i],
            .kind = kind,
            .w = weights,
            .row_bytes = row_bytes,
            .n_in = N_IN,
            .n_w = (int)(L2_BYTES / row_bytes),
            .n_x = 1,
            .x = &act,
            .out = out,
            .out_stride = 1 << 17,
            .scratch = scratch,
        };
        double l2 = (double)(t.n_w * row_bytes) / best_of(run_matmul, &t);
        t.n_w = (int)(COLD_BYTES / row_bytes);
        double cold = (double)(t.n_w * row_bytes) / best_of(run_tiles, &t);
        printf("%-14s %9.2f %9.2f %9.2f |", name + 7, l2 * 1e-9 / ghz, cold * 1e-9 / ghz, cold * 1e-9);
        t.n_w = ROWS_L2;
        for (size_t k = 0; k < COUNT_OF(n_xs); k++) {
            t.n_x = n_xs[k];
            printf(" %-7.1f", 2.0 * t.n_w * t.n_x * N_IN / best_of(run_matmul, &t) * 1e-9);
        }
        printf("\n");
        free(act.q);
        free(act.d);
        free(act.sum);
    }
}

struct read_job {
    const uint64_t *p;
    size_t n;
};

static void run_read(void *ctx) {
    const struct read_job *job = ctx;
    uint64_t sum[8] = { 0 };
    for (size_t i = 0; i < job->n; i += 8)
        for (size_t k = 0; k < 8; k++) sum[k] |= job->p[i + k];
    for (size_t k = 1; k < 8; k++) sum[0] |= sum[k];
    sink = (float)sum[0];
}

/* ---- element-wise entries ---- */

struct rows {
    float *a, *b, *c, *d;
    int8_t *q;
    int32_t *sum;
    uint8_t *bytes;
};

#define ROW(name, unit, call)               \
    static void row_##name(void *ctx) {     \
        struct rows *r = ctx;               \
        (void)r;                            \
        call;                               \
    }
#define ROWS(X)                                                                                    \
    X(quant_q8_0, 4096, simd->quant_q8_0(r->a, 4096, r->q, r->d, r->sum))                          \
    X(quant_q8_k, 4096, simd->quant_q8_k(r->a, 4096, r->q, r->d, r->sum))                          \
    X(dot, 4096, sink = simd->dot(r->a, r->b, 4096))                                               \
    X(axpy, 4096, simd->axpy(r->c, 1e-9f, r->b, 4096))                                             \
    X(scale_mul, 4096, simd->scale_mul(r->c, r->a, 0.5f, r->b, 4096))                              \
    X(exp_sub, 4096, (memcpy(r->c, r->a, 4096 * 4), simd->exp_sub(r->c, 1.0f, 4096)))              \
    X(swiglu, 4096, simd->swiglu(r->c, r->a, r->b, 10.0f, 0.5f, 4096))                             \
    X(hc_mix, 16384, simd->hc_mix(r->c, r->a, r->b, r->b + 4, 4096))                               \
    X(hc_sum, 16384, simd->hc_sum(r->d, r->a, r->b, 4096))                                         \
    X(router_score, 256, simd->router_score(r->c, r->a, 256))                                      \
    X(softmax_pool, 4096, softmax_pool(r))                                                         \
    X(kv_pack, 512, simd->kv_pack(r->bytes, r->a, 448, 64))                                        \
    X(kv_unpack, 512, simd->kv_unpack(r->c, r->bytes, 448, 64))                                    \
    X(hadamard, 128, (memcpy(r->c, r->a, 512), simd->hadamard(r->c, 128)))                         \
    X(fp4_pack, 128, simd->fp4_pack(r->bytes, r->a, 128))                                          \
    X(fp4_codes, 128, simd->fp4_codes(r->q, r->q + 128, r->a, 128))

static void softmax_pool(struct rows *r) {
    const float *kv[8], *score[8];
    for (int i = 0; i < 8; i++) kv[i] = r->a + 512 * i, score[i] = r->b + 512 * i;
    simd->softmax_pool(r->c, kv, score, 8, 512);
}

ROWS(ROW)

static const struct {
    const char *name;
    int n;
    bench_fn *run;
} row_cases[] = {
#define ROW_CASE(name, n, call) { #name, n, row_##name },
    ROWS(ROW_CASE)
};

static void bench_rows(float *x) {
    struct rows r = { x,
                      x + 16384,
                      memory_new(65536),
                      memory_new(65536),
                      memory_new(8192),
                      memory_new(8192),
                      memory_new(4096) };
    simd->kv_pack(r.bytes, x, 448, 64);
    for (size_t i = 0; i < COUNT_OF(row_cases); i++) {
        if (!wanted(row_cases[i].name)) continue;
        double cycles = best_of(row_cases[i].run, &r) * ghz * 1e9;
        printf("%-14s %9.0f cycles for %d values, %.2f per value\n", row_cases[i].name, cycles,
               row_cases[i].n, cycles / row_cases[i].n);
    }
    free(r.c), free(r.d), free(r.q), free(r.sum), free(r.bytes);
}

/* ---- attention and indexer ---- */

struct heads {
    float *q, *rows, *z, *o;
    int n_head, n_rows;
    int8_t *codes, *exp;
    uint8_t *keys;
};

static void run_scores(void *ctx) {
    struct heads *h = ctx;
    simd->attn_scores(h->z, 64, h->q, 512, h->rows, 512, h->n_head, h->n_rows, 512, 0.044f);
}

static void run_mix(void *ctx) {
    struct heads *h = ctx;
    simd->attn_mix(h->o, 512, h->z, 64, h->rows, 512, h->n_head, h->n_rows, 512);
}

static void run_index(void *ctx) {
    struct heads *h = ctx;
    simd->idx_scores(h->z, h->codes, h->exp, h->q, 64, 128, h->keys, 68, 64);
}

static void bench_heads(float *x) {
    struct heads h = { x,  x + 32768,        memory_new(64 * 64 * 4), memory_new(64 * 512 * 4), 64,
                       64, memory_new(8192), memory_new(256),         memory_new(64 * 68) };
    double macs = 64.0 * 64 * 512;
    memset(h.z, 0, 64 * 64 * 4);
    memset(h.o, 0, 64 * 512 * 4);
    for (int i = 0; i < 64; i++) {
        simd->fp4_codes(h.codes + 128 * i, h.exp + 4 * i, x + 128 * i, 128);
        simd->fp4_pack(h.keys + 68 * i, x + 8192 + 128 * i, 128);
    }
    if (wanted("attn_scores"))
        printf("%-14s %9.1f Gflop/s\n", "attn_scores", 2 * macs / best_of(run_scores, &h) * 1e-9);
    if (wanted("attn_mix"))
        printf("%-14s %9.1f Gflop/s\n", "attn_mix", 2 * macs / best_of(run_mix, &h) * 1e-9);
    if (wanted("idx_scores")) {
        double s = best_of(run_index, &h);
        printf("%-14s %9.1f Gop/s, %.0f cycles per key of 64 heads\n", "idx_scores",
               2.0 * 64 * 64 * 128 / s * 1e-9, s * ghz * 1e9 / 64);
    }
    free(h.z), free(h.o), free(h.codes), free(h.exp), free(h.keys);
}

int main(int argc, char **argv) {
    simd = cpu_simd_select();
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "-t") == 0) simd = cpu_simd_find(argv[i + 1]);
        if (strcmp(argv[i], "-f") == 0) filter = argv[i + 1];
    }
    if (!simd) return fprintf(stderr, "no such table here\n"), 1;
    ghz = measure_ghz();
    struct rng r;
    rng_init(&r, 1, 1);
    uint8_t *weights = memory_new(COLD_BYTES);
    float *x = memory_new((size_t)X_MAX * N_IN * 4), *out = memory_new((size_t)X_MAX * (1 << 17) * 4);
    void *scratch = memory_new(SIMD_SCRATCH);
    /* finite f16 anywhere */
    for (size_t i = 0; i < COLD_BYTES / 8; i++)
        ((uint64_t *)(void *)weights)[i] = rng_at(7, i) & 0x3fff3fff3fff3fff;
    for (int i = 0; i < X_MAX * N_IN; i++) x[i] = rng_normal(&r);
    struct read_job read = { (const uint64_t *)(const void *)weights, COLD_BYTES / 8 };
    printf("table %s, %.2f GHz, plain read %.2f GB/s\n", simd->name, ghz,
           COLD_BYTES / best_of(run_read, &read) * 1e-9);
    bench_matmul(weights, x, out, scratch);
    bench_rows(x);
    bench_heads(x);
    free(weights), free(x), free(out), free(scratch);
    return 0;
}
