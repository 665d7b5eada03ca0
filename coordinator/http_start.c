/* http_start - life of the endpoint: defaults, sockets, keys, threads; see http.h. */
#include "coordinator/http.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/file.h"
#include "coordinator/http_private.h"

enum { PEM_BYTES_MAX = 1 << 20 };

void http_config_init(struct http_config *c) {
    *c = (struct http_config){
        .host = "127.0.0.1", .port = 8080, .thinking = true, .temperature = 1, .top_p = 1
    };
    c->limit = (struct http_limits){
        .connections = 1200,
        .jobs = 1100,
        .head_bytes = 32 << 10,
        .body_bytes = 64 << 20,
        .bodies_bytes = (uint64_t)1 << 30,
        .head_ms = 60000,
        .body_ms = 300000,
        .write_ms = 60000,
        .write_bytes = 8 << 20,
        .keep_alive_ms = 10000,
        .workers = 2,
        .state_ms = 60000,
    };
}

/* ---- parts ---- */

static int check_config(const struct http_config *c, struct err *e) {
    const struct http_limits *l = &c->limit;
    if (!c->tls_cert != !c->tls_key) return err_set(e, ERR_INVALID, "TLS needs a certificate and a key");
    if (c->port < -1 || c->port > 65535) return err_set(e, ERR_INVALID, "port %d", c->port);
    if (c->port < 0 && !c->unix_path)
        return err_set(e, ERR_INVALID, "neither a port nor a Unix socket to listen at");
    if (l->connections < 1 || l->connections > 60000 || l->jobs < 1 || l->jobs > 60000)
        return err_set(e, ERR_INVALID, "connections and requests must be 1 to 60000");
    if (l->head_bytes < 4096 || l->head_bytes > 1 << 24 || l->body_bytes < 1024 ||
        l->body_bytes > (uint64_t)1 << 30)
        return err_set(e, ERR_INVALID, "a head of 4 KiB to 16 MiB, a body of 1 KiB to 1 GiB");
    if (l->head_ms < 1 || l->body_ms < 1 || l->write_ms < 1 || l->keep_alive_ms < 1 ||
        l->write_bytes < 4096 || l->state_ms < 1 || l->queue_ms < 0 || l->request_ms < 0)
        return err_set(e, ERR_INVALID, "a time limit that is not positive");
    return 0;
}

static int read_pem(const char *path, char **out, struct err *e) {
    void *data;
    size_t size;
    int rc = file_read_all(path, PEM_BYTES_MAX, &data, &size, e);
    if (rc == 0) *out = data;
    return rc;
}

static int open_tls(struct http *h, const struct http_config *c, struct err *e) {
    if (!c->tls_cert) return 0;
    int rc = http_guard_file(c->tls_key, e);
    if (rc == 0) rc = read_pem(c->tls_cert, &h->cert, e);
    return rc < 0 ? rc : read_pem(c->tls_key, &h->key, e);
}

static int open_sockets(struct http *h, const struct http_config *c, struct err *e) {
    int rc = 0;
    bool v6 = c->host && strchr(c->host, ':');
    if (c->port >= 0) rc = http_listen_tcp(&h->listeners, c->host, c->port, e);
    if (rc == 0 && c->unix_path) rc = http_listen_unix(&h->listeners, c->unix_path, e);
    if (rc < 0) return rc;
    if (h->listeners.beyond && !h->guard.n_keys && !c->insecure)
        return err_set(e, ERR_DENIED, "%s can be reached from other machines, and there is no API key: "
                                      "give one (--api-key-file), or say --insecure-http", c->host);
    if (c->port < 0) snprintf(h->url, sizeof h->url, "unix:%s", c->unix_path);
    else
        snprintf(h->url, sizeof h->url, "%s://%s%s%s:%d", h->cert ? "https" : "http", v6 ? "[" : "",
                 c->host, v6 ? "]" : "", h->listeners.port);
    return 0;
}

static struct chat_text metadata(const struct gguf *g, const char *key) {
    struct gguf_str text;
    if (!g || gguf_get_str(g, key, &text, NULL) < 0) return (struct chat_text){ NULL, 0 };
    return (struct chat_text){ text.data, (size_t)text.len };
}

static int read_defaults(struct http *h, const struct http_config *c, struct err *e) {
    const struct gguf *g = service_gguf(h->service);
    struct api_defaults *d = &h->site_config.defaults;
    bool thinking = c->thinking;
    d->encoding = chat_encoding_guess(metadata(g, "general.name"), metadata(g, "tokenizer.chat_template"));
    int rc = c->encoding ? chat_encoding_read(c->encoding, &d->encoding, e) : 0;
    if (rc == 0 && c->effort)
        rc = chat_effort_read(d->encoding, chat_text_of(c->effort), &thinking, &d->effort, e);
    d->thinking = thinking;
    d->budget = c->thinking_budget;
    return rc;
}

static const char *keep_name(struct http *h, int i, const char *name) {
    snprintf(h->names[i], sizeof h->names[i], "%s", name);
    return h->names[i];
}

