/* tokenizer-gguf, tokenize and detokenize as commands: what they read, print and return. */
#include "tests/harness/test.h"

#include "cli/cmd.h"
#include "cli/opts.h"
#include "common/base/buf.h"
#include "common/sys/file.h"
#include "tests/harness/scratch.h"
#include "tests/harness/small_vocab.h"

#include <fcntl.h>
#include <unistd.h>

static struct scratch scratch;
static char vocab_path[FILE_PATH_MAX];
static char printed[4096], complained[4096];          /* by the last command, to stdout and stderr */
static size_t n_printed;

/* Puts a file in the place of a descriptor; what was there comes back with dup2(saved, fd). */
static int redirect(int fd, const char *path, int flags) {
    int saved = dup(fd), file = open(path, flags, 0600);
    assert_true(saved >= 0 && file >= 0 && dup2(file, fd) == fd);
    close(file);
    return saved;
}

static void restore(int fd, int saved) {
    assert_int_equal(dup2(saved, fd), fd);
    close(saved);
}

static size_t read_back(const char *path, char *to) {
    void *text;
    size_t n;
    struct err e;
    assert_fine(file_read_all(path, sizeof printed - 1, &text, &n, &e), &e);
    memcpy(to, text, n + 1);
    free(text);
    return n;
}

static int run(int (*command)(int, char **), const char *input, size_t len, int argc, char **argv) {
    const char *in = scratch_path(&scratch, "in"), *out = scratch_path(&scratch, "out"),
               *bad = scratch_path(&scratch, "bad");
    struct err e;
    assert_fine(file_write_all(in, input, len, &e), &e);
    fflush(stdout);
    int saved_in = redirect(0, in, O_RDONLY), saved_out = redirect(1, out, O_WRONLY | O_CREAT | O_TRUNC);
    int saved_bad = redirect(2, bad, O_WRONLY | O_CREAT | O_TRUNC);
    rewind(stdin);
    int status = command(argc, argv);
    fflush(stdout);
    restore(0, saved_in);
    restore(1, saved_out);
    restore(2, saved_bad);
    n_printed = read_back(out, printed);
    read_back(bad, complained);
    return status;
}

static int setup(void **state) {
    (void)state;
    static struct small_vocab s;
    struct gguf_writer *w;
    struct err e;
    scratch_open(&scratch);
    snprintf(vocab_path, sizeof vocab_path, "%s", scratch_path(&scratch, "vocab.gguf"));
    small_init(&s);
    small_merge_texts(&s, "a", "b");
    small_added(&s, "<x>", TOKEN_USER);
    assert_fine(gguf_writer_new(&w, vocab_path, GGUF_ALIGNMENT, &e), &e);
    gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4);
    gguf_put_str(w, "tokenizer.ggml.pre", "joyai-llm", 9);
    gguf_put_strs(w, "tokenizer.ggml.tokens", s.tokens, s.v.n_tokens);
    gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, s.kinds, s.v.n_tokens);
    gguf_put_strs(w, "tokenizer.ggml.merges", s.merges, s.v.n_merges);
    assert_fine(gguf_writer_begin_data(w, &e), &e);
    assert_fine(gguf_writer_finish(w, &e), &e);
    small_free(&s);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    scratch_close(&scratch);
    return 0;
}

static void tokenize_prints_ids_with_single_blanks(void **state) {
    (void)state;
    char *argv[] = { "tokenize", "-m", vocab_path, NULL };
    assert_int_equal(run(cmd_tokenize, "ab<x>a\0", 7, 3, argv), 0);
    assert_string_equal(printed, "259 260 100 3\n");
    assert_int_equal(run(cmd_tokenize, "", 0, 3, argv), 0);
    assert_string_equal(printed, "\n");
    char *plain[] = { "tokenize", "--no-special", "-m", vocab_path, NULL };
    assert_int_equal(run(cmd_tokenize, "<x>", 3, 4, plain), 0);
    assert_string_equal(printed, "63 123 65\n");
}

static void detokenize_gives_back_the_bytes(void **state) {
    (void)state;
    char *argv[] = { "detokenize", "-m", vocab_path, NULL };
    assert_int_equal(run(cmd_detokenize, " 259 260\n100\t3", 14, 3, argv), 0);
    assert_int_equal(n_printed, 7);
    assert_memory_equal(printed, "ab<x>a\0", 7);
    assert_int_equal(run(cmd_detokenize, "", 0, 3, argv), 0);
    assert_int_equal(n_printed, 0);
}

