/* device - tensors on any backend for tests of single operations: random or given inputs, poisoned
 * outputs, guards behind both.
 *
 * device_each() runs a test on every device of this machine that the backend in PLEIADES_TEST_BACKEND
 * (cpu by default) offers: on the CPU each table of inner loops, with one thread and with several, in
 * both precisions. Tensors belong to the device and go away with device_reset; data is given and read
 * as host arrays. A tensor's guard is what lies behind its last row: an operation that writes there
 * fails the test when the tensor is read. Header only; one thread. */
#ifndef HARNESS_DEVICE_H
#define HARNESS_DEVICE_H

#include "tests/harness/test.h"

#include "common/base/check.h"
#include "common/base/rng.h"
#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

#include <math.h>

enum { DEVICE_TENSORS_MAX = 256, DEVICE_GUARD = 256, DEVICE_POISON = 0xff };  /* as f32: NaN; as i32: -1 */

struct device {
    struct kernels *k;
    enum precision precision;
    char name[64];
    struct rng rng;
    struct device_memory {
        struct kmem *mem;
        void *data, *host;                            /* host: what was mapped or downloaded, freed with it */
        uint64_t size;
    } memory[DEVICE_TENSORS_MAX];
    int n;
};

static inline void device_fail(int code, const struct err *e) {
    if (code < 0) fail_msg("the device says: %s", e->text);
}

/* ---- memory ---- */

static inline struct device_memory *device_memory(struct device *d, uint64_t size, const void *bytes) {
    struct device_memory *m = &d->memory[d->n++];
    struct err e = { 0 };
    CHECK(d->n <= DEVICE_TENSORS_MAX);
    uint8_t *filled = xcalloc(size + DEVICE_GUARD, 1);
    memset(filled, DEVICE_POISON, size + DEVICE_GUARD);
    if (bytes && size) memcpy(filled, bytes, size);
    m->size = size;
    m->mem = kernels_alloc(d->k, size + DEVICE_GUARD, &m->data, &e);
    if (!m->mem) fail_msg("no device memory: %s", e.text);
    device_fail(kernels_upload(d->k, m->data, filled, size + DEVICE_GUARD, &e), &e);
    m->host = filled;
    return m;
}

static inline uint64_t tensor_bytes(const struct tensor *t) {
    return t->ne[0] ? dtype_row_bytes(t->type, (uint64_t)t->ne[0]) * (uint64_t)(t->ne[1] * t->ne[2]) : 0;
}

static inline struct tensor tensor_3d(struct device *d, enum dtype type, int64_t ne0, int64_t ne1,
                                      int64_t ne2, const void *bytes) {
    struct tensor t = { .type = type, .ne = { ne0, ne1, ne2 } };
    struct device_memory *m = device_memory(d, tensor_bytes(&t), bytes);
    t.data = m->data;
    t.mem = m->mem;
    return t;
}

static inline struct tensor tensor_of(struct device *d, enum dtype type, int64_t row, int64_t n,
                                      const void *bytes) {
    return tensor_3d(d, type, row, n, 1, bytes);
}

/* Poisoned f32 rows for results. */
static inline struct tensor tensor_out(struct device *d, int64_t row, int64_t n) {
    return tensor_of(d, DTYPE_F32, row, n, NULL);
}

static inline float *random_floats(struct device *d, uint64_t n, float deviation) {
    float *x = xcalloc(n, sizeof *x);
    for (uint64_t i = 0; i < n; i++) x[i] = deviation * rng_normal(&d->rng);
    return x;
}

/* Values that the type can hold, as the operations will decode them: bytes go to the tensor, f32 to
 * *values (the device's, freed by device_reset). */
static inline struct tensor tensor_random(struct device *d, enum dtype type, int64_t ne0,
                                          int64_t ne1, int64_t ne2, float deviation, float mean,
                                          const float **values) {
    uint64_t n = (uint64_t)(ne0 * ne1 * ne2);
    float *x = random_floats(d, n, deviation);
    uint8_t *bytes = xcalloc(n * 4 + 4, 1);
    for (uint64_t i = 0; i < n; i++) x[i] += mean;
    if (n) dtype_encode(type, x, bytes, n);
    if (n) dtype_decode(type, bytes, x, n);
    struct tensor t = tensor_3d(d, type, ne0, ne1, ne2, bytes);
    free(bytes);
    free(d->memory[d->n - 1].host);
    d->memory[d->n - 1].host = x;
    *values = x;
    return t;
}

static inline struct tensor tensor_f32(struct device *d, int64_t row, int64_t n, float deviation,
                                       const float **values) {
    return tensor_random(d, DTYPE_F32, row, n, 1, deviation, 0, values);
}

/* What a tensor holds now, until device_reset. Poison that is left in an f32 result is an error; so is
 * a touched guard. */
