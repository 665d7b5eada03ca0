/* The memory of tool calls: whole turns through parser, memory, client and renderer, and its limits. */
#include "coordinator/replay.h"

#include "cli/tokenizer_json.h"
#include "common/base/rng.h"
#include "common/model/chat_format.h"
#include "common/model/dsml.h"
#include "common/model/synth_vocab.h"
#include "tests/harness/test.h"

/* What a model wrote, unlike anything we would: numbers, blanks, order of attributes, no newline. */
#define ANSWER                                                                                     \
    "I need it.</think>Let me look.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke "                 \
    "name=\"weather\">\n<｜DSML｜parameter "                                                     \
    "name=\"city\" string=\"true\">Rome \"I\"</｜DSML｜parameter><｜DSML｜parameter "          \
    "string=\"false\" name=\"n\">"                                                                 \
    "1.50</｜DSML｜parameter>\n</｜DSML｜invoke>\n\n<｜DSML｜invoke "                        \
    "name=\"f\">\n<｜DSML｜parameter name=\"o\" "                                                \
    "string=\"false\">{\"k\":[1,  "                                                                \
    "2e0]}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"

static struct chat_text text_of(const struct buf *b) {
    return (struct chat_text){ b->data, b->size };
}

static struct tokenizer *open_tokenizer(void) {
    struct tokenizer *t;
    struct err e;
    const char *path = vectors_folder("tokenizer/tokenizer.json");
    if (path) {
        struct tokenizer_json tj;
        assert_fine(tokenizer_json_open(&tj, path, &e), &e);
        assert_fine(tokenizer_new_vocab(&t, &tj.vocab, &e), &e);
        tokenizer_json_close(&tj);
        return t;
    }
    struct synth_vocab sv;                        /* the project's own vocabulary, the layout is the same */
    assert_fine(synth_vocab_init(&sv, 4096, &e), &e);
    assert_fine(tokenizer_new_vocab(&t, &sv.vocab, &e), &e);
    synth_vocab_deinit(&sv);
    return t;
}

static void encode(const struct tokenizer *t, const struct chat_prompt *p, struct token_buf *ids) {
    for (size_t i = 0; i < p->n_segments; i++) {
        const struct chat_segment *s = &p->segments[i];
        assert_int_equal(tokenizer_encode(t, p->text.data + s->at, s->len, s->control, ids, NULL), 0);
    }
}

/* Feeds an answer, remembers its block under "call_0", "call_1" ... */
static void remember(struct replay *r, const char *answer, struct dsml_message *m) {
    static const struct chat_text ids[] = { { "call_0", 6 }, { "call_1", 6 }, { "call_2", 6 } };
    struct dsml_options o = { .in_reasoning = true, .tools = true };
    struct dsml_stream *s;
    struct dsml_delta d;
    struct err e;
    size_t from, to;
    assert_fine(dsml_stream_new(&s, &o, &e), &e);
    assert_int_equal(dsml_stream_feed(s, answer, strlen(answer)), 0);
    dsml_message_init(m);
    while (dsml_stream_next(s, &d)) assert_int_equal(dsml_message_add(m, &d), 0);
    assert_true(dsml_stream_block(s, &from, &to));
    assert_fine(replay_put(r, ids, m->n_calls, (struct chat_text){ answer + from, to - from }, &e), &e);
    dsml_stream_free(s);
}

/* The client's history behind the answer: the calls as it got them, and their results. */
static size_t history(struct chat_message *out, struct chat_call *calls, const struct dsml_message *m) {
    static const char *const ids[] = { "call_0", "call_1" };
    for (size_t i = 0; i < m->n_calls; i++)
        calls[i] = (struct chat_call){ chat_text_of(ids[i]), text_of(&m->calls[i].name),
                                       text_of(&m->calls[i].arguments) };
    static const struct chat_text tools[] = { { "{\"name\":\"weather\"}", 18 }, { "{\"name\":\"f\"}", 12 } };
    out[0] = (struct chat_message){
        .role = CHAT_ROLE_SYSTEM, .content = chat_text_of("Be brief."), .tools = tools, .n_tools = 2
    };
    out[1] = (struct chat_message){ .role = CHAT_ROLE_USER, .content = chat_text_of("What about Rome?") };
    out[2] = (struct chat_message){ .role = CHAT_ROLE_ASSISTANT,
                                    .content = text_of(&m->content),
                                    .reasoning = text_of(&m->reasoning),
                                    .calls = calls,
                                    .n_calls = m->n_calls };
    out[3] = (struct chat_message){ .role = CHAT_ROLE_TOOL, .content = chat_text_of("sunny"),
                                    .call_id = chat_text_of("call_0") };
    out[4] = (struct chat_message){ .role = CHAT_ROLE_TOOL, .content = chat_text_of("{}"),
                                    .call_id = chat_text_of("call_1") };
    return 5;
}

