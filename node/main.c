#include "node/main.h"

#include "node/main_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/rng.h"
#include "common/sys/clock.h"
#include "common/sys/file.h"
#include "common/sys/host.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    BATCHES = 80,                           /* twice the coordinator's window of 33, and some that are late */
    SEQUENCES = 256, ROWS_DEFAULT = 1024,
    EMBD_UNKNOWN = 7168, VOCAB_UNKNOWN = 163840,  /* of the largest model, when no file says better */
    HELPERS = 4,                            /* most that a plan gives a stage, and one more */
    LAST_WORDS_MS = 100
};

static const double MEMORY_SHARE = 0.85;          /* the rest is the system's */

/* ---- what it says of itself ---- */

static enum msg_backend backend_of(const char *name) {
    if (name && strcmp(name, "cuda") == 0) return MSG_BACKEND_CUDA;
    if (name && strcmp(name, "metal") == 0) return MSG_BACKEND_METAL;
    return MSG_BACKEND_CPU;
}

/* Which backend "the best one here" is. */
static int choose_backend(struct node_process *p, struct err *e) {
    struct kernels_config c = { .backend = p->config.backend, .n_threads = 1 };
    struct kernels *k;
    static const char *const names[MSG_BACKENDS] = { "cpu", "cuda", "metal" };
    int rc = kernels_open(&k, &c, e);
    if (rc < 0) return rc;
    p->config.backend = names[backend_of(k->ops->name)];
    kernels_close(k);
    return 0;
}

static int measure_device(const struct node_process *p, struct kernels_peaks *out, struct err *e) {
    struct kernels_config c = { .backend = p->config.backend, .n_threads = 1 };
    struct kernels *k;
    int rc = kernels_open(&k, &c, e);
    if (rc < 0) return rc;
    rc = kernels_measure(k, out, e);
    kernels_close(k);
    return rc;
}

/* A device that is too full to be measured is planned with as an ordinary one of its kind. */
static int measure(struct node_process *p, struct msg_hello *h, struct err *e) {
    struct kernels_peaks peaks = { 0 };
    struct err why;
    if (!p->config.measure) return 0;
    bool cpu = backend_of(p->config.backend) == MSG_BACKEND_CPU;
    int rc = cpu ? kernels_cpu_measure(&peaks, (int)p->config.n_threads, e) : 0;
    if (rc < 0) return rc;
    if (!cpu && measure_device(p, &peaks, &why) < 0) log_warn("node", "%s", why.text);
    h->read_bytes_per_s = (uint64_t)peaks.read_bytes_s;
    h->int8_per_s = (uint64_t)peaks.int8_ops_s;
    h->f32_per_s = (uint64_t)peaks.f32_ops_s;
    return 0;
}

/* Where others reach our door: as it was bound, or this machine's address on the way to the coordinator. */
static int own_address(struct node_process *p, char out[MSG_ADDRESS_MAX], struct err *e) {
    struct host_port bound, join = { "192.0.2.1", "9" };      /* documentation address: the default route */
    char address[HOST_ADDRESS_MAX];
    out[0] = 0;
    if (!links_address(p->links)[0]) return 0;
    int rc = host_port_parse(links_address(p->links), &bound, e);
    if (rc == 0 && strncmp(p->join, "tcp://", 6) == 0) rc = host_port_parse(p->join, &join, e);
    if (rc < 0) return rc;
    bool any = strcmp(bound.host, "0.0.0.0") == 0 || strcmp(bound.host, "*") == 0 ||
               strcmp(bound.host, "::") == 0;
    if (any && host_address_towards(join.host, join.port, address, NULL) < 0)
        snprintf(address, sizeof address, "127.0.0.1");
    const char *host = any ? address : bound.host;
    bool colons = strchr(host, ':') != NULL;
    snprintf(out, MSG_ADDRESS_MAX, colons ? "tcp://[%.80s]:%s" : "tcp://%.80s:%s", host, bound.port);
    return 0;
}

static int introduce(struct node_process *p, struct err *e) {
    struct msg_hello *h = &p->core_config.hello;
    snprintf(h->name, sizeof h->name, "%s", p->name);
    snprintf(h->build, sizeof h->build, "%s", PLEIADES_BUILD);
    h->backend = backend_of(p->config.backend);
    snprintf(h->device, sizeof h->device, "%s",
             h->backend == MSG_BACKEND_CPU ? kernels_cpu_simd_name() : p->config.backend);
    h->n_threads = p->config.n_threads;
    h->memory_bytes = p->config.memory_bytes;
    h->file = p->files.file;
    h->n_file = p->files.n;
    h->fetches = p->fetch != NULL;
    h->gives = p->give != NULL;
    if (p->keyring) snprintf(h->key, sizeof h->key, "%s", keyring_public(p->keyring));
    int rc = own_address(p, h->address, e);
    return rc < 0 ? rc : measure(p, h, e);
}

