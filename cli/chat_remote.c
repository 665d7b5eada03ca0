/* chat_remote - answers from an endpoint: POST /v1/chat/completions as a stream.
 *
 * The conversation is sent anew each time; the server finds what it has computed of it. A busy server is
 * asked again when it says so. Whatever it sends is checked; its texts reach the terminal through the
 * screen's filter only. */
#include "cli/chat_source.h"

#include "cli/http_client.h"
#include "common/sys/clock.h"
#include "common/sys/term.h"
#include "coordinator/api_json.h"

#include <stdlib.h>

enum { REQUEST_BYTES_MAX = 512 << 20, TRIES = 4, RETRY_SECONDS_MAX = 60 };

struct remote {
    struct chat_source base;                      /* first: a source is one of us */
    struct http_client *client;
    struct sampler_params params;
    int n_new_max;
    char *model;                                  /* what to ask for; NULL: what the server has */
    const volatile sig_atomic_t *stop;
};

/* The answer while it comes. */
struct incoming {
    struct remote *r;
    struct chat_answer *answer;
    uint64_t start_ns, first_ns, last_ns;         /* 0: not yet */
    bool finished;                                /* a finish_reason was there */
    bool told;                                    /* the line of progress stands on the terminal */
};

/* Signs of life tell how much of the prompt is computed. */
static void on_comment(void *ctx, const char *text) {
    struct incoming *in = ctx;
    unsigned done, total;
    if (in->first_ns || !term_is_terminal(stderr) ||
        sscanf(text, "prefill %9u/%9u", &done, &total) != 2)
        return;
    fprintf(stderr, "\rprompt: %u of %u tokens\033[K", done, total);
    fflush(stderr);
    in->told = true;
}

static void clear_progress(struct incoming *in) {
    if (in->told) fputs("\r\033[K", stderr);
    in->told = false;
}

/* ---- the request ---- */

static void put_sampling(const struct remote *r, struct buf *out) {
    const struct sampler_params *p = &r->params;
    buf_printf(out, ", \"temperature\": %g, \"top_p\": %g", (double)p->temperature, (double)p->top_p);
    if (p->min_p > 0) buf_printf(out, ", \"min_p\": %g", (double)p->min_p);
    if (p->seed) buf_printf(out, ", \"seed\": %llu", (unsigned long long)(p->seed & INT64_MAX));
    if (r->n_new_max) buf_printf(out, ", \"max_tokens\": %d", r->n_new_max);
}

static int put_request(const struct remote *r, const struct chat_talk *talk, enum chat_thinking thinking,
                       struct buf *out, struct err *e) {
    buf_add_text(out, "{\"stream\": true, \"stream_options\": {\"include_usage\": true}, \"thinking\": ");
    buf_printf(out, "{\"type\": \"%s\"}", thinking == CHAT_THINKING_OFF ? "disabled" : "enabled");
    if (thinking == CHAT_THINKING_MAX) buf_add_text(out, ", \"reasoning_effort\": \"max\"");
    if (r->model) {
        buf_add_text(out, ", \"model\": ");
        chat_json_put_quoted(out, chat_text_of(r->model));
    }
    put_sampling(r, out);
    buf_add_text(out, ", \"messages\": ");
    chat_talk_put_json(talk, out);
    buf_add_char(out, '}');
    return out->rc < 0 ? err_set(e, out->rc, "no memory for the request") : 0;
}

/* ---- the answer ---- */

static int take_text(struct incoming *in, const json_t *delta, const char *key, enum chat_part part) {
    struct chat_text text = { 0 };
    if (api_json_string(delta, key, &text, NULL) != 1 || text.len == 0) return 0;
    clear_progress(in);
    in->last_ns = clock_now_ns();
    if (!in->first_ns) in->first_ns = in->last_ns;
    return chat_answer_add(in->answer, part, text.data, text.len);
}

static uint64_t count_of(const json_t *object, const char *key) {
    const json_t *value = api_json_get(object, key);
    double number = json_is_number(value) ? json_number_value(value) : 0;
    return number > 0 && number < 1e15 ? (uint64_t)number : 0;
}

static void take_usage(struct incoming *in, const json_t *usage) {
    struct chat_answer *a = in->answer;
    a->n_prompt = count_of(usage, "prompt_tokens");
    a->n_new = count_of(usage, "completion_tokens");
    a->n_cached = count_of(api_json_get(usage, "prompt_tokens_details"), "cached_tokens");
    a->n_cached = MIN(a->n_cached, a->n_prompt);
    in->r->base.n_context = a->n_prompt + a->n_new;
}

static int take_choice(struct incoming *in, const json_t *choice) {
    json_t *delta = NULL;
    if (api_json_object(choice, "delta", &delta, NULL) < 0) return 0;
    int rc = take_text(in, delta, "reasoning_content", CHAT_PART_REASONING);
    if (rc == 0) rc = take_text(in, delta, "content", CHAT_PART_CONTENT);
    if (json_is_string(json_object_get(choice, "finish_reason"))) in->finished = true;
    if (api_json_is(choice, "finish_reason", "length")) in->answer->cut = true;
    return rc;
}

static int server_error(const json_t *error, struct err *e) {
    struct chat_text text = chat_text_of("the server gave up without saying why");
    api_json_string(error, "message", &text, NULL);
    return err_set(e, ERR_PEER, "%.*s", (int)MIN(text.len, (size_t)400), text.data);
}

