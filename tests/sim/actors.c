/* actors - the shells of the simulation: they hand events to the cores and carry out what the cores want. */
#include "tests/sim/world.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/base/banned.h"

/* ---- the coordinator's seams ---- */

static uint32_t stages_of(const struct world *w, uint32_t n_node) {
    return MIN(MIN(n_node, w->n_stage_max), w->n_layer);
}

static bool wanted(void *ctx, const struct coord_node_info *node, uint32_t n_node) {
    (void)node;
    return stages_of(ctx, n_node) == stages_of(ctx, UINT32_MAX);
}

/* Contiguous stages over the nodes that there are, in an order that changes, with cuts that change. */
static int plan(void *ctx, const struct coord_node_info *node, uint32_t n_node, struct coord_plan *out,
                struct err *e) {
    struct world *w = ctx;
    uint32_t n_stage = stages_of(w, n_node), layer = 0;
    uint32_t first = (uint32_t)world_between(w, 0, n_node ? n_node - 1 : 0);
    if (n_node < w->n_node_min) return err_set(e, ERR_NOMEM, "%u nodes are needed", w->n_node_min);
    *out = (struct coord_plan){ .model_lo = 1, .n_stage = n_stage, .n_slot = w->n_slot, .n_ctx_max = w->n_ctx,
                                .n_rows_max = w->n_rows, .n_credit = w->n_credit,
                                .substitute = !wanted(w, node, n_node) };
    for (uint32_t i = 0; i < n_stage; i++) {
        uint32_t left = n_stage - i - 1, most = w->n_layer - layer - left;
        uint32_t n = !left ? most : w->even ? w->n_layer / n_stage : (uint32_t)world_between(w, 1, most);
        out->stage[i] = (struct coord_plan_stage){ .node = (first + i) % n_node,
                                                   .layer_begin = layer,
                                                   .layer_end = layer + n };
        layer += n;
    }
    return 0;
}

static int sample(void *ctx, const struct coord_sample *s, struct coord_sampled *out) {
    struct world *w = ctx;
    struct client *c = client_of(w, s->tag);
    CHECK(c && s->payload.generation);
    if (!s->row->whole && s->row->n_item == 0) return COORD_NEED_MORE;
    uint64_t hash = payload_data(w, s->payload)[(s->payload.offset + s->row->offset) / 8];
    out->spent_us = 20;
    if (s->known) {
        client_score(w, c, s->position, s->token, hash);
        return 0;
    }
    out->token = compute_pick(w, hash, c->seed, s->position, &out->end);
    return 0;
}

/* ---- tracing ---- */

struct speaker { struct world *w; uint8_t actor; };
static struct speaker speakers[ACTORS_MAX];

static void speak(void *ctx, const char *text) {
    const struct speaker *s = ctx;
    world_say(s->w, s->actor, "%s", text);
}

static struct trace trace_of(struct world *w, uint8_t a) {
    speakers[a] = (struct speaker){ w, a };
    return w->trace ? (struct trace){ speak, &speakers[a] } : (struct trace){ 0 };
}

/* ---- the coordinator ---- */

static uint8_t actor_at(const char *address) {
    return (uint8_t)strtoul(address + strlen("sim://"), NULL, 10);
}

/* Serving means: each stage that is still the same process has loaded this plan. */
static void check_all_ready(struct world *w) {
    struct coord_view v = coord_view(w->coord);
    struct coord_node_view n;
    for (uint32_t i = 0; v.state == CL_SERVING && i < w->coord_config.n_node_max; i++) {
        if (!coord_view_node(w->coord, i, &n) || n.stage_i < 0) continue;
        const struct actor *actor = &w->actor[actor_at(n.hello->address)];
        if (!actor->up || actor->incarnation != n.peer->incarnation) continue;
        struct node_view node = node_view(actor->node);
        if (node.epoch == v.epoch && node.state == NODE_LOADING)
            world_fail(w, "serving, but %s is still loading", actor->name);
        if (node.epoch < v.epoch) world_fail(w, "serving, but %s does not know the plan", actor->name);
    }
}

static void coordinator_carry_out(struct world *w) {
    struct coord_outs *outs = &w->coord_outs;
    for (uint32_t i = 0; i < outs->n; i++) {
        const struct coord_out *o = &outs->item[i];
        switch (o->kind) {
        case COORD_OUT_SEND: net_send(w, COORDINATOR, o->link, o->msg, (struct payload){ 0 }, false); break;
        case COORD_OUT_FREE: payload_free_one(w, COORDINATOR, o->payload); break;
        case COORD_OUT_ACCEPTED: client_of(w, o->tag)->handle = o->request; break;
        case COORD_OUT_TOKEN: client_token(w, o->tag, o->token, o->index); break;
        case COORD_OUT_DONE: client_over(w, o->tag, o->code, o->n_cached); break;
        case COORD_OUT_STATE:
            world_say(w, COORDINATOR, "%s", o->text);
            check_all_ready(w);
            break;
        case COORD_OUT_NOTICE: world_say(w, COORDINATOR, "notice %d: %s", o->code, o->text); break;
        case COORD_OUT_DROP: break;
        }
    }
    w->actor[COORDINATOR].deadline_ns = outs->deadline_ns;
}

