/* api_anthropic - how POST /v1/messages answers: blocks that open and close one after another.
 *
 *     message_start  ( content_block_start  content_block_delta*  content_block_stop )*
 *     message_delta  message_stop                       blocks: thinking, text, tool_use* */
#include "coordinator/api_job.h"

#include "coordinator/api_sealed.h"
#include "coordinator/sse.h"

enum block { BLOCK_NONE, BLOCK_THINKING, BLOCK_TEXT, BLOCK_TOOL };

struct message {
    enum block open;
    uint32_t n_blocks;                            /* closed */
};

int api_messages_prepare(struct api_job *j, struct err *e) {
    j->own = arena_alloc(&j->arena, sizeof(struct message));
    return j->own ? 0 : err_set(e, ERR_NOMEM, "a message");
}

static void event(struct api_job *j, const char *type) {
    sse_begin(&j->out, type);
    buf_printf(&j->out, "{\"type\":\"%s\"", type);
}

static void end_event(struct api_job *j) {
    buf_add_char(&j->out, '}');
    sse_end(&j->out);
}

static void put_usage(struct api_job *j) {
    struct api_usage u = api_job_usage(j);
    buf_printf(&j->out,
               "{\"input_tokens\":%llu,\"cache_creation_input_tokens\":0,"
               "\"cache_read_input_tokens\":%llu,\"output_tokens\":%llu}",
               (unsigned long long)(u.n_prompt - u.n_cached), (unsigned long long)u.n_cached,
               (unsigned long long)u.n_output);
}

static void put_head(struct api_job *j) {
    buf_printf(&j->out, "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", j->id);
    chat_json_put_quoted(&j->out, j->model);
    buf_add_text(&j->out, ",\"content\":[");
}

static void put_stop(struct api_job *j, const struct api_choice *c) {
    int stop_i = dsml_stream_stop_i(c->answer.dsml);
    const char *reason = stop_i >= 0                         ? "stop_sequence"
                         : c->finish == DSML_FINISH_CALLS    ? "tool_use"
                         : c->finish == DSML_FINISH_LENGTH   ? "max_tokens"
                                                             : "end_turn";
    buf_printf(&j->out, "\"stop_reason\":\"%s\",\"stop_sequence\":", reason);
    if (stop_i >= 0) chat_json_put_quoted(&j->out, j->params.stops[stop_i]);
    else buf_add_text(&j->out, "null");
}

/* ---- stream ---- */

