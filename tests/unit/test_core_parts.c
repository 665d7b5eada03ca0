/* What the cores stand on: state machines, pools, rings between threads, marks, trace lines, peers. */
#include "tests/harness/test.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/mark.h"
#include "common/base/pool.h"
#include "common/base/ring.h"
#include "common/base/sm.h"
#include "common/wire/peer.h"
#include "common/wire/probe.h"

/* ---- sm ---- */

enum { RED, GREEN, OFF, LIGHTS };
static const struct sm_state lights[LIGHTS] = {
    [RED] = { "red", SM_BIT(GREEN) | SM_BIT(OFF) }, [GREEN] = { "green", SM_BIT(RED) }, [OFF] = { "off", 0 },
};
static const struct sm_table light = { "light", lights, LIGHTS };
static char last_line[TRACE_LINE_MAX];

static void keep_line(void *ctx, const char *text) {
    (void)ctx;
    snprintf(last_line, sizeof last_line, "%s", text);
}

static void a_move_in_the_table_writes_its_line(void **state) {
    (void)state;
    struct trace t = { keep_line, NULL };
    uint8_t s = RED;
    sm_move(&light, &s, GREEN, 7, &t);
    assert_int_equal(s, GREEN);
    assert_string_equal(last_line, "light 7: red -> green");
    assert_true(sm_may_move(&light, RED, OFF));
    assert_false(sm_may_move(&light, GREEN, OFF));
    assert_false(sm_may_move(&light, OFF, RED));
    assert_false(sm_may_move(&light, 99, RED));
    assert_string_equal(sm_name(&light, 99), "?");
}

static void a_move_outside_the_table_ends_the_program(void **state) {
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        uint8_t s = GREEN;
        signal(SIGABRT, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr)) _exit(2);
        sm_move(&light, &s, OFF, 1, &(struct trace){ 0 });
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

/* ---- pool ---- */

static void a_handle_dies_with_its_object(void **state) {
    (void)state;
    struct pool p;
    pool_init(&p, 3);
    assert_int_equal(pool_take(&p), 0);
    assert_int_equal(pool_take(&p), 1);
    struct handle h = pool_handle(&p, 0);
    assert_true(pool_resolves(&p, h));
    pool_give(&p, 0);
    assert_false(pool_resolves(&p, h));
    assert_int_equal(pool_take(&p), 0);
    assert_false(pool_resolves(&p, h));           /* the same place, somebody else */
    assert_false(pool_resolves(&p, (struct handle){ 0, 0 }));
    assert_false(pool_resolves(&p, (struct handle){ 99, 1 }));
    pool_deinit(&p);
}

static void a_pool_gives_what_it_has_and_no_more(void **state) {
    (void)state;
    struct pool p;
    pool_init(&p, 130);
    for (int i = 0; i < 130; i++) assert_int_equal(pool_take(&p), i);
    assert_int_equal(pool_take(&p), -1);
    pool_give(&p, 129);
    pool_give(&p, 64);
    assert_int_equal(p.n_used, 128);
    assert_int_equal(pool_take(&p), 64);
    int seen = 0;
    for (int64_t i = -1; (i = pool_next(&p, i)) >= 0;) seen++;
    assert_int_equal(seen, 129);
    pool_deinit(&p);
}

/* ---- ring ---- */

enum { N_ITEM = 200000 };

static void *push_all(void *arg) {
    struct ring *r = arg;
    for (uintptr_t i = 1; i <= N_ITEM; i++)
        while (!ring_push(r, (void *)i)) sched_yield();
    return NULL;
}

static void a_ring_keeps_order_between_two_threads(void **state) {
    (void)state;
    struct ring r;
    pthread_t thread;
    ring_init(&r, 100);
    assert_int_equal(pthread_create(&thread, NULL, push_all, &r), 0);
    for (uintptr_t i = 1; i <= N_ITEM; i++) {
        void *item;
        while (!(item = ring_pop(&r))) sched_yield();
        if ((uintptr_t)item != i) fail_msg("%zu instead of %zu", (size_t)(uintptr_t)item, (size_t)i);
    }
    pthread_join(thread, NULL);
    assert_null(ring_pop(&r));
    ring_deinit(&r);
}

static void a_full_ring_says_so(void **state) {
    (void)state;
    struct ring r;
    int x;
    ring_init(&r, 3);                             /* four */
    for (int i = 0; i < 4; i++) assert_true(ring_push(&r, &x));
    assert_false(ring_push(&r, &x));
    assert_int_equal(ring_count(&r), 4);
    assert_ptr_equal(ring_pop(&r), &x);
    assert_true(ring_push(&r, &x));
    ring_deinit(&r);
}

/* ---- marks ---- */

