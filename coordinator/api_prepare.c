/* api_prepare - from the body of a request to choices that can be submitted; see api_job.h.
 *
 * Parse, read the dialect, read the parameters, put remembered calls in their places, render, tokenize,
 * check against the context, make the guides. The parsed body is gone afterwards: what the answer needs
 * of it is copied. */
#include "coordinator/api_job.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/model/chat.h"
#include "coordinator/api_guide.h"

/* ---- errors ---- */

/* The field that an error's text begins with. */
static const char *field_of(const char *text) {
    static const char *const fields[] = {
        "messages",
        "input",
        "prompt",
        "tools",
        "tool_choice",
        "functions",
        "response_format",
        "thinking",
        "system",
        "reasoning",
        "text",
        "role",
        "max_tokens",
        "previous_response_id",
        "conversation",
        "background",
        "output_config",
        "parallel_tool_calls",
        "tokens",
        "content",
    };
    for (size_t i = 0; i < COUNT_OF(fields); i++) {
        size_t n = strlen(fields[i]);
        if (strncmp(text, fields[i], n) == 0 && strchr("[:. ", text[n])) return fields[i];
    }
    return NULL;
}

static int refuse(struct api_error *fault, const struct err *e) {
    fault->param = field_of(e->text);
    return api_error_from(fault, e);
}

static int too_long(const struct api_job *j, struct api_error *fault, size_t n) {
    if (j->endpoint == API_MESSAGES)
        return api_error_set(fault, API_FAULT_CONTEXT, "prompt is too long: %zu tokens > %u maximum", n,
                             j->site->n_ctx);
    fault->param = j->endpoint == API_CHAT ? "messages" : j->endpoint == API_RESPONSES ? "input" : "prompt";
    return api_error_set(fault, API_FAULT_CONTEXT,
                         "This model's maximum context length is %u tokens, but the prompt has %zu tokens.",
                         j->site->n_ctx, n);
}

/* ---- prompts ---- */

static int encode(struct token_buf *out, const struct tokenizer *t, const struct chat_prompt *p,
                  struct err *e) {
    int rc = 0;
    for (size_t i = 0; i < p->n_segments && rc == 0; i++) {
        const struct chat_segment *s = &p->segments[i];
        rc = tokenizer_encode(t, p->text.data + s->at, s->len, s->control, out, e);
    }
    return rc;
}

int api_prompt_make(struct api_prompt *p, const struct api_site *site, struct api_request *r, struct err *e) {
    struct chat_prompt text;
    r->options.open_turn = true;
    api_site_recall(site, r);
    chat_prompt_init(&text);
    int rc = chat_render(&text, r->messages, r->n_messages, &r->options, e);
    p->in_reasoning = text.in_reasoning;
    if (rc == 0) rc = encode(&p->tokens, site->tokenizer, &text, e);
    chat_prompt_deinit(&text);
    return rc;
}

static struct api_prompt *new_prompt(struct api_job *j) {
    struct api_prompt *p = &j->prompt[j->n_prompt++];
    api_lists_init(&p->lists);
    return p;
}

/* A completion's prompt as text: begins with the token that every text begins with. */
static int add_text(struct api_job *j, const json_t *text, struct err *e) {
    struct api_prompt *p = new_prompt(j);
    struct chat_text t = api_json_text(text);
    int32_t bos = tokenizer_bos(j->site->tokenizer);
    int rc = tokenizer_encode(j->site->tokenizer, t.data, t.len, true, &p->tokens, e);
    if (rc == 0 && bos >= 0 && (!p->tokens.n || p->tokens.ids[0] != bos)) {
        rc = token_buf_push(&p->tokens, bos, e);
        if (rc == 0) memmove(p->tokens.ids + 1, p->tokens.ids, (p->tokens.n - 1) * sizeof *p->tokens.ids);
        if (rc == 0) p->tokens.ids[0] = bos;
        p->silent_first = true;
    }
    char *copy = j->params.echo ? arena_text(&j->arena, t.data ? t.data : "", t.len) : NULL;
    if (copy) p->echo = (struct chat_text){ copy, t.len };
    return rc;
}

