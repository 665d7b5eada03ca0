/* shell_sources - the links of a node that fetches weights to those who give them.
 *
 *     ASSIGN, first or repeated -> sources_set: one place per source --+--> CONNECT, HELLO ... WELCOME: up
 *     timer: PING, silence, lost links: down ---------------------------+--> fetch_run_source_up
 *     WEIGHTS -> fetch_run_on_weights                     fetch_run: WEIGHTS_GET -> the link of the place
 *
 * The coordinator is a source without a link of its own: its place is up while the core's link to it is.
 * Beside the core, because which machine sends some bytes changes nothing that a core decides. */
#include "node/main_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"

#include <stdio.h>

static const struct peer_pace pace = { PING_MS * UINT64_C(1000000), PING_MISSES };

static uint32_t link_of(const struct node_process *p, const struct node_source *s) {
    return NODE_LINK_SOURCE + (uint32_t)(s - p->source);
}

static bool is_coordinator(const struct node_source *s) {
    return !s->of.hop.address[0];
}

static void set_up(struct node_process *p, struct node_source *s, bool up) {
    if (s->up == up) return;
    s->up = up;
    fetch_run_source_up(p->fetch, (uint32_t)(s - p->source), up);
}

/* ---- who the sources are ---- */

static void forget(struct node_process *p, struct node_source *s) {
    if (!s->used) return;
    if (!is_coordinator(s)) links_disconnect(p->links, link_of(p, s));
    *s = (struct node_source){ .used = false };
}

static bool is_same(const struct node_source *s, const struct msg_source *of) {
    return s->used && memcmp(&s->of.hop, &of->hop, sizeof of->hop) == 0;
}

static void say_hello(struct node_process *p, struct node_source *s) {
    struct msg m = { .kind = MSG_HELLO, .u.hello = p->core_config.hello };
    m.u.hello.magic = MSG_MAGIC;
    m.u.hello.version_min = MSG_VERSION_MIN;
    m.u.hello.version_max = MSG_VERSION;
    m.u.hello.role = MSG_ROLE_NODE;
    m.u.hello.file = NULL;
    m.u.hello.n_file = 0;
    s->peer.said_ns = clock_now_ns();
    shell_say(p, link_of(p, s), &m, (struct payload){ 0 });
}

static void add(struct node_process *p, const struct msg_source *of) {
    struct err e;
    struct node_source *s = p->source;
    while (s < p->source + MSG_SOURCES_MAX && s->used) s++;
    CHECK(s < p->source + MSG_SOURCES_MAX);        /* those that are gone went before */
    *s = (struct node_source){ .used = true, .of = *of };
    fetch_run_source(p->fetch, (uint32_t)(s - p->source), of);
    if (is_coordinator(s)) return;
    s->peer.link = link_of(p, s);
    if (links_connect(p->links, link_of(p, s), of->hop.address, of->hop.key, &e) < 0)
        log_warn("node", "%s at %s: %s", of->hop.name, of->hop.address, e.text);
}

static bool is_listed(const struct node_source *s, const struct msg_source *list, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (is_same(s, &list[i])) return true;
    return false;
}

void sources_set(struct node_process *p, const struct msg_source *list, uint32_t n) {
    for (struct node_source *s = p->source; s < p->source + MSG_SOURCES_MAX; s++) {
        if (!s->used || is_listed(s, list, n)) continue;
        log_info("node", "%s gives no more weights", s->of.hop.name);
        fetch_run_source(p->fetch, (uint32_t)(s - p->source), NULL);
        forget(p, s);
    }
    for (uint32_t i = 0; i < n && !fetch_run_is_idle(p->fetch); i++) {
        struct node_source *s = p->source;
        while (s < p->source + MSG_SOURCES_MAX && !is_same(s, &list[i])) s++;
        if (s == p->source + MSG_SOURCES_MAX) add(p, &list[i]);
        else fetch_run_source(p->fetch, (uint32_t)(s - p->source), &list[i]);
    }
    sources_look(p);
    if (!fetch_run_is_idle(p->fetch)) loop_timer_set(p->source_timer, clock_now_ns() + pace.ping_ns / 4);
}

void sources_close(struct node_process *p) {
    for (struct node_source *s = p->source; s < p->source + MSG_SOURCES_MAX; s++) forget(p, s);
    loop_timer_set(p->source_timer, LOOP_NEVER);
}

