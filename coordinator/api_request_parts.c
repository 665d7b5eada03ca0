/* api_request_parts - see the header. */
#include "coordinator/api_request_parts.h"

#include <stdlib.h>
#include <strings.h>

#include "common/base/utf8.h"

/* ---- memory ---- */

static int no_memory(const struct api_request *r, struct err *e) {
    bool full = r->arena.used > API_REQUEST_BYTES_MAX / 2;
    return err_set(e, full ? ERR_LIMIT : ERR_NOMEM, "a request of this size");
}

int api_request_open(struct api_request *r, json_t *root, const struct api_defaults *d,
                     struct err *e) {
    *r = (struct api_request){ .messages = NULL };
    if (!json_is_object(root)) return err_set(e, ERR_INVALID, "the body must be a JSON object");
    arena_init(&r->arena, API_REQUEST_BYTES_MAX);
    r->root = json_incref(root);
    r->options.encoding = d->encoding;
    r->options.effort = d->effort;
    r->options.thinking = d->thinking;
    r->budget = d->budget;
    return 0;
}

void api_request_deinit(struct api_request *r) {
    free(r->messages);
    arena_deinit(&r->arena);
    json_decref(r->root);
    *r = (struct api_request){ .messages = NULL };
}

int api_copy(struct api_request *r, struct chat_text text, struct chat_text *out, struct err *e) {
    *out = (struct chat_text){ NULL, 0 };
    if (!text.len) return 0;
    char *copy = arena_text(&r->arena, text.data, text.len);
    if (!copy) return no_memory(r, e);
    *out = (struct chat_text){ copy, text.len };
    return 0;
}

void api_texts_open(struct api_texts *t) {
    t->any = false;
    buf_init(&t->joined, API_REQUEST_BYTES_MAX);
}

void api_texts_add(struct api_texts *t, struct chat_text text) {
    if (t->any) buf_add_text(&t->joined, "\n\n");
    t->any = true;
    buf_add(&t->joined, text.data, text.len);
}

int api_texts_close(struct api_request *r, struct api_texts *t, struct chat_text *out,
                    struct err *e) {
    int rc = t->joined.rc < 0 ? no_memory(r, e) : 0;
    if (rc == 0) rc = api_copy(r, (struct chat_text){ t->joined.data, t->joined.size }, out, e);
    buf_deinit(&t->joined);
    return rc;
}

/* ---- messages ---- */

int api_message_add(struct api_request *r, enum chat_role role, struct chat_message **out,
                    struct err *e) {
    if (r->n_messages == CHAT_MESSAGES_MAX)
        return err_set(e, ERR_LIMIT, "more than %d messages", CHAT_MESSAGES_MAX);
    if (r->n_messages == r->room) {
        size_t room = r->room ? r->room * 2 : 16;
        struct chat_message *messages = realloc(r->messages, room * sizeof *messages);
        if (!messages) return err_set(e, ERR_NOMEM, "%zu messages", room);
        r->messages = messages;
        r->room = room;
    }
    *out = &r->messages[r->n_messages++];
    **out = (struct chat_message){ .role = role };
    return 0;
}

/* What a part without text is shown as in a tool's result. */
static int name_part(struct api_request *r, struct chat_text type, struct chat_text *out,
                     struct err *e) {
    struct buf text;
    buf_init(&text, API_REQUEST_BYTES_MAX);
    buf_add_text(&text, "[Unsupported ");
    buf_add(&text, type.data, type.len);
    buf_add_text(&text, "]");
    int rc = text.rc < 0 ? no_memory(r, e) : 0;
    if (rc == 0) rc = api_copy(r, (struct chat_text){ text.data, text.size }, out, e);
    buf_deinit(&text);
    return rc;
}

int api_part_read(struct api_request *r, const json_t *part, bool is_result, bool *is_text,
                  struct chat_text *out, struct err *e) {
    struct chat_text type = chat_text_of("part");
    *out = (struct chat_text){ NULL, 0 };
    *is_text = true;
    if (json_is_string(part)) {
        *out = api_json_text(part);
        return 0;
    }
    if (!json_is_object(part)) return err_set(e, ERR_INVALID, "a part must be an object");
    *is_text = !api_json_is(part, "type", "refusal");
    if (!*is_text) return 0;
    bool text = api_json_is(part, "type", "text") || api_json_is(part, "type", "input_text") ||
                api_json_is(part, "type", "output_text");
    int rc = text ? api_json_string(part, "text", out, e) : api_json_string(part, "type", &type, e);
    if (rc < 0) return rc;
    if (text) return 0;
    if (is_result) return name_part(r, type, out, e);
    return err_set(e, ERR_INVALID, "only text is supported, not parts of type \"%.*s\"",
                   (int)utf8_valid_prefix(type.data, MIN(type.len, 40)), type.data);
}

