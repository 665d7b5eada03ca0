/* grammar - what an answer may look like, byte by byte: a graph that can call parts of itself.
 *
 * A rule is a node from which a marked end can be reached. Edges carry a range of bytes (or one of the
 * symbols below, which stand for single added tokens), nothing, or a call: another rule, between min and
 * max times, then on. So repetition needs no copies, and nesting needs no depth; grammar_match.h walks
 * it. What cannot be completed (an empty choice, recursion without a way out) is found by
 * grammar_finish and never entered.
 *
 * Built by one thread, immutable after grammar_finish, then free for all. Errors of building stick (rc).
 * Limits: the enum below. */
#ifndef COORDINATOR_GRAMMAR_H
#define COORDINATOR_GRAMMAR_H

#include "common/base/err.h"
#include "common/base/types.h"
#include "common/model/chat_json.h"

enum {
    GRAMMAR_NODES_MAX = 1 << 17,
    GRAMMAR_EDGES_MAX = 1 << 18,
    GRAMMAR_DEPTH_MAX = 240,                      /* calls inside one another while matching */
    GRAMMAR_MANY = INT32_MAX                      /* max of a call: as often as you like */
};

/* Symbols beside the 256 bytes. */
enum { GRAMMAR_MARK = 256, GRAMMAR_THINK_END, GRAMMAR_SYMBOLS };

enum grammar_flag {
    GRAMMAR_END = 1,                              /* a rule may be over here */
    GRAMMAR_TEXT = 2,                             /* any plain token leads back to this very node */
    GRAMMAR_CHAR = 4,                             /* start of a rule that takes any plain character */
    GRAMMAR_SYNTAX = 8,                           /* the protocol's own words: no chance needed */
    GRAMMAR_FREE = 16                             /* nothing is asked of the model here yet */
};

enum grammar_edge_kind { GRAMMAR_BYTES, GRAMMAR_EMPTY, GRAMMAR_CALL };

struct grammar_edge {
    uint32_t next, to;                            /* next edge of the same node; 0: none */
    uint32_t rule;                                /* of a call */
    int32_t min, max;                             /* of a call */
    uint16_t lo, hi;                              /* of bytes */
    uint8_t kind;
};

struct grammar_node {
    uint32_t edge;                                /* first; 0: none */
    uint16_t need;                                /* depth of calls to the end of the rule, at least */
    uint8_t flags;
};

struct grammar {
    struct grammar_node *node;                    /* [0] is not used */
    struct grammar_edge *edge;                    /* [0] is not used */
    uint32_t n_node, n_edge, node_room, edge_room;
    uint32_t root;
    uint8_t flags;                                /* given to every new node */
    bool has_mark, has_think_end;                 /* the vocabulary has a token for it: else spelled */
    bool no_bar;                                  /* text must not contain the bar of tool markup */
    uint32_t rule_char, rule_raw_char, rule_ws, rule_value, rule_object,
        rule_digit; /* shared; 0: not built yet */
    int rc;
};

void grammar_init(struct grammar *g);
void grammar_deinit(struct grammar *g);           /* a zeroed struct is fine */

uint32_t grammar_node(struct grammar *g);
void grammar_mark(struct grammar *g, uint32_t node, uint8_t flags);
void grammar_bytes(struct grammar *g, uint32_t from, int lo, int hi, uint32_t to);
void grammar_empty(struct grammar *g, uint32_t from, uint32_t to);
void grammar_call(struct grammar *g, uint32_t from, uint32_t rule, int32_t min, int32_t max, uint32_t to);
void grammar_end(struct grammar *g, uint32_t node);

/* The same, with a new node to go on from as the result. */
uint32_t grammar_then_text(struct grammar *g, uint32_t from, struct chat_text text);
uint32_t grammar_then_word(struct grammar *g, uint32_t from, const char *word);
uint32_t grammar_then_call(struct grammar *g, uint32_t from, uint32_t rule, int32_t min, int32_t max);
/* A text with the mark of tool markup in it: that comes as its token. */
uint32_t grammar_then_markup(struct grammar *g, uint32_t from, const char *text);

/* A word of a tree of words: shares the beginning with those added before. The tree's nodes must have no
 * other edges. The node behind the word. */
uint32_t grammar_tree_add(struct grammar *g, uint32_t from, struct chat_text word);

/* Checks the whole and works out `need`. ERR_INVALID: no text fits the root, or a rule calls itself
 * without having read anything; ERR_LIMIT, ERR_NOMEM of building. */
int grammar_finish(struct grammar *g, uint32_t root, struct err *e);

enum { GRAMMAR_NEVER = UINT16_MAX };              /* need of what cannot be completed */

#endif
