/* grammar - building the graph, and what grammar_finish finds out about it.
 *
 * `need` is a smallest solution: a node needs what the best of its edges needs, a call one level more than
 * its rule. Sweeps backwards and forwards until nothing changes; chains of bytes settle in one. */
#include "coordinator/grammar.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/model/chat_format.h"

void grammar_init(struct grammar *g) {
    *g = (struct grammar){ .n_node = 1, .n_edge = 1 };
}

void grammar_deinit(struct grammar *g) {
    free(g->node);
    free(g->edge);
    *g = (struct grammar){ .node = NULL };
}

static bool grow(struct grammar *g, void **items, size_t size, uint32_t n, uint32_t *room, uint32_t most) {
    if (g->rc < 0) return false;
    if (n < *room) return true;
    if (n >= most) {
        g->rc = ERR_LIMIT;
        return false;
    }
    uint32_t more = MIN(MAX(*room * 2, 256u), most);
    void *grown = realloc(*items, more * size);
    if (!grown) {
        g->rc = ERR_NOMEM;
        return false;
    }
    *items = grown;
    *room = more;
    return true;
}

uint32_t grammar_node(struct grammar *g) {
    if (!grow(g, (void **)&g->node, sizeof *g->node, g->n_node, &g->node_room, GRAMMAR_NODES_MAX)) return 0;
    g->node[g->n_node] = (struct grammar_node){ .flags = g->flags };
    return g->n_node++;
}

void grammar_mark(struct grammar *g, uint32_t node, uint8_t flags) {
    if (g->rc == 0) g->node[node].flags |= flags;
}

static void add_edge(struct grammar *g, uint32_t from, struct grammar_edge edge) {
    if (!grow(g, (void **)&g->edge, sizeof *g->edge, g->n_edge, &g->edge_room, GRAMMAR_EDGES_MAX)) return;
    edge.next = g->node[from].edge;
    g->edge[g->n_edge] = edge;
    g->node[from].edge = g->n_edge++;
}

void grammar_bytes(struct grammar *g, uint32_t from, int lo, int hi, uint32_t to) {
    if (lo > hi) return;
    add_edge(g, from, (struct grammar_edge){ .kind = GRAMMAR_BYTES, .lo = (uint16_t)lo, .hi = (uint16_t)hi,
                                             .to = to });
}

void grammar_empty(struct grammar *g, uint32_t from, uint32_t to) {
    add_edge(g, from, (struct grammar_edge){ .kind = GRAMMAR_EMPTY, .to = to });
}

void grammar_call(struct grammar *g, uint32_t from, uint32_t rule, int32_t min, int32_t max, uint32_t to) {
    if (max < min || max < 0) return;             /* cannot be: no way from here */
    add_edge(g, from, (struct grammar_edge){ .kind = GRAMMAR_CALL, .rule = rule, .min = min, .max = max,
                                             .to = to });
}

void grammar_end(struct grammar *g, uint32_t node) {
    grammar_mark(g, node, GRAMMAR_END);
}

uint32_t grammar_then_text(struct grammar *g, uint32_t from, struct chat_text text) {
    for (size_t i = 0; i < text.len && g->rc == 0; i++) {
        uint32_t to = grammar_node(g);
        grammar_bytes(g, from, (uint8_t)text.data[i], (uint8_t)text.data[i], to);
        from = to;
    }
    return from;
}

uint32_t grammar_then_word(struct grammar *g, uint32_t from, const char *word) {
    return grammar_then_text(g, from, chat_text_of(word));
}

uint32_t grammar_then_call(struct grammar *g, uint32_t from, uint32_t rule, int32_t min, int32_t max) {
    uint32_t to = grammar_node(g);
    grammar_call(g, from, rule, min, max, to);
    return to;
}

uint32_t grammar_then_markup(struct grammar *g, uint32_t from, const char *text) {
    for (const char *mark; g->has_mark && (mark = strstr(text, CHAT_DSML)) != NULL;) {
        uint32_t to = grammar_node(g);
        from = grammar_then_text(g, from, (struct chat_text){ text, (size_t)(mark - text) });
        grammar_bytes(g, from, GRAMMAR_MARK, GRAMMAR_MARK, to);
        from = to;
        text = mark + strlen(CHAT_DSML);
    }
    return grammar_then_word(g, from, text);
}

uint32_t grammar_tree_add(struct grammar *g, uint32_t from, struct chat_text word) {
    for (size_t i = 0; i < word.len && g->rc == 0; i++) {
        uint8_t byte = (uint8_t)word.data[i];
        uint32_t at = g->node[from].edge;
        while (at && (g->edge[at].kind != GRAMMAR_BYTES || g->edge[at].lo != byte)) at = g->edge[at].next;
        if (!at) {
            uint32_t to = grammar_node(g);
            grammar_bytes(g, from, byte, byte, to);
            from = to;
        } else from = g->edge[at].to;
    }
    return from;
}

