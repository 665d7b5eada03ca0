/* The node core alone: every event by hand, every out looked at. What a whole cluster does is the
 * simulation's business. */
#include "tests/harness/test.h"

#include "common/base/mark.h"
#include "node/core.h"

enum { MS_NS = 1000000, PREVIOUS = NODE_LINK_ACCEPTED + 1 };

struct bench {
    struct node_config config;
    struct node *node;
    struct node_outs outs;
    uint64_t now_ns, coordinator;                 /* incarnation */
    struct msg msg;
};

static struct bench b;

static int set_up(void **state) {
    (void)state;
    memset(&b, 0, sizeof b);
    b.config = (struct node_config){ .incarnation = 77,
                                     .ping_ms = 500,
                                     .ping_misses = 5,
                                     .n_batch_max = 8,
                                     .n_slot_max = 4,
                                     .payload_bytes_max = 1 << 20,
                                     .experts_ms = 1000 };
    snprintf(b.config.hello.name, sizeof b.config.hello.name, "n1");
    b.node = node_new(&b.config);
    node_outs_init(&b.outs, &b.config);
    b.now_ns = 1000 * (uint64_t)MS_NS;
    b.coordinator = 5;
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    node_free(b.node);
    node_outs_deinit(&b.outs);
    return 0;
}

static void step(struct node_event ev) {
    ev.now_ns = b.now_ns;
    node_step(b.node, &ev, &b.outs);
    node_check(b.node);
}

static void tick(uint64_t ms) {
    b.now_ns += ms * MS_NS;
    step((struct node_event){ .kind = NODE_EV_TICK });
}

static void deliver(uint32_t link, struct payload payload) {
    step((struct node_event){ .kind = NODE_EV_MSG, .link = link, .msg = &b.msg, .take_payload = payload });
}

static struct msg *msg_from(enum msg_kind kind, uint64_t epoch, uint64_t incarnation) {
    memset(&b.msg, 0, sizeof b.msg);
    b.msg.kind = kind;
    b.msg.epoch = epoch;
    b.msg.incarnation = incarnation;
    return &b.msg;
}

static const struct node_out *find(enum node_out_kind kind, uint32_t nth) {
    for (uint32_t i = 0; i < b.outs.n; i++)
        if (b.outs.item[i].kind == kind && nth-- == 0) return &b.outs.item[i];
    return NULL;
}

static const struct msg *sent(enum msg_kind kind) {
    for (uint32_t i = 0; i < b.outs.n; i++)
        if (b.outs.item[i].kind == NODE_OUT_SEND && b.outs.item[i].msg->kind == kind)
            return b.outs.item[i].msg;
    return NULL;
}

static void welcome(uint32_t link, uint64_t incarnation) {
    struct msg *m = msg_from(MSG_WELCOME, 0, incarnation);
    m->u.welcome = (struct msg_welcome){ .version = 1, .ping_ms = 500, .ping_misses = 5 };
    deliver(link, (struct payload){ 0 });
}

static struct msg_assign assign_of(uint32_t stage_i, uint32_t n_stage) {
    struct msg_assign a = { .model_lo = 1,
                            .stage_i = stage_i,
                            .n_stage = n_stage,
                            .layer_begin = stage_i * 2,
                            .layer_end = stage_i * 2 + 2,
                            .has_embed = stage_i == 0,
                            .has_head = stage_i + 1 == n_stage,
                            .n_slot = 3,
                            .n_ctx_max = 100,
                            .n_rows_max = 32,
                            .n_credit = 1,
                            .n_window = 4 };
    if (!a.has_head) snprintf(a.next.address, sizeof a.next.address, "tcp://next:1");
    return a;
}

static void assign(uint64_t epoch, const struct msg_assign *a) {
    msg_from(MSG_ASSIGN, epoch, b.coordinator)->u.assign = *a;
    deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
}

static void loaded(uint64_t epoch, int code) {
    step((struct node_event){ .kind = NODE_EV_LOADED,
                              .load = { .epoch = epoch,
                                        .code = code,
                                        .text = "no such file",
                                        .ready = { .n_slot = 3, .weights_bytes = 42 } } });
}

static void hello_from(uint32_t link, const char *name, uint64_t incarnation) {
    struct msg *m = msg_from(MSG_HELLO, 1, incarnation);
    m->u.hello = (struct msg_hello){
        .magic = MSG_MAGIC, .version_min = 1, .version_max = 9, .role = MSG_ROLE_NODE
    };
    snprintf(m->u.hello.name, sizeof m->u.hello.name, "%s", name);
    deliver(link, (struct payload){ 0 });
}

/* Serving in epoch 1 as stage i of n. */
static void serve(uint32_t stage_i, uint32_t n_stage) {
    struct msg_assign a = assign_of(stage_i, n_stage);
    tick(0);
    welcome(NODE_LINK_COORDINATOR, b.coordinator);
    assign(1, &a);
    loaded(1, 0);
    if (!a.has_head) welcome(NODE_LINK_NEXT, 9);
    if (stage_i > 0) hello_from(PREVIOUS, "n0", 8);
}