static int add_ids(struct api_job *j, const json_t *ids, struct err *e) {
    struct api_prompt *p = new_prompt(j);
    int rc = 0;
    for (size_t i = 0; i < json_array_size(ids) && rc == 0; i++) {
        const json_t *id = json_array_get(ids, i);
        double x = json_number_value(id);
        if (!json_is_number(id) || !(x >= 0 && x < j->site->n_vocab) || x != (double)(int32_t)x)
            return err_set(e, ERR_INVALID, "prompt: element %zu is no token id of this model", i);
        rc = token_buf_push(&p->tokens, (int32_t)x, e);
    }
    if (!j->params.echo || rc < 0) return rc;
    struct buf text;
    buf_init(&text, API_JOB_BYTES_MAX);
    for (size_t i = 0; i < p->tokens.n; i++) {
        size_t len = 0;
        const char *bytes = tokenizer_token_bytes(j->site->tokenizer, p->tokens.ids[i], &len);
        buf_add(&text, bytes, len);
    }
    struct utf8_stream utf8 = { .n_held = 0 };
    char *copy = arena_alloc(&j->arena, UTF8_STREAM_ROOM(text.size) + UTF8_STREAM_ROOM(0));
    if (copy) {
        size_t n = utf8_stream_push(&utf8, text.data, text.size, copy);
        p->echo = (struct chat_text){ copy, n + utf8_stream_flush(&utf8, copy + n) };
    }
    buf_deinit(&text);
    return copy ? 0 : err_set(e, ERR_LIMIT, "prompt: too long to be echoed");
}

static int add_prompts(struct api_job *j, const json_t *prompt, struct err *e) {
    const json_t *first = json_array_get(prompt, 0);
    if (json_is_string(prompt)) return add_text(j, prompt, e);
    if (!first)
        return err_set(e, ERR_INVALID,
                       "prompt must be a string, or an array of strings or token ids");
    if (json_is_number(first)) return add_ids(j, prompt, e);
    if (json_array_size(prompt) > API_JOB_PROMPTS_MAX)
        return err_set(e, ERR_INVALID, "prompt: more than %d", API_JOB_PROMPTS_MAX);
    for (size_t i = 0; i < json_array_size(prompt); i++) {
        const json_t *one = json_array_get(prompt, i);
        int rc = json_is_string(one) ? add_text(j, one, e)
                 : json_is_array(one)
                     ? add_ids(j, one, e)
                     : err_set(e, ERR_INVALID, "prompt: element %zu is neither text nor ids", i);
        if (rc < 0) return rc;
    }
    return 0;
}

/* ---- choices ---- */

static int open_choice(struct api_job *j, struct api_choice *c, const struct dsml_options *dsml,
                       struct err *e) {
    bool raw = j->endpoint == API_COMPLETIONS;
    struct api_answer_options o = { *dsml, raw, j->params.sampling.logprobs, dsml->tools };
    o.dsml.in_reasoning = j->prompt[c->prompt_i].in_reasoning;
    c->seed = j->params.sampling.seed + c->index;
    dsml_message_init(&c->whole);
    api_lists_init(&c->lists);
    return api_answer_open(&c->answer, j->site, &o, e);
}

static int open_choices(struct api_job *j, const struct dsml_options *dsml, struct err *e) {
    uint32_t n = (uint32_t)j->n_prompt * j->params.n;
    if (n > API_JOB_CHOICES_MAX)
        return err_set(e, ERR_INVALID, "prompt: %u choices, at most %d", n, API_JOB_CHOICES_MAX);
    j->choice = xcalloc(n, sizeof *j->choice);
    for (uint32_t i = 0; i < n; i++) {
        struct api_choice *c = &j->choice[i];
        c->index = i;
        c->prompt_i = i / j->params.n;
        j->n_choice++;
        int rc = open_choice(j, c, dsml, e);
        if (rc < 0) return rc;
    }
    return 0;
}

static int check_lengths(const struct api_job *j, struct api_error *fault) {
    for (size_t i = 0; i < j->n_prompt; i++) {
        if (j->prompt[i].tokens.n + 1 > j->site->n_ctx) return too_long(j, fault, j->prompt[i].tokens.n);
        if (j->prompt[i].tokens.n) continue;
        fault->param = "prompt";
        return api_error_set(fault, API_FAULT_INVALID, "the prompt is empty");
    }
    return 0;
}

static int make_guides(struct api_job *j, const struct api_request *r, struct err *e) {
    for (uint32_t i = 0; i < j->n_choice && j->site->vocab; i++) {
        struct api_choice *c = &j->choice[i];
        int rc = api_guide_new(&c->guide, j->site->vocab, r, j->prompt[c->prompt_i].in_reasoning, e);
        if (rc < 0) return rc;
    }
    return 0;
}

/* ---- endpoints ---- */

static int copy(struct api_job *j, struct chat_text *text, struct err *e) {
    char *to = text->len ? arena_text(&j->arena, text->data, text->len) : NULL;
    if (text->len && !to) return err_set(e, ERR_LIMIT, "a request of this size");
    text->data = to;
    return 0;
}

