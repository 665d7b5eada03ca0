/* coordinator/api_job and the dialects: scripted answers against the transcripts, and the rules of streams
 * that no transcript shows. No sockets, no service. */
#include "tests/harness/test.h"

#include "tests/harness/api_site.h"

static struct scripted_site s;

static int open_site(void **state) {
    (void)state;
    scripted_open(&s);
    return 0;
}

static int close_site(void **state) {
    (void)state;
    scripted_close(&s);
    return 0;
}

/* ---- running a job ---- */

struct script {
    enum api_endpoint endpoint;
    const char *body, *text;                      /* text: what the model writes; "|" shows nothing */
    enum service_end end;
    uint32_t n_cached;
    size_t step;                                  /* tokens between looks at the output; 0: all at once */
    bool no_logprobs;
};

static struct api_job *prepare(enum api_endpoint endpoint, const char *body, struct api_error *fault) {
    struct api_job_input in = { endpoint, chat_text_of(body), "req_1", 42, 1795166400 };
    return api_job_prepare(s.site, &in, fault);
}

static void tell(struct api_job *j, uint32_t i, int32_t id, uint32_t index) {
    struct service_token t = { .id = id, .index = index, .logprob = -0.25 };
    t.n_top = j->params.sampling.n_top;
    for (int k = 0; k < t.n_top; k++)
        t.top[k] = (struct sampler_logprob){ k ? 'z' + SMALL_BYTE_FIRST : id, -0.25 - k };
    api_job_token(j, i, &t);
}

static struct api_job *run(const struct script *script) {
    struct api_error fault;
    struct api_job *j = prepare(script->endpoint, script->body, &fault);
    if (!j) fail_msg("refused: %s", fault.text);
    if (j->params.stream) api_job_open(j);
    struct token_buf ids = scripted_tokens(s.tokenizer, script->text);
    for (uint32_t i = 0; i < j->n_choice; i++) {
        struct service_request r;
        api_job_request(j, i, &r);
        if (r.take_guide) r.take_guide->free(r.take_guide);
        uint32_t n = 0;
        for (; n < ids.n && !j->choice[i].wants_end; n++) tell(j, i, ids.ids[n], n);
        enum service_end end = j->choice[i].wants_end ? SERVICE_END_CANCELLED : script->end;
        struct service_done d = {
            .end = end, .n_prompt = r.n_token, .n_cached = script->n_cached, .n_output = n
        };
        if (end == SERVICE_END_ERROR) snprintf(d.text, sizeof d.text, "generation failed");
        d.code = ERR_DEVICE;
        api_job_done(j, i, &d);
    }
    token_buf_free(&ids);
    assert_true(j->finished);
    return j;
}

/* ---- shapes: the same members of the same types; texts too, but those that differ every time ---- */

static bool varies(const char *key) {
    static const char *const keys[] = {
        "id",      "created", "created_at", "model",      "system_fingerprint",
        "item_id", "call_id", "signature",  "request_id", "logprob",
        "bytes",   "token"
    };
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        if (strcmp(key, keys[i]) == 0) return true;
    return false;
}

static void same_shape(const char *where, const char *key, const json_t *want, const json_t *have,
                       bool texts);

static void same_members(const char *where, const json_t *want, const json_t *have, bool texts) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)want, key, v) {
        const json_t *other = json_object_get(have, key);
        if (!other) fail_msg("%s: no member \"%s\"", where, key);
        same_shape(where, key, v, other, texts);
    }
    json_object_foreach((json_t *)(uintptr_t)have, key, v) {
        bool extra = strcmp(key, "prompt_tokens_details") == 0 || strcmp(key, "usage") == 0 ||
                     strcmp(key, "logprobs") == 0 || strcmp(key, "system_fingerprint") == 0;
        if (!json_object_get(want, key) && !extra) fail_msg("%s: the member \"%s\" is too much", where, key);
    }
}

