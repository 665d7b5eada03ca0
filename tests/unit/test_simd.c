/* Every table of inner loops against the portable one, bit by bit: all types, odd sizes, rows in any
 * order, memory that ends or starts at an unmapped page. What the portable table computes is itself
 * pinned by a checksum, so machines of different kinds agree too. Built with -DSIMD_STANDALONE it needs
 * no cmocka (for emulators). */
#ifndef SIMD_STANDALONE
#include "tests/harness/test.h"
#else
#include <stdio.h>
#include <stdlib.h>
#define fail_msg(...) (printf(__VA_ARGS__), printf("\n"), fflush(stdout), exit(1))
#define assert_true(c) ((c) ? (void)0 : fail_msg("%s:%d: %s", __FILE__, __LINE__, #c))
#define TEST(name) { #name, name }
struct CMUnitTest { const char *name; void (*run)(void **); };
#endif

#include "common/base/check.h"
#include "common/base/rng.h"
#include "kernels/cpu/mathf.h"
#include "kernels/cpu/mm_iq2.h"
#include "kernels/cpu/simd.h"

#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

/* What the portable table gives, on every machine. */
#define PRODUCTS_CHECKSUM 0x8c51d711f7bff49au
#define PRODUCTS_F32_CHECKSUM 0xa17cbd6e28e999c8u
#define LONG_ROWS_CHECKSUM 0x7ad9b738451b5db7u
#define QUANT_CHECKSUM 0x208173418c115855u
#define ROWS_CHECKSUM 0x982ef3adf951418eu
#define KV_CHECKSUM 0x8daa8bfd20661203u
#define ATTENTION_CHECKSUM 0x92a95eb048462e58u
#define INDEX_CHECKSUM 0xf5e26b11224e4976u

enum { TABLES_MAX = 8 };

static const struct cpu_simd *tables[TABLES_MAX];
static int n_tables;
static uint64_t checksum;                       /* of everything that the portable table computed, per test */

static void setup(void) {
    n_tables = cpu_simd_list(tables, TABLES_MAX);
    checksum = 0xcbf29ce484222325u;
}

