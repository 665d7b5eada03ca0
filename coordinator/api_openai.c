/* api_openai - how POST /v1/chat/completions answers: chunks of a stream, or one object.
 *
 *     {role} {reasoning_content}* {content}* ({tool_calls: id, name} {tool_calls: arguments}*)* {finish}
 *     [usage] [DONE]              each choice in this order, choices interleaved */
#include "coordinator/api_openai_parts.h"

#include "coordinator/sse.h"

static const char *finish_word(const struct api_choice *c) {
    static const char *const words[] = { [DSML_FINISH_STOP] = "stop", [DSML_FINISH_LENGTH] = "length",
                                         [DSML_FINISH_CALLS] = "tool_calls" };
    return words[c->finish];
}

static void put_usage(struct api_job *j) {
    struct api_usage u = api_job_usage(j);
    buf_printf(&j->out, "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,",
               (unsigned long long)u.n_prompt, (unsigned long long)u.n_output,
               (unsigned long long)(u.n_prompt + u.n_output));
    buf_printf(&j->out,
               "\"prompt_tokens_details\":{\"cached_tokens\":%llu},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":%llu},"
               "\"prompt_cache_hit_tokens\":%llu,\"prompt_cache_miss_tokens\":%llu}",
               (unsigned long long)u.n_cached, (unsigned long long)u.n_reasoning,
               (unsigned long long)u.n_cached, (unsigned long long)(u.n_prompt - u.n_cached));
}

/* The entries of all tokens whose text is out by now, or null. */
static void put_logprobs(struct api_job *j, struct api_choice *c, bool always) {
    const struct service_token *t;
    size_t at, n = 0;
    while ((t = api_answer_logprob(&c->answer, &at))) {
        buf_add_text(&j->out, n++ ? "," : "{\"content\":[");
        api_token_put_logprob(j->site, t, &j->out);
    }
    if (n) buf_add_text(&j->out, "],\"refusal\":null}");
    else buf_add_text(&j->out, always ? "{\"content\":[],\"refusal\":null}" : "null");
}

static void put_choice(struct api_job *j, struct api_choice *c);
static const struct api_openai_words names = { "chat.completion", "chat.completion.chunk", put_choice,
                                               put_usage };

/* ---- stream ---- */

static void begin_chunk(struct api_job *j, const struct api_choice *c) {
    sse_begin(&j->out, NULL);
    api_openai_put_head(j, names.piece);
    buf_printf(&j->out, "{\"index\":%u,\"delta\":{", c->index);
}

static void end_chunk(struct api_job *j, struct api_choice *c, bool with_logprobs, const char *finish) {
    buf_add_text(&j->out, "},\"logprobs\":");
    if (with_logprobs) put_logprobs(j, c, false);
    else buf_add_text(&j->out, "null");
    if (finish) buf_printf(&j->out, ",\"finish_reason\":\"%s\"}]", finish);
    else buf_add_text(&j->out, ",\"finish_reason\":null}]");
    api_openai_end_piece(j, finish && j->n_over + 1 == j->n_choice, &names);
}

static void send_role(struct api_job *j, struct api_choice *c) {
    if (c->begun) return;
    c->begun = true;
    begin_chunk(j, c);
    buf_add_text(&j->out, "\"role\":\"assistant\",\"content\":\"\"");
    end_chunk(j, c, false, NULL);
}

static void put_call_delta(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    buf_printf(&j->out, "\"tool_calls\":[{\"index\":%zu,", d->call_i);
    if (d->kind == DSML_CALL) {
        buf_printf(&j->out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                   c->call[d->call_i].id);
        chat_json_put_quoted(&j->out, d->text);
        buf_add_text(&j->out, ",\"arguments\":\"\"}}]");
        return;
    }
    buf_add_text(&j->out, "\"function\":{\"arguments\":");
    chat_json_put_quoted(&j->out, d->text);
    buf_add_text(&j->out, "}}]");
}

static void delta(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    if (d->kind == DSML_CALL_END || (d->kind != DSML_CALL && !d->text.len)) return;
    send_role(j, c);
    begin_chunk(j, c);
    if (d->kind == DSML_REASONING || d->kind == DSML_CONTENT) {
        buf_add_text(&j->out, d->kind == DSML_CONTENT ? "\"content\":" : "\"reasoning_content\":");
        chat_json_put_quoted(&j->out, d->text);
    } else {
        put_call_delta(j, c, d);
    }
    end_chunk(j, c, d->kind == DSML_CONTENT, NULL);
}

static void end_choice(struct api_job *j, struct api_choice *c) {
    send_role(j, c);
    begin_chunk(j, c);
    end_chunk(j, c, true, finish_word(c));
}

/* ---- one object ---- */

static void put_calls(struct api_job *j, const struct api_choice *c) {
    buf_add_text(&j->out, ",\"tool_calls\":[");
    for (size_t i = 0; i < c->whole.n_calls; i++) {
        const struct dsml_call *call = &c->whole.calls[i];
        buf_printf(&j->out,
                   "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", i ? "," : "",
                   c->call[i].id);
        chat_json_put_quoted(&j->out, (struct chat_text){ call->name.data, call->name.size });
        buf_add_text(&j->out, ",\"arguments\":");
        chat_json_put_quoted(&j->out, (struct chat_text){ call->arguments.data, call->arguments.size });
        buf_add_text(&j->out, "}}");
    }
    buf_add_char(&j->out, ']');
}

static void put_choice(struct api_job *j, struct api_choice *c) {
    const struct dsml_message *m = &c->whole;
    buf_printf(&j->out, "{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":", c->index);
    if (!m->content.size && m->n_calls) buf_add_text(&j->out, "null");
    else chat_json_put_quoted(&j->out, (struct chat_text){ m->content.data, m->content.size });
    if (m->reasoning.size) {
        buf_add_text(&j->out, ",\"reasoning_content\":");
        chat_json_put_quoted(&j->out, (struct chat_text){ m->reasoning.data, m->reasoning.size });
    }
    buf_add_text(&j->out, ",\"refusal\":null");
    if (m->n_calls) put_calls(j, c);
    buf_add_text(&j->out, "},\"logprobs\":");
    put_logprobs(j, c, j->params.sampling.logprobs);
    buf_printf(&j->out, ",\"finish_reason\":\"%s\"}", finish_word(c));
}

static void end(struct api_job *j) {
    api_openai_end(j, &names);
}

const struct api_dialect api_dialect_chat = { .alive = api_openai_alive, .delta = delta,
                                              .end_choice = end_choice, .end = end,
                                              .fail = api_openai_fail };
