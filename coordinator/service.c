/* service - the shell of the coordinator's core: loop, links, time.
 *
 *     caller's thread           loop thread                                        other machines
 *     service_submit --task--> entry_begin --+
 *     service_cancel --task--> cancel_run ---+--> service_step: coord_step(event) --> outs:
 *                              on_frame <----|----------------------------------------- frames
 *                              timer --------+      SEND -> links_send ---------------> frames
 *                                                   TOKEN, DONE -> listener
 *
 * Two doors: inproc:// for the stage of this process, tcp:// for the others; their link numbers do not
 * overlap. A step is never entered twice: what a listener wants to do next, it posts. */
#include "coordinator/service_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/rng.h"
#include "common/share/share_server.h"
#include "common/sys/clock.h"
#include "common/sys/host.h"
#include "common/sys/keyring.h"
#include "common/wire/link_set.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    FRAME_BYTES_MAX = FRAME_HEADER_BYTES_MAX,
    SLOTS_DEFAULT = 8, CTX_DEFAULT = 65536, QUEUE_DEFAULT = 256, ROWS_DEFAULT = 512, BOUND_DEFAULT = 250,
    LAST_WORDS_MS = 100,                          /* for LEAVE to get out before the links close */
    PIECE_BYTES = 1 << 20                         /* of weights; a slot must hold one */
};

/* ---- messages out ---- */

static struct links *links_of(struct service *s, uint32_t link) {
    return link >= SERVICE_NODE_FIRST ? s->node_links : s->local_links;
}

void service_send_payload(struct service *s, uint32_t link, const struct msg *m, struct payload payload) {
    struct err e;
    buf_clear(&s->frame);
    if (frame_pack(m, payload.bytes, &s->frame, &e) < 0) {
        log_error("coordinator", "%s cannot be packed: %s", msg_kind_name(m->kind), e.text);
        slots_give(s->slots, payload);
        return;
    }
    links_send(links_of(s, link), link, s->frame.data, s->frame.size, payload, false);
}

void service_send(struct service *s, uint32_t link, const struct msg *m) {
    service_send_payload(s, link, m, (struct payload){ 0 });
}

static void drop(struct service *s, uint32_t link) {
    link_set_remove(s->known, SERVICE_KNOWN_MAX, link);
    links_drop(links_of(s, link), link);
}

/* ---- the step ---- */

static void on_state(struct service *s, const char *text) {
    struct coord_view v = coord_view(s->coord);
    log_info("coordinator", "epoch %llu, %s", (unsigned long long)v.epoch, text);
    s->shown_ns = 0;
}

static void carry_out(struct service *s) {
    for (uint32_t i = 0; i < s->outs.n; i++) {
        const struct coord_out *o = &s->outs.item[i];
        switch (o->kind) {
        case COORD_OUT_SEND: service_send(s, o->link, o->msg); break;
        case COORD_OUT_DROP: drop(s, o->link); break;
        case COORD_OUT_ACCEPTED: entry_accepted(entry_of_tag(o->tag), o->request); break;
        case COORD_OUT_TOKEN: entry_token(entry_of_tag(o->tag), o->token, o->index); break;
        case COORD_OUT_DONE:
            entry_of_tag(o->tag)->n_cached = o->n_cached;
            entry_done(entry_of_tag(o->tag), o->code, o->text);
            break;
        case COORD_OUT_FREE: slots_give(s->slots, o->payload); break;
        case COORD_OUT_STATE: on_state(s, o->text); break;
        case COORD_OUT_NOTICE: log_warn("coordinator", "%s (%s)", o->text, err_text(o->code)); break;
        }
    }
}

void service_step(struct service *s, struct coord_event *ev) {
    CHECK(!s->in_step);
    s->in_step = true;
    ev->now_ns = clock_now_ns();
    coord_step(s->coord, ev, &s->outs);
    carry_out(s);
    loop_timer_set(s->timer, s->stopping ? LOOP_NEVER : s->outs.deadline_ns);
    s->in_step = false;
    entries_progress(s);
    service_show(s);
}

static void on_timer(void *ctx) {
    service_step(ctx, &(struct coord_event){ .kind = COORD_EV_TICK });
}

