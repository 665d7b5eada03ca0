/* The tokenizer with vocabularies made here: merging against the slow way, added tokens, damaged
 * vocabularies. Splitting is in test_tokenizer_split.c, the published vocabulary in
 * test_tokenizer_golden.c. */
#include "tests/harness/test.h"

#include "common/base/rng.h"
#include "common/model/tokenizer_split.h"
#include "tests/harness/gguf_image.h"
#include "tests/harness/small_vocab.h"

#include <pthread.h>

static struct small_vocab vocab;                      /* of the running test */

static struct tokenizer *make_tokenizer(void) {
    struct tokenizer *t = NULL;
    struct err e;
    assert_fine(tokenizer_new_vocab(&t, &vocab.v, &e), &e);
    return t;
}

/* ---- merging ---- */

/* Rules between random tokens, in random order of rank: nothing about ranks and ids goes together. */
static void random_rules(struct rng *r, const char *const *units, size_t n_units, int n_rules) {
    int32_t pool[SMALL_TOKENS_MAX];
    size_t n_pool = 0;
    for (size_t i = 0; i < n_units; i++)
        for (const char *p = units[i]; *p; p++) pool[n_pool++] = SMALL_BYTE_FIRST + (uint8_t)*p;
    for (int i = 0; i < n_rules; i++) {
        int32_t left = pool[rng_below(r, n_pool)], right = pool[rng_below(r, n_pool)];
        if (small_rule(&vocab, left, right)) pool[n_pool++] = vocab.rules[vocab.v.n_merges - 1].result;
    }
    for (uint32_t i = vocab.v.n_merges; i-- > 1;) {
        uint32_t k = (uint32_t)rng_below(r, i + 1);
        struct small_rule rule = vocab.rules[i];
        struct gguf_str text = vocab.merges[i];
        vocab.rules[i] = vocab.rules[k], vocab.rules[k] = rule;
        vocab.merges[i] = vocab.merges[k], vocab.merges[k] = text;
    }
}

/* Encodes and compares, piece by piece, with the slow way. */
static void check_merging(const struct tokenizer *t, const char *text, size_t len) {
    static int32_t expected[4096];
    const uint8_t *p = (const uint8_t *)text, *end = p + len;
    struct token_buf ids = { 0 };
    struct err e;
    size_t n = 0;
    assert_true(len <= COUNT_OF(expected));
    assert_fine(tokenizer_encode(t, text, len, false, &ids, &e), &e);
    for (const uint8_t *next; p < end; p = next) {
        next = tokenizer_split_next(p, end);
        n += small_merge(&vocab, p, (size_t)(next - p), expected + n);
    }
    assert_int_equal(ids.n, n);
    if (n) assert_memory_equal(ids.ids, expected, n * sizeof *expected);
    token_buf_free(&ids);
}

static size_t random_text(struct rng *r, const char *const *units, size_t n_units, size_t n, char *out) {
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        const char *unit = units[rng_below(r, n_units)];
        memcpy(out + len, unit, strlen(unit));
        len += strlen(unit);
    }
    return len;
}

static void check_random_vocabularies(const char *const *units, size_t n_units) {
    struct rng r;
    rng_init(&r, 11, n_units);
    for (int round = 0; round < 60; round++) {
        small_init(&vocab);
        random_rules(&r, units, n_units, 5 + (int)rng_below(&r, 120));
        struct tokenizer *t = make_tokenizer();
        for (int run = 0; run < 60; run++) {
            char text[512];
            check_merging(t, text, random_text(&r, units, n_units, rng_below(&r, run < 50 ? 30 : 120), text));
        }
        tokenizer_free(t);
        small_free(&vocab);
    }
}

static void words_merge_by_rank_whatever_the_ids(void **state) {
    (void)state;
    static const char *const few[] = { "a", "b" };
    static const char *const more[] = { "a", "b", "c", " ", "=", "\n" };
    check_random_vocabularies(few, COUNT_OF(few));
    check_random_vocabularies(more, COUNT_OF(more));
}

/* Runs of Chinese are cut where no token spans; tokens that begin or end inside a character must not be
 * missed. */
