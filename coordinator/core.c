/* core (coordinator) - one step: the event is dispatched, timers that are due act, then requests are
 * admitted, batches launched, and the nodes told what is over. See core.h. */
#include "coordinator/core.h"

#include "coordinator/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"
#include "common/base/plant.h"

#include <stdio.h>

#include "common/base/banned.h"

void coord_config_init(struct coord_config *c) {
    *c = (struct coord_config){
        .ping_ms = 500,
        .ping_misses = 5,
        .payload_bytes_max = 64 << 20,
        .n_node_max = 64,
        .n_request_max = 1024,
        .n_seg_max = 256,
        .n_row_max = 2048,
        .n_window_max = 33,
        .n_item_max = 1024,
        .n_park_max = MSG_SEQS_MAX,
        .n_keep_min = 128,
        .settle_ms = 2000,
        .rejoin_ms = 5000,
        .survey_ms = 3000,
        .restore_ms = 2000,
        .load_silent_ms = 120000,
        .exclude_ms = 30000,
        .stall_ms = 600000,
        .n_extra = 1,
        .bound_ms = 250,
        .chunk_first = 32,
        .chunk_min = 8,
        .batch_floor_ms = 2000,
        .batch_unknown_ms = 60000,
        .retry_max = 6,
        .give_up_ms = 30000,
        .wedge_ms = 20000,
    };
}

/* ---- outs ---- */

/* The most that one step can cause, consumer by consumer. */
static uint32_t items_max(const struct coord_config *c) {
    return 2 * c->n_request_max                   /* each gets a token and ends */
           + c->n_window_max                      /* launched, or late */
           + c->n_seg_max                         /* rows asked for */
           + 6 * c->n_node_max                    /* PING, SYNC, ASSIGN, PEERS, SURVEY, DROP each */
           + 3 * c->n_node_max                    /* state changes that losing each of them may cause */
           + 16;                                  /* the answer to the event itself */
}

static uint32_t msgs_max(const struct coord_config *c) {
    return c->n_window_max + c->n_seg_max + 4 * c->n_node_max + 16;
}

void coord_outs_init(struct coord_outs *outs, const struct coord_config *config) {
    *outs = (struct coord_outs){ .n_max = items_max(config), .n_msg_max = msgs_max(config) };
    outs->item = xcalloc(outs->n_max, sizeof *outs->item);
    outs->msg = xcalloc(outs->n_msg_max, sizeof *outs->msg);
}

void coord_outs_deinit(struct coord_outs *outs) {
    free(outs->item);
    free(outs->msg);
    *outs = (struct coord_outs){ 0 };
}

struct coord_out *coord_out(struct coord_outs *outs, enum coord_out_kind kind) {
    CHECK(outs->n < outs->n_max);
    struct coord_out *o = &outs->item[outs->n++];
    *o = (struct coord_out){ .kind = kind };
    return o;
}

struct msg *coord_send(struct coord *c, struct coord_outs *outs, uint32_t link, enum msg_kind kind) {
    CHECK(outs->n_msg < outs->n_msg_max);
    struct msg *m = &outs->msg[outs->n_msg++];
    m->kind = kind;
    m->epoch = c->epoch;
    m->incarnation = c->config.incarnation;
    m->link_seq = 0;
    m->trace = 0;
    struct coord_out *o = coord_out(outs, COORD_OUT_SEND);
    o->link = link;
    o->msg = m;
    return m;
}

void coord_give(struct coord_outs *outs, struct payload *p) {
    if (p->generation && !PLANT(payload_leaks)) coord_out(outs, COORD_OUT_FREE)->payload = *p;
    *p = (struct payload){ 0 };
}

/* ---- messages ---- */

static bool needs_epoch(enum msg_kind kind) {
    return kind == MSG_PROGRESS || kind == MSG_READY || kind == MSG_FAILED ||
           kind == MSG_WORK_REFUSED || kind == MSG_RESULT || kind == MSG_ROW;
}

