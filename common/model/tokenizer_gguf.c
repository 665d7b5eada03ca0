/* tokenizer_gguf - a vocabulary out of a GGUF file's tokenizer.ggml.* keys.
 *
 * Only gathers views; what they say is checked where the tables are built. tokenizer.ggml.add_bos_token
 * and its like are not read: encoding never adds anything, the chat encoder places control tokens. */
#include "common/model/tokenizer_private.h"

#include <stdlib.h>

/* The strings of an array as an array of views, freed by the caller; NULL with *rc set on failure. */
static struct gguf_str *read_strings(const struct gguf *g, const char *key, uint64_t limit,
                                     uint32_t *n, int *rc, struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, key);
    *rc = 0;
    if (!kv) *rc = err_set(e, ERR_NOTFOUND, "%s is missing", key);
    else if (kv->type != GGUF_ARRAY || kv->array_type != GGUF_STRING)
        *rc = err_set(e, ERR_CORRUPT, "%s is not a list of strings", key);
    else if (kv->n > limit)
        *rc = err_set(e, ERR_LIMIT, "%s has %llu entries, the limit is %llu", key,
                      (unsigned long long)kv->n, (unsigned long long)limit);
    if (*rc < 0) return NULL;
    struct gguf_str *strings = malloc((kv->n + 1) * sizeof *strings);
    if (!strings) *rc = err_set(e, ERR_NOMEM, "no memory for %s", key);
    const uint8_t *cursor = kv->data;
    *n = 0;
    while (strings && *n < kv->n && gguf_kv_next_str(kv, &cursor, &strings[*n])) ++*n;
    return strings;
}

static int32_t *read_kinds(const struct gguf *g, uint32_t n_tokens, int *rc, struct err *e) {
    const char *key = "tokenizer.ggml.token_type";
    const struct gguf_kv *kv = gguf_find(g, key);
    *rc = 0;
    if (!kv) return NULL;                             /* allowed: the layout of V4 is assumed */
    if (kv->type != GGUF_ARRAY || kv->n != n_tokens) {
        *rc = err_set(e, ERR_CORRUPT, "%s has %llu entries for %u tokens", key,
                      (unsigned long long)kv->n, n_tokens);
        return NULL;
    }
    int32_t *kinds = malloc(((size_t)n_tokens + 1) * sizeof *kinds);
    if (!kinds) *rc = err_set(e, ERR_NOMEM, "no memory for %s", key);
    for (uint32_t id = 0; id < n_tokens && *rc == 0; id++) {
        int64_t kind;
        if (gguf_kv_int(kv, id, &kind) < 0 || kind < 0 || kind > INT32_MAX)
            *rc = err_set(e, ERR_CORRUPT, "%s of token %u is not a type", key, id);
        else kinds[id] = (int32_t)kind;
    }
    return kinds;
}

static int read_special_id(const struct gguf *g, const char *key, int32_t *out, struct err *e) {
    uint32_t id;
    *out = -1;
    if (!gguf_find(g, key)) return 0;
    int rc = gguf_get_u32(g, key, &id, e);
    if (rc < 0) return rc;
    if (id > INT32_MAX) return err_set(e, ERR_CORRUPT, "%s is %u", key, id);
    *out = (int32_t)id;
    return 0;
}

static int check_model(const struct gguf *g, struct err *e) {
    struct gguf_str model;
    int rc = gguf_get_str(g, "tokenizer.ggml.model", &model, e);
    if (rc < 0) return rc;
    if (model.len == 4 && memcmp(model.data, "gpt2", 4) == 0) return 0;
    return err_set(e, ERR_UNSUPPORTED,
                   "tokenizer.ggml.model is \"%.*s\", only gpt2 (byte-level BPE) is known",
                   tokenizer_shown(model), model.data);
}

static int read_small(const struct gguf *g, struct tokenizer_vocab *v, struct err *e) {
    int rc = check_model(g, e);
    if (rc == 0) rc = gguf_get_str(g, "tokenizer.ggml.pre", &v->pre, e);
    if (rc == 0) rc = read_special_id(g, "tokenizer.ggml.bos_token_id", &v->bos_id, e);
    if (rc == 0) rc = read_special_id(g, "tokenizer.ggml.eos_token_id", &v->eos_id, e);
    if (rc == 0) rc = read_special_id(g, "tokenizer.ggml.padding_token_id", &v->pad_id, e);
    return rc;
}

int tokenizer_new(struct tokenizer **out, const struct gguf *g, struct err *e) {
    struct tokenizer_vocab v = { 0 };
    struct gguf_str *tokens = NULL, *merges = NULL;
    int32_t *kinds = NULL;
    int rc = read_small(g, &v, e);
    if (rc == 0)
        tokens = read_strings(g, "tokenizer.ggml.tokens", TOKENIZER_VOCAB_MAX, &v.n_tokens, &rc, e);
    if (rc == 0)
        merges = read_strings(g, "tokenizer.ggml.merges", TOKENIZER_MERGES_MAX, &v.n_merges, &rc, e);
    if (rc == 0) kinds = read_kinds(g, v.n_tokens, &rc, e);
    v.tokens = tokens;
    v.merges = merges;
    v.kinds = kinds;
    if (rc == 0) rc = tokenizer_new_vocab(out, &v, e);
    free(tokens);
    free(merges);
    free(kinds);
    return rc < 0 ? err_wrap(e, rc, "tokenizer") : 0;
}
