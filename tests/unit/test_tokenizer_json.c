/* tokenizer.json files made here: what is taken, and that everything our tokenizer would do otherwise
 * is refused. The published file is in test_tokenizer_golden.c. */
#include "tests/harness/test.h"

#include "cli/tokenizer_json.h"
#include "common/base/buf.h"
#include "tests/harness/small_vocab.h"

static const char normalizer[] = "null";
static const char splits[] =
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}{1,3}\"},\"behavior\":\"Isolated\","
    "\"invert\":false},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[\\u4e00-\\u9fa5\\u3040-\\u309f\\u30a0-\\u30ff]+"
    "\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},"
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[!\\\"#$%&'()*+,\\\\-./"
    ":;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+"
    "| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
    "\"behavior\":\"Isolated\",\"invert\":false},"
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}";
static const char added[] =
    "{\"id\":0,\"content\":\"<\xef\xbd\x9c"
    "begin\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>\",\"special\":true},"
    "{\"id\":1,\"content\":\"<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>\",\"special\":true},"
    "{\"id\":2,\"content\":\"<|bar|>\",\"special\":false},"
    "{\"id\":261,\"content\":\"<think>\",\"special\":false,\"lstrip\":false},"
    "{\"id\":262,\"content\":\"special\",\"special\":true}";
static const char merges[] = "\"a b\",[\"ab\",\"\\u0120\"]";
static const char extra_tokens[] = ",\"ab\":259,\"ab\\u0120\":260";

/* A whole file, where the one part that is equal to `what` is written as `instead`. */
static void build(struct buf *b, const char *what, const char *instead) {
#define PART(text) (what == (text) ? instead : (text))
    buf_init(b, 1 << 20);
    buf_printf(b,
               "{\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":{\"type\":\"Sequence\","
               "\"pretokenizers\":[%s]},",
               PART(added), PART(normalizer), PART(splits));
    buf_printf(b, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"byte_fallback\":false,\"vocab\":{");
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte, spelled[5] = { 0 };
        small_spell(&c, 1, spelled);
        buf_printf(b, c == '"' || c == '\\' ? "%s\"\\%s\":%d" : "%s\"%s\":%d", byte ? "," : "",
                   spelled, byte + 3);
    }
    buf_printf(b, "%s},\"merges\":[%s]}}", PART(extra_tokens), PART(merges));
    assert_int_equal(b->rc, 0);
#undef PART
}

static int parse(struct tokenizer_json *tj, const char *what, const char *instead, struct err *e) {
    struct buf b;
    build(&b, what, instead);
    int rc = tokenizer_json_parse(tj, b.data, b.size, e);
    buf_deinit(&b);
    return rc;
}

static void a_file_becomes_a_vocabulary_that_works(void **state) {
    (void)state;
    struct tokenizer_json tj;
    struct tokenizer *t;
    struct token_buf ids = { 0 };
    struct err e;
    assert_fine(parse(&tj, NULL, NULL, &e), &e);
    assert_int_equal(tj.vocab.n_tokens, 263);
    assert_int_equal(tj.vocab.n_merges, 2);
    assert_fine(tokenizer_new_vocab(&t, &tj.vocab, &e), &e);
    tokenizer_json_close(&tj);
    assert_fine(tokenizer_encode(t, "ab <think>", 10, true, &ids, &e), &e);
    assert_int_equal(ids.n, 3);                       /* the blank is a piece of its own */
    assert_int_equal(ids.ids[0], 259);
    assert_int_equal(ids.ids[2], 261);
    assert_int_equal(tokenizer_token_kind(t, 2), TOKEN_CONTROL);
    assert_int_equal(tokenizer_token_kind(t, 261), TOKEN_USER);
    assert_int_equal(tokenizer_token_kind(t, 262), TOKEN_CONTROL);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_int_equal(tokenizer_pad(t), 1);
    token_buf_free(&ids);
    tokenizer_free(t);
}

