/* vocab_trie - see the header. Tokens are sorted by their bytes; then each needs only nodes for what it
 * does not share with the one before, and the nodes come out in preorder by themselves. */
#include "common/model/vocab_trie.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/utf8.h"

struct entry {
    const char *bytes;
    uint32_t len;
    int32_t id;
    bool plain;
};

static int entry_order(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, MIN(x->len, y->len));
    if (order) return order;
    if (x->len != y->len) return x->len < y->len ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* How many characters a plain token has, or 0. */
static uint32_t plain_chars(const char *bytes, uint32_t len) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < len;) {
        uint8_t c = (uint8_t)bytes[i];
        uint32_t size = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
        if (c < 0x20 || c == '"' || c == '\\' || c == '<' || c == 0x7f) return 0;
        if (size > len - i || !utf8_valid(bytes + i, size)) return 0;
        if (size == 3 && memcmp(bytes + i, "\xef\xbd\x9c", 3) == 0) return 0;
        i += size;
        n++;
    }
    return n;
}

/* ---- one tree ---- */

static size_t shared_bytes(const struct entry *a, const struct entry *b) {
    size_t n = 0, most = MIN(a->len, b->len);
    while (n < most && a->bytes[n] == b->bytes[n]) n++;
    return n;
}

static size_t count_nodes(const struct entry *entry, uint32_t n) {
    size_t n_nodes = 0;
    for (uint32_t i = 0; i < n; i++)
        n_nodes += entry[i].len - (i ? shared_bytes(&entry[i - 1], &entry[i]) : 0);
    return n_nodes;
}

/* From sorted entries. */
static int tree_build(struct vocab_tree *t, const struct entry *entry, uint32_t n, struct err *e) {
    uint32_t open[TOKENIZER_TOKEN_BYTES_MAX], n_open = 0;             /* the way to the last node */
    size_t n_nodes = count_nodes(entry, n);
    t->node = calloc(n_nodes + 1, sizeof *t->node);
    if (!t->node) return err_set(e, ERR_NOMEM, "a tree of %zu bytes of tokens", n_nodes);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t keep = i ? (uint32_t)shared_bytes(&entry[i - 1], &entry[i]) : 0;
        if (keep == entry[i].len) continue;       /* the same bytes again: the first of them is enough */
        while (n_open > keep) t->node[open[--n_open]].skip = t->n;
        for (; n_open < entry[i].len; t->n++) {
            t->node[t->n] = (struct vocab_node){ .token = -1, .byte = (uint8_t)entry[i].bytes[n_open] };
            open[n_open++] = t->n;
            t->node[t->n].depth = (uint16_t)n_open;
            t->depth_max = MAX(t->depth_max, (uint16_t)n_open);
        }
        t->node[open[n_open - 1]].token = entry[i].id;
    }
    while (n_open > 0) t->node[open[--n_open]].skip = t->n;
    return 0;
}

/* ---- the whole ---- */

static int fill_plain(struct vocab_trie *v, const struct entry *entry, uint32_t n, struct err *e) {
    for (int k = 0; k <= VOCAB_PLAIN_CHARS_MAX; k++) {
        v->plain[k] = calloc(v->n_words, sizeof *v->plain[k]);
        if (!v->plain[k]) return err_set(e, ERR_NOMEM, "sets of plain tokens");
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!entry[i].plain) continue;
        uint64_t bit = (uint64_t)1 << (entry[i].id & 63);
        uint32_t word = (uint32_t)entry[i].id >> 6, chars = plain_chars(entry[i].bytes, entry[i].len);
        v->n_plain++;
        v->plain[0][word] |= bit;
        for (uint32_t k = chars; k <= VOCAB_PLAIN_CHARS_MAX; k++) v->plain[k][word] |= bit;
    }
    return 0;
}

static int build(struct vocab_trie *v, struct entry *entry, uint32_t n, struct err *e) {
    uint32_t n_odd = 0;
    int rc = tree_build(&v->all, entry, n, e);
    if (rc == 0) rc = fill_plain(v, entry, n, e);
    for (uint32_t i = 0; i < n; i++)
        if (!entry[i].plain) entry[n_odd++] = entry[i];               /* still sorted */
    return rc < 0 ? rc : tree_build(&v->odd, entry, n_odd, e);
}

int vocab_trie_new(struct vocab_trie **out, const struct tokenizer *t, struct err *e) {
    uint32_t n_vocab = tokenizer_n_vocab(t), n = 0;
    struct vocab_trie *v = xcalloc(1, sizeof *v);
    struct entry *entry = calloc(n_vocab, sizeof *entry);
    int rc = entry ? 0 : err_set(e, ERR_NOMEM, "a tree of %u tokens", n_vocab);
    v->n_vocab = n_vocab;
    v->n_words = (n_vocab + 63) / 64;
    for (uint32_t id = 0; rc == 0 && id < n_vocab; id++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(t, (int32_t)id, &len);
        if (tokenizer_token_kind(t, (int32_t)id) != TOKEN_NORMAL || len == 0) continue;
        CHECK(len <= TOKENIZER_TOKEN_BYTES_MAX);
        entry[n++] = (struct entry){ bytes, (uint32_t)len, (int32_t)id,
                                     plain_chars(bytes, (uint32_t)len) > 0 };
    }
    if (rc == 0) {
        qsort(entry, n, sizeof *entry, entry_order);
        rc = build(v, entry, n, e);
    }
    free(entry);
    if (rc < 0) vocab_trie_free(v);
    else *out = v;
    return rc;
}

void vocab_trie_free(struct vocab_trie *v) {
    if (!v) return;
    free(v->all.node);
    free(v->odd.node);
    for (int k = 0; k <= VOCAB_PLAIN_CHARS_MAX; k++) free(v->plain[k]);
    free(v);
}
