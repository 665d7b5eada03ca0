/* faults - what goes wrong, how often, and the moment from which nothing does any more. */
#include "tests/sim/world.h"

#include "common/base/check.h"

#include <stdio.h>

#include "common/base/banned.h"

/* Each seed has its own set of faults: with all of them at once, most would hide behind the others. */
void faults_init(struct world *w) {
    bool none = world_chance(w, 8);
    for (int f = 0; f < FAULTS; f++) w->fault[f] = !none && world_chance(w, 4);
    w->fault_mean_ns = world_between(w, 200 * MS, 6000 * MS);
    w->faults_end = w->now + world_between(w, 5000 * MS, 60000 * MS);
    w->end_by = w->faults_end + 600000 * MS;
    struct coord_config *c = &w->coord_config;
    coord_config_init(c);
    snprintf(c->name, sizeof c->name, "coordinator");
    c->n_node_max = w->n_node + (uint32_t)world_between(w, 0, 1);
    c->n_request_max = (uint32_t)world_between(w, 3, 16);
    c->n_seg_max = (uint32_t)world_between(w, 1, 8);
    c->n_row_max = 64;
    c->n_park_max = world_chance(w, 6) ? 0 : (uint32_t)world_between(w, 1, 8);
    c->n_keep_min = world_chance(w, 3) ? UINT32_MAX : (uint32_t)world_between(w, 1, 12);
    c->n_window_max = 8;
    c->n_node_expected = world_chance(w, 2) ? w->n_node : 0;
    c->settle_ms = (uint32_t)world_between(w, 100, 2000);
    c->rejoin_ms = (uint32_t)world_between(w, 100, 5000);
    c->survey_ms = world_chance(w, 2) ? 0 : (uint32_t)world_between(w, 300, 3000);
    c->restore_ms = (uint32_t)world_between(w, 100, 3000);
    c->load_silent_ms = 20000;
    c->exclude_ms = 3000;
    c->stall_ms = world_chance(w, 4) ? 8000 : 120000;
    c->n_extra = (uint32_t)world_between(w, 0, 2);
    c->batch_unknown_ms = (uint32_t)world_between(w, 500, 5000);
    c->batch_floor_ms = (uint32_t)world_between(w, 200, 2000);
    c->bound_ms = (uint32_t)world_between(w, 1, 250);
    c->chunk_first = (uint32_t)world_between(w, 1, 16);
    c->chunk_min = (uint32_t)world_between(w, 1, 8);
    c->retry_max = (uint32_t)world_between(w, 2, 6);
    c->give_up_ms = world_chance(w, 4) ? 2000 : 30000;
    c->wedge_ms = (uint32_t)world_between(w, 1000, 10000);
    world_post(w, (struct ev){ .t = w->now + world_between(w, 0, w->fault_mean_ns), .kind = EV_FAULT });
    world_post(w, (struct ev){ .t = w->faults_end, .kind = EV_HEAL });
}

bool fault_hits(struct world *w, enum fault fault, uint32_t one_in) {
    return w->fault[fault] && !w->calm && world_chance(w, one_in);
}

static struct conn *some_conn(struct world *w) {
    struct conn *c = &w->conn[world_between(w, 0, CONNS_MAX - 1)];
    bool data = world_chance(w, 2); /* those between stages are fewer, and more is lost on them */
    for (int i = 0; i < CONNS_MAX && (!c->used || (data && c->a_link != NODE_LINK_NEXT)); i++)
        c = &w->conn[(c - w->conn + 1) % CONNS_MAX];
    return c->used ? c : NULL;
}

static void crash_for_a_while(struct world *w, uint8_t a, bool politely) {
    if (!w->actor[a].up) return;
    if (politely) actor_stop(w, a);
    else actor_crash(w, a);
    uint64_t away = world_chance(w, 2) ? world_between(w, 150 * MS, 800 * MS)
                                       : world_between(w, 800 * MS, 12000 * MS);
    world_post(w, (struct ev){ .t = w->now + away, .kind = EV_RESTART, .actor = a });
}

