/* coordinator/api_responses: scripted responses against the transcripts, and what those do not show. */
#include "tests/harness/api_run.h"

static const char responses_body[] =
    "{\"input\":\"Weather?\",\"reasoning\":{\"effort\":\"high\"},\"tools\":[{\"type\":\"function\","
    "\"name\":\"get_weather\",\"parameters\":{}}]%s}";

static const char *responses_with(const char *more) {
    static char body[512];
    snprintf(body, sizeof body, responses_body, more);
    return body;
}

/* The transcripts were written for a request whose tools are not repeated. */
static void forget_tools(json_t *v) {
    json_t *r = json_object_get(v, "response") ? json_object_get(v, "response") : v;
    if (json_object_get(r, "tools")) json_object_set_new(r, "tools", json_array());
}

static void same_responses(const char *vector, const struct script *script, bool in_progress) {
    char *text = read_vector(vector);
    if (!text) skip();
    struct api_job *j = run(script);
    json_t *want = events_of(text), *have = events_of(j->out.data);
    if (!in_progress) json_array_remove(have, 1);  /* these transcripts leave it out */
    drop_numbering(want), drop_numbering(have);
    if (json_array_size(have) != json_array_size(want))
        fail_msg("%s: %zu events, wanted %zu:\n%s", vector, json_array_size(have),
                 json_array_size(want), j->out.data);
    for (size_t i = 0; i < json_array_size(want); i++) {
        char where[100];
        snprintf(where, sizeof where, "%s, event %zu", vector, i);
        forget_tools(json_object_get(json_array_get(have, i), "data"));
        same_shape(where, "event", json_array_get(want, i), json_array_get(have, i), true);
    }
    json_decref(want), json_decref(have);
    api_job_free(j);
    free(text);
}

static void responses_are_as_in_the_transcript(void **state) {
    (void)state;
    char *text = read_vector("responses.json");
    if (!text) skip();
    struct api_job *j = run(
        &(struct script){ API_RESPONSES, responses_with(""), ONE_CALL, .end = SERVICE_END_STOP });
    json_t *want = json_loads(text, 0, NULL), *have = json_loadb(j->out.data, j->out.size, 0, NULL);
    assert_non_null(have);
    forget_tools(have);
    same_shape("responses.json", "", want, have, true);
    json_decref(want), json_decref(have);
    api_job_free(j);
    free(text);
}

static void streams_of_responses_are_as_in_the_transcripts(void **state) {
    (void)state;
    same_responses("responses-stream.sse",
                   &(struct script){ API_RESPONSES, responses_with(",\"stream\":true"), ONE_CALL,
                                     .end = SERVICE_END_STOP },
                   true);
    same_responses("responses-stream-incomplete.sse",
                   &(struct script){ API_RESPONSES, responses_with(",\"stream\":true"),
                                     CHAT_THINK_END "Cut", .end = SERVICE_END_LENGTH },
                   false);
    same_responses("responses-stream-failed.sse",
                   &(struct script){ API_RESPONSES, responses_with(",\"stream\":true"), "",
                                     .end = SERVICE_END_ERROR },
                   false);
}

static void sequence_numbers_count_from_zero_without_gaps(void **state) {
    (void)state;
    struct api_job *j = run(&(struct script){ API_RESPONSES, responses_with(",\"stream\":true"),
                                              ONE_CALL, .end = SERVICE_END_STOP });
    const char *at = j->out.data;
    struct sse_event e;
    for (int i = 0; next_event(&at, &e); i++) {
        assert_int_equal(json_integer_value(json_object_get(e.data, "sequence_number")), i);
        assert_string_equal(json_string_value(json_object_get(e.data, "type")), e.name);
        json_decref(e.data);
    }
    api_job_free(j);
}

static void summaries_and_sealed_reasoning_come_when_asked_for(void **state) {
    (void)state;
    struct api_job *j =
        run(&(struct script){ API_RESPONSES,
                              "{\"input\":\"x\",\"stream\":true,\"reasoning\":{\"summary\":"
                              "\"auto\"},\"include\":[\"reasoning.encrypted_content\"]}",
                              "why" CHAT_THINK_END "so", .end = SERVICE_END_STOP });
    assert_non_null(strstr(j->out.data, "event: response.reasoning_summary_text.delta"));
    assert_null(strstr(j->out.data, "event: response.reasoning_text.delta"));
    assert_non_null(strstr(j->out.data, "\"summary\":[{\"type\":\"summary_text\",\"text\":\"why\"}]"));
    assert_non_null(strstr(j->out.data, "\"encrypted_content\":\"pleiades1."));
    api_job_free(j);
}

static void custom_tools_get_their_one_string(void **state) {
    (void)state;
    struct api_job *j = run(&(struct script){
        API_RESPONSES,
        "{\"input\":\"x\",\"stream\":true,\"reasoning\":{\"effort\":\"none\"},\"tools\":[{\"type\":"
        "\"custom\",\"name\":\"patch\"}]}",
        "\n\n" CHAT_CALLS_OPEN "\n" CHAT_INVOKE_OPEN "patch\">\n" CHAT_PARAMETER_OPEN
        "input\" string=\"true\">a \"b\"\n" CHAT_PARAMETER_CLOSE "\n" CHAT_INVOKE_CLOSE
        "\n" CHAT_CALLS_CLOSE,
        .end = SERVICE_END_STOP });
    assert_non_null(strstr(j->out.data, "\"type\":\"custom_tool_call\""));
    assert_non_null(strstr(j->out.data, "event: response.custom_tool_call_input.done"));
    assert_non_null(strstr(j->out.data, "\"input\":\"a \\\"b\\\"\\n\""));
    api_job_free(j);
}

static void tools_of_a_group_come_back_under_their_own_names(void **state) {
    (void)state;
    struct api_job *j = run(&(struct script){
        API_RESPONSES,
        "{\"input\":\"x\",\"reasoning\":{\"effort\":\"none\"},\"tools\":[{\"type\":\"namespace\","
        "\"name\":\"fs_\",\"tools\":[{\"type\":\"function\",\"name\":\"read\"}]}]}",
        "\n\n" CHAT_CALLS_OPEN "\n" CHAT_INVOKE_OPEN "fs_read\">\n\n" CHAT_INVOKE_CLOSE
        "\n" CHAT_CALLS_CLOSE,
        .end = SERVICE_END_STOP });
    assert_non_null(strstr(j->out.data, "\"name\":\"read\",\"namespace\":\"fs_\",\"arguments\":\"{}\""));
    api_job_free(j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(responses_are_as_in_the_transcript),
        TEST(streams_of_responses_are_as_in_the_transcripts),
        TEST(sequence_numbers_count_from_zero_without_gaps),
        TEST(summaries_and_sealed_reasoning_come_when_asked_for),
        TEST(custom_tools_get_their_one_string),
        TEST(tools_of_a_group_come_back_under_their_own_names),
    };
    return cmocka_run_group_tests(tests, open_site, close_site);
}