static const int32_t tokens[64];

/* One segment of n tokens of a sequence; the last row is wanted. */
static void work_from(uint32_t link, uint64_t batch, uint64_t done, uint64_t seq, uint32_t pos0,
                      uint32_t n, uint64_t from) {
    static struct msg_seg seg;
    static struct msg_want want;
    seg = (struct msg_seg){ seq, pos0, n, from };
    want = (struct msg_want){ .row = n - 1 };
    struct msg *m = msg_from(MSG_WORK, 1, link == NODE_LINK_COORDINATOR ? b.coordinator : 8);
    m->u.work = (struct msg_work){ .batch = batch,
                                   .batch_done = done,
                                   .seg = &seg,
                                   .token = tokens,
                                   .want = &want,
                                   .n_seg = 1,
                                   .n_row = n,
                                   .n_want = 1 };
    deliver(link, link == NODE_LINK_COORDINATOR ? (struct payload){ 0 }
                                                : (struct payload){ (uint32_t)batch, 1, 0, 64 });
}

static void work(uint32_t link, uint64_t batch, uint64_t done, uint64_t seq, uint32_t pos0, uint32_t n) {
    work_from(link, batch, done, seq, pos0, n, 0);
}

static struct handle run_handle(void) {
    assert_non_null(find(NODE_OUT_RUN, 0));
    return find(NODE_OUT_RUN, 0)->job->handle;
}

static void computed(struct handle job, int code) {
    static struct msg_row_result row;
    step((struct node_event){ .kind = NODE_EV_COMPUTED, .take_payload = { 500, 1, 0, 64 },
                              .done = { .job = job, .code = code, .row = &row, .n_row = 1, .compute_us = 10,
                                        .take_kept = { 600, 1, 0, 400 } } });
}

static void sync_of(uint64_t seq_next, uint64_t done, const uint64_t *seq, uint32_t n_seq,
                    const uint64_t *dead, uint32_t n_dead) {
    msg_from(MSG_SYNC, 1, b.coordinator)->u.sync = (struct msg_sync){ .seq_next = seq_next,
                                                                      .batch_done = done,
                                                                      .seq = seq,
                                                                      .n_seq = n_seq,
                                                                      .dead = dead,
                                                                      .n_dead = n_dead };
    deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
}

/* ---- links ---- */

static void says_hello_until_somebody_answers(void **state) {
    (void)state;
    tick(0);
    assert_non_null(sent(MSG_HELLO));
    assert_int_equal(sent(MSG_HELLO)->u.hello.magic, MSG_MAGIC);
    tick(100);
    assert_null(sent(MSG_HELLO));
    tick(400);
    assert_non_null(sent(MSG_HELLO));
    welcome(NODE_LINK_COORDINATOR, 5);
    assert_true(node_view(b.node).coordinator_up);
    tick(500);
    assert_null(sent(MSG_HELLO));
    assert_non_null(sent(MSG_PING));
}

static void a_silent_coordinator_is_greeted_again(void **state) {
    (void)state;
    serve(0, 1);
    for (int i = 0; i < 4; i++) tick(500);
    assert_true(node_view(b.node).coordinator_up);
    tick(600);
    assert_false(node_view(b.node).coordinator_up);
    assert_non_null(sent(MSG_HELLO));
    assert_int_equal(sent(MSG_HELLO)->u.hello.held_end, 2);            /* the weights are still here */
}

static void a_coordinator_that_leaves_is_waited_for(void **state) {
    (void)state;
    serve(0, 1);
    struct msg *m = msg_from(MSG_LEAVE, 1, b.coordinator);
    snprintf(m->u.leave.text, sizeof m->u.leave.text, "the coordinator stops");
    deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
    assert_string_equal(find(NODE_OUT_NOTICE, 0)->text, "the coordinator stops");
    assert_false(node_view(b.node).coordinator_up);
    tick(500);
    assert_non_null(sent(MSG_HELLO));
    welcome(NODE_LINK_COORDINATOR, 6);
    tick(500);
    assert_int_equal(sent(MSG_PING)->u.ping.counters.memory_used_bytes, 42);
    assert_int_equal(sent(MSG_PING)->u.ping.counters.idle_us, 1000000);
}

static void a_reason_of_refusal_is_told_once(void **state) {
    (void)state;
    tick(0);
    for (int i = 0; i < 3; i++) {
        struct msg *m = msg_from(MSG_REFUSE, 0, 5);
        m->u.refuse.code = ERR_BUSY;
        snprintf(m->u.refuse.text, sizeof m->u.refuse.text, "another node has this name");
        deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
        assert_int_equal(find(NODE_OUT_NOTICE, 0) != NULL, i == 0);
    }
}

