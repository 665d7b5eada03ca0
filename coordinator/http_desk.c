/* http_desk - what becomes of a request: refused, answered, or a task for workers and the service.
 *
 * No socket is touched here; http_resume tells the shell that there is something to send. The listener's
 * functions at the end of the file are the only ones on the service's loop thread: they fill a note, push
 * it into the ring, and wake us. */
#include "coordinator/http_private.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "coordinator/page.h"

static const char plain_json[] = "application/json";

static void task_maybe_free(struct task *t);

/* While a worker has the task, its job is not ours to look at. */
static struct api_job *job_of(const struct task *t) {
    return t && !t->working ? t->job : NULL;
}

/* ---- answers in one piece ---- */

static void answer(struct exchange *x, int status, const char *type) {
    x->status = status;
    x->type = type;
    x->state = X_READY;
}

static void answer_fault(struct exchange *x, const struct api_error *fault) {
    x->fault = *fault;
    x->rejected = true;
    buf_clear(&x->answer);
    api_error_put(&x->answer, fault, x->route.shape, x->request_id);
    answer(x, api_error_status(fault), plain_json);
}

void desk_refuse(struct exchange *x, enum api_fault fault, const char *text) {
    if (x->rejected) return;
    x->fault = (struct api_error){ .fault = fault };
    api_error_set(&x->fault, fault, "%s", text);
    if (fault == API_FAULT_BUSY || fault == API_FAULT_UNAVAILABLE) {
        struct service_info info;
        service_info(x->h->service, &info);
        x->fault.retry_s = metrics_retry_s(&x->h->metrics, &info);
    }
    x->rejected = true;
}

/* ---- the head ---- */

static void check_path(struct exchange *x) {
    char text[400];
    if (x->route.endpoint == API_UNKNOWN) {
        snprintf(text, sizeof text, "There is nothing at %s.", x->path);
        desk_refuse(x, API_FAULT_PATH, text);
    } else if (x->route.preflight ? !x->h->guard.cors[0] : !x->route.fits) {
        snprintf(text, sizeof text, "%s takes %s only.", x->path, x->route.allow);
        desk_refuse(x, API_FAULT_METHOD, text);
    }
}

static void check_rights(struct exchange *x, const struct http_headers *in) {
    const struct http_guard *g = &x->h->guard;
    bool open = x->route.endpoint == API_HEALTH || x->route.endpoint == API_PAGE || x->route.preflight ||
                (x->route.endpoint == API_METRICS && x->h->config.metrics_open);
    if (!(x->conn && x->conn->is_unix) && !http_guard_host(g, in->host))
        desk_refuse(x, API_FAULT_FORBIDDEN, "this server does not go by that Host name (--allow-host)");
    else if (!http_guard_origin(g, in->origin, in->host))
        desk_refuse(x, API_FAULT_FORBIDDEN, "pages of that Origin may not ask here (--cors)");
    else if (!open && !http_guard_key(g, in->authorization, in->x_api_key))
        desk_refuse(x, API_FAULT_KEY, in->authorization || in->x_api_key ? "Incorrect API key provided."
                                                                         : "An API key is needed.");
}

void desk_head(struct exchange *x, const char *method, const char *path, const struct http_headers *in) {
    enum { WORTH_READING = 1 << 20 };        /* to answer a refused request on a connection that stays open */
    bool fits = strlen(path) < sizeof x->path;
    snprintf(x->path, sizeof x->path, "%s", path);
    x->route = api_route_find(method, x->path);
    if (!fits) x->route.endpoint = API_UNKNOWN;
    x->begin_ns = x->alive_ns = x->h->now_ns;
    buf_init(&x->body, x->h->limit.body_bytes + 1);
    buf_init(&x->answer, API_OUT_BYTES_MAX);
    check_rights(x, in);
    if (!x->rejected) check_path(x);
    if (in->length > x->h->limit.body_bytes) desk_refuse(x, API_FAULT_SIZE, "the body is too large");
    x->early = x->rejected && (in->expects || in->length > WORTH_READING);
}

static void uncount_body(struct exchange *x) {
    x->h->bodies_bytes -= x->body_counted;
    x->body_counted = 0;
}

