/* api_responses - how POST /v1/responses answers: items that are added, filled and done, one at a time.
 *
 *     response.created  response.in_progress
 *     ( output_item.added  [content_part.added]  delta*  done  [content_part.done]  output_item.done )*
 *     response.completed | response.incomplete | response.failed
 *
 * An answer that is not streamed takes the same way; its events are dropped, and the last one's response
 * is the body. The text of finished items is kept for that last event. */
#include "coordinator/api_job.h"

#include <stdlib.h>

#include "coordinator/api_sealed.h"
#include "coordinator/sse.h"

enum item { ITEM_NONE, ITEM_REASONING, ITEM_MESSAGE, ITEM_FUNCTION, ITEM_CUSTOM };

struct response {
    enum item open;
    uint32_t seq, n_items;                        /* next sequence number; items that are done */
    size_t call_i;
    char item_id[API_ID_MAX];
    struct chat_text name;                        /* of a call, as the model said it; in the arena */
};

/* own_buf[0]: the finished items, own_buf[1]: the text of the open one. */
static struct buf *items(struct api_job *j) {
    return &j->own_buf[0];
}

static struct chat_text open_text(const struct api_job *j) {
    const struct buf *b = &j->own_buf[1];
    return (struct chat_text){ b->size ? b->data : "", b->size };
}

/* ---- what repeats the request ---- */

static void put_echo(struct buf *out, const json_t *root, const char *key, const char *otherwise) {
    const json_t *v = api_json_get(root, key);
    char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15)) : NULL;
    buf_printf(out, ",\"%s\":", key);
    buf_add_text(out, text ? text : otherwise);
    free(text);
}

static void put_reasoning_echo(struct buf *out, const json_t *root) {
    const json_t *reasoning = api_json_get(root, "reasoning");
    const char *keys[] = { "effort", "summary" };
    buf_add_text(out, ",\"reasoning\":{");
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        const json_t *v = api_json_get(reasoning, keys[i]);
        buf_printf(out, "%s\"%s\":", i ? "," : "", keys[i]);
        if (json_is_string(v)) chat_json_put_quoted(out, api_json_text(v));
        else buf_add_text(out, "null");
    }
    buf_add_char(out, '}');
}

int api_responses_prepare(struct api_job *j, const struct api_request *r, struct err *e) {
    struct buf echo;
    struct response *own = arena_alloc(&j->arena, sizeof *own);
    buf_init(&echo, API_JOB_BYTES_MAX / 2);
    put_echo(&echo, r->root, "instructions", "null");
    put_echo(&echo, r->root, "max_output_tokens", "null");
    put_echo(&echo, r->root, "parallel_tool_calls", "true");
    buf_add_text(&echo, ",\"previous_response_id\":null");
    put_reasoning_echo(&echo, r->root);
    buf_add_text(&echo, ",\"store\":false");
    put_echo(&echo, r->root, "temperature", "1");
    put_echo(&echo, r->root, "text", "{\"format\":{\"type\":\"text\"}}");
    put_echo(&echo, r->root, "tool_choice", "\"auto\"");
    put_echo(&echo, r->root, "tools", "[]");
    put_echo(&echo, r->root, "top_p", "1");
    buf_add_text(&echo, ",\"truncation\":\"disabled\"");
    put_echo(&echo, r->root, "user", "null");
    put_echo(&echo, r->root, "metadata", "{}");
    char *copy = echo.rc == 0 && own ? arena_text(&j->arena, echo.data, echo.size) : NULL;
    j->echo = (struct chat_text){ copy, echo.size };
    j->own = own;
    buf_deinit(&echo);
    return copy ? 0 : err_set(e, ERR_LIMIT, "a request of this size");
}

/* ---- events ---- */

static void event(struct api_job *j, const char *type) {
    struct response *r = j->own;
    if (!j->params.stream) buf_clear(&j->out);
    sse_begin(&j->out, type);
    buf_printf(&j->out, "{\"type\":\"%s\",\"sequence_number\":%u", type, r->seq++);
}