/* ---- messages in ---- */

static void refuse(struct service *s, uint32_t link, int code, const char *text) {
    struct msg m = { .kind = MSG_REFUSE, .incarnation = s->coord_config.incarnation };
    m.u.refuse.code = code;
    snprintf(m.u.refuse.text, sizeof m.u.refuse.text, "%.250s", text);
    service_send(s, link, &m);
    drop(s, link);
}

/* Whether the key under which the link came in belongs to who it says it is. */
static int admit(struct service *s, uint32_t link, const struct msg_hello *h, struct err *e) {
    if (!s->keyring || link < SERVICE_NODE_FIRST) return 0;
    return links_admit(s->node_links, link, h->name, h->key, e);
}

/* A node measures its way to us; the core has no part in it. */
static void on_probe(struct service *s, uint32_t link, const struct msg_probe *probe,
                     struct payload payload) {
    struct msg m = { .kind = MSG_PROBE_DONE, .incarnation = s->coord_config.incarnation };
    slots_give(s->slots, payload);
    m.epoch = coord_view(s->coord).epoch;
    if (probe_arrives(&s->probes, link, probe, payload.bytes, clock_now_ns(), &m.u.probe_done))
        service_send(s, link, &m);
}

static void on_frame(void *ctx, uint32_t link, const void *header, size_t header_bytes,
                     struct payload take_payload) {
    struct service *s = ctx;
    bool known = link_set_has(s->known, SERVICE_KNOWN_MAX, link);
    struct frame_rules rules = { .kinds = known ? 0 : FRAME_KIND(MSG_HELLO),
                                 .payload_bytes_max = slots_bytes_max(s->slots) };
    struct msg m;
    struct err e = { 0 };
    int rc = s->stopping ? ERR_CANCELLED
                         : frame_unpack(s->codec, header, header_bytes, take_payload.bytes, &rules, &m, &e);
    if (rc == 0 && m.kind == MSG_HELLO) rc = admit(s, link, &m.u.hello, &e);
    if (rc < 0) {
        slots_give(s->slots, take_payload);
        if (s->stopping) return;
        links_complain(link < SERVICE_NODE_FIRST ? s->local_links : s->node_links, link,
                       "coordinator", e.text);
        refuse(s, link, rc, e.text);
        return;
    }
    if (m.kind == MSG_HELLO) link_set_add(s->known, SERVICE_KNOWN_MAX, link);
    if (m.kind == MSG_WEIGHTS_GET && s->share_server) {
        share_server_on_get(s->share_server, link, &m.u.weights_get);
        return;
    }
    if (m.kind == MSG_PROBE) {
        on_probe(s, link, &m.u.probe, take_payload);
        return;
    }
    service_step(s, &(struct coord_event){
                        .kind = COORD_EV_MSG, .link = link, .msg = &m, .take_payload = take_payload });
}

static void on_closed(void *ctx, uint32_t link) {
    struct service *s = ctx;
    link_set_remove(s->known, SERVICE_KNOWN_MAX, link);
    if (s->share_server) share_server_on_closed(s->share_server, link);
    if (!s->stopping) service_step(s, &(struct coord_event){ .kind = COORD_EV_LINK_CLOSED, .link = link });
}

/* ---- start ---- */

static char *text_copy(const char *text) {
    size_t n = text ? strlen(text) + 1 : 0;
    return text ? memcpy(xcalloc(1, n), text, n) : NULL;
}

static void config_copy(struct service *s, const struct service_config *c) {
    struct service_config *to = &s->config;
    *to = *c;
    to->model_path = text_copy(c->model_path);
    to->local_name = text_copy(c->local_name);
    to->bind = text_copy(c->bind);
    to->key_path = text_copy(c->key_path);
    to->stages = text_copy(c->stages);
    to->backend = text_copy(c->backend);
    to->precision = text_copy(c->precision);
    to->wire = text_copy(c->wire);
    to->objective = text_copy(c->objective);
    if (!to->n_slot) to->n_slot = SLOTS_DEFAULT;
    if (!to->n_queue_max) to->n_queue_max = QUEUE_DEFAULT;
    if (!to->n_rows_max) to->n_rows_max = ROWS_DEFAULT;
    if (!to->bound_ms) to->bound_ms = BOUND_DEFAULT;
    to->n_rows_max = MIN(to->n_rows_max, (uint32_t)MSG_ROWS_MAX);
}

