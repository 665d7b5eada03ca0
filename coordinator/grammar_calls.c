/* grammar_calls - see the header.
 *
 *     <M tool_calls> \n <M invoke name="N"> \n argument \n argument \n </M invoke> \n ... \n </M tool_calls>
 *
 * Without an argument the line between the tags is empty, as in the model's training. */
#include "coordinator/grammar_calls.h"

#include "common/base/check.h"
#include "common/model/chat_format.h"
#include "coordinator/grammar_schema.h"
#include "coordinator/grammar_text.h"

enum { NAME_CHARS_MAX = 64, ARENA_MAX = 16 << 20 };

/* Markup, all of it chosen without chance. */
static uint32_t then_syntax(struct grammar *g, uint32_t from, const char *text) {
    uint32_t start = grammar_node(g);
    grammar_mark(g, start, GRAMMAR_SYNTAX);
    grammar_empty(g, from, start);
    g->flags = GRAMMAR_SYNTAX;
    uint32_t end = grammar_then_markup(g, start, text), behind;
    g->flags = 0;
    behind = grammar_node(g);                     /* the last node has the flag, and is not markup */
    grammar_empty(g, end, behind);
    return behind;
}

static uint32_t new_rule(struct grammar *g, uint32_t *end) {
    uint32_t start = grammar_node(g);
    *end = grammar_node(g);
    grammar_end(g, *end);
    return start;
}

/* Names that could be quoted; [A-Za-z0-9_.-], as all APIs want them. */
static uint32_t then_any_name(struct grammar *g, uint32_t from) {
    uint32_t end, rule = new_rule(g, &end);
    grammar_bytes(g, rule, '0', '9', end);
    grammar_bytes(g, rule, 'A', 'Z', end);
    grammar_bytes(g, rule, 'a', 'z', end);
    for (const char *c = "_.-"; *c; c++) grammar_bytes(g, rule, *c, *c, end);
    return grammar_then_call(g, from, rule, 1, NAME_CHARS_MAX);
}

static bool can_be_quoted(struct chat_text name) {
    for (size_t i = 0; i < name.len; i++)
        if (name.data[i] == '"' || (uint8_t)name.data[i] < 0x20) return false;
    return name.len > 0;
}

/* The value, its closing tag included. raw and json are rules of grammar_schema.h; 0: of anything. */
static uint32_t then_value(struct grammar *g, uint32_t from, uint32_t raw, uint32_t json) {
    uint32_t string = then_syntax(g, from, "\" string=\"true\">"), behind = grammar_node(g);
    uint32_t other = then_syntax(g, from, "\" string=\"false\">");
    if (raw) grammar_call(g, string, raw, 1, 1, behind);
    else grammar_empty(g, grammar_then_until(g, string, CHAT_PARAMETER_CLOSE, false, false), behind);
    other = grammar_then_call(g, other, json ? json : grammar_rule_value(g), 1, 1);
    grammar_empty(g, then_syntax(g, other, CHAT_PARAMETER_CLOSE), behind);
    return behind;
}

/* ---- arguments ---- */

static uint32_t argument_rule(struct grammar *g, const struct schema_argument *a) {
    uint32_t end, rule = new_rule(g, &end), at = then_syntax(g, rule, CHAT_PARAMETER_OPEN);
    grammar_empty(g, then_value(g, grammar_then_text(g, at, a->name), a->raw, a->json), end);
    return rule;
}

static uint32_t then_any_arguments(struct grammar *g, uint32_t from) {
    uint32_t end, rule = new_rule(g, &end), line_end, line = new_rule(g, &line_end), behind = grammar_node(g);
    uint32_t at = then_any_name(g, then_syntax(g, rule, CHAT_PARAMETER_OPEN));
    grammar_empty(g, then_value(g, at, 0, 0), end);
    grammar_call(g, then_syntax(g, line, "\n"), rule, 1, 1, line_end);
    grammar_empty(g, from, behind);
    at = grammar_then_call(g, from, rule, 1, 1);
    grammar_call(g, at, line, 0, GRAMMAR_MANY, behind);
    return behind;
}

