/* codec_pack - struct msg to bytes. The protobuf structs are built on the stack, lists in a scratch
 * area beside them that holds the largest message; then one pass measures and one writes. */
#include "common/wire/codec.h"

#include "common/base/check.h"
#include "common/wire/codec_private.h"

/* 512 rows of a RESULT with 11 columns of 4 or 8 bytes are the most: 27 KiB. */
enum { SCRATCH_BYTES = 64 * 1024 };

struct packer {
    unsigned char *at, *end;
    int rc;
    struct err *e;
};

union body {
#define BODY_MEMBER(member, Type, FIELDS) Pleiades__##Type member;
    CODEC_BODIES(BODY_MEMBER)
#undef BODY_MEMBER
};

static void *take(struct packer *k, size_t n, size_t size) {
    unsigned char *piece = k->at;
    CHECK(n * size <= (size_t)(k->end - piece));
    k->at += ALIGN_UP(n * size, (size_t)8);
    return piece;
}

static bool count_is_fine(struct packer *k, const char *what, uint64_t n, uint64_t max) {
    if (n <= max) return true;
    if (!k->rc) k->rc = err_set(k->e, ERR_INVALID, "%s: %llu, %llu at most", what, (unsigned long long)n,
                                (unsigned long long)max);
    return false;
}

static char *text_out(struct packer *k, const char *text, size_t size) {
    size_t n = strnlen(text, size - 1), clean = codec_text_clean(text, n);
    if (clean == n && text[n] == 0) return (char *)(uintptr_t)text;
    char *copy = take(k, n + 1, 1);
    memcpy(copy, text, n);
    for (copy[n] = 0; clean < n; clean += codec_text_clean(copy + clean, n - clean)) copy[clean] = '?';
    return copy;
}

/* ---- the plain members ---- */

#define PUT_V(f) p->f = s->f;
#define PUT_N(f, type, bound) p->f = (int)s->f;
#define PUT_T(f) p->f = text_out(k, s->f, sizeof s->f);

#define PUT_BODY(member, Type, FIELDS)                                                              \
    static void put_##member(struct packer *k, const struct msg *m, union body *b) {                \
        const struct msg_##member *s = &m->u.member;                                                \
        Pleiades__##Type *p = &b->member;                                                           \
        pleiades__##member##__init(p);                                                              \
        FIELDS_##FIELDS(PUT_V, PUT_N, PUT_T)                                                        \
        (void)k, (void)s;                                                                           \
    }
CODEC_BODIES(PUT_BODY)

struct pack_kind {
    Pleiades__Message__BodyCase body;
    void (*put)(struct packer *k, const struct msg *m, union body *b);
};

static const struct pack_kind kinds[MSG_KINDS] = {
#define KIND(kind, member, CASE) [MSG_##kind] = { PLEIADES__MESSAGE__BODY_##CASE, put_##member },
    CODEC_KINDS(KIND)
#undef KIND
};

/* ---- lists ---- */

#define PUT_COLUMN(f)                                                                               \
    p->f = take(k, n, sizeof *p->f);                                                                \
    p->n_##f = n;                                                                                   \
    for (size_t i = 0; i < n; i++) p->f[i] = s[i].f;

static Pleiades__File **files_out(struct packer *k, const struct msg_file *s, uint32_t n, size_t *n_out) {
    if (!count_is_fine(k, "files", n, MSG_FILES_MAX)) return NULL;
    Pleiades__File **list = take(k, n, sizeof *list);
    for (uint32_t i = 0; i < n; i++, s++) {
        Pleiades__File *p = list[i] = take(k, 1, sizeof *p);
        pleiades__file__init(p);
        FIELDS_FILE(PUT_V, PUT_N, PUT_T)
        p->layers = (ProtobufCBinaryData){ sizeof s->layers, (uint8_t *)(uintptr_t)s->layers };
    }
    *n_out = n;
    return list;
}

static char **keys_out(struct packer *k, const struct msg_key *key, uint32_t n, size_t *n_out) {
    if (!count_is_fine(k, "peers", n, MSG_NODES_MAX)) return NULL;
    char **list = take(k, n, sizeof *list);
    for (uint32_t i = 0; i < n; i++) list[i] = text_out(k, key[i].text, sizeof key[i].text);
    *n_out = n;
    return list;
}

static void put_counters(struct packer *k, const struct msg_counters *s, Pleiades__Ping *out) {
    Pleiades__Counters *p = out->counters = take(k, 1, sizeof *p);
    pleiades__counters__init(p);
    FIELDS_COUNTERS(PUT_V, PUT_N, PUT_T)
}

static Pleiades__Hop *put_hop(struct packer *k, const struct msg_hop *s) {
    if (!s->name[0] && !s->address[0] && !s->key[0]) return NULL;
    Pleiades__Hop *p = take(k, 1, sizeof *p);
    pleiades__hop__init(p);
    FIELDS_HOP(PUT_V, PUT_N, PUT_T)
    return p;
}

