/* ops_test - every operation on a CUDA card against the CPU backend, over a table of cases with odd sizes.
 *
 *     ops_test [--small|--bench] [PART]     one line per case that fails, a summary last; exit status
 *       1 when anything failed
 *     OPS_TEST_SELF=1 ops_test      the CPU against itself: checks this program where there is no card
 *
 * Inputs are random, outputs are poisoned before each run, and every value must have been written.
 * Products at f32 precision and at fast precision must agree to rounding of sums: both backends define
 * fast products by the same integers. Roundings of the state (FP8, FP4) may flip where an f32 differs
 * in its last bit, so there a small share of values may. What a card promises exactly - the same bits
 * for any batch mates, chunks, and replays - is compared bit by bit. */
#include "common/base/check.h"
#include "common/base/rng.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdarg.h>
#include <time.h>

enum { CPU, GPU, SIDES };

static struct kernels *side[SIDES];
static struct rng chance;
static int n_cases, n_failed;
static const char *only;                           /* part to run, or NULL */
static bool small;                                 /* only cases that a checking tool finishes soon */

/* ---- tensors on both sides ---- */

struct pair {
    struct tensor t[SIDES];
    float *host;                                   /* as uploaded; NULL for outputs */
    void *mapped;                                  /* weights: the CPU uses this memory itself */
    uint64_t bytes;
};

static struct pair *all_pairs[4096];
static int n_pairs;

static void *allocate(struct kernels *k, uint64_t bytes, struct tensor *t) {
    struct err e;
    t->mem = kernels_alloc(k, bytes, &t->data, &e);
    if (!t->mem) {
        fprintf(stderr, "ops_test: %s\n", e.text);
        exit(2);
    }
    return t->data;
}

static struct pair *pair_new(enum dtype type, int64_t row, int64_t rows) {
    struct pair *p = xcalloc(1, sizeof *p);
    CHECK(n_pairs < (int)COUNT_OF(all_pairs));
    all_pairs[n_pairs++] = p;
    p->bytes = (uint64_t)(row * rows) * dtype_block_bytes(type) / dtype_block(type);
    for (int s = 0; s < SIDES; s++) p->t[s] = (struct tensor){ .type = type, .ne = { row, rows, 1 } };
    return p;
}

static void upload(struct pair *p, const void *data) {
    struct err e;
    for (int s = 0; s < SIDES; s++)
        if (kernels_upload(side[s], p->t[s].data, data, p->bytes, &e) < 0)
            fprintf(stderr, "ops_test: %s\n", e.text), exit(2);
}

static void poison(struct pair *p) {
    uint32_t *bad = xcalloc(p->bytes / 4 + 1, 4);
    for (uint64_t i = 0; i < p->bytes / 4; i++) bad[i] = 0x7fc0dead;
    upload(p, bad);
    free(bad);
}

static struct pair *output(enum dtype type, int64_t row, int64_t rows) {
    struct pair *p = pair_new(type, row, rows);
    for (int s = 0; s < SIDES; s++) allocate(side[s], p->bytes, &p->t[s]);
    poison(p);
    return p;
}

static struct pair *values(int64_t row, int64_t rows, float scale, float offset) {
    struct pair *p = output(DTYPE_F32, row, rows);
    p->host = xcalloc((uint64_t)(row * rows), sizeof(float));
    for (int64_t i = 0; i < row * rows; i++) p->host[i] = offset + scale * rng_normal(&chance);
    upload(p, p->host);
    return p;
}

static struct pair *numbers(int64_t row, int64_t rows, const int32_t *data) {
    struct pair *p = output(DTYPE_I32, row, rows);
    upload(p, data);
    return p;
}

/* Random weights of a type, mapped. rows of all experts together. */
static struct pair *weights(enum dtype type, int64_t row, int64_t rows, int64_t experts, float scale) {
    struct pair *p = pair_new(type, row, rows);
    for (int s = 0; s < SIDES; s++) p->t[s].ne[2] = experts;
    p->bytes *= (uint64_t)experts;
    p->mapped = xcalloc(1, p->bytes + 64);
    uint64_t row_bytes = dtype_row_bytes(type, (uint64_t)row);
    float *one = xcalloc((uint64_t)row, sizeof *one);
    for (int64_t r = 0; r < rows * experts; r++) {
        for (int64_t i = 0; i < row; i++) one[i] = scale * rng_normal(&chance);
        dtype_encode(type, one, (uint8_t *)p->mapped + (uint64_t)r * row_bytes, (uint64_t)row);
    }
    free(one);
    struct err e;
    for (int s = 0; s < SIDES; s++) {
        p->t[s].mem = kernels_map(side[s], p->mapped, p->bytes, &p->t[s].data, &e);
        if (!p->t[s].mem) fprintf(stderr, "ops_test: %s\n", e.text), exit(2);
    }
    return p;
}

static void drop_all(void) {
    for (int i = 0; i < n_pairs; i++) {
        for (int s = 0; s < SIDES; s++) kernels_release(side[s], all_pairs[i]->t[s].mem);
        free(all_pairs[i]->host);
        free(all_pairs[i]->mapped);
        free(all_pairs[i]);
    }
    n_pairs = 0;
}

static void *fetch(const struct pair *p, int s) {
    struct err e;
    void *host = xcalloc(1, p->bytes + 4);
    if (kernels_download(side[s], host, p->t[s].data, p->bytes, &e) < 0)
        fprintf(stderr, "ops_test: %s: %s\n", side[s]->ops->name, e.text), exit(2);
    return host;
}

/* ---- verdicts ---- */

static char case_name[256];

static void name_case(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(case_name, sizeof case_name, format, args);
    va_end(args);
}

