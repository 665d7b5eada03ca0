/* cluster_sources - who gives a node the weights that it was assigned and may not have.
 *
 * Nodes that are here, hold something of it and give it, then the coordinator itself. When there are more
 * than an ASSIGN names: first those who together have everything, then those who have most. Among equals
 * each node begins at another place of the table, so that many who fetch at once do not all ask the same
 * one. */
#include "coordinator/cluster.h"

#include "coordinator/core_private.h"

#include "common/base/banned.h"

enum { PARTS = MSG_LAYERS_MAX + 4, EMBED = MSG_LAYERS_MAX, HEAD, REST, HEADER };

struct parts { bool is[PARTS]; };

static struct parts parts_of(const struct msg_source *s) {
    struct parts p = { { false } };
    for (uint32_t l = 0; l < MSG_LAYERS_MAX; l++) p.is[l] = s->layers[l / 8] >> (l % 8) & 1;
    p.is[EMBED] = s->has_embed;
    p.is[HEAD] = s->has_head;
    p.is[REST] = s->has_rest;
    p.is[HEADER] = s->has_header;
    return p;
}

static struct parts needed_by(const struct msg_assign *a) {
    struct parts p = { { false } };
    for (uint32_t l = a->layer_begin; l < a->layer_end && l < MSG_LAYERS_MAX; l++) p.is[l] = true;
    p.is[EMBED] = a->has_embed;
    p.is[HEAD] = p.is[REST] = a->has_head;
    p.is[HEADER] = true;
    return p;
}

static uint32_t count_both(const struct parts *a, const struct parts *b) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < PARTS; i++) n += a->is[i] && b->is[i];
    return n;
}

/* All that a node has of the model. */
static struct msg_source offer_of(const struct coord_node *n, const struct msg_assign *a) {
    struct msg_source s;
    memset(&s, 0, sizeof s);                       /* holes as well: it is compared and sent */
    for (uint32_t i = 0; i < n->hello.n_file; i++) {
        const struct msg_file *f = &n->file[i];
        if (f->model_lo != a->model_lo || f->model_hi != a->model_hi) continue;
        for (size_t k = 0; k < sizeof s.layers; k++) s.layers[k] |= f->layers[k];
        s.has_embed |= f->has_embed;
        s.has_head |= f->has_head;
        s.has_rest |= f->has_rest;
        s.has_header |= f->is_whole;
    }
    memcpy(s.hop.name, n->hello.name, sizeof s.hop.name);
    memcpy(s.hop.address, n->hello.address, sizeof s.hop.address);
    memcpy(s.hop.key, n->hello.key, sizeof s.hop.key);
    return s;
}

struct offer { uint32_t useful, node; bool taken; };

/* The best that is left: most of what nobody has yet, then most of all. */
static struct offer *choose(struct coord *c, struct offer *offer, uint32_t n, const struct msg_assign *a,
                            const struct parts *missing) {
    struct offer *best = NULL;
    uint32_t best_new = 0;
    for (struct offer *o = offer; o < offer + n; o++) {
        if (o->taken) continue;
        struct msg_source s = offer_of(&c->cluster.node[o->node], a);
        struct parts p = parts_of(&s);
        uint32_t fresh = count_both(&p, missing);
        if (best && (fresh < best_new || (fresh == best_new && o->useful <= best->useful))) continue;
        best = o;
        best_new = fresh;
    }
    return best;
}

uint32_t cluster_sources(struct coord *c, struct coord_node *n, const struct msg_assign *a) {
    struct offer offer[2 * MSG_STAGES_MAX];
    const struct msg_source *own = &c->cluster.plan.source;
    uint32_t n_offer = 0, n_source = 0, n_max = MSG_SOURCES_MAX - (own->hop.name[0] != 0);
    uint32_t n_node = c->config.n_node_max, self = (uint32_t)(n - c->cluster.node);
    struct parts needed = needed_by(a), missing = needed;
    for (uint32_t i = 1; i < n_node && n_offer < COUNT_OF(offer); i++) {
        uint32_t number = (self + i) % n_node;
        const struct coord_node *other = &c->cluster.node[number];
        if (other->state == ND_GONE || !other->hello.gives || !other->hello.address[0]) continue;
        struct msg_source s = offer_of(other, a);
        struct parts p = parts_of(&s);
        uint32_t useful = count_both(&p, &needed);
        if (useful) offer[n_offer++] = (struct offer){ .useful = useful, .node = number };
    }
    while (n_source < n_max && n_source < n_offer) {
        struct offer *o = choose(c, offer, n_offer, a, &missing);
        o->taken = true;
        n->source[n_source] = offer_of(&c->cluster.node[o->node], a);
        struct parts p = parts_of(&n->source[n_source++]);
        for (uint32_t i = 0; i < PARTS; i++) missing.is[i] &= !p.is[i];
    }
    if (own->hop.name[0]) n->source[n_source++] = *own;
    return n_source;
}
