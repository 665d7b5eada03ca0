/* grammar_match - follows a text through a grammar and says which tokens may come next.
 *
 * A state is the set of all places where the text may be, each a node and a stack of open calls. States
 * and stacks are kept once each and get numbers, so "what does this byte do here" is a table that fills
 * as it is asked, and so are the sets of tokens. When the tables have grown to their limit everything
 * but the present state is forgotten. Places that could not be completed within the depth limit are never
 * entered: from every state there is a way to the end. One thread at a time; the grammar and the trie
 * are borrowed. */
#ifndef COORDINATOR_GRAMMAR_MATCH_H
#define COORDINATOR_GRAMMAR_MATCH_H

#include "common/model/vocab_trie.h"
#include "coordinator/grammar.h"

enum {
    MATCH_STATES_MAX = 2048,                      /* 1 KiB each and their places */
    MATCH_PLACES_MAX = 1 << 16,                   /* of all states, 8 bytes each */
    MATCH_WIDTH_MAX = 1024,                       /* of one state; the rest is dropped */
    MATCH_FRAMES_MAX = 1 << 15,                   /* 24 bytes each */
    MATCH_MASKS_MAX = 64                          /* 16 KiB each with the published vocabulary */
};

struct match;

int match_new(struct match **out, const struct grammar *g, const struct vocab_trie *v, struct err *e);
void match_free(struct match *m);                 /* NULL is fine */

/* False: the text does not fit, and the state is as it was. */
bool match_bytes(struct match *m, const char *bytes, size_t n);
bool match_symbol(struct match *m, int symbol);

bool match_may_end(const struct match *m);        /* the text is whole */
bool match_must_end(const struct match *m);       /* and nothing can follow */
bool match_allows(struct match *m, int symbol);
/* Whether all places have one of these flags; whether any has. */
bool match_all(const struct match *m, uint8_t flags);
bool match_any(const struct match *m, uint8_t flags);

/* The set of normal tokens that may come, of the trie's n_words; valid until the next call of m. */
const uint64_t *match_mask(struct match *m);

struct match_stats {
    uint64_t n_masks, n_masks_made, n_resets;
    uint32_t n_states, n_frames;
};
struct match_stats match_stats(const struct match *m);

#endif
