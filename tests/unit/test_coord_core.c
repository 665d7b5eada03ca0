/* The coordinator core alone: membership, weights, requests, and what goes wrong. What a whole cluster does
 * is the simulation's business. */
#include "tests/harness/coord_bench.h"

/* ---- membership ---- */

static void waits_for_the_expected_nodes_then_assigns(void **state) {
    (void)state;
    tick(0);
    hello(A, "a", A);
    assert_non_null(sent(MSG_WELCOME));
    tick(2000);
    assert_int_equal(view().state, CL_WAITING);
    say(A, MSG_PING);
    hello(B, "b", B);
    assert_int_equal(view().state, CL_LOADING);
    const struct msg_assign *first = &sent_nth(MSG_ASSIGN, 0)->u.assign,
                            *second = &sent_nth(MSG_ASSIGN, 1)->u.assign;
    assert_true(first->has_embed && !first->has_head && second->has_head);
    assert_string_equal(first->next.address, "tcp://b:1");
    assert_string_equal(second->next.address, "");
    ready(A, 0);
    assert_int_equal(view().state, CL_LOADING);
    ready(B, 0);
    assert_int_equal(view().state, CL_SERVING);
}

static void an_assignment_is_repeated_until_it_is_answered(void **state) {
    (void)state;
    join();
    ready(A, 0);
    tick(1000);
    assert_non_null(sent(MSG_ASSIGN));
    assert_null(sent_nth(MSG_ASSIGN, 1));         /* only to the one that has not answered */
}

/* ---- weights ---- */

static struct msg_file layers(uint8_t bits, bool embed, bool head) {
    return (struct msg_file){ .model_lo = 7, .model_hi = 8, .layers = { bits }, .has_embed = embed,
                              .has_head = head };
}

static const struct msg_assign *assigned(uint32_t stage_i) {
    for (uint32_t i = 0; sent_nth(MSG_ASSIGN, i); i++)
        if (sent_nth(MSG_ASSIGN, i)->u.assign.stage_i == stage_i) return &sent_nth(MSG_ASSIGN, i)->u.assign;
    return NULL;
}

/* Three nodes, two of them in the plan: the spare has all, the second its own layer. */
static void an_assignment_names_those_who_have_what_it_needs(void **state) {
    (void)state;
    struct msg_file whole = layers(3, true, true), second = layers(2, false, true), other = whole;
    whole.is_whole = whole.has_rest = true;
    other.model_lo = 1;
    b.config.n_node_expected = 3;
    coord_free(b.coord);
    b.coord = coord_new(&b.config);
    b.gives = "the coordinator";
    tick(0);
    hello_with(A, "a", A, &other);
    hello_with(B, "b", B, &second);
    hello_with(13, "s", 13, &whole);
    const struct msg_assign *a = assigned(0);
    assert_int_equal(a->n_source, 2);              /* b has nothing of layer 0 */
    assert_string_equal(a->source[0].hop.name, "s");
    assert_string_equal(a->source[0].hop.address, "tcp://s:1");
    assert_true(a->source[0].has_header && a->source[0].has_rest && a->source[0].layers[0] == 3);
    assert_string_equal(a->source[1].hop.name, "the coordinator");
    assert_string_equal(a->source[1].hop.address, "");
    a = assigned(1);                               /* itself is no source */
    assert_int_equal(a->n_source, 2);
    assert_string_equal(a->source[0].hop.name, "s");
    b.msg.kind = MSG_NONE;
    step((struct coord_event){ .kind = COORD_EV_LINK_CLOSED, .link = 13 });
    tick(1000);
    a = assigned(0);                               /* it is gone: not a source any more */
    assert_int_equal(a->n_source, 1);
    assert_string_equal(a->source[0].hop.name, "the coordinator");
}

