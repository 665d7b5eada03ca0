/* opts - see the header. One walk over argv: words that start with '-' go to the table, the rest
 * moves to the front. Errors are printed where they are found, with the nearest known spelling. */
#include "cli/opts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { WORD_MAX = 32, FAR_AWAY = 1 << 30, HELP_COLUMN = 28, HELP_WIDTH = 96, HELP_TEXT_MAX = 512 };

/* ---- messages ---- */

static void complain(const struct opts *o, const char *format, va_list args) {
    fflush(stdout);
    fprintf(stderr, "pleiades %s: ", o->command);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nTry 'pleiades %s --help'.\n", o->command);
}

static int usage_error(const struct opts *o, const char *format, ...) PRINTF_LIKE(2, 3);

static int usage_error(const struct opts *o, const char *format, ...) {
    va_list args;
    va_start(args, format);
    complain(o, format, args);
    va_end(args);
    return OPTS_USAGE;
}

int opts_usage_error(const struct opts *o, const char *format, ...) {
    va_list args;
    va_start(args, format);
    complain(o, format, args);
    va_end(args);
    return OPTS_EXIT_USAGE;
}

int opts_failure(const struct opts *o, const struct err *e) {
    fflush(stdout);
    fprintf(stderr, "pleiades %s: %s\n", o->command, e->text[0] ? e->text : err_text(e->code));
    return OPTS_EXIT_FAILURE;
}

int opts_exit_status(int parsed) {
    return parsed == OPTS_HELP ? 0 : OPTS_EXIT_USAGE;
}

/* ---- nearest word ---- */

/* Insertions, deletions, replacements and swapped neighbours; words longer than WORD_MAX are far away. */
static int edit_distance(const char *a, const char *b) {
    int row[3][WORD_MAX + 1];
    int n_a = (int)strlen(a), n_b = (int)strlen(b);
    if (n_a > WORD_MAX || n_b > WORD_MAX) return FAR_AWAY;
    for (int j = 0; j <= n_b; j++) row[0][j] = j;
    for (int i = 1; i <= n_a; i++) {
        int *now = row[i % 3], *before = row[(i + 2) % 3], *before2 = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= n_b; j++) {
            int best = before[j - 1] + (a[i - 1] != b[j - 1]);
            best = MIN(best, MIN(before[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                best = MIN(best, before2[j - 2] + 1);
            }
            now[j] = best;
        }
    }
    return row[n_a % 3][n_b];
}

const char *opts_nearest(const char *word, const char *const *words, int n) {
    const char *nearest = NULL;
    size_t length = strlen(word);
    int best = MAX(1, (int)length / 3) + 1;
    for (int i = 0; i < n; i++) {
        bool begins = length >= 3 && strncmp(word, words[i], length) == 0;
        int distance = begins ? 0 : edit_distance(word, words[i]);
        if (distance >= best) continue;
        best = distance;
        nearest = words[i];
    }
    return nearest;
}

/* ---- values ---- */

static int suffix_shift(char c) {
    switch (c) {
    case 'k': case 'K': return 10;
    case 'm': case 'M': return 20;
    case 'g': case 'G': return 30;
    default: return 0;
    }
}

int opts_read_u64(const char *text, uint64_t *out) {
    uint64_t value = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        uint64_t digit = (uint64_t)(*c - '0');
        if (value > (UINT64_MAX - digit) / 10) return ERR_INVALID;
        value = value * 10 + digit;
    }
    if (c == text) return ERR_INVALID;
    int shift = suffix_shift(*c);
    if (shift) c++;
    if (*c || value > UINT64_MAX >> shift) return ERR_INVALID;
    *out = value << shift;
    return 0;
}

int opts_read_int(const char *text, int *out) {
    uint64_t size;
    bool negative = text[0] == '-';
    int rc = opts_read_u64(text + negative, &size);
    if (rc < 0 || size > INT32_MAX) return ERR_INVALID;
    *out = negative ? -(int)size : (int)size;
    return 0;
}

static int read_number(const char *text, double *out) {
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    return end == text || *end || errno || *out != *out ? ERR_INVALID : 0;
}

static int choice_set(const struct opts *o, const struct opt *opt, const char *text) {
    size_t length = strcspn(text, "|");
    for (const char *word = opt->value; word && length && !text[length]; word = strchr(word, '|')) {
        word += *word == '|';
        if (strncmp(word, text, length) == 0 && (!word[length] || word[length] == '|')) {
            *(const char **)opt->to = text;
            return 0;
        }
    }
    return usage_error(o, "--%s is one of %s, not '%s'", opt->name, opt->value, text);
}

