/* Option parsing: every spelling, every refusal with its words, and the text of --help. */
#include "tests/harness/test.h"

#include "cli/opts.h"

#include <unistd.h>

struct values {
    const char *model, *dtype, *tags[2];
    int ctx, n_args;
    uint64_t seed;
    double temperature;
    bool json, mmap;
};

static char printed[16384];                       /* what the last parse() wrote to stdout and stderr */

/* Sends both streams through a file for the time of one call. */
struct capture {
    FILE *file;
    int out, err;
};

static void capture_start(struct capture *c) {
    fflush(stdout);
    fflush(stderr);
    c->file = tmpfile();
    assert_non_null(c->file);
    c->out = dup(1);
    c->err = dup(2);
    dup2(fileno(c->file), 1);
    dup2(fileno(c->file), 2);
}

static void capture_end(struct capture *c) {
    fflush(stdout);
    fflush(stderr);
    dup2(c->out, 1);
    dup2(c->err, 2);
    close(c->out);
    close(c->err);
    rewind(c->file);
    printed[fread(printed, 1, sizeof printed - 1, c->file)] = 0;
    fclose(c->file);
}

/* Splits `line` at spaces into argv; the pieces stay valid until the next call. */
static int parse(struct values *v, const char *line) {
    static char copy[512], *argv[32];
    *v = (struct values){ .dtype = "f32", .ctx = 4096, .temperature = 1.0, .mmap = true };
    const struct opt table[] = {
        OPT_STRING('m', "model", &v->model, "FILE", "the GGUF file"),
        OPT_INT('c', "ctx", &v->ctx, -1, 1 << 20, "N", "context in tokens"),
        OPT_GROUP("Sampling"),
        OPT_U64(0, "seed", &v->seed, 0, UINT64_MAX, "N", "seed"),
        OPT_NUMBER('t', "temperature", &v->temperature, 0, 2, "X", "how surprising"),
        OPT_CHOICE(0, "dtype", &v->dtype, "f32|f16|q8_0", "type of the numbers"),
        OPT_LIST(0, "tag", v->tags, 2, "TEXT", "a tag"),
        OPT_FLAG('j', "json", &v->json, "print JSON"),
        OPT_FLAG(0, "mmap", &v->mmap, "map the file"),
    };
    const struct opts spec = { "sum", "FILE...", "Adds things up.", table, COUNT_OF(table), 0, 3 };
    int argc = 0;
    snprintf(copy, sizeof copy, "sum %s", line);
    for (char *word = copy; word; argc++) {
        argv[argc] = word;
        word = strchr(word, ' ');
        if (word) *word++ = 0;
    }
    argv[argc] = NULL;
    struct capture c;
    capture_start(&c);
    v->n_args = opts_parse(&spec, argc, argv);
    capture_end(&c);
    for (int i = 0; i < v->n_args; i++) snprintf(printed + strlen(printed), 64, "[%s]", argv[1 + i]);
    return v->n_args;
}

static void every_spelling_of_a_value_is_understood(void **state) {
    (void)state;
    static const char *const lines[] = { "--ctx 8K", "--ctx=8192", "-c 8k", "-c8192", "-jc8K", "-jc 8K",
                                         "-c 1 -c 8192" };
    struct values v;
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        assert_int_equal(parse(&v, lines[i]), 0);
        assert_int_equal(v.ctx, 8192);
    }
    assert_true(parse(&v, "-jc8K") == 0 && v.json);
}

static void plain_arguments_come_to_the_front_in_order(void **state) {
    (void)state;
    struct values v;
    assert_int_equal(parse(&v, "a --json b -m x.gguf -"), 3);
    assert_string_equal(printed, "[a][b][-]");
    assert_string_equal(v.model, "x.gguf");
    assert_int_equal(parse(&v, "-- --json -c"), 2);
    assert_string_equal(printed, "[--json][-c]");
    assert_false(v.json);
}

static void a_value_may_look_like_an_option(void **state) {
    (void)state;
    struct values v;
    assert_int_equal(parse(&v, "--model --json -c -1"), 0);
    assert_string_equal(v.model, "--json");
    assert_int_equal(v.ctx, -1);
    assert_false(v.json);
}

static void flags_can_be_switched_off(void **state) {
    (void)state;
    struct values v;
    assert_int_equal(parse(&v, "--no-mmap --json --no-json"), 0);
    assert_false(v.mmap);
    assert_false(v.json);
}

static void lists_fill_up_and_then_refuse(void **state) {
    (void)state;
    struct values v;
    assert_int_equal(parse(&v, "--tag a --tag b"), 0);
    assert_string_equal(v.tags[0], "a");
    assert_string_equal(v.tags[1], "b");
    assert_int_equal(parse(&v, "--tag a --tag b --tag c"), OPTS_USAGE);
    assert_non_null(strstr(printed, "--tag may be given 2 times at most"));
}