static void verdict(bool ok, const char *format, ...) {
    n_cases++;
    if (ok) return;
    va_list args;
    n_failed++;
    printf("FAILED %s: ", case_name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

/* |gpu - cpu| / |cpu| over the first n values; 1e30 when something is not a number. */
static double distance(const float *gpu, const float *cpu, uint64_t n) {
    double off = 0, all = 0;
    for (uint64_t i = 0; i < n; i++) {
        if (!isfinite(gpu[i]) || !isfinite(cpu[i])) return 1e30;
        double d = (double)gpu[i] - (double)cpu[i];
        off += d * d;
        all += (double)cpu[i] * (double)cpu[i];
    }
    return sqrt(off / (all > 0 ? all : 1));
}

static void compare(const struct pair *p, uint64_t n, double tolerance, const char *what) {
    float *gpu = fetch(p, GPU), *cpu = fetch(p, CPU);
    double d = distance(gpu, cpu, n ? n : p->bytes / 4);
    verdict(d <= tolerance, "%s is off by %.3g (at most %.1g)", what, d, tolerance);
    free(gpu);
    free(cpu);
}

/* Share of differing bytes; of each row only the first `used`. */
static void compare_used(const struct pair *p, uint64_t used, double share, const char *what) {
    uint8_t *gpu = fetch(p, GPU), *cpu = fetch(p, CPU);
    uint64_t n = 0, row = p->bytes / (uint64_t)p->t[CPU].ne[1];
    for (uint64_t i = 0; i < p->bytes; i++) n += i % row < used && gpu[i] != cpu[i];
    verdict((double)n <= share * (double)p->bytes, "%s differs in %llu of %llu bytes", what,
            (unsigned long long)n, (unsigned long long)p->bytes);
    free(gpu);
    free(cpu);
}

static void compare_bytes(const struct pair *p, double share, const char *what) {
    compare_used(p, UINT64_MAX, share, what);
}

static bool wanted(const char *part) {
    return !only || strcmp(only, part) == 0;
}

#define BOTH(...)                                   \
    for (int s = 0; s < SIDES; s++) {               \
        struct kernels *k = side[s];                \
        __VA_ARGS__;                                \
    }

/* Bits of `n_rows` rows of the card's output, kept for comparing with another way to compute them. */
static uint32_t *keep_bits(const struct pair *p) {
    return fetch(p, GPU);
}

static void same_bits(const uint32_t *a, const uint32_t *b, uint64_t n, const char *what) {
    uint64_t differ = 0;
    for (uint64_t i = 0; i < n; i++) differ += a[i] != b[i];
    verdict(differ == 0, "%s: %llu of %llu values have other bits", what,
            (unsigned long long)differ, (unsigned long long)n);
}

/* ---- batches ---- */

struct batch_memory {
    struct kbatch b;
    int32_t *token, *pos, *seg;
    struct kseg *segs;
};

static void batch_add(struct batch_memory *m, int32_t slot, int32_t pos0, int32_t n) {
    int32_t row = m->b.n_rows, i = m->b.n_seg;
    m->token = xrealloc(m->token, (size_t)(row + n) * 4);
    m->pos = xrealloc(m->pos, (size_t)(row + n) * 4);
    m->seg = xrealloc(m->seg, (size_t)(row + n) * 4);
    m->segs = xrealloc(m->segs, (size_t)(i + 1) * sizeof *m->segs);
    m->segs[i] = (struct kseg){ .row0 = row, .n = n, .pos0 = pos0, .slot = slot };
    for (int32_t t = 0; t < n; t++)
        m->token[row + t] = (int32_t)rng_below(&chance, 64), m->pos[row + t] = pos0 + t,
                       m->seg[row + t] = i;
    m->b = (struct kbatch){ .n_rows = row + n,
                            .n_seg = i + 1,
                            .token = m->token,
                            .pos = m->pos,
                            .seg = m->seg,
                            .segs = m->segs };
}

static void batch_free(struct batch_memory *m) {
    free(m->token);
    free(m->pos);
    free(m->seg);
    free(m->segs);
    *m = (struct batch_memory){ 0 };
}

/* ---- streams ---- */

static const enum dtype decodable[] = { DTYPE_F32,  DTYPE_F16,  DTYPE_BF16,    DTYPE_Q8_0,
                                        DTYPE_Q4_0, DTYPE_Q2_K, DTYPE_Q3_K,    DTYPE_Q4_K,
                                        DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_IQ2_XXS, DTYPE_MXFP4 };

static void test_embed(void) {
    for (size_t i = 0; i < COUNT_OF(decodable); i++) {
        struct batch_memory b = { 0 };
        batch_add(&b, 0, 0, 5);
        batch_add(&b, 1, 3, 2);
        int streams = i % 2 ? 4 : 1;
        struct pair *table = weights(decodable[i], 768, 64, 1, 1), *out = output(DTYPE_F32, 768, 7 * streams);
        name_case("embed %s", dtype_name(decodable[i]));
        BOTH(kernels_embed(
            k, &(struct embed_args){
                   .out = &out->t[s], .table = &table->t[s], .batch = &b.b, .n_streams = streams }))
        compare(out, 0, 1e-6, "out");
        drop_all();
        batch_free(&b);
    }
}

struct hc_tensors {
    struct pair *x, *y, *y2, *post, *comb, *fn, *scale, *base, *norm, *out;
};

static struct hc_tensors hc_new(int64_t n_embd, int n, enum dtype type) {
    struct hc_tensors h = {
        .x = values(n_embd, 4 * n, 3, 0),
        .y = values(n_embd, n, 1, 0),
        .y2 = values(n_embd, n, 1, 0),
        .post = values(4, n, 1, 1),
        .comb = values(16, n, 0.3f, 0.25f),
        .fn = weights(type, 4 * n_embd, HC_MIX, 1, 0.02f),
        .scale = values(3, 1, 0.3f, 1),
        .base = values(HC_MIX, 1, 0.5f, 0),
        .norm = values(n_embd, 1, 0.2f, 1),
        .out = output(DTYPE_F32, n_embd, n),
    };
    return h;
}

static void hc_pre_run(struct hc_tensors *h, struct pair *post, struct pair *comb, int n) {
    BOTH(kernels_hc_pre(k, &(struct hc_pre_args){ .out = &h->out->t[s],
                                                  .post = &post->t[s],
                                                  .comb = &comb->t[s],
                                                  .x = &h->x->t[s],
                                                  .fn = &h->fn->t[s],
                                                  .scale = &h->scale->t[s],
                                                  .base = &h->base->t[s],
                                                  .norm = &h->norm->t[s],
                                                  .rms_eps = 1e-6f,
                                                  .hc_eps = 1e-6f,
                                                  .n_sinkhorn = 20,
                                                  .n = n }))
}

static void test_hc(void) {
    static const struct { int64_t n_embd; int n; enum dtype type;
    } cases[] = {
        { 4096, 1, DTYPE_F16 }, { 4096, 70, DTYPE_F16 }, { 7168, 2, DTYPE_F16 },
        { 256, 9, DTYPE_F32 },  { 100, 3, DTYPE_F32 },   { 96, 130, DTYPE_BF16 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int64_t n_embd = cases[i].n_embd;
        int n = cases[i].n;
        struct hc_tensors h = hc_new(n_embd, n, cases[i].type);
        struct pair *post = output(DTYPE_F32, 4, n), *comb = output(DTYPE_F32, 16, n);
        name_case("hc_pre %lld x %d %s", (long long)n_embd, n, dtype_name(cases[i].type));
        hc_pre_run(&h, post, comb, n);
        compare(h.out, 0, 2e-6, "out");
        compare(post, 0, 2e-6, "post");
        compare(comb, 0, 5e-6, "comb");
        name_case("hc_post %lld x %d", (long long)n_embd, n);
        for (int part = 0; part < 2; part++) {     /* alone, and right before the hc_pre that reads it */
            upload(h.x, h.x->host);
            BOTH(kernels_hc_post(k, &(struct hc_post_args){ .x = &h.x->t[s],
                                                            .y = &h.y->t[s],
                                                            .y2 = part ? &h.y2->t[s] : NULL,
                                                            .post = &h.post->t[s],
                                                            .comb = &h.comb->t[s],
                                                            .n = n }))
            if (part) hc_pre_run(&h, post, comb, n);
            compare(h.x, 0, 1e-6, "x");
            if (part) compare(h.out, 0, 2e-6, "out of the next hc_pre");
        }
        int32_t rows[3] = { n - 1, 0, n / 2 };
        struct pair *fn = weights(cases[i].type, 4 * n_embd, 4, 1, 0.02f),
                    *base = values(4, 1, 1, 0), *scale = values(1, 1, 0.1f, 1);
        struct pair *head = output(DTYPE_F32, n_embd, 3);
        name_case("hc_head %lld x %d", (long long)n_embd, n);
        BOTH(kernels_hc_head(k, &(struct hc_head_args){ .out = &head->t[s],
                                                        .x = &h.x->t[s],
                                                        .fn = &fn->t[s],
                                                        .scale = &scale->t[s],
                                                        .base = &base->t[s],
                                                        .norm = &h.norm->t[s],
                                                        .row_i = rows,
                                                        .rms_eps = 1e-6f,
                                                        .hc_eps = 1e-6f,
                                                        .n = 3 }))
        compare(head, 0, 2e-6, "out");
        drop_all();
    }
}

static void test_rows(void) {
    static const int sizes[][2] = { { 4096, 3 }, { 1024, 130 }, { 7, 5 }, { 257, 1 } };
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        int64_t row = sizes[i][0];
        int n = sizes[i][1];
        name_case("rows of %lld x %d", (long long)row, n);
        struct pair *in = values(row, n, 2, 0), *up = values(row, n, 8, 0),
                    *weight = values(row, 1, 1, 0), *out = output(DTYPE_F32, row, n);
        BOTH(kernels_rms_norm(k, &(struct rms_norm_args){ .out = &out->t[s],
                                                          .in = &in->t[s],
                                                          .weight = &weight->t[s],
                                                          .eps = 1e-6f,
                                                          .n = n }))
        compare(out, 0, 1e-6, "rms_norm");
        poison(out);
        BOTH(kernels_swiglu(
            k, &(struct swiglu_args){
                   .out = &out->t[s], .gate = &up->t[s], .up = &in->t[s], .clamp = 7, .n = n }))
        compare(out, 0, 1e-6, "swiglu");
        struct pair *x = values(row, 4 * n, 1, 0);
        BOTH(kernels_add_streams(k, &(struct add_streams_args){ .x = &x->t[s], .e = &in->t[s], .n = n }))
        compare(x, 0, 1e-7, "add_streams");
        drop_all();
    }
    static const int heads[][4] = { { 64, 512, 64, 3 }, { 8, 80, 16, 5 }, { 4, 192, 64, 33 } };
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        int n_head = heads[i][0], dim = heads[i][1], n_rot = heads[i][2], n = heads[i][3];
        name_case("q_rope %d x %d, %d rotated", n_head, dim, n_rot);
        struct pair *q = values(n_head * dim, n, 2, 0), *rope = values(n_rot, n, 0.7f, 0);
        BOTH(kernels_q_rope(k, &(struct q_rope_args){ .q = &q->t[s],
                                                      .rope = &rope->t[s],
                                                      .eps = 1e-6f,
                                                      .n = n,
                                                      .n_head = n_head,
                                                      .head_dim = dim,
                                                      .n_rot = n_rot }))
        compare(q, 0, 1e-6, "q");
        drop_all();
    }
}

/* ---- products ---- */

static void matmul_run(struct pair *out, struct pair *in, struct pair *w, int row0, int n, int n_group,
                       bool f32_act) {
    BOTH({
        struct tensor o = out->t[s], x = in->t[s];
        o.data = (float *)o.data + row0 * o.ne[0], x.data = (float *)x.data + row0 * x.ne[0];
        o.ne[1] = x.ne[1] = n;
        kernels_matmul(k, &(struct matmul_args){ .out = &o,
                                                 .in = &x,
                                                 .weight = &w->t[s],
                                                 .n = n,
                                                 .n_group = n_group,
                                                 .f32_act = f32_act });
    })
}

static void matmul_case(enum dtype type, int64_t n_in, int64_t n_out, int n_group, int n, bool f32_act) {
    bool f32 = side[GPU]->config.precision == PRECISION_F32;
    if (small && n_in * n_out * n > 40 << 20) return;
    name_case("matmul %s %lld -> %lld in %d groups x %d%s, %s", dtype_name(type), (long long)n_in,
              (long long)n_out, n_group, n, f32_act ? ", f32 input" : "", f32 ? "f32" : "fast");
    struct pair *w = weights(type, n_in, n_out, 1, 1 / sqrtf((float)n_in)),
                *in = values(n_in * n_group, n, 1, 0), *out = output(DTYPE_F32, n_out, n);
    matmul_run(out, in, w, 0, n, n_group, f32_act);
    bool exact_type = type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
    bool tiles = (type == DTYPE_Q8_0 || type == DTYPE_MXFP4 || type == DTYPE_Q2_K ||
                  type == DTYPE_Q4_K || type == DTYPE_IQ2_XXS) &&
                 n_out % 16 == 0 && n_in % 128 == 0 && (n_group == 1 || n_out / n_group % 128 == 0);
    /* Where the card has no integer product it is the more exact of the two. */
    compare(out, 0, f32 || exact_type || f32_act || tiles ? 5e-6 : 2e-2, "out");
    uint32_t *whole = keep_bits(out);
    /* rows in two parts: 1 + rest, 4 + rest, 13 + rest ... */
    for (int cut = 1; cut < n; cut = cut * 3 + 1) {
        poison(out);
        matmul_run(out, in, w, 0, cut, n_group, f32_act);
        matmul_run(out, in, w, cut, n - cut, n_group, f32_act);
        uint32_t *parts = keep_bits(out);
        same_bits(whole, parts, out->bytes / 4, "rows in two parts");
        free(parts);
    }
    free(whole);
    drop_all();
}

static void test_matmul(void) {
    static const int shapes[][4] = {
        /* in, out, groups, rows */
        { 1024, 96, 1, 1 },    { 4096, 256, 1, 3 },  { 256, 16, 1, 9 },   { 2048, 48, 1, 17 },
        { 512, 1024, 8, 5 },   { 1024, 512, 2, 70 }, { 768, 400, 1, 64 }, { 1536, 272, 1, 65 },
        { 4096, 128, 1, 200 }, { 256, 40, 1, 3 },    { 512, 48, 3, 66 },
    };
    for (size_t t = 0; t < COUNT_OF(decodable); t++)
        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            matmul_case(decodable[t], shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3],
                        false);
    matmul_case(DTYPE_F32, 33, 7, 1, 5, false);
    matmul_case(DTYPE_F16, 80, 5, 1, 2, false);
    matmul_case(DTYPE_Q8_0, 96, 192, 1, 130, false);
    matmul_case(DTYPE_Q8_0, 4096, 64, 1, 3, true);
    matmul_case(DTYPE_F16, 4096, 64, 1, 70, true);
    matmul_case(DTYPE_Q8_0, 8192, 64, 1, 2, false);
    matmul_case(DTYPE_Q4_0, 4096, 64, 1, 3, false);
}

