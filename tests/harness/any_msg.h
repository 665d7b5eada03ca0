/* any_msg - random valid messages of every kind, with every member set, and their comparison.
 *
 * Members are listed by hand, not from the codec's own lists, here as in msg_lists.h: one that the codec
 * forgets has to show.
 * Holes between members are 0, so that memcmp compares. Everything lies in the arena of the struct and
 * dies with it. */
#ifndef HARNESS_ANY_MSG_H
#define HARNESS_ANY_MSG_H

#include <stdio.h>
#include <stdlib.h>

#include "common/base/arena.h"
#include "common/base/rng.h"
#include "common/wire/msg.h"
#include "tests/harness/msg_lists.h"

struct any_msg {
    struct rng rng;
    struct arena arena;
    uint32_t most;                                 /* entries of a list, within its own limit */
};

static inline void any_msg_init(struct any_msg *a, uint64_t seed, uint32_t most) {
    rng_init(&a->rng, seed, 0);
    arena_init(&a->arena, 64 << 20);
    a->most = most;
}

static inline void any_msg_deinit(struct any_msg *a) {
    arena_deinit(&a->arena);
}

static inline uint64_t any_between(struct any_msg *a, uint64_t lo, uint64_t hi) {
    return lo + rng_below(&a->rng, hi - lo + 1);
}
/* Small, large, or the largest. */
static inline uint64_t any_u64(struct any_msg *a) {
    uint64_t v = rng_u64(&a->rng) >> any_between(a, 0, 63);
    return any_between(a, 0, 20) ? v : UINT64_MAX;
}
static inline uint32_t any_u32(struct any_msg *a) {
    return (uint32_t)(any_u64(a) >> 32 ? any_u64(a) >> 32 : any_u64(a));
}
static inline int32_t any_code(struct any_msg *a) {
    return -(int32_t)any_between(a, 0, 15);
}
static inline bool any_bool(struct any_msg *a) {
    return any_between(a, 0, 1) == 1;
}
static inline float any_float(struct any_msg *a) {
    return (float)((double)any_between(a, 0, 1 << 20) / 1024 - 300);
}
static inline uint32_t any_count(struct any_msg *a, uint32_t least, uint32_t limit) {
    uint32_t most = a->most < limit ? a->most : limit;
    return (uint32_t)any_between(a, least, most > least ? most : least);
}
static inline void any_text(struct any_msg *a, char *to, size_t size) {
    static const char *const letters[] = {
        "a", "B", "7", "-", " ", "~", "\xc3\xa4", "\xe2\x86\x92", "\xf0\x9f\x90\xad"
    };
    size_t most = any_between(a, 0, size - 1), n = 0;
    for (;;) {
        const char *l = letters[any_between(a, 0, 8)];
        if (n + strlen(l) > most) break;
        memcpy(to + n, l, strlen(l));
        n += strlen(l);
    }
}
static inline void any_key(struct any_msg *a, char key[MSG_KEY_MAX]) {
    int n = any_bool(a) ? MSG_KEY_MAX - 1 : 0;
    for (int i = 0; i < n; i++) key[i] = (char)any_between(a, '!', '~');
}
static inline void *any_list(struct any_msg *a, size_t n, size_t size) {
    void *list = arena_array(&a->arena, n ? n : 1, size);
    if (!list) abort();
    return list;
}
#define ANY_LIST(a, pointer, n) ((pointer) = any_list(a, n, sizeof *(pointer)))

static inline void any_hop(struct any_msg *a, struct msg_hop *h) {
    any_text(a, h->name, sizeof h->name);
    any_text(a, h->address, sizeof h->address);
    any_key(a, h->key);
}

static inline const struct msg_file *any_files(struct any_msg *a, uint32_t *n) {
    struct msg_file *f;
    *n = any_count(a, 0, MSG_FILES_MAX);
    ANY_LIST(a, f, *n);
    for (uint32_t i = 0; i < *n; i++) {
        f[i].model_lo = any_u64(a);
        f[i].model_hi = any_u64(a);
        f[i].bytes = any_u64(a);
        for (size_t l = 0; l < sizeof f[i].layers; l++) f[i].layers[l] = (uint8_t)any_between(a, 0, 255);
        f[i].has_embed = any_bool(a);
        f[i].has_head = any_bool(a);
        f[i].is_whole = any_bool(a);
        f[i].has_rest = any_bool(a);
        any_text(a, f[i].name, sizeof f[i].name);
    }
    return f;
}

