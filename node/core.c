/* core (node) - links, heartbeats and the assignment; the work itself is in core_work.c, helpers in
 * core_experts.c. The drawing is in core.h.
 *
 * One step: the event is dispatched, timers that are due act, then whatever can start or be sent does.
 * Every message that cannot be trusted ends in on_msg(), at one of three places: nobody said HELLO,
 * another process speaks, another epoch. */
#include "node/core.h"

#include "node/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"
#include "common/base/plant.h"
#include "common/base/sm.h"

#include <stdio.h>

#include "common/base/banned.h"

static const struct sm_state states[NODE_STATES] = {
    [NODE_IDLE] = { "idle", SM_BIT(NODE_LOADING) },
    [NODE_LOADING] = { "loading", SM_BIT(NODE_LOADING) | SM_BIT(NODE_READY) | SM_BIT(NODE_IDLE) },
    [NODE_READY] = { "ready", SM_BIT(NODE_LOADING) | SM_BIT(NODE_SERVING) | SM_BIT(NODE_DRAINING) |
                                  SM_BIT(NODE_IDLE) },
    [NODE_SERVING] = { "serving", SM_BIT(NODE_LOADING) | SM_BIT(NODE_DRAINING) | SM_BIT(NODE_IDLE) },
    [NODE_DRAINING] = { "draining", SM_BIT(NODE_LOADING) | SM_BIT(NODE_IDLE) },
};
static const struct sm_table state_table = { "node", states, NODE_STATES };

void node_set_state(struct node *n, enum node_state to) {
    sm_move(&state_table, &n->state, (int)to, n->epoch, &n->config.trace);
}

enum { EXPERTS_MS = 10000 }; /* one layer of the largest batch on a slow helper takes a second */

/* ---- outs ---- */

/* The most that one step can cause, consumer by consumer. */
static uint32_t outs_max(const struct node_config *c) {
    return 4 * c->n_batch_max         /* each ends (three payloads) and returns a credit */
           + c->n_slot_max            /* each sequence is closed */
           + 2 * (NODE_LINKS_MAX + 2) /* a PING or HELLO per link, a DROP */
           + 4 * MSG_HELPERS_MAX      /* the same, CONNECT, DISCONNECT, a question given up */
           + 2 * NODE_COMPUTING_MAX   /* RUN and CREDIT */
           + 16; /* answers to the event itself: READY, REFUSE, LOAD, CONNECT, NOTICE */
}

void node_outs_init(struct node_outs *outs, const struct node_config *config) {
    *outs = (struct node_outs){ .n_max = outs_max(config), .n_msg_max = outs_max(config) };
    outs->item = xcalloc(outs->n_max, sizeof *outs->item);
    outs->msg = xcalloc(outs->n_msg_max, sizeof *outs->msg);
}

void node_outs_deinit(struct node_outs *outs) {
    free(outs->item);
    free(outs->msg);
    *outs = (struct node_outs){ 0 };
}

struct node_out *node_out(struct node_outs *outs, enum node_out_kind kind) {
    CHECK(outs->n < outs->n_max);
    struct node_out *o = &outs->item[outs->n++];
    *o = (struct node_out){ .kind = kind };
    return o;
}

struct msg *node_send_payload(struct node *n, struct node_outs *outs, uint32_t link, enum msg_kind kind,
                              struct payload p) {
    CHECK(outs->n_msg < outs->n_msg_max);
    struct msg *m = &outs->msg[outs->n_msg++];
    m->kind = kind;
    m->epoch = n->epoch;
    m->incarnation = n->config.incarnation;
    m->link_seq = 0;
    m->trace = 0;
    struct node_out *o = node_out(outs, NODE_OUT_SEND);
    o->link = link;
    o->msg = m;
    o->payload = p;
    n->counters.bytes_out += p.bytes;
    return m;
}

struct msg *node_send(struct node *n, struct node_outs *outs, uint32_t link, enum msg_kind kind) {
    return node_send_payload(n, outs, link, kind, (struct payload){ 0 });
}

