/* tokenizer_vocab - builds the tables of tokenizer_private.h from a vocabulary, checking everything.
 *
 * A vocabulary comes from a file, so nothing in it is believed: lengths before memory is taken,
 * every token once, every byte there, every merge of two tokens into a third. The rank of a merge is
 * its position and decides alone; that in the published vocabulary rank k makes id 259 + k is not
 * relied on. */
#include "common/model/tokenizer_private.h"

#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/base/utf8.h"
#include "common/model/tokenizer_split.h"

#include <stdlib.h>

enum {
    BYTE_ALPHABET = 0x144,                            /* code points below this may spell bytes */
    V4_ADDED_FIRST = 128000, V4_SPECIAL_N = 3         /* added tokens where the file does not say */
};

struct loader {
    struct tokenizer *t;
    const struct tokenizer_vocab *v;
    struct err *e;
    int16_t byte_of[BYTE_ALPHABET];                   /* the byte that a code point spells, or -1 */
};

static void *take(struct loader *l, size_t count, size_t size) {
    void *memory = calloc(count + 1, size);           /* + 1: never a request for nothing */
    if (!memory) err_set(l->e, ERR_NOMEM, "no memory for a vocabulary of %u tokens", l->t->n_vocab);
    return memory;
}

/* Smallest shift for a table of at least 2n slots: it stays half empty, so look-ups end soon. */
static unsigned table_shift(size_t n) {
    unsigned bits = 1;
    while ((size_t)1 << bits < 2 * n) bits++;
    return 64 - bits;
}

/* ---- the byte alphabet ---- */

static bool spells_itself(int byte) {
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
}

static void alphabet_init(struct loader *l) {
    int next = 0x100;
    for (int cp = 0; cp < BYTE_ALPHABET; cp++) l->byte_of[cp] = -1;
    for (int byte = 0; byte < 256; byte++)
        l->byte_of[spells_itself(byte) ? byte : next++] = (int16_t)byte;
}

/* Bytes that a spelled string stands for (at most TOKENIZER_TOKEN_BYTES_MAX), or -1. */
static int alphabet_decode(const struct loader *l, const char *text, size_t len, uint8_t *out) {
    const uint8_t *p = (const uint8_t *)text, *end = p + len;
    int n = 0;
    while (p < end) {
        uint32_t cp;
        unsigned n_cp = utf8_decode(p, end, &cp);
        if (!n_cp || cp >= BYTE_ALPHABET || l->byte_of[cp] < 0) return -1;
        if (n == TOKENIZER_TOKEN_BYTES_MAX) return -1;
        out[n++] = (uint8_t)l->byte_of[cp];
        p += n_cp;
    }
    return n;
}

/* ---- tokens ---- */

static int token_kind(const struct loader *l, uint32_t id) {
    if (l->v->kinds) return l->v->kinds[id];
    return id < V4_SPECIAL_N || id >= V4_ADDED_FIRST ? TOKEN_USER : TOKEN_NORMAL;
}

static int load_token(struct loader *l, uint32_t id) {
    struct tokenizer *t = l->t;
    struct gguf_str text = l->v->tokens[id];
    uint8_t *out = t->bytes + t->bytes_at[id];
    int kind = token_kind(l, id), n = (int)text.len;
    if (kind < TOKEN_NORMAL || kind > TOKEN_UNUSED)
        return err_set(l->e, ERR_UNSUPPORTED, "token %u has type %d, known are 1 to 5", id, kind);
    if (text.len == 0) return err_set(l->e, ERR_CORRUPT, "token %u is empty", id);
    if (kind == TOKEN_NORMAL) {
        n = alphabet_decode(l, text.data, text.len, out);
        if (n < 0) return err_set(l->e, ERR_CORRUPT, "token %u is not spelled in the byte alphabet", id);
    } else {
        if (!utf8_valid(text.data, text.len)) return err_set(l->e, ERR_CORRUPT, "token %u is not UTF-8", id);
        memcpy(out, text.data, text.len);
    }
    t->kinds[id] = (uint8_t)kind;
    t->bytes_at[id + 1] = t->bytes_at[id] + (uint32_t)n;
    return 0;
}