/* Names of the tools, to tell the client's name from what the model calls. */
static int keep_tools(struct api_job *j, const struct api_request *r, struct err *e) {
    j->tools = arena_array(&j->arena, r->n_tools + 1, sizeof *j->tools);
    if (!j->tools) return err_set(e, ERR_LIMIT, "so many tools");
    for (size_t i = 0; i < r->n_tools; i++) {
        struct api_tool t = r->tools[i];
        t.json = (struct chat_text){ NULL, 0 };
        int rc = copy(j, &t.name, e);
        if (rc == 0) rc = copy(j, &t.client_name, e);
        if (rc == 0) rc = copy(j, &t.client_space, e);
        if (rc < 0) return rc;
        j->tools[j->n_tools++] = t;
    }
    return 0;
}

/* Two names of the model say whether it thinks; the request itself may say otherwise. */
static struct api_defaults defaults_of(const struct api_job *j, const json_t *root) {
    struct api_defaults d = j->site->defaults;
    if (api_json_is(root, "model", "deepseek-chat")) d.thinking = false;
    if (api_json_is(root, "model", "deepseek-reasoner")) d.thinking = true;
    return d;
}

typedef int read_request(struct api_request *, json_t *, struct chat_text, const struct api_defaults *,
                         struct err *);

static int prepare_own(struct api_job *j, const struct api_request *r, struct err *e) {
    if (j->endpoint == API_RESPONSES) return api_responses_prepare(j, r, e);
    return j->endpoint == API_MESSAGES ? api_messages_prepare(j, e) : 0;
}

static int make_chat(struct api_job *j, struct api_request *r, struct api_error *fault) {
    struct err e = { .code = ERR_INTERNAL };
    struct dsml_options dsml = { .tools = r->n_tools > 0,
                                 .live = j->params.stream,
                                 .loose = j->site->loose_markup,
                                 /* a call that is required is counted by its guide, which closes the block */
                                 .calls_max = r->one_call && r->tool_choice == API_TOOLS_AUTO,
                                 .stops = j->params.stops,
                                 .n_stops = j->params.n_stops };
    j->prompt = xcalloc(1, sizeof *j->prompt);
    j->n_prompt = 1;
    int rc = api_prompt_make(&j->prompt[0], j->site, r, &e);
    if (rc < 0) return refuse(fault, &e);
    if (check_lengths(j, fault) < 0) return ERR_INVALID;
    rc = open_choices(j, &dsml, &e);
    if (rc == 0) rc = make_guides(j, r, &e);
    if (rc == 0) rc = keep_tools(j, r, &e);
    if (rc == 0) rc = prepare_own(j, r, &e);
    return rc < 0 ? refuse(fault, &e) : 0;
}

static int prepare_chat(struct api_job *j, json_t *root, struct chat_text body, read_request *read,
                        struct api_error *fault) {
    struct err e = { .code = ERR_INTERNAL };
    struct api_defaults d = defaults_of(j, root);
    struct api_request r;
    int rc = read(&r, root, body, &d, &e);
    if (rc < 0) return refuse(fault, &e);
    rc = make_chat(j, &r, fault);
    api_request_deinit(&r);
    return rc;
}

static int prepare_completion(struct api_job *j, json_t *root, struct api_error *fault) {
    struct err e = { .code = ERR_INTERNAL };
    struct dsml_options dsml = { .stops = j->params.stops, .n_stops = j->params.n_stops };
    j->prompt = xcalloc(API_JOB_PROMPTS_MAX, sizeof *j->prompt);
    int rc = add_prompts(j, api_json_get(root, "prompt"), &e);
    if (rc < 0) return refuse(fault, &e);
    if (check_lengths(j, fault) < 0) return ERR_INVALID;
    rc = open_choices(j, &dsml, &e);
    return rc < 0 ? refuse(fault, &e) : 0;
}

static int count(struct api_job *j, json_t *root, struct chat_text body, struct api_error *fault) {
    struct err e = { .code = ERR_INTERNAL };
    struct api_prompt p = { .in_reasoning = false };
    struct api_defaults d = defaults_of(j, root);
    struct api_request r;
    int rc = api_request_messages(&r, root, body, &d, &e);
    if (rc < 0) return refuse(fault, &e);
    rc = api_prompt_make(&p, j->site, &r, &e);
    buf_printf(&j->out, "{\"input_tokens\":%zu}", p.tokens.n);
    token_buf_free(&p.tokens);
    api_request_deinit(&r);
    return rc < 0 ? refuse(fault, &e) : 0;
}