static void files_that_a_node_fetched_make_it_a_source(void **state) {
    (void)state;
    struct msg_file first = layers(1, true, false);
    struct coord_node_view v;
    tick(0);
    hello(A, "a", A);
    hello(B, "b", B);
    assert_int_equal(assigned(0)->n_source, 0);
    msg_from(MSG_FILES, B)->u.files = (struct msg_files){ &first, 1 };
    deliver(B, (struct payload){ 0 });
    assert_true(coord_view_node(b.coord, 1, &v) && v.hello->n_file == 1 && v.hello->file[0].has_embed);
    tick(1000);
    assert_int_equal(assigned(0)->n_source, 1);
    assert_string_equal(assigned(0)->source[0].hop.name, "b");
    assert_false(assigned(0)->source[0].has_header);
    msg_from(MSG_FILES, B)->u.files = (struct msg_files){ NULL, 0 };
    deliver(B, (struct payload){ 0 });
    tick(1000);
    assert_int_equal(assigned(0)->n_source, 0);
}

static void a_node_that_keeps_its_weights_is_no_source(void **state) {
    (void)state;
    struct msg_file whole = layers(3, true, true);
    tick(0);
    hello(A, "a", A);
    hello_with(B, "k", B, &whole);
    assert_int_equal(assigned(0)->n_source, 0);
    assert_int_equal(assigned(1)->n_source, 0);
}

/* Also those who have no part in the plan: they may be asked for weights. */
static void everybody_hears_the_keys_of_a_newcomer(void **state) {
    (void)state;
    serve();
    hello(13, "s", 13);
    uint32_t n = 0;
    for (const struct msg *m; (m = sent_nth(MSG_PEERS, n)); n++) assert_int_equal(m->u.peers.n_peer, 3);
    assert_int_equal(n, 3);
    tick(1000);
    assert_null(sent(MSG_PEERS));
}

/* Those who together have all come first, however many have the same half. */
static void what_is_rare_is_named_before_what_many_have(void **state) {
    (void)state;
    struct msg_file first = layers(1, true, false), second = layers(2, false, true);
    b.config.n_node_max = 16;
    b.config.n_node_expected = 14;
    b.n_stage = 1;
    coord_free(b.coord);
    coord_outs_deinit(&b.outs);
    b.coord = coord_new(&b.config);
    coord_outs_init(&b.outs, &b.config);
    b.wide = true;
    tick(0);
    for (uint32_t i = 0; i < 14; i++) {
        char name[2] = { (char)('a' + i), 0 };
        hello_with(A + i, name, A + i, i == 0 ? NULL : i == 13 ? &second : &first);
    }
    const struct msg_assign *a = assigned(0);
    uint32_t n_second = 0;
    assert_int_equal(a->n_source, MSG_SOURCES_MAX);
    for (uint32_t i = 0; i < a->n_source; i++) n_second += a->source[i].has_head;
    assert_int_equal(n_second, 1);
}

static void a_second_process_with_a_name_is_refused_while_the_first_lives(void **state) {
    (void)state;
    serve();
    hello(99, "a", 1234);
    assert_int_equal(sent(MSG_REFUSE)->u.refuse.code, ERR_BUSY);
    assert_int_equal(find(COORD_OUT_DROP, 0)->link, 99);
    assert_int_equal(view().state, CL_SERVING);
    tick(1100);                                   /* two periods of silence */
    hello(99, "a", 1234);
    assert_non_null(sent(MSG_WELCOME));
    assert_int_equal(view().epoch, 2);            /* its predecessor's plan is over */
}

static void strangers_disturb_nothing(void **state) {
    (void)state;
    serve();
    msg_from(MSG_RESULT, 1);
    deliver(50, (struct payload){ 3, 1, 0, 8 });
    assert_non_null(sent(MSG_REFUSE));
    assert_int_equal(find(COORD_OUT_FREE, 0)->payload.slot, 3);
    struct msg *m = msg_from(MSG_HELLO, 1);
    m->u.hello = (struct msg_hello){
        .magic = MSG_MAGIC, .version_min = 7, .version_max = 9, .role = MSG_ROLE_NODE, .name = "x"
    };
    deliver(50, (struct payload){ 0 });
    assert_int_equal(sent(MSG_REFUSE)->u.refuse.code, ERR_UNSUPPORTED);
    hello(50, "c", 50);                           /* one that may stay: a spare */
    assert_non_null(sent(MSG_WELCOME));
    hello(51, "d", 51);
    assert_non_null(sent(MSG_REFUSE));            /* the table is full */
    assert_int_equal(view().state, CL_SERVING);
    assert_int_equal(view().epoch, 1);
}

