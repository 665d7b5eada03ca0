/* scripted_serve - `pleiades serve` with a script in place of the model, for tests of clients.
 *
 *     scripted-serve --script FILE [every option of pleiades serve]
 *
 * Everything but the stage is the real thing: endpoint, service, scheduler, links, node, sampler, parser.
 * The model file gives tokenizer and dimensions (a tiny synthetic one will do); its weights are not read.
 * The one change is the stage in this process: this program brings its own local_stage, so the linker
 * leaves cli/local.o in the library. See tests/harness/scripted_stage.h for the script. */
#define local_stage real_stage
#include "cli/local.c"
#undef local_stage

#include "cli/cmd.h"
#include "tests/harness/scripted_stage.h"

extern const struct service_local local_stage;

static struct script script;

static int scripted_start(void **out, const struct service_local_config *c, struct err *e) {
    struct service_local_config config = *c;
    config.stage = &script.factory;
    return real_stage.start(out, &config, e);
}

static void scripted_stop(void *node) {
    real_stage.stop(node);
}

const struct service_local local_stage = { .start = scripted_start, .stop = scripted_stop };

int main(int argc, char **argv) {
    struct err e = { 0 };
    const char *path = NULL;
    int n = 0;
    for (int i = 0; i < argc; i++) {              /* our own option goes, the others stay */
        if (strcmp(argv[i], "--script") == 0 && i + 1 < argc) path = argv[++i];
        else argv[n++] = argv[i];
    }
    argv[n] = NULL;
    if (script_open(&script, path, &e) < 0) {
        fprintf(stderr, "scripted-serve: %s\n", e.text);
        return 1;
    }
    int status = cmd_serve(n, argv);
    script_close(&script);
    return status;
}
