/* link_zmq - links over zmq: one ROUTER at the door, one DEALER per link that we open, and a monitor for
 * each, all driven by pumps.
 *
 *   dialling ---- connected, handshake ----> up ---- connection lost ----> waiting (redial_ms)
 *     ^ (zmq tries     |                                                     |   ^
 *     |  until one     +---- handshake failed: keys or protocol -------------|---+ (doubled each time)
 *     |  answers)                                                            |
 *     +---------- a new socket, with the keys that are right by now ---------+
 *
 * What zmq does not say at a ROUTER is which identity left. So when the monitor reports that some
 * connection ended, every identity that we know is sent an empty frame a moment later: ROUTER_MANDATORY
 * answers EHOSTUNREACH for those that are gone. Receivers ignore empty frames. Things that must not happen
 * inside a call of the owner (on_closed, dialling again) wait for the timer. */
#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/keyring.h"
#include "common/sys/link_peers.h"
#include "common/sys/loop.h"
#include "common/sys/once.h"
#include "common/sys/slots.h"
#include "common/sys/zap.h"
#include "common/sys/zpump.h"

#include <stdatomic.h>
#include <stdio.h>
#include <zmq.h>

#define MS UINT64_C(1000000)

enum {
    IO_THREADS = 2,                               /* they encrypt: one for each direction of a stage */
    QUEUE_MESSAGES = 256,                         /* high-water marks; the flow is bounded by credits */
    GOODBYE_MS = 200,                             /* what was sent right before a close may still leave */
    PROBE_MS = 20,
    LOOK_MS = 1000,                               /* keys that were revoked */
    HEARTBEAT_MS = 3000, HEARTBEAT_TIMEOUT_MS = 10000,
    /* Encrypted payloads leave in pieces: zmq encrypts frame by frame into new memory, so that a frame of
     * many MiB costs page faults instead of time to encrypt, and travels only when all of it is done. */
    PIECE_BYTES = 256 << 10
};

struct net {
    void *zmq;
    struct zap *zap;
    uint32_t n_guarded;                           /* doors that the guard must outlive */
    atomic_uint n_monitor;
};

struct port {                                     /* a socket and its monitor */
    void *socket, *monitor;
    struct zpump *pump, *monitor_pump;
};

struct dialled {
    struct links *links;
    bool used, up, told;                          /* told: on_refused was called for this row of failures */
    uint32_t link, n_failed;
    struct port port;
    uint64_t redial_ns;                           /* LOOP_NEVER: not waiting */
    char address[LINK_ADDRESS_MAX], server_key[KEY_TEXT];
    uint64_t n_in, n_out, bytes_in, bytes_out, n_lost;
};

struct links {
    struct links_config config;
    struct port door;
    bool guarded;                                 /* nobody comes in without a name from the keyring */
    char address[LINK_ADDRESS_MAX];
    struct link_peers peers;
    struct dialled dialled[LINKS_OUT_MAX];
    struct loop_timer *timer;
    uint64_t probe_ns, look_ns, closed_ns, due_ns; /* LOOP_NEVER: nothing to do */
    struct once once;
};

/* ---- the ground ---- */

int net_new(struct net **out, struct err *e) {
    struct net *n = xcalloc(1, sizeof *n);
    n->zmq = zmq_ctx_new();
    if (!n->zmq) {
        free(n);
        return err_set(e, ERR_IO, "zmq does not start: %s", zmq_strerror(zmq_errno()));
    }
    zmq_ctx_set(n->zmq, ZMQ_IO_THREADS, IO_THREADS);
    *out = n;
    return 0;
}

void net_free(struct net *n) {
    if (!n) return;
    CHECK(!n->zap);
    while (zmq_ctx_term(n->zmq) != 0 && zmq_errno() == EINTR) {}
    free(n);
}

int net_guard(struct net *n, struct loop *l, struct keyring *k, struct err *e) {
    CHECK(!n->zap);
    return zap_new(&n->zap, l, n->zmq, k, e);
}

/* zmq lets everybody in where there is no guard: the doors are closed before. */
void net_unguard(struct net *n) {
    CHECK(n->n_guarded == 0);
    zap_free(n->zap);
    n->zap = NULL;
}