static void end_event(struct api_job *j) {
    buf_add_char(&j->out, '}');
    sse_end(&j->out);
}

static void put_usage(struct api_job *j) {
    struct api_usage u = api_job_usage(j);
    buf_printf(&j->out,
               "{\"input_tokens\":%llu,\"input_tokens_details\":{\"cached_tokens\":%llu,\"cache_"
               "write_tokens\":%llu},",
               (unsigned long long)u.n_prompt, (unsigned long long)u.n_cached,
               (unsigned long long)(u.n_prompt - u.n_cached));
    buf_printf(&j->out,
               "\"output_tokens\":%llu,\"output_tokens_details\":{\"reasoning_tokens\":%llu},"
               "\"total_tokens\":%llu}",
               (unsigned long long)u.n_output, (unsigned long long)u.n_reasoning,
               (unsigned long long)(u.n_prompt + u.n_output));
}

static void put_failure(struct api_job *j) {
    buf_printf(&j->out, "{\"code\":\"%s\",\"message\":", api_error_code(&j->fault));
    chat_json_put_quoted(&j->out, chat_text_of(j->fault.text));
    buf_add_char(&j->out, '}');
}

static void put_response(struct api_job *j, const char *status) {
    bool ended = strcmp(status, "completed") == 0 || strcmp(status, "incomplete") == 0;
    buf_printf(&j->out,
               "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\","
               "\"background\":false,\"error\":",
               j->id, (long long)j->created_s, status);
    if (j->failed) put_failure(j);
    else buf_add_text(&j->out, "null");
    buf_add_text(&j->out, ",\"incomplete_details\":");
    buf_add_text(&j->out, strcmp(status, "incomplete") == 0 ? "{\"reason\":\"max_output_tokens\"}" : "null");
    buf_add_text(&j->out, ",\"model\":");
    chat_json_put_quoted(&j->out, j->model);
    buf_add_text(&j->out, ",\"output\":[");
    buf_add(&j->out, items(j)->data, items(j)->size);
    buf_add_char(&j->out, ']');
    buf_add(&j->out, j->echo.data, j->echo.len);
    buf_add_text(&j->out, ",\"usage\":");
    if (ended) put_usage(j);
    else buf_add_text(&j->out, "null");
    buf_add_char(&j->out, '}');
}

static void send_response(struct api_job *j, const char *type, const char *status) {
    event(j, type);
    buf_add_text(&j->out, ",\"response\":");
    put_response(j, status);
    end_event(j);
}

/* An event about the open item: with its id, its place, and (part) the place of the part. */
static void item_event(struct api_job *j, const char *type, const char *part) {
    const struct response *r = j->own;
    event(j, type);
    buf_printf(&j->out, ",\"item_id\":\"%s\",\"output_index\":%u", r->item_id, r->n_items);
    if (part) buf_printf(&j->out, ",\"%s\":0", part);
}

static void item_text(struct api_job *j, const char *type, const char *part, const char *member,
                      struct chat_text text) {
    item_event(j, type, part);
    buf_printf(&j->out, ",\"%s\":", member);
    chat_json_put_quoted(&j->out, text);
    end_event(j);
}

static void part_event(struct api_job *j, const char *type, const char *part, const char *kind,
                       struct chat_text text, const struct buf *logprobs) {
    item_event(j, type, part);
    buf_printf(&j->out, ",\"part\":{\"type\":\"%s\",\"text\":", kind);
    chat_json_put_quoted(&j->out, text);
    if (logprobs) {
        buf_add_text(&j->out, ",\"annotations\":[],\"logprobs\":[");
        buf_add(&j->out, logprobs->data, logprobs->size);
        buf_add_char(&j->out, ']');
    }
    buf_add_char(&j->out, '}');
    end_event(j);
}

/* ---- items as JSON ---- */

