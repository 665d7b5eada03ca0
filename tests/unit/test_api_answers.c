/* coordinator/api_prepare and what all dialects share: refusals, limits, models, errors, tokens, routes. */
#include "tests/harness/api_run.h"

static void refused(enum api_endpoint endpoint, const char *body, enum api_fault kind,
                    const char *param, const char *text) {
    struct api_error fault;
    struct api_job *j = prepare(endpoint, body, &fault);
    if (j) fail_msg("accepted: %s", body);
    assert_int_equal(fault.fault, kind);
    assert_string_equal(fault.param ? fault.param : "", param);
    if (!strstr(fault.text, text)) fail_msg("\"%s\" does not say \"%s\"", fault.text, text);
}

static void models_are_as_in_the_transcript(void **state) {
    (void)state;
    char *text = read_vector("models.json");
    struct buf out;
    if (!text) skip();
    buf_init(&out, 1 << 16);
    api_site_put_models(s.site, &out);
    json_t *want = json_loads(text, 0, NULL), *have = json_loads(out.data, 0, NULL);
    json_t *model = json_array_get(json_object_get(have, "data"), 0);
    assert_true(json_is_integer(json_object_get(model, "max_output_tokens")));
    json_object_del(model, "max_output_tokens");  /* ours alone */
    same_shape("models.json", "", want, have, true);
    json_decref(want), json_decref(have);
    buf_deinit(&out);
    free(text);
}

static void errors_are_as_in_the_transcripts(void **state) {
    (void)state;
    static const struct {
        const char *vector;
        enum api_fault fault;
        enum api_shape shape;
        const char *param, *text;
    } table[] = {
        { "error-openai-429.json", API_FAULT_BUSY, API_SHAPE_OPENAI, NULL,
          "queue is full, retry in 2 s" },
        { "error-anthropic-429.json", API_FAULT_BUSY, API_SHAPE_ANTHROPIC, NULL,
          "queue is full, retry in 2 s" },
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        char *text = read_vector(table[i].vector);
        struct api_error e = { .param = table[i].param };
        struct buf out;
        if (!text) skip();
        buf_init(&out, 4096);
        api_error_set(&e, table[i].fault, "%s", table[i].text);
        api_error_put(&out, &e, table[i].shape, "req_1");
        json_t *want = json_loads(text, 0, NULL), *have = json_loads(out.data, 0, NULL);
        assert_true(json_equal(want, have));
        json_decref(want), json_decref(have);
        buf_deinit(&out);
        free(text);
    }
}

static void what_is_wrong_is_named(void **state) {
    (void)state;
    refused(API_CHAT, "", API_FAULT_INVALID, "", "not JSON");
    refused(API_CHAT, "[]", API_FAULT_INVALID, "", "object");
    refused(API_CHAT, "{}", API_FAULT_INVALID, "messages", "messages");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"temperature\":2.5}", API_FAULT_INVALID, "temperature", "0 to 2");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"temperature\":\"1\"}", API_FAULT_INVALID,
            "temperature", "a number");
    refused(API_MESSAGES, "{" MESSAGES_SAY ",\"temperature\":1.5}", API_FAULT_INVALID,
            "temperature", "0 to 1");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"top_p\":0}", API_FAULT_INVALID, "top_p", "top_p");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"n\":9}", API_FAULT_INVALID, "n", "1 to 8");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"n\":1.5}", API_FAULT_INVALID, "n", "whole");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"max_tokens\":0}", API_FAULT_INVALID, "max_tokens", "max_tokens");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"max_tokens\":-1}", API_FAULT_INVALID, "max_tokens",
            "max_tokens");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"top_logprobs\":3}", API_FAULT_INVALID, "top_logprobs",
            "logprobs");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"logit_bias\":{\"x\":1}}", API_FAULT_INVALID,
            "logit_bias", "token ids");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"logit_bias\":{\"1\":101}}", API_FAULT_INVALID,
            "logit_bias", "-100");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"stop\":7}", API_FAULT_INVALID, "stop", "string");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"seed\":0.5}", API_FAULT_INVALID, "seed", "whole");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"stream\":1}", API_FAULT_INVALID, "stream", "true or false");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"modalities\":[\"audio\"]}", API_FAULT_INVALID,
            "modalities", "text");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"tool_choice\":\"required\"}", API_FAULT_INVALID,
            "tool_choice", "no tools");
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"model\":7}", API_FAULT_INVALID, "model", "a string");
    refused(API_COMPLETIONS, "{}", API_FAULT_INVALID, "prompt", "prompt");
    refused(API_COMPLETIONS, "{\"prompt\":[1,-1]}", API_FAULT_INVALID, "prompt", "no token id");
    refused(API_COMPLETIONS, "{\"prompt\":\"a\",\"suffix\":\"b\"}", API_FAULT_INVALID, "suffix", "suffix");
    refused(API_COMPLETIONS, "{\"prompt\":\"a\",\"best_of\":2}", API_FAULT_INVALID, "best_of", "equal to n");
    refused(API_RESPONSES, "{\"input\":\"a\",\"previous_response_id\":\"r\"}", API_FAULT_INVALID,
            "previous_response_id", "full input");
    refused(API_DETOKENIZE, "{\"tokens\":[1,99999]}", API_FAULT_INVALID, "", "element 1");
}