void desk_body(struct exchange *x, const char *data, size_t n) {
    struct http *h = x->h;
    h->metrics.bytes_in += n;
    if (x->rejected) return;
    x->body_counted += n;
    h->bodies_bytes += n;
    if (x->body.size + n > h->limit.body_bytes) desk_refuse(x, API_FAULT_SIZE, "the body is too large");
    else if (h->bodies_bytes > h->limit.bodies_bytes)
        desk_refuse(x, API_FAULT_UNAVAILABLE, "too many large requests at once");
    else if (buf_add(&x->body, data, n) < 0)
        desk_refuse(x, API_FAULT_UNAVAILABLE, "no memory for a body of this size");
    if (!x->rejected) return;
    uncount_body(x);
    buf_deinit(&x->body);
}

/* ---- endpoints that need no work ---- */

static void answer_health(struct exchange *x) {
    struct http *h = x->h;
    struct service_info info;
    service_info(h->service, &info);
    bool draining = atomic_load(&h->draining) || info.state == SERVICE_DRAINING;
    if (!draining && info.state == SERVICE_SERVING && h->site) {
        buf_add_text(&x->answer, "{\"status\":\"ok\"}");
        answer(x, 200, plain_json);
        return;
    }
    const char *why = h->site_error.code ? h->site_error.text
                      : info.why[0]      ? info.why
                                         : "the model is being loaded";
    buf_printf(&x->answer, "{\"status\":\"%s\",\"error\":{\"code\":503,\"message\":",
               draining ? "draining" : "loading");
    chat_json_put_quoted(&x->answer, chat_text_of(draining ? "the server is shutting down" : why));
    buf_add_text(&x->answer, ",\"type\":\"unavailable_error\"}}");
    answer(x, 503, plain_json);
}

/* Of sequences that have begun; those in the queue hold nothing. */
static uint64_t count_kv(const struct http *h) {
    uint64_t n = 0;
    for (const struct task *t = h->tasks; t; t = t->next)
        for (uint32_t i = 0; i < t->n_submitted; i++) {
            const struct api_choice *c = &t->job->choice[i];
            uint32_t n_done = atomic_load(&t->watch[i].n_progress);
            if (t->watch[i].live && (n_done || c->answer.n_tokens))
                n += (c->answer.n_tokens ? t->job->prompt[c->prompt_i].tokens.n : n_done) +
                     c->answer.n_tokens;
        }
    return n;
}

static void answer_metrics(struct exchange *x) {
    struct http *h = x->h;
    struct metrics_now now = { .connections = h->n_conns, .jobs = h->n_tasks, .version = PLEIADES_BUILD };
    service_info(h->service, &now.info);
    service_totals(h->service, &now.totals);
    now.kv_tokens = count_kv(h);
    if (h->site) api_site_memory(h->site, &now.memory);
    now.model = h->site ? h->site->model_id : now.info.model;
    metrics_put(&h->metrics, &now, &x->answer);
    answer(x, 200, "text/plain; version=0.0.4; charset=utf-8");
}

static void answer_page(struct exchange *x) {
    char path[64];
    snprintf(path, sizeof path, "%.*s", (int)MIN(x->route.rest_len, sizeof path - 1), x->route.rest);
    const struct page_file *f = page_find(path);
    if (!f) {
        struct api_error fault = { .fault = API_FAULT_PATH };
        api_error_set(&fault, API_FAULT_PATH, "There is nothing at %s.", path);
        answer_fault(x, &fault);
        return;
    }
    buf_add(&x->answer, f->data, f->size);
    answer(x, 200, f->type);
}

static void refuse_now(struct exchange *x, enum api_fault fault, const char *text) {
    desk_refuse(x, fault, text);
    struct api_error e = x->fault;
    answer_fault(x, &e);
}

static bool is_loading(struct http *h) {
    struct service_info info;
    service_info(h->service, &info);
    return info.state == SERVICE_LOADING;
}

static void refuse_loading(struct exchange *x) {
    struct service_info info;
    char text[300];
    service_info(x->h->service, &info);
    snprintf(text, sizeof text, "not serving: %s", info.why[0] ? info.why : "the model is being loaded");
    refuse_now(x, API_FAULT_UNAVAILABLE, text);
}