static void put_call(struct api_job *j, const struct api_job_call *call, bool custom, bool done,
                     const char *status, struct buf *out) {
    const struct response *r = j->own;
    struct chat_text name = call->tool ? call->tool->client_name : r->name;
    buf_printf(out, "{\"id\":\"%s\",\"type\":\"%s\",\"call_id\":\"%s\",\"name\":", r->item_id,
               custom ? "custom_tool_call" : "function_call", call->id);
    chat_json_put_quoted(out, name);
    if (call->tool && call->tool->client_space.len) {
        buf_add_text(out, ",\"namespace\":");
        chat_json_put_quoted(out, call->tool->client_space);
    }
    buf_printf(out, ",\"%s\":", custom ? "input" : "arguments");
    chat_json_put_quoted(out, done ? open_text(j) : (struct chat_text){ "", 0 });
    buf_printf(out, ",\"status\":\"%s\"}", status);
}

static void put_reasoning(struct api_job *j, bool done, const char *status, struct buf *out) {
    const struct response *r = j->own;
    bool summary = done && j->params.summary, content = done && !j->params.summary;
    buf_printf(out, "{\"id\":\"%s\",\"type\":\"reasoning\",\"summary\":[", r->item_id);
    if (summary) {
        buf_add_text(out, "{\"type\":\"summary_text\",\"text\":");
        chat_json_put_quoted(out, open_text(j));
        buf_add_char(out, '}');
    }
    buf_add_text(out, "],\"content\":[");
    if (content) {
        buf_add_text(out, "{\"type\":\"reasoning_text\",\"text\":");
        chat_json_put_quoted(out, open_text(j));
        buf_add_char(out, '}');
    }
    buf_add_char(out, ']');
    if (done && j->params.sealed) {
        buf_add_text(out, ",\"encrypted_content\":\"");
        api_sealed_put(out, open_text(j));
        buf_add_char(out, '"');
    }
    buf_printf(out, ",\"status\":\"%s\"}", status);
}

static void put_message(struct api_job *j, const struct api_choice *c, bool done, const char *status,
                        struct buf *out) {
    const struct response *r = j->own;
    buf_printf(out,
               "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"status\":\"%s\","
               "\"content\":[",
               r->item_id, status);
    if (done) {
        buf_add_text(out, "{\"type\":\"output_text\",\"text\":");
        chat_json_put_quoted(out, open_text(j));
        buf_add_text(out, ",\"annotations\":[],\"logprobs\":[");
        buf_add(out, c->lists.of[LIST_DETAIL].data, c->lists.of[LIST_DETAIL].size);
        buf_add_text(out, "]}");
    }
    buf_add_text(out, "]}");
}

static void put_item(struct api_job *j, struct api_choice *c, bool done, const char *status,
                     struct buf *out) {
    const struct response *r = j->own;
    if (r->open == ITEM_REASONING) put_reasoning(j, done, status, out);
    else if (r->open == ITEM_MESSAGE) put_message(j, c, done, status, out);
    else put_call(j, &c->call[r->call_i], r->open == ITEM_CUSTOM, done, status, out);
}

/* ---- items come and go ---- */

static void close_parts(struct api_job *j, struct api_choice *c) {
    const struct response *r = j->own;
    struct chat_text text = open_text(j);
    if (r->open == ITEM_REASONING && j->params.summary) {
        item_text(j, "response.reasoning_summary_text.done", "summary_index", "text", text);
        part_event(j, "response.reasoning_summary_part.done", "summary_index", "summary_text", text, NULL);
    } else if (r->open == ITEM_REASONING) {
        item_text(j, "response.reasoning_text.done", "content_index", "text", text);
        part_event(j, "response.content_part.done", "content_index", "reasoning_text", text, NULL);
    } else if (r->open == ITEM_MESSAGE) {
        item_event(j, "response.output_text.done", "content_index");
        buf_add_text(&j->out, ",\"text\":");
        chat_json_put_quoted(&j->out, text);
        buf_add_text(&j->out, ",\"logprobs\":[");
        buf_add(&j->out, c->lists.of[LIST_DETAIL].data, c->lists.of[LIST_DETAIL].size);
        buf_add_char(&j->out, ']');
        end_event(j);
        part_event(j, "response.content_part.done", "content_index", "output_text", text,
                   &c->lists.of[LIST_DETAIL]);
    }
}