static void same_shape(const char *where, const char *key, const json_t *want, const json_t *have,
                       bool texts) {
    bool numbers = json_is_number(want) && json_is_number(have),
         bools = json_is_boolean(want) && json_is_boolean(have);
    if (!numbers && !bools && json_typeof(want) != json_typeof(have))
        fail_msg("%s: %s has another type", where, key);
    if (json_is_object(want)) same_members(where, want, have, texts);
    if (json_is_array(want)) {
        if (texts && strcmp(key, "bytes") != 0)
            assert_int_equal(json_array_size(want), json_array_size(have));
        for (size_t i = 0; i < MIN(json_array_size(want), json_array_size(have)); i++)
            same_shape(where, key, json_array_get(want, i), json_array_get(have, i), texts);
    }
    if (texts && json_is_string(want) && !varies(key) &&
        strcmp(json_string_value(want), json_string_value(have)) != 0)
        fail_msg("%s: %s is \"%s\", wanted \"%s\"", where, key, json_string_value(have),
                 json_string_value(want));
    if (strcmp(key, "index") == 0 || strcmp(key, "sequence_number") == 0 || strcmp(key, "output_index") == 0)
        assert_int_equal(json_integer_value(want), json_integer_value(have));
}

/* One event or comment of a stream; false at the end. */
struct sse_event {
    char name[64];
    json_t *data;                                 /* NULL: a comment, or [DONE] */
    bool done, comment;
};

static bool next_event(const char **at, struct sse_event *e) {
    const char *end = strstr(*at, "\n\n");
    *e = (struct sse_event){ .name = "" };
    if (!**at) return false;
    if (!end) fail_msg("an event without its end: %s", *at);
    for (const char *line = *at; line < end; line += strcspn(line, "\n") + 1) {
        if (*line == ':') e->comment = true;
        else if (sscanf(line, "event: %63[^\n]", e->name) == 1) continue;
        else if (strncmp(line, "data: [DONE]", 12) == 0) e->done = true;
        else if (strncmp(line, "data: ", 6) == 0)
            e->data = json_loadb(line + 6, strcspn(line + 6, "\n"), 0, NULL);
        else fail_msg("a line of no known kind: %.40s", line);
    }
    if (!e->comment && !e->done && !e->data) fail_msg("data that is no JSON: %.200s", *at);
    *at = end + 2;
    return true;
}

static char *read_vector(const char *name) {
    const char *folder = vectors_folder("http");
    char path[5000];
    if (!folder) return NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *text = xcalloc(1 << 20, 1);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    text[n] = 0;
    fclose(f);
    return text;
}

/* Neighbouring deltas of one kind are joined on both sides, because tokens are cut otherwise. */
static json_t *delta_text(const struct sse_event *e, const char **key) {
    static const char *const keys[] = { "delta", "thinking", "text", "partial_json" };
    static const char *const chat[] = { "content", "reasoning_content" };
    json_t *delta = json_object_get(e->data, "delta");
    if (json_is_string(delta)) return *key = "delta", delta;
    for (size_t i = 0; i < COUNT_OF(keys) && delta; i++)
        if (strstr(e->name, "delta") && json_is_string(json_object_get(delta, keys[i])))
            return *key = keys[i], json_object_get(delta, keys[i]);
    json_t *choice = json_array_get(json_object_get(e->data, "choices"), 0);
    delta = json_object_get(choice, "delta");
    for (size_t i = 0; i < COUNT_OF(chat); i++)
        if (json_is_string(json_object_get(delta, chat[i])) && !json_object_get(delta, "role"))
            return *key = chat[i], json_object_get(delta, chat[i]);
    json_t *call = json_array_get(json_object_get(delta, "tool_calls"), 0),
           *function = json_object_get(call, "function");
    if (function && !json_object_get(call, "id"))
        return *key = "arguments", json_object_get(function, "arguments");
    if (json_is_string(json_object_get(choice, "text")) &&
        json_string_length(json_object_get(choice, "text")))
        return *key = "text", json_object_get(choice, "text");
    return NULL;
}