static void what_is_wrong_is_refused_and_named(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        { "--ctx 1048577", "--ctx is a whole number from -1 to 1048576, not '1048577'" },
        { "--ctx -2", "not '-2'" },
        { "--ctx 4x", "not '4x'" },
        { "--ctx 4KK", "not '4KK'" },
        { "--ctx=", "not ''" },
        { "--ctx 99999999999999999999", "not '99999999999999999999'" },
        { "--ctx 4294967297", "not '4294967297'" },
        { "--ctx", "--ctx needs a value: N" },
        { "--seed -1", "--seed is a whole number" },
        { "--seed 18446744073709551616", "not '18446744073709551616'" },
        { "--seed 17179869184G", "not '17179869184G'" },
        { "--temperature 2.1", "--temperature is a number from 0 to 2, not '2.1'" },
        { "--temperature nan", "not 'nan'" },
        { "--temperature 1e999", "not '1e999'" },
        { "--dtype f3", "--dtype is one of f32|f16|q8_0, not 'f3'" },
        { "--dtype 32", "not '32'" },
        { "--dtype f32|f16", "not 'f32|f16'" },
        { "--json=1", "--json takes no value" },
        { "--jsn", "no option --jsn; did you mean --json?" },
        { "--temp 1", "did you mean --temperature?" },
        { "--xyzzy", "no option --xyzzy\n" },
        { "--no-model", "no option --no-model" },
        { "-q", "no option -q" },
        { "a b c d", "one argument too many: 'd'" },
    };
    struct values v;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_int_equal(parse(&v, cases[i][0]), OPTS_USAGE);
        if (!strstr(printed, cases[i][1])) fail_msg("'%s' printed: %s", cases[i][0], printed);
        assert_non_null(strstr(printed, "pleiades sum: "));
        assert_non_null(strstr(printed, "Try 'pleiades sum --help'."));
    }
}

static void the_largest_numbers_fit(void **state) {
    (void)state;
    struct values v;
    assert_int_equal(parse(&v, "--seed 18446744073709551615"), 0);
    assert_true(v.seed == UINT64_MAX);
    assert_int_equal(parse(&v, "--seed 8G"), 0);
    assert_true(v.seed == UINT64_C(8) << 30);
    assert_int_equal(parse(&v, "-t 0.7"), 0);
    assert_true(v.temperature == 0.7);
}

static void help_shows_options_groups_and_defaults(void **state) {
    (void)state;
    struct values v;
    assert_int_equal(parse(&v, "--help"), OPTS_HELP);
    assert_int_equal(opts_exit_status(OPTS_HELP), 0);
    assert_int_equal(opts_exit_status(OPTS_USAGE), 2);
    static const char *const parts[] = {
        "Usage: pleiades sum [OPTIONS] FILE...\n\nAdds things up.\n",
        "  -m, --model FILE          the GGUF file\n",
        "  -c, --ctx N               context in tokens (default 4096)\n",
        "\nSampling\n",
        "  -t, --temperature X       how surprising (default 1)\n",
        "      --dtype f32|f16|q8_0  type of the numbers (default f32)\n",
        "      --mmap                map the file (default; --no-mmap switches it off)\n",
    };
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        if (!strstr(printed, parts[i])) fail_msg("'%s' is not in:\n%s", parts[i], printed);
    }
    assert_int_equal(parse(&v, "-h"), OPTS_HELP);
}

static void the_nearest_word_is_near(void **state) {
    (void)state;
    static const char *const words[] = { "generate", "tokenize", "detokenize", "run", "logits" };
    assert_string_equal(opts_nearest("genrate", words, 5), "generate");
    assert_string_equal(opts_nearest("tokenise", words, 5), "tokenize");
    assert_string_equal(opts_nearest("detok", words, 5), "detokenize");
    assert_string_equal(opts_nearest("rnu", words, 5), "run");
    assert_null(opts_nearest("frobnicate", words, 5));
    assert_null(opts_nearest("", words, 5));
    char endless[400];
    memset(endless, 'g', sizeof endless - 1);
    endless[sizeof endless - 1] = 0;
    assert_null(opts_nearest(endless, words, 5));
}

static void failures_and_usage_errors_differ_in_status(void **state) {
    (void)state;
    const struct opts spec = { "sum", "", "Adds.", NULL, 0, 0, 0 };
    struct err e = { .code = ERR_IO, .text = "disk is full" };
    struct capture c;
    capture_start(&c);
    int failure = opts_failure(&spec, &e), usage = opts_usage_error(&spec, "--%s is required", "model");
    capture_end(&c);
    assert_int_equal(failure, 1);
    assert_int_equal(usage, 2);
    assert_string_equal(printed, "pleiades sum: disk is full\npleiades sum: --model is required\n"
                                 "Try 'pleiades sum --help'.\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_spelling_of_a_value_is_understood),
        TEST(plain_arguments_come_to_the_front_in_order),
        TEST(a_value_may_look_like_an_option),
        TEST(flags_can_be_switched_off),
        TEST(lists_fill_up_and_then_refuse),
        TEST(what_is_wrong_is_refused_and_named),
        TEST(the_largest_numbers_fit),
        TEST(help_shows_options_groups_and_defaults),
        TEST(the_nearest_word_is_near),
        TEST(failures_and_usage_errors_differ_in_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
