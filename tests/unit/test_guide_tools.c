/* Constrained decoding of calls, reasoning and free text: what must come comes, what is free stays free. */
#include "tests/harness/guide_world.h"

/* ---- tools ---- */

static const struct guide_tool tools[] = {
    { { "weather", 7 }, { PARAMETERS, sizeof PARAMETERS - 1 }, true },
    { { "free", 4 }, { NULL, 0 }, false },
    { { "none", 4 }, { "{\"type\":\"object\",\"properties\":{}}", 33 }, false },
};

static void judge_calls(const struct dsml_message *m) {
    for (size_t i = 0; i < m->n_calls; i++) {
        json_t *value = parsed(m->calls[i].arguments.data), *schema = parsed(PARAMETERS);
        assert_true(json_is_object(value));
        bool known = false;
        for (size_t k = 0; k < COUNT_OF(tools); k++)
            known |= strcmp(m->calls[i].name.data, tools[k].name.data) == 0;
        if (!known) fail_msg("a tool called %s", m->calls[i].name.data);
        if (strcmp(m->calls[i].name.data, "weather") == 0 && !check_value(schema, schema, value))
            fail_msg("arguments %s", m->calls[i].arguments.data);
        if (strcmp(m->calls[i].name.data, "none") == 0) assert_int_equal(json_object_size(value), 0);
        json_decref(value);
        json_decref(schema);
    }
}

/* What is held may be read by the tolerant parser, and by the reference's. */
static void read_calls(const struct guide_options *o, const struct answer *a, struct dsml_message *m) {
    struct err e;
    struct dsml_options d = { .in_reasoning = o->in_reasoning, .tools = true };
    dsml_message_init(m);
    assert_fine(dsml_parse(m, (struct chat_text){ a->text.data, a->text.size }, &d, !a->complete, &e), &e);
}

static void required_calls_are_calls_with_valid_arguments(void **state) {
    (void)state;
    int n_complete = 0, n_calls = 0, rounds = test_rounds(400);
    for (int i = 0; i < rounds; i++) {
        struct guide_options o = { .calls = GUIDE_CALLS_REQUIRED, .tools = tools, .n_tools = COUNT_OF(tools),
                                   .one_call = i % 3 == 0, .in_reasoning = i % 2 };
        if (i % 5 == 0) o.n_tools = 1;            /* a named one */
        struct service_guide *g = guide_of(&small, &o);
        struct answer a;
        struct dsml_message m;
        say(&small, g, (uint64_t)i, STEPS, &a);
        g->free(g);
        read_calls(&o, &a, &m);
        judge_calls(&m);
        if (a.complete) {
            assert_true(m.n_calls >= 1);
            assert_int_equal(m.content.size, 0);
            assert_int_equal(m.finish, DSML_FINISH_CALLS);
            if (o.one_call) assert_int_equal(m.n_calls, 1);
            if (o.n_tools == 1) assert_string_equal(m.calls[0].name.data, "weather");
            struct dsml_message strict;
            struct err e;
            buf_add_text(&a.text, CHAT_EOS);
            dsml_message_init(&strict);
            if (dsml_parse_strict(&strict, (struct chat_text){ a.text.data, a.text.size },
                                  o.in_reasoning, &e) < 0)
                fail_msg("%s: %s", e.text, a.text.data);
            assert_int_equal(strict.n_calls, m.n_calls);
            dsml_message_deinit(&strict);
        }
        n_complete += a.complete;
        n_calls += (int)m.n_calls;
        dsml_message_deinit(&m);
        buf_deinit(&a.text);
    }
    print_message("     %d of %d answers came to an end, %d calls\n", n_complete, rounds, n_calls);
    assert_true(n_complete > rounds / 2);
}

static void protocol_words_are_greedy_and_values_are_not(void **state) {
    (void)state;
    static const struct { const char *text; bool greedy; } steps[] = {
        { "think</think>", false }, { "Let me see.\n\n", false }, { "<｜DSML｜tool_calls>\n<", true },
        { "｜DSML｜invoke name=\"", false }, { "weather", false }, { "\">\n<｜DSML｜parameter", true },
        { " name=\"city\"", true }, { " string=\"true\">", false }, { "New York", false },
        { "</｜DSML｜parameter>", true }, { "\n<｜DSML｜parameter name=\"deep\" string=\"", true },
        { "false\">", false }, { "{\"k\": [\"a\"", false }, { "]}", true }, { "</｜DSML｜", true },
        { "parameter>\n</｜DSML｜invoke>\n", true },
    };
    for (int strict = 0; strict < 2; strict++) {
        struct guide_options o = {
            .calls = GUIDE_CALLS_FREE, .tools = tools + !strict, .n_tools = 1, .in_reasoning = true
        };
        struct service_guide *g = guide_of(&small, &o);
        for (size_t i = 0; i < COUNT_OF(steps); i++) {
            struct service_steer s;
            assert_false(read_text(g, steps[i].text));
            g->next(g, &s);
            bool known_name = strict && i == 4;   /* nothing else can follow it */
            if (s.greedy != (steps[i].greedy || known_name))
                fail_msg("%sgreedy behind %s", s.greedy ? "" : "not ", steps[i].text);
            assert_int_equal(s.allowed != NULL, strict && i >= 2);  /* strict tools: held inside the block */
        }
        assert_true(read_text(g, "</｜DSML｜tool_calls>"));
        g->free(g);
    }
}