static inline const struct msg_key *any_keys(struct any_msg *a, uint32_t *n) {
    struct msg_key *k;
    *n = any_count(a, 0, MSG_NODES_MAX);
    ANY_LIST(a, k, *n);
    for (uint32_t i = 0; i < *n; i++) any_key(a, k[i].text);
    return k;
}

static inline void any_hello(struct any_msg *a, struct msg_hello *h) {
    h->magic = MSG_MAGIC;
    h->version_min = any_u32(a) >> 1;
    h->version_max = h->version_min + (uint32_t)any_between(a, 0, 9);
    h->role = (enum msg_role)any_between(a, 0, MSG_ROLES - 1);
    any_text(a, h->build, sizeof h->build);
    any_text(a, h->name, sizeof h->name);
    any_text(a, h->address, sizeof h->address);
    any_key(a, h->key);
    h->backend = (enum msg_backend)any_between(a, 0, MSG_BACKENDS - 1);
    any_text(a, h->device, sizeof h->device);
    h->n_threads = any_u32(a);
    h->memory_bytes = any_u64(a);
    h->read_bytes_per_s = any_u64(a);
    h->f32_per_s = any_u64(a);
    h->int8_per_s = any_u64(a);
    h->fetches = any_bool(a);
    h->gives = any_bool(a);
    h->held_model_lo = any_u64(a);
    h->held_model_hi = any_u64(a);
    h->held_begin = (uint32_t)any_between(a, 0, MSG_LAYERS_MAX);
    h->held_end = (uint32_t)any_between(a, h->held_begin, MSG_LAYERS_MAX);
    h->file = any_files(a, &h->n_file);
}

static inline void any_assign(struct any_msg *a, struct msg_assign *p) {
    p->model_lo = any_u64(a);
    p->model_hi = any_u64(a);
    any_text(a, p->model, sizeof p->model);
    p->n_stage = (uint32_t)any_between(a, 1, MSG_STAGES_MAX);
    p->stage_i = (uint32_t)any_between(a, 0, p->n_stage - 1);
    p->layer_end = (uint32_t)any_between(a, 1, MSG_LAYERS_MAX);
    p->layer_begin = (uint32_t)any_between(a, 0, p->layer_end - 1);
    p->has_embed = any_bool(a);
    p->has_head = any_bool(a);
    p->is_helper = any_bool(a);
    any_hop(a, &p->next);
    p->numerics = any_u32(a);
    p->precision = any_u32(a);
    p->wire = (enum msg_wire_format)any_between(a, 0, MSG_WIRE_FORMATS - 1);
    p->n_slot = (uint32_t)any_between(a, 1, MSG_SEQS_MAX);
    p->n_ctx_max = (uint32_t)any_between(a, 1, UINT32_MAX);
    p->n_rows_max = (uint32_t)any_between(a, 1, MSG_ROWS_MAX);
    p->n_credit = (uint32_t)any_between(a, 0, MSG_BATCHES_MAX);
    p->n_window = (uint32_t)any_between(a, 0, MSG_BATCHES_MAX);
    p->expert_begin = any_u32(a) >> 1;
    p->expert_end = p->expert_begin + (uint32_t)any_between(a, 0, 300);
    p->n_helper = any_count(a, 0, MSG_HELPERS_MAX);
    struct msg_helper *h;
    p->helper = ANY_LIST(a, h, p->n_helper);
    uint32_t at = 0;
    for (uint32_t i = 0; i < p->n_helper; i++) {
        any_hop(a, &h[i].hop);
        h[i].expert_begin = at += (uint32_t)any_between(a, 0, 3);
        h[i].expert_end = at += (uint32_t)any_between(a, 1, 64);
    }
    p->peer = any_keys(a, &p->n_peer);
    p->n_source = any_count(a, 0, MSG_SOURCES_MAX);
    struct msg_source *s;
    p->source = ANY_LIST(a, s, p->n_source);
    for (uint32_t i = 0; i < p->n_source; i++) {
        any_hop(a, &s[i].hop);
        for (size_t l = 0; l < sizeof s[i].layers; l++) s[i].layers[l] = (uint8_t)any_between(a, 0, 255);
        s[i].has_embed = any_bool(a);
        s[i].has_head = any_bool(a);
        s[i].has_rest = any_bool(a);
        s[i].has_header = any_bool(a);
    }
}

