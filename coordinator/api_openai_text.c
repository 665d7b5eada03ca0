/* api_openai_text - how POST /v1/completions answers: fragments of text, or one object. No markup is
 * looked for, so every delta is content. */
#include "coordinator/api_job.h"

#include <math.h>

#include "coordinator/sse.h"

static const char *finish_word(const struct api_choice *c) {
    return c->finish == DSML_FINISH_LENGTH ? "length" : "stop";
}

static void put_head(struct api_job *j) {
    buf_printf(&j->out, "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,\"model\":", j->id,
               (long long)j->created_s);
    chat_json_put_quoted(&j->out, j->model);
    buf_printf(&j->out, ",\"system_fingerprint\":\"%s\",\"choices\":[", j->site->fingerprint);
}

static void put_usage(struct api_job *j) {
    struct api_usage u = api_job_usage(j);
    buf_printf(&j->out,
               "{\"prompt_tokens\":%llu,\"completion_tokens\":%llu,\"total_tokens\":%llu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%llu}}",
               (unsigned long long)u.n_prompt, (unsigned long long)u.n_output,
               (unsigned long long)(u.n_prompt + u.n_output), (unsigned long long)u.n_cached);
}

/* ---- log-probabilities: four lists side by side ---- */

static double shown(double logprob) {
    return isfinite(logprob) ? logprob : -9999.0;
}

static size_t characters(const struct api_site *site, int32_t id) {
    size_t len = 0, n = 0;
    const char *bytes = tokenizer_token_bytes(site->tokenizer, id, &len);
    for (size_t i = 0; i < len; i++) n += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    return n;
}

static void add_logprob(struct api_job *j, struct api_choice *c, const struct service_token *t) {
    const char *comma = c->logprobs.size ? "," : "";
    buf_add_text(&c->logprobs, comma);
    api_token_put_text(j->site, t->id, &c->logprobs);
    buf_printf(&c->logprob_text, "%s%.6g", comma, shown(t->logprob));
    buf_printf(&c->logprob_top, "%s{", comma);
    for (int i = 0; i < t->n_top; i++) {
        if (i) buf_add_char(&c->logprob_top, ',');
        api_token_put_text(j->site, t->top[i].id, &c->logprob_top);
        buf_printf(&c->logprob_top, ":%.6g", shown(t->top[i].logprob));
    }
    buf_add_char(&c->logprob_top, '}');
    buf_printf(&c->logprob_at, "%s%zu", comma, c->text_at);
    c->text_at += characters(j->site, t->id);
}

static void put_logprobs(struct api_job *j, struct api_choice *c) {
    const struct service_token *t;
    size_t at;
    while ((t = api_answer_logprob(&c->answer, &at))) add_logprob(j, c, t);
    if (!j->params.sampling.logprobs || (!c->logprobs.size && j->params.stream)) {
        buf_add_text(&j->out, "null");
        return;
    }
    static const char *const names[] = { "{\"tokens\":[", "],\"token_logprobs\":[", "],\"top_logprobs\":[",
                                         "],\"text_offset\":[" };
    struct buf *lists[] = { &c->logprobs, &c->logprob_text, &c->logprob_top, &c->logprob_at };
    for (size_t i = 0; i < COUNT_OF(lists); i++) {
        buf_add_text(&j->out, names[i]);
        buf_add(&j->out, lists[i]->data, lists[i]->size);
        buf_clear(lists[i]);
    }
    buf_add_text(&j->out, "]}");
}

/* ---- with return_token_ids: the tokens since the last time ---- */

static void put_token_ids(struct api_job *j, struct api_choice *c) {
    if (!j->params.token_ids) return;
    buf_add_text(&j->out, ",\"token_ids\":[");
    buf_add(&j->out, c->token_ids.data, c->token_ids.size);
    if (j->params.sampling.logprobs) {
        buf_add_text(&j->out, "],\"token_details\":[");
        buf_add(&j->out, c->token_details.data, c->token_details.size);
    }
    buf_add_char(&j->out, ']');
    buf_clear(&c->token_ids);
    buf_clear(&c->token_details);
}

/* ---- stream ---- */

static void send_text(struct api_job *j, struct api_choice *c, struct chat_text text, const char *finish) {
    sse_begin(&j->out, NULL);
    put_head(j);
    buf_printf(&j->out, "{\"index\":%u,\"text\":", c->index);
    chat_json_put_quoted(&j->out, text);
    buf_add_text(&j->out, ",\"logprobs\":");
    put_logprobs(j, c);
    put_token_ids(j, c);
    if (finish) buf_printf(&j->out, ",\"finish_reason\":\"%s\"}]", finish);
    else buf_add_text(&j->out, ",\"finish_reason\":null}]");
    if (j->params.include_usage) buf_add_text(&j->out, ",\"usage\":null");
    buf_add_char(&j->out, '}');
    sse_end(&j->out);
}

static void send_echo(struct api_job *j, struct api_choice *c) {
    if (c->begun || !j->params.echo) return;
    c->begun = true;
    send_text(j, c, j->prompt[c->prompt_i].echo, NULL);
}

static void delta(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    send_echo(j, c);
    if (d->text.len) send_text(j, c, d->text, NULL);
}

static void end_choice(struct api_job *j, struct api_choice *c) {
    send_echo(j, c);
    send_text(j, c, (struct chat_text){ "", 0 }, finish_word(c));
}

static void alive(struct api_job *j) {
    if (j->n_progress_of) sse_comment(&j->out, "prefill %u/%u", j->n_progress, j->n_progress_of);
    else sse_comment(&j->out, "waiting");
}

static void fail(struct api_job *j) {
    sse_begin(&j->out, NULL);
    api_error_put(&j->out, &j->fault, API_SHAPE_OPENAI, j->request_id);
    sse_end(&j->out);
}

/* ---- one object ---- */

static void put_choice(struct api_job *j, struct api_choice *c) {
    struct chat_text echo = j->prompt[c->prompt_i].echo;
    buf_printf(&j->out, "{\"index\":%u,\"text\":\"", c->index);
    if (j->params.echo) chat_json_put_escaped(&j->out, echo.data, echo.len);
    chat_json_put_escaped(&j->out, c->whole.content.data, c->whole.content.size);
    buf_add_text(&j->out, "\",\"logprobs\":");
    put_logprobs(j, c);
    put_token_ids(j, c);
    buf_printf(&j->out, ",\"finish_reason\":\"%s\"}", finish_word(c));
}

static void end(struct api_job *j) {
    if (!j->params.stream) {
        put_head(j);
        for (uint32_t i = 0; i < j->n_choice; i++) {
            if (i) buf_add_char(&j->out, ',');
            put_choice(j, &j->choice[i]);
        }
        buf_add_text(&j->out, "],\"usage\":");
        put_usage(j);
        buf_add_char(&j->out, '}');
        return;
    }
    if (j->params.include_usage) {
        sse_begin(&j->out, NULL);
        put_head(j);
        buf_add_text(&j->out, "],\"usage\":");
        put_usage(j);
        buf_add_char(&j->out, '}');
        sse_end(&j->out);
    }
    buf_add_text(&j->out, "data: [DONE]\n\n");
}

const struct api_dialect api_dialect_completions = { NULL, alive, delta, end_choice, end, fail };
