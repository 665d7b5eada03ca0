/* api_request - a client's request becomes a conversation for the chat renderer.
 *
 * Three dialects (OpenAI chat and responses, Anthropic messages) are read into one form:
 * messages, what to render them with, and what was asked about tools and the answer's format.
 * Only what shapes the prompt is read here; sampling, limits and stop strings are the endpoints'
 * own.
 *
 * Every field is checked: ERR_INVALID with the field's name, ERR_LIMIT for too many of
 * something. Texts are borrowed from the parsed body, which the struct keeps a reference to, and
 * from its arena; the body's bytes are needed only during the call. One thread at a time. */
#ifndef COORDINATOR_API_REQUEST_H
#define COORDINATOR_API_REQUEST_H

#include "common/base/arena.h"
#include "common/model/chat.h"
#include "coordinator/api_json.h"

enum { API_REQUEST_BYTES_MAX = 1 << 28 };         /* of the arena: what is joined or copied */

struct api_defaults {                             /* of the server */
    enum chat_encoding encoding;
    enum chat_effort effort;                      /* when the client says nothing */
    bool thinking;
    bool budget;                                  /* thinking.budget_tokens counts */
};

enum api_tool_choice { API_TOOLS_AUTO, API_TOOLS_NONE, API_TOOLS_REQUIRED, API_TOOLS_NAMED };
enum api_format { API_FORMAT_TEXT, API_FORMAT_JSON_OBJECT, API_FORMAT_JSON_SCHEMA };

struct api_tool {
    struct chat_text name;                        /* as the model sees it */
    struct chat_text json;                        /* as the model sees it */
    struct chat_text client_name, client_space;  /* as the client knows it; space is mostly empty */
    bool custom;                                  /* takes one string called "input" */
};

struct api_request {
    struct chat_message *messages;
    size_t n_messages, room;
    struct chat_options options;
    struct api_tool *tools;                       /* those that are shown */
    size_t n_tools;
    enum api_tool_choice tool_choice;
    struct chat_text tool_name;                   /* of API_TOOLS_NAMED, as the model sees it */
    bool one_call;                                /* parallel calls are not wanted */
    enum api_format format;
    struct chat_text schema;                      /* JSON of API_FORMAT_JSON_SCHEMA; may be empty */
    bool strict;                                  /* the format is to be guaranteed */
    bool budget;                                  /* as in the defaults */
    uint32_t reasoning_max;                       /* tokens of thinking; 0: no limit of their own */
    struct arena arena;
    json_t *root;
};

/* root is the parsed body, body its bytes. On success the caller owes api_request_deinit. */
int api_request_chat(struct api_request *r, json_t *root, struct chat_text body,
                     const struct api_defaults *d, struct err *e);
int api_request_messages(struct api_request *r, json_t *root, struct chat_text body,
                         const struct api_defaults *d, struct err *e);
int api_request_responses(struct api_request *r, json_t *root, struct chat_text body,
                          const struct api_defaults *d, struct err *e);
void api_request_deinit(struct api_request *r);   /* a zeroed struct is fine */

#endif
