#include "cli/local.h"

#include "common/base/check.h"
#include "node/main.h"

#include <pthread.h>

struct local {
    struct node_process *node;
    pthread_t thread;
};

static void *local_main(void *ctx) {
    node_process_run(((struct local *)ctx)->node);
    return NULL;
}

static int local_start(void **out, const struct service_local_config *c, struct err *e) {
    struct node_process_config config = { .join = c->join,
                                          .name = c->name,
                                          .bind = c->bind,
                                          .cluster_keys = c->key_path,
                                          .model_path = c->model_path,
                                          .backend = c->backend,
                                          .memory_bytes = c->memory_bytes,
                                          .n_threads = c->n_threads,
                                          .measure = c->bind != NULL,  /* alone there is nothing to compare */
                                          .stage = c->stage,
                                          .keeps_weights = true,       /* the coordinator gives them */
                                          .net = c->net };
    struct local *l = xcalloc(1, sizeof *l);
    int rc = node_process_new(&l->node, &config, e);
    if (rc == 0 && pthread_create(&l->thread, NULL, local_main, l) != 0)
        rc = err_set(e, ERR_NOMEM, "no thread for the stage in this process");
    if (rc < 0) {
        node_process_free(l->node);
        free(l);
        return rc;
    }
    *out = l;
    return 0;
}

static void local_stop(void *node) {
    struct local *l = node;
    node_process_stop(l->node);
    pthread_join(l->thread, NULL);
    node_process_free(l->node);
    free(l);
}

const struct service_local local_stage = { .start = local_start, .stop = local_stop };
