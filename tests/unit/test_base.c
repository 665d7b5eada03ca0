/* The small parts of common/base and common/sys: err, buf, arena, rng, log, clock. */
#include "tests/harness/test.h"

#include "common/base/arena.h"
#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/rng.h"
#include "common/sys/clock.h"
#include "common/sys/term.h"

/* ---- err ---- */

static void context_goes_before_the_text(void **state) {
    (void)state;
    struct err e;
    assert_int_equal(err_set(&e, ERR_CORRUPT, "magic is %d", 7), ERR_CORRUPT);
    assert_int_equal(err_wrap(&e, ERR_CORRUPT, "file %s", "x.gguf"), ERR_CORRUPT);
    assert_string_equal(e.text, "file x.gguf: magic is 7");
    assert_string_equal(err_name(e.code), "ERR_CORRUPT");
}

static void an_error_may_have_no_listener(void **state) {
    (void)state;
    assert_int_equal(err_set(NULL, ERR_IO, "x"), ERR_IO);
    assert_int_equal(err_wrap(NULL, ERR_IO, "x"), ERR_IO);
}

static void long_error_texts_are_cut_and_ended(void **state) {
    (void)state;
    struct err e;
    char text[2 * ERR_TEXT_MAX];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    err_set(&e, ERR_IO, "%s", text);
    for (int i = 0; i < 100; i++) err_wrap(&e, ERR_IO, "context %d", i);
    assert_true(strlen(e.text) < ERR_TEXT_MAX);
    assert_memory_equal(e.text, "context 99: context 98: ", 24);
}

/* ---- buf ---- */

static void a_buffer_is_a_string_at_any_time(void **state) {
    (void)state;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_string_equal(b.data, "");
    buf_printf(&b, "%d-%s", 42, "x");
    buf_add_char(&b, '!');
    assert_string_equal(b.data, "42-x!");
    for (int i = 0; i < 1000; i++) buf_add_text(&b, "0123456789");
    assert_int_equal(b.size, 10005);
    assert_int_equal(b.data[b.size], 0);
    buf_drop(&b, 10000);
    assert_string_equal(b.data, "56789");
    buf_cut(&b, 2);
    assert_string_equal(b.data, "56");
    char *text = buf_detach(&b);
    assert_string_equal(text, "56");
    assert_int_equal(b.size, 0);
    free(text);
    buf_deinit(&b);
}

static void a_buffer_refuses_what_is_over_its_limit_and_remembers(void **state) {
    (void)state;
    struct buf b;
    buf_init(&b, 8);
    assert_int_equal(buf_add_text(&b, "12345678"), 0);
    assert_int_equal(buf_add_char(&b, '9'), ERR_LIMIT);
    assert_int_equal(buf_add(&b, "", 0), ERR_LIMIT);
    assert_int_equal(buf_printf(&b, "x"), ERR_LIMIT);
    assert_null(buf_grow(&b, SIZE_MAX));
    assert_null(buf_detach(&b));
    assert_string_equal(b.data, "12345678");
    buf_clear(&b);
    assert_int_equal(buf_add_text(&b, "again"), 0);
    buf_deinit(&b);
    buf_deinit(&b);
}

static void an_unused_buffer_detaches_an_empty_string(void **state) {
    (void)state;
    struct buf b;
    buf_init(&b, 0);
    buf_clear(&b);
    buf_drop(&b, 0);
    buf_cut(&b, 0);
    char *text = buf_detach(&b);
    assert_string_equal(text, "");
    free(text);
    buf_deinit(&b);
}

/* ---- arena ---- */

static void arena_pieces_are_zeroed_aligned_and_apart(void **state) {
    (void)state;
    struct arena a;
    unsigned char *piece[500];
    arena_init(&a, 64 << 20);
    for (int i = 0; i < 500; i++) {
        size_t size = (size_t)(i * 7) % 3000 + (i == 250 ? 200000 : 0);
        piece[i] = arena_alloc(&a, size);
        assert_non_null(piece[i]);
        assert_int_equal((uintptr_t)piece[i] % ARENA_ALIGN, 0);
        for (size_t k = 0; k < size; k++) assert_int_equal(piece[i][k], 0);
        memset(piece[i], i & 255, size);
    }
    for (int i = 0; i < 500; i++) {
        size_t size = (size_t)(i * 7) % 3000 + (i == 250 ? 200000 : 0);
        for (size_t k = 0; k < size; k++) assert_int_equal(piece[i][k], i & 255);
    }
    arena_deinit(&a);
    arena_deinit(&a);
}

static void arena_stops_at_its_limit_and_at_overflow(void **state) {
    (void)state;
    struct arena a;
    arena_init(&a, 64);
    assert_null(arena_alloc(&a, SIZE_MAX));
    assert_null(arena_alloc(&a, SIZE_MAX - 3));
    assert_null(arena_array(&a, SIZE_MAX / 2, 3));
    assert_null(arena_text(&a, "x", SIZE_MAX));
    assert_non_null(arena_alloc(&a, 48));
    assert_string_equal(arena_text(&a, "fifteen chars..", 15), "fifteen chars..");
    assert_null(arena_alloc(&a, 0));
    arena_deinit(&a);
}

/* ---- rng ---- */