static void chinese_merges_by_rank_wherever_tokens_begin(void **state) {
    (void)state;
    static const char *const few[] = { "\xe4\xb8\xad", "\xe4\xba\xba", "\xe5\xad\x97" };
    static const char *const mixed[] = { "\xe4\xb8\xad", "\xe4\xba\xba", "\xed\x95\x9c", "a",
                                         "\xe3\x83\xbb", "\xff",         "\xe4" };
    check_random_vocabularies(few, COUNT_OF(few));
    check_random_vocabularies(mixed, COUNT_OF(mixed));
}

static void long_pieces_merge_like_short_ones(void **state) {
    (void)state;
    struct rng r;
    static const char *const units[] = { "a", "b", "ab", "aab" };
    static char text[4096];
    rng_init(&r, 5, 0);
    for (int round = 0; round < 20; round++) {
        small_init(&vocab);
        random_rules(&r, units, COUNT_OF(units), 40);
        struct tokenizer *t = make_tokenizer();
        check_merging(t, text, random_text(&r, units, COUNT_OF(units), 400, text));
        memset(text, 'a', 1500);
        check_merging(t, text, 1500);
        tokenizer_free(t);
        small_free(&vocab);
    }
}

static void a_token_that_its_bytes_do_not_merge_to_is_never_made(void **state) {
    (void)state;
    small_init(&vocab);
    small_merge_texts(&vocab, "b", "c");              /* first: "abc" becomes a, bc */
    small_merge_texts(&vocab, "a", "b");
    small_merge_texts(&vocab, "ab", "c");
    struct tokenizer *t = make_tokenizer();
    check_merging(t, "abc", 3);
    struct token_buf ids = { 0 };
    struct err e;
    assert_fine(tokenizer_encode(t, "abc", 3, false, &ids, &e), &e);
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.ids[1], small_find(&vocab, "bc", 2));
    token_buf_free(&ids);
    tokenizer_free(t);
    small_free(&vocab);
}

/* ---- whole texts ---- */

static void expect_encoding(const struct tokenizer *t, const char *text, bool parse_special,
                            size_t n, const int32_t *ids) {
    struct token_buf got = { 0 };
    struct err e;
    assert_fine(tokenizer_encode(t, text, strlen(text), parse_special, &got, &e), &e);
    assert_int_equal(got.n, n);
    assert_memory_equal(got.ids, ids, n * sizeof *ids);
    token_buf_free(&got);
}

#define BYTE(c) (SMALL_BYTE_FIRST + (uint8_t)(c))

static void added_tokens_are_cut_out_only_when_asked_for(void **state) {
    (void)state;
    small_init(&vocab);
    small_merge_texts(&vocab, " ", " ");
    int32_t blanks = small_find(&vocab, "  ", 2);
    int32_t x = small_added(&vocab, "<x>", TOKEN_USER), xy = small_added(&vocab, "<x>y", TOKEN_CONTROL);
    int32_t unused = small_added(&vocab, "<u>", TOKEN_UNUSED);
    struct tokenizer *t = make_tokenizer();
    expect_encoding(t, "<x>", true, 1, (int32_t[]){ x });
    expect_encoding(t, "<x>", false, 3, (int32_t[]){ BYTE('<'), BYTE('x'), BYTE('>') });
    expect_encoding(t, "a<x>yz<x><x", true, 6,
                    (int32_t[]){ BYTE('a'), xy, BYTE('z'), x, BYTE('<'), BYTE('x') });
    expect_encoding(t, "<<x>", true, 2, (int32_t[]){ BYTE('<'), x });
    expect_encoding(t, "<u>", true, 3, (int32_t[]){ BYTE('<'), BYTE('u'), BYTE('>') });
    expect_encoding(t, "a  <x>", true, 3, (int32_t[]){ BYTE('a'), blanks, x });      /* ends the stretch */
    expect_encoding(t, "a  b", true, 4, (int32_t[]){ BYTE('a'), BYTE(' '), BYTE(' '), BYTE('b') });
    assert_int_equal(tokenizer_find_added(t, "<x>"), x);
    assert_int_equal(tokenizer_find_added(t, "<x>y"), xy);
    assert_int_equal(tokenizer_find_added(t, "<x>z"), -1);
    assert_int_equal(tokenizer_find_added(t, "<x"), -1);
    assert_int_equal(tokenizer_find_added(t, ""), -1);
    assert_int_equal(tokenizer_find_added(t, "<u>"), -1);
    assert_int_equal(tokenizer_token_kind(t, unused), TOKEN_UNUSED);
    tokenizer_free(t);
    small_free(&vocab);
}

