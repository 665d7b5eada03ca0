/* The coordinator core alone: sequences that are kept, prompts beside their answers, and what may not be
 * taken over. */
#include "tests/harness/coord_bench.h"

/* ---- sequences that are kept ---- */

static struct msg_seg seg_sent(void) {
    assert_non_null(sent(MSG_WORK));
    return sent(MSG_WORK)->u.work.seg[0];
}

/* A prompt of n times `token` and its answer of two; the sequence that is kept holds n + 1 tokens. */
static uint64_t converse(uint64_t tag, int32_t token, uint32_t n) {
    int32_t text[64];
    for (uint32_t i = 0; i < n; i++) text[i] = token;
    submit_text(tag, text, n, 2, 0);
    uint64_t batch = sent(MSG_WORK)->u.work.batch, seq = seg_sent().seq;
    b.next_token = 100;
    result(batch, (int32_t)n - 1);
    result(batch + 1, 0);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, 0);
    return seq;
}

static void a_prompt_that_goes_on_is_not_computed_again(void **state) {
    (void)state;
    serve();
    uint64_t seq = converse(1, 5, 3);
    assert_int_equal(view().n_parked, 1);
    assert_null(sent(MSG_SYNC));                  /* it lives on */
    int32_t text[] = { 5, 5, 5, 100, 101, 8, 8 };
    submit_text(2, text, 7, 1, 0);
    assert_int_equal(seg_sent().seq, seq);
    assert_int_equal(seg_sent().pos0, 4);
    assert_int_equal(seg_sent().n, 3);
    assert_int_equal(sent(MSG_WORK)->u.work.token[0], 101);
    assert_int_equal(view().n_parked, 0);
    result(3, 2);
    assert_int_equal(find(COORD_OUT_DONE, 0)->n_cached, 4);
    assert_int_equal(view().n_parked, 1);
    assert_int_equal(view().totals->n_cached_row, 4);
}

static void the_same_prompt_again_computes_its_last_token(void **state) {
    (void)state;
    serve();
    uint64_t seq = converse(1, 5, 10);
    int32_t text[] = { 5, 5, 5, 5, 5, 5, 5, 5, 5, 5 };
    submit_text(2, text, 10, 2, 0);
    assert_int_equal(seg_sent().seq, seq);
    assert_int_equal(seg_sent().pos0, 9);
    assert_int_equal(seg_sent().n, 1);
}

static void after_going_back_the_first_segment_travels_alone(void **state) {
    (void)state;
    int32_t text[50] = { 5, 5, 5 };
    serve();
    uint64_t seq = converse(1, 5, 3);             /* 5 5 5 100, and now 5 5 5 0 0 0 ... */
    submit_text(2, text, 50, 2, 0);
    assert_int_equal(seg_sent().seq, seq);
    assert_int_equal(seg_sent().pos0, 3);
    assert_int_equal(seg_sent().n, 32);
    assert_null(sent_nth(MSG_WORK, 1));
    tick(1);
    assert_null(sent(MSG_WORK));
    result(3, -1);
    assert_int_equal(seg_sent().pos0, 35);
    assert_int_equal(seg_sent().n, 15);
    result(4, 14);
    result(5, 0);
    seq = converse(3, 7, 3);
    int32_t more[50] = { 7, 7, 7, 100 };          /* nothing is taken back: no need to wait */
    submit_text(4, more, 50, 2, 0);
    assert_int_equal(seg_sent().seq, seq);
    assert_int_equal(seg_sent().pos0, 4);
    assert_non_null(sent_nth(MSG_WORK, 1));
}

static void what_stages_cannot_take_back_is_computed_anew(void **state) {
    (void)state;
    int32_t text[20];
    serve();
    uint64_t seq = converse(1, 5, 30);            /* holds 31 */
    for (int i = 0; i < 20; i++) text[i] = i < 14 ? 5 : 6;
    submit_text(2, text, 20, 2, 0);               /* 31 - 14 > 16 */
    assert_true(seg_sent().seq > seq);
    assert_int_equal(seg_sent().pos0, 0);
    assert_int_equal(view().n_parked, 1);
    for (int i = 0; i < 20; i++) text[i] = i < 15 ? 5 : 6;
    submit_text(3, text, 20, 2, 0);
    assert_int_equal(seg_sent().seq, seq);
    assert_int_equal(seg_sent().pos0, 15);
}