static void the_next_prompt_begins_with_prompt_and_answer_token_for_token(void **state) {
    (void)state;
    struct tokenizer *t = open_tokenizer();
    struct chat_options o = { .encoding = CHAT_V4_0731, .thinking = true, .open_turn = true };
    struct chat_prompt first, next, forgot;
    struct token_buf before = { 0 }, after = { 0 }, without = { 0 };
    struct chat_message messages[5];
    struct chat_call calls[2];
    struct dsml_message m;
    struct replay *r;
    struct arena arena;
    struct err e;
    assert_fine(replay_new(&r, 0, &e), &e);
    remember(r, ANSWER, &m);
    assert_int_equal(m.n_calls, 2);
    size_t n = history(messages, calls, &m);
    chat_prompt_init(&first);
    chat_prompt_init(&next);
    chat_prompt_init(&forgot);
    assert_fine(chat_render(&first, messages, 2, &o, &e), &e);
    encode(t, &first, &before);
    assert_int_equal(tokenizer_encode(t, ANSWER CHAT_EOS, strlen(ANSWER CHAT_EOS), true, &before, NULL), 0);

    assert_fine(chat_render(&forgot, messages, n, &o, &e), &e);
    encode(t, &forgot, &without);
    arena_init(&arena, 1 << 20);
    assert_int_equal(replay_fill(r, messages, n, &arena), 1);
    assert_fine(chat_render(&next, messages, n, &o, &e), &e);
    encode(t, &next, &after);
    assert_true(after.n > before.n && without.n > 0);
    assert_memory_equal(after.ids, before.ids, before.n * sizeof *before.ids);
    /* it makes a difference */
    assert_memory_not_equal(without.ids, before.ids, before.n * sizeof *before.ids);

    token_buf_free(&before);
    token_buf_free(&after);
    token_buf_free(&without);
    chat_prompt_deinit(&first);
    chat_prompt_deinit(&next);
    chat_prompt_deinit(&forgot);
    arena_deinit(&arena);
    dsml_message_deinit(&m);
    replay_free(r);
    tokenizer_free(t);
}

static void what_the_client_changed_is_rendered_anew(void **state) {
    (void)state;
    struct chat_message messages[5];
    struct chat_call calls[2];
    struct dsml_message m;
    struct replay *r;
    struct arena arena;
    assert_int_equal(replay_new(&r, 0, NULL), 0);
    remember(r, ANSWER, &m);
    arena_init(&arena, 1 << 20);
    size_t n = history(messages, calls, &m);
    calls[1].arguments = chat_text_of("{\"o\": {\"k\": [1, 3]}}");
    assert_int_equal(replay_fill(r, messages, n, &arena), 0);
    n = history(messages, calls, &m);
    calls[1].arguments = chat_text_of("{ \"o\" : {\"k\":[1,2e0] } }");  /* spelt otherwise, the same value */
    assert_int_equal(replay_fill(r, messages, n, &arena), 1);
    n = history(messages, calls, &m);
    calls[0].id = chat_text_of("call_9");
    assert_int_equal(replay_fill(r, messages, n, &arena), 0);
    n = history(messages, calls, &m);
    messages[2].n_calls = 1;                      /* one of two: not the block any more */
    assert_int_equal(replay_fill(r, messages, n, &arena), 0);
    struct replay_stats s = replay_stats(r);
    assert_int_equal(s.n_hit, 1);
    assert_int_equal(s.n_miss, 2);
    assert_int_equal(s.n_differ, 1);
    arena_deinit(&arena);
    dsml_message_deinit(&m);
    replay_free(r);
}

/* ---- limits ---- */

static bool knows(struct replay *r, const char *id, struct arena *a) {
    struct chat_call call = { chat_text_of(id), chat_text_of("f"), chat_text_of("{}") };
    struct chat_message m = { .role = CHAT_ROLE_ASSISTANT, .calls = &call, .n_calls = 1 };
    int rc = replay_fill(r, &m, 1, a);
    assert_true(rc >= 0);
    return rc == 1;
}

static const char plain_block[] = "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke "
                                  "name=\"f\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

static void put_plain(struct replay *r, const char *id) {
    struct chat_text ids = chat_text_of(id);
    struct err e;
    assert_fine(replay_put(r, &ids, 1, chat_text_of(plain_block), &e), &e);
}

