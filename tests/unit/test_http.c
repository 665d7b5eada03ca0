/* coordinator/http: the real thing over loopback in front of a service by script (two threads of the
 * endpoint's, one of the service, the workers). What is said is tested in test_api_answers; here: who may
 * ask, what is refused, who waits for whom, who has left. */
#include "tests/harness/test.h"

#include <sys/stat.h>

#include "coordinator/http.h"
#include "tests/harness/fake_service.h"
#include "tests/harness/http_client.h"

struct rig {
    struct service *service;
    struct http *http;
    struct http_config config;
    struct buf in;
};

static void rig_init(struct rig *r, const char *script) {
    r->service = fake_new(script);
    http_config_init(&r->config);
    r->config.port = 0;
    r->config.thinking = false;
    r->config.limit.connections = 64;
    buf_init(&r->in, 64 << 20);
}

static void rig_start(struct rig *r) {
    struct err e;
    assert_fine(http_start(&r->http, &r->config, r->service, &e), &e);
    if (r->service->state != SERVICE_SERVING) return;
    for (int i = 0; i < 500; i++) {               /* the model's tables are made on a worker */
        int fd = client_connect(http_port(r->http));
        buf_clear(&r->in);
        client_get(fd, "/health", "");
        client_wait(fd, &r->in, "}", CLIENT_WAIT_MS);
        close(fd);
        if (strstr(r->in.data, "200 OK")) break;
        clock_sleep_ms(10);
    }
    buf_clear(&r->in);
}

static void rig_open(struct rig *r, const char *script) {
    rig_init(r, script);
    rig_start(r);
}

static void rig_close(struct rig *r) {
    http_stop(r->http);
    fake_free(r->service);
    buf_deinit(&r->in);
}

static int call(struct rig *r) {
    buf_clear(&r->in);
    return client_connect(http_port(r->http));
}

#define WAIT(r, fd, text)                                                                          \
    do {                                                                                           \
        if (!client_wait(fd, &(r)->in, text, CLIENT_WAIT_MS))                                      \
            fail_msg("\"%s\" did not come, but: %s", text,                                         \
                     (r)->in.size ? (r)->in.data : "nothing");                                     \
    } while (0)

static void get(struct rig *r, const char *path, const char *headers, const char *wanted) {
    int fd = call(r);
    client_get(fd, path, headers);
    WAIT(r, fd, wanted);
    close(fd);
}

static void post(struct rig *r, const char *path, const char *headers, const char *body, const char *wanted) {
    int fd = call(r);
    client_post(fd, path, headers, body);
    WAIT(r, fd, wanted);
    close(fd);
}

#define CHAT "/v1/chat/completions"
#define SAY "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}"
#define STREAM "{\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}"

/* ---- what comes back ---- */

static void every_endpoint_answers(void **state) {
    (void)state;
    struct rig r;
    rig_open(&r, "Hello" CHAT_EOS);
    get(&r, "/health", "", "{\"status\":\"ok\"}");
    get(&r, "/v1/models", "", "\"id\":\"fake-1\"");
    get(&r, "/v1/models/fake-1", "", "\"object\":\"model\"");
    get(&r, "/v1/models/other", "", "404 Not Found");
    get(&r, "/v1/status", "", "{\"state\":\"fake\"}");
    get(&r, "/", "", "Content-Security-Policy");
    get(&r, "/page.js", "", "200 OK");
    get(&r, "/metrics", "", "pleiades_request_seconds_count");
    get(&r, "/nothing", "", "There is nothing at /nothing.");
    get(&r, CHAT, "", "Allow: POST");
    post(&r, CHAT, "", SAY, "\"content\":\"Hello\"");
    post(&r, CHAT, "", STREAM, "data: [DONE]");
    post(&r, "/v1/completions", "", "{\"prompt\":\"Hi\"}", "\"text\":\"Hello\"");
    post(&r, "/v1/responses", "", "{\"input\":\"Hi\"}", "\"text\":\"Hello\"");
    post(&r, "/anthropic/v1/messages?beta=true", "",
         "{\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}",
         "\"stop_reason\":\"end_turn\"");
    post(&r, "/v1/messages/count_tokens", "",
         "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}", "{\"input_tokens\":");
    post(&r, "/tokenize", "", "{\"content\":\"Hi\"}", "\"count\":1");
    post(&r, "/detokenize", "", "{\"tokens\":[75]}", "\"content\":\"H\"");
    post(&r, CHAT, "", "{", "\"invalid_request_error\"");
    get(&r, "/metrics", "", "pleiades_requests_total{endpoint=\"chat\",outcome=\"ok\"} 2");
    assert_non_null(strstr(r.in.data, "x-request-id: req_"));
    rig_close(&r);
}