static int on_event(void *ctx, const char *data, size_t len, struct err *e) {
    struct incoming *in = ctx;
    json_t *root = NULL;
    if (strcmp(data, "[DONE]") == 0) return HTTP_SSE_LAST;
    int rc = api_json_parse(&root, (struct chat_text){ data, len }, e);
    if (rc < 0) return err_wrap(e, ERR_PEER, "an event of the answer");
    json_t *error = api_json_get(root, "error"), *usage = api_json_get(root, "usage");
    if (error) rc = server_error(error, e);
    if (usage) take_usage(in, usage);
    const json_t *choice = json_array_get(api_json_get(root, "choices"), 0);
    if (rc == 0 && choice) rc = take_choice(in, choice);
    if (rc < 0 && !error) err_set(e, rc, "the answer is longer than %d MiB", CHAT_ANSWER_BYTES_MAX >> 20);
    json_decref(root);
    return rc;
}

/* Waits until a busy server wants to be asked again. False: it does not, or we are to stop. */
static bool wait_for_server(const struct remote *r, int rc, int try_i, const struct err *e) {
    int seconds = http_client_retry_after(r->client);
    if ((rc != ERR_BUSY && rc != ERR_STALE) || seconds < 0 || seconds > RETRY_SECONDS_MAX ||
        try_i + 1 == TRIES)
        return false;
    struct buf line;
    buf_init(&line, 4 * ERR_TEXT_MAX);
    fprintf(stderr, "%s; again in %d s\n", chat_screen_line(&line, e->text, ERR_TEXT_MAX), MAX(seconds, 1));
    buf_deinit(&line);
    for (int ms = 0; ms < MAX(seconds, 1) * 1000 && !*r->stop; ms += 100) clock_sleep_ms(100);
    return !*r->stop;
}

static int stream(struct remote *r, const struct buf *request, struct incoming *in, struct err *e) {
    int rc = 0;
    struct err why = { 0 };
    for (int i = 0; i < TRIES; i++) {
        in->start_ns = clock_now_ns();
        rc = http_client_stream(r->client, "/chat/completions", request, on_event, in, &why);
        clear_progress(in);
        if (rc == 0 || in->first_ns || !wait_for_server(r, rc, i, &why)) break;
    }
    if (rc == 0 && !in->finished) rc = err_set(&why, ERR_PEER, "the connection ended before the answer did");
    if (rc < 0 && e) *e = why;
    return rc;
}

static int remote_answer(struct chat_source *s, const struct chat_talk *talk, enum chat_thinking thinking,
                         struct chat_answer *a, struct err *e) {
    struct remote *r = (struct remote *)s;
    struct incoming in = { .r = r, .answer = a };
    struct buf request;
    buf_init(&request, REQUEST_BYTES_MAX);
    int rc = put_request(r, talk, thinking, &request, e);
    if (rc == 0) rc = stream(r, &request, &in, e);
    if (rc < 0 && *r->stop) {
        a->stopped = true;
        rc = 0;
    }
    if (in.first_ns) {
        a->prompt_seconds = (double)(in.first_ns - in.start_ns) / 1e9;
        a->new_seconds = (double)(in.last_ns - in.first_ns) / 1e9;
    }
    buf_deinit(&request);
    return rc;
}

/* ---- open and close ---- */

static void remote_close(struct chat_source *s) {
    struct remote *r = (struct remote *)s;
    http_client_free(r->client);
    free(r->model);
    free(r);
}

/* Which model there is, and how much it remembers: the first of the list, or the one that was named. */
static int read_models(struct remote *r, struct err *e) {
    struct buf body;
    json_t *root = NULL, *data = NULL;
    struct chat_text id = { 0 };
    buf_init(&body, HTTP_CLIENT_BODY_MAX);
    int rc = http_client_get(r->client, "/models", &body, e);
    if (rc == 0) rc = api_json_parse(&root, (struct chat_text){ body.data, body.size }, e);
    if (rc == 0 && (!json_is_object(root) || api_json_array(root, "data", &data, NULL) < 0 ||
                    json_array_size(data) == 0))
        rc = err_set(e, ERR_PEER, "the server lists no models");
    for (size_t i = 0; rc == 0 && i < json_array_size(data); i++) {
        const json_t *model = json_array_get(data, i);
        bool wanted = r->model ? api_json_is(model, "id", r->model) : i == 0;
        if (!wanted || api_json_string(model, "id", &id, NULL) != 1) continue;
        r->base.n_context_max = count_of(model, "context_length");
        if (!r->model && !(r->model = strndup(id.data, id.len))) rc = err_set(e, ERR_NOMEM, "no memory");
    }
    if (rc == 0) snprintf(r->base.name, sizeof r->base.name, "%s", r->model ? r->model : "?");
    json_decref(root);
    buf_deinit(&body);
    return rc;
}

int chat_remote_open(struct chat_source **out, const struct chat_source_options *o, struct err *e) {
    struct http_client_options client = { o->url, o->api_key_file, o->ca_file, o->stop };
    struct remote *r = calloc(1, sizeof *r);
    if (!r) return err_set(e, ERR_NOMEM, "no memory for a connection");
    r->base.answer = remote_answer;
    r->base.close = remote_close;
    r->params = o->sampling;
    r->n_new_max = o->n_new_max;
    r->stop = o->stop;
    int rc = http_client_new(&r->client, &client, e);
    if (rc == 0) http_client_on_comment(r->client, on_comment);
    if (rc == 0 && o->engine.model && !(r->model = strdup(o->engine.model)))
        rc = err_set(e, ERR_NOMEM, "no memory for a name");
    if (rc == 0) rc = read_models(r, e);
    if (rc < 0) remote_close(&r->base);
    else *out = &r->base;
    return rc;
}
