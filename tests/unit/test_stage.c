/* The compute seam with the real model behind it: what it refuses, what a failure leaves behind, and
 * whose tensors it holds. That the answers are right is tested in test_model_bits and
 * test_model_vectors. */
#include "tests/harness/rig.h"
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

enum { N_TEXT = 120, N_VOCAB = 333 };

static struct scratch folder;
static struct tiny_model model;
static char path[FILE_PATH_MAX], mtp_path[FILE_PATH_MAX];
static struct subject subject;                        /* of path, fast, official */

static struct stage_config config_of(uint32_t begin, uint32_t end) {
    return (struct stage_config){
        .model_path = path,
        .layer_begin = begin,
        .layer_end = end,
        .numerics = NUMERICS_OFFICIAL,
        .n_rows_max = 64,
        .n_slots = 3,
        .n_ctx_max = 200,
        .kernels = { .backend = "cpu", .precision = PRECISION_FAST, .n_threads = 1 }
    };
}

static struct stage *stage_open_range(uint32_t begin, uint32_t end) {
    struct stage_config config = config_of(begin, end);
    struct stage *s;
    struct err e;
    assert_fine(stage_model_open(&s, &config, &e), &e);
    return s;
}

static uint32_t open_seq(struct stage *s) {
    uint32_t slot;
    struct err e;
    assert_fine(stage_seq_open(s, &slot, &e), &e);
    return slot;
}

/* n tokens of text 0 for one sequence; the last row's logits, if asked for. */
static int run_text(struct stage *s, uint32_t slot, uint32_t first, uint32_t n, float *logits,
                    struct err *e) {
    struct stage_seg seg = { .slot = slot, .n = n, .token = subject.text[0].token + first };
    int32_t last = (int32_t)n - 1;
    return stage_run(s,
                     &(struct stage_batch){ .segs = &seg,
                                            .n_seg = 1,
                                            .n_rows = n,
                                            .logit_rows = &last,
                                            .n_logits = logits != NULL,
                                            .logits = logits },
                     e);
}

static void check_text(struct stage *s, uint32_t slot, uint32_t first, uint32_t n) {
    float logits[N_VOCAB];
    struct err e;
    assert_fine(run_text(s, slot, first, n, logits, &e), &e);
    assert_memory_equal(logits, subject.text[0].logits + (size_t)(first + n - 1) * N_VOCAB, sizeof logits);
}

/* ---- what is refused ---- */

static void refused(struct stage *s, const struct stage_seg *segs, uint32_t n_seg, int code,
                    const char *says) {
    struct stage_batch b = { .segs = segs, .n_seg = n_seg };
    struct err e = { 0 };
    for (uint32_t i = 0; i < n_seg; i++) b.n_rows += segs[i].n;
    int rc = stage_run(s, &b, &e);
    if (rc != code || !strstr(e.text, says))
        fail_msg("gave %d (%s), expected %d (... %s ...)", rc, e.text, code, says);
}

static void a_batch_that_cannot_be_is_refused_and_changes_nothing(void **state) {
    struct stage *s = stage_open_range(0, 0);
    uint32_t a = open_seq(s), b = open_seq(s), closed = open_seq(s);
    int32_t good[80] = { 1, 2, 3 }, late[80] = { 0 };
    struct err e;
    (void)state;
    stage_seq_close(s, closed);
    assert_fine(run_text(s, a, 0, 30, NULL, &e), &e);
    late[2] = N_VOCAB;
    refused(s, (struct stage_seg[]){ { a, 3, good }, { b, 3, late } }, 2, ERR_INVALID,
            "token id 333 is out of range");
    late[2] = -1;
    refused(s, &(struct stage_seg){ a, 3, late }, 1, ERR_INVALID, "token id -1 is out of range");
    late[2] = INT32_MIN;
    refused(s, &(struct stage_seg){ a, 3, late }, 1, ERR_INVALID, "out of range");
    refused(s, &(struct stage_seg){ a, 65, good }, 1, ERR_INVALID, "more than 64 rows");
    refused(s, (struct stage_seg[]){ { a, 60, good }, { b, 5, good } }, 2, ERR_INVALID, "more than 64 rows");
    refused(s, (struct stage_seg[]){ { a, 1, good }, { b, 0, good } }, 2, ERR_INVALID, "empty segment");
    refused(s, NULL, 0, ERR_INVALID, "empty batch");
    refused(s, (struct stage_seg[]){ { a, 1, good }, { b, 1, good }, { a, 1, good } }, 3,
            ERR_INVALID, "twice");
    refused(s, (struct stage_seg[]){ { a, 1, good }, { closed, 1, good } }, 2, ERR_INVALID, "is not open");
    refused(s, &(struct stage_seg){ 1000, 1, good }, 1, ERR_INVALID, "is not open");
    assert_int_equal(stage_seq_len(s, a), 30);
    assert_int_equal(stage_seq_len(s, b), 0);
    check_text(s, a, 30, 20);
    check_text(s, b, 0, 40);
    stage_close(s);
}

