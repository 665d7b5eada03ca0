/* cmd_serve - the coordinator with its endpoint: a model on this machine alone, or over the machines of a
 * cluster.
 *
 * The service and the endpoint have threads of their own; the main thread waits for signals and says what
 * changes. The first SIGINT or SIGTERM drains (nothing new, what runs is finished), the second ends at
 * once with an error to every client that still waits. */
#include "cli/cmd.h"

#include "cli/http_options.h"
#include "cli/local.h"
#include "cli/opts.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/loop.h"
#include "kernels/kernels.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { WATCH_MS = 250 };

struct serve {
    struct service_config config;
    struct service_header header;
    struct service *service;
    struct http_options http_options;
    struct http *http;
    struct loop *loop;
    struct loop_timer *watch;
    struct loop_signal *signal[2];
    enum service_state state;
    char why[96];
    int n_signal;
    bool quiet, told;
};

/* ---- what happens ---- */

static void say(const struct serve *s, const char *format, ...) PRINTF_LIKE(2, 3);

static void say(const struct serve *s, const char *format, ...) {
    char line[512];                                   /* in one piece: other threads log */
    va_list args;
    if (s->quiet) return;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    n = MIN(MAX(n, 0), (int)sizeof line - 2);
    line[n] = '\n';
    line[n + 1] = 0;
    fputs(line, stderr);
}

static void say_changes(struct serve *s) {
    struct service_info info;
    service_info(s->service, &info);
    if (s->told && info.state == s->state && strcmp(info.why, s->why) == 0) return;
    s->told = true;
    s->state = info.state;
    snprintf(s->why, sizeof s->why, "%s", info.why);
    if (info.state == SERVICE_SERVING)
        say(s, "serving: %u node%s, %u streams of %u tokens", info.n_node, info.n_node == 1 ? "" : "s",
            info.n_slot, info.n_ctx);
    else if (info.state == SERVICE_LOADING) say(s, "not serving yet: %s", info.why);
    else say(s, "draining: no new requests");
}

static void on_watch(void *ctx) {
    struct serve *s = ctx;
    say_changes(s);
    if (s->n_signal && service_idle(s->service) && http_idle(s->http)) {
        loop_stop(s->loop);
        return;
    }
    loop_timer_set(s->watch, clock_now_ns() + (s->n_signal ? 20 : WATCH_MS) * UINT64_C(1000000));
}

static void on_signal(void *ctx) {
    struct serve *s = ctx;
    if (s->n_signal++ == 0) {
        http_drain(s->http);
        service_drain(s->service);
        say(s, "finishing what runs; a second signal ends at once");
        loop_timer_set(s->watch, clock_now_ns());
    } else if (s->n_signal == 2) {
        loop_stop(s->loop);
    } else {
        _exit(130);
    }
}

/* ---- life ---- */

static int watch(struct serve *s, struct err *e) {
    int rc = loop_new(&s->loop, e);
    if (rc < 0) return rc;
    s->signal[0] = loop_signal_new(s->loop, SIGINT, on_signal, s, e);
    s->signal[1] = s->signal[0] ? loop_signal_new(s->loop, SIGTERM, on_signal, s, e) : NULL;
    if (!s->signal[1]) return e->code;
    s->watch = loop_timer_new(s->loop, on_watch, s);
    loop_timer_set(s->watch, clock_now_ns());
    return 0;
}

/* From here on a signal does what it does to any program: nobody waits for a batch that still computes. */
static void unwatch_signals(struct serve *s) {
    for (int i = 0; i < 2; i++) {
        loop_signal_free(s->signal[i]);
        s->signal[i] = NULL;
    }
}

static void unwatch(struct serve *s) {
    unwatch_signals(s);
    loop_timer_free(s->watch);
    loop_free(s->loop);
}

/* Before signals are watched: who is tired of waiting ends the program. */
static int fetch_header(struct serve *s, struct err *e) {
    say(s, "no model file here: waiting at %s for a node that has one", s->config.bind);
    int rc = service_header_fetch(&s->header, &s->config, e);
    if (rc < 0) return rc;
    s->config.header = &s->header;
    s->config.bind = s->header.bind;
    return 0;
}

static int serve(struct serve *s, struct err *e) {
    int rc = s->config.model_path ? 0 : fetch_header(s, e);
    if (rc == 0) rc = watch(s, e);
    if (rc == 0) rc = service_start(&s->service, &s->config, e);
    if (rc == 0) rc = http_start(&s->http, http_options_config(&s->http_options), s->service, e);
    if (rc == 0) {
        say(s, "endpoint at %s", http_url(s->http));
        if (*service_node_address(s->service)) say(s, "nodes join at %s", service_node_address(s->service));
        loop_run(s->loop);
        unwatch_signals(s);
    }
    http_stop(s->http);
    service_stop(s->service);
    if (s->loop) unwatch(s);
    buf_deinit(&s->header.bytes);
    return rc;
}

static enum numerics numerics_of(const char *numerics, const char *precision) {
    if (strcmp(numerics, "exact") == 0) return NUMERICS_EXACT;
    return strcmp(numerics, "official") == 0 && strcmp(precision, "f32") == 0 ? NUMERICS_WIDE
                                                                              : NUMERICS_OFFICIAL;
}

