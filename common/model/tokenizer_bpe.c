/* tokenizer_bpe - merges the bytes of one piece: always the pair with the lowest rank, the leftmost
 * of several, until no rule applies.
 *
 * Short pieces: arrays of ids and of the ranks between neighbours; find the least, close the gap.
 * Quadratic, but with tiny steps. Long pieces ("aaaa...", a page of Chinese): the same in a linked
 * list with a heap of (rank, position), O(n log n). An entry whose pair has changed since is stale
 * and skipped; since ids at a position only ever grow in bytes, a pair that is gone never returns,
 * so comparing ranks tells. The heap holds at most 2n entries: n - 1 at the start, and a merge takes
 * one out and puts at most two in. */
#include "common/model/tokenizer_private.h"

#include <stdlib.h>

enum { BPE_SHORT_MAX = 96 };

static uint32_t byte_pair_rank(const struct tokenizer *t, const uint8_t *p) {
    return t->byte_pair_rank[p[0] << 8 | p[1]];
}

/* ---- short pieces ---- */

static size_t least(const uint32_t *rank, size_t n) {
    size_t best = 0;
    uint32_t best_rank = rank[0];
    for (size_t i = 1; i < n; i++) {
        bool less = rank[i] < best_rank;
        best = less ? i : best;
        best_rank = less ? rank[i] : best_rank;
    }
    return best;
}

static size_t merge_short(const struct tokenizer *t, const uint8_t *piece, size_t n, int32_t *ids) {
    uint32_t id[BPE_SHORT_MAX], rank[BPE_SHORT_MAX];  /* rank[i]: of the pair i, i + 1 */
    for (size_t i = 0; i < n; i++) id[i] = t->byte_id[piece[i]];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = byte_pair_rank(t, piece + i);
    while (n > 1) {
        size_t i = least(rank, n - 1);
        if (rank[i] == RANK_NONE) break;
        id[i] = t->merged_id[rank[i]];
        n--;
        memmove(id + i + 1, id + i + 2, (n - i - 1) * sizeof *id);
        memmove(rank + i, rank + i + 1, (n - i - 1) * sizeof *rank);
        if (i + 1 < n) rank[i] = pair_rank(t, id[i], id[i + 1]);
        if (i > 0) rank[i - 1] = pair_rank(t, id[i - 1], id[i]);
    }
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)id[i];
    return n;
}

/* ---- long pieces ---- */

struct bpe_node {
    uint32_t id, prev, next;                      /* positions; `len` ends the list, prev of 0 is itself */
    uint32_t rank;                                    /* of the pair with the next */
};

struct bpe_list {
    const struct tokenizer *t;
    struct bpe_node *node;
    uint64_t *heap;                                   /* rank << 32 | position, least first */
    size_t n_heap;
    uint32_t len;
};

static void heap_sink(uint64_t *heap, size_t n, size_t i) {
    uint64_t moving = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (moving <= heap[child]) break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

static void heap_push(struct bpe_list *l, uint64_t entry) {
    size_t i = l->n_heap++;
    for (size_t parent; i > 0 && l->heap[parent = (i - 1) / 2] > entry; i = parent)
        l->heap[i] = l->heap[parent];
    l->heap[i] = entry;
}

static uint64_t heap_pop(struct bpe_list *l) {
    uint64_t top = l->heap[0];
    l->heap[0] = l->heap[--l->n_heap];
    if (l->n_heap) heap_sink(l->heap, l->n_heap, 0);
    return top;
}

static void list_start(struct bpe_list *l, const uint8_t *piece) {
    for (uint32_t i = 0; i < l->len; i++) {
        uint32_t rank = i + 1 < l->len ? byte_pair_rank(l->t, piece + i) : RANK_NONE;
        l->node[i] = (struct bpe_node){ l->t->byte_id[piece[i]], i ? i - 1 : 0, i + 1, rank };
        if (rank != RANK_NONE) l->heap[l->n_heap++] = (uint64_t)rank << 32 | i;
    }
    for (size_t i = l->n_heap / 2; i-- > 0;) heap_sink(l->heap, l->n_heap, i);
}

static void list_rank(struct bpe_list *l, uint32_t at) {
    struct bpe_node *node = &l->node[at];
    bool is_last = node->next == l->len;
    node->rank = is_last ? RANK_NONE : pair_rank(l->t, node->id, l->node[node->next].id);
    if (node->rank != RANK_NONE) heap_push(l, (uint64_t)node->rank << 32 | at);
}

static void list_merge(struct bpe_list *l, uint32_t at) {
    struct bpe_node *node = &l->node[at], *gone = &l->node[node->next];
    node->id = l->t->merged_id[node->rank];
    node->next = gone->next;
    gone->rank = RANK_NONE;
    if (node->next < l->len) l->node[node->next].prev = at;
    list_rank(l, at);
    if (at > 0) list_rank(l, node->prev);
}

static size_t merge_long(struct bpe_list *l, const uint8_t *piece, int32_t *ids) {
    list_start(l, piece);
    while (l->n_heap) {
        uint64_t top = heap_pop(l);
        uint32_t at = (uint32_t)top;
        if (l->node[at].rank == top >> 32) list_merge(l, at);
    }
    size_t n = 0;
    for (uint32_t at = 0; at < l->len; at = l->node[at].next) ids[n++] = (int32_t)l->node[at].id;
    return n;
}

static int scratch_reserve(struct bpe_scratch *scratch, size_t len, struct err *e) {
    if (len <= scratch->len_max) return 0;
    free(scratch->memory);
    size_t len_max = MAX(len, 4096), size = len_max * (sizeof(struct bpe_node) + 2 * sizeof(uint64_t));
    scratch->memory = malloc(size);
    scratch->len_max = scratch->memory ? len_max : 0;
    return scratch->memory ? 0 : err_set(e, ERR_NOMEM, "no %zu bytes for a piece of %zu", size, len);
}

int tokenizer_merge(const struct tokenizer *t, struct bpe_scratch *scratch, const uint8_t *piece,
                    size_t len, int32_t *ids, size_t *n_ids, struct err *e) {
    if (len <= BPE_SHORT_MAX) {
        *n_ids = merge_short(t, piece, len, ids);
        return 0;
    }
    int rc = scratch_reserve(scratch, len, e);
    if (rc < 0) return rc;
    struct bpe_list list = { .t = t, .node = scratch->memory, .len = (uint32_t)len };
    list.heap = (uint64_t *)(list.node + len);
    *n_ids = merge_long(&list, piece, ids);
    return 0;
}
