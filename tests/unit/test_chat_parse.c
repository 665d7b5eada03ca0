/* common/model/dsml: generated text against the expected messages, in one piece and in all
 * pieces. */
#include "tests/harness/test.h"

#include <jansson.h>

#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/base/utf8.h"
#include "common/model/chat.h"
#include "common/model/chat_format.h"
#include "common/model/dsml.h"
#include "common/sys/file.h"

#define OPEN         "\n\n" CHAT_CALLS_OPEN "\n"
#define INVOKE(name) CHAT_INVOKE_OPEN name "\">\n"
#define STRING(name, value)                                                                        \
    CHAT_PARAMETER_OPEN name "\" string=\"true\">" value CHAT_PARAMETER_CLOSE "\n"
#define OTHER(name, value)                                                                         \
    CHAT_PARAMETER_OPEN name "\" string=\"false\">" value CHAT_PARAMETER_CLOSE "\n"
#define CLOSE CHAT_INVOKE_CLOSE "\n"
#define END   CHAT_CALLS_CLOSE

/* ---- vectors ---- */

struct vector_case {
    char *id;
    bool thinking, tools, cut, error;
    struct chat_text text;
    const json_t *message;
    json_t *line;
};

struct cases {
    struct vector_case item[64];
    size_t n;
};