static void the_loss_of_a_spare_changes_nothing(void **state) {
    (void)state;
    serve();
    hello(50, "c", 50);
    step((struct coord_event){ .kind = COORD_EV_LINK_CLOSED, .link = 50 });
    assert_int_equal(view().state, CL_SERVING);
    assert_int_equal(view().n_node, 2);
}

static void a_planner_that_contradicts_itself_is_asked_again_later(void **state) {
    (void)state;
    b.bad_plan = true;
    join();
    assert_int_equal(view().state, CL_WAITING);
    assert_non_null(strstr(view().why, "contradicts"));
    b.bad_plan = false;
    tick(2100);
    assert_int_equal(view().state, CL_LOADING);
}

static void a_node_that_cannot_load_is_left_out_for_a_while(void **state) {
    (void)state;
    b.n_stage = 1;
    join();
    struct msg *m = msg_from(MSG_FAILED, A);
    m->u.failed = (struct msg_failed){ .code = ERR_IO };
    snprintf(m->u.failed.text, sizeof m->u.failed.text, "disk full");
    deliver(A, (struct payload){ 0 });
    struct coord_node_view n;
    assert_true(coord_view_node(b.coord, 0, &n));
    assert_int_equal(n.state, ND_FAILED);
    b.config.n_node_expected = 1;
    for (int i = 0; i < 12; i++) {                /* b goes on alone when a has been waited for */
        b.now_ns += 500 * (uint64_t)MS_NS;
        say(A, MSG_PING);
        say(B, MSG_PING);
    }
    assert_int_equal(view().state, CL_LOADING);
    assert_int_equal(view().epoch, 2);
    assert_true(coord_view_node(b.coord, 1, &n));
    assert_int_equal(n.stage_i, 0);
}

/* ---- requests ---- */

static void a_request_becomes_tokens(void **state) {
    (void)state;
    serve();
    submit(7, 3, 2);
    const struct msg_work *w = &sent(MSG_WORK)->u.work;
    assert_int_equal(w->n_row, 3);
    assert_int_equal(w->n_want, 1);
    assert_int_equal(w->want[0].row, 2);
    assert_int_equal(w->seg[0].pos0, 0);
    b.now_ns += 5 * (uint64_t)MS_NS;
    result(1, 2);
    assert_int_equal(find(COORD_OUT_TOKEN, 0)->token, 100);
    assert_int_equal(find(COORD_OUT_TOKEN, 0)->tag, 7);
    assert_int_equal(find(COORD_OUT_FREE, 0)->payload.slot, 9);
    w = &sent(MSG_WORK)->u.work;                  /* the next step, in the same breath */
    assert_int_equal(w->seg[0].pos0, 3);
    assert_int_equal(w->token[0], 100);
    assert_int_equal(w->batch_done, 2);
    b.now_ns += 5 * (uint64_t)MS_NS;
    result(2, 0);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, 0);
    assert_int_equal(sent(MSG_SYNC)->u.sync.n_seq, 0);
    assert_int_equal(coord_seqs_alive(b.coord), 0);
}

static void the_last_token_is_what_the_sampler_says(void **state) {
    (void)state;
    serve();
    b.end_token = 100;
    submit(7, 3, 20);
    result(1, 2);
    assert_int_equal(find(COORD_OUT_TOKEN, 0)->token, 100);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, 0);
}

static void the_queue_is_bounded(void **state) {
    (void)state;
    serve();
    for (uint64_t i = 0; i < 6; i++) submit(i, 3, 2);
    submit(6, 3, 2);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_BUSY);
    assert_int_equal(find(COORD_OUT_DONE, 0)->tag, 6);
    assert_int_equal(view().n_queued, 2);         /* four slots */
}

