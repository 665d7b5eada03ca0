/* The service with its stage in the same process: tokens are those of the engine, every request ends once,
 * limits and ends say what they are. */
#include "tests/harness/service_rig.h"

/* ---- tests ---- */

static void greedy_tokens_are_those_of_the_engine(void **state) {
    (void)state;
    struct client c;
    int32_t prompt[PROMPT];
    client_init(&c);
    prompt_of(prompt, PROMPT, 1);
    struct service_request r = request_of(prompt, PROMPT, 24, &c);
    generate_and_check(&r, &c, 24);
    assert_int_equal(c.done.n_prompt, PROMPT);
    assert_int_equal(c.done.n_output, 24);
}

static void sampled_tokens_logprobs_and_alternatives_are_those_of_the_engine(void **state) {
    (void)state;
    static const struct { float temperature, top_p, min_p, repetition, presence; int top_k; } cases[] = {
        { 1, 1, 0, 1, 0, 0 }, { 0.7f, 0.9f, 0, 1, 0, 0 }, { 1.5f, 1, 0.1f, 1, 0, 0 }, { 1, 1, 0, 1, 0, 20 },
        { 1, 1, 0, 1.3f, 0.5f, 0 }, { 0, 1, 0, 1.5f, 0, 0 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct client c;
        int32_t prompt[PROMPT];
        struct sampler_bias bias[] = { { 3, 2.5f }, { 17, -INFINITY }, { 40, -3 } };
        client_init(&c);
        prompt_of(prompt, PROMPT, 2 + i);
        struct service_request r = request_of(prompt, PROMPT, 16, &c);
        r.sampling.temperature = cases[i].temperature;
        r.sampling.top_p = cases[i].top_p;
        r.sampling.min_p = cases[i].min_p;
        r.sampling.top_k = cases[i].top_k;
        r.sampling.repetition = cases[i].repetition;
        r.sampling.presence = cases[i].presence;
        r.sampling.seed = 77 + i;
        r.sampling.logprobs = i % 2 == 0;
        r.sampling.n_top = i % 2 == 0 ? 5 : 0;
        if (i == 3) r.sampling.bias = bias, r.sampling.n_bias = COUNT_OF(bias);
        generate_and_check(&r, &c, 16);
    }
}

static void many_requests_at_once_get_what_each_would_get_alone(void **state) {
    (void)state;
    enum { N = 24 };
    static struct client c[N];
    static int32_t prompt[N][PROMPT];
    struct service_request r[N];
    uint32_t n = effort() == EFFORT_QUICK ? 12 : N;   /* six slots */
    for (uint32_t i = 0; i < n; i++) {
        client_init(&c[i]);
        prompt_of(prompt[i], PROMPT, 100 + i);
        r[i] = request_of(prompt[i], 1 + i * 5 % PROMPT, 12, &c[i]);
        r[i].sampling.temperature = i % 2 ? 1 : 0;
        r[i].sampling.seed = i;
        submit(&r[i], &c[i]);
    }
    for (uint32_t i = 0; i < n; i++) client_wait(&c[i]);
    for (uint32_t i = 0; i < n; i++) check_equal(&r[i], &c[i], 12);
    assert_true(service_idle(service));
}

static void an_end_id_is_told_and_ends_the_answer(void **state) {
    (void)state;
    struct client c, again;
    int32_t prompt[PROMPT];
    client_init(&c);
    client_init(&again);
    prompt_of(prompt, PROMPT, 5);
    struct service_request r = request_of(prompt, PROMPT, 10, &c);
    generate_and_check(&r, &c, 10);
    int32_t end = c.token[4].id;
    uint32_t first = 0;
    while (c.token[first].id != end) first++;
    r.end_id = &end;
    r.n_end_id = 1;
    r.listener.ctx = &again;
    submit(&r, &again);
    client_wait(&again);
    assert_int_equal(again.done.end, SERVICE_END_STOP);
    assert_int_equal(again.n_token, first + 1);
    assert_int_equal(again.token[first].id, end);
}

static void a_cancelled_request_ends_soon_and_leaves_nothing_behind(void **state) {
    (void)state;
    struct client c;
    int32_t prompt[PROMPT];
    client_init(&c);
    c.cancel_at = 3;
    prompt_of(prompt, PROMPT, 6);
    struct service_request r = request_of(prompt, PROMPT, TOKENS_MAX, &c);
    submit(&r, &c);
    client_wait(&c);
    assert_int_equal(c.done.end, SERVICE_END_CANCELLED);
    assert_int_equal(c.done.code, ERR_CANCELLED);
    assert_true(c.n_token >= 3 && c.n_token < TOKENS_MAX);
    assert_true(service_idle(service));
    service_cancel(service, c.ticket);                /* late */
    service_cancel(service, 123456789);               /* never there */
}

static void what_cannot_be_is_refused_at_once(void **state) {
    (void)state;
    struct client c;
    struct err e;
    struct service_info info;
    int32_t wrong = -1;
    client_init(&c);
    service_info(service, &info);
    int32_t *longer = calloc(info.n_ctx + 1, sizeof *longer);
    struct service_request r = request_of(longer, info.n_ctx, 1, &c);
    assert_int_equal(service_submit(service, &r, &c.ticket, &e), ERR_LIMIT);
    r.n_token = 0;
    assert_int_equal(service_submit(service, &r, &c.ticket, &e), ERR_INVALID);
    r.token = &wrong;
    r.n_token = 1;
    assert_int_equal(service_submit(service, &r, &c.ticket, &e), ERR_INVALID);
    r.token = longer;
    r.sampling.top_p = 2;
    assert_int_equal(service_submit(service, &r, &c.ticket, &e), ERR_INVALID);
    assert_true(service_idle(service));
    free(longer);
}

static void a_request_takes_as_many_tokens_as_the_context_holds(void **state) {
    (void)state;
    static struct client c;
    struct service_info info;
    client_init(&c);
    service_info(service, &info);
    uint32_t n = info.n_ctx - 30;
    int32_t *prompt = malloc(n * sizeof *prompt);
    prompt_of(prompt, n, 8);
    struct service_request r = request_of(prompt, n, 0, &c);
    submit(&r, &c);
    client_wait(&c);
    assert_int_equal(c.done.end, SERVICE_END_LENGTH);
    assert_int_equal(c.n_token, 30);
    assert_true(c.n_progress > 3);
    free(prompt);
}

static void a_deadline_ends_a_request_with_its_name(void **state) {
    (void)state;
    struct client c;
    int32_t prompt[PROMPT];
    client_init(&c);
    prompt_of(prompt, PROMPT, 9);
    struct service_request r = request_of(prompt, PROMPT, TOKENS_MAX - 1, &c);
    r.deadline_ms = 1;
    submit(&r, &c);
    client_wait(&c);
    assert_int_equal(c.done.end, SERVICE_END_ERROR);
    assert_int_equal(c.done.code, ERR_TIMEOUT);
}

/* Only even tokens, greedily, and three of them. */
struct guide {
    struct service_guide base;
    uint64_t allowed[(1 << 17) / 64];
    uint32_t n_next, n_accept, n_free;
};

static void guide_next(struct service_guide *base, struct service_steer *out) {
    struct guide *g = (struct guide *)base;
    g->n_next++;
    out->greedy = true;
    out->allowed = g->allowed;
}

static bool guide_accept(struct service_guide *base, int32_t id) {
    assert_int_equal(id % 2, 0);
    return ++((struct guide *)base)->n_accept == 3;
}

static void guide_free(struct service_guide *base) {
    ((struct guide *)base)->n_free++;
}

static void a_guide_decides_what_may_come_and_when_it_is_over(void **state) {
    (void)state;
    static struct guide g = { .base = { guide_next, guide_accept, guide_free } };
    struct client c;
    int32_t prompt[PROMPT];
    for (size_t i = 0; i < COUNT_OF(g.allowed); i++) g.allowed[i] = 0x5555555555555555;
    client_init(&c);
    prompt_of(prompt, PROMPT, 10);
    struct service_request r = request_of(prompt, PROMPT, 50, &c);
    r.sampling.temperature = 1.3f;
    r.take_guide = &g.base;
    submit(&r, &c);
    client_wait(&c);
    assert_int_equal(c.done.end, SERVICE_END_STOP);
    assert_int_equal(c.n_token, 3);
    assert_int_equal(g.n_next, 3);
    assert_int_equal(g.n_accept, 3);
    assert_int_equal(g.n_free, 1);
}

static void the_status_is_a_document_that_adds_up(void **state) {
    (void)state;
    struct buf b;
    struct err e;
    struct service_totals t;
    buf_init(&b, 1 << 20);
    assert_fine(service_status(service, &b, &e), &e);
    assert_non_null(strstr(b.data, "\"state\": \"serving\""));
    assert_non_null(strstr(b.data, "\"layers\": [0, "));
    service_totals(service, &t);
    uint64_t parts = t.wait_us + t.queue_us + t.compute_us + t.hold_us + t.wire_us + t.sample_us;
    assert_true(t.n_output_token > 100 && t.wall_us > 0);
    assert_true((double)parts >= 0.98 * (double)t.wall_us && (double)parts <= 1.02 * (double)t.wall_us);
    buf_deinit(&b);
}

/* The last one: it ends the service. */
static void stopping_ends_what_runs_with_a_typed_error(void **state) {
    (void)state;
    enum { N = 12 };
    static struct client c[N];
    int32_t prompt[PROMPT];
    struct err e;
    for (uint32_t i = 0; i < N; i++) {
        client_init(&c[i]);
        prompt_of(prompt, PROMPT, 20 + i);
        struct service_request r = request_of(prompt, PROMPT, TOKENS_MAX - 1, &c[i]);
        submit(&r, &c[i]);
    }
    service_drain(service);
    struct service_request r = request_of(prompt, PROMPT, 5, &c[0]);
    assert_int_equal(service_submit(service, &r, &c[0].ticket, &e), ERR_STALE);
    service_stop(service);
    service = NULL;
    for (uint32_t i = 0; i < N; i++) {
        client_wait(&c[i]);
        assert_int_equal(c[i].done.end, SERVICE_END_ERROR);
        assert_int_equal(c[i].done.code, ERR_CANCELLED);
    }
}

/* ---- around them ---- */

static int open_all(void **state) {
    (void)state;
    struct err e;
    rig_open(512);
    struct service_config config = { .model_path = path, .local_stage = true, .local = &local_stage,
                                     .n_ctx = 512, .n_slot = 6, .n_rows_max = 64, .n_threads = 1 };
    assert_fine(service_start(&service, &config, &e), &e);
    wait_for(SERVICE_SERVING);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    service_stop(service);
    rig_close();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(greedy_tokens_are_those_of_the_engine),
        TEST(sampled_tokens_logprobs_and_alternatives_are_those_of_the_engine),
        TEST(many_requests_at_once_get_what_each_would_get_alone),
        TEST(an_end_id_is_told_and_ends_the_answer),
        TEST(a_cancelled_request_ends_soon_and_leaves_nothing_behind),
        TEST(what_cannot_be_is_refused_at_once),
        TEST(a_request_takes_as_many_tokens_as_the_context_holds),
        TEST(a_deadline_ends_a_request_with_its_name),
        TEST(a_guide_decides_what_may_come_and_when_it_is_over),
        TEST(the_status_is_a_document_that_adds_up),
        TEST(stopping_ends_what_runs_with_a_typed_error),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