static void strangers_are_refused_and_their_bytes_given_back(void **state) {
    (void)state;
    serve(1, 2);
    msg_from(MSG_WORK, 1, 1234);
    deliver(99, (struct payload){ 3, 1, 0, 8 });
    assert_non_null(sent(MSG_REFUSE));
    assert_int_equal(find(NODE_OUT_DROP, 0)->link, 99);
    assert_int_equal(find(NODE_OUT_FREE, 0)->payload.slot, 3);
    struct msg *m = msg_from(MSG_HELLO, 0, 1234);
    m->u.hello = (struct msg_hello){ .magic = 12, .version_min = 1, .version_max = 1 };
    deliver(99, (struct payload){ 0 });
    assert_non_null(sent(MSG_REFUSE));
    hello_from(99, "bad name", 1234);
    assert_non_null(sent(MSG_REFUSE));
}

static void another_process_on_a_known_link_has_to_introduce_itself(void **state) {
    (void)state;
    serve(1, 2);
    msg_from(MSG_PING, 1, 4321);
    deliver(PREVIOUS, (struct payload){ 0 });
    assert_int_equal(sent(MSG_REFUSE)->u.refuse.code, ERR_STALE);
    hello_from(PREVIOUS, "n0", 4321);
    assert_non_null(sent(MSG_WELCOME));
}

/* ---- assignment ---- */

static void loads_tells_and_tells_again(void **state) {
    (void)state;
    struct msg_assign a = assign_of(0, 1);
    tick(0);
    welcome(NODE_LINK_COORDINATOR, 5);
    assign(1, &a);
    assert_int_equal(find(NODE_OUT_LOAD, 0)->epoch, 1);
    step((struct node_event){ .kind = NODE_EV_PROGRESS,
                              .load = { .epoch = 1, .progress = { 10, 20, false } } });
    assert_int_equal(sent(MSG_PROGRESS)->u.progress.done_bytes, 10);
    assign(1, &a);                                /* the coordinator asks how far we are */
    assert_null(find(NODE_OUT_LOAD, 0));
    assert_int_equal(sent(MSG_PROGRESS)->u.progress.done_bytes, 10);
    loaded(1, 0);
    assert_int_equal(sent(MSG_READY)->u.ready.weights_bytes, 42);
    assign(1, &a);
    assert_non_null(sent(MSG_READY));
}

static void a_repeated_assignment_may_name_other_sources(void **state) {
    (void)state;
    struct msg_assign a = assign_of(0, 1);
    struct msg_source source[2] = { { .has_header = true }, { .has_head = true } };
    tick(0);
    welcome(NODE_LINK_COORDINATOR, b.coordinator);
    a.source = source;
    a.n_source = 1;
    assign(1, &a);
    assert_int_equal(find(NODE_OUT_LOAD, 0)->assign->n_source, 1);
    assign(1, &a);
    assert_null(find(NODE_OUT_SOURCES, 0));
    a.n_source = 2;
    assign(1, &a);
    const struct node_out *o = find(NODE_OUT_SOURCES, 0);
    assert_true(o && o->epoch == 1 && o->assign->n_source == 2 && o->assign->source[1].has_head);
    source[0].has_head = true;
    assign(1, &a);
    assert_non_null(find(NODE_OUT_SOURCES, 0));
    a.n_source = 0;
    assign(1, &a);
    assert_int_equal(find(NODE_OUT_SOURCES, 0)->assign->n_source, 0);
    loaded(1, 0);
    a.n_source = 2;
    assign(1, &a);
    assert_null(find(NODE_OUT_SOURCES, 0));        /* it has what it needs */
}

static void files_that_changed_are_told_and_said_in_every_later_hello(void **state) {
    (void)state;
    static const struct msg_file file[2] = { { .bytes = 1 }, { .bytes = 2 } };
    struct node_event ev = { .kind = NODE_EV_FILES, .files = { file, 2 } };
    tick(0);
    step(ev);
    assert_null(sent(MSG_FILES));                  /* nobody is there to hear it: HELLO will say it */
    welcome(NODE_LINK_COORDINATOR, b.coordinator);
    ev.files.n_file = 1;
    step(ev);
    assert_true(sent(MSG_FILES) && sent(MSG_FILES)->u.files.n_file == 1);
    tick(60000);
    assert_true(sent(MSG_HELLO) && sent(MSG_HELLO)->u.hello.n_file == 1);
    assert_int_equal(sent(MSG_HELLO)->u.hello.file[0].bytes, 1);
}

static void a_load_that_fails_says_why_as_often_as_asked(void **state) {
    (void)state;
    struct msg_assign a = assign_of(0, 1);
    tick(0);
    welcome(NODE_LINK_COORDINATOR, 5);
    assign(1, &a);
    loaded(1, ERR_IO);
    assert_string_equal(sent(MSG_FAILED)->u.failed.text, "no such file");
    assert_int_equal(node_view(b.node).state, NODE_IDLE);
    assign(1, &a);
    assert_int_equal(sent(MSG_FAILED)->u.failed.code, ERR_IO);
    assign(2, &a);
    assert_non_null(find(NODE_OUT_LOAD, 0));
}

