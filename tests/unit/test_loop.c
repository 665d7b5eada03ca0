/* The loop, payload slots and the worker, with real threads. */
#include "tests/harness/test.h"

#include "common/sys/clock.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "common/sys/worker.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#define MS UINT64_C(1000000)

static struct loop *new_loop(void) {
    struct loop *l;
    struct err e;
    assert_fine(loop_new(&l, &e), &e);
    return l;
}

static void stop_it(void *ctx) {
    loop_stop(ctx);
}

/* ---- loop ---- */

struct fired { struct loop *loop; struct loop_timer *timer; uint64_t at_ns; int n; };

static void on_fire(void *ctx) {
    struct fired *f = ctx;
    f->at_ns = clock_now_ns();
    f->n++;
    loop_stop(f->loop);
}

static void a_timer_fires_once_and_not_before_its_deadline(void **state) {
    struct fired f = { .loop = new_loop() };
    (void)state;
    f.timer = loop_timer_new(f.loop, on_fire, &f);
    for (int i = 0; i < 10; i++) {
        uint64_t deadline = clock_now_ns() + (uint64_t)i * 1300000;
        loop_timer_set(f.timer, deadline);
        loop_run(f.loop);
        assert_int_equal(i + 1, f.n);
        assert_true(f.at_ns >= deadline);
    }
    loop_timer_set(f.timer, clock_now_ns() + 5 * MS);         /* earlier, then later, then never */
    loop_timer_set(f.timer, clock_now_ns() + 30 * MS);
    uint64_t start = clock_now_ns();
    loop_run(f.loop);
    assert_true(f.at_ns >= start + 29 * MS);
    loop_timer_set(f.timer, clock_now_ns() + 5 * MS);
    loop_timer_set(f.timer, LOOP_NEVER);
    struct loop_timer *end = loop_timer_new(f.loop, stop_it, f.loop);
    loop_timer_set(end, clock_now_ns() + 20 * MS);
    loop_run(f.loop);
    assert_int_equal(11, f.n);
    loop_timer_free(end);
    loop_timer_free(f.timer);
    loop_free(f.loop);
}

static void on_fire_again(void *ctx) {
    struct fired *f = ctx;
    f->n++;
    loop_timer_set(f->timer, 0);
}

static void a_timer_that_is_always_overdue_lets_others_run(void **state) {
    struct fired f = { .loop = new_loop() };
    (void)state;
    f.timer = loop_timer_new(f.loop, on_fire_again, &f);
    struct loop_timer *other = loop_timer_new(f.loop, stop_it, f.loop);
    loop_timer_set(f.timer, 0);
    loop_timer_set(other, clock_now_ns() + 20 * MS);
    loop_run(f.loop);
    assert_true(f.n > 1);
    loop_timer_set(other, 0);                     /* both overdue, and freed while they are */
    loop_timer_free(f.timer);
    loop_timer_free(other);
    loop_free(f.loop);
}

struct posted { struct loop_task task; struct loop *loop; int number; int *next; bool last; };

static void on_posted(struct loop_task *t) {
    struct posted *p = (struct posted *)(void *)t;
    assert_int_equal(p->number, (*p->next)++);
    if (p->last) {
        assert_true(loop_is_here(p->loop));
        loop_stop(p->loop);
    }
}

enum { POSTS = 2000 };
static void *post_all(void *ctx) {
    struct posted *p = ctx;
    assert_false(loop_is_here(p[0].loop));
    for (int i = 0; i < POSTS; i++) loop_post(p[i].loop, &p[i].task);
    return NULL;
}

static void what_another_thread_posts_runs_here_in_order(void **state) {
    struct loop *l = new_loop();
    struct posted *p = calloc(POSTS, sizeof *p);
    int next = 0;
    pthread_t thread;
    (void)state;
    for (int i = 0; i < POSTS; i++)
        p[i] = (struct posted){ { on_posted, NULL }, l, i, &next, i == POSTS - 1 };
    assert_int_equal(0, pthread_create(&thread, NULL, post_all, p));
    loop_run(l);
    pthread_join(thread, NULL);
    assert_int_equal(POSTS, next);
    next = 0;
    loop_post(l, &p[0].task);                     /* what nobody ran is run at the end */
    loop_stop(l);
    loop_run(l);                                  /* asked to stop before: returns at once */
    loop_free(l);
    assert_int_equal(1, next);
    free(p);
}

