/* pool - a fixed number of equal objects, given out as handles {index, generation}.
 *
 * The pool keeps no objects, only who is in use; the owner has an array of the same size. A handle of
 * an object that was given back no longer resolves, so a late answer finds nobody. Lowest free index
 * first: deterministic, and small pools stay in the cache. One owner. The size is set once; pool_take
 * says -1 when all are in use. */
#ifndef BASE_POOL_H
#define BASE_POOL_H

#include "common/base/types.h"

struct handle {
    uint32_t index, generation;                   /* generation 0: nobody */
};

struct pool {
    uint32_t *generation;                         /* odd: in use */
    uint64_t *free_bits;
    uint32_t n, n_used;
};

void pool_init(struct pool *p, uint32_t n);
void pool_deinit(struct pool *p);                 /* a zeroed struct is fine */
int64_t pool_take(struct pool *p);                /* an index, or -1 */
void pool_give(struct pool *p, uint32_t index);

static inline bool pool_is_used(const struct pool *p, uint32_t index) {
    return index < p->n && (p->generation[index] & 1);
}

static inline struct handle pool_handle(const struct pool *p, uint32_t index) {
    return (struct handle){ index, p->generation[index] };
}

/* True when the handle names an object in use. */
static inline bool pool_resolves(const struct pool *p, struct handle h) {
    return pool_is_used(p, h.index) && p->generation[h.index] == h.generation;
}

/* for (int64_t i = -1; (i = pool_next(p, i)) >= 0;) visits those in use, ascending. */
static inline int64_t pool_next(const struct pool *p, int64_t i) {
    for (i++; i < (int64_t)p->n; i++)
        if (p->generation[i] & 1) return i;
    return -1;
}

#endif