static int list_add(const struct opts *o, const struct opt *opt, const char *text) {
    const char **items = opt->to;
    for (int i = 0; i < (int)opt->hi; i++) {
        if (items[i]) continue;
        items[i] = text;
        return 0;
    }
    return usage_error(o, "--%s may be given %d times at most", opt->name, (int)opt->hi);
}

/* Integers up to 2^64 are shown whole; the limits in the table are powers of two or small, so exact. */
static int range_error(const struct opts *o, const struct opt *opt, const char *text) {
    bool whole = opt->kind != OPT_KIND_NUMBER;
    return usage_error(o, whole ? "--%s is a whole number from %.0f to %.0f, not '%s'"
                                : "--%s is a number from %g to %g, not '%s'",
                       opt->name, opt->lo, opt->hi, text);
}

static bool in_range(const struct opt *opt, double value) {
    return value >= opt->lo && value <= opt->hi;
}

static int value_set(const struct opts *o, const struct opt *opt, const char *text) {
    int whole;
    uint64_t size;
    double number;
    switch (opt->kind) {
    case OPT_KIND_INT:
        if (opts_read_int(text, &whole) < 0 || !in_range(opt, whole)) return range_error(o, opt, text);
        *(int *)opt->to = whole;
        return 0;
    case OPT_KIND_U64:
        if (opts_read_u64(text, &size) < 0 || !in_range(opt, (double)size)) return range_error(o, opt, text);
        *(uint64_t *)opt->to = size;
        return 0;
    case OPT_KIND_NUMBER:
        if (read_number(text, &number) < 0 || !in_range(opt, number)) return range_error(o, opt, text);
        *(double *)opt->to = number;
        return 0;
    case OPT_KIND_STRING:
        *(const char **)opt->to = text;
        return 0;
    case OPT_KIND_CHOICE: return choice_set(o, opt, text);
    case OPT_KIND_LIST: return list_add(o, opt, text);
    case OPT_KIND_GROUP: case OPT_KIND_FLAG: break;
    }
    return usage_error(o, "--%s takes no value", opt->name);
}

/* ---- --help ---- */

/* Writes text from `column` on, breaking at spaces before HELP_WIDTH; the first line is already there. */
static void print_wrapped(const char *text, int column) {
    int at = column;
    while (*text) {
        int length = (int)strcspn(text, " \n");
        if (at > column && at + 1 + length > HELP_WIDTH) {
            printf("\n%*s", column, "");
            at = column;
        } else if (at > column) {
            putchar(' ');
            at++;
        }
        printf("%.*s", length, text);
        at += length;
        text += length;
        if (*text == '\n') {
            printf("\n%*s", column, "");
            at = column;
        }
        text += *text != 0;
    }
    putchar('\n');
}

static void default_text(const struct opt *opt, char *out, size_t room) {
    const char *word = NULL;
    out[0] = 0;
    switch (opt->kind) {
    case OPT_KIND_FLAG:
        if (*(bool *)opt->to) snprintf(out, room, " (default; --no-%s switches it off)", opt->name);
        break;
    case OPT_KIND_INT: snprintf(out, room, " (default %d)", *(int *)opt->to); break;
    case OPT_KIND_U64:
        snprintf(out, room, " (default %llu)", (unsigned long long)*(uint64_t *)opt->to);
        break;
    case OPT_KIND_NUMBER: snprintf(out, room, " (default %g)", *(double *)opt->to); break;
    case OPT_KIND_STRING: case OPT_KIND_CHOICE: word = *(const char **)opt->to; break;
    case OPT_KIND_GROUP: case OPT_KIND_LIST: break;
    }
    if (word && *word) snprintf(out, room, " (default %s)", word);
}

static void print_option(const struct opt *opt) {
    char text[HELP_TEXT_MAX], preset[HELP_TEXT_MAX / 4];
    if (opt->kind == OPT_KIND_GROUP) {
        printf("\n%s\n", opt->help);
        return;
    }
    default_text(opt, preset, sizeof preset);
    snprintf(text, sizeof text, "%s%s", opt->help, preset);
    char letter[5] = "    ";
    if (opt->letter) snprintf(letter, sizeof letter, "-%c, ", opt->letter);
    int width = printf("  %s--%s%s%s", letter, opt->name, opt->value ? " " : "",
                       opt->value ? opt->value : "");
    if (width + 2 > HELP_COLUMN) printf("\n%*s", HELP_COLUMN, "");
    else printf("%*s", HELP_COLUMN - width, "");
    print_wrapped(text, HELP_COLUMN);
}