static void free_text_is_left_alone(void **state) {
    (void)state;
    struct guide_options o = { .calls = GUIDE_CALLS_FREE, .tools = tools + 1, .n_tools = 1 };
    struct service_guide *g = guide_of(&small, &o);
    struct service_steer s;
    assert_false(read_text(
        g,
        "Plain <b>text</b>, \xff and <｜DSML｜invoke name=\"x\">\n, <｜DSML｜tool_calls>nonsense"));
    g->next(g, &s);
    assert_null(s.allowed);
    assert_false(s.greedy);
    assert_true(g->accept(g, tokenizer_eos(small.t)));
    g->free(g);
    o.calls = GUIDE_CALLS_NONE;
    struct err e;
    assert_fine(guide_new(&g, small.v, &o, &e), &e);
    assert_null(g);
}

/* However the model spells a block: its closing tag is the end, as for the parser of the answer. */
static void a_block_that_is_closed_ends_the_answer(void **state) {
    (void)state;
    for (int one_call = 0; one_call < 2; one_call++) {
        struct guide_options o = {
            .calls = GUIDE_CALLS_FREE, .tools = tools + 1, .n_tools = 1, .one_call = one_call
        };
        struct service_guide *g = guide_of(&small, &o);
        assert_false(read_text(g, "Hm.\n<｜DSML｜tool_calls><｜DSML｜invoke name=\"free\"> "
                                  "<｜DSML｜parameter string=\"false\" "
                                  "name=\"x\">1</｜DSML｜parameter>"));
        assert_int_equal(read_text(g, "</｜DSML｜invoke>"), one_call);
        if (!one_call) assert_true(read_text(g, "\n\n</｜DSML｜tool_calls>"));
        g->free(g);
    }
}

/* In reasoning anything may be said but the end; behind it the constraint holds. */
/* Whether </think> is all that may come. */
static bool must_stop_thinking(struct service_guide *g) {
    struct service_steer s;
    int32_t end = tokenizer_find_added(small.t, CHAT_THINK_END);
    int n = 0;
    g->next(g, &s);
    for (uint32_t i = 0; s.allowed && i < small.trie->n_words; i++) n += __builtin_popcountll(s.allowed[i]);
    return n == 1 && s.greedy && (s.allowed[end / 64] >> end % 64 & 1);
}

static void reasoning_ends_when_its_tokens_are_used_up(void **state) {
    (void)state;
    const struct guide_options all[] = {
        { .in_reasoning = true, .reasoning_max = 6 },
        { .in_reasoning = true, .reasoning_max = 6, .calls = GUIDE_CALLS_FREE, .tools = tools, .n_tools = 1 },
        { .in_reasoning = true, .reasoning_max = 6, .format = GUIDE_JSON_OBJECT },
    };
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        struct service_guide *g = guide_of(&small, &all[i]);
        for (int n = 0; n < 6; n++) {
            assert_false(must_stop_thinking(g));
            assert_false(read_text(g, "1"));
        }
        assert_true(must_stop_thinking(g));
        assert_false(read_text(g, CHAT_THINK_END));
        for (int n = 0; n < 20; n++) {
            assert_false(must_stop_thinking(g));
            assert_false(read_text(g, all[i].format == GUIDE_JSON_OBJECT && n == 0 ? "{\"" : "1"));
        }
        g->free(g);
    }
    struct service_guide *g = guide_of(&small, &all[0]);
    struct token_buf ids = { 0 };                 /* spelled, it is the end as well */
    assert_int_equal(tokenizer_encode(small.t, "<</thi", 6, false, &ids, NULL), 0);
    for (size_t i = 0; i < ids.n; i++) assert_false(g->accept(g, ids.ids[i]));
    ids.n = 0;
    assert_int_equal(tokenizer_encode(small.t, "nk>", 3, false, &ids, NULL), 0);
    for (size_t i = 0; i < ids.n; i++) assert_false(g->accept(g, ids.ids[i]));
    for (int n = 0; n < 9; n++) assert_false(read_text(g, "1"));
    assert_false(must_stop_thinking(g));
    token_buf_free(&ids);
    g->free(g);
    assert_int_equal(guide_new(&g, small.v, &(struct guide_options){ .reasoning_max = 6 }, NULL), 0);
    assert_null(g);                               /* it does not think at all */
}