static inline const struct msg_timing *any_timings(struct any_msg *a, uint32_t *n) {
    *n = any_count(a, 0, MSG_STAGES_MAX);
    struct msg_timing *t;
    ANY_LIST(a, t, *n);
    for (uint32_t i = 0; i < *n; i++)
        t[i] = (struct msg_timing){ (uint32_t)any_between(a, 0, MSG_STAGES_MAX - 1), any_u32(a), any_u32(a),
                                    any_u32(a), any_u32(a) };
    return t;
}

static inline void any_wants(struct any_msg *a, struct msg_work *w) {
    struct msg_bias *b;
    w->n_bias = any_count(a, 0, MSG_BIAS_MAX);
    w->bias = ANY_LIST(a, b, w->n_bias);
    for (uint32_t i = 0; i < w->n_bias; i++)
        b[i] = (struct msg_bias){ (int32_t)(i * 3 + any_between(a, 0, 2)), any_float(a) };
    struct msg_want *s;
    uint32_t limit = w->n_row < MSG_WANTS_MAX ? w->n_row : MSG_WANTS_MAX;
    w->n_want = any_count(a, 0, limit);
    w->want = ANY_LIST(a, s, w->n_want);
    uint32_t room = w->n_row - w->n_want, row = 0;
    for (uint32_t i = 0; i < w->n_want; i++, row++) {
        uint32_t skip = (uint32_t)any_between(a, 0, room);
        room -= skip;
        s[i].row = row += skip;
        s[i].temperature = any_float(a);
        s[i].top_p = any_float(a);
        s[i].min_p = any_float(a);
        s[i].top_k = (int32_t)any_u32(a);
        s[i].n_top = any_u32(a);
        s[i].logprobs = any_bool(a);
        s[i].adjusts = any_bool(a);
        s[i].n_item_max = any_u32(a);
        s[i].bias_begin = (uint32_t)any_between(a, 0, w->n_bias);
        s[i].n_bias = (uint32_t)any_between(a, 0, w->n_bias - s[i].bias_begin);
    }
}

static inline void any_work(struct any_msg *a, struct msg_work *w) {
    w->batch = any_u64(a);
    w->batch_done = any_u64(a);
    w->n_seg = any_count(a, 1, MSG_SEGS_MAX);
    struct msg_seg *s;
    w->seg = ANY_LIST(a, s, w->n_seg);
    for (uint32_t i = 0; i < w->n_seg; i++) {
        s[i] = (struct msg_seg){ any_u64(a), any_u32(a) / 2,
                                 (uint32_t)any_between(a, 1, MSG_ROWS_MAX / w->n_seg),
                                 any_between(a, 0, 2) ? 0 : any_u64(a) };
        if (any_bool(a)) s[i].n = 1;
        w->n_row += s[i].n;
    }
    int32_t *t;
    w->token = ANY_LIST(a, t, w->n_row);
    for (uint32_t i = 0; i < w->n_row; i++) t[i] = (int32_t)(any_u32(a) >> 1);
    any_wants(a, w);
    w->timing = any_timings(a, &w->n_timing);
}

static inline void any_result(struct any_msg *a, struct msg_result *r) {
    r->batch = any_u64(a);
    r->n_row = any_count(a, 0, MSG_WANTS_MAX);
    struct msg_row_result *s;
    r->row = ANY_LIST(a, s, r->n_row);
    uint32_t row = 0;
    for (uint32_t i = 0; i < r->n_row; i++) {
        s[i].row = row += (uint32_t)any_between(a, i > 0, 7);
        s[i].whole = any_bool(a);
        s[i].offset = any_u32(a);
        s[i].bytes = any_u32(a);
        s[i].n_item = any_u32(a);
        s[i].n_vocab = any_u32(a);
        s[i].left_id = (int32_t)any_u32(a);
        s[i].left_logit = any_float(a);
        s[i].temperature = any_float(a);
        s[i].sum = any_float(a);
        s[i].lse = any_bool(a) ? (double)any_float(a) : (double)f32_from_bits(0x7fc00000);
    }
    r->timing = any_timings(a, &r->n_timing);
}

static inline const uint64_t *any_ascending(struct any_msg *a, uint64_t from, uint32_t n, uint64_t *end) {
    uint64_t *v;
    ANY_LIST(a, v, n);
    for (uint32_t i = 0; i < n; i++, from++) v[i] = from += any_between(a, 0, 1 << any_between(a, 0, 20));
    *end = from;
    return v;
}

