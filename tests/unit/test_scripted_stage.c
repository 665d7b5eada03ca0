/* The scripted stage of the tests: that it speaks its lines under the same rules as a real stage. */
#include "tests/harness/scripted_stage.h"

#include "common/model/synth.h"
#include "tests/harness/scratch.h"
#include "tests/harness/test.h"

static const char lines_text[] =
    "# a comment\n"
    "{\"match\": \"Rome?\", \"answer\": \"thinking</think>It is sunny.\"}\n"
    "{\"match\": \"<tool_result>42</tool_result>\", \"answer\": \"It is 42.\", \"delay_us\": 2000}\n"
    "{\"match\": \"Count:\", \"answer\": \"one \", \"repeat\": 3}\n";

static struct script script;
static struct stage *stage;
static struct tokenizer *t;
static struct scratch scratch;
static const char *model;

static int open_all(void **state) {
    struct synth *s;
    struct gguf *g;
    struct err e;
    struct synth_options o = { .preset = "tiny", .seed = 1 };
    (void)state;
    scratch_open(&scratch);
    model = scratch_path(&scratch, "tiny.gguf");
    assert_fine(synth_new(&s, &o, &e), &e);
    assert_fine(synth_write(s, model, &e), &e);
    synth_free(s);
    assert_fine(script_open(&script, NULL, &e), &e);
    assert_fine(script_parse(&script, lines_text, sizeof lines_text - 1, &e), &e);
    struct stage_config config = { .model_path = model, .n_slots = 3, .n_ctx_max = 512 };
    assert_fine(script.factory.open(&script.factory, &stage, &config, &e), &e);
    assert_fine(gguf_open(&g, model, &e), &e);
    assert_fine(tokenizer_new(&t, g, &e), &e);
    gguf_close(g);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    stage_close(stage);
    script_close(&script);
    tokenizer_free(t);
    scratch_close(&scratch);
    return 0;
}

/* Runs tokens; the likeliest token behind them. */
static int32_t run(uint32_t slot, const int32_t *token, size_t n) {
    static float logits[1 << 17];
    struct stage_seg seg = { slot, (uint32_t)n, token };
    int32_t last = (int32_t)n - 1, best = 0;
    struct stage_batch batch = { .segs = &seg, .n_seg = 1, .n_rows = (uint32_t)n, .logit_rows = &last,
                                 .n_logits = 1, .logits = logits };
    struct err e;
    assert_fine(stage_run(stage, &batch, &e), &e);
    for (uint32_t id = 0; id < stage->hp.n_vocab; id++)
        if (logits[id] > logits[best]) best = (int32_t)id;
    return best;
}

/* What is said behind a prompt, up to the end token. Leaves the sequence as it is. */
static void answer_of(uint32_t slot, const char *prompt, struct buf *out, int most) {
    struct token_buf ids = { 0 };
    assert_int_equal(tokenizer_encode(t, prompt, strlen(prompt), true, &ids, NULL), 0);
    int32_t id = ids.n ? run(slot, ids.ids, ids.n) : 0;
    for (int i = 0; i < most && id != tokenizer_eos(t); i++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(t, id, &len);
        buf_add(out, bytes, len);
        id = run(slot, &id, 1);
    }
    token_buf_free(&ids);
}

static void expect(const char *prompt, const char *answer) {
    struct buf out;
    uint32_t slot;
    buf_init(&out, 1 << 20);
    assert_int_equal(stage_seq_open(stage, &slot, NULL), 0);
    answer_of(slot, prompt, &out, 300);
    assert_string_equal(out.data, answer);
    stage_seq_close(stage, slot);
    buf_deinit(&out);
}

static void speaks_the_line_that_the_end_of_the_prompt_asks_for(void **state) {
    (void)state;
    expect("<｜User｜>Rome?<｜Assistant｜><think>", "thinking</think>It is sunny.");
    expect("<｜User｜>Rome?<｜Assistant｜></think>", "It is sunny.");
    expect("<｜User｜>x<｜Assistant｜></think>y<｜User｜><tool_result>42</"
           "tool_result><｜Assistant｜><think>",
           "</think>It is 42.");
    expect("Count:", "one one one ");
    expect("<｜User｜>Paris?<｜Assistant｜></think>", "I have no lines for this.");
    expect(
        "<｜User｜>Rome?<｜Assistant｜></think>It is sunny.<｜User｜>Rome?<｜Assistant｜></think>",
        "It is sunny.");
}