static void reasoning_is_free_and_cannot_end_the_answer(void **state) {
    (void)state;
    struct guide_options o = { .format = GUIDE_JSON_SCHEMA,
                               .schema = chat_text_of("{\"const\":[1,2]}"),
                               .in_reasoning = true };
    for (int spelled = 0; spelled < 2; spelled++) {
        struct service_guide *g = guide_of(&small, &o);
        struct service_steer s;
        int32_t eos = tokenizer_eos(small.t);
        assert_false(read_text(g, "{ \"not\" bound } <thinking> </thin"));
        g->next(g, &s);
        assert_non_null(s.allowed);
        assert_false(s.allowed[eos / 64] >> eos % 64 & 1);
        if (spelled) {                           /* the tag from ordinary tokens is a tag to the parser too */
            struct token_buf ids = { 0 };
            assert_int_equal(tokenizer_encode(small.t, " </think>", 9, false, &ids, NULL), 0);
            for (size_t i = 0; i < ids.n; i++) assert_false(g->accept(g, ids.ids[i]));
            token_buf_free(&ids);
        } else assert_false(read_text(g, " so: </think>"));
        g->next(g, &s);
        int n = 0;
        for (uint32_t i = 0; i < small.trie->n_words; i++) n += __builtin_popcountll(s.allowed[i]);
        assert_in_range(n, 1, 2);                 /* "[" and perhaps "[1" */
        assert_true(read_text(g, "[1, 2]"));
        g->free(g);
    }
}

/* Nobody promised to keep to such a schema; the call itself is still held. */
static void a_tool_with_an_odd_schema_can_be_required_unless_it_is_strict(void **state) {
    (void)state;
    static const char *const odd[] = {
        "{\"type\":\"object\",\"properties\":{\"x\":{\"type\":\"any\"}}}", "[]", "{\"type\":", "7",
        "{\"type\":\"object\",\"properties\":{\"x\":{\"not\":{}}},\"minProperties\":1}",
        "{\"anyOf\":[{\"required\":[\"a\"]}]}", "{\"properties\":{\"x\":{\"$ref\":\"#/nowhere\"}}}",
    };
    for (size_t i = 0; i < COUNT_OF(odd); i++) {
        struct guide_tool tool = { { "f", 1 }, chat_text_of(odd[i]), false };
        struct guide_options o = {
            .calls = GUIDE_CALLS_REQUIRED, .tools = &tool, .n_tools = 1, .one_call = true
        };
        struct service_guide *g = guide_of(&small, &o);
        assert_true(read_text(
            g,
            "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"x\" "
            "string=\"true\">y</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"));
        g->free(g);
        struct err e = { 0 };
        tool.strict = true;
        assert_true(guide_new(&g, small.v, &o, &e) < 0 && !g);
        assert_true(e.text[0] != 0);
    }
}

static void json_or_a_call_where_both_were_offered(void **state) {
    (void)state;
    struct guide_options o = {
        .format = GUIDE_JSON_OBJECT, .calls = GUIDE_CALLS_FREE, .tools = tools, .n_tools = 2
    };
    struct service_guide *g = guide_of(&small, &o);
    assert_true(read_text(g, "{\"a\": null}"));
    g->free(g);
    g = guide_of(&small, &o);
    assert_true(read_text(
        g,
        "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"free\">\n<｜DSML｜parameter name=\"x\" "
        "string=\"false\">7</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"));
    g->free(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(required_calls_are_calls_with_valid_arguments),
        TEST(protocol_words_are_greedy_and_values_are_not),
        TEST(free_text_is_left_alone),
        TEST(a_block_that_is_closed_ends_the_answer),
        TEST(reasoning_ends_when_its_tokens_are_used_up),
        TEST(reasoning_is_free_and_cannot_end_the_answer),
        TEST(a_tool_with_an_odd_schema_can_be_required_unless_it_is_strict),
        TEST(json_or_a_call_where_both_were_offered),
    };
    return cmocka_run_group_tests(tests, open_worlds, close_worlds);
}
