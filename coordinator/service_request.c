/* service_request - the life of a request between a caller's thread and the core: copied, begun, told,
 * ended. */
#include "coordinator/service_private.h"

#include "common/base/check.h"
#include "common/sys/clock.h"

#include <stdio.h>
#include <stdlib.h>

static void entry_free(struct entry *t) {
    if (t->guide) t->guide->free(t->guide);
    sampler_history_deinit(&t->history);
    free(t->token);
    free(t->bias);
    free(t->lifted);
    free(t->end_id);
    free(t);
}

/* ---- on the caller's thread ---- */

static void *copied(const void *from, size_t n, size_t size) {
    void *to = n ? malloc(n * size) : NULL;
    if (to) memcpy(to, from, n * size);
    return to;
}

/* The last stage has to ship a token that a bias may lift from anywhere; one that is pushed down only costs
 * its place. */
static int copy_bias(struct entry *t, struct err *e) {
    const struct sampler_params *p = &t->sampling;
    if (p->n_bias == 0) return 0;
    t->bias = copied(p->bias, (size_t)p->n_bias, sizeof *t->bias);
    t->lifted = malloc((size_t)p->n_bias * sizeof *t->lifted);
    if (!t->bias || !t->lifted) return err_set(e, ERR_NOMEM, "no memory for %d biases", p->n_bias);
    t->sampling.bias = t->bias;
    for (int i = 0; i < p->n_bias; i++)
        if (t->bias[i].bias > 0)
            t->lifted[t->n_lifted++] = (struct msg_bias){ t->bias[i].id, t->bias[i].bias };
    if (t->n_lifted <= MSG_BIAS_MAX) return 0;
    return err_set(e, ERR_LIMIT, "%u tokens with a positive bias, at most %d", t->n_lifted, MSG_BIAS_MAX);
}

static int copy_history(struct entry *t) {
    const struct sampler_params *p = &t->sampling;
    t->has_history = p->repetition != 1 || p->frequency != 0 || p->presence != 0;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && t->has_history && i < t->n_token; i++)
        rc = sampler_history_add(&t->history, t->token[i], false);
    return rc;
}

static int check(const struct service *s, const struct service_request *r, uint32_t n_ctx, struct err *e) {
    if (r->n_token == 0 || !r->listener.on_token || !r->listener.on_done)
        return err_set(e, ERR_INVALID, "an empty prompt");
    if (r->n_token >= n_ctx)
        return err_set(e, ERR_LIMIT, "the prompt has %u tokens and the context %u", r->n_token, n_ctx);
    for (uint32_t i = 0; i < r->n_token; i++)
        if (r->token[i] < 0 || (uint32_t)r->token[i] >= s->hp.n_vocab)
            return err_set(e, ERR_INVALID, "token %u of the prompt is %d; the vocabulary has %u", i,
                           r->token[i], s->hp.n_vocab);
    return sampler_params_check(&r->sampling, (int)s->hp.n_vocab, e);
}

int entry_new(struct entry **out, struct service *s, const struct service_request *r, struct err *e) {
    struct service_info info;
    service_info(s, &info);
    int rc = check(s, r, info.n_ctx, e);
    if (rc < 0) return rc;
    struct entry *t = xcalloc(1, sizeof *t);
    uint32_t room = info.n_ctx - r->n_token;
    *t = (struct entry){ .s = s, .n_token = r->n_token, .sampling = r->sampling, .n_end_id = r->n_end_id,
                         .deadline_ms = r->deadline_ms, .scores = r->score_prompt, .listener = r->listener,
                         .submitted_ns = clock_now_ns() };
    t->n_new_max = r->n_new_max ? MIN(r->n_new_max, room) : room;
    t->token = copied(r->token, r->n_token, sizeof *t->token);
    t->end_id = copied(r->end_id, r->n_end_id, sizeof *t->end_id);
    if (!t->token || (r->n_end_id && !t->end_id)) rc = err_set(e, ERR_NOMEM, "no memory for a request");
    if (rc == 0) rc = copy_bias(t, e);
    if (rc == 0 && (rc = copy_history(t)) < 0) err_set(e, rc, "no memory for the tokens seen");
    if (rc < 0) {
        entry_free(t);
        return rc;
    }
    t->guide = r->take_guide;
    t->ticket = atomic_fetch_add(&s->ticket_next, 1);
    t->task.run = entry_begin;
    *out = t;
    return 0;
}

int service_submit(struct service *s, const struct service_request *r, uint64_t *ticket, struct err *e) {
    struct service_info info;
    struct entry *t = NULL;
    uint32_t most = s->config.n_slot + s->config.n_queue_max;
    service_info(s, &info);
    int rc = 0;
    if (atomic_fetch_add(&s->n_live, 1) >= most)
        rc = err_set(e, ERR_BUSY, "%u requests are being answered or wait", most);
    else if (info.state == SERVICE_DRAINING) rc = err_set(e, ERR_STALE, "the service is going away");
    else if (info.state == SERVICE_LOADING) rc = err_set(e, ERR_STALE, "not serving: %s", info.why);
    else rc = entry_new(&t, s, r, e);
    if (rc < 0) {
        atomic_fetch_sub(&s->n_live, 1);
        if (r->take_guide) r->take_guide->free(r->take_guide);
        return rc;
    }
    *ticket = t->ticket;
    loop_post(s->loop, &t->task);
    return 0;
}

/* ---- on the loop's thread ---- */

static void list_add(struct service *s, struct entry *t) {
    t->prev = s->last;
    if (s->last) s->last->next = t;
    else s->first = t;
    s->last = t;
}

static void list_remove(struct service *s, struct entry *t) {
    if (t->prev) t->prev->next = t->next;
    else s->first = t->next;
    if (t->next) t->next->prev = t->prev;
    else s->last = t->prev;
}

