/* service_header - the header of the model for a coordinator that has no file of it.
 *
 *     door open: HELLO of a node with a whole file -> WEIGHTS_GET header, piece by piece -> door closed
 *
 * Runs before the service, on its caller's thread, with a loop and a door of its own; the service opens its
 * door at the same address, and the nodes dial again as after any restart of a coordinator. If the node goes
 * away in the middle, the next one is asked from the beginning. */
#include "coordinator/service.h"

#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/base/log.h"
#include "common/base/rng.h"
#include "common/sys/clock.h"
#include "common/sys/keyring.h"
#include "common/sys/link.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "common/wire/frame.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    PIECE_BYTES = 1 << 20, HEADER_MAX = 256 << 20,
    LINKS_MAX = 256, NODE_FIRST = 1 << 16,
    PING_MS = 500, PING_MISSES = 240              /* we send none: patience for the largest header */
};

struct asker {
    struct loop *loop;
    struct net *net;
    struct slots *slots;
    struct links *links;
    struct keyring *keyring;
    struct codec *codec;
    struct buf frame;
    uint64_t incarnation;
    uint32_t link, id;                            /* of the node that is asked, 0: nobody; of the questions */
    struct msg_file file;                         /* what it has */
    char node[MSG_NAME_MAX];
    struct service_header *out;
};

static void say(struct asker *a, uint32_t link, struct msg *m) {
    m->incarnation = a->incarnation;
    buf_clear(&a->frame);
    if (frame_pack(m, 0, &a->frame, NULL) == 0)
        links_send(a->links, link, a->frame.data, a->frame.size, (struct payload){ 0 }, false);
}

static void refuse(struct asker *a, uint32_t link, int code, const char *text) {
    struct msg m = { .kind = MSG_REFUSE };
    m.u.refuse.code = code;
    snprintf(m.u.refuse.text, sizeof m.u.refuse.text, "%.250s", text);
    links_complain(a->links, link, "coordinator", text);
    say(a, link, &m);
    links_drop(a->links, link);
}

/* ---- asking ---- */

static void ask(struct asker *a) {
    struct msg m = { .kind = MSG_WEIGHTS_GET };
    m.u.weights_get = (struct msg_weights_get){ .model_lo = a->file.model_lo,
                                                .model_hi = a->file.model_hi,
                                                .offset = a->out->bytes.size,
                                                .id = a->id,
                                                .tensor = MSG_WEIGHTS_HEADER,
                                                .bytes = PIECE_BYTES };
    say(a, a->link, &m);
}

static void begin(struct asker *a, uint32_t link, const struct msg_hello *h, const struct msg_file *file) {
    a->link = link;
    a->id++;
    a->file = *file;
    buf_clear(&a->out->bytes);
    snprintf(a->node, sizeof a->node, "%s", h->name);
    ask(a);
}

static void on_hello(struct asker *a, uint32_t link, const struct msg_hello *h) {
    struct msg m = { .kind = MSG_WELCOME };
    struct err e;
    int rc = h->role == MSG_ROLE_NODE ? links_admit(a->links, link, h->name, h->key, &e)
                                      : err_set(&e, ERR_STALE, "waiting for a node that has the model");
    if (rc < 0) {
        refuse(a, link, rc, e.text);
        return;
    }
    m.u.welcome = (struct msg_welcome){ .version = MSG_VERSION,
                                        .role = MSG_ROLE_COORDINATOR,
                                        .ping_ms = PING_MS,
                                        .ping_misses = PING_MISSES,
                                        .payload_bytes_max = PIECE_BYTES };
    snprintf(m.u.welcome.name, sizeof m.u.welcome.name, "coordinator");
    say(a, link, &m);
    if (link == a->link) a->link = 0;             /* it lost us: what was on its way is lost, too */
    for (uint32_t i = 0; i < h->n_file && !a->link; i++)
        if (h->file[i].is_whole) begin(a, link, h, &h->file[i]);
    if (!a->link) log_info("coordinator", "%s has no whole model", h->name);
}

