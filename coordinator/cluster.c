#include "coordinator/cluster.h"

#include "coordinator/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"
#include "common/base/sm.h"

#include <stdio.h>

#include "common/base/banned.h"

/* No coordinator gets that far: whoever says so would make ours wrap. */
#define EPOCH_MAX (UINT64_MAX / 2)

enum { INFOS_MAX = 2 * MSG_STAGES_MAX, RESTORE_MS_MAX = 600000 };

static const struct sm_state cluster_states[CL_STATES] = {
    [CL_WAITING] = { "waiting", SM_BIT(CL_LOADING) },
    [CL_LOADING] = { "loading", SM_BIT(CL_SERVING) | SM_BIT(CL_WAITING) },
    [CL_SERVING] = { "serving", SM_BIT(CL_WAITING) },
};
static const struct sm_table cluster_table = { "cluster", cluster_states, CL_STATES };

static const struct sm_state node_states[ND_STATES] = {
    [ND_GONE]    = { "gone",    SM_BIT(ND_JOINED) },
    [ND_JOINED]  = { "joined",  SM_BIT(ND_LOADING) | SM_BIT(ND_GONE) },
    [ND_LOADING] = { "loading", SM_BIT(ND_READY) | SM_BIT(ND_FAILED) | SM_BIT(ND_JOINED) | SM_BIT(ND_GONE) },
    [ND_READY]   = { "ready",   SM_BIT(ND_JOINED) | SM_BIT(ND_GONE) },
    [ND_FAILED]  = { "failed",  SM_BIT(ND_JOINED) | SM_BIT(ND_GONE) },
};
static const struct sm_table node_table = { "node", node_states, ND_STATES };

void cluster_init(struct coord *c) {
    c->cluster.node = xcalloc(c->config.n_node_max, sizeof *c->cluster.node);
    c->cluster.key = xcalloc(MSG_NODES_MAX, sizeof *c->cluster.key);
    for (uint32_t i = 0; i < c->config.n_node_max; i++) c->cluster.node[i].stage_i = -1;
    c->cluster.plan_at_ns = c->cluster.restore_at_ns = UINT64_MAX;
    c->cluster.restore_wait_ms = c->config.restore_ms;
    survey_init(c);
    snprintf(c->cluster.why, sizeof c->cluster.why, "no node has joined");
}

void cluster_deinit(struct coord *c) {
    survey_deinit(c);
    free(c->cluster.node);
    free(c->cluster.key);
}

static uint32_t number_of(const struct coord *c, const struct coord_node *n) {
    return (uint32_t)(n - c->cluster.node);
}

static void set_node(struct coord *c, struct coord_node *n, enum coord_node_state to) {
    sm_move(&node_table, &n->state, (int)to, number_of(c, n), &c->config.trace);
}

static void set_state(struct coord *c, enum cluster_state to, const char *why, struct coord_outs *outs) {
    struct cluster *cl = &c->cluster;
    if (cl->state == CL_SERVING) cl->unserved_ns = c->now_ns;
    sm_move(&cluster_table, &cl->state, (int)to, c->epoch, &c->config.trace);
    cl->since_ns = c->now_ns;
    snprintf(cl->why, sizeof cl->why, "%s", why);
    struct coord_out *o = coord_out(outs, COORD_OUT_STATE);
    snprintf(o->text, sizeof o->text, "%s: %.80s", sm_name(&cluster_table, (int)to), why);
}

/* ---- joining ---- */

struct coord_node *cluster_find(struct coord *c, uint32_t link) {
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        struct coord_node *n = &c->cluster.node[i];
        if (n->state != ND_GONE && n->peer.link == link) return n;
    }
    return NULL;
}

static struct coord_node *find_name(struct coord *c, const char *name) {
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        struct coord_node *n = &c->cluster.node[i];
        if (n->state != ND_GONE && strcmp(n->peer.name, name) == 0) return n;
    }
    return NULL;
}

