/* coord_bench - the coordinator core alone: nodes, results and faults by hand.
 *
 * One bench per program, opened anew for each test: a planner that makes as many stages as it is told, a
 * sampler that counts, a clock that moves when a test says so, and what the core sends. Header only; one
 * thread. */
#ifndef HARNESS_COORD_BENCH_H
#define HARNESS_COORD_BENCH_H

#include "tests/harness/test.h"

#include "coordinator/core.h"

enum { MS_NS = 1000000, A = 11, B = 12 };          /* links of two nodes */

struct bench {
    struct coord_config config;
    struct coord *coord;
    struct coord_outs outs;
    uint64_t now_ns;
    struct msg msg;
    uint32_t n_stage;                             /* the planner makes so many, or fails */
    bool bad_plan, wide;                          /* wide: two layers in the one stage */
    const char *gives;                            /* name of the coordinator as a source */
    int sample_code;
    int32_t next_token, end_token;
    struct handle request;
};

static struct bench b;

static inline int plan(void *ctx, const struct coord_node_info *node, uint32_t n_node, struct coord_plan *out,
                struct err *e) {
    (void)ctx;
    (void)node;
    if (n_node < b.n_stage) return err_set(e, ERR_NOMEM, "%u nodes are too few", n_node);
    out->n_stage = b.n_stage;
    out->model_lo = 7;
    out->model_hi = 8;
    if (b.gives) snprintf(out->source.hop.name, sizeof out->source.hop.name, "%s", b.gives);
    out->n_slot = 4;
    out->n_ctx_max = 64;
    out->n_rows_max = 32;
    out->n_credit = 2;
    if (b.wide) out->stage[0] = (struct coord_plan_stage){ .layer_end = 2 };
    for (uint32_t i = 0; i < b.n_stage && !b.wide; i++)
        out->stage[i] =
            (struct coord_plan_stage){ .node = b.bad_plan ? 0 : i, .layer_begin = i, .layer_end = i + 1 };
    return 0;
}

static inline int sample(void *ctx, const struct coord_sample *s, struct coord_sampled *out) {
    (void)ctx;
    if (b.sample_code && !s->row->whole) return b.sample_code;
    out->token = b.next_token++;
    out->end = out->token == b.end_token;
    out->spent_us = 100;
    return 0;
}

static inline int open_bench(uint32_t n_park_max, uint32_t n_keep_min) {
    memset(&b, 0, sizeof b);
    coord_config_init(&b.config);
    snprintf(b.config.name, sizeof b.config.name, "c");
    b.config.incarnation = 5;
    b.config.n_node_max = 3;
    b.config.n_request_max = 6;
    b.config.n_window_max = 4;
    b.config.n_node_expected = 2;
    b.config.stall_ms = 60000;
    b.config.n_park_max = n_park_max;
    if (n_keep_min) b.config.n_keep_min = n_keep_min;
    b.config.survey_ms = 0;                       /* see test_coord_plan */
    b.config.plan = plan;
    b.config.sample = sample;
    b.coord = coord_new(&b.config);
    coord_outs_init(&b.outs, &b.config);
    b.now_ns = 1000 * (uint64_t)MS_NS;
    b.n_stage = 2;
    b.next_token = 100;
    b.end_token = -1;
    return 0;
}

static inline int set_up(void **state) {
    (void)state;
    return open_bench(0, 0);
}

static inline int set_up_parking(void **state) {
    (void)state;
    return open_bench(3, 0);
}

static inline int set_up_copying(void **state) {
    (void)state;
    return open_bench(3, 3);
}

static inline int tear_down(void **state) {
    (void)state;
    coord_free(b.coord);
    coord_outs_deinit(&b.outs);
    return 0;
}

static inline void step(struct coord_event ev) {
    ev.now_ns = b.now_ns;
    coord_step(b.coord, &ev, &b.outs);
    coord_check(b.coord);
}

static inline void tick(uint64_t ms) {
    b.now_ns += ms * MS_NS;
    step((struct coord_event){ .kind = COORD_EV_TICK });
}

static inline struct coord_view view(void) {
    return coord_view(b.coord);
}

static inline struct msg *msg_from(enum msg_kind kind, uint64_t incarnation) {
    memset(&b.msg, 0, sizeof b.msg);
    b.msg.kind = kind;
    b.msg.epoch = view().epoch;
    b.msg.incarnation = incarnation;
    return &b.msg;
}

static inline void deliver(uint32_t link, struct payload payload) {
    step((struct coord_event){ .kind = COORD_EV_MSG, .link = link, .msg = &b.msg, .take_payload = payload });
}

