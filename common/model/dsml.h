/* dsml - turns what the model generates back into reasoning, content and tool calls.
 *     reasoning </think> content "\n\n" <｜DSML｜tool_calls> invoke blocks </｜DSML｜tool_calls>
 *
 * The stream takes text in any pieces and gives deltas that are never taken back: whatever might
 * still turn out to be markup, half a stop string or half a character waits inside. Markup that
 * does not hold together becomes content again, so nothing the model wrote is lost and nothing
 * is an error. There is also the strict one-shot parser of the reference, which refuses every
 * deviation.
 *
 * Calls are delivered whole (when their closing tag has come; joined deltas equal the one-shot
 * result for any cutting) or live: announced with the opening tag, string arguments as they
 * come. What was announced cannot become content again: when such a call breaks off, its JSON is
 * closed if the model stopped by itself, and left open if it was cut. A parameter that comes
 * twice is sent twice when live, which means the same to every JSON reader (the last one
 * counts).
 *
 * A stream belongs to one thread at a time and owns its memory. Time is linear in the text.
 * Limits: the enum below; markup beyond them counts as broken. */
#ifndef MODEL_DSML_H
#define MODEL_DSML_H

#include "common/base/buf.h"
#include "common/model/chat_json.h"

enum {
    DSML_CALLS_MAX = 256,                         /* of one answer */
    DSML_PARAMETERS_MAX = 1024,                   /* of one call */
    DSML_TAG_BYTES_MAX = 4096,
    DSML_HELD_BYTES_MAX = 64 << 20,               /* a value that waits for its closing tag */
    DSML_STOPS_MAX = 64,
    DSML_STOP_BYTES_MAX = 4096,                   /* of one stop string */
};

struct dsml_options {
    bool in_reasoning;                            /* the prompt ended in <think> */
    bool tools;                                  /* tools were offered: else markup is plain text */
    bool live;                                    /* announce calls early */
    bool loose;   /* also <DSML｜...> and plain <tool_calls>, as weights of few bits tend to write */
    size_t calls_max;                             /* stop behind so many; 0: DSML_CALLS_MAX */
    const struct chat_text *stops;                /* of content only; copied */
    size_t n_stops;
};

enum dsml_kind { DSML_REASONING, DSML_CONTENT, DSML_CALL, DSML_ARGUMENTS, DSML_CALL_END };

struct dsml_delta {
    enum dsml_kind kind;
    size_t call_i;                                /* of the last three: which call, from 0 */
    struct chat_text text;                        /* DSML_CALL: the name; DSML_CALL_END: empty */
};

enum dsml_finish { DSML_FINISH_STOP, DSML_FINISH_LENGTH, DSML_FINISH_CALLS };

/* ---- streaming ---- */

struct dsml_stream;

/* ERR_INVALID for an empty stop string, ERR_LIMIT, ERR_NOMEM. */
int dsml_stream_new(struct dsml_stream **out, const struct dsml_options *o, struct err *e);
void dsml_stream_free(struct dsml_stream *s);     /* NULL is fine */

/* Takes UTF-8 in any pieces, even of characters. The deltas of earlier calls are gone then.
 * 0 or ERR_NOMEM, ERR_LIMIT (more than 1 GiB is waiting); errors stick. */
int dsml_stream_feed(struct dsml_stream *s, const char *bytes, size_t n);
/* No more text: the model stopped, or (cut) it was stopped by a limit. Once. */
int dsml_stream_end(struct dsml_stream *s, bool cut);
/* The next delta since the last feed or end; its text is good until the next of those. */
bool dsml_stream_next(struct dsml_stream *s, struct dsml_delta *d);

/* Nothing more will come of it: the block was closed, a stop string matched. Stop generating. */
bool dsml_stream_done(const struct dsml_stream *s);

/* The rest is known when the stream is done or ended. */
enum dsml_finish dsml_stream_finish(const struct dsml_stream *s);
int dsml_stream_stop_i(const struct dsml_stream *s);                 /* which stop matched, or -1 */
bool dsml_stream_broken(const struct dsml_stream *s);     /* an announced call broke off: log it */

/* Where in all the bytes that were fed a block of calls lies, its newlines and closing tag
 * included: what to keep, to send the model the very text it wrote. False: there is none that
 * was closed. */
bool dsml_stream_block(const struct dsml_stream *s, size_t *from, size_t *to);

/* ---- a whole message ---- */

struct dsml_call {
    struct buf name, arguments;                   /* arguments: JSON text of an object */
};

struct dsml_message {
    struct buf reasoning, content;
    struct dsml_call *calls;
    size_t n_calls;
    enum dsml_finish finish;
};

void dsml_message_init(struct dsml_message *m);
void dsml_message_deinit(struct dsml_message *m);
int dsml_message_add(struct dsml_message *m, const struct dsml_delta *d);

/* The tolerant parser at once: the text behind the prompt, without the end-of-sentence token. */
int dsml_parse(struct dsml_message *m, struct chat_text text, const struct dsml_options *o,
               bool cut, struct err *e);

/* Whether a kept block says just these calls, so that it may stand for them in a prompt: the same
 * names and, as JSON, the same arguments in the same order. */
struct chat_call;
bool dsml_block_says(struct chat_text block, const struct chat_call *calls, size_t n_calls);

/* The reference's parser: with the end-of-sentence token, without any tolerance. ERR_INVALID. */
int dsml_parse_strict(struct dsml_message *m, struct chat_text text, bool thinking, struct err *e);

#endif