/* From a node that we know, of this epoch where that matters. */
static void dispatch(struct coord *c, struct coord_node *n, const struct coord_event *ev,
                     struct coord_outs *outs) {
    const struct msg *m = ev->msg;
    uint32_t number = (uint32_t)(n - c->cluster.node);
    bool serving = c->cluster.state == CL_SERVING, last = serving && number == c->cluster.last_node;
    switch (m->kind) {
    case MSG_PING: peer_on_ping(&n->peer, &m->u.ping, c->now_ns); break;
    case MSG_LEAVE:
        MARK(node_left);
        cluster_lose(c, n, "left", outs);
        break;
    case MSG_PROGRESS: cluster_on_progress(c, n, &m->u.progress); break;
    case MSG_READY: cluster_on_ready(c, n, &m->u.ready, outs); break;
    case MSG_LINKS: cluster_on_links(c, n, &m->u.links); break;
    case MSG_FILES: cluster_on_files(n, &m->u.files); break;
    case MSG_FAILED:
        if (m->u.failed.batch == 0) cluster_on_failed(c, n, &m->u.failed, outs);
        else if (serving) pipeline_on_failed(c, &m->u.failed, outs);
        break;
    case MSG_WORK_REFUSED: if (serving) pipeline_on_refused(c, &m->u.work_refused, outs); break;
    case MSG_RESULT: if (last) pipeline_on_result(c, ev, outs); break;
    case MSG_ROW: if (last) pipeline_on_row(c, ev, outs); break;
    default: break;
    }
}

static void on_msg(struct coord *c, const struct coord_event *ev, struct coord_outs *outs) {
    const struct msg *m = ev->msg;
    if (m->kind == MSG_HELLO) {
        cluster_on_hello(c, ev->link, m, outs);
        return;
    }
    struct coord_node *n = cluster_find(c, ev->link);
    if (!n) {
        MARK(hello_missing);
        cluster_refuse(c, ev->link, ERR_DENIED, "say HELLO first", outs);
    } else if (m->incarnation != n->peer.incarnation) {
        MARK(incarnation_unknown);
        cluster_refuse(c, ev->link, ERR_STALE, "another process said HELLO here", outs);
    } else {
        n->peer.heard_ns = c->now_ns;
        n->peer.epoch = m->epoch;
        if (needs_epoch(m->kind) && m->epoch != c->epoch && !PLANT(epoch_unchecked)) {
            MARK(coord_stale_epoch);
            TRACE(&c->config.trace, "message %d of epoch %llu is stale (epoch %llu), dropped", (int)m->kind,
                  (unsigned long long)m->epoch, (unsigned long long)c->epoch);
            return;
        }
        dispatch(c, n, ev, outs);
    }
}

static void on_link_closed(struct coord *c, uint32_t link, struct coord_outs *outs) {
    struct coord_node *n = cluster_find(c, link);
    if (n) cluster_lose(c, n, "closed its link", outs);
}

static void on_stop(struct coord *c, struct coord_outs *outs) {
    requests_end_all(c, ERR_CANCELLED, outs);
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        if (c->cluster.node[i].state == ND_GONE) continue;
        struct msg *m = coord_send(c, outs, c->cluster.node[i].peer.link, MSG_LEAVE);
        m->u.leave = (struct msg_leave){ .code = ERR_CANCELLED };
        snprintf(m->u.leave.text, sizeof m->u.leave.text, "the coordinator stops");
    }
    c->stopped = true;
}

void coord_step(struct coord *c, const struct coord_event *ev, struct coord_outs *outs) {
    struct payload payload = ev->take_payload;
    outs->n = outs->n_msg = 0;
    outs->deadline_ns = UINT64_MAX;
    c->now_ns = ev->now_ns;
    c->pipeline.spent_us = 0;
    switch (ev->kind) {
    case COORD_EV_TICK: break;
    case COORD_EV_MSG: on_msg(c, ev, outs); break;
    case COORD_EV_LINK_CLOSED: on_link_closed(c, ev->link, outs); break;
    case COORD_EV_SUBMIT: requests_submit(c, &ev->submit, outs); break;
    case COORD_EV_CANCEL: requests_cancel(c, ev->request, outs); break;
    case COORD_EV_STOP: on_stop(c, outs); break;
    }
    coord_give(outs, &payload);
    if (c->stopped) return;
    cluster_timers(c, outs);
    pipeline_timers(c, outs);
    requests_timers(c, outs);
    requests_admit(c);
    pipeline_send_syncs(c, outs);                 /* frees the slots that the new work needs */
    pipeline_launch(c, outs);
    outs->deadline_ns = MIN(cluster_deadline_ns(c), MIN(pipeline_deadline_ns(c), requests_deadline_ns(c)));
}