static void a_prompt_longer_than_the_context_says_both_numbers(void **state) {
    (void)state;
    uint32_t n_ctx = s.site->n_ctx;
    struct api_error fault;
    s.site->n_ctx = 5;
    assert_null(prepare(API_CHAT, "{" CHAT_USER_SAYS "}", &fault));
    assert_int_equal(api_error_status(&fault), 400);
    assert_string_equal(api_error_code(&fault), "context_length_exceeded");
    assert_string_equal(fault.param, "messages");
    assert_non_null(strstr(fault.text, "maximum context length is 5 tokens, but the prompt has "));
    assert_null(prepare(API_MESSAGES, "{" MESSAGES_SAY "}", &fault));
    assert_int_equal(strncmp(fault.text, "prompt is too long: ", 20), 0);
    s.site->n_ctx = n_ctx;
}

static void unknown_fields_and_nulls_are_fine_and_limits_are_kept(void **state) {
    (void)state;
    struct api_error fault;
    struct service_request r;
    struct api_job *j = prepare(
        API_CHAT,
        "{" CHAT_USER_SAYS
        ",\"what\":{\"ever\":1},\"temperature\":null,\"stop\":null,\"max_tokens\":7.0,"
        "\"max_completion_tokens\":5,\"seed\":-3,\"top_k\":-1,\"logit_bias\":{\"9\":-100,\"4\":2}}",
        &fault);
    assert_non_null(j);
    api_job_request(j, 0, &r);
    assert_int_equal(r.n_new_max, 5);
    assert_int_equal(r.sampling.seed, (uint64_t)-3);
    assert_int_equal(r.sampling.top_k, 0);
    assert_int_equal(r.sampling.n_bias, 2);
    assert_int_equal(r.sampling.bias[0].id, 4);
    assert_true(r.n_end_id >= 8);
    api_job_free(j);
}

static void two_names_of_the_model_say_whether_it_thinks(void **state) {
    (void)state;
    static const struct {
        enum api_endpoint endpoint;
        const char *body;
        bool thinks;
    } table[] = {
        { API_CHAT, "{\"model\":\"deepseek-chat\"," CHAT_USER_SAYS "}", false },
        { API_MESSAGES, "{\"model\":\"deepseek-chat\"," MESSAGES_SAY "}", false },
        { API_MESSAGES,
          "{\"model\":\"deepseek-chat\",\"thinking\":{\"type\":\"enabled\"}," MESSAGES_SAY "}",
          true },
        { API_RESPONSES, "{\"model\":\"deepseek-chat\",\"input\":\"x\"}", false },
        { API_RESPONSES, "{\"model\":\"deepseek-reasoner\",\"input\":\"x\"}", true },
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        struct api_error fault;
        struct api_job *j = prepare(table[i].endpoint, table[i].body, &fault);
        assert_non_null(j);
        assert_int_equal(j->prompt[0].in_reasoning, table[i].thinks);
        api_job_free(j);
    }
}

static void strict_models_are_404_and_aliases_are_not(void **state) {
    (void)state;
    s.site->strict_model = true;
    refused(API_CHAT, "{" CHAT_USER_SAYS ",\"model\":\"gpt-9\"}", API_FAULT_MODEL, "model", "gpt-9");
    s.site->strict_model = false;
    struct api_error fault;
    api_job_free(prepare(API_CHAT, "{" CHAT_USER_SAYS ",\"model\":\"gpt-9\"}", &fault));
}

