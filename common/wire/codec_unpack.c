/* codec_unpack - bytes to struct msg. protobuf-c unpacks into the codec's block, checks and copies
 * follow; lists of plain numbers stay where protobuf-c put them, records are gathered from their
 * columns behind them. */
#include "common/wire/codec.h"

#include "common/base/check.h"
#include "common/base/utf8.h"
#include "common/wire/codec_private.h"

#include <math.h>
#include <stdlib.h>

struct codec {
    ProtobufCAllocator allocator;
    size_t used;
    bool full;                                     /* something did not fit */
    _Alignas(16) unsigned char block[CODEC_BYTES];
};

static void *block_alloc(void *ctx, size_t size) {
    struct codec *c = ctx;
    size = ALIGN_UP(size, (size_t)16);
    if (size > CODEC_BYTES - c->used) {
        c->full = true;
        return NULL;
    }
    c->used += size;
    return c->block + c->used - size;
}

/* All of it goes with the next message. */
static void block_free(void *ctx, void *piece) {
    (void)ctx, (void)piece;
}

struct codec *codec_new(void) {
    struct codec *c = malloc(sizeof *c);          /* not zeroed: pages that no message needs stay untouched */
    CHECK(c);
    c->allocator = (ProtobufCAllocator){ block_alloc, block_free, c };
    c->used = 0;
    return c;
}

void codec_free(struct codec *c) {
    free(c);
}

size_t codec_text_clean(const char *text, size_t n) {
    size_t valid = utf8_valid_prefix(text, n), i = 0;
    while (i < valid && (unsigned char)text[i] >= 0x20 && text[i] != 0x7f) i++;
    return i;
}

const char *msg_kind_name(enum msg_kind kind) {
    static const char *const names[MSG_KINDS] = {
        [MSG_NONE] = "NONE", [MSG_DRAIN] = "DRAIN", [MSG_DRAINED] = "DRAINED",
#define KIND(kind, member, CASE) [MSG_##kind] = #kind,
        CODEC_KINDS(KIND)
#undef KIND
    };
    return (unsigned)kind < MSG_KINDS ? names[kind] : "?";
}

/* ---- complaints ---- */

struct unpacker {
    struct codec *c;
    enum msg_kind kind;
    int rc;                                        /* the first complaint stays */
    struct err *e;
};

static void refuse(struct unpacker *u, int code, const char *what, const char *why) {
    if (u->rc == 0) u->rc = err_set(u->e, code, "%s: %s %s", msg_kind_name(u->kind), what, why);
}

static void demand(struct unpacker *u, bool fine, const char *what, const char *why) {
    if (!fine) refuse(u, ERR_CORRUPT, what, why);
}

static bool count_is_fine(struct unpacker *u, const char *what, size_t n, size_t max) {
    if (n > max) refuse(u, ERR_LIMIT, what, "are too many");
    return u->rc == 0;
}

/* ---- the plain members ---- */

static void text_in(struct unpacker *u, const char *from, char *to, size_t size, const char *what) {
    size_t n = strlen(from);
    if (n >= size) refuse(u, ERR_LIMIT, what, "is too long");
    else if (codec_text_clean(from, n) != n) refuse(u, ERR_CORRUPT, what, "is no clean text");
    else memcpy(to, from, n);
}

#define GET_V(f) s->f = p->f;
#define GET_N(f, type, bound)                                                                       \
    demand(u, (unsigned)p->f < (unsigned)(bound), #f, "has no such value");                        \
    s->f = (type)p->f;
#define GET_T(f) text_in(u, p->f, s->f, sizeof s->f, #f);

#define GET_BODY(member, Type, FIELDS)                                                              \
    static void get_##member(struct unpacker *u, const Pleiades__Message *top, struct msg *m) {     \
        const Pleiades__##Type *p = top->member;                                                    \
        struct msg_##member *s = &m->u.member;                                                      \
        FIELDS_##FIELDS(GET_V, GET_N, GET_T)                                                        \
        (void)u, (void)p, (void)s;                                                                  \
    }
CODEC_BODIES(GET_BODY)

struct unpack_kind {
    Pleiades__Message__BodyCase body;
    void (*get)(struct unpacker *u, const Pleiades__Message *top, struct msg *m);
};

static const struct unpack_kind kinds[MSG_KINDS] = {
    [MSG_DRAIN] = { PLEIADES__MESSAGE__BODY__NOT_SET, NULL },
    [MSG_DRAINED] = { PLEIADES__MESSAGE__BODY__NOT_SET, NULL },
#define KIND(kind, member, CASE) [MSG_##kind] = { PLEIADES__MESSAGE__BODY_##CASE, get_##member },
    CODEC_KINDS(KIND)
#undef KIND
};

