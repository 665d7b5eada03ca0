/* api_params - see the header. */
#include "coordinator/api_params.h"

#include <math.h>
#include <stdlib.h>

struct reader {
    struct api_params *p;
    json_t *root;
    enum api_endpoint endpoint;
    const struct api_site *site;
    struct arena *arena;
    struct api_error *fault;
};

static int wrong(struct reader *r, const char *field, const char *what) {
    r->fault->param = field;
    return api_error_set(r->fault, API_FAULT_INVALID, "%s must be %s", field, what);
}

/* ---- one value ---- */

/* 1 and the value, 0 absent, or the error. */
static int read_number(struct reader *r, const char *field, double lo, double hi, double *out) {
    const json_t *v = api_json_get(r->root, field);
    if (!v) return 0;
    double x = json_number_value(v);
    if (!json_is_number(v)) return wrong(r, field, "a number");
    if (!(x >= lo && x <= hi)) {
        r->fault->param = field;
        return api_error_set(r->fault, API_FAULT_INVALID, "%s is %g, must be %g to %g", field, x, lo, hi);
    }
    *out = x;
    return 1;
}

static int read_whole(struct reader *r, const char *field, double lo, double hi, int64_t *out) {
    double x = 0;
    int rc = read_number(r, field, lo, hi, &x);
    if (rc <= 0) return rc;
    if (x != floor(x)) return wrong(r, field, "a whole number");
    *out = (int64_t)x;
    return 1;
}

static int read_bool(struct reader *r, const char *field, bool *out) {
    int rc = api_json_bool(r->root, field, out, NULL);
    return rc < 0 ? wrong(r, field, "true or false") : rc;
}

/* ---- sampling ---- */

static int read_float(struct reader *r, const char *field, double lo, double hi, float *out) {
    double x = 0;
    int rc = read_number(r, field, lo, hi, &x);
    if (rc == 1) *out = (float)x;
    return rc;
}

static int read_seed(struct reader *r) {
    const json_t *v = api_json_get(r->root, "seed");
    if (!v) return 0;
    if (json_is_integer(v)) r->p->sampling.seed = (uint64_t)json_integer_value(v);
    else if (json_is_real(v) && json_real_value(v) == floor(json_real_value(v)) &&
             fabs(json_real_value(v)) < 9.2e18)
        r->p->sampling.seed = (uint64_t)(int64_t)json_real_value(v);
    else return wrong(r, "seed", "a whole number of 64 bits");
    return 0;
}

static int compare_bias(const void *a, const void *b) {
    int32_t x = ((const struct sampler_bias *)a)->id, y = ((const struct sampler_bias *)b)->id;
    return (x > y) - (x < y);
}

/* "50256" -> 50256, or -1. */
static int32_t read_id(const char *text, uint32_t n_vocab) {
    char *end;
    if (*text < '0' || *text > '9') return -1;
    unsigned long id = strtoul(text, &end, 10);
    return *end || id >= n_vocab ? -1 : (int32_t)id;
}

static int read_bias(struct reader *r) {
    json_t *map = api_json_get(r->root, "logit_bias"), *value;
    const char *key;
    if (!map) return 0;
    if (!json_is_object(map)) return wrong(r, "logit_bias", "an object of token ids");
    size_t n = json_object_size(map);
    if (n > API_BIAS_MAX) return wrong(r, "logit_bias", "shorter");
    struct sampler_bias *bias = arena_array(r->arena, n + 1, sizeof *bias);
    if (!bias) return wrong(r, "logit_bias", "smaller");
    size_t i = 0;
    json_object_foreach(map, key, value) {
        int32_t id = read_id(key, r->site->n_vocab);
        double x = json_number_value(value);
        if (id < 0) return wrong(r, "logit_bias", "an object whose keys are token ids of this model");
        if (!json_is_number(value) || !(x >= -100 && x <= 100))
            return wrong(r, "logit_bias", "an object whose values are -100 to 100");
        bias[i++] = (struct sampler_bias){ id, (float)x };
    }
    qsort(bias, n, sizeof *bias, compare_bias);
    size_t kept = 0;                              /* "7" and "07" are one token: the last one counts */
    for (i = 0; i < n; i++) {
        if (kept && bias[kept - 1].id == bias[i].id) kept--;
        bias[kept++] = bias[i];
    }
    r->p->sampling.bias = bias;
    r->p->sampling.n_bias = (int)kept;
    return 0;
}

