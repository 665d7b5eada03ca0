/* map - strings to small numbers, in the order they came: the i-th different key added has number i.
 *
 * So a caller keeps its values in an array of its own and iterates without hashing. Keys are borrowed
 * bytes that must outlive the map. No removal. One owner; any thread may look up once nobody adds. At
 * most MAP_MAX keys. */
#ifndef BASE_MAP_H
#define BASE_MAP_H

#include "common/base/types.h"

enum { MAP_MAX = 1 << 26 };

struct map {
    struct map_key {
        const char *data;
        size_t len;
        uint64_t hash;
    } *keys;
    uint32_t *slots;                                  /* key number + 1; 0 is free */
    uint32_t n, n_slots;                              /* n_slots: 0 or a power of two, at most 3/4 in use */
};

void map_init(struct map *m);                         /* a zeroed struct is an empty map, too */
void map_deinit(struct map *m);
/* True: the key is new and *number is its own. False: it was there already, under *number. */
bool map_add(struct map *m, const char *data, size_t len, uint32_t *number);
bool map_find(const struct map *m, const char *data, size_t len, uint32_t *number);

#endif
