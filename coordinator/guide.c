/* guide - a grammar of the whole answer, and what its state means for the next token.
 *
 *     answer := [ reasoning </think> ] body
 *     body   := JSON value  or  "\n\n" block of calls  or (free) text [ block of calls ]
 *
 * Three ways to use it. HOLD: every token must fit. INSIDE: text is free, and once a block has been opened
 * it must be right (tools that are strict). WATCH: nothing must be; what does not fit is given up on.
 * Before the end of reasoning a held answer may say anything but its end. Where tools were offered the
 * parser of answers reads along: what it has no more use for ends the answer, however it was spelt, and so
 * nobody has to cancel a token that is being computed already. */
#include "coordinator/guide.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/model/chat_format.h"
#include "common/model/dsml.h"
#include "coordinator/grammar_calls.h"
#include "coordinator/grammar_match.h"
#include "coordinator/grammar_schema.h"
#include "coordinator/grammar_text.h"

struct guide_vocab {
    const struct tokenizer *t;
    struct vocab_trie *trie;
    int32_t mark_id, think_end_id, eos_id;
    struct grammar watch[2];                      /* of WATCH, which asks for nothing; [1] with reasoning */
};

#define CALLS_OPEN_REST &CHAT_CALLS_OPEN[sizeof "<" CHAT_DSML - 1]

enum use { HOLD, INSIDE, WATCH };

struct guide {
    struct service_guide head;
    const struct guide_vocab *v;
    struct grammar g;                             /* not of WATCH */
    struct match *match;
    struct dsml_stream *parser;                   /* NULL without tools */
    enum use use;
    bool lost;                                    /* the text left the grammar, or there is none: no advice */
    uint32_t reasoning_left;                      /* tokens until it has to end; UINT32_MAX: no matter */
    uint32_t n_end;                               /* bytes of </think> just read, where it is spelled */
    uint64_t *mask;
};

/* ---- one token ---- */

static void set_bit(struct guide *g, int32_t id) {
    if (id >= 0) g->mask[id >> 6] |= (uint64_t)1 << (id & 63);
}

static const uint64_t *allowed(struct guide *g) {
    const struct guide_vocab *v = g->v;
    memcpy(g->mask, match_mask(g->match), v->trie->n_words * sizeof *g->mask);
    if (v->mark_id >= 0 && match_allows(g->match, GRAMMAR_MARK)) set_bit(g, v->mark_id);
    if (v->think_end_id >= 0 && match_allows(g->match, GRAMMAR_THINK_END)) set_bit(g, v->think_end_id);
    if (match_may_end(g->match)) set_bit(g, v->eos_id);
    return g->mask;
}

static void guide_next(struct service_guide *head, struct service_steer *out) {
    struct guide *g = (struct guide *)head;
    *out = (struct service_steer){ .greedy = false };
    if (g->reasoning_left == 0) {
        memset(g->mask, 0, g->v->trie->n_words * sizeof *g->mask);
        set_bit(g, g->v->think_end_id);
        *out = (struct service_steer){ .greedy = true, .allowed = g->mask };
        return;
    }
    if (g->lost) return;
    out->greedy = match_all(g->match, GRAMMAR_SYNTAX);
    if (g->use == HOLD || (g->use == INSIDE && !match_any(g->match, GRAMMAR_FREE))) out->allowed = allowed(g);
}

static bool follows(struct guide *g, int32_t id) {
    size_t len;
    if (id == g->v->mark_id) return match_symbol(g->match, GRAMMAR_MARK);
    if (id == g->v->think_end_id && match_symbol(g->match, GRAMMAR_THINK_END)) return true;
    const char *bytes = tokenizer_token_bytes(g->v->t, id, &len);
    if (tokenizer_token_kind(g->v->t, id) != TOKEN_NORMAL)            /* an added token in free text */
        return match_any(g->match, GRAMMAR_FREE);
    return len == 0 || match_bytes(g->match, bytes, len);
}

/* The parser is done: the block is closed, or the one call that was wanted. */
static bool is_read(struct guide *g, int32_t id) {
    struct dsml_delta d;
    size_t len;
    const char *bytes = tokenizer_token_bytes(g->v->t, id, &len);
    if (!g->parser || dsml_stream_feed(g->parser, bytes, len) < 0) return false;
    while (dsml_stream_next(g->parser, &d)) {}
    return dsml_stream_done(g->parser);
}

/* Reasoning ends with its token, or with the same word from others. No beginning of the word comes again
 * inside it, so one that breaks off starts anew. */