static void open_message(struct api_job *j) {
    event(j, "message_start");
    buf_add_text(&j->out, ",\"message\":");
    put_head(j);
    buf_add_text(&j->out, "],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":");
    put_usage(j);
    buf_add_char(&j->out, '}');
    end_event(j);
}

static void begin_delta(struct api_job *j, const char *type, const char *member) {
    const struct message *m = j->own;
    event(j, "content_block_delta");
    buf_printf(&j->out, ",\"index\":%u,\"delta\":{\"type\":\"%s\",\"%s\":", m->n_blocks, type, member);
}

static void end_delta(struct api_job *j) {
    buf_add_char(&j->out, '}');
    end_event(j);
}

/* The seal lets the reasoning come back, whatever the client keeps of it. */
static void send_signature(struct api_job *j) {
    begin_delta(j, "signature_delta", "signature");
    buf_add_char(&j->out, '"');
    api_sealed_put(&j->out, (struct chat_text){ j->own_buf[0].data, j->own_buf[0].size });
    buf_add_char(&j->out, '"');
    end_delta(j);
}

static void close_block(struct api_job *j) {
    struct message *m = j->own;
    if (m->open == BLOCK_NONE) return;
    if (m->open == BLOCK_THINKING) send_signature(j);
    event(j, "content_block_stop");
    buf_printf(&j->out, ",\"index\":%u", m->n_blocks++);
    end_event(j);
    m->open = BLOCK_NONE;
}

static void open_block(struct api_job *j, enum block block, const struct api_job_call *call,
                       struct chat_text name) {
    struct message *m = j->own;
    if (m->open == block && block != BLOCK_TOOL) return;
    close_block(j);
    m->open = block;
    event(j, "content_block_start");
    buf_printf(&j->out, ",\"index\":%u,\"content_block\":", m->n_blocks);
    if (block == BLOCK_THINKING) {
        buf_add_text(&j->out, "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}");
    } else if (block == BLOCK_TEXT) {
        buf_add_text(&j->out, "{\"type\":\"text\",\"text\":\"\"}");
    } else {
        buf_printf(&j->out, "{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", call->id);
        chat_json_put_quoted(&j->out, name);
        buf_add_text(&j->out, ",\"input\":{}}");
    }
    end_event(j);
}

static void send_delta(struct api_job *j, const char *type, const char *member, struct chat_text text) {
    begin_delta(j, type, member);
    chat_json_put_quoted(&j->out, text);
    end_delta(j);
}

static void delta(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    struct chat_text none = { "", 0 };
    if (!d->text.len && d->kind != DSML_CALL && d->kind != DSML_CALL_END) return;
    switch (d->kind) {
    case DSML_REASONING:
        open_block(j, BLOCK_THINKING, NULL, none);
        buf_add(&j->own_buf[0], d->text.data, d->text.len);
        send_delta(j, "thinking_delta", "thinking", d->text);
        break;
    case DSML_CONTENT:
        open_block(j, BLOCK_TEXT, NULL, none);
        send_delta(j, "text_delta", "text", d->text);
        break;
    case DSML_CALL:
        open_block(j, BLOCK_TOOL, &c->call[d->call_i], d->text);
        send_delta(j, "input_json_delta", "partial_json", none);
        break;
    case DSML_ARGUMENTS: send_delta(j, "input_json_delta", "partial_json", d->text); break;
    case DSML_CALL_END: close_block(j); break;
    }
}

static void end_choice(struct api_job *j, struct api_choice *c) {
    const struct message *m = j->own;
    if (!m->n_blocks && m->open == BLOCK_NONE) open_block(j, BLOCK_TEXT, NULL, (struct chat_text){ "", 0 });
    close_block(j);
    event(j, "message_delta");
    buf_add_text(&j->out, ",\"delta\":{");
    put_stop(j, c);
    buf_add_text(&j->out, "},\"usage\":");
    put_usage(j);
    end_event(j);
}

static void alive(struct api_job *j) {
    sse_begin(&j->out, "ping");
    buf_add_text(&j->out, "{\"type\": \"ping\"}");
    sse_end(&j->out);
}

static void fail(struct api_job *j) {
    sse_begin(&j->out, "error");
    api_error_put(&j->out, &j->fault, API_SHAPE_ANTHROPIC, j->request_id);
    sse_end(&j->out);
}

/* ---- one object ---- */

static struct chat_text text_of(const struct buf *b) {
    return (struct chat_text){ b->size ? b->data : "", b->size };
}

static void put_blocks(struct api_job *j, const struct api_choice *c) {
    const struct dsml_message *m = &c->whole;
    const char *comma = "";
    if (m->reasoning.size) {
        buf_add_text(&j->out, "{\"type\":\"thinking\",\"thinking\":");
        chat_json_put_quoted(&j->out, text_of(&m->reasoning));
        buf_add_text(&j->out, ",\"signature\":\"");
        api_sealed_put(&j->out, text_of(&m->reasoning));
        buf_add_text(&j->out, "\"}");
        comma = ",";
    }
    if (m->content.size || (!m->reasoning.size && !m->n_calls)) {
        buf_printf(&j->out, "%s{\"type\":\"text\",\"text\":", comma);
        chat_json_put_quoted(&j->out, text_of(&m->content));
        buf_add_char(&j->out, '}');
        comma = ",";
    }
    for (size_t i = 0; i < m->n_calls; i++) {
        buf_printf(&j->out, "%s{\"type\":\"tool_use\",\"id\":\"%s\",\"name\":", comma, c->call[i].id);
        chat_json_put_quoted(&j->out, text_of(&m->calls[i].name));
        buf_add_text(&j->out, ",\"input\":");
        buf_add(&j->out, m->calls[i].arguments.data, m->calls[i].arguments.size);
        buf_add_char(&j->out, '}');
        comma = ",";
    }
}

static void end(struct api_job *j) {
    const struct api_choice *c = &j->choice[0];
    if (j->params.stream) {
        event(j, "message_stop");
        end_event(j);
        return;
    }
    put_head(j);
    put_blocks(j, c);
    buf_add_text(&j->out, "],");
    put_stop(j, c);
    buf_add_text(&j->out, ",\"usage\":");
    put_usage(j);
    buf_add_char(&j->out, '}');
}

const struct api_dialect api_dialect_messages = { .open = open_message, .alive = alive, .delta = delta,
                                                  .end_choice = end_choice, .end = end, .fail = fail };