void node_give(struct node_outs *outs, struct payload *p) {
    if (p->generation && !PLANT(payload_leaks)) node_out(outs, NODE_OUT_FREE)->payload = *p;
    *p = (struct payload){ 0 };
}

static void notice(struct node_outs *outs, int code, const char *text) {
    struct node_out *o = node_out(outs, NODE_OUT_NOTICE);
    o->code = code;
    o->text = text;
}

/* ---- links ---- */

static struct peer *link_find(struct node *n, uint32_t link) {
    if (link == NODE_LINK_COORDINATOR) return &n->coordinator;
    if (link == NODE_LINK_NEXT) return &n->next;
    if (link >= NODE_LINK_HELPER && link < NODE_LINK_HELPER + n->n_helper)
        return &n->helper_peer[link - NODE_LINK_HELPER];
    for (int i = 0; i < NODE_LINKS_MAX; i++)
        if (n->accepted[i].link == link) return &n->accepted[i];
    return NULL;
}

static void send_hello(struct node *n, struct peer *p, uint32_t link, struct node_outs *outs) {
    struct msg *m = node_send(n, outs, link, MSG_HELLO);
    m->u.hello = n->config.hello;
    m->u.hello.magic = MSG_MAGIC;
    m->u.hello.version_min = MSG_VERSION_MIN;
    m->u.hello.version_max = MSG_VERSION;
    m->u.hello.role = MSG_ROLE_NODE;
    if (n->holds_weights) {
        m->u.hello.held_model_lo = n->assign.model_lo;
        m->u.hello.held_model_hi = n->assign.model_hi;
        m->u.hello.held_begin = n->assign.layer_begin;
        m->u.hello.held_end = n->assign.layer_end;
    }
    p->said_ns = n->now_ns;
}

static void send_refuse(struct node *n, uint32_t link, int code, const char *text, struct node_outs *outs) {
    struct msg *m = node_send(n, outs, link, MSG_REFUSE);
    m->u.refuse.code = code;
    snprintf(m->u.refuse.text, sizeof m->u.refuse.text, "%s", text);
}

static bool is_helper_link(uint32_t link) {
    return link >= NODE_LINK_HELPER && link < NODE_LINK_HELPER + MSG_HELPERS_MAX;
}

/* One of the links that we open is not what it was: introduce ourselves again, at once and then with
 * every period. */
void node_link_lost(struct node *n, struct peer *p, uint32_t link, struct node_outs *outs) {
    uint32_t rtt_us = p->rtt_us;
    *p = (struct peer){ .link = link, .heard_ns = n->now_ns, .rtt_us = rtt_us };
    if (is_helper_link(link)) experts_give_up(n, link - NODE_LINK_HELPER, ERR_PEER, outs);
    send_hello(n, p, link, outs);
}

static void accepted_forget(struct peer *p) {
    *p = (struct peer){ 0 };
}

static void on_hello(struct node *n, const struct node_event *ev, struct node_outs *outs) {
    const struct msg_hello *h = &ev->msg->u.hello;
    if (h->magic != MSG_MAGIC || h->version_min > MSG_VERSION || h->version_max < MSG_VERSION_MIN ||
        !peer_name_is_valid(h->name)) {
        MARK(hello_version);
        send_refuse(n, ev->link, ERR_UNSUPPORTED, "no common protocol version, or no name", outs);
        node_out(outs, NODE_OUT_DROP)->link = ev->link;
        return;
    }
    struct peer *p = link_find(n, ev->link);
    if (p && p->incarnation == ev->msg->incarnation) MARK(hello_repeated);
    if (p && p->incarnation != ev->msg->incarnation) MARK(hello_new_incarnation);
    if (!p) p = link_find(n, 0);
    if (!p) {
        MARK(hello_table_full);
        send_refuse(n, ev->link, ERR_BUSY, "too many links", outs);
        node_out(outs, NODE_OUT_DROP)->link = ev->link;
        return;
    }
    peer_start(p, ev->link, h->name, ev->msg->incarnation, n->now_ns);
    struct msg *m = node_send(n, outs, ev->link, MSG_WELCOME);
    m->u.welcome = (struct msg_welcome){ .version = MIN(h->version_max, (uint32_t)MSG_VERSION),
                                         .role = MSG_ROLE_NODE,
                                         .ping_ms = n->config.ping_ms,
                                         .ping_misses = n->config.ping_misses,
                                         .payload_bytes_max = n->config.payload_bytes_max };
    snprintf(m->u.welcome.name, sizeof m->u.welcome.name, "%s", n->config.hello.name);
}

