/* arena - many small pieces of memory that die together: parsed files, tables of names, one request's
 * objects.
 *
 * Pieces lie in blocks that only grow; there is no free of one piece. Belongs to the thread of its
 * owner. The limit counts what was asked for (rounded up to ARENA_ALIGN), so it can be a sum that
 * somebody checked; at the limit, or without memory, the answer is NULL and the caller reports
 * ERR_LIMIT or ERR_NOMEM. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include "common/base/types.h"

enum { ARENA_ALIGN = 16 };

struct arena_block;
struct arena {
    struct arena_block *blocks;                   /* newest first */
    size_t used, limit;
};

void arena_init(struct arena *a, size_t limit);   /* allocates nothing yet */
void arena_deinit(struct arena *a);               /* a zeroed struct is fine too */

void *arena_alloc(struct arena *a, size_t size);  /* zeroed, aligned to ARENA_ALIGN */
void *arena_array(struct arena *a, size_t count, size_t size);        /* NULL on overflow, too */
char *arena_text(struct arena *a, const char *bytes, size_t n);       /* a copy with a NUL behind it */

#endif
