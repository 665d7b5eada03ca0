/* api_job - the running job: what comes back becomes bytes; see the header.
 *
 * Each token goes through the choice's parser; its deltas are written by the dialect when the answer
 * streams, else collected and written at the end. A choice of which nothing more can come (a stop string,
 * a closed block of calls) is cancelled by the owner, and still ends with its on_done, which brings the
 * numbers for the usage. */
#include "coordinator/api_job.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/log.h"

void api_job_new_id(struct api_job *j, const char *prefix, size_t n, char out[API_ID_MAX]) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    size_t at = (size_t)snprintf(out, API_ID_MAX, "%s", prefix);
    for (size_t i = 0; i < n && at + 1 < API_ID_MAX; i++)
        out[at++] = letters[rng_below(&j->rng, sizeof letters - 1)];
    out[at] = 0;
}

struct api_usage api_job_usage(const struct api_job *j) {
    struct api_usage u = { .n_prompt = 0 };
    for (size_t i = 0; i < j->n_prompt; i++) u.n_prompt += j->prompt[i].tokens.n;
    for (uint32_t i = 0; i < j->n_choice; i++) {
        const struct api_choice *c = &j->choice[i];
        uint32_t n = (uint32_t)j->prompt[c->prompt_i].tokens.n;
        if (c->over && i % j->params.n == 0) u.n_cached += MIN(c->done.n_cached, n);
        if (!j->params.nothing_new)
            u.n_output += c->over ? MAX(c->done.n_output, c->answer.n_tokens) : c->answer.n_tokens;
        u.n_reasoning += c->answer.n_reasoning;
    }
    return u;
}

void api_job_request(struct api_job *j, uint32_t i, struct service_request *out) {
    struct api_choice *c = &j->choice[i];
    const struct token_buf *prompt = &j->prompt[c->prompt_i].tokens;
    uint32_t room = j->site->n_ctx - (uint32_t)prompt->n, wanted = j->params.max_tokens;
    *out = (struct service_request){ .token = prompt->ids, .n_token = (uint32_t)prompt->n };
    out->n_new_max = wanted ? MIN(wanted, room) : room;
    out->sampling = j->params.sampling;
    out->sampling.seed = c->seed;
    if (!j->params.ignore_end) {
        out->end_id = j->site->ends;
        out->n_end_id = j->site->n_ends;
    }
    out->take_guide = c->guide;
    out->score_prompt = j->params.scores && i % j->params.n == 0 && prompt->n > 1;
    c->guide = NULL;
}

bool api_job_may_begin(const struct api_job *j, uint32_t i) {
    const struct api_prompt *p = &j->prompt[j->choice[i].prompt_i];
    return !j->params.scores || i % j->params.n == 0 || MAX(p->n_listed, 1u) == p->tokens.n;
}

void api_job_open(struct api_job *j) {
    j->opened = true;
    if (j->dialect->open) j->dialect->open(j);
}

void api_job_alive(struct api_job *j) {
    if (j->opened && !j->finished) j->dialect->alive(j);
}

void api_job_progress(struct api_job *j, uint32_t n_done, uint32_t n_prompt) {
    j->n_progress = n_done;
    j->n_progress_of = n_prompt;
}

/* ---- deltas ---- */

static const struct api_tool *find_tool(const struct api_job *j, struct chat_text name) {
    for (size_t i = 0; i < j->n_tools; i++)
        if (chat_text_equal(j->tools[i].name, name)) return &j->tools[i];
    return NULL;
}

static void add_call(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    if (!c->call) c->call = xcalloc(DSML_CALLS_MAX, sizeof *c->call);
    CHECK(c->n_calls < DSML_CALLS_MAX && d->call_i == c->n_calls);
    struct api_job_call *call = &c->call[c->n_calls++];
    api_job_new_id(j, j->endpoint == API_MESSAGES ? "toolu_" : "call_", 24, call->id);
    call->tool = find_tool(j, d->text);
}

static void write_delta(struct api_job *j, struct api_choice *c, const struct dsml_delta *d) {
    if (d->kind == DSML_CALL) add_call(j, c, d);
    if (j->params.stream || j->endpoint == API_RESPONSES) j->dialect->delta(j, c, d);
    else if (dsml_message_add(&c->whole, d) < 0) j->out.rc = ERR_LIMIT;
}

static void write_text(struct api_job *j, struct api_choice *c, const char *text) {
    struct dsml_delta d = { DSML_CONTENT, 0, chat_text_of(text) };
    write_delta(j, c, &d);
}

/* Reasoning as content between tags, for clients that know no other place for it. */
static void write_inline(struct api_job *j, struct api_choice *c, struct dsml_delta d) {
    if (d.kind == DSML_REASONING) {
        if (!c->thinking_open) write_text(j, c, "<think>");
        c->thinking_open = true;
        d.kind = DSML_CONTENT;
    } else if (c->thinking_open) {
        c->thinking_open = false;
        write_text(j, c, "</think>\n");
    }
    write_delta(j, c, &d);
}