static void checksum_add(const void *data, size_t n) {
    for (size_t i = 0; i < n; i++) checksum = (checksum ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
}

static void checksum_expect(const char *test, uint64_t want) {
    if (checksum != want)
        fail_msg("%s: the portable table's checksum is 0x%016llx", test,
                 (unsigned long long)checksum);
}

/* ---- memory between two unmapped pages ---- */

struct fence {
    uint8_t *base, *data;
    size_t page, size;                             /* size: of the inner part, in whole pages */
};

static struct fence fence_new(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = ALIGN_UP(size ? size : 1, page);
    uint8_t *base = mmap(NULL, inner + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    CHECK(base != MAP_FAILED);
    CHECK(mprotect(base, page, PROT_NONE) == 0 && mprotect(base + page + inner, page, PROT_NONE) == 0);
    return (struct fence){ base, base + page, page, inner };
}

static void fence_free(struct fence *f) {
    munmap(f->base, f->size + 2 * f->page);
}

/* size bytes that end (or start) where the mapping does. */
static void *fence_at(const struct fence *f, size_t size, bool at_end) {
    CHECK(size <= f->size);
    return at_end ? f->data + f->size - size : f->data;
}

/* ---- random input ---- */

static void fill_bytes(struct rng *r, void *to, size_t n) {
    for (size_t i = 0; i < n; i++) ((uint8_t *)to)[i] = (uint8_t)rng_u64(r);
}

/* Mostly ordinary, sometimes a zero block, tiny or large. */
static void fill_floats(struct rng *r, float *to, int64_t n, float scale) {
    float s = scale;
    for (int64_t i = 0; i < n; i++) {
        if (i % 32 == 0) {
            uint64_t kind = rng_below(r, 12);
            s = kind == 0   ? 0
                : kind == 1 ? scale * 1e-6f
                : kind == 2 ? scale * 1e3f
                : kind == 3 ? scale * 1e-30f
                            : scale;
        }
        to[i] = rng_normal(r) * s;
        if (rng_below(r, 64) == 0) to[i] = -0.0f;
    }
}

/* A finite f16 of any size; now and then zero, subnormal or the largest. */
static uint16_t random_f16(struct rng *r) {
    static const uint16_t special[] = { 0, 0x8000, 1, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff };
    if (rng_below(r, 10) == 0) return special[rng_below(r, COUNT_OF(special))];
    return (uint16_t)((rng_u64(r) & 0x83ff) | (8 + rng_below(r, 12)) << 10);
}

static void put_f16(uint8_t *p, uint16_t h) {
    memcpy(p, &h, 2);
}

static const enum dtype types[] = {
    DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_MXFP4,
    DTYPE_Q2_K, DTYPE_Q3_K, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_IQ2_XXS,
};

/* Every bit pattern of a block is legal; only the scales must be finite. */
static void fill_weights(struct rng *r, enum dtype type, uint8_t *w, int64_t n) {
    int64_t block = dtype_block(type), bytes = dtype_block_bytes(type);
    fill_bytes(r, w, (size_t)(n / block * bytes));
    for (int64_t b = 0; b < n / block; b++) {
        uint8_t *p = w + b * bytes;
        switch (type) {
        case DTYPE_F32: {
            float x = rng_normal(r);
            memcpy(p, &x, 4);
            break;
        }
        case DTYPE_F16: put_f16(p, random_f16(r)); break;
        case DTYPE_BF16: put_f16(p, bf16_from_f32(rng_normal(r))); break;
        case DTYPE_Q2_K: put_f16(p + 80, random_f16(r)), put_f16(p + 82, random_f16(r)); break;
        case DTYPE_Q3_K: put_f16(p + 108, random_f16(r)); break;
        case DTYPE_Q4_K:
        case DTYPE_Q5_K: put_f16(p, random_f16(r)), put_f16(p + 2, random_f16(r)); break;
        case DTYPE_Q6_K: put_f16(p + 208, random_f16(r)); break;
        case DTYPE_MXFP4:
            p[0] = (uint8_t)(rng_below(r, 10) ? 110 + rng_below(r, 30) : rng_below(r, 4));
            break;
        default: put_f16(p, random_f16(r)); break;
        }
    }
}

/* Everything but the f16 scales (of MXFP4: the exponents) becomes `byte`. */
static void fill_pattern(enum dtype type, uint8_t *w, int64_t n, uint8_t byte) {
    int64_t block = dtype_block(type), bytes = dtype_block_bytes(type);
    int keep_at = type == DTYPE_Q2_K ? 80 : type == DTYPE_Q3_K ? 108 : type == DTYPE_Q6_K ? 208 : 0;
    bool has_min = type == DTYPE_Q2_K || type == DTYPE_Q4_K || type == DTYPE_Q5_K;
    int keep = has_min ? 4 : type == DTYPE_MXFP4 ? 1 : 2;
    for (int64_t b = 0; b < n / block; b++)
        for (int i = 0; i < bytes; i++)
            if (i < keep_at || i >= keep_at + keep) w[b * bytes + i] = byte;
}

/* ---- comparing ---- */

static bool same_bits(float a, float b) {
    return f32_bits(a) == f32_bits(b) || (isnan(a) && isnan(b));
}

static void expect_floats(const char *table, const char *what, const float *want, const float *got,
                          int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!same_bits(want[i], got[i]))
            fail_msg("%s %s: value %lld is %a, portable %a", table, what, (long long)i,
                     (double)got[i], (double)want[i]);
}

static void expect_bytes(const char *table, const char *what, const void *want, const void *got, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (((const uint8_t *)want)[i] != ((const uint8_t *)got)[i])
            fail_msg("%s %s: byte %zu is %d, portable %d", table, what, i,
                     ((const uint8_t *)got)[i], ((const uint8_t *)want)[i]);
}

/* ---- matrix products ---- */

struct act_rows {
    struct act act;
    float *f;
};

/* Activations with exact ends: a read past them is a read of somebody else's memory (the sanitizer
 * build sees it). */
static struct act_rows act_new(struct rng *r, enum act_kind kind, int64_t n_rows, int64_t n_in) {
    struct act_rows a = { .act = { .kind = kind, .n_in = n_in } };
    int64_t n_d = n_in / (kind == ACT_Q8_K ? 256 : 32), n_sum = n_in / (kind == ACT_Q8_K ? 16 : 32);
    a.f = xcalloc((size_t)(n_rows * n_in), sizeof *a.f);
    fill_floats(r, a.f, n_rows * n_in, 1.0f);
    a.act.f = a.f;
    if (kind == ACT_F32) return a;
    a.act.q = xcalloc((size_t)(n_rows * n_in), 1);
    a.act.d = xcalloc((size_t)(n_rows * n_d), sizeof *a.act.d);
    a.act.sum = xcalloc((size_t)(n_rows * n_sum), sizeof *a.act.sum);
    for (int64_t i = 0; i < n_rows; i++) {
        void (*quant)(const float *, int64_t, int8_t *, float *, int32_t *) =
            kind == ACT_Q8_K ? cpu_simd_generic.quant_q8_k : cpu_simd_generic.quant_q8_0;
        quant(a.f + i * n_in, n_in, a.act.q + i * n_in, a.act.d + i * n_d, a.act.sum + i * n_sum);
    }
    return a;
}

/* The sums that go with the codes. */
static void act_sums_set(struct act *a, int64_t n_rows) {
    int of = a->kind == ACT_Q8_K ? 16 : 32;
    for (int64_t s = 0; s < n_rows * a->n_in / of; s++) {
        a->sum[s] = 0;
        for (int i = 0; i < of; i++) a->sum[s] += a->q[s * of + i];
    }
}

static void act_free(struct act_rows *a) {
    free(a->f);
    free(a->act.q);
    free(a->act.d);
    free(a->act.sum);
}

static void *scratch_new(void) {
    void *p = NULL;
    CHECK(posix_memalign(&p, 64, SIMD_SCRATCH) == 0);
    memset(p, 0xff, SIMD_SCRATCH);                 /* what is left over there must not matter */
    return p;
}

static void product_case(struct rng *r, enum dtype type, enum act_kind kind, int n_w, int n_x,
                         int64_t n_in, bool at_end) {
    int64_t row_bytes = (int64_t)dtype_row_bytes(type, (uint64_t)n_in), x_rows = n_x + 3;
    struct fence fence = fence_new((size_t)(row_bytes * n_w));
    uint8_t *w = fence_at(&fence, (size_t)(row_bytes * n_w), at_end);
    fill_weights(r, type, w, n_w * n_in);
    struct act_rows x = act_new(r, kind, x_rows, n_in);
    int32_t x_row[128];
    for (int i = 0; i < n_x; i++) x_row[i] = (int32_t)rng_below(r, (uint64_t)x_rows);
    bool listed = rng_below(r, 2);
    int64_t stride = n_w + (int64_t)rng_below(r, 5), n_out = stride * n_x;
    float *want = xcalloc((size_t)n_out, sizeof *want), *got = xcalloc((size_t)n_out, sizeof *got);
    void *scratch = scratch_new();
    struct mm_tile t = {
        .type = type,
        .kind = kind,
        .w = w,
        .row_bytes = row_bytes,
        .n_in = n_in,
        .n_w = n_w,
        .n_x = n_x,
        .x = &x.act,
        .x_row = listed ? x_row : NULL,
        .out = want,
        .out_stride = stride,
        .scratch = scratch,
    };
    cpu_simd_generic.matmul(&t);
    for (int64_t i = 0; i < n_out; i++)
        if (!isnan(want[i])) checksum_add(&want[i], sizeof *want);
    for (int s = 0; s < n_tables; s++) {
        if (tables[s] == &cpu_simd_generic) continue;
        char what[128];
        snprintf(what, sizeof what, "%s%s n_w %d n_x %d n_in %lld", dtype_name(type),
                 kind == ACT_F32 ? " f32" : "", n_w, n_x, (long long)n_in);
        memset(got, 0, (size_t)n_out * sizeof *got);  /* between the rows nothing may be written */
        t.out = got;
        tables[s]->matmul(&t);
        expect_floats(tables[s]->name, what, want, got, n_out);
    }
    free(scratch);
    free(want);
    free(got);
    act_free(&x);
    fence_free(&fence);
}

static void products_equal_the_portable_ones(void **state) {
    (void)state;
    static const int rows[] = { 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40, 64, 65 };
    static const int acts[] = { 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 24, 31, 64, 70 };
    struct rng r;
    setup();
    rng_init(&r, 1, 0);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        enum act_kind kind = act_kind_for(types[i]);
        int64_t unit = kind == ACT_Q8_K ? 256 : kind == ACT_Q8_0 ? 32 : 1;
        for (int c = 0; c < 60; c++) {
            int n_w = rows[rng_below(&r, COUNT_OF(rows))], n_x = acts[rng_below(&r, COUNT_OF(acts))];
            int64_t n_in = unit * (int64_t)(1 + rng_below(&r, unit == 256 ? 5 : unit == 32 ? 20 : 200));
            if (c < 4) n_in = unit;                                    /* the shortest row */
            if (c % 3 == 0) n_x = 1;
            product_case(&r, types[i], kind, n_w, n_x, n_in, c % 4 != 3);
        }
    }
    checksum_expect(__func__, PRODUCTS_CHECKSUM);
}

