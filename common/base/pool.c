#include "common/base/pool.h"

#include "common/base/check.h"

void pool_init(struct pool *p, uint32_t n) {
    uint32_t n_word = (n + 63) / 64;
    *p = (struct pool){ .n = n };
    p->generation = xcalloc(n, sizeof *p->generation);
    p->free_bits = xcalloc(n_word, sizeof *p->free_bits);
    for (uint32_t i = 0; i < n; i++) p->free_bits[i / 64] |= UINT64_C(1) << i % 64;
}

void pool_deinit(struct pool *p) {
    free(p->generation);
    free(p->free_bits);
    *p = (struct pool){ 0 };
}

int64_t pool_take(struct pool *p) {
    for (uint32_t w = 0; w < (p->n + 63) / 64; w++) {
        if (!p->free_bits[w]) continue;
        uint32_t i = w * 64 + (uint32_t)__builtin_ctzll(p->free_bits[w]);
        p->free_bits[w] &= p->free_bits[w] - 1;
        p->generation[i]++;
        p->n_used++;
        return i;
    }
    return -1;
}

void pool_give(struct pool *p, uint32_t index) {
    CHECK(pool_is_used(p, index));
    p->generation[index]++;
    p->free_bits[index / 64] |= UINT64_C(1) << index % 64;
    p->n_used--;
}