static int add_parts(struct api_request *r, const json_t *parts, bool is_result,
                     struct api_texts *texts, struct err *e) {
    for (size_t i = 0; i < json_array_size(parts); i++) {
        struct chat_text piece;
        bool is_text;
        int rc = api_part_read(r, json_array_get(parts, i), is_result, &is_text, &piece, e);
        if (rc < 0) return err_wrap(e, rc, "part %zu", i);
        if (is_text) api_texts_add(texts, piece);
    }
    return 0;
}

int api_content_read(struct api_request *r, const json_t *content, bool is_result,
                     struct chat_text *out, struct err *e) {
    struct api_texts texts;
    *out = (struct chat_text){ NULL, 0 };
    if (!content || json_is_null(content)) return 0;
    if (json_is_string(content)) {
        *out = api_json_text(content);
        return 0;
    }
    if (!json_is_array(content))
        return err_set(e, ERR_INVALID, "content must be a string or an array of parts");
    api_texts_open(&texts);
    int rc = add_parts(r, content, is_result, &texts, e);
    int rc_close = api_texts_close(r, &texts, out, rc < 0 ? NULL : e);
    return rc < 0 ? rc : rc_close;
}

int api_calls_new(struct api_request *r, size_t n, struct chat_call **out, struct err *e) {
    if (n > CHAT_CALLS_MAX)
        return err_set(e, ERR_LIMIT, "%zu calls in one message (limit %d)", n, CHAT_CALLS_MAX);
    *out = arena_array(&r->arena, n, sizeof **out);
    return *out ? 0 : no_memory(r, e);
}

struct known_call {
    struct chat_text id;
    size_t message_i;
};

static int compare_known(const void *a, const void *b) {
    const struct known_call *x = a, *y = b;
    int order = chat_text_compare(x->id, y->id);
    return order ? order : (x->message_i > y->message_i) - (x->message_i < y->message_i);
}

/* The first message that has a call with this id, or SIZE_MAX. */
static size_t first_caller(const struct known_call *known, size_t n, struct chat_text id) {
    size_t lo = 0, hi = n;                        /* the first that is not less lies in lo..hi */
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (chat_text_compare(known[mid].id, id) < 0) lo = mid + 1;
        else hi = mid;
    }
    return lo < n && chat_text_equal(known[lo].id, id) ? known[lo].message_i : SIZE_MAX;
}

int api_results_check(const struct api_request *r, struct err *e) {
    size_t n = 0, n_known = 0;
    int rc = 0;
    for (size_t i = 0; i < r->n_messages; i++) n += r->messages[i].n_calls;
    struct known_call *known = calloc(n + 1, sizeof *known);
    if (!known) return err_set(e, ERR_NOMEM, "%zu calls", n);
    for (size_t i = 0; i < r->n_messages; i++)
        for (size_t k = 0; k < r->messages[i].n_calls; k++)
            known[n_known++] = (struct known_call){ r->messages[i].calls[k].id, i };
    qsort(known, n, sizeof *known, compare_known);
    for (size_t i = 0; i < r->n_messages && rc == 0; i++) {
        struct chat_text id = r->messages[i].call_id;
        if (r->messages[i].role != CHAT_ROLE_TOOL || first_caller(known, n, id) < i) continue;
        rc = err_set(e, ERR_INVALID, "a result for \"%.*s\", but no earlier call has this id",
                     (int)utf8_valid_prefix(id.data, MIN(id.len, 64)), id.len ? id.data : "");
    }
    free(known);
    return rc;
}

/* ---- tools ---- */

int api_tools_new(struct api_request *r, size_t n, struct err *e) {
    if (n > CHAT_TOOLS_MAX)
        return err_set(e, ERR_LIMIT, "%zu tools (limit %d)", n, CHAT_TOOLS_MAX);
    r->n_tools = 0;
    r->tools = arena_array(&r->arena, n, sizeof *r->tools);
    return r->tools ? 0 : no_memory(r, e);
}

