#include "coordinator/survey.h"

#include "coordinator/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"

#include <stdio.h>

#include "common/base/banned.h"

void survey_init(struct coord *c) {
    struct survey *s = &c->survey;
    s->member = xcalloc(c->config.n_node_max, sizeof *s->member);
    s->waits = xcalloc(c->config.n_node_max, sizeof *s->waits);
    s->all = xcalloc(c->config.n_node_max + 1, sizeof *s->all);
    s->one = xcalloc(c->config.n_node_max, sizeof *s->one);
}

void survey_deinit(struct coord *c) {
    struct survey *s = &c->survey;
    free(s->member);
    free(s->waits);
    free(s->all);
    free(s->one);
}

void survey_forget(struct coord *c) {
    c->survey.active = false;
    c->survey.n_made = 0;
}

/* ---- who ---- */

static bool is_due(const struct coord *c) {
    uint32_t n_joined = 0, n_new = 0;
    if (!c->config.survey_ms || c->survey.n_made == SURVEYS_MAX) return false;
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        const struct coord_node *n = &c->cluster.node[i];
        n_joined += n->state == ND_JOINED;
        n_new += n->state == ND_JOINED && !n->surveyed;
    }
    return n_joined > 1 && n_new > 0;
}

static struct coord_node *member_of(struct coord *c, uint32_t i) {
    return &c->cluster.node[c->survey.member[i]];
}

static void hop_of(struct coord *c, uint32_t i, struct msg_hop *out) {
    *out = (struct msg_hop){ .name = MSG_COORDINATOR };
    if (i == c->survey.n_member) return;
    const struct msg_hello *h = &member_of(c, i)->hello;
    memcpy(out->name, h->name, sizeof out->name);
    memcpy(out->address, h->address, sizeof out->address);
    memcpy(out->key, h->key, sizeof out->key);
}

static const struct msg_link *known(const struct coord_node *n, const char *name) {
    for (uint32_t i = 0; i < n->n_measured; i++)
        if (strcmp(n->measured[i].name, name) == 0) return &n->measured[i];
    return NULL;
}

/* ---- rounds ---- */

static void ask(struct coord *c, uint32_t i, const struct msg_hop *hop, uint32_t n_hop,
                struct coord_outs *outs) {
    struct survey *s = &c->survey;
    struct msg *m = coord_send(c, outs, member_of(c, i)->peer.link, MSG_SURVEY);
    m->u.survey = (struct msg_survey){ .id = s->id,
                                       .wait_ms = (uint32_t)((s->round_until_ns - c->now_ns) / 1000000) -
                                                  SURVEY_SLACK_MS,
                                       .bulk = s->round > 0,
                                       .hop = hop,
                                       .n_hop = n_hop };
    s->waits[i] = true;
}

/* Node i measures to i + round, as far as there is somebody and nothing is known; the last one is us. */
static void ask_bulk(struct coord *c, uint32_t i, struct coord_outs *outs) {
    struct survey *s = &c->survey;
    uint32_t to = (i + s->round) % (s->n_member + 1);
    struct msg_hop *hop = &s->one[i];
    if (to < s->n_member && member_of(c, to)->state != ND_JOINED) return;
    hop_of(c, to, hop);
    const struct msg_link *link = known(member_of(c, i), hop->name);
    if (link && link->rtt_us && !link->bytes_per_s) ask(c, i, hop, 1, outs);
}

static void round_begin(struct coord *c, struct coord_outs *outs) {
    struct survey *s = &c->survey;
    s->id++;
    s->round_until_ns = MIN(s->until_ns, c->now_ns + ms_to_ns(SURVEY_ROUND_MS));
    for (uint32_t i = 0; i < s->n_member; i++) s->waits[i] = false;
    for (uint32_t i = 0; i < s->n_member; i++) {
        if (member_of(c, i)->state != ND_JOINED) continue;
        if (s->round > 0) ask_bulk(c, i, outs);
        else ask(c, i, s->all, s->n_member + 1, outs);
    }
}

static void begin(struct coord *c, struct coord_outs *outs) {
    struct survey *s = &c->survey;
    uint32_t ms = c->cluster.had_plan ? c->config.survey_ms / 3 : c->config.survey_ms;
    MARK(survey_begun);
    s->active = true;
    s->round = 0;
    s->n_made++;
    s->n_member = 0;
    s->until_ns = c->now_ns + ms_to_ns(MAX(ms, 2 * SURVEY_SLACK_MS));
    for (uint32_t i = 0; i < c->config.n_node_max && s->n_member < MSG_PEERS_MAX - 1; i++) {
        if (c->cluster.node[i].state != ND_JOINED) continue;
        s->member[s->n_member++] = i;
        c->cluster.node[i].surveyed = true;
    }
    for (uint32_t i = 0; i <= s->n_member; i++) hop_of(c, i, &s->all[i]);
    snprintf(c->cluster.why, sizeof c->cluster.why, "links between %u nodes are measured", s->n_member);
    round_begin(c, outs);
}

/* A newcomer in the place of somebody who was asked will not answer. */
static bool round_is_over(const struct coord *c) {
    const struct survey *s = &c->survey;
    uint32_t n_waiting = 0;
    for (uint32_t i = 0; i < s->n_member; i++) {
        const struct coord_node *n = &c->cluster.node[s->member[i]];
        n_waiting += s->waits[i] && n->state == ND_JOINED && n->surveyed;
    }
    if (n_waiting && c->now_ns >= s->round_until_ns) MARK(survey_late);
    return !n_waiting || c->now_ns >= s->round_until_ns;
}

bool survey_holds(struct coord *c, struct coord_outs *outs) {
    struct survey *s = &c->survey;
    if (!s->active) {
        if (!is_due(c)) return false;
        begin(c, outs);
        return true;
    }
    while (round_is_over(c)) {
        bool time_left = c->now_ns + ms_to_ns(2 * SURVEY_SLACK_MS) <= s->until_ns;
        if (s->round == s->n_member || !time_left) {
            s->active = false;
            return survey_holds(c, outs);         /* somebody may have come meanwhile */
        }
        s->round++;
        round_begin(c, outs);
    }
    return true;
}

void survey_on_links(struct coord *c, const struct coord_node *n, uint32_t id) {
    struct survey *s = &c->survey;
    for (uint32_t i = 0; i < s->n_member && s->active && id == s->id; i++)
        if (member_of(c, i) == n) s->waits[i] = false;
}