/* ---- start ---- */

static char *text_copy(const char *text) {
    size_t n = text ? strlen(text) + 1 : 0;
    return text ? memcpy(xcalloc(1, n), text, n) : NULL;
}

static int read_config(struct node_process *p, const struct node_process_config *c, struct err *e) {
    p->config = *c;
    p->config.bind = text_copy(c->bind);
    p->config.store_path = text_copy(c->store_path);
    if (!p->config.n_threads) p->config.n_threads = host_cores();
    if (!p->config.n_rows_max) p->config.n_rows_max = ROWS_DEFAULT;
    if (!p->config.memory_bytes)
        p->config.memory_bytes = (uint64_t)((double)host_memory_bytes() * MEMORY_SHARE);
    if (c->name) snprintf(p->name, sizeof p->name, "%s", c->name);
    else host_name(p->name);
    if (!peer_name_is_valid(p->name) || (c->name && strlen(c->name) >= sizeof p->name))
        return err_set(e, ERR_INVALID, "name '%s': letters, digits, '.', '_' and '-', at most %d", p->name,
                       MSG_NAME_MAX - 1);
    struct host_port unused;
    if (c->bind && strncmp(c->bind, "tcp://", 6) == 0) return host_port_parse(c->bind, &unused, e);
    return 0;
}

static int find_files(struct node_process *p, const struct node_process_config *c, struct err *e) {
    int rc = c->model_path && !c->stage ? node_files_add(&p->files, c->model_path, e) : 0;
    if (rc == 0 && c->store_path) {
        rc = node_files_add_folder(&p->files, c->store_path, e);
        if (rc == ERR_NOTFOUND) rc = 0;           /* nothing in it yet */
    }
    if (rc == 0 && c->model_path && c->stage) {  /* a stand-in has the dimensions of the file, if it is one */
        node_files_add(&p->files, c->model_path, NULL);
    }
    return rc;
}

/* The stage of a coordinator reads the same files with a ring of its own: a ring belongs to one thread. */
static int open_keys(struct node_process *p, const struct node_process_config *c, struct err *e) {
    if (c->cluster_keys) return keyring_open_cluster(&p->keyring, c->cluster_keys, e);
    if (!c->key_path && !c->key_from_environment) return 0;
    char stored[FILE_PATH_MAX];                   /* what became of a token that is in no file */
    bool in_file = c->key_path && strcmp(c->key_path, "-") != 0;
    snprintf(stored, sizeof stored, "%s/node.key", c->store_path ? c->store_path : "");
    int rc = !in_file && c->store_path ? file_make_folder(c->store_path, e) : 0;
    if (rc == 0) rc = keyring_open_node(&p->keyring, c->key_path, c->store_path ? stored : NULL, e);
    p->has_key = rc == 0;
    return rc;
}

static int find_join(struct node_process *p, const struct node_process_config *c, struct err *e) {
    const char *join = c->join && *c->join ? c->join
                       : p->has_key        ? keyring_server_address(p->keyring)
                                           : "";
    struct host_port unused;
    if (!*join) return err_set(e, ERR_INVALID, "no address of a coordinator (--join HOST:PORT)");
    bool has_scheme = strstr(join, "://") != NULL;
    snprintf(p->join, sizeof p->join, "%s%s", has_scheme ? "" : "tcp://", join);
    return strncmp(p->join, "tcp://", 6) == 0 ? host_port_parse(p->join, &unused, e) : 0;
}

static int open_slots(struct node_process *p, struct err *e) {
    struct slots_need need = { .n_rows_max = p->config.n_rows_max,
                               .n_want_max = SEQUENCES,
                               .n_embd = p->files.n_embd ? p->files.n_embd : EMBD_UNKNOWN,
                               .n_vocab = p->files.n_vocab ? p->files.n_vocab : VOCAB_UNKNOWN,
                               .n_window = BATCHES / 2,
                               .n_helper = HELPERS };
    struct slots_config c = slots_config_of(&need);
    p->n_slot_left = c.n_small / 2;
    return slots_new(&p->slots, p->loop, &c, e);
}