/* ---- lists ---- */

/* Memory behind what protobuf-c took; NULL, with the complaint made, when there is none. */
static void *take(struct unpacker *u, size_t n, size_t size) {
    void *piece = u->rc < 0 ? NULL : block_alloc(u->c, n * size);
    if (piece) memset(piece, 0, n * size);         /* holes between members, too: records may be compared */
    if (!piece && u->rc == 0) u->rc = err_set(u->e, ERR_LIMIT, "%s is too large", msg_kind_name(u->kind));
    return piece;
}

static bool ascends(const uint64_t *v, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (v[i] <= v[i - 1]) return false;
    return true;
}

#define SAME_LENGTH(f) demand(u, p->n_##f == n, #f, "has another length than the other columns");
#define GET_COLUMN(f)                                                                               \
    for (size_t i = 0; i < n; i++) s[i].f = p->f[i];

static void key_check(struct unpacker *u, const char *key) {
    size_t n = strlen(key);
    demand(u, n == 0 || n == MSG_KEY_MAX - 1, "key", "is not 40 characters long");
}

static const struct msg_file *files_in(struct unpacker *u, Pleiades__File *const *from, size_t n,
                                        uint32_t *n_out) {
    if (!count_is_fine(u, "files", n, MSG_FILES_MAX)) return NULL;
    struct msg_file *file = take(u, n, sizeof *file);
    for (size_t i = 0; i < n && u->rc == 0; i++) {
        const Pleiades__File *p = from[i];
        struct msg_file *s = &file[i];
        FIELDS_FILE(GET_V, GET_N, GET_T)
        demand(u, p->layers.len == sizeof s->layers, "layers of a file", "have another length");
        if (u->rc == 0) memcpy(s->layers, p->layers.data, sizeof s->layers);
    }
    *n_out = (uint32_t)n;
    return file;
}

static void get_hello_lists(struct unpacker *u, const Pleiades__Hello *from, struct msg_hello *h) {
    key_check(u, h->key);
    demand(u, h->version_min <= h->version_max, "versions", "are no range");
    demand(u, h->held_begin <= h->held_end && h->held_end <= MSG_LAYERS_MAX, "held layers", "are no range");
    h->file = files_in(u, from->file, from->n_file, &h->n_file);
}

static void get_counters(const Pleiades__Counters *p, struct msg_counters *s) {
    if (!p) return;
    FIELDS_COUNTERS(GET_V, GET_N, GET_T)
}

static void get_hop(struct unpacker *u, const Pleiades__Hop *p, struct msg_hop *s) {
    if (!p) return;
    FIELDS_HOP(GET_V, GET_N, GET_T)
    key_check(u, s->key);
}

static void get_helpers(struct unpacker *u, const Pleiades__Assign *from, struct msg_assign *a) {
    if (!count_is_fine(u, "helpers", from->n_helper, MSG_HELPERS_MAX)) return;
    struct msg_helper *s = take(u, from->n_helper, sizeof *s);
    uint32_t end = 0;
    for (size_t i = 0; i < from->n_helper && u->rc == 0; i++) {
        const Pleiades__Helper *p = from->helper[i];
        get_hop(u, p->hop, &s[i].hop);
        demand(u, p->expert_begin >= end && p->expert_begin < p->expert_end, "experts of a helper",
               "are no range of their own");
        s[i].expert_begin = p->expert_begin;
        s[i].expert_end = end = p->expert_end;
    }
    a->helper = s;
    a->n_helper = (uint32_t)from->n_helper;
}

static const struct msg_key *keys_in(struct unpacker *u, char *const *from, size_t n, uint32_t *n_out) {
    if (!count_is_fine(u, "peers", n, MSG_NODES_MAX)) return NULL;
    struct msg_key *s = take(u, n, sizeof *s);
    for (size_t i = 0; i < n && u->rc == 0; i++) {
        text_in(u, from[i], s[i].text, sizeof s[i].text, "key of a peer");
        key_check(u, s[i].text);
    }
    *n_out = (uint32_t)n;
    return s;
}

static void get_weights_from(struct unpacker *u, const Pleiades__Assign *from, struct msg_assign *a) {
    if (!count_is_fine(u, "sources", from->n_source, MSG_SOURCES_MAX)) return;
    struct msg_source *source = take(u, from->n_source, sizeof *source);
    for (size_t i = 0; i < from->n_source && u->rc == 0; i++) {
        const Pleiades__Source *p = from->source[i];
        struct msg_source *s = &source[i];
        FIELDS_SOURCE(GET_V, GET_N, GET_T)
        get_hop(u, p->hop, &s->hop);
        demand(u, p->layers.len == sizeof s->layers, "layers of a source", "have another length");
        if (u->rc == 0) memcpy(s->layers, p->layers.data, sizeof s->layers);
    }
    a->source = source;
    a->n_source = (uint32_t)from->n_source;
}

