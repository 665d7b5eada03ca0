#include "cli/subcommands.h"

#include "cli/opts.h"
#include "common/base/check.h"

#include <stdio.h>
#include <string.h>

static int usage(FILE *f, const char *command, const struct subcommand *table, size_t n, int status) {
    fprintf(f, "Usage: pleiades %s COMMAND [OPTIONS] [ARGUMENTS]\n\n", command);
    for (size_t i = 0; i < n; i++) fprintf(f, "  %-8s %s\n", table[i].name, table[i].help);
    fprintf(f, "\n'pleiades %s COMMAND --help' explains one of them.\n", command);
    return status;
}

static int unknown(const char *command, const struct subcommand *table, size_t n, const char *name) {
    const char *names[SUBCOMMANDS_MAX];
    CHECK(n <= SUBCOMMANDS_MAX);
    for (size_t i = 0; i < n; i++) names[i] = table[i].name;
    const char *nearest = opts_nearest(name, names, (int)n);
    fprintf(stderr, "pleiades %s: no command '%s'", command, name);
    if (nearest) fprintf(stderr, "; did you mean '%s'?\n", nearest);
    else fprintf(stderr, "; 'pleiades %s --help' lists them\n", command);
    return OPTS_EXIT_USAGE;
}

int subcommands_run(const char *command, const struct subcommand *table, size_t n, int argc, char **argv) {
    if (argc < 2) return usage(stderr, command, table, n, OPTS_EXIT_USAGE);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return usage(stdout, command, table, n, 0);
    for (size_t i = 0; i < n; i++)
        if (strcmp(table[i].name, argv[1]) == 0) return table[i].run(argc - 1, argv + 1);
    return unknown(command, table, n, argv[1]);
}
