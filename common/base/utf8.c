/* utf8 - see the header. The stream is a walk over lead bytes: what a lead byte allows for its second
 * byte decides where an ill-formed sequence ends, so held bytes are always a lead byte with legal, but
 * too few, followers. */
#include "common/base/utf8.h"

unsigned utf8_encode(uint32_t cp, char out[UTF8_MAX]) {
    if (cp > UTF8_CODE_POINT_MAX || cp - 0xd800 < 0x800) cp = UTF8_REPLACEMENT;
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    unsigned n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (unsigned i = n - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 63));
    out[0] = (char)(lead[n] | cp);
    return n;
}

/* First byte at or after p that is not ASCII; eight at a time. */
static const uint8_t *skip_ascii(const uint8_t *p, const uint8_t *end) {
    for (uint64_t word; end - p >= 8; p += 8) {
        memcpy(&word, p, sizeof word);
        if (word & 0x8080808080808080u) break;
    }
    while (p < end && *p < 0x80) p++;
    return p;
}

size_t utf8_valid_prefix(const char *text, size_t len) {
    if (len == 0) return 0;                           /* text may be NULL then */
    const uint8_t *start = (const uint8_t *)text, *p = start, *end = start + len;
    while ((p = skip_ascii(p, end)) < end) {
        uint32_t cp;
        unsigned n = utf8_decode(p, end, &cp);
        if (!n) break;
        p += n;
    }
    return (size_t)(p - start);
}

/* How many bytes a sequence that starts with `lead` has; 0 if none does. */
static unsigned sequence_length(uint8_t lead) {
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* Whether byte number i (1-3) may follow: only the second is restricted beyond being a continuation byte. */
static bool may_follow(uint8_t lead, unsigned i, uint8_t byte) {
    uint8_t lo = 0x80, hi = 0xbf;
    if (i == 1 && lead == 0xe0) lo = 0xa0;                            /* else overlong */
    if (i == 1 && lead == 0xed) hi = 0x9f;                            /* else a surrogate */
    if (i == 1 && lead == 0xf0) lo = 0x90;                            /* else overlong */
    if (i == 1 && lead == 0xf4) hi = 0x8f;                            /* else above U+10FFFF */
    return byte >= lo && byte <= hi;
}

static size_t put_replacement(char *out) {
    return utf8_encode(UTF8_REPLACEMENT, out);
}

/* Takes one byte into the stream, or refuses it (false) after giving up what was held: offer it again. */
static bool take_byte(struct utf8_stream *s, uint8_t byte, char *out, size_t *n_out) {
    if (s->n_held == 0) {
        unsigned n = sequence_length(byte);
        if (n == 1) out[(*n_out)++] = (char)byte;
        else if (n == 0) *n_out += put_replacement(out + *n_out);
        else s->held[s->n_held++] = byte;
        return true;
    }
    if (!may_follow(s->held[0], s->n_held, byte)) {
        *n_out += put_replacement(out + *n_out);
        s->n_held = 0;
        return false;
    }
    if (s->n_held + 1u < sequence_length(s->held[0])) {
        s->held[s->n_held++] = byte;
        return true;
    }
    memcpy(out + *n_out, s->held, s->n_held);
    *n_out += s->n_held;
    out[(*n_out)++] = (char)byte;
    s->n_held = 0;
    return true;
}

size_t utf8_stream_push(struct utf8_stream *s, const void *bytes, size_t len, char *out) {
    if (len == 0) return 0;                           /* bytes may be NULL then */
    const uint8_t *p = bytes, *end = p + len;
    size_t n_out = 0;
    while (p < end) {
        if (s->n_held == 0) {                         /* the usual case: copy what is valid in one go */
            size_t n = utf8_valid_prefix((const char *)p, (size_t)(end - p));
            memcpy(out + n_out, p, n);
            n_out += n;
            p += n;
            if (p == end) break;
        }
        if (take_byte(s, *p, out, &n_out)) p++;
    }
    return n_out;
}

size_t utf8_stream_flush(struct utf8_stream *s, char *out) {
    if (s->n_held == 0) return 0;
    s->n_held = 0;
    return put_replacement(out);
}
