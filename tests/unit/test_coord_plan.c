/* The coordinator core before and beside its plans: links are measured first, and a plan that was only a
 * substitute gives way when the wanted one is possible again. */
#include "tests/harness/test.h"

#include "coordinator/core.h"

enum { MS_NS = 1000000, A = 11, B = 12 };          /* links of two nodes, and their incarnations */

static struct {
    struct coord *coord;
    struct coord_outs outs;
    uint64_t now_ns;
    struct msg msg;
    bool goes_on;                                 /* the planner does with one node, as a substitute */
    struct msg_link known;                        /* what it was told of the way from node 0 to "b" */
} b;

/* Two stages of a layer each, or one of both. */
static int plan(void *ctx, const struct coord_node_info *node, uint32_t n_node, struct coord_plan *out,
                struct err *e) {
    (void)ctx;
    b.known = (struct msg_link){ .rtt_us = 0 };
    for (uint32_t i = 0; i < node[0].n_link; i++)
        if (strcmp(node[0].link[i].name, "b") == 0) b.known = node[0].link[i];
    if (n_node < 2 && !b.goes_on) return err_set(e, ERR_NOMEM, "%u nodes are too few", n_node);
    *out = (struct coord_plan){ .n_stage = MIN(2, n_node), .n_slot = 4, .n_ctx_max = 64, .n_rows_max = 32,
                                .n_credit = 2, .substitute = n_node < 2 };
    for (uint32_t i = 0; i < out->n_stage; i++)
        out->stage[i] = (struct coord_plan_stage){ .node = i, .layer_begin = i, .layer_end = i + 1 };
    return 0;
}

static bool wanted(void *ctx, const struct coord_node_info *node, uint32_t n_node) {
    (void)ctx;
    (void)node;
    return n_node >= 2;
}

static int sample(void *ctx, const struct coord_sample *s, struct coord_sampled *out) {
    (void)ctx;
    (void)s;
    *out = (struct coord_sampled){ .token = 1 };
    return 0;
}

static int open_bench(uint32_t survey_ms) {
    struct coord_config c;
    memset(&b, 0, sizeof b);
    coord_config_init(&c);
    snprintf(c.name, sizeof c.name, "c");
    c.incarnation = 5;
    c.n_node_max = 3;
    c.n_node_expected = 2;
    c.survey_ms = survey_ms;
    c.plan = plan;
    c.wanted = wanted;
    c.sample = sample;
    b.coord = coord_new(&c);
    coord_outs_init(&b.outs, &c);
    b.now_ns = 1000 * (uint64_t)MS_NS;
    return 0;
}

static int set_up(void **state) {
    (void)state;
    return open_bench(0);
}

static int set_up_surveying(void **state) {
    (void)state;
    return open_bench(3000);
}

static int tear_down(void **state) {
    (void)state;
    coord_free(b.coord);
    coord_outs_deinit(&b.outs);
    return 0;
}

static void step(struct coord_event ev) {
    ev.now_ns = b.now_ns;
    coord_step(b.coord, &ev, &b.outs);
    coord_check(b.coord);
}

static void tick(uint64_t ms) {
    b.now_ns += ms * MS_NS;
    step((struct coord_event){ .kind = COORD_EV_TICK });
}

static struct coord_view view(void) {
    return coord_view(b.coord);
}

static struct msg *msg_from(enum msg_kind kind, uint64_t incarnation) {
    b.msg = (struct msg){ .kind = kind, .epoch = view().epoch, .incarnation = incarnation };
    return &b.msg;
}

static void deliver(uint32_t link) {
    step((struct coord_event){ .kind = COORD_EV_MSG, .link = link, .msg = &b.msg });
}

static const struct msg *sent_nth(enum msg_kind kind, uint32_t nth) {
    for (uint32_t i = 0; i < b.outs.n; i++)
        if (b.outs.item[i].kind == COORD_OUT_SEND && b.outs.item[i].msg->kind == kind && nth-- == 0)
            return b.outs.item[i].msg;
    return NULL;
}

static const struct msg *sent(enum msg_kind kind) {
    return sent_nth(kind, 0);
}