/* The stream as a list of events in which joined texts stand once. */
static json_t *events_of(const char *text) {
    json_t *list = json_array();
    struct sse_event e;
    const char *last_key = "", *key = "";
    char last_name[64] = "";
    while (next_event(&text, &e)) {
        json_t *piece = e.data ? delta_text(&e, &key) : NULL,
               *before = json_array_get(list, json_array_size(list) - 1);
        if (e.comment) continue;
        if (piece && strcmp(key, last_key) == 0 && strcmp(last_name, e.name) == 0 && before) {
            struct sse_event b = { .data = json_object_get(before, "data") };
            snprintf(b.name, sizeof b.name, "%s", e.name);
            json_t *old = delta_text(&b, &key);
            char *joined = xcalloc(json_string_length(old) + json_string_length(piece) + 1, 1);
            memcpy(joined, json_string_value(old), json_string_length(old));
            memcpy(joined + json_string_length(old), json_string_value(piece), json_string_length(piece));
            json_string_set(old, joined);
            free(joined);
            json_decref(e.data);
            continue;
        }
        last_key = piece ? key : "";
        snprintf(last_name, sizeof last_name, "%s", e.name);
        json_array_append_new(list, json_pack("{s:s,s:o,s:b}", "event", e.name, "data",
                                              e.data ? e.data : json_null(), "done", e.done));
    }
    return list;
}

static void drop_numbering(json_t *list) {
    for (size_t i = 0; i < json_array_size(list); i++)
        json_object_del(json_object_get(json_array_get(list, i), "data"), "sequence_number");
}

static void same_stream(const char *vector, const struct script *script) {
    char *text = read_vector(vector);
    if (!text) skip();
    struct api_job *j = run(script);
    json_t *want = events_of(text), *have = events_of(j->out.data);
    drop_numbering(want), drop_numbering(have);
    if (json_array_size(want) != json_array_size(have))
        fail_msg("%s: %zu events, wanted %zu:\n%s", vector, json_array_size(have),
                 json_array_size(want), j->out.data);
    for (size_t i = 0; i < json_array_size(want); i++) {
        char where[100];
        snprintf(where, sizeof where, "%s, event %zu", vector, i);
        same_shape(where, "event", json_array_get(want, i), json_array_get(have, i), true);
    }
    json_decref(want), json_decref(have);
    api_job_free(j);
    free(text);
}

static void same_object(const char *vector, const struct script *script) {
    char *text = read_vector(vector);
    if (!text) skip();
    struct api_job *j = run(script);
    json_t *want = json_loads(text, 0, NULL), *have = json_loadb(j->out.data, j->out.size, 0, NULL);
    if (!have) fail_msg("%s: no JSON: %s", vector, j->out.data);
    same_shape(vector, "", want, have, true);
    json_decref(want), json_decref(have);
    api_job_free(j);
    free(text);
}

/* ---- the transcripts ---- */

#define CHAT_TOOLS                                                                                         \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{}}},"        \
    "{\"type\":\"function\",\"function\":{\"name\":\"read_file\",\"parameters\":{}}}]"
#define CHAT_USER_SAYS "\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"}]"
#define WEATHER                                                                                    \
    CHAT_INVOKE_OPEN "get_weather\">\n" CHAT_PARAMETER_OPEN                                        \
                     "city\" string=\"true\">Paris" CHAT_PARAMETER_CLOSE "\n" CHAT_INVOKE_CLOSE    \
                     "\n"
#define READ_FILE                                                                                  \
    CHAT_INVOKE_OPEN "read_file\">\n" CHAT_PARAMETER_OPEN                                          \
                     "path\" string=\"true\">/a" CHAT_PARAMETER_CLOSE "\n" CHAT_PARAMETER_OPEN     \
                     "limit\" string=\"false\">20" CHAT_PARAMETER_CLOSE "\n" CHAT_INVOKE_CLOSE     \
                     "\n"
