/* Reading every tensor of every shard and comparing with the checksums that its header holds. */
#include "shard_tool/shard_tool.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

enum { PIECE = 8 << 20 };

struct verify_run {
    const struct shard_verify *v;
    struct shard_verify_result *result;
    struct hash_stream *hash;
    uint64_t done, total;
    struct hash128 model;                              /* of the first file */
    uint32_t count, n_indexes;
    bool *index;                                       /* which of `count` files were there */
};

static void damage(struct verify_run *r, const char *path, const char *what) {
    r->result->n_damaged++;
    if (r->v->damage) r->v->damage(r->v->damage_ctx, path, what);
}

static int verify_tensor(struct verify_run *r, const char *path, const struct gguf *g,
                         const struct gguf_tensor *t, struct hash128 want, struct err *e) {
    const struct shard_progress *p = &r->v->progress;
    hash_stream_reset(r->hash);
    for (uint64_t at = 0; at < t->size; at += PIECE) {
        size_t n = (size_t)MIN(t->size - at, (uint64_t)PIECE);
        hash_stream_add(r->hash, t->data + at, n);
        r->done += n;
        if (p->tell && !p->tell(p->ctx, path, r->done, r->total)) return err_set(e, ERR_CANCELLED, "stopped");
    }
    gguf_release(g, t);
    r->result->n_tensors++;
    r->result->bytes += t->size;
    if (hash_equal(hash_stream_value(r->hash), want)) return 0;
    char what[160];
    snprintf(what, sizeof what, "tensor %.*s (%llu bytes at %llu) is damaged",
             (int)MIN(t->name.len, 96), t->name.data, (unsigned long long)t->size,
             (unsigned long long)t->file_offset);
    damage(r, path, what);
    return 0;
}

/* All files of one split belong to one model, and no number comes twice. */
static void check_place(struct verify_run *r, const char *path, const struct shard_info *s) {
    if (!r->index) {
        r->model = s->model;
        r->count = s->part.count;
        r->index = xcalloc(r->count, sizeof *r->index);
    }
    if (!hash_equal(s->model, r->model)) damage(r, path, "belongs to another model than the files before it");
    else if (s->part.count != r->count) damage(r, path, "belongs to another split than the files before it");
    else if (r->index[s->part.index]) damage(r, path, "the same part was there already");
    else r->index[s->part.index] = true, r->n_indexes++;
}

/* The stage of a file is the number of files with dense tensors before it: a helper's comes behind its
 * lead's. */
static int verify_file(struct verify_run *r, const char *path, int *stage, struct err *e) {
    struct gguf *g;
    struct shard_info info;
    struct err why;
    int rc = gguf_open_one(&g, path, &why);
    if (rc == 0) rc = shard_info_read(&info, g, &why);
    if (rc < 0) {
        damage(r, path, why.text);
        gguf_close(g);
        return 0;
    }
    *stage += info.part.dense;
    if (r->v->stage < 0 || r->v->stage == *stage) {
        r->result->n_files++;
        if (r->v->stage < 0) check_place(r, path, &info);
        for (uint64_t i = 0; i < gguf_n_tensors(g) && rc == 0; i++)
            rc = verify_tensor(r, path, g, gguf_tensor_at(g, i), shard_info_hash(&info, i), e);
    }
    gguf_close(g);
    return rc;
}

static void check_complete(struct verify_run *r) {
    char what[96];
    if (r->v->stage >= 0 || !r->index || r->n_indexes == r->count) return;
    for (uint32_t i = 0; i < r->count; i++) {
        if (r->index[i]) continue;
        snprintf(what, sizeof what, "part %u of %u is missing", i + 1, r->count);
        damage(r, "split", what);
    }
}

int shard_verify(const struct shard_verify *v, struct shard_verify_result *out, struct err *e) {
    struct verify_run r = { .v = v, .result = out, .hash = hash_stream_new() };
    int rc = 0, stage = -1;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < v->files->n; i++) {
        struct file_facts facts;
        if (file_facts(&facts, v->files->name[i], NULL) == 0) r.total += facts.size;
    }
    for (int i = 0; i < v->files->n && rc == 0; i++) rc = verify_file(&r, v->files->name[i], &stage, e);
    if (rc == 0) check_complete(&r);
    if (rc == 0 && v->stage >= 0 && out->n_files == 0 && out->n_damaged == 0)
        rc = err_set(e, ERR_NOTFOUND, "none of the files belongs to stage %d", v->stage);
    hash_stream_free(r.hash);
    free(r.index);
    return rc;
}