static int read_sampling(struct reader *r) {
    struct sampler_params *s = &r->p->sampling;
    int64_t top_k = s->top_k;
    double t_max = r->endpoint == API_MESSAGES ? 1 : 2;
    int rc = read_float(r, "temperature", 0, t_max, &s->temperature);
    if (rc >= 0) rc = read_float(r, "top_p", 1e-9, 1, &s->top_p);
    if (rc >= 0) rc = read_float(r, "min_p", 0, 1, &s->min_p);
    if (rc >= 0) rc = read_whole(r, "top_k", -1, INT32_MAX, &top_k);
    if (rc >= 0) rc = read_float(r, "frequency_penalty", -2, 2, &s->frequency);
    if (rc >= 0) rc = read_float(r, "presence_penalty", -2, 2, &s->presence);
    if (rc >= 0) rc = read_float(r, "repetition_penalty", 1e-3, 1e3, &s->repetition);
    if (rc >= 0) rc = read_seed(r);
    if (rc >= 0) rc = read_bias(r);
    s->top_k = (int32_t)MAX(top_k, 0);
    return rc;
}

/* ---- limits and choices ---- */

static int read_limit(struct reader *r) {
    static const char *const fields[] = { "max_tokens", "max_completion_tokens", "max_output_tokens" };
    bool any = false, echo = json_is_true(json_object_get(r->root, "echo"));
    /* Nothing new behind an echo: how likely a text is. One token is computed all the same, for nobody. */
    double least = r->endpoint == API_COMPLETIONS && echo ? 0 : 1;
    r->p->max_tokens = r->site->max_tokens;
    for (size_t i = 0; i < COUNT_OF(fields); i++) {
        int64_t n = 0;
        int rc = read_whole(r, fields[i], least, 1e15, &n);
        if (rc < 0) return rc;
        if (rc == 0) continue;
        if (n == 0) r->p->nothing_new = true;
        uint32_t limit = (uint32_t)MAX(MIN(n, UINT32_MAX), 1);
        r->p->max_tokens = any ? MIN(r->p->max_tokens, limit) : limit;
        any = true;
    }
    return 0;
}

static int read_choices(struct reader *r) {
    int64_t n = 1, best;
    if (r->endpoint != API_CHAT && r->endpoint != API_COMPLETIONS) return 0;
    int rc = read_whole(r, "n", 1, API_CHOICES_MAX, &n);
    if (rc < 0) return rc;
    best = n;
    rc = read_whole(r, "best_of", 1, API_CHOICES_MAX, &best);
    if (rc >= 0 && best != n) return wrong(r, "best_of", "equal to n");
    r->p->n = (uint32_t)n;
    return rc;
}

static int add_stop(struct reader *r, const char *field, const json_t *text) {
    if (!json_is_string(text)) return wrong(r, field, "a string or an array of strings");
    if (!json_string_length(text)) return 0;      /* stops nothing */
    if (r->p->n_stops == API_STOPS_MAX) return wrong(r, field, "at most 64 strings");
    struct chat_text t = api_json_text(text);
    char *copy = arena_text(r->arena, t.data, t.len);
    if (!copy) return wrong(r, field, "shorter");
    r->p->stops[r->p->n_stops++] = (struct chat_text){ copy, t.len };
    return 0;
}

static int read_stops(struct reader *r) {
    const char *field = r->endpoint == API_MESSAGES ? "stop_sequences" : "stop";
    const json_t *v = api_json_get(r->root, field);
    if (!v) return 0;
    if (!json_is_array(v)) return add_stop(r, field, v);
    for (size_t i = 0; i < json_array_size(v); i++) {
        int rc = add_stop(r, field, json_array_get(v, i));
        if (rc < 0) return rc;
    }
    return 0;
}

