/* subcommands - a command that has commands of its own: `pleiades keys init`, `pleiades shard plan`.
 *
 * A table of names, functions and one-line helps; dispatch, usage and "did you mean" follow from it. No
 * state; main thread. At most SUBCOMMANDS_MAX of them. */
#ifndef CLI_SUBCOMMANDS_H
#define CLI_SUBCOMMANDS_H

#include "common/base/types.h"

enum { SUBCOMMANDS_MAX = 16 };

struct subcommand {
    const char *name;
    int (*run)(int argc, char **argv);            /* argv[0] is its name; the value is the exit status */
    const char *help;
};

int subcommands_run(const char *command, const struct subcommand *table, size_t n, int argc, char **argv);

#endif
