/* coordinator/api_openai: scripted chat completions against the transcripts, and the rules of streams that
 * no transcript shows. */
#include "tests/harness/api_run.h"

/* What a stream says, joined: reasoning | content | calls. */
struct said {
    struct buf reasoning, content, calls;
    char finish[32];
};

static void said_init(struct said *d) {
    buf_init(&d->reasoning, 1 << 20), buf_init(&d->content, 1 << 20), buf_init(&d->calls, 1 << 20);
    d->finish[0] = 0;
}

static void said_deinit(struct said *d) {
    buf_deinit(&d->reasoning), buf_deinit(&d->content), buf_deinit(&d->calls);
}

static void add_string(struct buf *b, const json_t *v) {
    if (json_is_string(v)) buf_add(b, json_string_value(v), json_string_length(v));
}

static void listen_to(const char *text, struct said *d) {
    struct sse_event e;
    while (next_event(&text, &e)) {
        json_t *choice = json_array_get(json_object_get(e.data, "choices"), 0),
               *delta = json_object_get(choice, "delta");
        json_t *function =
            json_object_get(json_array_get(json_object_get(delta, "tool_calls"), 0), "function");
        add_string(&d->reasoning, json_object_get(delta, "reasoning_content"));
        add_string(&d->content, json_object_get(delta, "content"));
        add_string(&d->calls, json_object_get(function, "name"));
        add_string(&d->calls, json_object_get(function, "arguments"));
        const json_t *finish = json_object_get(choice, "finish_reason");
        if (json_is_string(finish)) {
            assert_string_equal(d->finish, "");   /* exactly once */
            snprintf(d->finish, sizeof d->finish, "%s", json_string_value(finish));
        }
        json_decref(e.data);
    }
}

static void read_object(const char *text, struct said *d) {
    json_t *root = json_loads(text, 0, NULL), *choice = json_array_get(json_object_get(root, "choices"), 0);
    json_t *m = json_object_get(choice, "message"), *call;
    size_t i;
    assert_non_null(root);
    add_string(&d->reasoning, json_object_get(m, "reasoning_content"));
    add_string(&d->content, json_object_get(m, "content"));
    json_array_foreach(json_object_get(m, "tool_calls"), i, call) {
        add_string(&d->calls, json_object_get(json_object_get(call, "function"), "name"));
        add_string(&d->calls, json_object_get(json_object_get(call, "function"), "arguments"));
    }
    snprintf(d->finish, sizeof d->finish, "%s", json_string_value(json_object_get(choice, "finish_reason")));
    json_decref(root);
}

static void same_text(const struct buf *a, const struct buf *b) {
    assert_string_equal(a->size ? a->data : "", b->size ? b->data : "");
}

static void check_equal(const char *more, const char *text, enum service_end end) {
    char body[2048];
    struct said streamed, whole;
    said_init(&streamed), said_init(&whole);
    snprintf(body, sizeof body, "{\"stream\":true," CHAT_USER_SAYS "%s}", more);
    struct api_job *j = run(&(struct script){ API_CHAT, body, text, .end = end });
    listen_to(j->out.data, &streamed);
    api_job_free(j);
    snprintf(body, sizeof body, "{" CHAT_USER_SAYS "%s}", more);
    j = run(&(struct script){ API_CHAT, body, text, .end = end });
    read_object(j->out.data, &whole);
    api_job_free(j);
    same_text(&streamed.reasoning, &whole.reasoning);
    same_text(&streamed.content, &whole.content);
    same_text(&streamed.calls, &whole.calls);
    assert_string_equal(streamed.finish, whole.finish);
    said_deinit(&streamed), said_deinit(&whole);
}

static void content_is(const char *more, const char *text, enum service_end end,
                       const char *content, const char *finish) {
    char body[1024];
    struct said d;
    said_init(&d);
    snprintf(body, sizeof body, "{\"stream\":true," CHAT_USER_SAYS "%s}", more);
    struct api_job *j = run(&(struct script){ API_CHAT, body, text, .end = end });
    listen_to(j->out.data, &d);
    assert_string_equal(d.content.size ? d.content.data : "", content);
    assert_string_equal(d.finish, finish);
    said_deinit(&d);
    api_job_free(j);
}

