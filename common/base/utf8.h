/* utf8 - strict UTF-8: decode, encode, validate, and turn a stream of arbitrary bytes into text.
 *
 * Well-formed means Unicode's table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF. What
 * is ill-formed becomes U+FFFD, one for each maximal subpart, as browsers and Python do. Pure
 * functions; a struct utf8_stream belongs to one thread at a time, needs no release and holds back at
 * most three bytes. */
#ifndef BASE_UTF8_H
#define BASE_UTF8_H

#include "common/base/types.h"

enum { UTF8_MAX = 4, UTF8_CODE_POINT_MAX = 0x10ffff, UTF8_REPLACEMENT = 0xfffd };

/* Length 1-4 of the well-formed sequence at p (p < end) with its code point in *cp; 0 if there is none. */
static inline unsigned utf8_decode(const uint8_t *p, const uint8_t *end, uint32_t *cp) {
    size_t left = (size_t)(end - p);
    uint32_t a = p[0];
    if (a < 0x80) return *cp = a, 1;
    if (a < 0xc2 || left < 2) return 0;
    uint32_t b = p[1] ^ 0x80u;                        /* a continuation byte becomes 0-63, all else more */
    if (a < 0xe0) return *cp = (a & 31) << 6 | b, b < 64 ? 2 : 0;
    if (b > 63 || left < 3) return 0;
    uint32_t c = p[2] ^ 0x80u;
    if (a < 0xf0) {
        uint32_t code = (a & 15) << 12 | b << 6 | c;
        return *cp = code, c < 64 && code >= 0x800 && code - 0xd800 >= 0x800 ? 3 : 0;
    }
    if (a > 0xf4 || c > 63 || left < 4) return 0;
    uint32_t d = p[3] ^ 0x80u, code = (a & 7) << 18 | b << 12 | c << 6 | d;
    return *cp = code, d < 64 && code >= 0x10000 && code <= UTF8_CODE_POINT_MAX ? 4 : 0;
}

/* Writes the bytes of a scalar value (a surrogate or anything too large: of U+FFFD); their number. */
unsigned utf8_encode(uint32_t cp, char out[UTF8_MAX]);

/* Bytes before the first ill-formed sequence: `len` when the whole text is valid. */
size_t utf8_valid_prefix(const char *text, size_t len);

static inline bool utf8_valid(const char *text, size_t len) {
    return utf8_valid_prefix(text, len) == len;
}

/* Bytes in, deliverable text out: what might still become a character waits for the next bytes. Start
 * with { 0 }. */
struct utf8_stream {
    uint8_t held[3];
    uint8_t n_held;
};

/* Room that one push of `len` bytes may need (each ill-formed byte grows to three), and that flush needs. */
#define UTF8_STREAM_ROOM(len) (3 * ((size_t)(len) + 1))

/* Both write valid UTF-8, not terminated, and give its length. The pushes' and the final flush's texts
 * joined are the text of all bytes at once, however they were cut. After flush the stream is as new. */
size_t utf8_stream_push(struct utf8_stream *s, const void *bytes, size_t len, char *out);
size_t utf8_stream_flush(struct utf8_stream *s, char *out);

#endif
