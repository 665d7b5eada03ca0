/* How many rows the next batch gets. A stage here takes FIXED + PER_ROW x rows microseconds. */
#include "tests/harness/test.h"

#include "coordinator/scheduler.h"

enum { FIXED = 4000, PER_ROW = 800 };

static void setup(struct sched *s, uint32_t n_stage, bool measured) {
    struct coord_plan plan = { .n_stage = n_stage, .n_rows_max = 512 };
    sched_plan(s, &plan);
    for (uint32_t i = 0; measured && i < n_stage; i++) {
        const uint32_t rows[] = { 1, 4, 64, 512 };
        for (size_t k = 0; k < COUNT_OF(rows); k++) sched_measured(s, i, rows[k], FIXED + PER_ROW * rows[k]);
    }
}

static struct sched_wish wish(uint32_t n_window) {
    return (struct sched_wish){ .n_window = n_window,
                                .n_group = 2,
                                .n_decode_row = 2,
                                .others_wait = true,
                                .bound_us = 250000,
                                .n_first = 32,
                                .n_min = 8,
                                .n_max = 512,
                                .n_prompt = 4096 };
}

static void between_two_points_time_is_a_straight_line(void **state) {
    (void)state;
    struct sched s;
    setup(&s, 1, true);
    for (uint32_t n = 1; n <= 2048; n *= 2) assert_int_equal(sched_stage_us(&s, 0, n), FIXED + PER_ROW * n);
    assert_int_equal(sched_stage_us(&s, 0, 33), FIXED + PER_ROW * 33);
}

static void nothing_measured_is_nothing_known(void **state) {
    (void)state;
    struct sched s;
    setup(&s, 2, false);
    assert_int_equal(sched_stage_us(&s, 0, 5), 0);
    sched_measured(&s, 0, 4, 1000);
    assert_int_equal(sched_stage_us(&s, 0, 1), 1000); /* not more than what was seen for more */
    assert_int_equal(sched_stage_us(&s, 0, 8), 2000);                  /* one point: in proportion */
    assert_int_equal(sched_sum_us(&s, 4), 0);                          /* the other stage is not known */
    sched_measured(&s, 7, 4, 1000);                                    /* no such stage: ignored */
}

static void a_hiccup_is_forgotten_and_a_change_is_followed(void **state) {
    (void)state;
    struct sched s;
    setup(&s, 1, true);
    sched_measured(&s, 0, 1, 100 * FIXED);
    for (int i = 0; i < 20; i++) sched_measured(&s, 0, 1, 6000);
    assert_in_range(sched_stage_us(&s, 0, 1), 5900, 8000);
}

static void the_plan_says_what_to_expect_before_anything_ran(void **state) {
    (void)state;
    struct coord_plan plan = { .n_stage = 1,
                               .n_rows_max = 512,
                               .stage = { { .us_row_1 = 4800, .us_row_n = 413600 } } };
    struct sched s;
    sched_plan(&s, &plan);
    assert_int_equal(sched_stage_us(&s, 0, 1), 4800);
    assert_int_equal(sched_stage_us(&s, 0, 512), 413600);
    assert_in_range(sched_stage_us(&s, 0, 100), FIXED + PER_ROW * 99, FIXED + PER_ROW * 101);
}

static void one_stage_computes_all_streams_at_once(void **state) {
    (void)state;
    struct sched s;
    setup(&s, 1, true);
    assert_int_equal(sched_groups(&s, 8, 1), 1);
    s.between_us = 50000; /* but not when a batch is away for long */
    assert_int_equal(sched_groups(&s, 8, 1), 2);
}

static void every_stage_gets_a_group_and_long_ways_get_one_more(void **state) {
    (void)state;
    struct sched s;
    setup(&s, 3, true);
    assert_int_equal(sched_groups(&s, 12, 1), 3);
    s.between_us = 9000;
    assert_int_equal(sched_groups(&s, 12, 1), 4);
    setup(&s, 3, false);
    assert_int_equal(sched_groups(&s, 12, 1), 4);                      /* unmeasured: fill the pipeline */
}

static void a_chunk_is_as_large_as_the_bound_allows(void **state) {
    (void)state;
    struct sched s;
    enum sched_cut cut;
    setup(&s, 2, true);
    struct sched_wish w = wish(3);
    uint32_t n = sched_chunk(&s, &w, &cut);
    assert_int_equal(cut, SCHED_BOUNDED);
    /* Three batches meet at the slowest stage; each carries n rows more. */
    assert_true(3 * PER_ROW * n <= w.bound_us);
    assert_true(3 * PER_ROW * (n + 32) > w.bound_us * 7 / 10);
    w.bound_us /= 4;
    assert_true(sched_chunk(&s, &w, &cut) < n);
}

/* The first batches with prompts meet a pipeline that is filling: a stream's own follows behind all others
 * and then goes through every stage. Later ones grow step by step. */
static void chunks_begin_small_and_grow(void **state) {
    (void)state;
    struct sched s;
    enum sched_cut cut;
    setup(&s, 4, true);
    struct sched_wish w = wish(5);
    w.bound_us *= 2, w.n_prompt *= 16;
    uint32_t first = sched_chunk(&s, &w, &cut);
    assert_true(4 * (FIXED + PER_ROW * (first + 2)) + 4 * (FIXED + PER_ROW * (first + 2)) <=
                w.bound_us + 4 * (FIXED + PER_ROW * 2));
    w.n_prefill = 4;
    w.n_least = first;
    uint32_t n = sched_chunk(&s, &w, &cut), last = first;
    assert_true(n > first && n <= first + MAX(first / 4, 16u));
    for (int i = 0; i < 20; i++) w.n_least = last = sched_chunk(&s, &w, &cut);
    assert_true(last > n);
    assert_true(5 * PER_ROW * last <= w.bound_us);
    w.n_least = last;
    assert_int_equal(sched_chunk(&s, &w, &cut), last);
}