/* Products of one input, with something else between them: one launch on a card. */
static void test_matmul_group(void) {
    for (int n = 1; n <= 80; n = n * 3 + 1) {
        name_case("products of one input x %d", n);
        struct pair *in = values(1024, n, 1, 0), *norm = values(256, 1, 1, 0);
        struct pair *w[4], *out[4];
        static const enum dtype types[4] = { DTYPE_Q8_0, DTYPE_F16, DTYPE_Q8_0, DTYPE_Q4_K };
        for (int i = 0; i < 4; i++)
            w[i] = weights(types[i], 1024, 256, 1, 0.03f), out[i] = output(DTYPE_F32, 256, n);
        struct pair *normed = output(DTYPE_F32, 256, n), *second = output(DTYPE_F32, 1024, n),
                    *w2 = weights(DTYPE_Q8_0, 256, 1024, 1, 0.06f);
        BOTH({
            for (int i = 0; i < 4; i++) {
                kernels_matmul(k, &(struct matmul_args){ .out = &out[i]->t[s],
                                                         .in = &in->t[s],
                                                         .weight = &w[i]->t[s],
                                                         .n = n,
                                                         .n_group = 1 });
                if (i == 0)
                    kernels_rms_norm(k, &(struct rms_norm_args){ .out = &normed->t[s],
                                                                 .in = &out[0]->t[s],
                                                                 .weight = &norm->t[s],
                                                                 .eps = 1e-6f,
                                                                 .n = n });
                if (i == 1)
                    kernels_matmul(k, &(struct matmul_args){ .out = &second->t[s],
                                                             .in = &normed->t[s],
                                                             .weight = &w2->t[s],
                                                             .n = n,
                                                             .n_group = 1 });
            }
        })
        for (int i = 0; i < 4; i++) compare(out[i], 0, 5e-6, dtype_name(types[i]));
        /* int8 roundings of slightly different inputs */
        compare(second, 0, 3e-3, "product of the normed rows");
        drop_all();
    }
}

