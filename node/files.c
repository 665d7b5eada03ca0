#include "node/files.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/model/shard.h"
#include "common/sys/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int describe(struct node_files *f, struct msg_file *out, struct gguf *g, struct err *e) {
    struct hparams hp;
    struct hash128 model;
    struct shard_cover cover;
    int rc = hparams_read(&hp, g, e);
    if (rc == 0) rc = shard_fingerprint(g, &model, e);
    if (rc == 0) rc = shard_coverage(&cover, g, &hp, e);
    if (rc < 0) return rc;
    struct shard_info shard;
    f->part[f->n] = (struct shard_part){ .count = 0 };
    if (shard_is(g) && shard_info_read(&shard, g, NULL) == 0) f->part[f->n] = shard.part;
    *out = (struct msg_file){
        .model_lo = model.lo, .model_hi = model.hi, .has_embed = cover.embed, .has_head = cover.head
    };
    out->is_whole = !shard_is(g);
    out->has_rest = out->is_whole || f->part[f->n].rest;
    memcpy(out->layers, cover.layers, MIN(sizeof out->layers, sizeof cover.layers));
    for (int i = 0; i < gguf_n_files(g); i++) out->bytes += gguf_file_size(g, i);
    snprintf(out->name, sizeof out->name, "%.*s", MSG_NAME_MAX - 1, hp.name);
    f->n_embd = MAX(f->n_embd, hp.n_embd);
    f->n_vocab = MAX(f->n_vocab, hp.n_vocab);
    return 0;
}

int node_files_add(struct node_files *f, const char *path, struct err *e) {
    struct gguf *g = NULL;
    node_files_remove(f, path);                    /* of this name there may be another one now */
    if (f->n == MSG_FILES_MAX) return err_set(e, ERR_LIMIT, "more than %d model files", MSG_FILES_MAX);
    int rc = gguf_open(&g, path, e);
    if (rc < 0) return rc;
    rc = describe(f, &f->file[f->n], g, e);
    gguf_close(g);
    if (rc < 0) return err_wrap(e, rc, "%s", path);
    size_t n = strlen(path) + 1;
    f->path[f->n++] = memcpy(xcalloc(1, n), path, n);
    return 0;
}

static bool is_model_name(const char *name) {
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".gguf") == 0;
}

int node_files_add_folder(struct node_files *f, const char *folder, struct err *e) {
    DIR *d = opendir(folder);
    char path[1024];
    if (!d) return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s", folder);
    for (struct dirent *entry; (entry = readdir(d)) && f->n < MSG_FILES_MAX;) {
        struct err why;
        if (!is_model_name(entry->d_name)) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (node_files_add(f, path, &why) < 0) log_warn("node", "%s", why.text);
    }
    closedir(d);
    return 0;
}

void node_files_remove(struct node_files *f, const char *path) {
    uint32_t i = 0;
    while (i < f->n && strcmp(f->path[i], path) != 0) i++;
    if (i == f->n) return;
    free(f->path[i]);
    f->n--;
    for (; i < f->n; i++) {
        f->file[i] = f->file[i + 1];
        f->path[i] = f->path[i + 1];
        f->part[i] = f->part[i + 1];
    }
}

bool node_files_prune(struct node_files *f) {
    struct file_facts facts;
    uint32_t before = f->n;
    for (uint32_t i = f->n; i-- > 0;)
        if (file_facts(&facts, f->path[i], NULL) == ERR_NOTFOUND) node_files_remove(f, f->path[i]);
    return f->n < before;
}

void node_files_deinit(struct node_files *f) {
    for (uint32_t i = 0; i < f->n; i++) free(f->path[i]);
    *f = (struct node_files){ .n = 0 };
}

static bool covers(const struct msg_file *f, const struct msg_assign *a) {
    bool all = (f->has_embed || !a->has_embed) && (f->has_head || !a->has_head);
    for (uint32_t l = a->layer_begin; l < a->layer_end; l++) all &= f->layers[l / 8] >> (l % 8) & 1;
    return all && f->model_lo == a->model_lo && f->model_hi == a->model_hi;
}

/* A shard with some of the experts does for a stage that has helpers, or for a helper. */
static bool has_experts(const struct msg_file *f, const struct shard_part *p, const struct msg_assign *a) {
    bool dense = a->is_helper || (p->dense && (p->embed || !a->has_embed) && (p->head || !a->has_head));
    return p->count && p->n_range == 1 && dense && a->expert_end && p->layer_begin <= a->layer_begin &&
           p->layer_end >= a->layer_end && p->expert[0].begin <= a->expert_begin &&
           p->expert[0].end >= a->expert_end && f->model_lo == a->model_lo && f->model_hi == a->model_hi;
}

const char *node_files_find(const struct node_files *f, const struct msg_assign *a) {
    for (uint32_t i = 0; i < f->n; i++)
        if (covers(&f->file[i], a) || has_experts(&f->file[i], &f->part[i], a)) return f->path[i];
    return NULL;
}