/* ---- log-probabilities ---- */

static bool includes(const json_t *root, const char *what) {
    const json_t *list = json_object_get(root, "include");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        if (json_is_string(entry) && strcmp(json_string_value(entry), what) == 0) return true;
    }
    return false;
}

static int read_logprobs(struct reader *r) {
    struct sampler_params *s = &r->p->sampling;
    int64_t n = 0;
    int rc = 0;
    if (r->endpoint == API_COMPLETIONS) {
        if (json_is_false(json_object_get(r->root, "logprobs"))) return 0;
        rc = read_whole(r, "logprobs", 0, 5, &n);
        s->logprobs = rc == 1;
    } else if (r->endpoint == API_CHAT) {
        rc = read_bool(r, "logprobs", &s->logprobs);
        if (rc >= 0) rc = read_whole(r, "top_logprobs", 0, SAMPLER_TOP_MAX, &n);
        if (rc == 1 && n && !s->logprobs) return wrong(r, "top_logprobs", "used with logprobs: true");
    } else if (r->endpoint == API_RESPONSES) {
        rc = read_whole(r, "top_logprobs", 0, SAMPLER_TOP_MAX, &n);
        s->logprobs = includes(r->root, "message.output_text.logprobs");
    }
    if (rc >= 0 && s->logprobs) s->n_top = (int)n;
    return rc;
}

/* ---- what only one dialect has ---- */

static int read_stream(struct reader *r) {
    const json_t *options = api_json_get(r->root, "stream_options");
    int rc = read_bool(r, "stream", &r->p->stream);
    r->p->include_usage = json_is_true(json_object_get(options, "include_usage"));
    return rc;
}

static int read_others(struct reader *r) {
    const json_t *v;
    if (r->endpoint == API_COMPLETIONS) {
        if (api_json_get(r->root, "suffix")) return wrong(r, "suffix", "absent: filling in is not offered");
        int rc = read_bool(r, "return_token_ids", &r->p->token_ids);
        if (rc >= 0) rc = read_bool(r, "echo", &r->p->echo);
        r->p->scores = r->p->echo && r->p->sampling.logprobs;
        return rc;
    }
    if (r->endpoint == API_RESPONSES) {
        const json_t *reasoning = api_json_get(r->root, "reasoning");
        r->p->summary = api_json_get(reasoning, "summary") != NULL;
        r->p->sealed = includes(r->root, "reasoning.encrypted_content");
    }
    if (r->endpoint != API_CHAT) return 0;
    if (api_json_get(r->root, "audio")) return wrong(r, "audio", "absent: only text is supported");
    v = api_json_get(r->root, "modalities");
    for (size_t i = 0; i < json_array_size(v); i++) {
        const json_t *entry = json_array_get(v, i);
        if (!json_is_string(entry) || strcmp(json_string_value(entry), "text") != 0)
            return wrong(r, "modalities", "[\"text\"]");
    }
    return 0;
}

int api_params_read(struct api_params *p, json_t *root, enum api_endpoint endpoint,
                    const struct api_site *site, uint64_t random, struct arena *arena,
                    struct api_error *fault) {
    struct reader r = { p, root, endpoint, site, arena, fault };
    *p = (struct api_params){ .n = 1 };
    sampler_params_init(&p->sampling);
    p->sampling.temperature = (float)site->temperature;
    p->sampling.top_p = (float)site->top_p;
    p->sampling.min_p = (float)site->min_p;
    p->sampling.top_k = site->top_k;
    p->sampling.seed = random;
    int rc = read_sampling(&r);
    if (rc >= 0) rc = read_limit(&r);
    if (rc >= 0) rc = read_choices(&r);
    if (rc >= 0 && endpoint != API_RESPONSES) rc = read_stops(&r);
    if (rc >= 0) rc = read_logprobs(&r);
    if (rc >= 0) rc = read_stream(&r);
    if (rc >= 0) rc = read_bool(&r, "ignore_eos", &p->ignore_end);
    if (rc >= 0) rc = read_others(&r);
    return MIN(rc, 0);
}
