/* api_json - a client's JSON body, read by the rules of our HTTP endpoints.
 *
 * Valid UTF-8, no lone surrogates, nesting up to API_JSON_DEPTH_MAX, API_JSON_VALUES_MAX values, the
 * last of repeated keys wins. The getters treat null as absent and name the field in their errors.
 * jansson's values are reference-counted without locks: one thread at a time. */
#ifndef COORDINATOR_API_JSON_H
#define COORDINATOR_API_JSON_H

#include <jansson.h>

#include "common/base/err.h"
#include "common/base/types.h"
#include "common/model/chat_json.h"

enum { API_JSON_DEPTH_MAX = 512, API_JSON_VALUES_MAX = 1 << 22 };      /* about 64 bytes each while parsed */

/* The body's value (any type) in *root, to be json_decref'd. ERR_INVALID says where it is wrong. */
int api_json_parse(json_t **root, struct chat_text body, struct err *e);

/* A field of an object; NULL when the object is NULL, the field is absent or it is null. */
json_t *api_json_get(const json_t *object, const char *key);

/* A field that must have this type if it is there: 1 and the value, 0 absent, or ERR_INVALID. */
int api_json_string(const json_t *object, const char *key, struct chat_text *out, struct err *e);
int api_json_bool(const json_t *object, const char *key, bool *out, struct err *e);
int api_json_object(const json_t *object, const char *key, json_t **out, struct err *e);
int api_json_array(const json_t *object, const char *key, json_t **out, struct err *e);

/* Whether a field is this very string. */
bool api_json_is(const json_t *object, const char *key, const char *word);

struct chat_text api_json_text(const json_t *string);             /* borrowed from the value */

#endif
