/* api_request_messages - the Anthropic messages dialect.
 *
 * A user message is its tool results and texts in order, each a message of ours: the renderer makes
 * one turn of them again. An assistant message is its thinking, text and calls. A last assistant
 * message is to be continued. */
#include "coordinator/api_request.h"

#include "coordinator/api_request_parts.h"
#include "coordinator/api_sealed.h"

/* ---- system ---- */

/* Some clients put a block in front that changes with every request and is none of the model's
 * business; it would make every prompt new. */
static bool is_attribution(struct chat_text text) {
    struct chat_text prefix = chat_text_of("x-anthropic-");
    return text.len >= prefix.len && memcmp(text.data, prefix.data, prefix.len) == 0;
}

static int read_system_blocks(struct api_request *r, const json_t *blocks, struct api_texts *texts,
                              struct err *e) {
    for (size_t i = 0; i < json_array_size(blocks); i++) {
        struct chat_text piece;
        bool is_text;
        int rc = api_part_read(r, json_array_get(blocks, i), false, &is_text, &piece, e);
        if (rc < 0) return err_wrap(e, rc, "system[%zu]", i);
        if (is_text && !is_attribution(piece)) api_texts_add(texts, piece);
    }
    return 0;
}

static int read_system(struct api_request *r, struct err *e) {
    const json_t *system = api_json_get(r->root, "system");
    struct chat_message *m;
    struct api_texts texts;
    if (!system) return 0;
    if (!json_is_string(system) && !json_is_array(system))
        return err_set(e, ERR_INVALID, "system must be a string or an array of blocks");
    int rc = api_message_add(r, CHAT_ROLE_SYSTEM, &m, e);
    if (rc < 0) return rc;
    if (json_is_string(system)) {
        m->content = api_json_text(system);
        return 0;
    }
    api_texts_open(&texts);
    rc = read_system_blocks(r, system, &texts, e);
    int rc_close = api_texts_close(r, &texts, &m->content, rc < 0 ? NULL : e);
    return rc < 0 ? rc : rc_close;
}

/* ---- user ---- */

static int read_result(struct api_request *r, const json_t *block, struct err *e) {
    struct chat_message *m;
    int rc = api_message_add(r, CHAT_ROLE_TOOL, &m, e);
    if (rc == 0) rc = api_json_string(block, "tool_use_id", &m->call_id, e);
    if (rc < 0) return rc;
    return api_content_read(r, json_object_get(block, "content"), true, &m->content, e);
}

static bool needs_eyes(const json_t *block) {
    return api_json_is(block, "type", "image") || api_json_is(block, "type", "document");
}

static int read_user_block(struct api_request *r, const json_t *block, struct err *e) {
    struct chat_message *m;
    if (api_json_is(block, "type", "tool_result")) return read_result(r, block, e);
    if (needs_eyes(block))
        return err_set(e, ERR_INVALID, "only text is supported, not images or documents");
    if (!json_is_string(block) && !api_json_is(block, "type", "text")) return 0;
    int rc = api_message_add(r, CHAT_ROLE_USER, &m, e);
    if (rc < 0) return rc;
    if (json_is_string(block)) m->content = api_json_text(block);
    return json_is_string(block) ? 0 : api_json_string(block, "text", &m->content, e);
}

static int read_user(struct api_request *r, const json_t *content, struct err *e) {
    struct chat_message *m;
    if (!json_is_array(content) || json_array_size(content) == 0) {
        int rc = api_message_add(r, CHAT_ROLE_USER, &m, e);
        return rc < 0 ? rc : api_content_read(r, content, false, &m->content, e);
    }
    for (size_t i = 0; i < json_array_size(content); i++) {
        int rc = read_user_block(r, json_array_get(content, i), e);
        if (rc < 0) return err_wrap(e, rc, "content[%zu]", i);
    }
    return 0;
}

/* ---- assistant ---- */

static int read_tool_use(struct api_request *r, const json_t *block, struct chat_text spelt,
                         struct chat_call *call, struct err *e) {
    json_t *input;
    struct chat_text text;
    int rc = api_json_string(block, "id", &call->id, e);
    if (rc >= 0) rc = api_json_string(block, "name", &call->name, e);
    if (rc == 0) return err_set(e, ERR_INVALID, "a tool_use without a name");
    if (rc >= 0) rc = api_json_object(block, "input", &input, e);
    if (rc <= 0 || !chat_json_member(spelt, "input", &text)) return rc;
    return api_copy(r, text, &call->arguments, e);
}