/* ---- sockets ---- */

static void set_int(void *socket, int option, int value) {
    CHECK(zmq_setsockopt(socket, option, &value, sizeof value) == 0);
}

static int fail(struct err *e, const char *what, const char *address) {
    return err_set(e, zmq_errno() == EADDRINUSE ? ERR_BUSY : ERR_IO, "%s: %s: %s", address, what,
                   zmq_strerror(zmq_errno()));
}

static bool is_tcp(const char *address) {
    return strncmp(address, "tcp://", 6) == 0;
}

/* Reads its monitor by itself from now on. */
static int port_watch(struct net *net, struct loop *l, struct port *p, bool (*receive)(void *), void *ctx,
                      struct err *e) {
    char name[64];
    snprintf(name, sizeof name, "inproc://monitor-%u", atomic_fetch_add(&net->n_monitor, 1));
    int events = ZMQ_EVENT_CONNECTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                 ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    if (zmq_socket_monitor(p->socket, name, events) != 0) return fail(e, "cannot be watched", name);
    p->monitor = zmq_socket(net->zmq, ZMQ_PAIR);
    if (!p->monitor) return fail(e, "no more sockets", name);
    set_int(p->monitor, ZMQ_LINGER, 0);
    if (zmq_connect(p->monitor, name) != 0) return fail(e, "cannot be watched", name);
    return zpump_new(&p->monitor_pump, l, p->monitor, receive, ctx, e);
}

static int port_open(struct links *l, struct port *p, int type, struct err *e) {
    const struct links_config *c = &l->config;
    p->socket = zmq_socket(c->net->zmq, type);
    if (!p->socket) return fail(e, "no more sockets", "zmq");
    int64_t most = MAX(c->header_bytes_max, c->payload_bytes_max);
    set_int(p->socket, ZMQ_LINGER, 0);
    set_int(p->socket, ZMQ_IMMEDIATE, 1);
    set_int(p->socket, ZMQ_SNDHWM, QUEUE_MESSAGES);
    set_int(p->socket, ZMQ_RCVHWM, QUEUE_MESSAGES);
    set_int(p->socket, ZMQ_HANDSHAKE_IVL, (int)c->handshake_ms);
    set_int(p->socket, ZMQ_RECONNECT_IVL, (int)c->redial_ms);
    set_int(p->socket, ZMQ_RECONNECT_IVL_MAX, (int)c->redial_ms_max);
    set_int(p->socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS);
    set_int(p->socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS);
    if (type == ZMQ_ROUTER) set_int(p->socket, ZMQ_ROUTER_MANDATORY, 1);
    CHECK(zmq_setsockopt(p->socket, ZMQ_MAXMSGSIZE, &most, sizeof most) == 0);
    return 0;
}

/* goodbye: what is queued may still leave, for a moment. */
static void port_close(struct port *p, bool goodbye) {
    zpump_free(p->pump);
    zpump_free(p->monitor_pump);
    if (p->socket) {
        set_int(p->socket, ZMQ_LINGER, goodbye ? GOODBYE_MS : 0);
        zmq_socket_monitor(p->socket, NULL, 0);
        zmq_close(p->socket);
    }
    if (p->monitor) zmq_close(p->monitor);
    memset(p, 0, sizeof *p);
}

/* An event of a monitor; false: there is none. */
static bool port_event(struct port *p, uint16_t *event, uint32_t *value) {
    uint8_t head[6];
    char address[LINK_ADDRESS_MAX];
    int n = zmq_recv(p->monitor, head, sizeof head, ZMQ_DONTWAIT);
    if (n < 0) return false;
    zmq_recv(p->monitor, address, sizeof address, ZMQ_DONTWAIT);
    *event = 0;
    if (n == sizeof head) {
        memcpy(event, head, 2);
        memcpy(value, head + 2, 4);
    }
    return true;
}

/* ---- frames in ---- */