/* ---- experts ---- */

static void test_route(void) {
    static const int sizes[][3] = { { 256, 6, 1 }, { 256, 6, 300 }, { 384, 6, 5 },
                                    { 16, 4, 33 }, { 8, 3, 2 },     { 7, 7, 2 } };
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int kind = 0; kind < 3; kind++) {     /* bias, none, table */
            int n_expert = sizes[i][0], n_used = sizes[i][1], n = sizes[i][2];
            name_case("moe_route %d of %d x %d, kind %d", n_used, n_expert, n, kind);
            struct batch_memory b = { 0 };
            batch_add(&b, 0, 0, n);
            int32_t *table = xcalloc((size_t)(64 * n_used), 4);
            for (int t = 0; t < 64; t++)
                for (int u = 0; u < n_used; u++) table[t * n_used + u] = (t * 5 + u * 3) % n_expert;
            struct pair *logits = values(n_expert, n, 2, 0), *bias = values(n_expert, 1, 0.2f, 0),
                        *tid = numbers(n_used, 64, table);
            struct pair *ids = output(DTYPE_I32, n_used, n), *w = output(DTYPE_F32, n_used, n);
            BOTH(kernels_moe_route(k, &(struct moe_route_args){ .ids = &ids->t[s],
                                                                .weights = &w->t[s],
                                                                .logits = &logits->t[s],
                                                                .bias = kind == 0 ? &bias->t[s] : NULL,
                                                                .tid2eid = kind == 2 ? &tid->t[s] : NULL,
                                                                .batch = &b.b,
                                                                .scale = 1.5f,
                                                                .n_used = n_used }))
            compare_bytes(ids, 0, "ids");
            compare(w, 0, 1e-6, "weights");
            free(table);
            drop_all();
            batch_free(&b);
        }
}

struct experts_case {
    enum dtype gate, down;
    int n_embd, n_ff, n_expert, n_used, n, e_begin, e_end;
};

static void experts_run(const struct experts_case *e, struct pair *out, struct pair *x,
                        struct pair *ids, struct pair *w, struct pair *const m[3], int row0,
                        int n) {
    BOTH({
        struct tensor o = out->t[s], in = x->t[s], i = ids->t[s], v = w->t[s];
        o.data = (float *)o.data + row0 * o.ne[0], in.data = (float *)in.data + row0 * in.ne[0];
        i.data = (int32_t *)i.data + row0 * i.ne[0], v.data = (float *)v.data + row0 * v.ne[0];
        o.ne[1] = in.ne[1] = i.ne[1] = v.ne[1] = n;
        kernels_moe_experts(k, &(struct moe_experts_args){ .out = &o,
                                                           .x = &in,
                                                           .ids = &i,
                                                           .weights = &v,
                                                           .gate = &m[0]->t[s],
                                                           .up = &m[1]->t[s],
                                                           .down = &m[2]->t[s],
                                                           .clamp = 10,
                                                           .n = n,
                                                           .n_used = e->n_used,
                                                           .e_begin = e->e_begin,
                                                           .e_end = e->e_end });
    })
}