static int load_tokens(struct loader *l) {
    struct tokenizer *t = l->t;
    uint64_t n_bytes = 0;
    for (uint32_t id = 0; id < t->n_vocab; id++) {    /* a byte is spelled with one or two */
        uint64_t len = l->v->tokens[id].len, limit = TOKENIZER_TOKEN_BYTES_MAX;
        if (len > (token_kind(l, id) == TOKEN_NORMAL ? 2 * limit : limit))
            return err_set(l->e, ERR_LIMIT, "token %u is longer than %d bytes", id,
                           TOKENIZER_TOKEN_BYTES_MAX);
        n_bytes += len;
    }
    t->bytes = take(l, n_bytes, 1);                   /* at most 2^31: 2^20 tokens of 2 KiB */
    t->bytes_at = take(l, t->n_vocab, sizeof *t->bytes_at);
    t->kinds = take(l, t->n_vocab, 1);
    if (!t->bytes || !t->bytes_at || !t->kinds) return ERR_NOMEM;
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        int rc = load_token(l, id);
        if (rc < 0) return rc;
    }
    return 0;
}

/* ---- normal tokens by their bytes ---- */

static struct piece_key long_key(const uint8_t *p, size_t len) {
    uint64_t hash = hash_64(p, len, 0);
    return (struct piece_key){ hash, (uint32_t)(hash >> 32) };
}

struct piece_slot *tokenizer_find_long_piece(const struct tokenizer *t, const uint8_t *p, size_t len) {
    static struct piece_slot none;                    /* empty for ever: nobody stores through it */
    if (len > t->piece_len_max) return &none;
    struct piece_key key = long_key(p, len);
    size_t mask = ((size_t)1 << (64 - t->piece_shift)) - 1;
    for (size_t i = piece_slot_of(t, key, len);; i = (i + 1) & mask) {
        struct piece_slot *s = &t->pieces[i];
        if (s->meta == 0) return s;
        if (s->lo == key.lo && s->meta >> PIECE_LEN_SHIFT == len &&
            memcmp(t->bytes + t->bytes_at[PIECE_ID(s->meta)], p, len) == 0) return s;
    }
}

static int add_piece(struct loader *l, uint32_t id) {
    struct tokenizer *t = l->t;
    const uint8_t *p = t->bytes + t->bytes_at[id];
    size_t len = t->bytes_at[id + 1] - t->bytes_at[id];
    t->piece_len_max = MAX(t->piece_len_max, (uint32_t)len);
    struct piece_slot *s = tokenizer_find_piece(t, p, len, len);
    if (s->meta)
        return err_set(l->e, ERR_CORRUPT, "tokens %u and %u are the same", PIECE_ID(s->meta), id);
    struct piece_key key = len > KEY_BYTES ? long_key(p, len) : piece_key(p, len, len);
    *s = (struct piece_slot){ key.lo, key.hi, (uint32_t)len << PIECE_LEN_SHIFT | id };
    return 0;
}

static int load_pieces(struct loader *l) {
    struct tokenizer *t = l->t;
    t->piece_shift = table_shift(t->n_vocab);
    t->pieces = take(l, (size_t)1 << (64 - t->piece_shift), sizeof *t->pieces);
    if (!t->pieces) return ERR_NOMEM;
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        int rc = t->kinds[id] == TOKEN_NORMAL ? add_piece(l, id) : 0;
        if (rc < 0) return rc;
    }
    for (int byte = 0; byte < 256; byte++) {
        uint8_t text = (uint8_t)byte;
        uint32_t meta = tokenizer_find_piece(t, &text, 1, 1)->meta;
        if (!meta) return err_set(l->e, ERR_CORRUPT, "no token for the byte 0x%02x", (unsigned)byte);
        t->byte_id[byte] = PIECE_ID(meta);
    }
    return 0;
}

/* ---- merges ---- */

static int put_pair(struct loader *l, uint32_t left, uint32_t right, uint32_t rank) {
    struct tokenizer *t = l->t;
    uint32_t before = pair_rank(t, left, right);
    if (before != RANK_NONE)
        return err_set(l->e, ERR_CORRUPT, "merges %u and %u are the same", before, rank);
    uint64_t key = pair_key(left, right), hash = pair_hash(key);
    size_t mask = ((size_t)1 << (64 - t->pair_shift)) - 1, i = hash >> t->pair_shift;
    t->pair_filter[i] |= pair_filter_bit(t, hash);
    while (t->pairs[i] != PAIR_EMPTY) i = (i + 1) & mask;
    t->pairs[i] = key << PAIR_RANK_BITS | rank;
    return 0;
}

/* The id of a normal token, or -1. */
static int find_normal(const struct tokenizer *t, const uint8_t *p, int len) {
    uint32_t meta = len > 0 ? tokenizer_find_piece(t, p, (size_t)len, (size_t)len)->meta : 0;
    return meta ? (int)PIECE_ID(meta) : -1;
}