static void a_full_context_is_refused_and_the_rest_still_fits(void **state) {
    struct stage_config config = config_of(0, 0);
    struct stage *s;
    struct err e;
    (void)state;
    config.n_ctx_max = 70;
    assert_fine(stage_model_open(&s, &config, &e), &e);
    uint32_t slot = open_seq(s);
    check_text(s, slot, 0, 60);
    assert_int_equal(run_text(s, slot, 60, 11, NULL, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "70 tokens"));
    check_text(s, slot, 60, 10);
    assert_int_equal(run_text(s, slot, 70, 1, NULL, &e), ERR_LIMIT);
    assert_fine(stage_seq_rollback(s, slot, 65, &e), &e);
    check_text(s, slot, 65, 5);
    stage_close(s);
}

static void a_range_or_a_file_that_cannot_be_is_refused(void **state) {
    struct stage *s;
    struct err e;
    uint32_t n = model.hp.n_layer;
    const struct {
        uint32_t begin, end;
    } ranges[] = { { 0, n + 1 }, { n, 0 }, { 3, 3 }, { 4, 2 }, { UINT32_MAX, 0 } };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(ranges); i++) {
        struct stage_config config = config_of(ranges[i].begin, ranges[i].end);
        assert_int_equal(stage_model_open(&s, &config, &e), ERR_INVALID);
        assert_null(s);
    }
    struct stage_config config = config_of(0, 0);
    config.model_path = scratch_path(&folder, "not-there.gguf");
    assert_true(stage_model_open(&s, &config, &e) < 0);
    assert_non_null(strstr(e.text, "not-there.gguf"));
    config = config_of(0, 0);
    config.mtp_path = path;                           /* a model, but not an MTP block */
    assert_int_equal(stage_model_open(&s, &config, &e), ERR_NOTFOUND);
    assert_non_null(strstr(e.text, "mtp.0."));
    config = config_of(0, 0);
    config.kernels.backend = "abacus";
    assert_int_equal(stage_model_open(&s, &config, &e), ERR_INVALID);
    config = config_of(0, 0);
    config.n_slots = 100000;
    assert_int_equal(stage_model_open(&s, &config, &e), ERR_INVALID);
    stage_close(NULL);
}

static void without_an_mtp_block_there_are_no_drafts(void **state) {
    struct stage *s = stage_open_range(0, 0);
    struct err e;
    (void)state;
    assert_false(s->has_mtp);
    assert_int_equal(stage_run_mtp(s, &(struct stage_mtp_batch){ .n_seg = 0 }, &e), ERR_UNSUPPORTED);
    stage_close(s);
}

/* ---- a device that fails ---- */

static const struct kernels_ops *real_ops;
static struct kernels_ops bad_ops;
static int calls_left;                            /* of attention until one of them fails; below 0: never */

static void bad_attention(struct kernels *k, const struct attention_args *a) {
    if (calls_left == 0) err_set(&k->failed, ERR_DEVICE, "the device broke in this test");
    calls_left--;
    real_ops->attention(k, a);
}

static void break_after(struct stage *s, int n_calls) {
    struct kernels *k = stage_model_kernels(s);
    if (k->ops != &bad_ops) {
        real_ops = k->ops;
        bad_ops = *k->ops;
        bad_ops.attention = bad_attention;
        k->ops = &bad_ops;
    }
    calls_left = n_calls;
}