static void products_in_f32_decode_exactly(void **state) {
    (void)state;
    struct rng r;
    setup();
    rng_init(&r, 2, 0);
    for (size_t i = 0; i < COUNT_OF(types); i++)
        for (int c = 0; c < 8; c++) {
            int64_t n_in = MAX(dtype_block(types[i]), 32) * (int64_t)(1 + rng_below(&r, 3));
            int n_w = (int)(1 + rng_below(&r, 20)), n_x = (int)(1 + rng_below(&r, 14));
            product_case(&r, types[i], ACT_F32, n_w, n_x, n_in, c % 2);
        }
    checksum_expect(__func__, PRODUCTS_F32_CHECKSUM);
}

static void long_rows_and_many_activations_fit_the_scratch(void **state) {
    (void)state;
    struct rng r;
    setup();
    rng_init(&r, 3, 0);
    product_case(&r, DTYPE_Q2_K, ACT_Q8_K, 3, 2, SIMD_N_IN_MAX, true);
    product_case(&r, DTYPE_Q8_0, ACT_Q8_0, 2, 20, SIMD_N_IN_MAX, true);
    product_case(&r, DTYPE_F16, ACT_F32, 9, 2, SIMD_N_IN_MAX, true);
    product_case(&r, DTYPE_Q4_K, ACT_F32, 9, 2, SIMD_N_IN_MAX, true);
    product_case(&r, DTYPE_IQ2_XXS, ACT_Q8_K, 2, 100, 4096, true);
    checksum_expect(__func__, LONG_ROWS_CHECKSUM);
}

