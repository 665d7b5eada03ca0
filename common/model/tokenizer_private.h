/* tokenizer_private - the tables behind tokenizer.h and the two look-ups that encoding consists of.
 *
 * For tokenizer.c (uses them), tokenizer_vocab.c (fills them), tokenizer_bpe.c and tests.
 * Everything here is written once, while loading, and read by all threads afterwards. */
#ifndef MODEL_TOKENIZER_PRIVATE_H
#define MODEL_TOKENIZER_PRIVATE_H

#include "common/model/tokenizer.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "piece keys and GGUF files are little-endian"
#endif

/* A merge rule in one word, so that a look-up costs one cache line: left id, right id, rank. Most
 * pairs have no rule: a filter with a byte per slot, which stays in the cache, answers for them. */
enum { PAIR_ID_BITS = 20, PAIR_RANK_BITS = 24 };
#define PAIR_EMPTY UINT64_MAX
#define RANK_NONE UINT32_MAX

/* Normal tokens by their bytes. Up to KEY_BYTES bytes stand in the slot itself; of longer ones it
 * holds a hash, and the bytes are compared where they lie. */
enum { KEY_BYTES = 12 };
struct piece_slot {
    uint64_t lo;
    uint32_t hi;
    uint32_t meta;                                    /* length, PIECE_WHOLE, id; 0: empty slot */
};
enum { PIECE_WHOLE = 1 << PAIR_ID_BITS, PIECE_LEN_SHIFT = PAIR_ID_BITS + 1 };
#define PIECE_ID(meta)                                                                             \
    ((meta) & (PIECE_WHOLE - 1u)) /* PIECE_WHOLE: merging its bytes gives just this token */

/* Added tokens as a tree of bytes: children of a node are a list. Node 0 means none. */
struct trie_node {
    uint32_t child, sibling;
    int32_t id;                                       /* -1: no token ends here */
    uint8_t byte;
};

struct tokenizer {
    uint32_t n_vocab, n_merges;
    int32_t bos_id, eos_id, pad_id;
    uint8_t *bytes;                                   /* of all tokens, one after the other */
    uint32_t *bytes_at;                               /* [n_vocab + 1] where each starts */
    uint8_t *kinds;
    uint32_t piece_len_max;
    struct piece_slot *pieces;
    uint64_t *pairs;
    uint8_t *pair_filter;                             /* one of 8 bits, by the hash, per rule */
    unsigned piece_shift, pair_shift;                 /* 64 - log2(slots) */
    uint32_t *merged_id;                              /* by rank */
    uint32_t *byte_pair_rank;                         /* [65536] the rules between two single bytes */
    uint32_t byte_id[256];
    uint8_t *joints;                                  /* see tokenizer_is_joint */
    uint8_t edge_joints[65536 / 8];
    struct trie_node *trie;
    uint32_t n_trie, trie_first[256];                 /* node for a first byte */
};

/* How much of a string from a file may stand in a message: printable ASCII from its start, at most 40. */
static inline int tokenizer_shown(struct gguf_str s) {
    int n = 0;
    while (n < 40 && (uint64_t)n < s.len && s.data[n] >= 0x20 && s.data[n] < 0x7f) n++;
    return n;
}

/* ---- merge rules ---- */

static inline uint64_t pair_key(uint32_t left, uint32_t right) {
    return (uint64_t)left << PAIR_ID_BITS | right;
}

static inline uint64_t pair_hash(uint64_t key) {
    return key * 0x9e3779b97f4a7c15u;
}

static inline uint8_t pair_filter_bit(const struct tokenizer *t, uint64_t hash) {
    return (uint8_t)(1u << (hash >> (t->pair_shift - 3) & 7));        /* the three bits below the slot's */
}

/* Rank of the rule that merges the two ids, or RANK_NONE. */
static inline uint32_t pair_rank(const struct tokenizer *t, uint32_t left, uint32_t right) {
    uint64_t key = pair_key(left, right), hash = pair_hash(key);
    size_t mask = ((size_t)1 << (64 - t->pair_shift)) - 1, i = hash >> t->pair_shift;
    if (!(t->pair_filter[i] & pair_filter_bit(t, hash))) return RANK_NONE;
    for (;; i = (i + 1) & mask) {
        uint64_t slot = t->pairs[i];
        if (slot >> PAIR_RANK_BITS == key) return slot & ((1u << PAIR_RANK_BITS) - 1);
        if (slot == PAIR_EMPTY) return RANK_NONE;
    }
}