static void an_epoch_that_cannot_be_is_refused(void **state) {
    (void)state;
    tick(0);
    struct msg *m = msg_from(MSG_HELLO, A);
    m->epoch = UINT64_MAX;                        /* the next one would be 0 */
    m->u.hello = (struct msg_hello){
        .magic = MSG_MAGIC, .version_min = 1, .version_max = 1, .role = MSG_ROLE_NODE
    };
    snprintf(m->u.hello.name, sizeof m->u.hello.name, "a");
    deliver(A, (struct payload){ 0 });
    assert_int_equal(sent(MSG_REFUSE)->u.refuse.code, ERR_INVALID);
    assert_int_equal(view().n_node, 0);
}

/* Rows that score a prompt are wanted besides the last one of each segment. */
static void a_batch_wants_no_more_rows_than_it_may_have_segments(void **state) {
    (void)state;
    coord_free(b.coord);
    b.config.n_seg_max = 3;
    b.config.n_window_max = 2;
    b.coord = coord_new(&b.config);
    serve();
    submit(1, 3, 4);
    submit(2, 3, 4);
    struct coord_submit scoring = {
        .tag = 3, .token = prompt, .n_token = 3, .n_new_max = 4, .scores = true
    };
    step((struct coord_event){ .kind = COORD_EV_SUBMIT, .submit = scoring });
    submit(4, 3, 4);
    result(1, 2);                                 /* a decode row and two scores: no place for the last */
    assert_int_equal(sent(MSG_WORK)->u.work.n_want, 3);
    assert_int_equal(sent(MSG_WORK)->u.work.n_seg, 2);
}

static void nonsense_is_refused(void **state) {
    (void)state;
    serve();
    submit(1, 0, 2);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_INVALID);
    submit(1, 3, 0);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_INVALID);
    submit(1, 64, 2);                             /* the context holds 64: no room for an answer */
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_LIMIT);
    submit(1, 63, 2000);                          /* only too generous */
    assert_non_null(find(COORD_OUT_ACCEPTED, 0));
}

static void memory_is_reserved_for_the_worst_case(void **state) {
    (void)state;
    serve_with(50, 90);
    submit(1, 10, 20);
    assert_non_null(sent(MSG_WORK));
    submit(2, 10, 20);                            /* 30 + 30 > 50 */
    assert_null(sent(MSG_WORK));
    submit(3, 3, 3);                              /* would fit, but does not overtake */
    assert_int_equal(view().n_queued, 2);
    submit(4, 10, 45);                            /* never */
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_LIMIT);
    b.end_token = 100;
    result(1, 9);
    assert_int_equal(view().n_queued, 0);
}

static void cancelled_means_silent_and_soon_gone(void **state) {
    (void)state;
    serve();
    submit(1, 3, 20);
    step((struct coord_event){ .kind = COORD_EV_CANCEL, .request = b.request });
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_CANCELLED);
    assert_int_equal(coord_seqs_alive(b.coord), 1);                    /* a batch of it is still on its way */
    step((struct coord_event){ .kind = COORD_EV_CANCEL, .request = b.request });
    assert_null(find(COORD_OUT_DONE, 0));
    result(1, 2);
    assert_null(find(COORD_OUT_TOKEN, 0));
    assert_int_equal(coord_seqs_alive(b.coord), 0);
    assert_int_equal(sent(MSG_SYNC)->u.sync.n_seq, 0);
}

static void a_request_has_a_deadline_of_its_own(void **state) {
    (void)state;
    serve();
    submit_for(1, 3, 20, 50);
    assert_true(b.outs.deadline_ns <= b.now_ns + 50 * (uint64_t)MS_NS);
    tick(50);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_TIMEOUT);
}

static void without_a_plan_a_request_ends_after_a_while(void **state) {
    (void)state;
    tick(0);
    submit(1, 3, 20);
    assert_non_null(find(COORD_OUT_ACCEPTED, 0));
    tick(59000);
    assert_null(find(COORD_OUT_DONE, 0));
    tick(1000);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_PEER);
    assert_string_equal(find(COORD_OUT_DONE, 0)->text, "no node has joined");
}

/* ---- what goes wrong ---- */

