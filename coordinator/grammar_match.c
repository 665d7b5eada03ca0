/* grammar_match - the tables behind the header, and how they fill.
 *
 *     state --byte--> places behind it --closure--> set of places --looked up--> state
 *
 * The closure follows what reads nothing: empty edges, calls (a frame more), ends of rules (a frame less,
 * or the same rule once again). Frame 0 is the empty stack; state 0 is "does not fit". When a table is
 * full in the middle of a question, step() says FULL, everything but the present state is forgotten and
 * the question is asked again. */
#include "coordinator/grammar_match.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/hash.h"

enum {
    VISIT_MAX = 4096,                             /* places in one closure, those that read nothing too */
    ROOM_FIRST = 64,                              /* of every table; they double, and have twice the slots */
    DEAD = 0
};
#define UNKNOWN UINT32_MAX
#define FULL (UINT32_MAX - 1)

struct frame {
    uint32_t edge, parent;                        /* the call, and where it was made */
    int32_t count;                                /* which repetition this is, from 1 */
    uint32_t depth;
};

struct place { uint32_t node, frame; };

struct state {
    uint32_t at, n;                               /* in m->place, sorted */
    uint32_t *next;                               /* [GRAMMAR_SYMBOLS]; NULL: nothing asked yet */
    uint16_t mask;                                /* 1 + number of its set; 0: none */
    uint8_t all, any;                             /* flags of the places that read something */
    bool may_end, reads;
};

struct match {
    const struct grammar *g;
    const struct vocab_trie *v;
    uint32_t now;

    struct state *state;                          /* [0]: dead */
    uint32_t n_state, state_room, *state_slot;
    struct place *place;
    uint32_t n_place, place_room;
    struct frame *frame;                          /* [0]: the empty stack */
    uint32_t n_frame, frame_room, *frame_slot;

    uint64_t *mask[MATCH_MASKS_MAX];
    uint32_t mask_owner[MATCH_MASKS_MAX], n_mask, mask_next;

    struct place *visit;
    uint32_t n_visit, visit_room, *visit_slot;    /* number in visit + 1; 0 is free */
    bool full;
    uint32_t *walk;                               /* states on the way down the tree of tokens */
    struct match_stats stats;
};

/* ---- tables ---- */

static uint32_t *new_slots(uint32_t *old, uint32_t room) {
    free(old);
    return xcalloc(2 * (size_t)room, sizeof *old);
}

static void frame_insert(struct match *m, uint32_t i) {
    uint32_t mask = 2 * m->frame_room - 1, slot = (uint32_t)hash_64(&m->frame[i], sizeof *m->frame, 0) & mask;
    while (m->frame_slot[slot]) slot = (slot + 1) & mask;
    m->frame_slot[slot] = i;
}

static void state_insert(struct match *m, uint32_t i) {
    const struct state *s = &m->state[i];
    uint32_t mask = 2 * m->state_room - 1;
    uint32_t slot = (uint32_t)hash_64(&m->place[s->at], s->n * sizeof *m->place, 0) & mask;
    while (m->state_slot[slot]) slot = (slot + 1) & mask;
    m->state_slot[slot] = i;
}

static uint32_t visit_slot_of(const struct match *m, struct place p) {
    uint32_t mask = 2 * m->visit_room - 1, slot = (p.node * 2654435761u ^ p.frame * 2246822519u) >> 7 & mask;
    for (; m->visit_slot[slot]; slot = (slot + 1) & mask) {
        const struct place *q = &m->visit[m->visit_slot[slot] - 1];
        if (q->node == p.node && q->frame == p.frame) break;
    }
    return slot;
}

/* Each gives false when the table is as large as it may become. */
static bool grow_frames(struct match *m) {
    if (m->n_frame < m->frame_room) return true;
    if (m->frame_room == MATCH_FRAMES_MAX) return false;
    m->frame_room = MAX(2 * m->frame_room, (uint32_t)ROOM_FIRST);
    m->frame = xrealloc(m->frame, m->frame_room * sizeof *m->frame);
    m->frame_slot = new_slots(m->frame_slot, m->frame_room);
    for (uint32_t i = 1; i < m->n_frame; i++) frame_insert(m, i);
    return true;
}

