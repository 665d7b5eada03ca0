/* api_error - what a client is told when something is wrong: the status code and the body of each dialect.
 *
 * One list of faults serves both shapes. Texts are cut to valid UTF-8 and quoted; nothing of a fault is
 * secret. Pure functions. */
#ifndef COORDINATOR_API_ERROR_H
#define COORDINATOR_API_ERROR_H

#include "common/base/buf.h"

enum api_shape { API_SHAPE_OPENAI, API_SHAPE_ANTHROPIC };

/* name, status, OpenAI type, OpenAI code (NULL: none), Anthropic type, worth another try */
#define API_FAULTS(X)                                                                                      \
    X(INVALID,     400, "invalid_request_error", NULL,                      "invalid_request_error", false) \
    X(CONTEXT,     400, "invalid_request_error", "context_length_exceeded", "invalid_request_error", false) \
    X(KEY,         401, "invalid_request_error", "invalid_api_key",         "authentication_error",  false) \
    X(FORBIDDEN,   403, "permission_error",      NULL,                      "permission_error",      false) \
    X(PATH,        404, "invalid_request_error", NULL,                      "not_found_error",       false) \
    X(MODEL,       404, "invalid_request_error", "model_not_found",         "not_found_error",       false) \
    X(METHOD,      405, "invalid_request_error", NULL,                      "invalid_request_error", false) \
    X(SIZE,        413, "invalid_request_error", NULL,                      "invalid_request_error", false) \
    X(BUSY,        429, "rate_limit_error",      "rate_limit_exceeded",     "rate_limit_error",      true)  \
    X(ENGINE,      500, "server_error",          "generation_failed",       "api_error",             true)  \
    X(UNAVAILABLE, 503, "server_error",          "service_unavailable",     "overloaded_error",      true)  \
    X(TIMEOUT,     504, "server_error",          "timeout",                 "api_error",             true)

enum api_fault {
#define API_FAULT_ENUM(name, status, type, code, anthropic, again) API_FAULT_##name,
    API_FAULTS(API_FAULT_ENUM)
#undef API_FAULT_ENUM
    API_FAULT_N
};

struct api_error {
    enum api_fault fault;
    const char *param;                            /* the field that is wrong, a constant; NULL: none */
    int retry_s;                                  /* when to come again; 0: not said */
    char text[ERR_TEXT_MAX];
};

/* Gives ERR_INVALID back, for `return`. */
int api_error_set(struct api_error *e, enum api_fault fault, const char *format, ...) PRINTF_LIKE(3, 4);
/* From one of our codes: bad input stays bad input, all else is ours. */
int api_error_from(struct api_error *e, const struct err *cause);

int api_error_status(const struct api_error *e);
bool api_error_again(const struct api_error *e);
const char *api_error_code(const struct api_error *e);               /* "server_error" where there is none */

void api_error_put(struct buf *out, const struct api_error *e, enum api_shape shape, const char *request_id);

#endif
