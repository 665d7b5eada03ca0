#include "common/sys/link_peers.h"

#include "common/base/check.h"

#include "common/base/banned.h"

void link_peers_init(struct link_peers *t, uint32_t n_max, uint32_t first) {
    t->peer = xcalloc(n_max, sizeof *t->peer);
    t->n_max = n_max;
    t->next = first;
}

void link_peers_deinit(struct link_peers *t) {
    free(t->peer);
    t->peer = NULL;
}

struct link_peer *link_peers_by_number(const struct link_peers *t, uint32_t link) {
    for (uint32_t i = 0; i < t->n_max; i++)
        if (t->peer[i].state == PEER_HERE && t->peer[i].link == link) return &t->peer[i];
    return NULL;
}

struct link_peer *link_peers_by_id(const struct link_peers *t, const void *id, size_t n_id) {
    for (uint32_t i = 0; i < t->n_max; i++) {
        struct link_peer *p = &t->peer[i];
        if (p->state != PEER_NOBODY && p->n_id == n_id && memcmp(p->id, id, n_id) == 0) return p;
    }
    return NULL;
}

static struct link_peer *find_place(struct link_peers *t) {
    struct link_peer *oldest = NULL;
    for (uint32_t i = 0; i < t->n_max; i++) {
        struct link_peer *p = &t->peer[i];
        if (p->state == PEER_NOBODY) return p;
        if (p->state != PEER_HERE && !p->link && (!oldest || p->dropped_ns < oldest->dropped_ns)) oldest = p;
    }
    return oldest;
}

struct link_peer *link_peers_hear(struct link_peers *t, const void *id, size_t n_id, uint64_t now_ns,
                                  bool *is_new) {
    *is_new = false;
    if (n_id == 0 || n_id > LINK_ID_MAX) return NULL;         /* zmq gives 5 bytes; ours choose none */
    struct link_peer *p = link_peers_by_id(t, id, n_id);
    if (p && p->state == PEER_HERE) return p;
    if (p && (p->state != PEER_QUIET || now_ns < p->quiet_ns)) return NULL;
    if (!p) p = find_place(t);
    if (!p) return NULL;
    *p = (struct link_peer){ .state = PEER_HERE, .link = t->next++, .n_id = (uint32_t)n_id };
    memcpy(p->id, id, n_id);
    *is_new = true;
    return p;
}

void link_peers_drop(struct link_peer *p, enum link_peer_state to, uint64_t now_ns) {
    p->state = to;
    p->dropped_ns = now_ns;
    p->quiet_ns = now_ns + LINK_QUIET_MS * UINT64_C(1000000);
    if (to == PEER_QUIET) p->link = 0;
}