static void a_product_does_not_depend_on_its_neighbours(void **state) {
    (void)state;
    struct rng r;
    setup();
    rng_init(&r, 4, 0);
    enum { N_W = 37, N_X = 29, N_IN = 1024 };
    for (size_t i = 0; i < COUNT_OF(types); i++)
        for (int s = 0; s < n_tables; s++) {
            int64_t row_bytes = (int64_t)dtype_row_bytes(types[i], N_IN);
            uint8_t *w = xcalloc(N_W, (size_t)row_bytes);
            float all[N_X][N_W], one;
            void *scratch = scratch_new();
            fill_weights(&r, types[i], w, N_W * N_IN);
            struct act_rows x = act_new(&r, act_kind_for(types[i]), N_X, N_IN);
            struct mm_tile t = {
                .type = types[i],
                .kind = x.act.kind,
                .w = w,
                .row_bytes = row_bytes,
                .n_in = N_IN,
                .n_w = N_W,
                .n_x = N_X,
                .x = &x.act,
                .out = all[0],
                .out_stride = N_W,
                .scratch = scratch,
            };
            tables[s]->matmul(&t);
            for (int c = 0; c < 50; c++) {
                int32_t j = (int32_t)rng_below(&r, N_W), xi = (int32_t)rng_below(&r, N_X);
                struct mm_tile single = t;
                single.w = w + j * row_bytes;
                single.n_w = single.n_x = 1;
                single.x_row = &xi;
                single.out = &one;
                tables[s]->matmul(&single);
                expect_floats(tables[s]->name, "alone", &all[xi][j], &one, 1);
            }
            free(scratch);
            free(w);
            act_free(&x);
        }
}

/* The largest codes and scales against the largest activations: intermediate sums of 16 bits would
 * overflow here first. */
static void extreme_products_do_not_saturate(void **state) {
    (void)state;
    enum { N_W = 9, N_X = 5, N_IN = 512 };
    static const uint8_t patterns[] = { 0x00, 0x7f, 0x80, 0xff, 0x1f };
    struct rng r;
    setup();
    rng_init(&r, 9, 0);
    void *scratch = scratch_new();
    for (size_t i = 0; i < COUNT_OF(types); i++)
        for (size_t p = 0; p < COUNT_OF(patterns) && act_kind_for(types[i]) != ACT_F32; p++)
            for (int n_x = 1; n_x <= N_X; n_x += N_X - 1) {
                int64_t row_bytes = (int64_t)dtype_row_bytes(types[i], N_IN);
                uint8_t *w = xcalloc(N_W, (size_t)row_bytes);
                float want[N_X * N_W], got[N_X * N_W];
                struct act_rows x = act_new(&r, act_kind_for(types[i]), N_X, N_IN);
                fill_weights(&r, types[i], w, N_W * N_IN);
                fill_pattern(types[i], w, N_W * N_IN, patterns[p]);
                for (int k = 0; k < N_X * N_IN; k++) x.act.q[k] = k / N_IN % 2 ? -127 : 127;
                act_sums_set(&x.act, N_X);
                struct mm_tile t = { .type = types[i], .kind = x.act.kind, .w = w, .row_bytes = row_bytes,
                                     .n_in = N_IN, .n_w = N_W, .n_x = n_x, .x = &x.act, .out = want,
                                     .out_stride = N_W, .scratch = scratch };
                cpu_simd_generic.matmul(&t);
                t.out = got;
                for (int s = 0; s < n_tables; s++) {
                    tables[s]->matmul(&t);
                    expect_floats(tables[s]->name, dtype_name(types[i]), want, got, n_x * N_W);
                }
                free(w);
                act_free(&x);
            }
    free(scratch);
}

static void reshaped_iq2_tables_are_the_tables(void **state) {
    (void)state;
    for (int i = 0; i < 256; i++)
        for (int j = 0; j < 8; j++) {
            int code = (j < 4 ? iq2_code_low[i] : iq2_code_high[i]) >> 2 * (j % 4) & 3;
            assert_true((iq2xxs_grid[i] >> 8 * j & 255) == (uint64_t)(code == 0 ? 8 : code == 1 ? 25 : 43));
        }
    for (int i = 0; i < 128; i++)
        for (int j = 0; j < 8; j++)
            assert_true((int8_t)(iq2_sign_bytes[i] >> 8 * j) == (iq2xxs_signs[i] >> j & 1 ? -1 : 1));
}

/* ---- quantisers ---- */

