/* The parts of `pleiades run` that need no model: what a terminal may see, messages out of lines, saved
 * conversations, events out of a stream. */
#include "tests/harness/scratch.h"

#include "cli/chat_input.h"
#include "cli/chat_screen.h"
#include "cli/chat_talk.h"
#include "cli/http_client_sse.h"
#include "common/base/rng.h"
#include "common/base/utf8.h"
#include "common/sys/file.h"

/* ---- the terminal ---- */

static void check_filter(const char *text, size_t len, const char *want) {
    struct buf out;
    buf_init(&out, 1 << 20);
    chat_screen_filter(&out, text, len);
    assert_string_equal(out.data ? out.data : "", want);
    buf_deinit(&out);
}

static void ordinary_text_reaches_the_terminal_unchanged(void **state) {
    (void)state;
    static const char text[] =
        "a\n\tb ~ \xc3\xa9\xe6\x98\xb4\xf0\x9f\x8c\x8c \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d";
    check_filter(text, sizeof text - 1, text);
    check_filter("", 0, "");
}

static void escape_sequences_are_shown_and_not_obeyed(void **state) {
    (void)state;
    check_filter("\033]0;title\007x", 11, "␛]0;title␇x");
    check_filter("\033[2J\033[1;1H", 10, "␛[2J␛[1;1H");
    check_filter("a\rb\bc\0d\177", 8, "a␍b␈c␀d␡");
    check_filter("\xc2\x9b" "31m\xc2\x9d", 7, "\xef\xbf\xbd" "31m\xef\xbf\xbd");     /* 8-bit CSI and OSC */
    check_filter("\x9b" "31m", 4, "\xef\xbf\xbd" "31m");      /* the same as a raw byte: ill-formed */
    check_filter("a\xe2\x80\xae" "b\xe2\x81\xa6", 8, "a\xef\xbf\xbd" "b\xef\xbf\xbd");
    check_filter("half \xe2\x80", 7, "half \xef\xbf\xbd\xef\xbf\xbd");
}

