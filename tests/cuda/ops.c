#include "tests/cuda/ops.h"

#include <stdarg.h>

struct kernels *side[SIDES];
struct rng chance;
int n_cases, n_failed;
bool small;

const enum dtype decodable[12] = { DTYPE_F32,  DTYPE_F16,  DTYPE_BF16,    DTYPE_Q8_0,
                                   DTYPE_Q4_0, DTYPE_Q2_K, DTYPE_Q3_K,    DTYPE_Q4_K,
                                   DTYPE_Q5_K, DTYPE_Q6_K, DTYPE_IQ2_XXS, DTYPE_MXFP4 };

/* ---- tensors on both sides ---- */

static struct pair *all_pairs[4096];
static int n_pairs;

void *allocate(struct kernels *k, uint64_t bytes, struct tensor *t) {
    struct err e;
    t->mem = kernels_alloc(k, bytes, &t->data, &e);
    if (!t->mem) {
        fprintf(stderr, "ops_test: %s\n", e.text);
        exit(2);
    }
    return t->data;
}

struct pair *pair_new(enum dtype type, int64_t row, int64_t rows) {
    struct pair *p = xcalloc(1, sizeof *p);
    CHECK(n_pairs < (int)COUNT_OF(all_pairs));
    all_pairs[n_pairs++] = p;
    p->bytes = (uint64_t)(row * rows) * dtype_block_bytes(type) / dtype_block(type);
    for (int s = 0; s < SIDES; s++) p->t[s] = (struct tensor){ .type = type, .ne = { row, rows, 1 } };
    return p;
}

void upload(struct pair *p, const void *data) {
    struct err e;
    for (int s = 0; s < SIDES; s++)
        if (kernels_upload(side[s], p->t[s].data, data, p->bytes, &e) < 0)
            fprintf(stderr, "ops_test: %s\n", e.text), exit(2);
}

void poison(struct pair *p) {
    uint32_t *bad = xcalloc(p->bytes / 4 + 1, 4);
    for (uint64_t i = 0; i < p->bytes / 4; i++) bad[i] = 0x7fc0dead;
    upload(p, bad);
    free(bad);
}

struct pair *output(enum dtype type, int64_t row, int64_t rows) {
    struct pair *p = pair_new(type, row, rows);
    for (int s = 0; s < SIDES; s++) allocate(side[s], p->bytes, &p->t[s]);
    poison(p);
    return p;
}

struct pair *values(int64_t row, int64_t rows, float scale, float offset) {
    struct pair *p = output(DTYPE_F32, row, rows);
    p->host = xcalloc((uint64_t)(row * rows), sizeof(float));
    for (int64_t i = 0; i < row * rows; i++) p->host[i] = offset + scale * rng_normal(&chance);
    upload(p, p->host);
    return p;
}

struct pair *numbers(int64_t row, int64_t rows, const int32_t *data) {
    struct pair *p = output(DTYPE_I32, row, rows);
    upload(p, data);
    return p;
}

struct pair *weights(enum dtype type, int64_t row, int64_t rows, int64_t experts, float scale) {
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

void drop_all(void) {
    for (int i = 0; i < n_pairs; i++) {
        for (int s = 0; s < SIDES; s++) kernels_release(side[s], all_pairs[i]->t[s].mem);
        free(all_pairs[i]->host);
        free(all_pairs[i]->mapped);
        free(all_pairs[i]);
    }
    n_pairs = 0;
}

void *fetch(const struct pair *p, int s) {
    struct err e;
    void *host = xcalloc(1, p->bytes + 4);
    if (kernels_download(side[s], host, p->t[s].data, p->bytes, &e) < 0)
        fprintf(stderr, "ops_test: %s: %s\n", side[s]->ops->name, e.text), exit(2);
    return host;
}

struct tensor view_rows(const struct pair *p, int s, int row0, int n) {
    struct tensor t = p->t[s];
    t.data = (uint8_t *)t.data + (uint64_t)row0 * (uint64_t)t.ne[0] * dtype_block_bytes(t.type);
    t.ne[1] = n;
    return t;
}

/* ---- verdicts ---- */

static char case_name[256];

void name_case(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(case_name, sizeof case_name, format, args);
    va_end(args);
}

void verdict(bool ok, const char *format, ...) {
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

void compare(const struct pair *p, uint64_t n, double tolerance, const char *what) {
    float *gpu = fetch(p, GPU), *cpu = fetch(p, CPU);
    double d = distance(gpu, cpu, n ? n : p->bytes / 4);
    verdict(d <= tolerance, "%s is off by %.3g (at most %.1g)", what, d, tolerance);
    free(gpu);
    free(cpu);
}

void compare_used(const struct pair *p, uint64_t used, double share, const char *what) {
    uint8_t *gpu = fetch(p, GPU), *cpu = fetch(p, CPU);
    uint64_t n = 0, row = p->bytes / (uint64_t)p->t[CPU].ne[1];
    for (uint64_t i = 0; i < p->bytes; i++) n += i % row < used && gpu[i] != cpu[i];
    verdict((double)n <= share * (double)p->bytes, "%s differs in %llu of %llu bytes", what,
            (unsigned long long)n, (unsigned long long)p->bytes);
    free(gpu);
    free(cpu);
}

void compare_bytes(const struct pair *p, double share, const char *what) {
    compare_used(p, UINT64_MAX, share, what);
}

uint32_t *keep_bits(const struct pair *p) {
    return fetch(p, GPU);
}

void same_bits(const uint32_t *a, const uint32_t *b, uint64_t n, const char *what) {
    uint64_t differ = 0;
    for (uint64_t i = 0; i < n; i++) differ += a[i] != b[i];
    verdict(differ == 0, "%s: %llu of %llu values have other bits", what,
            (unsigned long long)differ, (unsigned long long)n);
}

/* ---- batches ---- */

void batch_add(struct batch_memory *m, int32_t slot, int32_t pos0, int32_t n) {
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

void batch_free(struct batch_memory *m) {
    free(m->token);
    free(m->pos);
    free(m->seg);
    free(m->segs);
    *m = (struct batch_memory){ 0 };
}