void api_tool_add(struct api_request *r, struct api_tool tool) {
    r->tools[r->n_tools++] = tool;
}

static struct api_tool *find_tool(const struct api_request *r, struct chat_text client_name) {
    for (size_t i = 0; i < r->n_tools; i++)
        if (chat_text_equal(r->tools[i].client_name, client_name)) return &r->tools[i];
    return NULL;
}

static int unknown_tool(struct chat_text name, struct err *e) {
    return err_set(e, ERR_INVALID, "tool_choice names \"%.*s\", which is not among the tools",
                   (int)utf8_valid_prefix(name.data, MIN(name.len, 64)), name.data);
}

int api_tool_choose(struct api_request *r, struct chat_text client_name, struct err *e) {
    const struct api_tool *tool = find_tool(r, client_name);
    if (!tool) return unknown_tool(client_name, e);
    r->tool_choice = API_TOOLS_NAMED;
    r->tool_name = tool->name;
    return 0;
}

int api_tool_choice_word(struct api_request *r, struct chat_text word, struct err *e) {
    static const struct {
        const char *word;
        enum api_tool_choice choice;
    } table[] = {
        { "auto", API_TOOLS_AUTO },
        { "none", API_TOOLS_NONE },
        { "required", API_TOOLS_REQUIRED },
        { "any", API_TOOLS_REQUIRED },
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        if (!chat_text_equal(word, chat_text_of(table[i].word))) continue;
        r->tool_choice = table[i].choice;
        return 0;
    }
    return err_set(e, ERR_INVALID, "tool_choice must be auto, none, required or name a tool");
}

/* Marks the tools that a list names. */
static int mark_allowed(const struct api_request *r, const json_t *names, const char *inside,
                        bool *allowed, struct err *e) {
    for (size_t i = 0; i < json_array_size(names); i++) {
        const json_t *holder = json_array_get(names, i);
        if (api_json_get(holder, inside)) holder = json_object_get(holder, inside);
        struct chat_text name = { NULL, 0 };
        int rc = api_json_string(holder, "name", &name, e);
        if (rc < 0) return rc;
        const struct api_tool *tool = rc ? find_tool(r, name) : NULL;
        if (!tool) return unknown_tool(name, e);
        allowed[tool - r->tools] = true;
    }
    return 0;
}

int api_tools_allow(struct api_request *r, const json_t *names, const char *inside, struct err *e) {
    size_t n = json_array_size(names), kept = 0;
    if (n > CHAT_TOOLS_MAX) return err_set(e, ERR_LIMIT, "%zu allowed tools", n);
    bool *allowed = calloc(r->n_tools + 1, sizeof *allowed);
    if (!allowed) return err_set(e, ERR_NOMEM, "%zu tools", r->n_tools);
    int rc = mark_allowed(r, names, inside, allowed, e);
    for (size_t i = 0; i < r->n_tools && rc == 0; i++)
        if (allowed[i]) r->tools[kept++] = r->tools[i];
    if (rc == 0) r->n_tools = kept;
    free(allowed);
    return rc;
}

/* ---- thinking and format ---- */

int api_effort_read(struct api_request *r, const json_t *effort, struct err *e) {
    if (!effort || json_is_null(effort)) return 0;
    if (!json_is_string(effort)) return err_set(e, ERR_INVALID, "an effort must be a string");
    return chat_effort_read(r->options.encoding, api_json_text(effort), &r->options.thinking,
                            &r->options.effort, e);
}

static int read_budget(struct api_request *r, const json_t *thinking, struct err *e) {
    const json_t *budget = r->budget ? api_json_get(thinking, "budget_tokens") : NULL;
    if (!budget) return 0;
    double n = json_number_value(budget);
    if (!json_is_number(budget) || !(n >= 1 && n <= INT32_MAX) || n != (double)(int32_t)n)
        return err_set(e, ERR_INVALID, "thinking: budget_tokens must be a whole number, at least 1");
    r->reasoning_max = (uint32_t)n;
    return 0;
}

