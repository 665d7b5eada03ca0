/* api_request_responses - the OpenAI responses dialect.
 *
 * Its input is a flat list of items. Reasoning, assistant texts and calls that follow one
 * another are one assistant message of ours; a result or another role's message ends it. */
#include "coordinator/api_request.h"

#include <stdlib.h>

#include "common/base/log.h"
#include "coordinator/api_request_parts.h"
#include "coordinator/api_sealed.h"

/* ---- items ---- */

enum item {
    ITEM_OTHER,                                   /* not known: skipped */
    ITEM_MESSAGE,
    ITEM_ASSISTANT,
    ITEM_REASONING,
    ITEM_CALL,
    ITEM_CUSTOM_CALL,
    ITEM_RESULT,
    ITEM_FOREIGN_CALL,                            /* of a tool that their server runs, and what came of it */
    ITEM_FOREIGN_RESULT,
    ITEM_REFERENCE,
};

static bool ends_with(const json_t *item, const char *end) {
    struct chat_text type = { NULL, 0 };
    size_t n = strlen(end);
    return api_json_string(item, "type", &type, NULL) == 1 && type.len > n &&
           memcmp(type.data + type.len - n, end, n) == 0;
}

static enum item item_of(const json_t *item) {
    static const struct {
        const char *type;
        enum item item;
    } table[] = {
        { "reasoning", ITEM_REASONING },
        { "function_call", ITEM_CALL },
        { "custom_tool_call", ITEM_CUSTOM_CALL },
        { "function_call_output", ITEM_RESULT },
        { "custom_tool_call_output", ITEM_RESULT },
        { "item_reference", ITEM_REFERENCE },
    };
    bool untyped = !api_json_get(item, "type") && api_json_get(item, "role");
    if (untyped || api_json_is(item, "type", "message"))
        return api_json_is(item, "role", "assistant") ? ITEM_ASSISTANT : ITEM_MESSAGE;
    for (size_t i = 0; i < COUNT_OF(table); i++)
        if (api_json_is(item, "type", table[i].type)) return table[i].item;
    if (ends_with(item, "_call")) return ITEM_FOREIGN_CALL;
    return ends_with(item, "_output") ? ITEM_FOREIGN_RESULT : ITEM_OTHER;
}

static void note_unknown(void) {
    log_info("api", "an input item of an unknown type is skipped");
}

static bool is_output(enum item item) {
    return item == ITEM_ASSISTANT || item == ITEM_REASONING || item == ITEM_CALL ||
           item == ITEM_CUSTOM_CALL || item == ITEM_FOREIGN_CALL;
}

/* ---- tools that we do not have: local_shell_call, web_search_call, ... ---- */

static int copy_json(struct api_request *r, const json_t *v, struct chat_text *out, struct err *e) {
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
    if (!text) return err_set(e, ERR_NOMEM, "an item");
    int rc = api_copy(r, chat_text_of(text), out, e);
    free(text);
    return rc;
}

/* What an item says beside what it is. */
static int copy_rest(struct api_request *r, const json_t *item, struct chat_text *out, struct err *e) {
    static const char *const about[] = { "type", "id", "call_id", "status" };
    json_t *rest = json_copy((json_t *)(uintptr_t)item);
    if (!rest) return err_set(e, ERR_NOMEM, "an item");
    for (size_t i = 0; i < COUNT_OF(about); i++) json_object_del(rest, about[i]);
    int rc = copy_json(r, rest, out, e);
    json_decref(rest);
    return rc;
}

static int read_id(const json_t *item, struct chat_text *id, struct err *e) {
    int rc = api_json_string(item, "call_id", id, e);
    return rc == 0 ? api_json_string(item, "id", id, e) : rc;
}

/* "local_shell_call" with its action is a call of local_shell. */
static int read_foreign_call(struct api_request *r, const json_t *item, struct chat_call *call,
                             struct err *e) {
    const json_t *action = api_json_get(item, "action");
    if (!action) action = api_json_get(item, "arguments");
    int rc = read_id(item, &call->id, e);
    if (rc >= 0) rc = api_json_string(item, "type", &call->name, e);
    if (rc < 0) return rc;
    call->name.len -= strlen("_call");
    if (json_is_string(action)) call->arguments = api_json_text(action);
    else if (action) rc = copy_json(r, action, &call->arguments, e);
    else rc = copy_rest(r, item, &call->arguments, e);
    return MIN(rc, 0);
}