/* As the members of an object (grammar_schema.c), with line ends between them. */
static uint32_t then_arguments(struct grammar *g, uint32_t from, const struct schema_arguments *a) {
    uint32_t fresh = from, going = grammar_node(g), behind = grammar_node(g);
    for (uint32_t i = 0; i < a->n; i++) {
        if (!can_be_quoted(a->argument[i].name)) continue;
        uint32_t rule = argument_rule(g, &a->argument[i]), fresh_next = grammar_node(g),
                 going_next = grammar_node(g);
        grammar_call(g, fresh, rule, 1, 1, going_next);
        grammar_call(g, then_syntax(g, going, "\n"), rule, 1, 1, going_next);
        if (!a->argument[i].required) {
            grammar_empty(g, fresh, fresh_next);
            grammar_empty(g, going, going_next);
        }
        fresh = fresh_next, going = going_next;
    }
    grammar_empty(g, fresh, behind);
    grammar_empty(g, going, behind);
    return behind;
}

static int put_tool(struct grammar *g, uint32_t from, const struct guide_tool *tool, uint32_t to,
                    struct err *e) {
    struct schema_arguments a;
    struct arena arena;
    if (!can_be_quoted(tool->name)) return 0;
    arena_init(&arena, ARENA_MAX);
    int rc = grammar_schema_arguments(g, tool->parameters, !tool->strict, &arena, &a, e);
    if (rc == 0) {
        uint32_t at = then_syntax(g, grammar_then_text(g, from, tool->name), "\">\n");
        grammar_empty(g, a.open ? then_any_arguments(g, at) : then_arguments(g, at, &a), to);
    }
    arena_deinit(&arena);
    return rc < 0 ? err_wrap(e, rc, "tool %.*s", (int)MIN(tool->name.len, 64), tool->name.data) : 0;
}

/* ---- blocks ---- */

/* Calls of a rule, one to a line, and the closing tag. */
static uint32_t then_lines(struct grammar *g, uint32_t from, uint32_t call, bool one_call) {
    uint32_t end, line = new_rule(g, &end);
    grammar_call(g, then_syntax(g, line, "\n"), call, 1, 1, end);
    from = grammar_then_call(g, from, line, 1, one_call ? 1 : GRAMMAR_MANY);
    return then_syntax(g, from, "\n" CHAT_CALLS_CLOSE);
}

uint32_t grammar_then_any_calls(struct grammar *g, uint32_t from) {
    uint32_t end, call = new_rule(g, &end), at = then_any_name(g, then_syntax(g, call, CHAT_INVOKE_OPEN));
    at = then_any_arguments(g, then_syntax(g, at, "\">\n"));
    grammar_empty(g, then_syntax(g, at, "\n" CHAT_INVOKE_CLOSE), end);
    return then_lines(g, from, call, false);
}

uint32_t grammar_then_calls_of(struct grammar *g, uint32_t from, const struct guide_tool *tools,
                               size_t n_tools, bool one_call, struct err *e) {
    uint32_t end, call = new_rule(g, &end), names = then_syntax(g, call, CHAT_INVOKE_OPEN),
                  behind = grammar_node(g);
    for (size_t i = 0; i < n_tools; i++)
        if (put_tool(g, names, &tools[i], behind, e) < 0) return 0;
    grammar_empty(g, then_syntax(g, behind, "\n" CHAT_INVOKE_CLOSE), end);
    return then_lines(g, from, call, one_call);
}

uint32_t grammar_then_calls(struct grammar *g, uint32_t from, const struct guide_tool *tools, size_t n_tools,
                            bool one_call, struct err *e) {
    return grammar_then_calls_of(g, then_syntax(g, from, CHAT_CALLS_OPEN), tools, n_tools, one_call, e);
}