static int read_model(struct api_job *j, json_t *root, struct api_error *fault) {
    struct err e = { .code = ERR_INTERNAL };
    struct chat_text model = { NULL, 0 };
    fault->param = "model";
    int rc = api_json_string(root, "model", &model, &e);
    if (rc < 0) return api_error_from(fault, &e);
    if (!api_site_serves(j->site, model))
        return api_error_set(
            fault, API_FAULT_MODEL, "The model `%.*s` does not exist; this server has `%s`.",
            (int)utf8_valid_prefix(model.data, MIN(model.len, 100)), model.data, j->site->model_id);
    fault->param = NULL;
    j->model = chat_text_of(j->site->model_id);
    if (j->endpoint != API_MESSAGES || !model.len || model.len > 4096) return 0;
    rc = copy(j, &model, &e);
    if (rc == 0) j->model = model;
    return rc < 0 ? api_error_from(fault, &e) : 0;
}

static int prepare(struct api_job *j, json_t *root, const struct api_job_input *in, struct api_error *fault) {
    if (!json_is_object(root))
        return api_error_set(fault, API_FAULT_INVALID, "the body must be a JSON object");
    int rc = read_model(j, root, fault);
    if (rc == 0 && api_generates(j->endpoint))
        rc = api_params_read(&j->params, root, j->endpoint, j->site, in->random, &j->arena, fault);
    if (rc < 0) return rc;
    switch (j->endpoint) {
    case API_CHAT: return prepare_chat(j, root, in->body, api_request_chat, fault);
    case API_MESSAGES: return prepare_chat(j, root, in->body, api_request_messages, fault);
    case API_RESPONSES: return prepare_chat(j, root, in->body, api_request_responses, fault);
    case API_COMPLETIONS: return prepare_completion(j, root, fault);
    case API_COUNT: rc = count(j, root, in->body, fault); break;
    default: rc = api_tokens_answer(j, root, in->body, fault); break;
    }
    j->ready = true;
    if (rc == 0 && j->out.rc < 0)
        return api_error_set(fault, API_FAULT_INVALID, "the answer would be too large");
    return rc;
}

static struct api_job *job_new(const struct api_site *site, const struct api_job_input *in) {
    static const struct {
        const struct api_dialect *dialect;
        const char *prefix;
    } kinds[] = {
        [API_CHAT] = { &api_dialect_chat, "chatcmpl-" },
        [API_COMPLETIONS] = { &api_dialect_completions, "cmpl-" },
        [API_RESPONSES] = { &api_dialect_responses, "resp_" },
        [API_MESSAGES] = { &api_dialect_messages, "msg_" },
    };
    struct api_job *j = xcalloc(1, sizeof *j);
    j->site = site;
    j->endpoint = in->endpoint;
    j->created_s = in->now_s;
    arena_init(&j->arena, API_JOB_BYTES_MAX);
    buf_init(&j->out, API_OUT_BYTES_MAX);
    for (size_t i = 0; i < COUNT_OF(j->own_buf); i++) buf_init(&j->own_buf[i], API_OUT_BYTES_MAX);
    rng_init(&j->rng, in->random, 1);
    snprintf(j->request_id, sizeof j->request_id, "%s", in->request_id);
    if (api_generates(j->endpoint)) {
        j->dialect = kinds[j->endpoint].dialect;
        api_job_new_id(j, kinds[j->endpoint].prefix, 24, j->id);
    }
    return j;
}

struct api_job *api_job_prepare(const struct api_site *site, const struct api_job_input *in,
                                struct api_error *fault) {
    struct err e = { .code = ERR_INTERNAL };
    struct api_job *j = job_new(site, in);
    json_t *root;
    *fault = (struct api_error){ .fault = API_FAULT_ENGINE };
    int rc = api_json_parse(&root, in->body, &e);
    if (rc < 0) {
        api_error_from(fault, &e);
    } else {
        rc = prepare(j, root, in, fault);
        json_decref(root);
    }
    if (rc == 0) return j;
    api_job_free(j);
    return NULL;
}

void api_job_free(struct api_job *j) {
    if (!j) return;
    for (uint32_t i = 0; i < j->n_choice; i++) {
        struct api_choice *c = &j->choice[i];
        if (c->guide) c->guide->free(c->guide);
        api_answer_close(&c->answer);
        dsml_message_deinit(&c->whole);
        api_lists_deinit(&c->lists);
        free(c->call);
    }
    for (size_t i = 0; i < j->n_prompt; i++) {
        token_buf_free(&j->prompt[i].tokens);
        api_lists_deinit(&j->prompt[i].lists);
    }
    free(j->choice);
    free(j->prompt);
    arena_deinit(&j->arena);
    buf_deinit(&j->out);
    for (size_t i = 0; i < COUNT_OF(j->own_buf); i++) buf_deinit(&j->own_buf[i]);
    free(j);
}
