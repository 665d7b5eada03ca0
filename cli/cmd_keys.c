/* keys - makes a cluster's keys and says who may join; common/sys/keyring.h explains what they protect.
 *
 * `keys init` once, where the coordinator runs; `keys invite` for each machine, whose line goes into a
 * file there. What is printed for people goes to stderr, the token alone to stdout. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "cli/subcommands.h"
#include "common/sys/curve.h"
#include "common/sys/file.h"
#include "common/sys/keyring.h"
#include "common/sys/term.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- the folder ---- */

/* ~/.config/pleiades, or as the system says. */
static const char *default_folder(void) {
    static char folder[FILE_PATH_MAX];
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (config && *config) snprintf(folder, sizeof folder, "%s/pleiades", config);
    else snprintf(folder, sizeof folder, "%s/.config/pleiades", home && *home ? home : ".");
    return folder;
}

/* The folder and the one above it (~/.config may not be there yet), readable for its owner only. */
static int make_private_folder(const char *folder, struct err *e) {
    char above[FILE_PATH_MAX];
    int rc = file_folder_of(folder, above, sizeof above, e);
    if (rc == 0 && access(above, F_OK) != 0) rc = file_make_folder(above, e);
    if (rc < 0 || access(folder, F_OK) == 0) return rc;
    rc = file_make_folder(folder, e);
    if (rc == 0 && chmod(folder, 0700) < 0) return err_errno(e, ERR_IO, "%s", folder);
    return rc;
}

/* ---- the commands ---- */

static int keys_init(int argc, char **argv) {
    const char *folder = default_folder();
    const struct opt table[] = {
        OPT_STRING('o', "out", &folder, "DIR", "where the keys go"),
    };
    const struct opts spec = {
        "keys init", "", "Makes the keys of a new cluster.", table, COUNT_OF(table), 0, 0
    };
    struct err e;
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (make_private_folder(folder, &e) < 0 || keyring_init_cluster(folder, &e) < 0)
        return opts_failure(&spec, &e);
    printf("cluster keys in %s\n", folder);
    fprintf(stderr, "next: 'pleiades serve --bind-nodes HOST:PORT --key %s ...' here, and for each machine\n"
                    "      'pleiades keys invite --once --address HOST:PORT'\n", folder);
    return 0;
}

static int keys_invite(int argc, char **argv) {
    const char *folder = default_folder(), *name = NULL, *address = NULL;
    bool once = false;
    const struct opt table[] = {
        OPT_STRING('a', "address", &address, "HOST:PORT", "where machines reach 'pleiades serve' (required)"),
        OPT_STRING('n', "name", &name, "NAME", "of the invitation, for 'keys list' and 'keys revoke'"),
        OPT_FLAG(0, "once", &once, "lets one machine join, then it is worth nothing"),
        OPT_STRING('k', "keys", &folder, "DIR", "the folder of 'keys init'"),
    };
    const struct opts spec = {
        "keys invite", "",
        "Prints a join token: one line, to be put into a file of mode 0600 on the machine that joins\n"
        "('pleiades node --key FILE'). It is a secret until it is used (--once) or revoked.",
        table, COUNT_OF(table), 0, 0
    };
    char token[KEYRING_TOKEN_MAX];
    struct err e;
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!address) return opts_usage_error(&spec, "--address HOST:PORT is required");
    if (keyring_invite(folder, name, once, address, token, &e) < 0) return opts_failure(&spec, &e);
    printf("%s\n", token);
    curve_wipe(token, sizeof token);
    if (!term_is_terminal(stdout)) return 0;
    fprintf(stderr, "on the machine that joins: (umask 077; cat > join.key), paste the line, Ctrl-D, then\n"
                    "'pleiades node --key join.key'\n");
    return 0;
}

static void date_of(int64_t seconds, char out[32]) {
    time_t t = (time_t)seconds;
    struct tm tm;
    if (!gmtime_r(&t, &tm) || strftime(out, 32, "%Y-%m-%d %H:%M UTC", &tm) == 0) snprintf(out, 32, "?");
}

static const char *kind_of(const struct keyring_client *c) {
    return !c->is_invite ? "machine" : c->once ? "invitation (once)" : "invitation";
}

static int print_json(const struct keyring_client *client, uint32_t n) {
    json_t *root = json_array();
    for (uint32_t i = 0; i < n; i++) {
        const struct keyring_client *c = &client[i];
        json_array_append_new(root, json_pack("{s:s, s:s, s:b, s:s, s:I}", "name", c->name, "kind",
                                              c->is_invite ? "invitation" : "machine", "once", c->once,
                                              "public_key", c->key, "created", (json_int_t)c->created_s));
    }
    int rc = json_dumpf(root, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(root);
    return rc == 0 ? 0 : OPTS_EXIT_FAILURE;
}

static int keys_list(int argc, char **argv) {
    const char *folder = default_folder();
    bool json = false;
    const struct opt table[] = {
        OPT_STRING('k', "keys", &folder, "DIR", "the folder of 'keys init'"),
        OPT_FLAG('j', "json", &json, "print JSON"),
    };
    const struct opts spec = { "keys list", "", "Says who may connect.", table, COUNT_OF(table), 0, 0 };
    struct keyring_client *client;
    uint32_t n;
    struct err e;
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (keyring_list(folder, &client, &n, &e) < 0) return opts_failure(&spec, &e);
    int status = 0;
    if (json) {
        status = print_json(client, n);
    } else {
        printf("%-24s %-18s %-21s %s\n", "NAME", "WHAT", "SINCE", "PUBLIC KEY");
        for (uint32_t i = 0; i < n; i++) {
            char date[32];
            date_of(client[i].created_s, date);
            printf("%-24s %-18s %-21s %s\n", client[i].name, kind_of(&client[i]), date, client[i].key);
        }
    }
    free(client);
    return status;
}

static int keys_revoke(int argc, char **argv) {
    const char *folder = default_folder();
    const struct opt table[] = {
        OPT_STRING('k', "keys", &folder, "DIR", "the folder of 'keys init'"),
    };
    const struct opts spec = {
        "keys revoke",
        "NAME",
        "Takes the machine and the invitation of that name off the list. A coordinator that\n"
        "runs notices within seconds and drops the machine.",
        table,
        COUNT_OF(table),
        1,
        1
    };
    struct err e;
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (keyring_revoke(folder, argv[1], &e) < 0) return opts_failure(&spec, &e);
    printf("%s may not connect any more\n", argv[1]);
    return 0;
}

/* ---- dispatch ---- */

static const struct subcommand commands[] = {
    { "init", keys_init, "make the keys of a new cluster" },
    { "invite", keys_invite, "print a token with which a machine joins" },
    { "list", keys_list, "who may connect" },
    { "revoke", keys_revoke, "take a machine or an invitation off the list" },
};

int cmd_keys(int argc, char **argv) {
    return subcommands_run("keys", commands, COUNT_OF(commands), argc, argv);
}