static void on_welcome(struct node *n, struct peer *p, const struct node_event *ev) {
    const struct msg_welcome *w = &ev->msg->u.welcome;
    uint64_t epoch = p->epoch;
    peer_start(p, ev->link, w->name, ev->msg->incarnation, n->now_ns);
    p->epoch = epoch;
    if (ev->link != NODE_LINK_COORDINATOR) return;
    n->refused_code = 0;
    /* The coordinator's word on the pace holds for all our links; within reason. */
    if (w->ping_ms >= 10 && w->ping_ms <= 60000) n->pace.ping_ns = w->ping_ms * UINT64_C(1000000);
    if (w->ping_misses >= 2 && w->ping_misses <= 100) n->pace.misses = w->ping_misses;
}

static void on_refuse(struct node *n, struct peer *p, const struct node_event *ev, struct node_outs *outs) {
    const struct msg_refuse *r = &ev->msg->u.refuse;
    if (p->up) { /* it does not know us any more: it was restarted, or gave us up */
        if (ev->link == NODE_LINK_COORDINATOR) MARK(coord_link_lost);
        else MARK(next_link_lost);
        node_link_lost(n, p, ev->link, outs);
    } else if (r->code != n->refused_code) {
        n->refused_code = r->code;
        notice(outs, r->code, r->text);
    }
}

static struct msg_counters counters(const struct node *n) {
    struct msg_counters c = n->counters;
    uint64_t alive_us = (n->now_ns - n->first_ns) / 1000;
    c.idle_us = alive_us - MIN(alive_us, c.busy_us);
    c.memory_used_bytes =
        n->holds_weights ? n->ready.weights_bytes + n->ready.state_bytes + n->ready.work_bytes : 0;
    c.n_seq = n->n_seq;
    c.n_queued = n->batches.n_used;
    return c;
}

static void link_timers(struct node *n, struct peer *p, uint32_t link, struct node_outs *outs) {
    bool ours = link < NODE_LINK_ACCEPTED;
    if (p->up && peer_is_silent(p, &n->pace, n->now_ns)) {
        if (!ours) {
            node_out(outs, NODE_OUT_DROP)->link = link;
            accepted_forget(p);
            return;
        }
        if (link == NODE_LINK_COORDINATOR) MARK(coord_link_lost);
        else MARK(next_link_lost);
        TRACE(&n->config.trace, "%s is silent",
              link == NODE_LINK_COORDINATOR ? "coordinator" : "a stage or helper");
        node_link_lost(n, p, link, outs);
    } else if (peer_ping_is_due(p, &n->pace, n->now_ns)) {
        if (!p->up) {
            send_hello(n, p, link, outs);
            return;
        }
        struct msg *m = node_send(n, outs, link, MSG_PING);
        peer_fill_ping(p, &m->u.ping, n->now_ns);
        m->u.ping.counters = counters(n);
    }
}

static void timers(struct node *n, struct node_outs *outs) {
    link_timers(n, &n->coordinator, NODE_LINK_COORDINATOR, outs);
    if (n->next_wanted) link_timers(n, &n->next, NODE_LINK_NEXT, outs);
    for (uint32_t i = 0; i < n->n_helper; i++) link_timers(n, &n->helper_peer[i], NODE_LINK_HELPER + i, outs);
    experts_timers(n, outs);
    for (int i = 0; i < NODE_LINKS_MAX; i++)
        if (n->accepted[i].link) link_timers(n, &n->accepted[i], n->accepted[i].link, outs);
}