/* Whatever comes: valid UTF-8, and no byte below 0x20 but line ends and tabs, no DEL, no C1. */
static void random_bytes_never_become_control_characters(void **state) {
    (void)state;
    struct rng rng;
    rng_init(&rng, 7, 0);
    for (int round = 0; round < test_rounds(20000); round++) {
        char text[48];
        size_t n = (size_t)rng_below(&rng, sizeof text);
        for (size_t i = 0; i < n; i++) text[i] = (char)rng_below(&rng, 256);
        struct buf out;
        buf_init(&out, 1 << 12);
        chat_screen_filter(&out, text, n);
        assert_true(utf8_valid(out.data ? out.data : "", out.size));
        for (size_t i = 0; i < out.size; i++) {
            uint8_t c = (uint8_t)out.data[i], next = (uint8_t)out.data[i + 1];
            assert_false((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f || (c == 0xc2 && next < 0xa0));
        }
        buf_deinit(&out);
    }
}

static void a_remark_is_one_line_of_whole_characters(void **state) {
    (void)state;
    struct buf out;
    buf_init(&out, 1 << 12);
    assert_string_equal(chat_screen_line(&out, "one\ntwo\tthree\033", 100), "one two three␛");
    buf_clear(&out);
    assert_string_equal(chat_screen_line(&out, "abc\xe6\x98\xb4", 5), "abc");
    buf_deinit(&out);
}

/* ---- messages out of lines ---- */

static const char *join(struct buf *out, const char *const *lines, int n, int want_used) {
    enum chat_input_more more = CHAT_INPUT_END;
    int used = 0;
    buf_clear(out);
    do more = chat_input_join(out, more, lines[used], strlen(lines[used]));
    while (++used < n && more != CHAT_INPUT_END);
    assert_int_equal(used, want_used);
    return out->data ? out->data : "";
}

static void lines_go_on_after_a_backslash_and_between_quotes(void **state) {
    (void)state;
    struct buf out;
    buf_init(&out, 1 << 12);
    assert_string_equal(join(&out, (const char *[]){ "one", "two" }, 2, 1), "one");
    assert_string_equal(join(&out, (const char *[]){ "one\\", "two\\", "three", "four" }, 4, 3),
                        "one\ntwo\nthree");
    assert_string_equal(join(&out, (const char *[]){ "\"\"\"", "a", "", "b\\", "\"\"\"", "c" }, 6, 5),
                        "a\n\nb\\");
    assert_string_equal(join(&out, (const char *[]){ "\"\"\"a", "b\"\"\"", "c" }, 3, 2), "a\nb");
    assert_string_equal(join(&out, (const char *[]){ "\"\"\"all in one\"\"\"", "c" }, 2, 1), "all in one");
    assert_string_equal(join(&out, (const char *[]){ "\"\"\"open", "for ever" }, 2, 2), "open\nfor ever");
    buf_deinit(&out);
}

/* ---- conversations ---- */

static struct chat_text text_of(const char *text) {
    return chat_text_of(text);
}

static void a_saved_conversation_comes_back_byte_by_byte(void **state) {
    (void)state;
    struct chat_talk talk = { 0 }, back = { 0 };
    struct err e = { 0 };
    struct scratch folder;
    scratch_open(&folder);
    const char *path = scratch_path(&folder, "talk.json");
    assert_fine(chat_talk_restart(&talk, "be \"brief\"\n", &e), &e);
    assert_fine(chat_talk_add(&talk, CHAT_ROLE_USER, (struct chat_text){ "a\0b\033\t\\", 6 },
                              text_of(""), &e),
                &e);
    assert_fine(chat_talk_add(&talk, CHAT_ROLE_ASSISTANT, text_of("\xe6\x98\xb4"), text_of("hm\n"), &e), &e);
    assert_fine(chat_talk_save(&talk, path, &e), &e);
    assert_fine(chat_talk_load(&back, path, &e), &e);
    assert_int_equal(back.n, 3);
    assert_int_equal(back.bytes, talk.bytes);
    for (int i = 0; i < 3; i++) {
        const struct chat_turn *a = &talk.turn[i], *b = &back.turn[i];
        assert_int_equal(a->role, b->role);
        assert_int_equal(a->content_len, b->content_len);
        assert_memory_equal(a->content, b->content, a->content_len);
        assert_int_equal(a->reasoning_len, b->reasoning_len);
        if (a->reasoning_len) assert_string_equal(a->reasoning, b->reasoning);
    }
    scratch_close(&folder);
    chat_talk_deinit(&talk);
    chat_talk_deinit(&back);
}

static void a_bad_file_leaves_the_conversation_alone(void **state) {
    (void)state;
    static const struct { const char *text, *says; } bad[] = {
        { "", "not JSON" },
        { "[]", "not an object" },
        { "{}", "no \"messages\"" },
        { "{\"messages\": 1}", "messages must be an array" },
        { "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, 7]}", "message 2: not an object" },
        { "{\"messages\": [{\"role\": \"tool\", \"content\": \"a\"}]}", "role must be" },
        { "{\"messages\": [{\"role\": \"user\", \"content\": [1]}]}", "content must be a string" },
        { "{\"messages\": [{\"role\": \"user\"}, {\"role\": \"system\"}]}", "system message stands" },
    };
    struct chat_talk talk = { 0 };
    struct err e = { 0 };
    struct scratch folder;
    scratch_open(&folder);
    const char *path = scratch_path(&folder, "bad.json");
    assert_fine(chat_talk_add(&talk, CHAT_ROLE_USER, text_of("stays"), text_of(""), &e), &e);
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_fine(file_write_all(path, bad[i].text, strlen(bad[i].text), &e), &e);
        assert_int_equal(chat_talk_load(&talk, path, &e), ERR_INVALID);
        if (!strstr(e.text, bad[i].says)) fail_msg("'%s' does not say '%s'", e.text, bad[i].says);
        assert_int_equal(talk.n, 1);
        assert_string_equal(talk.turn[0].content, "stays");
    }
    assert_int_equal(chat_talk_load(&talk, "/nonexistent/file", &e), ERR_NOTFOUND);
    scratch_close(&folder);
    chat_talk_deinit(&talk);
}

static void a_restart_keeps_the_system_prompt_unless_told_otherwise(void **state) {
    (void)state;
    struct chat_talk talk = { 0 };
    struct err e = { 0 };
    assert_fine(chat_talk_restart(&talk, "S", &e), &e);
    assert_fine(chat_talk_add(&talk, CHAT_ROLE_USER, text_of("u"), text_of(""), &e), &e);
    assert_fine(chat_talk_restart(&talk, NULL, &e), &e);
    assert_int_equal(talk.n, 1);
    assert_string_equal(talk.turn[0].content, "S");
    assert_fine(chat_talk_restart(&talk, "", &e), &e);
    assert_int_equal(talk.n, 0);
    assert_int_equal(talk.bytes, 0);
    chat_talk_deinit(&talk);
}

