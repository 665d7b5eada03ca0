/* loop - libuv underneath. One async handle serves stop and posted tasks, one prepare handle all hooks;
 * every wake-up object has an async handle of its own, which libuv merges.
 *
 * A timer that moves to a later deadline stays armed for the earlier one and looks again when it fires:
 * cores move their deadline after every step, and most moves are to later. */
#include "common/sys/loop.h"

#include "common/base/check.h"
#include "common/sys/clock.h"

#include <uv.h>

struct loop {
    uv_loop_t uv;
    uv_async_t async;
    uv_prepare_t prepare;
    uv_idle_t idle;                               /* active: there are overdue timers */
    struct loop_timer *overdue;
    struct loop_hook *hook, *hook_next;           /* next: while they run */
    _Atomic(struct loop_task *) posted;           /* newest first */
    atomic_bool stopping, running;
    uv_thread_t thread;
};

/* All have their handle first: its address is the address of the whole. */
struct loop_timer {
    uv_timer_t uv;
    struct loop *loop;
    struct loop_timer *next, **back;              /* back NULL: not overdue */
    uint64_t deadline_ns, armed_ns;               /* LOOP_NEVER: none; armed <= deadline */
    void (*fire)(void *ctx);
    void *ctx;
};

struct loop_wake {
    uv_async_t uv;
    void (*run)(void *ctx);
    void *ctx;
};

struct loop_signal {
    uv_signal_t uv;
    void (*run)(void *ctx);
    void *ctx;
};

static void on_closed(uv_handle_t *handle) {
    free(handle);
}

/* ---- tasks ---- */

static void run_tasks(struct loop *l) {
    struct loop_task *first = NULL;
    struct loop_task *newest = atomic_exchange_explicit(&l->posted, NULL, memory_order_acquire);
    while (newest) {                              /* turn round: oldest first */
        struct loop_task *next = newest->next;
        newest->next = first;
        first = newest;
        newest = next;
    }
    while (first) {
        struct loop_task *t = first;
        first = t->next;
        t->run(t);
    }
}

void loop_post(struct loop *l, struct loop_task *t) {
    t->next = atomic_load_explicit(&l->posted, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&l->posted, &t->next, t, memory_order_release,
                                                  memory_order_relaxed)) {}
    uv_async_send(&l->async);
}

static void on_async(uv_async_t *async) {
    struct loop *l = async->data;
    run_tasks(l);
    if (atomic_load(&l->stopping)) uv_stop(&l->uv);
}

/* ---- hooks ---- */

static void on_prepare(uv_prepare_t *prepare) {
    struct loop *l = prepare->data;
    for (struct loop_hook *h = l->hook; h; h = l->hook_next) {
        l->hook_next = h->next;
        h->run(h);
    }
}

void loop_hook_add(struct loop *l, struct loop_hook *h) {
    h->next = l->hook;
    h->back = &l->hook;
    if (l->hook) l->hook->back = &h->next;
    l->hook = h;
    h->loop = l;
}

void loop_hook_remove(struct loop_hook *h) {
    if (!h->back) return;
    if (h->loop->hook_next == h) h->loop->hook_next = h->next;
    *h->back = h->next;
    if (h->next) h->next->back = h->back;
    h->back = NULL;
}

/* ---- the loop ---- */

int loop_new(struct loop **out, struct err *e) {
    struct loop *l = xcalloc(1, sizeof *l);
    int rc = uv_loop_init(&l->uv);
    if (rc < 0) {
        free(l);
        return err_set(e, ERR_IO, "an event loop cannot be made: %s", uv_strerror(rc));
    }
    rc = uv_async_init(&l->uv, &l->async, on_async);
    if (rc < 0) {
        uv_loop_close(&l->uv);
        free(l);
        return err_set(e, ERR_IO, "an event loop cannot be made: %s", uv_strerror(rc));
    }
    uv_idle_init(&l->uv, &l->idle);
    uv_prepare_init(&l->uv, &l->prepare);
    uv_prepare_start(&l->prepare, on_prepare);
    uv_unref((uv_handle_t *)&l->prepare);
    l->async.data = l->prepare.data = l->idle.data = l;
    *out = l;
    return 0;
}

void loop_run(struct loop *l) {
    l->thread = uv_thread_self();
    atomic_store(&l->running, true);
    if (!atomic_load(&l->stopping)) uv_run(&l->uv, UV_RUN_DEFAULT);
    atomic_store(&l->running, false);
    atomic_store(&l->stopping, false);
}

void loop_stop(struct loop *l) {
    atomic_store(&l->stopping, true);
    uv_async_send(&l->async);
}

void loop_free(struct loop *l) {
    if (!l) return;
    run_tasks(l);
    CHECK(!l->hook);
    uv_close((uv_handle_t *)&l->async, NULL);
    uv_close((uv_handle_t *)&l->prepare, NULL);
    uv_close((uv_handle_t *)&l->idle, NULL);
    uv_run(&l->uv, UV_RUN_DEFAULT);               /* close callbacks; nothing else is left */
    CHECK(uv_loop_close(&l->uv) == 0);
    free(l);
}

