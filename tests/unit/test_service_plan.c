/* What the service makes of what nodes tell of themselves: machines, links, what they lack; which plan. */
#include "tests/harness/test.h"

#include "coordinator/service_private.h"

#include "common/base/check.h"

enum { NODES = 3, GB = 1000 * 1000 * 1000 };

static struct {
    struct service *s;
    struct msg_hello hello[NODES];
    struct msg_file file, ends;                   /* the whole model; embedding and head of it */
    struct msg_link link[NODES][NODES];
    struct coord_node_info info[NODES];
    struct coord_plan plan;
} b;

/* Three servers with the whole model, room for it, and memory of different speed. */
static int set_up(void **state) {
    static const uint64_t read[NODES] = { 40, 30, 35 };
    struct hparams hp;
    (void)state;
    memset(&b, 0, sizeof b);
    b.s = xcalloc(1, sizeof *b.s);
    b.s->plan_model = xcalloc(1, sizeof *b.s->plan_model);
    b.s->plan_cluster = xcalloc(1, sizeof *b.s->plan_cluster);
    b.s->config.n_slot = 1, b.s->config.n_ctx = 8192, b.s->config.n_rows_max = 512;
    b.s->model = (struct hash128){ 3, 4 };
    hparams_flash(&hp);
    b.s->hp = hp;
    plan_model_shape(b.s->plan_model, &hp, DTYPE_Q4_K, DTYPE_Q4_K);
    b.file = (struct msg_file){ .model_lo = 3, .model_hi = 4, .has_embed = true, .has_head = true };
    b.ends = b.file;
    memset(b.file.layers, 0xff, sizeof b.file.layers);
    for (uint32_t i = 0; i < NODES; i++) {
        struct msg_hello *h = &b.hello[i];
        *h = (struct msg_hello){ .memory_bytes = (uint64_t)300 * GB, .read_bytes_per_s = read[i] * GB,
                                 .int8_per_s = (uint64_t)20000 * GB, .f32_per_s = (uint64_t)5000 * GB,
                                 .file = &b.file, .n_file = 1 };
        snprintf(h->name, sizeof h->name, "%c", (int)('a' + i));
        b.info[i] = (struct coord_node_info){ .hello = h, .rtt_us = 40 };
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    free(b.s->plan_model);
    free(b.s->plan_cluster);
    free(b.s);
    return 0;
}

/* Node i has measured the way to everybody else and to us. */
static void measured(uint32_t i, uint32_t rtt_us, uint64_t bytes_per_s) {
    for (uint32_t k = 0; k < NODES; k++) {
        struct msg_link *l = &b.link[i][k];
        *l = (struct msg_link){ .rtt_us = rtt_us, .bytes_per_s = bytes_per_s };
        snprintf(l->name, sizeof l->name, "%s", k == i ? MSG_COORDINATOR : b.hello[k].name);
    }
    b.info[i].link = b.link[i];
    b.info[i].n_link = NODES;
}

static void plan_of(uint32_t n_node) {
    struct err e;
    assert_fine(service_plan(b.s, b.info, n_node, &b.plan, &e), &e);
}

static void experts_are_shared_where_measured_links_make_it_faster(void **state) {
    (void)state;
    for (uint32_t i = 0; i < NODES; i++) measured(i, 40, (uint64_t)5 * GB);
    plan_of(NODES);
    assert_int_equal(b.plan.n_stage, 1);
    assert_int_equal(b.plan.stage[0].node, 0);
    assert_int_equal(b.plan.stage[0].n_helper, 2);
    assert_int_equal(b.plan.stage[0].expert_end, 128);
    assert_int_equal(b.plan.stage[0].helper[1].expert_end, 256);
    for (uint32_t i = 0; i < NODES; i++) measured(i, 4000, (uint64_t)5 * GB);
    plan_of(NODES);
    assert_int_equal(b.plan.n_stage, 1);
    assert_int_equal(b.plan.stage[0].n_helper, 0);
}

static void nobody_helps_with_experts_that_he_cannot_get(void **state) {
    (void)state;
    for (uint32_t i = 0; i < NODES; i++) measured(i, 40, (uint64_t)5 * GB);
    b.hello[1].file = b.hello[2].file = &b.ends;
    plan_of(NODES);
    assert_int_equal(b.plan.stage[0].n_helper, 0);
}

/* What one end measured holds for the other; what nobody measured is as slow as the slower end is known
 * to be. */
static void a_link_is_what_either_end_says_of_it(void **state) {
    (void)state;
    const struct plan_cluster *c = b.s->plan_cluster;
    measured(0, 500, 1000000);
    measured(2, 0, 0);
    b.link[2][1].bytes_per_s = 3000000;           /* to b */
    b.link[0][2].bytes_per_s = 0;
    plan_of(NODES);
    assert_true(c->link[0][1].latency_s == 250e-6 && c->link[0][1].bytes_per_s == 1e6);
    assert_true(c->link[1][0].latency_s == 250e-6 && c->link[1][0].bytes_per_s == 1e6);
    assert_true(c->link[1][2].latency_s == 20e-6 && c->link[1][2].bytes_per_s == 3e6);
    assert_true(c->link[0][2].bytes_per_s == 1e6 && c->link[2][0].bytes_per_s == 1e6);
    assert_true(c->coordinator[0].latency_s == 250e-6 && c->coordinator[0].bytes_per_s == 1e6);
    assert_true(c->coordinator[1].latency_s == 20e-6);
}

/* Before anything served there is no substitute: the plan was typed for these machines. */
static void a_plan_by_hand_has_substitutes_only_after_it_served(void **state) {
    (void)state;
    struct err e;
    b.s->config.stages = "b=0-20,a=21-42";
    assert_int_equal(service_plan(b.s, b.info, 1, &b.plan, &e), ERR_NOTFOUND);
    assert_false(service_wanted(b.s, b.info, 1));
    plan_of(2);
    assert_false(b.plan.substitute);
    assert_int_equal(b.plan.stage[0].node, 1);
    plan_of(1);
    assert_true(b.plan.substitute);
    assert_int_equal(b.plan.n_stage, 1);
    assert_false(service_wanted(b.s, b.info, 1));
    assert_true(service_wanted(b.s, b.info, 2));
    plan_of(2);
    assert_false(b.plan.substitute);
    assert_int_equal(b.plan.n_stage, 2);
}

/* Its machines have room for one full context, not for eight: still the plan that was typed, also later. */
static void a_plan_by_hand_stays_when_not_all_streams_have_room(void **state) {
    (void)state;
    b.s->config.stages = "b=0-20,a=21-42";
    b.s->config.n_slot = 8, b.s->config.n_ctx = 1 << 20;
    b.hello[0].memory_bytes = b.hello[1].memory_bytes = (uint64_t)95 * GB;
    for (int i = 0; i < 2; i++) {
        plan_of(NODES);
        assert_false(b.plan.substitute);
        assert_int_equal(b.plan.n_stage, 2);
        assert_int_equal(b.plan.stage[0].layer_end, 21);
    }
    assert_true(service_wanted(b.s, b.info, NODES));
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(experts_are_shared_where_measured_links_make_it_faster),
        CASE(nobody_helps_with_experts_that_he_cannot_get),
        CASE(a_link_is_what_either_end_says_of_it),
        CASE(a_plan_by_hand_has_substitutes_only_after_it_served),
        CASE(a_plan_by_hand_stays_when_not_all_streams_have_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
