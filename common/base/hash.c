#include "common/base/hash.h"
#include "common/base/check.h"

#include <stdio.h>
#include <xxhash.h>

uint64_t hash_64(const void *data, size_t size, uint64_t seed) {
    return XXH3_64bits_withSeed(data, size, seed);
}

static struct hash128 from_xxh(XXH128_hash_t h) {
    return (struct hash128){ h.low64, h.high64 };
}

struct hash128 hash_128(const void *data, size_t size) {
    return from_xxh(XXH3_128bits(data, size));
}

bool hash_equal(struct hash128 a, struct hash128 b) {
    return a.lo == b.lo && a.hi == b.hi;
}

void hash_to_hex(struct hash128 h, char out[HASH_HEX]) {
    snprintf(out, HASH_HEX, "%016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

bool hash_from_hex(const char *hex, struct hash128 *out) {
    struct hash128 h = { 0, 0 };
    for (int i = 0; i < 32; i++) {
        int digit = hex_digit(hex[i]);                /* the final 0 is no digit: never reads past it */
        if (digit < 0) return false;
        h.hi = h.hi << 4 | h.lo >> 60;
        h.lo = h.lo << 4 | (uint64_t)digit;
    }
    if (hex[32]) return false;
    *out = h;
    return true;
}

/* XXH3's state wants 64-byte alignment, which XXH3_createState sees to. */
struct hash_stream {
    XXH3_state_t *state;
};

struct hash_stream *hash_stream_new(void) {
    struct hash_stream *s = xcalloc(1, sizeof *s);
    s->state = XXH3_createState();
    CHECK(s->state);
    hash_stream_reset(s);
    return s;
}

void hash_stream_add(struct hash_stream *s, const void *data, size_t size) {
    XXH3_128bits_update(s->state, data, size);
}

struct hash128 hash_stream_value(const struct hash_stream *s) {
    return from_xxh(XXH3_128bits_digest(s->state));
}

void hash_stream_reset(struct hash_stream *s) {
    XXH3_128bits_reset(s->state);
}

void hash_stream_free(struct hash_stream *s) {
    if (s) XXH3_freeState(s->state);
    free(s);
}