static void experts_case(const struct experts_case *e) {
    bool f32 = side[GPU]->config.precision == PRECISION_F32;
    if (small && (e->n_embd > 512 || e->n > 100)) return;
    name_case("moe_experts %s %s %d x %d, %d of %d..%d x %d, %s", dtype_name(e->gate),
              dtype_name(e->down), e->n_embd, e->n_ff, e->n_used, e->e_begin, e->e_end, e->n,
              f32 ? "f32" : "fast");
    int n_e = e->e_end - e->e_begin;
    float scale = 1 / sqrtf((float)e->n_embd);
    struct pair *m[3] = { weights(e->gate, e->n_embd, e->n_ff, n_e, scale),
                          weights(e->gate, e->n_embd, e->n_ff, n_e, scale),
                          weights(e->down, e->n_ff, e->n_embd, n_e, 1 / sqrtf((float)e->n_ff)) };
    int32_t *ids_host = xcalloc((size_t)(e->n * e->n_used), 4);
    for (int r = 0; r < e->n; r++)
        for (int u = 0, id = 0; u < e->n_used; u++) {                  /* ascending, distinct */
            int left = e->n_used - u - 1;
            id += (int)rng_below(&chance, (uint64_t)MAX(1, (e->n_expert - left - id) / (left + 1)));
            ids_host[r * e->n_used + u] = id++;
        }
    struct pair *x = values(e->n_embd, e->n, 1, 0), *ids = numbers(e->n_used, e->n, ids_host),
                *w = values(e->n_used, e->n, 0.1f, 0.3f);
    struct pair *out = output(DTYPE_F32, e->n_embd, e->n);
    experts_run(e, out, x, ids, w, m, 0, e->n);
    /* fast: hidden rows are rounded to int8, a flip is 1/127; types without an integer product on the
     * card differ by all roundings */
    compare(out, 0, f32 ? 1e-5 : e->gate == DTYPE_Q6_K ? 3e-2 : 1e-3, "out");
    uint32_t *whole = keep_bits(out);
    for (int cut = 1; cut < e->n; cut = cut * 5 + 2) {
        poison(out);
        experts_run(e, out, x, ids, w, m, 0, cut);
        experts_run(e, out, x, ids, w, m, cut, e->n - cut);
        uint32_t *parts = keep_bits(out);
        same_bits(whole, parts, out->bytes / 4, "rows in two parts");
        free(parts);
    }
    free(whole);
    free(ids_host);
    drop_all();
}

static void test_experts(void) {
    static const struct experts_case cases[] = {
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 512, 256, 16, 6, 1, 0, 16 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 1024, 768, 32, 6, 9, 0, 32 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 512, 256, 16, 6, 300, 0, 16 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 4096, 256, 16, 6, 70, 8, 16 },
        { DTYPE_Q4_K, DTYPE_Q4_K, 256, 512, 16, 4, 3, 0, 16 },
        { DTYPE_Q4_K, DTYPE_Q4_K, 512, 256, 8, 3, 200, 0, 8 },
        { DTYPE_MXFP4, DTYPE_MXFP4, 512, 384, 16, 6, 5, 4, 8 },
        { DTYPE_MXFP4, DTYPE_MXFP4, 256, 256, 8, 2, 100, 0, 8 },
        { DTYPE_Q8_0, DTYPE_Q8_0, 256, 128, 8, 2, 11, 0, 8 },
        { DTYPE_Q8_0, DTYPE_Q8_0, 256, 128, 8, 2, 90, 0, 8 },
        { DTYPE_F16, DTYPE_F16, 96, 32, 16, 4, 20, 0, 16 },
        { DTYPE_Q6_K, DTYPE_Q5_K, 256, 256, 4, 2, 6, 0, 4 },
        { DTYPE_Q2_K, DTYPE_Q2_K, 256, 256, 1, 1, 150, 0, 1 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 512, 256, 300, 6, 64, 0, 300 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) experts_case(&cases[i]);
}

/* ---- state and attention: a whole history on both sides ---- */

struct world {
    struct kv_layer layer[SIDES];
    struct kv_slice slice[SIDES][4];
    struct pair *raw[4], *hist[4], *idx_hist[4], *entries[4], *keys[4];
    struct pair *slices;
    int n_slots, n_entries_max;
};

static void page_table(int s, const struct pair *memory, int64_t page_bytes, int n_pages, uint8_t ***out) {
    struct tensor table;
    struct err e;
    void **host = xcalloc((size_t)n_pages, sizeof *host);
    /* any order */
    for (int i = 0; i < n_pages; i++)
        host[i] = (uint8_t *)memory->t[s].data + (int64_t)(n_pages - 1 - i) * page_bytes;
    allocate(side[s], (uint64_t)n_pages * sizeof *host, &table);
    CHECK(kernels_upload(side[s], table.data, host, (uint64_t)n_pages * sizeof *host, &e) == 0);
    struct pair *keep = pair_new(DTYPE_I8, 1, 1);
    keep->t[s].mem = table.mem;
    keep->bytes = 0;
    *out = table.data;
    free(host);
}

static void world_new(struct world *w, enum numerics numerics, int head_dim, int n_rot, int ratio,
                      int n_swa, int n_slots, int n_tokens) {
    *w = (struct world){ .n_slots = n_slots };
    struct kv_layer layer = {
        .numerics = numerics,
        .head_dim = head_dim,
        .n_rot = n_rot,
        .idx_dim = 128,
        .ratio = ratio,
        .overlap = ratio == 4,
        .n_swa = n_swa,
        .raw_cap = n_swa + KV_ROLLBACK,
        .hist_cap = ratio ? ratio * (ratio == 4 ? 2 : 1) + KV_ROLLBACK : 0,
        .row_bytes = kv_row_bytes(numerics, head_dim, n_rot),
        .key_bytes = kv_key_bytes(numerics, 128),
    };
    int c = layer.overlap + 1, n_pages = ratio ? (n_tokens / ratio + KV_PAGE) / KV_PAGE : 1;
    w->n_entries_max = n_pages * KV_PAGE;
    for (int slot = 0; slot < n_slots; slot++) {
        w->raw[slot] = output(DTYPE_I8, layer.row_bytes, layer.raw_cap);
        w->hist[slot] = output(DTYPE_F32, 2 * c * head_dim, MAX(layer.hist_cap, 1));
        w->idx_hist[slot] = output(DTYPE_F32, 2 * c * 128, MAX(layer.hist_cap, 1));
        w->entries[slot] = output(DTYPE_I8, layer.row_bytes, w->n_entries_max);
        w->keys[slot] = output(DTYPE_I8, layer.key_bytes, w->n_entries_max);
        for (int s = 0; s < SIDES; s++) {
            struct kv_slice *slice = &w->slice[s][slot];
            slice->raw = w->raw[slot]->t[s].data;
            slice->hist = w->hist[slot]->t[s].data;
            slice->idx_hist = w->idx_hist[slot]->t[s].data;
            page_table(s, w->entries[slot], (int64_t)layer.row_bytes * KV_PAGE, n_pages, &slice->pages);
            page_table(s, w->keys[slot], (int64_t)layer.key_bytes * KV_PAGE, n_pages, &slice->idx_pages);
        }
    }
    w->slices = output(DTYPE_I8, (int64_t)sizeof(struct kv_slice), n_slots);
    for (int s = 0; s < SIDES; s++) {
        struct err e;
        CHECK(kernels_upload(side[s], w->slices->t[s].data, w->slice[s],
                             (uint64_t)n_slots * sizeof(struct kv_slice), &e) == 0);
        w->layer[s] = layer;
        w->layer[s].slices = w->slices->t[s].data;
    }
}

