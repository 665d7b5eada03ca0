/* api_request - the OpenAI chat dialect; see the header. Messages first, then thinking, tools
 * and format, each by its own function; what they share with the other dialects is in
 * api_request_parts. */
#include "coordinator/api_request.h"

#include "coordinator/api_request_parts.h"

/* Readers give 0 or more when all is well: the getters' "it was there" is passed on. */

/* ---- messages ---- */

static int read_role(const json_t *message, enum chat_role *role, struct err *e) {
    static const struct {
        const char *word;
        enum chat_role role;
    } table[] = {
        { "system", CHAT_ROLE_SYSTEM },       { "developer", CHAT_ROLE_SYSTEM },
        { "user", CHAT_ROLE_USER },           { "assistant", CHAT_ROLE_ASSISTANT },
        { "tool", CHAT_ROLE_TOOL },           { "function", CHAT_ROLE_TOOL },
        { "latest_reminder", CHAT_ROLE_REMINDER },
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        if (!api_json_is(message, "role", table[i].word)) continue;
        *role = table[i].role;
        return 0;
    }
    return err_set(e, ERR_INVALID, "role must be system, developer, user, assistant or tool");
}

/* Arguments as a string are what they are; as anything else, their spelling in the body. */
static int read_arguments(struct api_request *r, const json_t *function, struct chat_text text,
                          struct chat_text *out, struct err *e) {
    const json_t *arguments = api_json_get(function, "arguments");
    struct chat_text spelt;
    if (!arguments) return 0;
    if (json_is_string(arguments)) {
        *out = api_json_text(arguments);
        return 0;
    }
    if (!chat_json_member(text, "arguments", &spelt))
        return err_set(e, ERR_INTERNAL, "arguments without text");
    return api_copy(r, spelt, out, e);
}

static int read_function(struct api_request *r, const json_t *function, struct chat_text text,
                         struct chat_call *call, struct err *e) {
    int rc = api_json_string(function, "name", &call->name, e);
    if (rc < 0) return rc;
    if (rc == 0) return err_set(e, ERR_INVALID, "a call must have a function with a name");
    return read_arguments(r, function, text, &call->arguments, e);
}

static int read_call(struct api_request *r, const json_t *entry, struct chat_text text,
                     struct chat_call *call, struct err *e) {
    json_t *function;
    struct chat_text function_text = { NULL, 0 };
    int rc = api_json_string(entry, "id", &call->id, e);
    if (rc >= 0) rc = api_json_object(entry, "function", &function, e);
    if (rc < 0) return rc;
    chat_json_member(text, "function", &function_text);
    return read_function(r, function, function_text, call, e);
}

static int read_calls(struct api_request *r, const json_t *entries, struct chat_text text,
                      struct chat_message *m, struct err *e) {
    size_t n = json_array_size(entries), at = 0;
    struct chat_text entry_text = { NULL, 0 };
    struct chat_call *calls;
    int rc = api_calls_new(r, n, &calls, e);
    if (rc < 0) return rc;
    for (size_t i = 0; i < n; i++) {
        chat_json_element(text, &at, &entry_text);
        rc = read_call(r, json_array_get(entries, i), entry_text, &calls[i], e);
        if (rc < 0) return err_wrap(e, rc, "tool_calls[%zu]", i);
    }
    m->calls = calls;
    m->n_calls = n;
    return 0;
}

/* The one call of the API before tools. */
static int read_legacy_call(struct api_request *r, const json_t *function, struct chat_text text,
                            struct chat_message *m, struct err *e) {
    struct chat_call *call;
    int rc = api_calls_new(r, 1, &call, e);
    if (rc < 0) return rc;
    m->calls = call;
    m->n_calls = 1;
    return read_function(r, function, text, call, e);
}

