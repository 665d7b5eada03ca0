/* arena - see the header. A block holds at least ARENA_BLOCK_BYTES; a larger piece gets a block of its
 * own. */
#include "common/base/arena.h"

#include <stdlib.h>

enum { ARENA_BLOCK_BYTES = 64 * 1024 };

struct arena_block {
    struct arena_block *next;
    size_t used, room;
    _Alignas(ARENA_ALIGN) unsigned char bytes[];
};

void arena_init(struct arena *a, size_t limit) {
    *a = (struct arena){ .limit = MIN(limit, SIZE_MAX / 4) };
}

void arena_deinit(struct arena *a) {
    for (struct arena_block *block = a->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *a = (struct arena){ .blocks = NULL };
}

static struct arena_block *block_with_room(struct arena *a, size_t size) {
    if (a->blocks && a->blocks->room - a->blocks->used >= size) return a->blocks;
    size_t room = MAX(size, (size_t)ARENA_BLOCK_BYTES);
    struct arena_block *block = calloc(1, sizeof *block + room);
    if (!block) return NULL;
    block->room = room;
    block->next = a->blocks;
    return a->blocks = block;
}

void *arena_alloc(struct arena *a, size_t size) {
    if (size > a->limit) return NULL;
    size = ALIGN_UP(MAX(size, 1), (size_t)ARENA_ALIGN);
    if (size > a->limit - a->used) return NULL;
    struct arena_block *block = block_with_room(a, size);
    if (!block) return NULL;
    void *piece = block->bytes + block->used;
    block->used += size;
    a->used += size;
    return piece;
}

void *arena_array(struct arena *a, size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) return NULL;
    return arena_alloc(a, count * size);
}

char *arena_text(struct arena *a, const char *bytes, size_t n) {
    if (n >= a->limit) return NULL;
    char *text = arena_alloc(a, n + 1);
    if (text && n) memcpy(text, bytes, n);
    return text;
}
