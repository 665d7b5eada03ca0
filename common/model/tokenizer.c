/* tokenizer - see the header: cutting at added tokens, encoding piece by piece, looking tokens up.
 *
 * Most pieces are a token as they stand, and for the tokens that merging their own bytes gives back
 * (nearly all; found out while loading) one hash look-up replaces the merging. Of the others, long
 * runs of Chinese fall apart at places that no token spans, and mostly into whole tokens again. */
#include "common/model/tokenizer_private.h"

#include "common/model/tokenizer_split.h"

#include <stdlib.h>

/* ---- ids ---- */

static int token_buf_reserve(struct token_buf *b, size_t n, struct err *e) {
    if (n <= b->n_room - b->n) return 0;
    size_t n_room = MAX(b->n + n, b->n_room + b->n_room / 2);
    int32_t *ids = realloc(b->ids, n_room * sizeof *ids);
    if (!ids) return err_set(e, ERR_NOMEM, "no room for %zu token ids", n_room);
    b->ids = ids;
    b->n_room = n_room;
    return 0;
}

int token_buf_push(struct token_buf *b, int32_t id, struct err *e) {
    int rc = token_buf_reserve(b, 1, e);
    if (rc < 0) return rc;
    b->ids[b->n++] = id;
    return 0;
}

void token_buf_free(struct token_buf *b) {
    free(b->ids);
    *b = (struct token_buf){ 0 };
}

/* ---- encoding ---- */

struct encoding {
    const struct tokenizer *t;
    const uint8_t *text_end;
    struct token_buf *out;
    struct bpe_scratch scratch;
    struct err *e;
};

/* Takes p[0..len) as one token if that is what merging would give. There must be room. */
static bool encode_whole(struct encoding *en, const uint8_t *p, size_t len) {
    uint32_t meta = tokenizer_find_piece(en->t, p, len, (size_t)(en->text_end - p))->meta;
    if (!(meta & PIECE_WHOLE)) return false;
    en->out->ids[en->out->n++] = (int32_t)PIECE_ID(meta);
    return true;
}

static int encode_by_merging(struct encoding *en, const uint8_t *p, size_t len) {
    size_t n = 0;
    int rc = tokenizer_merge(en->t, &en->scratch, p, len, en->out->ids + en->out->n, &n, en->e);
    en->out->n += n;
    return rc;
}

/* The first place in (p, end) that no token spans, or end. */
static const uint8_t *next_cut(const struct tokenizer *t, const uint8_t *p, const uint8_t *end) {
    for (const uint8_t *at = p + 2; at + 1 < end; at++)
        if (*at >= JOINT_LEAD_MIN && !tokenizer_is_joint(t, at)) return at;
    return end;
}

static int encode_piece(struct encoding *en, const uint8_t *p, const uint8_t *end) {
    int rc = token_buf_reserve(en->out, (size_t)(end - p), en->e);
    if (rc < 0 || encode_whole(en, p, (size_t)(end - p))) return rc;
    const uint8_t *cut = next_cut(en->t, p, end);
    if (cut == end) return encode_by_merging(en, p, (size_t)(end - p));
    while (p < end && rc == 0) {
        if (!encode_whole(en, p, (size_t)(cut - p))) rc = encode_by_merging(en, p, (size_t)(cut - p));
        p = cut;
        cut = p < end ? next_cut(en->t, p, end) : end;
    }
    return rc;
}

static int encode_plain(struct encoding *en, const uint8_t *p, const uint8_t *end) {
    int rc = 0;
    while (p < end && rc == 0) {
        const uint8_t *next = tokenizer_split_next(p, end);
        rc = encode_piece(en, p, next);
        p = next;
    }
    return rc;
}

/* The longest added token that starts at p: its id and, in *len, its bytes; -1 if none does. */
static int32_t added_at(const struct tokenizer *t, const uint8_t *p, const uint8_t *end, size_t *len) {
    int32_t id = -1;
    uint32_t i = t->trie_first[*p];
    for (const uint8_t *q = p; i;) {
        const struct trie_node *node = &t->trie[i];
        q++;
        if (node->id >= 0) {
            id = node->id;
            *len = (size_t)(q - p);
        }
        if (q == end) break;
        for (i = node->child; i && t->trie[i].byte != *q;) i = t->trie[i].sibling;
    }
    return id;
}

static int encode_special(struct encoding *en, const uint8_t *p) {
    const uint8_t *plain = p;
    int rc = 0;
    while (p < en->text_end && rc == 0) {
        size_t len = 0;
        int32_t id = en->t->trie_first[*p] ? added_at(en->t, p, en->text_end, &len) : -1;
        if (id < 0) {
            p++;
            continue;
        }
        rc = encode_plain(en, plain, p);
        if (rc == 0) rc = token_buf_push(en->out, id, en->e);
        plain = p += len;
    }
    return rc < 0 ? rc : encode_plain(en, plain, en->text_end);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool parse_special,
                     struct token_buf *out, struct err *e) {
    if (len == 0) return 0;                           /* text may be NULL then */
    if (len > TOKENIZER_TEXT_MAX)
        return err_set(e, ERR_LIMIT, "text of %zu bytes, at most %d are encoded", len, TOKENIZER_TEXT_MAX);
    const uint8_t *p = (const uint8_t *)text;
    struct encoding en = { .t = t, .text_end = p + len, .out = out, .e = e };
    size_t n_before = out->n;
    int rc = parse_special ? encode_special(&en, p) : encode_plain(&en, p, en.text_end);
    free(en.scratch.memory);
    if (rc < 0) out->n = n_before;
    return rc;
}

/* ---- looking up ---- */

uint32_t tokenizer_n_vocab(const struct tokenizer *t) {
    return t->n_vocab;
}

int32_t tokenizer_bos(const struct tokenizer *t) {
    return t->bos_id;
}

int32_t tokenizer_eos(const struct tokenizer *t) {
    return t->eos_id;
}

int32_t tokenizer_pad(const struct tokenizer *t) {
    return t->pad_id;
}

int32_t tokenizer_find_added(const struct tokenizer *t, const char *text) {
    size_t len = strlen(text), n = 0;
    if (len == 0) return -1;
    const uint8_t *p = (const uint8_t *)text;
    int32_t id = added_at(t, p, p + len, &n);
    return n == len ? id : -1;
}

const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, size_t *len) {
    *len = 0;
    if (id < 0 || (uint32_t)id >= t->n_vocab) return NULL;
    *len = t->bytes_at[id + 1] - t->bytes_at[id];
    return (const char *)t->bytes + t->bytes_at[id];
}

enum token_kind tokenizer_token_kind(const struct tokenizer *t, int32_t id) {
    return id < 0 || (uint32_t)id >= t->n_vocab ? (enum token_kind)0 : (enum token_kind)t->kinds[id];
}
