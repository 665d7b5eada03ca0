/* tokenizer_json - see the header. Tokens come from two lists: model.vocab (spelled in the byte
 * alphabet) and added_tokens (plain text, which wins where an id is in both); together they must fill
 * 0..n-1 without a hole. */
#include "cli/tokenizer_json.h"

#include "common/sys/file.h"

#include <jansson.h>
#include <stdlib.h>

#define CJK_PATTERN "[\xe4\xb8\x80-\xe9\xbe\xa5\xe3\x81\x80-\xe3\x82\x9f\xe3\x82\xa0-\xe3\x83\xbf]+"
#define MAIN_PATTERN \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+" \
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"

/* The three splitting passes, letter for letter: another pattern is another rule. */
static const char *const split_patterns[] = { "\\p{N}{1,3}", CJK_PATTERN, MAIN_PATTERN };

static bool text_is(const json_t *value, const char *text) {
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* Absent, null and false all mean that the file does not ask for it. */
static bool is_off(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value) || json_is_false(value);
}

static struct gguf_str str_view(const json_t *value) {
    return (struct gguf_str){ json_string_value(value), json_string_length(value) };
}

/* ---- what the file asks for ---- */

static int check_normalizer(const json_t *root, struct err *e) {
    const json_t *normalizer = json_object_get(root, "normalizer");
    if (!normalizer || json_is_null(normalizer)) return 0;
    const json_t *steps = json_object_get(normalizer, "normalizers");
    if (text_is(json_object_get(normalizer, "type"), "Sequence") && json_array_size(steps) == 0) return 0;
    return err_set(e, ERR_UNSUPPORTED, "the text would be normalized before splitting");
}

static bool is_split(const json_t *step, const char *pattern) {
    return text_is(json_object_get(step, "type"), "Split") &&
           text_is(json_object_get(json_object_get(step, "pattern"), "Regex"), pattern) &&
           text_is(json_object_get(step, "behavior"), "Isolated") && is_off(step, "invert");
}

static int check_splitting(const json_t *root, struct err *e) {
    const json_t *steps = json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers");
    size_t n = COUNT_OF(split_patterns);
    bool same = json_array_size(steps) == n + 1;
    for (size_t i = 0; i < n && same; i++) same = is_split(json_array_get(steps, i), split_patterns[i]);
    const json_t *last = json_array_get(steps, n);
    if (same && text_is(json_object_get(last, "type"), "ByteLevel") && is_off(last, "add_prefix_space") &&
        is_off(last, "use_regex")) return 0;
    return err_set(e, ERR_UNSUPPORTED, "its splitting rule is not the one of DeepSeek V3 and V4");
}

static int check_model(const json_t *model, struct err *e) {
    static const char *const off[] = {
        "dropout",       "unk_token",     "continuing_subword_prefix", "end_of_word_suffix",
        "byte_fallback", "ignore_merges",
    };
    if (!text_is(json_object_get(model, "type"), "BPE"))
        return err_set(e, ERR_UNSUPPORTED, "its model is not BPE");
    for (size_t i = 0; i < COUNT_OF(off); i++) {
        const json_t *value = json_object_get(model, off[i]);
        if (!is_off(model, off[i]) && !text_is(value, ""))
            return err_set(e, ERR_UNSUPPORTED, "model.%s is set, which this tokenizer does not do", off[i]);
    }
    return 0;
}

/* ---- tokens ---- */

static int read_id(const json_t *value, uint32_t *id, struct err *e) {
    json_int_t number = json_is_integer(value) ? json_integer_value(value) : -1;
    if (number < 0 || number >= TOKENIZER_VOCAB_MAX)
        return err_set(e, ERR_CORRUPT, "a token id is not a number below %d", TOKENIZER_VOCAB_MAX);
    *id = (uint32_t)number;
    return 0;
}

static int count_tokens(struct tokenizer_json *tj, json_t *vocab, const json_t *added, struct err *e) {
    const char *key;
    json_t *value;
    uint32_t id = 0;
    size_t i;
    int rc;
    json_object_foreach(vocab, key, value) {
        if ((rc = read_id(value, &id, e)) < 0) return rc;
        tj->vocab.n_tokens = MAX(tj->vocab.n_tokens, id + 1);
    }
    json_array_foreach(added, i, value) {
        if ((rc = read_id(json_object_get(value, "id"), &id, e)) < 0) return rc;
        tj->vocab.n_tokens = MAX(tj->vocab.n_tokens, id + 1);
    }
    return tj->vocab.n_tokens ? 0 : err_set(e, ERR_CORRUPT, "it has no tokens");
}

