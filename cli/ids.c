#include "cli/ids.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { IDS_MAX = 1 << 24 };

static int read_ids(FILE *in, struct token_buf *out, struct err *e) {
    int c;
    while ((c = getc(in)) != EOF) {
        if (isspace(c) || c == ',') continue;
        if (!isdigit(c))
            return err_set(e, ERR_INVALID, "'%c' (byte %d) is not a token id", isprint(c) ? c : '?', c);
        int64_t id = 0;
        for (; c != EOF && isdigit(c) && id <= INT32_MAX; c = getc(in)) id = id * 10 + (c - '0');
        if (id > INT32_MAX) return err_set(e, ERR_INVALID, "a token id is larger than %d", INT32_MAX);
        if (c != EOF) ungetc(c, in);
        if (out->n >= IDS_MAX) return err_set(e, ERR_LIMIT, "more than %d token ids", IDS_MAX);
        int rc = token_buf_push(out, (int32_t)id, e);
        if (rc < 0) return rc;
    }
    return ferror(in) ? err_errno(e, ERR_IO, "reading token ids") : 0;
}

int ids_read_file(const char *path, struct token_buf *out, struct err *e) {
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *in = is_stdin ? stdin : fopen(path, "rb");
    if (!in) return err_errno(e, ERR_IO, "%s", path);
    int rc = read_ids(in, out, e);
    if (!is_stdin) fclose(in);
    return rc < 0 ? err_wrap(e, rc, "%s", path) : 0;
}

int ids_check(const char *path, const struct token_buf *ids, uint32_t n_vocab, struct err *e) {
    if (ids->n == 0) return err_set(e, ERR_INVALID, "%s holds no token ids", path);
    for (size_t i = 0; i < ids->n; i++)
        if (ids->ids[i] < 0 || (uint32_t)ids->ids[i] >= n_vocab)
            return err_set(
                e, ERR_INVALID,
                "%s: token id %d, number %zu of the input, is out of range (the vocabulary has %u)", path,
                ids->ids[i], i + 1, n_vocab);
    return 0;
}
