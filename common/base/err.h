/* err - how a function says that something went wrong.
 *
 * A function returns 0 or a negative code from ERR_MAP; where a human will want the reason it takes
 * `struct err *e` last, which may be NULL. The text grows outwards: the failing call writes it, callers
 * put context before it ("model.gguf: tensor blk.3.attn_kv.weight: dims ..."). No thread, no
 * allocation, no ownership. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdarg.h>
#include <stddef.h>

#define ERR_MAP(X)                                                 \
    X(ERR_INVALID,     -1, 400, "invalid argument")                \
    X(ERR_CORRUPT,     -2, 500, "stored data is damaged")          \
    X(ERR_STALE,       -3, 503, "belongs to an older plan")        \
    X(ERR_BUSY,        -4, 429, "no capacity right now")           \
    X(ERR_NOMEM,       -5, 503, "out of memory")                   \
    X(ERR_IO,          -6, 500, "input/output error")              \
    X(ERR_NOTFOUND,    -7, 404, "not found")                       \
    X(ERR_UNSUPPORTED, -8, 501, "not supported")                   \
    X(ERR_LIMIT,       -9, 413, "over a limit")                    \
    X(ERR_CANCELLED,  -10, 499, "cancelled")                       \
    X(ERR_TIMEOUT,    -11, 504, "took too long")                   \
    X(ERR_DEVICE,     -12, 500, "accelerator failed")              \
    X(ERR_DENIED,     -13, 401, "not allowed")                     \
    X(ERR_PEER,       -14, 502, "another machine failed")          \
    X(ERR_INTERNAL,   -15, 500, "internal error")

enum err_code {
    ERR_OK = 0,
#define ERR_ENUM(name, code, http, text) name = (code),
    ERR_MAP(ERR_ENUM)
#undef ERR_ENUM
};

enum { ERR_TEXT_MAX = 512 };

struct err {
    int code;
    char text[ERR_TEXT_MAX];
};

#if defined(__GNUC__)
#define PRINTF_LIKE(format_i, first_i) __attribute__((format(printf, format_i, first_i)))
#else
#define PRINTF_LIKE(format_i, first_i)
#endif

/* Writes code and text (either a fresh one, or with the errno's words behind it); gives code back for
 * `return`. */
int err_set(struct err *e, int code, const char *format, ...) PRINTF_LIKE(3, 4);
int err_errno(struct err *e, int code, const char *format, ...) PRINTF_LIKE(3, 4);

/* Puts context before the text that is there: "CONTEXT: text". Gives code back. */
int err_wrap(struct err *e, int code, const char *format, ...) PRINTF_LIKE(3, 4);

const char *err_name(int code);                   /* "ERR_CORRUPT" */
const char *err_text(int code);                   /* "stored data is damaged" */
int err_http_status(int code);

#endif
