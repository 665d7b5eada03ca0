/* ids - token ids as text: decimal numbers separated by blanks, commas or line breaks. "-" is the standard input. */
#ifndef CLI_IDS_H
#define CLI_IDS_H

#include "common/base/err.h"
#include "common/model/tokenizer.h"

int ids_read_file(const char *path, struct token_buf *out, struct err *e);

#endif