/* Wherever a short batch breaks, it may simply be given again. */
static void a_short_batch_that_failed_can_be_repeated(void **state) {
    struct stage *s = stage_open_range(0, 0);
    uint32_t slot = open_seq(s), other = open_seq(s);
    float logits[N_VOCAB];
    struct err e;
    (void)state;
    check_text(s, slot, 0, 50);
    check_text(s, other, 0, 20);
    for (int n_calls = 0; n_calls < (int)model.hp.n_layer; n_calls++)
        for (uint32_t n = 1; n <= KV_ROLLBACK; n += 5) {
            break_after(s, n_calls);
            assert_int_equal(run_text(s, slot, 50, n, logits, &e), ERR_DEVICE);
            assert_string_equal(e.text, "the device broke in this test");
            assert_int_equal(stage_seq_len(s, slot), 50);
            break_after(s, -1);
            check_text(s, slot, 50, n);
            assert_fine(stage_seq_rollback(s, slot, 50, &e), &e);
        }
    check_text(s, slot, 50, 40);
    check_text(s, other, 20, 30);
    stage_close(s);
}

/* A long one has overwritten the window it would need again: every use says so, none goes wrong. */
static void a_long_batch_that_failed_asks_for_a_new_start(void **state) {
    struct stage *s = stage_open_range(0, 0);
    uint32_t slot = open_seq(s), other = open_seq(s), fork;
    struct buf saved;
    struct err e;
    (void)state;
    check_text(s, slot, 0, 50);
    check_text(s, other, 0, 20);
    break_after(s, 1);
    assert_int_equal(run_text(s, slot, 50, 40, NULL, &e), ERR_DEVICE);
    break_after(s, -1);
    assert_int_equal(stage_seq_len(s, slot), 50);
    assert_int_equal(run_text(s, slot, 50, 40, NULL, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "lost its state"));
    assert_int_equal(run_text(s, slot, 50, 1, NULL, &e), ERR_INVALID);
    assert_int_equal(stage_seq_fork(s, slot, 50, &fork, &e), ERR_INVALID);
    buf_init(&saved, 1 << 24);
    assert_int_equal(stage_seq_save(s, slot, &saved, &e), ERR_INVALID);
    buf_deinit(&saved);
    check_text(s, other, 20, 30);
    assert_fine(stage_seq_rollback(s, slot, 0, &e), &e);
    check_text(s, slot, 0, 60);
    stage_close(s);
}

static void stages_agree_on_lengths_after_one_of_them_failed(void **state) {
    (void)state;
    for (uint32_t n = 10; n <= 30; n += 20) {         /* can be taken back; cannot */
        struct rig r;
        float *logits = xcalloc(30 * N_VOCAB, sizeof *logits);
        struct err e;
        rig_open(&r, &subject, &(struct rig_options){ .cuts = "1,3" });
        struct rig_seq seq = rig_seq_open(&r, 0);
        rig_feed(&r, &seq, 50, 64);
        break_after(r.g.stage[1], 0);
        struct stage_seg seg = { .slot = seq.slot, .n = n, .token = subject.text[0].token + 50 };
        assert_int_equal(engine_run(&r.g, &seg, 1, NULL, 0, logits, &e), ERR_DEVICE);
        break_after(r.g.stage[1], -1);
        for (int i = 0; i < 3; i++) assert_int_equal(stage_seq_len(r.g.stage[i], seq.slot), n == 10 ? 50 : 0);
        seq.len = stage_seq_len(r.g.stage[0], seq.slot);
        rig_feed(&r, &seq, 90, 64);
        free(logits);
        rig_close(&r);
    }
}

/* ---- streams, rows and shares ---- */

static void streams_come_out_for_all_rows_whatever_logits_are_asked_for(void **state) {
    struct stage *s = stage_open_range(0, 0);
    uint64_t n_floats = 20ull * HC_STREAMS * model.hp.n_embd;
    float *x[3], logits[N_VOCAB];
    int32_t last = 19;
    struct err e;
    (void)state;
    for (int i = 0; i < 3; i++) {
        uint32_t slot = open_seq(s);
        struct stage_seg seg = { .slot = slot, .n = 20, .token = subject.text[0].token };
        x[i] = xcalloc(n_floats, sizeof(float));
        struct stage_batch b = { .segs = &seg, .n_seg = 1, .n_rows = 20, .x_out = x[i] };
        if (i == 1) b.logit_rows = &last, b.n_logits = 1, b.logits = logits;
        assert_fine(stage_run(s, &b, &e), &e);
        assert_memory_equal(x[0], x[i], n_floats * sizeof(float));
    }
    assert_memory_equal(logits, subject.text[0].logits + 19 * N_VOCAB, sizeof logits);
    assert_true(x[0][0] != 0 && x[0][n_floats - 1] != 0);
    for (int i = 0; i < 3; i++) free(x[i]);
    stage_close(s);
}