static struct coord_node *find_free(struct coord *c) {
    for (uint32_t i = 0; i < c->config.n_node_max; i++)
        if (c->cluster.node[i].state == ND_GONE) return &c->cluster.node[i];
    return NULL;
}

/* When the membership has changed: the next try at a plan. The first plan waits for the expected number;
 * a later one waits for a lost node's return, but not for ever. */
static void plan_soon(struct coord *c) {
    struct cluster *cl = &c->cluster;
    cl->changed_ns = c->now_ns;
    if (cl->state != CL_WAITING) {
        if (cl->plan.substitute) cl->restore_at_ns = c->now_ns + ms_to_ns(cl->restore_wait_ms);
        return;
    }
    uint32_t wanted = MAX(c->config.n_node_expected, cl->n_node_before);
    if (cl->n_node == 0) cl->plan_at_ns = UINT64_MAX;
    else if (wanted && cl->n_node >= wanted) cl->plan_at_ns = c->now_ns;
    else if (cl->had_plan) cl->plan_at_ns = cl->since_ns + ms_to_ns(c->config.rejoin_ms);
    else cl->plan_at_ns = c->config.n_node_expected ? UINT64_MAX : c->now_ns + ms_to_ns(c->config.settle_ms);
}

void cluster_refuse(struct coord *c, uint32_t link, int code, const char *text, struct coord_outs *outs) {
    struct msg *m = coord_send(c, outs, link, MSG_REFUSE);
    m->u.refuse.code = code;
    snprintf(m->u.refuse.text, sizeof m->u.refuse.text, "%s", text);
    coord_out(outs, COORD_OUT_DROP)->link = link;
}

void cluster_on_files(struct coord_node *n, const struct msg_files *files) {
    n->hello.n_file = MIN(files->n_file, (uint32_t)MSG_FILES_MAX);
    if (n->hello.n_file) memcpy(n->file, files->file, n->hello.n_file * sizeof n->file[0]);
    n->hello.file = n->file;
}

static void node_describe(struct coord_node *n, const struct msg_hello *h) {
    n->hello = *h;
    cluster_on_files(n, &(struct msg_files){ h->file, h->n_file });
}

static void send_welcome(struct coord *c, const struct msg_hello *h, uint32_t link, struct coord_outs *outs) {
    struct msg *m = coord_send(c, outs, link, MSG_WELCOME);
    m->u.welcome = (struct msg_welcome){ .version = MIN(h->version_max, (uint32_t)MSG_VERSION),
                                         .role = MSG_ROLE_COORDINATOR,
                                         .ping_ms = c->config.ping_ms,
                                         .ping_misses = c->config.ping_misses,
                                         .payload_bytes_max = c->config.payload_bytes_max };
    snprintf(m->u.welcome.name, sizeof m->u.welcome.name, "%s", c->config.name);
}

/* The same process again: its link was reset, or our WELCOME was lost. It still holds what it held, so
 * nothing else changes. */
static void hello_again(struct coord *c, struct coord_node *n, uint32_t link, const struct msg *m,
                        struct coord_outs *outs) {
    MARK(hello_repeated);
    uint64_t heard_epoch = m->epoch;
    peer_start(&n->peer, link, m->u.hello.name, m->incarnation, c->now_ns);
    n->peer.epoch = heard_epoch;
    n->peers_due = true;
    cluster_on_files(n, &(struct msg_files){ m->u.hello.file, m->u.hello.n_file });
    send_welcome(c, &m->u.hello, link, outs);
}

/* What was measured now; the rest stays as it was known. */
static void merge_link(struct coord_node *n, const struct msg_link *l) {
    uint32_t i = 0;
    while (i < n->n_measured && strcmp(n->measured[i].name, l->name) != 0) i++;
    if (i == MSG_PEERS_MAX) return;
    if (i == n->n_measured) {
        n->measured[n->n_measured++] = *l;
        return;
    }
    if (l->rtt_us) n->measured[i].rtt_us = l->rtt_us;
    if (l->bytes_per_s) n->measured[i].bytes_per_s = l->bytes_per_s;
}