static void answer_models(struct exchange *x) {
    struct chat_text id = { x->route.rest, x->route.rest_len };
    struct api_error fault = { .fault = API_FAULT_MODEL, .param = "model" };
    if (!x->h->site) {
        refuse_loading(x);
    } else if (x->route.endpoint == API_MODELS) {
        api_site_put_models(x->h->site, &x->answer);
        answer(x, 200, plain_json);
    } else if (api_site_put_model(x->h->site, id, &x->answer) == 0) {
        answer(x, 200, plain_json);
    } else {
        api_error_set(&fault, API_FAULT_MODEL, "The model `%.*s` does not exist.",
                      (int)MIN(id.len, 100), id.data);
        answer_fault(x, &fault);
    }
}

/* ---- tasks ---- */

static void run_task(struct http_piece *p) {
    struct task *t = (struct task *)(void *)p;
    if (t->endpoint == API_STATUS) {
        struct err e = { .text = "" };
        t->rc = service_status(t->h->service, &t->status, &e);
        if (t->rc < 0) api_error_from(&t->fault, &e);
        return;
    }
    struct api_job_input in = { t->endpoint,
                                { t->body.size ? t->body.data : "", t->body.size },
                                t->request_id,
                                t->random,
                                t->now_s };
    t->job = api_job_prepare(t->site, &in, &t->fault);
    buf_deinit(&t->body);
}

static void task_new(struct exchange *x) {
    struct http *h = x->h;
    struct task *t = xcalloc(1, sizeof *t);
    *t = (struct task){ .h = h, .x = x, .endpoint = x->route.endpoint, .site = h->site, .working = true };
    t->piece.run = run_task;
    t->random = rng_u64(&h->rng);
    t->now_s = (int64_t)(clock_wall_ms() / 1000);
    snprintf(t->request_id, sizeof t->request_id, "%s", x->request_id);
    t->body = x->body;                            /* changes its owner */
    buf_init(&x->body, 1);
    buf_init(&t->status, API_OUT_BYTES_MAX);
    t->next = h->tasks;
    if (h->tasks) h->tasks->prev = t;
    h->tasks = t;
    h->n_tasks++;
    atomic_fetch_add(&h->n_busy, 1);
    x->task = t;
    x->state = X_WORK;
    http_work_put(h->work, &t->piece);
}

static void task_maybe_free(struct task *t) {
    if (t->x || t->working || t->n_live) return;
    struct http *h = t->h;
    if (t->prev) t->prev->next = t->next;
    else h->tasks = t->next;
    if (t->next) t->next->prev = t->prev;
    for (uint32_t i = 0; t->watch && i < t->job->n_choice; i++) free(t->watch[i].last);
    free(t->watch);
    api_job_free(t->job);
    buf_deinit(&t->body);
    buf_deinit(&t->status);
    free(t);
    h->n_tasks--;
    atomic_fetch_sub(&h->n_busy, 1);
}

void desk_begin(struct exchange *x) {
    struct http *h = x->h;
    x->whole_ns = h->now_ns;
    if (x->rejected) {
        struct api_error fault = x->fault;
        answer_fault(x, &fault);
        return;
    }
    if (x->route.preflight) {
        answer(x, 204, NULL);
        return;
    }
    switch (x->route.endpoint) {
    case API_HEALTH: answer_health(x); return;
    case API_METRICS: answer_metrics(x); return;
    case API_PAGE: answer_page(x); return;
    case API_MODELS:
    case API_MODEL: answer_models(x); return;
    default: break;
    }
    bool stopping = atomic_load(&h->draining) || atomic_load(&h->stopping);
    if (x->route.endpoint != API_STATUS && stopping)
        refuse_now(x, API_FAULT_UNAVAILABLE, "the server is shutting down");
    else if (x->route.endpoint != API_STATUS && (!h->site || is_loading(h))) refuse_loading(x);
    else if (h->n_tasks >= (uint32_t)h->limit.jobs)
        refuse_now(x, API_FAULT_BUSY, "too many requests at once");
    else task_new(x);
}

/* ---- choices under way ---- */

static void on_token(void *ctx, const struct service_token *t);
static void on_progress(void *ctx, uint32_t n_done, uint32_t n_prompt);
static void on_done(void *ctx, const struct service_done *d);

static void cancel(struct task *t, struct watch *w) {
    if (!w->live || w->cancelled) return;
    w->cancelled = true;
    service_cancel(t->h->service, w->ticket);
}

static void cancel_all(struct task *t) {
    for (uint32_t i = 0; i < t->n_submitted; i++) cancel(t, &t->watch[i]);
}

