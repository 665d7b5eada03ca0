/* api_json - see the header. */
#include "coordinator/api_json.h"

/* jansson's own limit is 2048 levels; ours holds for everything that walks a body after it. It has none for
 * values, of which a body can have as many as half its bytes. */
static int check_shape(struct chat_text body, struct err *e) {
    int depth = 0, n_values = 1;
    for (size_t i = 0; i < body.len; i++) {
        char c = body.data[i];
        if (c == '"') {
            for (i++; i < body.len && body.data[i] != '"'; i++)
                if (body.data[i] == '\\') i++;
        } else if (c == '{' || c == '[') {
            if (++depth > API_JSON_DEPTH_MAX)
                return err_set(e, ERR_INVALID, "JSON nested deeper than %d", API_JSON_DEPTH_MAX);
            n_values++;
        } else if (c == ',') {
            n_values++;
        } else if (c == '}' || c == ']') {
            depth--;
        }
        if (n_values > API_JSON_VALUES_MAX)
            return err_set(e, ERR_INVALID, "JSON with more than %d values", API_JSON_VALUES_MAX);
    }
    return 0;
}

int api_json_parse(json_t **root, struct chat_text body, struct err *e) {
    const size_t flags = JSON_DECODE_ANY | JSON_ALLOW_NUL;
    json_error_t error;
    int rc = check_shape(body, e);
    if (rc < 0) return rc;
    *root = json_loadb(body.len ? body.data : "", body.len, flags, &error);
    /* An integer beyond 64 bits is legal; as a value it may be a double, its spelling is kept. */
    if (!*root && json_error_code(&error) == json_error_numeric_overflow)
        *root = json_loadb(body.data, body.len, flags | JSON_DECODE_INT_AS_REAL, &error);
    if (*root) return 0;
    return err_set(e, ERR_INVALID, "the body is not JSON: %s (line %d, column %d)", error.text,
                   error.line, error.column);
}

json_t *api_json_get(const json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

struct chat_text api_json_text(const json_t *string) {
    return (struct chat_text){ json_string_value(string), json_string_length(string) };
}

static int wrong_type(struct err *e, const char *key, const char *type) {
    return err_set(e, ERR_INVALID, "%s must be %s", key, type);
}

int api_json_string(const json_t *object, const char *key, struct chat_text *out, struct err *e) {
    const json_t *value = api_json_get(object, key);
    if (!value) return 0;
    if (!json_is_string(value)) return wrong_type(e, key, "a string");
    *out = api_json_text(value);
    return 1;
}

int api_json_bool(const json_t *object, const char *key, bool *out, struct err *e) {
    const json_t *value = api_json_get(object, key);
    if (!value) return 0;
    if (!json_is_boolean(value)) return wrong_type(e, key, "true or false");
    *out = json_is_true(value);
    return 1;
}

int api_json_object(const json_t *object, const char *key, json_t **out, struct err *e) {
    *out = api_json_get(object, key);
    if (!*out) return 0;
    return json_is_object(*out) ? 1 : wrong_type(e, key, "an object");
}

int api_json_array(const json_t *object, const char *key, json_t **out, struct err *e) {
    *out = api_json_get(object, key);
    if (!*out) return 0;
    return json_is_array(*out) ? 1 : wrong_type(e, key, "an array");
}

bool api_json_is(const json_t *object, const char *key, const char *word) {
    const json_t *value = json_object_get(object, key);
    return json_is_string(value) && chat_text_equal(api_json_text(value), chat_text_of(word));
}