static void config_free(struct service_config *c) {
    free((char *)c->model_path);
    free((char *)c->local_name);
    free((char *)c->bind);
    free((char *)c->key_path);
    free((char *)c->stages);
    free((char *)c->backend);
    free((char *)c->precision);
    free((char *)c->wire);
    free((char *)c->objective);
}

static int config_check(const struct service_config *c, struct err *e) {
    if (!c->model_path && !c->header)
        return err_set(e, ERR_INVALID, "a model file is needed, for its tokenizer and its sizes");
    if (!c->model_path && c->local_stage)
        return err_set(e, ERR_INVALID, "a stage in this process needs a model file");
    if (!c->local_stage && !c->bind)
        return err_set(e, ERR_INVALID, "neither a stage in this process nor an address for nodes");
    if (c->local_stage && !c->local)
        return err_set(e, ERR_INVALID, "nobody says how a stage is started in this process");
    struct host_port unused;
    if (c->bind && host_port_parse(c->bind, &unused, e) < 0) return ERR_INVALID;
    if (c->bind && !c->key_path && !c->insecure)
        return err_set(e, ERR_DENIED, "nodes need a key file, or an explicit word that they need none");
    if (c->n_slot > MSG_SEQS_MAX / 2)
        return err_set(e, ERR_LIMIT, "%u slots, at most %d", c->n_slot, MSG_SEQS_MAX / 2);
    return 0;
}

static int open_model(struct service *s, struct err *e) {
    const struct service_header *h = s->config.header;
    int rc = s->config.model_path
                 ? gguf_open(&s->gguf, s->config.model_path, e)
                 : gguf_open_header(&s->gguf, h->bytes.data, h->bytes.size, h->file_bytes, h->name, e);
    if (rc == 0) rc = hparams_read(&s->hp, s->gguf, e);
    if (rc == 0) rc = tokenizer_new(&s->tokenizer, s->gguf, e);
    if (rc == 0) rc = shard_fingerprint(s->gguf, &s->model, e);
    if (rc == 0) rc = plan_model_read(s->plan_model, s->gguf, e);
    if (rc == 0) rc = sampler_init(&s->sampler, (int)s->hp.n_vocab, e);
    if (rc < 0) return rc;
    s->item = malloc(s->hp.n_vocab * sizeof *s->item);
    s->only = calloc(s->hp.n_vocab / 64 + 1, sizeof *s->only);
    if (!s->item || !s->only) return err_set(e, ERR_NOMEM, "no memory for candidates");
    const char *path = s->config.model_path ? s->config.model_path : h->name, *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    snprintf(s->model_name, sizeof s->model_name, "%s", s->hp.name[0] ? s->hp.name : name);
    if (!s->config.n_ctx) s->config.n_ctx = MIN(s->hp.n_ctx_train, CTX_DEFAULT);
    s->config.n_ctx = MIN(s->config.n_ctx, s->hp.n_ctx_train);
    return 0;
}

/* Only results come in, and rows that were asked for. */
static int open_slots(struct service *s, struct err *e) {
    uint32_t window = s->coord_config.n_window_max, row = s->hp.n_vocab * (uint32_t)sizeof(float);
    uint32_t wants = MIN(s->config.n_slot, (uint32_t)MSG_WANTS_MAX);
    uint64_t big = MIN((uint64_t)wants * (row + 64), (uint64_t)MSG_PAYLOAD_BYTES_MAX);
    struct slots_config c = { .n_big = window + 4,               /* a result of every batch, some late ones */
                              .n_small = 2 * window + wants,  /* the same when rows are few, rows fetched */
                              .big_bytes = MAX((uint32_t)big, PIECE_BYTES),
                              .small_bytes = MAX(row, PIECE_BYTES) };
    c.n_small += 4 * SHARE_READING_MAX;           /* pieces of weights, read or on their way */
    return slots_new(&s->slots, s->loop, &c, e);
}

