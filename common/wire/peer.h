/* peer - the other end of a link as a core sees it: who it is, when it was last heard, how far away it is.
 *
 * Both cores keep an array of these, keyed by the shell's link number. Heartbeats carry the sender's
 * clock and echo the other side's, so the round trip is measured without a common clock. Slow is not
 * dead: only silence of PING counts. Pure; the owner is the core. */
#ifndef WIRE_PEER_H
#define WIRE_PEER_H

#include "common/wire/msg.h"

struct peer {
    uint32_t link;                                /* the shell's number; 0: nobody */
    bool up;                                      /* both ends know each other */
    uint64_t incarnation, epoch;                  /* from its last message */
    uint64_t heard_ns, said_ns;                   /* last message from it; last HELLO or PING to it */
    uint64_t echo_us, echo_at_ns;                 /* of its last PING */
    uint32_t rtt_us;                              /* smoothed; 0: not measured */
    struct msg_counters counters;
    char name[MSG_NAME_MAX];
};

struct peer_pace { uint64_t ping_ns; uint32_t misses; };

void peer_start(struct peer *p, uint32_t link, const char *name, uint64_t incarnation, uint64_t now_ns);
void peer_on_ping(struct peer *p, const struct msg_ping *ping, uint64_t now_ns);
void peer_fill_ping(struct peer *p, struct msg_ping *ping, uint64_t now_ns);

static inline bool peer_is_silent(const struct peer *p, const struct peer_pace *pace, uint64_t now_ns) {
    return now_ns >= p->heard_ns + pace->ping_ns * pace->misses;
}

static inline bool peer_ping_is_due(const struct peer *p, const struct peer_pace *pace, uint64_t now_ns) {
    return p->said_ns == 0 || now_ns >= p->said_ns + pace->ping_ns;
}

/* When to look at it again. */
static inline uint64_t peer_deadline_ns(const struct peer *p, const struct peer_pace *pace) {
    uint64_t ping = p->said_ns + pace->ping_ns, silent = p->heard_ns + pace->ping_ns * pace->misses;
    return p->up ? MIN(ping, silent) : ping;
}

/* Whether text from outside is a usable name: 1 to MSG_NAME_MAX - 1 of letters, digits, '.', '_' and '-'. */
bool peer_name_is_valid(const char *name);

#endif
