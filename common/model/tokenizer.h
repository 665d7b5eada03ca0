/* tokenizer - text to token ids and back, for the byte-level BPE vocabularies of DeepSeek V3/V4.
 *
 * A text is cut at added tokens ("<think>"), the rest by tokenizer_split.h into pieces, each piece's
 * bytes are merged in the order of the vocabulary's rules; nothing is normalized, added or lost, so
 * decoding gives back the input's bytes, NUL and ill-formed UTF-8 included. Immutable after _new, so
 * any thread may use it; it keeps nothing of what it was made from. Limits: TOKENIZER_* below; an
 * encode call needs 4 bytes per token of result and, for a piece longer than a few hundred bytes, up to
 * 32 bytes of scratch memory per byte of that piece. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include "common/base/err.h"
#include "common/base/types.h"
#include "common/model/gguf.h"

enum {
    TOKENIZER_TEXT_MAX = 64 << 20,                    /* bytes in one encode call */
    TOKENIZER_VOCAB_MAX = (1 << 20) - 1,              /* tokens */
    TOKENIZER_MERGES_MAX = (1 << 24) - 2,             /* merge rules */
    TOKENIZER_TOKEN_BYTES_MAX = 1024,                 /* bytes of one token */
};

/* As numbered by tokenizer.ggml.token_type. */
enum token_kind {
    TOKEN_NORMAL = 1,                                 /* text, made by merging */
    TOKEN_UNKNOWN = 2,                                /* never made from text, like TOKEN_UNUSED */
    TOKEN_CONTROL = 3,                                /* an added token that is not for people's eyes */
    TOKEN_USER = 4,                                   /* an added token, shown: "<think>" */
    TOKEN_UNUSED = 5,
};

/* What a tokenizer is made from, borrowed for the call. Normal tokens and merges ("left right") are
 * spelled in the GPT-2 byte alphabet, all other tokens in plain UTF-8. */
struct tokenizer_vocab {
    struct gguf_str pre;                              /* splitting rule: "joyai-llm" or "deepseek-v3" */
    const struct gguf_str *tokens;                    /* index = id */
    const int32_t *kinds;                             /* enum token_kind per id; NULL: by the V4 layout */
    uint32_t n_tokens;
    const struct gguf_str *merges;                    /* index = rank */
    uint32_t n_merges;
    int32_t bos_id, eos_id, pad_id;                   /* -1: none */
};

struct tokenizer;

/* From a file's tokenizer.ggml.* keys, or from parts. What does not fit together (a token twice, a
 * merge of unknown tokens, an id out of range, a byte without a token) is ERR_CORRUPT, another family
 * or splitting rule ERR_UNSUPPORTED. */
int tokenizer_new(struct tokenizer **out, const struct gguf *g, struct err *e);
int tokenizer_new_vocab(struct tokenizer **out, const struct tokenizer_vocab *v, struct err *e);
void tokenizer_free(struct tokenizer *t);             /* NULL is fine */

/* A growing array of ids; start with { 0 }. */
struct token_buf {
    int32_t *ids;
    size_t n, n_room;
};
int token_buf_push(struct token_buf *b, int32_t id, struct err *e);
void token_buf_free(struct token_buf *b);             /* as new afterwards */

/* Appends the ids of `text` to `out`; on an error `out` is as it was. With parse_special added tokens
 * in the text become their ids; without, "<think>" is ordinary text: use that for what people write,
 * and push control ids between the parts yourself. Added tokens are hard boundaries, so encoding the
 * parts around one separately changes nothing. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, bool parse_special,
                     struct token_buf *out, struct err *e);

uint32_t tokenizer_n_vocab(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t);     /* -1: the vocabulary names none; so with eos, pad */
int32_t tokenizer_eos(const struct tokenizer *t);
int32_t tokenizer_pad(const struct tokenizer *t);
int32_t tokenizer_find_added(const struct tokenizer *t, const char *text);    /* id of "<think>"; -1: none */

/* Both give nothing (NULL and *len 0; 0) for an id outside the vocabulary. To show tokens as they come,
 * push the bytes into a struct utf8_stream (base/utf8.h): a character is often spread over several
 * tokens. */
const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, size_t *len);
enum token_kind tokenizer_token_kind(const struct tokenizer *t, int32_t id);

#endif