static bool grow_states(struct match *m, uint32_t n_places) {
    if (n_places > MATCH_PLACES_MAX - m->n_place) return false;
    if (m->n_place + n_places > m->place_room) {
        m->place_room = MIN(MAX(2 * m->place_room, m->n_place + n_places), (uint32_t)MATCH_PLACES_MAX);
        m->place = xrealloc(m->place, m->place_room * sizeof *m->place);
    }
    if (m->n_state < m->state_room) return true;
    if (m->state_room == MATCH_STATES_MAX) return false;
    m->state_room = MAX(2 * m->state_room, (uint32_t)ROOM_FIRST);
    m->state = xrealloc(m->state, m->state_room * sizeof *m->state);
    m->state_slot = new_slots(m->state_slot, m->state_room);
    for (uint32_t i = 1; i < m->n_state; i++) state_insert(m, i);
    return true;
}

static bool grow_visits(struct match *m) {
    if (m->n_visit < m->visit_room) return true;
    if (m->visit_room == VISIT_MAX) return false;
    m->visit_room = MAX(2 * m->visit_room, (uint32_t)ROOM_FIRST);
    m->visit = xrealloc(m->visit, m->visit_room * sizeof *m->visit);
    m->visit_slot = new_slots(m->visit_slot, m->visit_room);
    for (uint32_t i = 0; i < m->n_visit; i++) m->visit_slot[visit_slot_of(m, m->visit[i])] = i + 1;
    return true;
}

/* ---- frames ---- */

static uint32_t frame_of(struct match *m, uint32_t edge, uint32_t parent, int32_t count) {
    struct frame f = { edge, parent, count, m->frame[parent].depth + 1 };
    uint32_t mask = 2 * m->frame_room - 1, slot = (uint32_t)hash_64(&f, sizeof f, 0) & mask;
    for (; m->frame_slot[slot]; slot = (slot + 1) & mask)
        if (memcmp(&m->frame[m->frame_slot[slot]], &f, sizeof f) == 0) return m->frame_slot[slot];
    if (!grow_frames(m)) {
        m->full = true;
        return 0;
    }
    m->frame[m->n_frame] = f;
    frame_insert(m, m->n_frame);
    return m->n_frame++;
}

/* ---- closure ---- */

static void visit_begin(struct match *m) {
    memset(m->visit_slot, 0, 2 * (size_t)m->visit_room * sizeof *m->visit_slot);
    m->n_visit = 0;
}

static bool fits_depth(const struct match *m, uint32_t node, uint32_t frame) {
    return m->frame[frame].depth + m->g->node[node].need <= GRAMMAR_DEPTH_MAX;
}

static void visit(struct match *m, uint32_t node, uint32_t frame) {
    struct place p = { node, frame };
    if (m->full || !fits_depth(m, node, frame) || !grow_visits(m)) return;
    uint32_t slot = visit_slot_of(m, p);
    if (m->visit_slot[slot]) return;
    m->visit[m->n_visit++] = p;
    m->visit_slot[slot] = m->n_visit;
}

static bool only_ends(const struct grammar *g, uint32_t node) {
    return (g->node[node].flags & GRAMMAR_END) && !g->node[node].edge;
}

static void enter_call(struct match *m, uint32_t edge_i, uint32_t frame) {
    const struct grammar_edge *edge = &m->g->edge[edge_i];
    if (edge->min == 0) visit(m, edge->to, frame);
    if (edge->max == 0 || !fits_depth(m, edge->to, frame)) return;
    if (m->frame[frame].depth + 1 + m->g->node[edge->rule].need > GRAMMAR_DEPTH_MAX) return;
    bool last = edge->min == 1 && edge->max == 1 && only_ends(m->g, edge->to);
    visit(m, edge->rule, last ? frame : frame_of(m, edge_i, frame, 1));
}

/* The rule on top is over: go on behind the call, or do it once more. */
static void leave_call(struct match *m, uint32_t frame) {
    const struct frame f = m->frame[frame];
    const struct grammar_edge *edge = &m->g->edge[f.edge];
    if (f.count >= edge->min) visit(m, edge->to, f.parent);
    if (f.count >= edge->max) return;
    int32_t count = f.count + 1;
    if (edge->max == GRAMMAR_MANY) count = MIN(count, MAX(edge->min, 1));     /* no need to know more */
    visit(m, edge->rule, frame_of(m, f.edge, f.parent, count));
}