struct entry *entry_find(struct service *s, uint64_t ticket) {
    for (struct entry *t = s->first; t; t = t->next)
        if (t->ticket == ticket) return t;
    return NULL;
}

static struct msg_want want_of(const struct entry *t) {
    const struct sampler_params *p = &t->sampling;
    return (struct msg_want){ .temperature = p->temperature,
                              .top_p = p->top_p,
                              .min_p = p->min_p,
                              .top_k = p->top_k,
                              .n_top = (uint32_t)p->n_top,
                              .logprobs = p->logprobs,
                              .adjusts = t->has_history || t->guide || p->n_bias > 0,
                              .n_bias = t->n_lifted };
}

void entry_begin(struct loop_task *task) {
    struct entry *t = (struct entry *)task;
    struct service *s = t->s;
    list_add(s, t);
    s->totals.n_request++;
    s->totals.n_prompt_token += t->n_token;
    if (s->stopping) {
        entry_done(t, ERR_CANCELLED, "the service stops");
        return;
    }
    struct coord_event ev = { .kind = COORD_EV_SUBMIT };
    ev.submit = (struct coord_submit){ .tag = entry_tag(t),
                                       .token = t->token,
                                       .n_token = t->n_token,
                                       .n_new_max = t->n_new_max,
                                       .want = want_of(t),
                                       .bias = t->lifted,
                                       .deadline_ms = t->deadline_ms,
                                       .scores = t->scores };
    service_step(s, &ev);
}

void entry_accepted(struct entry *t, struct handle request) {
    t->request = request;
    t->accepted = true;
    free(t->token);                               /* the core has its own copy */
    t->token = NULL;
}

static void tell(struct entry *t, struct service_token *token, const struct sampler_result *result) {
    if (result) {
        token->logprob = result->logprob;
        token->n_top = result->n_top;
        memcpy(token->top, result->top, sizeof token->top);
    }
    t->listener.on_token(t->listener.ctx, token);
}

void entry_token(struct entry *t, int32_t id, uint32_t index) {
    struct service_token token = { .id = id, .index = index };
    if (t->n_output++ == 0) t->first_ns = clock_now_ns();
    t->s->totals.n_output_token++;
    tell(t, &token, t->sampling.logprobs ? &t->result : NULL);
}

void entry_score(struct entry *t, const struct sampler_result *result, uint32_t position) {
    struct service_token token = { .id = result->id, .index = position, .of_prompt = true };
    tell(t, &token, result);
}

static enum service_end end_of(const struct entry *t, int code) {
    if (code == 0) return t->ended ? SERVICE_END_STOP : SERVICE_END_LENGTH;
    return code == ERR_CANCELLED && t->cancelled ? SERVICE_END_CANCELLED : SERVICE_END_ERROR;
}

static uint64_t us(uint64_t from_ns, uint64_t to_ns) {
    return to_ns > from_ns ? (to_ns - from_ns) / 1000 : 0;
}

void entry_done(struct entry *t, int code, const char *text) {
    struct service *s = t->s;
    uint64_t now = clock_now_ns(), started = t->started_ns ? t->started_ns : t->first_ns ? t->first_ns : now;
    uint64_t first = t->first_ns ? t->first_ns : now;
    struct service_done done = { .end = end_of(t, code),
                                 .code = code,
                                 .n_prompt = t->n_token,
                                 .n_cached = t->n_cached,
                                 .n_output = t->n_output,
                                 .queue_us = us(t->submitted_ns, started),
                                 .prefill_us = us(started, first),
                                 .decode_us = us(first, now) };
    snprintf(done.text, sizeof done.text, "%.120s", text && *text ? text : code < 0 ? err_text(code) : "");
    s->totals.n_done += code == 0;
    s->totals.n_cancelled += done.end == SERVICE_END_CANCELLED;
    s->totals.n_failed += done.end == SERVICE_END_ERROR;
    s->totals.n_cached_token += t->n_cached;
    list_remove(s, t);
    atomic_fetch_sub(&s->n_live, 1);
    if (t->guide) t->guide->free(t->guide);       /* before the listener's owner goes on */
    t->guide = NULL;
    t->listener.on_done(t->listener.ctx, &done);
    entry_free(t);
}

/* Those that still wait for their first token: out of the queue since when, and how far. */
void entries_progress(struct service *s) {
    struct coord_request_view v;
    for (struct entry *t = s->first; t; t = t->next) {
        if (t->first_ns || !t->accepted || !coord_view_request(s->coord, t->request, &v) ||
            v.queued)
            continue;
        if (!t->started_ns) t->started_ns = clock_now_ns();
        if (v.n_held == t->n_held) continue;
        t->n_held = v.n_held;
        if (t->listener.on_progress)
            t->listener.on_progress(t->listener.ctx, MIN(v.n_held, t->n_token), t->n_token);
    }
}

/* ---- cancelling ---- */

struct cancel {
    struct loop_task task;
    struct service *s;
    uint64_t ticket;
};

static void cancel_run(struct loop_task *task) {
    struct cancel *c = (struct cancel *)task;
    struct service *s = c->s;
    struct entry *t = entry_find(s, c->ticket);
    free(c);
    if (!t || !t->accepted || s->stopping) return;
    t->cancelled = true;
    service_step(s, &(struct coord_event){ .kind = COORD_EV_CANCEL, .request = t->request });
}

void service_cancel(struct service *s, uint64_t ticket) {
    struct cancel *c = xcalloc(1, sizeof *c);
    *c = (struct cancel){ .task = { .run = cancel_run }, .s = s, .ticket = ticket };
    loop_post(s->loop, &c->task);
}
