#include "cli/generate_remote.h"

#include "cli/http_client.h"
#include "common/sys/clock.h"

#include <jansson.h>
#include <stdio.h>

enum { TEXT_MAX = 256 << 20 };

struct run {
    const struct generate_remote *r;
    struct buf tokens;                             /* JSON array elements */
    uint32_t n;
    uint64_t start_ns, first_ns, last_ns;
    bool finished;
};

static void make_request(const struct generate_remote *r, struct buf *out) {
    const struct sampler_params *p = r->params;
    buf_add_text(out, "{\"stream\": true, \"return_token_ids\": true, \"prompt\": [");
    for (size_t i = 0; i < r->prompt->n; i++) buf_printf(out, "%s%d", i ? "," : "", r->prompt->ids[i]);
    buf_printf(out,
               "], \"max_tokens\": %d, \"temperature\": %.9g, \"top_p\": %.9g, \"min_p\": %.9g, "
               "\"top_k\": %d, ",
               r->n_new, (double)p->temperature, (double)p->top_p, (double)p->min_p, p->top_k);
    buf_printf(out, "\"repetition_penalty\": %.9g, \"frequency_penalty\": %.9g, \"presence_penalty\": %.9g, ",
               (double)p->repetition, (double)p->frequency, (double)p->presence);
    buf_printf(out, "\"seed\": %llu, \"ignore_eos\": %s", (unsigned long long)p->seed,
               r->stop_at_eos ? "false" : "true");
    if (r->json) buf_printf(out, ", \"logprobs\": %d", p->n_top);
    buf_add_char(out, '}');
}

static int take_token(struct run *s, const json_t *id, const json_t *detail) {
    s->last_ns = clock_now_ns();
    if (s->n == 0) s->first_ns = s->last_ns;
    if (s->r->json) {
        const json_t *top = json_object_get(detail, "top"), *t;
        size_t i;
        buf_printf(&s->tokens, "%s\n    {\"id\": %lld, \"logprob\": %.9g, \"top\": [", s->n ? "," : "",
                   (long long)json_integer_value(id), json_number_value(json_object_get(detail, "logprob")));
        json_array_foreach((json_t *)top, i, t)
            buf_printf(&s->tokens, "%s{\"id\": %lld, \"logprob\": %.9g}", i ? ", " : "",
                       (long long)json_integer_value(json_object_get(t, "id")),
                       json_number_value(json_object_get(t, "logprob")));
        buf_add_text(&s->tokens, "]}");
    } else {
        printf(s->n ? " %lld" : "%lld", (long long)json_integer_value(id));
        fflush(stdout);
    }
    s->n++;
    return s->tokens.rc;
}

/* A token may be the byte 0, also as a key of top_logprobs, which jansson takes for damage: shown as U+2400.
 * Text is not what we are after here. */
static json_t *parse(const char *data, size_t len) {
    static const char zero[] = "\\u0000";
    struct buf copy;
    buf_init(&copy, TEXT_MAX);
    buf_add(&copy, data, len);
    for (char *at = copy.data; copy.rc == 0 && at && (at = strstr(at, zero)); at += sizeof zero - 1)
        memcpy(at, "\\u2400", sizeof zero - 1);
    json_t *d = copy.rc == 0 ? json_loadb(copy.data, copy.size, 0, NULL) : NULL;
    buf_deinit(&copy);
    return d;
}

static int on_event(void *ctx, const char *data, size_t len, struct err *e) {
    struct run *s = ctx;
    if (len == 6 && memcmp(data, "[DONE]", 6) == 0) return HTTP_SSE_LAST;
    json_t *d = parse(data, len);
    const char *wrong = json_string_value(json_object_get(json_object_get(d, "error"), "message"));
    json_t *choice = json_array_get(json_object_get(d, "choices"), 0), *id;
    const json_t *details = json_object_get(choice, "token_details");
    size_t i;
    int rc = 0;
    if (wrong) rc = err_set(e, ERR_PEER, "%s", wrong);
    else if (!json_is_object(d)) rc = err_set(e, ERR_CORRUPT, "the endpoint sent something else than JSON");
    json_array_foreach(json_object_get(choice, "token_ids"), i, id)
        if (rc == 0 && (rc = take_token(s, id, json_array_get(details, i))) < 0)
            err_set(e, rc, "the answer is too long");
    if (json_is_string(json_object_get(choice, "finish_reason"))) s->finished = true;
    json_decref(d);
    return rc;
}

static void print_json(const struct run *s) {
    double prefill = (double)(s->first_ns - s->start_ns) / 1e9,
           decode = (double)(s->last_ns - s->first_ns) / 1e9;
    printf("{\n  \"prompt_tokens\": %zu,\n  \"tokens\": [%s\n  ],\n", s->r->prompt->n,
           s->tokens.data ? s->tokens.data : "");
    printf("  \"timings\": {\"load_s\": 0, \"prefill_s\": %.6f, \"prefill_tokens_per_s\": %.3f, "
           "\"decode_s\": %.6f, "
           "\"decode_tokens_per_s\": %.3f}\n}\n",
           prefill, prefill > 0 ? (double)s->r->prompt->n / prefill : 0, decode,
           s->n > 1 && decode > 0 ? (s->n - 1) / decode : 0);
}

int generate_remote(const struct generate_remote *r, struct err *e) {
    char url[512];
    struct http_client *client;
    struct buf request;
    struct run s = { .r = r };
    snprintf(url, sizeof url, "%s%s", strstr(r->cluster, "://") ? "" : "http://", r->cluster);
    struct http_client_options o = { .url = url, .api_key_file = r->api_key_file, .ca_file = r->ca_file };
    int rc = http_client_new(&client, &o, e);
    if (rc < 0) return rc;
    buf_init(&request, TEXT_MAX);
    buf_init(&s.tokens, TEXT_MAX);
    make_request(r, &request);
    s.start_ns = clock_now_ns();
    rc = http_client_stream(client, "/completions", &request, on_event, &s, e);
    if (rc >= 0 && !s.finished) rc = err_set(e, ERR_PEER, "the answer was cut off");
    if (rc >= 0 && r->json) print_json(&s);
    if (!r->json && s.n) putchar('\n');
    buf_deinit(&request);
    buf_deinit(&s.tokens);
    http_client_free(client);
    return rc;
}
