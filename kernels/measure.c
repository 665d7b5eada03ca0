/* measure - what a device really does, through the operations that the model uses: one row times a matrix
 * larger than any cache (that is reading memory), and many rows times a smaller one (that is computing).
 * Nothing here knows which backend it is; the first run of each is only there to warm up. */
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    N_IN = 4096, ROWS_MAX = 512, ROWS_MIN = 16,
    READ_OUT_MAX = 61440, READ_OUT_MIN = 3840,    /* 255 to 16 MiB in Q8_0 */
    PRODUCT_OUT = 3840,
    RUNS = 6, TOGETHER = 16,                      /* short ones several at a time: a wait costs, too */
};

static const double BUDGET_S = 0.03, SHORT_S = 0.002;

struct bed {                                      /* what is measured on; all of it on the device */
    struct kernels *k;
    struct kmem *weight_mem, *in_mem, *out_mem;
    struct tensor weight, in, out;
};

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- memory ---- */

/* Memory that nobody wrote may not be there yet, so every row is: small scales and changing values, as Q8_0
 * and as F16. */
static int fill(struct bed *b, enum dtype type, int64_t n_out, struct err *e) {
    uint64_t row = dtype_row_bytes(type, N_IN), n_rows = 240;
    uint8_t *pattern = malloc(row * n_rows);
    if (!pattern) return err_set(e, ERR_NOMEM, "no memory to measure with");
    int rc = 0;
    for (uint64_t i = 0; i < row * n_rows; i++) {
        bool high = type == DTYPE_Q8_0 ? i % 34 == 1 : i % 2 == 1;
        pattern[i] = high ? 0x1c : (uint8_t)(i * 37);
    }
    for (int64_t done = 0; done < n_out && rc == 0; done += (int64_t)n_rows)
        rc = kernels_upload(b->k, (uint8_t *)b->weight.data + (uint64_t)done * row, pattern,
                            row * (uint64_t)MIN((int64_t)n_rows, n_out - done), e);
    free(pattern);
    return rc;
}

static int weight_open(struct bed *b, enum dtype type, int64_t n_out, struct err *e) {
    b->weight = (struct tensor){ .type = type, .ne = { N_IN, n_out, 1 } };
    b->weight_mem = kernels_alloc(b->k, dtype_row_bytes(type, N_IN) * (uint64_t)n_out, &b->weight.data, e);
    if (!b->weight_mem) return ERR_NOMEM;
    b->weight.mem = b->weight_mem;
    return fill(b, type, n_out, e);
}

static void weight_close(struct bed *b) {
    kernels_release(b->k, b->weight_mem);
    b->weight_mem = NULL;
}

static int bed_open(struct bed *b, struct kernels *k, struct err *e) {
    uint64_t out = MAX((uint64_t)READ_OUT_MAX, (uint64_t)PRODUCT_OUT * ROWS_MAX);
    *b = (struct bed){ .k = k };
    b->in = (struct tensor){ .type = DTYPE_F32, .ne = { N_IN, ROWS_MAX, 1 } };
    b->out = (struct tensor){ .type = DTYPE_F32 };
    b->in_mem = kernels_alloc(k, (uint64_t)N_IN * ROWS_MAX * sizeof(float), &b->in.data, e);
    b->out_mem = b->in_mem ? kernels_alloc(k, out * sizeof(float), &b->out.data, e) : NULL;
    b->in.mem = b->in_mem;
    b->out.mem = b->out_mem;
    return b->out_mem ? 0 : ERR_NOMEM;
}

static void bed_close(struct bed *b) {
    weight_close(b);
    kernels_release(b->k, b->in_mem);
    kernels_release(b->k, b->out_mem);
}

/* ---- time ---- */

static int run(struct bed *b, const struct matmul_args *a, int n, double *seconds, struct err *e) {
    double start = seconds_now();
    for (int i = 0; i < n; i++) kernels_matmul(b->k, a);
    int rc = kernels_finish(b->k, e);
    *seconds = (seconds_now() - start) / n;
    return rc;
}

/* The shortest of a few runs that are not the first. */
static int best_of(struct bed *b, int32_t n_rows, bool f32_act, double *best, struct err *e) {
    b->out.ne[0] = b->weight.ne[1], b->out.ne[1] = n_rows, b->out.ne[2] = 1;
    struct matmul_args a = { &b->out, &b->in, &b->weight, n_rows, 1, f32_act };
    double warm, once, start = seconds_now();
    int rc = run(b, &a, 1, &warm, e);
    if (rc == 0) rc = run(b, &a, 1, best, e);
    int together = *best < SHORT_S ? TOGETHER : 1;
    for (int i = 0; i < RUNS && rc == 0 && seconds_now() - start < BUDGET_S; i++) {
        rc = run(b, &a, together, &once, e);
        *best = fmin(*best, once);
    }
    return rc;
}

static int measure_read(struct bed *b, double *bytes_s, struct err *e) {
    int64_t n_out = READ_OUT_MAX;
    double seconds = 1;
    int rc = weight_open(b, DTYPE_Q8_0, n_out, e);
    while (rc == ERR_NOMEM && (n_out /= 2) >= READ_OUT_MIN) rc = weight_open(b, DTYPE_Q8_0, n_out, e);
    if (rc == 0) rc = best_of(b, 1, false, &seconds, e);
    weight_close(b);
    *bytes_s = (double)dtype_row_bytes(DTYPE_Q8_0, N_IN) * (double)n_out / seconds;
    return rc;
}

/* More rows at a time, as long as that is a matter of milliseconds. */
static int measure_product(struct bed *b, enum dtype type, double *ops_s, struct err *e) {
    double seconds = 0;
    int rc = weight_open(b, type, PRODUCT_OUT, e);
    *ops_s = 0;
    for (int32_t n = ROWS_MIN; n <= ROWS_MAX && rc == 0 && seconds < BUDGET_S / 8; n *= 2) {
        rc = best_of(b, n, type != DTYPE_Q8_0, &seconds, e);
        *ops_s = fmax(*ops_s, 2.0 * N_IN * PRODUCT_OUT * n / seconds);
    }
    weight_close(b);
    return rc;
}

int kernels_measure(struct kernels *k, struct kernels_peaks *out, struct err *e) {
    struct bed b;
    *out = (struct kernels_peaks){ .n_threads = k->config.n_threads };
    int rc = bed_open(&b, k, e);
    if (rc == 0) rc = measure_read(&b, &out->read_bytes_s, e);
    if (rc == 0) rc = measure_product(&b, DTYPE_Q8_0, &out->int8_ops_s, e);
    if (rc == 0) rc = measure_product(&b, DTYPE_F16, &out->f32_ops_s, e);
    bed_close(&b);
    return rc < 0 ? err_wrap(e, rc, "measuring %s", k->ops->name) : 0;
}