/* Somebody who does not belong here: a scanner, another version, a node with a name that is taken, a node
 * that never answers. */
static void stray(struct world *w) {
    uint8_t to = (uint8_t)world_between(w, 0, w->n_node);
    struct msg m = { .kind = MSG_PING, .incarnation = rng_u64(&w->rng) | 1 };
    uint64_t what = world_between(w, 0, 3);
    uint32_t link = 1000000 + (uint32_t)world_between(w, 0, 1000000);
    const struct conn *known = some_conn(w);
    if (known && known->b_link && world_chance(w, 3)) to = known->b, link = known->b_link;
    else if (what == 0 && to != COORDINATOR && world_chance(w, 2)) link = NODE_LINK_COORDINATOR;
    if (!w->actor[to].up) return;
    if (what > 0) {
        m.kind = MSG_HELLO;
        m.u.hello = (struct msg_hello){
            .magic = what == 1 ? 7 : MSG_MAGIC, .version_min = 1, .version_max = 1, .role = MSG_ROLE_NODE
        };
        const char *name = what == 2 ? "node" : "ghost";
        snprintf(m.u.hello.name, sizeof m.u.hello.name, "%s-%u", name,
                 (unsigned)world_between(w, 1, w->n_node));
        snprintf(m.u.hello.address, sizeof m.u.hello.address, "sim://%u",
                 (unsigned)world_between(w, 1, w->n_node));
    }
    uint32_t n = world_chance(w, 10) ? 20 : 1;    /* a scan */
    for (uint32_t i = 0; i < n; i++) {
        m.incarnation += 2;
        net_inject(w, to, link + i, &m);
    }
    world_say(w, to, "(a stray connection)");
}

static void clog_one(struct world *w) {
    struct conn *c = some_conn(w);
    if (c) c->clogged_until = MIN(w->faults_end, w->now + world_between(w, 10 * MS, 5000 * MS));
}

static void one_fault(struct world *w, enum fault f) {
    uint8_t node = (uint8_t)world_between(w, 1, w->n_node);
    struct conn *c;
    switch (f) {
    case FAULT_CLOG: clog_one(w); break;
    case FAULT_RESET:
        if ((c = some_conn(w))) {
            world_say(w, c->a, "(connection to %s is reset)", w->actor[c->b].name);
            net_reset(w, c);
        }
        break;
    case FAULT_CRASH: crash_for_a_while(w, node, false); break;
    case FAULT_LEAVE: crash_for_a_while(w, node, true); break;
    case FAULT_COORDINATOR:
        if (world_chance(w, 4)) crash_for_a_while(w, COORDINATOR, world_chance(w, 2));
        break;
    case FAULT_SLOW:
        w->actor[node].slow_until = MIN(w->faults_end, w->now + world_between(w, 100 * MS, 8000 * MS));
        break;
    case FAULT_PAUSE: {
        struct actor *a = &w->actor[world_between(w, 0, w->n_node)];
        a->paused_until = MIN(w->faults_end, w->now + world_between(w, 10 * MS, 4000 * MS));
        break;
    }
    case FAULT_STRAY: stray(w); break;
    default: break;                               /* those strike where they belong, by fault_hits() */
    }
}

void faults_happen(struct world *w) {
    if (w->calm) return;
    for (int f = 0; f < FAULTS; f++)
        if (w->fault[f] && world_chance(w, 3)) one_fault(w, (enum fault)f);
    world_post(w, (struct ev){ .t = w->now + world_between(w, 1, 2 * w->fault_mean_ns), .kind = EV_FAULT });
}

void faults_end(struct world *w) {
    w->calm = true;
    world_say(w, NOBODY, "no more faults");
    for (uint8_t a = 0; a <= w->n_node; a++) {
        w->actor[a].paused_until = w->actor[a].slow_until = 0;
        if (!w->actor[a].up) actor_start(w, a);
    }
    clients_add_strict(w);
}
