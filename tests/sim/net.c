/* net - connections of the simulation: who opened them, what is on its way, what is lost. */
#include "tests/sim/world.h"

#include "common/base/check.h"
#include "common/wire/codec.h"
#include "tests/harness/msg_lists.h"

#include "common/base/banned.h"

static struct conn *by_opener(struct world *w, uint8_t a, uint32_t link) {
    for (int i = 0; i < CONNS_MAX; i++)
        if (w->conn[i].used && w->conn[i].a == a && w->conn[i].a_link == link) return &w->conn[i];
    return NULL;
}

static struct conn *by_acceptor(struct world *w, uint8_t b, uint32_t link) {
    for (int i = 0; i < CONNS_MAX; i++)
        if (w->conn[i].used && w->conn[i].b == b && w->conn[i].b_link == link) return &w->conn[i];
    return NULL;
}

void net_open(struct world *w, uint8_t a, uint32_t a_link, uint8_t b) {
    CHECK(!by_opener(w, a, a_link));
    for (int i = 0; i < CONNS_MAX; i++) {
        struct conn *c = &w->conn[i];
        if (c->used) continue;
        *c = (struct conn){ .used = true,
                            .a = a,
                            .b = b,
                            .a_link = a_link,
                            .a_generation = w->actor[a].generation,
                            .generation = c->generation + 1 };
        return;
    }
    CHECK(!"connections");
}

void net_close(struct world *w, uint8_t a, uint32_t a_link) {
    struct conn *c = by_opener(w, a, a_link);
    if (!c) return;
    c->used = false;
    c->generation++;
}

void net_close_all_of(struct world *w, uint8_t a) {
    for (int i = 0; i < CONNS_MAX; i++) {
        struct conn *c = &w->conn[i];
        if (!c->used || (c->a != a && c->b != a)) continue;
        if (c->a == a) c->used = false;
        c->generation++;          /* in flight both ways is lost; a dealer finds the next process by itself */
        c->b_link = 0;
    }
}

void net_reset(struct world *w, struct conn *c) {
    c->generation++;
    if (world_chance(w, 2)) c->b_link = 0;        /* the acceptor will see a new link */
}

/* ---- copies ---- */

static size_t padded(size_t n) {
    return ALIGN_UP(n, 8);
}

/* Every message takes the way over the wire: what the codec loses, changes or refuses shows in the run. */
static struct msg through_the_codec(struct world *w, const struct msg *m) {
    static struct codec *codec;
    static struct buf bytes;
    struct msg out;
    struct err e;
    if (!codec) codec = codec_new(), buf_init(&bytes, MSG_HEADER_BYTES_MAX);
    buf_clear(&bytes);
    if (codec_pack(m, &bytes, &e) == 0 &&
        codec_unpack(codec, bytes.data, bytes.size, &out, &e) == 0)
        return out;
    world_fail(w, "the codec: %s", e.text);
    return *m;
}

static struct parcel *pack(struct world *w, const struct msg *original) {
    struct msg_list list[MSG_LISTS_MAX];
    struct msg decoded = through_the_codec(w, original), shallow = decoded;
    const struct msg *m = &decoded;
    size_t bytes = 0;
    int n = msg_lists(&shallow, list);
    for (int i = 0; i < n; i++) bytes += padded(list[i].bytes);
    struct parcel *p = xrealloc(NULL, sizeof *p + bytes);
    p->msg = *m;
    char *at = p->arrays;
    n = msg_lists(&p->msg, list);
    for (int i = 0; i < n; i++) {
        if (list[i].bytes) memcpy(at, *list[i].at, list[i].bytes);
        *list[i].at = at;
        at += padded(list[i].bytes);
    }
    return p;
}

static struct payload payload_copy(struct world *w, struct payload p) {
    struct payload copy = payload_new(w, NOBODY, p.bytes / 8);
    memcpy(payload_data(w, copy), payload_data(w, p) + p.offset / 8, p.bytes);
    return copy;
}