static void quantisers_equal_the_portable_ones(void **state) {
    (void)state;
    enum { N = 2048 };
    static float x[N];
    struct rng r;
    setup();
    rng_init(&r, 5, 0);
    for (int c = 0; c < 400; c++) {
        static const float scales[] = { 1.0f, 1e-3f, 1e-38f, 3e-42f, 1e-45f, 1e30f, 1e36f };
        int8_t q[2][N];
        float d[2][N / 32];
        int32_t sum[2][N / 16];
        int64_t n = 256 * (int64_t)(1 + rng_below(&r, N / 256));
        fill_floats(&r, x, n, scales[rng_below(&r, COUNT_OF(scales))]);
        uint64_t from = rng_below(&r, 256), to = rng_below(&r, 256);
        if (c % 5 == 0) x[to] = -x[from];                              /* ties of magnitude */
        for (int k = 0; k < 2; k++)
            for (int s = n_tables - 1; s >= 0; s--) {
                int at = tables[s] == &cpu_simd_generic ? 0 : 1;
                int64_t n_d = k ? n / 256 : n / 32, n_sum = k ? n / 16 : n / 32;
                (k ? tables[s]->quant_q8_k : tables[s]->quant_q8_0)(x, n, q[at], d[at], sum[at]);
                if (at == 0) {
                    checksum_add(q[0], (size_t)n);
                    checksum_add(d[0], (size_t)n_d * 4);
                    continue;
                }
                expect_bytes(tables[s]->name, "q", q[0], q[1], (size_t)n);
                expect_floats(tables[s]->name, "d", d[0], d[1], n_d);
                expect_bytes(tables[s]->name, "sum", sum[0], sum[1], (size_t)n_sum * 4);
            }
    }
    checksum_expect(__func__, QUANT_CHECKSUM);
}

static void quantisers_follow_their_formula(void **state) {
    (void)state;
    enum { N = 512 };
    float x[N], d[N / 32];
    int8_t q[N];
    int32_t sum[N / 16];
    struct rng r;
    setup();
    rng_init(&r, 6, 0);
    for (int c = 0; c < 50; c++) {
        for (int i = 0; i < N; i++) x[i] = rng_normal(&r) * 3.0f;
        cpu_simd_generic.quant_q8_0(x, N, q, d, sum);
        for (int i = 0; i < N; i++) {
            float amax = 0;
            for (int k = i / 32 * 32; k < i / 32 * 32 + 32; k++) amax = MAX(amax, fabsf(x[k]));
            assert_true(d[i / 32] == amax / 127.0f && q[i] == (int)nearbyintf(x[i] / d[i / 32]));
        }
        cpu_simd_generic.quant_q8_k(x, N, q, d, sum);
        for (int b = 0; b < N / 256; b++) {
            float m = 0;
            for (int i = 0; i < 256; i++)
                if (fabsf(x[256 * b + i]) > fabsf(m)) m = x[256 * b + i];
            float is = -127.0f / m;
            for (int i = 0; i < 256; i++) assert_true(q[256 * b + i] == (int)nearbyintf(is * x[256 * b + i]));
            assert_true(d[b] == 1.0f / is);
        }
    }
}

/* ---- element-wise rows ---- */

enum { VEC_MAX = 1031 };

struct vec {
    float a[4 * VEC_MAX], b[4 * VEC_MAX], c[4 * VEC_MAX];
};

typedef void vec_run(const struct cpu_simd *s, struct vec *v, int64_t n);

static void run_dot(const struct cpu_simd *s, struct vec *v, int64_t n) {
    v->c[0] = s->dot(v->a, v->b, n);
}

static void run_axpy(const struct cpu_simd *s, struct vec *v, int64_t n) {
    s->axpy(v->c, v->a[0], v->b, n);
}

static void run_scale_mul(const struct cpu_simd *s, struct vec *v, int64_t n) {
    s->scale_mul(v->c, v->a, 0.37f, v->b, n);
    s->scale_mul(v->a, v->a, 1.7f, NULL, n);
}

static void run_exp_sub(const struct cpu_simd *s, struct vec *v, int64_t n) {
    s->exp_sub(v->a, 3.0f, n);
}

static void run_swiglu(const struct cpu_simd *s, struct vec *v, int64_t n) {
    for (int64_t i = 0; i < n; i++) v->a[i] *= 5.0f;
    s->swiglu(v->c, v->a, v->b, 10.0f, 0.4f, n);
}

static void run_hc_mix(const struct cpu_simd *s, struct vec *v, int64_t n) {
    s->hc_mix(v->a, v->b, v->c, v->c + 4, n);
}

static void run_hc_sum(const struct cpu_simd *s, struct vec *v, int64_t n) {
    s->hc_sum(v->c, v->a, v->b, n);
}

static void run_router_score(const struct cpu_simd *s, struct vec *v, int64_t n) {
    for (int64_t i = 0; i < n; i++) v->a[i] *= 20.0f;
    s->router_score(v->c, v->a, n);
}

static void run_softmax_pool(const struct cpu_simd *s, struct vec *v, int64_t n) {
    const float *kv[8], *score[8];
    for (int i = 0; i < 8; i++) {
        kv[i] = v->a + i * (n / 3);
        score[i] = v->b + i * (n / 3);
    }
    s->softmax_pool(v->c, kv, score, (int)(1 + n % 8), n);
}