static void follow_empty(struct match *m) {
    for (uint32_t i = 0; i < m->n_visit && !m->full; i++) {
        struct place p = m->visit[i];
        const struct grammar_node *node = &m->g->node[p.node];
        if ((node->flags & GRAMMAR_END) && p.frame) leave_call(m, p.frame);
        for (uint32_t k = node->edge; k; k = m->g->edge[k].next) {
            const struct grammar_edge *edge = &m->g->edge[k];
            if (edge->kind == GRAMMAR_EMPTY) visit(m, edge->to, p.frame);
            if (edge->kind == GRAMMAR_CALL) enter_call(m, k, p.frame);
        }
    }
}

static bool node_reads(const struct grammar *g, uint32_t node) {
    for (uint32_t k = g->node[node].edge; k; k = g->edge[k].next)
        if (g->edge[k].kind == GRAMMAR_BYTES) return true;
    return false;
}

/* ---- states ---- */

static int place_order(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->node != y->node) return x->node < y->node ? -1 : 1;
    return x->frame < y->frame ? -1 : x->frame > y->frame;
}

/* The places that count, sorted, at the beginning of m->visit. */
static uint32_t settle(struct match *m) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_visit && n < MATCH_WIDTH_MAX; i++) {
        struct place p = m->visit[i];
        bool ends = p.frame == 0 && (m->g->node[p.node].flags & GRAMMAR_END);
        if (ends || node_reads(m->g, p.node)) m->visit[n++] = p;
    }
    qsort(m->visit, n, sizeof *m->visit, place_order);
    return n;
}

static void describe(const struct match *m, struct state *s) {
    s->all = UINT8_MAX;
    for (uint32_t i = 0; i < s->n; i++) {
        struct place p = m->place[s->at + i];
        uint8_t flags = m->g->node[p.node].flags;
        if (p.frame == 0 && (flags & GRAMMAR_END)) s->may_end = true;
        if (!node_reads(m->g, p.node)) continue;
        s->reads = true;
        s->all &= flags;
        s->any |= flags;
    }
    if (!s->reads) s->all = 0;
}

/* The state of what was visited. */
static uint32_t state_of_visit(struct match *m) {
    follow_empty(m);
    if (m->full) return FULL;
    uint32_t n = settle(m);
    if (n == 0) return DEAD;
    uint32_t mask = 2 * m->state_room - 1;
    uint32_t slot = (uint32_t)hash_64(m->visit, n * sizeof *m->visit, 0) & mask;
    for (; m->state_slot[slot]; slot = (slot + 1) & mask) {
        const struct state *s = &m->state[m->state_slot[slot]];
        if (s->n == n && memcmp(&m->place[s->at], m->visit, n * sizeof *m->visit) == 0)
            return m->state_slot[slot];
    }
    if (!grow_states(m, n)) return FULL;
    struct state *s = &m->state[m->n_state];
    *s = (struct state){ .at = m->n_place, .n = n };
    memcpy(&m->place[m->n_place], m->visit, n * sizeof *m->visit);
    m->n_place += n;
    describe(m, s);
    state_insert(m, m->n_state);
    return m->n_state++;
}

static uint32_t step_slowly(struct match *m, uint32_t from, int symbol) {
    const struct state *s = &m->state[from];
    visit_begin(m);
    m->full = false;
    for (uint32_t i = 0; i < s->n; i++) {
        struct place p = m->place[s->at + i];
        for (uint32_t k = m->g->node[p.node].edge; k; k = m->g->edge[k].next) {
            const struct grammar_edge *edge = &m->g->edge[k];
            if (edge->kind == GRAMMAR_BYTES && symbol >= edge->lo && symbol <= edge->hi)
                visit(m, edge->to, p.frame);
        }
    }
    return m->n_visit ? state_of_visit(m) : DEAD;
}

/* Where a symbol leads: a state, DEAD or FULL. */
static uint32_t step(struct match *m, uint32_t from, int symbol) {
    struct state *s = &m->state[from];
    if (!s->next) {
        s->next = malloc(GRAMMAR_SYMBOLS * sizeof *s->next);
        CHECK(s->next);
        memset(s->next, 0xff, GRAMMAR_SYMBOLS * sizeof *s->next);
    }
    if (s->next[symbol] != UNKNOWN) return s->next[symbol];
    uint32_t to = step_slowly(m, from, symbol);
    if (to != FULL) m->state[from].next[symbol] = to;                 /* the table may have moved */
    return to;
}