static void tokenize_speaks_both_dialects(void **state) {
    (void)state;
    static const struct {
        const char *body, *answer;
    } table[] = {
        { "{\"content\":\"the\"}", "{\"tokens\":[" },
        { "{\"prompt\":\"a\",\"return_token_strs\":true}", ",\"token_strs\":[\"<\xef\xbd\x9c" "begin" },
        { "{\"content\":\"\xc3\xa4\",\"with_pieces\":true}", "\"piece\":[195]}" },
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        struct api_error fault;
        struct api_job *j = prepare(API_TOKENIZE, table[i].body, &fault);
        assert_non_null(j);
        if (!strstr(j->out.data, table[i].answer)) fail_msg("%s: %s", table[i].body, j->out.data);
        json_t *root = json_loads(j->out.data, 0, NULL);
        assert_int_equal(json_integer_value(json_object_get(root, "count")),
                         (json_int_t)json_array_size(json_object_get(root, "tokens")));
        json_decref(root);
        api_job_free(j);
    }
}

static void detokenize_undoes_tokenize(void **state) {
    (void)state;
    struct api_error fault;
    struct api_job *j = prepare(API_TOKENIZE, "{\"content\":\"the \xf0\x9f\x8c\x8c\"}", &fault);
    json_t *root = json_loads(j->out.data, 0, NULL), *tokens = json_object_get(root, "tokens");
    json_t *in = json_pack("{s:O}", "tokens", tokens);
    char *body = json_dumps(in, 0);
    api_job_free(j);
    j = prepare(API_DETOKENIZE, body, &fault);
    assert_string_equal(j->out.data, "{\"content\":\"the \xf0\x9f\x8c\x8c\",\"prompt\":\"the "
                                     "\xf0\x9f\x8c\x8c\",\"text\":\"the \xf0\x9f\x8c\x8c\"}");
    free(body);
    json_decref(in), json_decref(root);
    api_job_free(j);
}

static void routes_are_found_with_prefixes_slashes_and_queries(void **state) {
    (void)state;
    static const struct {
        const char *method, *path;
        enum api_endpoint endpoint;
        bool fits;
    } table[] = {
        { "POST", "/v1/chat/completions", API_CHAT, true },
        { "POST", "/chat/completions/", API_CHAT, true },
        { "GET", "/v1/chat/completions", API_CHAT, false },
        { "POST", "/beta/completions", API_COMPLETIONS, true },
        { "POST", "/anthropic/v1/messages?beta=true", API_MESSAGES, true },
        { "POST", "/v1/messages/count_tokens", API_COUNT, true },
        { "GET", "/v1/models/a/b", API_MODEL, true },
        { "GET", "/models", API_MODELS, true },
        { "HEAD", "/", API_PAGE, true },
        { "GET", "/page.js", API_PAGE, true },
        { "GET", "/v1/health", API_HEALTH, true },
        { "GET", "/v1/status", API_STATUS, true },
        { "GET", "/v1", API_UNKNOWN, false },
        { "GET", "/v2/models", API_UNKNOWN, false },
        { "PUT", "/health", API_HEALTH, false },
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        struct api_route r = api_route_find(table[i].method, table[i].path);
        if (r.endpoint != table[i].endpoint || r.fits != table[i].fits)
            fail_msg("%s %s is %s", table[i].method, table[i].path, api_endpoint_name(r.endpoint));
    }
    struct api_route r = api_route_find("GET", "/v1/models/a/b?x=1");
    assert_int_equal(r.rest_len, 3);
    assert_memory_equal(r.rest, "a/b", 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(models_are_as_in_the_transcript),
        TEST(errors_are_as_in_the_transcripts),
        TEST(what_is_wrong_is_named),
        TEST(a_prompt_longer_than_the_context_says_both_numbers),
        TEST(unknown_fields_and_nulls_are_fine_and_limits_are_kept),
        TEST(two_names_of_the_model_say_whether_it_thinks),
        TEST(strict_models_are_404_and_aliases_are_not),
        TEST(tokenize_speaks_both_dialects),
        TEST(detokenize_undoes_tokenize),
        TEST(routes_are_found_with_prefixes_slashes_and_queries),
    };
    return cmocka_run_group_tests(tests, open_site, close_site);
}
