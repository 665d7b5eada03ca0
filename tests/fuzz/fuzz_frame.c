/* A header part from anywhere: refused with a reason, or a message that keeps every promise of codec.h
 * and comes back the same when it is sent on. */
#include "common/base/check.h"
#include "common/wire/frame.h"
#include "tests/harness/any_msg.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_work(const struct msg_work *w) {
    uint32_t rows = 0;
    CHECK(w->n_seg > 0 && w->n_seg <= MSG_SEGS_MAX && w->n_row <= MSG_ROWS_MAX && w->n_want <= MSG_WANTS_MAX);
    CHECK(w->n_bias <= MSG_BIAS_MAX && w->n_timing <= MSG_STAGES_MAX);
    for (uint32_t i = 0; i < w->n_seg; i++) rows += w->seg[i].n;
    CHECK(rows == w->n_row);
    for (uint32_t i = 0; i < w->n_row; i++) CHECK(w->token[i] >= 0);
    for (uint32_t i = 0; i < w->n_want; i++) {
        const struct msg_want *s = &w->want[i];
        CHECK(s->row < w->n_row && (i == 0 || s[-1].row < s->row) && isfinite(s->temperature));
        CHECK((uint64_t)s->bias_begin + s->n_bias <= w->n_bias);
    }
}

static void check_result(const struct msg_result *r, uint32_t payload) {
    CHECK(r->n_row <= MSG_WANTS_MAX && r->n_timing <= MSG_STAGES_MAX);
    for (uint32_t i = 0; i < r->n_row; i++)
        CHECK((uint64_t)r->row[i].offset + r->row[i].bytes <= payload && r->row[i].row < MSG_ROWS_MAX);
}

static void check_sync(const struct msg_sync *s) {
    CHECK(s->n_seq <= MSG_SEQS_MAX && s->n_dead <= MSG_BATCHES_MAX);
    for (uint32_t i = 0; i < s->n_seq; i++)
        CHECK(s->seq[i] < s->seq_next && (i == 0 || s->seq[i] > s->seq[i - 1]));
}

static void check_promises(const struct msg *m, uint32_t payload) {
    CHECK(m->kind > MSG_NONE && m->kind < MSG_KINDS && m->incarnation);
    switch (m->kind) {
    case MSG_HELLO: CHECK(m->u.hello.n_file <= MSG_FILES_MAX && m->u.hello.role < MSG_ROLES); break;
    case MSG_ASSIGN:
        CHECK(m->u.assign.n_helper <= MSG_HELPERS_MAX && m->u.assign.layer_begin < m->u.assign.layer_end);
        CHECK(m->u.assign.layer_end <= MSG_LAYERS_MAX && m->u.assign.n_rows_max <= MSG_ROWS_MAX);
        CHECK(m->u.assign.n_source <= MSG_SOURCES_MAX && m->u.assign.n_peer <= MSG_NODES_MAX);
        break;
    case MSG_WORK: check_work(&m->u.work); break;
    case MSG_RESULT: check_result(&m->u.result, payload); break;
    case MSG_SYNC: check_sync(&m->u.sync); break;
    case MSG_LINKS: CHECK(m->u.links.n_link <= MSG_PEERS_MAX); break;
    case MSG_FILES: CHECK(m->u.files.n_file <= MSG_FILES_MAX); break;
    case MSG_PEERS: CHECK(m->u.peers.n_peer <= MSG_NODES_MAX); break;
    default: break;
    }
}

/* Greetings of other versions are let through, and are written in ours. */
static void send_on(const struct msg *m, uint32_t payload, const struct frame_rules *rules) {
    static struct codec *second;
    struct buf out;
    struct msg again;
    struct err e;
    if (!second) second = codec_new();
    buf_init(&out, FRAME_HEADER_BYTES_MAX);
    CHECK(frame_pack(m, payload, &out, &e) == 0);
    CHECK(frame_unpack(second, out.data, out.size, payload, rules, &again, &e) == 0);
    CHECK(any_msg_equal(m, &again));
    buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct codec *codec;
    const struct frame_rules rules = { 0, 1 << 20 };
    struct frame_prefix prefix;
    struct msg m;
    struct err e;
    uint32_t payload = 0;
    if (!codec) codec = codec_new();
    if (size >= FRAME_PREFIX_BYTES) memcpy(&payload, data + 12, sizeof payload);
    e.text[0] = 0;
    int rc = frame_peek(data, size, payload, &rules, &prefix, &e);
    CHECK(rc == 0 || e.text[0]);
    if (rc == 0 && frame_unpack(codec, data, size, payload, &rules, &m, &e) == 0) {
        check_promises(&m, payload);
        send_on(&m, payload, &rules);
    }
    return 0;
}
