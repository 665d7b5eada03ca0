/* coordinator/api_anthropic: scripted messages against the transcripts, and what those do not show. */
#include "tests/harness/api_run.h"

static void messages_are_as_in_the_transcript(void **state) {
    (void)state;
    same_object("messages.json",
                &(struct script){ API_MESSAGES, "{" MESSAGES_SAY "," MESSAGES_TOOLS "}", ONE_CALL,
                                  .end = SERVICE_END_STOP });
}

static void a_stream_of_messages_is_as_in_the_transcript(void **state) {
    (void)state;
    char *text = read_vector("messages-stream.sse");
    if (!text) skip();
    char *ping = strstr(text, "event: ping");     /* says that time goes by */
    memmove(ping, strstr(ping, "\n\n") + 2, strlen(strstr(ping, "\n\n") + 2) + 1);
    struct api_job *j =
        run(&(struct script){ API_MESSAGES, "{\"stream\":true," MESSAGES_SAY "," MESSAGES_TOOLS "}",
                              ONE_CALL, .end = SERVICE_END_STOP });
    json_t *want = events_of(text), *have = events_of(j->out.data);
    assert_int_equal(json_array_size(have), json_array_size(want));
    for (size_t i = 0; i < json_array_size(want); i++)
        same_shape("messages-stream", "event", json_array_get(want, i), json_array_get(have, i), true);
    json_decref(want), json_decref(have);
    api_job_free(j);
    free(text);
}

static void a_stream_of_messages_that_fails_is_as_in_the_transcript(void **state) {
    (void)state;
    same_stream("messages-stream-error.sse",
                &(struct script){ API_MESSAGES, "{\"stream\":true," MESSAGES_SAY "}", "",
                                  .end = SERVICE_END_ERROR });
}

static void messages_name_the_stop_and_the_model_that_was_asked_for(void **state) {
    (void)state;
    struct api_job *j =
        run(&(struct script){ API_MESSAGES,
                              "{\"model\":\"claude-x\",\"stop_sequences\":[\"lo\"],\"thinking\":{"
                              "\"type\":\"disabled\"}," MESSAGES_SAY "}",
                              "Hello", .end = SERVICE_END_STOP });
    assert_non_null(strstr(j->out.data, "\"stop_reason\":\"stop_sequence\",\"stop_sequence\":\"lo\""));
    assert_non_null(strstr(j->out.data, "\"model\":\"claude-x\""));
    api_job_free(j);
}

static void an_empty_answer_still_has_a_text_block(void **state) {
    (void)state;
    struct api_job *j = run(
        &(struct script){ API_MESSAGES, "{\"thinking\":{\"type\":\"disabled\"}," MESSAGES_SAY "}",
                          CHAT_EOS, .end = SERVICE_END_STOP });
    assert_non_null(strstr(j->out.data, "\"content\":[{\"type\":\"text\",\"text\":\"\"}]"));
    api_job_free(j);
}

static void counting_tokens_counts_the_whole_prompt(void **state) {
    (void)state;
    struct api_error fault;
    struct api_job *counted =
        prepare(API_COUNT, "{\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"}]}", &fault);
    struct api_job *asked = prepare(API_MESSAGES, "{" MESSAGES_SAY "}", &fault);
    char want[64];
    snprintf(want, sizeof want, "{\"input_tokens\":%zu}", asked->prompt[0].tokens.n);
    assert_string_equal(counted->out.data, want);
    assert_true(counted->ready);
    api_job_free(counted);
    api_job_free(asked);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(messages_are_as_in_the_transcript),
        TEST(a_stream_of_messages_is_as_in_the_transcript),
        TEST(a_stream_of_messages_that_fails_is_as_in_the_transcript),
        TEST(messages_name_the_stop_and_the_model_that_was_asked_for),
        TEST(an_empty_answer_still_has_a_text_block),
        TEST(counting_tokens_counts_the_whole_prompt),
    };
    return cmocka_run_group_tests(tests, open_site, close_site);
}