static void get_plan(struct unpacker *u, const Pleiades__Assign *p, struct msg_assign *a) {
    get_hop(u, p->next, &a->next);
    demand(u, a->n_stage <= MSG_STAGES_MAX && a->stage_i < a->n_stage, "stage_i", "is not below n_stage");
    demand(u, a->layer_begin < a->layer_end && a->layer_end <= MSG_LAYERS_MAX, "layers", "are no range");
    demand(u, a->expert_begin <= a->expert_end, "experts", "are no range");
    demand(u, a->n_slot > 0 && a->n_slot <= MSG_SEQS_MAX, "n_slot", "is out of range");
    demand(u, a->n_rows_max > 0 && a->n_rows_max <= MSG_ROWS_MAX, "n_rows_max", "is out of range");
    demand(u, a->n_ctx_max > 0, "n_ctx_max", "is 0");
    demand(u, a->n_credit <= MSG_BATCHES_MAX && a->n_window <= MSG_BATCHES_MAX, "window", "is too large");
    get_helpers(u, p, a);
    a->peer = keys_in(u, p->peer, p->n_peer, &a->n_peer);
    get_weights_from(u, p, a);
}

static const struct msg_timing *get_timings(struct unpacker *u, const Pleiades__Timings *p, uint32_t *n_out) {
    size_t n = p ? p->n_stage_i : 0;
    if (n == 0 || !count_is_fine(u, "timings", n, MSG_STAGES_MAX)) return NULL;
    COLUMNS_TIMING(SAME_LENGTH)
    struct msg_timing *s = take(u, n, sizeof *s);
    if (!s) return NULL;
    COLUMNS_TIMING(GET_COLUMN)
    for (size_t i = 0; i < n; i++)
        demand(u, s[i].stage_i < MSG_STAGES_MAX, "stage of a timing", "is out of range");
    *n_out = (uint32_t)n;
    return s;
}

static void check_wants(struct unpacker *u, const struct msg_work *w) {
    for (uint32_t i = 0; i < w->n_want && u->rc == 0; i++) {
        const struct msg_want *s = &w->want[i];
        demand(u, s->row < w->n_row && (i == 0 || s->row > s[-1].row), "rows that are wanted",
               "do not ascend");
        demand(u, isfinite(s->temperature) && isfinite(s->top_p) && isfinite(s->min_p), "a want",
               "has a number that is none");
        demand(u, s->bias_begin <= w->n_bias && s->n_bias <= w->n_bias - s->bias_begin, "biases of a want",
               "are not in the list");
        for (uint32_t b = 1; b < s->n_bias && u->rc == 0; b++)
            demand(u, w->bias[s->bias_begin + b].id > w->bias[s->bias_begin + b - 1].id, "biases of a want",
                   "do not ascend");
    }
}

static void get_wants(struct unpacker *u, const Pleiades__Wants *p, struct msg_work *w) {
    size_t n = p ? p->n_row : 0;
    if (n == 0 || !count_is_fine(u, "wants", n, MSG_WANTS_MAX)) return;
    COLUMNS_WANT(SAME_LENGTH)
    SAME_LENGTH(flags)
    struct msg_want *s = take(u, n, sizeof *s);
    if (!s) return;
    COLUMNS_WANT(GET_COLUMN)
    for (size_t i = 0; i < n; i++) {
        s[i].logprobs = (p->flags[i] & WANT_LOGPROBS) != 0;
        s[i].adjusts = (p->flags[i] & WANT_ADJUSTS) != 0;
    }
    w->want = s;
    w->n_want = (uint32_t)n;
}

static void get_biases(struct unpacker *u, const Pleiades__Work *p, struct msg_work *w) {
    size_t n = p->n_bias_id;
    if (n == 0 || !count_is_fine(u, "biases", n, MSG_BIAS_MAX)) return;
    SAME_LENGTH(bias)
    struct msg_bias *s = take(u, n, sizeof *s);
    for (size_t i = 0; i < n && u->rc == 0; i++) {
        demand(u, p->bias_id[i] <= INT32_MAX && isfinite(p->bias[i]), "a bias", "is no number");
        s[i] = (struct msg_bias){ (int32_t)p->bias_id[i], p->bias[i] };
    }
    w->bias = s;
    w->n_bias = (uint32_t)n;
}