static int open_door(struct service *s, struct links **out, const char *address, struct keyring *keyring,
                     uint32_t first, uint32_t n_max, struct err *e) {
    struct links_config c = { .loop = s->loop,
                              .net = s->net,
                              .slots = s->slots,
                              .bind = address,
                              .keyring = keyring,
                              .accepted_first = first,
                              .n_accepted_max = n_max,
                              .header_bytes_max = FRAME_BYTES_MAX,
                              .on_frame = on_frame,
                              .on_closed = on_closed,
                              .ctx = s };
    int rc = links_open(out, &c, e);
    return rc < 0 ? err_wrap(e, rc, "%s", address) : 0;
}

static int open_links(struct service *s, struct err *e) {
    static atomic_uint number;
    struct service_config *c = &s->config;
    int rc = c->key_path ? keyring_open_cluster(&s->keyring, c->key_path, e) : 0;
    if (rc == 0 && s->keyring) rc = net_guard(s->net, s->loop, s->keyring, e);
    snprintf(s->local_address, sizeof s->local_address, "inproc://coordinator-%u",
             atomic_fetch_add(&number, 1));
    if (rc == 0 && c->local_stage)
        rc = open_door(s, &s->local_links, s->local_address, NULL, SERVICE_LOCAL_FIRST, 8, e);
    if (rc == 0 && c->bind)
        rc = open_door(s, &s->node_links, c->bind, s->keyring, SERVICE_NODE_FIRST, SERVICE_KNOWN_MAX - 8, e);
    return rc;
}

static uint64_t incarnation_new(void) {
    uint64_t x = rng_at(clock_wall_ms() ^ (uint64_t)getpid() << 32, clock_now_ns());
    return x ? x : 1;
}

static void core_trace(void *ctx, const char *text) {
    (void)ctx;
    log_debug("coordinator", "%s", text);
}

static void open_core(struct service *s) {
    struct coord_config *c = &s->coord_config;
    snprintf(c->name, sizeof c->name, "coordinator");
    c->incarnation = incarnation_new();
    c->n_request_max = 2 * s->config.n_slot + s->config.n_queue_max;
    c->n_node_expected = s->config.n_node_expected;
    if (!s->config.bind) c->n_node_expected = 1;
    c->bound_ms = s->config.bound_ms;
    c->n_row_max = s->config.n_rows_max;
    c->n_item_max = 1024;
    c->plan = service_plan;
    c->wanted = service_wanted;
    if (s->config.stages) c->survey_ms = 0;       /* nothing is left to be chosen */
    c->sample = service_sample;
    c->ctx = s;
    if (log_enabled(LOG_DEBUG)) c->trace = (struct trace){ core_trace, s };
    s->coord = coord_new(c);
    coord_outs_init(&s->outs, c);
}

static void *loop_main(void *ctx) {
    struct service *s = ctx;
    service_step(s, &(struct coord_event){ .kind = COORD_EV_TICK });
    loop_run(s->loop);
    return NULL;
}

static int start_local(struct service *s, struct err *e) {
    const struct service_config *c = &s->config;
    char bind[LINK_ADDRESS_MAX] = "";
    if (c->bind) {                                /* the same interface, any port */
        const char *colon = strrchr(c->bind, ':');
        snprintf(bind, sizeof bind, "%.*s:0", (int)(colon - c->bind), c->bind);
    }
    struct service_local_config local = { .net = s->net,
                                          .join = s->local_address,
                                          .bind = c->bind ? bind : NULL,
                                          .key_path = c->key_path,
                                          .name = c->local_name ? c->local_name : "local",
                                          .model_path = c->model_path,
                                          .backend = c->backend,
                                          .memory_bytes = c->local_memory_bytes,
                                          .n_threads = c->n_threads,
                                          .stage = c->stage };
    return c->local->start(&s->local, &local, e);
}

