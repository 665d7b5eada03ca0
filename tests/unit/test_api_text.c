/* coordinator/api_openai_text: scripted text completions against the transcripts, echoes, and what is said of
 * the tokens of a prompt. */
#include "tests/harness/api_run.h"

static void completions_are_as_in_the_transcript(void **state) {
    (void)state;
    same_object("completions.json", &(struct script){ API_COMPLETIONS, "{\"prompt\":\"Once\"}",
                                                      " time there", .end = SERVICE_END_LENGTH });
}

static void a_stream_of_completions_is_as_in_the_transcript(void **state) {
    (void)state;
    char *text = read_vector("completions-stream.sse");
    if (!text) skip();
    struct api_job *j = run(&(struct script){ API_COMPLETIONS,
                                              "{\"prompt\":\"Once\",\"stream\":true,\"logprobs\":2,"
                                              "\"stream_options\":{\"include_usage\":true}}",
                                              " time there", .end = SERVICE_END_LENGTH });
    const char *at = strchr(strstr(text, " there"), '{');    /* the second event has log-probabilities */
    (void)at;
    json_t *want = events_of(text), *have = events_of(j->out.data);
    assert_int_equal(json_array_size(have), json_array_size(want));
    for (size_t i = 1; i < json_array_size(want); i++)
        same_shape("completions-stream", "event", json_array_get(want, i), json_array_get(have, i), false);
    json_decref(want), json_decref(have);
    api_job_free(j);
    free(text);
}

static void prompts_of_a_completion_have_choices_of_their_own(void **state) {
    (void)state;
    struct api_job *j =
        run(&(struct script){ API_COMPLETIONS, "{\"prompt\":[\"a\",[5,6,7]],\"n\":2,\"echo\":true}",
                              "Hi", .end = SERVICE_END_LENGTH });
    assert_int_equal(j->n_choice, 4);
    assert_int_equal(j->prompt[1].tokens.n, 3);
    assert_int_equal(j->prompt[0].tokens.ids[0], tokenizer_bos(s.tokenizer));
    assert_non_null(strstr(j->out.data, "{\"index\":0,\"text\":\"aHi\""));
    assert_non_null(strstr(j->out.data, "{\"index\":3,\"text\":\""));
    api_job_free(j);
}

static void lists_are(const json_t *choice, const char *wanted) {
    char *have = json_dumps(json_object_get(choice, "logprobs"), JSON_COMPACT | JSON_PRESERVE_ORDER);
    assert_string_equal(have, wanted);
    free(have);
}

static void an_echo_with_logprobs_begins_with_the_tokens_of_the_prompt(void **state) {
    (void)state;
    struct api_job *j = run(&(struct script){ API_COMPLETIONS,
                                              "{\"prompt\":[69,70,71],\"echo\":true,\"logprobs\":1,\"n\":2,"
                                              "\"return_token_ids\":true}",
                                              "Ho", .end = SERVICE_END_LENGTH });
    json_t *root = json_loads(j->out.data, 0, NULL), *choices = json_object_get(root, "choices"), *one;
    size_t i;
    assert_int_equal(json_array_size(choices), 2);
    json_array_foreach(choices, i, one) {         /* the second knows it from the first */
        const char *text = json_string_value(json_object_get(one, "text"));
        assert_int_equal(strlen(text), 5);
        char wanted[512];
        snprintf(
            wanted, sizeof wanted,
            "{\"tokens\":[\"%c\",\"%c\",\"%c\",\"H\",\"o\"],\"token_logprobs\":[null,-0.25,-0.5,-0."
            "25,-0.25],"
            "\"top_logprobs\":[null,{\"p\":-0.125},{\"p\":-0.125},{\"H\":-0.25},{\"o\":-0.25}],"
            "\"text_offset\":[0,1,2,3,4]}",
            text[0], text[1], text[2]);
        lists_are(one, wanted);
        assert_int_equal(json_array_size(json_object_get(one, "token_ids")), 5);
        json_t *details = json_object_get(one, "token_details");
        assert_true(json_is_null(json_object_get(json_array_get(details, 0), "logprob")));
        assert_true(json_real_value(json_object_get(json_array_get(details, 2), "logprob")) == -0.5);
    }
    json_decref(root);
    api_job_free(j);
}