static bool count_progress(void *ctx, uint64_t done, uint64_t total) {
    uint64_t *seen = ctx;
    assert_true(done >= seen[0] && done <= total);
    seen[0] = done, seen[1] = total, seen[2]++;
    return seen[3] == 0 || seen[2] < seen[3];
}

static void a_stage_holds_the_tensors_of_its_layers_and_no_others(void **state) {
    uint64_t whole, sum = 0;
    struct stage *s = stage_open_range(0, 0);
    struct err e;
    (void)state;
    whole = stage_model_memory(s).weights;
    assert_true(s->has_embed && s->has_head);
    stage_close(s);
    for (uint32_t l = 0; l < model.hp.n_layer; l++) {
        uint64_t seen[4] = { 0 };
        struct stage_config config = config_of(l, l + 1);
        config.progress = count_progress, config.progress_ctx = seen;
        assert_fine(stage_model_open(&s, &config, &e), &e);
        assert_true(s->has_embed == (l == 0) && s->has_head == (l + 1 == model.hp.n_layer));
        assert_int_equal(seen[0], seen[1]);           /* all of its bytes, and nobody else's */
        assert_int_equal(stage_model_memory(s).weights, seen[1]);
        sum += seen[1];
        stage_close(s);
    }
    assert_int_equal(sum, whole);
}

static void loading_can_be_stopped(void **state) {
    uint64_t seen[4] = { 0, 0, 0, 10 };
    struct stage_config config = config_of(0, 0);
    struct stage *s;
    struct err e;
    (void)state;
    config.progress = count_progress, config.progress_ctx = seen;
    assert_int_equal(stage_model_open(&s, &config, &e), ERR_CANCELLED);
    assert_null(s);
    assert_int_equal(seen[2], 10);
}

static void memory_figures_follow_the_sequences(void **state) {
    struct stage *s = stage_open_range(0, 0);
    struct err e;
    (void)state;
    assert_int_equal(stage_model_memory(s).state, 0);
    assert_true(stage_model_memory(s).work > 0);
    uint32_t slot = open_seq(s);
    assert_int_equal(stage_model_memory(s).state, stage_model_state_bytes_for(s, 0));
    assert_fine(run_text(s, slot, 0, 64, NULL, &e), &e);
    uint64_t used = stage_model_memory(s).state;
    assert_true(used > stage_model_state_bytes_for(s, 0) && used <= stage_model_state_bytes_for(s, 64));
    stage_seq_close(s, slot);
    assert_int_equal(stage_model_memory(s).state, 0);
    assert_non_null(gguf_find_tensor(stage_model_gguf(s), "output.weight"));
    stage_close(s);
}

static void the_number_of_rows_is_kept_within_bounds(void **state) {
    static const struct {
        uint32_t asked, given;
    } rows[] = { { 0, STAGE_ROWS_DEFAULT }, { 1, 16 }, { 100, 100 }, { 1u << 30, 1 << 16 } };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct stage_config config = config_of(0, 1);
        struct stage *s;
        struct err e;
        config.n_rows_max = rows[i].asked;
        assert_fine(stage_model_open(&s, &config, &e), &e);
        assert_int_equal(s->n_rows_max, rows[i].given);
        stage_close(s);
    }
}

/* ---- sequences of a stage that drafts ---- */

/* What the MTP block makes of rows that the stage has computed. */
static void draft(struct stage *s, const struct stage_seg *seg, const float *x, float *logits) {
    struct stage_mtp_batch b = {
        .segs = seg, .n_seg = 1, .n_rows = seg->n, .x_in = x, .logits = logits
    };
    struct err e;
    assert_fine(stage_run_mtp(s, &b, &e), &e);
}

