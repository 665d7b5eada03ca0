/* slots - two pools over one reserved range of addresses.
 *
 * A lease that comes back does nothing but count itself at its slot, set the slot's bit and wake the
 * loop; the loop looks at the bits. So the network's threads need no lock and no queue that could be
 * full, however many leases one slot has. */
#include "common/sys/slots.h"

#include "common/base/check.h"
#include "common/base/pool.h"
#include "common/sys/clock.h"
#include "common/sys/loop.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/base/banned.h"

#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif

enum { LEASES_MS = 5000 };

struct slot {
    struct slots *slots;                          /* a lease is the address of its slot */
    uint32_t n_lease, room;
    bool owned;
    atomic_uint n_back;                           /* leases that came back and are not counted yet */
};

struct slots {
    struct slots_config config;
    struct pool big, small;
    uint8_t *base;
    size_t bytes;
    struct slot *slot;                            /* big ones first */
    atomic_uint_fast64_t *back;                   /* one bit per slot */
    uint32_t n;
    atomic_uint n_returning;                      /* threads inside slots_return */
    struct loop_wake *wake;
};

struct slots_config slots_config_of(const struct slots_need *need) {
    uint64_t streams = (uint64_t)need->n_rows_max * need->n_embd * 16;  /* four streams of f32 per row */
    uint64_t kept = (uint64_t)need->n_want_max * need->n_vocab * 4;
    uint64_t row = (uint64_t)need->n_vocab * 4, experts = (uint64_t)need->n_rows_max * need->n_embd * 4;
    struct slots_config c = { .n_big = 0 };
    c.n_big += need->n_window;                    /* batches that came in and wait */
    c.n_big += need->n_window;                    /* computed, until the next stage took them */
    c.n_big += need->n_window;                    /* last stage: rows kept until they are over */
    c.n_big += 2 * 2;                             /* in computation: in and out, of two jobs */
    c.n_big += need->n_window;                    /* freed by us, still on their way out */
    c.n_big += 4 * need->n_helper;                /* questions and answers of large batches */
    c.n_small += 2 * need->n_window;              /* candidates; decode batches in and out use these, too */
    c.n_small += 2 * need->n_window;              /* single rows that the coordinator asked for */
    c.n_small += 4 * need->n_helper;              /* questions and answers of small batches */
    c.n_small += 16;                              /* probes, pieces of weights that come in */
    c.n_small += 48;                              /* pieces of weights for others, read or on their way */
    c.big_bytes = (uint32_t)MIN(MAX(MAX(streams, kept), experts + 4096), (uint64_t)1 << 30);
    c.small_bytes = (uint32_t)MIN(MAX(row, (uint64_t)1 << 20), (uint64_t)1 << 30);
    c.n_big = MIN(c.n_big, (uint32_t)SLOTS_N_MAX / 2);
    c.n_small = MIN(c.n_small, (uint32_t)SLOTS_N_MAX / 2);
    return c;
}

/* ---- leases ---- */

static void maybe_free(struct slots *s, uint32_t i) {
    if (s->slot[i].owned || s->slot[i].n_lease) return;
    if (i < s->config.n_big) pool_give(&s->big, i);
    else pool_give(&s->small, i - s->config.n_big);
}

static void collect(void *ctx) {
    struct slots *s = ctx;
    for (uint32_t w = 0; w < (s->n + 63) / 64; w++) {
        uint64_t bits = atomic_exchange_explicit(&s->back[w], 0, memory_order_acquire);
        for (uint32_t i = w * 64; bits; i++, bits >>= 1) {
            if (!(bits & 1)) continue;
            uint32_t n = atomic_exchange_explicit(&s->slot[i].n_back, 0, memory_order_acquire);
            CHECK(s->slot[i].n_lease >= n);
            s->slot[i].n_lease -= n;
            if (n) maybe_free(s, i);
        }
    }
}

void slots_return(void *data, void *lease) {
    struct slot *slot = lease;
    struct slots *s = slot->slots;
    uint32_t i = (uint32_t)(slot - s->slot);
    (void)data;
    atomic_fetch_add_explicit(&s->n_returning, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&slot->n_back, 1, memory_order_release);
    atomic_fetch_or_explicit(&s->back[i / 64], UINT64_C(1) << i % 64, memory_order_release);
    loop_wake(s->wake);
    atomic_fetch_sub_explicit(&s->n_returning, 1, memory_order_release);      /* s may be gone from here on */
}

void *slots_lend(struct slots *s, struct payload p) {
    CHECK(slots_has(s, p));
    s->slot[p.slot].n_lease++;
    return &s->slot[p.slot];
}

/* ---- life ---- */

