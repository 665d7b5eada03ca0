/* link_dial - links that we open, each a DEALER that never gives up:
 *
 *   dialling ---- connected, handshake ----> up ---- connection lost ----> waiting (redial_ms)
 *     ^ (zmq tries     |                                                     |   ^
 *     |  until one     +---- handshake failed: keys or protocol -------------|---+ (doubled each time)
 *     |  answers)                                                            |
 *     +---------- a new socket, with the keys that are right by now ---------+
 */
#include "common/sys/link_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/loop.h"
#include "common/sys/zpump.h"

/* The next stage refuses until its own ASSIGN has told it who we are: the first failures in a row are
 * no news. */
enum { TELL_AFTER = 3 };

static bool dialled_receive(void *ctx) {
    struct dialled *d = ctx;
    struct links *l = d->links;
    struct inbound in;
    bool got = link_inbound_read(l, &in, d->port.socket, 0);
    if (got && !in.wrong) {
        d->n_in++;
        d->bytes_in += zmq_msg_size(&in.part[0]) + in.bytes;
        if (zmq_msg_size(&in.part[0]) && !link_inbound_deliver(l, &in, &in.part[0], d->link, d->address))
            d->n_lost++;
    } else if (got && once_is_due(&l->once, "frame", d->address, clock_now_ns())) {
        log_warn("link", "%s sends messages of the wrong form or size: ignored", d->address);
    }
    link_inbound_free(l, &in);
    return got;
}

static void dialled_failed(struct dialled *d, const char *why) {
    struct links *l = d->links;
    link_port_close(&d->port, false);
    d->up = false;
    uint64_t wait = (uint64_t)l->config.redial_ms << MIN(d->n_failed, 10u);
    d->n_failed++;
    links_due(l, &d->redial_ns, clock_now_ns() + MIN(wait, l->config.redial_ms_max) * MS);
    if (d->told || d->n_failed < TELL_AFTER) return;
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
    link_port_close(&d->port, false);
    links_due(l, &d->redial_ns, clock_now_ns() + l->config.redial_ms * MS);
}

static bool dialled_event(void *ctx) {
    struct dialled *d = ctx;
    uint16_t event;
    uint32_t value = 0;
    if (!link_port_event(&d->port, &event, &value)) return false;
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
        return link_fail(e, "keys are not taken", d->address);
    return 0;
}

static int try_dial(struct dialled *d, struct err *e) {
    struct links *l = d->links;
    int rc = link_port_open(l, &d->port, ZMQ_DEALER, e);
    if (rc == 0) rc = dial_keys(d, e);
    if (rc < 0) return rc;
    if (strchr(d->address, '[')) link_set_int(d->port.socket, ZMQ_IPV6, 1);
    rc = link_port_watch(l->config.net, l->config.loop, &d->port, dialled_event, d, e);
    if (rc == 0) rc = zpump_new(&d->port.pump, l->config.loop, d->port.socket, dialled_receive, d, e);
    if (rc == 0 && zmq_connect(d->port.socket, d->address) != 0)
        rc = link_fail(e, "cannot connect", d->address);
    d->up = rc == 0 && !link_is_tcp(d->address);       /* inproc has no handshake to wait for */
    return rc;
}

void link_dial_again(struct dialled *d) {
    struct err e;
    d->redial_ns = LOOP_NEVER;
    if (try_dial(d, &e) < 0) dialled_failed(d, e.text);
}

struct dialled *link_dial_find(const struct links *l, uint32_t link) {
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
    link_port_close(&d->port, false);
    d->used = false;
    return rc;
}

void links_disconnect(struct links *l, uint32_t link) {
    struct dialled *d = link_dial_find(l, link);
    if (!d) return;
    d->used = false;
    link_port_close(&d->port, true);
}

int link_dial_send(struct dialled *d, const void *header, size_t header_bytes, struct payload payload) {
    bool encrypted = d->server_key[0];
    struct slots *slots = d->links->config.slots;
    if (d->port.socket &&
        link_send_frames(slots, d->port.socket, header, header_bytes, payload, encrypted) == 0) {
        d->n_out++;
        d->bytes_out += header_bytes + payload.bytes;
        return 0;
    }
    d->n_lost++;
    return d->up ? ERR_BUSY : ERR_PEER;
}