static void hello(uint32_t link, const char *name, uint64_t incarnation) {
    struct msg_hello *h = &msg_from(MSG_HELLO, incarnation)->u.hello;
    *h = (struct msg_hello){ .magic = MSG_MAGIC, .version_min = 1, .version_max = 1, .role = MSG_ROLE_NODE };
    snprintf(h->name, sizeof h->name, "%s", name);
    snprintf(h->address, sizeof h->address, "tcp://%s:1", name);
    deliver(link);
}

/* The process at this link lives. */
static void ping_as(uint32_t link, uint64_t incarnation) {
    msg_from(MSG_PING, incarnation);
    deliver(link);
}

static void ready(uint32_t link, uint64_t incarnation) {
    msg_from(MSG_READY, incarnation);
    deliver(link);
}

static void lose(uint32_t link) {
    step((struct coord_event){ .kind = COORD_EV_LINK_CLOSED, .link = link });
}

/* ---- links, before a plan ---- */

static void ping(uint32_t link) {
    ping_as(link, link);
}

/* Node `link` answers survey `id` with one link. */
static void links(uint32_t link, uint32_t id, const char *to, uint32_t rtt_us, uint64_t bytes_per_s) {
    struct msg_link l = { .rtt_us = rtt_us, .bytes_per_s = bytes_per_s };
    snprintf(l.name, sizeof l.name, "%s", to);
    msg_from(MSG_LINKS, link)->u.links = (struct msg_links){ &l, 1, id };
    deliver(link);
}

static void two_nodes_are_asked(void) {
    tick(0);
    hello(A, "a", A);
    hello(B, "b", B);
    const struct msg *m = sent_nth(MSG_SURVEY, 1);
    assert_non_null(m);
    assert_false(m->u.survey.bulk);
    assert_int_equal(m->u.survey.n_hop, 3);
    assert_string_equal(m->u.survey.hop[0].address, "tcp://a:1");
    assert_string_equal(m->u.survey.hop[2].name, "coordinator");
    assert_null(sent(MSG_ASSIGN));
}

static void links_are_measured_before_the_plan(void **state) {
    (void)state;
    two_nodes_are_asked();
    uint32_t id = sent(MSG_SURVEY)->u.survey.id;
    links(A, id + 7, "b", 1, 0);                  /* of another survey */
    links(B, id, "a", 210, 0);
    assert_null(sent(MSG_SURVEY));
    links(A, id, "b", 200, 0);                    /* all have answered: a sends to b, b did not reach us */
    assert_null(sent_nth(MSG_SURVEY, 1));
    const struct msg *m = sent(MSG_SURVEY);
    assert_true(m->u.survey.bulk && m->u.survey.n_hop == 1);
    assert_string_equal(m->u.survey.hop[0].name, "b");
    links(A, m->u.survey.id, "b", 0, 5000);
    m = sent(MSG_SURVEY);                         /* b sends to a */
    assert_string_equal(m->u.survey.hop[0].name, "a");
    assert_null(sent(MSG_ASSIGN));
    links(B, m->u.survey.id, "a", 0, 6000);
    assert_non_null(sent_nth(MSG_ASSIGN, 1));
    assert_int_equal(view().state, CL_LOADING);
    assert_true(b.known.rtt_us == 200 && b.known.bytes_per_s == 5000);
}

static void a_plan_does_not_wait_long_for_links(void **state) {
    (void)state;
    two_nodes_are_asked();
    links(A, sent(MSG_SURVEY)->u.survey.id, "b", 200, 0);
    for (int i = 0; i < 14; i++) tick(100), ping(A), ping(B);
    assert_null(sent(MSG_ASSIGN));
    tick(100);                                    /* b says nothing: on to what a knows */
    const struct msg *m = sent(MSG_SURVEY);
    assert_true(m && m->u.survey.bulk);
    for (int i = 0; i < 15; i++) tick(100);
    assert_non_null(sent(MSG_ASSIGN));
    assert_true(b.known.rtt_us == 200 && b.known.bytes_per_s == 0);
}