static inline const void *tensor_bytes_now(struct device *d, const struct tensor *t) {
    struct err e = { 0 };
    for (int i = 0; i < d->n; i++) {
        struct device_memory *m = &d->memory[i];
        if (m->data != t->data) continue;
        uint8_t *now = xcalloc(m->size + DEVICE_GUARD, 1);
        CHECK(d->n < DEVICE_TENSORS_MAX);
        d->memory[d->n++] = (struct device_memory){ .host = now };
        device_fail(kernels_finish(d->k, &e), &e);
        device_fail(kernels_download(d->k, now, m->data, m->size + DEVICE_GUARD, &e), &e);
        for (uint64_t g = m->size; g < m->size + DEVICE_GUARD; g++)
            if (now[g] != DEVICE_POISON)
                fail_msg("%s: byte %d behind a tensor was written", d->name, (int)(g - m->size));
        return now;
    }
    fail_msg("not a tensor of this device");
    return NULL;
}

static inline const float *tensor_floats(struct device *d, const struct tensor *t) {
    const float *x = tensor_bytes_now(d, t);
    int64_t n = t->ne[0] * t->ne[1] * t->ne[2];
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            fail_msg("%s: value %lld was not written, or is not a number", d->name, (long long)i);
    return x;
}

static inline void device_reset(struct device *d) {
    for (int i = 0; i < d->n; i++) {
        kernels_release(d->k, d->memory[i].mem);
        free(d->memory[i].host);
    }
    d->n = 0;
}

/* ---- comparing ---- */

/* |got - want| <= tolerance * (1 + |want|) */
static inline void near_value(const struct device *d, const char *what, int64_t i, double got,
                              double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
        fail_msg("%s: %s %lld is %.8g, expected %.8g", d->name, what, (long long)i, got, want);
}

static inline void near_values(const struct device *d, const char *what, const float *got,
                               const double *want, int64_t n, double tolerance) {
    for (int64_t i = 0; i < n; i++) near_value(d, what, i, (double)got[i], want[i], tolerance);
}

/* ---- devices ---- */

typedef void device_test(struct device *d);

static inline void device_run(device_test *test, const char *backend, const char *table,
                              int n_threads, enum precision precision) {
    struct kernels_config config = { .backend = backend, .precision = precision, .n_threads = n_threads };
    struct device *d = xcalloc(1, sizeof *d);
    struct err e;
    d->precision = precision;
    snprintf(d->name, sizeof d->name, "%s %s, %d threads, %s", backend, table ? table : "",
             n_threads, precision == PRECISION_F32 ? "f32" : "fast");
    rng_init(&d->rng, 2026, 1);
    if (table) setenv("PLEIADES_SIMD", table, 1);
    assert_fine(kernels_open(&d->k, &config, &e), &e);
    if (table) unsetenv("PLEIADES_SIMD");
    test(d);
    device_reset(d);
    kernels_close(d->k);
    free(d);
}

static inline void device_each(device_test *test) {
    const struct cpu_simd *tables[8];
    const char *backend = getenv("PLEIADES_TEST_BACKEND");
    if (backend && strcmp(backend, "cpu") != 0) {
        device_run(test, backend, NULL, 0, PRECISION_F32);
        device_run(test, backend, NULL, 0, PRECISION_FAST);
        return;
    }
    int n = cpu_simd_list(tables, (int)COUNT_OF(tables));
    for (int i = 0; i < n; i++) {
        device_run(test, "cpu", tables[i]->name, 1, PRECISION_F32);
        device_run(test, "cpu", tables[i]->name, 3, PRECISION_FAST);
    }
}

/* ---- batches ---- */

enum { BATCH_ROWS_MAX = 512, BATCH_SEGS_MAX = 8 };

struct batch {                                        /* rows of segments; fill with batch_add */
    struct kbatch b;
    struct kseg segs[BATCH_SEGS_MAX];
    int32_t token[BATCH_ROWS_MAX], pos[BATCH_ROWS_MAX], seg[BATCH_ROWS_MAX];
};

static inline void batch_add(struct batch *x, int32_t slot, int32_t pos0, int32_t n) {
    CHECK(x->b.n_seg < BATCH_SEGS_MAX && x->b.n_rows + n <= BATCH_ROWS_MAX);
    x->segs[x->b.n_seg] = (struct kseg){ .row0 = x->b.n_rows, .n = n, .pos0 = pos0, .slot = slot };
    for (int32_t i = 0; i < n; i++, x->b.n_rows++) {
        x->pos[x->b.n_rows] = pos0 + i;
        x->seg[x->b.n_rows] = x->b.n_seg;
        x->token[x->b.n_rows] = (pos0 * 7 + i * 13 + slot) % 50;
    }
    x->b.n_seg++;
    x->b.token = x->token, x->b.pos = x->pos, x->b.seg = x->seg, x->b.segs = x->segs;
}

#endif