static void chat_is_as_in_the_transcript(void **state) {
    (void)state;
    same_object("chat.json", &(struct script){ API_CHAT, "{" CHAT_USER_SAYS "," CHAT_TOOLS "}",
                                               ONE_CALL, .end = SERVICE_END_STOP });
}

static void a_chat_stream_with_tools_is_as_in_the_transcript(void **state) {
    (void)state;
    same_stream("chat-stream-tools.sse",
                &(struct script){
                    API_CHAT,
                    "{\"stream\":true,\"stream_options\":{\"include_usage\":true}," CHAT_USER_SAYS
                    "," CHAT_TOOLS "}",
                    TWO_CALLS, .end = SERVICE_END_STOP, .n_cached = 20 });
}

static void a_chat_stream_with_logprobs_is_as_in_the_transcript(void **state) {
    (void)state;
    char *text = read_vector("chat-stream-logprobs.sse");
    if (!text) skip();
    struct api_job *j = run(&(struct script){
        API_CHAT,
        "{\"stream\":true,\"logprobs\":true,\"top_logprobs\":2,\"thinking\":false," CHAT_USER_SAYS
        "}",
        "Hi!" CHAT_EOS, .end = SERVICE_END_STOP });
    const char *a = text, *b = j->out.data;
    struct sse_event want, have;
    while (next_event(&a, &want)) {
        assert_true(next_event(&b, &have));
        assert_int_equal(want.done, have.done);
        if (want.data) same_shape("logprobs", "", want.data, have.data, true);
        json_decref(want.data), json_decref(have.data);
    }
    assert_string_equal(b, "");
    api_job_free(j);
    free(text);
}

static void a_chat_stream_that_fails_is_as_in_the_transcript(void **state) {
    (void)state;
    char *text = read_vector("chat-stream-error.sse");
    if (!text) skip();
    struct api_job *j =
        run(&(struct script){ API_CHAT, "{\"stream\":true,\"thinking\":false," CHAT_USER_SAYS "}",
                              "", .end = SERVICE_END_ERROR });
    const char *wanted = strstr(text, "data: {\"error\""), *have = strstr(j->out.data, "data: {\"error\"");
    assert_non_null(have);
    char line[512];
    snprintf(line, sizeof line, "%.*s", (int)strcspn(wanted, "\n"), wanted);
    assert_memory_equal(line, have, strlen(line));
    assert_null(strstr(j->out.data, "[DONE]"));
    api_job_free(j);
    free(text);
}

static void a_stream_says_what_an_object_says(void **state) {
    (void)state;
    check_equal("", "thinking" CHAT_THINK_END "Hello, the weather.", SERVICE_END_STOP);
    check_equal("", "thinking that never ends", SERVICE_END_LENGTH);
    check_equal("," CHAT_TOOLS, TWO_CALLS, SERVICE_END_STOP);
    check_equal("," CHAT_TOOLS, "x" CHAT_THINK_END "a\n\n" CHAT_CALLS_OPEN "broken", SERVICE_END_STOP);
    check_equal(",\"stop\":[\"weather\"]", CHAT_THINK_END "the weather is", SERVICE_END_STOP);
    check_equal("", CHAT_THINK_END "\xf0\x9f\x8c\x8c \xe6\x98\xb4 \xff broken \xe6", SERVICE_END_STOP);
    check_equal(",\"thinking\":false", "\x01 \xe2\x80\xa8 \"quoted\" \\ \x7f", SERVICE_END_STOP);
}

static void stop_strings_end_content_over_any_border_and_nothing_else(void **state) {
    (void)state;
    content_is(",\"thinking\":false,\"stop\":\"lo, w\"", "Hello, world", SERVICE_END_STOP, "Hel", "stop");
    content_is(",\"thinking\":false,\"stop\":[\"never\",\"lo\"]", "Hel", SERVICE_END_LENGTH, "Hel", "length");
    content_is(",\"thinking\":false,\"stop\":[\"lo, x\"]", "Hello, world", SERVICE_END_STOP,
               "Hello, world", "stop");
    content_is(",\"stop\":\"stop\"", "do not stop here" CHAT_THINK_END "go on stop now",
               SERVICE_END_STOP, "go on ", "stop");
    content_is(",\"stop\":\"Paris\"," CHAT_TOOLS, ONE_CALL, SERVICE_END_STOP, "Let me check.", "tool_calls");
}

