/* schema_check - says whether a JSON value validates against a schema, for tests of constrained decoding.
 *
 * Written from the JSON Schema documents alone and on top of jansson, so that it shares nothing with the
 * code it judges. Patterns must be such that POSIX and ECMA mean the same. Header only; one thread. */
#ifndef HARNESS_SCHEMA_CHECK_H
#define HARNESS_SCHEMA_CHECK_H

#include <jansson.h>
#include <regex.h>

#include "tests/harness/test.h"

static inline bool check_value(json_t *root, json_t *schema, json_t *value);

static inline bool check_type_word(const char *word, json_t *value) {
    if (strcmp(word, "null") == 0) return json_is_null(value);
    if (strcmp(word, "boolean") == 0) return json_is_boolean(value);
    if (strcmp(word, "integer") == 0) {
        double x = json_number_value(value);
        return json_is_integer(value) || (json_is_real(value) && x == (double)(long long)x);
    }
    if (strcmp(word, "number") == 0) return json_is_number(value);
    if (strcmp(word, "string") == 0) return json_is_string(value);
    if (strcmp(word, "array") == 0) return json_is_array(value);
    return strcmp(word, "object") == 0 && json_is_object(value);
}

static inline bool check_type(json_t *type, json_t *value) {
    if (json_is_string(type)) return check_type_word(json_string_value(type), value);
    for (size_t i = 0; i < json_array_size(type); i++)
        if (check_type_word(json_string_value(json_array_get(type, i)), value)) return true;
    return false;
}

static inline bool check_equal(json_t *a, json_t *b) {
    if (json_is_number(a) && json_is_number(b)) return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

static inline bool check_listed(json_t *list, json_t *value) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (check_equal(json_array_get(list, i), value)) return true;
    return false;
}

static inline bool check_number(json_t *schema, json_t *value) {
    double x = json_number_value(value);
    json_t *lo = json_object_get(schema, "minimum"), *hi = json_object_get(schema, "maximum");
    json_t *above = json_object_get(schema, "exclusiveMinimum"),
           *below = json_object_get(schema, "exclusiveMaximum");
    json_t *step = json_object_get(schema, "multipleOf");
    double times = step ? x / json_number_value(step) : 0;
    if (step && (times - (double)(long long)(times + (times < 0 ? -0.5 : 0.5)) > 1e-6 ||
                 times - (double)(long long)(times + (times < 0 ? -0.5 : 0.5)) < -1e-6))
        return false;
    return (!lo || x >= json_number_value(lo)) && (!hi || x <= json_number_value(hi)) &&
           (!above || x > json_number_value(above)) && (!below || x < json_number_value(below));
}

static inline bool check_string(json_t *schema, json_t *value) {
    const char *text = json_string_value(value);
    long long n = 0;
    json_t *min = json_object_get(schema, "minLength"), *max = json_object_get(schema, "maxLength"),
           *pattern = json_object_get(schema, "pattern");
    for (const char *c = text; *c; c++) n += ((uint8_t)*c & 0xc0) != 0x80;
    if ((min && n < json_integer_value(min)) || (max && n > json_integer_value(max))) return false;
    if (!pattern) return true;
    regex_t regex;
    assert_int_equal(regcomp(&regex, json_string_value(pattern), REG_EXTENDED | REG_NOSUB), 0);
    bool fits = regexec(&regex, text, 0, NULL, 0) == 0;
    regfree(&regex);
    return fits;
}

static inline bool check_contents(json_t *root, json_t *schema, json_t *value) {
    json_t *contains = json_object_get(schema, "contains"), *least = json_object_get(schema, "minContains");
    size_t n = json_array_size(value), n_fit = 0;
    for (size_t i = 0; i < n && contains; i++) n_fit += check_value(root, contains, json_array_get(value, i));
    if (contains && n_fit < (least ? (size_t)json_integer_value(least) : 1)) return false;
    for (size_t i = 0; i < n && json_is_true(json_object_get(schema, "uniqueItems")); i++)
        for (size_t k = 0; k < i; k++)
            if (check_equal(json_array_get(value, i), json_array_get(value, k))) return false;
    return true;
}