static inline void any_sync(struct any_msg *a, struct msg_sync *s) {
    uint64_t end;
    s->batch_done = any_u64(a) >> 1;
    s->n_seq = any_count(a, 0, MSG_SEQS_MAX);
    s->n_dead = any_count(a, 0, MSG_BATCHES_MAX);
    s->seq = any_ascending(a, any_u64(a) >> 1, s->n_seq, &s->seq_next);
    s->dead = any_ascending(a, s->batch_done, s->n_dead, &end);
}

static inline void any_ping(struct any_msg *a, struct msg_ping *p) {
    *p = (struct msg_ping){ any_u64(a), any_u64(a), any_u64(a), { 0 } };
    p->counters =
        (struct msg_counters){ any_u64(a), any_u64(a), any_u64(a), any_u64(a), any_u64(a),
                               any_u64(a), any_u64(a), any_u64(a), any_u32(a), any_u32(a) };
}

static inline void any_links(struct any_msg *a, struct msg_links *l) {
    struct msg_link *s;
    l->id = any_u32(a);
    l->n_link = any_count(a, 0, MSG_PEERS_MAX);
    l->link = ANY_LIST(a, s, l->n_link);
    for (uint32_t i = 0; i < l->n_link; i++) {
        any_text(a, s[i].name, sizeof s[i].name);
        s[i].rtt_us = any_u32(a);
        s[i].bytes_per_s = any_u64(a);
    }
}

static inline void any_survey(struct any_msg *a, struct msg_survey *v) {
    struct msg_hop *h;
    v->id = any_u32(a), v->wait_ms = any_u32(a), v->bulk = any_bool(a);
    v->n_hop = any_count(a, 0, MSG_PEERS_MAX);
    v->hop = ANY_LIST(a, h, v->n_hop);
    for (uint32_t i = 0; i < v->n_hop; i++) any_hop(a, &h[i]);
}

static inline void any_weights(struct any_msg *a, struct msg *m) {
    if (m->kind == MSG_WEIGHTS_GET) {
        struct msg_weights_get *g = &m->u.weights_get;
        g->model_lo = any_u64(a), g->model_hi = any_u64(a);
        g->name = any_u64(a);
        g->offset = any_u64(a) / 2;
        g->id = any_u32(a), g->tensor = any_u32(a);
        g->bytes = (uint32_t)any_between(a, 1, MSG_PIECE_BYTES_MAX);
    } else {
        struct msg_weights *w = &m->u.weights;
        w->total_bytes = any_u64(a);
        w->offset = w->total_bytes ? any_u64(a) % w->total_bytes : 0;
        w->file_bytes = any_u64(a), w->hash = any_u64(a);
        w->id = any_u32(a), w->tensor = any_u32(a);
        w->code = any_code(a), w->last = any_bool(a);
    }
}

