/* bench_http - what the endpoint costs, and how it holds many streams.
 *
 *   bench_http                       latency of the first byte and CPU per streamed token, against a
 *     service by script
 *   bench_http prepare TOKENIZER     a conversation of 100,000 tokens from body to prompt (tokenizer.json)
 *   bench_http streams PORT N TOKENS N connections to a running server at once, each for so many tokens
 *
 * The first needs the scripted service in the same process; its client is another one, so that what is
 * left without the script's thread is the endpoint's CPU time. */
#include <sys/resource.h>
#include <sys/wait.h>

#include "cli/tokenizer_json.h"
#include "coordinator/http.h"
#include "tests/harness/fake_service.h"
#include "tests/harness/http_client.h"

enum { ROUNDS = 200, STREAMS_MAX = 4096 };

static const char body_format[] = "{\"stream\":true,\"max_tokens\":%d,\"ignore_eos\":true,"
                                  "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}";

static void post(int fd, int n_tokens) {
    char body[256];
    snprintf(body, sizeof body, body_format, n_tokens);
    client_post(fd, "/v1/chat/completions", "", body);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static struct http *open_http(struct service **s, const char *script) {
    struct http_config c;
    struct http *h;
    struct err e;
    http_config_init(&c);
    c.port = 0;
    c.thinking = false;
    *s = fake_new(script);
    if (http_start(&h, &c, *s, &e) < 0) {
        fprintf(stderr, "bench_http: %s\n", e.text);
        exit(1);
    }
    clock_sleep_ms(300);
    return h;
}

/* ---- a first byte after a first token ---- */

static void measure_latency(void) {
    static double ms[ROUNDS];
    struct service *s;
    struct http *h = open_http(&s, "x");
    struct buf in;
    buf_init(&in, 1 << 20);
    s->prefill_us = 5000;                         /* the headers have long been sent */
    int fd = client_connect(http_port(h));
    for (int i = 0; i < ROUNDS; i++) {
        buf_clear(&in);
        post(fd, 1);
        CHECK(client_wait(fd, &in, "data:", 5000));
        ms[i] = (double)(clock_now_ns() - atomic_load(&s->told_ns)) / 1e6;
        CHECK(client_wait(fd, &in, "[DONE]\n\n\r\n0\r\n\r\n", 5000));
    }
    qsort(ms, ROUNDS, sizeof *ms, compare);
    printf("first byte after the first token: median %.3f ms, 99 %% %.3f ms\n", ms[ROUNDS / 2],
           ms[ROUNDS * 99 / 100]);
    close(fd);
    http_stop(h);
    fake_free(s);
    buf_deinit(&in);
}

/* ---- CPU per token ---- */

static pid_t readers(int port, int n, int n_tokens) {
    pid_t pid = fork();
    if (pid) return pid;
    int fd[STREAMS_MAX];
    struct buf in;
    buf_init(&in, 1 << 30);
    for (int i = 0; i < n; i++) post(fd[i] = client_connect(port), n_tokens);
    for (int i = 0; i < n; i++) {
        buf_clear(&in);
        if (!client_wait(fd[i], &in, "[DONE]", 120000)) _exit(1);
    }
    _exit(0);
}

static void measure_cpu(int n_streams, int n_tokens, uint64_t token_us) {
    char *script = xcalloc((size_t)n_tokens + 1, 1);
    struct service *s;
    int status;
    for (int i = 0; i < n_tokens; i++) script[i] = (char)('a' + i % 26);
    struct http *h = open_http(&s, script);
    s->token_us = token_us;
    double cpu = cpu_seconds() - (double)atomic_load(&s->cpu_ns) / 1e9;
    uint64_t start = clock_now_ns();
    CHECK(waitpid(readers(http_port(h), n_streams, n_tokens), &status, 0) > 0 && status == 0);
    clock_sleep_ms(100);                          /* the script says what it has used */
    double s_cpu = cpu_seconds() - (double)atomic_load(&s->cpu_ns) / 1e9 - cpu;
    double wall = clock_seconds_since(start), n = (double)n_streams * n_tokens;
    printf("%4d streams, one token in %5llu us each: %8.1f us of CPU per token, "
           "%6.0f tokens/s\n",
           n_streams, (unsigned long long)token_us, s_cpu * 1e6 / n, n / wall);
    http_stop(h);
    fake_free(s);
    free(script);
}

/* ---- a long conversation from body to prompt ---- */

static void put_conversation(struct buf *body) {
    static const char *const words[] = {
        "the",    "server",           "answers",  "with",  "tokens", "of",        "a",
        "model",  "that was trained", "on code:", "int x", "= 7;",   "return 0;", "and",
        "prose,", "Straße",           "which",    "goes",  "on",     "."
    };
    struct rng g;
    rng_init(&g, 1, 1);
    buf_add_text(body, "{\"max_tokens\":10,\"messages\":[");
    for (int m = 0; m < 100; m++) {
        buf_printf(body, "%s{\"role\":\"%s\",\"content\":\"", m ? "," : "", m % 2 ? "assistant" : "user");
        for (int i = 0; i < 760; i++)
            buf_printf(body, "%s%s", i % 13 ? " " : "\\n", words[rng_below(&g, COUNT_OF(words))]);
        buf_add_text(body, "\"}");
    }
    buf_add_text(body, "]}");
}

static void measure_prepare(const char *path) {
    struct tokenizer_json tj;
    struct tokenizer *t;
    struct api_site *site;
    struct buf body;
    struct err e;
    if (tokenizer_json_open(&tj, path, &e) < 0 || tokenizer_new_vocab(&t, &tj.vocab, &e) < 0) {
        fprintf(stderr, "bench_http: %s\n", e.text);
        exit(1);
    }
    struct api_site_config c = scripted_config(t);
    c.info.n_ctx = 1 << 20;
    c.steer = true;
    CHECK(api_site_new(&site, &c, &e) == 0);
    buf_init(&body, 64 << 20);
    put_conversation(&body);
    for (int i = 0; i < 5; i++) {
        struct api_job_input in = { API_CHAT, { body.data, body.size }, "req_1", 1, 1 };
        struct api_error fault;
        uint64_t start = clock_now_ns();
        struct api_job *j = api_job_prepare(site, &in, &fault);
        double ms = clock_seconds_since(start) * 1e3;
        CHECK(j);
        printf("%zu bytes, %zu tokens: %.1f ms\n", body.size, j->prompt[0].tokens.n, ms);
        api_job_free(j);
    }
    buf_deinit(&body);
    api_site_free(site);
    tokenizer_free(t);
    tokenizer_json_close(&tj);
}

/* ---- many streams at a running server ---- */

struct stream {
    int fd;
    struct buf in;
    size_t n_seen, n_tokens;
    uint64_t first_ns, last_ns;
    bool done;
};

static void look(struct stream *s, uint64_t now) {
    for (const char *at; s->n_seen < s->in.size && (at = strstr(s->in.data + s->n_seen, "\n\n"));
         s->n_seen = (size_t)(at + 2 - s->in.data)) {
        const char *event = s->in.data + s->n_seen;
        if (strstr(event, "[DONE]") && strstr(event, "[DONE]") < at) s->done = true;
        if (!memmem(event, (size_t)(at - event), "content\":\"", 10) ||
            memmem(event, (size_t)(at - event), "\"role\"", 6))
            continue;
        if (!s->n_tokens++) s->first_ns = now;
        s->last_ns = now;
    }
}

static void measure_streams(int port, int n, int n_tokens) {
    struct stream *s = xcalloc((size_t)n, sizeof *s);
    struct pollfd *p = xcalloc((size_t)n, sizeof *p);
    double *first = xcalloc((size_t)n, sizeof *first), *last = xcalloc((size_t)n, sizeof *last);
    struct rlimit files = { (rlim_t)n + 64, (rlim_t)n + 64 };
    int left = n, broken = 0;
    setrlimit(RLIMIT_NOFILE, &files);
    uint64_t start = clock_now_ns();
    for (int i = 0; i < n; i++) {
        buf_init(&s[i].in, 64 << 20);
        post(s[i].fd = client_connect(port), n_tokens);
        p[i] = (struct pollfd){ s[i].fd, POLLIN, 0 };
    }
    printf("%d connections after %.2f s\n", n, clock_seconds_since(start));
    while (left && clock_seconds_since(start) < 280) {
        poll(p, (nfds_t)n, 1000);
        for (int i = 0; i < n; i++) {
            char data[65536];
            if (p[i].fd < 0 || !p[i].revents) continue;
            ssize_t k = recv(s[i].fd, data, sizeof data, 0);
            if (k > 0) buf_add(&s[i].in, data, (size_t)k), look(&s[i], clock_now_ns());
            if (k > 0 && !s[i].done) continue;
            broken += !s[i].done;
            p[i].fd = -1;
            left--;
        }
    }
    int n_first = 0;
    for (int i = 0; i < n; i++) {
        if (!s[i].first_ns) continue;
        last[n_first] = (double)(s[i].last_ns - start) / 1e9;
        first[n_first++] = (double)(s[i].first_ns - start) / 1e9;
    }
    qsort(first, (size_t)n_first, sizeof *first, compare);
    qsort(last, (size_t)n_first, sizeof *last, compare);
    printf("%d of %d streams ended, %d broke off, %d had text\n", n - left - broken, n, broken, n_first);
    if (n_first)
        printf("first text after %.2f s (median), %.2f s (last); end after %.2f s (median), %.2f s "
               "(last)\n",
               first[n_first / 2], first[n_first - 1], last[n_first / 2], last[n_first - 1]);
    exit(left || broken);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "prepare") == 0) {
        measure_prepare(argv[2]);
    } else if (argc == 5 && strcmp(argv[1], "streams") == 0) {
        measure_streams((int)strtol(argv[2], NULL, 10), (int)strtol(argv[3], NULL, 10),
                        (int)strtol(argv[4], NULL, 10));
    } else if (argc == 1) {
        measure_latency();
        measure_cpu(1, 2000, 1000);
        measure_cpu(16, 1000, 1000);
        measure_cpu(200, 200, 10000);
    } else {
        fprintf(stderr, "usage: bench_http [prepare TOKENIZER | streams PORT N TOKENS]\n");
        return 2;
    }
    return 0;
}