static int read_foreign_result(struct api_request *r, const json_t *item, struct err *e) {
    const json_t *output = api_json_get(item, "output");
    struct chat_message *m;
    int rc = api_message_add(r, CHAT_ROLE_TOOL, &m, e);
    if (rc == 0) rc = read_id(item, &m->call_id, e);
    if (rc < 0) return rc;
    if (json_is_string(output)) m->content = api_json_text(output);
    else return output ? copy_json(r, output, &m->content, e) : copy_rest(r, item, &m->content, e);
    return 0;
}

/* ---- the assistant's items ---- */

struct output {
    struct api_texts content, reasoning;
    bool any;                                     /* something besides reasoning */
    struct chat_call *calls;
    size_t n_calls;
};

/* The texts of an array's members, added to *texts; their number. */
static size_t add_texts(const json_t *list, struct api_texts *texts) {
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct chat_text text = { NULL, 0 };
        if (api_json_string(json_array_get(list, i), "text", &text, NULL) != 1) continue;
        api_texts_add(texts, text);
        n++;
    }
    return n;
}

/* In clear, or as a summary, or as we sealed it; another server's seal is left alone. */
static void add_reasoning(const json_t *item, struct api_texts *reasoning) {
    struct chat_text sealed = { NULL, 0 };
    struct buf plain;
    if (add_texts(json_object_get(item, "content"), reasoning)) return;
    if (add_texts(json_object_get(item, "summary"), reasoning)) return;
    if (api_json_string(item, "encrypted_content", &sealed, NULL) != 1) return;
    buf_init(&plain, API_REQUEST_BYTES_MAX);
    if (api_sealed_read(&plain, sealed) == 0)
        api_texts_add(reasoning, (struct chat_text){ plain.data, plain.size });
    buf_deinit(&plain);
}

/* A tool in a group is shown to the model by both names. */
static int full_name(struct api_request *r, struct chat_text space, struct chat_text name,
                     struct chat_text *out, struct err *e) {
    struct buf both;
    *out = name;
    if (!space.len) return 0;
    buf_init(&both, API_REQUEST_BYTES_MAX);
    buf_add(&both, space.data, space.len);
    buf_add(&both, name.data, name.len);
    int rc = both.rc < 0 ? err_set(e, both.rc, "a name of this size")
                         : api_copy(r, (struct chat_text){ both.data, both.size }, out, e);
    buf_deinit(&both);
    return rc;
}

/* The one string of a custom tool as an object. */
static int wrap_input(struct api_request *r, struct chat_text input, struct chat_text *out,
                      struct err *e) {
    struct buf json;
    buf_init(&json, API_REQUEST_BYTES_MAX);
    buf_add_text(&json, "{\"input\": ");
    chat_json_put_quoted(&json, input);
    buf_add_text(&json, "}");
    int rc = json.rc < 0 ? err_set(e, json.rc, "an input of this size")
                         : api_copy(r, (struct chat_text){ json.data, json.size }, out, e);
    buf_deinit(&json);
    return rc;
}

static int read_call(struct api_request *r, const json_t *item, bool custom,
                     struct chat_call *call, struct err *e) {
    struct chat_text space = { NULL, 0 }, name = { NULL, 0 }, input = { NULL, 0 };
    int rc = api_json_string(item, "call_id", &call->id, e);
    if (rc >= 0) rc = api_json_string(item, "namespace", &space, e);
    if (rc >= 0) rc = api_json_string(item, "name", &name, e);
    if (rc == 0) return err_set(e, ERR_INVALID, "a call without a name");
    if (rc >= 0) rc = full_name(r, space, name, &call->name, e);
    if (rc >= 0) rc = api_json_string(item, custom ? "input" : "arguments", &input, e);
    if (rc < 0) return rc;
    call->arguments = input;
    return custom ? wrap_input(r, input, &call->arguments, e) : 0;
}

