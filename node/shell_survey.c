/* shell_survey - how far and how fast other nodes are, measured beside the core: before a plan, as the
 * coordinator asks (SURVEY), and to the next stage whenever that link is new.
 *
 *   a place:  queued -> dial* -> greet* -> trips* -> over          SURVEY for round trips
 *                                       -> trip* -> row* -> row* -> over    for bytes: a short row, then a
 *                                                   long one, or on a slow link a short one again
 *
 * Links of a survey (NODE_LINK_SURVEY and above) are the shell's own; the core never hears of them. They
 * stay open until another place needs the number, an assignment comes, or nobody asks for a while. All of it
 * belongs to the loop's thread; SURVEY_OPEN_MAX links at once, and an end after the time that the coordinator
 * gave. */
#include "node/main_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    TRIPS = 7,                                    /* the shortest counts */
    ROW_MESSAGES = 5,                             /* the first only starts the clock */
    ROW_SHORT_BYTES = 64 << 10,
    ROW_LONG_BYTES = 1 << 20,
    ROW_ENOUGH_US = 20000,                        /* a short row that took so long is long enough */
    WAIT_MS_MAX = 10000, IDLE_MS = 4000
};

/* ---- rows of probes ---- */

static bool send_row(struct node_process *p, uint32_t link, uint32_t id, uint32_t n, uint32_t bytes) {
    for (uint32_t i = 0; i < n; i++) {
        struct payload payload = { 0 };
        struct msg m = { .kind = MSG_PROBE };
        if (bytes) payload = slots_take(p->slots, MIN(bytes, slots_bytes_max(p->slots)));
        if (bytes && !payload.generation) return false;
        m.u.probe = (struct msg_probe){ .id = id, .last = i + 1 == n };
        shell_say(p, link, &m, payload);
    }
    return true;
}

static void on_probe(struct node_process *p, uint32_t link, const struct msg_probe *probe, uint64_t bytes) {
    struct msg m = { .kind = MSG_PROBE_DONE };
    if (probe_arrives(&p->probes, link, probe, bytes, clock_now_ns(), &m.u.probe_done))
        shell_say(p, link, &m, (struct payload){ 0 });
}

/* What the receiver saw, but no more than what the way there and back allows: to somebody who looked late all
 * of it seems to come at once. */
static uint64_t rate_of(const struct msg_probe_done *done, uint32_t bytes, uint64_t sent_ns,
                        uint32_t rtt_us) {
    uint64_t spent_us = (clock_now_ns() - sent_ns) / 1000;
    double there = (double)done->bytes * 1e6 / (double)MAX(done->elapsed_us, 1);
    if (spent_us <= rtt_us) return (uint64_t)there;
    double here = (double)bytes * ROW_MESSAGES * 1e6 / (double)(spent_us - rtt_us);
    return (uint64_t)MIN(there, here);
}

/* ---- the next stage ---- */

void survey_next(struct node_process *p) {
    p->next_probe = ++p->survey.probe_id;
    p->next_sent_ns = clock_now_ns();
    send_row(p, NODE_LINK_NEXT, p->next_probe, ROW_MESSAGES, ROW_LONG_BYTES);
}

static void next_done(struct node_process *p, const struct msg_probe_done *done) {
    const struct msg_assign *a = node_view(p->core).assign;
    if (!a || done->id != p->next_probe || !done->elapsed_us) return;
    struct msg_link link = { .rtt_us = node_view(p->core).next_rtt_us };
    link.bytes_per_s = rate_of(done, ROW_LONG_BYTES, p->next_sent_ns, link.rtt_us);
    struct msg m = { .kind = MSG_LINKS };
    snprintf(link.name, sizeof link.name, "%s", a->next.name);
    m.u.links = (struct msg_links){ .link = &link, .n_link = 1 };
    shell_say(p, NODE_LINK_COORDINATOR, &m, (struct payload){ 0 });
}

/* ---- places ---- */

/* Who uses this link now. */
static struct survey_place *place_on(struct node_survey *s, uint32_t link) {
    for (uint32_t i = 0; i < s->n_place; i++)
        if (s->place[i].link == link && s->place[i].state != PLACE_OVER) return &s->place[i];
    return NULL;
}