/* The arguments of a custom tool are an object around one string. */
static void unwrap_input(struct api_job *j) {
    json_t *arguments = json_loadb(j->own_buf[1].data, j->own_buf[1].size, JSON_ALLOW_NUL, NULL);
    const json_t *input = json_object_get(arguments, "input");
    if (json_is_string(input)) {
        buf_clear(&j->own_buf[1]);
        buf_add(&j->own_buf[1], json_string_value(input), json_string_length(input));
    }
    json_decref(arguments);
}

static void close_call(struct api_job *j, struct api_choice *c) {
    const struct response *r = j->own;
    const struct api_job_call *call = &c->call[r->call_i];
    if (r->open == ITEM_CUSTOM) {
        unwrap_input(j);
        item_text(j, "response.custom_tool_call_input.delta", NULL, "delta", open_text(j));
        item_text(j, "response.custom_tool_call_input.done", NULL, "input", open_text(j));
        return;
    }
    item_event(j, "response.function_call_arguments.done", NULL);
    buf_add_text(&j->out, ",\"name\":");
    chat_json_put_quoted(&j->out, call->tool ? call->tool->client_name : r->name);
    buf_add_text(&j->out, ",\"arguments\":");
    chat_json_put_quoted(&j->out, open_text(j));
    end_event(j);
}

static void close_item(struct api_job *j, struct api_choice *c, const char *status) {
    struct response *r = j->own;
    if (r->open == ITEM_NONE) return;
    if (r->open == ITEM_FUNCTION || r->open == ITEM_CUSTOM) close_call(j, c);
    else close_parts(j, c);
    event(j, "response.output_item.done");
    buf_printf(&j->out, ",\"output_index\":%u,\"item\":", r->n_items);
    put_item(j, c, true, status, &j->out);
    end_event(j);
    if (items(j)->size) buf_add_char(items(j), ',');
    put_item(j, c, true, status, items(j));
    r->open = ITEM_NONE;
    r->n_items++;
    buf_clear(&j->own_buf[1]);
    buf_clear(&c->lists.of[LIST_DETAIL]);
}

static void open_item(struct api_job *j, struct api_choice *c, enum item item) {
    static const char *const prefixes[] = { "", "rs_", "msg_", "fc_", "ctc_" };
    struct response *r = j->own;
    struct chat_text none = { "", 0 };
    close_item(j, c, "completed");
    r->open = item;
    api_job_new_id(j, prefixes[item], 24, r->item_id);
    event(j, "response.output_item.added");
    buf_printf(&j->out, ",\"output_index\":%u,\"item\":", r->n_items);
    put_item(j, c, false, "in_progress", &j->out);
    end_event(j);
    if (item == ITEM_REASONING && j->params.summary)
        part_event(j, "response.reasoning_summary_part.added", "summary_index", "summary_text", none, NULL);
    else if (item == ITEM_REASONING)
        part_event(j, "response.content_part.added", "content_index", "reasoning_text", none, NULL);
    else if (item == ITEM_MESSAGE)
        part_event(j, "response.content_part.added", "content_index", "output_text", none,
                   &c->lists.of[LIST_DETAIL]);
}

/* ---- deltas ---- */

static void send_reasoning(struct api_job *j, struct api_choice *c, struct chat_text text) {
    const struct response *r = j->own;
    if (r->open != ITEM_REASONING) open_item(j, c, ITEM_REASONING);
    buf_add(&j->own_buf[1], text.data, text.len);
    if (j->params.summary)
        item_text(j, "response.reasoning_summary_text.delta", "summary_index", "delta", text);
    else item_text(j, "response.reasoning_text.delta", "content_index", "delta", text);
}

