/* cmd_node - one machine of a cluster: joins a coordinator and computes the layers that it is given. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "common/base/log.h"
#include "node/main.h"

#include <stdio.h>
#include <stdlib.h>

int cmd_node(int argc, char **argv) {
    struct node_process_config c = { .bind = "tcp://0.0.0.0:0", .measure = true, .take_signals = true };
    bool insecure = false, quiet = false, measure = true, give_weights = true;
    int n_threads = 0, n_rows = 0, n_keep = 2;
    const char *bind = NULL;
    const struct opt table[] = {
        OPT_GROUP("The cluster"),
        OPT_STRING('j', "join", &c.join, "HOST:PORT",
                   "the coordinator; with a key, what the key says"),
        OPT_STRING('k', "key", &c.key_path, "FILE",
                   "the line that `pleiades keys invite` printed, later this node's own key; - reads "
                   "the line, without --key it is $PLEIADES_TOKEN, and the own key goes to --store"),
        OPT_FLAG(0, "insecure", &insecure,
                 "no key: everybody on the network can join, listen and alter"),
        OPT_STRING(0, "name", &c.name, "NAME",
                   "of this machine in the cluster; default: the host's"),
        OPT_STRING(0, "bind", &bind, "HOST[:PORT]",
                   "where other stages connect; default: all interfaces, any free port"),
        OPT_GROUP("The model"),
        OPT_STRING('m', "model", &c.model_path, "FILE", "a GGUF file, whole or a shard of it"),
        OPT_STRING(0, "store", &c.store_path, "DIR",
                   "a folder with such files; a share that is fetched from others is kept there"),
        OPT_INT(0, "keep", &n_keep, 0, 14, "N",
                "shares fetched for earlier plans that stay in --store beside the one in use; the "
                "longest unused go first"),
        OPT_FLAG(0, "give", &give_weights, "let other machines fetch weights from here"),
        OPT_U64(0, "give-rate", &c.give_bytes_per_s, 0, UINT64_MAX, "BYTES",
                "a second, at most, to machines that fetch weights from here (50M); 0: as fast as it goes"),
        OPT_GROUP("This machine"),
        OPT_U64(0, "memory", &c.memory_bytes, 0, UINT64_MAX, "BYTES",
                "for weights, state and buffers (64G); 0: 85 % of what is installed"),
        OPT_STRING(0, "backend", &c.backend, "NAME",
                   "cpu, cuda or metal; default: the best one here"),
        OPT_INT('t', "threads", &n_threads, 0, 256, "N", "compute threads; 0: all cores"),
        OPT_INT(0, "rows", &n_rows, 0, 4096, "N", "most rows of one batch; 0: 1024"),
        OPT_FLAG(0, "measure", &measure,
                 "measure the speed of this machine at start, for the plan"),
        OPT_FLAG('q', "quiet", &quiet, "say only what is wrong"),
    };
    const struct opts spec = {
        "node",
        "",
        "Joins a cluster and computes the layers of the model that its coordinator gives "
        "it. It may start before the coordinator, and comes back when that was restarted.",
        table,
        COUNT_OF(table),
        0,
        0
    };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    const char *token = getenv("PLEIADES_TOKEN");
    c.key_from_environment = !c.key_path && !insecure && token && *token;
    if (!c.key_path && !c.key_from_environment && !insecure)
        return opts_usage_error(&spec, "--key FILE is required, or --insecure");
    if (c.key_path && insecure) return opts_usage_error(&spec, "--key and --insecure contradict each other");
    if (insecure && !c.join) return opts_usage_error(&spec, "--join HOST:PORT is required with --insecure");
    if (!c.model_path && !c.store_path)
        return opts_usage_error(&spec, "--model FILE or --store DIR is required");
    if (!c.store_path && (c.key_from_environment || (c.key_path && strcmp(c.key_path, "-") == 0)))
        return opts_usage_error(&spec, "--store DIR is required: this machine's own key is kept there");
    char address[300];
    bool has_port = bind && strrchr(bind, ':') && !strchr(strrchr(bind, ':'), ']');
    snprintf(address, sizeof address, "tcp://%.250s%s", bind ? bind : "0.0.0.0", has_port ? "" : ":0");
    c.bind = address;
    c.n_threads = (uint32_t)n_threads;
    c.n_rows_max = (uint32_t)n_rows;
    c.n_keep = (uint32_t)n_keep;
    c.keeps_weights = !give_weights;
    c.measure = measure;
    if (quiet && !getenv("PLEIADES_LOG")) log_set_level(LOG_WARN);
    struct node_process *p;
    struct err e = { 0 };
    if (node_process_new(&p, &c, &e) < 0) return opts_failure(&spec, &e);
    log_info("node", "%s listens at %s", node_process_name(p), node_process_address(p));
    node_process_run(p);
    node_process_free(p);
    return 0;
}