static int submit(struct task *t, uint32_t i, struct err *e) {
    struct watch *w = &t->watch[i];
    struct service_request r;
    api_job_request(t->job, i, &r);
    w->task = t;
    w->index = i;
    w->submitted_ns = w->token_ns = t->h->now_ns;
    if (!w->last) w->last = xcalloc(1, sizeof *w->last);
    r.deadline_ms = (uint32_t)t->h->limit.request_ms;
    r.listener = (struct service_listener){ on_token, on_progress, on_done, w };
    int rc = service_submit(t->h->service, &r, &w->ticket, e);
    if (rc < 0) return rc;
    w->live = true;
    t->n_live++;
    t->n_submitted = i + 1;
    return 0;
}

/* Without a guide a choice can be submitted again, so those behind the first wait for its prompt to be
 * computed, and find it in the cache. */
static bool may_wait(const struct task *t, uint32_t i) {
    return i > 0 && !t->job->choice[i].guide;
}

static void submit_rest(struct task *t) {
    while (!t->job->finished && t->n_submitted < t->job->n_choice) {
        if (!api_job_may_begin(t->job, t->n_submitted)) return;
        struct err e = { .text = "" };
        int rc = submit(t, t->n_submitted, &e);
        if (rc == ERR_BUSY) return;               /* at the next end or tick */
        if (rc == 0) continue;
        struct api_error fault = { .fault = API_FAULT_ENGINE };
        e.code = rc;
        api_error_from(&fault, &e);
        api_job_fail(t->job, &fault);
        cancel_all(t);
    }
}

static int submit_first(struct task *t, struct err *e) {
    int rc = submit(t, 0, e);
    for (uint32_t i = 1; i < t->job->n_choice && rc == 0 && !may_wait(t, i); i++) rc = submit(t, i, e);
    if (rc < 0) cancel_all(t);
    return rc;
}

/* The job has ended: its answer in one piece, or the last bytes of its stream. */
static void finish(struct task *t) {
    struct exchange *x = t->x;
    struct api_job *j = t->job;
    if (t->counted) return;
    t->counted = true;
    cancel_all(t);
    if (!x) return;
    if (x->state == X_WAIT && j->failed) {
        if (j->fault.fault == API_FAULT_BUSY || j->fault.fault == API_FAULT_UNAVAILABLE) j->fault.retry_s = 1;
        answer_fault(x, &j->fault);
    } else if (x->state == X_WAIT) {
        buf_deinit(&x->answer);
        x->answer = j->out;                       /* changes its owner */
        buf_init(&j->out, 1);
        answer(x, 200, plain_json);
    } else if (j->failed) {
        if (!j->params.stream) api_error_put(&j->out, &j->fault, x->route.shape, x->request_id);
        x->status = api_error_status(&j->fault);  /* for the books; the client has seen 200 */
    }
    http_resume(x);
}

/* After anything that may have given bytes, an end, or a wish to cancel. */
static void settle(struct task *t) {
    struct api_job *j = t->job;
    struct exchange *x = t->x;
    for (uint32_t i = 0; i < t->n_submitted; i++)
        if (j->choice[i].wants_end || j->failed) cancel(t, &t->watch[i]);
    if (j->finished) {
        finish(t);
        return;
    }
    if (!x || x->gone || x->state != X_FLOW || j->out.size == x->n_sent) return;
    x->alive_ns = t->h->now_ns;
    if (j->out.size - x->n_sent > t->h->limit.write_bytes) {
        log_info("http", "%s: the client does not read, %zu bytes wait", x->request_id,
                 j->out.size - x->n_sent);
        cancel_all(t);
        http_cut(x);
        return;
    }
    http_resume(x);
}

static void tell_token(struct watch *w, const struct service_token *token) {
    struct task *t = w->task;
    struct metrics *m = &t->h->metrics;
    double since = (double)(t->h->now_ns - w->token_ns) / 1e9;
    if (!token->of_prompt) {
        metrics_add(token->index == 0 ? &m->first_token : &m->between_tokens, since);
        w->token_ns = t->h->now_ns;
    }
    api_job_token(t->job, w->index, token);
    if (!token->of_prompt && t->n_submitted < t->job->n_choice) submit_rest(t);
    settle(t);
}