static void any_bytes_come_back_from_their_ids(void **state) {
    (void)state;
    struct rng r;
    rng_init(&r, 3, 0);
    small_init(&vocab);
    static const char *const units[] = { "a", "\xe4\xb8\xad", " ", "\xff", "\xf0\x9f\x98\x80" };
    random_rules(&r, units, COUNT_OF(units), 60);
    small_added(&vocab, "<x>", TOKEN_USER);
    struct tokenizer *t = make_tokenizer();
    for (int run = 0; run < 3000; run++) {
        char text[256];
        size_t len = rng_below(&r, sizeof text), at = 0;
        for (size_t i = 0; i < len; i++) {
            uint8_t likely = (uint8_t)"<x> a\xe4\xb8\xad\xff\0"[rng_below(&r, 10)];
            text[i] = (char)(run % 2 ? rng_below(&r, 256) : likely);
        }
        struct token_buf ids = { 0 };
        struct err e;
        assert_fine(tokenizer_encode(t, text, len, run % 3 == 0, &ids, &e), &e);
        for (size_t i = 0; i < ids.n; i++) {
            size_t n;
            const char *bytes = tokenizer_token_bytes(t, ids.ids[i], &n);
            assert_true(at + n <= len);
            assert_memory_equal(text + at, bytes, n);
            at += n;
        }
        assert_int_equal(at, len);
        token_buf_free(&ids);
    }
    tokenizer_free(t);
    small_free(&vocab);
}

static void encoding_appends_and_leaves_the_ids_alone_when_it_fails(void **state) {
    (void)state;
    struct token_buf ids = { 0 };
    struct err e;
    small_init(&vocab);
    struct tokenizer *t = make_tokenizer();
    assert_fine(token_buf_push(&ids, 77, &e), &e);
    assert_fine(tokenizer_encode(t, "ab", 2, true, &ids, &e), &e);
    assert_fine(tokenizer_encode(t, NULL, 0, true, &ids, &e), &e);
    assert_int_equal(tokenizer_encode(t, "", (size_t)TOKENIZER_TEXT_MAX + 1, true, &ids, &e), ERR_LIMIT);
    assert_int_equal(ids.n, 3);
    assert_int_equal(ids.ids[0], 77);
    assert_int_equal(ids.ids[2], BYTE('b'));
    token_buf_free(&ids);
    assert_null(ids.ids);
    tokenizer_free(t);
    small_free(&vocab);
}

static void ids_outside_the_vocabulary_have_nothing(void **state) {
    (void)state;
    size_t len = 9;
    small_init(&vocab);
    struct tokenizer *t = make_tokenizer();
    assert_int_equal(tokenizer_n_vocab(t), 259);
    assert_null(tokenizer_token_bytes(t, 259, &len));
    assert_int_equal(len, 0);
    assert_null(tokenizer_token_bytes(t, -1, &len));
    assert_int_equal(tokenizer_token_kind(t, 259), 0);
    assert_int_equal(tokenizer_token_kind(t, -1), 0);
    assert_int_equal(tokenizer_token_kind(t, 0), TOKEN_CONTROL);
    assert_memory_equal(tokenizer_token_bytes(t, 1, &len), "<eos>", 5);
    assert_int_equal(len, 5);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_int_equal(tokenizer_pad(t), 1);
    tokenizer_free(t);
    tokenizer_free(NULL);
    small_free(&vocab);
}

/* ---- vocabularies that are wrong ---- */

