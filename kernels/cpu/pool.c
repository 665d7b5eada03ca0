/* How it works: a job is (run, ctx, n_tasks) plus an atomic `next`. The caller publishes it by adding 1
 * to `generation`; each worker that sees a new generation drains `next` and then counts itself out in
 * `busy`. The caller drains too and waits for busy to reach 0, so a job's memory may live on its stack. */
#include "kernels/cpu/pool.h"

#include "common/base/check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

enum { POOL_SPIN = 4000 };                        /* about 40 us of pauses before a worker sleeps */

struct pool_worker {
    struct pool *pool;
    pthread_t thread;
    int index;
};

struct pool {
    int n_threads;
    pool_task *run;
    void *ctx;
    int n_tasks;
    atomic_int next, busy;
    atomic_uint generation;
    atomic_bool stop;
    atomic_int sleepers;
    pthread_mutex_t lock;                         /* only for sleeping and waking */
    pthread_cond_t wake;
    struct pool_worker worker[POOL_THREADS_MAX];
};

static inline void cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void pool_drain(struct pool *p, int thread) {
    for (;;) {
        int task = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (task >= p->n_tasks) return;
        p->run(p->ctx, task, thread);
    }
}

/* Spins, then sleeps, until the generation is no longer `seen`. */
static unsigned pool_wait(struct pool *p, unsigned seen) {
    for (int i = 0; i < POOL_SPIN; i++) {
        unsigned now = atomic_load_explicit(&p->generation, memory_order_acquire);
        if (now != seen) return now;
        cpu_relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    unsigned now;
    while ((now = atomic_load(&p->generation)) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return now;
}

static void *pool_worker_main(void *arg) {
    struct pool_worker *w = arg;
    struct pool *p = w->pool;
    unsigned seen = 0;
    for (;;) {
        seen = pool_wait(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        pool_drain(p, w->index);
        atomic_fetch_sub_explicit(&p->busy, 1, memory_order_release);
    }
}

static void pool_publish(struct pool *p) {
    atomic_fetch_add(&p->generation, 1);
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->lock);                 /* a worker between its test and its wait holds this lock */
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(struct pool *p, int n_tasks, pool_task *run, void *ctx) {
    if (n_tasks <= 0) return;
    if (p->n_threads == 1 || n_tasks == 1) {
        for (int task = 0; task < n_tasks; task++) run(ctx, task, 0);
        return;
    }
    p->run = run;
    p->ctx = ctx;
    p->n_tasks = n_tasks;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->busy, p->n_threads - 1, memory_order_relaxed);
    pool_publish(p);
    pool_drain(p, 0);
    for (int spins = 0; atomic_load_explicit(&p->busy, memory_order_acquire) > 0; spins++) {
        cpu_relax();
        if (spins > POOL_SPIN) sched_yield();     /* more threads than cores: let the last worker run */
    }
}

static void pool_pin(pthread_t thread, int core) {
#if defined(__linux__)
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    for (int cpu = 0, n = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || n++ != core) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(thread, sizeof one, &one);   /* a hint: failure costs speed only */
        return;
    }
#else
    (void)thread;
    (void)core;
#endif
}

static int pool_cores(void) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : (int)n;
}

int pool_new(struct pool **out, int n_threads, bool pin, struct err *e) {
    *out = NULL;
    if (n_threads < 0 || n_threads > POOL_THREADS_MAX)
        return err_set(e, ERR_INVALID, "threads: %d is not between 0 and %d", n_threads, POOL_THREADS_MAX);
    struct pool *p = xcalloc(1, sizeof *p);
    int n_cores = pool_cores();
    int wanted = n_threads ? n_threads : n_cores < POOL_THREADS_MAX ? n_cores : POOL_THREADS_MAX;
    p->n_threads = 1;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (int i = 1; i < wanted; i++) {
        struct pool_worker *w = &p->worker[i];
        *w = (struct pool_worker){ .pool = p, .index = i };
        if (pthread_create(&w->thread, NULL, pool_worker_main, w) != 0) {
            pool_free(p);
            return err_set(e, ERR_NOMEM, "cannot start compute thread %d of %d: no memory", i, wanted);
        }
        p->n_threads = i + 1;
        if (pin && wanted <= n_cores) pool_pin(w->thread, i);
    }
    *out = p;
    return 0;
}

void pool_free(struct pool *p) {
    if (!p) return;
    atomic_store(&p->stop, true);
    pool_publish(p);
    for (int i = 1; i < p->n_threads; i++) pthread_join(p->worker[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

int pool_threads(const struct pool *p) {
    return p->n_threads;
}