static void put_weights_from(struct packer *k, const struct msg_assign *a, Pleiades__Assign *out) {
    if (!count_is_fine(k, "ASSIGN: sources", a->n_source, MSG_SOURCES_MAX)) return;
    out->n_source = a->n_source;
    out->source = take(k, a->n_source, sizeof *out->source);
    for (uint32_t i = 0; i < a->n_source; i++) {
        const struct msg_source *s = &a->source[i];
        Pleiades__Source *p = out->source[i] = take(k, 1, sizeof *p);
        pleiades__source__init(p);
        FIELDS_SOURCE(PUT_V, PUT_N, PUT_T)
        p->hop = put_hop(k, &s->hop);
        p->layers = (ProtobufCBinaryData){ sizeof s->layers, (uint8_t *)(uintptr_t)s->layers };
    }
}

static void put_plan(struct packer *k, const struct msg_assign *a, Pleiades__Assign *out) {
    if (!count_is_fine(k, "ASSIGN: helpers", a->n_helper, MSG_HELPERS_MAX)) return;
    out->next = put_hop(k, &a->next);
    out->peer = keys_out(k, a->peer, a->n_peer, &out->n_peer);
    put_weights_from(k, a, out);
    out->n_helper = a->n_helper;
    out->helper = take(k, a->n_helper, sizeof *out->helper);
    for (uint32_t i = 0; i < a->n_helper; i++) {
        Pleiades__Helper *p = out->helper[i] = take(k, 1, sizeof *p);
        pleiades__helper__init(p);
        p->hop = put_hop(k, &a->helper[i].hop);
        p->expert_begin = a->helper[i].expert_begin;
        p->expert_end = a->helper[i].expert_end;
    }
}

static Pleiades__Timings *put_timings(struct packer *k, const struct msg_timing *s, uint32_t n) {
    if (n == 0 || !count_is_fine(k, "timings", n, MSG_STAGES_MAX)) return NULL;
    Pleiades__Timings *p = take(k, 1, sizeof *p);
    pleiades__timings__init(p);
    COLUMNS_TIMING(PUT_COLUMN)
    return p;
}

static Pleiades__Wants *put_wants(struct packer *k, const struct msg_want *s, uint32_t n) {
    if (n == 0 || !count_is_fine(k, "WORK: wants", n, MSG_WANTS_MAX)) return NULL;
    Pleiades__Wants *p = take(k, 1, sizeof *p);
    pleiades__wants__init(p);
    COLUMNS_WANT(PUT_COLUMN)
    p->flags = take(k, n, sizeof *p->flags);
    p->n_flags = n;
    for (uint32_t i = 0; i < n; i++)
        p->flags[i] = (s[i].logprobs ? WANT_LOGPROBS : 0u) | (s[i].adjusts ? WANT_ADJUSTS : 0u);
    return p;
}

/* Few batches copy anything: the column is there when one of its segments does. */
static void put_sources(struct packer *k, const struct msg_work *w, Pleiades__Work *out) {
    uint64_t any = 0;
    for (uint32_t i = 0; i < w->n_seg; i++) any |= w->seg[i].from;
    if (!any) return;
    out->n_seg_from = w->n_seg;
    out->seg_from = take(k, w->n_seg, sizeof *out->seg_from);
    for (uint32_t i = 0; i < w->n_seg; i++) out->seg_from[i] = w->seg[i].from;
}

static void put_segs(struct packer *k, const struct msg_work *w, Pleiades__Work *out) {
    if (!count_is_fine(k, "WORK: segments", w->n_seg, MSG_SEGS_MAX)) return;
    out->n_seg_seq = out->n_seg_pos0 = out->n_seg_n = w->n_seg;
    out->seg_seq = take(k, w->n_seg, sizeof *out->seg_seq);
    out->seg_pos0 = take(k, w->n_seg, sizeof *out->seg_pos0);
    out->seg_n = take(k, w->n_seg, sizeof *out->seg_n);
    for (uint32_t i = 0; i < w->n_seg; i++) {
        out->seg_seq[i] = w->seg[i].seq;
        out->seg_pos0[i] = w->seg[i].pos0;
        out->seg_n[i] = w->seg[i].n;
    }
    put_sources(k, w, out);
}

static void put_work_lists(struct packer *k, const struct msg_work *w, Pleiades__Work *out) {
    put_segs(k, w, out);
    if (count_is_fine(k, "WORK: rows", w->n_row, MSG_ROWS_MAX)) {
        out->n_token = w->n_row;
        out->token = (uint32_t *)(uintptr_t)w->token;
    }
    out->want = put_wants(k, w->want, w->n_want);
    out->timing = put_timings(k, w->timing, w->n_timing);
    if (!count_is_fine(k, "WORK: biases", w->n_bias, MSG_BIAS_MAX)) return;
    out->n_bias_id = out->n_bias = w->n_bias;
    out->bias_id = take(k, w->n_bias, sizeof *out->bias_id);
    out->bias = take(k, w->n_bias, sizeof *out->bias);
    for (uint32_t i = 0; i < w->n_bias; i++) {
        out->bias_id[i] = (uint32_t)w->bias[i].id;
        out->bias[i] = w->bias[i].bias;
    }
}

