/* frame - see the header. Nothing here trusts a number before it has met its limit: sizes first, then
 * the prefix, then the message, then whether the payload is what the message says. */
#include "common/wire/frame.h"

static void put_16(unsigned char *at, uint32_t v) {
    at[0] = (unsigned char)v;
    at[1] = (unsigned char)(v >> 8);
}

static void put_32(unsigned char *at, uint32_t v) {
    put_16(at, v);
    put_16(at + 2, v >> 16);
}

static uint32_t get_16(const unsigned char *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static uint32_t get_32(const unsigned char *at) {
    return get_16(at) | get_16(at + 2) << 16;
}

int frame_pack(const struct msg *m, uint32_t payload_bytes, struct buf *out, struct err *e) {
    size_t begin = out->size;
    if (!buf_grow(out, FRAME_PREFIX_BYTES)) return err_set(e, out->rc, "a message has no room");
    int rc = codec_pack(m, out, e);
    if (rc < 0) {
        buf_cut(out, begin);
        return rc;
    }
    unsigned char *prefix = (unsigned char *)out->data + begin;
    put_32(prefix, MSG_MAGIC);
    put_16(prefix + 4, MSG_VERSION);
    put_16(prefix + 6, (uint32_t)m->kind);
    put_32(prefix + 8, (uint32_t)(out->size - begin - FRAME_PREFIX_BYTES));
    put_32(prefix + 12, payload_bytes);
    return 0;
}

/* Those three can be read whatever their version. */
static bool is_greeting(enum msg_kind kind) {
    return kind == MSG_HELLO || kind == MSG_WELCOME || kind == MSG_REFUSE;
}

int frame_peek(const void *header, size_t n, uint64_t payload_bytes, const struct frame_rules *rules,
               struct frame_prefix *out, struct err *e) {
    const unsigned char *at = header;
    *out = (struct frame_prefix){ 0 };
    if (n < FRAME_PREFIX_BYTES || get_32(at) != MSG_MAGIC)
        return err_set(e, ERR_INVALID, "not a message of ours (%zu bytes)", n);
    uint32_t kind = get_16(at + 6);
    *out = (struct frame_prefix){ get_16(at + 4), kind < MSG_KINDS ? (enum msg_kind)kind : MSG_NONE,
                                  get_32(at + 8), get_32(at + 12) };
    if (!is_greeting(out->kind) && (out->version < MSG_VERSION_MIN || out->version > MSG_VERSION))
        return err_set(e, ERR_UNSUPPORTED, "protocol version %u, ours are %d to %d", out->version,
                       MSG_VERSION_MIN, MSG_VERSION);
    if (out->kind == MSG_NONE) return err_set(e, ERR_INVALID, "a message of unknown kind %u", kind);
    if (rules->kinds && !(rules->kinds & FRAME_KIND(out->kind)))
        return err_set(e, ERR_DENIED, "%s is not expected on this link now", msg_kind_name(out->kind));
    if (out->header_bytes > MSG_HEADER_BYTES_MAX || out->payload_bytes > rules->payload_bytes_max)
        return err_set(e, ERR_LIMIT, "%s of %u and %u bytes, %d and %u at most", msg_kind_name(out->kind),
                       out->header_bytes, out->payload_bytes, MSG_HEADER_BYTES_MAX, rules->payload_bytes_max);
    if (out->header_bytes != n - FRAME_PREFIX_BYTES || out->payload_bytes != payload_bytes)
        return err_set(e, ERR_INVALID, "%s says %u and %u bytes, but has %zu and %llu",
                       msg_kind_name(out->kind), out->header_bytes, out->payload_bytes,
                       n - FRAME_PREFIX_BYTES, (unsigned long long)payload_bytes);
    return 0;
}

/* ---- header and payload ---- */

static bool row_fits(const struct msg_row_result *r, uint64_t payload_bytes) {
    uint64_t bytes = r->whole ? (uint64_t)r->n_vocab * sizeof(float)
                              : (uint64_t)r->n_item * sizeof(struct msg_item);
    return r->bytes == bytes && r->offset % 4 == 0 && (uint64_t)r->offset + r->bytes <= payload_bytes;
}

static bool rows_fit(const struct msg_result *r, uint64_t payload_bytes) {
    for (uint32_t i = 0; i < r->n_row; i++)
        if (!row_fits(&r->row[i], payload_bytes)) return false;
    return r->n_row > 0 || payload_bytes == 0;
}

/* Whole floats per row, and for experts besides the row itself its weights and ids. */
static bool divides(uint64_t payload_bytes, uint64_t n_row, uint64_t extra) {
    return payload_bytes % (n_row * 4) == 0 && payload_bytes / (n_row * 4) > extra;
}

static bool payload_fits(const struct msg *m, uint64_t n) {
    switch (m->kind) {
    case MSG_WORK: return n == 0 || n % m->u.work.n_row == 0;
    case MSG_RESULT: return rows_fit(&m->u.result, n);
    case MSG_ROW: return n == (m->u.row.code < 0 ? 0 : (uint64_t)m->u.row.n_vocab * sizeof(float));
    case MSG_EXPERTS: return divides(n, m->u.experts.n_row, (uint64_t)m->u.experts.n_used * 2);
    case MSG_EXPERTS_DONE:
        return m->u.experts_done.code < 0 ? n == 0 : divides(n, m->u.experts_done.n_row, 0);
    case MSG_WEIGHTS:
        return n <= MSG_PIECE_BYTES_MAX && n <= m->u.weights.total_bytes - m->u.weights.offset &&
               (m->u.weights.code >= 0 ? n > 0 : n == 0);
    case MSG_PROBE: return true;
    default: return n == 0;
    }
}

int frame_unpack(struct codec *c, const void *header, size_t n, uint64_t payload_bytes,
                 const struct frame_rules *rules, struct msg *out, struct err *e) {
    struct frame_prefix prefix;
    int rc = frame_peek(header, n, payload_bytes, rules, &prefix, e);
    if (rc < 0) return rc;
    rc = codec_unpack(c, (const unsigned char *)header + FRAME_PREFIX_BYTES, prefix.header_bytes, out, e);
    if (rc < 0) return rc;
    if (out->kind != prefix.kind)
        return err_set(e, ERR_CORRUPT, "%s in a frame of %s", msg_kind_name(out->kind),
                       msg_kind_name(prefix.kind));
    if (!payload_fits(out, payload_bytes))
        return err_set(e, ERR_CORRUPT, "%s: %llu bytes of payload do not fit it", msg_kind_name(out->kind),
                       (unsigned long long)payload_bytes);
    return 0;
}

uint32_t frame_version_pick(uint32_t version_min, uint32_t version_max) {
    uint32_t version = MIN(version_max, (uint32_t)MSG_VERSION);
    return version >= version_min && version >= MSG_VERSION_MIN ? version : 0;
}