static void coordinator_event(struct world *w, struct coord_event *ev) {
    ev->now_ns = w->now;
    coord_step(w->coord, ev, &w->coord_outs);
    coord_check(w->coord);
    coordinator_carry_out(w);
}

void coordinator_submit(struct world *w, struct client *c) {
    if (!w->actor[COORDINATOR].up || c->state == CLIENT_DONE) {
        struct ev later = { .t = w->now + 500 * MS, .kind = EV_CLIENT, .arg = (uint32_t)(c - w->client) };
        if (c->state == CLIENT_IDLE) world_post(w, later);
        return;
    }
    c->state = CLIENT_WAITS;
    c->tag = ++w->tag_next;
    c->n_got = c->n_scored = 0;
    c->submitted_at = w->now;
    struct msg_bias bias[2] = { { 3, 1.0f }, { 9, -1.0f } };
    struct coord_event ev = { .kind = COORD_EV_SUBMIT };
    ev.submit = (struct coord_submit){ .tag = c->tag,
                                       .token = c->prompt,
                                       .n_token = c->n_prompt,
                                       .n_new_max = c->n_new,
                                       .bias = bias,
                                       .deadline_ms = c->deadline_ms,
                                       .scores = c->scores,
                                       .want = { .temperature = 1, .top_p = 1 } };
    ev.submit.want.n_bias = c->seed % 3 == 0 ? 2 : 0;
    world_say(w, NOBODY, "client %u submits: %u tokens, %u new, expects %u", (uint32_t)(c - w->client),
              c->n_prompt, c->n_new, c->n_expected);
    coordinator_event(w, &ev);
}

void coordinator_cancel(struct world *w, struct client *c) {
    if (!w->actor[COORDINATOR].up || c->state == CLIENT_IDLE) return;
    c->cancelled = c->state == CLIENT_WAITS;      /* else: a handle of long ago */
    struct coord_event ev = { .kind = COORD_EV_CANCEL, .request = c->handle };
    world_say(w, NOBODY, "client %u cancels", (uint32_t)(c - w->client));
    coordinator_event(w, &ev);
}

/* ---- nodes ---- */

static void node_carry_out(struct world *w, uint8_t a) {
    struct actor *actor = &w->actor[a];
    struct node_outs *outs = &actor->node_outs;
    for (uint32_t i = 0; i < outs->n; i++) {
        const struct node_out *o = &outs->item[i];
        switch (o->kind) {
        case NODE_OUT_SEND: net_send(w, a, o->link, o->msg, o->payload, o->borrows); break;
        case NODE_OUT_CONNECT: net_open(w, a, o->link, actor_at(o->hop->address)); break;
        case NODE_OUT_DISCONNECT: net_close(w, a, o->link); break;
        case NODE_OUT_FREE: payload_free_one(w, a, o->payload); break;
        case NODE_OUT_LOAD: case NODE_OUT_RUN: case NODE_OUT_SEQ_CLOSE: compute_push(w, a, o); break;
        case NODE_OUT_NOTICE: world_say(w, a, "notice %d: %s", o->code, o->text); break;
        case NODE_OUT_DROP:
        case NODE_OUT_EXPERTS:
        case NODE_OUT_EXPERTS_DONE:
        case NODE_OUT_SOURCES:
            break; /* no helpers and no weights here */
        }
    }
    actor->deadline_ns = outs->deadline_ns;
}

static void node_event(struct world *w, uint8_t a, struct node_event *ev) {
    ev->now_ns = w->now;
    node_step(w->actor[a].node, ev, &w->actor[a].node_outs);
    node_check(w->actor[a].node);
    node_carry_out(w, a);
}

void actor_job_done(struct world *w, uint8_t a) {
    struct msg_row_result rows[MSG_WANTS_MAX];
    struct node_event ev;
    compute_done(w, a, &ev, rows);
    if (ev.kind != NODE_EV_TICK) node_event(w, a, &ev);
}

/* The shell's business on a real node: how far and how fast the others are. */
static void answer_survey(struct world *w, uint8_t a, const struct msg_survey *survey) {
    struct msg_link link[MSG_PEERS_MAX];
    struct msg m = { .kind = MSG_LINKS, .incarnation = w->actor[a].incarnation };
    if (fault_hits(w, FAULT_LOAD_SILENT, 4)) return;
    for (uint32_t i = 0; i < survey->n_hop; i++) {
        link[i] = (struct msg_link){ .rtt_us = survey->bulk ? 0 : 100, .bytes_per_s = survey->bulk };
        memcpy(link[i].name, survey->hop[i].name, sizeof link[i].name);
    }
    m.epoch = node_view(w->actor[a].node).epoch;
    m.u.links = (struct msg_links){ link, survey->n_hop, survey->id };
    net_send(w, a, NODE_LINK_COORDINATOR, &m, (struct payload){ 0 }, false);
}

/* ---- any ---- */

void actor_tick(struct world *w, uint8_t a) {
    if (a == COORDINATOR) coordinator_event(w, &(struct coord_event){ .kind = COORD_EV_TICK });
    else node_event(w, a, &(struct node_event){ .kind = NODE_EV_TICK });
}