static void the_longest_unused_is_given_up_for_a_slot(void **state) {
    (void)state;
    serve();
    uint64_t first = converse(1, 5, 3), second = converse(2, 6, 3), third = converse(3, 7, 3);
    converse(4, 8, 3);                            /* three are kept, at most */
    assert_int_equal(view().n_parked, 3);
    assert_true(first < second);
    int32_t text[] = { 6, 6, 6, 100, 9 };
    submit_text(5, text, 5, 5, 0);                /* takes the second over */
    assert_int_equal(seg_sent().seq, second);
    submit_text(6, prompt, 3, 5, 0);
    assert_int_equal(view().n_parked, 2);
    submit_text(7, prompt, 4, 5, 0);              /* two run, two are kept: no slot is free */
    assert_int_equal(view().n_parked, 1);
    const struct msg_sync *sync = &sent(MSG_SYNC)->u.sync;
    for (uint32_t i = 0; i < sync->n_seq; i++) assert_true(sync->seq[i] != third);
    assert_true(b.outs.item[0].kind != COORD_OUT_SEND || b.outs.item[0].msg->kind != MSG_WORK);
    uint32_t sync_at = 0, work_at = 0;
    for (uint32_t i = 0; i < b.outs.n; i++) {
        if (b.outs.item[i].kind != COORD_OUT_SEND) continue;
        if (b.outs.item[i].msg->kind == MSG_SYNC) sync_at = i;
        if (b.outs.item[i].msg->kind == MSG_WORK) work_at = i;
    }
    assert_true(sync_at < work_at);               /* the slot is free before it is needed */
}

static void parked_sequences_never_hold_back_memory(void **state) {
    (void)state;
    serve_with(60, 60);
    converse(1, 5, 30);
    submit_text(2, prompt, 10, 15, 0);            /* 31 + 25 <= 60 */
    assert_int_equal(view().n_parked, 1);
    submit_text(3, prompt, 10, 20, 0);            /* 31 + 25 + 30 > 60, 25 + 30 <= 60 */
    assert_int_equal(view().n_parked, 0);
    assert_int_equal(view().n_queued, 0);
    submit_text(4, prompt, 4, 4, 0);              /* those that run do */
    assert_int_equal(view().n_queued, 1);
}

static void what_a_waiting_request_could_not_use_anyway_is_kept(void **state) {
    (void)state;
    serve_with(60, 60);
    converse(1, 5, 10);
    submit_text(2, prompt, 10, 30, 0);            /* 40, and 11 are parked */
    submit_text(3, prompt, 10, 20, 0);            /* has to wait for 2, whatever is given up */
    assert_int_equal(view().n_queued, 1);
    assert_int_equal(view().n_parked, 1);
}

static void a_stopped_answer_is_kept_when_its_batch_is_back(void **state) {
    (void)state;
    serve();
    submit(1, 3, 20);
    uint64_t seq = seg_sent().seq;
    result(1, 2);
    step((struct coord_event){ .kind = COORD_EV_CANCEL, .request = b.request });
    assert_int_equal(view().n_parked, 0);
    result(2, 0);
    assert_int_equal(view().n_parked, 1);
    int32_t text[] = { 0, 0, 0, 100, 3 };
    submit_text(2, text, 5, 2, 0);
    assert_int_equal(seg_sent().seq, seq);
    assert_int_equal(seg_sent().pos0, 4);
}

static void what_was_lost_on_the_way_is_not_kept(void **state) {
    (void)state;
    serve();
    submit(1, 3, 20);
    result(1, 2);
    step((struct coord_event){ .kind = COORD_EV_CANCEL, .request = b.request });
    failed(B, 2);
    assert_int_equal(view().n_parked, 0);
    assert_int_equal(coord_seqs_alive(b.coord), 0);
    submit(2, 3, 2);
    b.sample_code = ERR_CORRUPT;
    result(3, 2);
    assert_int_equal(find(COORD_OUT_DONE, 0)->code, ERR_CORRUPT);
    assert_int_equal(view().n_parked, 0);
}

static void a_new_plan_keeps_nothing(void **state) {
    (void)state;
    serve();
    converse(1, 5, 3);
    lose_and_regain();
    int32_t text[] = { 5, 5, 5, 100, 101, 8, 8 };
    submit_text(2, text, 7, 1, 0);
    assert_int_equal(seg_sent().pos0, 0);
}

/* ---- prompts that are kept beside their answer ---- */