static int take_vocab(struct tokenizer_json *tj, json_t *vocab, struct err *e) {
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value) {
        uint32_t id = (uint32_t)json_integer_value(value);
        if (tj->kinds[id]) return err_set(e, ERR_CORRUPT, "two tokens have the id %u", id);
        tj->kinds[id] = TOKEN_NORMAL;
        tj->tokens[id] = (struct gguf_str){ key, strlen(key) };
    }
    return 0;
}

static bool ends_with(struct gguf_str s, const char *tail) {
    size_t n = strlen(tail);
    return s.len >= n && memcmp(s.data + s.len - n, tail, n) == 0;
}

static bool starts_with(struct gguf_str s, const char *head) {
    size_t n = strlen(head);
    return s.len >= n && memcmp(s.data, head, n) == 0;
}

/* Published GGUF files mark as control what is flagged special and what looks like it: <|...|> with
 * either bar. */
static bool is_control(const json_t *token, struct gguf_str text) {
    return json_is_true(json_object_get(token, "special")) ||
           (starts_with(text, "<|") && ends_with(text, "|>")) ||
           (starts_with(text, "<\xef\xbd\x9c") && ends_with(text, "\xef\xbd\x9c>"));
}

static int take_added_token(struct tokenizer_json *tj, const json_t *token, struct err *e) {
    uint32_t id = (uint32_t)json_integer_value(json_object_get(token, "id"));
    const json_t *content = json_object_get(token, "content");
    if (!json_is_string(content)) return err_set(e, ERR_CORRUPT, "added token %u has no text", id);
    if (!is_off(token, "lstrip") || !is_off(token, "rstrip") || !is_off(token, "single_word"))
        return err_set(e, ERR_UNSUPPORTED, "added token %u wants more than an exact match", id);
    struct gguf_str text = str_view(content), before = tj->tokens[id];
    if (tj->kinds[id] > TOKEN_NORMAL) return err_set(e, ERR_CORRUPT, "two added tokens have the id %u", id);
    if (tj->kinds[id] && (before.len != text.len || memcmp(before.data, text.data, text.len) != 0))
        return err_set(e, ERR_CORRUPT, "token %u has another text as an added token", id);
    tj->tokens[id] = text;
    tj->kinds[id] = is_control(token, text) ? TOKEN_CONTROL : TOKEN_USER;
    return 0;
}

static int32_t find_added(const struct tokenizer_json *tj, const char *text) {
    for (uint32_t id = 0; id < tj->vocab.n_tokens; id++) {
        struct gguf_str s = tj->tokens[id];
        if (tj->kinds[id] != TOKEN_NORMAL && s.len == strlen(text) && starts_with(s, text))
            return (int32_t)id;
    }
    return -1;
}

static int read_tokens(struct tokenizer_json *tj, json_t *vocab, const json_t *added, struct err *e) {
    int rc = count_tokens(tj, vocab, added, e);
    if (rc < 0) return rc;
    tj->tokens = calloc(tj->vocab.n_tokens, sizeof *tj->tokens);
    tj->kinds = calloc(tj->vocab.n_tokens, sizeof *tj->kinds);
    if (!tj->tokens || !tj->kinds)
        return err_set(e, ERR_NOMEM, "no memory for %u tokens", tj->vocab.n_tokens);
    rc = take_vocab(tj, vocab, e);
    for (size_t i = 0; i < json_array_size(added) && rc == 0; i++)
        rc = take_added_token(tj, json_array_get(added, i), e);
    for (uint32_t id = 0; id < tj->vocab.n_tokens && rc == 0; id++)
        if (!tj->kinds[id]) rc = err_set(e, ERR_CORRUPT, "no token has the id %u", id);
    return rc;
}

/* ---- merges: "left right", or ["left", "right"] as newer files have it ---- */

/* Bytes of a merge as "left right"; writes them behind `out` unless it is NULL. 0: not a merge. */
static size_t join_pair(const json_t *pair, char *out) {
    const json_t *left = json_array_get(pair, 0), *right = json_array_get(pair, 1);
    if (json_array_size(pair) != 2 || !json_is_string(left) || !json_is_string(right)) return 0;
    size_t n_left = json_string_length(left), n_right = json_string_length(right);
    if (out) {
        memcpy(out, json_string_value(left), n_left);
        out[n_left] = ' ';
        memcpy(out + n_left + 1, json_string_value(right), n_right);
    }
    return n_left + 1 + n_right;
}