static void put_rows(struct packer *k, const struct msg_result *r, Pleiades__Result *p) {
    const struct msg_row_result *s = r->row;
    size_t n = r->n_row;
    if (!count_is_fine(k, "RESULT: rows", n, MSG_WANTS_MAX)) return;
    COLUMNS_RESULT(PUT_COLUMN)
    p->timing = put_timings(k, r->timing, r->n_timing);
}

static void put_alive(struct packer *k, const struct msg_sync *s, Pleiades__Sync *p) {
    if (!count_is_fine(k, "SYNC: sequences", s->n_seq, MSG_SEQS_MAX) ||
        !count_is_fine(k, "SYNC: batches", s->n_dead, MSG_BATCHES_MAX)) return;
    p->n_seq = s->n_seq;
    p->seq = (uint64_t *)(uintptr_t)s->seq;
    p->n_dead = s->n_dead;
    p->dead = (uint64_t *)(uintptr_t)s->dead;
}

static void put_link_list(struct packer *k, const struct msg_links *l, Pleiades__Links *out) {
    if (!count_is_fine(k, "LINKS", l->n_link, MSG_PEERS_MAX)) return;
    out->n_link = l->n_link;
    out->link = take(k, l->n_link, sizeof *out->link);
    for (uint32_t i = 0; i < l->n_link; i++) {
        const struct msg_link *s = &l->link[i];
        Pleiades__Link *p = out->link[i] = take(k, 1, sizeof *p);
        pleiades__link__init(p);
        FIELDS_LINK(PUT_V, PUT_N, PUT_T)
    }
}

static void put_survey_lists(struct packer *k, const struct msg_survey *v, Pleiades__Survey *out) {
    if (!count_is_fine(k, "SURVEY: hops", v->n_hop, MSG_PEERS_MAX)) return;
    out->n_hop = v->n_hop;
    out->hop = take(k, v->n_hop, sizeof *out->hop);
    for (uint32_t i = 0; i < v->n_hop; i++) {
        const struct msg_hop *s = &v->hop[i];
        Pleiades__Hop *p = out->hop[i] = take(k, 1, sizeof *p);
        pleiades__hop__init(p);
        FIELDS_HOP(PUT_V, PUT_N, PUT_T)
    }
}

static void put_lists(struct packer *k, const struct msg *m, union body *b) {
    switch (m->kind) {
    case MSG_HELLO:
        b->hello.file = files_out(k, m->u.hello.file, m->u.hello.n_file, &b->hello.n_file);
        break;
    case MSG_FILES:
        b->files.file = files_out(k, m->u.files.file, m->u.files.n_file, &b->files.n_file);
        break;
    case MSG_PEERS:
        b->peers.peer = keys_out(k, m->u.peers.peer, m->u.peers.n_peer, &b->peers.n_peer);
        break;
    case MSG_PING: put_counters(k, &m->u.ping.counters, &b->ping); break;
    case MSG_ASSIGN: put_plan(k, &m->u.assign, &b->assign); break;
    case MSG_WORK: put_work_lists(k, &m->u.work, &b->work); break;
    case MSG_RESULT: put_rows(k, &m->u.result, &b->result); break;
    case MSG_SYNC: put_alive(k, &m->u.sync, &b->sync); break;
    case MSG_LINKS: put_link_list(k, &m->u.links, &b->links); break;
    case MSG_SURVEY: put_survey_lists(k, &m->u.survey, &b->survey); break;
    default: break;
    }
}

/* ---- the message ---- */

static int write_out(const ProtobufCMessage *p, struct buf *out, struct err *e) {
    size_t n = protobuf_c_message_get_packed_size(p);
    if (n > MSG_HEADER_BYTES_MAX)
        return err_set(e, ERR_LIMIT, "%zu bytes, %d at most", n, MSG_HEADER_BYTES_MAX);
    char *room = buf_grow(out, n);
    if (!room) return err_set(e, out->rc, "a message of %zu bytes has no room", n);
    CHECK(protobuf_c_message_pack(p, (uint8_t *)room) == n);
    return 0;
}

int codec_pack(const struct msg *m, struct buf *out, struct err *e) {
    _Alignas(16) unsigned char scratch[SCRATCH_BYTES];
    struct packer k = { scratch, scratch + sizeof scratch, 0, e };
    Pleiades__Message top;
    union body body;
    bool has_body = m->kind != MSG_DRAIN && m->kind != MSG_DRAINED;
    if ((unsigned)m->kind >= MSG_KINDS || m->kind == MSG_NONE)
        return err_set(e, ERR_INVALID, "kind %d of a message is none", (int)m->kind);
    pleiades__message__init(&top);
    top.kind = (int)m->kind;
    top.epoch = m->epoch;
    top.incarnation = m->incarnation;
    top.link_seq = m->link_seq;
    top.trace = m->trace;
    if (has_body) {
        kinds[m->kind].put(&k, m, &body);
        put_lists(&k, m, &body);
        top.body_case = kinds[m->kind].body;
        top.hello = &body.hello;                   /* a union of pointers, the same for all bodies */
    }
    if (k.rc < 0) return k.rc;
    return write_out(&top.base, out, e);
}