struct step {                                      /* one batch through the state of a layer */
    struct pair *kv, *norm, *rope, *rows, *comp_kv, *comp_score, *ape, *comp_norm, *rope_win;
    struct pair *idx_kv, *idx_score, *idx_ape, *idx_norm, *idx_q, *idx_w, *sel, *n_sel, *q, *sinks;
};

/* Inputs for n rows. Weights of the layer (norms, ape, sinks) are given by `same` when not NULL. */
static struct step step_new(const struct world *w, int n, int n_head, int n_idx_head, int top_k,
                            const struct step *same) {
    const struct kv_layer *l = &w->layer[CPU];
    int c = l->overlap + 1, dim = l->head_dim;
    struct step t = { .kv = values(dim, n, 1, 0),
                      .rope = values(l->n_rot, n, 0.7f, 0),
                      .rope_win = values(l->n_rot, n, 0.7f, 0),
                      .rows = output(DTYPE_I8, l->row_bytes, n),
                      .q = values(n_head * dim, n, 1, 0) };
    t.comp_kv = values(c * dim, n, 1, 0), t.comp_score = values(c * dim, n, 1, 0);
    t.idx_kv = values(c * 128, n, 1, 0), t.idx_score = values(c * 128, n, 1, 0);
    t.idx_q = values(n_idx_head * 128, n, 1, 0), t.idx_w = values(n_idx_head, n, 1, 0.3f);
    t.sel = output(DTYPE_I32, top_k, n), t.n_sel = output(DTYPE_I32, 1, n);
    if (same) {
        t.norm = same->norm, t.ape = same->ape, t.comp_norm = same->comp_norm,
        t.idx_ape = same->idx_ape, t.idx_norm = same->idx_norm;
        t.sinks = same->sinks;
        return t;
    }
    t.norm = values(dim, 1, 0.2f, 1), t.comp_norm = values(dim, 1, 0.2f, 1),
    t.idx_norm = values(128, 1, 0.2f, 1), t.sinks = values(n_head, 1, 1, 0);
    t.ape = weights(DTYPE_F16, c * dim, MAX(l->ratio, 1), 1, 1),
    t.idx_ape = weights(DTYPE_F16, c * 128, MAX(l->ratio, 1), 1, 1);
    return t;
}

/* Rows row0 .. row0+n of a pair's tensor. */
static struct tensor part(const struct pair *p, int s, int row0, int n) {
    struct tensor t = p->t[s];
    t.data = (uint8_t *)t.data + (uint64_t)row0 * (uint64_t)t.ne[0] * dtype_block_bytes(t.type);
    t.ne[1] = n;
    return t;
}

static void step_state(const struct world *w, struct step *t, const struct kbatch *b, int row0) {
    BOTH({
        const struct kv_layer *l = &w->layer[s];
        struct tensor rows = part(t->rows, s, row0, b->n_rows),
                      kv = part(t->kv, s, row0, b->n_rows),
                      rope = part(t->rope, s, row0, b->n_rows);
        struct tensor win = part(t->rope_win, s, row0, b->n_rows), ckv = part(t->comp_kv, s, row0, b->n_rows);
        struct tensor cs = part(t->comp_score, s, row0, b->n_rows), ikv = part(t->idx_kv, s, row0, b->n_rows);
        struct tensor is = part(t->idx_score, s, row0, b->n_rows);
        kernels_kv_rows(k, &(struct kv_rows_args){ .rows = &rows,
                                                   .kv = &kv,
                                                   .norm = &t->norm->t[s],
                                                   .rope = &rope,
                                                   .layer = l,
                                                   .eps = 1e-6f,
                                                   .n = b->n_rows });
        if (l->ratio)
            kernels_compress(k, &(struct compress_args){ .kv = &ckv,
                                                         .score = &cs,
                                                         .ape = &t->ape->t[s],
                                                         .norm = &t->comp_norm->t[s],
                                                         .rope = &win,
                                                         .layer = l,
                                                         .batch = b,
                                                         .eps = 1e-6f,
                                                         .is_index = false });
        if (l->overlap)
            kernels_compress(k, &(struct compress_args){ .kv = &ikv,
                                                         .score = &is,
                                                         .ape = &t->idx_ape->t[s],
                                                         .norm = &t->idx_norm->t[s],
                                                         .rope = &win,
                                                         .layer = l,
                                                         .batch = b,
                                                         .eps = 1e-6f,
                                                         .is_index = true });
    })
}

static void step_attention(const struct world *w, struct step *t, const struct kbatch *b, int row0,
                           int n, int n_head, int n_idx_head, int top_k) {
    BOTH({
        const struct kv_layer *l = &w->layer[s];
        struct tensor q = part(t->q, s, row0, n), rope = part(t->rope, s, row0, n),
                      sel = part(t->sel, s, row0, n), n_sel = part(t->n_sel, s, row0, n);
        struct tensor iq = part(t->idx_q, s, row0, n), iw = part(t->idx_w, s, row0, n);
        if (l->overlap)
            kernels_index_select(k, &(struct index_select_args){ .sel = &sel,
                                                                 .n_sel = &n_sel,
                                                                 .q = &iq,
                                                                 .weight = &iw,
                                                                 .rope = &rope,
                                                                 .layer = l,
                                                                 .batch = b,
                                                                 .row0 = row0,
                                                                 .n = n,
                                                                 .n_head = n_idx_head,
                                                                 .top_k = top_k });
        kernels_attention(k, &(struct attention_args){ .q = &q,
                                                       .rows = &t->rows->t[s],
                                                       .sinks = &t->sinks->t[s],
                                                       .rope = &rope,
                                                       .sel = l->overlap ? &sel : NULL,
                                                       .n_sel = l->overlap ? &n_sel : NULL,
                                                       .layer = l,
                                                       .batch = b,
                                                       .row0 = row0,
                                                       .n = n,
                                                       .n_head = n_head });
    })
}

static void step_commit(const struct world *w, struct step *t, const struct kbatch *b) {
    BOTH(kernels_kv_commit(
        k, &(struct kv_commit_args){ .rows = &t->rows->t[s], .layer = &w->layer[s], .batch = b }))
}

/* The card gets the CPU's state, so that one flipped rounding does not make everything after it differ. */
static void share(struct pair *p) {
    struct err e;
    void *host = fetch(p, CPU);
    CHECK(kernels_upload(side[GPU], p->t[GPU].data, host, p->bytes, &e) == 0);
    free(host);
}