static void an_answer_begins_in_a_copy_of_its_prompt(void **state) {
    (void)state;
    serve();
    submit(1, 3, 4);
    uint64_t base = seg_sent().seq;
    assert_int_equal(seg_sent().from, 0);
    result(1, 2);
    uint64_t copy = seg_sent().seq;
    assert_true(copy > base);
    assert_int_equal(seg_sent().from, base);
    assert_int_equal(seg_sent().pos0, 3);
    assert_int_equal(view().n_parked, 0);         /* it may be needed again */
    result(2, 0);
    assert_int_equal(view().n_parked, 1);
    assert_int_equal(seg_sent().from, 0);
    assert_int_equal(seg_sent().seq, copy);
    int32_t text[] = { 0, 0, 0, 7, 7 };           /* the same beginning, another end, at the same time */
    submit_text(2, text, 5, 4, 0);
    assert_true(seg_sent().seq > copy);
    assert_int_equal(seg_sent().from, base);
    assert_int_equal(seg_sent().pos0, 3);
    assert_int_equal(view().n_parked, 0);         /* being copied: it may not go */
    result(3, 0);
    submit_text(3, text, 4, 4, 0);                /* 4 slots: both answers, the prompt, and this one */
    assert_int_equal(seg_sent().from, base);
    submit_text(4, text, 4, 4, 0);                /* waits until the prompt can be taken */
    assert_int_equal(view().n_queued, 1);
}

static void without_room_for_a_copy_the_prompt_itself_is_taken(void **state) {
    (void)state;
    serve_with(20, 20);
    submit(1, 3, 4);
    uint64_t base = seg_sent().seq;
    result(1, 2);
    result(2, 0);
    assert_int_equal(view().n_parked, 1);         /* 3 for it, 7 for the answer */
    int32_t text[] = { 0, 0, 0, 7, 7 };
    submit_text(2, text, 5, 7, 0);                /* 12 more: only instead of it */
    assert_int_equal(seg_sent().seq, base);
    assert_int_equal(seg_sent().from, 0);
    assert_int_equal(seg_sent().pos0, 3);
}

static void a_copy_that_was_lost_is_made_again(void **state) {
    (void)state;
    serve();
    submit(1, 3, 4);
    uint64_t base = seg_sent().seq;
    result(1, 2);
    uint64_t copy = seg_sent().seq;
    failed(B, 2);
    assert_int_equal(seg_sent().seq, copy);       /* in place */
    assert_int_equal(seg_sent().from, base);
    failed(B, 3);
    assert_int_equal(view().n_parked, 1);         /* given up: the prompt is still worth something */
    tick(100);
    assert_int_equal(seg_sent().from, base);      /* and so it begins once more */
    assert_true(seg_sent().seq > copy);
    assert_int_equal(seg_sent().pos0, 3);
    assert_int_equal(sent(MSG_WORK)->u.work.token[0], 100);
}

static void there_is_no_copy_without_room_for_it(void **state) {
    (void)state;
    serve_with(10, 10);
    submit(1, 4, 4);
    uint64_t seq = seg_sent().seq;
    result(1, 3);                                 /* 8 + 4 > 10 */
    assert_int_equal(seg_sent().seq, seq);
    assert_int_equal(seg_sent().from, 0);
}

/* What was taken over and then lost is computed again, with the same text. */
static void a_takeover_that_is_lost_is_a_replay(void **state) {
    (void)state;
    serve();
    uint64_t seq = converse(1, 5, 3);
    int32_t text[] = { 5, 5, 5, 100, 101, 8, 8 };
    submit_text(2, text, 7, 2, 0);
    refuse_position(A, 3, seq);
    assert_true(seg_sent().seq > seq);
    assert_int_equal(seg_sent().pos0, 0);
    assert_int_equal(seg_sent().n, 7);
    result(4, 6);
    assert_int_equal(find(COORD_OUT_TOKEN, 0)->index, 0);
}

#define COPIES(name) cmocka_unit_test_setup_teardown(name, set_up_copying, tear_down)
#define KEEPS(name) cmocka_unit_test_setup_teardown(name, set_up_parking, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        KEEPS(a_prompt_that_goes_on_is_not_computed_again),
        KEEPS(the_same_prompt_again_computes_its_last_token),
        KEEPS(after_going_back_the_first_segment_travels_alone),
        KEEPS(what_stages_cannot_take_back_is_computed_anew),
        KEEPS(the_longest_unused_is_given_up_for_a_slot),
        KEEPS(parked_sequences_never_hold_back_memory),
        KEEPS(what_a_waiting_request_could_not_use_anyway_is_kept),
        KEEPS(a_stopped_answer_is_kept_when_its_batch_is_back),
        KEEPS(what_was_lost_on_the_way_is_not_kept),
        KEEPS(a_new_plan_keeps_nothing),
        KEEPS(a_takeover_that_is_lost_is_a_replay),
        COPIES(an_answer_begins_in_a_copy_of_its_prompt),
        COPIES(without_room_for_a_copy_the_prompt_itself_is_taken),
        COPIES(a_copy_that_was_lost_is_made_again),
        COPIES(there_is_no_copy_without_room_for_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