static void run_hadamard(const struct cpu_simd *s, struct vec *v, int64_t n) {
    int dim = n > 256 ? 256 : n > 128 ? 128 : n > 64 ? 64 : 32;
    s->hadamard(v->a, dim);
}

static const struct {
    const char *name;
    vec_run *run;
} vec_cases[] = {
    { "dot", run_dot },
    { "axpy", run_axpy },
    { "scale_mul", run_scale_mul },
    { "exp_sub", run_exp_sub },
    { "swiglu", run_swiglu },
    { "hc_mix", run_hc_mix },
    { "hc_sum", run_hc_sum },
    { "router_score", run_router_score },
    { "softmax_pool", run_softmax_pool },
    { "hadamard", run_hadamard },
};

static void rows_equal_the_portable_ones(void **state) {
    (void)state;
    static struct vec in, want, got;
    struct rng r;
    setup();
    rng_init(&r, 7, 0);
    for (size_t i = 0; i < COUNT_OF(vec_cases); i++)
        for (int c = 0; c < 60; c++) {
            int64_t n = c < 40 ? c + 1 : (int64_t)(1 + rng_below(&r, VEC_MAX));
            fill_floats(&r, in.a, 4 * VEC_MAX, 1.0f);
            fill_floats(&r, in.b, 4 * VEC_MAX, 1.0f);
            fill_floats(&r, in.c, 4 * VEC_MAX, 1.0f);
            want = in;
            vec_cases[i].run(&cpu_simd_generic, &want, n);
            checksum_add(&want, sizeof want);
            for (int s = 0; s < n_tables; s++) {
                got = in;
                vec_cases[i].run(tables[s], &got, n);
                expect_floats(tables[s]->name, vec_cases[i].name, want.a, got.a, 12 * VEC_MAX);
            }
        }
    checksum_expect(__func__, ROWS_CHECKSUM);
}

/* ---- KV rows ---- */

/* The value of an E4M3 code, by its definition. */
static float e4m3_value(uint8_t code) {
    int e = code >> 3 & 15, m = code & 7;
    float v = e ? ldexpf(1.0f + (float)m / 8.0f, e - 7) : ldexpf((float)m / 8.0f, -6);
    return code & 0x80 ? -v : v;
}

static void kv_rows_round_to_the_nearest_code(void **state) {
    (void)state;
    enum { NOPE = 64, BYTES = NOPE + 1 };
    struct rng r;
    setup();
    rng_init(&r, 8, 0);
    for (int c = 0; c < 2000; c++) {
        float x[NOPE], back[NOPE];
        uint8_t row[BYTES];
        float amax = 0, scale = ldexpf(1.0f, (int)rng_below(&r, 60) - 30);
        for (int i = 0; i < NOPE; i++) {
            /* a quarter of them exactly between two codes */
            x[i] = rng_below(&r, 4) ? rng_normal(&r) * scale
                                    : (float)((int)rng_below(&r, 65) - 32) * 0.5f * scale * 0.125f;
            amax = MAX(amax, fabsf(x[i]));
        }
        amax = MAX(amax, 1e-4f);
        int e = -140;
        while (ldexp(1.0, e) < (double)(amax / 448.0f)) e++;
        cpu_simd_generic.kv_pack(row, x, NOPE, 0);
        cpu_simd_generic.kv_unpack(back, row, NOPE, 0);
        assert_true((int8_t)row[NOPE] == e);
        for (int i = 0; i < NOPE; i++) {
            double v = ldexp((double)x[i], -e), best = 1e9;
            uint8_t code = 0;
            for (int k = 0; k < 0x7f; k++) {
                double distance = fabs(fabs(v) - (double)e4m3_value((uint8_t)k));
                if (distance < best || (distance == best && k % 2 == 0)) best = distance, code = (uint8_t)k;
            }
            assert_true((row[i] & 0x7f) == code);
            assert_true(code == 0 || (row[i] >> 7 == (x[i] < 0)));
            assert_true(back[i] == (float)ldexp((double)e4m3_value(row[i]), e));
        }
    }
}