static uint64_t deadline(const struct node *n) {
    uint64_t d = MIN(peer_deadline_ns(&n->coordinator, &n->pace), experts_deadline_ns(n));
    for (uint32_t i = 0; i < n->n_helper; i++) d = MIN(d, peer_deadline_ns(&n->helper_peer[i], &n->pace));
    if (n->next_wanted) d = MIN(d, peer_deadline_ns(&n->next, &n->pace));
    for (int i = 0; i < NODE_LINKS_MAX; i++)
        if (n->accepted[i].link) d = MIN(d, peer_deadline_ns(&n->accepted[i], &n->pace));
    return d;
}

/* ---- assignment ---- */

/* What the coordinator needs to know of our state in this epoch; also the answer to a repeated ASSIGN. */
static void tell_state(struct node *n, struct node_outs *outs) {
    if (n->state == NODE_LOADING) {
        node_send(n, outs, NODE_LINK_COORDINATOR, MSG_PROGRESS)->u.progress = n->progress;
    } else if (n->state == NODE_IDLE) {
        struct msg *m = node_send(n, outs, NODE_LINK_COORDINATOR, MSG_FAILED);
        m->u.failed = (struct msg_failed){ .code = n->load_code ? n->load_code : ERR_CANCELLED };
        snprintf(m->u.failed.text, sizeof m->u.failed.text, "%s", n->load_text);
    } else {
        node_send(n, outs, NODE_LINK_COORDINATOR, MSG_READY)->u.ready = n->ready;
    }
}

static bool assign_is_sound(const struct node *n, const struct msg_assign *a) {
    return a->layer_begin < a->layer_end && a->layer_end <= MSG_LAYERS_MAX &&
           a->n_helper <= MSG_HELPERS_MAX && a->n_slot > 0 && a->n_slot <= n->config.n_slot_max &&
           a->n_rows_max > 0 && a->n_rows_max <= MSG_ROWS_MAX && a->n_credit > 0 && a->n_stage > 0 &&
           a->n_stage <= MSG_STAGES_MAX && a->stage_i < a->n_stage &&
           (a->is_helper || (a->has_head == (a->stage_i + 1 == a->n_stage) &&
                             a->has_embed == (a->stage_i == 0) && a->has_embed == (a->layer_begin == 0)));
}

static void next_connect(struct node *n, const struct msg_hop *hop, struct node_outs *outs) {
    bool same = n->next_wanted && memcmp(&n->assign.next, hop, sizeof *hop) == 0;
    if (same) return;
    if (n->next_wanted) node_out(outs, NODE_OUT_DISCONNECT)->link = NODE_LINK_NEXT;
    n->next_wanted = hop->address[0] != 0;
    n->assign.next = *hop;
    if (!n->next_wanted) return;
    struct node_out *o = node_out(outs, NODE_OUT_CONNECT);
    o->link = NODE_LINK_NEXT;
    o->hop = &n->assign.next;
    node_link_lost(n, &n->next, NODE_LINK_NEXT, outs);
}

/* True: they are others than before. */
static bool take_sources(struct node *n, const struct msg_assign *a) {
    uint32_t count = MIN(a->n_source, (uint32_t)MSG_SOURCES_MAX);
    bool same = n->assign.n_source == count &&
                (count == 0 || memcmp(n->source, a->source, count * sizeof n->source[0]) == 0);
    if (!same && count) memcpy(n->source, a->source, count * sizeof n->source[0]);
    n->assign.source = n->source;
    n->assign.n_source = count;
    return !same;
}

/* The same epoch again: of what it says only the sources may have changed. */
static void assign_again(struct node *n, const struct msg_assign *a, struct node_outs *outs) {
    MARK(assign_repeated);
    if (take_sources(n, a) && n->state == NODE_LOADING) {
        struct node_out *o = node_out(outs, NODE_OUT_SOURCES);
        o->assign = &n->assign;
        o->epoch = n->epoch;
    }
    tell_state(n, outs);
}