static void the_end_of_an_older_load_means_nothing(void **state) {
    (void)state;
    struct msg_assign a = assign_of(0, 1);
    tick(0);
    welcome(NODE_LINK_COORDINATOR, 5);
    assign(1, &a);
    assign(2, &a);
    loaded(1, 0);
    assert_int_equal(node_view(b.node).state, NODE_LOADING);
    assign(1, &a);
    assert_int_equal(node_view(b.node).epoch, 2);
    loaded(2, 0);
    assert_int_equal(node_view(b.node).state, NODE_READY);
}

static void an_assignment_that_contradicts_itself_is_refused(void **state) {
    (void)state;
    tick(0);
    welcome(NODE_LINK_COORDINATOR, 5);
    for (int i = 0; i < 8; i++) {
        struct msg_assign a = assign_of(0, 1);
        if (i == 0) a.layer_end = 0;
        if (i == 1) a.n_slot = 5;                 /* more than n_slot_max */
        if (i == 2) a.n_rows_max = MSG_ROWS_MAX + 1;
        if (i == 3) a.n_credit = 0;
        if (i == 4) a.stage_i = 1;
        if (i == 5) a.has_head = false;
        if (i == 6) a.has_embed = false;
        if (i == 7) a.layer_begin = 1;            /* the first stage, but not the first layers */
        assign((uint64_t)i + 1, &a);
        assert_null(find(NODE_OUT_LOAD, 0));
        assert_int_equal(sent(MSG_FAILED)->u.failed.code, ERR_INVALID);
    }
}

static void a_plan_without_us_ends_our_work(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 4);
    computed(run_handle(), 0);
    msg_from(MSG_PING, 2, b.coordinator);
    deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
    assert_int_equal(node_view(b.node).state, NODE_IDLE);
    assert_non_null(find(NODE_OUT_SEQ_CLOSE, 0));
    assert_int_equal(find(NODE_OUT_FREE, 0)->payload.slot, 600);       /* the kept rows */
    struct msg_assign a = assign_of(0, 1);
    assign(2, &a);                                /* its ASSIGN was only late */
    assert_non_null(find(NODE_OUT_LOAD, 0));
}

static void draining_finishes_what_is_there_and_takes_nothing_new(void **state) {
    (void)state;
    serve(0, 2);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 4);
    struct handle job = run_handle();
    uint64_t waited = mark_count(MARK_drain_waits);
    msg_from(MSG_DRAIN, 1, b.coordinator);
    deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
    assert_int_equal(mark_count(MARK_drain_waits), waited + 1);
    assert_null(sent(MSG_DRAINED));
    work(NODE_LINK_COORDINATOR, 2, 1, 2, 0, 4);
    assert_int_equal(sent(MSG_WORK_REFUSED)->u.work_refused.reason, MSG_REFUSED_STATE);
    computed(job, 0);
    assert_non_null(sent(MSG_WORK));
    assert_null(sent(MSG_DRAINED));
    msg_from(MSG_CREDIT, 1, 9)->u.credit.batch = 1;
    deliver(NODE_LINK_NEXT, (struct payload){ 0 });
    assert_non_null(sent(MSG_DRAINED));
    assert_int_equal(node_view(b.node).state, NODE_IDLE);
    assert_int_equal(node_view(b.node).n_seq, 0);
}

static void a_stopped_node_says_goodbye(void **state) {
    (void)state;
    serve(0, 1);
    step((struct node_event){ .kind = NODE_EV_STOP });
    assert_non_null(sent(MSG_LEAVE));
    assert_true(b.outs.deadline_ns == UINT64_MAX);
}

/* ---- positions ---- */

static void takes_a_position_only_if_it_holds_exactly_that_much(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 8);
    assert_true(find(NODE_OUT_RUN, 0)->job->seg[0].open);
    computed(run_handle(), 0);
    work(NODE_LINK_COORDINATOR, 2, 1, 1, 9, 1);
    assert_null(find(NODE_OUT_RUN, 0));
    assert_int_equal(sent(MSG_WORK_REFUSED)->u.work_refused.have, 8);
    assert_int_equal(sent(MSG_WORK_REFUSED)->u.work_refused.reason, MSG_REFUSED_POSITION);
    work(NODE_LINK_COORDINATOR, 3, 1, 1, 8, 1);
    assert_int_equal(find(NODE_OUT_RUN, 0)->job->seg[0].have, 8);
    assert_false(find(NODE_OUT_RUN, 0)->job->seg[0].open);
    work(NODE_LINK_COORDINATOR, 4, 1, 2, 5, 1);   /* never heard of this sequence */
    assert_non_null(sent(MSG_WORK_REFUSED));
}

