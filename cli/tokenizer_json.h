/* tokenizer_json - a Hugging Face tokenizer.json as a vocabulary for common/model/tokenizer.h, and as
 * GGUF metadata.
 *
 * Only byte-level BPE with the DeepSeek V3/V4 splitting rule is taken: a file whose normalizer,
 * pre-tokenizer or added tokens ask for anything that our tokenizer does not do is refused, so what is
 * converted means the same afterwards. The views in `vocab` live until _close. One thread; limits are
 * those of the tokenizer and TOKENIZER_JSON_MAX. */
#ifndef CLI_TOKENIZER_JSON_H
#define CLI_TOKENIZER_JSON_H

#include "common/model/gguf.h"
#include "common/model/tokenizer.h"

enum { TOKENIZER_JSON_MAX = 256 << 20 };              /* bytes of a file */

struct json_t;
struct tokenizer_json {
    struct tokenizer_vocab vocab;
    struct json_t *root;                              /* owns the strings */
    struct gguf_str *tokens, *merges;
    int32_t *kinds;
    char *joined;                                     /* merges that the file gives as pairs */
};

int tokenizer_json_open(struct tokenizer_json *tj, const char *path, struct err *e);
int tokenizer_json_parse(struct tokenizer_json *tj, const char *text, size_t len, struct err *e);
void tokenizer_json_close(struct tokenizer_json *tj); /* a zeroed struct is fine */

/* Puts the tokenizer.ggml.* keys; the views must live until the writer has begun its data. */
void tokenizer_json_put(const struct tokenizer_json *tj, struct gguf_writer *w);

#endif