static bool ends_reasoning(struct guide *g, int32_t id) {
    static const char word[] = CHAT_THINK_END;
    size_t len;
    const char *bytes = tokenizer_token_bytes(g->v->t, id, &len);
    for (size_t i = 0; i < len && g->n_end < sizeof word - 1; i++)
        g->n_end = bytes[i] == word[g->n_end] ? g->n_end + 1 : bytes[i] == word[0];
    return g->n_end == sizeof word - 1;
}

static void count_reasoning(struct guide *g, int32_t id) {
    if (g->reasoning_left == UINT32_MAX) return;
    if (ends_reasoning(g, id)) g->reasoning_left = UINT32_MAX;
    else g->reasoning_left--;
}

static bool guide_accept(struct service_guide *head, int32_t id) {
    struct guide *g = (struct guide *)head;
    if (id == g->v->eos_id) return true;
    count_reasoning(g, id);
    if (!g->lost) g->lost = !follows(g, id);
    return is_read(g, id) || (!g->lost && match_must_end(g->match));
}

static void guide_free(struct service_guide *head) {
    struct guide *g = (struct guide *)head;
    if (!g) return;
    match_free(g->match);
    dsml_stream_free(g->parser);
    grammar_deinit(&g->g);
    free(g->mask);
    free(g);
}

/* ---- the grammar of an answer ---- */

static int put_format(struct grammar *g, uint32_t from, const struct guide_options *o, uint32_t to,
                      struct err *e) {
    uint32_t rule;
    int rc = 0;
    if (o->format == GUIDE_JSON_OBJECT) rule = grammar_rule_object(g);
    else rc = grammar_schema_rule(g, o->schema, false, &rule, e);
    if (rc == 0) grammar_call(g, from, rule, 1, 1, to);
    return rc;
}

static int put_calls(struct grammar *g, uint32_t from, const struct guide_options *o, uint32_t to,
                     struct err *e) {
    from = grammar_then_calls(g, grammar_then_word(g, from, "\n\n"), o->tools, o->n_tools, o->one_call, e);
    if (!from) return ERR_INVALID;
    grammar_empty(g, from, to);
    return 0;
}

/* Text in which a block of calls may come. */
static int put_free(struct grammar *g, uint32_t from, const struct guide_options *o, enum use use,
                    uint32_t to, struct err *e) {
    if (use == INSIDE) {                          /* behind the mark there is no way back into text */
        from = grammar_then_until(g, from, "<" CHAT_DSML, true, true);
        from = grammar_then_word(g, from, CALLS_OPEN_REST);
        from = grammar_then_calls_of(g, from, o->tools, o->n_tools, o->one_call, e);
    } else {
        from = grammar_then_until(g, from, CHAT_CALLS_OPEN, true, true);
        from = grammar_then_any_calls(g, from);
    }
    if (!from) return ERR_INVALID;
    grammar_empty(g, from, to);
    return 0;
}

static int put_body(struct grammar *g, uint32_t from, const struct guide_options *o, enum use use,
                    uint32_t to, struct err *e) {
    int rc = 0;
    if (use != HOLD) return put_free(g, from, o, use, to, e);
    if (o->calls == GUIDE_CALLS_REQUIRED) return put_calls(g, from, o, to, e);
    rc = put_format(g, from, o, to, e);
    return rc < 0 || o->calls == GUIDE_CALLS_NONE ? rc : put_calls(g, from, o, to, e);
}

static int build(struct grammar *g, const struct guide_vocab *v, const struct guide_options *o, enum use use,
                 struct err *e) {
    struct err why = { .code = 0 };
    grammar_init(g);
    g->no_bar = o->calls != GUIDE_CALLS_NONE;
    g->has_mark = v->mark_id >= 0;
    g->has_think_end = v->think_end_id >= 0;
    uint32_t root = grammar_node(g), end = grammar_node(g), at = root;
    grammar_end(g, end);
    if (o->in_reasoning) at = grammar_then_until(g, at, CHAT_THINK_END, use != HOLD, use != HOLD);
    int rc = put_body(g, at, o, use, end, &why);
    if (rc < 0) {
        if (e) *e = why;
        return why.code;
    }
    rc = grammar_finish(g, root, e);
    return rc < 0 ? err_wrap(e, rc, "schema") : 0;
}

/* ---- the vocabulary ---- */

static int build_watch(struct guide_vocab *v, bool in_reasoning, struct err *e) {
    const struct guide_options o = { .in_reasoning = in_reasoning, .calls = GUIDE_CALLS_FREE };
    return build(&v->watch[in_reasoning], v, &o, WATCH, e);
}