struct woken { struct loop *loop; struct loop_wake *wake; atomic_int asked; int n, seen; };

static void on_wake(void *ctx) {
    struct woken *w = ctx;
    w->n++;
    w->seen = atomic_load(&w->asked);
    if (w->seen == 1000) loop_stop(w->loop);
}

static void *wake_often(void *ctx) {
    struct woken *w = ctx;
    for (int i = 0; i < 1000; i++) {
        atomic_fetch_add(&w->asked, 1);
        loop_wake(w->wake);
    }
    return NULL;
}

static void wake_ups_are_merged_and_the_last_one_is_not_lost(void **state) {
    struct woken w = { .loop = new_loop() };
    pthread_t thread;
    (void)state;
    w.wake = loop_wake_new(w.loop, on_wake, &w);
    assert_int_equal(0, pthread_create(&thread, NULL, wake_often, &w));
    loop_run(w.loop);
    pthread_join(thread, NULL);
    assert_int_equal(1000, w.seen);
    assert_true(w.n <= 1000);
    loop_wake_free(w.wake);
    loop_free(w.loop);
}

static void a_signal_is_a_callback_on_the_loop(void **state) {
    struct loop *l = new_loop();
    struct err e;
    (void)state;
    struct loop_signal *s = loop_signal_new(l, SIGHUP, stop_it, l, &e);
    assert_non_null(s);
    kill(getpid(), SIGHUP);
    loop_run(l);
    loop_signal_free(s);
    loop_free(l);
}

struct hooked { struct loop_hook hook; struct loop *loop; int n; };

static void on_hook(struct loop_hook *h) {
    struct hooked *x = (struct hooked *)(void *)h;
    if (++x->n == 3) loop_stop(x->loop);
    loop_timer_free(loop_timer_new(x->loop, stop_it, x->loop));
    if (x->n == 2) loop_hook_remove(h);
}

static void hooks_run_before_the_loop_waits_and_may_remove_themselves(void **state) {
    struct hooked a = { .hook = { .run = on_hook } }, b = a;
    struct fired f = { .loop = new_loop() };
    (void)state;
    a.loop = b.loop = f.loop;
    loop_hook_add(f.loop, &a.hook);
    loop_hook_add(f.loop, &b.hook);
    f.timer = loop_timer_new(f.loop, on_fire, &f);
    for (int i = 0; i < 6; i++) {
        loop_timer_set(f.timer, clock_now_ns() + MS);
        loop_run(f.loop);
    }
    assert_int_equal(2, a.n);
    assert_int_equal(2, b.n);
    loop_hook_remove(&a.hook);
    loop_timer_free(f.timer);
    loop_free(f.loop);
}

/* ---- slots ---- */

static void slots_open(struct slots **s, struct loop **l) {
    struct slots_config c = { .n_big = 2, .n_small = 2, .big_bytes = 100000, .small_bytes = 4096 };
    struct err e;
    *l = new_loop();
    assert_fine(slots_new(s, *l, &c, &e), &e);
}

static void small_payloads_take_small_slots_and_then_big_ones(void **state) {
    struct slots *s;
    struct loop *l;
    struct payload p[5];
    (void)state;
    slots_open(&s, &l);
    assert_int_equal(102400, slots_bytes_max(s));
    for (int i = 0; i < 4; i++) {
        p[i] = slots_take(s, 100);
        assert_true(slots_has(s, p[i]));
        memset(slots_data(s, p[i]), i, 100);
    }
    assert_int_equal(0, slots_take(s, 100).generation);
    assert_int_equal(0, slots_take(s, 200000).generation);
    for (int i = 0; i < 4; i++) assert_int_equal(i, *(uint8_t *)slots_data(s, p[i]));
    slots_give(s, p[1]);
    assert_false(slots_has(s, p[1]));
    assert_int_equal(0, slots_take(s, 5000).generation);      /* only a small one is free */
    p[4] = slots_take(s, 4096);
    assert_int_equal(p[1].slot, p[4].slot);
    assert_true(p[4].generation != p[1].generation);
    assert_false(slots_has(s, p[1]));
    for (int i = 0; i < 5; i++)
        if (i != 1) slots_give(s, p[i]);
    slots_give(s, (struct payload){ 0 });
    assert_int_equal(0, slots_used(s));
    slots_free(s);
    loop_free(l);
}