void actor_deliver(struct world *w, struct parcel *p) {
    uint32_t link;
    if (!net_arrives(w, p, &link)) {
        world_say(w, p->to, "(lost on the way: message %d)", (int)p->msg.kind);
        return;
    }
    struct payload payload = p->payload;
    p->payload = (struct payload){ 0 };
    if (payload.generation) payload_pass(w, payload, NOBODY, p->to);
    if (p->to == COORDINATOR) {
        coordinator_event(
            w, &(struct coord_event){
                   .kind = COORD_EV_MSG, .link = link, .msg = &p->msg, .take_payload = payload });
    } else {
        if (p->msg.kind == MSG_SURVEY && link == NODE_LINK_COORDINATOR)
            answer_survey(w, p->to, &p->msg.u.survey);
        struct node_view before = node_view(w->actor[p->to].node);
        node_event(w, p->to,
                   &(struct node_event){
                       .kind = NODE_EV_MSG, .link = link, .msg = &p->msg, .take_payload = payload });
        if (p->msg.kind == MSG_WORK && p->msg.epoch != before.epoch &&
            node_view(w->actor[p->to].node).n_batch > before.n_batch)
            world_fail(w, "%s takes a batch of another plan", w->actor[p->to].name);
    }
}

static void start_coordinator(struct world *w) {
    struct actor *actor = &w->actor[COORDINATOR];
    w->coord_config.incarnation = actor->incarnation;
    w->coord_config.plan = plan;
    w->coord_config.wanted = wanted;
    w->coord_config.sample = sample;
    w->coord_config.ctx = w;
    w->coord_config.trace = trace_of(w, COORDINATOR);
    w->coord = coord_new(&w->coord_config);
    if (!w->coord_outs.item) coord_outs_init(&w->coord_outs, &w->coord_config);
}

static void start_node(struct world *w, uint8_t a) {
    struct actor *actor = &w->actor[a];
    struct node_config config = { .incarnation = actor->incarnation,
                                  .ping_ms = 500,
                                  .ping_misses = 5,
                                  .n_batch_max = 24,
                                  .n_slot_max = SLOTS_MAX,
                                  .payload_bytes_max = 1 << 20,
                                  .trace = trace_of(w, a) };
    snprintf(config.hello.name, sizeof config.hello.name, "%s", actor->name);
    snprintf(config.hello.address, sizeof config.hello.address, "sim://%u", a);
    actor->node = node_new(&config);
    if (!actor->node_outs.item) node_outs_init(&actor->node_outs, &config);
    if (!actor->state) actor->state = xcalloc(SLOTS_MAX, sizeof *actor->state);
    memset(actor->slot, 0, sizeof actor->slot);
    actor->n_job = actor->job_first = 0;
    actor->ran_epoch = actor->ran_batch = 0;
    actor->job_runs = false;
    net_open(w, a, NODE_LINK_COORDINATOR, COORDINATOR);
}

void actor_start(struct world *w, uint8_t a) {
    struct actor *actor = &w->actor[a];
    actor->up = true;
    actor->incarnation = rng_u64(&w->rng) | 1;
    actor->next_link = NODE_LINK_ACCEPTED + actor->generation * 1000;
    actor->paused_until = actor->slow_until = 0;
    memset(actor->link_of, 0, sizeof actor->link_of);
    snprintf(actor->name, sizeof actor->name, a == COORDINATOR ? "coordinator" : "node-%u", a);
    world_say(w, a, "starts");
    if (a == COORDINATOR) start_coordinator(w);
    else start_node(w, a);
    actor_tick(w, a);
}

void actor_crash(struct world *w, uint8_t a) {
    struct actor *actor = &w->actor[a];
    world_say(w, a, "crashes");
    actor->up = false;
    actor->generation++;
    net_close_all_of(w, a);
    payload_free_all_of(w, a);
    if (a == COORDINATOR) {
        coord_free(w->coord);
        w->coord = NULL;
        clients_coordinator_gone(w);
    } else {
        node_free(actor->node);
        actor->node = NULL;
    }
}

void actor_stop(struct world *w, uint8_t a) {
    world_say(w, a, "is told to stop");
    if (a == COORDINATOR) {
        w->stopping = true;
        coordinator_event(w, &(struct coord_event){ .kind = COORD_EV_STOP });
        w->stopping = false;
    } else {
        node_event(w, a, &(struct node_event){ .kind = NODE_EV_STOP });
    }
    w->actor[a].paused_until = w->now + 200 * MS; /* its LEAVE is still on the way */
    world_post(w, (struct ev){ .t = w->now + 100 * MS,
                               .kind = EV_CRASH,
                               .actor = a,
                               .generation = w->actor[a].generation });
}

void actors_start(struct world *w) {
    actor_start(w, COORDINATOR);
    for (uint8_t a = 1; a <= w->n_node; a++)
        world_post(w, (struct ev){
                          .t = w->now + world_between(w, 0, 3000 * MS), .kind = EV_RESTART, .actor = a });
}