void cluster_on_links(struct coord *c, struct coord_node *n, const struct msg_links *links) {
    for (uint32_t i = 0; i < links->n_link; i++) merge_link(n, &links->link[i]);
    survey_on_links(c, n, links->id);
}

/* A new process under this name may be on another machine. */
static void forget_links_to(struct coord *c, const char *name) {
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        struct coord_node *n = &c->cluster.node[i];
        for (uint32_t k = 0; k < n->n_measured; k++)
            if (strcmp(n->measured[k].name, name) == 0) n->measured[k--] = n->measured[--n->n_measured];
    }
}

void cluster_on_hello(struct coord *c, uint32_t link, const struct msg *m, struct coord_outs *outs) {
    const struct msg_hello *h = &m->u.hello;
    if (h->magic != MSG_MAGIC || h->version_min > MSG_VERSION || h->version_max < MSG_VERSION_MIN ||
        h->role != MSG_ROLE_NODE || !peer_name_is_valid(h->name)) {
        MARK(hello_version);
        cluster_refuse(c, link, ERR_UNSUPPORTED, "no common protocol version, no node, or no name", outs);
        return;
    }
    if (m->epoch > EPOCH_MAX) {
        cluster_refuse(c, link, ERR_INVALID, "an epoch that cannot be", outs);
        return;
    }
    struct coord_node *n = find_name(c, h->name), *on_link = cluster_find(c, link);
    if (n && n->peer.incarnation == m->incarnation) {
        hello_again(c, n, link, m, outs);
        return;
    }
    if (on_link) { /* the process at the other end was restarted, perhaps under another name */
        MARK(hello_new_incarnation);
        cluster_lose(c, on_link, "was restarted", outs);
        if (on_link == n) n = NULL;
    }
    if (n && !peer_is_silent(&n->peer, &(struct peer_pace){ ms_to_ns(c->config.ping_ms), 2 }, c->now_ns)) {
        MARK(hello_name_taken); /* if the first is dead we shall know in two periods; it will ask again */
        cluster_refuse(c, link, ERR_BUSY, "another node has this name", outs);
        return;
    }
    if (n) {
        coord_out(outs, COORD_OUT_DROP)->link = n->peer.link;
        cluster_lose(c, n, "gave way to a new process of its name", outs);
    }
    n = find_free(c);
    if (!n) {
        MARK(hello_table_full);
        cluster_refuse(c, link, ERR_BUSY, "the cluster is full", outs);
        return;
    }
    *n = (struct coord_node){ .stage_i = -1 };
    forget_links_to(c, h->name);
    peer_start(&n->peer, link, h->name, m->incarnation, c->now_ns);
    n->peer.epoch = m->epoch;
    node_describe(n, h);
    c->cluster.epoch_seen =
        MAX(c->cluster.epoch_seen, m->epoch); /* of the coordinator before us: ours will be newer */
    set_node(c, n, ND_JOINED);
    c->cluster.n_node++;
    send_welcome(c, h, link, outs);
    for (uint32_t i = 0; i < c->config.n_node_max; i++) c->cluster.node[i].peers_due = true;
    plan_soon(c);
}

/* ---- losing ---- */

/* The plan is over. Whoever is left is free for the next one; requests go back to the queue with what
 * they have. */
void cluster_fail_plan(struct coord *c, const char *why, struct coord_outs *outs) {
    struct cluster *cl = &c->cluster;
    if (cl->state == CL_WAITING) return;
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        struct coord_node *n = &cl->node[i];
        n->stage_i = -1;
        n->is_helper = false;
        if (cluster_node_in_plan(n)) set_node(c, n, ND_JOINED);
    }
    set_state(c, CL_WAITING, why, outs);
    pipeline_drop_all(c, outs);
    requests_requeue_all(c);
    plan_soon(c);
}

void cluster_lose(struct coord *c, struct coord_node *n, const char *why, struct coord_outs *outs) {
    struct cluster *cl = &c->cluster;
    bool in_plan = cluster_node_in_plan(n), was_out = n->state == ND_FAILED;
    char text[96];
    snprintf(text, sizeof text, "node %.40s %.40s", n->peer.name, why);
    set_node(c, n, ND_GONE);
    n->stage_i = -1;
    if (!was_out) cl->n_node--;
    if (in_plan) cluster_fail_plan(c, text, outs);
    plan_soon(c);
}