static int print_help(const struct opts *o) {
    printf("Usage: pleiades %s%s%s%s\n\n", o->command, o->n_table ? " [OPTIONS]" : "",
           o->args[0] ? " " : "", o->args);
    print_wrapped(o->about, 0);
    if (o->n_table && o->table[0].kind != OPT_KIND_GROUP) printf("\nOptions\n");
    for (int i = 0; i < o->n_table; i++) print_option(&o->table[i]);
    return OPTS_HELP;
}

/* ---- the walk ---- */

struct words {
    char **argv;
    int argc, i;
};

static const struct opt *find_name(const struct opts *o, const char *name, size_t length) {
    for (int i = 0; i < o->n_table; i++) {
        const char *have = o->table[i].name;
        if (have && strncmp(have, name, length) == 0 && !have[length]) return &o->table[i];
    }
    return NULL;
}

static const struct opt *find_letter(const struct opts *o, char letter) {
    for (int i = 0; i < o->n_table; i++) {
        if (o->table[i].letter && o->table[i].letter == letter) return &o->table[i];
    }
    return NULL;
}

static int unknown_name(const struct opts *o, const char *name, size_t length) {
    enum { NAMES_MAX = 128 };
    const char *names[NAMES_MAX];
    char word[WORD_MAX + 1];
    int n = 0;
    for (int i = 0; i < o->n_table && n < NAMES_MAX; i++) {
        if (o->table[i].name) names[n++] = o->table[i].name;
    }
    snprintf(word, sizeof word, "%.*s", (int)MIN(length, WORD_MAX), name);
    const char *nearest = opts_nearest(word, names, n);
    if (nearest) return usage_error(o, "no option --%s; did you mean --%s?", word, nearest);
    return usage_error(o, "no option --%s", word);
}

/* The value stands behind '=' or the letter (`attached`), or is the next word whatever it looks like. */
static int take_value(const struct opts *o, const struct opt *opt, struct words *w, const char *attached) {
    if (attached) return value_set(o, opt, attached);
    if (w->i + 1 >= w->argc) return usage_error(o, "--%s needs a value: %s", opt->name, opt->value);
    return value_set(o, opt, w->argv[++w->i]);
}

static int take_long(const struct opts *o, struct words *w, const char *name) {
    size_t length = strcspn(name, "=");
    const char *attached = name[length] ? name + length + 1 : NULL;
    const struct opt *opt = find_name(o, name, length);
    if (opt && opt->kind != OPT_KIND_FLAG) return take_value(o, opt, w, attached);
    bool on = true;
    if (!opt && length > 3 && strncmp(name, "no-", 3) == 0) {
        opt = find_name(o, name + 3, length - 3);
        if (opt && opt->kind == OPT_KIND_FLAG) on = false;
        else opt = NULL;
    }
    if (opt && attached) return usage_error(o, "--%s takes no value", opt->name);
    if (opt) *(bool *)opt->to = on;
    else if (strcmp(name, "help") == 0) return print_help(o);
    else return unknown_name(o, name, length);
    return 0;
}

static int take_letters(const struct opts *o, struct words *w, const char *letters) {
    for (const char *c = letters; *c; c++) {
        const struct opt *opt = find_letter(o, *c);
        if (!opt && *c == 'h') return print_help(o);
        if (!opt) return usage_error(o, "no option -%c", *c);
        if (opt->kind != OPT_KIND_FLAG) return take_value(o, opt, w, c[1] ? c + 1 : NULL);
        *(bool *)opt->to = true;
    }
    return 0;
}

static int count_check(const struct opts *o, int n_args, char **argv) {
    if (n_args < o->args_min) return usage_error(o, "something is missing: %s", o->args);
    if (n_args > o->args_max) return usage_error(o, "one argument too many: '%s'", argv[1 + o->args_max]);
    return n_args;
}

int opts_parse(const struct opts *o, int argc, char **argv) {
    struct words w = { argv, argc, 1 };
    bool ended = false;
    int n_args = 0;
    for (; w.i < argc; w.i++) {
        char *word = argv[w.i];
        int rc = 0;
        if (ended || word[0] != '-' || !word[1]) argv[1 + n_args++] = word;
        else if (strcmp(word, "--") == 0) ended = true;
        else if (word[1] == '-') rc = take_long(o, &w, word + 2);
        else rc = take_letters(o, &w, word + 1);
        if (rc < 0) return rc;
    }
    return count_check(o, n_args, argv);
}