/* What was sealed for this very purpose comes back; what others sealed is left out. */
static void add_redacted(const json_t *block, struct api_texts *reasoning, struct buf *scratch) {
    struct chat_text data = { NULL, 0 };
    buf_clear(scratch);
    if (api_json_string(block, "data", &data, NULL) != 1 || api_sealed_read(scratch, data) < 0)
        return;
    api_texts_add(reasoning, (struct chat_text){ scratch->data, scratch->size });
}

struct assistant {
    struct api_texts content, reasoning;
    struct chat_call *calls;
    size_t n_calls;
    struct buf scratch;
};

static int read_assistant_block(struct api_request *r, const json_t *block, struct chat_text spelt,
                                struct assistant *a, struct err *e) {
    struct chat_text text = { NULL, 0 };
    if (json_is_string(block) || api_json_is(block, "type", "text")) {
        bool is_text;
        int rc = api_part_read(r, block, false, &is_text, &text, e);
        if (rc == 0) api_texts_add(&a->content, text);
        return rc;
    }
    if (api_json_is(block, "type", "thinking")) {
        int rc = api_json_string(block, "thinking", &text, e);
        if (rc == 1) api_texts_add(&a->reasoning, text);
        return rc;
    }
    if (api_json_is(block, "type", "redacted_thinking"))
        add_redacted(block, &a->reasoning, &a->scratch);
    if (api_json_is(block, "type", "tool_use"))
        return read_tool_use(r, block, spelt, &a->calls[a->n_calls++], e);
    if (needs_eyes(block))
        return err_set(e, ERR_INVALID, "only text is supported, not images or documents");
    return 0;
}

static int read_assistant_blocks(struct api_request *r, const json_t *content,
                                 struct chat_text spelt, struct assistant *a, struct err *e) {
    struct chat_text text = { NULL, 0 };
    size_t n = json_array_size(content), n_calls = 0, at = 0;
    for (size_t i = 0; i < n; i++)
        n_calls += api_json_is(json_array_get(content, i), "type", "tool_use");
    int rc = api_calls_new(r, n_calls, &a->calls, e);
    for (size_t i = 0; i < n && rc >= 0; i++) {
        chat_json_element(spelt, &at, &text);
        rc = read_assistant_block(r, json_array_get(content, i), text, a, e);
        if (rc < 0) return err_wrap(e, rc, "content[%zu]", i);
    }
    return rc;
}

static int read_assistant(struct api_request *r, const json_t *content, struct chat_text spelt,
                          bool last, struct err *e) {
    struct chat_message *m;
    struct assistant a = { .calls = NULL };
    int rc = api_message_add(r, CHAT_ROLE_ASSISTANT, &m, e);
    if (rc < 0) return rc;
    m->prefix = last;
    if (!json_is_array(content)) return api_content_read(r, content, false, &m->content, e);
    api_texts_open(&a.content);
    api_texts_open(&a.reasoning);
    buf_init(&a.scratch, API_REQUEST_BYTES_MAX);
    rc = read_assistant_blocks(r, content, spelt, &a, e);
    int rc_content = api_texts_close(r, &a.content, &m->content, rc < 0 ? NULL : e);
    int rc_reasoning = api_texts_close(r, &a.reasoning, &m->reasoning, rc < 0 ? NULL : e);
    buf_deinit(&a.scratch);
    m->calls = a.calls;
    m->n_calls = a.n_calls;
    m->prefix = last && a.n_calls == 0;           /* behind calls there is nothing to continue */
    if (rc < 0) return rc;
    return rc_content < 0 ? rc_content : rc_reasoning;
}

/* ---- messages ---- */

static int read_message(struct api_request *r, const json_t *message, struct chat_text spelt,
                        bool last, struct err *e) {
    struct chat_message *m;
    struct chat_text text = { NULL, 0 };
    const json_t *content = json_object_get(message, "content");
    if (api_json_is(message, "role", "user")) return read_user(r, content, e);
    if (api_json_is(message, "role", "assistant")) {
        chat_json_member(spelt, "content", &text);
        return read_assistant(r, content, text, last, e);
    }
    if (!api_json_is(message, "role", "system"))
        return err_set(e, ERR_INVALID, "role must be user, assistant or system");
    int rc = api_message_add(r, CHAT_ROLE_SYSTEM, &m, e);
    return rc < 0 ? rc : api_content_read(r, content, false, &m->content, e);
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
    return api_results_check(r, e);
}