/* ---- forgetting ---- */

static void forget_all(struct match *m) {
    for (uint32_t i = 1; i < m->n_state; i++) free(m->state[i].next);
    memset(m->state, 0, m->state_room * sizeof *m->state);
    memset(m->state_slot, 0, 2 * (size_t)m->state_room * sizeof *m->state_slot);
    memset(m->frame_slot, 0, 2 * (size_t)m->frame_room * sizeof *m->frame_slot);
    memset(m->frame, 0, sizeof *m->frame);
    m->n_state = m->n_frame = 1;
    m->n_place = m->n_mask = m->mask_next = 0;
}

static void keep_chain(const struct match *m, uint32_t frame, struct frame *chain) {
    while (frame) {
        chain[m->frame[frame].depth - 1] = m->frame[frame];
        frame = m->frame[frame].parent;
    }
}

/* Everything but the state we are in. */
static void reset(struct match *m) {
    struct state now = m->state[m->now];
    struct place *place = xcalloc(now.n, sizeof *place);
    struct frame *chain = xcalloc((size_t)now.n * GRAMMAR_DEPTH_MAX, sizeof *chain);
    uint32_t *depth = xcalloc(now.n, sizeof *depth);
    for (uint32_t i = 0; i < now.n; i++) {
        place[i] = m->place[now.at + i];
        depth[i] = m->frame[place[i].frame].depth;
        keep_chain(m, place[i].frame, chain + (size_t)i * GRAMMAR_DEPTH_MAX);
    }
    forget_all(m);
    m->full = false;
    visit_begin(m);
    for (uint32_t i = 0; i < now.n; i++) {
        const struct frame *c = chain + (size_t)i * GRAMMAR_DEPTH_MAX;
        uint32_t frame = 0;
        for (uint32_t d = 0; d < depth[i]; d++) frame = frame_of(m, c[d].edge, frame, c[d].count);
        visit(m, place[i].node, frame);
    }
    m->now = state_of_visit(m);
    CHECK(m->now != FULL && m->now != DEAD);
    m->stats.n_resets++;
    free(place);
    free(chain);
    free(depth);
}

/* ---- reading ---- */

static uint32_t read_bytes(struct match *m, const char *bytes, size_t n) {
    uint32_t at = m->now;
    for (size_t i = 0; i < n && at != DEAD && at != FULL; i++) at = step(m, at, (uint8_t)bytes[i]);
    return at;
}

bool match_bytes(struct match *m, const char *bytes, size_t n) {
    uint32_t to = read_bytes(m, bytes, n);
    if (to == FULL) {
        reset(m);
        to = read_bytes(m, bytes, n);
    }
    if (to == DEAD || to == FULL) return false;
    m->now = to;
    return true;
}

static uint32_t step_or_reset(struct match *m, int symbol) {
    uint32_t to = step(m, m->now, symbol);
    if (to != FULL) return to;
    reset(m);
    to = step(m, m->now, symbol);
    return to == FULL ? DEAD : to;
}

bool match_symbol(struct match *m, int symbol) {
    uint32_t to = step_or_reset(m, symbol);
    if (to == DEAD) return false;
    m->now = to;
    return true;
}

bool match_allows(struct match *m, int symbol) {
    return step_or_reset(m, symbol) != DEAD;
}

bool match_may_end(const struct match *m) {
    return m->state[m->now].may_end;
}

bool match_must_end(const struct match *m) {
    return m->state[m->now].may_end && !m->state[m->now].reads;
}

bool match_all(const struct match *m, uint8_t flags) {
    return (m->state[m->now].all & flags) != 0;
}

bool match_any(const struct match *m, uint8_t flags) {
    return (m->state[m->now].any & flags) != 0;
}

/* ---- sets of tokens ---- */

/* The ready set for this state: -1 none, 0 all plain tokens, k those of at most k characters. */
static int plain_of_place(const struct match *m, struct place p) {
    uint8_t flags = m->g->node[p.node].flags;
    if (flags & GRAMMAR_TEXT) return 0;
    if (!(flags & GRAMMAR_CHAR) || !p.frame) return -1;
    const struct frame *f = &m->frame[p.frame];
    const struct grammar_edge *edge = &m->g->edge[f->edge];
    if (edge->rule != p.node) return -1;
    if (edge->max == GRAMMAR_MANY) return 0;
    return MIN(edge->max - f->count + 1, VOCAB_PLAIN_CHARS_MAX);
}