int slots_new(struct slots **out, struct loop *l, const struct slots_config *config, struct err *e) {
    struct slots_config c = *config;
    if (c.n_big == 0 || c.n_big > SLOTS_N_MAX || c.n_small > SLOTS_N_MAX - c.n_big || c.big_bytes == 0 ||
        c.big_bytes > 1u << 30 || (c.n_small && (c.small_bytes == 0 || c.small_bytes > c.big_bytes)))
        return err_set(e, ERR_INVALID, "payload slots: %u of %u and %u of %u bytes are outside the limits",
                       c.n_big, c.big_bytes, c.n_small, c.small_bytes);
    c.big_bytes = (uint32_t)ALIGN_UP((size_t)c.big_bytes, SLOTS_ALIGN);
    c.small_bytes = (uint32_t)ALIGN_UP((size_t)c.small_bytes, SLOTS_ALIGN);
    size_t bytes = (size_t)c.n_big * c.big_bytes + (size_t)c.n_small * c.small_bytes;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return err_errno(e, ERR_NOMEM, "%zu MiB of addresses for payloads cannot be reserved", bytes >> 20);
    struct slots *s = xcalloc(1, sizeof *s);
    s->config = c;
    s->base = base;
    s->bytes = bytes;
    s->n = c.n_big + c.n_small;
    pool_init(&s->big, c.n_big);
    pool_init(&s->small, c.n_small);
    s->slot = xcalloc(s->n, sizeof *s->slot);
    s->back = xcalloc((s->n + 63) / 64, sizeof *s->back);
    for (uint32_t i = 0; i < s->n; i++) s->slot[i].slots = s;
    s->wake = loop_wake_new(l, collect, s);
    *out = s;
    return 0;
}

static bool has_leases(const struct slots *s) {
    for (uint32_t i = 0; i < s->n; i++)
        if (s->slot[i].n_lease) return true;
    return false;
}

/* Of closed sockets zmq lets go in threads of its own; those of a context that others still use a
 * moment later. Who has given the last lease back may not have woken the loop yet. */
void slots_free(struct slots *s) {
    if (!s) return;
    collect(s);
    for (int ms = 0; has_leases(s) && ms < LEASES_MS; ms++) {
        clock_sleep_ms(1);
        collect(s);
    }
    for (uint32_t i = 0; i < s->n; i++) CHECK(s->slot[i].n_lease == 0);
    while (atomic_load_explicit(&s->n_returning, memory_order_acquire)) clock_sleep_ms(1);
    loop_wake_free(s->wake);
    munmap(s->base, s->bytes);
    pool_deinit(&s->big);
    pool_deinit(&s->small);
    free(s->slot);
    free(s->back);
    free(s);
}

/* ---- payloads ---- */

static struct payload take_from(struct slots *s, struct pool *pool, uint32_t first, uint32_t room,
                                size_t bytes) {
    int64_t i = pool_take(pool);
    if (i < 0) return (struct payload){ 0 };
    struct slot *slot = &s->slot[first + (uint32_t)i];
    slot->owned = true;
    slot->room = room;
    return (struct payload){ .slot = first + (uint32_t)i,
                             .generation = pool_handle(pool, (uint32_t)i).generation,
                             .bytes = (uint32_t)bytes };
}

struct payload slots_take(struct slots *s, size_t bytes) {
    struct payload p = { 0 };
    if (bytes > s->config.big_bytes) return p;
    const struct slots_config *c = &s->config;
    if (bytes <= c->small_bytes) p = take_from(s, &s->small, c->n_big, c->small_bytes, bytes);
    if (!p.generation) p = take_from(s, &s->big, 0, c->big_bytes, bytes);
    return p;
}

bool slots_has(const struct slots *s, struct payload p) {
    if (p.slot >= s->n || !s->slot[p.slot].owned) return false;
    bool big = p.slot < s->config.n_big;
    const struct pool *pool = big ? &s->big : &s->small;
    return pool->generation[big ? p.slot : p.slot - s->config.n_big] == p.generation;
}

void slots_give(struct slots *s, struct payload p) {
    if (!p.generation) return;
    CHECK(slots_has(s, p));
    s->slot[p.slot].owned = false;
    maybe_free(s, p.slot);
}

void *slots_data(const struct slots *s, struct payload p) {
    CHECK(slots_has(s, p) && p.offset <= s->slot[p.slot].room && p.bytes <= s->slot[p.slot].room - p.offset);
    size_t n_big = MIN(p.slot, s->config.n_big), n_small = p.slot - n_big;    /* slots before this one */
    return s->base + n_big * s->config.big_bytes + n_small * s->config.small_bytes + p.offset;
}

uint32_t slots_used(const struct slots *s) {
    return s->big.n_used + s->small.n_used;
}

uint32_t slots_bytes_max(const struct slots *s) {
    return s->config.big_bytes;
}

uint32_t slots_small_free(const struct slots *s) {
    return s->config.n_small - s->small.n_used;
}