/* Tokens whose text is out by now: into the delta and into the item's list. */
static void put_logprobs(struct api_job *j, struct api_choice *c) {
    const struct service_token *t;
    struct buf *list = &c->lists.of[LIST_DETAIL];
    size_t at, from = list->size;
    while ((t = api_answer_logprob(&c->answer, &at))) {
        if (list->size) buf_add_char(list, ',');
        api_token_put_logprob(j->site, t, list);
    }
    if (from && list->size > from) from++;        /* the comma */
    if (list->size > from) buf_add(&j->out, list->data + from, list->size - from);
}

static void send_content(struct api_job *j, struct api_choice *c, struct chat_text text) {
    const struct response *r = j->own;
    if (r->open != ITEM_MESSAGE) open_item(j, c, ITEM_MESSAGE);
    buf_add(&j->own_buf[1], text.data, text.len);
    item_event(j, "response.output_text.delta", "content_index");
    buf_add_text(&j->out, ",\"delta\":");
    chat_json_put_quoted(&j->out, text);
    buf_add_text(&j->out, ",\"logprobs\":[");
    put_logprobs(j, c);
    buf_add_char(&j->out, ']');
    end_event(j);
}

static void begin_call(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    struct response *r = j->own;
    const struct api_tool *tool = c->call[d->call_i].tool;
    close_item(j, c, "completed");
    char *name = arena_text(&j->arena, d->text.len ? d->text.data : "", d->text.len);
    r->name = (struct chat_text){ name, name ? d->text.len : 0 };
    r->call_i = d->call_i;
    open_item(j, c, tool && tool->custom ? ITEM_CUSTOM : ITEM_FUNCTION);
}

static void delta(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    struct response *r = j->own;
    if (!d->text.len && d->kind != DSML_CALL && d->kind != DSML_CALL_END) return;
    switch (d->kind) {
    case DSML_REASONING: send_reasoning(j, c, d->text); break;
    case DSML_CONTENT: send_content(j, c, d->text); break;
    case DSML_CALL: begin_call(j, c, d); break;
    case DSML_ARGUMENTS:
        buf_add(&j->own_buf[1], d->text.data, d->text.len);
        if (r->open == ITEM_FUNCTION)
            item_text(j, "response.function_call_arguments.delta", NULL, "delta", d->text);
        break;
    case DSML_CALL_END: close_item(j, c, "completed"); break;
    }
}

/* ---- begin and end ---- */

static void open_response(struct api_job *j) {
    send_response(j, "response.created", "in_progress");
    send_response(j, "response.in_progress", "in_progress");
}

static void end_choice(struct api_job *j, struct api_choice *c) {
    close_item(j, c, c->finish == DSML_FINISH_LENGTH ? "incomplete" : "completed");
}

static void end(struct api_job *j) {
    bool cut = j->choice[0].finish == DSML_FINISH_LENGTH;
    if (j->params.stream) {
        send_response(j, cut ? "response.incomplete" : "response.completed",
                      cut ? "incomplete" : "completed");
        return;
    }
    buf_clear(&j->out);
    put_response(j, cut ? "incomplete" : "completed");
}

/* Clients take a repeated response as the whole state, so it may be repeated only while that is empty. */
static void alive(struct api_job *j) {
    const struct response *r = j->own;
    if (r->n_items == 0 && r->open == ITEM_NONE) send_response(j, "response.in_progress", "in_progress");
    else sse_comment(&j->out, "generating");
}

static void fail(struct api_job *j) {
    send_response(j, "response.failed", "failed");
}

const struct api_dialect api_dialect_responses = { .open = open_response, .alive = alive, .delta = delta,
                                                   .end_choice = end_choice, .end = end, .fail = fail };