static int read_assistant(struct api_request *r, const json_t *message, struct chat_text text,
                          bool last, struct chat_message *m, struct err *e) {
    json_t *calls, *legacy;
    struct chat_text part = { NULL, 0 };
    int rc = api_json_string(message, "reasoning_content", &m->reasoning, e);
    if (rc == 0 && json_is_string(json_object_get(message, "reasoning")))
        m->reasoning = api_json_text(json_object_get(message, "reasoning"));
    if (rc >= 0 && last) rc = api_json_bool(message, "prefix", &m->prefix, e);
    if (rc >= 0) rc = api_json_array(message, "tool_calls", &calls, e);
    if (rc < 0) return rc;
    if (calls && json_array_size(calls)) {
        chat_json_member(text, "tool_calls", &part);
        return read_calls(r, calls, part, m, e);
    }
    rc = api_json_object(message, "function_call", &legacy, e);
    if (rc <= 0) return rc;
    chat_json_member(text, "function_call", &part);
    return read_legacy_call(r, legacy, part, m, e);
}

static int read_message(struct api_request *r, const json_t *message, struct chat_text text,
                        bool last, struct err *e) {
    enum chat_role role = CHAT_ROLE_USER;
    struct chat_message *m;
    if (!json_is_object(message)) return err_set(e, ERR_INVALID, "a message must be an object");
    int rc = read_role(message, &role, e);
    if (rc < 0) return rc;
    rc = api_message_add(r, role, &m, e);
    if (rc < 0) return rc;
    rc = api_content_read(r, json_object_get(message, "content"), role == CHAT_ROLE_TOOL,
                          &m->content, e);
    if (rc < 0) return err_wrap(e, rc, "content");
    if (role == CHAT_ROLE_ASSISTANT) return read_assistant(r, message, text, last, m, e);
    if (role == CHAT_ROLE_TOOL) return api_json_string(message, "tool_call_id", &m->call_id, e);
    return 0;
}

static int read_messages(struct api_request *r, struct chat_text body, struct err *e) {
    json_t *messages;
    struct chat_text all = { NULL, 0 }, text = { NULL, 0 };
    int rc = api_json_array(r->root, "messages", &messages, e);
    if (rc < 0) return rc;
    size_t n = json_array_size(messages), at = 0;
    if (n == 0) return err_set(e, ERR_INVALID, "messages must be an array and not empty");
    chat_json_member(body, "messages", &all);
    for (size_t i = 0; i < n; i++) {
        chat_json_element(all, &at, &text);
        rc = read_message(r, json_array_get(messages, i), text, i + 1 == n, e);
        if (rc < 0) return err_wrap(e, rc, "messages[%zu]", i);
    }
    return 0;
}

/* ---- thinking: many clients, many switches; the first that is there decides ---- */

static bool model_is(const json_t *root, const char *name) {
    return api_json_is(root, "model", name);
}

static int read_switches(struct api_request *r, const json_t *kwargs, const json_t *reasoning,
                         struct err *e) {
    const json_t *switches[] = {
        json_object_get(r->root, "thinking"),   json_object_get(r->root, "think"),
        json_object_get(r->root, "enable_thinking"), json_object_get(kwargs, "thinking"),
        json_object_get(kwargs, "enable_thinking"),  json_object_get(reasoning, "enabled"),
    };
    for (size_t i = 0; i < COUNT_OF(switches); i++) {
        int rc = api_thinking_read(r, switches[i], e);
        if (rc) return rc;
    }
    return 0;
}

static int read_thinking(struct api_request *r, struct err *e) {
    json_t *kwargs, *reasoning;
    int rc = api_json_object(r->root, "chat_template_kwargs", &kwargs, e);
    if (rc >= 0) rc = api_json_object(r->root, "reasoning", &reasoning, e);
    if (rc < 0) return rc;
    if (model_is(r->root, "deepseek-chat")) r->options.thinking = false;
    if (model_is(r->root, "deepseek-reasoner")) r->options.thinking = true;
    const json_t *efforts[] = { api_json_get(kwargs, "reasoning_effort"),
                                api_json_get(reasoning, "effort"),
                                api_json_get(r->root, "reasoning_effort") };
    const json_t *effort = efforts[0] ? efforts[0] : efforts[1] ? efforts[1] : efforts[2];
    rc = api_effort_read(r, effort, e);
    return rc < 0 ? rc : read_switches(r, kwargs, reasoning, e);
}

/* ---- tools ---- */

