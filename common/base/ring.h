/* ring - a queue of pointers from one thread to another; what went through has changed owner.
 *
 * One thread pushes, one thread pops; neither waits. The capacity is set once and is a power of two.
 * Waking the other side is the business of the caller (a condition, an async handle), and one wake-up
 * may stand for many entries: drain. */
#ifndef BASE_RING_H
#define BASE_RING_H

#include <stdatomic.h>

#include "common/base/types.h"

struct ring {
    void **item;
    size_t mask;
    char apart_1[64];                             /* each counter in a cache line of its own */
    atomic_size_t head;                           /* next to pop; written by the consumer */
    char apart_2[64];
    atomic_size_t tail;                           /* next to push; written by the producer */
    char apart_3[64];
};

void ring_init(struct ring *r, size_t capacity);  /* rounded up to a power of two */
void ring_deinit(struct ring *r);                 /* what is still inside belongs to nobody: drain before */
bool ring_push(struct ring *r, void *item);       /* false: full. item must not be NULL */
void *ring_pop(struct ring *r);                   /* NULL: empty */
size_t ring_count(const struct ring *r);          /* exact on a quiet ring, else a recent value */

#endif