static void goes_on_after_rollback_fork_and_restore(void **state) {
    (void)state;
    struct buf out, snapshot;
    uint32_t slot, other, back;
    struct err e;
    buf_init(&out, 1 << 20);
    buf_init(&snapshot, 1 << 20);
    assert_int_equal(stage_seq_open(stage, &slot, NULL), 0);
    answer_of(slot, "<｜User｜>Rome?<｜Assistant｜></think>", &out, 3);
    uint32_t n = stage_seq_len(stage, slot);
    assert_fine(stage_seq_fork(stage, slot, n, &other, &e), &e);
    assert_fine(stage_seq_save(stage, slot, &snapshot, &e), &e);
    assert_fine(stage_seq_restore(stage, snapshot.data, snapshot.size, &back, &e), &e);
    assert_int_equal(stage_seq_len(stage, other), n);
    assert_int_equal(stage_seq_len(stage, back), n);
    struct scripted_seq *q = scripted_of(stage)->seq;
    int32_t last = q[slot].token[n - 1];
    const uint32_t slots[] = { slot, other, back };
    int32_t next[3];
    for (int i = 0; i < 3; i++) {                 /* the last token once more, as a replay would */
        assert_fine(stage_seq_rollback(stage, slots[i], n - 1, &e), &e);
        next[i] = run(slots[i], &last, 1);
        assert_int_equal(next[i], next[0]);
    }
    assert_int_equal(stage_seq_open(stage, &back, &e), ERR_BUSY);
    assert_int_equal(stage_seq_rollback(stage, slot, n + 1, &e), ERR_INVALID);
    assert_int_equal(stage_seq_restore(stage, "SCRIPT", 6, &back, &e), ERR_CORRUPT);
    for (int i = 0; i < 3; i++) stage_seq_close(stage, slots[i]);
    buf_deinit(&out);
    buf_deinit(&snapshot);
}

static void a_failed_batch_changes_nothing(void **state) {
    (void)state;
    static int32_t many[600];
    uint32_t slot;
    struct err e;
    assert_int_equal(stage_seq_open(stage, &slot, NULL), 0);
    run(slot, many, 500);
    struct stage_seg seg = { slot, 13, many };
    struct stage_batch batch = { .segs = &seg, .n_seg = 1, .n_rows = 13 };
    assert_int_equal(stage_run(stage, &batch, &e), ERR_LIMIT);
    assert_int_equal(stage_seq_len(stage, slot), 500);
    /* further than the real one can */
    assert_int_equal(stage_seq_rollback(stage, slot, 100, &e), ERR_INVALID);
    assert_int_equal(stage_seq_rollback(stage, slot, 490, &e), 0);
    assert_int_equal(stage_seq_rollback(stage, slot, 0, &e), 0);
    stage_seq_close(stage, slot);
}

static void a_script_that_is_none_is_refused_by_line(void **state) {
    (void)state;
    static const char *const texts[] = { "{\"match\": \"a\"}", "nonsense",
                                         "{\"match\": 7, \"answer\": \"\"}" };
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        struct script s;
        struct err e = { 0 };
        char text[256];
        assert_int_equal(script_open(&s, NULL, NULL), 0);
        snprintf(text, sizeof text, "{\"match\": \"\", \"answer\": \"\"}\n%s\n", texts[i]);
        assert_true(script_parse(&s, text, strlen(text), &e) < 0);
        assert_non_null(strstr(e.text, "line 2"));
        script_close(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(speaks_the_line_that_the_end_of_the_prompt_asks_for),
        TEST(goes_on_after_rollback_fork_and_restore),
        TEST(a_failed_batch_changes_nothing),
        TEST(a_script_that_is_none_is_refused_by_line),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
