/* worker - three rings and one mutex, which only guards going to sleep.
 *
 * Who pushes takes the mutex before it signals: the other side looks at its ring and goes to sleep under
 * the same mutex, so no signal falls between the look and the sleep. */
#include "common/sys/worker.h"

#include "common/base/check.h"
#include "common/base/ring.h"
#include "common/sys/clock.h"
#include "common/sys/loop.h"

#include <pthread.h>
#include <stdio.h>

enum { MAIL_MAX = 64 };

struct worker {
    struct worker_config config;
    struct ring jobs, answers, mail;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t to_worker, to_loop;
    atomic_bool stopping;
    bool exited;                                  /* under the mutex */
    struct loop_wake *wake;
    atomic_uint_fast64_t busy_ns, idle_ns, since_ns;
    atomic_bool busy;
};

/* ---- times ---- */

static void account(struct worker *w, bool busy) {
    uint64_t now = clock_now_ns(), spent = now - atomic_load(&w->since_ns);
    atomic_fetch_add(atomic_load(&w->busy) ? &w->busy_ns : &w->idle_ns, spent);
    atomic_store(&w->since_ns, now);
    atomic_store(&w->busy, busy);
}

/* A moment that falls into account() on the other thread may be counted on the wrong side, once. */
struct worker_times worker_times(const struct worker *w) {
    uint64_t since = atomic_load(&w->since_ns), now = clock_now_ns(), spent = now > since ? now - since : 0;
    bool busy = atomic_load(&w->busy);
    return (struct worker_times){ .busy_us = (atomic_load(&w->busy_ns) + (busy ? spent : 0)) / 1000,
                                  .idle_us = (atomic_load(&w->idle_ns) + (busy ? 0 : spent)) / 1000 };
}

/* ---- worker's thread ---- */

static void signal_to(struct worker *w, pthread_cond_t *cond) {
    pthread_mutex_lock(&w->mutex);
    pthread_cond_signal(cond);
    pthread_mutex_unlock(&w->mutex);
}

/* The next of a ring; NULL: stopping. */
static void *wait_for(struct worker *w, struct ring *r) {
    pthread_mutex_lock(&w->mutex);
    void *item = NULL;
    while (!atomic_load(&w->stopping) && !(item = ring_pop(r))) pthread_cond_wait(&w->to_worker, &w->mutex);
    pthread_mutex_unlock(&w->mutex);
    return item;
}

void worker_answer(struct worker *w, void *answer) {
    while (!ring_push(&w->answers, answer)) {     /* full: the loop, or worker_stop, makes room */
        pthread_mutex_lock(&w->mutex);
        pthread_cond_signal(&w->to_loop);
        if (ring_count(&w->answers) > w->answers.mask) pthread_cond_wait(&w->to_worker, &w->mutex);
        pthread_mutex_unlock(&w->mutex);
    }
    loop_wake(w->wake);
}

void *worker_wait_mail(struct worker *w) {
    void *mail = ring_pop(&w->mail);
    if (mail) return mail;
    account(w, false);
    mail = wait_for(w, &w->mail);
    account(w, true);
    return mail;
}

bool worker_is_stopping(const struct worker *w) {
    return atomic_load(&w->stopping);
}

static void *thread_main(void *argument) {
    struct worker *w = argument;
#if defined(__linux__)
    char name[16];
    snprintf(name, sizeof name, "%s", w->config.name);
    pthread_setname_np(pthread_self(), name);
#elif defined(__APPLE__)
    pthread_setname_np(w->config.name);
#endif
    if (w->config.begin) w->config.begin(w->config.ctx);
    for (void *job; (job = wait_for(w, &w->jobs));) {
        account(w, true);
        w->config.run(w->config.ctx, job);
        account(w, false);
    }
    if (w->config.end) w->config.end(w->config.ctx);
    pthread_mutex_lock(&w->mutex);
    w->exited = true;
    pthread_cond_signal(&w->to_loop);
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* ---- loop's thread ---- */

static void hand_out(void *ctx) {
    struct worker *w = ctx;
    bool any = false;
    for (void *answer; (answer = ring_pop(&w->answers)); any = true)
        w->config.on_answer(w->config.ctx, answer);
    if (any) signal_to(w, &w->to_worker);
}

static void worker_free(struct worker *w) {
    loop_wake_free(w->wake);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->to_worker);
    pthread_cond_destroy(&w->to_loop);
    ring_deinit(&w->jobs);
    ring_deinit(&w->answers);
    ring_deinit(&w->mail);
    free(w);
}

int worker_start(struct worker **out, struct loop *l, const struct worker_config *config, struct err *e) {
    struct worker *w = xcalloc(1, sizeof *w);
    w->config = *config;
    ring_init(&w->jobs, config->n_job_max);
    ring_init(&w->answers, config->n_answer_max);
    ring_init(&w->mail, MAIL_MAX);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->to_worker, NULL);
    pthread_cond_init(&w->to_loop, NULL);
    atomic_store(&w->since_ns, clock_now_ns());
    w->wake = loop_wake_new(l, hand_out, w);
    if (pthread_create(&w->thread, NULL, thread_main, w) != 0) {
        worker_free(w);
        return err_set(e, ERR_NOMEM, "no more threads can be made");
    }
    *out = w;
    return 0;
}

bool worker_push(struct worker *w, void *job) {
    if (!ring_push(&w->jobs, job)) return false;
    signal_to(w, &w->to_worker);
    return true;
}

bool worker_mail(struct worker *w, void *mail) {
    if (!ring_push(&w->mail, mail)) return false;
    signal_to(w, &w->to_worker);
    return true;
}

void worker_stop(struct worker *w, void (*drop)(void *ctx, void *job)) {
    atomic_store(&w->stopping, true);
    pthread_mutex_lock(&w->mutex);
    pthread_cond_signal(&w->to_worker);
    while (!w->exited) {
        pthread_cond_wait(&w->to_loop, &w->mutex);
        pthread_mutex_unlock(&w->mutex);
        hand_out(w);                              /* the job may be waiting for room */
        pthread_mutex_lock(&w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    hand_out(w);
    for (void *job; (job = ring_pop(&w->jobs));)
        if (drop) drop(w->config.ctx, job);
    worker_free(w);
}