static int open_links(struct node_process *p, struct err *e) {
    struct links_config c = { .loop = p->loop, .net = p->net, .slots = p->slots, .bind = p->config.bind,
                              .keyring = p->keyring, .accepted_first = NODE_LINK_ACCEPTED,
                              .n_accepted_max = NODE_KNOWN_MAX, .header_bytes_max = FRAME_HEADER_BYTES_MAX,
                              .on_frame = shell_on_frame, .on_closed = shell_on_closed, .on_up = shell_on_up,
                              .on_refused = shell_on_refused, .ctx = p };
    if (p->has_key) {                             /* before the door: without a guard zmq lets everybody in */
        int rc = net_guard(p->net, p->loop, p->keyring, e);
        if (rc < 0) return rc;
        p->guarded = true;
    }
    int rc = links_open(&p->links, &c, e);
    return rc < 0 && p->config.bind ? err_wrap(e, rc, "%s", p->config.bind) : rc;
}

static uint64_t incarnation_new(const void *p) {
    uint64_t x = rng_at(clock_wall_ms() ^ (uint64_t)getpid() << 32, clock_now_ns() ^ (uintptr_t)p);
    return x ? x : 1;
}

static void core_trace(void *ctx, const char *text) {
    log_debug("node", "%s: %s", ((struct node_process *)ctx)->name, text);
}

static void open_core(struct node_process *p) {
    struct node_config *c = &p->core_config;
    c->incarnation = incarnation_new(p);
    c->ping_ms = PING_MS;
    c->ping_misses = PING_MISSES;
    c->n_batch_max = BATCHES;
    c->n_slot_max = SEQUENCES;
    c->payload_bytes_max = slots_bytes_max(p->slots);
    if (log_enabled(LOG_DEBUG)) c->trace = (struct trace){ core_trace, p };
    p->core = node_new(c);
    node_outs_init(&p->outs, c);
}

static int open_compute(struct node_process *p, struct err *e) {
    p->compute_config = (struct compute_config){ .factory = p->config.stage,
                                                 .backend = p->config.backend,
                                                 .n_threads = (int)p->config.n_threads,
                                                 .memory_bytes = p->config.memory_bytes,
                                                 .n_slot_max = SEQUENCES,
                                                 .progress = shell_progress,
                                                 .experts_ask = shell_experts_ask,
                                                 .experts_wait = shell_experts_wait,
                                                 .ctx = p };
    p->compute = compute_new(&p->compute_config);
    struct worker_config w = { .name = "compute",
                               .n_job_max = 2 * SEQUENCES + 2 * NODE_COMPUTING_MAX + 64,
                               .n_answer_max = 2 * SEQUENCES + 2 * NODE_COMPUTING_MAX + 64,
                               .run = shell_run_job,
                               .on_answer = shell_on_answer,
                               .ctx = p };
    return worker_start(&p->worker, p->loop, &w, e);
}

static int open_fetch(struct node_process *p, const struct node_process_config *c, struct err *e) {
    if (!c->store_path || c->stage) return 0;
    struct fetch_run_config f = { .loop = p->loop,
                                  .slots = p->slots,
                                  .folder = c->store_path,
                                  .send = sources_send,
                                  .progress = shell_fetch_progress,
                                  .tidied = shell_fetch_tidied,
                                  .done = shell_fetch_done,
                                  .ctx = p };
    p->source_timer = loop_timer_new(p->loop, sources_on_timer, p);
    return fetch_run_new(&p->fetch, &f, e);
}

static int open_give(struct node_process *p, struct err *e) {
    if (p->config.stage || p->config.keeps_weights) return 0;
    struct give_config g = { .loop = p->loop,
                             .slots = p->slots,
                             .files = &p->files,
                             .n_slot_left = p->n_slot_left,
                             .bytes_per_s = p->config.give_bytes_per_s,
                             .send = shell_give_send,
                             .ctx = p };
    return give_new(&p->give, &g, e);
}