static void a_survey_goes_on_without_who_is_lost(void **state) {
    (void)state;
    two_nodes_are_asked();
    links(A, sent(MSG_SURVEY)->u.survey.id, "b", 200, 0);
    lose(B);
    assert_int_equal(view().state, CL_WAITING);
    assert_true(b.outs.deadline_ns > b.now_ns);   /* waits, and does not spin */
    hello(B, "b", 77);                            /* another process: the way to it is not known any more */
    const struct msg *m = sent_nth(MSG_SURVEY, 1);
    assert_true(m && !m->u.survey.bulk);
    uint32_t id = m->u.survey.id;
    links(A, id, "c", 1, 0);
    msg_from(MSG_LINKS, 77)->u.links = (struct msg_links){ NULL, 0, id };
    deliver(B);
    assert_non_null(sent_nth(MSG_ASSIGN, 1));
    assert_int_equal(b.known.rtt_us, 0);
}

static void who_was_asked_once_is_not_asked_again(void **state) {
    links_are_measured_before_the_plan(state);
    msg_from(MSG_FAILED, B)->u.failed.code = ERR_NOMEM;
    deliver(B);
    assert_int_equal(view().state, CL_WAITING);
    for (int i = 0; i < 70 && view().state == CL_WAITING; i++) {
        tick(500);
        assert_null(sent(MSG_SURVEY));
        ping(A), ping(B);
    }
    assert_int_equal(view().state, CL_LOADING);   /* both again, when b's half minute is over */
}

/* ---- the wanted plan ---- */

/* Serves with one stage of two. */
static void serve_without_b(void) {
    tick(0);
    hello(A, "a", A);
    hello(B, "b", B);
    ready(A, A);
    ready(B, B);
    assert_int_equal(view().state, CL_SERVING);
    b.goes_on = true;
    lose(B);
    for (int i = 0; i < 50; i++) tick(100), ping(A);
    tick(1);
    assert_int_equal(view().state, CL_LOADING);
    ready(A, A);
    assert_int_equal(view().state, CL_SERVING);
    assert_int_equal(view().plan->n_stage, 1);
}

static void the_wanted_plan_is_back_when_its_machine_is(void **state) {
    (void)state;
    serve_without_b();
    static const int32_t prompt[3];
    step((struct coord_event){ .kind = COORD_EV_SUBMIT,
                               .submit = { .tag = 1, .token = prompt, .n_token = 3, .n_new_max = 12 } });
    hello(B, "b", 77);
    assert_int_equal(view().state, CL_SERVING);   /* it may be gone again at once */
    for (int i = 0; i < 4; i++) tick(500), ping(A), ping_as(B, 77);
    assert_int_equal(view().state, CL_LOADING);
    assert_int_equal(view().plan->n_stage, 2);
    ready(A, A);
    ready(B, 77);
    assert_int_equal(view().state, CL_SERVING);
    assert_non_null(sent(MSG_WORK));              /* the request goes on */
    assert_int_equal(sent(MSG_WORK)->u.work.n_row, 3);
    tick(400);
    assert_int_equal(view().state, CL_SERVING);
}

static void a_machine_that_cannot_load_does_not_end_what_works_again_and_again(void **state) {
    (void)state;
    serve_without_b();
    hello(B, "b", 77);
    uint32_t n_try = 0;
    for (uint32_t i = 0; i < 400; i++) {          /* 200 seconds */
        enum cluster_state before = view().state;
        tick(500), ping(A), ping_as(B, 77);
        if (view().state != CL_LOADING) continue;
        if (before == CL_SERVING || view().plan->n_stage == 2) {
            n_try++;
            struct msg *m = msg_from(MSG_FAILED, 77);
            m->u.failed.code = ERR_NOMEM;
            deliver(B);
            for (int k = 0; k < 20 && view().state != CL_LOADING; k++)
                tick(400), ping(A), ping_as(B, 77);
        }
        ready(A, A);
        assert_int_equal(view().state, CL_SERVING);
    }
    assert_in_range(n_try, 2, 5);
}

#define SURVEYS(name) cmocka_unit_test_setup_teardown(name, set_up_surveying, tear_down)
#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        SURVEYS(links_are_measured_before_the_plan),
        SURVEYS(a_plan_does_not_wait_long_for_links),
        SURVEYS(a_survey_goes_on_without_who_is_lost),
        SURVEYS(who_was_asked_once_is_not_asked_again),
        CASE(the_wanted_plan_is_back_when_its_machine_is),
        CASE(a_machine_that_cannot_load_does_not_end_what_works_again_and_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
