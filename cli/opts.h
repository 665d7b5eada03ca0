/* opts - one table says which options a command has; parsing, checking and --help follow from it.
 *
 * An option writes straight into the caller's variable, and what that variable holds before parsing
 * is the default that --help shows. No state, no allocation: strings point into argv, which is
 * reordered so that what is not an option ends up in argv[1..n]. Limits: one value per option (the
 * last one counts) except OPT_LIST; numbers are range-checked.
 *
 *     int cmd_sum(int argc, char **argv) {
 *         const char *model = NULL, *dtype = "f32", *tags[8] = { NULL };
 *         int ctx = 4096;
 *         uint64_t seed = 0;
 *         double temperature = 1.0;
 *         bool json = false;
 *         const struct opt table[] = {
 *             OPT_STRING('m', "model", &model, "FILE", "the GGUF file (required)"),
 *             OPT_INT('c', "ctx", &ctx, 1, 1 << 20, "N", "context in tokens"),
 *             OPT_GROUP("Sampling"),
 *             OPT_U64(0, "seed", &seed, 0, UINT64_MAX, "N", "seed of the random numbers"),
 *             OPT_NUMBER('t', "temperature", &temperature, 0, 2, "X", "0 takes the likeliest token"),
 *             OPT_CHOICE(0, "dtype", &dtype, "f32|f16|q8_0", "type of the numbers"),
 *             OPT_LIST(0, "tag", tags, 8, "TEXT", "may be given up to 8 times"),
 *             OPT_FLAG('j', "json", &json, "print JSON"),
 *         };
 *         const struct opts spec = { "sum", "[FILE...]", "Adds things up.",
 *                                    table, COUNT_OF(table), 0, OPTS_ANY };
 *         int n_args = opts_parse(&spec, argc, argv);
 *         if (n_args < 0) return opts_exit_status(n_args);      (--help was printed, or a usage error)
 *         if (!model) return opts_usage_error(&spec, "--model FILE is required");
 *         struct err e;
 *         if (sum_files(model, argv + 1, n_args, &e) < 0) return opts_failure(&spec, &e);
 *         return 0;
 *     }
 *
 * Spellings: --ctx 8K, --ctx=8K, -c 8K, -c8K, -jc8K, --no-json, -- (the rest are no options),
 * - (a plain argument). K, M, G behind a whole number mean 1024, 1024^2, 1024^3. */
#ifndef CLI_OPTS_H
#define CLI_OPTS_H

#include "common/base/err.h"
#include "common/base/types.h"

enum { OPTS_EXIT_FAILURE = 1, OPTS_EXIT_USAGE = 2 };
enum { OPTS_HELP = -1, OPTS_USAGE = -2 };         /* what opts_parse gives instead of a count */
enum { OPTS_ANY = 1 << 30 };                      /* args_max: as many as there are */

enum opt_kind {
    OPT_KIND_GROUP,                               /* no option: a heading in --help */
    OPT_KIND_FLAG,
    OPT_KIND_INT,
    OPT_KIND_U64,
    OPT_KIND_NUMBER,
    OPT_KIND_STRING,
    OPT_KIND_CHOICE,
    OPT_KIND_LIST,
};

struct opt {
    enum opt_kind kind;
    char letter;                                  /* 0: long form only */
    const char *name;
    void *to;
    double lo, hi;                                /* numbers: the allowed range; lists: hi is the room */
    const char *value;                            /* "FILE", "N"; for a choice the words "a|b|c" */
    const char *help;
};

/* Makes `to` a void pointer, but only from a pointer to `type`: anything else is a compile-time error. */
#define OPT_TO(type, to) ((void *)(1 ? (to) : (type *)0))

#define OPT_GROUP(title) { OPT_KIND_GROUP, 0, NULL, NULL, 0, 0, NULL, title }
#define OPT_FLAG(letter, name, to, help) \
    { OPT_KIND_FLAG, letter, name, OPT_TO(bool, to), 0, 0, NULL, help }
#define OPT_INT(letter, name, to, lo, hi, value, help) \
    { OPT_KIND_INT, letter, name, OPT_TO(int, to), lo, hi, value, help }
#define OPT_U64(letter, name, to, lo, hi, value, help) \
    { OPT_KIND_U64, letter, name, OPT_TO(uint64_t, to), (double)(lo), (double)(hi), value, help }
#define OPT_NUMBER(letter, name, to, lo, hi, value, help) \
    { OPT_KIND_NUMBER, letter, name, OPT_TO(double, to), lo, hi, value, help }
#define OPT_STRING(letter, name, to, value, help) \
    { OPT_KIND_STRING, letter, name, OPT_TO(const char *, to), 0, 0, value, help }
#define OPT_CHOICE(letter, name, to, words, help) \
    { OPT_KIND_CHOICE, letter, name, OPT_TO(const char *, to), 0, 0, words, help }
/* `to` is an array with `room` strings, all NULL; it is filled from the front. */
#define OPT_LIST(letter, name, to, room, value, help) \
    { OPT_KIND_LIST, letter, name, OPT_TO(const char *, to), 0, room, value, help }

struct opts {
    const char *command;                          /* "run", as the user typed it behind `pleiades` */
    const char *args;                             /* "FILE [START [COUNT]]", or "" */
    const char *about;                            /* one or more sentences for --help */
    const struct opt *table;
    int n_table;
    int args_min, args_max;
};

/* How many plain arguments there are (in argv[1..n]), or OPTS_HELP, OPTS_USAGE: all printed already. */
int opts_parse(const struct opts *o, int argc, char **argv);
int opts_exit_status(int parsed);                 /* of a negative result: 0 or OPTS_EXIT_USAGE */

/* Print "pleiades COMMAND: text" to stderr; the value is the exit status to return from cmd_*. */
int opts_usage_error(const struct opts *o, const char *format, ...) PRINTF_LIKE(2, 3);
int opts_failure(const struct opts *o, const struct err *e);

/* Whole numbers with K/M/G, for values that come from elsewhere than an option: 0 or ERR_INVALID. */
int opts_read_u64(const char *text, uint64_t *out);
int opts_read_int(const char *text, int *out);

/* The word that was likeliest meant (NULL when none is near enough), for suggestions. */
const char *opts_nearest(const char *word, const char *const *words, int n);

#endif