static void goes_back_a_few_tokens_or_to_the_beginning(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 20);
    computed(run_handle(), 0);
    work(NODE_LINK_COORDINATOR, 2, 2, 1, 4, 1);   /* sixteen */
    assert_int_equal(find(NODE_OUT_RUN, 0)->job->seg[0].have, 20);
    computed(run_handle(), 0);
    work(NODE_LINK_COORDINATOR, 3, 3, 1, 3, 1);   /* seventeen behind the longest */
    assert_null(find(NODE_OUT_RUN, 0));
    work(NODE_LINK_COORDINATOR, 4, 4, 1, 0, 1);
    assert_int_equal(find(NODE_OUT_RUN, 0)->job->seg[0].have, 5);
    computed(run_handle(), 0);
    work(NODE_LINK_COORDINATOR, 5, 5, 1, 1, 1);
    assert_non_null(find(NODE_OUT_RUN, 0));
}

static void a_batch_comes_once_and_in_order(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 5, 5, 1, 0, 4);
    assert_non_null(find(NODE_OUT_RUN, 0));
    work(NODE_LINK_COORDINATOR, 5, 5, 1, 0, 4);
    assert_null(find(NODE_OUT_RUN, 0));
    work(NODE_LINK_COORDINATOR, 4, 4, 2, 0, 4);
    assert_null(find(NODE_OUT_RUN, 0));
    assert_null(sent(MSG_WORK_REFUSED));
}

static void a_sequence_may_begin_as_a_copy(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 20);
    uint32_t slot = find(NODE_OUT_RUN, 0)->job->seg[0].slot;
    computed(run_handle(), 0);
    work_from(NODE_LINK_COORDINATOR, 2, 2, 2, 18, 1, 1);
    const struct node_job_seg *s = &find(NODE_OUT_RUN, 0)->job->seg[0];
    assert_true(s->open && s->fork && s->slot != slot);
    assert_int_equal(s->from, slot);
    assert_int_equal(s->have, 18);
    computed(run_handle(), 0);
    work_from(NODE_LINK_COORDINATOR, 3, 3, 2, 18, 2, 1);  /* again: it is there, and goes back by itself */
    s = &find(NODE_OUT_RUN, 0)->job->seg[0];
    assert_false(s->open || s->fork);
    assert_int_equal(s->have, 19);
    computed(run_handle(), 0);
    work(NODE_LINK_COORDINATOR, 4, 4, 1, 20, 1);  /* its source is what it was */
    assert_int_equal(find(NODE_OUT_RUN, 0)->job->seg[0].have, 20);
    computed(run_handle(), 0);
    work_from(NODE_LINK_COORDINATOR, 5, 5, 3, 4, 1, 1);   /* 21 - 4 > 16: further than it can go back */
    assert_int_equal(sent(MSG_WORK_REFUSED)->u.work_refused.reason, MSG_REFUSED_POSITION);
    work_from(NODE_LINK_COORDINATOR, 6, 6, 4, 10, 1, 99);
    assert_int_equal(sent(MSG_WORK_REFUSED)->u.work_refused.reason, MSG_REFUSED_POSITION);
}

static void a_batch_that_lies_is_refused(void **state) {
    (void)state;
    serve(0, 1);
    struct msg_seg seg[2] = { { 1, 0, 4, 0 }, { 2, 0, 4, 0 } };
    struct msg_want want[2] = { { .row = 3 }, { .row = 7 } };
    for (uint64_t i = 1; i <= 9; i++) {
        struct msg_seg s[2];
        struct msg_want w[2];
        memcpy(s, seg, sizeof s);
        memcpy(w, want, sizeof w);
        struct msg *m = msg_from(MSG_WORK, 1, b.coordinator);
        m->u.work = (struct msg_work){ .batch = i,
                                       .batch_done = i,
                                       .seg = s,
                                       .token = tokens,
                                       .want = w,
                                       .n_seg = 2,
                                       .n_row = 8,
                                       .n_want = 2 };
        struct payload payload = { 0 };
        if (i == 1) m->u.work.n_row = 9;
        if (i == 2) s[0].n = 0;
        if (i == 3) s[1].seq = 1;                 /* the same sequence twice */
        if (i == 4) s[1].pos0 = 98;               /* beyond the context */
        if (i == 5) w[1].row = 8;
        if (i == 6) w[1].row = 3;
        if (i == 7) w[0].n_bias = 1;              /* not in the list */
        if (i == 8) payload = (struct payload){ 3, 1, 0, 8 };          /* stage 0 has tokens, no streams */
        if (i == 9) s[1].n = UINT32_MAX;
        deliver(NODE_LINK_COORDINATOR, payload);
        assert_null(find(NODE_OUT_RUN, 0));
        assert_non_null(sent(MSG_WORK_REFUSED));
    }
}

