#include "common/wire/peer.h"

#include <stdio.h>

void peer_start(struct peer *p, uint32_t link, const char *name, uint64_t incarnation, uint64_t now_ns) {
    *p = (struct peer){ .link = link,
                        .up = true,
                        .incarnation = incarnation,
                        .heard_ns = now_ns,
                        .said_ns = now_ns,
                        .rtt_us = p->rtt_us };
    snprintf(p->name, sizeof p->name, "%s", name);
}

void peer_on_ping(struct peer *p, const struct msg_ping *ping, uint64_t now_ns) {
    p->counters = ping->counters;
    p->echo_us = ping->sent_us;
    p->echo_at_ns = now_ns;
    uint64_t away_us = ping->echo_us + ping->held_us, now_us = now_ns / 1000;
    if (ping->echo_us == 0 || now_us < away_us || now_us - away_us > UINT32_MAX) return;
    uint32_t rtt_us = MAX(1, (uint32_t)(now_us - away_us));
    p->rtt_us = p->rtt_us ? (uint32_t)(((uint64_t)p->rtt_us * 7 + rtt_us) / 8) : rtt_us;
}

void peer_fill_ping(struct peer *p, struct msg_ping *ping, uint64_t now_ns) {
    *ping = (struct msg_ping){ .sent_us = MAX(1, now_ns / 1000), .echo_us = p->echo_us };
    if (p->echo_us) ping->held_us = (now_ns - p->echo_at_ns) / 1000;
    p->said_ns = now_ns;
}

bool peer_name_is_valid(const char *name) {
    size_t n = 0;
    for (; name[n] && n < MSG_NAME_MAX; n++) {
        char c = name[n];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                    c == '.' || c == '_' || c == '-';
        if (!fine) return false;
    }
    return n > 0 && n < MSG_NAME_MAX;
}