static void what_is_no_id_is_an_error(void **state) {
    (void)state;
    static const char *const inputs[] = { "x", "1 2x", "261", "-1", "99999999999999999999", "0x10", "1,2" };
    char *argv[] = { "detokenize", "-m", vocab_path, NULL };
    for (size_t i = 0; i < COUNT_OF(inputs); i++) {
        assert_int_equal(run(cmd_detokenize, inputs[i], strlen(inputs[i]), 3, argv), OPTS_EXIT_FAILURE);
        assert_non_null(strstr(complained, i == 1 ? "number 2 of the input" : "number 1 of the input"));
    }
    assert_int_equal(run(cmd_detokenize, "1 2\0 3", 6, 3, argv), OPTS_EXIT_FAILURE);
    assert_non_null(strstr(complained, "NUL"));
}

static void without_a_vocabulary_there_is_a_reason_and_a_status(void **state) {
    (void)state;
    char *none[] = { "tokenize", NULL }, *missing[] = { "tokenize", "-m", "/nowhere.gguf", NULL };
    assert_int_equal(run(cmd_tokenize, "", 0, 1, none), OPTS_EXIT_USAGE);
    assert_int_equal(run(cmd_detokenize, "", 0, 1, none), OPTS_EXIT_USAGE);
    assert_non_null(strstr(complained, "--model"));
    assert_int_equal(run(cmd_tokenize, "", 0, 3, missing), OPTS_EXIT_FAILURE);
    assert_non_null(strstr(complained, "/nowhere.gguf"));
    assert_int_equal(run(cmd_detokenize, "", 0, 3, missing), OPTS_EXIT_FAILURE);
    assert_int_equal(run(cmd_tokenizer_gguf, "", 0, 1, none), OPTS_EXIT_USAGE);
    char *no_output[] = { "tokenizer-gguf", "/nowhere.json", NULL };
    assert_int_equal(run(cmd_tokenizer_gguf, "", 0, 2, no_output), OPTS_EXIT_USAGE);
}

static void a_refused_tokenizer_json_leaves_no_file(void **state) {
    (void)state;
    struct err e;
    char json[FILE_PATH_MAX], out[FILE_PATH_MAX];
    snprintf(json, sizeof json, "%s", scratch_path(&scratch, "bad.json"));
    snprintf(out, sizeof out, "%s", scratch_path(&scratch, "bad.gguf"));
    assert_fine(file_write_all(json, "{}", 2, &e), &e);
    char *argv[] = { "tokenizer-gguf", json, "-o", out, NULL };
    assert_int_equal(run(cmd_tokenizer_gguf, "", 0, 4, argv), OPTS_EXIT_FAILURE);
    assert_non_null(strstr(complained, "bad.json"));
    assert_int_not_equal(access(out, F_OK), 0);
}

static void the_published_vocabulary_converts_and_round_trips(void **state) {
    (void)state;
    const char *json = vectors_folder("tokenizer/tokenizer.json");
    if (!json) skip();
    char in[FILE_PATH_MAX], out[FILE_PATH_MAX];
    snprintf(in, sizeof in, "%s", json);
    snprintf(out, sizeof out, "%s", scratch_path(&scratch, "real.gguf"));
    char *convert[] = { "tokenizer-gguf", in, "-o", out, NULL };
    assert_int_equal(run(cmd_tokenizer_gguf, "", 0, 4, convert), 0);
    assert_non_null(strstr(printed, "129280 tokens, 127741 merges"));
    char *encode[] = { "tokenize", "-m", out, NULL }, *decode[] = { "detokenize", "-m", out, NULL };
    static const char text[] = "abc\xe4\xbd\xa0\xe5\xa5\xbd" "123<think>";
    assert_int_equal(run(cmd_tokenize, text, strlen(text), 3, encode), 0);
    assert_string_equal(printed, "32372 30594 6895 128821\n");
    char ids[sizeof printed];
    memcpy(ids, printed, sizeof ids);
    assert_int_equal(run(cmd_detokenize, ids, strlen(ids), 3, decode), 0);
    assert_string_equal(printed, text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(tokenize_prints_ids_with_single_blanks),
        TEST(detokenize_gives_back_the_bytes),
        TEST(what_is_no_id_is_an_error),
        TEST(without_a_vocabulary_there_is_a_reason_and_a_status),
        TEST(a_refused_tokenizer_json_leaves_no_file),
        TEST(the_published_vocabulary_converts_and_round_trips),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
