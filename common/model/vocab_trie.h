/* vocab_trie - the normal tokens of a vocabulary as a tree of bytes, for asking "which tokens may come?".
 *
 * The tree is one array in preorder: a walk goes from node to node, and over a whole branch at once where
 * a byte does not fit. Most tokens are plain text (whole characters, nothing that JSON or markup would
 * care about): where any plain text may come, a ready set of them is used and only the others are
 * walked. Added tokens ("<think>") are not in it. Immutable after _new, any thread; keeps nothing of the
 * tokenizer. About 20 bytes per byte of the vocabulary. */
#ifndef MODEL_VOCAB_TRIE_H
#define MODEL_VOCAB_TRIE_H

#include "common/model/tokenizer.h"

enum { VOCAB_PLAIN_CHARS_MAX = 48 };

struct vocab_node {
    uint32_t skip;                                /* the next node that is not below this one */
    int32_t token;                                /* that ends here; -1: none */
    uint16_t depth;                               /* 1 for first bytes */
    uint8_t byte;
};

struct vocab_tree {
    struct vocab_node *node;
    uint32_t n;
    uint16_t depth_max;
};

struct vocab_trie {
    uint32_t n_vocab, n_words;                    /* words of 64 bits in a set of tokens */
    struct vocab_tree all, odd;                   /* odd: those that are not plain */
    uint32_t n_plain;
    /* [0]: all plain tokens; [k]: those of at most k characters. Plain: whole UTF-8 characters, none of
     * them a control character, '"', '\\', '<' or the full-width bar U+FF5C of the tool markup. */
    uint64_t *plain[VOCAB_PLAIN_CHARS_MAX + 1];
};

int vocab_trie_new(struct vocab_trie **out, const struct tokenizer *t, struct err *e);
void vocab_trie_free(struct vocab_trie *v);       /* NULL is fine */

#endif