static int read_output_item(struct api_request *r, const json_t *item, struct output *o,
                            struct err *e) {
    struct chat_text text;
    enum item kind = item_of(item);
    if (kind == ITEM_REASONING) add_reasoning(item, &o->reasoning);
    if (kind == ITEM_OTHER) note_unknown();
    if (kind == ITEM_REASONING || kind == ITEM_OTHER) return 0;
    o->any = true;
    if (kind == ITEM_FOREIGN_CALL) return read_foreign_call(r, item, &o->calls[o->n_calls++], e);
    if (kind != ITEM_ASSISTANT)
        return read_call(r, item, kind == ITEM_CUSTOM_CALL, &o->calls[o->n_calls++], e);
    int rc = api_content_read(r, json_object_get(item, "content"), false, &text, e);
    if (rc == 0) api_texts_add(&o->content, text);
    return rc;
}

/* Adds the message, unless there is only reasoning of a turn that came to nothing. */
static int add_output(struct api_request *r, struct output *o, int rc, struct err *e) {
    struct chat_message *m, nothing;
    bool wanted = rc == 0 && o->any;
    if (wanted) rc = api_message_add(r, CHAT_ROLE_ASSISTANT, &m, e);
    if (!wanted || rc < 0) m = &nothing;
    int rc_content = api_texts_close(r, &o->content, &m->content, rc < 0 ? NULL : e);
    int rc_reasoning = api_texts_close(r, &o->reasoning, &m->reasoning, rc < 0 ? NULL : e);
    m->calls = o->calls;
    m->n_calls = o->n_calls;
    if (rc < 0) return rc;
    return rc_content < 0 ? rc_content : rc_reasoning;
}

/* The assistant's items from *i on; *i is behind them afterwards. */
static int read_output(struct api_request *r, const json_t *items, size_t *i, struct err *e) {
    struct output o = { .calls = NULL };
    size_t end = *i, n_calls = 0;
    for (; end < json_array_size(items); end++) {
        enum item kind = item_of(json_array_get(items, end));
        if (!is_output(kind) && kind != ITEM_OTHER) break;
        n_calls += kind == ITEM_CALL || kind == ITEM_CUSTOM_CALL || kind == ITEM_FOREIGN_CALL;
    }
    int rc = api_calls_new(r, n_calls, &o.calls, e);
    if (rc < 0) return rc;
    api_texts_open(&o.content);
    api_texts_open(&o.reasoning);
    for (; *i < end && rc == 0; ++*i) {
        rc = read_output_item(r, json_array_get(items, *i), &o, e);
        if (rc < 0) err_wrap(e, rc, "input[%zu]", *i);
    }
    return add_output(r, &o, rc, e);
}

/* ---- the others' items ---- */

static int read_message(struct api_request *r, const json_t *item, struct err *e) {
    struct chat_message *m;
    bool system = api_json_is(item, "role", "system") || api_json_is(item, "role", "developer");
    if (!system && !api_json_is(item, "role", "user"))
        return err_set(e, ERR_INVALID, "role must be user, assistant, system or developer");
    int rc = api_message_add(r, system ? CHAT_ROLE_SYSTEM : CHAT_ROLE_USER, &m, e);
    if (rc < 0) return rc;
    return api_content_read(r, json_object_get(item, "content"), false, &m->content, e);
}

static int read_result(struct api_request *r, const json_t *item, struct err *e) {
    struct chat_message *m;
    int rc = api_message_add(r, CHAT_ROLE_TOOL, &m, e);
    if (rc == 0) rc = api_json_string(item, "call_id", &m->call_id, e);
    if (rc < 0) return rc;
    return api_content_read(r, json_object_get(item, "output"), true, &m->content, e);
}

static int read_items(struct api_request *r, const json_t *items, struct err *e) {
    int rc = 0;
    for (size_t i = 0; i < json_array_size(items) && rc >= 0;) {
        const json_t *item = json_array_get(items, i);
        enum item kind = item_of(item);
        if (is_output(kind)) {
            rc = read_output(r, items, &i, e);
            continue;
        }
        if (kind == ITEM_MESSAGE) rc = read_message(r, item, e);
        else if (kind == ITEM_RESULT) rc = read_result(r, item, e);
        else if (kind == ITEM_FOREIGN_RESULT) rc = read_foreign_result(r, item, e);
        else if (kind == ITEM_REFERENCE)
            rc = err_set(e, ERR_INVALID, "nothing is stored here, so items cannot be referred to: send them");
        else note_unknown();
        if (rc < 0) return err_wrap(e, rc, "input[%zu]", i);
        i++;
    }
    return rc < 0 ? rc : api_results_check(r, e);
}

