/* api_guide - see the header. Tools carry their schema in the JSON that the model is shown. */
#include "coordinator/api_guide.h"

#include <stdlib.h>

#include "common/base/check.h"

static struct guide_tool read_tool(const struct api_tool *t) {
    struct guide_tool tool = { .name = t->name };
    struct chat_text value;
    if (!chat_json_member(t->json, "parameters", &tool.parameters))
        tool.parameters = (struct chat_text){ NULL, 0 };
    if (chat_text_equal(chat_json_trim(tool.parameters), chat_text_of("null"))) tool.parameters.len = 0;
    tool.strict = chat_json_member(t->json, "strict", &value) &&
                  chat_text_equal(chat_json_trim(value), chat_text_of("true"));
    return tool;
}

/* Those that may be called: a named one alone. */
static size_t read_tools(struct guide_tool *tools, const struct api_request *r) {
    size_t n = 0;
    for (size_t i = 0; i < r->n_tools; i++) {
        bool wanted = r->tool_choice != API_TOOLS_NAMED || chat_text_equal(r->tools[i].name, r->tool_name);
        if (wanted) tools[n++] = read_tool(&r->tools[i]);
    }
    return n;
}

static enum guide_calls calls_of(const struct api_request *r) {
    if (!r->n_tools || r->tool_choice == API_TOOLS_NONE) return GUIDE_CALLS_NONE;
    return r->tool_choice == API_TOOLS_AUTO ? GUIDE_CALLS_FREE : GUIDE_CALLS_REQUIRED;
}

int api_guide_new(struct service_guide **out, const struct guide_vocab *v, const struct api_request *r,
                  bool in_reasoning, struct err *e) {
    static const enum guide_format formats[] = { [API_FORMAT_TEXT] = GUIDE_TEXT,
                                                 [API_FORMAT_JSON_OBJECT] = GUIDE_JSON_OBJECT,
                                                 [API_FORMAT_JSON_SCHEMA] = GUIDE_JSON_SCHEMA };
    struct guide_tool *tools = xcalloc(r->n_tools + 1, sizeof *tools);
    struct guide_options o = { .in_reasoning = in_reasoning,
                               .format = formats[r->format],
                               .schema = r->schema,
                               .calls = calls_of(r),
                               .tools = tools,
                               .one_call = r->one_call,
                               .reasoning_max = r->reasoning_max };
    o.n_tools = o.calls == GUIDE_CALLS_NONE ? 0 : read_tools(tools, r);
    int rc = guide_new(out, v, &o, e);
    free(tools);
    return rc;
}