static void the_least_recently_used_goes_first_and_memory_stays_bounded(void **state) {
    (void)state;
    struct replay *r;
    struct arena arena;
    char id[32];
    enum { BYTES = 256 << 10 };
    assert_int_equal(replay_new(&r, BYTES, NULL), 0);
    arena_init(&arena, 16 << 20);
    put_plain(r, "kept");
    for (int i = 0; i < 20000; i++) {
        snprintf(id, sizeof id, "call_%d", i);
        put_plain(r, id);
        if (i % 100 == 0) assert_true(knows(r, "kept", &arena));
        struct replay_stats s = replay_stats(r);
        assert_true(s.bytes <= BYTES + 65536 * sizeof(void *) / 8);
        assert_int_equal(s.n_blocks, s.n_ids);
    }
    assert_true(knows(r, "call_19999", &arena) && knows(r, "call_19900", &arena));
    assert_false(knows(r, "call_5", &arena));
    assert_true(replay_stats(r).n_evicted > 15000);
    replay_free(r);
    arena_deinit(&arena);
}

static void an_id_means_the_last_block_that_had_it(void **state) {
    (void)state;
    const struct chat_text ids[] = { { "a", 1 }, { "b", 1 } };
    struct replay *r;
    struct arena arena;
    assert_int_equal(replay_new(&r, 0, NULL), 0);
    arena_init(&arena, 1 << 20);
    assert_int_equal(replay_put(r, ids, 2, chat_text_of("old"), NULL), 0);
    put_plain(r, "a");
    assert_true(knows(r, "a", &arena));
    assert_int_equal(replay_stats(r).n_ids, 1);
    assert_int_equal(replay_put(r, ids, 0, chat_text_of("x"), NULL), ERR_LIMIT);
    const struct chat_text twice[] = { { "c", 1 }, { "c", 1 } }, empty = { "", 0 };
    assert_int_equal(replay_put(r, twice, 2, chat_text_of("x"), NULL), ERR_INVALID);
    assert_int_equal(replay_put(r, &empty, 1, chat_text_of("x"), NULL), ERR_INVALID);
    assert_int_equal(replay_stats(r).n_blocks, 1);
    replay_free(r);
    arena_deinit(&arena);
}

/* ---- stored ---- */

static void what_was_saved_comes_back_and_damage_is_noticed(void **state) {
    (void)state;
    struct replay *r, *back;
    struct arena arena;
    struct buf all, some, again;
    char id[32];
    assert_int_equal(replay_new(&r, 0, NULL), 0);
    assert_int_equal(replay_new(&back, 0, NULL), 0);
    arena_init(&arena, 1 << 20);
    for (int i = 0; i < 20; i++) {
        snprintf(id, sizeof id, "call_%d", i);
        put_plain(r, id);
    }
    buf_init(&all, 1 << 20);
    buf_init(&some, 1 << 20);
    buf_init(&again, 1 << 20);
    const struct chat_text wanted[] = { { "call_3", 6 }, { "call_17", 7 } };
    assert_int_equal(replay_save(r, wanted, 2, &some), 0);
    assert_int_equal(replay_load(back, some.data, some.size, NULL), 0);
    assert_int_equal(replay_stats(back).n_ids, 2);
    assert_true(knows(back, "call_17", &arena) && !knows(back, "call_4", &arena));
    assert_int_equal(replay_save(r, NULL, 0, &all), 0);
    replay_free(back);
    assert_int_equal(replay_new(&back, 0, NULL), 0);
    assert_int_equal(replay_load(back, all.data, all.size, NULL), 0);
    assert_int_equal(replay_save(back, NULL, 0, &again), 0);          /* the order is kept as well */
    assert_int_equal(again.size, all.size);
    assert_memory_equal(again.data, all.data, all.size);
    for (size_t i = 0; i < some.size; i++) {
        some.data[i] ^= 4;
        assert_int_equal(replay_load(back, some.data, some.size, NULL), ERR_CORRUPT);
        some.data[i] ^= 4;
        assert_int_equal(replay_load(back, some.data, i, NULL), ERR_CORRUPT);
    }
    assert_int_equal(replay_stats(back).n_put, 20);
    buf_deinit(&all);
    buf_deinit(&some);
    buf_deinit(&again);
    replay_free(r);
    replay_free(back);
    arena_deinit(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(the_next_prompt_begins_with_prompt_and_answer_token_for_token),
        TEST(what_the_client_changed_is_rendered_anew),
        TEST(the_least_recently_used_goes_first_and_memory_stays_bounded),
        TEST(an_id_means_the_last_block_that_had_it),
        TEST(what_was_saved_comes_back_and_damage_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