struct inbound {
    zmq_msg_t part[2];                            /* identity (at the door) and header */
    struct payload payload;                       /* ours until it is delivered */
    uint32_t n_part, bytes;                       /* bytes: of the payload, so far */
    bool wrong, lost;                             /* not a message of ours; no slot for its payload */
};

/* One more part of the payload; a large one comes in pieces of PIECE_BYTES, the last of which may be
 * shorter. */
static void inbound_piece(struct links *l, struct inbound *in, zmq_msg_t *m, bool more) {
    size_t n = zmq_msg_size(m), most = l->config.payload_bytes_max;
    if (n > most - in->bytes || (more && n != PIECE_BYTES)) in->wrong = true;
    if (in->wrong || in->lost) return;
    if (!in->payload.generation) in->payload = slots_take(l->config.slots, more ? most : n);
    in->lost = !in->payload.generation;
    if (in->lost) return;
    struct payload at = in->payload;
    at.offset = in->bytes;
    at.bytes = (uint32_t)n;
    memcpy(slots_data(l->config.slots, at), zmq_msg_data(m), n);
    in->bytes += (uint32_t)n;
}

/* A whole message; false: there was none. `header`: the place of the header, 1 behind an identity. */
static bool inbound_read(struct links *l, struct inbound *in, void *socket, uint32_t header) {
    bool more = true;
    memset(in, 0, sizeof *in);
    for (int i = 0; i < 2; i++) zmq_msg_init(&in->part[i]);
    while (more) {
        zmq_msg_t piece, *m = in->n_part <= header ? &in->part[in->n_part] : &piece;
        if (m == &piece) zmq_msg_init(m);
        if (zmq_msg_recv(m, socket, ZMQ_DONTWAIT) < 0) break;
        more = zmq_msg_more(m);
        if (m == &piece) inbound_piece(l, in, m, more);
        if (m == &piece) zmq_msg_close(m);
        in->n_part++;
    }
    in->payload.bytes = in->bytes;
    if (in->n_part <= header || zmq_msg_size(&in->part[header]) > l->config.header_bytes_max)
        in->wrong = true;
    return in->n_part > 0;
}

static void inbound_free(struct links *l, struct inbound *in) {
    for (int i = 0; i < 2; i++) zmq_msg_close(&in->part[i]);
    slots_give(l->config.slots, in->payload);
}

/* False: no slot is free, so the message is lost like one on the way; whoever waits for it has a deadline. */
static bool inbound_deliver(struct links *l, struct inbound *in, zmq_msg_t *header, uint32_t link,
                            const char *who) {
    struct payload p = in->payload;
    if (in->lost && once_is_due(&l->once, "slots", who, clock_now_ns()))
        log_warn("link", "no place for the payload of a message from %s: lost", who);
    if (in->lost) return false;
    in->payload = (struct payload){ 0 };
    l->config.on_frame(l->config.ctx, link, zmq_msg_data(header), zmq_msg_size(header), p);
    return true;
}

/* ---- the timer ---- */

static void due(struct links *l, uint64_t *what, uint64_t at_ns) {
    *what = MIN(*what, at_ns);
    if (at_ns < l->due_ns) loop_timer_set(l->timer, l->due_ns = at_ns);
}

static void peer_leaves(struct links *l, struct link_peer *p, enum link_peer_state how, uint64_t now) {
    link_peers_drop(p, how, now);
    due(l, &l->closed_ns, now);
}

static void probe(struct links *l);
static void redial(struct dialled *d);