/* It lives but cannot load: out of the plan, and not asked again for a while. */
static void node_fails(struct coord *c, struct coord_node *n, const char *why, struct coord_outs *outs) {
    char text[96];
    snprintf(text, sizeof text, "node %.30s: %.55s", n->peer.name, why);
    n->failed_ns = c->now_ns;
    set_node(c, n, ND_FAILED);
    c->cluster.n_node--;
    cluster_fail_plan(c, text, outs);
}

/* ---- planning ---- */

/* Who may connect to a node: all others that are here. Spares as well, they may fetch weights soon. */
static uint32_t gather_keys(struct coord *c) {
    uint32_t n_key = 0;
    for (uint32_t i = 0; i < c->config.n_node_max && n_key < MSG_NODES_MAX; i++) {
        const struct coord_node *n = &c->cluster.node[i];
        if (n->state == ND_GONE || !n->hello.key[0]) continue;
        memcpy(c->cluster.key[n_key++].text, n->hello.key, MSG_KEY_MAX);
    }
    return n_key;
}

/* Somebody new is here: who gives weights away has to let it in, with or without a part in the plan. */
static void send_peers(struct coord *c, struct coord_node *n, struct coord_outs *outs) {
    uint32_t n_key = gather_keys(c);
    n->peers_due = false;
    if (!n_key) return;
    coord_send(c, outs, n->peer.link, MSG_PEERS)->u.peers = (struct msg_peers){ c->cluster.key, n_key };
}

static void send_assign(struct coord *c, struct coord_node *n, const struct coord_plan_stage *s,
                        const struct coord_plan_helper *as_helper, struct coord_outs *outs) {
    const struct coord_plan *p = &c->cluster.plan;
    uint32_t stage_i = (uint32_t)n->stage_i;
    bool last = stage_i + 1 == p->n_stage;
    struct msg *m = coord_send(c, outs, n->peer.link, MSG_ASSIGN);
    struct msg_assign *a = &m->u.assign;
    *a = (struct msg_assign){ .model_lo = p->model_lo,
                              .model_hi = p->model_hi,
                              .stage_i = stage_i,
                              .n_stage = p->n_stage,
                              .layer_begin = s->layer_begin,
                              .layer_end = s->layer_end,
                              .has_embed = stage_i == 0 && !as_helper,
                              .has_head = last && !as_helper,
                              .is_helper = as_helper != NULL,
                              .numerics = p->numerics,
                              .precision = p->precision,
                              .wire = s->wire,
                              .n_slot = p->n_slot,
                              .n_ctx_max = p->n_ctx_max,
                              .n_rows_max = p->n_rows_max,
                              .n_credit = p->n_credit,
                              .n_window = c->config.n_window_max,
                              .expert_begin = s->expert_begin,
                              .expert_end = s->expert_end,
                              .helper = n->helper };
    if (as_helper) {
        a->expert_begin = as_helper->expert_begin;
        a->expert_end = as_helper->expert_end;
    }
    snprintf(a->model, sizeof a->model, "%s", p->model);
    if (!last && !as_helper) {
        const struct msg_hello *next = &c->cluster.node[p->stage[stage_i + 1].node].hello;
        memcpy(a->next.name, next->name, sizeof a->next.name);
        memcpy(a->next.address, next->address, sizeof a->next.address);
        memcpy(a->next.key, next->key, sizeof a->next.key);
    }
    for (uint32_t i = 0; !as_helper && i < s->n_helper; i++) {
        const struct msg_hello *h = &c->cluster.node[s->helper[i].node].hello;
        struct msg_helper *to = &n->helper[a->n_helper++];
        *to = (struct msg_helper){ .expert_begin = s->helper[i].expert_begin,
                                   .expert_end = s->helper[i].expert_end };
        memcpy(to->hop.name, h->name, sizeof to->hop.name);
        memcpy(to->hop.address, h->address, sizeof to->hop.address);
        memcpy(to->hop.key, h->key, sizeof to->hop.key);
    }
    a->peer = c->cluster.key;
    a->n_peer = gather_keys(c);
    a->source = n->source;
    a->n_source = cluster_sources(c, n, a);
    n->assigned_ns = c->now_ns;
}

