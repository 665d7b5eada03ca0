/* slots - the places of a process for bulk bytes: what travels between machines beside a message.
 *
 * A fixed number of big slots (work: rows of streams) and small ones (candidates, single rows, expert
 * rows), all address space at start, real memory when touched: a slot that carries one row costs one
 * row. The lowest free slot is taken first, so the memory that is warm stays warm.
 *
 * Belongs to the loop's thread: take, free and all counting. The bytes belong to whoever owns the
 * payload at the moment, which may be the compute thread. Ownership can be lent to the network: a lease
 * keeps the slot alive until the network says from any thread that it is done; freed is a slot when its
 * owner has freed it and all its leases are back. A payload of bytes <= small_bytes falls back to a big
 * slot when no small one is free. Limits: SLOTS_N_MAX slots. */
#ifndef SYS_SLOTS_H
#define SYS_SLOTS_H

#include "common/base/err.h"
#include "common/base/payload.h"
#include "common/base/types.h"

struct loop;
struct slots;

enum { SLOTS_N_MAX = 4096, SLOTS_ALIGN = 4096 };

struct slots_config {
    uint32_t n_big, n_small;
    uint32_t big_bytes, small_bytes;              /* rounded up to SLOTS_ALIGN */
};

/* What a process needs, as a sum: see the comments in slots.c. n_window: batches in flight in the whole
 * cluster; n_want_max: rows of one batch whose logits are wanted; n_helper: expert helpers of a stage, or
 * leads of a helper. */
struct slots_need { uint32_t n_rows_max, n_want_max, n_embd, n_vocab, n_window, n_helper; };
struct slots_config slots_config_of(const struct slots_need *need);

int slots_new(struct slots **out, struct loop *l, const struct slots_config *config, struct err *e);
/* All leases must be back (the network is closed). NULL is fine. */
void slots_free(struct slots *s);

/* generation 0: none free, or larger than a big slot. offset 0. */
struct payload slots_take(struct slots *s, size_t bytes);
void slots_give(struct slots *s, struct payload p);            /* the owner frees it; {0} is fine */
bool slots_has(const struct slots *s, struct payload p);       /* the name still stands for its bytes */
/* At offset; dies when the name is old or reaches outside its slot. Any thread that owns p. */
void *slots_data(const struct slots *s, struct payload p);

uint32_t slots_used(const struct slots *s);                    /* taken, or on lease */
uint32_t slots_bytes_max(const struct slots *s);               /* of one payload */
uint32_t slots_small_free(const struct slots *s);

/* ---- leases, for links ---- */

/* One more user of the slot's bytes. The answer is the argument for slots_return. */
void *slots_lend(struct slots *s, struct payload p);
/* Any thread, exactly once per lend; the shape of a zmq free function. */
void slots_return(void *data, void *lease);

#endif
