/* check - for our own mistakes only; stays on in release. Input from outside gets an error return instead. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                              \
    do {                                                                                              \
        if (!(condition)) {                                                                           \
            fprintf(stderr, "%s:%d: %s: CHECK failed: %s\n", __FILE__, __LINE__, __func__, #condition); \
            abort();                                                                                  \
        }                                                                                             \
    } while (0)

/* Small control-plane memory may abort: these never return NULL. Large or outside-sized memory uses
 * malloc + ERR_NOMEM. */
static inline void *xcalloc(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size ? size : 1);
    CHECK(memory);
    return memory;
}

static inline void *xrealloc(void *memory, size_t size) {
    memory = realloc(memory, size ? size : 1);
    CHECK(memory);
    return memory;
}

#endif
