#include "common/base/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void err_vset(struct err *e, int code, const char *format, va_list args) {
    e->code = code;
    vsnprintf(e->text, sizeof e->text, format, args);
}

int err_set(struct err *e, int code, const char *format, ...) {
    if (!e) return code;
    va_list args;
    va_start(args, format);
    err_vset(e, code, format, args);
    va_end(args);
    return code;
}

int err_errno(struct err *e, int code, const char *format, ...) {
    int saved = errno;
    if (!e) return code;
    va_list args;
    va_start(args, format);
    err_vset(e, code, format, args);
    va_end(args);
    size_t used = strlen(e->text);
    snprintf(e->text + used, sizeof e->text - used, ": %s", strerror(saved));
    errno = saved;
    return code;
}

int err_wrap(struct err *e, int code, const char *format, ...) {
    if (!e) return code;
    char inner[ERR_TEXT_MAX];
    memcpy(inner, e->text, sizeof inner);
    va_list args;
    va_start(args, format);
    err_vset(e, code, format, args);
    va_end(args);
    size_t used = strlen(e->text);
    snprintf(e->text + used, sizeof e->text - used, ": %s", inner);
    return code;
}

#define ERR_ENTRY(name, code, http, text) { code, http, #name, text },
static const struct err_entry {
    int code, http_status;
    const char *name, *text;
} err_entries[] = { ERR_MAP(ERR_ENTRY) };
#undef ERR_ENTRY

static const struct err_entry *err_find(int code) {
    for (size_t i = 0; i < sizeof err_entries / sizeof err_entries[0]; i++)
        if (err_entries[i].code == code) return &err_entries[i];
    return NULL;
}

const char *err_name(int code) {
    const struct err_entry *entry = err_find(code);
    return entry ? entry->name : code == 0 ? "ERR_OK" : "ERR_UNKNOWN";
}

const char *err_text(int code) {
    const struct err_entry *entry = err_find(code);
    return entry ? entry->text : code == 0 ? "no error" : "unknown error";
}

int err_http_status(int code) {
    const struct err_entry *entry = err_find(code);
    return entry ? entry->http_status : code == 0 ? 200 : 500;
}