static int open_all(struct node_process *p, const struct node_process_config *c, struct err *e) {
    int rc = read_config(p, c, e);
    if (rc == 0 && !c->stage) rc = choose_backend(p, e);
    if (rc == 0) rc = find_files(p, c, e);
    if (rc == 0) rc = open_keys(p, c, e);
    if (rc == 0) rc = find_join(p, c, e);
    if (rc == 0) rc = loop_new(&p->loop, e);
    if (rc == 0 && !c->net) {
        rc = net_new(&p->net, e);
        p->own_net = rc == 0;
    }
    if (rc == 0) rc = open_slots(p, e);
    if (rc == 0) rc = open_links(p, e);
    if (rc == 0) rc = open_fetch(p, c, e);
    if (rc == 0) rc = open_give(p, e);
    if (rc == 0) rc = introduce(p, e);
    if (rc < 0) return rc;
    open_core(p);
    p->timer = loop_timer_new(p->loop, shell_on_timer, p);
    return open_compute(p, e);
}

int node_process_new(struct node_process **out, const struct node_process_config *config, struct err *e) {
    *out = NULL;
    struct node_process *p = xcalloc(1, sizeof *p);
    p->net = config->net;
    p->held.fd = -1;
    p->codec = codec_new();
    buf_init(&p->frame, FRAME_HEADER_BYTES_MAX);
    int rc = open_all(p, config, e);
    if (rc < 0) {
        node_process_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

/* ---- life ---- */

static void on_last_words(void *ctx) {
    loop_stop(((struct node_process *)ctx)->loop);
}

/* LEAVE gets a moment to go out; a load ends at its next sign of progress. */
static void stop_now(struct node_process *p) {
    if (p->stopping) return;
    shell_step(p, &(struct node_event){ .kind = NODE_EV_STOP });
    p->stopping = true;
    compute_give_up(p->compute, UINT64_MAX);
    loop_timer_set(p->timer, LOOP_NEVER);
    p->last_timer = loop_timer_new(p->loop, on_last_words, p);
    loop_timer_set(p->last_timer, clock_now_ns() + LAST_WORDS_MS * UINT64_C(1000000));
}

static void stop_task(struct loop_task *task) {
    stop_now((struct node_process *)((char *)task - offsetof(struct node_process, stop_task)));
}

void node_process_stop(struct node_process *p) {
    p->stop_task.run = stop_task;
    loop_post(p->loop, &p->stop_task);
}

static void on_signal(void *ctx) {
    struct node_process *p = ctx;
    if (p->n_signal++) _exit(130);
    log_info("node", "leaving; a second signal ends at once");
    stop_now(p);
}

static void take_signals(struct node_process *p) {
    struct err e;
    p->signal[0] = loop_signal_new(p->loop, SIGINT, on_signal, p, &e);
    p->signal[1] = loop_signal_new(p->loop, SIGTERM, on_signal, p, &e);
    if (!p->signal[0] || !p->signal[1]) log_warn("node", "signals: %s", e.text);
}

void node_process_run(struct node_process *p) {
    struct err e;
    const char *key = p->has_key ? keyring_server_key(p->keyring) : NULL;
    if (p->config.take_signals) take_signals(p);
    if (links_connect(p->links, NODE_LINK_COORDINATOR, p->join, key, &e) < 0) log_error("node", "%s", e.text);
    shell_step(p, &(struct node_event){ .kind = NODE_EV_TICK });
    loop_run(p->loop);
    for (int i = 0; i < 2; i++) {                /* a batch may still compute: another signal does not wait */
        loop_signal_free(p->signal[i]);
        p->signal[i] = NULL;
    }
}

void node_process_free(struct node_process *p) {
    if (!p) return;
    p->stopping = true;
    fetch_run_free(p->fetch);
    give_free(p->give);
    file_release(&p->held);
    loop_timer_free(p->source_timer);
    if (p->fetching) shell_drop_job(p, p->fetching);
    if (p->worker) worker_stop(p->worker, shell_drop_job);
    compute_free(p->compute);
    links_close(p->links);
    if (p->guarded) net_unguard(p->net);
    if (p->own_net) net_free(p->net);
    for (int i = 0; i < 2; i++) loop_signal_free(p->signal[i]);
    loop_timer_free(p->timer);
    loop_timer_free(p->last_timer);
    loop_timer_free(p->survey.timer);
    if (p->core) node_outs_deinit(&p->outs);
    node_free(p->core);
    slots_free(p->slots);
    loop_free(p->loop);
    keyring_free(p->keyring);
    shell_free_boxes(p);
    node_files_deinit(&p->files);
    codec_free(p->codec);
    buf_deinit(&p->frame);
    free((char *)p->config.bind);
    free((char *)p->config.store_path);
    free(p);
}

const char *node_process_name(const struct node_process *p) {
    return p->name;
}

const char *node_process_address(const struct node_process *p) {
    return links_address(p->links);
}