static void equal_seeds_give_these_very_numbers(void **state) {
    (void)state;
    struct rng r;
    rng_init(&r, 1, 0);
    assert_int_equal(rng_u64(&r), UINT64_C(0xdab60526e6cb423e));
    assert_int_equal(rng_at(7, 70), UINT64_C(0xe80384c8819126b2));
    assert_int_equal(f32_bits(rng_normal(&r)), 0x3ed223b2);
}

static void streams_and_neighbouring_seeds_do_not_share_numbers(void **state) {
    (void)state;
    enum { DRAWS = 64, SEQUENCES = 6 };
    uint64_t seen[SEQUENCES * DRAWS];
    int n = 0;
    for (uint64_t seed = 0; seed < 3; seed++) {
        for (uint64_t stream = 0; stream < 2; stream++) {
            struct rng r;
            rng_init(&r, seed, stream);
            for (int i = 0; i < DRAWS; i++) seen[n++] = rng_u64(&r);
        }
    }
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < i; k++) assert_true(seen[i] != seen[k]);
    }
}

static void below_is_in_range_and_even(void **state) {
    (void)state;
    struct rng r;
    int count[7] = { 0 };
    rng_init(&r, 3, 0);
    for (int i = 0; i < 70000; i++) count[rng_below(&r, 7)]++;
    for (int i = 0; i < 7; i++) assert_in_range(count[i], 9600, 10400);      /* four deviations */
    for (int i = 0; i < 100; i++) assert_int_equal(rng_below(&r, 1), 0);
    assert_true(rng_unit(UINT64_MAX) < 1.0);
    assert_true(rng_unit(0) == 0.0);
}

static void normal_numbers_have_mean_0_and_deviation_1(void **state) {
    (void)state;
    enum { DRAWS = 200000 };
    struct rng r;
    double sum = 0, squares = 0;
    rng_init(&r, 4, 0);
    for (int i = 0; i < DRAWS; i++) {
        double x = rng_normal(&r);
        sum += x;
        squares += x * x;
    }
    assert_true(sum / DRAWS > -0.01 && sum / DRAWS < 0.01);
    assert_true(squares / DRAWS > 0.985 && squares / DRAWS < 1.015);
}

/* ---- log ---- */

static char log_seen[4096];

static void log_keep(const char *line, size_t length) {
    snprintf(log_seen, sizeof log_seen, "%.*s", (int)length, line);
}

static void a_log_line_has_one_line_whatever_is_in_it(void **state) {
    (void)state;
    log_set_sink(log_keep);
    log_warn("test", "a\nb\033[31m%s", "c");
    assert_non_null(strstr(log_seen, " warn  test: a?b?[31mc\n"));
    log_seen[0] = 0;
    log_debug("test", "quiet by default");
    assert_string_equal(log_seen, "");
    assert_int_equal(log_set_level_name("loud"), ERR_INVALID);
    assert_int_equal(log_set_level_name("debug"), 0);
    log_debug("test", "%s", "now heard");
    assert_non_null(strstr(log_seen, "now heard\n"));
    log_set_level(LOG_INFO);
    log_set_sink(NULL);
}

static void a_log_line_is_cut_at_its_limit(void **state) {
    (void)state;
    char text[3000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    log_set_sink(log_keep);
    log_error("test", "%s", text);
    assert_int_equal(strlen(log_seen), LOG_LINE_MAX + 1);
    assert_int_equal(log_seen[LOG_LINE_MAX], '\n');
    log_error(text, "area too long");
    assert_true(strlen(log_seen) <= LOG_LINE_MAX + 1);
    log_set_sink(NULL);
}

/* ---- sys ---- */

static void the_clock_goes_forward_while_we_sleep(void **state) {
    (void)state;
    uint64_t start = clock_now_ns();
    clock_sleep_ms(20);
    uint64_t passed = clock_now_ns() - start;
    assert_in_range(passed, 20000000, 5000000000);
    assert_true(clock_seconds_since(start) >= 0.02);
    assert_true(clock_wall_ms() > UINT64_C(1700000000000));
}

static void a_file_is_no_terminal(void **state) {
    (void)state;
    FILE *f = tmpfile();
    assert_non_null(f);
    assert_false(term_is_terminal(f));
    assert_int_equal(term_columns(f), TERM_COLUMNS);
    assert_string_equal(term_style(f, TERM_RED), "");
    fclose(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(context_goes_before_the_text),
        TEST(an_error_may_have_no_listener),
        TEST(long_error_texts_are_cut_and_ended),
        TEST(a_buffer_is_a_string_at_any_time),
        TEST(a_buffer_refuses_what_is_over_its_limit_and_remembers),
        TEST(an_unused_buffer_detaches_an_empty_string),
        TEST(arena_pieces_are_zeroed_aligned_and_apart),
        TEST(arena_stops_at_its_limit_and_at_overflow),
        TEST(equal_seeds_give_these_very_numbers),
        TEST(streams_and_neighbouring_seeds_do_not_share_numbers),
        TEST(below_is_in_range_and_even),
        TEST(normal_numbers_have_mean_0_and_deviation_1),
        TEST(a_log_line_has_one_line_whatever_is_in_it),
        TEST(a_log_line_is_cut_at_its_limit),
        TEST(the_clock_goes_forward_while_we_sleep),
        TEST(a_file_is_no_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