static void on_assign(struct node *n, const struct msg *m, struct node_outs *outs) {
    const struct msg_assign *a = &m->u.assign;
    if (m->epoch < n->epoch) {
        MARK(node_stale_epoch);
        return;
    }
    if (m->epoch == n->epoch && n->has_assign && !n->retired) {
        assign_again(n, a, outs);
        return;
    }
    work_drop_all(n, outs);
    n->epoch = m->epoch;
    next_connect(n, &a->next, outs);
    experts_connect(n, a, outs);
    n->assign = *a;
    n->assign.n_source = 0;
    take_sources(n, a);
    n->assign.n_helper = n->n_helper;
    n->assign.helper = n->helper;
    n->assign.n_peer = MIN(a->n_peer, (uint32_t)MSG_NODES_MAX);
    if (n->assign.n_peer) memcpy(n->peer_key, a->peer, n->assign.n_peer * sizeof n->peer_key[0]);
    n->assign.peer = n->peer_key;
    n->has_assign = true;
    n->assigned_by = m->incarnation;
    n->retired = n->holds_weights = n->loaded = false;
    n->progress = (struct msg_progress){ 0 };
    n->load_code = 0;
    n->load_text[0] = 0;
    node_set_state(n, NODE_LOADING);
    if (!assign_is_sound(n, a)) {
        n->load_code = ERR_INVALID;
        snprintf(n->load_text, sizeof n->load_text, "the assignment contradicts itself or our limits");
        node_set_state(n, NODE_IDLE);
        tell_state(n, outs);
        return;
    }
    struct node_out *o = node_out(outs, NODE_OUT_LOAD);
    o->assign = &n->assign;
    o->epoch = n->epoch;
}

/* The coordinator is in a newer plan, and we have no part in it, or its ASSIGN was lost. The weights
 * stay, the work is over. */
static void retire(struct node *n, uint64_t epoch, struct node_outs *outs) {
    MARK(node_retired);
    work_drop_all(n, outs);
    next_connect(n, &(struct msg_hop){ .address = "" }, outs);
    experts_connect(n, &(struct msg_assign){ .n_helper = 0 }, outs);
    n->epoch = epoch;
    n->retired = true;
    if (n->state != NODE_IDLE) node_set_state(n, NODE_IDLE);
}

static void on_ping(struct node *n, struct peer *p, const struct node_event *ev, struct node_outs *outs) {
    peer_on_ping(p, &ev->msg->u.ping, n->now_ns);
    if (ev->link != NODE_LINK_COORDINATOR || !n->has_assign || n->retired) return;
    /* A coordinator that was started anew has no plan of before, whatever its numbers. */
    if (ev->msg->epoch > n->epoch || ev->msg->incarnation != n->assigned_by)
        retire(n, MAX(n->epoch, ev->msg->epoch), outs);
}

static void on_progress(struct node *n, const struct node_load *load, struct node_outs *outs) {
    if (load->epoch != n->epoch || n->state != NODE_LOADING) return;
    n->progress = load->progress;
    if (n->coordinator.up) tell_state(n, outs);
}

/* A lead without its helpers could compute nothing: it says READY when all of them know it. */
static void maybe_ready(struct node *n, struct node_outs *outs) {
    if (n->state != NODE_LOADING || !n->loaded) return;
    for (uint32_t i = 0; i < n->n_helper; i++)
        if (!n->helper_peer[i].up) return;
    node_set_state(n, NODE_READY);
    if (n->coordinator.up) tell_state(n, outs);
}

static void on_loaded(struct node *n, const struct node_load *load, struct node_outs *outs) {
    if (load->epoch != n->epoch || n->state != NODE_LOADING) return;
    n->ready = load->ready;
    n->load_code = load->code;
    snprintf(n->load_text, sizeof n->load_text, "%s", load->code < 0 && load->text ? load->text : "");
    n->holds_weights = load->code >= 0;
    n->loaded = load->code >= 0;
    if (n->loaded) {
        maybe_ready(n, outs);
        return;
    }
    node_set_state(n, NODE_IDLE);
    if (n->coordinator.up) tell_state(n, outs);
}

static void on_drain(struct node *n) {
    if (n->state != NODE_READY && n->state != NODE_SERVING) return;
    if (!work_is_empty(n)) MARK(drain_waits);
    node_set_state(n, NODE_DRAINING);
}

