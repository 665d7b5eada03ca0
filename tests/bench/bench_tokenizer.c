/* bench_tokenizer - speed of the tokenizer on one core.
 *
 *   bench_tokenizer VOCABULARY [TEXT_FILE...]        VOCABULARY: a GGUF, or a tokenizer.json (name
 *     ends in .json)
 *
 * Prints the time to load, then megabytes per second for each text file; without any, for inputs that
 * are hard on a tokenizer: a megabyte that is one piece, or as many pieces as can be. The best of
 * several runs counts. */
#include "cli/tokenizer_json.h"
#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/base/utf8.h"
#include "common/sys/clock.h"
#include "common/sys/file.h"

#include <stdio.h>

enum { RUNS_MIN = 3, RUN_SECONDS = 1, HARD_BYTES = 1 << 20, FILE_BYTES_MAX = 64 << 20 };

static double seconds(void) {
    return (double)clock_now_ns() * 1e-9;
}

static int open_vocabulary(struct tokenizer **t, const char *path, double *load_s, struct err *e) {
    size_t n = strlen(path);
    if (n > 5 && strcmp(path + n - 5, ".json") == 0) {
        struct tokenizer_json tj;
        int rc = tokenizer_json_open(&tj, path, e);
        if (rc < 0) return rc;
        double start = seconds();
        rc = tokenizer_new_vocab(t, &tj.vocab, e);
        *load_s = seconds() - start;
        tokenizer_json_close(&tj);
        return rc;
    }
    struct gguf *g;
    double start = seconds();
    int rc = gguf_open(&g, path, e);
    if (rc < 0) return rc;
    rc = tokenizer_new(t, g, e);
    *load_s = seconds() - start;
    gguf_close(g);
    return rc;
}

static void measure(const struct tokenizer *t, const char *name, const char *text, size_t len) {
    double best = 1e9, end = seconds() + RUN_SECONDS;
    size_t n_ids = 0;
    for (int run = 0; run < RUNS_MIN || seconds() < end; run++) {
        struct token_buf ids = { 0 };
        struct err e;
        double start = seconds();
        CHECK(tokenizer_encode(t, text, len, true, &ids, &e) == 0);
        best = MIN(best, seconds() - start);
        n_ids = ids.n;
        token_buf_free(&ids);
    }
    printf("%-40.40s %9zu bytes %9zu ids %8.1f ms %8.1f MB/s\n", name, len, n_ids, best * 1e3,
           (double)len / best / 1e6);
}

/* ---- hard inputs ---- */

static char hard[HARD_BYTES];

static void measure_repeated(const struct tokenizer *t, const char *name, const char *unit) {
    size_t n = strlen(unit);
    for (size_t i = 0; i < HARD_BYTES; i++) hard[i] = unit[i % n];
    measure(t, name, hard, HARD_BYTES);
}

/* Code points first..last at random, as many as fit. */
static void measure_random(const struct tokenizer *t, const char *name, uint32_t first, uint32_t last) {
    struct rng r;
    rng_init(&r, 1, 0);
    size_t n = 0;
    while (n + UTF8_MAX <= HARD_BYTES)
        n += utf8_encode(first + (uint32_t)rng_below(&r, last - first + 1), hard + n);
    measure(t, name, hard, n);
}

static void measure_hard(const struct tokenizer *t) {
    measure_repeated(t, "one letter", "a");
    measure_repeated(t, "two letters", "ab");
    measure_repeated(t, "blanks", " ");
    measure_repeated(t, "line breaks", "\n");
    measure_repeated(t, "digits", "7");
    measure_repeated(t, "punctuation", "=");
    measure_repeated(t, "one CJK character", "\xe4\xb8\xad");
    measure_repeated(t, "one emoji", "\xf0\x9f\x98\x80");
    measure_repeated(t, "NUL bytes", "\x01");
    measure_repeated(t, "stray bytes", "\xff");
    measure_repeated(t, "starts of control tokens", "<\xef\xbd\x9c");
    measure_repeated(t, "control tokens", "<think></think>");
    measure_random(t, "random letters, one word", 'a', 'z');
    measure_random(t, "random ASCII", ' ', '~');
    measure_random(t, "random CJK, one run", 0x4e00, 0x9fa5);
    measure_random(t, "random code points", 0x80, 0x2fff);
}

static int measure_file(const struct tokenizer *t, const char *path, struct err *e) {
    void *text;
    size_t len;
    int rc = file_read_all(path, FILE_BYTES_MAX, &text, &len, e);
    if (rc < 0) return rc;
    const char *slash = strrchr(path, '/');
    measure(t, slash ? slash + 1 : path, text, len);
    free(text);
    return 0;
}

int main(int argc, char **argv) {
    struct err e;
    struct tokenizer *t = NULL;
    double load_s = 0;
    if (argc < 2) return fprintf(stderr, "usage: bench_tokenizer VOCABULARY [TEXT_FILE...]\n"), 2;
    int rc = open_vocabulary(&t, argv[1], &load_s, &e);
    if (rc == 0) printf("loaded %u tokens in %.1f ms\n", tokenizer_n_vocab(t), load_s * 1e3);
    for (int i = 2; i < argc && rc == 0; i++) rc = measure_file(t, argv[i], &e);
    if (rc == 0 && argc == 2) measure_hard(t);
    if (rc < 0) fprintf(stderr, "bench_tokenizer: %s\n", e.text);
    tokenizer_free(t);
    return rc < 0;
}