static void take_deltas(struct api_job *j, struct api_choice *c) {
    bool in_place = j->site->inline_thinking && j->endpoint == API_CHAT;
    struct dsml_delta d;
    while (api_answer_next(&c->answer, &d)) {
        if (in_place) write_inline(j, c, d);
        else write_delta(j, c, &d);
    }
    if (api_answer_complete(&c->answer)) c->wants_end = true;
}

static void break_off(struct api_job *j) {
    struct api_error fault = { .fault = API_FAULT_ENGINE };
    api_error_set(&fault, API_FAULT_ENGINE, "the answer is larger than this server can hold");
    api_job_fail(j, &fault);
}

void api_lists_init(struct api_lists *l) {
    for (size_t i = 0; i < API_LISTS; i++) buf_init(&l->of[i], API_OUT_BYTES_MAX);
}

void api_lists_deinit(struct api_lists *l) {
    for (size_t i = 0; i < API_LISTS; i++) buf_deinit(&l->of[i]);
}

/* Every token, also those that are no text; numbers with all their digits. */
void api_lists_add_id(const struct api_job *j, struct api_lists *l, const struct service_token *t) {
    struct buf *ids = &l->of[LIST_ID], *details = &l->of[LIST_DETAIL];
    const char *comma = ids->size ? "," : "";
    if (!j->params.token_ids) return;
    buf_printf(ids, "%s%d", comma, t->id);
    if (!j->params.sampling.logprobs) return;
    buf_printf(details, "%s{\"id\":%d,\"logprob\":", comma, t->id);
    if (isnan(t->logprob)) buf_add_text(details, "null");
    else buf_printf(details, "%.9g", t->logprob);
    buf_add_text(details, ",\"top\":[");
    for (int i = 0; i < t->n_top; i++)
        buf_printf(details, "%s{\"id\":%d,\"logprob\":%.9g}", i ? "," : "", t->top[i].id, t->top[i].logprob);
    buf_add_text(details, "]}");
}

void api_job_token(struct api_job *j, uint32_t i, const struct service_token *t) {
    struct api_choice *c = &j->choice[i];
    if (j->finished || c->over) return;
    if (t->of_prompt && j->dialect->score) j->dialect->score(j, c, t);
    if (t->of_prompt || j->params.nothing_new) return;
    if (c->wants_end) {                           /* computed before the cancellation arrived */
        c->answer.n_tokens++;
        return;
    }
    api_lists_add_id(j, &c->lists, t);
    if (api_answer_token(&c->answer, t) < 0) break_off(j);
    else take_deltas(j, c);
}

/* ---- the end ---- */

static void remember_calls(const struct api_job *j, const struct api_choice *c) {
    struct chat_text ids[DSML_CALLS_MAX], block = api_answer_block(&c->answer);
    if (!block.len || !c->n_calls) return;
    for (size_t i = 0; i < c->n_calls; i++) ids[i] = chat_text_of(c->call[i].id);
    api_site_remember(j->site, ids, c->n_calls, block);
}

static void end_choice(struct api_job *j, struct api_choice *c, const struct service_done *d) {
    bool cut = d->end == SERVICE_END_LENGTH || j->params.nothing_new;
    if (api_answer_end(&c->answer, cut) < 0) {
        break_off(j);
        return;
    }
    take_deltas(j, c);
    if (c->thinking_open) write_text(j, c, "</think>\n");
    c->finish = dsml_stream_finish(c->answer.dsml);
    if (dsml_stream_broken(c->answer.dsml)) log_info("api", "%s: a tool call broke off", j->request_id);
    remember_calls(j, c);
    if (j->params.stream || j->endpoint == API_RESPONSES) j->dialect->end_choice(j, c);
    if (++j->n_over < j->n_choice) return;
    j->dialect->end(j);
    j->finished = true;
}

static void end_badly(struct api_job *j, const struct service_done *d) {
    struct api_error fault = { .fault = API_FAULT_ENGINE };
    struct err e = { .code = d->end == SERVICE_END_ERROR ? d->code : ERR_STALE };
    snprintf(e.text, sizeof e.text, "%s",
             d->end == SERVICE_END_ERROR ? d->text : "the server is shutting down");
    api_error_from(&fault, &e);
    /* checked before: not the client's */
    if (fault.fault == API_FAULT_INVALID) fault.fault = API_FAULT_ENGINE;
    api_job_fail(j, &fault);
}

void api_job_done(struct api_job *j, uint32_t i, const struct service_done *d) {
    struct api_choice *c = &j->choice[i];
    if (c->over) return;
    c->over = true;
    c->done = *d;
    if (j->finished) return;
    bool asked = d->end == SERVICE_END_CANCELLED && c->wants_end;
    if (asked || d->end == SERVICE_END_STOP || d->end == SERVICE_END_LENGTH) end_choice(j, c, d);
    else end_badly(j, d);
    if (j->out.rc < 0 && !j->failed) break_off(j);
}

void api_job_fail(struct api_job *j, const struct api_error *fault) {
    if (j->failed) return;
    j->fault = *fault;
    j->failed = j->finished = true;
    if (j->out.rc < 0) buf_clear(&j->out);
    if (j->opened && j->params.stream) j->dialect->fail(j);
}