static void drain_maybe_done(struct node *n, struct node_outs *outs) {
    if (n->state != NODE_DRAINING || !work_is_empty(n)) return;
    work_drop_all(n, outs);                       /* kept rows and sequences */
    node_send(n, outs, NODE_LINK_COORDINATOR, MSG_DRAINED);
    node_set_state(n, NODE_IDLE);
}

/* Whoever we connected to goes away on purpose. Its successor will be at the same address, or a new plan
 * names another. */
static void on_leave(struct node *n, struct peer *p, const struct node_event *ev, struct node_outs *outs) {
    if (ev->link == NODE_LINK_COORDINATOR) notice(outs, ev->msg->u.leave.code, ev->msg->u.leave.text);
    node_link_lost(n, p, ev->link, outs);
}

/* ---- messages ---- */

static bool needs_epoch(enum msg_kind kind) {
    return kind == MSG_DRAIN || kind == MSG_WORK || kind == MSG_CREDIT || kind == MSG_ROW_GET ||
           kind == MSG_SYNC || kind == MSG_EXPERTS_DONE;
}

/* From a peer that we know, of this epoch where that matters. */
static void dispatch(struct node *n, struct peer *p, const struct node_event *ev, struct payload *payload,
                     struct node_outs *outs) {
    const struct msg *m = ev->msg;
    bool coordinator = ev->link == NODE_LINK_COORDINATOR, accepted = ev->link >= NODE_LINK_ACCEPTED;
    switch (m->kind) {
    case MSG_PING: on_ping(n, p, ev, outs); break;
    case MSG_ASSIGN: if (coordinator) on_assign(n, m, outs); break;
    case MSG_DRAIN: if (coordinator) on_drain(n); break;
    case MSG_SYNC: if (coordinator) work_on_sync(n, &m->u.sync, outs); break;
    case MSG_ROW_GET: if (coordinator) work_on_row_get(n, &m->u.row_get, outs); break;
    case MSG_WORK:
        if (n->assign.is_helper) break;
        if (coordinator ? n->assign.stage_i == 0 : accepted && n->assign.stage_i > 0)
            work_on_work(n, ev, payload, outs);
        break;
    case MSG_CREDIT: if (ev->link == NODE_LINK_NEXT) work_on_credit(n, &m->u.credit, outs); break;
    case MSG_EXPERTS: if (accepted) experts_on_question(n, ev, payload, outs); break;
    case MSG_EXPERTS_DONE: if (is_helper_link(ev->link)) experts_on_answer(n, ev, payload, outs); break;
    case MSG_LEAVE:
        if (accepted) accepted_forget(p);
        else on_leave(n, p, ev, outs);
        break;
    default: break;
    }
}

static void on_msg(struct node *n, const struct node_event *ev, struct payload *payload,
                   struct node_outs *outs) {
    const struct msg *m = ev->msg;
    struct peer *p = link_find(n, ev->link);
    bool ours = ev->link < NODE_LINK_ACCEPTED;
    n->counters.bytes_in += ev->take_payload.bytes;
    if (!ours && m->kind == MSG_HELLO) {
        on_hello(n, ev, outs);
    } else if (ours && m->kind == MSG_WELCOME) {
        on_welcome(n, p, ev);
        maybe_ready(n, outs);
    } else if (ours && m->kind == MSG_REFUSE) {
        on_refuse(n, p, ev, outs);
    } else if (!p || !p->up) {
        MARK(hello_missing);
        if (ours) return;                         /* our HELLO is on its way */
        send_refuse(n, ev->link, ERR_DENIED, "say HELLO first", outs);
        node_out(outs, NODE_OUT_DROP)->link = ev->link;
    } else if (m->incarnation != p->incarnation) {
        MARK(incarnation_unknown);
        if (!ours) {
            send_refuse(n, ev->link, ERR_STALE, "another process said HELLO here", outs);
        } else {
            if (ev->link == NODE_LINK_COORDINATOR) MARK(coord_restarted);
            node_link_lost(n, p, ev->link, outs);
        }
    } else {
        p->heard_ns = n->now_ns;
        p->epoch = m->epoch;
        if (needs_epoch(m->kind) && m->epoch != n->epoch && !PLANT(epoch_unchecked)) {
            MARK(node_stale_epoch);
            TRACE(&n->config.trace, "message %d of epoch %llu is stale (epoch %llu), dropped", (int)m->kind,
                  (unsigned long long)m->epoch, (unsigned long long)n->epoch);
            return;
        }
        dispatch(n, p, ev, payload, outs);
    }
}