static void more_sequences_than_slots_are_refused(void **state) {
    (void)state;
    serve(0, 1);
    struct msg_seg seg[4] = { { 1, 0, 1, 0 }, { 2, 0, 1, 0 }, { 3, 0, 1, 0 }, { 4, 0, 1, 0 } };
    struct msg *m = msg_from(MSG_WORK, 1, b.coordinator);
    m->u.work = (struct msg_work){
        .batch = 1, .batch_done = 1, .seg = seg, .token = tokens, .n_seg = 4, .n_row = 4
    };
    uint64_t before = mark_count(MARK_node_slots_refused);
    deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
    assert_int_equal(sent(MSG_WORK_REFUSED)->u.work_refused.reason, MSG_REFUSED_SLOTS);
    assert_int_equal(mark_count(MARK_node_slots_refused), before + 1);
}

static void a_new_sequence_waits_for_the_sync_that_frees_its_slot(void **state) {
    (void)state;
    serve(0, 1);
    for (uint64_t s = 1; s <= 3; s++) {
        work(NODE_LINK_COORDINATOR, s, s, s, 0, 1);
        computed(run_handle(), 0);
    }
    work(NODE_LINK_COORDINATOR, 4, 4, 4, 0, 1);
    assert_null(find(NODE_OUT_RUN, 0));
    assert_null(sent(MSG_WORK_REFUSED));
    const uint64_t alive[] = { 2, 3, 4 };
    sync_of(5, 4, alive, 3, NULL, 0);
    assert_int_equal(find(NODE_OUT_SEQ_CLOSE, 0)->slot, 0);
    assert_int_equal(find(NODE_OUT_RUN, 0)->job->seg[0].slot, 0);
}

static void a_failed_batch_takes_its_sequences_with_it(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 4);
    computed(run_handle(), ERR_DEVICE);
    assert_int_equal(sent(MSG_FAILED)->u.failed.batch, 1);
    assert_non_null(find(NODE_OUT_SEQ_CLOSE, 0));
    assert_int_equal(node_view(b.node).n_seq, 0);
    assert_int_equal(node_payloads_held(b.node), 0);
}

/* ---- onwards ---- */

static void sends_only_as_many_as_there_are_credits(void **state) {
    (void)state;
    serve(1, 3);
    work(PREVIOUS, 1, 1, 1, 0, 4);
    assert_int_equal(sent(MSG_CREDIT)->u.credit.batch, 1);             /* taken out of the receive buffers */
    struct handle first = run_handle();
    work(PREVIOUS, 2, 1, 2, 0, 4);
    struct handle second = run_handle();
    computed(first, 0);
    assert_int_equal(sent(MSG_WORK)->u.work.batch, 1);
    assert_int_equal(sent(MSG_WORK)->u.work.n_timing, 1);
    computed(second, 0);
    assert_null(sent(MSG_WORK));
    msg_from(MSG_CREDIT, 1, 9)->u.credit.batch = 1;
    deliver(NODE_LINK_NEXT, (struct payload){ 0 });
    assert_int_equal(sent(MSG_WORK)->u.work.batch, 2);
    deliver(NODE_LINK_NEXT, (struct payload){ 0 });                    /* the same credit again: nobody's */
    assert_int_equal(node_view(b.node).n_sent, 1);
}

static void a_lost_credit_comes_home_with_sync(void **state) {
    (void)state;
    serve(1, 3);
    work(PREVIOUS, 1, 1, 1, 0, 4);
    computed(run_handle(), 0);
    work(PREVIOUS, 2, 1, 2, 0, 4);
    computed(run_handle(), 0);
    assert_null(sent(MSG_WORK));
    const uint64_t alive[] = { 1, 2 }, dead[] = { 1 };
    sync_of(3, 1, alive, 2, dead, 1);
    assert_int_equal(sent(MSG_WORK)->u.work.batch, 2);
}

static void work_for_a_batch_that_is_over_is_dropped_wherever_it_is(void **state) {
    (void)state;
    serve(1, 3);
    work(PREVIOUS, 1, 1, 1, 0, 4);
    struct handle computing = run_handle();
    work(PREVIOUS, 2, 1, 1, 4, 4);
    work(PREVIOUS, 3, 1, 1, 8, 4);                /* waits in the queue: two are with the device */
    const uint64_t dead[] = { 1, 3, 5 };
    sync_of(2, 1, (const uint64_t[]){ 1 }, 1, dead, 3);
    assert_non_null(sent(MSG_CREDIT));            /* of the queued one */
    assert_int_equal(find(NODE_OUT_FREE, 0)->payload.slot, 3);
    computed(computing, 0);
    assert_null(sent(MSG_WORK));
    assert_int_equal(node_view(b.node).n_batch, 1);
    work(PREVIOUS, 5, 1, 1, 8, 4);                /* comes after its end */
    assert_null(find(NODE_OUT_RUN, 0));
    assert_int_equal(sent(MSG_CREDIT)->u.credit.batch, 5);
}