static int read_input(struct api_request *r, struct err *e) {
    const json_t *input = api_json_get(r->root, "input");
    struct chat_message *m;
    struct chat_text instructions = { NULL, 0 };
    int rc = api_json_string(r->root, "instructions", &instructions, e);
    if (rc == 1) {
        rc = api_message_add(r, CHAT_ROLE_SYSTEM, &m, e);
        if (rc == 0) m->content = instructions;
    }
    if (rc < 0) return rc;
    if (json_is_array(input)) return read_items(r, input, e);
    if (!json_is_string(input))
        return err_set(e, ERR_INVALID, "input must be a string or an array of items");
    rc = api_message_add(r, CHAT_ROLE_USER, &m, e);
    if (rc == 0) m->content = api_json_text(input);
    return rc;
}

/* ---- tools ---- */

/* The tool's own members without its type, under the name that the model is to use. */
static void put_function(const struct chat_json *j, struct chat_text name, struct buf *out) {
    buf_add_text(out, "{");
    for (uint32_t i = chat_json_first(j, 0); i; i = chat_json_next(j, i)) {
        struct chat_text key = j->values[i].key;
        if (chat_text_equal(key, chat_text_of("type"))) continue;
        if (out->size > 1) buf_add_text(out, ", ");
        chat_json_put_quoted(out, key);
        buf_add_text(out, ": ");
        if (chat_text_equal(key, chat_text_of("name"))) chat_json_put_quoted(out, name);
        else chat_json_put_line(j, i, out);
    }
    buf_add_text(out, "}");
}

/* A custom tool becomes a function of one string. */
static void put_custom(const struct api_tool *tool, struct chat_text about, struct buf *out) {
    buf_add_text(out, "{\"name\": ");
    chat_json_put_quoted(out, tool->name);
    if (about.len) {
        buf_add_text(out, ", \"description\": ");
        chat_json_put_quoted(out, about);
    }
    buf_add_text(out, ", \"parameters\": {\"type\": \"object\", \"properties\": {\"input\": "
                      "{\"type\": \"string\"}}, \"required\": [\"input\"]}}");
}

static int tell_tool(struct api_tool *tool, const json_t *entry, struct chat_text spelt,
                     struct buf *out, struct err *e) {
    struct chat_text about = { NULL, 0 };
    struct chat_json j;
    if (tool->custom) {
        int rc = api_json_string(entry, "description", &about, e);
        put_custom(tool, about, out);
        return MIN(rc, 0);
    }
    int rc = chat_json_parse(&j, spelt, e);
    if (rc < 0) return rc;
    put_function(&j, tool->name, out);
    chat_json_deinit(&j);
    return 0;
}

static int add_tool(struct api_request *r, const json_t *entry, struct chat_text spelt,
                    struct chat_text space, struct err *e) {
    struct api_tool tool = { .client_space = space };
    struct buf json;
    tool.custom = api_json_is(entry, "type", "custom");
    if (!tool.custom && !api_json_is(entry, "type", "function")) return 0;
    int rc = api_json_string(entry, "name", &tool.client_name, e);
    if (rc == 0) return err_set(e, ERR_INVALID, "a tool without a name");
    if (rc >= 0) rc = full_name(r, space, tool.client_name, &tool.name, e);
    if (rc < 0) return rc;
    buf_init(&json, API_REQUEST_BYTES_MAX);
    rc = tell_tool(&tool, entry, spelt, &json, e);
    if (rc == 0 && json.rc < 0) rc = err_set(e, json.rc, "a tool of this size");
    if (rc == 0) rc = api_copy(r, (struct chat_text){ json.data, json.size }, &tool.json, e);
    buf_deinit(&json);
    if (rc == 0) api_tool_add(r, tool);
    return rc;
}