static void a_slot_on_lease_is_free_when_owner_and_leases_are_done(void **state) {
    struct slots *s;
    struct loop *l;
    (void)state;
    slots_open(&s, &l);
    struct payload p = slots_take(s, 50000);
    void *a = slots_lend(s, p), *b = slots_lend(s, p);
    slots_give(s, p);
    assert_false(slots_has(s, p));
    assert_int_equal(1, slots_used(s));
    slots_return(NULL, a);
    slots_return(NULL, b);
    struct loop_timer *t = loop_timer_new(l, stop_it, l);
    loop_timer_set(t, clock_now_ns() + 5 * MS);
    loop_run(l);
    assert_int_equal(0, slots_used(s));
    loop_timer_free(t);
    slots_free(s);
    loop_free(l);
}

enum { LEASES = 5000 };
static void *return_all(void *ctx) {
    void **lease = ctx;
    for (int i = 0; i < LEASES; i++) slots_return(NULL, lease[i]);
    return NULL;
}

static void leases_come_back_from_several_threads(void **state) {
    struct slots *s;
    struct loop *l;
    struct payload p[3];
    void **lease[2];
    pthread_t thread[2];
    (void)state;
    slots_open(&s, &l);
    for (int i = 0; i < 3; i++) p[i] = slots_take(s, 10);
    for (int k = 0; k < 2; k++) {
        lease[k] = calloc(LEASES, sizeof *lease[k]);
        for (int i = 0; i < LEASES; i++) lease[k][i] = slots_lend(s, p[i % 3]);
        assert_int_equal(0, pthread_create(&thread[k], NULL, return_all, lease[k]));
    }
    for (int i = 0; i < 3; i++) slots_give(s, p[i]);
    struct loop_timer *t = loop_timer_new(l, stop_it, l);
    for (int i = 0; i < 2000 && slots_used(s); i++) {
        loop_timer_set(t, clock_now_ns() + 5 * MS);
        loop_run(l);
    }
    assert_int_equal(0, slots_used(s));
    for (int k = 0; k < 2; k++) {
        pthread_join(thread[k], NULL);
        free(lease[k]);
    }
    loop_timer_free(t);
    slots_free(s);
    loop_free(l);
}

static void the_sum_of_slots_covers_a_real_plan(void **state) {
    struct slots_need need = { .n_rows_max = 512, .n_want_max = 16, .n_embd = 4096, .n_vocab = 129280,
                               .n_window = 5 };
    struct slots_config c = slots_config_of(&need);
    struct loop *l = new_loop();
    struct slots *s;
    struct err e;
    (void)state;
    assert_int_equal(512 * 65536, c.big_bytes);   /* 512 rows of four streams */
    assert_true(c.small_bytes >= 129280 * 4);
    assert_true(c.n_big >= 5 * 3 + 4);
    assert_fine(slots_new(&s, l, &c, &e), &e);
    slots_free(s);
    c.big_bytes = 0;
    assert_int_equal(ERR_INVALID, slots_new(&s, l, &c, &e));
    c = (struct slots_config){ .n_big = SLOTS_N_MAX, .n_small = 1, .big_bytes = 10, .small_bytes = 10 };
    assert_int_equal(ERR_INVALID, slots_new(&s, l, &c, &e));
    loop_free(l);
}

/* ---- worker ---- */

struct job { int number; bool asks; };
struct shop {
    struct loop *loop;
    struct worker *worker;
    int n_begin, n_end, n_answer, n_drop, last;
    pthread_t begun_on;
    atomic_bool running;
};

static void shop_begin(void *ctx) {
    struct shop *s = ctx;
    s->n_begin++;
    s->begun_on = pthread_self();
}

static void shop_end(void *ctx) {
    ((struct shop *)ctx)->n_end++;
}

static void shop_run(void *ctx, void *job) {
    struct shop *s = ctx;
    struct job *j = job;
    atomic_store(&s->running, true);
    assert_true(pthread_equal(s->begun_on, pthread_self()));
    if (j->asks) {
        worker_answer(s->worker, &j->asks);       /* a question */
        int *mail = worker_wait_mail(s->worker);
        j->number = mail ? *mail : -1;
    }
    worker_answer(s->worker, &j->number);
}

