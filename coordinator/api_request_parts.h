/* api_request_parts - what the readers of the three dialects share. Private to api_request*.c.
 *
 * They add messages and tools to a struct api_request one by one and finish it; everything is owned
 * by that struct. A value is handled twice: as jansson parsed it (what it means) and as its text in
 * the body (how it was spelt), because schemas and arguments are shown as they were spelt. */
#ifndef COORDINATOR_API_REQUEST_PARTS_H
#define COORDINATOR_API_REQUEST_PARTS_H

#include "coordinator/api_request.h"

int api_request_open(struct api_request *r, json_t *root, const struct api_defaults *d,
                     struct err *e);

/* The message is good until the next one is added. */
int api_message_add(struct api_request *r, enum chat_role role, struct chat_message **out,
                    struct err *e);

/* String, null or array of parts as one text. In a tool's result a part that is no text is named;
 * elsewhere it is an error. */
int api_content_read(struct api_request *r, const json_t *content, bool is_result,
                     struct chat_text *out, struct err *e);
/* The text of one part, or *is_text false for a part that is to be left out (a refusal). */
int api_part_read(struct api_request *r, const json_t *part, bool is_result, bool *is_text,
                  struct chat_text *out, struct err *e);

/* Texts to be joined by blank lines. */
struct api_texts {
    struct buf joined;
    bool any;
};
void api_texts_open(struct api_texts *t);
void api_texts_add(struct api_texts *t, struct chat_text text);
/* Ends it in any case; *out is in the arena. */
int api_texts_close(struct api_request *r, struct api_texts *t, struct chat_text *out,
                    struct err *e);

int api_calls_new(struct api_request *r, size_t n, struct chat_call **out, struct err *e);

/* Every tool result must answer a call of an earlier message. */
int api_results_check(const struct api_request *r, struct err *e);

/* Room for the tools of an array that has n elements, then one after the other. */
int api_tools_new(struct api_request *r, size_t n, struct err *e);
void api_tool_add(struct api_request *r, struct api_tool tool);

/* Chooses the tool that the client calls so. ERR_INVALID if it is not among those offered. */
int api_tool_choose(struct api_request *r, struct chat_text client_name, struct err *e);
int api_tool_choice_word(struct api_request *r, struct chat_text word, struct err *e);
/* Keeps only the named tools, as an array of objects with a name each, directly or in `inside`. */
int api_tools_allow(struct api_request *r, const json_t *names, const char *inside, struct err *e);

/* Effort by name; `none` turns thinking off. NULL changes nothing. */
int api_effort_read(struct api_request *r, const json_t *effort, struct err *e);
/* { "type": "enabled" | "adaptive" | "disabled" }, or a bool. 1: it decided; 0: it was not
 * there. */
int api_thinking_read(struct api_request *r, const json_t *thinking, struct err *e);

/* The answer's format: its type, and where a schema and its strictness stand in it and in its text,
 * directly or inside a member. */
int api_format_read(struct api_request *r, const json_t *format, struct chat_text text,
                    const char *inside, struct err *e);

/* Copies into the arena; an empty text for an empty text. */
int api_copy(struct api_request *r, struct chat_text text, struct chat_text *out, struct err *e);

/* Hangs tools and schema on the first message, which becomes a system message if it is none. */
int api_request_finish(struct api_request *r, struct err *e);

#endif