/* ---- tools ---- */

static void put_member(struct buf *out, const char *key, struct chat_text spelt, const char *as) {
    struct chat_text value;
    if (!chat_json_member(spelt, key, &value)) return;
    buf_printf(out, "%s\"%s\": ", out->size > 1 ? ", " : "", as);
    buf_add(out, value.data, value.len);
}

/* {"name", "description", "input_schema"} as the function that the model knows. */
static int add_tool(struct api_request *r, const json_t *entry, struct chat_text spelt,
                    struct err *e) {
    struct api_tool tool = { .custom = false };
    struct buf json;
    int rc = api_json_string(entry, "name", &tool.name, e);
    if (rc < 0) return rc;
    if (rc == 0) return err_set(e, ERR_INVALID, "a tool must be an object with a name");
    tool.client_name = tool.name;
    buf_init(&json, API_REQUEST_BYTES_MAX);
    buf_add_text(&json, "{");
    put_member(&json, "name", spelt, "name");
    put_member(&json, "description", spelt, "description");
    put_member(&json, "input_schema", spelt, "parameters");
    buf_add_text(&json, "}");
    rc = json.rc < 0 ? err_set(e, json.rc, "a tool of this size") : 0;
    if (rc == 0) rc = api_copy(r, (struct chat_text){ json.data, json.size }, &tool.json, e);
    buf_deinit(&json);
    if (rc == 0) api_tool_add(r, tool);
    return rc;
}

static int read_tools(struct api_request *r, struct chat_text body, struct err *e) {
    json_t *tools;
    struct chat_text all = { NULL, 0 }, text = { NULL, 0 };
    int rc = api_json_array(r->root, "tools", &tools, e);
    if (rc <= 0) return rc;
    size_t n = json_array_size(tools), at = 0;
    rc = api_tools_new(r, n, e);
    chat_json_member(body, "tools", &all);
    for (size_t i = 0; i < n && rc == 0; i++) {
        const json_t *entry = json_array_get(tools, i);
        chat_json_element(all, &at, &text);
        if (api_json_get(entry, "type") && !api_json_is(entry, "type", "custom"))
            continue;                             /* tools of their server: we have none of them */
        rc = add_tool(r, entry, text, e);
        if (rc < 0) return err_wrap(e, rc, "tools[%zu]", i);
    }
    return rc;
}

static int read_choice(struct api_request *r, struct err *e) {
    json_t *choice;
    struct chat_text word = chat_text_of("auto");
    int rc = api_json_object(r->root, "tool_choice", &choice, e);
    if (rc <= 0) return rc;
    rc = api_json_bool(choice, "disable_parallel_tool_use", &r->one_call, e);
    if (rc < 0) return rc;
    bool named = api_json_is(choice, "type", "tool");
    rc = api_json_string(choice, named ? "name" : "type", &word, e);
    if (rc < 0) return rc;
    return named ? api_tool_choose(r, word, e) : api_tool_choice_word(r, word, e);
}

/* ---- output_config: effort and format ---- */

static int read_output(struct api_request *r, struct chat_text body, struct err *e) {
    json_t *config, *format;
    struct chat_text text = { NULL, 0 };
    int rc = api_json_object(r->root, "output_config", &config, e);
    if (rc >= 0) rc = api_effort_read(r, json_object_get(config, "effort"), e);
    if (rc >= 0) rc = api_thinking_read(r, json_object_get(r->root, "thinking"), e);
    if (rc >= 0) rc = api_json_object(config, "format", &format, e);
    if (rc <= 0) return rc;
    chat_json_member(body, "output_config", &text);
    chat_json_member(text, "format", &text);
    return api_format_read(r, format, text, NULL, e);
}

int api_request_messages(struct api_request *r, json_t *root, struct chat_text body,
                         const struct api_defaults *d, struct err *e) {
    int rc = api_request_open(r, root, d, e);
    if (rc < 0) return rc;
    rc = read_system(r, e);
    if (rc >= 0) rc = read_messages(r, body, e);
    if (rc >= 0) rc = read_tools(r, body, e);
    if (rc >= 0) rc = read_choice(r, e);
    if (rc >= 0) rc = read_output(r, body, e);
    if (rc >= 0) rc = api_request_finish(r, e);
    if (rc < 0) api_request_deinit(r);
    return MIN(rc, 0);
}
