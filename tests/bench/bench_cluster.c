/* bench_cluster - what the machinery of a cluster costs: a coordinator without endpoint, its own stage or
 * nodes that join it, and streams of random tokens.
 *
 *     bench_cluster -m MODEL --local                       one stage in this process
 *     bench_cluster -m MODEL --bind 127.0.0.1:7000 --nodes 2 --stages a=0-1,b=2-3    nodes are started
 *       by others
 *
 * Prints one JSON object: time to the first token, tokens/s, the longest gap between two tokens of a stream,
 * where a token's time went, how busy each stage was. With --disturb N a prompt of N tokens comes in the
 * middle, and gap_ms_max is the longest gap of the streams that were there before. */
#include "cli/local.h"
#include "cli/opts.h"
#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/rng.h"
#include "common/sys/clock.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { STREAMS_MAX = 64 };

struct stream {
    uint64_t submitted_ns, first_ns, last_ns, gap_ns;
    uint32_t n_token;
    atomic_bool over;
    int code;
};

static struct service *service;
static struct stream streams[STREAMS_MAX + 1];    /* the last one disturbs */

static void on_token(void *ctx, const struct service_token *t) {
    struct stream *s = ctx;
    uint64_t now = clock_now_ns();
    (void)t;
    if (s->n_token++ == 0) s->first_ns = now;
    else if (now - s->last_ns > s->gap_ns) s->gap_ns = now - s->last_ns;
    s->last_ns = now;
}

static void on_done(void *ctx, const struct service_done *d) {
    struct stream *s = ctx;
    s->code = d->code;
    if (d->code) fprintf(stderr, "bench_cluster: %s\n", d->text);
    atomic_store(&s->over, true);
}

static int begin(struct stream *s, uint32_t n_prompt, uint32_t n_new, uint64_t seed,
                 uint32_t n_vocab, struct err *e) {
    struct service_request r = { .n_token = n_prompt, .n_new_max = n_new };
    int32_t *prompt = xcalloc(n_prompt, sizeof *prompt);
    uint64_t ticket;
    memset(s, 0, sizeof *s);
    s->submitted_ns = clock_now_ns();
    for (uint32_t i = 0; i < n_prompt; i++) prompt[i] = (int32_t)(rng_at(seed, i) % n_vocab);
    r.token = prompt;
    sampler_params_init(&r.sampling);
    r.sampling.temperature = 0;
    r.listener = (struct service_listener){ on_token, NULL, on_done, s };
    int rc = service_submit(service, &r, &ticket, e);
    free(prompt);
    return rc;
}

static bool over(struct stream *s) {
    return atomic_load(&s->over);
}

/* What share of the time each stage computed. */
static void print_stages(const struct service_totals *a, const struct service_totals *b, double us) {
    printf(", \"busy\": [");
    for (uint32_t i = 0; i < MSG_STAGES_MAX && b->stage_compute_us[i]; i++)
        printf("%s%.3f", i ? ", " : "", (double)(b->stage_compute_us[i] - a->stage_compute_us[i]) / us);
    printf("]");
}

static void print(const struct service_totals *a, const struct service_totals *b, int n, uint64_t start) {
    double first = 0, gap = 0;
    uint64_t tokens = 0, last = 0, decode_first = UINT64_MAX;
    for (int i = 0; i < n; i++) {
        const struct stream *s = &streams[i];
        first = MAX(first, (double)(s->first_ns - s->submitted_ns) / 1e6);
        gap = MAX(gap, (double)s->gap_ns / 1e6);
        tokens += s->n_token - 1;
        last = MAX(last, s->last_ns);
        decode_first = MIN(decode_first, s->first_ns);
    }
    double wall = (double)(b->wall_us - a->wall_us), part = 0;
    double seconds = (double)(last - decode_first) / 1e9;
    uint64_t parts[] = { b->wait_us - a->wait_us, b->queue_us - a->queue_us, b->compute_us - a->compute_us,
                         b->hold_us - a->hold_us, b->wire_us - a->wire_us, b->sample_us - a->sample_us };
    for (size_t i = 0; i < COUNT_OF(parts); i++) part += (double)parts[i];
    printf("{\"streams\": %d, \"tokens_per_s\": %.3f, \"first_ms\": %.2f, \"gap_ms_max\": %.2f, "
           "\"seconds\": %.2f, "
           "\"attributed\": %.4f, \"share\": {\"wait\": %.4f, \"queue\": %.4f, \"compute\": %.4f, "
           "\"hold\": %.4f, "
           "\"wire\": %.4f, \"sample\": %.4f}",
           n, seconds > 0 ? (double)tokens / seconds : 0, first, gap, (double)(last - start) / 1e9,
           wall > 0 ? part / wall : 1, (double)parts[0] / wall, (double)parts[1] / wall,
           (double)parts[2] / wall, (double)parts[3] / wall, (double)parts[4] / wall,
           (double)parts[5] / wall);
    print_stages(a, b, (double)(last - start) / 1e3);
    const struct stream *d = &streams[STREAMS_MAX];
    if (d->n_token)
        printf(", \"disturber_first_ms\": %.1f", (double)(d->first_ns - d->submitted_ns) / 1e6);
    printf("}\n");
}