/* ---- sending ---- */

static void post(struct world *w, struct conn *c, int direction, struct parcel *p) {
    uint64_t t = w->now + w->delay_ns + p->payload.bytes * 50;
    if (w->fault[FAULT_JITTER] && !w->calm) t += world_between(w, 0, w->delay_ns * 4);
    if (p->msg.kind == MSG_ROW) t += world_between(w, 0, 5 * MS);     /* a whole row is large */
    if (c->clogged_until > w->now) t += c->clogged_until - w->now;
    t = MAX(t, c->free_at[direction] + 1);
    c->free_at[direction] = t;
    p->conn = (uint8_t)(c - w->conn);
    p->conn_generation = c->generation;
    p->to = direction ? c->a : c->b;
    world_post(w, (struct ev){ .t = t, .kind = EV_PARCEL, .parcel = p });
}

/* Out of order and twice: no transport of ours does that, and still nothing may break. */
static void post_again(struct world *w, const struct parcel *first) {
    struct parcel *p = pack(w, &first->msg);
    p->payload = first->payload.generation ? payload_copy(w, first->payload) : (struct payload){ 0 };
    p->conn = first->conn;
    p->conn_generation = first->conn_generation;
    p->to = first->to;
    uint64_t later = world_between(w, 0, world_chance(w, 2) ? MS : 3000 * MS);
    world_post(w, (struct ev){ .t = w->now + w->delay_ns + later, .kind = EV_PARCEL, .parcel = p });
}

static void damage(struct world *w, struct msg *m) {
    if (m->kind == MSG_RESULT && m->u.result.n_row) m->u.result.n_row--;
    else if (m->kind == MSG_WORK) m->u.work.n_row++;
    else if (m->kind == MSG_WORK_REFUSED) m->u.work_refused.seq += world_between(w, 1, 5);
}

void net_send(struct world *w, uint8_t from, uint32_t link, const struct msg *m, struct payload p,
              bool borrows) {
    bool opener = from != COORDINATOR && link < NODE_LINK_ACCEPTED;
    struct conn *c = opener ? by_opener(w, from, link) : by_acceptor(w, from, link);
    if (borrows && p.generation) {
        p = payload_copy(w, p);
    } else if (p.generation) {
        payload_pass(w, p, from, NOBODY);
    }
    if (!c || !w->actor[opener ? c->b : c->a].up) {
        if (p.generation) payload_free_one(w, NOBODY, p);
        return;
    }
    struct parcel *parcel = pack(w, m);
    parcel->payload = p;
    post(w, c, opener ? 0 : 1, parcel);
    if (fault_hits(w, FAULT_DUPLICATE, m->kind == MSG_ROW ? 2 : 30)) post_again(w, parcel);
    if (fault_hits(w, FAULT_DAMAGE, 200)) damage(w, &parcel->msg);
}

void net_inject(struct world *w, uint8_t to, uint32_t link, const struct msg *m) {
    struct parcel *p = pack(w, m);
    p->payload = (struct payload){ 0 };
    p->conn = NOBODY;
    p->conn_generation = link;
    p->to = to;
    world_post(w, (struct ev){ .t = w->now, .kind = EV_PARCEL, .parcel = p });
}

bool net_arrives(struct world *w, struct parcel *p, uint32_t *link) {
    if (p->conn == NOBODY) {
        *link = p->conn_generation;
        return w->actor[p->to].up;
    }
    struct conn *c = &w->conn[p->conn];
    if (!c->used || c->generation != p->conn_generation || !w->actor[p->to].up) return false;
    if (p->to == c->a) {
        *link = c->a_link;
    } else {
        uint32_t *known = &w->actor[p->to].link_of[c->a][c->a_link & 1];
        if (!c->b_link && !(w->sticky_links && *known)) *known = w->actor[p->to].next_link++;
        if (!c->b_link) c->b_link = *known;
        *link = c->b_link;
    }
    return true;
}