static void tell_end(struct watch *w) {
    struct task *t = w->task;
    struct metrics *m = &t->h->metrics;
    if (w->told) return;
    w->told = true;
    w->live = false;
    t->n_live--;
    m->n_prompt += w->done.n_prompt;
    m->n_cached += w->done.n_cached;
    m->n_output += w->done.n_output;
    if (w->done.n_cached) m->n_hit++;
    else m->n_miss++;
    m->prefill_s += (double)w->done.prefill_us / 1e6;
    m->decode_s += (double)w->done.decode_us / 1e6;
    metrics_add(&m->queue, (double)w->done.queue_us / 1e6);
    api_job_done(t->job, w->index, &w->done);
    if (t->x) submit_rest(t);
    settle(t);
    task_maybe_free(t);
}

/* ---- what workers bring back ---- */

static void begin_generation(struct task *t) {
    struct exchange *x = t->x;
    struct http *h = t->h;
    struct err e = { .text = "" };
    t->watch = xcalloc(t->job->n_choice, sizeof *t->watch);
    int rc = submit_first(t, &e);
    if (rc < 0) {
        struct api_error fault = { .fault = API_FAULT_ENGINE };
        e.code = rc;
        api_error_from(&fault, &e);
        x->fault.retry_s = 0;
        if (fault.fault == API_FAULT_BUSY || fault.fault == API_FAULT_UNAVAILABLE) {
            struct service_info info;
            service_info(h->service, &info);
            fault.retry_s = metrics_retry_s(&h->metrics, &info);
        }
        if (fault.fault == API_FAULT_BUSY)
            api_error_set(&fault, API_FAULT_BUSY, "queue is full, retry in %d s", fault.retry_s);
        t->counted = t->job->finished = true;
        answer_fault(x, &fault);
    } else if (t->job->params.stream || h->config.early_headers) {
        if (t->job->params.stream) api_job_open(t->job);
        x->type = t->job->params.stream ? "text/event-stream; charset=utf-8" : plain_json;
        x->status = 200;
        x->state = X_FLOW;
        x->alive_ns = h->now_ns;
    } else {
        x->state = X_WAIT;
        return;
    }
    http_resume(x);
}

static void task_prepared(struct task *t) {
    struct exchange *x = t->x;
    t->working = false;
    if (!x) {
        task_maybe_free(t);
        return;
    }
    uncount_body(x);
    if (t->job && !t->job->ready) {
        begin_generation(t);
        return;
    }
    struct buf *out = t->endpoint == API_STATUS ? &t->status : t->job ? &t->job->out : NULL;
    if (!out || t->rc < 0) {
        answer_fault(x, &t->fault);
    } else {
        buf_deinit(&x->answer);
        x->answer = *out;
        buf_init(out, 1);
        answer(x, 200, plain_json);
    }
    http_resume(x);
}

/* ---- the site: when the model is there ---- */

struct site_piece {
    struct http_piece piece;
    struct http *h;
    struct api_site *site;
    struct err e;
};

static void make_site(struct http_piece *p) {
    struct site_piece *s = (struct site_piece *)(void *)p;
    if (api_site_new(&s->site, &s->h->site_config, &s->e) < 0) s->site = NULL;
}

static void site_made(struct site_piece *s) {
    s->h->site = s->site;
    s->h->site_in_work = false;
    if (!s->site) {
        s->h->site_error = s->e;
        log_error("http", "the model cannot be served: %s", s->e.text);
    }
    free(s);
}

void desk_open_site(struct http *h) {
    struct service_info info;
    if (h->site || h->site_in_work || h->site_error.code) return;  /* what failed once is not tried again */
    service_info(h->service, &info);
    if (!service_tokenizer(h->service)) return;   /* ready while nodes still load: serving means serving */
    struct site_piece *s = xcalloc(1, sizeof *s);
    s->piece.run = make_site;
    s->h = h;
    h->site_in_work = true;
    h->site_config.info = info;
    h->site_config.tokenizer = service_tokenizer(h->service);
    http_work_put(h->work, &s->piece);
}

/* ---- what a restart shall not lose ---- */

struct save_piece {
    struct http_piece piece;
    struct http *h;
    struct err e;
};

static void save_memory(struct http_piece *p) {
    struct save_piece *s = (struct save_piece *)(void *)p;
    api_memory_save(s->h->memory, &s->e);
}

static void memory_saved(struct save_piece *s) {
    s->h->saving = false;
    if (s->e.code < 0) log_error("http", "%s", s->e.text);
    free(s);
}