static void on_link_closed(struct node *n, uint32_t link) {
    struct peer *p = link >= NODE_LINK_ACCEPTED ? link_find(n, link) : NULL;
    if (p) accepted_forget(p);
}

static void on_files(struct node *n, const struct msg_files *files, struct node_outs *outs) {
    n->config.hello.file = files->file;
    n->config.hello.n_file = files->n_file;
    if (n->coordinator.up) node_send(n, outs, NODE_LINK_COORDINATOR, MSG_FILES)->u.files = *files;
}

static void on_stop(struct node *n, struct node_outs *outs) {
    struct msg *m = node_send(n, outs, NODE_LINK_COORDINATOR, MSG_LEAVE);
    m->u.leave = (struct msg_leave){ .code = ERR_CANCELLED };
    snprintf(m->u.leave.text, sizeof m->u.leave.text, "stopped");
    n->stopped = true;
}

void node_step(struct node *n, const struct node_event *ev, struct node_outs *outs) {
    struct payload payload = ev->take_payload;
    outs->n = outs->n_msg = 0;
    outs->deadline_ns = UINT64_MAX;
    n->now_ns = ev->now_ns;
    if (!n->first_ns) n->first_ns = n->now_ns;
    switch (ev->kind) {
    case NODE_EV_TICK: break;
    case NODE_EV_MSG: on_msg(n, ev, &payload, outs); break;
    case NODE_EV_LINK_CLOSED: on_link_closed(n, ev->link); break;
    case NODE_EV_PROGRESS: on_progress(n, &ev->load, outs); break;
    case NODE_EV_LOADED: on_loaded(n, &ev->load, outs); break;
    case NODE_EV_COMPUTED: work_on_computed(n, ev, &payload, outs); break;
    case NODE_EV_EXPERTS: experts_on_ask(n, ev, &payload, outs); break;
    case NODE_EV_EXPERTS_COMPUTED: experts_on_computed(n, ev, &payload, outs); break;
    case NODE_EV_FILES: on_files(n, &ev->files, outs); break;
    case NODE_EV_STOP: on_stop(n, outs); break;
    }
    node_give(outs, &payload);                    /* whoever wanted it has taken it */
    if (n->stopped) return;
    timers(n, outs);
    work_pump(n, outs);
    drain_maybe_done(n, outs);
    outs->deadline_ns = deadline(n);
}

/* ---- life ---- */

struct node *node_new(const struct node_config *config) {
    struct node *n = xcalloc(1, sizeof *n);
    CHECK(config->incarnation && config->n_batch_max && config->n_slot_max && config->ping_ms &&
          config->ping_misses);
    CHECK(peer_name_is_valid(config->hello.name));
    n->config = *config;
    if (!n->config.experts_ms) n->config.experts_ms = EXPERTS_MS;
    n->pace = (struct peer_pace){ config->ping_ms * UINT64_C(1000000), config->ping_misses };
    n->coordinator.link = NODE_LINK_COORDINATOR;
    n->next.link = NODE_LINK_NEXT;
    work_init(n);
    return n;
}

void node_free(struct node *n) {
    if (!n) return;
    work_deinit(n);
    free(n);
}

struct node_view node_view(const struct node *n) {
    return (struct node_view){ .state = (enum node_state)n->state,
                               .epoch = n->epoch,
                               .n_seq = n->n_seq,
                               .n_batch = n->batches.n_used,
                               .n_computing = n->n_computing,
                               .n_sent = n->n_sent,
                               .coordinator_up = n->coordinator.up,
                               .next_up = n->next.up,
                               .next_rtt_us = n->next.rtt_us,
                               .assign = n->has_assign ? &n->assign : NULL,
                               .counters = counters(n) };
}