static void spoil(int how) {
    static char long_text[2 * TOKENIZER_TOKEN_BYTES_MAX + 2];
    struct small_vocab *s = &vocab;
    memset(long_text, 'x', sizeof long_text - 1);
    switch (how) {
    case 0: s->v.pre = (struct gguf_str){ "deepseek-llm\033[2J", 16 }; break;
    case 1: s->v.pre = (struct gguf_str){ NULL, 0 }; break;
    case 2: s->v.n_tokens = 0; break;
    case 3: s->v.n_tokens = TOKENIZER_VOCAB_MAX + 1; break;
    case 4: s->v.n_merges = TOKENIZER_MERGES_MAX + 1; break;
    case 5: small_token(s, "a", 1, TOKEN_NORMAL); break;
    case 6: small_added(s, "<eos>", TOKEN_USER); break;
    case 7: s->tokens[BYTE('q')] = small_text(s, "qq", 2); break;
    case 8: s->tokens[BYTE('q')] = small_text(s, "\xe4\xb8\xad", 3); break;
    case 9: s->tokens[BYTE('q')] = small_text(s, " ", 1); break;
    case 10: s->tokens[1].len = 0; break;
    case 11: s->tokens[1] = small_text(s, "\xff", 1); break;
    case 12: s->kinds[1] = 6; break;
    case 13: s->kinds[1] = 0; break;
    case 14: s->tokens[1] = (struct gguf_str){ long_text, TOKENIZER_TOKEN_BYTES_MAX + 1 }; break;
    case 15: s->tokens[BYTE('q')] = (struct gguf_str){ long_text, 2 * TOKENIZER_TOKEN_BYTES_MAX + 1 }; break;
    case 16: s->merges[0] = small_text(s, "ab", 2); break;
    case 17: s->merges[0].len = 0; break;
    case 18: s->merges[0] = small_text(s, "zz b", 4); break;
    case 19: s->merges[0] = small_text(s, "a zz", 4); break;
    case 20: s->merges[0] = small_text(s, "a q", 3); break;
    case 21: s->merges[0] = small_text(s, "a  b", 4); break;
    case 22: s->merges[0] = small_text(s, " b", 2); break;
    case 23: s->merges[1] = s->merges[0]; break;
    case 24: s->v.bos_id = 1000; break;
    case 25: s->v.eos_id = -2; break;
    case 26: s->v.pad_id = INT32_MAX; break;
    case 27: s->tokens[BYTE('q')] = (struct gguf_str){ long_text, TOKENIZER_TOKEN_BYTES_MAX + 1 }; break;
    }
}

static void wrong_vocabularies_are_refused_with_the_reason(void **state) {
    (void)state;
    static const struct { int rc; const char *says; } expected[] = {
        { ERR_UNSUPPORTED, "splitting rule \"deepseek-llm\"" }, { ERR_UNSUPPORTED, "splitting rule \"\"" },
        { ERR_LIMIT, "0 tokens" }, { ERR_LIMIT, "tokens, the limit" }, { ERR_LIMIT, "merges, the limit" },
        { ERR_CORRUPT, "tokens 100 and 261 are the same" }, { ERR_CORRUPT, "tokens 1 and 261 are the same" },
        { ERR_CORRUPT, "no token for the byte 0x71" }, { ERR_CORRUPT, "token 116 is not spelled" },
        { ERR_CORRUPT, "token 116 is not spelled" }, { ERR_CORRUPT, "token 1 is empty" },
        { ERR_CORRUPT, "token 1 is not UTF-8" }, { ERR_UNSUPPORTED, "token 1 has type 6" },
        { ERR_UNSUPPORTED, "token 1 has type 0" }, { ERR_LIMIT, "token 1 is longer" },
        { ERR_LIMIT, "token 116 is longer" }, { ERR_CORRUPT, "merge 0 is not two tokens" },
        { ERR_CORRUPT, "merge 0 is not two tokens" }, { ERR_CORRUPT, "merge 0: its left half" },
        { ERR_CORRUPT, "merge 0: its right half" }, { ERR_CORRUPT, "merge 0: its result" },
        { ERR_CORRUPT, "merge 0 is not spelled" }, { ERR_CORRUPT, "merge 0: its left half" },
        { ERR_CORRUPT, "merges 0 and 1 are the same" }, { ERR_CORRUPT, "begin-of-sentence token is 1000" },
        { ERR_CORRUPT, "end-of-sentence token is -2" }, { ERR_CORRUPT, "padding token is 2147483647" },
        { ERR_CORRUPT, "token 116 is not spelled" },
    };
    for (size_t i = 0; i < COUNT_OF(expected); i++) {
        struct tokenizer *t = NULL;
        struct err e = { 0 };
        small_init(&vocab);
        small_merge_texts(&vocab, "a", "b");
        small_merge_texts(&vocab, "ab", "a");
        tokenizer_free(make_tokenizer());             /* fine before */
        spoil((int)i);
        int rc = tokenizer_new_vocab(&t, &vocab.v, &e);
        if (rc != expected[i].rc || !strstr(e.text, expected[i].says))
            fail_msg("case %zu: %d \"%s\", not %d \"%s\"", i, rc, e.text, expected[i].rc, expected[i].says);
        assert_null(t);
        assert_int_equal(tokenizer_new_vocab(&t, &vocab.v, NULL), rc);
        small_free(&vocab);
    }
}