static void assign(struct coord *c, struct coord_node *n, struct coord_outs *outs) {
    const struct coord_plan_stage *s = &c->cluster.plan.stage[n->stage_i];
    const struct coord_plan_helper *as_helper = NULL;
    for (uint32_t i = 0; n->is_helper && i < s->n_helper; i++)
        if (s->helper[i].node == number_of(c, n)) as_helper = &s->helper[i];
    send_assign(c, n, s, as_helper, outs);
}

/* The planner speaks of the infos it was given; from here on numbers are places in our table. False: it
 * contradicts itself. */
static bool plan_adopt(struct coord *c, struct coord_plan *p, const uint32_t *place, uint32_t n_info) {
    uint32_t layer = 0;
    if (p->n_stage == 0 || p->n_stage > MSG_STAGES_MAX || p->n_stage > c->config.n_window_max ||
        p->n_slot == 0 || p->n_slot > MSG_SEQS_MAX || p->n_rows_max == 0 || p->n_ctx_max == 0)
        return false;
    for (uint32_t i = 0; i < p->n_stage; i++) {
        struct coord_plan_stage *s = &p->stage[i];
        if (s->node >= n_info || s->n_helper > MSG_HELPERS_MAX) return false;
        if (s->layer_begin != layer || s->layer_end <= s->layer_begin) return false;
        layer = s->layer_end;
        s->node = place[s->node];
        if (c->cluster.node[s->node].stage_i >= 0) return false;      /* one stage per node */
        c->cluster.node[s->node].stage_i = (int32_t)i;
        for (uint32_t k = 0; k < s->n_helper; k++) {
            if (s->helper[k].node >= n_info) return false;
            struct coord_node *h = &c->cluster.node[s->helper[k].node = place[s->helper[k].node]];
            if (h->stage_i >= 0) return false;
            h->stage_i = (int32_t)i;
            h->is_helper = true;
        }
    }
    return true;
}

/* Nodes that a plan may use; with those of the plan that holds, too. */
static uint32_t list_nodes(struct coord *c, bool in_plan, struct coord_node_info *info, uint32_t *place) {
    uint32_t n_info = 0;
    for (uint32_t i = 0; i < c->config.n_node_max && n_info < INFOS_MAX; i++) {
        struct coord_node *n = &c->cluster.node[i];
        if (n->state != ND_JOINED && !(in_plan && cluster_node_in_plan(n))) continue;
        place[n_info] = i;
        info[n_info++] = (struct coord_node_info){
            .hello = &n->hello, .rtt_us = n->peer.rtt_us, .link = n->measured, .n_link = n->n_measured
        };
    }
    return n_info;
}

static void plan_try(struct coord *c, struct coord_outs *outs) {
    struct cluster *cl = &c->cluster;
    struct coord_node_info info[INFOS_MAX];
    uint32_t place[INFOS_MAX], n_info = list_nodes(c, false, info, place);
    struct err e = { 0 };
    struct coord_plan plan = { 0 };
    survey_forget(c);
    int rc = c->config.plan(c->config.ctx, info, n_info, &plan, &e);
    if (rc == 0 && !plan_adopt(c, &plan, place, n_info)) {
        for (uint32_t i = 0; i < c->config.n_node_max; i++)
            cl->node[i].stage_i = -1, cl->node[i].is_helper = false;
        rc = err_set(&e, ERR_INTERNAL, "the planner contradicts itself");
    }
    if (rc < 0) {
        MARK(plan_impossible);
        snprintf(cl->why, sizeof cl->why, "no plan: %.80s", e.text);
        cl->plan_at_ns = c->now_ns + ms_to_ns(c->config.settle_ms) + 1;
        return;
    }
    cl->plan = plan;
    cl->had_plan = true;
    cl->n_node_before = cl->n_node;
    cl->restore_at_ns = UINT64_MAX;
    c->epoch = MAX(c->epoch, cl->epoch_seen) + 1;
    if (c->epoch > 1 && requests_active_or_queued(c)) MARK(plan_again);
    set_state(c, CL_LOADING, "nodes load their layers", outs);
    sched_plan(&c->sched, &cl->plan);
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        struct coord_node *n = &cl->node[i];
        if (n->stage_i < 0) continue;
        n->progress = (struct msg_progress){ 0 };
        n->progress_ns = c->now_ns;
        set_node(c, n, ND_LOADING);
        assign(c, n, outs);
    }
}

