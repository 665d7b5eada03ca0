/* service_give - weights for nodes that have none: what this process gives of its own model file, and what
 * all together can give. Loop thread. */
#include "coordinator/service_private.h"

#include "common/base/log.h"
#include "common/share/share_server.h"

#include <stdio.h>

/* ---- what there is ---- */

/* The header always, if our file is a whole one; the tensors unless the user keeps them here. */
void service_gives(const struct service *s, struct msg_source *out) {
    memset(out, 0, sizeof *out);                   /* holes as well: it is compared */
    if (!s->share_server) return;
    snprintf(out->hop.name, sizeof out->hop.name, "the coordinator");
    out->has_header = true;
    if (s->config.keeps_weights) return;
    out->has_embed = out->has_head = out->has_rest = true;
    memset(out->layers, 0xff, sizeof out->layers);
}

void service_given(const struct service *s, const struct coord_node_info *node, uint32_t n_node,
                   struct msg_source *out) {
    service_gives(s, out);
    for (uint32_t i = 0; i < n_node; i++) {
        if (!node[i].hello->gives) continue;
        for (uint32_t k = 0; k < node[i].hello->n_file; k++) {
            const struct msg_file *f = &node[i].hello->file[k];
            if (f->model_lo != s->model.lo || f->model_hi != s->model.hi || !node[i].hello->address[0])
                continue;
            for (size_t l = 0; l < sizeof out->layers; l++) out->layers[l] |= f->layers[l];
            out->has_embed |= f->has_embed;
            out->has_head |= f->has_head;
            out->has_header |= f->is_whole;
        }
    }
}

/* ---- giving ---- */

static int find(void *ctx, const struct share_ask *ask, struct share_part *out) {
    struct service *s = ctx;
    if (s->config.keeps_weights && !ask->header) return ERR_NOTFOUND;
    return share_find(s->share, ask, out, NULL);
}

/* Anything of ours that goes out beside the core. The payload is taken. */
static void send(void *ctx, uint32_t link, struct msg *m, struct payload payload) {
    struct service *s = ctx;
    m->epoch = coord_view(s->coord).epoch;
    m->incarnation = s->coord_config.incarnation;
    service_send_payload(s, link, m, payload);
}

void service_give_open(struct service *s, uint32_t n_slot_left) {
    struct share_server_config c = {
        .loop = s->loop, .slots = s->slots, .n_slot_left = n_slot_left, .find = find, .send = send, .ctx = s
    };
    struct err e;
    int rc = share_open(&s->share, s->gguf, &e);
    if (rc == 0 && !share_is_whole(s->share)) rc = err_set(&e, ERR_UNSUPPORTED, "this file is a shard");
    if (rc == 0) rc = share_server_new(&s->share_server, &c, &e);
    if (rc < 0) log_warn("coordinator", "weights are not given to nodes from here: %s", e.text);
}

void service_give_close(struct service *s) {
    share_server_free(s->share_server);
    s->share_server = NULL;
    share_close(s->share);
    s->share = NULL;
}