static void without_types_the_layout_of_v4_is_assumed(void **state) {
    (void)state;
    small_init(&vocab);
    vocab.v.kinds = NULL;
    struct tokenizer *t = make_tokenizer();
    expect_encoding(t, "<eos>a", true, 2, (int32_t[]){ 1, BYTE('a') });
    assert_int_equal(tokenizer_token_kind(t, BYTE('a')), TOKEN_NORMAL);
    tokenizer_free(t);
    small_free(&vocab);
}

/* ---- GGUF metadata ---- */

struct gguf_case {
    const char *key;                                  /* left out, or written as `instead` */
    const char *instead;
    int rc;
    const char *says;                                 /* NULL: loads */
};

static void put_strs(struct image *m, const char *key, const struct gguf_str *values, uint32_t n) {
    image_array(m, key, GGUF_STRING, NULL, n, 0);
    for (uint32_t i = 0; i < n; i++) image_text_raw(&m->kvs, values[i].data);
}

/* True when the key is the case's: then it is written otherwise or not at all. */
static bool changed(struct image *m, const struct gguf_case *c, const char *key) {
    if (strcmp(c->key, key) != 0) return false;
    if (c->instead) image_str(m, key, c->instead);
    return true;
}

static struct gguf *build_gguf(const struct gguf_case *c, uint8_t **bytes) {
    struct image m;
    struct gguf *g;
    struct err e;
    size_t size;
    uint32_t n_kinds = vocab.v.n_tokens + (strcmp(c->key, "a type too many") == 0);
    image_init(&m);
    if (!changed(&m, c, "tokenizer.ggml.model")) image_str(&m, "tokenizer.ggml.model", "gpt2");
    if (!changed(&m, c, "tokenizer.ggml.pre")) image_str(&m, "tokenizer.ggml.pre", "deepseek-v3");
    if (!changed(&m, c, "tokenizer.ggml.tokens"))
        put_strs(&m, "tokenizer.ggml.tokens", vocab.tokens, vocab.v.n_tokens);
    if (!changed(&m, c, "tokenizer.ggml.merges"))
        put_strs(&m, "tokenizer.ggml.merges", vocab.merges, vocab.v.n_merges);
    if (!changed(&m, c, "tokenizer.ggml.token_type"))
        image_array(&m, "tokenizer.ggml.token_type", GGUF_I32, vocab.kinds, n_kinds, n_kinds * 4);
    if (!changed(&m, c, "tokenizer.ggml.bos_token_id")) image_u32(&m, "tokenizer.ggml.bos_token_id", 0);
    if (!changed(&m, c, "tokenizer.ggml.eos_token_id")) image_u32(&m, "tokenizer.ggml.eos_token_id", 1);
    *bytes = image_bytes(&m, &size);
    image_free(&m);
    assert_fine(gguf_open_memory(&g, *bytes, size, "image", &e), &e);
    return g;
}