static void uploads_may_come_in_any_pieces(void **state) {
    (void)state;
    struct rig r;
    char request[512];
    rig_open(&r, "Hello" CHAT_EOS);
    int n = snprintf(request, sizeof request,
                     "POST " CHAT " HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n" SAY,
                     strlen(SAY));
    int fd = call(&r);
    for (int i = 0; i < n; i++) client_send(fd, request + i, 1);
    WAIT(&r, fd, "\"content\":\"Hello\"");
    /* Two at once on the same connection, then a chunked body. */
    char twice[1024];
    buf_clear(&r.in);
    snprintf(twice, sizeof twice, "%s%s", request, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_send(fd, twice, strlen(twice));
    WAIT(&r, fd, "{\"status\":\"ok\"}");
    assert_non_null(strstr(r.in.data, "\"content\":\"Hello\""));
    buf_clear(&r.in);
    snprintf(request, sizeof request,
             "POST " CHAT " HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nExpect: "
                          "100-continue\r\n\r\n%zx\r\n" SAY "\r\n0\r\n\r\n",
             strlen(SAY));
    client_send(fd, request, strlen(request));
    WAIT(&r, fd, "\"content\":\"Hello\"");
    assert_non_null(strstr(r.in.data, "100 Continue"));
    close(fd);
    rig_close(&r);
}

static void a_stream_leaves_its_connection_open(void **state) {
    (void)state;
    struct rig r;
    rig_open(&r, "Hello" CHAT_EOS);
    int fd = call(&r);
    for (int i = 0; i < 3; i++) {
        buf_clear(&r.in);
        client_post(fd, CHAT, "", STREAM);
        WAIT(&r, fd, "0\r\n\r\n");
        assert_non_null(strstr(r.in.data, "text/event-stream"));
        assert_non_null(strstr(r.in.data, "Transfer-Encoding: chunked"));
    }
    close(fd);
    rig_close(&r);
}

static void an_error_of_the_engine_is_told_in_place(void **state) {
    (void)state;
    struct rig r;
    rig_open(&r, "Hel");
    r.service->end = SERVICE_END_ERROR;
    post(&r, CHAT, "", SAY, "the accelerator caught fire");
    assert_non_null(strstr(r.in.data, "500 Internal Server Error"));
    post(&r, CHAT, "", STREAM, "the accelerator caught fire");
    assert_non_null(strstr(r.in.data, "200 OK"));
    assert_null(strstr(r.in.data, "[DONE]"));
    rig_close(&r);
}

static void several_choices_come_from_several_sequences(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.service->queue_max = 2;                     /* the third has to wait for one of the others */
    r.service->token_us = 2000;
    rig_start(&r);
    post(&r, CHAT, "", "{\"n\":3,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}",
         "\"completion_tokens\":");
    assert_non_null(
        strstr(r.in.data, "\"index\":2,\"message\":{\"role\":\"assistant\",\"content\":\"Hello\""));
    assert_int_equal(atomic_load(&r.service->n_submitted), 3);
    rig_close(&r);
}

static void the_first_byte_is_there_before_the_first_token(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.service->prefill_us = 400000;
    rig_start(&r);
    int fd = call(&r);
    uint64_t begin = clock_now_ns();
    client_post(fd, CHAT, "", STREAM);
    WAIT(&r, fd, "\r\n\r\n");
    assert_true(clock_now_ns() - begin < 300000000);
    assert_null(strstr(r.in.data, "data:"));
    WAIT(&r, fd, "[DONE]");
    close(fd);
    rig_close(&r);
}

static void silence_is_filled_with_signs_of_life(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.service->prefill_us = 3000000;
    r.config.limit.keep_alive_ms = 50;
    r.config.early_headers = true;
    rig_start(&r);
    post(&r, CHAT, "", STREAM, ": waiting\n\n");
    post(&r, "/v1/messages", "",
         "{\"stream\":true,\"max_tokens\":9,\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}",
         "event: ping\ndata: {\"type\": \"ping\"}\n\n");
    assert_non_null(strstr(r.in.data, "event: message_start"));
    post(&r, "/v1/responses", "", "{\"stream\":true,\"input\":\"Hi\"}",
         "\"type\":\"response.in_progress\",\"sequence_number\":2");
    post(&r, CHAT, "", SAY, "\r\n1\r\n\n\r\n");   /* a chunk with a blank line */
    rig_close(&r);
}

/* ---- who may ask ---- */

static void keys_are_asked_for_where_they_must_be(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.keys[0] = "first-key", r.config.keys[1] = "second-key";
    rig_start(&r);
    get(&r, "/health", "", "200 OK");
    get(&r, "/", "", "200 OK");
    get(&r, "/v1/models", "", "401 Unauthorized");
    assert_non_null(strstr(r.in.data, "WWW-Authenticate: Bearer"));
    WAIT(&r, -1, "invalid_api_key");
    get(&r, "/metrics", "", "401 Unauthorized");
    get(&r, "/v1/models", "Authorization: Bearer second-key\r\n", "200 OK");
    get(&r, "/v1/models", "x-api-key: first-key\r\n", "200 OK");
    get(&r, "/v1/models", "x-api-key: wrong\r\nAuthorization: Bearer first-key\r\n", "200 OK");
    get(&r, "/v1/models", "x-api-key: wrong\r\n", "401 Unauthorized");
    get(&r, "/v1/models", "Authorization: Bearer first-ke\r\n", "401 Unauthorized");
    get(&r, "/v1/models", "Authorization: Bearer first-key1\r\n", "401 Unauthorized");
    get(&r, "/v1/models", "Authorization: Basic first-key\r\n", "401 Unauthorized");
    post(&r, "/v1/messages", "", "{}", "\"authentication_error\"");
    assert_int_equal(atomic_load(&r.service->n_submitted), 0);
    rig_close(&r);
}

static void keys_come_from_a_file_that_is_its_owners_alone(void **state) {
    (void)state;
    struct rig r;
    struct err e;
    char path[] = "/tmp/pleiades-keys-XXXXXX";
    int fd = mkstemp(path);
    static const char text[] = "# keys of the team\n\nfrom-the-file \r\n";
    assert_true(fd >= 0 && write(fd, text, sizeof text - 1) == (ssize_t)sizeof text - 1);
    close(fd);
    rig_init(&r, "x");
    r.config.key_file = path;
    chmod(path, 0640);
    assert_int_equal(http_start(&r.http, &r.config, r.service, &e), ERR_DENIED);
    chmod(path, 0600);
    rig_start(&r);
    assert_true(http_key_required(r.http));
    get(&r, "/v1/models", "x-api-key: from-the-file\r\n", "200 OK");
    unlink(path);
    rig_close(&r);
}

static void beyond_this_machine_a_key_is_needed(void **state) {
    (void)state;
    struct rig r;
    struct err e;
    rig_init(&r, "x");
    r.config.host = "0.0.0.0";
    assert_int_equal(http_start(&r.http, &r.config, r.service, &e), ERR_DENIED);
    assert_null(r.http);
    r.config.insecure = true;
    rig_start(&r);
    rig_close(&r);
}

static void pages_of_others_and_strange_names_are_refused(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.allow_hosts[0] = "proxy.example";
    rig_start(&r);
    int fd = call(&r);
    static const char evil[] = "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
                      proxy[] = "GET /v1/models HTTP/1.1\r\nHost: proxy.example:80\r\n\r\n";
    client_send(fd, evil, strlen(evil));
    WAIT(&r, fd, "403 Forbidden");
    close(fd);
    fd = call(&r);
    client_send(fd, proxy, strlen(proxy));
    WAIT(&r, fd, "200 OK");
    close(fd);
    get(&r, "/v1/models", "Origin: http://evil.example\r\n", "403 Forbidden");
    get(&r, "/v1/models", "Origin: http://localhost\r\n", "200 OK");
    post(&r, CHAT, "Origin: null\r\n", SAY, "permission_error");
    fd = call(&r);
    client_send(fd, "OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 48);
    WAIT(&r, fd, "405 Method Not Allowed");
    close(fd);
    rig_close(&r);
}

static void browsers_are_let_in_when_asked_for(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.cors_origin = "*";
    r.config.keys[0] = "key";
    rig_start(&r);
    int fd = call(&r);
    static const char preflight[] =
        "OPTIONS " CHAT " HTTP/1.1\r\nHost: x\r\nOrigin: "
                        "http://a.example\r\nAccess-Control-Request-Method: POST\r\n\r\n";
    client_send(fd, preflight, strlen(preflight));
    WAIT(&r, fd, "204 No Content");
    assert_non_null(strstr(r.in.data, "Access-Control-Allow-Headers: *, authorization"));
    close(fd);
    post(&r, CHAT, "Origin: http://a.example\r\nx-api-key: key\r\n", SAY, "Access-Control-Allow-Origin: *");
    rig_close(&r);
}

/* ---- limits ---- */

static void too_much_is_refused_with_its_status(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.limit.body_bytes = 4096;
    rig_start(&r);
    char *header = xcalloc(70000, 1);
    memset(header, 'a', 65536);
    memcpy(header, "GET /health HTTP/1.1\r\nx: ", 25);
    int fd = call(&r);
    client_send(fd, header, 65536);
    client_send(fd, "\r\n\r\n", 4);
    WAIT(&r, fd, "431 Request Header Fields Too Large");
    close(fd);
    memset(header, ' ', 8000);
    header[8000] = 0;
    post(&r, CHAT, "", header, "413 ");
    assert_non_null(strstr(r.in.data, "invalid_request_error"));
    fd = call(&r);                                /* without saying so before */
    static const char head[] =
        "POST " CHAT " HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    client_send(fd, head, strlen(head));
    for (int i = 0; i < 4; i++)
        client_send(fd, "1000\r\n", 6), client_send(fd, header, 4096), client_send(fd, "\r\n", 2);
    client_send(fd, "0\r\n\r\n", 5);
    WAIT(&r, fd, "413 ");
    close(fd);
    fd = call(&r);                                /* announced: no need to send it at all */
    static const char huge[] =
        "POST " CHAT
        " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n";
    client_send(fd, huge, strlen(huge));
    WAIT(&r, fd, "413 ");
    assert_null(strstr(r.in.data, "100 Continue"));
    close(fd);
    get(&r, "/health", "", "200 OK");
    free(header);
    rig_close(&r);
}

static void a_full_queue_is_429_and_recovers(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.service->queue_max = 1;
    r.service->prefill_us = 300000;
    rig_start(&r);
    int first = client_connect(http_port(r.http));
    client_post(first, CHAT, "", SAY);
    while (!atomic_load(&r.service->n_submitted)) clock_sleep_ms(1);
    post(&r, CHAT, "", STREAM, "queue is full, retry in ");
    assert_non_null(strstr(r.in.data, "429 Too Many Requests"));
    assert_non_null(strstr(r.in.data, "Retry-After: "));
    assert_null(strstr(r.in.data, "x-should-retry: false"));
    buf_clear(&r.in);
    WAIT(&r, first, "\"content\":\"Hello\"");
    close(first);
    post(&r, CHAT, "", SAY, "\"content\":\"Hello\"");
    rig_close(&r);
}

static void who_waits_too_long_in_the_queue_is_told(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.service->prefill_us = 10000000;
    r.config.limit.queue_ms = 100;
    rig_start(&r);
    post(&r, CHAT, "", SAY, "429 Too Many Requests");
    post(&r, CHAT, "", STREAM, "\"rate_limit_exceeded\"");
    rig_close(&r);
}

static void a_model_that_loads_is_503(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    fake_set_state(r.service, SERVICE_LOADING);
    rig_start(&r);
    get(&r, "/health", "", "{\"status\":\"loading\"");
    post(&r, CHAT, "", SAY, "nodes load their layers");
    assert_non_null(strstr(r.in.data, "503 Service Unavailable"));
    assert_non_null(strstr(r.in.data, "Retry-After: "));
    post(&r, "/v1/messages", "", SAY, "overloaded_error");
    fake_set_state(r.service, SERVICE_SERVING);
    for (int i = 0; i < 200; i++) {
        get(&r, "/health", "", "}");
        if (strstr(r.in.data, "200 OK")) break;
        clock_sleep_ms(10);
    }
    post(&r, CHAT, "", SAY, "\"content\":\"Hello\"");
    rig_close(&r);
}

static void heads_and_bodies_that_dribble_are_cut_off(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.limit.head_ms = r.config.limit.body_ms = 300;
    rig_start(&r);
    static const char half[] = "POST " CHAT " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    int silent = call(&r), body = client_connect(http_port(r.http)), head = client_connect(http_port(r.http));
    client_send(body, half, strlen(half));
    for (int i = 0; i < 20; i++) {
        client_send(head, "G", 1);
        client_send(body, " ", 1);
        clock_sleep_ms(30);
    }
    assert_true(client_closed(silent, &r.in, 2000));
    assert_true(client_closed(head, &r.in, 2000));
    assert_true(client_closed(body, &r.in, 2000));
    close(silent), close(head), close(body);
    get(&r, "/health", "", "200 OK");
    rig_close(&r);
}

static void too_many_connections_close_the_idlest(void **state) {
    (void)state;
    struct rig r;
    int fd[16];
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.limit.connections = 8;
    rig_start(&r);
    for (int i = 0; i < 16; i++) fd[i] = client_connect(http_port(r.http));
    get(&r, "/health", "", "200 OK");
    for (int i = 0; i < 16; i++) close(fd[i]);
    rig_close(&r);
}

/* ---- what is damaged on the way ---- */

/* A request with some of its bytes changed, taken out, or repeated. */
static size_t damage(struct rng *g, char *request, size_t n, size_t room) {
    for (uint64_t k = 1 + rng_below(g, 4); k && n > 8; k--) {
        size_t at = rng_below(g, n), len = 1 + rng_below(g, MIN(n - at, (size_t)32));
        switch (rng_below(g, 4)) {
        case 0: request[at] = (char)rng_below(g, 256); break;
        case 1: memmove(request + at, request + at + len, n - at - len), n -= len; break;
        case 2:
            if (n + len > room) break;
            memmove(request + at + len, request + at, n - at), n += len;
            break;
        default: request[at] = "{}[]\",:0\\\r\n"[rng_below(g, 11)]; break;
        }
    }
    return n;
}

static void send_damaged(struct rig *r, struct rng *g, int *n_refused) {
    static const char *const bodies[] = {
        STREAM,
        SAY,
        "{\"prompt\":[1,2,3],\"logprobs\":2,\"n\":2}",
        "{\"input\":[{\"role\":\"user\",\"content\":\"a\"}],\"stream\":true}",
        ("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":"
         "\"\\ud83c\\udf0c\"}]}],\"tools\":[{\"name\":\"f\",\"input_schema\":{}}]}"),
    };
    static const char *const paths[] = {
        CHAT,           "/v1/completions",           "/v1/responses",
        "/v1/messages", "/v1/messages/count_tokens", "/tokenize"
    };
    char request[2048];
    const char *body = bodies[rng_below(g, COUNT_OF(bodies))];
    int n = snprintf(
        request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
        paths[rng_below(g, COUNT_OF(paths))], strlen(body), body);
    size_t len = damage(g, request, (size_t)n, sizeof request);
    int fd = call(r), status = 0;
    client_send(fd, request, len);
    shutdown(fd, SHUT_WR);                        /* what is missing will not come */
    if (!client_closed(fd, &r->in, CLIENT_WAIT_MS)) fail_msg("no end after: %.*s", (int)len, request);
    close(fd);
    if (!r->in.size) return;                      /* not even a head */
    assert_int_equal(sscanf(r->in.data, "HTTP/1.%*d %d", &status), 1);
    if (status == 500 || status == 502 || status == 503) fail_msg("%d for: %.*s", status, (int)len, request);
    *n_refused += status >= 400;
}

static void damaged_requests_are_refused_and_nothing_is_lost(void **state) {
    (void)state;
    struct rig r;
    struct rng g;
    int n = effort() == EFFORT_FULL ? 10000 : effort() == EFFORT_QUICK ? 300 : 1000, n_refused = 0;
    rig_open(&r, "Hello" CHAT_EOS);
    rng_init(&g, 4, 2);
    for (int i = 0; i < n; i++) send_damaged(&r, &g, &n_refused);
    assert_true(n_refused > n / 10);
    get(&r, "/health", "", "200 OK");
    for (int i = 0; i < 500 && !http_idle(r.http); i++) clock_sleep_ms(2);
    assert_true(http_idle(r.http));
    rig_close(&r);
}

/* ---- who has left ---- */

/* Milliseconds until n requests were cancelled; 30 seconds at most. */
static uint64_t cancelled_after(struct service *s, unsigned n, uint64_t since) {
    while (atomic_load(&s->n_cancelled) < n && clock_now_ns() - since < 30000000000u) clock_sleep_ms(1);
    return (clock_now_ns() - since) / 1000000;
}

static void clients_that_leave_are_noticed_within_100_ms(void **state) {
    (void)state;
    struct rig r;
    /* A busy machine, a sanitizer or an emulator may hold us up once, but not every time. */
    uint64_t best = UINT64_MAX, limit = effort() == EFFORT_QUICK ? 300 : 100;
    rig_init(&r, "Hello, this goes on for a while, and then some more" CHAT_EOS);
    rig_start(&r);
    static const struct {
        const char *body;
        uint64_t prefill_us, token_us;
        bool half;
    } table[] = {
        { STREAM, 5000000, 0, false }, { SAY, 5000000, 0, false },   /* before the first token */
        { STREAM, 5000000, 0, true },  { SAY, 5000000, 0, true },    /* only its sending side */
        { STREAM, 0, 100000, false },  { SAY, 0, 100000, false },    /* between tokens */
    };
    for (unsigned i = 0; i < COUNT_OF(table); i++) {
        pthread_mutex_lock(&r.service->lock);
        r.service->prefill_us = table[i].prefill_us;
        r.service->token_us = table[i].token_us;
        pthread_mutex_unlock(&r.service->lock);
        int fd = call(&r);
        client_post(fd, CHAT, "", table[i].body);
        while (atomic_load(&r.service->n_submitted) <= i) clock_sleep_ms(1);
        clock_sleep_ms(30);
        uint64_t left = clock_now_ns();
        if (table[i].half) shutdown(fd, SHUT_WR);
        else close(fd);
        uint64_t took = cancelled_after(r.service, i + 1, left);
        assert_true(took < 1500);
        best = MIN(best, took);
        if (table[i].half) close(fd);
    }
    assert_true(best <= limit);
    get(&r, "/metrics", "", "pleiades_requests_total{endpoint=\"chat\",outcome=\"cancelled\"} 6");
    rig_close(&r);
}

static void a_reader_that_reads_nothing_is_cancelled_and_stalls_nobody(void **state) {
    (void)state;
    struct rig r;
    char *script = xcalloc(40001, 1);
    memset(script, 'x', 40000);
    rig_init(&r, script);
    r.config.limit.write_bytes = 256 << 10;
    r.service->token_us = 200;
    rig_start(&r);
    int small = 4096, slow = call(&r);
    setsockopt(slow, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    client_post(slow, CHAT, "",
                "{\"stream\":true,\"max_tokens\":4000,\"n\":8,\"messages\":[{\"role\":\"user\","
                "\"content\":\"Hi\"}]}");
    uint64_t begin = clock_now_ns();
    assert_true(cancelled_after(r.service, 1, begin) < 30000);
    pthread_mutex_lock(&r.service->lock);
    r.service->n_script = 5;
    pthread_mutex_unlock(&r.service->lock);
    post(&r, CHAT, "", SAY, "\"content\":\"xxxxx\"");
    close(slow);
    free(script);
    rig_close(&r);
}

/* ---- the end ---- */

static void draining_finishes_streams_and_refuses_new_requests(void **state) {
    (void)state;
    struct rig r;
    rig_init(&r, "Hello" CHAT_EOS);
    r.service->token_us = 40000;
    rig_start(&r);
    int fd = client_connect(http_port(r.http));
    struct buf in;
    buf_init(&in, 1 << 20);
    client_post(fd, CHAT, "", STREAM);
    while (!atomic_load(&r.service->n_submitted)) clock_sleep_ms(1);
    http_drain(r.http);
    post(&r, CHAT, "", SAY, "503 Service Unavailable");
    get(&r, "/health", "", "{\"status\":\"draining\"");
    assert_false(http_idle(r.http));
    assert_true(client_wait(fd, &in, "[DONE]", CLIENT_WAIT_MS));
    for (int i = 0; i < 500 && !http_idle(r.http); i++) clock_sleep_ms(2);
    assert_true(http_idle(r.http));
    close(fd);
    buf_deinit(&in);
    rig_close(&r);
}

static void stopping_ends_whatever_runs(void **state) {
    (void)state;
    struct rig r;
    int fd[12];
    rig_init(&r, "Hello" CHAT_EOS);
    r.service->prefill_us = 50000000;
    rig_start(&r);
    for (int i = 0; i < 12; i++) {
        fd[i] = client_connect(http_port(r.http));
        client_post(fd[i], CHAT, "", i % 2 ? STREAM : SAY);
    }
    while (atomic_load(&r.service->n_submitted) < 12) clock_sleep_ms(1);
    uint64_t begin = clock_now_ns();
    http_stop(r.http);
    r.http = NULL;
    assert_true(clock_now_ns() - begin < 2000000000u);
    assert_int_equal(atomic_load(&r.service->n_cancelled), 12);
    for (int i = 0; i < 12; i++) {
        buf_clear(&r.in);
        assert_true(client_closed(fd[i], &r.in, 1000));
        assert_non_null(strstr(r.in.data, i % 2 ? "200 OK" : "503 Service Unavailable"));
        assert_non_null(strstr(r.in.data, "the server is shutting down"));
        close(fd[i]);
    }
    rig_close(&r);
}

static void a_unix_socket_serves_its_owner(void **state) {
    (void)state;
    struct rig r;
    struct stat st;
    struct err e;
    char path[64];
    snprintf(path, sizeof path, "/tmp/pleiades-test-%d.sock", (int)getpid());
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.unix_path = path;
    rig_start(&r);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    int fd = client_connect_unix(path);
    static const char other[] = "HEAD / HTTP/1.1\r\nHost: any-name\r\n\r\n";
    client_post(fd, CHAT, "", SAY);
    WAIT(&r, fd, "\"content\":\"Hello\"");
    buf_clear(&r.in);
    client_send(fd, other, strlen(other));
    WAIT(&r, fd, "200 OK");
    close(fd);
    struct http *second;
    struct http_config same = r.config;
    assert_int_equal(http_start(&second, &same, r.service, &e), ERR_BUSY);
    rig_close(&r);
    assert_int_equal(stat(path, &st), -1);
}

static void many_streams_at_once_all_get_their_tokens(void **state) {
    (void)state;
    enum { STREAMS = 200 };
    struct rig r;
    int fd[STREAMS];
    rig_init(&r, "Hello" CHAT_EOS);
    r.config.limit.connections = STREAMS + 8;
    r.service->token_us = 1000;
    rig_start(&r);
    for (int i = 0; i < STREAMS; i++) {
        fd[i] = client_connect(http_port(r.http));
        client_post(fd[i], CHAT, "", STREAM);
    }
    for (int i = 0; i < STREAMS; i++) {
        buf_clear(&r.in);
        WAIT(&r, fd[i], "[DONE]");
        close(fd[i]);
    }
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_endpoint_answers),
        TEST(uploads_may_come_in_any_pieces),
        TEST(a_stream_leaves_its_connection_open),
        TEST(an_error_of_the_engine_is_told_in_place),
        TEST(several_choices_come_from_several_sequences),
        TEST(the_first_byte_is_there_before_the_first_token),
        TEST(silence_is_filled_with_signs_of_life),
        TEST(keys_are_asked_for_where_they_must_be),
        TEST(keys_come_from_a_file_that_is_its_owners_alone),
        TEST(beyond_this_machine_a_key_is_needed),
        TEST(pages_of_others_and_strange_names_are_refused),
        TEST(browsers_are_let_in_when_asked_for),
        TEST(too_much_is_refused_with_its_status),
        TEST(a_full_queue_is_429_and_recovers),
        TEST(who_waits_too_long_in_the_queue_is_told),
        TEST(a_model_that_loads_is_503),
        TEST(heads_and_bodies_that_dribble_are_cut_off),
        TEST(too_many_connections_close_the_idlest),
        TEST(damaged_requests_are_refused_and_nothing_is_lost),
        TEST(clients_that_leave_are_noticed_within_100_ms),
        TEST(a_reader_that_reads_nothing_is_cancelled_and_stalls_nobody),
        TEST(draining_finishes_streams_and_refuses_new_requests),
        TEST(stopping_ends_whatever_runs),
        TEST(a_unix_socket_serves_its_owner),
        TEST(many_streams_at_once_all_get_their_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
