/* pleiades - one program, many commands. This file only finds the command; each lives in its cmd_NAME.c.
 *
 * Main thread. The log level comes from $PLEIADES_LOG (error, warn, info, debug) before any command runs. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "common/base/log.h"

#include <stdio.h>
#include <stdlib.h>

struct command {
    const char *name;
    int (*run)(int argc, char **argv);            /* NULL: a heading in `pleiades help` */
    const char *help;
};

static int cmd_help(int argc, char **argv);

static const struct command commands[] = {
    { "Use a model", NULL, NULL },
    { "run", cmd_run, "talk to the model in the terminal" },
    { "serve", cmd_serve, "answer requests over HTTP, alone or with other machines" },
    { "node", cmd_node, "join a cluster and compute a part of the model" },
    { "shard", cmd_shard, "divide a model over machines: plan, split, verify, inspect, join" },
    { "status", cmd_status, "what a service is doing and where a token's time goes" },
    { "top", cmd_top, "the same, live" },
    { "keys", cmd_keys, "make the keys of a cluster and let machines in" },
    { "Diagnostics, with stable output", NULL, NULL },
    { "tokenize", cmd_tokenize, "text to token ids" },
    { "detokenize", cmd_detokenize, "token ids to text" },
    { "render", cmd_render, "a request (JSON) to the exact prompt text" },
    { "logits", cmd_logits, "logits of token ids as raw float32 rows" },
    { "generate", cmd_generate, "continues token ids, greedy or sampled" },
    { "inspect", cmd_inspect, "what a GGUF holds and what a context costs" },
    { "bench", cmd_bench, "prefill and decode speed beside the machine's limits" },
    { "tokenizer-gguf", cmd_tokenizer_gguf, "a GGUF that holds only a tokenizer, from tokenizer.json" },
    { "Other", NULL, NULL },
    { "synth", cmd_synth, "write a synthetic model: tiny, or with the true shapes" },
    { "version", cmd_version, "what this build contains and which CPU path it chose" },
    { "help", cmd_help, "this list, or the options of one command" },
};

static const struct command *find_command(const char *name) {
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        if (commands[i].run && strcmp(commands[i].name, name) == 0) return &commands[i];
    }
    return NULL;
}

static void print_commands(FILE *f) {
    fprintf(f, "Usage: pleiades COMMAND [OPTIONS] [ARGUMENTS]\n");
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        const struct command *c = &commands[i];
        if (c->run) fprintf(f, "  %-16s %s\n", c->name, c->help);
        else fprintf(f, "\n%s\n", c->name);
    }
    fprintf(f, "\n'pleiades COMMAND --help' explains one of them. $PLEIADES_LOG=debug shows more of what "
               "happens.\n");
}

static int unknown_command(const char *name) {
    const char *names[COUNT_OF(commands)];
    int n = 0;
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        if (commands[i].run) names[n++] = commands[i].name;
    }
    const char *nearest = opts_nearest(name, names, n);
    fprintf(stderr, "pleiades: no command '%s'", name);
    if (nearest) fprintf(stderr, "; did you mean '%s'?\n", nearest);
    else fprintf(stderr, "; 'pleiades help' lists them\n");
    return OPTS_EXIT_USAGE;
}

static int cmd_help(int argc, char **argv) {
    const struct opts spec = { "help", "[COMMAND]", "Lists the commands, or explains one.", NULL, 0, 0, 1 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (n_args == 0) {
        print_commands(stdout);
        return 0;
    }
    const struct command *c = find_command(argv[1]);
    if (!c) return unknown_command(argv[1]);
    char option[] = "--help", *words[] = { argv[1], option, NULL };
    return c->run(2, words);
}

/* Output that could not be written (a full disk, a closed pipe) is a failure even if the command saw none. */
static int finish(int status) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return status;
    if (status == 0) fprintf(stderr, "pleiades: writing the output failed\n");
    return status ? status : OPTS_EXIT_FAILURE;
}

int main(int argc, char **argv) {
    const char *level = getenv("PLEIADES_LOG");
    if (level && *level && log_set_level_name(level) < 0) {
        fprintf(stderr, "pleiades: $PLEIADES_LOG is one of error, warn, info, debug; not '%s'\n", level);
        return OPTS_EXIT_USAGE;
    }
    if (argc < 2) {
        print_commands(stderr);
        return OPTS_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        char command[] = "version", option[] = "--short", *words[] = { command, option, NULL };
        return finish(cmd_version(2, words));
    }
    const struct command *c = find_command(name);
    return c ? finish(c->run(argc - 1, argv + 1)) : unknown_command(name);
}
