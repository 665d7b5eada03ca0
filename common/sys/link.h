/* link - numbered links of a process to others: whole frames in and out, over zmq.
 *
 * A process has at most one door (a bound ROUTER) where others come in, and one DEALER for each link
 * that it opens itself. To the cores' shells both are numbers: those of outgoing links are chosen by the
 * caller (below accepted_first), those of incoming ones are given here, rising, never twice. A message is
 * a header frame and at most one payload frame, which arrives in a slot of ours and leaves from a slot
 * without being copied. Belongs to the loop's thread, callbacks as well; a callback may send, connect,
 * disconnect and drop, but not close.
 *
 * What is lost is lost: to a link that is not up, or whose queue is full, a message is dropped, and its
 * payload freed. Outgoing links dial again for ever, and what comes after a reconnect looks to the other
 * side like a newcomer, with a new number there. Who is who (HELLO, incarnations, deadlines) is the
 * cores' business. Limits: n_accepted_max links in, LINKS_OUT_MAX out, header and payload bytes by config;
 * a peer that sends anything else is dropped. Empty header frames are nothing. */
#ifndef SYS_LINK_H
#define SYS_LINK_H

#include "common/base/err.h"
#include "common/base/payload.h"
#include "common/base/types.h"

struct keyring;
struct loop;
struct slots;

enum { LINKS_OUT_MAX = 64, LINK_ADDRESS_MAX = 256, LINK_USER_MAX = 96 };

/* ---- what all links of a process stand on: the zmq context, and who may come in ---- */

struct net;
int net_new(struct net **out, struct err *e);
void net_free(struct net *n);                     /* after all links; waits for zmq. NULL is fine */

/* Checks every newcomer at a door with keys against the keyring (ZAP); one per net. Belongs to `l`. */
int net_guard(struct net *n, struct loop *l, struct keyring *k, struct err *e);
void net_unguard(struct net *n);                  /* before the loop and the keyring go away */

/* ---- links ---- */

struct links;

struct links_config {
    struct loop *loop;
    struct net *net;
    struct slots *slots;
    const char *bind;                             /* tcp://HOST:PORT (0: any), inproc://NAME, NULL: none */
    struct keyring *keyring;                      /* our own key pair; NULL: no encryption */
    uint32_t accepted_first;                      /* number of the first incoming link, > all outgoing ones */
    uint32_t n_accepted_max;                      /* 0: 64 */
    uint32_t header_bytes_max, payload_bytes_max; /* 0: 1 MiB, a big slot */
    uint32_t handshake_ms;                        /* 0: 5000 */
    uint32_t redial_ms, redial_ms_max;            /* 0: 100, 2000; doubled at every failure in a row */

    /* header is borrowed for the call, the payload is yours. */
    void (*on_frame)(void *ctx, uint32_t link, const void *header, size_t header_bytes,
                     struct payload take_payload);
    /* An incoming link is gone for good; its number means nobody from now on. Never called from inside
     * another call here, and not after links_drop. */
    void (*on_closed)(void *ctx, uint32_t link);
    /* An outgoing link is connected (again); may be NULL. */
    void (*on_up)(void *ctx, uint32_t link);
    /* An outgoing link was refused because of keys or protocol; may be NULL. Text for people. */
    void (*on_refused)(void *ctx, uint32_t link, const char *why);
    void *ctx;
};

int links_open(struct links **out, const struct links_config *config, struct err *e);
void links_close(struct links *l);                /* NULL is fine; leases of slots come back in net_free */
const char *links_address(const struct links *l); /* what was bound, with the port; "" without a door */
uint16_t links_port(const struct links *l);       /* 0: not tcp */

/* Starts dialling `address` as link number `link`. server_key: the other door's public key (Z85), NULL
 * or "": no encryption. An older link of this number is closed first. */
int links_connect(struct links *l, uint32_t link, const char *address, const char *server_key,
                  struct err *e);
void links_disconnect(struct links *l, uint32_t link);         /* an outgoing one; fine when there is none */
/* Forgets an incoming link. What the peer sends in the next LINK_QUIET_MS is thrown away; after that it
 * is a newcomer. Fine when there is none. */
void links_drop(struct links *l, uint32_t link);
enum { LINK_QUIET_MS = 250 };

/* HELLO came on an incoming link, saying `name` and `key`: 0 when that goes with the key of the connection
 * (see keyring_admit), or when this door has no keys. ERR_DENIED: the text is for REFUSE. */
int links_admit(struct links *l, uint32_t link, const char *name, const char *key, struct err *e);

/* A line in the log about what a link did, with where it comes from; once per address and hour. */
void links_complain(struct links *l, uint32_t link, const char *area, const char *text);

/* One message. The payload is freed in any case, sent or not, unless `borrows`: then it stays the
 * caller's, whose bytes must not change until it is freed (it may be freed at once). ERR_PEER: not up or
 * nobody of that number. ERR_BUSY: the queue of the link is full. Either way it is lost. */
int links_send(struct links *l, uint32_t link, const void *header, size_t header_bytes,
               struct payload payload, bool borrows);

struct link_view {
    bool outgoing, up, encrypted;
    char address[LINK_ADDRESS_MAX];               /* outgoing: dialled; incoming: the peer's host */
    /* Incoming, with keys: who it is by its key, as the keyring names it; else "". */
    char user[LINK_USER_MAX];
    uint64_t n_in, n_out, bytes_in, bytes_out, n_lost;
};
bool links_view(const struct links *l, uint32_t link, struct link_view *out);

#endif