static void a_row_that_does_not_suffice_is_fetched(void **state) {
    (void)state;
    serve();
    submit(1, 3, 2);
    b.sample_code = COORD_NEED_MORE;
    result(1, 2);
    assert_null(find(COORD_OUT_TOKEN, 0));
    assert_int_equal(sent(MSG_ROW_GET)->u.row_get.row, 2);
    msg_from(MSG_ROW, B)->u.row = (struct msg_row){ .batch = 1, .row = 2, .n_vocab = 2 };
    deliver(B, (struct payload){ 9, 1, 0, 8 });
    assert_int_equal(find(COORD_OUT_TOKEN, 0)->token, 100);
}

static void a_row_that_is_gone_costs_another_try(void **state) {
    (void)state;
    serve();
    submit(1, 3, 2);
    b.sample_code = COORD_NEED_MORE;
    result(1, 2);
    msg_from(MSG_ROW, B)->u.row = (struct msg_row){ .batch = 1, .row = 2, .code = ERR_NOTFOUND };
    deliver(B, (struct payload){ 0 });
    assert_null(find(COORD_OUT_TOKEN, 0));
    assert_int_equal(sent(MSG_WORK)->u.work.seg[0].pos0, 2);           /* just the last token again */
}

static void a_sampler_that_fails_ends_the_request(void **state) {
    (void)state;
    serve();
    submit(1, 3, 2);
    b.sample_code = ERR_CORRUPT;
    result(1, 2);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_CORRUPT);
}

static void a_batch_that_is_late_is_sent_again_in_place(void **state) {
    (void)state;
    serve();
    submit(1, 3, 2);
    tick(0);
    for (int i = 0; i < 140 && !sent(MSG_WORK); i++) {
        b.now_ns += 500 * (uint64_t)MS_NS;
        say(A, MSG_PING);
        if (sent(MSG_WORK)) break;
        say(B, MSG_PING);
    }
    assert_int_equal(sent(MSG_WORK)->u.work.batch, 2);
    assert_int_equal(sent(MSG_WORK)->u.work.seg[0].pos0, 0);
    assert_int_equal(sent(MSG_SYNC)->u.sync.batch_done, 2);            /* batch 1 is over everywhere */
    result(1, 2);
    assert_null(find(COORD_OUT_TOKEN, 0));        /* too late */
    result(2, 2);
    assert_non_null(find(COORD_OUT_TOKEN, 0));
}

static void a_refused_position_computes_the_sequence_again(void **state) {
    (void)state;
    serve();
    submit(1, 3, 3);
    result(1, 2);
    uint64_t seq = sent(MSG_WORK)->u.work.seg[0].seq;
    refuse_position(A, 2, seq);
    const struct msg_work *w = &sent(MSG_WORK)->u.work;
    assert_true(w->seg[0].seq > seq);
    assert_int_equal(w->seg[0].pos0, 0);
    assert_int_equal(w->n_row, 4);                /* the prompt and the token that came */
    assert_int_equal(w->token[3], 100);
    result(3, 3);
    assert_int_equal(find(COORD_OUT_TOKEN, 0)->index, 1);
}

static void a_result_that_contradicts_the_question_is_not_used(void **state) {
    (void)state;
    serve();
    submit(1, 3, 2);
    result(1, 1);                                 /* another row */
    assert_null(find(COORD_OUT_TOKEN, 0));
    assert_int_equal(sent(MSG_WORK)->u.work.batch, 2);
    static struct msg_row_result far = { .row = 2, .offset = 4, .bytes = 8 };
    msg_from(MSG_RESULT, B)->u.result = (struct msg_result){ .batch = 2, .row = &far, .n_row = 1 };
    deliver(B, (struct payload){ 9, 1, 0, 8 });   /* beyond its payload */
    assert_null(find(COORD_OUT_TOKEN, 0));
}

static void only_the_last_stage_gives_results(void **state) {
    (void)state;
    serve();
    submit(1, 3, 2);
    static struct msg_row_result row = { .row = 2 };
    msg_from(MSG_RESULT, A)->u.result = (struct msg_result){ .batch = 1, .row = &row, .n_row = 1 };
    deliver(A, (struct payload){ 0 });
    assert_null(find(COORD_OUT_TOKEN, 0));
}