/* ---- pieces ---- */

struct piece_key { uint64_t lo; uint32_t hi; };

/* `readable` is how many bytes may be read at p, at least len. */
static inline struct piece_key piece_key(const uint8_t *p, size_t len, size_t readable) {
    struct piece_key key = { 0, 0 };
    if (readable < KEY_BYTES) {
        uint8_t padded[KEY_BYTES] = { 0 };
        memcpy(padded, p, len);
        memcpy(&key.lo, padded, 8);
        memcpy(&key.hi, padded + 8, 4);
        return key;
    }
    memcpy(&key.lo, p, 8);
    memcpy(&key.hi, p + 8, 4);
    if (len < 8) key.lo &= ~(uint64_t)0 >> (64 - 8 * len);
    key.hi = len <= 8 ? 0 : key.hi & ~(uint32_t)0 >> (96 - 8 * len);
    return key;
}

static inline size_t piece_slot_of(const struct tokenizer *t, struct piece_key key, size_t len) {
    uint64_t x = key.lo ^ ((uint64_t)key.hi << 24 | len) * 0xc2b2ae3d27d4eb4fu;
    x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u;
    return (x ^ x >> 29) * 0xbf58476d1ce4e5b9u >> t->piece_shift;
}

/* The slot of a token with these bytes, or the empty one where it would be. 0 < len. */
struct piece_slot *tokenizer_find_long_piece(const struct tokenizer *t, const uint8_t *p, size_t len);

static inline struct piece_slot *tokenizer_find_piece(const struct tokenizer *t, const uint8_t *p,
                                                      size_t len, size_t readable) {
    if (len > KEY_BYTES) return tokenizer_find_long_piece(t, p, len);
    struct piece_key key = piece_key(p, len, readable);
    size_t mask = ((size_t)1 << (64 - t->piece_shift)) - 1;
    for (size_t i = piece_slot_of(t, key, len);; i = (i + 1) & mask) {
        struct piece_slot *s = &t->pieces[i];
        if (s->meta == 0) return s;
        if (s->lo == key.lo && s->hi == key.hi && s->meta >> PIECE_LEN_SHIFT == len) return s;
    }
}

/* ---- joints ---- */

/* Where a piece may be cut without changing its ids: between two bytes that no token spans, since
 * then no merge ever does. Chinese runs have such places after most words, and what lies between
 * them is usually a token as it stands. Looked for in front of the lead byte of a three-byte
 * character, with the two bytes on either side; tokens that have only one byte on a side are kept
 * apart. A set bit that another token set costs a cut, never an id. */
enum { JOINT_BITS = 20, JOINT_LEAD_MIN = 0xe0 };

static inline uint32_t joint_bit(const uint8_t *at) {
    uint32_t bytes;
    memcpy(&bytes, at - 2, 4);
    return bytes * 0x9e3779b1u >> (32 - JOINT_BITS);
}

static inline uint32_t edge_joint_bit(const uint8_t *at) {
    return (uint32_t)at[-1] << 8 | at[0];
}

/* Whether some token may span the place in front of `at`; two bytes must lie on either side. */
static inline bool tokenizer_is_joint(const struct tokenizer *t, const uint8_t *at) {
    uint32_t i = joint_bit(at), k = edge_joint_bit(at);
    return (t->joints[i >> 3] >> (i & 7) & 1) || (t->edge_joints[k >> 3] >> (k & 7) & 1);
}

/* ---- merging (tokenizer_bpe.c) ---- */

/* Memory for long pieces, kept from one to the next; start with { 0 }, free `memory` at the end. */
struct bpe_scratch {
    void *memory;
    size_t len_max;                                   /* longest piece it is enough for */
};
/* Writes the ids of a piece (0 < len), at most len of them, and their number. Only ERR_NOMEM can go wrong. */
int tokenizer_merge(const struct tokenizer *t, struct bpe_scratch *scratch, const uint8_t *piece,
                    size_t len, int32_t *ids, size_t *n_ids, struct err *e);

#endif