/* Without the padding of stored rows, which only the card clears. */
static void compare_stored(const struct world *w, const struct pair *p, const char *what) {
    const struct kv_layer *l = &w->layer[CPU];
    int32_t n_nope = l->head_dim - l->n_rot, rot = l->numerics == NUMERICS_WIDE ? 4 : 2;
    if (l->numerics == NUMERICS_EXACT) return;
    /* f32: last bits may differ */
    compare_used(p, (uint64_t)(n_nope + n_nope / 64 + rot * l->n_rot), rot == 4 ? 0.05 : 0.01, what);
}

static void compare_state(const struct world *w, const char *what) {
    char name[128];
    bool exact = w->layer[CPU].numerics == NUMERICS_EXACT;
    for (int slot = 0; slot < w->n_slots; slot++) {
        struct pair *all[] = { w->raw[slot], w->entries[slot], w->keys[slot], w->hist[slot],
                               w->idx_hist[slot] };
        for (size_t i = 0; i < COUNT_OF(all); i++) {
            snprintf(name, sizeof name, "%s of slot %d, part %d", what, slot, (int)i);
            if (i < 2) compare_stored(w, all[i], name);
            else if (!exact) compare_bytes(all[i], 0.01, name);
            share(all[i]);
        }
    }
}

/* How many of the chosen entries are the same; near ties may differ. */
static void compare_choice(const struct step *t, int n, int top_k) {
    int32_t *gpu = fetch(t->sel, GPU), *cpu = fetch(t->sel, CPU), *n_gpu = fetch(t->n_sel, GPU),
            *n_cpu = fetch(t->n_sel, CPU);
    int differ = 0, total = 0, wrong = 0;
    for (int r = 0; r < n; r++) {
        wrong += n_gpu[r] != n_cpu[r];
        for (int i = 0; i < MIN(n_cpu[r], n_gpu[r]); i++, total++) {
            wrong += i > 0 && gpu[r * top_k + i] <= gpu[r * top_k + i - 1];
            bool found = false;
            for (int j = 0; j < n_cpu[r] && !found; j++) found = cpu[r * top_k + j] == gpu[r * top_k + i];
            differ += !found;
        }
    }
    verdict(wrong == 0 && differ * 500 <= total,
            "%d of %d chosen entries differ, %d wrong counts or orders", differ, total, wrong);
    free(gpu), free(cpu), free(n_gpu), free(n_cpu);
}

struct state_case {
    enum numerics numerics;
    int head_dim, n_rot, ratio, n_swa, n_head, n_idx_head, top_k;
    int n_prompt, n_more;        /* a prompt in slot 0, a shorter one in slot 1, then n_more tokens in both */
};

static void state_case(const struct state_case *c) {
    struct world w;
    bool fast = side[GPU]->config.precision == PRECISION_FAST;
    static const char *const names[] = { "official", "exact", "wide" };
    name_case("state %s %d+%d, ratio %d, %d heads, prompt %d, %s", names[c->numerics],
              c->head_dim - c->n_rot, c->n_rot, c->ratio, c->n_head, c->n_prompt, fast ? "fast" : "f32");
    world_new(&w, c->numerics, c->head_dim, c->n_rot, c->ratio, c->n_swa, 2, c->n_prompt + c->n_more + 64);
    int n_second = c->n_prompt / 3 + 1;
    struct batch_memory b = { 0 };
    batch_add(&b, 0, 0, c->n_prompt);
    batch_add(&b, 1, 0, n_second);
    int n = b.b.n_rows;
    struct step t = step_new(&w, n, c->n_head, c->n_idx_head, c->top_k, NULL);
    step_state(&w, &t, &b.b, 0);
    compare_stored(&w, t.rows, "rows");
    share(t.rows);
    compare_state(&w, "after the prompt");
    step_attention(&w, &t, &b.b, 0, n, c->n_head, c->n_idx_head, c->top_k);
    if (c->ratio == 4) compare_choice(&t, n, c->top_k);
    compare(t.q, 0, fast ? 2e-3 : 1e-5, "attention of the prompt");
    step_commit(&w, &t, &b.b);
    compare_state(&w, "after committing");
    for (int i = 0; i < c->n_more; i += 3) {       /* 3 tokens of slot 0 and 1 of slot 1 at once */
        struct batch_memory m = { 0 };
        batch_add(&m, 1, n_second + i / 3, 1);
        batch_add(&m, 0, c->n_prompt + i, 3);
        struct step u = step_new(&w, 4, c->n_head, c->n_idx_head, c->top_k, &t);
        step_state(&w, &u, &m.b, 0);
        share(u.rows);
        compare_state(&w, "after more tokens");
        step_attention(&w, &u, &m.b, 0, 4, c->n_head, c->n_idx_head, c->top_k);
        compare(u.q, 0, fast ? 2e-3 : 1e-5, "attention of more tokens");
        step_commit(&w, &u, &m.b);
        batch_free(&m);
    }
    drop_all();
    batch_free(&b);
}

/* The card alone: a prompt at once, and the same in chunks of many sizes, must leave the same bits. */
static void chunk_case(const struct state_case *c) {
    uint32_t *q_whole = NULL, *raw_whole = NULL, *entries_whole = NULL, *keys_whole = NULL;
    struct rng before = chance;
    static const int chunks[] = { 1 << 20, 1, 7, 33, 64, 130 };
    for (size_t i = 0; i < COUNT_OF(chunks); i++) {
        struct world w;
        chance = before;
        name_case("chunks of %d, ratio %d, %d heads of %d", chunks[i], c->ratio, c->n_head, c->head_dim);
        world_new(&w, c->numerics, c->head_dim, c->n_rot, c->ratio, c->n_swa, 1, c->n_prompt + 64);
        struct step t = step_new(&w, c->n_prompt, c->n_head, c->n_idx_head, c->top_k, NULL);
        for (int at = 0; at < c->n_prompt; at += chunks[i]) {
            struct batch_memory b = { 0 };
            int n = MIN(chunks[i], c->n_prompt - at);
            batch_add(&b, 0, at, n);
            struct step u = t;
            struct pair rows = *t.rows;
            for (int s = 0; s < SIDES; s++) rows.t[s] = part(t.rows, s, at, n);
            step_state(&w, &t, &b.b, at);
            /* attention's tensors start at its row0 but `rows` is the batch's: shift everything by views */
            struct pair q = *t.q, rope = *t.rope, sel = *t.sel, n_sel = *t.n_sel, iq = *t.idx_q,
                        iw = *t.idx_w;
            for (int s = 0; s < SIDES; s++) {
                q.t[s] = part(t.q, s, at, n), rope.t[s] = part(t.rope, s, at, n),
                sel.t[s] = part(t.sel, s, at, n);
                n_sel.t[s] = part(t.n_sel, s, at, n), iq.t[s] = part(t.idx_q, s, at, n),
                iw.t[s] = part(t.idx_w, s, at, n);
            }
            u.rows = &rows, u.q = &q, u.rope = &rope, u.sel = &sel, u.n_sel = &n_sel, u.idx_q = &iq,
            u.idx_w = &iw;
            step_attention(&w, &u, &b.b, 0, n, c->n_head, c->n_idx_head, c->top_k);
            step_commit(&w, &u, &b.b);
            struct err e;
            CHECK(kernels_finish(side[GPU], &e) == 0);
            batch_free(&b);
        }
        uint32_t *q = keep_bits(t.q), *raw = keep_bits(w.raw[0]),
                 *entries = keep_bits(w.entries[0]), *keys = keep_bits(w.keys[0]);
        if (i == 0) {
            q_whole = q, raw_whole = raw, entries_whole = entries, keys_whole = keys;
        } else {
            same_bits(q_whole, q, t.q->bytes / 4, "attention");
            same_bits(raw_whole, raw, w.raw[0]->bytes / 4, "window rows");
            same_bits(entries_whole, entries, w.entries[0]->bytes / 4, "entries");
            same_bits(keys_whole, keys, w.keys[0]->bytes / 4, "keys");
            free(q), free(raw), free(entries), free(keys);
        }
        drop_all();
    }
    free(q_whole), free(raw_whole), free(entries_whole), free(keys_whole);
}

