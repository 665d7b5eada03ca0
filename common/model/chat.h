/* chat - renders a conversation into the prompt text that DeepSeek V4 was trained on.
 *
 * A conversation is an array of plain messages; rendering is a pure function of it and the
 * options. The text comes with its segments: control (a token that steers the model, written by
 * us) or plain (everything else, the user's words included). Encoding plain segments without
 * special tokens makes it impossible to forge a turn from inside a message; encoding the whole
 * text with them gives what reference stacks do. Neighbouring plain pieces are one segment,
 * because they may share a token.
 *     conversation: system -> user turn -> assistant -> user turn -> ... -> header of the answer
 *     user turn   : user texts and tool results that follow one another, as one
 *
 * Messages borrow their texts; nothing here keeps them beyond the call. No state, any thread.
 * Time is linear in the text (n log n in the tool results of one turn). Limits: the enum below. */
#ifndef MODEL_CHAT_H
#define MODEL_CHAT_H

#include "common/base/buf.h"
#include "common/model/chat_json.h"

enum {
    CHAT_MESSAGES_MAX = 1 << 16,
    CHAT_CALLS_MAX = 1024,                        /* tool calls of one message */
    CHAT_TOOLS_MAX = 4096,
    CHAT_PROMPT_BYTES_MAX = 1 << 28,
};

/* The release of the weights: the two differ in the texts of reasoning effort. */
enum chat_encoding { CHAT_V4_2604, CHAT_V4_0731 };

enum chat_effort { CHAT_EFFORT_UNSET, CHAT_EFFORT_LOW, CHAT_EFFORT_HIGH, CHAT_EFFORT_MAX };

enum chat_role {
    CHAT_ROLE_SYSTEM,
    CHAT_ROLE_USER,
    CHAT_ROLE_ASSISTANT,
    CHAT_ROLE_TOOL,                               /* a tool's result */
    CHAT_ROLE_REMINDER,
    CHAT_ROLE_DEVELOPER,       /* of the model's own search product; OpenAI's is CHAT_ROLE_SYSTEM */
};

enum chat_task {                                  /* of the same product; no API offers them */
    CHAT_TASK_NONE, CHAT_TASK_ACTION, CHAT_TASK_QUERY, CHAT_TASK_AUTHORITY, CHAT_TASK_DOMAIN,
    CHAT_TASK_TITLE, CHAT_TASK_READ_URL
};

struct chat_call {
    struct chat_text id, name;
    struct chat_text arguments;              /* JSON of an object; whatever else is shown as text */
};

struct chat_message {
    enum chat_role role;
    enum chat_task task;
    bool prefix;                                  /* last assistant message: to be continued */
    struct chat_text content;
    struct chat_text reasoning;                   /* assistant */
    const struct chat_call *calls;                /* assistant */
    size_t n_calls;
    struct chat_text replay;  /* assistant: the block of calls as it was sampled, instead of ours */
    struct chat_text call_id;                     /* tool: which call this answers */
    const struct chat_text *tools;                /* system, developer: JSON of each function */
    size_t n_tools;
    struct chat_text schema;                    /* system, developer: JSON of the answer's schema */
};

struct chat_options {
    enum chat_encoding encoding;
    enum chat_effort effort;
    bool thinking;
    bool open_turn;        /* where no answer could begin (behind a system message), begin one, at the end
                            * and before answers of the past: what a server wants */
    bool keep_reasoning;                          /* of old turns, as when tools are attached */
    bool without_bos;
    size_t n_context;                             /* messages in front that are not written again */
};

struct chat_segment {
    size_t at, len;                               /* in the text */
    bool control;                                 /* only control tokens, one or more */
};

struct chat_prompt {
    struct buf text;
    struct chat_segment *segments;                /* without gaps, alternating, none empty */
    size_t n_segments, room;
    bool in_reasoning;                          /* the text ends in <think>: reasoning comes next */
};

void chat_prompt_init(struct chat_prompt *p);
void chat_prompt_deinit(struct chat_prompt *p);

/* Appends to *p. ERR_INVALID: a schema is not JSON; ERR_LIMIT, ERR_NOMEM. */
int chat_render(struct chat_prompt *p, const struct chat_message *messages, size_t n,
                const struct chat_options *o, struct err *e);

/* Appends the start of a call that the model must go on with: of any function, or (name.len > 0)
 * of this one. Follows </think> or the header; the parser of the answer has to be fed the same
 * text. */
int chat_prompt_force_call(struct chat_prompt *p, struct chat_text name, struct err *e);

/* What an API's effort means for an encoding; thinking is only ever turned off. ERR_INVALID. */
int chat_effort_read(enum chat_encoding encoding, struct chat_text word, bool *thinking,
                     enum chat_effort *effort, struct err *e);

int chat_encoding_read(const char *name, enum chat_encoding *encoding, struct err *e);
const char *chat_encoding_name(enum chat_encoding encoding);

/* The encoding of a weight file, from its metadata (empty where it has none). */
enum chat_encoding chat_encoding_guess(struct chat_text model_name, struct chat_text jinja);

#endif