#define ONE_CALL                                                                                   \
    "Need the weather." CHAT_THINK_END "Let me check.\n\n" CHAT_CALLS_OPEN                         \
    "\n" WEATHER CHAT_CALLS_CLOSE
#define TWO_CALLS                                                                                  \
    "Need the weather." CHAT_THINK_END "Let me check.\n\n" CHAT_CALLS_OPEN                         \
    "\n" WEATHER READ_FILE CHAT_CALLS_CLOSE

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

#define MESSAGES_TOOLS "\"tools\":[{\"name\":\"get_weather\",\"input_schema\":{}}]"
#define MESSAGES_SAY "\"max_tokens\":100,\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"}]"

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

#define RESPONSES_TOOLS "\"tools\":[],\"reasoning\":{\"effort\":\"high\"}"

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

/* ---- one answer in many ways ---- */

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

/* ---- rules ---- */

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

/* ---- refusals ---- */

static void refused(enum api_endpoint endpoint, const char *body, enum api_fault kind,
                    const char *param, const char *text) {
    struct api_error fault;
    struct api_job *j = prepare(endpoint, body, &fault);
    if (j) fail_msg("accepted: %s", body);
    assert_int_equal(fault.fault, kind);
    assert_string_equal(fault.param ? fault.param : "", param);
    if (!strstr(fault.text, text)) fail_msg("\"%s\" does not say \"%s\"", fault.text, text);
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

/* ---- tokens ---- */

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

/* ---- routes ---- */

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
        TEST(chat_is_as_in_the_transcript),
        TEST(a_chat_stream_with_tools_is_as_in_the_transcript),
        TEST(a_chat_stream_with_logprobs_is_as_in_the_transcript),
        TEST(a_chat_stream_that_fails_is_as_in_the_transcript),
        TEST(completions_are_as_in_the_transcript),
        TEST(a_stream_of_completions_is_as_in_the_transcript),
        TEST(messages_are_as_in_the_transcript),
        TEST(a_stream_of_messages_is_as_in_the_transcript),
        TEST(a_stream_of_messages_that_fails_is_as_in_the_transcript),
        TEST(responses_are_as_in_the_transcript),
        TEST(streams_of_responses_are_as_in_the_transcripts),
        TEST(sequence_numbers_count_from_zero_without_gaps),
        TEST(models_are_as_in_the_transcript),
        TEST(errors_are_as_in_the_transcripts),
        TEST(a_stream_says_what_an_object_says),
        TEST(stop_strings_end_content_over_any_border_and_nothing_else),
        TEST(a_stopped_answer_asks_to_be_cancelled),
        TEST(characters_are_never_cut),
        TEST(choices_are_interleaved_by_index_and_the_prompt_counts_once),
        TEST(reasoning_tokens_are_those_up_to_the_end_of_thinking),
        TEST(messages_name_the_stop_and_the_model_that_was_asked_for),
        TEST(an_empty_answer_still_has_a_text_block),
        TEST(summaries_and_sealed_reasoning_come_when_asked_for),
        TEST(custom_tools_get_their_one_string),
        TEST(tools_of_a_group_come_back_under_their_own_names),
        TEST(prompts_of_a_completion_have_choices_of_their_own),
        TEST(what_is_wrong_is_named),
        TEST(a_prompt_longer_than_the_context_says_both_numbers),
        TEST(unknown_fields_and_nulls_are_fine_and_limits_are_kept),
        TEST(two_names_of_the_model_say_whether_it_thinks),
        TEST(strict_models_are_404_and_aliases_are_not),
        TEST(tokenize_speaks_both_dialects),
        TEST(detokenize_undoes_tokenize),
        TEST(counting_tokens_counts_the_whole_prompt),
        TEST(routes_are_found_with_prefixes_slashes_and_queries),
    };
    return cmocka_run_group_tests(tests, open_site, close_site);
}