static void test_state(void) {
    static const struct state_case cases[] = {
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 64, 64, 16, 300, 6 },
        { NUMERICS_OFFICIAL, 512, 64, 128, 128, 64, 64, 16, 400, 6 },
        { NUMERICS_OFFICIAL, 512, 64, 0, 128, 8, 64, 16, 150, 3 },
        { NUMERICS_EXACT, 512, 64, 4, 128, 8, 64, 8, 100, 6 },
        { NUMERICS_WIDE, 80, 16, 4, 16, 8, 16, 8, 90, 12 },
        { NUMERICS_WIDE, 192, 64, 128, 24, 4, 16, 12, 300, 3 },
        { NUMERICS_EXACT, 192, 64, 4, 24, 4, 16, 12, 70, 3 },
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 64, 64, 512, 2500, 3 },
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 128, 64, 16, 90, 3 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        if (!small || cases[i].n_prompt <= 150) state_case(&cases[i]);
}

static void test_chunks(void) {
    static const struct state_case cases[] = {
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 64, 64, 16, 330, 0 },
        { NUMERICS_OFFICIAL, 512, 64, 128, 128, 64, 64, 16, 330, 0 },
        { NUMERICS_WIDE, 80, 16, 4, 16, 8, 16, 8, 200, 0 },
    };
    for (size_t i = small ? 2 : 0; i < COUNT_OF(cases); i++) chunk_case(&cases[i]);
}

/* The same step again and again with other inputs: run, captured, replayed. */
static void test_replay(void) {
    struct hc_tensors h = hc_new(1024, 2, DTYPE_F16);
    struct pair *post = output(DTYPE_F32, 4, 2), *comb = output(DTYPE_F32, 16, 2),
                *w = weights(DTYPE_Q8_0, 1024, 512, 1, 0.03f);
    struct pair *out = output(DTYPE_F32, 512, 2);
    for (int i = 0; i < 5; i++) {
        name_case("the same step, time %d", i + 1);
        for (int64_t j = 0; j < 1024 * 8; j++) h.x->host[j] = rng_normal(&chance);
        upload(h.x, h.x->host);
        poison(out);
        hc_pre_run(&h, post, comb, 2);
        matmul_run(out, h.out, w, 0, 2, 1, false);
        compare(h.out, 0, 2e-6, "hc_pre");
        compare(out, 0, 3e-3, "matmul");
    }
    drop_all();
}

/* ---- speed of single operations ---- */

static double now(void) {
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

static void bench(void) {
    bench_matmul(DTYPE_Q8_0, 4096, 1024, 1);
    bench_matmul(DTYPE_Q8_0, 1024, 32768, 1);
    bench_matmul(DTYPE_Q8_0, 4096, 8192, 8);
    bench_matmul(DTYPE_Q8_0, 8192, 4096, 1);
    bench_matmul(DTYPE_F16, 4096, 1024, 1);
    bench_matmul(DTYPE_F16, 1024, 8192, 1);
    bench_experts(DTYPE_IQ2_XXS, DTYPE_Q2_K);
    bench_experts(DTYPE_Q4_K, DTYPE_Q4_K);
}

/* ---- main ---- */

static void open_sides(enum precision precision) {
    struct err e;
    for (int s = 0; s < SIDES; s++) {
        struct kernels_config config = { .backend =
                                             s == CPU || getenv("OPS_TEST_SELF") ? "cpu" : "cuda",
                                         .precision = precision };
        if (kernels_open(&side[s], &config, &e) < 0) fprintf(stderr, "ops_test: %s\n", e.text), exit(2);
    }
}

static void run_part(const char *name, void (*test)(void)) {
    if (!wanted(name)) return;
    int cases = n_cases, failed = n_failed;
    double start = now();
    test();
    printf("%-14s %4d checks, %d failed, %.1f s\n", name, n_cases - cases, n_failed - failed, now() - start);
    fflush(stdout);
}

int main(int argc, char **argv) {
    bool measure = argc > 1 && strcmp(argv[1], "--bench") == 0;
    small = argc > 1 && strcmp(argv[1], "--small") == 0;
    if (argc > 1 + (measure || small)) only = argv[1 + (measure || small)];
    rng_init(&chance, 20261120, 1);
    for (int precision = 0; precision < 2 && !measure; precision++) {
        open_sides(precision ? PRECISION_F32 : PRECISION_FAST);
        printf("--- %s precision\n", precision ? "f32" : "fast");
        if (!precision) {
            run_part("embed", test_embed);
            run_part("hc", test_hc);
            run_part("rows", test_rows);
            run_part("route", test_route);
            run_part("group", test_matmul_group);
            run_part("replay", test_replay);
        }
        run_part("matmul", test_matmul);
        run_part("experts", test_experts);
        run_part("state", test_state);
        run_part("chunks", test_chunks);
        for (int s = 0; s < SIDES; s++) kernels_close(side[s]);
    }
    if (measure) {
        open_sides(PRECISION_FAST);
        bench();
        for (int s = 0; s < SIDES; s++) kernels_close(side[s]);
        return 0;
    }
    printf("%d checks, %d failed\n", n_cases, n_failed);
    return n_failed ? 1 : 0;
}
