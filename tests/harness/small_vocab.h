/* small_vocab - builds byte-level vocabularies for tests, and merges with them the slow, obvious way.
 *
 * Starts with three control tokens and the 256 bytes, like the published one; then tokens and merges in
 * any order that a test likes. The caller owns the struct (large: make it static); texts live in its
 * arena. Header only. */
#ifndef HARNESS_SMALL_VOCAB_H
#define HARNESS_SMALL_VOCAB_H

#include "common/base/arena.h"
#include "common/base/check.h"
#include "common/base/utf8.h"
#include "common/model/tokenizer.h"

enum { SMALL_TOKENS_MAX = 4096, SMALL_BYTES_MAX = 64, SMALL_BYTE_FIRST = 3 };

struct small_vocab {
    struct tokenizer_vocab v;                         /* what the tokenizer is made from */
    struct gguf_str tokens[SMALL_TOKENS_MAX], merges[SMALL_TOKENS_MAX];
    int32_t kinds[SMALL_TOKENS_MAX];
    struct gguf_str raw[SMALL_TOKENS_MAX];            /* bytes of each token */
    struct small_rule { int32_t left, right, result; } rules[SMALL_TOKENS_MAX];
    struct arena texts;
};

static inline struct gguf_str small_text(struct small_vocab *s, const char *bytes, size_t n) {
    char *copy = arena_text(&s->texts, bytes, n);
    CHECK(copy);
    return (struct gguf_str){ copy, n };
}

/* The GPT-2 spelling of bytes: 188 of them stand for themselves, the others for U+0100 and up. */
static inline size_t small_spell(const char *bytes, size_t n, char *out) {
    size_t n_out = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t b = (uint8_t)bytes[i];
        uint32_t cp = b > 0x20 && b < 0x7f ? b : b <= 0x20 ? 0x100u + b : b <= 0xa0 ? 0x121u + b - 0x7f : b;
        n_out += utf8_encode(b == 0xad ? 0x143 : cp, out + n_out);
    }
    return n_out;
}

static inline int32_t small_token(struct small_vocab *s, const char *bytes, size_t n, enum token_kind kind) {
    char spelled[2 * SMALL_BYTES_MAX];
    uint32_t id = s->v.n_tokens++;
    CHECK(id < SMALL_TOKENS_MAX && n <= SMALL_BYTES_MAX);
    s->raw[id] = s->tokens[id] = small_text(s, bytes, n);
    if (kind == TOKEN_NORMAL) s->tokens[id] = small_text(s, spelled, small_spell(bytes, n, spelled));
    s->kinds[id] = kind;
    return (int32_t)id;
}

static inline int32_t small_added(struct small_vocab *s, const char *text, enum token_kind kind) {
    return small_token(s, text, strlen(text), kind);
}

static inline int32_t small_find(const struct small_vocab *s, const char *bytes, size_t n) {
    for (uint32_t id = 0; id < s->v.n_tokens; id++)
        if (s->kinds[id] == TOKEN_NORMAL && s->raw[id].len == n && memcmp(s->raw[id].data, bytes, n) == 0)
            return (int32_t)id;
    return -1;
}

/* The next rule; its result becomes a token unless it is one. False if it is there already or too long. */
static inline bool small_rule(struct small_vocab *s, int32_t left, int32_t right) {
    struct gguf_str a = s->raw[left], b = s->raw[right];
    char joined[SMALL_BYTES_MAX], text[4 * SMALL_BYTES_MAX + 1];
    if (a.len + b.len > sizeof joined) return false;
    for (uint32_t i = 0; i < s->v.n_merges; i++)
        if (s->rules[i].left == left && s->rules[i].right == right) return false;
    memcpy(joined, a.data, a.len);
    memcpy(joined + a.len, b.data, b.len);
    int32_t result = small_find(s, joined, a.len + b.len);
    if (result < 0) result = small_token(s, joined, a.len + b.len, TOKEN_NORMAL);
    size_t n = small_spell(a.data, a.len, text);
    text[n++] = ' ';
    n += small_spell(b.data, b.len, text + n);
    CHECK(s->v.n_merges < SMALL_TOKENS_MAX);
    s->merges[s->v.n_merges] = small_text(s, text, n);
    s->rules[s->v.n_merges++] = (struct small_rule){ left, right, result };
    return true;
}

/* The same by texts, both of which must be tokens. */
static inline void small_merge_texts(struct small_vocab *s, const char *left, const char *right) {
    CHECK(small_rule(s, small_find(s, left, strlen(left)), small_find(s, right, strlen(right))));
}

static inline void small_init(struct small_vocab *s) {
    memset(s, 0, sizeof *s);
    arena_init(&s->texts, 1 << 24);
    s->v.pre = (struct gguf_str){ "joyai-llm", 9 };
    s->v.tokens = s->tokens;
    s->v.kinds = s->kinds;
    s->v.merges = s->merges;
    s->v.bos_id = 0;
    s->v.eos_id = s->v.pad_id = 1;
    small_added(s, "<bos>", TOKEN_CONTROL);
    small_added(s, "<eos>", TOKEN_CONTROL);
    small_added(s, "<pad>", TOKEN_CONTROL);
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        small_token(s, &byte, 1, TOKEN_NORMAL);
    }
}

static inline void small_free(struct small_vocab *s) {
    arena_deinit(&s->texts);
}

/* Merging as defined: always the first rule that applies anywhere, at its leftmost place. */
static inline size_t small_merge(const struct small_vocab *s, const uint8_t *p, size_t n, int32_t *ids) {
    for (size_t i = 0; i < n; i++) ids[i] = SMALL_BYTE_FIRST + p[i];
    for (uint32_t rank = 0; rank < s->v.n_merges;) {
        const struct small_rule *r = &s->rules[rank];
        size_t i = 0;
        while (i + 1 < n && (ids[i] != r->left || ids[i + 1] != r->right)) i++;
        if (i + 1 >= n) {
            rank++;
            continue;
        }
        ids[i] = r->result;
        memmove(ids + i + 1, ids + i + 2, (n - i - 2) * sizeof *ids);
        n--;
        rank = 0;                                     /* the new token may be in an earlier rule */
    }
    return n;
}

#endif