static void a_stopped_answer_asks_to_be_cancelled(void **state) {
    (void)state;
    struct api_error fault;
    struct api_job *j =
        prepare(API_CHAT, "{\"stream\":true,\"thinking\":false,\"stop\":\"lo\"," CHAT_USER_SAYS "}",
                &fault);
    struct token_buf ids = scripted_tokens(s.tokenizer, "Hello and more");
    api_job_open(j);
    uint32_t n = 0;
    for (; n < ids.n && !j->choice[0].wants_end; n++) tell(j, 0, ids.ids[n], n);
    assert_true(n < ids.n);
    assert_false(j->finished);                    /* the numbers are still to come */
    size_t before = j->out.size;
    tell(j, 0, ids.ids[n], n);                    /* was on its way */
    assert_int_equal(j->out.size, before);
    struct service_done d = { .end = SERVICE_END_CANCELLED, .n_output = n + 1 };
    api_job_done(j, 0, &d);
    assert_true(j->finished && !j->failed);
    assert_non_null(strstr(j->out.data, "\"completion_tokens\":6"));
    token_buf_free(&ids);
    api_job_free(j);
}

static void characters_are_never_cut(void **state) {
    (void)state;
    struct api_job *j = run(
        &(struct script){ API_CHAT, "{\"stream\":true,\"thinking\":false," CHAT_USER_SAYS "}",
                          "\xf0\x9f\x8c\x8c\xe6\x98\xb4\xc3\xa4 \xff", .end = SERVICE_END_STOP });
    assert_true(utf8_valid(j->out.data, j->out.size));
    assert_non_null(strstr(j->out.data, "\xf0\x9f\x8c\x8c"));
    assert_non_null(strstr(j->out.data, "\xef\xbf\xbd"));
    api_job_free(j);
}

static void choices_are_interleaved_by_index_and_the_prompt_counts_once(void **state) {
    (void)state;
    struct api_job *j =
        run(&(struct script){ API_CHAT, "{\"n\":3,\"thinking\":false," CHAT_USER_SAYS "}", "Hi",
                              .end = SERVICE_END_STOP, .n_cached = 4 });
    json_t *root = json_loads(j->out.data, 0, NULL), *usage = json_object_get(root, "usage");
    assert_int_equal(json_array_size(json_object_get(root, "choices")), 3);
    assert_int_equal(json_integer_value(json_object_get(usage, "prompt_tokens")),
                     (json_int_t)j->prompt[0].tokens.n);
    assert_int_equal(json_integer_value(json_object_get(usage, "completion_tokens")), 3);
    assert_int_equal(json_integer_value(json_object_get(
                         json_object_get(usage, "prompt_tokens_details"), "cached_tokens")),
                     4);
    assert_true(j->choice[0].seed != j->choice[1].seed);
    json_decref(root);
    api_job_free(j);
}

static void reasoning_tokens_are_those_up_to_the_end_of_thinking(void **state) {
    (void)state;
    struct api_job *j =
        run(&(struct script){ API_CHAT, "{" CHAT_USER_SAYS "}", "abc" CHAT_THINK_END "xy" CHAT_EOS,
                              .end = SERVICE_END_STOP });
    assert_non_null(strstr(j->out.data, "\"reasoning_tokens\":4"));
    assert_non_null(strstr(j->out.data, "\"completion_tokens\":7"));
    api_job_free(j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(chat_is_as_in_the_transcript),
        TEST(a_chat_stream_with_tools_is_as_in_the_transcript),
        TEST(a_chat_stream_with_logprobs_is_as_in_the_transcript),
        TEST(a_chat_stream_that_fails_is_as_in_the_transcript),
        TEST(a_stream_says_what_an_object_says),
        TEST(stop_strings_end_content_over_any_border_and_nothing_else),
        TEST(a_stopped_answer_asks_to_be_cancelled),
        TEST(characters_are_never_cut),
        TEST(choices_are_interleaved_by_index_and_the_prompt_counts_once),
        TEST(reasoning_tokens_are_those_up_to_the_end_of_thinking),
    };
    return cmocka_run_group_tests(tests, open_site, close_site);
}
