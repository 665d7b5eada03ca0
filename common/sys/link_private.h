/* link_private - what the files behind link.h share: link.c (numbers and the timer), link_door.c (who comes
 * in), link_dial.c (where we go), link_port.c (sockets and frames, for both). */
#ifndef SYS_LINK_PRIVATE_H
#define SYS_LINK_PRIVATE_H

#include "common/sys/keyring.h"
#include "common/sys/link_peers.h"
#include "common/sys/once.h"

#include <stdatomic.h>
#include <zmq.h>

#define MS UINT64_C(1000000)

struct zap;
struct zpump;

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

struct inbound {
    zmq_msg_t part[2];                            /* identity (at the door) and header */
    struct payload payload;                       /* ours until it is delivered */
    uint32_t n_part, bytes;                       /* bytes: of the payload, so far */
    bool wrong, lost;                             /* not a message of ours; no slot for its payload */
};

/* ---- link.c ---- */

/* *what (one of the times in struct links or a link that we dial) comes at at_ns at the latest. */
void links_due(struct links *l, uint64_t *what, uint64_t at_ns);

/* ---- link_port.c ---- */

void link_set_int(void *socket, int option, int value);
int link_fail(struct err *e, const char *what, const char *address);         /* with zmq's reason */
bool link_is_tcp(const char *address);

int link_port_open(struct links *l, struct port *p, int type, struct err *e);
/* `receive` is called for every event of the monitor, to fetch it with link_port_event. */
int link_port_watch(struct net *net, struct loop *l, struct port *p, bool (*receive)(void *), void *ctx,
                    struct err *e);
bool link_port_event(struct port *p, uint16_t *event, uint32_t *value);      /* false: there is none */
void link_port_close(struct port *p, bool goodbye);           /* goodbye: what is queued may still leave */

/* A whole message; false: there was none. `header`: the place of the header, 1 behind an identity. */
bool link_inbound_read(struct links *l, struct inbound *in, void *socket, uint32_t header);
/* To the owner. False: no slot is free, so it is lost like one on the way; who waits for it has a
 * deadline. */
bool link_inbound_deliver(struct links *l, struct inbound *in, zmq_msg_t *header, uint32_t link,
                          const char *who);
void link_inbound_free(struct links *l, struct inbound *in);
int link_send_frames(struct slots *slots, void *socket, const void *header, size_t header_bytes,
                     struct payload payload, bool encrypted);

/* ---- link_door.c ---- */

int link_door_open(struct links *l, struct err *e);
int link_door_send(struct links *l, struct link_peer *p, const void *header, size_t header_bytes,
                   struct payload payload);
void link_door_probe(struct links *l);                        /* who is still there? */
void link_door_report(struct links *l);                       /* on_closed for those who are gone */
void link_door_look(struct links *l, uint64_t now);           /* may all who are here still be here? */

/* ---- link_dial.c ---- */

struct dialled *link_dial_find(const struct links *l, uint32_t link);
void link_dial_again(struct dialled *d);
int link_dial_send(struct dialled *d, const void *header, size_t header_bytes, struct payload payload);

#endif