static inline bool check_array(json_t *root, json_t *schema, json_t *value) {
    size_t n = json_array_size(value), i = 0;
    json_t *min = json_object_get(schema, "minItems"), *max = json_object_get(schema, "maxItems");
    json_t *prefix = json_object_get(schema, "prefixItems"), *items = json_object_get(schema, "items");
    if ((min && n < (size_t)json_integer_value(min)) ||
        (max && n > (size_t)json_integer_value(max)))
        return false;
    for (; i < n && i < json_array_size(prefix); i++)
        if (!check_value(root, json_array_get(prefix, i), json_array_get(value, i))) return false;
    for (; i < n && items; i++)
        if (!check_value(root, items, json_array_get(value, i))) return false;
    return check_contents(root, schema, value);
}

static inline bool check_name(json_t *root, json_t *schema, const char *key) {
    json_t *names = json_object_get(schema, "propertyNames"), *text = json_string(key);
    bool fits = !names || check_value(root, names, text);
    json_decref(text);
    return fits;
}

/* By the patterns that the name fits; *n: how many. */
static inline bool check_by_pattern(json_t *root, json_t *schema, const char *key, json_t *member,
                                    size_t *n) {
    const char *pattern;
    json_t *own, *text = json_string(key);
    bool fits = true;
    json_object_foreach(json_object_get(schema, "patternProperties"), pattern, own) {
        json_t *only = json_pack("{s:s}", "pattern", pattern);
        bool named = check_string(only, text);
        json_decref(only);
        *n += named;
        if (named && !check_value(root, own, member)) fits = false;
    }
    json_decref(text);
    return fits;
}

static inline bool check_object(json_t *root, json_t *schema, json_t *value) {
    json_t *min = json_object_get(schema, "minProperties"), *max = json_object_get(schema, "maxProperties");
    size_t size = json_object_size(value);
    if ((min && size < (size_t)json_integer_value(min)) || (max && size > (size_t)json_integer_value(max)))
        return false;
    json_t *properties = json_object_get(schema, "properties"),
           *required = json_object_get(schema, "required");
    json_t *more = json_object_get(schema, "additionalProperties"), *member;
    const char *key;
    for (size_t i = 0; i < json_array_size(required); i++)
        if (!json_object_get(value, json_string_value(json_array_get(required, i)))) return false;
    json_object_foreach(value, key, member) {
        json_t *own = json_object_get(properties, key);
        size_t n_pattern = 0;
        if (!check_name(root, schema, key) || !check_by_pattern(root, schema, key, member, &n_pattern))
            return false;
        if (!own && !n_pattern) own = more;
        if (own && !check_value(root, own, member)) return false;
    }
    return true;
}

static inline json_t *check_reference(json_t *root, const char *ref) {
    char step[128];
    json_t *at = root;
    assert_int_equal(ref[0], '#');
    for (ref++; *ref == '/';) {
        size_t n = strcspn(++ref, "/");
        snprintf(step, sizeof step, "%.*s", (int)n, ref);
        at = json_object_get(at, step);
        assert_non_null(at);
        ref += n;
    }
    return at;
}

static inline bool check_value(json_t *root, json_t *schema, json_t *value) {
    json_t *k;
    if (json_is_boolean(schema)) return json_is_true(schema);
    if ((k = json_object_get(schema, "$ref")) &&
        !check_value(root, check_reference(root, json_string_value(k)), value))
        return false;
    if ((k = json_object_get(schema, "type")) && !check_type(k, value)) return false;
    if ((k = json_object_get(schema, "enum")) && !check_listed(k, value)) return false;
    if ((k = json_object_get(schema, "const")) && !check_equal(k, value)) return false;
    if ((k = json_object_get(schema, "not")) && check_value(root, k, value)) return false;
    k = json_object_get(schema, "allOf");
    for (size_t i = 0; i < json_array_size(k); i++)
        if (!check_value(root, json_array_get(k, i), value)) return false;
    for (int one = 0; one < 2; one++) {
        size_t n_fit = 0;
        k = json_object_get(schema, one ? "oneOf" : "anyOf");
        for (size_t i = 0; i < json_array_size(k); i++)
            n_fit += check_value(root, json_array_get(k, i), value);
        if (k && (one ? n_fit != 1 : n_fit == 0)) return false;
    }
    if (json_is_number(value) && !check_number(schema, value)) return false;
    if (json_is_string(value) && !check_string(schema, value)) return false;
    if (json_is_array(value) && !check_array(root, schema, value)) return false;
    return !json_is_object(value) || check_object(root, schema, value);
}

#endif