static int add_tools(struct api_request *r, const json_t *list, struct chat_text spelt,
                     struct chat_text space, struct err *e) {
    struct chat_text text = { NULL, 0 }, inner = { NULL, 0 }, name = { NULL, 0 };
    for (size_t i = 0, at = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        int rc = 0;
        chat_json_element(spelt, &at, &text);
        if (api_json_is(entry, "type", "namespace") && !space.data) {
            rc = api_json_string(entry, "name", &name, e);
            chat_json_member(text, "tools", &inner);
            if (rc == 1) rc = add_tools(r, json_object_get(entry, "tools"), inner, name, e);
        } else {
            rc = add_tool(r, entry, text, space, e);
        }
        if (rc < 0) return err_wrap(e, rc, "tools[%zu]", i);
    }
    return 0;
}

static size_t count_tools(const json_t *list) {
    size_t n = json_array_size(list);
    for (size_t i = 0; i < json_array_size(list); i++)
        n += json_array_size(json_object_get(json_array_get(list, i), "tools"));
    return n;
}

static int read_tools(struct api_request *r, struct chat_text body, struct err *e) {
    json_t *tools;
    struct chat_text all = { NULL, 0 };
    bool parallel = true;
    int rc = api_json_array(r->root, "tools", &tools, e);
    if (rc == 1) {
        chat_json_member(body, "tools", &all);
        rc = api_tools_new(r, count_tools(tools), e);
        if (rc == 0) rc = add_tools(r, tools, all, (struct chat_text){ NULL, 0 }, e);
    }
    if (rc >= 0) rc = api_json_bool(r->root, "parallel_tool_calls", &parallel, e);
    r->one_call = !parallel;
    return rc;
}

static int read_choice(struct api_request *r, struct err *e) {
    const json_t *choice = api_json_get(r->root, "tool_choice");
    struct chat_text name = { NULL, 0 }, mode = chat_text_of("auto");
    if (!choice) return 0;
    if (json_is_string(choice)) return api_tool_choice_word(r, api_json_text(choice), e);
    if (!api_json_is(choice, "type", "allowed_tools")) {
        int rc = api_json_string(choice, "name", &name, e);
        return rc < 0 ? rc : api_tool_choose(r, name, e);
    }
    int rc = api_tools_allow(r, json_object_get(choice, "tools"), NULL, e);
    if (rc == 0) rc = api_json_string(choice, "mode", &mode, e);
    return rc < 0 ? rc : api_tool_choice_word(r, mode, e);
}

/* ---- the rest ---- */

static int read_format(struct api_request *r, struct chat_text body, struct err *e) {
    json_t *text, *format;
    struct chat_text spelt = { NULL, 0 };
    int rc = api_json_object(r->root, "text", &text, e);
    if (rc >= 0) rc = api_json_object(text, "format", &format, e);
    if (rc <= 0) return rc;
    chat_json_member(body, "text", &spelt);
    chat_json_member(spelt, "format", &spelt);
    return api_format_read(r, format, spelt, NULL, e);
}

static int read_effort(struct api_request *r, struct err *e) {
    json_t *reasoning;
    int rc = api_json_object(r->root, "reasoning", &reasoning, e);
    return rc <= 0 ? rc : api_effort_read(r, json_object_get(reasoning, "effort"), e);
}

/* We keep no responses, so what refers to an earlier one cannot be answered. */
static int check_stateless(const json_t *root, struct err *e) {
    static const char *const fields[] = { "previous_response_id", "conversation", "prompt" };
    for (size_t i = 0; i < COUNT_OF(fields); i++)
        if (api_json_get(root, fields[i]))
            return err_set(e, ERR_INVALID, "%s: nothing is stored here, send the full input",
                           fields[i]);
    if (json_is_true(json_object_get(root, "background")))
        return err_set(e, ERR_INVALID, "background: nothing is stored here");
    return 0;
}

int api_request_responses(struct api_request *r, json_t *root, struct chat_text body,
                          const struct api_defaults *d, struct err *e) {
    int rc = api_request_open(r, root, d, e);
    if (rc < 0) return rc;
    rc = check_stateless(root, e);
    if (rc >= 0) rc = read_input(r, e);
    if (rc >= 0) rc = read_effort(r, e);
    if (rc >= 0) rc = read_tools(r, body, e);
    if (rc >= 0) rc = read_choice(r, e);
    if (rc >= 0) rc = read_format(r, body, e);
    if (rc >= 0) rc = api_request_finish(r, e);
    if (rc < 0) api_request_deinit(r);
    return MIN(rc, 0);
}