static void closing_twice_is_closing_once(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 4);
    computed(run_handle(), 0);
    sync_of(2, 2, NULL, 0, NULL, 0);
    assert_non_null(find(NODE_OUT_SEQ_CLOSE, 0));
    assert_int_equal(node_view(b.node).n_batch, 0);                    /* and the kept rows are gone */
    sync_of(2, 2, NULL, 0, NULL, 0);
    assert_null(find(NODE_OUT_SEQ_CLOSE, 0));
    sync_of(1, 1, NULL, 0, NULL, 0);              /* an older one, late */
    assert_int_equal(node_view(b.node).n_seq, 0);
}

static void rows_are_kept_until_the_batch_is_over(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 4);
    computed(run_handle(), 0);
    assert_non_null(sent(MSG_RESULT));
    for (uint32_t row = 3; row < 5; row++) {
        msg_from(MSG_ROW_GET, 1, b.coordinator)->u.row_get = (struct msg_row_get){ .batch = 1, .row = row };
        deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
        assert_int_equal(sent(MSG_ROW)->u.row.code, row == 3 ? 0 : ERR_NOTFOUND);
        assert_int_equal(find(NODE_OUT_SEND, 0)->payload.bytes, row == 3 ? 400 : 0);
        assert_true(find(NODE_OUT_SEND, 0)->borrows);
    }
    work(NODE_LINK_COORDINATOR, 2, 2, 1, 4, 1);   /* says that batch 1 is over */
    assert_int_equal(find(NODE_OUT_FREE, 0)->payload.slot, 600);
    msg_from(MSG_ROW_GET, 1, b.coordinator)->u.row_get = (struct msg_row_get){ .batch = 1, .row = 3 };
    deliver(NODE_LINK_COORDINATOR, (struct payload){ 0 });
    assert_int_equal(sent(MSG_ROW)->u.row.code, ERR_NOTFOUND);
}

static void another_epoch_is_not_ours(void **state) {
    (void)state;
    serve(1, 2);
    work(PREVIOUS, 1, 1, 1, 0, 4);
    computed(run_handle(), 0);
    for (uint64_t epoch = 0; epoch < 3; epoch += 2) {
        struct msg_seg seg = { 1, 4, 1, 0 };
        msg_from(MSG_WORK, epoch, 8)->u.work = (struct msg_work){
            .batch = 2, .batch_done = 2, .seg = &seg, .token = tokens, .n_seg = 1, .n_row = 1
        };
        deliver(PREVIOUS, (struct payload){ 7, 1, 0, 8 });
        assert_null(find(NODE_OUT_RUN, 0));
        assert_int_equal(find(NODE_OUT_FREE, 0)->payload.slot, 7);
    }
}

static void timings_add_up_to_the_time_in_the_node(void **state) {
    (void)state;
    serve(0, 1);
    work(NODE_LINK_COORDINATOR, 1, 1, 1, 0, 4);
    struct handle job = run_handle();
    b.now_ns += 250 * 1000;                       /* of which 10 us are compute */
    computed(job, 0);
    const struct msg_timing *t = &sent(MSG_RESULT)->u.result.timing[0];
    assert_int_equal(t->compute_us, 10);
    assert_int_equal(t->queue_us + t->compute_us + t->hold_us, 250);
}

/* ---- experts ---- */

static void serve_with_helper(void) {
    struct msg_helper h = { .expert_begin = 4, .expert_end = 8 };
    struct msg_assign a = assign_of(0, 1);
    snprintf(h.hop.address, sizeof h.hop.address, "tcp://helper:1");
    a.helper = &h;
    a.n_helper = 1;
    tick(0);
    welcome(NODE_LINK_COORDINATOR, b.coordinator);
    assign(1, &a);
    assert_int_equal(find(NODE_OUT_CONNECT, 0)->link, NODE_LINK_HELPER);
    loaded(1, 0);
    assert_null(sent(MSG_READY));                 /* not before the helper knows us */
    welcome(NODE_LINK_HELPER, 33);
    assert_non_null(sent(MSG_READY));
}

static void ask(uint64_t batch, uint32_t layer) {
    step((struct node_event){ .kind = NODE_EV_EXPERTS,
                              .link = NODE_LINK_HELPER,
                              .take_payload = { 40, 1, 0, 8 },
                              .experts = { .batch = batch, .layer = layer, .n_row = 2, .n_used = 6 } });
}