static int read_site(struct http *h, const struct http_config *c, struct err *e) {
    struct api_site_config *s = &h->site_config;
    if (c->model_id) s->model_id = keep_name(h, 0, c->model_id);
    for (int i = 0; i < HTTP_NAMES_MAX && c->aliases[i]; i++)
        h->name_list[s->n_aliases++] = keep_name(h, 2 + i, c->aliases[i]);
    s->aliases = h->name_list;
    s->strict_model = c->strict_model;
    s->inline_thinking = c->inline_thinking;
    s->loose_markup = c->loose_markup;
    s->memory = h->memory;
    s->max_tokens = (uint32_t)MAX(c->max_tokens, 0);
    s->temperature = c->temperature, s->top_p = c->top_p, s->min_p = c->min_p, s->top_k = c->top_k;
    s->steer = true;
    return read_defaults(h, c, e);
}

static int open_memory(struct http *h, const struct http_config *c, struct err *e) {
    int rc = api_memory_new(&h->memory, 0, e);
    return rc < 0 || !c->state ? rc : api_memory_keep_in(h->memory, c->state, e);
}

static void close_memory(struct http *h) {
    struct err e = { .text = "" };
    if (h->memory && api_memory_save(h->memory, &e) < 0) log_error("http", "%s", e.text);
    api_memory_free(h->memory);
}

/* Ids of answers and seeds of sampling: not secrets, but different in every process. */
static void seed(struct http *h) {
    uint64_t chance = clock_wall_ms() ^ (uint64_t)getpid() << 32 ^ clock_now_ns();
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        uint64_t more = 0;
        if (read(fd, &more, sizeof more) == (ssize_t)sizeof more) chance ^= more;
        close(fd);
    }
    rng_init(&h->rng, chance, 0);
}

static void open_scratch(struct http *h) {
    size_t n = (size_t)h->limit.connections;
    h->peers.fd = xcalloc(n, sizeof *h->peers.fd);
    h->peers.left = xcalloc(n, sizeof *h->peers.left);
    h->peers.x = xcalloc(n, sizeof *h->peers.x);
    h->peers.poll = xcalloc(n, sizeof *h->peers.poll);
    ring_init(&h->notes, HTTP_NOTES_MAX);
}

static int start_thread(struct http *h, struct err *e) {
    sigset_t all, before;
    sigfillset(&all);                           /* signals are the main thread's business; SIGPIPE nobody's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&h->thread, NULL, http_serve, h);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    h->running = !failed;
    return failed ? err_set(e, ERR_NOMEM, "starting a thread") : 0;
}

/* ---- life ---- */

static int open_all(struct http *h, const struct http_config *c, struct err *e) {
    int rc = http_guard_init(&h->guard, c, e);
    if (rc == 0) rc = open_tls(h, c, e);
    if (rc == 0) rc = open_memory(h, c, e);
    if (rc == 0) rc = read_site(h, c, e);
    if (rc == 0) rc = http_pipe(h->wake, e);
    if (rc == 0) rc = open_sockets(h, c, e);
    if (rc == 0) rc = http_work_new(&h->work, c->limit.workers, http_wake, h, e);
    if (rc == 0) rc = http_daemons_start(h, e);
    if (rc == 0) desk_open_site(h);               /* a model that is there need not be waited for */
    return rc < 0 ? rc : start_thread(h, e);
}

int http_start(struct http **out, const struct http_config *config, struct service *s, struct err *e) {
    *out = NULL;
    int rc = check_config(config, e);
    if (rc < 0) return rc;
    struct http *h = xcalloc(1, sizeof *h);
    h->service = s;
    h->limit = config->limit;
    h->config.early_headers = config->early_headers;
    h->config.metrics_open = config->metrics_open;
    h->wake[0] = h->wake[1] = -1;
    http_listeners_init(&h->listeners);
    http_raise_files(h->limit.connections + 256);
    json_object_seed(0);                          /* before there are threads that parse */
    seed(h);
    open_scratch(h);
    rc = open_all(h, config, e);
    if (rc < 0) {
        http_stop(h);
        return rc;
    }
    log_info("http", "listening at %s%s", h->url, h->guard.n_keys ? "" : ", no API key needed");
    *out = h;
    return 0;
}

int http_port(const struct http *h) {
    return h->listeners.port;
}

const char *http_url(const struct http *h) {
    return h->url;
}

bool http_key_required(const struct http *h) {
    return h->guard.n_keys > 0;
}

void http_drain(struct http *h) {
    atomic_store(&h->draining, true);
    http_wake(h);
}

bool http_idle(struct http *h) {
    return atomic_load(&h->n_busy) == 0;
}

void http_stop(struct http *h) {
    if (!h) return;
    if (h->running) {
        atomic_store(&h->stopping, true);
        http_wake(h);
        pthread_join(h->thread, NULL);
    }
    http_daemons_stop(h);
    http_work_free(h->work);
    http_listeners_close(&h->listeners);
    for (int i = 0; i < 2; i++)
        if (h->wake[i] >= 0) close(h->wake[i]);
    api_site_free(h->site);
    close_memory(h);
    ring_deinit(&h->notes);
    free(h->peers.fd), free(h->peers.left), free(h->peers.x), free(h->peers.poll);
    if (h->key) memset(h->key, 0, strlen(h->key));
    free(h->cert), free(h->key);
    free(h);
}