static int reply = 4711;
static void shop_answer(void *ctx, void *answer) {
    struct shop *s = ctx;
    s->n_answer++;
    if (s->last == -2) {                          /* the question */
        assert_true(worker_mail(s->worker, &reply));
        s->last = 0;
        return;
    }
    s->last = *(int *)answer;
    if (s->last >= 1000) loop_stop(s->loop);
}

static void shop_drop(void *ctx, void *job) {
    (void)job;
    ((struct shop *)ctx)->n_drop++;
}

static void shop_open(struct shop *s, uint32_t n_job, uint32_t n_answer) {
    struct worker_config c = { "shop", n_job, n_answer, shop_begin, shop_run, shop_end, shop_answer, s };
    struct err e;
    memset(s, 0, sizeof *s);
    s->loop = new_loop();
    assert_fine(worker_start(&s->worker, s->loop, &c, &e), &e);
}

static void jobs_run_in_order_and_answers_come_in_order(void **state) {
    struct shop s;
    struct job job[1001];
    (void)state;
    shop_open(&s, 1024, 4);                      /* few answers: the worker waits for the loop now and then */
    for (int i = 0; i <= 1000; i++) {
        job[i] = (struct job){ i, false };
        assert_true(worker_push(s.worker, &job[i]));
    }
    loop_run(s.loop);
    assert_int_equal(1001, s.n_answer);
    assert_int_equal(1000, s.last);
    struct worker_times times = worker_times(s.worker);
    assert_true(times.busy_us + times.idle_us > 0);
    worker_stop(s.worker, shop_drop);
    assert_int_equal(1, s.n_begin);
    assert_int_equal(1, s.n_end);
    assert_int_equal(0, s.n_drop);
    loop_free(s.loop);
}

static void a_job_may_ask_the_loop_and_wait(void **state) {
    struct shop s;
    struct job j = { 0, true };
    (void)state;
    shop_open(&s, 4, 4);
    s.last = -2;
    assert_true(worker_push(s.worker, &j));
    loop_run(s.loop);
    assert_int_equal(4711, s.last);
    worker_stop(s.worker, NULL);
    loop_free(s.loop);
}

static void stopping_ends_a_wait_and_drops_what_never_ran(void **state) {
    struct shop s;
    struct job j[3] = { { 0, true }, { 1, false }, { 2, false } };
    (void)state;
    shop_open(&s, 4, 1);
    for (int i = 0; i < 3; i++) assert_true(worker_push(s.worker, &j[i]));
    while (!atomic_load(&s.running)) clock_sleep_ms(1);
    worker_stop(s.worker, shop_drop);             /* the loop does not even run */
    assert_int_equal(-1, j[0].number);
    assert_int_equal(2, s.n_answer);
    assert_int_equal(2, s.n_drop);
    loop_free(s.loop);
}

static void a_full_ring_says_so(void **state) {
    struct shop s;
    struct job wait = { 0, true }, more[8] = { { 0, false } };
    (void)state;
    shop_open(&s, 2, 4);
    assert_true(worker_push(s.worker, &wait));
    while (!atomic_load(&s.running)) clock_sleep_ms(1);
    assert_true(worker_push(s.worker, &more[0]));
    assert_true(worker_push(s.worker, &more[1]));
    assert_false(worker_push(s.worker, &more[2]));
    worker_stop(s.worker, shop_drop);
    assert_int_equal(2, s.n_drop);
    loop_free(s.loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_timer_fires_once_and_not_before_its_deadline),
        TEST(a_timer_that_is_always_overdue_lets_others_run),
        TEST(what_another_thread_posts_runs_here_in_order),
        TEST(wake_ups_are_merged_and_the_last_one_is_not_lost),
        TEST(a_signal_is_a_callback_on_the_loop),
        TEST(hooks_run_before_the_loop_waits_and_may_remove_themselves),
        TEST(small_payloads_take_small_slots_and_then_big_ones),
        TEST(a_slot_on_lease_is_free_when_owner_and_leases_are_done),
        TEST(leases_come_back_from_several_threads),
        TEST(the_sum_of_slots_covers_a_real_plan),
        TEST(jobs_run_in_order_and_answers_come_in_order),
        TEST(a_job_may_ask_the_loop_and_wait),
        TEST(stopping_ends_a_wait_and_drops_what_never_ran),
        TEST(a_full_ring_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
