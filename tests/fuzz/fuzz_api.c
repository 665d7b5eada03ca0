/* Bodies of requests, and what a model might answer to them: a refusal whose text is JSON in both shapes,
 * or an answer that is JSON (event by event when it streams), ends, and is valid UTF-8 throughout.
 *
 *     byte 0: endpoint; byte 1: how it ends; body; 0x1e; one byte a token */
#include "common/base/check.h"
#include "tests/harness/api_site.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct scripted_site s;

static void check_json(const char *text, size_t n) {
    struct chat_json j;
    struct err e = { .text = "" };
    int rc = chat_json_parse(&j, (struct chat_text){ text, n }, &e);
    if (rc == 0) chat_json_deinit(&j);
    if (rc < 0 && rc != ERR_LIMIT) fprintf(stderr, "%s in: %.*s\n", e.text, (int)n, text);
    CHECK(rc == 0 || rc == ERR_LIMIT);
}

static void check_stream(const struct buf *out) {
    const char *at = out->data ? out->data : "", *end;
    for (; *at; at = end + 2) {
        end = strstr(at, "\n\n");
        CHECK(end);
        if (*at == ':' || strncmp(at, "data: [DONE]", 12) == 0) continue;
        const char *line = strncmp(at, "event: ", 7) == 0 ? strchr(at, '\n') + 1 : at;
        CHECK(strncmp(line, "data: ", 6) == 0 && memchr(line, '\n', (size_t)(end - line)) == NULL);
        check_json(line + 6, (size_t)(end - line) - 6);
    }
}

static void check_refusal(const struct api_error *fault) {
    struct buf out;
    CHECK(fault->text[0] && api_error_status(fault) >= 400);
    for (int shape = API_SHAPE_OPENAI; shape <= API_SHAPE_ANTHROPIC; shape++) {
        buf_init(&out, 1 << 16);
        api_error_put(&out, fault, (enum api_shape)shape, "req_1");
        check_json(out.data, out.size);
        buf_deinit(&out);
    }
}

static void score_prompt(struct api_job *j, uint32_t i, const struct service_request *r) {
    for (uint32_t p = 1; r->score_prompt && p < r->n_token; p++) {
        struct service_token t = { .id = r->token[p], .index = p, .of_prompt = true, .logprob = -1 };
        t.n_top = r->sampling.n_top;
        for (int m = 0; m < t.n_top; m++) t.top[m] = (struct sampler_logprob){ m, -m };
        api_job_token(j, i, &t);
    }
}

static void answer(struct api_job *j, uint32_t i, uint8_t how, const uint8_t *token, size_t n) {
    uint32_t n_vocab = tokenizer_n_vocab(s.tokenizer);
    struct service_request r;
    CHECK(j->finished || api_job_may_begin(j, i));
    api_job_request(j, i, &r);
    CHECK(r.n_token && r.n_token < j->site->n_ctx && r.n_new_max && !r.take_guide);
    CHECK(sampler_params_check(&r.sampling, (int)n_vocab, NULL) == 0);
    score_prompt(j, i, &r);
    for (size_t k = 0; k < n && !j->choice[i].wants_end; k++) {
        struct service_token t = { .id = (int32_t)((token[k] + (k % 5 == 4 ? 256u : 0u)) % n_vocab),
                                   .index = (uint32_t)k,
                                   .logprob = -1 };
        t.n_top = r.sampling.n_top;
        for (int m = 0; m < t.n_top; m++) t.top[m] = (struct sampler_logprob){ m, -m };
        api_job_token(j, i, &t);
        if (k % 7 == 3) api_job_alive(j);
    }
    struct service_done d = { .end = j->choice[i].wants_end ? SERVICE_END_CANCELLED
                                     : how & 4              ? SERVICE_END_LENGTH
                                                            : SERVICE_END_STOP,
                              .n_prompt = r.n_token,
                              .n_cached = how,
                              .n_output = (uint32_t)n };
    if ((how & 24) == 24) d.end = SERVICE_END_ERROR;
    api_job_done(j, i, &d);
}

static void check_job(struct api_job *j, uint8_t how, const uint8_t *token, size_t n) {
    if (!j->ready) {
        if (j->params.stream) api_job_open(j);
        for (uint32_t i = 0; i < j->n_choice; i++) answer(j, i, how, token, n);
        CHECK(j->finished);
    }
    CHECK(utf8_valid(j->out.data, j->out.size));
    if (j->failed) check_refusal(&j->fault);
    if (j->params.stream && !j->ready) check_stream(&j->out);
    else if (!j->failed) check_json(j->out.data, j->out.size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!s.site) scripted_open(&s);
    if (size < 2) return 0;
    const uint8_t *body = data + 2, *end = memchr(body, 0x1e, size - 2);
    size_t n_body = end ? (size_t)(end - body) : size - 2, n_token = end ? size - 3 - n_body : 0;
    struct api_job_input in = { (enum api_endpoint)(data[0] % (API_DETOKENIZE + 1)),
                                { (const char *)body, n_body },
                                "req_1",
                                data[1],
                                1795166400 };
    struct api_error fault;
    struct api_job *j = api_job_prepare(s.site, &in, &fault);
    if (j) check_job(j, data[1], end ? end + 1 : NULL, n_token);
    else check_refusal(&fault);
    api_job_free(j);
    return 0;
}
