/* http_work - see the header. */
#include "coordinator/http_work.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "common/base/check.h"

enum { THREADS_MAX = 64 };

struct list {
    struct http_piece *first, *last;
};

struct http_work {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct list waiting, done;
    bool stop;
    pthread_t thread[THREADS_MAX];
    int n_threads;
    void (*wake)(void *ctx);
    void *ctx;
};

static void push(struct list *l, struct http_piece *p) {
    p->next = NULL;
    if (l->last) l->last->next = p;
    else l->first = p;
    l->last = p;
}

static struct http_piece *pop(struct list *l) {
    struct http_piece *p = l->first;
    if (!p) return NULL;
    l->first = p->next;
    if (!l->first) l->last = NULL;
    return p;
}

static void *work(void *ctx) {
    struct http_work *w = ctx;
    pthread_mutex_lock(&w->lock);
    while (!w->stop) {
        struct http_piece *p = pop(&w->waiting);
        if (!p) {
            pthread_cond_wait(&w->more, &w->lock);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        p->run(p);
        pthread_mutex_lock(&w->lock);
        push(&w->done, p);
        pthread_mutex_unlock(&w->lock);
        w->wake(w->ctx);
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Signals are the main thread's business. */
static int start_threads(struct http_work *w, int n, struct err *e) {
    sigset_t all, before;
    int rc = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < n && rc == 0; i++) {
        rc = pthread_create(&w->thread[i], NULL, work, w) ? ERR_NOMEM : 0;
        if (rc == 0) w->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc < 0 ? err_set(e, rc, "starting %d threads", n) : 0;
}

int http_work_new(struct http_work **out, int n_threads, void (*wake)(void *ctx), void *ctx, struct err *e) {
    struct http_work *w = xcalloc(1, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    w->wake = wake;
    w->ctx = ctx;
    int rc = start_threads(w, MIN(MAX(n_threads, 1), THREADS_MAX), e);
    if (rc < 0) http_work_free(w);
    else *out = w;
    return rc;
}

void http_work_put(struct http_work *w, struct http_piece *p) {
    pthread_mutex_lock(&w->lock);
    push(&w->waiting, p);
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
}

struct http_piece *http_work_take(struct http_work *w) {
    pthread_mutex_lock(&w->lock);
    struct http_piece *p = pop(&w->done);
    pthread_mutex_unlock(&w->lock);
    return p;
}

void http_work_free(struct http_work *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->n_threads; i++) pthread_join(w->thread[i], NULL);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