static void a_lost_node_is_a_pause(void **state) {
    (void)state;
    serve();
    submit(1, 3, 5);
    result(1, 2);
    lose_and_regain();
    const struct msg_work *w = &sent(MSG_WORK)->u.work;
    assert_int_equal(w->n_row, 4);
    assert_int_equal(w->token[3], 100);
}

static void what_a_stage_says_of_an_older_plan_is_dropped(void **state) {
    (void)state;
    serve();
    struct msg *m = msg_from(MSG_FAILED, A);
    m->epoch = 0;
    deliver(A, (struct payload){ 0 });
    assert_int_equal(view().state, CL_SERVING);
}

static void the_account_of_time_adds_up(void **state) {
    (void)state;
    serve();
    submit(1, 3, 12);
    for (uint64_t i = 1; i <= 12; i++) {
        b.now_ns += 5 * (uint64_t)MS_NS;
        result(i, i == 1 ? 2 : 0);
    }
    const struct coord_totals *t = view().totals;
    uint64_t parts = t->wait_us + t->queue_us + t->compute_us + t->hold_us + t->wire_us + t->sample_us;
    assert_int_equal(t->n_token, 11);             /* of decode; the first came with the prompt */
    assert_in_range(parts, t->wall_us * 98 / 100, t->wall_us * 102 / 100);
    assert_int_equal(t->compute_us, 11 * 3000);
    assert_int_equal(t->stage_compute_us[1], 12 * 2000);
    assert_int_equal(t->sample_us, 11 * 100);
}

static void stopping_ends_everything(void **state) {
    (void)state;
    serve();
    submit(1, 3, 12);
    submit(2, 3, 12);
    step((struct coord_event){ .kind = COORD_EV_STOP });
    assert_non_null(find(COORD_OUT_DONE, 1));
    assert_non_null(sent_nth(MSG_LEAVE, 1));
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(waits_for_the_expected_nodes_then_assigns),
        CASE(an_assignment_is_repeated_until_it_is_answered),
        CASE(an_assignment_names_those_who_have_what_it_needs),
        CASE(files_that_a_node_fetched_make_it_a_source),
        CASE(a_node_that_keeps_its_weights_is_no_source),
        CASE(everybody_hears_the_keys_of_a_newcomer),
        CASE(what_is_rare_is_named_before_what_many_have),
        CASE(a_second_process_with_a_name_is_refused_while_the_first_lives),
        CASE(strangers_disturb_nothing),
        CASE(the_loss_of_a_spare_changes_nothing),
        CASE(a_planner_that_contradicts_itself_is_asked_again_later),
        CASE(a_node_that_cannot_load_is_left_out_for_a_while),
        CASE(a_request_becomes_tokens),
        CASE(the_last_token_is_what_the_sampler_says),
        CASE(the_queue_is_bounded),
        CASE(an_epoch_that_cannot_be_is_refused),
        CASE(a_batch_wants_no_more_rows_than_it_may_have_segments),
        CASE(nonsense_is_refused),
        CASE(memory_is_reserved_for_the_worst_case),
        CASE(cancelled_means_silent_and_soon_gone),
        CASE(a_request_has_a_deadline_of_its_own),
        CASE(without_a_plan_a_request_ends_after_a_while),
        CASE(a_row_that_does_not_suffice_is_fetched),
        CASE(a_row_that_is_gone_costs_another_try),
        CASE(a_sampler_that_fails_ends_the_request),
        CASE(a_batch_that_is_late_is_sent_again_in_place),
        CASE(a_refused_position_computes_the_sequence_again),
        CASE(a_result_that_contradicts_the_question_is_not_used),
        CASE(only_the_last_stage_gives_results),
        CASE(a_lost_node_is_a_pause),
        CASE(what_a_stage_says_of_an_older_plan_is_dropped),
        CASE(the_account_of_time_adds_up),
        CASE(stopping_ends_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
