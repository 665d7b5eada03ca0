/* api_openai_text - how POST /v1/completions answers: fragments of text, or one object. No markup is
 * looked for, so every delta is content. */
#include "coordinator/api_openai_parts.h"

#include <math.h>

#include "coordinator/sse.h"

static const char *finish_word(const struct api_choice *c) {
    return c->finish == DSML_FINISH_LENGTH ? "length" : "stop";
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

/* `at` counts the characters before it. */
static void add_logprob(struct api_job *j, struct api_lists *l, const struct service_token *t, size_t at) {
    struct buf *text = &l->of[LIST_LOGPROB], *top = &l->of[LIST_TOP];
    const char *comma = text->size ? "," : "";
    bool none = isnan(t->logprob);                /* of the very first token */
    buf_add_text(&l->of[LIST_TOKEN], comma);
    api_token_put_text(j->site, t->id, &l->of[LIST_TOKEN]);
    if (none) buf_printf(text, "%snull", comma);
    else buf_printf(text, "%s%.6g", comma, shown(t->logprob));
    buf_printf(top, "%s%s", comma, none ? "null" : "{");
    for (int i = 0; i < t->n_top; i++) {
        if (i) buf_add_char(top, ',');
        api_token_put_text(j->site, t->top[i].id, top);
        buf_printf(top, ":%.6g", shown(t->top[i].logprob));
    }
    if (!none) buf_add_char(top, '}');
    buf_printf(&l->of[LIST_OFFSET], "%s%zu", comma, at);
}

/* ---- what is said of the prompt ---- */

static void list_prompt(struct api_job *j, struct api_prompt *p, const struct service_token *t) {
    bool silent = p->n_listed++ == 0 && p->silent_first;
    api_lists_add_id(j, &p->lists, t);
    if (!j->params.scores) return;
    add_logprob(j, &p->lists, t, p->text_at);
    p->text_at += silent ? 0 : characters(j->site, t->id);
}

/* The first one, which nothing came before; without scores all of them. */
static void begin_prompt(struct api_job *j, struct api_prompt *p) {
    size_t n = j->params.scores ? 1 : p->tokens.n;
    while (p->n_listed < n) {
        struct service_token t = { .id = p->tokens.ids[p->n_listed], .logprob = (double)NAN };
        list_prompt(j, p, &t);
    }
}

static void put_list(struct api_job *j, const struct buf *of_prompt, struct buf *own) {
    if (of_prompt) buf_add(&j->out, of_prompt->data, of_prompt->size);
    if (!own) return;
    if (of_prompt && of_prompt->size && own->size) buf_add_char(&j->out, ',');
    buf_add(&j->out, own->data, own->size);
    buf_clear(own);
}

/* What a piece of an answer carries: its prompt, tokens that were sampled, or both. */
struct carries { struct api_prompt *prompt; struct api_choice *choice; };

static void put_list_of(struct api_job *j, const struct carries *p, enum api_list i) {
    put_list(j, p->prompt ? &p->prompt->lists.of[i] : NULL, p->choice ? &p->choice->lists.of[i] : NULL);
}

static void take_logprobs(struct api_job *j, struct api_choice *c) {
    const struct service_token *t;
    size_t at, before = j->params.echo ? j->prompt[c->prompt_i].text_at : 0;
    while ((t = api_answer_logprob(&c->answer, &at))) {
        add_logprob(j, &c->lists, t, before + c->text_at);
        c->text_at += characters(j->site, t->id);
    }
}

static void put_logprobs(struct api_job *j, const struct carries *p) {
    static const struct { const char *before; enum api_list list; } lists[] = {
        { "{\"tokens\":[", LIST_TOKEN },
        { "],\"token_logprobs\":[", LIST_LOGPROB },
        { "],\"top_logprobs\":[", LIST_TOP },
        { "],\"text_offset\":[", LIST_OFFSET },
    };
    if (p->choice) take_logprobs(j, p->choice);
    bool any = p->prompt || (p->choice && p->choice->lists.of[LIST_TOKEN].size);
    if (!j->params.sampling.logprobs || (!any && j->params.stream)) {
        buf_add_text(&j->out, "null");
        return;
    }
    for (size_t i = 0; i < COUNT_OF(lists); i++) {
        buf_add_text(&j->out, lists[i].before);
        put_list_of(j, p, lists[i].list);
    }
    buf_add_text(&j->out, "]}");
}

/* With return_token_ids: the tokens since the last time. */
static void put_token_ids(struct api_job *j, const struct carries *p) {
    if (!j->params.token_ids) return;
    buf_add_text(&j->out, ",\"token_ids\":[");
    put_list_of(j, p, LIST_ID);
    if (j->params.sampling.logprobs) {
        buf_add_text(&j->out, "],\"token_details\":[");
        put_list_of(j, p, LIST_DETAIL);
    }
    buf_add_char(&j->out, ']');
}

static void put_choice(struct api_job *j, struct api_choice *c);
static const struct api_openai_words names = { "text_completion", "text_completion", put_choice, put_usage };

/* ---- stream ---- */

static void send_text(struct api_job *j, uint32_t index, struct chat_text text, const struct carries *p,
                      const char *finish) {
    sse_begin(&j->out, NULL);
    api_openai_put_head(j, names.piece);
    buf_printf(&j->out, "{\"index\":%u,\"text\":", index);
    chat_json_put_quoted(&j->out, text);
    buf_add_text(&j->out, ",\"logprobs\":");
    put_logprobs(j, p);
    put_token_ids(j, p);
    if (finish) buf_printf(&j->out, ",\"finish_reason\":\"%s\"}]", finish);
    else buf_add_text(&j->out, ",\"finish_reason\":null}]");
    api_openai_end_piece(j, false, &names);
}

static void send_echo(struct api_job *j, struct api_choice *c) {
    struct carries p = { &j->prompt[c->prompt_i], NULL };
    if (c->begun || !j->params.echo) return;
    c->begun = true;
    begin_prompt(j, p.prompt);
    send_text(j, c->index, p.prompt->echo, &p, NULL);
}

static void score(struct api_job *j, struct api_choice *c, const struct service_token *t) {
    struct api_prompt *p = &j->prompt[c->prompt_i];
    begin_prompt(j, p);
    list_prompt(j, p, t);
    if (j->params.stream && p->n_listed == p->tokens.n) send_echo(j, c);
}

static void delta(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    struct carries p = { NULL, c };
    send_echo(j, c);
    if (d->text.len) send_text(j, c->index, d->text, &p, NULL);
}

static void end_choice(struct api_job *j, struct api_choice *c) {
    struct carries p = { NULL, c };
    send_echo(j, c);
    send_text(j, c->index, (struct chat_text){ "", 0 }, &p, finish_word(c));
}

/* ---- one object ---- */

static void put_choice(struct api_job *j, struct api_choice *c) {
    struct carries p = { j->params.echo ? &j->prompt[c->prompt_i] : NULL, c };
    struct chat_text echo = j->prompt[c->prompt_i].echo;
    buf_printf(&j->out, "{\"index\":%u,\"text\":\"", c->index);
    if (p.prompt) chat_json_put_escaped(&j->out, echo.data, echo.len);
    if (p.prompt) begin_prompt(j, p.prompt);
    chat_json_put_escaped(&j->out, c->whole.content.data, c->whole.content.size);
    buf_add_text(&j->out, "\",\"logprobs\":");
    put_logprobs(j, &p);
    put_token_ids(j, &p);
    buf_printf(&j->out, ",\"finish_reason\":\"%s\"}", finish_word(c));
}

static void end(struct api_job *j) {
    api_openai_end(j, &names);
}

const struct api_dialect api_dialect_completions = { .alive = api_openai_alive,
                                                     .delta = delta,
                                                     .score = score,
                                                     .end_choice = end_choice,
                                                     .end = end,
                                                     .fail = api_openai_fail };