static inline void any_small(struct any_msg *a, struct msg *m) {
    switch (m->kind) {
    case MSG_WELCOME:
        m->u.welcome.version = any_u32(a);
        m->u.welcome.role = (enum msg_role)any_between(a, 0, MSG_ROLES - 1);
        any_text(a, m->u.welcome.name, sizeof m->u.welcome.name);
        m->u.welcome.ping_ms = any_u32(a);
        m->u.welcome.ping_misses = any_u32(a);
        m->u.welcome.payload_bytes_max = any_u32(a);
        break;
    case MSG_REFUSE:
    case MSG_LEAVE:
        m->u.refuse.code = any_code(a);
        any_text(a, m->u.refuse.text, sizeof m->u.refuse.text);
        break;
    case MSG_PROGRESS:
        m->u.progress.done_bytes = any_u64(a);
        m->u.progress.total_bytes = any_u64(a);
        m->u.progress.is_transfer = any_bool(a);
        break;
    case MSG_READY:
        m->u.ready = (struct msg_ready){ any_u64(a), any_u64(a), any_u64(a), any_u32(a),
                                         any_u32(a), any_u32(a), any_u64(a) };
        break;
    case MSG_FAILED:
        m->u.failed.batch = any_u64(a);
        m->u.failed.code = any_code(a);
        any_text(a, m->u.failed.text, sizeof m->u.failed.text);
        break;
    case MSG_WORK_REFUSED:
        m->u.work_refused = (struct msg_work_refused){
            any_u64(a), any_u64(a), (enum msg_refusal)any_between(a, 0, MSG_REFUSALS - 1),
            (uint32_t)any_between(a, 0, MSG_STAGES_MAX - 1), any_u32(a)
        };
        break;
    case MSG_CREDIT: m->u.credit.batch = any_u64(a); break;
    case MSG_ROW_GET: m->u.row_get.batch = any_u64(a), m->u.row_get.row = any_u32(a); break;
    case MSG_ROW: m->u.row = (struct msg_row){ any_u64(a), any_u32(a), any_u32(a), any_code(a) }; break;
    case MSG_EXPERTS:
        m->u.experts = (struct msg_experts){ any_u64(a), (uint32_t)any_between(a, 0, MSG_LAYERS_MAX - 1),
                                             (uint32_t)any_between(a, 1, MSG_ROWS_MAX),
                                             (uint32_t)any_between(a, 1, MSG_USED_MAX) };
        break;
    case MSG_EXPERTS_DONE:
        m->u.experts_done.batch = any_u64(a);
        m->u.experts_done.layer = (uint32_t)any_between(a, 0, MSG_LAYERS_MAX - 1);
        m->u.experts_done.n_row = (uint32_t)any_between(a, 1, MSG_ROWS_MAX);
        m->u.experts_done.compute_us = any_u32(a);
        m->u.experts_done.code = any_code(a);
        break;
    case MSG_STATE_SAVE:
    case MSG_STATE_LOAD:
    case MSG_STATE_DROP:
        m->u.state.job = any_u64(a), m->u.state.seq = any_u64(a);
        m->u.state.prefix_lo = any_u64(a), m->u.state.prefix_hi = any_u64(a);
        m->u.state.n_token = any_u32(a);
        break;
    case MSG_STATE_DONE:
        m->u.state_done.job = any_u64(a), m->u.state_done.bytes = any_u64(a);
        m->u.state_done.code = any_code(a), m->u.state_done.n_token = any_u32(a);
        any_text(a, m->u.state_done.text, sizeof m->u.state_done.text);
        break;
    case MSG_PROBE: m->u.probe.id = any_u32(a), m->u.probe.last = any_bool(a); break;
    case MSG_PROBE_DONE:
        m->u.probe_done.id = any_u32(a);
        m->u.probe_done.bytes = any_u64(a), m->u.probe_done.elapsed_us = any_u64(a);
        break;
    default: break;
    }
}

static inline void any_msg_make(struct any_msg *a, enum msg_kind kind, struct msg *m) {
    memset(m, 0, sizeof *m);
    m->kind = kind;
    m->epoch = any_u64(a);
    m->incarnation = any_u64(a) | 1;
    m->link_seq = any_u64(a);
    m->trace = any_u64(a);
    switch (kind) {
    case MSG_HELLO: any_hello(a, &m->u.hello); break;
    case MSG_PING: any_ping(a, &m->u.ping); break;
    case MSG_ASSIGN: any_assign(a, &m->u.assign); break;
    case MSG_WORK: any_work(a, &m->u.work); break;
    case MSG_RESULT: any_result(a, &m->u.result); break;
    case MSG_SYNC: any_sync(a, &m->u.sync); break;
    case MSG_WEIGHTS_GET:
    case MSG_WEIGHTS: any_weights(a, m); break;
    case MSG_LINKS: any_links(a, &m->u.links); break;
    case MSG_FILES: m->u.files.file = any_files(a, &m->u.files.n_file); break;
    case MSG_PEERS: m->u.peers.peer = any_keys(a, &m->u.peers.n_peer); break;
    case MSG_SURVEY: any_survey(a, &m->u.survey); break;
    default: any_small(a, m); break;
    }
}

/* ---- comparison ---- */

static inline bool any_msg_equal(const struct msg *a, const struct msg *b) {
    struct msg x = *a, y = *b;
    struct msg_list p[MSG_LISTS_MAX], q[MSG_LISTS_MAX];
    int n = msg_lists(&x, p);
    if (msg_lists(&y, q) != n) return false;
    for (int i = 0; i < n; i++) {
        if (p[i].bytes != q[i].bytes) return false;
        if (p[i].bytes && memcmp(*p[i].at, *q[i].at, p[i].bytes) != 0) return false;
        *p[i].at = *q[i].at = NULL;
    }
    return memcmp(&x, &y, sizeof x) == 0;
}

#endif