static bool take_piece(struct asker *a, const struct msg_weights *w, const void *data, uint32_t bytes) {
    bool fine = w->code >= 0 && w->tensor == MSG_WEIGHTS_HEADER && w->offset == a->out->bytes.size &&
                w->total_bytes <= HEADER_MAX && hash_64(data, bytes, 0) == w->hash &&
                buf_add(&a->out->bytes, data, bytes) == 0;
    if (!fine) return false;
    a->out->file_bytes = w->file_bytes;
    if (!w->last) ask(a);
    else loop_stop(a->loop);
    return true;
}

static void on_weights(struct asker *a, uint32_t link, const struct msg_weights *w,
                       struct payload payload) {
    if (w->id != a->id) return;                    /* of an earlier try */
    if (payload.bytes && take_piece(a, w, slots_data(a->slots, payload), payload.bytes)) return;
    refuse(a, link, ERR_CORRUPT, "the header of the model arrived damaged, or cannot be had");
    a->link = 0;                                   /* it says HELLO again, and is asked again */
}

static void on_frame(void *ctx, uint32_t link, const void *header, size_t n, struct payload payload) {
    struct asker *a = ctx;
    struct frame_rules rules = { .payload_bytes_max = slots_bytes_max(a->slots) };
    struct msg m;
    struct err e = { 0 };
    int rc = frame_unpack(a->codec, header, n, payload.bytes, &rules, &m, &e);
    if (rc < 0) refuse(a, link, rc, e.text);
    else if (m.kind == MSG_HELLO) on_hello(a, link, &m.u.hello);
    else if (m.kind == MSG_WEIGHTS && link == a->link) on_weights(a, link, &m.u.weights, payload);
    slots_give(a->slots, payload);
}

static void on_closed(void *ctx, uint32_t link) {
    struct asker *a = ctx;
    if (link == a->link) a->link = 0;
}

/* ---- life ---- */

static int open_asker(struct asker *a, const struct service_config *c, struct err *e) {
    struct slots_config slots = { .n_big = 8, .big_bytes = PIECE_BYTES };
    struct links_config l = { .bind = c->bind,
                              .accepted_first = NODE_FIRST,
                              .n_accepted_max = LINKS_MAX,
                              .header_bytes_max = FRAME_HEADER_BYTES_MAX,
                              .on_frame = on_frame,
                              .on_closed = on_closed,
                              .ctx = a };
    a->codec = codec_new();
    buf_init(&a->frame, FRAME_HEADER_BYTES_MAX);
    a->incarnation = rng_at(clock_wall_ms() ^ (uint64_t)getpid() << 32, clock_now_ns()) | 1;
    int rc = loop_new(&a->loop, e);
    if (rc == 0) rc = net_new(&a->net, e);
    if (rc == 0) rc = slots_new(&a->slots, a->loop, &slots, e);
    if (rc == 0 && c->key_path) rc = keyring_open_cluster(&a->keyring, c->key_path, e);
    if (rc == 0 && a->keyring) rc = net_guard(a->net, a->loop, a->keyring, e);
    l.loop = a->loop;
    l.net = a->net;
    l.slots = a->slots;
    l.keyring = a->keyring;
    if (rc == 0) rc = links_open(&a->links, &l, e);
    return rc < 0 ? err_wrap(e, rc, "%s", c->bind) : 0;
}

static void close_asker(struct asker *a) {
    links_close(a->links);
    if (a->keyring && a->net) net_unguard(a->net);
    net_free(a->net);
    slots_free(a->slots);
    loop_free(a->loop);
    keyring_free(a->keyring);
    codec_free(a->codec);
    buf_deinit(&a->frame);
}

int service_header_fetch(struct service_header *out, const struct service_config *config, struct err *e) {
    struct asker a = { .out = out };
    *out = (struct service_header){ .file_bytes = 0 };
    buf_init(&out->bytes, HEADER_MAX);
    int rc = open_asker(&a, config, e);
    if (rc == 0) {
        snprintf(out->bind, sizeof out->bind, "%s", links_address(a.links));
        log_info("coordinator", "waiting at %s for a node that has the model", out->bind);
        loop_run(a.loop);
        log_info("coordinator", "%s has %s, and gave its header (%.1f MB)", a.node, a.file.name,
                 (double)out->bytes.size / 1e6);
        snprintf(out->name, sizeof out->name, "%s", a.file.name);
    }
    close_asker(&a);
    return rc;
}
