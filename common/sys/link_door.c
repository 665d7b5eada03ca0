/* link_door - who comes in: newcomers get a number, strangers a line in the log.
 *
 * What zmq does not say at a ROUTER is which identity left. So when the monitor reports that some
 * connection ended, every identity that we know is sent an empty frame a moment later: ROUTER_MANDATORY
 * answers EHOSTUNREACH for those that are gone. Receivers ignore empty frames. */
#include "common/sys/link_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/loop.h"
#include "common/sys/zpump.h"

#include <stdio.h>

enum { PROBE_MS = 20, LOOK_MS = 1000 };

static void peer_leaves(struct links *l, struct link_peer *p, enum link_peer_state how, uint64_t now) {
    link_peers_drop(p, how, now);
    links_due(l, &l->closed_ns, now);
}

void link_door_report(struct links *l) {
    l->closed_ns = LOOP_NEVER;
    for (uint32_t i = 0; i < l->peers.n_max; i++) {
        struct link_peer *p = &l->peers.peer[i];
        if (p->state != PEER_GONE && p->state != PEER_BARRED) continue;
        uint32_t link = p->link;
        p->link = 0;
        if (p->state == PEER_GONE) p->state = PEER_NOBODY;
        if (link) l->config.on_closed(l->config.ctx, link);
    }
}

void link_door_look(struct links *l, uint64_t now) {
    struct err e;
    l->look_ns = now + LOOK_MS * MS;
    if (keyring_refresh(l->config.keyring, &e) < 0 && once_is_due(&l->once, "refresh", e.text, now))
        log_error("keys", "%s", e.text);
    for (uint32_t i = 0; i < l->peers.n_max; i++) {
        struct link_peer *p = &l->peers.peer[i];
        if (!p->user[0] || (p->state != PEER_HERE && p->state != PEER_BARRED)) continue;
        bool known = keyring_knows(l->config.keyring, p->user);
        if (p->state == PEER_BARRED && p->revoked && known && !p->link) {
            link_peers_drop(p, PEER_QUIET, now);  /* a machine that left the plan and came back */
        } else if (p->state == PEER_HERE && !known) {
            log_info("link", "%s (%s) has no business here any more", p->user, p->address);
            peer_leaves(l, p, PEER_BARRED, now);
            p->revoked = true;
        }
    }
}

/* ---- messages and strangers ---- */

static void name_peer(struct link_peer *p, zmq_msg_t *header) {
    const char *user = zmq_msg_gets(header, "User-Id"), *address = zmq_msg_gets(header, "Peer-Address");
    snprintf(p->user, sizeof p->user, "%s", user ? user : "");
    snprintf(p->address, sizeof p->address, "%s", address ? address : "inproc");
}

static void refuse_frame(struct links *l, struct link_peer *p, uint64_t now) {
    if (once_is_due(&l->once, "frame", p->address, now))
        log_warn("link", "dropped %s %s: a message of the wrong form or size", p->user, p->address);
    peer_leaves(l, p, PEER_BARRED, now);
}

static void door_message(struct links *l, struct inbound *in) {
    uint64_t now = clock_now_ns();
    bool is_new;
    struct link_peer *p =
        link_peers_hear(&l->peers, zmq_msg_data(&in->part[0]), zmq_msg_size(&in->part[0]), now, &is_new);
    if (!p) return;
    if (is_new && in->n_part > 1) name_peer(p, &in->part[1]);
    if (in->wrong || (l->guarded && !p->user[0])) {
        refuse_frame(l, p, now);
        return;
    }
    p->n_in++;
    p->bytes_in += zmq_msg_size(&in->part[1]) + in->bytes;
    if (zmq_msg_size(&in->part[1]) == 0) return;  /* a probe */
    if (!link_inbound_deliver(l, in, &in->part[1], p->link, p->address)) p->n_lost++;
}

static bool door_receive(void *ctx) {
    struct links *l = ctx;
    struct inbound in;
    bool got = link_inbound_read(l, &in, l->door.socket, 1);
    if (got) door_message(l, &in);
    link_inbound_free(l, &in);
    return got;
}

static bool door_event(void *ctx) {
    struct links *l = ctx;
    uint16_t event;
    uint32_t value = 0;
    if (!link_port_event(&l->door, &event, &value)) return false;
    uint64_t now = clock_now_ns();
    if (event == ZMQ_EVENT_DISCONNECTED) links_due(l, &l->probe_ns, now + PROBE_MS * MS);
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL || event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) {
        if (once_is_due(&l->once, "handshake", l->address, now))
            log_warn("link", "refused a connection at %s: not our protocol, or a wrong key", l->address);
    }
    return true;
}

int link_door_open(struct links *l, struct err *e) {
    const struct links_config *c = &l->config;
    int rc = link_port_open(l, &l->door, ZMQ_ROUTER, e);
    if (rc < 0) return rc;
    if (c->keyring && link_is_tcp(c->bind)) {
        struct keyring_pair pair = keyring_pair_for(c->keyring, NULL);
        CHECK(c->net->zap);
        c->net->n_guarded++;
        l->guarded = true;
        link_set_int(l->door.socket, ZMQ_CURVE_SERVER, 1);
        if (zmq_setsockopt(l->door.socket, ZMQ_CURVE_SECRETKEY, pair.secret_key, KEY_TEXT) != 0)
            return link_fail(e, "its key is not taken", c->bind);
        zmq_setsockopt(l->door.socket, ZMQ_ZAP_DOMAIN, "pleiades", strlen("pleiades"));
    }
    if (strchr(c->bind, '[')) link_set_int(l->door.socket, ZMQ_IPV6, 1);
    if (zmq_bind(l->door.socket, c->bind) != 0) return link_fail(e, "cannot listen here", c->bind);
    size_t size = sizeof l->address;
    zmq_getsockopt(l->door.socket, ZMQ_LAST_ENDPOINT, l->address, &size);
    rc = link_port_watch(c->net, c->loop, &l->door, door_event, l, e);
    return rc < 0 ? rc : zpump_new(&l->door.pump, c->loop, l->door.socket, door_receive, l, e);
}

int link_door_send(struct links *l, struct link_peer *p, const void *header, size_t header_bytes,
                     struct payload payload) {
    void *socket = l->door.socket;
    if (zmq_send(socket, p->id, p->n_id, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) {
        p->n_lost++;
        if (zmq_errno() != EHOSTUNREACH) return ERR_BUSY;
        peer_leaves(l, p, PEER_GONE, clock_now_ns());
        return ERR_PEER;
    }
    if (link_send_frames(l->config.slots, socket, header, header_bytes, payload, l->guarded) < 0)
        return ERR_BUSY;
    p->n_out++;
    p->bytes_out += header_bytes + payload.bytes;
    return 0;
}

void link_door_probe(struct links *l) {
    l->probe_ns = LOOP_NEVER;
    for (uint32_t i = 0; i < l->peers.n_max; i++) {
        struct link_peer *p = &l->peers.peer[i];
        if (p->state == PEER_NOBODY || p->state == PEER_GONE) continue;
        int rc = zmq_send(l->door.socket, p->id, p->n_id, ZMQ_DONTWAIT | ZMQ_SNDMORE);
        if (rc >= 0) zmq_send(l->door.socket, "", 0, ZMQ_DONTWAIT);
        else if (zmq_errno() == EHOSTUNREACH) peer_leaves(l, p, PEER_GONE, clock_now_ns());
    }
}