static void a_conversation_has_a_limit_of_messages(void **state) {
    (void)state;
    struct chat_talk talk = { 0 };
    struct err e = { 0 };
    for (int i = 0; i < CHAT_TALK_TURNS_MAX; i++)
        assert_fine(chat_talk_add(&talk, CHAT_ROLE_USER, text_of("u"), text_of(""), &e), &e);
    assert_int_equal(chat_talk_add(&talk, CHAT_ROLE_USER, text_of("u"), text_of(""), &e), ERR_LIMIT);
    chat_talk_deinit(&talk);
}

/* ---- events ---- */

static int collect(void *ctx, const char *data, size_t len, struct err *e) {
    (void)e;
    struct buf *all = ctx;
    assert_int_equal(strlen(data), len);
    if (strcmp(data, "[DONE]") == 0) return HTTP_SSE_LAST;
    buf_printf(all, "<%s>", data);
    return 0;
}

static void events_are_the_same_however_the_stream_is_cut(void **state) {
    (void)state;
    static const char stream[] =
        ": hello\n\ndata: one\n\nevent: x\ndata:two\r\ndata: lines\r\n\r\n"
        "\n\nid: 7\rdata\rdata: \r\rretry: 5\n\ndata: \xe6\x98\xb4\n\ndata: [DONE]\n\n";
    static const char want[] = "<one><two\nlines><><\xe6\x98\xb4>";
    size_t len = sizeof stream - 1;
    for (size_t a = 0; a <= len; a++)
        for (size_t b = a; b <= len; b++) {
            struct http_sse s;
            struct buf all;
            http_sse_init(&s);
            buf_init(&all, 1 << 12);
            int rc = http_sse_feed(&s, stream, a, collect, &all, NULL);
            if (rc == 0) rc = http_sse_feed(&s, stream + a, b - a, collect, &all, NULL);
            if (rc == 0) rc = http_sse_feed(&s, stream + b, len - b, collect, &all, NULL);
            assert_int_equal(rc, HTTP_SSE_LAST);
            assert_string_equal(all.data, want);
            buf_deinit(&all);
            http_sse_deinit(&s);
        }
}

static void note(void *ctx, const char *text) {
    buf_printf(ctx, "(%s)", text);
}

static void comments_are_told_to_who_wants_them(void **state) {
    (void)state;
    static const char stream[] = ": prefill 1/2\n\n:\ndata: x\n:bare\n\n";
    struct http_sse s;
    struct buf all;
    http_sse_init(&s);
    buf_init(&all, 1 << 12);
    s.comment = note;
    for (size_t i = 0; i < sizeof stream - 1; i++)
        assert_int_equal(http_sse_feed(&s, stream + i, 1, collect, &all, NULL), 0);
    assert_string_equal(all.data, "(prefill 1/2)()(bare)<x>");
    buf_deinit(&all);
    http_sse_deinit(&s);
}

static void an_event_cut_off_by_the_end_never_comes(void **state) {
    (void)state;
    struct http_sse s;
    struct buf all;
    http_sse_init(&s);
    buf_init(&all, 1 << 12);
    assert_int_equal(http_sse_feed(&s, "data: half\n", 11, collect, &all, NULL), 0);
    assert_int_equal(all.size, 0);
    buf_deinit(&all);
    http_sse_deinit(&s);
}

static void an_event_without_end_is_refused(void **state) {
    (void)state;
    struct http_sse s;
    struct err e = { 0 };
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    http_sse_init(&s);
    int rc = 0;
    for (int i = 0; rc == 0 && i < 32; i++) rc = http_sse_feed(&s, block, sizeof block, collect, NULL, &e);
    assert_int_equal(rc, ERR_LIMIT);
    http_sse_deinit(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(ordinary_text_reaches_the_terminal_unchanged),
        TEST(escape_sequences_are_shown_and_not_obeyed),
        TEST(random_bytes_never_become_control_characters),
        TEST(a_remark_is_one_line_of_whole_characters),
        TEST(lines_go_on_after_a_backslash_and_between_quotes),
        TEST(a_saved_conversation_comes_back_byte_by_byte),
        TEST(a_bad_file_leaves_the_conversation_alone),
        TEST(a_restart_keeps_the_system_prompt_unless_told_otherwise),
        TEST(a_conversation_has_a_limit_of_messages),
        TEST(events_are_the_same_however_the_stream_is_cut),
        TEST(comments_are_told_to_who_wants_them),
        TEST(an_event_cut_off_by_the_end_never_comes),
        TEST(an_event_without_end_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
