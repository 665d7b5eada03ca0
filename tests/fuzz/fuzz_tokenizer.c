/* The tokenizer on bytes that nobody chose. The first byte says what the rest is:
 *
 *   0  rules (a count, then pairs of token numbers) and a text: ids as the slow way makes them, bytes
 *     back unchanged
 *   1  a GGUF file: its vocabulary loads and then works, or is refused
 *   2  a tokenizer.json: the same */
#include "cli/tokenizer_json.h"
#include "common/model/tokenizer_split.h"
#include "tests/harness/small_vocab.h"

enum { TEXT_MAX = 600 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_bytes_come_back(const struct tokenizer *t, const struct token_buf *ids,
                                  const uint8_t *text, size_t size) {
    size_t at = 0, n;
    for (size_t i = 0; i < ids->n; i++) {
        const char *bytes = tokenizer_token_bytes(t, ids->ids[i], &n);
        CHECK(bytes && at + n <= size && memcmp(text + at, bytes, n) == 0);
        at += n;
    }
    CHECK(at == size);
}

static void check_encoding(const struct tokenizer *t, const uint8_t *text, size_t size, bool parse_special) {
    struct token_buf ids = { 0 };
    struct err e;
    CHECK(tokenizer_encode(t, (const char *)text, size, parse_special, &ids, &e) == 0);
    check_bytes_come_back(t, &ids, text, size);
    token_buf_free(&ids);
}

static void check_against_slow(const struct tokenizer *t, const struct small_vocab *s,
                               const uint8_t *p, size_t size) {
    static int32_t expected[TEXT_MAX];
    struct token_buf ids = { 0 };
    struct err e;
    size_t n = 0;
    CHECK(tokenizer_encode(t, (const char *)p, size, false, &ids, &e) == 0);
    for (const uint8_t *end = p + size, *next; p < end; p = next) {
        next = tokenizer_split_next(p, end);
        n += small_merge(s, p, (size_t)(next - p), expected + n);
    }
    CHECK(n == ids.n && (n == 0 || memcmp(expected, ids.ids, n * sizeof *expected) == 0));
    token_buf_free(&ids);
}

static void fuzz_text(const uint8_t *data, size_t size) {
    static struct small_vocab s;
    struct tokenizer *t;
    struct err e;
    if (size == 0) return;
    size_t n_rules = data[0] % 64, at = 1;
    small_init(&s);
    small_added(&s, "<x>", TOKEN_USER);
    small_added(&s, "<x>y", TOKEN_CONTROL);
    for (; n_rules > 0 && at + 4 <= size; n_rules--, at += 4) {
        uint32_t left = (data[at] | (uint32_t)data[at + 1] << 8) % s.v.n_tokens;
        uint32_t right = (data[at + 2] | (uint32_t)data[at + 3] << 8) % s.v.n_tokens;
        if (s.kinds[left] == TOKEN_NORMAL && s.kinds[right] == TOKEN_NORMAL)
            small_rule(&s, (int32_t)left, (int32_t)right);
    }
    CHECK(tokenizer_new_vocab(&t, &s.v, &e) == 0);
    size_t len = MIN(size - at, (size_t)TEXT_MAX);
    check_against_slow(t, &s, data + at, len);
    check_encoding(t, data + at, len, true);
    tokenizer_free(t);
    small_free(&s);
}

/* What loads must also encode: the input itself will do. */
static void use(struct tokenizer *t, const uint8_t *data, size_t size) {
    size_t len = MIN(size, (size_t)TEXT_MAX);
    check_encoding(t, data + size - len, len, true);
    check_encoding(t, data + size - len, len, false);
    tokenizer_free(t);
}

static void fuzz_gguf(const uint8_t *data, size_t size) {
    struct gguf *g;
    struct tokenizer *t;
    struct err e = { 0 };
    if (gguf_open_memory(&g, data, size, "fuzz", &e) < 0) return;
    if (tokenizer_new(&t, g, &e) == 0) use(t, data, size);
    else CHECK(e.code < 0 && e.text[0]);
    gguf_close(g);
}

static void fuzz_json(const uint8_t *data, size_t size) {
    struct tokenizer_json tj;
    struct tokenizer *t;
    struct err e = { 0 };
    if (tokenizer_json_parse(&tj, (const char *)data, size, &e) < 0) {
        CHECK(e.code < 0 && e.text[0]);
        return;
    }
    if (tokenizer_new_vocab(&t, &tj.vocab, &e) == 0) use(t, data, size);
    tokenizer_json_close(&tj);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static void (*const parts[])(const uint8_t *, size_t) = { fuzz_text, fuzz_gguf, fuzz_json };
    if (size > 0) parts[data[0] % COUNT_OF(parts)](data + 1, size - 1);
    return 0;
}