static const char *word(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static void read_case(struct vector_case *c, const char *line, size_t len) {
    c->line = json_loadb(line, len, 0, NULL);
    assert_non_null(c->line);
    const json_t *text = json_object_get(c->line, "completion");
    c->text = (struct chat_text){ json_string_value(text), json_string_length(text) };
    c->thinking = strcmp(word(c->line, "thinking_mode"), "thinking") == 0;
    c->tools = !json_is_false(json_object_get(c->line, "tools_offered"));
    c->cut = strcmp(word(c->line, "stopped"), "length") == 0;
    c->error = json_is_true(json_object_get(c->line, "error"));
    c->message = json_object_get(c->line, "message");
}

/* False: the vectors are not here. */
static bool cases_read(struct cases *all, const char *name) {
    struct err e;
    void *bytes;
    size_t size;
    const char *path = vectors_folder(name);
    all->n = 0;
    if (!path) return false;
    assert_fine(file_read_all(path, 1 << 26, &bytes, &size, &e), &e);
    for (char *at = bytes, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        assert_true(all->n < COUNT_OF(all->item));
        read_case(&all->item[all->n++], at, (size_t)(end - at));
    }
    free(bytes);
    return true;
}

static void cases_free(struct cases *all) {
    for (size_t i = 0; i < all->n; i++) json_decref(all->item[i].line);
}

static const char *finish_word(enum dsml_finish finish) {
    static const char *const words[] = { "stop", "length", "tool_calls" };
    return words[finish];
}

static void check_message(const struct vector_case *c, const struct dsml_message *m) {
    const json_t *calls = json_object_get(c->message, "tool_calls");
    const char *finish = word(c->message, "finish_reason");
    print_message("%s\n", word(c->line, "id"));
    assert_string_equal(m->content.data, word(c->message, "content"));
    assert_string_equal(m->reasoning.data, word(c->message, "reasoning_content"));
    assert_int_equal(m->n_calls, json_array_size(calls));
    for (size_t i = 0; i < m->n_calls; i++) {
        assert_string_equal(m->calls[i].name.data, word(json_array_get(calls, i), "name"));
        assert_string_equal(m->calls[i].arguments.data,
                            word(json_array_get(calls, i), "arguments"));
    }
    if (*finish) assert_string_equal(finish_word(m->finish), finish);
}

static struct dsml_options options_of(const struct vector_case *c) {
    return (struct dsml_options){ .in_reasoning = c->thinking, .tools = c->tools };
}

static void strict_texts_are_parsed_as_the_reference_does(void **state) {
    (void)state;
    struct cases all;
    if (!cases_read(&all, "chat/parse.jsonl")) skip();
    assert_int_equal(all.n, 39);
    for (size_t i = 0; i < all.n; i++) {
        const struct vector_case *c = &all.item[i];
        struct dsml_message m;
        struct err e = { 0 };
        dsml_message_init(&m);
        int rc = dsml_parse_strict(&m, c->text, c->thinking, &e);
        if (c->error != (rc == ERR_INVALID)) fail_msg("%s: %d %s", word(c->line, "id"), rc, e.text);
        if (!c->error) check_message(c, &m);
        dsml_message_deinit(&m);
    }
    cases_free(&all);
}

static void tolerant_texts_give_the_expected_messages(void **state) {
    (void)state;
    struct cases all;
    if (!cases_read(&all, "chat/parse-lenient.jsonl")) skip();
    assert_int_equal(all.n, 27);
    for (size_t i = 0; i < all.n; i++) {
        const struct vector_case *c = &all.item[i];
        struct dsml_options o = options_of(c);
        struct dsml_message m;
        struct err e;
        dsml_message_init(&m);
        assert_fine(dsml_parse(&m, c->text, &o, c->cut, &e), &e);
        check_message(c, &m);
        dsml_message_deinit(&m);
    }
    cases_free(&all);
}

/* What the strict parser takes, the tolerant one takes too; only an invalid literal differs. */
static void strict_texts_mean_the_same_to_the_tolerant_parser(void **state) {
    (void)state;
    struct cases all;
    int n = 0;
    if (!cases_read(&all, "chat/parse.jsonl")) skip();
    for (size_t i = 0; i < all.n; i++) {
        struct vector_case *c = &all.item[i];
        struct dsml_options o = options_of(c);
        struct dsml_message m;
        struct err e;
        size_t n_eos = strlen(CHAT_EOS);
        if (c->error || strcmp(word(c->line, "id"), "parse-037") == 0) continue;
        if (c->text.len >= n_eos && !memcmp(c->text.data + c->text.len - n_eos, CHAT_EOS, n_eos))
            c->text.len -= n_eos;
        dsml_message_init(&m);
        assert_fine(dsml_parse(&m, c->text, &o, false, &e), &e);
        check_message(c, &m);
        dsml_message_deinit(&m);
        n++;
    }
    assert_int_equal(n, 22); /* 23 are valid; parse-037 is the literal */
    cases_free(&all);
}

/* ---- pieces ---- */

/* Feeds an exact copy, so that a sanitizer sees every byte read beyond it. Deltas must be whole
 * characters and not empty, and calls must come one after the other. */
static void feed_piece(struct dsml_stream *s, struct dsml_message *m, const char *bytes, size_t n) {
    struct dsml_delta d;
    char *copy = malloc(n ? n : 1);
    memcpy(copy, bytes, n);
    assert_int_equal(dsml_stream_feed(s, copy, n), 0);
    free(copy);
    while (dsml_stream_next(s, &d)) {
        assert_true(utf8_valid(d.text.data, d.text.len));
        assert_true(d.text.len > 0 || d.kind == DSML_CALL_END);
        if (d.kind == DSML_CALL) assert_int_equal(d.call_i, m->n_calls);
        if (d.kind > DSML_CALL) assert_int_equal(d.call_i + 1, m->n_calls);
        assert_int_equal(dsml_message_add(m, &d), 0);
    }
}

static void end_pieces(struct dsml_stream *s, struct dsml_message *m, bool cut) {
    struct dsml_delta d;
    assert_int_equal(dsml_stream_end(s, cut), 0);
    while (dsml_stream_next(s, &d)) assert_int_equal(dsml_message_add(m, &d), 0);
    m->finish = dsml_stream_finish(s);
}

static void same_message(const struct dsml_message *a, const struct dsml_message *b) {
    assert_string_equal(a->reasoning.data, b->reasoning.data);
    assert_string_equal(a->content.data, b->content.data);
    assert_int_equal(a->n_calls, b->n_calls);
    assert_int_equal(a->finish, b->finish);
    for (size_t i = 0; i < a->n_calls; i++) {
        assert_string_equal(a->calls[i].name.data, b->calls[i].name.data);
        assert_string_equal(a->calls[i].arguments.data, b->calls[i].arguments.data);
    }
}

/* One way of cutting: pieces of step bytes, the first one of `first`; step 0: random, like
 * tokens. */
static void check_cutting(struct chat_text text, const struct dsml_options *o, bool cut,
                          size_t first, size_t step, uint64_t seed,
                          const struct dsml_message *expected) {
    struct dsml_stream *s;
    struct dsml_message m;
    struct rng r;
    rng_init(&r, seed, 0);
    assert_int_equal(dsml_stream_new(&s, o, NULL), 0);
    dsml_message_init(&m);
    for (size_t at = 0, n = first; at < text.len; at += n, n = step ? step : 1 + rng_below(&r, 9)) {
        n = MIN(n, text.len - at);
        feed_piece(s, &m, text.data + at, n);
    }
    end_pieces(s, &m, cut);
    same_message(expected, &m);
    dsml_message_deinit(&m);
    dsml_stream_free(s);
}

static void check_all_cuttings(struct chat_text text, const struct dsml_options *o, bool cut) {
    struct dsml_message whole;
    struct err e;
    dsml_message_init(&whole);
    assert_fine(dsml_parse(&whole, text, o, cut, &e), &e);
    for (size_t first = 1; first < text.len; first++)
        check_cutting(text, o, cut, first, text.len, 0, &whole);
    for (size_t step = 1; step < 6; step++) check_cutting(text, o, cut, step, step, 0, &whole);
    for (uint64_t seed = 0; seed < 20; seed++) check_cutting(text, o, cut, 1, 0, seed, &whole);
    dsml_message_deinit(&whole);
}

static void check_file_in_pieces(const char *name) {
    struct cases all;
    struct chat_text stop = chat_text_of("ool");
    if (!cases_read(&all, name)) skip();
    for (size_t i = 0; i < all.n; i++) {
        for (int way = 0; way < 16; way++) {
            struct dsml_options o = options_of(&all.item[i]);
            o.live = way & 1;
            o.loose = way & 2;
            o.stops = &stop;
            o.n_stops = way >> 2 & 1;
            if (way & 8) o.in_reasoning = !o.in_reasoning;
            check_all_cuttings(all.item[i].text, &o, all.item[i].cut);
        }
    }
    cases_free(&all);
}

static void any_cutting_of_tolerant_texts_gives_the_same(void **state) {
    (void)state;
    check_file_in_pieces("chat/parse-lenient.jsonl");
}

static void any_cutting_of_strict_texts_gives_the_same(void **state) {
    (void)state;
    check_file_in_pieces("chat/parse.jsonl");
}

/* ---- live calls ---- */

/* Live deltas joined against the expected message. They may differ in two ways: a call that broke
 * off after it was announced, and a repeated parameter, which is the same JSON value. */
static void live_calls_differ_only_where_they_must(void **state) {
    (void)state;
    struct cases all;
    int n_broken = 0, n_repeated = 0;
    if (!cases_read(&all, "chat/parse-lenient.jsonl")) skip();
    for (size_t i = 0; i < all.n; i++) {
        const struct vector_case *c = &all.item[i];
        struct dsml_options o = options_of(c);
        struct dsml_stream *s;
        struct dsml_message m;
        o.live = true;
        assert_int_equal(dsml_stream_new(&s, &o, NULL), 0);
        dsml_message_init(&m);
        feed_piece(s, &m, c->text.data, c->text.len);
        end_pieces(s, &m, c->cut);
        if (dsml_stream_broken(s)) {
            n_broken++;
        } else if (strcmp(word(c->line, "id"), "len-016") == 0) {
            json_t *live = json_loads(m.calls[0].arguments.data, 0, NULL);
            assert_string_equal(m.calls[0].arguments.data,
                                "{\"a\": \"1\", \"b\": \"2\", \"a\": \"3\"}");
            assert_string_equal(word(live, "a"), "3");
            json_decref(live);
            n_repeated++;
        } else {
            check_message(c, &m);
        }
        dsml_message_deinit(&m);
        dsml_stream_free(s);
    }
    assert_int_equal(n_broken, 3); /* len-014, len-015, len-025 */
    assert_int_equal(n_repeated, 1);
    cases_free(&all);
}

static const struct dsml_options live = { .tools = true, .live = true };
static const struct dsml_options whole = { .tools = true };

/* Pieces go in, lines come out: kind:text, one per delta, '|' between feeds. */
static char *transcript(const struct dsml_options *o, const char *const *pieces, bool cut) {
    static const char letters[] = "RCNAE";
    struct dsml_stream *s;
    struct dsml_delta d;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_int_equal(dsml_stream_new(&s, o, NULL), 0);
    for (bool ended = false; !ended;) {
        ended = !*pieces;
        if (ended)
            dsml_stream_end(s, cut);
        else
            dsml_stream_feed(s, *pieces, strlen(*pieces));
        while (dsml_stream_next(s, &d)) {
            buf_printf(&b, "%c:", letters[d.kind]);
            buf_add(&b, d.text.data, d.text.len);
            buf_add_char(&b, ' ');
        }
        buf_add_text(&b, ended ? finish_word(dsml_stream_finish(s)) : "| ");
        pieces += !ended;
    }
    dsml_stream_free(s);
    return buf_detach(&b);
}

#define PIECES(...)                                                                                \
    (const char *const[]) {                                                                        \
        __VA_ARGS__, NULL                                                                          \
    }

static void expect_transcript(const struct dsml_options *o, const char *const *pieces, bool cut,
                              const char *expected) {
    char *have = transcript(o, pieces, cut);
    assert_string_equal(have, expected);
    free(have);
}

static void text_goes_out_as_soon_as_it_is_certain(void **state) {
    (void)state;
    const struct dsml_options thinking = { .tools = true, .in_reasoning = true };
    expect_transcript(&thinking, PIECES("<thi", "s", " a<", "/th", "x", "</", "think>", "ok"),
                      false, "| R:<this | R: a | | R:</thx | | | C:ok | stop");
    expect_transcript(&whole, PIECES("Hello", "\n", "\n", "\n", "x", "a\n\n<", "b"), false,
                      "C:Hello | | | C:\n | C:\n\nx | C:a | C:\n\n<b | stop");
    expect_transcript(&whole, PIECES("a\n", "\n", "<", "｜DSML｜", "tool", "box"), false,
                      "C:a | | | | | C:\n\n<｜DSML｜toolbox | stop");
    expect_transcript(&whole, PIECES("x\n\n<｜DSML｜t"), true, "C:x | C:\n\n<｜DSML｜t length");
}

static void live_arguments_flow(void **state) {
    (void)state;
    expect_transcript(
        &live,
        PIECES("hi\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f", "\">\n",
               "<｜DSML｜parameter name=\"p\" string=\"true\">", "a \"b\"\n<", "/c", "</｜",
               "DSML｜parameter>\n", "<｜DSML｜parameter name=\"q\" string=\"false\"> [1",
               ",2] </｜DSML｜parameter>", "\n</｜DSML｜invoke>\n",
               "<｜DSML｜invoke name=\"g\"></｜DSML｜invoke>", "</｜DSML｜tool_calls>x"),
        false,
        "C:hi | N:f | A:{\"p\": \" | A:a \\\"b\\\"\\n | A:</c | | A:\" | | "
        "A:, \"q\": [1,2] | A:} E: | N:g A:{} E: | | tool_calls");
}

static void an_announced_call_that_breaks_off_is_closed_unless_it_was_cut(void **state) {
    (void)state;
    static const char in_string[] =
        OPEN INVOKE("f") "<｜DSML｜parameter name=\"p\" string=\"true\">ab</";
    static const char in_other[] =
        OPEN INVOKE("f") "<｜DSML｜parameter name=\"p\" string=\"false\">1";
    expect_transcript(&live, PIECES(in_string), false, "N:f A:{\"p\": \"ab | A:</\"} E: stop");
    expect_transcript(&live, PIECES(in_string), true, "N:f A:{\"p\": \"ab | A:</ length");
    expect_transcript(&live, PIECES(in_other), false, "N:f | A:{} E: stop");
    expect_transcript(&live, PIECES(in_other), true, "N:f | length");
    expect_transcript(&live, PIECES(OPEN INVOKE("f") "oops", "more"), true, "N:f A:{} E: | | stop");
    expect_transcript(&live, PIECES(OPEN INVOKE("f") STRING("a", "1") "?", "more"), false,
                      "N:f A:{\"a\": \"1\"} E: | | stop");
    expect_transcript(&live, PIECES(OPEN INVOKE("f") CLOSE INVOKE("g") "?"), false,
                      "N:f A:{} E: N:g A:{} E: | stop");
}

static void whole_calls_come_when_they_are_complete(void **state) {
    (void)state;
    expect_transcript(
        &whole, PIECES("hi", OPEN INVOKE("f"), STRING("a", "1"), CLOSE, INVOKE("g"), "?", "x"),
        false, "C:hi | | | N:f A:{\"a\": \"1\"} E: | | | | tool_calls");
    expect_transcript(&whole, PIECES("hi", OPEN INVOKE("f"), "?", "\n" OPEN), false,
                      "C:hi | | C:" OPEN INVOKE("f") "? | C:\n" OPEN " | stop");
}

static void one_call_can_be_all_that_is_wanted(void **state) {
    (void)state;
    const struct dsml_options one = { .tools = true, .calls_max = 1 };
    expect_transcript(&one, PIECES(OPEN INVOKE("f") CLOSE INVOKE("g") CLOSE END), true,
                      "N:f A:{} E: | tool_calls");
}

static void loose_markup_needs_the_option(void **state) {
    (void)state;
    static const char plain[] =
        "a\n\n<tool_calls>\n<invoke name=\"f\">\n<parameter name=\"p\" string=\"true\">"
        "v</parameter>\n</invoke>\n</tool_calls>";
    static const char half[] =
        "a<DSML｜invoke name=\"f\"><DSML｜parameter name=\"p\">v</DSML｜parameter>"
        "</DSML｜invoke></DSML｜tool_calls>";
    const struct dsml_options loose = { .tools = true, .loose = true };
    expect_transcript(&loose, PIECES(plain), false, "C:a N:f A:{\"p\": \"v\"} E: | tool_calls");
    expect_transcript(&loose, PIECES(half), false, "C:a N:f A:{\"p\": \"v\"} E: | tool_calls");
    char *have = transcript(&whole, PIECES(plain), false);
    assert_int_equal(strncmp(have, "C:a\n\n<tool_calls>", 17), 0);
    free(have);
}

static void attributes_are_read_in_any_order_and_nothing_else(void **state) {
    (void)state;
    static const struct {
        const char *tag, *expected;
    } cases[] = {
        { "<｜DSML｜invoke  x=\"1\"\n name=\"f>\"  >", "N:f> A:{} E: | tool_calls" },
        { "<｜DSML｜invoke name=\"f\" name=\"g\">", "N:f A:{} E: | tool_calls" },
        { "<｜DSML｜invoke name=f>", NULL },
        { "<｜DSML｜invoke name='f'>", NULL },
        { "<｜DSML｜invoke name=\"\">", NULL },
        { "<｜DSML｜invokename=\"f\">", NULL },
        { "<｜DSML｜invoke name=\"f\"x=\"y\">", NULL },
        { "<｜DSML｜invoke name=\"f\" />", NULL },
        { "<｜DSML｜invoke name=\"f>", NULL },
        { "<｜DSML｜invoke>", NULL },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char text[256], raw[300];
        snprintf(text, sizeof text, "%s</｜DSML｜invoke></｜DSML｜tool_calls>", cases[i].tag);
        snprintf(raw, sizeof raw, "C:%s | stop", text);
        char *have = transcript(&whole, PIECES(text), false);
        /* Text that is given back only at the end comes behind the bar. */
        if (!cases[i].expected && have[0] == '|') snprintf(raw, sizeof raw, "| C:%s stop", text);
        assert_string_equal(have, cases[i].expected ? cases[i].expected : raw);
        free(have);
    }
}

/* ---- stop strings ---- */

static void stops_end_content_and_nothing_else(void **state) {
    (void)state;
    struct chat_text stops[] = { chat_text_of("STOP"), chat_text_of("\n\nHuman"),
                                 chat_text_of("é!") };
    struct dsml_options o = { .tools = true, .in_reasoning = true, .stops = stops, .n_stops = 3 };
    expect_transcript(&o, PIECES("STOP", " here</think>a S", "TO", "x ST", "OP b", "c"), false,
                      "R:STOP | R: here C:a  | | C:STOx  | | | stop");
    o.in_reasoning = false;
    expect_transcript(&o, PIECES("a" OPEN INVOKE("STOP") STRING("STOP", "STOP") CLOSE END), false,
                      "C:a N:STOP A:{\"STOP\": \"STOP\"} E: | tool_calls");
    expect_transcript(&o, PIECES("a\n", "\nHum", "an: x"), true, "C:a | | | stop");
    expect_transcript(&o, PIECES("a\n", "\nHumm", "\n\n"), true,
                      "C:a | C:\n\nHumm | | C:\n\n length");
    expect_transcript(&o, PIECES("è é", "?é", "!"), false, "C:è  | C:é? | | stop");
    expect_transcript(&o, PIECES("ST"), false, "| C:ST stop");
    expect_transcript(&o, PIECES("ST", OPEN INVOKE("f") CLOSE), false,
                      "| C:ST N:f A:{} E: | tool_calls");
}

static void the_stop_that_is_complete_first_counts(void **state) {
    (void)state;
    struct chat_text stops[] = { chat_text_of("abcd"), chat_text_of("bc"), chat_text_of("xbc"),
                                 chat_text_of("aab") };
    struct dsml_options o = { .stops = stops, .n_stops = 4 };
    static const struct {
        const char *text, *content;
        int stop_i;
    } cases[] = {
        { "abcd", "a", 1 }, { "xbcd", "", 2 },      { "aaab", "a", 3 },
        { "aabcd", "", 3 }, { "acbd", "acbd", -1 }, { "ababab", "ababab", -1 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        for (size_t step = 1; step < 6; step++) {
            struct dsml_stream *s;
            struct dsml_message m;
            size_t len = strlen(cases[i].text);
            dsml_message_init(&m);
            assert_int_equal(dsml_stream_new(&s, &o, NULL), 0);
            for (size_t at = 0; at < len; at += step)
                feed_piece(s, &m, cases[i].text + at, MIN(step, len - at));
            end_pieces(s, &m, false);
            assert_string_equal(m.content.data, cases[i].content);
            assert_int_equal(dsml_stream_stop_i(s), cases[i].stop_i);
            dsml_message_deinit(&m);
            dsml_stream_free(s);
        }
    }
}

static void bad_stops_are_refused(void **state) {
    (void)state;
    static char text[DSML_STOP_BYTES_MAX + 1];
    struct chat_text stops[DSML_STOPS_MAX + 1];
    struct dsml_options o = { .stops = stops, .n_stops = DSML_STOPS_MAX + 1 };
    struct dsml_stream *s;
    for (size_t i = 0; i < COUNT_OF(stops); i++) stops[i] = chat_text_of("x");
    assert_int_equal(dsml_stream_new(&s, &o, NULL), ERR_LIMIT);
    o.n_stops = 2;
    stops[1].len = 0;
    assert_int_equal(dsml_stream_new(&s, &o, NULL), ERR_INVALID);
    stops[1] = (struct chat_text){ text, sizeof text };
    assert_int_equal(dsml_stream_new(&s, &o, NULL), ERR_LIMIT);
}

/* ---- keeping what was sampled ---- */

static void the_sampled_block_can_be_kept(void **state) {
    (void)state;
    static const char text[] = "why</think>Hi\n\n\n" CHAT_CALLS_OPEN "\n" INVOKE("f")
        OTHER("a", "1.50") CLOSE INVOKE("g") CLOSE END "x";
    static const char block[] = OPEN INVOKE("f") OTHER("a", "1.50") CLOSE INVOKE("g") CLOSE END;
    struct chat_call calls[] = {
        { { NULL, 0 }, chat_text_of("f"), chat_text_of("{ \"a\":1.5 }") },
        { { NULL, 0 }, chat_text_of("g"), chat_text_of(" ") },
    };
    for (int way = 0; way < 2; way++) {
        for (size_t step = 1; step < sizeof text; step++) {
            struct dsml_options o = { .in_reasoning = true, .tools = true, .live = way };
            struct dsml_stream *s;
            size_t from, to;
            assert_int_equal(dsml_stream_new(&s, &o, NULL), 0);
            for (size_t at = 0; at < strlen(text); at += step) {
                assert_false(dsml_stream_block(s, &from, &to) && at < strlen(text) - 1);
                dsml_stream_feed(s, text + at, MIN(step, strlen(text) - at));
            }
            assert_true(dsml_stream_block(s, &from, &to));
            assert_int_equal(to - from, strlen(block));
            assert_memory_equal(text + from, block, strlen(block));
            dsml_stream_free(s);
        }
    }
    assert_true(dsml_block_says(chat_text_of(block), calls, 2));
    assert_false(dsml_block_says(chat_text_of(block), calls, 1));
    calls[1].name = chat_text_of("h");
    assert_false(dsml_block_says(chat_text_of(block), calls, 2));
    calls[1].name = chat_text_of("g");
    calls[0].arguments = chat_text_of("{\"a\":1.51}");
    assert_false(dsml_block_says(chat_text_of(block), calls, 2));
    calls[0].arguments = chat_text_of("{\"a\":");
    assert_false(dsml_block_says(chat_text_of(block), calls, 2));
}

/* ---- limits ---- */

/* A block of n calls with n_parameters each, into *b. */
static void put_block(struct buf *b, size_t n, size_t n_parameters, bool close) {
    buf_add_text(b, OPEN);
    for (size_t i = 0; i < n; i++) {
        buf_add_text(b, INVOKE("f"));
        for (size_t k = 0; k < n_parameters; k++)
            buf_printf(b, CHAT_PARAMETER_OPEN "p%zu\">%zu" CHAT_PARAMETER_CLOSE "\n", k, k);
        buf_add_text(b, CLOSE);
    }
    if (close) buf_add_text(b, END);
}

static void expect_counts(const struct buf *b, bool is_live, size_t n_calls, bool content) {
    struct dsml_options o = { .tools = true, .live = is_live };
    struct dsml_message m;
    struct err e;
    dsml_message_init(&m);
    assert_fine(dsml_parse(&m, (struct chat_text){ b->data, b->size }, &o, false, &e), &e);
    assert_int_equal(m.n_calls, n_calls);
    assert_int_equal(m.content.size > 0, content);
    dsml_message_deinit(&m);
}

static void limits_break_the_markup_and_not_the_server(void **state) {
    (void)state;
    struct buf b;
    buf_init(&b, 1 << 26);
    put_block(&b, DSML_CALLS_MAX + 5, 0, true);
    expect_counts(&b, false, DSML_CALLS_MAX, false);
    expect_counts(&b, true, DSML_CALLS_MAX, false);
    buf_clear(&b);
    put_block(&b, 1, DSML_PARAMETERS_MAX, true);
    expect_counts(&b, false, 1, false);
    buf_clear(&b);
    put_block(&b, 1, DSML_PARAMETERS_MAX + 1, true);
    expect_counts(&b, false, 0, true);
    buf_clear(&b);
    buf_add_text(&b, OPEN CHAT_INVOKE_OPEN);
    for (int i = 0; i < DSML_TAG_BYTES_MAX; i++) buf_add_char(&b, 'n');
    buf_add_text(&b, "\">" CLOSE END);
    expect_counts(&b, false, 0, true);
    buf_deinit(&b);
}

/* With a step that looks at everything again these would be 10^12 steps. */
static void a_megabyte_in_single_bytes_takes_linear_time(void **state) {
    (void)state;
    static const char *const heads[] = {
        "",
        OPEN,
        OPEN INVOKE("f"),
        OPEN INVOKE("f") "{\"a\":\"",
        OPEN INVOKE("f") "<｜DSML｜parameter name=\"p\">",
        OPEN INVOKE("f") "<｜DSML｜parameter name=\"p\" string=\"false\">"
    };
    static const char *const bodies[] = { "x", "<", "\n", "<｜", "</｜DSML｜parameter", " " };
    for (size_t h = 0; h < COUNT_OF(heads); h++) {
        for (size_t k = 0; k < COUNT_OF(bodies) * 2; k++) {
            struct dsml_options o = { .tools = true, .live = k & 1 };
            const char *body = bodies[k / 2];
            size_t len = strlen(body);
            struct dsml_stream *s;
            assert_int_equal(dsml_stream_new(&s, &o, NULL), 0);
            dsml_stream_feed(s, heads[h], strlen(heads[h]));
            for (size_t i = 0; i < 1 << 18; i++) dsml_stream_feed(s, body + i % len, 1);
            assert_int_equal(dsml_stream_end(s, false), 0);
            dsml_stream_free(s);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(strict_texts_are_parsed_as_the_reference_does),
        TEST(tolerant_texts_give_the_expected_messages),
        TEST(strict_texts_mean_the_same_to_the_tolerant_parser),
        TEST(any_cutting_of_tolerant_texts_gives_the_same),
        TEST(any_cutting_of_strict_texts_gives_the_same),
        TEST(live_calls_differ_only_where_they_must),
        TEST(text_goes_out_as_soon_as_it_is_certain),
        TEST(live_arguments_flow),
        TEST(an_announced_call_that_breaks_off_is_closed_unless_it_was_cut),
        TEST(whole_calls_come_when_they_are_complete),
        TEST(one_call_can_be_all_that_is_wanted),
        TEST(loose_markup_needs_the_option),
        TEST(attributes_are_read_in_any_order_and_nothing_else),
        TEST(stops_end_content_and_nothing_else),
        TEST(the_stop_that_is_complete_first_counts),
        TEST(bad_stops_are_refused),
        TEST(the_sampled_block_can_be_kept),
        TEST(limits_break_the_markup_and_not_the_server),
        TEST(a_megabyte_in_single_bytes_takes_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
