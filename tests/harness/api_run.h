/* api_run - jobs of the endpoint without an endpoint: a body and a script in, the bytes of the answer
 * out, and whether these have the shape of a transcript in vectors/http.
 *
 * One site per program, opened and closed around its tests. No sockets, no service. Header only; one
 * thread. */
#ifndef HARNESS_API_RUN_H
#define HARNESS_API_RUN_H

#include "tests/harness/test.h"

#include "tests/harness/api_site.h"

static struct scripted_site s;

static inline int open_site(void **state) {
    (void)state;
    scripted_open(&s);
    return 0;
}

static inline int close_site(void **state) {
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

static inline struct api_job *prepare(enum api_endpoint endpoint, const char *body, struct api_error *fault) {
    struct api_job_input in = { endpoint, chat_text_of(body), "req_1", 42, 1795166400 };
    return api_job_prepare(s.site, &in, fault);
}

static inline void tell(struct api_job *j, uint32_t i, int32_t id, uint32_t index) {
    struct service_token t = { .id = id, .index = index, .logprob = -0.25 };
    t.n_top = j->params.sampling.n_top;
    for (int k = 0; k < t.n_top; k++)
        t.top[k] = (struct sampler_logprob){ k ? 'z' + SMALL_BYTE_FIRST : id, -0.25 - k };
    api_job_token(j, i, &t);
}

/* What the service says of a prompt: token p has the log-probability -p / 4. */
static inline void tell_prompt(struct api_job *j, uint32_t i, const struct service_request *r) {
    for (uint32_t p = 1; r->score_prompt && p < r->n_token; p++) {
        struct service_token t = {
            .id = r->token[p], .index = p, .of_prompt = true, .logprob = -(double)p / 4
        };
        t.n_top = r->sampling.n_top;
        for (int k = 0; k < t.n_top; k++)
            t.top[k] = (struct sampler_logprob){ 'p' + SMALL_BYTE_FIRST, -0.125 };
        api_job_token(j, i, &t);
    }
}

static inline struct api_job *run(const struct script *script) {
    struct api_error fault;
    struct api_job *j = prepare(script->endpoint, script->body, &fault);
    if (!j) fail_msg("refused: %s", fault.text);
    if (j->params.stream) api_job_open(j);
    struct token_buf ids = scripted_tokens(s.tokenizer, script->text);
    for (uint32_t i = 0; i < j->n_choice; i++) {
        struct service_request r;
        assert_true(api_job_may_begin(j, i));
        api_job_request(j, i, &r);
        tell_prompt(j, i, &r);
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

static inline bool varies(const char *key) {
    static const char *const keys[] = {
        "id",      "created", "created_at", "model",      "system_fingerprint",
        "item_id", "call_id", "signature",  "request_id", "logprob",
        "bytes",   "token"
    };
    for (size_t i = 0; i < COUNT_OF(keys); i++)
        if (strcmp(key, keys[i]) == 0) return true;
    return false;
}

static inline void same_shape(const char *where, const char *key, const json_t *want, const json_t *have,
                       bool texts);

static inline void same_members(const char *where, const json_t *want, const json_t *have, bool texts) {
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

static inline void same_shape(const char *where, const char *key, const json_t *want, const json_t *have,
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

static inline bool next_event(const char **at, struct sse_event *e) {
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

static inline char *read_vector(const char *name) {
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
static inline json_t *delta_text(const struct sse_event *e, const char **key) {
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
static inline json_t *events_of(const char *text) {
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

static inline void drop_numbering(json_t *list) {
    for (size_t i = 0; i < json_array_size(list); i++)
        json_object_del(json_object_get(json_array_get(list, i), "data"), "sequence_number");
}

static inline void same_stream(const char *vector, const struct script *script) {
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

static inline void same_object(const char *vector, const struct script *script) {
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

/* ---- what is said in most of them ---- */

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

#define MESSAGES_TOOLS "\"tools\":[{\"name\":\"get_weather\",\"input_schema\":{}}]"
#define MESSAGES_SAY "\"max_tokens\":100,\"messages\":[{\"role\":\"user\",\"content\":\"Weather?\"}]"

#endif