static void what_would_encode_differently_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *what, *instead;
        int rc;
        const char *says;
    } cases[] = {
        { normalizer, "{\"type\":\"NFC\"}", ERR_UNSUPPORTED, "normalized" },
        { normalizer, "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}]}",
          ERR_UNSUPPORTED, "normalized" },
        { splits, "", ERR_UNSUPPORTED, "splitting rule" },
        { splits, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}",
          ERR_UNSUPPORTED, "splitting rule" },
        { extra_tokens, "},\"ignore_merges\":true,\"x\":{\"a\":1", ERR_UNSUPPORTED,
          "model.ignore_merges" },
        { extra_tokens, "},\"unk_token\":\"<unk>\",\"x\":{\"a\":1", ERR_UNSUPPORTED,
          "model.unk_token" },
        { extra_tokens, ",\"ab\":259", ERR_CORRUPT, "no token has the id 260" },
        { extra_tokens, ",\"ab\":259,\"cd\":259,\"ef\":260", ERR_CORRUPT,
          "two tokens have the id 259" },
        { extra_tokens, ",\"ab\":259,\"cd\":-1", ERR_CORRUPT, "not a number" },
        { extra_tokens, ",\"ab\":259,\"cd\":99999999", ERR_CORRUPT, "not a number" },
        { extra_tokens, ",\"ab\":259,\"cd\":\"260\"", ERR_CORRUPT, "not a number" },
        { merges, "7", ERR_CORRUPT, "merge 0" },
        { merges, "\"a b\",[\"a\"]", ERR_CORRUPT, "merge 1" },
        { merges, "[\"a\",7]", ERR_CORRUPT, "merge 0" },
        { added, "{\"id\":261}", ERR_CORRUPT, "added token 261 has no text" },
        { added, "{\"content\":\"x\"}", ERR_CORRUPT, "not a number" },
        { added, "{\"id\":261,\"content\":\"x\",\"lstrip\":true}", ERR_UNSUPPORTED,
          "added token 261" },
        { added, "{\"id\":261,\"content\":\"x\"},{\"id\":261,\"content\":\"y\"}", ERR_CORRUPT,
          "two added tokens" },
        { added, "{\"id\":259,\"content\":\"x\"}", ERR_CORRUPT, "token 259 has another text" },
        { added, "7", ERR_CORRUPT, "not a number" },
        { added, "]", ERR_CORRUPT, "line 1" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct tokenizer_json tj;
        struct err e = { 0 };
        int rc = parse(&tj, cases[i].what, cases[i].instead, &e);
        if (rc != cases[i].rc || !strstr(e.text, cases[i].says))
            fail_msg("case %zu: %d \"%s\"", i, rc, e.text);
        tokenizer_json_close(&tj);                    /* empty after a failure: closing again is fine */
    }
}

/* One letter in the first or in the last pattern. */
static void another_pattern_is_another_rule(void **state) {
    (void)state;
    char changed[sizeof splits];
    const char *first = strstr(splits, "p{N}"), *main_rule = strstr(splits, "a-z]+");
    for (size_t i = 0; i < 2; i++) {
        struct tokenizer_json tj;
        struct err e;
        memcpy(changed, splits, sizeof splits);
        changed[(i ? main_rule : first) - splits] = 'b';
        assert_int_equal(parse(&tj, splits, changed, &e), ERR_UNSUPPORTED);
    }
}

static void a_missing_file_says_its_name(void **state) {
    (void)state;
    struct tokenizer_json tj;
    struct err e;
    assert_true(tokenizer_json_open(&tj, "/nowhere/tokenizer.json", &e) < 0);
    assert_non_null(strstr(e.text, "/nowhere/tokenizer.json"));
    tokenizer_json_close(&tj);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_file_becomes_a_vocabulary_that_works),
        TEST(what_would_encode_differently_is_refused),
        TEST(another_pattern_is_another_rule),
        TEST(a_missing_file_says_its_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
