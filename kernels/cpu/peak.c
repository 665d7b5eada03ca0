#include "kernels/cpu/peak.h"

#include "kernels/cpu/cpu.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { PEAK_THREAD_BYTES = 128 << 20, PEAK_TRIES = 3, PEAK_ROUNDS = 2000000, PEAK_CHUNK = 1 << 20 };

struct peak_job {
    const uint8_t *memory;
    const struct peak_loops *loops;
    double ops[POOL_THREADS_MAX];
    uint64_t sums[POOL_THREADS_MAX];
    bool int8;
};

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void read_task(void *ctx, int task, int thread) {
    struct peak_job *job = ctx;
    const uint64_t *at = (const uint64_t *)(const void *)(job->memory + (uint64_t)task * PEAK_CHUNK);
    uint64_t s[8] = { 0 };
    for (int i = 0; i < PEAK_CHUNK / 64; i++, at += 8)
        for (int j = 0; j < 8; j++) s[j] += at[j];
    for (int j = 0; j < 8; j++) job->sums[thread] += s[j];
}

static void loop_task(void *ctx, int task, int thread) {
    (void)thread;
    struct peak_job *job = ctx;
    job->ops[task] = (job->int8 ? job->loops->int8 : job->loops->f32)(PEAK_ROUNDS);
}

static double measure_read(struct pool *pool) {
    uint64_t size = (uint64_t)PEAK_THREAD_BYTES * (uint64_t)pool_threads(pool);
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED) return 0;
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    memset(memory, 1, size);
    struct peak_job *job = calloc(1, sizeof *job);
    double best = 0;
    for (int i = 0; job && i < PEAK_TRIES; i++) {
        job->memory = memory;
        double start = seconds_now();
        pool_run(pool, (int)(size / PEAK_CHUNK), read_task, job);
        best = MAX(best, (double)size / (seconds_now() - start));
    }
    free(job);
    munmap(memory, size);
    return best;
}

static double measure_loop(struct pool *pool, const struct peak_loops *loops, bool int8) {
    struct peak_job *job = calloc(1, sizeof *job);
    double best = 0;
    for (int i = 0; job && loops->int8 && i < PEAK_TRIES; i++) {
        *job = (struct peak_job){ .loops = loops, .int8 = int8 };
        double start = seconds_now(), ops = 0;
        pool_run(pool, pool_threads(pool), loop_task, job);
        double seconds = seconds_now() - start;
        for (int t = 0; t < pool_threads(pool); t++) ops += job->ops[t];
        best = MAX(best, ops / seconds);
    }
    free(job);
    return best;
}

int kernels_cpu_measure(struct kernels_peaks *out, int n_threads, struct err *e) {
    *out = (struct kernels_peaks){ 0 };
    struct pool *pool;
    int rc = pool_new(&pool, n_threads, false, e);
    if (rc < 0) return rc;
    const char *name = cpu_simd_select()->name;
    const struct peak_loops *loops = strcmp(name, "avx512") == 0 ? &peak_loops_avx512
                                     : strcmp(name, "avx2") == 0 ? &peak_loops_avx2
                                                                 : &peak_loops_neon;
    out->read_bytes_s = measure_read(pool);
    out->int8_ops_s = measure_loop(pool, loops, true);
    out->f32_ops_s = measure_loop(pool, loops, false);
    out->n_threads = pool_threads(pool);
    pool_free(pool);
    return 0;
}