/* The token that every text begins with is ours: it is listed, and no part of the text. */
static void offsets_count_the_text_that_was_sent(void **state) {
    (void)state;
    struct api_job *j = run(&(struct script){
        API_COMPLETIONS, "{\"prompt\":\"a\xc3\xa4z\",\"echo\":true,\"logprobs\":0,\"max_tokens\":0}", "Hi",
        .end = SERVICE_END_LENGTH });
    json_t *root = json_loads(j->out.data, 0, NULL),
           *one = json_array_get(json_object_get(root, "choices"), 0);
    json_t *lists = json_object_get(one, "logprobs"), *offsets = json_object_get(lists, "text_offset");
    size_t n = j->prompt[0].tokens.n;
    assert_string_equal(json_string_value(json_object_get(one, "text")), "a\xc3\xa4z");
    assert_string_equal(json_string_value(json_object_get(one, "finish_reason")), "length");
    assert_int_equal(json_array_size(offsets), n);
    assert_true(json_is_null(json_array_get(json_object_get(lists, "token_logprobs"), 0)));
    assert_int_equal(json_integer_value(json_array_get(offsets, 1)), 0);
    assert_int_equal(json_integer_value(json_array_get(offsets, n - 1)), 2);
    assert_non_null(strstr(j->out.data, "\"completion_tokens\":0,"));
    json_decref(root);
    api_job_free(j);
}

static void a_stream_gives_the_echo_and_its_lists_first(void **state) {
    (void)state;
    struct api_job *j = run(&(struct script){
        API_COMPLETIONS, "{\"prompt\":[69,70],\"echo\":true,\"logprobs\":0,\"stream\":true}", "Ho",
        .end = SERVICE_END_STOP });
    const char *at = j->out.data;
    struct sse_event e;
    static const char *const texts[] = { NULL, "H", "o", "" };
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        assert_true(next_event(&at, &e));
        json_t *one = json_array_get(json_object_get(e.data, "choices"), 0);
        json_t *tokens = json_object_get(json_object_get(one, "logprobs"), "tokens");
        if (texts[i]) assert_string_equal(json_string_value(json_object_get(one, "text")), texts[i]);
        assert_int_equal(json_array_size(tokens), i == 0 ? 2 : i == 3 ? 0 : 1);
        json_decref(e.data);
    }
    assert_true(next_event(&at, &e) && e.done);
    api_job_free(j);
}

static void choices_wait_for_what_the_first_one_learns(void **state) {
    (void)state;
    struct api_error fault;
    struct service_request r;
    struct api_job *j = prepare(API_COMPLETIONS,
                                "{\"prompt\":[[1,2,3],[4]],\"n\":2,\"echo\":true,\"logprobs\":1}", &fault);
    assert_non_null(j);
    assert_true(api_job_may_begin(j, 0) && !api_job_may_begin(j, 1));
    assert_true(api_job_may_begin(j, 2) && api_job_may_begin(j, 3));  /* one token: nothing to learn */
    api_job_request(j, 2, &r);
    assert_false(r.score_prompt);
    api_job_request(j, 0, &r);
    assert_true(r.score_prompt);
    tell_prompt(j, 0, &r);
    assert_true(api_job_may_begin(j, 1));
    api_job_request(j, 1, &r);
    assert_false(r.score_prompt);
    api_job_free(j);
}

static void nothing_new_is_for_echoes_only(void **state) {
    (void)state;
    struct api_error fault;
    assert_null(prepare(API_COMPLETIONS, "{\"prompt\":\"a\",\"max_tokens\":0}", &fault));
    assert_string_equal(fault.param, "max_tokens");
    struct api_job *j = run(&(struct script){ API_COMPLETIONS,
                                              "{\"prompt\":\"ab\",\"echo\":true,\"max_tokens\":0}", "Hi",
                                              .end = SERVICE_END_STOP });
    assert_non_null(strstr(j->out.data, "\"text\":\"ab\",\"logprobs\":null,\"finish_reason\":\"length\""));
    api_job_free(j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(completions_are_as_in_the_transcript),
        TEST(a_stream_of_completions_is_as_in_the_transcript),
        TEST(prompts_of_a_completion_have_choices_of_their_own),
        TEST(an_echo_with_logprobs_begins_with_the_tokens_of_the_prompt),
        TEST(offsets_count_the_text_that_was_sent),
        TEST(a_stream_gives_the_echo_and_its_lists_first),
        TEST(choices_wait_for_what_the_first_one_learns),
        TEST(nothing_new_is_for_echoes_only),
    };
    return cmocka_run_group_tests(tests, open_site, close_site);
}
