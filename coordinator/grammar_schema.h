/* grammar_schema - from a JSON Schema to a grammar of values that validate against it.
 *
 * Every text of the grammar is a valid value; not every valid value is a text of it. Properties come in
 * the schema's order, those that are not required may be left out; others only where the schema says so
 * with additionalProperties, or names none. Without `type` the other keywords say what is meant.
 *
 * Understood: type, enum, const, properties, required, additionalProperties, items, prefixItems,
 * minItems, maxItems, minLength, maxLength, pattern (grammar_regex.h), minimum, maximum and the exclusive
 * ones, anyOf, oneOf (where the branches cannot both hold), allOf, $ref inside the schema, also to itself.
 * Within limits: multipleOf (grammar_number.h), minProperties (one more than are named), maxProperties,
 * propertyNames (not a pattern beside named properties), patternProperties (one, and nothing else about
 * names), contains and minContains (no prefix), uniqueItems (of at most 10 listed values), not (of types, or
 * of listed values).
 * Annotations, format among them, mean nothing here. What would constrain and is not understood is
 * ERR_INVALID with its name, or left out when lenient. Limits: the enum below, and the grammar's. */
#ifndef COORDINATOR_GRAMMAR_SCHEMA_H
#define COORDINATOR_GRAMMAR_SCHEMA_H

#include "common/base/arena.h"
#include "coordinator/grammar.h"

enum {
    SCHEMA_BYTES_MAX = 1 << 20,
    SCHEMA_RULES_MAX = 1 << 14,
    SCHEMA_PARTS_MAX = 24,                        /* schemas that hold for one value at once */
    SCHEMA_ONE_OF_MAX = 64,
    SCHEMA_WORK_MAX = 2 << 20,                    /* so that no schema holds up the others for long */
    SCHEMA_ARENA_MAX = 32 << 20
};

/* The rule of a value; empty text or nothing but white space: of any value. */
int grammar_schema_rule(struct grammar *g, struct chat_text json, bool lenient, uint32_t *rule,
                        struct err *e);

/* The arguments of a tool, each by itself. */
struct schema_argument {
    struct chat_text name;
    bool required;
    uint32_t raw;                                 /* rule: a string as it is, with the closing tag */
    uint32_t json;                                /* rule: any other value as JSON */
};
struct schema_arguments {
    struct schema_argument *argument;             /* in the arena */
    uint32_t n;
    bool open;                                    /* others may come too, with any value */
};
int grammar_schema_arguments(struct grammar *g, struct chat_text json, bool lenient, struct arena *a,
                             struct schema_arguments *out, struct err *e);

#endif