bool loop_is_here(const struct loop *l) {
    uv_thread_t self = uv_thread_self();
    return atomic_load(&l->running) && uv_thread_equal(&l->thread, &self);
}

uint64_t loop_now_ns(const struct loop *l) {
    (void)l;
    return clock_now_ns();
}

uv_loop_t *loop_uv(struct loop *l) {
    return &l->uv;
}

/* ---- timers ---- */

static void arm(struct loop_timer *t);

static void fire_or_wait(struct loop_timer *t) {
    t->armed_ns = LOOP_NEVER;
    if (t->deadline_ns == LOOP_NEVER) return;
    if (clock_now_ns() < t->deadline_ns) {
        arm(t);
        return;
    }
    t->deadline_ns = LOOP_NEVER;
    t->fire(t->ctx);
}

static void on_timer(uv_timer_t *uv) {
    fire_or_wait((struct loop_timer *)(void *)uv);
}

static void overdue_remove(struct loop_timer *t) {
    if (!t->back) return;
    *t->back = t->next;
    if (t->next) t->next->back = t->back;
    t->back = NULL;
}

static void overdue_add(struct loop_timer *t, struct loop_timer **list) {
    t->next = *list;
    t->back = list;
    if (t->next) t->next->back = &t->next;
    *list = t;
}

/* Those that are overdue now; what they set anew is for the next round. */
static void on_idle(uv_idle_t *idle) {
    struct loop *l = idle->data;
    struct loop_timer *now = NULL;
    while (l->overdue) {
        struct loop_timer *t = l->overdue;
        overdue_remove(t);
        overdue_add(t, &now);
    }
    while (now) {
        struct loop_timer *t = now;
        overdue_remove(t);
        fire_or_wait(t);
    }
    if (!l->overdue) uv_idle_stop(idle);
}

/* An overdue one does not go to libuv: there a timer that is set to 0 in its own callback fires again
 * at once, for ever, and nothing else gets its turn. */
static void arm(struct loop_timer *t) {
    struct loop *l = t->loop;
    uint64_t now = clock_now_ns();
    t->armed_ns = t->deadline_ns;
    if (t->deadline_ns <= now) {
        overdue_remove(t);
        overdue_add(t, &l->overdue);
        uv_idle_start(&l->idle, on_idle);
        return;
    }
    uv_update_time(&l->uv);                       /* else the delay counts from the start of this round */
    uv_timer_start(&t->uv, on_timer, (t->deadline_ns - now + 999999) / 1000000, 0);
}

struct loop_timer *loop_timer_new(struct loop *l, void (*fire)(void *ctx), void *ctx) {
    struct loop_timer *t = xcalloc(1, sizeof *t);
    uv_timer_init(&l->uv, &t->uv);
    t->loop = l;
    t->deadline_ns = t->armed_ns = LOOP_NEVER;
    t->fire = fire;
    t->ctx = ctx;
    return t;
}

void loop_timer_set(struct loop_timer *t, uint64_t deadline_ns) {
    t->deadline_ns = deadline_ns;
    if (deadline_ns < t->armed_ns) arm(t);
}

void loop_timer_free(struct loop_timer *t) {
    if (t) overdue_remove(t);
    if (t) uv_close((uv_handle_t *)&t->uv, on_closed);
}

/* ---- wake-ups ---- */

static void on_wake(uv_async_t *uv) {
    struct loop_wake *w = (struct loop_wake *)(void *)uv;
    w->run(w->ctx);
}

struct loop_wake *loop_wake_new(struct loop *l, void (*run)(void *ctx), void *ctx) {
    struct loop_wake *w = xcalloc(1, sizeof *w);
    CHECK(uv_async_init(&l->uv, &w->uv, on_wake) == 0);
    w->run = run;
    w->ctx = ctx;
    return w;
}

void loop_wake(struct loop_wake *w) {
    uv_async_send(&w->uv);
}

void loop_wake_free(struct loop_wake *w) {
    if (w) uv_close((uv_handle_t *)&w->uv, on_closed);
}

/* ---- signals ---- */

static void on_signal(uv_signal_t *uv, int number) {
    struct loop_signal *s = (struct loop_signal *)(void *)uv;
    (void)number;
    s->run(s->ctx);
}

struct loop_signal *loop_signal_new(struct loop *l, int number, void (*run)(void *ctx), void *ctx,
                                    struct err *e) {
    struct loop_signal *s = xcalloc(1, sizeof *s);
    uv_signal_init(&l->uv, &s->uv);
    s->run = run;
    s->ctx = ctx;
    int rc = uv_signal_start(&s->uv, on_signal, number);
    if (rc == 0) return s;
    err_set(e, ERR_IO, "signal %d cannot be caught: %s", number, uv_strerror(rc));
    loop_signal_free(s);
    return NULL;
}

void loop_signal_free(struct loop_signal *s) {
    if (s) uv_close((uv_handle_t *)&s->uv, on_closed);
}