static void report_closed(struct links *l) {
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

static void look_at_keys(struct links *l, uint64_t now) {
    struct err e;
    l->look_ns = now + LOOK_MS * MS;
    if (keyring_refresh(l->config.keyring, &e) < 0) log_error("keys", "%s", e.text);
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

static void on_timer(void *ctx) {
    struct links *l = ctx;
    uint64_t now = clock_now_ns();
    l->due_ns = LOOP_NEVER;
    if (now >= l->probe_ns) probe(l);
    if (now >= l->closed_ns) report_closed(l);
    if (now >= l->look_ns) look_at_keys(l, now);
    uint64_t next = MIN(MIN(l->probe_ns, l->closed_ns), l->look_ns);
    for (int i = 0; i < LINKS_OUT_MAX; i++) {
        struct dialled *d = &l->dialled[i];
        if (d->used && now >= d->redial_ns) redial(d);
        if (d->used) next = MIN(next, d->redial_ns);
    }
    if (next != LOOP_NEVER) due(l, &next, next);
}

/* ---- the door ---- */

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
    if (!inbound_deliver(l, in, &in->part[1], p->link, p->address)) p->n_lost++;
}

static bool door_receive(void *ctx) {
    struct links *l = ctx;
    struct inbound in;
    bool got = inbound_read(l, &in, l->door.socket, 1);
    if (got) door_message(l, &in);
    inbound_free(l, &in);
    return got;
}

static bool door_event(void *ctx) {
    struct links *l = ctx;
    uint16_t event;
    uint32_t value = 0;
    if (!port_event(&l->door, &event, &value)) return false;
    uint64_t now = clock_now_ns();
    if (event == ZMQ_EVENT_DISCONNECTED) due(l, &l->probe_ns, now + PROBE_MS * MS);
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL || event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) {
        if (once_is_due(&l->once, "handshake", l->address, now))
            log_warn("link", "refused a connection at %s: not our protocol, or a wrong key", l->address);
    }
    return true;
}

static int door_open(struct links *l, struct err *e) {
    const struct links_config *c = &l->config;
    int rc = port_open(l, &l->door, ZMQ_ROUTER, e);
    if (rc < 0) return rc;
    if (c->keyring && is_tcp(c->bind)) {
        struct keyring_pair pair = keyring_pair_for(c->keyring, NULL);
        CHECK(c->net->zap);
        c->net->n_guarded++;
        l->guarded = true;
        set_int(l->door.socket, ZMQ_CURVE_SERVER, 1);
        if (zmq_setsockopt(l->door.socket, ZMQ_CURVE_SECRETKEY, pair.secret_key, KEY_TEXT) != 0)
            return fail(e, "its key is not taken", c->bind);
        zmq_setsockopt(l->door.socket, ZMQ_ZAP_DOMAIN, "pleiades", strlen("pleiades"));
    }
    if (strchr(c->bind, '[')) set_int(l->door.socket, ZMQ_IPV6, 1);
    if (zmq_bind(l->door.socket, c->bind) != 0) return fail(e, "cannot listen here", c->bind);
    size_t size = sizeof l->address;
    zmq_getsockopt(l->door.socket, ZMQ_LAST_ENDPOINT, l->address, &size);
    rc = port_watch(c->net, c->loop, &l->door, door_event, l, e);
    return rc < 0 ? rc : zpump_new(&l->door.pump, c->loop, l->door.socket, door_receive, l, e);
}

/* ---- links that we open ---- */

static bool dialled_receive(void *ctx) {
    struct dialled *d = ctx;
    struct links *l = d->links;
    struct inbound in;
    bool got = inbound_read(l, &in, d->port.socket, 0);
    if (got && !in.wrong) {
        d->n_in++;
        d->bytes_in += zmq_msg_size(&in.part[0]) + in.bytes;
        if (zmq_msg_size(&in.part[0]) && !inbound_deliver(l, &in, &in.part[0], d->link, d->address))
            d->n_lost++;
    } else if (got && once_is_due(&l->once, "frame", d->address, clock_now_ns())) {
        log_warn("link", "%s sends messages of the wrong form or size: ignored", d->address);
    }
    inbound_free(l, &in);
    return got;
}

static void dialled_failed(struct dialled *d, const char *why) {
    struct links *l = d->links;
    port_close(&d->port, false);
    d->up = false;
    uint64_t wait = (uint64_t)l->config.redial_ms << MIN(d->n_failed, 10u);
    d->n_failed++;
    due(l, &d->redial_ns, clock_now_ns() + MIN(wait, l->config.redial_ms_max) * MS);
    if (d->told) return;
    d->told = true;
    if (l->config.on_refused) l->config.on_refused(l->config.ctx, d->link, why);
}

static void dialled_up(struct dialled *d) {
    d->up = true;
    d->told = false;
    d->n_failed = 0;
    if (d->links->config.on_up) d->links->config.on_up(d->links->config.ctx, d->link);
}