static void get_segs(struct unpacker *u, const Pleiades__Work *p, struct msg_work *w) {
    size_t n = p->n_seg_seq, sum = 0;
    demand(u, n > 0, "list of segments", "is empty");
    bool same = p->n_seg_pos0 == n && p->n_seg_n == n && (p->n_seg_from == n || p->n_seg_from == 0);
    demand(u, same, "segments", "have columns of other lengths");
    if (!count_is_fine(u, "segments", n, MSG_SEGS_MAX)) return;
    if (!count_is_fine(u, "rows", p->n_token, MSG_ROWS_MAX)) return;
    struct msg_seg *s = take(u, n, sizeof *s);
    for (size_t i = 0; i < n && u->rc == 0; i++) {
        uint64_t from = p->n_seg_from ? p->seg_from[i] : 0;
        s[i] = (struct msg_seg){ p->seg_seq[i], p->seg_pos0[i], p->seg_n[i], from };
        demand(u, s[i].n > 0 && s[i].n <= MSG_ROWS_MAX && s[i].pos0 <= UINT32_MAX - s[i].n, "a segment",
               "is empty or too long");
        sum += s[i].n;
    }
    demand(u, sum == p->n_token, "number of tokens", "is not the sum of the segments");
    for (size_t i = 0; i < p->n_token && u->rc == 0; i++)
        demand(u, p->token[i] <= INT32_MAX, "a token", "is negative");
    w->seg = s;
    w->n_seg = (uint32_t)n;
    w->token = (const int32_t *)p->token;
    w->n_row = (uint32_t)p->n_token;
}

static void get_work_lists(struct unpacker *u, const Pleiades__Work *p, struct msg_work *w) {
    get_segs(u, p, w);
    get_biases(u, p, w);
    get_wants(u, p->want, w);
    if (u->rc == 0) check_wants(u, w);
    w->timing = get_timings(u, p->timing, &w->n_timing);
}

static void get_rows(struct unpacker *u, const Pleiades__Result *p, struct msg_result *r) {
    size_t n = p->n_row;
    r->timing = get_timings(u, p->timing, &r->n_timing);
    if (!count_is_fine(u, "rows", n, MSG_WANTS_MAX)) return;
    COLUMNS_RESULT(SAME_LENGTH)
    struct msg_row_result *s = take(u, n, sizeof *s);
    if (!s) return;
    COLUMNS_RESULT(GET_COLUMN)
    for (size_t i = 0; i < n && u->rc == 0; i++) {
        demand(u, s[i].row < MSG_ROWS_MAX && (i == 0 || s[i].row > s[i - 1].row), "rows", "do not ascend");
        demand(u, isfinite(s[i].left_logit) && isfinite(s[i].temperature) && isfinite(s[i].sum), "a row",
               "has a number that is none");
    }
    r->row = s;
    r->n_row = (uint32_t)n;
}

static void get_alive(struct unpacker *u, const Pleiades__Sync *p, struct msg_sync *s) {
    if (!count_is_fine(u, "sequences", p->n_seq, MSG_SEQS_MAX)) return;
    if (!count_is_fine(u, "batches", p->n_dead, MSG_BATCHES_MAX)) return;
    demand(u, ascends(p->seq, p->n_seq), "sequences", "do not ascend");
    demand(u, ascends(p->dead, p->n_dead), "batches", "do not ascend");
    demand(u, !p->n_seq || p->seq[p->n_seq - 1] < s->seq_next, "a sequence", "is not below seq_next");
    s->seq = p->seq;
    s->n_seq = (uint32_t)p->n_seq;
    s->dead = p->dead;
    s->n_dead = (uint32_t)p->n_dead;
}

static void get_link_list(struct unpacker *u, const Pleiades__Links *from, struct msg_links *l) {
    if (!count_is_fine(u, "links", from->n_link, MSG_PEERS_MAX)) return;
    struct msg_link *link = take(u, from->n_link, sizeof *link);
    for (size_t i = 0; i < from->n_link && u->rc == 0; i++) {
        const Pleiades__Link *p = from->link[i];
        struct msg_link *s = &link[i];
        FIELDS_LINK(GET_V, GET_N, GET_T)
    }
    l->link = link;
    l->n_link = (uint32_t)from->n_link;
}

static void get_survey_lists(struct unpacker *u, const Pleiades__Survey *from, struct msg_survey *v) {
    if (!count_is_fine(u, "hops", from->n_hop, MSG_PEERS_MAX)) return;
    struct msg_hop *s = take(u, from->n_hop, sizeof *s);
    for (size_t i = 0; i < from->n_hop && u->rc == 0; i++) get_hop(u, from->hop[i], &s[i]);
    v->hop = s;
    v->n_hop = (uint32_t)from->n_hop;
}