int api_thinking_read(struct api_request *r, const json_t *thinking, struct err *e) {
    if (!thinking || json_is_null(thinking)) return 0;
    bool on = json_is_true(thinking) || api_json_is(thinking, "type", "enabled") ||
              api_json_is(thinking, "type", "adaptive");
    bool off = json_is_false(thinking) || api_json_is(thinking, "type", "disabled");
    if (!on && !off)
        return err_set(e, ERR_INVALID, "thinking must be a bool, or have the type enabled, "
                                       "adaptive or disabled");
    r->options.thinking = on;
    int rc = on ? read_budget(r, thinking, e) : 0;
    return rc < 0 ? rc : 1;
}

static int read_schema(struct api_request *r, const json_t *holder, struct chat_text text,
                       struct err *e) {
    json_t *schema;
    struct chat_text spelt;
    int rc = api_json_bool(holder, "strict", &r->strict, e);
    if (rc >= 0) rc = api_json_object(holder, "schema", &schema, e);
    if (rc <= 0) return rc;
    if (!chat_json_member(text, "schema", &spelt))
        return err_set(e, ERR_INTERNAL, "a schema without text");
    return api_copy(r, spelt, &r->schema, e);
}

int api_format_read(struct api_request *r, const json_t *format, struct chat_text text,
                    const char *inside, struct err *e) {
    json_t *holder;
    if (!format || api_json_is(format, "type", "text")) return 0;
    r->format = api_json_is(format, "type", "json_object") ? API_FORMAT_JSON_OBJECT
                                                           : API_FORMAT_JSON_SCHEMA;
    if (r->format == API_FORMAT_JSON_OBJECT) return 0;
    if (!api_json_is(format, "type", "json_schema"))
        return err_set(e, ERR_INVALID, "a format must be text, json_object or json_schema");
    if (!inside) return read_schema(r, format, text, e);
    int rc = api_json_object(format, inside, &holder, e);
    if (rc <= 0) return rc < 0 ? rc : err_set(e, ERR_INVALID, "%s is missing", inside);
    chat_json_member(text, inside, &text);
    return read_schema(r, holder, text, e);
}

/* ---- the end ---- */

static int insert_system(struct api_request *r, struct err *e) {
    if (r->n_messages && r->messages[0].role == CHAT_ROLE_SYSTEM) return 0;
    struct chat_message *m;
    int rc = api_message_add(r, CHAT_ROLE_SYSTEM, &m, e);
    if (rc < 0) return rc;
    memmove(r->messages + 1, r->messages, (r->n_messages - 1) * sizeof *r->messages);
    r->messages[0] = (struct chat_message){ .role = CHAT_ROLE_SYSTEM };
    return 0;
}

static int attach_tools(struct api_request *r, struct err *e) {
    struct chat_text *shown = arena_array(&r->arena, r->n_tools, sizeof *shown);
    if (!shown) return no_memory(r, e);
    for (size_t i = 0; i < r->n_tools; i++) shown[i] = r->tools[i].json;
    r->messages[0].tools = shown;
    r->messages[0].n_tools = r->n_tools;
    return 0;
}

static bool mentions_json(struct chat_text t) {
    for (size_t i = 0; i + 4 <= t.len; i++)
        if ((t.data[i] | 0x20) == 'j' && strncasecmp(t.data + i, "json", 4) == 0) return true;
    return false;
}

/* Nothing tells the model of this format but the client: unasked it would fill a held answer with blanks. */
static int check_json_object(const struct api_request *r, struct err *e) {
    for (size_t i = 0; i < r->n_messages; i++)
        if (mentions_json(r->messages[i].content)) return 0;
    return err_set(e, ERR_INVALID, "messages must contain the word \"json\" in some form where the format is "
                                   "json_object");
}

int api_request_finish(struct api_request *r, struct err *e) {
    if (r->format == API_FORMAT_JSON_OBJECT && check_json_object(r, e) < 0) return ERR_INVALID;
    if (r->n_messages == 0) return err_set(e, ERR_INVALID, "there must be at least one message");
    if (r->tool_choice == API_TOOLS_NONE) r->n_tools = 0;
    if (r->tool_choice == API_TOOLS_REQUIRED && r->n_tools == 0)
        return err_set(e, ERR_INVALID, "tool_choice requires a call, but there are no tools");
    if (r->n_tools == 0 && !r->schema.len) return 0;
    int rc = insert_system(r, e);
    if (rc == 0 && r->n_tools) rc = attach_tools(r, e);
    if (rc == 0) r->messages[0].schema = r->schema;
    return rc;
}