static void metadata_loads_or_is_refused_with_the_key(void **state) {
    (void)state;
    static const struct gguf_case cases[] = {
        { "", NULL, 0, NULL },
        { "tokenizer.ggml.token_type", NULL, 0, NULL },
        { "tokenizer.ggml.bos_token_id", NULL, 0, NULL },
        { "tokenizer.ggml.model", NULL, ERR_NOTFOUND, "tokenizer.ggml.model" },
        { "tokenizer.ggml.model", "llama", ERR_UNSUPPORTED, "\"llama\"" },
        { "tokenizer.ggml.pre", NULL, ERR_NOTFOUND, "tokenizer.ggml.pre" },
        { "tokenizer.ggml.pre", "deepseek-coder", ERR_UNSUPPORTED, "\"deepseek-coder\"" },
        { "tokenizer.ggml.tokens", NULL, ERR_NOTFOUND, "tokenizer.ggml.tokens is missing" },
        { "tokenizer.ggml.tokens", "a", ERR_CORRUPT, "tokenizer.ggml.tokens is not a list" },
        { "tokenizer.ggml.merges", NULL, ERR_NOTFOUND, "tokenizer.ggml.merges is missing" },
        { "tokenizer.ggml.token_type", "a", ERR_CORRUPT, "tokenizer.ggml.token_type" },
        { "a type too many", NULL, ERR_CORRUPT, "tokenizer.ggml.token_type has 261 entries for 260 tokens" },
        { "tokenizer.ggml.eos_token_id", "a", ERR_CORRUPT, "tokenizer.ggml.eos_token_id" },
    };
    small_init(&vocab);
    small_merge_texts(&vocab, "a", "b");
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct tokenizer *t = NULL;
        struct err e = { 0 };
        uint8_t *bytes;
        struct gguf *g = build_gguf(&cases[i], &bytes);
        int rc = tokenizer_new(&t, g, &e);
        gguf_close(g);
        free(bytes);
        if (rc != cases[i].rc || (cases[i].says && !strstr(e.text, cases[i].says)))
            fail_msg("case %zu: %d \"%s\"", i, rc, e.text);
        if (rc < 0) continue;
        expect_encoding(t, "ab<eos>", true, 2, (int32_t[]){ 259, 1 });
        assert_int_equal(tokenizer_bos(t), strstr(cases[i].key, "bos") ? -1 : 0);
        tokenizer_free(t);
    }
    small_free(&vocab);
}

/* ---- threads ---- */

static void *encode_in_thread(void *tokenizer) {
    struct token_buf ids = { 0 };
    struct err e;
    char text[300];
    memset(text, 'a', sizeof text);
    for (int i = 0; i < 200; i++) {
        ids.n = 0;
        CHECK(tokenizer_encode(tokenizer, text, sizeof text, true, &ids, &e) == 0 && ids.n == 150);
    }
    token_buf_free(&ids);
    return NULL;
}

static void many_threads_share_a_tokenizer(void **state) {
    (void)state;
    pthread_t thread[4];
    small_init(&vocab);
    small_merge_texts(&vocab, "a", "a");
    struct tokenizer *t = make_tokenizer();
    for (size_t i = 0; i < COUNT_OF(thread); i++)
        assert_int_equal(pthread_create(&thread[i], NULL, encode_in_thread, t), 0);
    for (size_t i = 0; i < COUNT_OF(thread); i++) assert_int_equal(pthread_join(thread[i], NULL), 0);
    tokenizer_free(t);
    small_free(&vocab);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(words_merge_by_rank_whatever_the_ids),
        TEST(chinese_merges_by_rank_wherever_tokens_begin),
        TEST(long_pieces_merge_like_short_ones),
        TEST(a_token_that_its_bytes_do_not_merge_to_is_never_made),
        TEST(added_tokens_are_cut_out_only_when_asked_for),
        TEST(any_bytes_come_back_from_their_ids),
        TEST(encoding_appends_and_leaves_the_ids_alone_when_it_fails),
        TEST(ids_outside_the_vocabulary_have_nothing),
        TEST(wrong_vocabularies_are_refused_with_the_reason),
        TEST(without_types_the_layout_of_v4_is_assumed),
        TEST(metadata_loads_or_is_refused_with_the_key),
        TEST(many_threads_share_a_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