static void kv_rows_equal_the_portable_ones(void **state) {
    (void)state;
    static const int shapes[][2] = { { 448, 64 }, { 64, 0 }, { 64, 2 }, { 128, 18 }, { 192, 64 } };
    struct rng r;
    setup();
    rng_init(&r, 9, 0);
    for (int c = 0; c < 600; c++) {
        int n_nope = shapes[c % 5][0], n_rot = shapes[c % 5][1], n = n_nope + n_rot;
        int bytes = n_nope + n_nope / 64 + 2 * n_rot;
        float x[512], want_x[512], got_x[512];
        uint8_t want[1024];
        fill_floats(&r, x, n, c % 7 == 0 ? 1e-6f : c % 7 == 1 ? 1e20f : 1.0f);
        struct fence fence = fence_new(4096);
        uint8_t *got = fence_at(&fence, (size_t)bytes, c % 2);
        cpu_simd_generic.kv_pack(want, x, n_nope, n_rot);
        cpu_simd_generic.kv_unpack(want_x, want, n_nope, n_rot);
        checksum_add(want, (size_t)bytes);
        checksum_add(want_x, (size_t)n * 4);
        for (int s = 0; s < n_tables; s++) {
            tables[s]->kv_pack(got, x, n_nope, n_rot);
            expect_bytes(tables[s]->name, "kv_pack", want, got, (size_t)bytes);
            tables[s]->kv_unpack(got_x, got, n_nope, n_rot);
            expect_floats(tables[s]->name, "kv_unpack", want_x, got_x, n);
        }
        fence_free(&fence);
    }
    checksum_expect(__func__, KV_CHECKSUM);
}

/* ---- attention ---- */

static void attention_equals_the_portable_one(void **state) {
    (void)state;
    static const int dims[] = { 16, 20, 64, 100, 128, 512 };
    struct rng r;
    setup();
    rng_init(&r, 10, 0);
    for (int c = 0; c < 60; c++) {
        int dim = dims[rng_below(&r, COUNT_OF(dims))], n_head = (int)(1 + rng_below(&r, 20)),
            n_rows = (int)(1 + rng_below(&r, 64));
        size_t n_q = (size_t)n_head * (size_t)dim, n_z = (size_t)n_head * 70;
        float *q = xcalloc(n_q, 4), *rows = xcalloc((size_t)n_rows * (size_t)dim, 4),
              *z = xcalloc(n_z, 4), *o = xcalloc(n_q, 4);
        float *got_z = xcalloc(n_z, 4), *got_o = xcalloc(n_q, 4), *o0 = xcalloc(n_q, 4);
        fill_floats(&r, q, (int64_t)n_q, 1.0f);
        fill_floats(&r, rows, (int64_t)n_rows * dim, 1.0f);
        fill_floats(&r, o0, (int64_t)n_q, 1.0f);
        cpu_simd_generic.attn_scores(z, 70, q, dim, rows, dim, n_head, n_rows, dim, 0.0441941738f);
        memcpy(o, o0, n_q * 4);
        cpu_simd_generic.attn_mix(o, dim, z, 70, rows, dim, n_head, n_rows, dim);
        checksum_add(z, n_z * 4);
        checksum_add(o, n_q * 4);
        for (int s = 0; s < n_tables; s++) {
            memset(got_z, 0, n_z * 4);
            memcpy(got_o, o0, n_q * 4);
            tables[s]->attn_scores(got_z, 70, q, dim, rows, dim, n_head, n_rows, dim, 0.0441941738f);
            expect_floats(tables[s]->name, "attn_scores", z, got_z, (int64_t)n_z);
            tables[s]->attn_mix(got_o, dim, z, 70, rows, dim, n_head, n_rows, dim);
            expect_floats(tables[s]->name, "attn_mix", o, got_o, (int64_t)n_q);
        }
        free(q), free(rows), free(z), free(o), free(got_z), free(got_o), free(o0);
    }
    checksum_expect(__func__, ATTENTION_CHECKSUM);
}

/* ---- indexer ---- */

static void fp4_rounds_to_the_nearest_code(void **state) {
    (void)state;
    static const float value[8] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6 };
    struct rng r;
    setup();
    rng_init(&r, 11, 0);
    for (int c = 0; c < 2000; c++) {
        float x[32], amax = 0, scale = ldexpf(1.0f, (int)rng_below(&r, 40) - 20);
        int8_t q[32], e;
        uint8_t key[17];
        for (int i = 0; i < 32; i++) {
            x[i] = rng_below(&r, 3) ? rng_normal(&r) * scale
                                    : (float)((int)rng_below(&r, 49) - 24) * 0.25f * scale;
            amax = MAX(amax, fabsf(x[i]));
        }
        amax = MAX(amax, 6.0f * 0x1p-126f);
        int want_e = -126;
        while (ldexp(1.0, want_e) < (double)(amax / 6.0f)) want_e++;
        cpu_simd_generic.fp4_codes(q, &e, x, 32);
        cpu_simd_generic.fp4_pack(key, x, 32);
        assert_true(e == want_e && (int8_t)key[16] == e);
        for (int i = 0; i < 32; i++) {
            double v = ldexp((double)x[i], -e), best = 1e9;
            int code = 0;
            for (int k = 0; k < 8; k++) {
                double distance = fabs(fabs(v) - (double)value[k]);
                if (distance < best || (distance == best && k % 2 == 0)) best = distance, code = k;
            }
            assert_true((float)abs(q[i]) == 2.0f * value[code] && (q[i] == 0 || (q[i] < 0) == (x[i] < 0)));
            assert_true((key[i % 16] >> 4 * (i / 16) & 7) == code);
        }
    }
}

