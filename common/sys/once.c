#include "common/sys/once.h"

#include "common/base/hash.h"

#include "common/base/banned.h"

#define SECOND UINT64_C(1000000000)

static struct once_place *find(struct once *o, uint64_t key) {
    struct once_place *oldest = &o->place[0];
    for (int i = 0; i < ONCE_PLACES; i++) {
        if (o->place[i].key == key) return &o->place[i];
        if (o->place[i].at_ns < oldest->at_ns) oldest = &o->place[i];
    }
    return oldest;
}

bool once_is_due(struct once *o, const char *what, const char *address, uint64_t now_ns) {
    uint64_t key = hash_64(what, strlen(what), hash_64(address, strlen(address), 0)) | 1;
    struct once_place *p = find(o, key);
    bool heard = p->key == key && now_ns < p->at_ns + 3600 * SECOND;
    if (now_ns >= o->minute_ns + 60 * SECOND || o->minute_ns == 0) {
        o->minute_ns = now_ns;
        o->n_minute = 0;
    }
    if (heard || o->n_minute >= ONCE_PER_MINUTE) return false;
    *p = (struct once_place){ key, now_ns };
    o->n_minute++;
    return true;
}