static void report(struct node_process *p) {
    struct node_survey *s = &p->survey;
    struct msg_link link[MSG_PEERS_MAX];
    struct msg m = { .kind = MSG_LINKS };
    m.u.links = (struct msg_links){ .link = link, .id = s->id };
    for (uint32_t i = 0; i < s->n_place; i++) {
        const struct survey_place *t = &s->place[i];
        if (s->bulk ? !t->bytes_per_s : !t->rtt_us) continue;
        struct msg_link *l = &link[m.u.links.n_link++];
        *l = (struct msg_link){ .rtt_us = s->bulk ? 0 : t->rtt_us, .bytes_per_s = t->bytes_per_s };
        memcpy(l->name, t->hop.name, sizeof l->name);
    }
    s->active = false;
    loop_timer_set(s->timer, clock_now_ns() + IDLE_MS * UINT64_C(1000000));
    shell_say(p, NODE_LINK_COORDINATOR, &m, (struct payload){ 0 });
}

static void trip_begin(struct node_process *p, struct survey_place *t) {
    t->state = PLACE_TRIPS;
    t->probe = ++p->survey.probe_id;
    t->sent_ns = clock_now_ns();
    send_row(p, t->link, t->probe, 1, 0);
}

static void row_begin(struct node_process *p, struct survey_place *t, enum survey_place_state row,
                      uint32_t bytes) {
    t->state = row;
    t->row_bytes = bytes;
    t->probe = ++p->survey.probe_id;
    t->sent_ns = clock_now_ns();
    if (!send_row(p, t->link, t->probe, ROW_MESSAGES, bytes)) t->state = PLACE_OVER;
}

static void place_done(struct node_process *p, struct survey_place *t, const struct msg_probe_done *done) {
    if (done->id != t->probe) return;
    if (t->state == PLACE_TRIPS) {
        uint64_t us = MAX((clock_now_ns() - t->sent_ns) / 1000, 1);
        t->rtt_us = (uint32_t)MIN(t->n_trip ? t->rtt_us : UINT32_MAX, us);
        if (p->survey.bulk) row_begin(p, t, PLACE_ROW, ROW_SHORT_BYTES);
        else if (++t->n_trip < TRIPS) trip_begin(p, t);
        else t->state = PLACE_OVER;
        return;
    }
    t->bytes_per_s = MAX(t->bytes_per_s, rate_of(done, t->row_bytes, t->sent_ns, t->rtt_us));
    bool enough = done->elapsed_us >= ROW_ENOUGH_US;          /* the first one also opened tcp's window */
    if (t->state == PLACE_ROW)
        row_begin(p, t, PLACE_LAST_ROW, enough ? ROW_SHORT_BYTES : ROW_LONG_BYTES);
    else t->state = PLACE_OVER;
}

/* Who listens there says WELCOME, or has forgotten us since the last survey and learns again who we are. */
static void greet(struct node_process *p, struct survey_place *t) {
    struct msg m = { .kind = MSG_HELLO, .u.hello = p->core_config.hello };
    m.u.hello.magic = MSG_MAGIC;
    m.u.hello.version_min = MSG_VERSION_MIN;
    m.u.hello.version_max = MSG_VERSION;
    m.u.hello.role = MSG_ROLE_NODE;
    m.u.hello.n_file = 0;
    t->state = PLACE_GREET;
    shell_say(p, t->link, &m, (struct payload){ 0 });
}

/* The number of a link for this place: the one that is open to it, else one that nobody needs; 0: all are
 * busy. */
static uint32_t link_for(struct node_survey *s, const struct msg_hop *hop, bool *open) {
    uint32_t link = 0;
    for (uint32_t i = 0; i < SURVEY_OPEN_MAX; i++) {
        const struct survey_link *l = &s->open[i];
        if (place_on(s, NODE_LINK_SURVEY + i)) continue;
        if (!link || !l->used) link = NODE_LINK_SURVEY + i;
        *open = l->up && memcmp(&l->hop, hop, sizeof *hop) == 0;
        if (*open) return NODE_LINK_SURVEY + i;
    }
    return link;
}

static void dial(struct node_process *p, struct survey_place *t) {
    struct err e;
    p->survey.open[t->link - NODE_LINK_SURVEY] = (struct survey_link){ .used = true, .hop = t->hop };
    t->state = PLACE_DIAL;
    if (links_connect(p->links, t->link, t->hop.address, t->hop.key, &e) < 0) t->state = PLACE_OVER;
}