static const struct coord_out *find(enum coord_out_kind kind, uint32_t nth) {
    for (uint32_t i = 0; i < b.outs.n; i++)
        if (b.outs.item[i].kind == kind && nth-- == 0) return &b.outs.item[i];
    return NULL;
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

static inline void hello_with(uint32_t link, const char *name, uint64_t incarnation,
                              const struct msg_file *file) {
    struct msg *m = msg_from(MSG_HELLO, incarnation);
    m->u.hello = (struct msg_hello){
        .magic = MSG_MAGIC, .version_min = 1, .version_max = 1, .role = MSG_ROLE_NODE
    };
    m->epoch = 0;
    snprintf(m->u.hello.name, sizeof m->u.hello.name, "%s", name);
    snprintf(m->u.hello.address, sizeof m->u.hello.address, "tcp://%s:1", name);
    snprintf(m->u.hello.key, sizeof m->u.hello.key, "%.1s234567890123456789012345678901234567890", name);
    m->u.hello.gives = strcmp(name, "k") != 0;    /* k keeps what it has */
    m->u.hello.file = file;
    m->u.hello.n_file = file != NULL;
    deliver(link, (struct payload){ 0 });
}

static inline void hello(uint32_t link, const char *name, uint64_t incarnation) {
    hello_with(link, name, incarnation, NULL);
}

static inline void say(uint32_t link, enum msg_kind kind) {
    msg_from(kind, link);
    deliver(link, (struct payload){ 0 });
}

static inline void ready(uint32_t link, uint64_t state_tokens) {
    msg_from(MSG_READY, link)->u.ready.state_tokens_max = state_tokens;
    deliver(link, (struct payload){ 0 });
}

static inline void failed(uint32_t link, uint64_t batch) {
    msg_from(MSG_FAILED, link)->u.failed = (struct msg_failed){ .batch = batch, .code = ERR_DEVICE };
    deliver(link, (struct payload){ 0 });
}

static inline void refuse_position(uint32_t link, uint64_t batch, uint64_t seq) {
    msg_from(MSG_WORK_REFUSED, link)->u.work_refused =
        (struct msg_work_refused){ .batch = batch, .seq = seq, .reason = MSG_REFUSED_POSITION };
    deliver(link, (struct payload){ 0 });
}

/* Two nodes that are here; a node's incarnation is its link number. */
static inline void join(void) {
    tick(0);
    hello(A, "a", A);
    hello(B, "b", B);
}

/* Two stages, both ready; 0: state for any number of tokens. */
static inline void serve_with(uint64_t tokens_a, uint64_t tokens_b) {
    join();
    ready(A, tokens_a);
    ready(B, tokens_b);
    assert_int_equal(view().state, CL_SERVING);
}

static inline void serve(void) {
    serve_with(0, 0);
}

/* B goes and comes back as another process. */
static inline void lose_and_regain(void) {
    say(B, MSG_LEAVE);
    assert_int_equal(view().state, CL_WAITING);
    assert_int_equal(view().n_parked, 0);
    assert_null(find(COORD_OUT_DONE, 0));
    hello(B, "b", 1000 + B);
    assert_int_equal(view().state, CL_LOADING);
    assert_int_equal(view().epoch, 2);
    ready(A, 0);
    msg_from(MSG_READY, 1000 + B);
    deliver(B, (struct payload){ 0 });
}

static const int32_t prompt[200];

static inline void submit_text(uint64_t tag, const int32_t *token, uint32_t n_token, uint32_t n_new,
                        uint32_t deadline_ms) {
    struct coord_submit s = {
        .tag = tag, .token = token, .n_token = n_token, .n_new_max = n_new, .deadline_ms = deadline_ms
    };
    step((struct coord_event){ .kind = COORD_EV_SUBMIT, .submit = s });
    if (find(COORD_OUT_ACCEPTED, 0)) b.request = find(COORD_OUT_ACCEPTED, 0)->request;
}

static inline void submit_for(uint64_t tag, uint32_t n_token, uint32_t n_new, uint32_t deadline_ms) {
    submit_text(tag, prompt, n_token, n_new, deadline_ms);
}

static inline void submit(uint64_t tag, uint32_t n_token, uint32_t n_new) {
    submit_for(tag, n_token, n_new, 0);
}

/* The last stage answers a batch with one wanted row. */
static inline void result(uint64_t batch, int32_t row) {
    static struct msg_row_result r;
    static struct msg_timing t[2] = { { .stage_i = 0, .compute_us = 1000, .n_row = 1 },
                                      { .stage_i = 1, .compute_us = 2000, .n_row = 1 } };
    r = (struct msg_row_result){ .row = (uint32_t)row, .bytes = 8 };
    msg_from(MSG_RESULT, B)->u.result =
        (struct msg_result){ .batch = batch, .row = &r, .n_row = row >= 0, .timing = t, .n_timing = 2 };
    deliver(B, (struct payload){ 9, 1, 0, 8 });
}

#endif