static void every_question_to_a_helper_ends_once(void **state) {
    (void)state;
    serve_with_helper();
    ask(1, 0);
    assert_non_null(sent(MSG_EXPERTS));
    msg_from(MSG_EXPERTS_DONE, 1, 33)->u.experts_done =
        (struct msg_experts_done){ .batch = 1, .layer = 0, .n_row = 2 };
    deliver(NODE_LINK_HELPER, (struct payload){ 41, 1, 0, 8 });
    assert_int_equal(find(NODE_OUT_EXPERTS_DONE, 0)->payload.slot, 41);
    deliver(NODE_LINK_HELPER, (struct payload){ 42, 1, 0, 8 });        /* again */
    assert_null(find(NODE_OUT_EXPERTS_DONE, 0));
    assert_int_equal(find(NODE_OUT_FREE, 0)->payload.slot, 42);
    ask(1, 1);
    tick(1000);
    assert_int_equal(find(NODE_OUT_EXPERTS_DONE, 0)->experts_done.code, ERR_TIMEOUT);
    ask(1, 2);
    struct msg_assign a = assign_of(0, 1);
    assign(2, &a);
    assert_int_equal(find(NODE_OUT_EXPERTS_DONE, 0)->experts_done.code, ERR_STALE);
    assert_int_equal(find(NODE_OUT_DISCONNECT, 0)->link, NODE_LINK_HELPER);
    ask(2, 0);
    assert_int_equal(find(NODE_OUT_EXPERTS_DONE, 0)->experts_done.code, ERR_PEER);
    assert_int_equal(find(NODE_OUT_FREE, 0)->payload.slot, 40);
}

static void a_helper_computes_for_its_own_plan_only(void **state) {
    (void)state;
    struct msg_assign a = assign_of(0, 1);
    a.is_helper = true;
    a.has_head = a.has_embed = false;
    tick(0);
    welcome(NODE_LINK_COORDINATOR, b.coordinator);
    assign(1, &a);
    loaded(1, 0);
    hello_from(PREVIOUS, "lead", 8);
    for (uint64_t epoch = 1; epoch <= 2; epoch++) {
        msg_from(MSG_EXPERTS, epoch, 8)->u.experts =
            (struct msg_experts){ .batch = 1, .layer = 1, .n_row = 2, .n_used = 6 };
        deliver(PREVIOUS, (struct payload){ 9, 1, 0, 8 });
        assert_int_equal(find(NODE_OUT_EXPERTS, 0) != NULL, epoch == 1);
        if (epoch == 2) assert_int_equal(sent(MSG_EXPERTS_DONE)->u.experts_done.code, ERR_STALE);
        if (epoch == 2) assert_int_equal(sent(MSG_EXPERTS_DONE)->epoch, 2);
    }
    step((struct node_event){ .kind = NODE_EV_EXPERTS_COMPUTED,
                              .link = PREVIOUS,
                              .epoch = 1,
                              .take_payload = { 10, 1, 0, 8 },
                              .experts_done = { .batch = 1, .layer = 1, .n_row = 2, .compute_us = 5 } });
    assert_int_equal(sent(MSG_EXPERTS_DONE)->u.experts_done.n_row, 2);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(says_hello_until_somebody_answers),
        CASE(a_silent_coordinator_is_greeted_again),
        CASE(a_coordinator_that_leaves_is_waited_for),
        CASE(a_reason_of_refusal_is_told_once),
        CASE(strangers_are_refused_and_their_bytes_given_back),
        CASE(another_process_on_a_known_link_has_to_introduce_itself),
        CASE(loads_tells_and_tells_again),
        CASE(a_repeated_assignment_may_name_other_sources),
        CASE(files_that_changed_are_told_and_said_in_every_later_hello),
        CASE(a_load_that_fails_says_why_as_often_as_asked),
        CASE(the_end_of_an_older_load_means_nothing),
        CASE(an_assignment_that_contradicts_itself_is_refused),
        CASE(a_plan_without_us_ends_our_work),
        CASE(draining_finishes_what_is_there_and_takes_nothing_new),
        CASE(a_stopped_node_says_goodbye),
        CASE(takes_a_position_only_if_it_holds_exactly_that_much),
        CASE(goes_back_a_few_tokens_or_to_the_beginning),
        CASE(a_batch_comes_once_and_in_order),
        CASE(a_sequence_may_begin_as_a_copy),
        CASE(a_batch_that_lies_is_refused),
        CASE(more_sequences_than_slots_are_refused),
        CASE(a_new_sequence_waits_for_the_sync_that_frees_its_slot),
        CASE(a_failed_batch_takes_its_sequences_with_it),
        CASE(sends_only_as_many_as_there_are_credits),
        CASE(a_lost_credit_comes_home_with_sync),
        CASE(work_for_a_batch_that_is_over_is_dropped_wherever_it_is),
        CASE(closing_twice_is_closing_once),
        CASE(rows_are_kept_until_the_batch_is_over),
        CASE(another_epoch_is_not_ours),
        CASE(timings_add_up_to_the_time_in_the_node),
        CASE(every_question_to_a_helper_ends_once),
        CASE(a_helper_computes_for_its_own_plan_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