static int load_merge(struct loader *l, uint32_t rank) {
    uint8_t text[2 * TOKENIZER_TOKEN_BYTES_MAX];
    struct gguf_str s = l->v->merges[rank];
    const char *space = s.len ? memchr(s.data, ' ', s.len) : NULL;
    if (!space) return err_set(l->e, ERR_CORRUPT, "merge %u is not two tokens with a space between", rank);
    size_t n_left = (size_t)(space - s.data);
    int left_len = alphabet_decode(l, s.data, n_left, text);
    int right_len = left_len < 0 ? -1 : alphabet_decode(l, space + 1, s.len - n_left - 1, text + left_len);
    if (right_len < 0)
        return err_set(l->e, ERR_CORRUPT, "merge %u is not spelled in the byte alphabet", rank);
    int left = find_normal(l->t, text, left_len), right = find_normal(l->t, text + left_len, right_len);
    if (left < 0 || right < 0)
        return err_set(l->e, ERR_CORRUPT, "merge %u: its %s half is no token", rank,
                       left < 0 ? "left" : "right");
    int merged = find_normal(l->t, text, left_len + right_len);
    if (merged < 0) return err_set(l->e, ERR_CORRUPT, "merge %u: its result is no token", rank);
    l->t->merged_id[rank] = (uint32_t)merged;
    return put_pair(l, (uint32_t)left, (uint32_t)right, rank);
}

static int load_merges(struct loader *l) {
    struct tokenizer *t = l->t;
    t->pair_shift = table_shift(t->n_merges);
    size_t n_slots = (size_t)1 << (64 - t->pair_shift);
    t->pairs = take(l, n_slots, sizeof *t->pairs);
    t->pair_filter = take(l, n_slots, 1);
    t->merged_id = take(l, t->n_merges, sizeof *t->merged_id);
    t->byte_pair_rank = take(l, 65536, sizeof *t->byte_pair_rank);
    if (!t->pairs || !t->pair_filter || !t->merged_id || !t->byte_pair_rank) return ERR_NOMEM;
    memset(t->pairs, 0xff, n_slots * sizeof *t->pairs);
    for (uint32_t rank = 0; rank < t->n_merges; rank++) {
        int rc = load_merge(l, rank);
        if (rc < 0) return rc;
    }
    for (uint32_t i = 0; i < 65536; i++)
        t->byte_pair_rank[i] = pair_rank(t, t->byte_id[i >> 8], t->byte_id[i & 255]);
    return 0;
}

/* A token that its own bytes do not merge to (published vocabularies have few) may not stand for them. */
static int mark_whole_pieces(struct loader *l) {
    struct tokenizer *t = l->t;
    struct bpe_scratch scratch = { 0 };
    int32_t ids[TOKENIZER_TOKEN_BYTES_MAX];
    int rc = 0;
    for (uint32_t id = 0; id < t->n_vocab && rc == 0; id++) {
        if (t->kinds[id] != TOKEN_NORMAL) continue;
        const uint8_t *p = t->bytes + t->bytes_at[id];
        size_t len = t->bytes_at[id + 1] - t->bytes_at[id], n;
        rc = tokenizer_merge(t, &scratch, p, len, ids, &n, l->e);
        if (rc == 0 && n == 1) tokenizer_find_piece(t, p, len, len)->meta |= PIECE_WHOLE;
    }
    free(scratch.memory);
    return rc;
}

static void mark_joints(struct tokenizer *t, const uint8_t *p, const uint8_t *end) {
    for (const uint8_t *at = p + 1; at < end; at++) {
        if (*at < JOINT_LEAD_MIN) continue;
        bool edge = at - p < 2 || end - at < 2;
        uint32_t i = edge ? edge_joint_bit(at) : joint_bit(at);
        uint8_t *bits = edge ? t->edge_joints : t->joints;
        bits[i >> 3] |= (uint8_t)(1 << (i & 7));
    }
}

static int load_joints(struct loader *l) {
    struct tokenizer *t = l->t;
    t->joints = take(l, (1 << JOINT_BITS) / 8, 1);
    if (!t->joints) return ERR_NOMEM;
    for (uint32_t rank = 0; rank < t->n_merges; rank++) {
        uint32_t id = t->merged_id[rank];
        mark_joints(t, t->bytes + t->bytes_at[id], t->bytes + t->bytes_at[id + 1]);
    }
    return 0;
}

/* ---- added tokens ---- */

static uint32_t trie_add(struct tokenizer *t, uint8_t byte) {
    t->trie[++t->n_trie] = (struct trie_node){ .id = -1, .byte = byte };
    return t->n_trie;
}