/* ---- checks of bodies without lists ---- */

static void check_experts(struct unpacker *u, const struct msg *m) {
    bool asks = m->kind == MSG_EXPERTS;
    uint32_t n_row = asks ? m->u.experts.n_row : m->u.experts_done.n_row;
    uint32_t layer = asks ? m->u.experts.layer : m->u.experts_done.layer;
    demand(u, n_row > 0 && n_row <= MSG_ROWS_MAX, "n_row", "is out of range");
    demand(u, layer < MSG_LAYERS_MAX, "layer", "is out of range");
    demand(u, !asks || (m->u.experts.n_used > 0 && m->u.experts.n_used <= MSG_USED_MAX), "n_used",
           "is out of range");
}

static void check_weights_get(struct unpacker *u, const struct msg_weights_get *g) {
    demand(u, g->bytes > 0 && g->bytes <= MSG_PIECE_BYTES_MAX, "bytes", "are out of range");
    demand(u, g->offset <= UINT64_MAX - g->bytes, "offset", "is too large");
}

static void get_lists(struct unpacker *u, const Pleiades__Message *top, struct msg *m) {
    switch (m->kind) {
    case MSG_HELLO: get_hello_lists(u, top->hello, &m->u.hello); break;
    case MSG_FILES:
        m->u.files.file = files_in(u, top->files->file, top->files->n_file, &m->u.files.n_file);
        break;
    case MSG_PEERS:
        m->u.peers.peer = keys_in(u, top->peers->peer, top->peers->n_peer, &m->u.peers.n_peer);
        break;
    case MSG_PING: get_counters(top->ping->counters, &m->u.ping.counters); break;
    case MSG_ASSIGN: get_plan(u, top->assign, &m->u.assign); break;
    case MSG_WORK: get_work_lists(u, top->work, &m->u.work); break;
    case MSG_WORK_REFUSED:
        demand(u, m->u.work_refused.stage_i < MSG_STAGES_MAX, "stage_i", "is out of range");
        break;
    case MSG_RESULT: get_rows(u, top->result, &m->u.result); break;
    case MSG_SYNC: get_alive(u, top->sync, &m->u.sync); break;
    case MSG_EXPERTS:
    case MSG_EXPERTS_DONE: check_experts(u, m); break;
    case MSG_WEIGHTS_GET: check_weights_get(u, &m->u.weights_get); break;
    case MSG_WEIGHTS:
        demand(u, m->u.weights.offset <= m->u.weights.total_bytes, "offset", "is behind the end");
        break;
    case MSG_LINKS: get_link_list(u, top->links, &m->u.links); break;
    case MSG_SURVEY: get_survey_lists(u, top->survey, &m->u.survey); break;
    default: break;
    }
}

/* ---- the message ---- */

static int take_over(struct unpacker *u, const Pleiades__Message *top, struct msg *m) {
    u->kind = (enum msg_kind)top->kind;
    if (top->kind <= 0 || (unsigned)top->kind >= MSG_KINDS)
        return err_set(u->e, ERR_CORRUPT, "a message of unknown kind %d", (int)top->kind);
    const struct unpack_kind *kind = &kinds[u->kind];
    demand(u, top->body_case == kind->body, "body", "is of another kind");
    demand(u, top->incarnation != 0, "incarnation", "is 0");
    if (u->rc < 0) return u->rc;
    m->kind = u->kind;
    m->epoch = top->epoch;
    m->incarnation = top->incarnation;
    m->link_seq = top->link_seq;
    m->trace = top->trace;
    if (kind->get) kind->get(u, top, m);
    if (u->rc == 0) get_lists(u, top, m);
    return u->rc;
}

int codec_unpack(struct codec *c, const void *data, size_t n, struct msg *out, struct err *e) {
    struct unpacker u = { .c = c, .e = e };
    memset(out, 0, sizeof *out);
    if (n > MSG_HEADER_BYTES_MAX)
        return err_set(e, ERR_LIMIT, "a message of %zu bytes, %d at most", n, MSG_HEADER_BYTES_MAX);
    c->used = 0;
    c->full = false;
    const Pleiades__Message *top = pleiades__message__unpack(&c->allocator, n, data);
    if (!top && c->full)
        return err_set(e, ERR_LIMIT, "a message needs more than %d bytes unpacked", CODEC_BYTES);
    if (!top) return err_set(e, ERR_CORRUPT, "not a packed message");
    return take_over(&u, top, out);
}