/* ---- finish ---- */

static uint16_t need_of_edge(const struct grammar *g, const struct grammar_edge *edge) {
    uint16_t need = g->node[edge->to].need;
    if (edge->kind != GRAMMAR_CALL || edge->min == 0) return need;
    uint16_t rule = g->node[edge->rule].need;
    if (rule >= GRAMMAR_DEPTH_MAX) return GRAMMAR_NEVER;
    return MAX(need, (uint16_t)(rule + 1));
}

static bool improve(struct grammar *g, uint32_t i) {
    struct grammar_node *node = &g->node[i];
    uint16_t best = node->need;
    for (uint32_t k = node->edge; k; k = g->edge[k].next) best = MIN(best, need_of_edge(g, &g->edge[k]));
    if (best == node->need) return false;
    node->need = best;
    return true;
}

static void find_needs(struct grammar *g) {
    for (uint32_t i = 1; i < g->n_node; i++)
        g->node[i].need = g->node[i].flags & GRAMMAR_END ? 0 : GRAMMAR_NEVER;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = g->n_node - 1; i > 0; i--) changed |= improve(g, i);
        for (uint32_t i = 1; i < g->n_node; i++) changed |= improve(g, i);
    }
}

static bool edge_may_be_empty(const struct grammar_edge *edge, const bool *nullable) {
    if (edge->kind == GRAMMAR_CALL) return edge->min == 0 || nullable[edge->rule];
    return edge->kind == GRAMMAR_EMPTY;
}

static void find_nullable(const struct grammar *g, bool *nullable) {
    for (uint32_t i = 1; i < g->n_node; i++) nullable[i] = g->node[i].flags & GRAMMAR_END;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = g->n_node - 1; i > 0; i--) {
            for (uint32_t k = g->node[i].edge; k && !nullable[i]; k = g->edge[k].next) {
                nullable[i] = edge_may_be_empty(&g->edge[k], nullable) && nullable[g->edge[k].to];
                changed |= nullable[i];
            }
        }
    }
}

/* A walk over everything that can be reached without reading; a node met again while it is open closes a
 * circle. The stack is our own: the graph may be deep. */
struct visit {
    uint32_t node, edge;
    bool rule_done;                               /* of that edge: its rule was looked at */
};

static bool has_circle(const struct grammar *g, const bool *nullable, uint8_t *color, struct visit *stack,
                       uint32_t root) {
    uint32_t n = 0;
    if (color[root]) return false;
    stack[n++] = (struct visit){ root, g->node[root].edge, false };
    color[root] = 1;
    while (n > 0) {
        struct visit *v = &stack[n - 1];
        uint32_t next = 0;
        if (!v->edge) {
            color[v->node] = 2;
            n--;
            continue;
        }
        const struct grammar_edge *edge = &g->edge[v->edge];
        if (edge->kind == GRAMMAR_CALL && edge->max > 0 && !v->rule_done) {
            v->rule_done = true;
            next = edge->rule;
        } else {
            v->rule_done = false;
            v->edge = edge->next;
            if (edge_may_be_empty(edge, nullable)) next = edge->to;
        }
        if (!next || color[next] == 2) continue;
        if (color[next] == 1) return true;
        color[next] = 1;
        stack[n++] = (struct visit){ next, g->node[next].edge, false };
    }
    return false;
}

static int check_circles(const struct grammar *g, struct err *e) {
    bool *nullable = calloc(g->n_node, sizeof *nullable), found = false;
    uint8_t *color = calloc(g->n_node, 1);
    struct visit *stack = calloc(g->n_node, sizeof *stack);
    int rc = nullable && color && stack ? 0 : err_set(e, ERR_NOMEM, "a grammar of %u nodes", g->n_node);
    if (rc == 0) find_nullable(g, nullable);
    for (uint32_t i = 1; rc == 0 && !found && i < g->n_node; i++)
        found = has_circle(g, nullable, color, stack, i);
    if (found) rc = err_set(e, ERR_INVALID, "refers to itself without an end");
    free(nullable);
    free(color);
    free(stack);
    return rc;
}

int grammar_finish(struct grammar *g, uint32_t root, struct err *e) {
    if (g->rc == ERR_LIMIT) return err_set(e, ERR_LIMIT, "too large: over %d nodes", GRAMMAR_NODES_MAX);
    if (g->rc < 0) return err_set(e, g->rc, "a grammar of %u nodes", g->n_node);
    g->root = root;
    find_needs(g);
    if (g->node[root].need >= GRAMMAR_DEPTH_MAX) return err_set(e, ERR_INVALID, "nothing can satisfy it");
    return check_circles(g, e);
}
