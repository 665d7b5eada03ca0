/* common/model/chat_json: one line of JSON, spelt as Python's json.dumps(x, ensure_ascii=False) does. */
#include "tests/harness/test.h"

#include "common/model/chat_json.h"

static void expect_line(const char *json, const char *expected) {
    struct buf b;
    struct err e;
    buf_init(&b, 1 << 20);
    assert_fine(chat_json_reprint(chat_text_of(json), &b, &e), &e);
    assert_string_equal(b.data, expected);
    buf_deinit(&b);
}

static void numbers_are_spelt_as_in_training(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        { "0", "0" },
        { "-0", "0" },
        { "-7", "-7" },
        { "123456789012345678901234567890", "123456789012345678901234567890" },
        { "1.50", "1.5" },
        { "1e3", "1000.0" },
        { "1E+2", "100.0" },
        { "-0.0", "-0.0" },
        { "0e5", "0.0" },
        { "0.0001", "0.0001" },
        { "0.00001", "1e-05" },
        { "1.5e-7", "1.5e-07" },
        { "1000000.0", "1000000.0" },
        { "1e15", "1000000000000000.0" },
        { "1e16", "1e+16" },
        { "123456789012345678.0", "1.2345678901234568e+17" },
        { "0.1", "0.1" },
        { "0.30000000000000004", "0.30000000000000004" },
        { "9007199254740993.0", "9007199254740992.0" },
        { "5.684341886080801486968994140625e-14", "5.684341886080802e-14" }, /* 2^-44 */
        { "9.5367431640625e-07", "9.5367431640625e-07" },
        { "2.2250738585072014e-308", "2.2250738585072014e-308" },
        { "5e-324", "5e-324" },
        { "1.976262583364986e-323", "2e-323" },
        { "1.7976931348623157e308", "1.7976931348623157e+308" },
        { "1e999", "Infinity" },
        { "-1e99999999999999999999", "-Infinity" },
        { "1e-99999999999999999999", "0.0" },
        { "100000000000000000000000000000e-29", "1.0" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) expect_line(cases[i][0], cases[i][1]);
}

static void strings_have_the_fewest_escapes(void **state) {
    (void)state;
    expect_line("\"\\u00e9\\/\\ud83d\\ude00\"", "\"é/😀\"");
    expect_line("\"\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001F\\u007f\\u2028\"",
                "\"\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\xe2\x80\xa8\"");
    expect_line("\"\\u0000\"", "\"\\u0000\"");
    expect_line("\"plain é < > & ' /\"", "\"plain é < > & ' /\"");
}

static void containers_keep_order_and_the_last_of_repeated_keys(void **state) {
    (void)state;
    expect_line(" { \"b\" : [ ] , \"a\" : { } } ", "{\"b\": [], \"a\": {}}");
    expect_line("[1,[2,[3]],null,true,false]", "[1, [2, [3]], null, true, false]");
    expect_line("{\"a\":1,\"b\":2,\"a\":{\"x\":1,\"y\":2,\"x\":3}}",
                "{\"a\": {\"x\": 3, \"y\": 2}, \"b\": 2}");
    expect_line("{\"\\u0061\":1,\"ab\":0,\"a\":2,\"\":3,\"a\":[],\"\":4}",
                "{\"a\": [], \"ab\": 0, \"\": 4}");
}

static void what_is_no_json_is_refused(void **state) {
    (void)state;
    static const char *const cases[] = {
        "",
        " ",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "01",
        "1.",
        ".5",
        "-",
        "+1",
        "1e",
        "1e+",
        "NaN",
        "Infinity",
        "nul",
        "truee",
        "[1 2]",
        "{\"a\" 1}",
        "{a:1}",
        "1 2",
        "\"abc",
        "\"a\nb\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"\xc3\"",
        "\"\xed\xa0\x80\"",
        "[]]",
        "'a'",
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct buf b;
        struct err e = { .text = "" };
        buf_init(&b, 1 << 20);
        if (chat_json_reprint(chat_text_of(cases[i]), &b, &e) != ERR_INVALID)
            fail_msg("accepted: %s", cases[i]);
        assert_int_equal(strncmp(e.text, "JSON: ", 6), 0);
        buf_deinit(&b);
    }
}

/* n times a, then m, then n times z. */
static int reprint_nested(const char *a, const char *m, const char *z, size_t n, struct err *e) {
    struct buf in, out;
    buf_init(&in, 1 << 26);
    buf_init(&out, 1 << 26);
    for (size_t i = 0; i < n; i++) buf_add_text(&in, a);
    buf_add_text(&in, m);
    for (size_t i = 0; i < n; i++) buf_add_text(&in, z);
    int rc = chat_json_reprint((struct chat_text){ in.data, in.size }, &out, e);
    buf_deinit(&in);
    buf_deinit(&out);
    return rc;
}