/* A machine has come while a substitute serves: is the wanted plan possible again? Requests go on where they
 * are, as after a loss. The wait doubles until the wanted plan serves: a machine that comes back and
 * cannot load must not end what works again and again. */
static void restore(struct coord *c, struct coord_outs *outs) {
    struct cluster *cl = &c->cluster;
    struct coord_node_info info[INFOS_MAX];
    uint32_t place[INFOS_MAX], n_info = list_nodes(c, true, info, place);
    cl->restore_at_ns = UINT64_MAX;
    if (!c->config.wanted || !c->config.wanted(c->config.ctx, info, n_info)) return;
    MARK(plan_restored);
    cl->restore_wait_ms = MIN(2 * cl->restore_wait_ms, (uint32_t)RESTORE_MS_MAX);
    cluster_fail_plan(c, "the machines of the wanted plan are back", outs);
    cl->plan_at_ns = c->now_ns;
}

/* ---- loading ---- */

void cluster_on_progress(struct coord *c, struct coord_node *n, const struct msg_progress *progress) {
    if (n->state != ND_LOADING) return;
    bool moved = progress->done_bytes != n->progress.done_bytes ||
                 progress->total_bytes != n->progress.total_bytes;
    if (moved) n->progress_ns = c->now_ns;
    n->progress = *progress;
}

void cluster_on_failed(struct coord *c, struct coord_node *n, const struct msg_failed *failed,
                       struct coord_outs *outs) {
    if (n->state != ND_LOADING) return;
    MARK(node_load_failed);
    node_fails(c, n, failed->text, outs);
}

static void serving_starts(struct coord *c, struct coord_outs *outs) {
    struct cluster *cl = &c->cluster;
    cl->n_slot = cl->plan.n_slot;
    cl->n_ctx_max = cl->plan.n_ctx_max;
    cl->n_rows_max = MIN(cl->plan.n_rows_max, c->config.n_row_max);
    cl->state_tokens_max = UINT64_MAX;
    for (uint32_t i = 0; i < cl->plan.n_stage; i++) {
        const struct msg_ready *r = &cl->node[cl->plan.stage[i].node].ready;
        if (r->n_slot) cl->n_slot = MIN(cl->n_slot, r->n_slot);
        if (r->n_ctx_max) cl->n_ctx_max = MIN(cl->n_ctx_max, r->n_ctx_max);
        if (r->n_rows_max) cl->n_rows_max = MIN(cl->n_rows_max, r->n_rows_max);
        if (r->state_tokens_max) cl->state_tokens_max = MIN(cl->state_tokens_max, r->state_tokens_max);
    }
    cl->first_node = cl->plan.stage[0].node;
    cl->last_node = cl->plan.stage[cl->plan.n_stage - 1].node;
    if (!cl->plan.substitute) cl->restore_wait_ms = c->config.restore_ms;
    set_state(c, CL_SERVING, "all stages are ready", outs);
    pipeline_start(c);
    requests_recheck(c, outs);
}