/* zmq would dial again with the keys that it has, and not at all where it found the other side to blame. What
 * came in before the end is still read. */
static void dialled_lost(struct dialled *d) {
    struct links *l = d->links;
    d->up = false;
    while (d->used && dialled_receive(d)) {}
    if (!d->used) return;
    port_close(&d->port, false);
    due(l, &d->redial_ns, clock_now_ns() + l->config.redial_ms * MS);
}

static bool dialled_event(void *ctx) {
    struct dialled *d = ctx;
    uint16_t event;
    uint32_t value = 0;
    if (!port_event(&d->port, &event, &value)) return false;
    switch (event) {
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED: dialled_up(d); break;
    case ZMQ_EVENT_DISCONNECTED: dialled_lost(d); break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        if (d->links->config.keyring) keyring_refused(d->links->config.keyring, d->server_key);
        dialled_failed(d, "it does not know our key");
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        dialled_failed(d, "it does not speak our protocol, or one side wants keys and the other has none");
        break;
    case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        dialled_failed(d, "it closed the connection: another key than expected, or no Pleiades there");
        break;
    default: break;
    }
    return true;
}

static int dial_keys(struct dialled *d, struct err *e) {
    if (!d->server_key[0]) return 0;
    if (!d->links->config.keyring) return err_set(e, ERR_DENIED, "%s wants keys; we have none", d->address);
    struct keyring_pair pair = keyring_pair_for(d->links->config.keyring, d->server_key);
    if (zmq_setsockopt(d->port.socket, ZMQ_CURVE_SERVERKEY, d->server_key, KEY_TEXT) != 0 ||
        zmq_setsockopt(d->port.socket, ZMQ_CURVE_PUBLICKEY, pair.public_key, KEY_TEXT) != 0 ||
        zmq_setsockopt(d->port.socket, ZMQ_CURVE_SECRETKEY, pair.secret_key, KEY_TEXT) != 0)
        return fail(e, "keys are not taken", d->address);
    return 0;
}

static int try_dial(struct dialled *d, struct err *e) {
    struct links *l = d->links;
    int rc = port_open(l, &d->port, ZMQ_DEALER, e);
    if (rc == 0) rc = dial_keys(d, e);
    if (rc < 0) return rc;
    if (strchr(d->address, '[')) set_int(d->port.socket, ZMQ_IPV6, 1);
    rc = port_watch(l->config.net, l->config.loop, &d->port, dialled_event, d, e);
    if (rc == 0) rc = zpump_new(&d->port.pump, l->config.loop, d->port.socket, dialled_receive, d, e);
    if (rc == 0 && zmq_connect(d->port.socket, d->address) != 0) rc = fail(e, "cannot connect", d->address);
    d->up = rc == 0 && !is_tcp(d->address);       /* inproc has no handshake to wait for */
    return rc;
}

static void redial(struct dialled *d) {
    struct err e;
    d->redial_ns = LOOP_NEVER;
    if (try_dial(d, &e) < 0) dialled_failed(d, e.text);
}

static struct dialled *find_dialled(const struct links *l, uint32_t link) {
    for (int i = 0; i < LINKS_OUT_MAX; i++)
        if (l->dialled[i].used && l->dialled[i].link == link) return (struct dialled *)&l->dialled[i];
    return NULL;
}

int links_connect(struct links *l, uint32_t link, const char *address, const char *server_key,
                  struct err *e) {
    CHECK(link < l->config.accepted_first);
    links_disconnect(l, link);
    struct dialled *d = NULL;
    for (int i = 0; i < LINKS_OUT_MAX && !d; i++)
        if (!l->dialled[i].used) d = &l->dialled[i];
    if (!d) return err_set(e, ERR_LIMIT, "more than %d outgoing links", LINKS_OUT_MAX);
    if (strlen(address) >= sizeof d->address || (server_key && strlen(server_key) >= sizeof d->server_key))
        return err_set(e, ERR_INVALID, "address or key of a link is too long");
    *d = (struct dialled){ .links = l, .used = true, .link = link, .redial_ns = LOOP_NEVER };
    memcpy(d->address, address, strlen(address));
    if (server_key) memcpy(d->server_key, server_key, strlen(server_key));
    int rc = try_dial(d, e);
    if (rc == 0) return 0;
    port_close(&d->port, false);
    d->used = false;
    return rc;
}