int cmd_serve(int argc, char **argv) {
    struct serve s = { .config = { .local = &local_stage, .bound_ms = 250 } };
    struct service_config *c = &s.config;
    const char *bind = NULL, *numerics = "official";
    c->precision = "fast";
    c->wire = "f32";
    c->objective = "latency";
    http_options_init(&s.http_options);
    bool local_node = true, give_weights = true;
    int n_threads = 0, n_nodes = 0, n_slots = 8, n_ctx = 0, n_rows = 512, n_queue = 256, bound = 250;
    const struct opt table[] = {
        OPT_STRING('m', "model", &c->model_path, "FILE",
                   "the GGUF file; without it the first node that has one says what the model is "
                   "(with --no-local-node)"),
        OPT_INT('c', "ctx", &n_ctx, 0, 1 << 30, "N",
                "most tokens of one conversation; 0: the model's, or 64K"),
        OPT_INT(0, "slots", &n_slots, 1, 256, "N", "conversations computed at the same time"),
        OPT_INT(0, "queue", &n_queue, 1, 1 << 16, "N",
                "requests that may wait; beyond that they are told 429"),
        OPT_FLAG('q', "quiet", &s.quiet, "say only what is wrong"),
        HTTP_OPTIONS(&s.http_options),
        OPT_GROUP("This machine"),
        OPT_FLAG(0, "local-node", &local_node, "compute on this machine, too"),
        OPT_STRING(0, "name", &c->local_name, "NAME", "of this machine in plans; default: local"),
        OPT_INT('t', "threads", &n_threads, 0, 256, "N", "compute threads; 0: all cores"),
        OPT_U64(0, "memory", &c->local_memory_bytes, 0, UINT64_MAX, "BYTES",
                "for weights, state and buffers (64G); 0: 85 % of what is installed"),
        OPT_STRING(0, "backend", &c->backend, "NAME",
                   "cpu, cuda or metal; default: the best one here"),
        OPT_GROUP("The cluster"),
        OPT_STRING(0, "bind-nodes", &bind, "HOST:PORT",
                   "where nodes join; without it this machine works alone"),
        OPT_STRING('k', "key", &c->key_path, "DIR",
                   "the cluster's keys, made by `pleiades keys init`"),
        OPT_FLAG(0, "insecure", &c->insecure,
                 "no keys: everybody on the network can join, listen and alter"),
        OPT_INT(0, "nodes", &n_nodes, 0, 64, "N",
                "wait for so many machines (this one counts) before the first plan; 0: two quiet "
                "seconds"),
        OPT_FLAG(0, "give", &give_weights,
                 "let nodes without the model fetch it from here; if not, from one another only"),
        OPT_STRING(0, "stages", &c->stages, "A=0-20,B=21-42",
                   "this plan, instead of the best one; A=0-20+C+D: C and D hold experts of A's layers"),
        OPT_CHOICE(0, "objective", &c->objective, "latency|throughput",
                   "plan for the least time of one stream, or the most tokens of all"),
        OPT_CHOICE(0, "wire", &c->wire, "f32|f16s", "streams between stages: exact, or 16 bits"),
        OPT_GROUP("Computing"),
        OPT_INT(0, "rows", &n_rows, 16, 4096, "N", "most rows of one batch"),
        OPT_INT(0, "bound-ms", &bound, 1, 60000, "N",
                "how much a long prompt may delay the next token of others"),
        OPT_CHOICE(0, "numerics", &numerics, "official|official-f16|exact",
                   "state rounded as the model was trained, or not at all"),
        OPT_CHOICE(0, "precision", &c->precision, "fast|f32",
                   "int8 activations for quantised weights, or f32 everywhere"),
    };
    const struct opts spec = { "serve",
                               "",
                               "Answers requests with a model: on this machine alone, or over the machines "
                               "that join it.",
                               table,
                               COUNT_OF(table),
                               0,
                               0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!c->model_path && (local_node || !bind)) return opts_usage_error(&spec, "--model is required");
    if (bind && !c->key_path && !c->insecure)
        return opts_usage_error(
            &spec, "--bind-nodes needs --key DIR (see `pleiades keys init`), or --insecure");
    if (!bind && (n_nodes > 1 || c->stages || !local_node))
        return opts_usage_error(&spec, "a cluster needs --bind-nodes HOST:PORT");
    if (!bind && c->key_path) return opts_usage_error(&spec, "--key is for --bind-nodes");
    char address[300];
    snprintf(address, sizeof address, "tcp://%.280s", bind ? bind : "");
    c->bind = bind ? address : NULL;
    c->local_stage = local_node;
    c->keeps_weights = !give_weights;
    c->n_threads = (uint32_t)n_threads;
    c->n_node_expected = (uint32_t)n_nodes;
    c->n_slot = (uint32_t)n_slots;
    c->n_ctx = (uint32_t)n_ctx;
    c->n_rows_max = (uint32_t)n_rows;
    c->n_queue_max = (uint32_t)n_queue;
    c->bound_ms = (uint32_t)bound;
    c->numerics = (int)numerics_of(numerics, c->precision);
    if (s.quiet && !getenv("PLEIADES_LOG")) log_set_level(LOG_WARN);
    struct err e = { 0 };
    return serve(&s, &e) < 0 ? opts_failure(&spec, &e) : 0;
}