static int add_function(struct api_request *r, const json_t *function, struct chat_text spelt,
                        struct err *e) {
    struct api_tool tool = { .custom = false };
    int rc = api_json_string(function, "name", &tool.name, e);
    if (rc < 0) return rc;
    if (rc == 0) return err_set(e, ERR_INVALID, "a function must be an object with a name");
    rc = api_copy(r, spelt, &tool.json, e);
    tool.client_name = tool.name;
    if (rc == 0) api_tool_add(r, tool);
    return rc;
}

/* tools: [{"type": "function", "function": F}, ...], and functions: [F, ...] of the older API. */
static int read_tool_list(struct api_request *r, const char *field, struct chat_text body,
                          struct err *e) {
    json_t *list;
    struct chat_text all = { NULL, 0 }, text = { NULL, 0 };
    bool legacy = strcmp(field, "functions") == 0;
    int rc = api_json_array(r->root, field, &list, e);
    if (rc <= 0) return rc;
    size_t n = json_array_size(list), at = 0;
    rc = api_tools_new(r, n, e);
    chat_json_member(body, field, &all);
    for (size_t i = 0; i < n && rc == 0; i++) {
        const json_t *entry = json_array_get(list, i);
        struct chat_text function = { NULL, 0 };
        chat_json_element(all, &at, &text);
        if (!legacy && !api_json_is(entry, "type", "function")) continue;
        if (!legacy) chat_json_member(text, "function", &function);
        rc = legacy ? add_function(r, entry, text, e)
                    : add_function(r, json_object_get(entry, "function"), function, e);
        if (rc < 0) return err_wrap(e, rc, "%s[%zu]", field, i);
    }
    return rc;
}

static int read_choice_object(struct api_request *r, const json_t *choice, struct err *e) {
    struct chat_text name = { NULL, 0 }, mode = chat_text_of("auto");
    const json_t *allowed = api_json_get(choice, "allowed_tools");
    if (!api_json_is(choice, "type", "allowed_tools")) {
        const json_t *function = api_json_get(choice, "function");
        int rc = api_json_string(function ? function : choice, "name", &name, e);
        return rc < 0 ? rc : api_tool_choose(r, name, e);
    }
    int rc = api_tools_allow(r, json_object_get(allowed, "tools"), "function", e);
    if (rc == 0) rc = api_json_string(allowed, "mode", &mode, e);
    return rc < 0 ? rc : api_tool_choice_word(r, mode, e);
}

static int read_choice(struct api_request *r, struct err *e) {
    const json_t *choice = api_json_get(r->root, "tool_choice");
    if (!choice) choice = api_json_get(r->root, "function_call");
    if (!choice) return 0;
    if (json_is_string(choice)) return api_tool_choice_word(r, api_json_text(choice), e);
    if (json_is_object(choice)) return read_choice_object(r, choice, e);
    return err_set(e, ERR_INVALID, "tool_choice must be a string or an object");
}

static int read_tools(struct api_request *r, struct chat_text body, struct err *e) {
    bool parallel = true;
    int rc = read_tool_list(r, api_json_get(r->root, "tools") ? "tools" : "functions", body, e);
    if (rc >= 0) rc = read_choice(r, e);
    if (rc >= 0) rc = api_json_bool(r->root, "parallel_tool_calls", &parallel, e);
    r->one_call = !parallel;
    return rc;
}

/* ---- format of the answer ---- */

static int read_format(struct api_request *r, struct chat_text body, struct err *e) {
    json_t *format;
    struct chat_text text = { NULL, 0 };
    int rc = api_json_object(r->root, "response_format", &format, e);
    if (rc <= 0) return rc;
    chat_json_member(body, "response_format", &text);
    return api_format_read(r, format, text, "json_schema", e);
}

int api_request_chat(struct api_request *r, json_t *root, struct chat_text body,
                     const struct api_defaults *d, struct err *e) {
    int rc = api_request_open(r, root, d, e);
    if (rc < 0) return rc;
    rc = read_messages(r, body, e);
    if (rc >= 0) rc = read_thinking(r, e);
    if (rc >= 0) rc = read_tools(r, body, e);
    if (rc >= 0) rc = read_format(r, body, e);
    if (rc >= 0) rc = api_request_finish(r, e);
    if (rc < 0) api_request_deinit(r);
    return MIN(rc, 0);
}
