#include "common/base/ring.h"

#include "common/base/check.h"

void ring_init(struct ring *r, size_t capacity) {
    size_t size = 1;
    while (size < capacity) size *= 2;
    r->item = xcalloc(size, sizeof *r->item);
    r->mask = size - 1;
    atomic_init(&r->head, 0);
    atomic_init(&r->tail, 0);
}

void ring_deinit(struct ring *r) {
    free(r->item);
    r->item = NULL;
}

/* The release store publishes the item (and all that the producer wrote before) to the acquire load in
 * ring_pop; the other pair tells the producer that the place has been read. */
bool ring_push(struct ring *r, void *item) {
    CHECK(item);
    size_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if (tail - atomic_load_explicit(&r->head, memory_order_acquire) > r->mask) return false;
    r->item[tail & r->mask] = item;
    atomic_store_explicit(&r->tail, tail + 1, memory_order_release);
    return true;
}

void *ring_pop(struct ring *r) {
    size_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    if (head == atomic_load_explicit(&r->tail, memory_order_acquire)) return NULL;
    void *item = r->item[head & r->mask];
    atomic_store_explicit(&r->head, head + 1, memory_order_release);
    return item;
}

size_t ring_count(const struct ring *r) {
    return atomic_load_explicit(&r->tail, memory_order_acquire) -
           atomic_load_explicit(&r->head, memory_order_acquire);
}
