/* ids - token ids as text: decimal numbers separated by blanks, commas or line breaks. "-" is the
 * standard input. */
#ifndef CLI_IDS_H
#define CLI_IDS_H

#include "common/base/err.h"
#include "common/model/tokenizer.h"

int ids_read_file(const char *path, struct token_buf *out, struct err *e);
/* There is at least one, and each is in a vocabulary of n_vocab tokens. */
int ids_check(const char *path, const struct token_buf *ids, uint32_t n_vocab, struct err *e);

#endif
