/* api_error - see the header. */
#include "coordinator/api_error.h"

#include <stdio.h>

#include "common/base/utf8.h"
#include "common/model/chat_json.h"

static const struct fault {
    int status;
    const char *type, *code, *anthropic;
    bool again;
} faults[] = {
#define FAULT_ROW(name, http, type_, code_, anthropic_, again_) \
    [API_FAULT_##name] = { http, type_, code_, anthropic_, again_ },
    API_FAULTS(FAULT_ROW)
#undef FAULT_ROW
};

int api_error_set(struct api_error *e, enum api_fault fault, const char *format, ...) {
    va_list args;
    e->fault = fault;
    va_start(args, format);
    vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    return ERR_INVALID;
}

int api_error_from(struct api_error *e, const struct err *cause) {
    enum api_fault fault = API_FAULT_ENGINE;
    switch (cause->code) {
    case ERR_INVALID:
    case ERR_LIMIT:
    case ERR_UNSUPPORTED: fault = API_FAULT_INVALID; break;
    case ERR_BUSY: fault = API_FAULT_BUSY; break;
    case ERR_STALE:
    case ERR_CANCELLED:
    case ERR_NOMEM: fault = API_FAULT_UNAVAILABLE; break;
    case ERR_TIMEOUT: fault = API_FAULT_TIMEOUT; break;
    default: break;
    }
    return api_error_set(e, fault, "%s", cause->text[0] ? cause->text : err_text(cause->code));
}

int api_error_status(const struct api_error *e) {
    return faults[e->fault].status;
}

bool api_error_again(const struct api_error *e) {
    return faults[e->fault].again;
}

const char *api_error_code(const struct api_error *e) {
    const char *code = faults[e->fault].code;
    return !code || e->fault == API_FAULT_ENGINE ? "server_error" : code;
}

static void put_constant(struct buf *out, const char *text) {
    if (text) buf_printf(out, "\"%s\"", text);
    else buf_add_text(out, "null");
}

void api_error_put(struct buf *out, const struct api_error *e, enum api_shape shape, const char *request_id) {
    const struct fault *f = &faults[e->fault];
    struct chat_text text = { e->text, utf8_valid_prefix(e->text, strlen(e->text)) };
    if (shape == API_SHAPE_ANTHROPIC) {
        buf_printf(out, "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":", f->anthropic);
        chat_json_put_quoted(out, text);
        buf_printf(out, "},\"request_id\":\"%s\"}", request_id);
        return;
    }
    buf_add_text(out, "{\"error\":{\"message\":");
    chat_json_put_quoted(out, text);
    buf_printf(out, ",\"type\":\"%s\",\"param\":", f->type);
    put_constant(out, e->param);
    buf_add_text(out, ",\"code\":");
    put_constant(out, f->code);
    buf_add_text(out, "}}");
}