static void index_scores_equal_the_portable_ones(void **state) {
    (void)state;
    enum { HEADS = 64, KEYS = 70 };
    static const int dims[] = { 32, 64, 128, 256 };
    struct rng r;
    setup();
    rng_init(&r, 12, 0);
    for (int c = 0; c < 40; c++) {
        int dim = c % 2 ? 128 : dims[rng_below(&r, 4)],
            n_head = c % 2 ? HEADS : (int)(1 + rng_below(&r, HEADS));
        int n_keys = (int)(1 + rng_below(&r, KEYS)), key_bytes = dim / 2 + dim / 32 + (c % 3 == 0 ? 5 : 0);
        size_t n_key_bytes = (size_t)((n_keys - 1) * key_bytes + dim / 2 + dim / 32);
        struct fence fence = fence_new(n_key_bytes);
        uint8_t *keys = fence_at(&fence, n_key_bytes, c % 4 != 3), want_key[144], got_key[144];
        int8_t *q = xcalloc((size_t)(n_head * dim), 1),
               *exp = xcalloc((size_t)(n_head * dim / 32), 1), got_q[256], got_exp[8];
        float w[HEADS], x[256], want[KEYS], got[KEYS];
        fill_floats(&r, w, n_head, 0.1f);
        for (int k = 0; k < n_keys; k++) {
            fill_floats(&r, x, dim, c % 5 == 0 ? 1e-36f : 1.0f);
            cpu_simd_generic.fp4_pack(keys + k * key_bytes, x, dim);
        }
        for (int h = 0; h < n_head; h++) {
            fill_floats(&r, x, dim, 1.0f);
            cpu_simd_generic.fp4_codes(q + h * dim, exp + h * dim / 32, x, dim);
            for (int s = 0; s < n_tables; s++) {
                tables[s]->fp4_codes(got_q, got_exp, x, dim);
                expect_bytes(tables[s]->name, "fp4_codes", q + h * dim, got_q, (size_t)dim);
                expect_bytes(tables[s]->name, "fp4_codes", exp + h * dim / 32, got_exp, (size_t)dim / 32);
                cpu_simd_generic.fp4_pack(want_key, x, dim);
                tables[s]->fp4_pack(got_key, x, dim);
                expect_bytes(tables[s]->name, "fp4_pack", want_key, got_key, (size_t)(dim / 2 + dim / 32));
            }
        }
        cpu_simd_generic.idx_scores(want, q, exp, w, n_head, dim, keys, key_bytes, n_keys);
        checksum_add(want, (size_t)n_keys * 4);
        for (int s = 0; s < n_tables; s++) {
            tables[s]->idx_scores(got, q, exp, w, n_head, dim, keys, key_bytes, n_keys);
            expect_floats(tables[s]->name, "idx_scores", want, got, n_keys);
        }
        free(q), free(exp);
        fence_free(&fence);
    }
    checksum_expect(__func__, INDEX_CHECKSUM);
}

/* ---- choice ---- */

static void tables_are_found_by_name(void **state) {
    (void)state;
    setup();
    assert_true(n_tables >= 1 && tables[n_tables - 1] == &cpu_simd_generic);
    for (int s = 0; s < n_tables; s++) {
        setenv("PLEIADES_SIMD", tables[s]->name, 1);
        assert_true(cpu_simd_find(tables[s]->name) == tables[s] && cpu_simd_select() == tables[s]);
    }
    setenv("PLEIADES_SIMD", "abacus", 1);
    assert_true(cpu_simd_find("abacus") == NULL && cpu_simd_select() == tables[0]);
    unsetenv("PLEIADES_SIMD");
    assert_true(cpu_simd_select() == tables[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(tables_are_found_by_name),
        TEST(reshaped_iq2_tables_are_the_tables),
        TEST(quantisers_follow_their_formula),
        TEST(quantisers_equal_the_portable_ones),
        TEST(rows_equal_the_portable_ones),
        TEST(kv_rows_round_to_the_nearest_code),
        TEST(kv_rows_equal_the_portable_ones),
        TEST(attention_equals_the_portable_one),
        TEST(fp4_rounds_to_the_nearest_code),
        TEST(index_scores_equal_the_portable_ones),
        TEST(products_equal_the_portable_ones),
        TEST(products_in_f32_decode_exactly),
        TEST(long_rows_and_many_activations_fit_the_scratch),
        TEST(a_product_does_not_depend_on_its_neighbours),
        TEST(extreme_products_do_not_saturate),
    };
#ifdef SIMD_STANDALONE
    setup();
    for (int s = 0; s < n_tables; s++) printf("table %s\n", tables[s]->name);
    for (size_t i = 0; i < COUNT_OF(tests); i++) {
        printf("%s\n", tests[i].name);
        tests[i].run(NULL);
    }
    printf("PASSED %d tests\n", (int)COUNT_OF(tests));
    return 0;
#else
    return cmocka_run_group_tests(tests, NULL, NULL);
#endif
}
