/* schema_parts - what grammar_schema.c, grammar_object.c, grammar_array.c and schema_read.c share: a schema
 * while it is being compiled.
 *
 * What has to hold for one value is a set of schemas (struct conj): a schema together with what it refers
 * to, its allOf, one branch of its anyOf. schema_read() turns a set without branches into plain facts
 * (struct facts). Private to these. */
#ifndef COORDINATOR_SCHEMA_PARTS_H
#define COORDINATOR_SCHEMA_PARTS_H

#include "common/base/map.h"
#include "coordinator/grammar_number.h"
#include "coordinator/grammar_schema.h"

enum {
    IS_NULL = 1, IS_BOOL = 2, IS_INTEGER = 4, IS_REAL = 8, IS_STRING = 16, IS_ARRAY = 32, IS_OBJECT = 64,
    IS_NUMBER = IS_INTEGER | IS_REAL,
    IS_ANY = 127
};

enum { DONE_ANY = 1, DONE_ONE = 2 };              /* a branch of it was chosen */

/* A value; a value but no string; a string as it is, and its tag. */
enum schema_mode { MODE_JSON, MODE_OTHER, MODE_RAW };

struct part { uint32_t value, done; };            /* number of a JSON value */
struct conj {
    struct part part[SCHEMA_PARTS_MAX];           /* ascending by value */
    uint32_t n;
};

struct property { struct chat_text name; bool required; struct conj conj; };

struct facts {
    unsigned types;
    bool listed;                                  /* only these values (numbers of JSON values) */
    uint32_t *list, n_list;
    struct number_bound lo, hi;
    struct number_step step;
    int32_t length_min, length_max, items_min, items_max;
    struct chat_text pattern;
    bool has_pattern, closed;                     /* closed: no other properties, whatever else is said */
    bool says_open, has_properties;
    struct property *property;
    uint32_t n_property, property_room;
    struct chat_text *taken;                      /* names that other properties must not have */
    uint32_t n_taken;
    struct conj rest;                             /* other properties' values */
    struct conj *prefix, items;                   /* items: behind the prefix */
    uint32_t n_prefix;
    bool no_items;                                /* nothing behind the prefix */
    struct conj contains;                         /* with its n 0: nothing is asked for */
    uint32_t contains_in;                         /* the schema that asks */
    int32_t contains_min;
    bool unique;
    int32_t properties_min, properties_max;
    struct conj names;                            /* what holds for the names of properties */
    uint32_t key_pattern;                         /* the one member of patternProperties; 0: none */
    uint32_t key_pattern_in, n_additional, additional_in;      /* schemas that say so */
    uint32_t *excluded, n_excluded;               /* values that must not come */
    bool has_numbers, has_strings, has_arrays, has_objects;           /* such keywords are there */
};

struct schema {
    struct grammar *g;
    struct chat_json json;
    struct arena arena;
    bool lenient;
    struct map rules;                             /* by mode and conj */
    struct rule { struct conj conj; uint32_t start; int mode; } *rule;
    uint32_t n_rule;
    uint64_t work;                                /* done so far, about 100 ns each; SCHEMA_WORK_MAX */
    struct err *e;
};

const struct chat_json_value *schema_value(const struct schema *s, uint32_t v);
/* A member of an object, 0 when there is none (or no object). */
uint32_t schema_member(const struct schema *s, uint32_t v, const char *key);
struct chat_text schema_where(const struct schema *s, uint32_t v);    /* for messages */
int schema_fail(const struct schema *s, uint32_t v, const char *what);

int conj_add(const struct schema *s, struct conj *c, uint32_t value);
/* Adds what $ref and allOf refer to, until nothing new comes. */
int conj_complete(const struct schema *s, struct conj *c);
/* A part with anyOf or oneOf of which no branch was chosen yet: its index, or -1. */
int conj_branching(const struct schema *s, const struct conj *c, uint32_t *branches, uint32_t *done);

/* from -> a value that all of them hold for -> to. */
int schema_put_conj(struct schema *s, uint32_t from, const struct conj *c, enum schema_mode mode,
                    uint32_t to);
/* The facts of a set; ERR_INVALID when it has branches. */
int schema_read_plain(struct schema *s, const struct conj *c, struct facts *f);
/* Whether a string is as they say; *known false: that is hard to tell. */
bool schema_string_fits(struct schema *s, const struct facts *f, struct chat_text text, bool *known);
int schema_unsupported(const struct schema *s, uint32_t v);           /* 0 when lenient */
/* Of a listed value: whether the other keywords agree. */
int schema_listed_fits(struct schema *s, uint32_t v, const struct facts *f, bool *yes);

/* grammar_object.c, grammar_array.c */
int schema_put_object(struct schema *s, uint32_t from, const struct facts *f, uint32_t to);
bool schema_is_open(const struct facts *f);
int schema_put_array(struct schema *s, uint32_t from, const struct facts *f, uint32_t to);

/* c is complete and without branches that are open (those are not looked at). */
int schema_read(struct schema *s, const struct conj *c, struct facts *f);
unsigned schema_type_of(const struct schema *s, uint32_t v);
bool schema_same(const struct schema *s, uint32_t a, uint32_t b);     /* as JSON values */
/* Whether no value fits both; false when that is not plain to see. */
bool schema_disjoint(struct schema *s, uint32_t a, uint32_t b, int depth);

#endif