static int read_merges(struct tokenizer_json *tj, const json_t *merges, struct err *e) {
    size_t n = json_array_size(merges), size = 0, used = 0;
    if (!json_is_array(merges)) return err_set(e, ERR_CORRUPT, "model.merges is not a list");
    if (n > TOKENIZER_MERGES_MAX)
        return err_set(e, ERR_LIMIT, "%zu merges, the limit is %d", n, TOKENIZER_MERGES_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *merge = json_array_get(merges, i);
        size_t n_pair = json_is_string(merge) ? 1 : join_pair(merge, NULL);
        if (!n_pair) return err_set(e, ERR_CORRUPT, "merge %zu is neither a text nor a pair", i);
        size += n_pair;
    }
    tj->merges = calloc(n + 1, sizeof *tj->merges);
    tj->joined = malloc(size + 1);
    if (!tj->merges || !tj->joined) return err_set(e, ERR_NOMEM, "no memory for %zu merges", n);
    for (size_t i = 0; i < n; i++) {
        const json_t *merge = json_array_get(merges, i);
        if (json_is_string(merge)) {
            tj->merges[i] = str_view(merge);
            continue;
        }
        tj->merges[i] = (struct gguf_str){ tj->joined + used, join_pair(merge, tj->joined + used) };
        used += tj->merges[i].len;
    }
    tj->vocab.n_merges = (uint32_t)n;
    return 0;
}

/* ---- the whole ---- */

static void fill_vocab(struct tokenizer_json *tj) {
    struct tokenizer_vocab *v = &tj->vocab;
    v->pre = (struct gguf_str){ "joyai-llm", strlen("joyai-llm") };
    v->tokens = tj->tokens;
    v->kinds = tj->kinds;
    v->merges = tj->merges;
    v->bos_id = find_added(tj, "<\xef\xbd\x9c" "begin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>");
    v->eos_id = find_added(tj, "<\xef\xbd\x9c" "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>");
    v->pad_id = v->eos_id;                            /* what the published tokenizer_config.json says */
}

static int read_root(struct tokenizer_json *tj, struct err *e) {
    json_t *model = json_object_get(tj->root, "model");
    json_t *vocab = json_object_get(model, "vocab"), *added = json_object_get(tj->root, "added_tokens");
    int rc = json_is_object(vocab) ? 0 : err_set(e, ERR_CORRUPT, "it has no model.vocab");
    if (rc == 0) rc = check_model(model, e);
    if (rc == 0) rc = check_normalizer(tj->root, e);
    if (rc == 0) rc = check_splitting(tj->root, e);
    if (rc == 0) rc = read_tokens(tj, vocab, added, e);
    if (rc == 0) rc = read_merges(tj, json_object_get(model, "merges"), e);
    if (rc == 0) fill_vocab(tj);
    return rc;
}

int tokenizer_json_parse(struct tokenizer_json *tj, const char *text, size_t len, struct err *e) {
    json_error_t where;
    *tj = (struct tokenizer_json){ 0 };
    tj->root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
    if (!tj->root) return err_set(e, ERR_CORRUPT, "line %d: %s", where.line, where.text);
    int rc = read_root(tj, e);
    if (rc < 0) tokenizer_json_close(tj);
    return rc;
}

int tokenizer_json_open(struct tokenizer_json *tj, const char *path, struct err *e) {
    void *text;
    size_t len;
    *tj = (struct tokenizer_json){ 0 };
    int rc = file_read_all(path, TOKENIZER_JSON_MAX, &text, &len, e);
    if (rc < 0) return rc;
    rc = tokenizer_json_parse(tj, text, len, e);
    free(text);
    return rc < 0 ? err_wrap(e, rc, "%s", path) : 0;
}

void tokenizer_json_close(struct tokenizer_json *tj) {
    json_decref(tj->root);
    free(tj->tokens);
    free(tj->kinds);
    free(tj->merges);
    free(tj->joined);
    *tj = (struct tokenizer_json){ 0 };
}

void tokenizer_json_put(const struct tokenizer_json *tj, struct gguf_writer *w) {
    const struct tokenizer_vocab *v = &tj->vocab;
    gguf_put_str(w, "tokenizer.ggml.model", "gpt2", strlen("gpt2"));
    gguf_put_str(w, "tokenizer.ggml.pre", v->pre.data, v->pre.len);
    gguf_put_strs(w, "tokenizer.ggml.tokens", v->tokens, v->n_tokens);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, v->kinds, v->n_tokens);
    gguf_put_strs(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    if (v->bos_id >= 0) gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos_id);
    if (v->eos_id >= 0) gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos_id);
    if (v->pad_id >= 0) gguf_put_u32(w, "tokenizer.ggml.padding_token_id", (uint32_t)v->pad_id);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    gguf_put_bool(w, "tokenizer.ggml.add_eos_token", false);
}