static void limits_are_kept(void **state) {
    (void)state;
    struct err e;
    struct buf small;
    assert_fine(reprint_nested("[", "", "]", CHAT_JSON_DEPTH_MAX, &e), &e);
    assert_int_equal(reprint_nested("[", "", "]", CHAT_JSON_DEPTH_MAX + 1, &e), ERR_LIMIT);
    assert_int_equal(reprint_nested("{\"a\":", "1", "}", CHAT_JSON_DEPTH_MAX + 1, &e), ERR_LIMIT);
    assert_fine(reprint_nested("9", "9", "", CHAT_JSON_NUMBER_MAX - 1, &e), &e);
    assert_int_equal(reprint_nested("9", "9", "", CHAT_JSON_NUMBER_MAX, &e), ERR_LIMIT);
    assert_fine(reprint_nested("", "0.", "9", CHAT_JSON_NUMBER_MAX - 2, &e), &e);
    buf_init(&small, 4);
    assert_int_equal(chat_json_reprint(chat_text_of("[1,2]"), &small, &e), ERR_LIMIT);
    buf_deinit(&small);
}

/* An array of n zeros. */
static int reprint_zeros(size_t n, struct err *e) {
    struct buf in, out;
    buf_init(&in, 1 << 26);
    buf_init(&out, 1 << 26);
    buf_add_text(&in, "[");
    for (size_t i = 0; i < n; i++) buf_add_text(&in, i ? ",0" : "0");
    buf_add_text(&in, "]");
    int rc = chat_json_reprint((struct chat_text){ in.data, in.size }, &out, e);
    buf_deinit(&in);
    buf_deinit(&out);
    return rc;
}

static void the_number_of_values_is_limited(void **state) {
    (void)state;
    struct err e;
    assert_fine(reprint_zeros(CHAT_JSON_VALUES_MAX - 1, &e), &e);
    assert_int_equal(reprint_zeros(CHAT_JSON_VALUES_MAX, &e), ERR_LIMIT);
}

static void parts_are_found_as_they_are_spelt(void **state) {
    (void)state;
    struct chat_text text =
        chat_text_of(" {\"a\\\"b\": [1 , {\"x\":\"}]\"}, \"]\" ], \"k\" : 1.50 ,\"k\":-2e1}");
    struct chat_text value, element;
    size_t at = 0;
    assert_true(chat_json_member(text, "k", &value));
    assert_true(chat_text_equal(value, chat_text_of("-2e1")));
    assert_false(chat_json_member(text, "x", &value));
    assert_true(chat_json_member(text, "a\"b", &value));
    assert_true(chat_text_equal(value, chat_text_of("[1 , {\"x\":\"}]\"}, \"]\" ]")));
    assert_true(chat_json_element(value, &at, &element));
    assert_true(chat_text_equal(element, chat_text_of("1")));
    assert_true(chat_json_element(value, &at, &element));
    assert_true(chat_text_equal(element, chat_text_of("{\"x\":\"}]\"}")));
    assert_true(chat_json_element(value, &at, &element));
    assert_true(chat_text_equal(element, chat_text_of("\"]\"")));
    assert_false(chat_json_element(value, &at, &element));
    at = 0;
    assert_false(chat_json_element(chat_text_of("[ ]"), &at, &element));
}

/* They are meant for text that was accepted before; on any other they must still end and stay inside. */
static void broken_text_does_not_lead_the_search_astray(void **state) {
    (void)state;
    static const char whole[] = "{\"a\":[1,{\"b\":\"\\\"\"}],\"c\\u0064\":true,\"e\":{}}";
    for (size_t n = 0; n < sizeof whole; n++) {
        char *copy = malloc(n ? n : 1);
        memcpy(copy, whole, n);
        struct chat_text text = { copy, n }, value, element;
        size_t at = 0;
        for (const char *const *key = (const char *const[]){ "a", "cd", "e", "z", NULL }; *key;
             key++)
            if (chat_json_member(text, *key, &value))
                assert_true(value.data + value.len <= copy + n);
        while (chat_json_element(text, &at, &element)) assert_true(at <= n);
        free(copy);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(numbers_are_spelt_as_in_training),
        TEST(strings_have_the_fewest_escapes),
        TEST(containers_keep_order_and_the_last_of_repeated_keys),
        TEST(what_is_no_json_is_refused),
        TEST(limits_are_kept),
        TEST(the_number_of_values_is_limited),
        TEST(parts_are_found_as_they_are_spelt),
        TEST(broken_text_does_not_lead_the_search_astray),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