static int wait_serving(double seconds, struct err *e) {
    struct service_info info;
    for (uint64_t start = clock_now_ns(); clock_seconds_since(start) < seconds; clock_sleep_ms(10)) {
        service_info(service, &info);
        if (info.state == SERVICE_SERVING) return 0;
    }
    return err_set(e, ERR_TIMEOUT, "not serving: %s", info.why);
}

static int measure(int n, int n_prompt, int n_new, int disturb, bool show, struct err *e) {
    struct service_info info;
    struct service_totals before, after;
    int rc = 0;
    service_info(service, &info);
    service_totals(service, &before);
    uint64_t start = clock_now_ns();
    for (int i = 0; rc == 0 && i < n; i++)
        rc = begin(&streams[i], (uint32_t)n_prompt, (uint32_t)n_new, (uint64_t)i + 1, info.n_vocab, e);
    bool waits = disturb > 0;
    for (bool all = false; rc == 0 && !all; clock_sleep_ms(1)) {
        all = true;
        bool flowing = true;
        for (int i = 0; i < n; i++) all &= over(&streams[i]), flowing &= streams[i].n_token > 8;
        if (waits && flowing) {
            waits = false;
            for (int i = 0; i < n; i++) streams[i].gap_ns = 0;
            rc = begin(&streams[STREAMS_MAX], (uint32_t)disturb, 2, 999, info.n_vocab, e);
        }
    }
    while (rc == 0 && disturb > 0 && !waits && !over(&streams[STREAMS_MAX])) clock_sleep_ms(1);
    clock_sleep_ms(600);                              /* the totals are told four times a second */
    service_totals(service, &after);
    if (rc == 0 && show) print(&before, &after, n, start);
    return rc;
}

int main(int argc, char **argv) {
    struct service_config c = { .local = &local_stage, .precision = "fast", .wire = "f32", .bound_ms = 250 };
    const char *bind = NULL;
    bool quiet = true;
    int n_threads = 0, n_nodes = 0, n_streams = 1, n_prompt = 16, n_new = 32, rows = 512,
        disturb = 0, warm = 1, warm_prompt = 64;
    const struct opt table[] = {
        OPT_STRING('m', "model", &c.model_path, "FILE", "the GGUF file (required)"),
        OPT_FLAG(0, "local", &c.local_stage, "a stage in this process"),
        OPT_INT('t', "threads", &n_threads, 0, 256, "N", "compute threads of it"),
        OPT_STRING(0, "bind", &bind, "HOST:PORT", "where nodes join"),
        OPT_STRING('k', "key", &c.key_path, "DIR", "keys; without, none"),
        OPT_INT(0, "nodes", &n_nodes, 0, 64, "N", "wait for so many"),
        OPT_STRING(0, "stages", &c.stages, "A=0-1,B=2-3", "the plan"),
        OPT_STRING(0, "wire", &c.wire, "f32|f16s", "between stages"),
        OPT_INT('s', "streams", &n_streams, 1, STREAMS_MAX, "N", "at the same time"),
        OPT_INT('p', "prompt", &n_prompt, 1, 1 << 20, "N", "tokens of each prompt"),
        OPT_INT('n', "new", &n_new, 1, 1 << 20, "N", "tokens of each answer"),
        OPT_INT(0, "rows", &rows, 16, 4096, "N", "of a batch"),
        OPT_INT(0, "disturb", &disturb, 0, 1 << 20, "N", "a prompt of so many tokens in the middle"),
        OPT_INT(0, "warm", &warm, 0, 10, "N", "rounds before the one that counts"),
        OPT_INT(0, "warm-prompt", &warm_prompt, 1, 1 << 20, "N", "tokens of their prompts, at most"),
        OPT_FLAG('q', "quiet", &quiet, "no log"),
    };
    const struct opts spec = { "bench_cluster", "", "Measures a cluster.", table, COUNT_OF(table), 0, 0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    char address[300];
    struct err e = { 0 };
    snprintf(address, sizeof address, "tcp://%.280s", bind ? bind : "");
    if (quiet) log_set_level(LOG_ERROR);
    c.bind = bind ? address : NULL;
    c.insecure = !c.key_path;
    c.n_threads = (uint32_t)n_threads;
    c.n_node_expected = (uint32_t)n_nodes;
    c.n_slot = (uint32_t)n_streams + 1;
    c.n_rows_max = (uint32_t)rows;
    c.n_ctx = (uint32_t)MAX(n_prompt + n_new, disturb) + 256;
    int rc = service_start(&service, &c, &e);
    if (rc == 0) rc = wait_serving(120, &e);
    for (int i = 0; rc == 0 && i < warm; i++)
        rc = measure(n_streams, MIN(n_prompt, warm_prompt), MIN(n_new, 8), 0, false, &e);
    if (rc == 0) rc = measure(n_streams, n_prompt, n_new, disturb, true, &e);
    service_stop(service);
    return rc < 0 ? opts_failure(&spec, &e) : 0;
}