static void place_start(struct node_process *p, struct survey_place *t) {
    bool open = false;
    uint32_t link = t->hop.address[0] ? link_for(&p->survey, &t->hop, &open) : NODE_LINK_COORDINATOR;
    if (!link) return;                            /* later, when one of the others is over */
    t->link = link;
    if (link == NODE_LINK_COORDINATOR) trip_begin(p, t);
    else if (open) greet(p, t);
    else dial(p, t);
}

/* Starts what can start; when nothing is left, says what was found. */
static void go_on(struct node_process *p) {
    struct node_survey *s = &p->survey;
    uint32_t n_over = 0;
    for (uint32_t i = 0; i < s->n_place && s->active; i++) {
        if (s->place[i].state == PLACE_QUEUED) place_start(p, &s->place[i]);
        n_over += s->place[i].state == PLACE_OVER;
    }
    if (s->active && n_over == s->n_place) report(p);
}

static void on_timer(void *ctx) {
    struct node_process *p = ctx;
    if (p->survey.active) report(p);
    else survey_stop(p);
}

static void begin(struct node_process *p, const struct msg_survey *m) {
    struct node_survey *s = &p->survey;
    if (!s->timer) s->timer = loop_timer_new(p->loop, on_timer, p);
    s->n_place = 0;
    s->id = m->id;
    s->bulk = m->bulk;
    s->active = true;
    for (uint32_t i = 0; i < m->n_hop; i++) {
        const struct msg_hop *hop = &m->hop[i];
        bool coordinator = strcmp(hop->name, MSG_COORDINATOR) == 0;
        if (strcmp(hop->name, p->name) == 0 || (!hop->address[0] && !coordinator)) continue;
        s->place[s->n_place] = (struct survey_place){ .hop = *hop };
        if (coordinator) s->place[s->n_place].hop.address[0] = 0;
        s->n_place++;
    }
    loop_timer_set(s->timer, clock_now_ns() + MIN(m->wait_ms, WAIT_MS_MAX) * UINT64_C(1000000));
    go_on(p);
}

void survey_stop(struct node_process *p) {
    struct node_survey *s = &p->survey;
    s->active = false;
    s->n_place = 0;
    for (uint32_t i = 0; i < SURVEY_OPEN_MAX; i++) {
        if (s->open[i].used) links_disconnect(p->links, NODE_LINK_SURVEY + i);
        s->open[i] = (struct survey_link){ 0 };
    }
    if (s->timer) loop_timer_set(s->timer, LOOP_NEVER);
}

/* ---- what comes in ---- */

void survey_on_up(struct node_process *p, uint32_t link) {
    struct survey_place *t = place_on(&p->survey, link);
    p->survey.open[link - NODE_LINK_SURVEY].up = true;
    if (t) greet(p, t);
}

void survey_on_refused(struct node_process *p, uint32_t link) {
    struct survey_place *t = place_on(&p->survey, link);
    if (t) t->state = PLACE_OVER;
    go_on(p);
}

static void on_msg(struct node_process *p, uint32_t link, const struct msg *m) {
    struct survey_place *t = place_on(&p->survey, link);
    if (link == NODE_LINK_NEXT && m->kind == MSG_PROBE_DONE) next_done(p, &m->u.probe_done);
    if (!t || !p->survey.active) return;
    if (m->kind == MSG_WELCOME && t->state == PLACE_GREET) trip_begin(p, t);
    else if (m->kind == MSG_REFUSE) t->state = PLACE_OVER;
    else if (m->kind == MSG_PROBE_DONE) place_done(p, t, &m->u.probe_done);
    go_on(p);
}

bool survey_is_link(uint32_t link) {
    return link >= NODE_LINK_SURVEY && link < NODE_LINK_SURVEY + SURVEY_OPEN_MAX;
}

bool survey_takes(struct node_process *p, uint32_t link, const struct msg *m, struct payload take_payload) {
    bool accepted = link >= NODE_LINK_ACCEPTED, ours = m->kind == MSG_PROBE || m->kind == MSG_PROBE_DONE;
    if (!survey_is_link(link) && !ours && m->kind != MSG_SURVEY) return false;
    slots_give(p->slots, take_payload);
    if (m->kind == MSG_PROBE && accepted) on_probe(p, link, &m->u.probe, take_payload.bytes);
    else if (m->kind == MSG_SURVEY && link == NODE_LINK_COORDINATOR) begin(p, &m->u.survey);
    else if (!accepted) on_msg(p, link, m);
    return true;
}