static void a_bound_that_no_batch_of_its_own_keeps_joins_the_streams(void **state) {
    (void)state;
    struct sched s;
    enum sched_cut cut;
    setup(&s, 1, true);
    struct sched_wish w = wish(2);
    w.n_group = 1;
    w.bound_us = FIXED + 3 * PER_ROW;             /* less than a second batch costs, whatever it carries */
    uint32_t n = sched_chunk(&s, &w, &cut);
    assert_int_equal(cut, SCHED_JOINED);
    assert_in_range(n, w.n_min, w.bound_us / PER_ROW + w.n_min);
}

static void a_chunk_never_stops_altogether(void **state) {
    (void)state;
    struct sched s;
    enum sched_cut cut;
    setup(&s, 2, true);
    struct sched_wish w = wish(3);
    w.bound_us = 0;
    assert_int_equal(sched_chunk(&s, &w, &cut), w.n_min);
    w.n_max = 3;
    assert_int_equal(sched_chunk(&s, &w, &cut), 3);
}

static void the_first_chunk_is_careful_when_others_wait(void **state) {
    (void)state;
    struct sched s;
    enum sched_cut cut;
    setup(&s, 2, false);
    struct sched_wish w = wish(3);
    assert_int_equal(sched_chunk(&s, &w, &cut), 32);
    assert_int_equal(cut, SCHED_BOUNDED);
    w.others_wait = false;
    assert_true(sched_chunk(&s, &w, &cut) > 32);
    assert_int_equal(cut, SCHED_FREE);
}

/* Microseconds of a stage for n rows: in proportion beside something fixed; with experts that are touched by
 * few rows at first; with much that is fixed. */
static uint64_t affine(uint32_t n) { return FIXED + (uint64_t)PER_ROW * n; }
static uint64_t experts(uint32_t n) { return affine(n) + 16ull * FIXED * MIN(n, 256) / 256; }
static uint64_t heavy(uint32_t n) { return 20ull * FIXED + (uint64_t)PER_ROW * n; }

/* Two stages, n_prompt rows in chunks of n. */
static uint64_t through(uint64_t (*stage_us)(uint32_t), uint32_t n, uint32_t n_prompt) {
    return stage_us(n) * ((n_prompt + n - 1) / n + 1);
}

static void a_lonely_prompt_is_cut_so_that_it_is_through_soonest(void **state) {
    (void)state;
    struct sched s;
    enum sched_cut cut;
    setup(&s, 1, true);
    struct sched_wish w = wish(2);
    w.others_wait = false;
    assert_int_equal(sched_chunk(&s, &w, &cut), 512);              /* one stage: nothing to fill */
    setup(&s, 2, true);
    uint32_t n = sched_chunk(&s, &w, &cut);
    for (uint32_t other = 64; other <= 512; other *= 2)
        assert_true(through(affine, n, w.n_prompt) <= through(affine, other, w.n_prompt));
    w.n_prompt = 64;
    assert_true(sched_chunk(&s, &w, &cut) >= 64);                  /* not cut */
}

/* Whatever a stage takes for so many rows: a few chunks, and the size that is best is known. */
static void the_best_chunk_is_found_by_trying(void **state) {
    (void)state;
    enum sched_cut cut;
    uint64_t (*const truth[])(uint32_t) = { affine, experts, heavy };
    for (uint32_t k = 0; k < 3; k++) {
        struct sched s;
        setup(&s, 2, false);
        for (uint32_t i = 0; i < 2; i++) {              /* decode, and what the plan expects */
            sched_measured(&s, i, 1, (uint32_t)truth[k](1));
            sched_measured(&s, i, 512, (uint32_t)truth[k](512));
        }
        struct sched_wish w = wish(2);
        w.others_wait = false;
        w.n_prompt = 8192;
        uint32_t n = 0;
        for (uint32_t round = 0; round < 24; round++) {
            n = sched_chunk(&s, &w, &cut);
            for (uint32_t i = 0; i < 2; i++) sched_measured(&s, i, n, (uint32_t)truth[k](n));
        }
        for (uint32_t other = 64; other <= 512; other *= 2)
            assert_true(through(truth[k], n, w.n_prompt) * 100 <= through(truth[k], other, w.n_prompt) * 103);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(between_two_points_time_is_a_straight_line),
        TEST(nothing_measured_is_nothing_known),
        TEST(a_hiccup_is_forgotten_and_a_change_is_followed),
        TEST(the_plan_says_what_to_expect_before_anything_ran),
        TEST(one_stage_computes_all_streams_at_once),
        TEST(every_stage_gets_a_group_and_long_ways_get_one_more),
        TEST(a_chunk_is_as_large_as_the_bound_allows),
        TEST(chunks_begin_small_and_grow),
        TEST(a_bound_that_no_batch_of_its_own_keeps_joins_the_streams),
        TEST(a_chunk_never_stops_altogether),
        TEST(the_first_chunk_is_careful_when_others_wait),
        TEST(a_lonely_prompt_is_cut_so_that_it_is_through_soonest),
        TEST(the_best_chunk_is_found_by_trying),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