void links_disconnect(struct links *l, uint32_t link) {
    struct dialled *d = find_dialled(l, link);
    if (!d) return;
    d->used = false;
    port_close(&d->port, true);
}

/* ---- frames out ---- */

/* The payload leaves from its slot, each piece with a lease of its own. */
static int send_pieces(struct slots *slots, void *socket, struct payload payload, uint32_t piece_bytes) {
    uint32_t at = 0;
    do {
        struct payload piece = payload;
        zmq_msg_t m;
        piece.offset += at;
        piece.bytes = MIN(piece_bytes, payload.bytes - at);
        at += piece.bytes;
        CHECK(zmq_msg_init_data(&m, slots_data(slots, piece), piece.bytes, slots_return,
                                slots_lend(slots, piece)) == 0);
        if (zmq_msg_send(&m, socket, ZMQ_DONTWAIT | (at < payload.bytes ? ZMQ_SNDMORE : 0)) < 0) {
            zmq_msg_close(&m);                    /* the lease comes back */
            return -1;
        }
    } while (at < payload.bytes);
    return 0;
}

static int send_frames(struct slots *slots, void *socket, const void *header, size_t header_bytes,
                       struct payload payload, bool encrypted) {
    bool more = payload.generation != 0;
    if (zmq_send(socket, header, header_bytes, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0) return -1;
    return more ? send_pieces(slots, socket, payload, encrypted ? PIECE_BYTES : UINT32_MAX) : 0;
}

static int send_dialled(struct dialled *d, const void *header, size_t header_bytes, struct payload payload) {
    bool encrypted = d->server_key[0];
    struct slots *slots = d->links->config.slots;
    if (d->port.socket && send_frames(slots, d->port.socket, header, header_bytes, payload, encrypted) == 0) {
        d->n_out++;
        d->bytes_out += header_bytes + payload.bytes;
        return 0;
    }
    d->n_lost++;
    return d->up ? ERR_BUSY : ERR_PEER;
}

static int send_peer(struct links *l, struct link_peer *p, const void *header, size_t header_bytes,
                     struct payload payload) {
    void *socket = l->door.socket;
    if (zmq_send(socket, p->id, p->n_id, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0) {
        p->n_lost++;
        if (zmq_errno() != EHOSTUNREACH) return ERR_BUSY;
        peer_leaves(l, p, PEER_GONE, clock_now_ns());
        return ERR_PEER;
    }
    if (send_frames(l->config.slots, socket, header, header_bytes, payload, l->guarded) < 0) return ERR_BUSY;
    p->n_out++;
    p->bytes_out += header_bytes + payload.bytes;
    return 0;
}

int links_send(struct links *l, uint32_t link, const void *header, size_t header_bytes,
               struct payload payload, bool borrows) {
    struct dialled *d = find_dialled(l, link);
    struct link_peer *p = d ? NULL : link_peers_by_number(&l->peers, link);
    int rc = ERR_PEER;
    CHECK(header_bytes <= l->config.header_bytes_max);
    if (d) rc = send_dialled(d, header, header_bytes, payload);
    else if (p) rc = send_peer(l, p, header, header_bytes, payload);
    if (!borrows) slots_give(l->config.slots, payload);       /* leases keep it alive */
    return rc;
}

static void probe(struct links *l) {
    l->probe_ns = LOOP_NEVER;
    for (uint32_t i = 0; i < l->peers.n_max; i++) {
        struct link_peer *p = &l->peers.peer[i];
        if (p->state == PEER_NOBODY || p->state == PEER_GONE) continue;
        int rc = zmq_send(l->door.socket, p->id, p->n_id, ZMQ_DONTWAIT | ZMQ_SNDMORE);
        if (rc >= 0) zmq_send(l->door.socket, "", 0, ZMQ_DONTWAIT);
        else if (zmq_errno() == EHOSTUNREACH) peer_leaves(l, p, PEER_GONE, clock_now_ns());
    }
}

int links_admit(struct links *l, uint32_t link, const char *name, const char *key, bool tool,
                struct err *e) {
    struct link_peer *p = link_peers_by_number(&l->peers, link);
    if (!p) return err_set(e, ERR_PEER, "link %u is not there any more", link);
    if (!l->guarded) return 0;
    int rc = keyring_admit(l->config.keyring, p->user, name, key, tool, e);
    if (rc == 0 && !tool) snprintf(p->user, sizeof p->user, "node:%s", name);
    return rc;
}

void links_drop(struct links *l, uint32_t link) {
    struct link_peer *p = link_peers_by_number(&l->peers, link);
    if (p) link_peers_drop(p, PEER_QUIET, clock_now_ns());
}

void links_complain(struct links *l, uint32_t link, const char *area, const char *text) {
    struct link_view v;
    if (!links_view(l, link, &v) || !once_is_due(&l->once, text, v.address, clock_now_ns())) return;
    log_warn(area, "%s%s%s refused: %s", v.user, v.user[0] ? " at " : "", v.address, text);
}

/* ---- life ---- */

static void fill_defaults(struct links_config *c) {
    if (!c->n_accepted_max) c->n_accepted_max = 64;
    if (!c->header_bytes_max) c->header_bytes_max = 1 << 20;
    if (!c->payload_bytes_max) c->payload_bytes_max = slots_bytes_max(c->slots);
    if (!c->handshake_ms) c->handshake_ms = 5000;
    if (!c->redial_ms) c->redial_ms = 100;
    if (!c->redial_ms_max) c->redial_ms_max = 2000;
}

int links_open(struct links **out, const struct links_config *config, struct err *e) {
    struct links *l = xcalloc(1, sizeof *l);
    l->config = *config;
    fill_defaults(&l->config);
    CHECK(l->config.accepted_first > 0 && l->config.payload_bytes_max <= slots_bytes_max(config->slots));
    link_peers_init(&l->peers, l->config.n_accepted_max, l->config.accepted_first);
    l->timer = loop_timer_new(config->loop, on_timer, l);
    l->probe_ns = l->closed_ns = l->look_ns = l->due_ns = LOOP_NEVER;
    int rc = config->bind ? door_open(l, e) : 0;
    if (rc < 0) {
        links_close(l);
        return rc;
    }
    if (config->keyring) due(l, &l->look_ns, clock_now_ns() + LOOK_MS * MS);
    *out = l;
    return 0;
}

void links_close(struct links *l) {
    if (!l) return;
    for (int i = 0; i < LINKS_OUT_MAX; i++)
        if (l->dialled[i].used) port_close(&l->dialled[i].port, true);
    port_close(&l->door, true);
    if (l->guarded) l->config.net->n_guarded--;
    loop_timer_free(l->timer);
    link_peers_deinit(&l->peers);
    free(l);
}

const char *links_address(const struct links *l) {
    return l->address;
}

uint16_t links_port(const struct links *l) {
    const char *colon = strrchr(l->address, ':');
    return is_tcp(l->address) && colon ? (uint16_t)strtoul(colon + 1, NULL, 10) : 0;
}

bool links_view(const struct links *l, uint32_t link, struct link_view *out) {
    const struct dialled *d = find_dialled(l, link);
    const struct link_peer *p = d ? NULL : link_peers_by_number(&l->peers, link);
    if (!d && !p) return false;
    *out = (struct link_view){ .outgoing = d != NULL, .up = d ? d->up : true };
    out->encrypted = d ? d->server_key[0] != 0 : p->user[0] != 0;
    snprintf(out->address, sizeof out->address, "%s", d ? d->address : p->address);
    snprintf(out->user, sizeof out->user, "%s", p ? p->user : "");
#define TAKE(field) out->field = d ? d->field : p->field
    TAKE(n_in);
    TAKE(n_out);
    TAKE(bytes_in);
    TAKE(bytes_out);
    TAKE(n_lost);
#undef TAKE
    return true;
}