static int open_all(struct service *s, struct err *e) {
    int rc = open_model(s, e);
    if (rc == 0) rc = loop_new(&s->loop, e);
    if (rc == 0) rc = net_new(&s->net, e);
    if (rc == 0) rc = open_slots(s, e);
    if (rc == 0) rc = open_links(s, e);
    if (rc < 0) return rc;
    open_core(s);
    if (s->config.bind && s->config.model_path && !s->config.stage)
        service_give_open(s, s->coord_config.n_window_max);
    s->timer = loop_timer_new(s->loop, on_timer, s);
    service_show(s);
    if (pthread_create(&s->thread, NULL, loop_main, s) != 0)
        return err_set(e, ERR_NOMEM, "no thread for the coordinator");
    s->running = true;
    return s->config.local_stage ? start_local(s, e) : 0;
}

int service_start(struct service **out, const struct service_config *config, struct err *e) {
    *out = NULL;
    int rc = config_check(config, e);
    if (rc < 0) return rc;
    struct service *s = xcalloc(1, sizeof *s);
    config_copy(s, config);
    coord_config_init(&s->coord_config);
    s->plan_model = xcalloc(1, sizeof *s->plan_model);
    s->plan_cluster = xcalloc(1, sizeof *s->plan_cluster);
    s->codec = codec_new();
    buf_init(&s->frame, FRAME_BYTES_MAX);
    buf_init(&s->status, 4 << 20);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->shown, NULL);
    atomic_init(&s->ticket_next, 1);
    s->created_s = (int64_t)(clock_wall_ms() / 1000);
    s->started_ns = clock_now_ns();
    rc = open_all(s, e);
    if (rc < 0) {
        service_stop(s);
        return rc;
    }
    *out = s;
    return 0;
}

const char *service_node_address(const struct service *s) {
    return s->node_links ? links_address(s->node_links) : "";
}

/* ---- stop ---- */

static void on_last_words(void *ctx) {
    loop_stop(((struct service *)ctx)->loop);
}

struct stop { struct loop_task task; struct service *s; };

/* Every request ends here; nodes hear LEAVE. */
static void stop_run(struct loop_task *task) {
    struct service *s = ((struct stop *)task)->s;
    service_step(s, &(struct coord_event){ .kind = COORD_EV_STOP });
    s->stopping = true;
    loop_timer_set(s->timer, LOOP_NEVER);
    s->last_timer = loop_timer_new(s->loop, on_last_words, s);
    loop_timer_set(s->last_timer, clock_now_ns() + LAST_WORDS_MS * UINT64_C(1000000));
}

static void close_all(struct service *s) {
    service_give_close(s);
    links_close(s->node_links);
    links_close(s->local_links);
    if (s->keyring && s->net) net_unguard(s->net);
    net_free(s->net);
    loop_timer_free(s->timer);
    loop_timer_free(s->last_timer);
    slots_free(s->slots);
    s->stopping = true;
    loop_free(s->loop);                           /* tasks that came too late end their requests here */
    keyring_free(s->keyring);
    if (s->coord) coord_outs_deinit(&s->outs);
    coord_free(s->coord);
}

void service_stop(struct service *s) {
    if (!s) return;
    struct stop stop = { .task = { .run = stop_run }, .s = s };
    if (s->running) {
        loop_post(s->loop, &stop.task);
        pthread_join(s->thread, NULL);
    }
    links_close(s->local_links);             /* what waits there lies in slots of the stage in this process */
    s->local_links = NULL;
    if (s->local) s->config.local->stop(s->local);
    close_all(s);
    sampler_deinit(&s->sampler);
    tokenizer_free(s->tokenizer);
    gguf_close(s->gguf);
    codec_free(s->codec);
    buf_deinit(&s->frame);
    buf_deinit(&s->status);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->shown);
    free(s->item);
    free(s->only);
    free(s->plan_model);
    free(s->plan_cluster);
    config_free(&s->config);
    free(s);
}

void service_drain(struct service *s) {
    atomic_store(&s->draining, true);
}

bool service_idle(struct service *s) {
    return atomic_load(&s->n_live) == 0;
}

const struct tokenizer *service_tokenizer(const struct service *s) {
    return s->tokenizer;
}

const struct gguf *service_gguf(const struct service *s) {
    return s->gguf;
}