static void maybe_save(struct http *h) {
    uint64_t pause = (uint64_t)h->limit.state_ms * 1000000;
    if (h->saving || h->now_ns - h->saved_ns < pause || !api_memory_is_due(h->memory)) return;
    struct save_piece *s = xcalloc(1, sizeof *s);
    s->piece.run = save_memory;
    s->h = h;
    h->saving = true;
    h->saved_ns = h->now_ns;
    http_work_put(h->work, &s->piece);
}

/* ---- from other threads ---- */

/* Which ends came past the ring. Looked at before the ring is drained: their tokens are in it. */
static void note_ends(struct http *h) {
    for (struct task *t = h->tasks; t; t = t->next)
        for (uint32_t i = 0; i < t->n_submitted; i++) t->watch[i].end_seen = atomic_load(&t->watch[i].ended);
}

static void sweep(struct http *h) {
    for (struct task *t = h->tasks, *next; t; t = next) {
        next = t->next;
        for (uint32_t i = 0, n = t->n_submitted; i < n; i++) {
            struct watch *w = &t->watch[i];
            bool last = t->n_live == 1 && !t->x && !t->working;
            if (atomic_exchange(&w->lost, false)) {
                struct api_error fault = { .fault = API_FAULT_ENGINE };
                api_error_set(&fault, API_FAULT_ENGINE, "the endpoint could not keep up");
                api_job_fail(t->job, &fault);
                settle(t);
            }
            if (!w->live || !w->end_seen) continue;
            tell_end(w);
            if (last) break;                      /* t is gone */
        }
    }
}

void desk_drain_notes(struct http *h) {
    struct note *n;
    struct http_piece *p;
    bool look = atomic_exchange(&h->sweep, false);
    if (look) note_ends(h);
    /* In between, what was written is sent: a burst of tokens is no reader that does not read. */
    for (size_t left = look ? SIZE_MAX : HTTP_NOTES_TURN; left && (n = ring_pop(&h->notes)); left--) {
        struct watch *w = n->watch;
        if (n->is_end) {
            tell_end(w);                          /* n is the watch's own, and gone with it */
            continue;
        }
        tell_token(w, &n->token);
        free(n);
    }
    while ((p = http_work_take(h->work))) {
        if (p->run == make_site) site_made((struct site_piece *)(void *)p);
        else if (p->run == save_memory) memory_saved((struct save_piece *)(void *)p);
        else task_prepared((struct task *)(void *)p);
    }
    if (look) sweep(h);
}

/* ---- streams ---- */

struct chat_text desk_flow(struct exchange *x, bool *end) {
    const struct buf *out = &x->task->job->out;
    *end = x->task->job->finished;
    return (struct chat_text){ out->data + x->n_sent, out->size - x->n_sent };
}

void desk_flowed(struct exchange *x, size_t n) {
    struct buf *out = &x->task->job->out;
    x->n_sent += n;
    x->h->metrics.bytes_out += n;
    if (x->n_sent == out->size) {
        buf_clear(out);
        x->n_sent = 0;
    } else if (x->n_sent > out->size / 2) {       /* so that every byte is moved about once */
        buf_drop(out, x->n_sent);
        x->n_sent = 0;
    }
}

/* ---- the end of an exchange ---- */

static void count(struct exchange *x, bool complete) {
    struct metrics *m = &x->h->metrics;
    int status = complete && x->state >= X_FLOW ? x->status : 499;
    double s = (double)(x->h->now_ns - x->begin_ns) / 1e9;
    m->requests[x->route.endpoint][metrics_outcome_of(status)]++;
    if (status == 200 && api_generates(x->route.endpoint)) metrics_add(&m->request, s);
    if (complete) m->bytes_out += x->answer.size;
    if (status >= 500 && status != 503)
        log_warn("http", "%s %s %d %.3f s: %s", x->request_id, x->path, status, s,
                 job_of(x->task) ? x->task->job->fault.text : x->fault.text);
    else log_debug("http", "%s %s %d %.3f s", x->request_id, x->path, status, s);
}

void desk_leave(struct exchange *x, bool complete) {
    struct http *h = x->h;
    struct task *t = x->task;
    count(x, complete);
    uncount_body(x);
    if (t) {
        t->x = NULL;
        t->counted = true;
        if (job_of(t)) {
            t->job->finished = true;
            cancel_all(t);
        }
        task_maybe_free(t);
    }
    if (x->prev) x->prev->next = x->next;
    else h->exchanges = x->next;
    if (x->next) x->next->prev = x->prev;
    buf_deinit(&x->body);
    buf_deinit(&x->answer);
    free(x);
    h->n_exchanges--;
    atomic_fetch_sub(&h->n_busy, 1);
}