static int plain_of_state(const struct match *m, const struct state *s) {
    int best = -1;
    for (uint32_t i = 0; i < s->n && best != 0; i++) {
        int k = plain_of_place(m, m->place[s->at + i]);
        best = k == 0 ? 0 : MAX(best, k);
    }
    return best;
}

/* Adds the tokens of a tree that lead somewhere. False: a table is full. */
static bool walk_tree(struct match *m, const struct vocab_tree *t, uint64_t *mask) {
    m->walk[0] = m->now;
    for (uint32_t i = 0; i < t->n;) {
        const struct vocab_node *node = &t->node[i];
        uint32_t from = m->walk[node->depth - 1], *next = m->state[from].next;
        uint32_t to = next ? next[node->byte] : UNKNOWN;
        if (to == UNKNOWN) to = step(m, from, node->byte);
        if (to == FULL) return false;
        if (to == DEAD) {
            i = node->skip;
            continue;
        }
        m->walk[node->depth] = to;
        if (node->token >= 0) mask[node->token >> 6] |= (uint64_t)1 << (node->token & 63);
        i++;
    }
    return true;
}

static bool fill_mask(struct match *m, uint64_t *mask) {
    int plain = plain_of_state(m, &m->state[m->now]);
    if (plain >= 0) memcpy(mask, m->v->plain[plain], m->v->n_words * sizeof *mask);
    else memset(mask, 0, m->v->n_words * sizeof *mask);
    return walk_tree(m, plain >= 0 ? &m->v->odd : &m->v->all, mask);
}

/* A place for a new set; the one that was made longest ago gives way. */
static uint32_t take_mask(struct match *m) {
    if (m->n_mask < MATCH_MASKS_MAX) {
        uint32_t i = m->n_mask++;
        if (!m->mask[i]) m->mask[i] = xcalloc(m->v->n_words, sizeof *m->mask[i]);
        return i;
    }
    uint32_t i = m->mask_next;
    m->mask_next = (i + 1) % MATCH_MASKS_MAX;
    m->state[m->mask_owner[i]].mask = 0;
    return i;
}

const uint64_t *match_mask(struct match *m) {
    m->stats.n_masks++;
    if (m->state[m->now].mask) return m->mask[m->state[m->now].mask - 1];
    m->stats.n_masks_made++;
    uint32_t i = take_mask(m);
    if (!fill_mask(m, m->mask[i])) {              /* once more with empty tables; what is known is right */
        reset(m);
        i = take_mask(m);
        fill_mask(m, m->mask[i]);
    }
    m->mask_owner[i] = m->now;
    m->state[m->now].mask = (uint16_t)(i + 1);
    return m->mask[i];
}

struct match_stats match_stats(const struct match *m) {
    struct match_stats s = m->stats;
    s.n_states = m->n_state;
    s.n_frames = m->n_frame;
    return s;
}

/* ---- life ---- */

int match_new(struct match **out, const struct grammar *g, const struct vocab_trie *v, struct err *e) {
    struct match *m = xcalloc(1, sizeof *m);
    m->g = g;
    m->v = v;
    m->walk = xcalloc((size_t)v->all.depth_max + 1, sizeof *m->walk);
    grow_frames(m);
    grow_states(m, 0);
    grow_visits(m);
    memset(m->state, 0, sizeof *m->state);
    memset(m->frame, 0, sizeof *m->frame);
    m->n_state = m->n_frame = 1;
    visit_begin(m);
    visit(m, g->root, 0);
    m->now = state_of_visit(m);
    if (m->now != DEAD && m->now != FULL) {
        *out = m;
        return 0;
    }
    match_free(m);
    return err_set(e, ERR_INVALID, "nothing can satisfy it");
}

void match_free(struct match *m) {
    if (!m) return;
    for (uint32_t i = 1; i < m->n_state; i++) free(m->state[i].next);
    for (int i = 0; i < MATCH_MASKS_MAX; i++) free(m->mask[i]);
    free(m->state);
    free(m->state_slot);
    free(m->place);
    free(m->frame);
    free(m->frame_slot);
    free(m->visit);
    free(m->visit_slot);
    free(m->walk);
    free(m);
}