static void the_drafts_state_follows_the_sequence(void **state) {
    struct stage_config config = config_of(0, 0);
    struct stage *s;
    struct buf saved;
    struct err e;
    uint32_t slot, fork, again;
    uint64_t row = (uint64_t)HC_STREAMS * model.hp.n_embd;
    float *x = xcalloc(40 * row, sizeof *x), *logits[3];
    (void)state;
    for (int i = 0; i < 3; i++) logits[i] = xcalloc(40 * N_VOCAB, sizeof(float));
    config.mtp_path = mtp_path;
    assert_fine(stage_model_open(&s, &config, &e), &e);
    assert_true(s->has_mtp);
    slot = open_seq(s);
    struct stage_seg seg = { .slot = slot, .n = 40, .token = subject.text[0].token };
    assert_fine(
        stage_run(s, &(struct stage_batch){ .segs = &seg, .n_seg = 1, .n_rows = 40, .x_out = x },
                  &e),
        &e);
    draft(s, &seg, x, logits[0]);
    /* taken back by ten: the same ten drafts again */
    assert_fine(stage_seq_rollback(s, slot, 30, &e), &e);
    struct stage_seg tail = { .slot = slot, .n = 10, .token = seg.token + 30 };
    draft(s, &tail, x + 30 * row, logits[1]);
    assert_memory_equal(logits[1], logits[0] + 30 * N_VOCAB, 10 * N_VOCAB * sizeof(float));
    /* a fork and a restored one begin without drafts */
    assert_fine(stage_seq_fork(s, slot, 30, &fork, &e), &e);
    buf_init(&saved, 1 << 24);
    assert_fine(stage_seq_save(s, slot, &saved, &e), &e);
    assert_fine(stage_seq_restore(s, saved.data, saved.size, &again, &e), &e);
    buf_deinit(&saved);
    seg.slot = fork;
    draft(s, &seg, x, logits[1]);
    seg.slot = again;
    draft(s, &seg, x, logits[2]);
    assert_memory_equal(logits[1], logits[0], 40 * N_VOCAB * sizeof(float));
    assert_memory_equal(logits[2], logits[0], 40 * N_VOCAB * sizeof(float));
    assert_int_equal(stage_seq_len(s, fork), 30);
    stage_close(s);
    free(x);
    for (int i = 0; i < 3; i++) free(logits[i]);
}

static int group_open(void **state) {
    static const uint32_t branches[] = { 40 };
    (void)state;
    scratch_open(&folder);
    tiny_model_init(&model, 'a', "q2q4", 9);
    snprintf(path, sizeof path, "%s", scratch_path(&folder, "model.gguf"));
    snprintf(mtp_path, sizeof mtp_path, "%s", scratch_path(&folder, "mtp.gguf"));
    tiny_write(&model, path);
    tiny_write_mtp(&model, mtp_path);
    subject = (struct subject){ .path = path,
                                .precision = "fast",
                                .numerics = "official",
                                .name = "stage",
                                .n_vocab = N_VOCAB };
    assert_int_equal(model.hp.n_vocab, N_VOCAB);
    subject_open(&subject, N_TEXT, branches, 1, 0);
    return 0;
}

static int group_close(void **state) {
    (void)state;
    subject_close(&subject);
    scratch_close(&folder);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_batch_that_cannot_be_is_refused_and_changes_nothing),
        TEST(a_full_context_is_refused_and_the_rest_still_fits),
        TEST(a_range_or_a_file_that_cannot_be_is_refused),
        TEST(without_an_mtp_block_there_are_no_drafts),
        TEST(a_short_batch_that_failed_can_be_repeated),
        TEST(a_long_batch_that_failed_asks_for_a_new_start),
        TEST(stages_agree_on_lengths_after_one_of_them_failed),
        TEST(streams_come_out_for_all_rows_whatever_logits_are_asked_for),
        TEST(a_stage_holds_the_tensors_of_its_layers_and_no_others),
        TEST(loading_can_be_stopped),
        TEST(memory_figures_follow_the_sequences),
        TEST(the_number_of_rows_is_kept_within_bounds),
        TEST(the_drafts_state_follows_the_sequence),
    };
    return cmocka_run_group_tests(tests, group_open, group_close);
}