/* ---- time ---- */

static void watch_peers(struct http *h) {
    int n = 0;
    for (struct exchange *x = h->exchanges; x && n < h->limit.connections; x = x->next) {
        if (!x->suspended || x->gone) continue;
        h->peers.fd[n] = x->conn->fd;
        h->peers.x[n++] = x;
    }
    http_peers_left(h->peers.fd, h->peers.left, n, h->peers.poll);
    for (int i = 0; i < n; i++) {
        struct exchange *x = h->peers.x[i];
        if (!h->peers.left[i]) continue;
        x->gone = true;
        if (job_of(x->task)) cancel_all(x->task);      /* at once: the shell comes round later */
        http_resume(x);
    }
}

static bool waited_too_long(const struct task *t) {
    const struct watch *w = &t->watch[0];
    uint64_t limit = (uint64_t)t->h->limit.queue_ms * 1000000;
    return limit && t->n_submitted && w->live && w->token_ns == w->submitted_ns &&
           !atomic_load(&w->n_progress_of) && t->h->now_ns - w->submitted_ns > limit;
}

static void tick_task(struct task *t) {
    struct exchange *x = t->x;
    struct api_job *j = job_of(t);
    struct http *h = t->h;
    if (!x || !j || !t->watch || j->finished) return;
    if (t->n_submitted < j->n_choice && t->watch[0].told) submit_rest(t);
    if (waited_too_long(t)) {
        struct api_error fault = { .fault = API_FAULT_BUSY };
        api_error_set(&fault, API_FAULT_BUSY, "waited in the queue for %d ms", h->limit.queue_ms);
        api_job_fail(j, &fault);
    } else if (x->state == X_FLOW && h->now_ns - x->alive_ns > (uint64_t)h->limit.keep_alive_ms * 1000000) {
        api_job_progress(j, atomic_load(&t->watch[0].n_progress), atomic_load(&t->watch[0].n_progress_of));
        x->alive_ns = h->now_ns;
        if (j->params.stream) api_job_alive(j);
        else buf_add_char(&j->out, '\n');
    }
    settle(t);
}

void desk_tick(struct http *h) {
    desk_open_site(h);
    maybe_save(h);
    watch_peers(h);
    for (struct task *t = h->tasks, *next; t; t = next) {
        next = t->next;
        tick_task(t);
    }
}

void desk_stop(struct http *h, bool at_once) {
    struct api_error fault = { .fault = API_FAULT_UNAVAILABLE };
    api_error_set(&fault, API_FAULT_UNAVAILABLE, "the server is shutting down");
    for (struct task *t = h->tasks, *next; t; t = next) {
        next = t->next;
        if (!job_of(t)) continue;
        api_job_fail(t->job, &fault);
        settle(t);
    }
    for (struct exchange *x = h->exchanges; x && at_once; x = x->next) http_cut(x);
}

/* ---- on the service's loop thread ---- */

static void on_token(void *ctx, const struct service_token *t) {
    struct watch *w = ctx;
    struct http *h = w->task->h;
    struct note *n = malloc(sizeof *n);
    if (n) *n = (struct note){ w, false, *t };
    if (!n || !ring_push(&h->notes, n)) {
        free(n);
        atomic_store(&w->lost, true);
        atomic_store(&h->sweep, true);
    }
    http_wake(h);
}

static void on_progress(void *ctx, uint32_t n_done, uint32_t n_prompt) {
    struct watch *w = ctx;
    atomic_store(&w->n_progress, n_done);
    atomic_store(&w->n_progress_of, n_prompt);
}

/* The watch may be gone as soon as its end is known, so nothing of it is touched afterwards. */
static void on_done(void *ctx, const struct service_done *d) {
    struct watch *w = ctx;
    struct http *h = w->task->h;
    w->done = *d;
    *w->last = (struct note){ .watch = w, .is_end = true };
    if (!ring_push(&h->notes, w->last)) {
        atomic_store(&w->ended, true);
        atomic_store(&h->sweep, true);
    }
    http_wake(h);
}
