/* link_peers - who has come in at a door: zmq's identity of a connection, and our number for it.
 *
 * A fixed table. A newcomer gets the next number. One that is dropped stays in the table without a number
 * and is not listened to until its quiet time is over, or ever (barred); one whose connection is gone
 * leaves. When all places are taken, the one dropped longest ago gives way; when nobody is dropped,
 * newcomers are not heard. Belongs to the loop's thread; no zmq, no clock in here. */
#ifndef SYS_LINK_PEERS_H
#define SYS_LINK_PEERS_H

#include "common/base/types.h"
#include "common/sys/link.h"

enum { LINK_ID_MAX = 32 };

enum link_peer_state {
    PEER_NOBODY,
    PEER_HERE,
    PEER_QUIET,                                   /* dropped: not heard before quiet_ns */
    PEER_BARRED,                              /* for as long as the connection lasts, or the key is revoked */
    PEER_GONE                                     /* the connection is over */
};

struct link_peer {
    enum link_peer_state state;
    uint32_t link;                                /* barred and gone: on_closed is due; 0: nothing is */
    uint8_t id[LINK_ID_MAX];
    uint32_t n_id;
    uint64_t quiet_ns, dropped_ns;
    bool revoked;                                 /* barred because of its key */
    char user[LINK_USER_MAX], address[64];
    uint64_t n_in, n_out, bytes_in, bytes_out, n_lost;
};

struct link_peers {
    struct link_peer *peer;
    uint32_t n_max, next;                         /* number of the next newcomer */
};

void link_peers_init(struct link_peers *t, uint32_t n_max, uint32_t first);
void link_peers_deinit(struct link_peers *t);

struct link_peer *link_peers_by_number(const struct link_peers *t, uint32_t link);    /* HERE only, or NULL */
struct link_peer *link_peers_by_id(const struct link_peers *t, const void *id, size_t n_id);
/* The sender of a frame, as a newcomer if need be; NULL: not to be heard. *is_new: just got its number. */
struct link_peer *link_peers_hear(struct link_peers *t, const void *id, size_t n_id, uint64_t now_ns,
                                  bool *is_new);
void link_peers_drop(struct link_peer *p, enum link_peer_state to, uint64_t now_ns);

#endif