int guide_vocab_new(struct guide_vocab **out, const struct tokenizer *t, struct err *e) {
    struct guide_vocab *v = xcalloc(1, sizeof *v);
    v->t = t;
    v->mark_id = tokenizer_find_added(t, CHAT_DSML);
    v->think_end_id = tokenizer_find_added(t, CHAT_THINK_END);
    v->eos_id = tokenizer_eos(t);
    int rc = vocab_trie_new(&v->trie, t, e);
    if (rc == 0) rc = build_watch(v, false, e);
    if (rc == 0) rc = build_watch(v, true, e);
    if (rc < 0) guide_vocab_free(v);
    else *out = v;
    return rc;
}

void guide_vocab_free(struct guide_vocab *v) {
    if (!v) return;
    vocab_trie_free(v->trie);
    for (int i = 0; i < 2; i++) grammar_deinit(&v->watch[i]);
    free(v);
}

/* ---- a guide ---- */

static bool any_strict(const struct guide_options *o) {
    for (size_t i = 0; i < o->n_tools; i++)
        if (o->tools[i].strict) return true;
    return false;
}

/* Once more, with any arguments for tools that are not strict. */
static int build_loosely(struct guide *g, const struct guide_options *o, struct err *e) {
    struct guide_options loose = *o;
    struct guide_tool *tools = xcalloc(o->n_tools + 1, sizeof *tools);
    for (size_t i = 0; i < o->n_tools; i++) {
        tools[i] = o->tools[i];
        if (!tools[i].strict) tools[i].parameters = (struct chat_text){ NULL, 0 };
    }
    loose.tools = tools;
    grammar_deinit(&g->g);
    int rc = build(&g->g, g->v, &loose, g->use, e);
    free(tools);
    return rc;
}

static int build_own(struct guide *g, const struct guide_options *o, struct err *e) {
    if (g->use == INSIDE) return build_loosely(g, o, e);
    int rc = build(&g->g, g->v, o, g->use, e);
    /* A schema that we cannot read is no reason to refuse a tool that never promised to keep to it. */
    if (rc < 0 && o->calls != GUIDE_CALLS_NONE) rc = build_loosely(g, o, e);
    return rc;
}

static int open_parser(struct guide *g, const struct guide_options *o, struct err *e) {
    struct dsml_options d = { .in_reasoning = o->in_reasoning, .tools = true,
                              .calls_max = g->use == WATCH && o->one_call };  /* else the grammar counts */
    return o->calls == GUIDE_CALLS_NONE ? 0 : dsml_stream_new(&g->parser, &d, e);
}

static int check(const struct guide_options *o, struct err *e) {
    if (o->calls == GUIDE_CALLS_REQUIRED && !o->n_tools)
        return err_set(e, ERR_INVALID, "a tool call is required, and there is no tool");
    if (o->n_tools > GUIDE_TOOLS_MAX)
        return err_set(e, ERR_LIMIT, "%zu tools, at most %d", o->n_tools, GUIDE_TOOLS_MAX);
    return 0;
}

static int open_grammar(struct guide *g, const struct guide_options *o, struct err *e) {
    const struct guide_vocab *v = g->v;
    int rc = g->use == WATCH ? 0 : build_own(g, o, e);
    const struct grammar *grammar = g->use == WATCH ? &v->watch[o->in_reasoning] : &g->g;
    if (rc == 0) rc = match_new(&g->match, grammar, v->trie, e);
    return rc < 0 ? rc : open_parser(g, o, e);
}

int guide_new(struct service_guide **out, const struct guide_vocab *v, const struct guide_options *o,
              struct err *e) {
    bool held = o->calls == GUIDE_CALLS_REQUIRED || o->format != GUIDE_TEXT;
    bool budget = o->reasoning_max && o->in_reasoning && v->think_end_id >= 0;
    bool nothing = !held && o->calls == GUIDE_CALLS_NONE;
    *out = NULL;
    if (nothing && !budget) return 0;
    int rc = check(o, e);
    if (rc < 0) return rc;
    struct guide *g = xcalloc(1, sizeof *g);
    g->head = (struct service_guide){ guide_next, guide_accept, guide_free };
    g->v = v;
    g->use = held ? HOLD : any_strict(o) ? INSIDE : WATCH;
    g->lost = nothing;
    g->reasoning_left = budget ? o->reasoning_max : UINT32_MAX;
    if (g->use != WATCH || budget) g->mask = xcalloc(v->trie->n_words, sizeof *g->mask);
    if (!nothing) rc = open_grammar(g, o, e);
    if (rc < 0) guide_free(&g->head);
    else *out = &g->head;
    return rc;
}
