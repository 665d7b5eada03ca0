#include "common/base/map.h"
#include "common/base/check.h"
#include "common/base/hash.h"

void map_init(struct map *m) {
    memset(m, 0, sizeof *m);
}

void map_deinit(struct map *m) {
    free(m->keys);
    free(m->slots);
    map_init(m);
}

/* The slot that holds the key, or the free one where it belongs. There always is a free one. */
static uint32_t *slot_of(const struct map *m, const struct map_key *key) {
    for (uint32_t i = (uint32_t)key->hash;; i++) {
        uint32_t *slot = &m->slots[i & (m->n_slots - 1)];
        if (*slot == 0) return slot;
        const struct map_key *there = &m->keys[*slot - 1];
        if (there->hash == key->hash && there->len == key->len &&
            memcmp(there->data, key->data, key->len) == 0)
            return slot;
    }
}

static void grow(struct map *m) {
    m->n_slots = MAX(16, 2 * m->n_slots);
    free(m->slots);
    m->slots = xcalloc(m->n_slots, sizeof *m->slots);
    m->keys = xrealloc(m->keys, m->n_slots / 4 * 3 * sizeof *m->keys);
    for (uint32_t i = 0; i < m->n; i++) *slot_of(m, &m->keys[i]) = i + 1;
}

static struct map_key key_of(const char *data, size_t len) {
    return (struct map_key){ len ? data : "", len, hash_64(data, len, 0) };
}

bool map_add(struct map *m, const char *data, size_t len, uint32_t *number) {
    CHECK(m->n < MAP_MAX);
    if (m->n >= m->n_slots / 4 * 3) grow(m);
    struct map_key key = key_of(data, len);
    uint32_t *slot = slot_of(m, &key);
    bool is_new = *slot == 0;
    if (is_new) {
        m->keys[m->n++] = key;
        *slot = m->n;
    }
    *number = *slot - 1;
    return is_new;
}

bool map_find(const struct map *m, const char *data, size_t len, uint32_t *number) {
    if (m->n == 0) return false;
    struct map_key key = key_of(data, len);
    const uint32_t *slot = slot_of(m, &key);
    if (*slot == 0) return false;
    *number = *slot - 1;
    return true;
}