/* ---- life and views ---- */

struct coord *coord_new(const struct coord_config *config) {
    CHECK(config->incarnation && config->plan && config->sample && config->n_node_max &&
          config->n_request_max);
    CHECK(config->n_node_max <= 2 * MSG_STAGES_MAX && config->n_seg_max <= MSG_SEGS_MAX &&
          config->n_row_max <= MSG_ROWS_MAX);
    struct coord *c = xcalloc(1, sizeof *c);
    c->config = *config;
    cluster_init(c);
    requests_init(c);
    sequences_init(c);
    pipeline_init(c);
    return c;
}

void coord_free(struct coord *c) {
    if (!c) return;
    pipeline_deinit(c);
    requests_deinit(c);
    sequences_deinit(c);
    cluster_deinit(c);
    free(c);
}

struct coord_view coord_view(const struct coord *c) {
    const struct cluster *cl = &c->cluster;
    const struct requests *q = &c->requests;
    return (struct coord_view){ .state = (enum cluster_state)cl->state,
                                .epoch = c->epoch,
                                .since_ns = cl->since_ns,
                                .why = cl->why,
                                .plan = cl->state == CL_WAITING ? NULL : &cl->plan,
                                .n_node = cl->n_node,
                                .n_queued = q->list[RL_QUEUE].n,
                                .n_active = q->pool.n_used - q->list[RL_QUEUE].n,
                                .n_decode = q->n_decode,
                                .n_flying = c->pipeline.pool.n_used,
                                .n_window = pipeline_window(c),
                                .n_slot = cl->n_slot,
                                .n_parked = c->sequences.n_parked,
                                .parked_tokens = c->sequences.tokens_parked,
                                .n_given_up = c->sequences.n_given_up,
                                .chunk = c->pipeline.chunk,
                                .n_request = q->n_submitted,
                                .n_done = q->n_done,
                                .n_failed = q->n_failed,
                                .totals = &c->totals,
                                .trace = c->trace,
                                .n_trace = c->n_trace };
}

bool coord_view_node(const struct coord *c, uint32_t i, struct coord_node_view *out) {
    const struct coord_node *n = i < c->config.n_node_max ? &c->cluster.node[i] : NULL;
    if (!n || n->state == ND_GONE) return false;
    *out = (struct coord_node_view){ .state = (enum coord_node_state)n->state,
                                     .hello = &n->hello,
                                     .peer = &n->peer,
                                     .ready = &n->ready,
                                     .progress = n->progress,
                                     .link = n->measured,
                                     .n_link = n->n_measured,
                                     .stage_i = n->stage_i,
                                     .is_helper = n->is_helper };
    if (n->stage_i >= 0) {
        out->layer_begin = c->cluster.plan.stage[n->stage_i].layer_begin;
        out->layer_end = c->cluster.plan.stage[n->stage_i].layer_end;
    }
    return true;
}

bool coord_view_request(const struct coord *c, struct handle h, struct coord_request_view *out) {
    if (!pool_resolves(&c->requests.pool, h)) return false;
    const struct request *r = &c->requests.request[h.index];
    *out = (struct coord_request_view){
        .queued = r->state == RQ_QUEUED, .n_prompt = r->n_prompt, .n_token = r->n_token, .n_held = r->n_held
    };
    return true;
}

void coord_check(const struct coord *c) {
    cluster_check(c);
    requests_check(c);
    sequences_check(c);
    pipeline_check(c);
}

uint32_t coord_view_parked(const struct coord *c, uint32_t *n_token, uint32_t room) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->sequences.n && n < room; i++)
        if (c->sequences.seq[i].state == SQ_PARKED) n_token[n++] = c->sequences.seq[i].n_sent_max;
    return n;
}

uint32_t coord_seqs_alive(const struct coord *c) {
    return c->sequences.n;
}
