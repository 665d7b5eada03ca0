/* link_port - sockets with their monitors, whole messages in, frames out. */
#include "common/sys/link_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "common/sys/zap.h"
#include "common/sys/zpump.h"

#include <stdio.h>
#include <sys/resource.h>

enum {
    IO_THREADS = 2,                               /* they encrypt: one for each direction of a stage */
    DESCRIPTORS = 10240,                          /* as many as macOS allows */
    QUEUE_MESSAGES = 256,                         /* high-water marks; the flow is bounded by credits */
    GOODBYE_MS = 200,                             /* what was sent right before a close may still leave */
    HEARTBEAT_MS = 3000, HEARTBEAT_TIMEOUT_MS = 10000,
    /* Encrypted payloads leave in pieces: zmq encrypts frame by frame into new memory, so that a frame of
     * many MiB costs page faults instead of time to encrypt, and travels only when all of it is done. */
    PIECE_BYTES = 256 << 10
};

/* ---- the ground ---- */

/* Connections that say nothing cost a descriptor each until their handshake is overdue: room for some
 * thousands, so that the rest of the process goes on meanwhile. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    rlim_t wanted = MIN(limit.rlim_max, (rlim_t)DESCRIPTORS);
    if (limit.rlim_cur >= wanted) return;
    limit.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &limit);             /* if not, then not */
}

int net_new(struct net **out, struct err *e) {
    raise_descriptor_limit();
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

void link_set_int(void *socket, int option, int value) {
    CHECK(zmq_setsockopt(socket, option, &value, sizeof value) == 0);
}

int link_fail(struct err *e, const char *what, const char *address) {
    return err_set(e, zmq_errno() == EADDRINUSE ? ERR_BUSY : ERR_IO, "%s: %s: %s", address, what,
                   zmq_strerror(zmq_errno()));
}

bool link_is_tcp(const char *address) {
    return strncmp(address, "tcp://", 6) == 0;
}

/* Reads its monitor by itself from now on. */
int link_port_watch(struct net *net, struct loop *l, struct port *p, bool (*receive)(void *), void *ctx,
                      struct err *e) {
    char name[64];
    snprintf(name, sizeof name, "inproc://monitor-%u", atomic_fetch_add(&net->n_monitor, 1));
    int events = ZMQ_EVENT_CONNECTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED |
                 ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    if (zmq_socket_monitor(p->socket, name, events) != 0) return link_fail(e, "cannot be watched", name);
    p->monitor = zmq_socket(net->zmq, ZMQ_PAIR);
    if (!p->monitor) return link_fail(e, "no more sockets", name);
    link_set_int(p->monitor, ZMQ_LINGER, 0);
    if (zmq_connect(p->monitor, name) != 0) return link_fail(e, "cannot be watched", name);
    return zpump_new(&p->monitor_pump, l, p->monitor, receive, ctx, e);
}

int link_port_open(struct links *l, struct port *p, int type, struct err *e) {
    const struct links_config *c = &l->config;
    p->socket = zmq_socket(c->net->zmq, type);
    if (!p->socket) return link_fail(e, "no more sockets", "zmq");
    int64_t most = MAX(c->header_bytes_max, c->payload_bytes_max);
    link_set_int(p->socket, ZMQ_LINGER, 0);
    link_set_int(p->socket, ZMQ_IMMEDIATE, 1);
    link_set_int(p->socket, ZMQ_SNDHWM, QUEUE_MESSAGES);
    link_set_int(p->socket, ZMQ_RCVHWM, QUEUE_MESSAGES);
    link_set_int(p->socket, ZMQ_HANDSHAKE_IVL, (int)c->handshake_ms);
    link_set_int(p->socket, ZMQ_RECONNECT_IVL, (int)c->redial_ms);
    link_set_int(p->socket, ZMQ_RECONNECT_IVL_MAX, (int)c->redial_ms_max);
    link_set_int(p->socket, ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS);
    link_set_int(p->socket, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS);
    if (type == ZMQ_ROUTER) link_set_int(p->socket, ZMQ_ROUTER_MANDATORY, 1);
    CHECK(zmq_setsockopt(p->socket, ZMQ_MAXMSGSIZE, &most, sizeof most) == 0);
    return 0;
}

void link_port_close(struct port *p, bool goodbye) {
    zpump_free(p->pump);
    zpump_free(p->monitor_pump);
    if (p->socket) {
        link_set_int(p->socket, ZMQ_LINGER, goodbye ? GOODBYE_MS : 0);
        zmq_socket_monitor(p->socket, NULL, 0);
        zmq_close(p->socket);
    }
    if (p->monitor) zmq_close(p->monitor);
    memset(p, 0, sizeof *p);
}

bool link_port_event(struct port *p, uint16_t *event, uint32_t *value) {
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

/* One more part of the payload; a large one comes in pieces of PIECE_BYTES, the last of which may be
 * shorter. */
static void inbound_piece(struct links *l, struct inbound *in, zmq_msg_t *m, bool more) {
    size_t n = zmq_msg_size(m), most = l->config.payload_bytes_max;
    if (n > most - in->bytes || (more && n != PIECE_BYTES)) in->wrong = true;
    if (in->wrong || in->lost || n == 0) return;  /* an empty part is no payload */
    if (!in->payload.generation) in->payload = slots_take(l->config.slots, more ? most : n);
    in->lost = !in->payload.generation;
    if (in->lost) return;
    struct payload at = in->payload;
    at.offset = in->bytes;
    at.bytes = (uint32_t)n;
    memcpy(slots_data(l->config.slots, at), zmq_msg_data(m), n);
    in->bytes += (uint32_t)n;
}

bool link_inbound_read(struct links *l, struct inbound *in, void *socket, uint32_t header) {
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

void link_inbound_free(struct links *l, struct inbound *in) {
    for (int i = 0; i < 2; i++) zmq_msg_close(&in->part[i]);
    slots_give(l->config.slots, in->payload);
}

bool link_inbound_deliver(struct links *l, struct inbound *in, zmq_msg_t *header, uint32_t link,
                            const char *who) {
    struct payload p = in->payload;
    if (in->lost && once_is_due(&l->once, "slots", who, clock_now_ns()))
        log_warn("link", "no place for the payload of a message from %s: lost", who);
    if (in->lost) return false;
    in->payload = (struct payload){ 0 };
    l->config.on_frame(l->config.ctx, link, zmq_msg_data(header), zmq_msg_size(header), p);
    return true;
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

int link_send_frames(struct slots *slots, void *socket, const void *header, size_t header_bytes,
                       struct payload payload, bool encrypted) {
    bool more = payload.generation != 0;
    if (zmq_send(socket, header, header_bytes, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0)) < 0) return -1;
    return more ? send_pieces(slots, socket, payload, encrypted ? PIECE_BYTES : UINT32_MAX) : 0;
}
