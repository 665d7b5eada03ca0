#include "node/give.h"

#include "common/base/check.h"
#include "common/base/log.h"

#include <stdlib.h>

enum { OPEN_MAX = 2 * MSG_FILES_MAX };

struct opened { char *path; struct gguf *g; struct share *share; };   /* share NULL: cannot be read */

struct give {
    struct give_config config;
    struct share_server *server;
    struct opened file[OPEN_MAX];
    uint32_t n;
};

static void close_file(struct give *g, uint32_t i) {
    share_close(g->file[i].share);
    gguf_close(g->file[i].g);
    free(g->file[i].path);
    g->file[i] = g->file[--g->n];
}

static bool is_listed(const struct give *g, const char *path) {
    for (uint32_t i = 0; i < g->config.files->n; i++)
        if (strcmp(g->config.files->path[i], path) == 0) return true;
    return false;
}

void give_files_changed(struct give *g) {
    if (!share_server_is_idle(g->server)) return;  /* once more when it is */
    for (uint32_t i = g->n; i-- > 0;)
        if (!is_listed(g, g->file[i].path)) close_file(g, i);
}

/* A file that cannot be read is told once, and stays in the table so that it is not tried again. */
static struct opened *open_file(struct give *g, const char *path) {
    struct err e;
    for (uint32_t i = 0; i < g->n; i++)
        if (strcmp(g->file[i].path, path) == 0) return &g->file[i];
    if (g->n == OPEN_MAX) return NULL;
    struct opened *o = &g->file[g->n++];
    size_t n = strlen(path) + 1;
    *o = (struct opened){ .path = memcpy(xcalloc(1, n), path, n) };
    int rc = gguf_open(&o->g, path, &e);
    if (rc == 0) rc = share_open(&o->share, o->g, &e);
    if (rc < 0) log_warn("node", "not given to others: %s", e.text);
    return o;
}

static int find(void *ctx, const struct share_ask *ask, struct share_part *out) {
    struct give *g = ctx;
    int rc = ERR_NOTFOUND;
    give_files_changed(g);
    for (uint32_t i = 0; i < g->config.files->n; i++) {
        const struct msg_file *f = &g->config.files->file[i];
        if (f->model_lo != ask->model.lo || f->model_hi != ask->model.hi) continue;
        struct opened *o = open_file(g, g->config.files->path[i]);
        int one = o && o->share ? share_find(o->share, ask, out, NULL) : ERR_NOTFOUND;
        if (one == 0) return 0;
        if (one != ERR_NOTFOUND) rc = one;
    }
    return rc;
}

static void sent(void *ctx, uint32_t link, struct msg *m, struct payload payload) {
    struct give *g = ctx;
    g->config.send(g->config.ctx, link, m, payload);
    give_files_changed(g);
}

void give_on_get(struct give *g, uint32_t link, const struct msg_weights_get *get) {
    share_server_on_get(g->server, link, get);
}

void give_on_closed(struct give *g, uint32_t link) {
    share_server_on_closed(g->server, link);
}

int give_new(struct give **out, const struct give_config *config, struct err *e) {
    struct give *g = xcalloc(1, sizeof *g);
    *out = NULL;
    g->config = *config;
    struct share_server_config c = { .loop = config->loop,
                                     .slots = config->slots,
                                     .n_slot_left = config->n_slot_left,
                                     .bytes_per_s = config->bytes_per_s,
                                     .find = find,
                                     .send = sent,
                                     .ctx = g };
    int rc = share_server_new(&g->server, &c, e);
    if (rc < 0) {
        free(g);
        return rc;
    }
    *out = g;
    return 0;
}

void give_free(struct give *g) {
    if (!g) return;
    share_server_free(g->server);
    g->server = NULL;
    while (g->n) close_file(g, 0);
    free(g);
}