static void marks_count_and_have_names(void **state) {
    (void)state;
    uint64_t before = mark_count(MARK_node_lost);
    MARK(node_lost);
    MARK(node_lost);
    assert_int_equal(mark_count(MARK_node_lost), before + 2);
    assert_string_equal(mark_name(MARK_node_lost), "node_lost");
    assert_string_equal(mark_name(MARK_N), "?");
}

/* ---- peers ---- */

static void the_round_trip_needs_no_common_clock(void **state) {
    (void)state;
    struct peer a = { 0 }, b = { 0 };
    struct msg_ping ping;
    uint64_t a_ns = 5000000000, b_ns = 900000000;
    peer_start(&a, 1, "b", 1, a_ns);
    peer_start(&b, 1, "a", 2, b_ns);
    peer_fill_ping(&a, &ping, a_ns);
    assert_int_equal(ping.echo_us, 0);
    peer_on_ping(&b, &ping, b_ns + 3000000);      /* 3 ms on the way */
    assert_int_equal(b.rtt_us, 0);
    peer_fill_ping(&b, &ping, b_ns + 203000000);  /* held for 200 ms */
    peer_on_ping(&a, &ping, a_ns + 207000000);    /* 4 ms back */
    assert_int_equal(a.rtt_us, 7000);
}

static void silence_is_what_makes_a_peer_dead(void **state) {
    (void)state;
    struct peer p = { 0 };
    struct peer_pace pace = { 500, 5 };
    peer_start(&p, 1, "x", 1, 10000);
    assert_false(peer_is_silent(&p, &pace, 12499));
    assert_true(peer_is_silent(&p, &pace, 12500));
    assert_false(peer_ping_is_due(&p, &pace, 10499));
    assert_true(peer_ping_is_due(&p, &pace, 10500));
    assert_int_equal(peer_deadline_ns(&p, &pace), 10500);
}

static bool probe(struct probe_rows *rows, uint32_t link, bool last, uint64_t ms,
                  struct msg_probe_done *done) {
    struct msg_probe p = { .id = 5, .last = last };
    return probe_arrives(rows, link, &p, 1000, ms * 1000000, done);
}

static void the_first_probe_of_a_row_only_starts_the_clock(void **state) {
    (void)state;
    struct probe_rows rows = { 0 };
    struct msg_probe_done done;
    assert_true(probe(&rows, 7, true, 10, &done));    /* one alone: a round trip */
    assert_true(done.id == 5 && done.bytes == 0 && done.elapsed_us == 1);
    assert_false(probe(&rows, 7, false, 20, &done));
    assert_false(probe(&rows, 8, false, 21, &done));  /* of another link, between them */
    assert_false(probe(&rows, 7, false, 22, &done));
    assert_true(probe(&rows, 7, true, 24, &done));
    assert_true(done.bytes == 2000 && done.elapsed_us == 4000);
    assert_true(probe(&rows, 8, true, 31, &done));
    assert_true(done.bytes == 1000 && done.elapsed_us == 10000);
}

static void rows_of_probes_are_bounded(void **state) {
    (void)state;
    struct probe_rows rows = { 0 };
    struct msg_probe_done done;
    for (uint32_t link = 1; link <= PROBES_MAX + 1; link++) probe(&rows, link, false, link, &done);
    assert_true(probe(&rows, 1, true, 100, &done));   /* the oldest gave way and begins anew */
    assert_int_equal(done.bytes, 0);
    assert_true(probe(&rows, PROBES_MAX + 1, true, 100, &done));
    assert_int_equal(done.bytes, 1000);
}

static void names_are_short_and_plain(void **state) {
    (void)state;
    char longest[MSG_NAME_MAX], too_long[MSG_NAME_MAX + 1];
    memset(longest, 'a', sizeof longest - 1);
    memset(too_long, 'a', sizeof too_long - 1);
    longest[sizeof longest - 1] = too_long[sizeof too_long - 1] = 0;
    assert_true(peer_name_is_valid("studio-1.local_2"));
    assert_true(peer_name_is_valid(longest));
    assert_false(peer_name_is_valid(too_long));
    assert_false(peer_name_is_valid(""));
    assert_false(peer_name_is_valid("two words"));
    assert_false(peer_name_is_valid("line\nbreak"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_move_in_the_table_writes_its_line),
        TEST(a_move_outside_the_table_ends_the_program),
        TEST(a_handle_dies_with_its_object),
        TEST(a_pool_gives_what_it_has_and_no_more),
        TEST(a_ring_keeps_order_between_two_threads),
        TEST(a_full_ring_says_so),
        TEST(marks_count_and_have_names),
        TEST(the_round_trip_needs_no_common_clock),
        TEST(silence_is_what_makes_a_peer_dead),
        TEST(the_first_probe_of_a_row_only_starts_the_clock),
        TEST(rows_of_probes_are_bounded),
        TEST(names_are_short_and_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