/* ---- are they there? ---- */

void sources_look(struct node_process *p) {
    for (struct node_source *s = p->source; s < p->source + MSG_SOURCES_MAX; s++)
        if (s->used && is_coordinator(s)) set_up(p, s, node_view(p->core).coordinator_up && !p->redialled);
}

static void look_at(struct node_process *p, struct node_source *s) {
    struct link_view v;
    uint64_t now = clock_now_ns();
    bool connected = links_view(p->links, link_of(p, s), &v) && v.up;
    if (s->peer.up && (!connected || peer_is_silent(&s->peer, &pace, now))) {
        log_info("node", "%s gives no more weights: %s", s->of.hop.name,
                 connected ? "it is silent" : "its link is lost");
        s->peer.up = false;
        set_up(p, s, false);
    }
    if (!connected || !peer_ping_is_due(&s->peer, &pace, now)) return;
    if (!s->peer.up) {
        say_hello(p, s);
        return;
    }
    struct msg m = { .kind = MSG_PING };
    peer_fill_ping(&s->peer, &m.u.ping, now);
    shell_say(p, link_of(p, s), &m, (struct payload){ 0 });
}

void sources_on_timer(void *ctx) {
    struct node_process *p = ctx;
    if (p->stopping) return;
    for (struct node_source *s = p->source; s < p->source + MSG_SOURCES_MAX; s++)
        if (s->used && !is_coordinator(s)) look_at(p, s);
    sources_look(p);
    if (!fetch_run_is_idle(p->fetch)) loop_timer_set(p->source_timer, clock_now_ns() + pace.ping_ns / 4);
}

void sources_on_up(struct node_process *p, uint32_t link) {
    struct node_source *s = &p->source[link - NODE_LINK_SOURCE];
    if (!s->used) return;
    s->peer.up = false;
    set_up(p, s, false);
    say_hello(p, s);
}

const char *sources_name(const struct node_process *p, uint32_t i) {
    return p->source[i].used ? p->source[i].of.hop.name : "?";
}

/* ---- messages ---- */

void sources_send(void *ctx, uint32_t source, const struct msg_weights_get *get) {
    struct node_process *p = ctx;
    struct node_source *s = &p->source[source];
    struct msg m = { .kind = MSG_WEIGHTS_GET, .u.weights_get = *get };
    shell_say(p, is_coordinator(s) ? NODE_LINK_COORDINATOR : link_of(p, s), &m, (struct payload){ 0 });
}

static void welcome(struct node_process *p, struct node_source *s, const struct msg *m) {
    peer_start(&s->peer, link_of(p, s), m->u.welcome.name, m->incarnation, clock_now_ns());
    s->told = false;
    set_up(p, s, true);
}

static void refused(struct node_process *p, struct node_source *s, const struct msg_refuse *r) {
    if (!s->told) log_warn("node", "%s gives no weights: %s", s->of.hop.name, r->text);
    s->told = true;
    s->peer.up = false;
    set_up(p, s, false);
}

static void from_coordinator(struct node_process *p, const struct msg_weights *w, struct payload payload) {
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) {
        if (!p->source[i].used || !is_coordinator(&p->source[i])) continue;
        fetch_run_on_weights(p->fetch, i, w, payload);
        return;
    }
    slots_give(p->slots, payload);
}

void sources_on_msg(struct node_process *p, uint32_t link, const struct msg *m, struct payload payload) {
    if (!p->fetch) {
        slots_give(p->slots, payload);
        return;
    }
    if (link == NODE_LINK_COORDINATOR) {
        from_coordinator(p, &m->u.weights, payload);
        return;
    }
    struct node_source *s = &p->source[link - NODE_LINK_SOURCE];
    s->peer.heard_ns = clock_now_ns();
    bool known = s->used && s->peer.up && m->incarnation == s->peer.incarnation;
    if (s->used && m->kind == MSG_WELCOME) welcome(p, s, m);
    else if (s->used && m->kind == MSG_REFUSE) refused(p, s, &m->u.refuse);
    else if (known && m->kind == MSG_PING) peer_on_ping(&s->peer, &m->u.ping, s->peer.heard_ns);
    if (known && m->kind == MSG_WEIGHTS)
        fetch_run_on_weights(p->fetch, link - NODE_LINK_SOURCE, &m->u.weights, payload);
    else slots_give(p->slots, payload);
}
