/* link - numbers for links, and the one timer for what may not happen inside a call of the owner: on_closed,
 * dialling again, looking who is still there. */
#include "common/sys/link.h"

#include "common/sys/link_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "common/sys/zpump.h"

#include <stdio.h>
#include <stdlib.h>

void links_due(struct links *l, uint64_t *what, uint64_t at_ns) {
    *what = MIN(*what, at_ns);
    if (at_ns < l->due_ns) loop_timer_set(l->timer, l->due_ns = at_ns);
}

static void on_timer(void *ctx) {
    struct links *l = ctx;
    uint64_t now = clock_now_ns();
    l->due_ns = LOOP_NEVER;
    if (now >= l->probe_ns) link_door_probe(l);
    if (now >= l->closed_ns) link_door_report(l);
    if (now >= l->look_ns) link_door_look(l, now);
    uint64_t next = MIN(MIN(l->probe_ns, l->closed_ns), l->look_ns);
    for (int i = 0; i < LINKS_OUT_MAX; i++) {
        struct dialled *d = &l->dialled[i];
        if (d->used && now >= d->redial_ns) link_dial_again(d);
        if (d->used) next = MIN(next, d->redial_ns);
    }
    if (next != LOOP_NEVER) links_due(l, &next, next);
}

int links_send(struct links *l, uint32_t link, const void *header, size_t header_bytes,
               struct payload payload, bool borrows) {
    struct dialled *d = link_dial_find(l, link);
    struct link_peer *p = d ? NULL : link_peers_by_number(&l->peers, link);
    int rc = ERR_PEER;
    CHECK(header_bytes <= l->config.header_bytes_max);
    if (d) rc = link_dial_send(d, header, header_bytes, payload);
    else if (p) rc = link_door_send(l, p, header, header_bytes, payload);
    if (!borrows) slots_give(l->config.slots, payload);       /* leases keep it alive */
    return rc;
}

int links_admit(struct links *l, uint32_t link, const char *name, const char *key, struct err *e) {
    struct link_peer *p = link_peers_by_number(&l->peers, link);
    if (!p) return err_set(e, ERR_PEER, "link %u is not there any more", link);
    if (!l->guarded) return 0;
    int rc = keyring_admit(l->config.keyring, p->user, name, key, e);
    if (rc == 0) snprintf(p->user, sizeof p->user, "node:%s", name);
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
    int rc = config->bind ? link_door_open(l, e) : 0;
    if (rc < 0) {
        links_close(l);
        return rc;
    }
    if (config->keyring) links_due(l, &l->look_ns, clock_now_ns());
    *out = l;
    return 0;
}

void links_close(struct links *l) {
    if (!l) return;
    for (int i = 0; i < LINKS_OUT_MAX; i++)
        if (l->dialled[i].used) link_port_close(&l->dialled[i].port, true);
    link_port_close(&l->door, true);
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
    return link_is_tcp(l->address) && colon ? (uint16_t)strtoul(colon + 1, NULL, 10) : 0;
}

bool links_view(const struct links *l, uint32_t link, struct link_view *out) {
    const struct dialled *d = link_dial_find(l, link);
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