void cluster_on_ready(struct coord *c, struct coord_node *n, const struct msg_ready *ready,
                      struct coord_outs *outs) {
    if (n->state != ND_LOADING) return;           /* said twice */
    n->ready = *ready;
    set_node(c, n, ND_READY);
    for (uint32_t i = 0; i < c->config.n_node_max; i++)
        if (c->cluster.node[i].state == ND_LOADING) return;
    if (c->cluster.state == CL_LOADING) serving_starts(c, outs);
}

/* ---- time ---- */

static void node_timers(struct coord *c, struct coord_node *n, struct coord_outs *outs) {
    struct peer_pace pace = { ms_to_ns(c->config.ping_ms), c->config.ping_misses };
    if (peer_is_silent(&n->peer, &pace, c->now_ns)) {
        MARK(node_lost);
        coord_out(outs, COORD_OUT_DROP)->link = n->peer.link;
        cluster_lose(c, n, "is silent", outs);
        return;
    }
    if (n->peers_due) send_peers(c, n, outs);
    if (peer_ping_is_due(&n->peer, &pace, c->now_ns)) {
        peer_fill_ping(&n->peer, &coord_send(c, outs, n->peer.link, MSG_PING)->u.ping, c->now_ns);
        n->sync_due = n->state == ND_READY && c->cluster.state == CL_SERVING;
    }
    if (n->state == ND_LOADING) {
        if (c->now_ns >= n->progress_ns + ms_to_ns(c->config.load_silent_ms)) {
            MARK(node_load_silent);
            node_fails(c, n, "makes no progress", outs);
        } else if (c->now_ns >= n->assigned_ns + 2 * pace.ping_ns) {
            assign(c, n, outs);
        }
    }
    if (n->state == ND_FAILED && c->now_ns >= n->failed_ns + ms_to_ns(c->config.exclude_ms)) {
        set_node(c, n, ND_JOINED);
        c->cluster.n_node++;
        plan_soon(c);
    }
}

void cluster_timers(struct coord *c, struct coord_outs *outs) {
    for (uint32_t i = 0; i < c->config.n_node_max; i++)
        if (c->cluster.node[i].state != ND_GONE) node_timers(c, &c->cluster.node[i], outs);
    if (c->cluster.state == CL_SERVING && c->now_ns >= c->cluster.restore_at_ns) restore(c, outs);
    bool due = c->now_ns >= c->cluster.plan_at_ns;
    if (c->cluster.state == CL_WAITING && (due || c->survey.active) && !survey_holds(c, outs) && due)
        plan_try(c, outs);
}

static uint64_t plan_deadline_ns(const struct coord *c) {
    const struct cluster *cl = &c->cluster;
    if (cl->state == CL_SERVING) return cl->restore_at_ns;
    if (cl->state == CL_LOADING) return UINT64_MAX;
    return c->survey.active ? c->survey.round_until_ns : cl->plan_at_ns;
}

uint64_t cluster_deadline_ns(const struct coord *c) {
    const struct cluster *cl = &c->cluster;
    struct peer_pace pace = { ms_to_ns(c->config.ping_ms), c->config.ping_misses };
    uint64_t d = plan_deadline_ns(c);
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        const struct coord_node *n = &cl->node[i];
        if (n->state == ND_GONE) continue;
        d = MIN(d, peer_deadline_ns(&n->peer, &pace));
        if (n->state == ND_LOADING)
            d = MIN(d, MIN(n->progress_ns + ms_to_ns(c->config.load_silent_ms),
                           n->assigned_ns + 2 * pace.ping_ns));
        if (n->state == ND_FAILED) d = MIN(d, n->failed_ns + ms_to_ns(c->config.exclude_ms));
    }
    return d;
}

void cluster_check(const struct coord *c) {
    const struct cluster *cl = &c->cluster;
    uint32_t n_node = 0;
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        const struct coord_node *n = &cl->node[i];
        n_node += n->state != ND_GONE && n->state != ND_FAILED;
        CHECK(cluster_node_in_plan(n) == (n->stage_i >= 0));
        CHECK(cl->state != CL_WAITING || n->stage_i < 0);
        CHECK(cl->state != CL_SERVING || n->state != ND_LOADING);
    }
    CHECK(n_node == cl->n_node);
}