static int add_added(struct loader *l, uint32_t id) {
    struct tokenizer *t = l->t;
    const uint8_t *p = t->bytes + t->bytes_at[id], *end = t->bytes + t->bytes_at[id + 1];
    uint32_t at = t->trie_first[*p];
    if (!at) at = t->trie_first[*p] = trie_add(t, *p);
    while (++p < end) {
        uint32_t child = t->trie[at].child;
        while (child && t->trie[child].byte != *p) child = t->trie[child].sibling;
        if (!child) {
            child = trie_add(t, *p);
            t->trie[child].sibling = t->trie[at].child;
            t->trie[at].child = child;
        }
        at = child;
    }
    if (t->trie[at].id >= 0)
        return err_set(l->e, ERR_CORRUPT, "tokens %d and %u are the same", t->trie[at].id, id);
    t->trie[at].id = (int32_t)id;
    return 0;
}

static bool is_added(const struct tokenizer *t, uint32_t id) {
    return t->kinds[id] == TOKEN_CONTROL || t->kinds[id] == TOKEN_USER;
}

static int load_added(struct loader *l) {
    struct tokenizer *t = l->t;
    size_t n_bytes = 0;
    for (uint32_t id = 0; id < t->n_vocab; id++)
        if (is_added(t, id)) n_bytes += t->bytes_at[id + 1] - t->bytes_at[id];
    t->trie = take(l, n_bytes + 1, sizeof *t->trie);  /* a byte makes at most one node; 0 is none */
    if (!t->trie) return ERR_NOMEM;
    for (uint32_t id = 0; id < t->n_vocab; id++) {
        int rc = is_added(t, id) ? add_added(l, id) : 0;
        if (rc < 0) return rc;
    }
    return 0;
}

static int load_special_id(struct loader *l, const char *name, int32_t id, int32_t *out) {
    if (id < -1 || id >= (int64_t)l->t->n_vocab)
        return err_set(l->e, ERR_CORRUPT, "the %s token is %d, the vocabulary has %u", name, id,
                       l->t->n_vocab);
    *out = id;
    return 0;
}

/* ---- the whole ---- */

static bool str_is(struct gguf_str s, const char *text) {
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static int check_vocab(const struct tokenizer_vocab *v, struct err *e) {
    if (!str_is(v->pre, "joyai-llm") && !str_is(v->pre, "deepseek-v3"))
        return err_set(e, ERR_UNSUPPORTED,
                       "splitting rule \"%.*s\" is not known, only joyai-llm and deepseek-v3",
                       tokenizer_shown(v->pre), v->pre.len ? v->pre.data : "");
    if (v->n_tokens == 0 || v->n_tokens > TOKENIZER_VOCAB_MAX)
        return err_set(e, ERR_LIMIT, "%u tokens, the limit is %d", v->n_tokens, TOKENIZER_VOCAB_MAX);
    if (v->n_merges > TOKENIZER_MERGES_MAX)
        return err_set(e, ERR_LIMIT, "%u merges, the limit is %d", v->n_merges, TOKENIZER_MERGES_MAX);
    return 0;
}

static int load_all(struct loader *l) {
    int rc = load_tokens(l);
    if (rc == 0) rc = load_pieces(l);
    if (rc == 0) rc = load_merges(l);
    if (rc == 0) rc = mark_whole_pieces(l);
    if (rc == 0) rc = load_joints(l);
    if (rc == 0) rc = load_added(l);
    if (rc == 0) rc = load_special_id(l, "begin-of-sentence", l->v->bos_id, &l->t->bos_id);
    if (rc == 0) rc = load_special_id(l, "end-of-sentence", l->v->eos_id, &l->t->eos_id);
    if (rc == 0) rc = load_special_id(l, "padding", l->v->pad_id, &l->t->pad_id);
    return rc;
}

int tokenizer_new_vocab(struct tokenizer **out, const struct tokenizer_vocab *v, struct err *e) {
    int rc = check_vocab(v, e);
    if (rc < 0) return rc;
    struct loader l = { .t = xcalloc(1, sizeof *l.t), .v = v, .e = e };
    l.t->n_vocab = v->n_tokens;
    l.t->n_merges = v->n_merges;
    alphabet_init(&l);
    tokenizer_split_init();
    rc = load_all(&l);
    if (rc < 0) {
        tokenizer_free(l.t);
        return rc;
    }
    *out = l.t;
    return 0;
}

void tokenizer_free(struct tokenizer *t) {
    if (!t) return;
    free(t->bytes);
    free(t->bytes_at);
    free(t->kinds);
    free(t->pieces);
    free(t->pairs);
    free(t->pair_filter);
    free(t->merged_id);
    free(t->byte_pair_rank);
    free(t->joints);
    free(t->trie);
    free(t);
}
