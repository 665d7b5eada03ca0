/* hash - XXH3 behind our own names: 64 bits for tables, 128 bits for checksums and content keys.
 *
 * Values are the published XXH3 ones, the same on every machine, so they may be stored. They find
 * damage, not malice. The one-shot functions are pure; a stream belongs to one thread at a time. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include "common/base/types.h"

struct hash128 {
    uint64_t lo, hi;
};

uint64_t hash_64(const void *data, size_t size, uint64_t seed);
struct hash128 hash_128(const void *data, size_t size);
bool hash_equal(struct hash128 a, struct hash128 b);

/* 32 hexadecimal digits (high half first, as xxhsum prints) and a 0; parse gives false for anything else. */
enum { HASH_HEX = 33 };
void hash_to_hex(struct hash128 h, char out[HASH_HEX]);
bool hash_from_hex(const char *hex, struct hash128 *out);

struct hash_stream;
struct hash_stream *hash_stream_new(void);
void hash_stream_add(struct hash_stream *s, const void *data, size_t size);
struct hash128 hash_stream_value(const struct hash_stream *s);  /* of all bytes so far; may go on after */
void hash_stream_reset(struct hash_stream *s);
void hash_stream_free(struct hash_stream *s);                         /* NULL is fine */

#endif
