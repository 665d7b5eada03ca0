/* Shards back to one model: metadata as it was, tensors in their old order, expert stacks put together
 * from their ranges.
 *
 * Everything is found and checked before the first byte is written: the fingerprint of the header to be
 * must be the one that every shard names. Checksums are compared while copying; the file gets its name
 * after the last of them. */
#include "shard_tool/shard_tool.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

#define WAS "pleiades.shard.was."

enum { PIECE = 8 << 20, HEADER_MAX = 1 << 30 };

struct source {                                        /* one shard */
    struct gguf *g;
    struct shard_info info;
    struct hash_stream **hash;                         /* per tensor that was begun; NULL otherwise */
};

struct run {                                           /* consecutive experts of a tensor, or all of one */
    uint32_t source;
    uint64_t tensor, offset, size;                     /* in that shard's tensor */
    uint32_t expert_begin, expert_end;
    bool last;                                         /* of that shard's tensor: its checksum is complete */
};

struct whole {                                         /* one tensor of the model */
    struct run *run;
    uint32_t n_run;
    uint64_t ne[GGUF_DIMS_MAX];
};

struct join {
    struct source *source;
    uint32_t n_source;
    struct whole *tensor;
    uint64_t n_tensor, done, total;
    uint32_t n_expert;
    const struct shard_progress *progress;
};

/* ---- finding everything ---- */

static int open_sources(struct join *j, const struct file_names *files, struct err *e) {
    struct hparams hp;
    int rc = 0;
    j->source = xcalloc((size_t)files->n, sizeof *j->source);
    for (int i = 0; i < files->n && rc == 0; i++) {
        struct source *s = &j->source[i];
        rc = gguf_open_one(&s->g, files->name[i], e);
        if (rc < 0) break;
        j->n_source++;
        rc = shard_info_read(&s->info, s->g, e);
        if (rc == 0 && !hash_equal(s->info.model, j->source[0].info.model))
            rc = err_set(e, ERR_INVALID, "%s: belongs to another model than %s", files->name[i],
                         files->name[0]);
        if (rc == 0 && s->info.n_model_tensors != j->source[0].info.n_model_tensors)
            rc = err_set(e, ERR_CORRUPT, "%s: the model has another number of tensors than in %s",
                         files->name[i], files->name[0]);
        if (rc == 0) rc = hparams_read(&hp, s->g, e);
        s->hash = xcalloc(gguf_n_tensors(s->g), sizeof *s->hash);
    }
    if (rc == 0 && j->n_source == 0) rc = err_set(e, ERR_INVALID, "no shards were given");
    if (rc < 0) return rc;
    j->n_expert = hp.n_expert;
    j->n_tensor = j->source[0].info.n_model_tensors;
    j->tensor = xcalloc(j->n_tensor, sizeof *j->tensor);
    return 0;
}

static void add_run(struct whole *w, struct run run) {
    w->run = xrealloc(w->run, (w->n_run + 1) * sizeof *w->run);
    w->run[w->n_run++] = run;
}

static const struct gguf_tensor *tensor_of(const struct join *j, const struct run *r) {
    return gguf_tensor_at(j->source[r->source].g, r->tensor);
}

static int add_tensor(struct join *j, uint32_t source, uint64_t i, struct err *e) {
    const struct source *s = &j->source[source];
    const struct gguf_tensor *t = gguf_tensor_at(s->g, i);
    const struct shard_part *p = &s->info.part;
    struct whole *w = &j->tensor[shard_info_order(&s->info, i)];
    if (w->n_run) {
        const struct gguf_tensor *other = tensor_of(j, &w->run[0]);
        if (other->name.len != t->name.len ||
            memcmp(other->name.data, t->name.data, (size_t)t->name.len) != 0 ||
            other->type != t->type || other->n_dims != t->n_dims)
            return err_set(e, ERR_CORRUPT, "%s: tensor %.*s is another one in %s",
                           gguf_path(s->g, 0), (int)MIN(t->name.len, 96), t->name.data,
                           gguf_path(j->source[w->run[0].source].g, 0));
    }
    bool stack = shard_is_stack(p, t->name) && p->n_range > 0 && t->n_dims == 3;
    if (w->n_run && (w->run[0].expert_end > 0) != stack)
        return err_set(e, ERR_CORRUPT, "%s: tensor %.*s is whole here and divided elsewhere",
                       gguf_path(s->g, 0), (int)MIN(t->name.len, 96), t->name.data);
    memcpy(w->ne, t->ne, sizeof w->ne);
    if (!stack) {                            /* the same tensor may be in two files: the first one is taken */
        if (w->n_run == 0) add_run(w, (struct run){ source, i, 0, t->size, 0, 0, true });
        return 0;
    }
    uint64_t each = t->size / t->ne[2], at = 0;
    w->ne[2] = j->n_expert;
    for (uint32_t k = 0; k < p->n_range; k++) {
        uint64_t size = each * (p->expert[k].end - p->expert[k].begin);
        if (size > t->size - at)
            return err_set(e, ERR_CORRUPT, "%s: experts of %.*s", gguf_path(s->g, 0),
                           (int)MIN(t->name.len, 96), t->name.data);
        add_run(w, (struct run){ source, i, at, size, p->expert[k].begin, p->expert[k].end,
                                 k + 1 == p->n_range });
        at += size;
    }
    return 0;
}

static int compare_runs(const void *a, const void *b) {
    const struct run *x = a, *y = b;
    return x->expert_begin < y->expert_begin ? -1 : x->expert_begin > y->expert_begin;
}

/* Every tensor is there, every expert exactly once. */
static int check_tensors(struct join *j, struct err *e) {
    for (uint64_t i = 0; i < j->n_tensor; i++) {
        struct whole *w = &j->tensor[i];
        if (w->n_run == 0)
            return err_set(e, ERR_NOTFOUND, "tensor %llu of %llu is in none of the files",
                           (unsigned long long)i + 1, (unsigned long long)j->n_tensor);
        const struct gguf_tensor *t = tensor_of(j, &w->run[0]);
        for (uint32_t k = 0; k < w->n_run; k++) j->total += w->run[k].size;
        if (w->run[0].expert_end == 0) continue;
        qsort(w->run, w->n_run, sizeof *w->run, compare_runs);
        uint32_t next = 0;
        for (uint32_t k = 0; k < w->n_run && w->run[k].expert_begin == next; k++) next = w->run[k].expert_end;
        if (next != w->ne[2])
            return err_set(e, ERR_NOTFOUND,
                           "tensor %.*s: expert %u is in none of the files, or in two",
                           (int)MIN(t->name.len, 96), t->name.data, next);
    }
    return 0;
}

/* ---- the header ---- */

static bool starts(struct gguf_str s, const char *with) {
    return s.len >= strlen(with) && memcmp(s.data, with, strlen(with)) == 0;
}

static uint32_t old_alignment(const struct gguf *g) {
    int64_t value = GGUF_ALIGNMENT;
    const struct gguf_kv *kv = shard_was(g, "general.alignment");
    if (kv && gguf_kv_int(kv, 0, &value) < 0) return 0;
    return value > 0 && value <= GGUF_ALIGNMENT_MAX ? (uint32_t)value : 0;
}

static void put_metadata(struct gguf_writer *w, const struct gguf *g) {
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) {
        struct gguf_kv kv = *gguf_kv_at(g, i);
        char name[GGUF_NAME_MAX + 1];
        if (starts(kv.key, WAS)) {
            kv.key.data += strlen(WAS), kv.key.len -= strlen(WAS);
        } else {
            snprintf(name, sizeof name, "%.*s", (int)kv.key.len, kv.key.data);
            if (shard_own_key(kv.key) || shard_was(g, name)) continue;
        }
        if (!starts(kv.key, "general.alignment")) gguf_put_kv(w, &kv);
    }
}

static void put_all(struct gguf_writer *w, const struct join *j) {
    put_metadata(w, j->source[0].g);
    for (uint64_t i = 0; i < j->n_tensor; i++) {
        const struct gguf_tensor *t = tensor_of(j, &j->tensor[i].run[0]);
        char name[GGUF_NAME_MAX + 1];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        gguf_put_tensor(w, name, (enum dtype)t->type, t->n_dims, j->tensor[i].ne);
    }
}

/* Would the file that we are about to write be the model that the shards name? */
static int check_model(const struct join *j, uint32_t alignment, struct err *e) {
    struct gguf_writer *w;
    struct gguf *g = NULL;
    struct hash128 model;
    struct buf header;
    int rc = gguf_writer_new(&w, NULL, alignment, e);
    if (rc < 0) return rc;
    buf_init(&header, HEADER_MAX);
    put_all(w, j);
    rc = gguf_writer_header(w, &header, e);
    if (rc == 0) rc = gguf_open_header(&g, header.data, header.size, gguf_writer_end(w), "joined model", e);
    if (rc == 0) rc = shard_fingerprint(g, &model, e);
    if (rc == 0 && !hash_equal(model, j->source[0].info.model))
        rc = err_set(e, ERR_CORRUPT,
                     "the shards do not make up the model that they name: metadata is damaged");
    gguf_close(g);
    buf_deinit(&header);
    gguf_writer_abort(w);
    return rc;
}

/* ---- data ---- */

static int copy_run(struct join *j, const struct run *r, struct gguf_writer *w, struct err *e) {
    struct source *s = &j->source[r->source];
    const struct gguf_tensor *t = gguf_tensor_at(s->g, r->tensor);
    struct hash_stream **hash = &s->hash[r->tensor];
    if (!*hash) *hash = hash_stream_new();
    int rc = 0;
    for (uint64_t at = 0; at < r->size && rc == 0; at += PIECE) {
        size_t n = (size_t)MIN(r->size - at, (uint64_t)PIECE);
        hash_stream_add(*hash, t->data + r->offset + at, n);
        rc = gguf_writer_data(w, t->data + r->offset + at, n, e);
        j->done += n;
        if (rc == 0 && j->progress && j->progress->tell &&
            !j->progress->tell(j->progress->ctx, gguf_path(s->g, 0), j->done, j->total))
            rc = err_set(e, ERR_CANCELLED, "stopped");
    }
    if (rc < 0 || !r->last) return rc;
    gguf_release(s->g, t);
    if (!hash_equal(hash_stream_value(*hash), shard_info_hash(&s->info, r->tensor)))
        rc = err_set(e, ERR_CORRUPT, "%s: tensor %.*s is damaged", gguf_path(s->g, 0),
                     (int)MIN(t->name.len, 96), t->name.data);
    hash_stream_free(*hash);
    *hash = NULL;
    return rc;
}

static int write_model(struct join *j, const char *path, uint32_t alignment, struct err *e) {
    struct gguf_writer *w;
    int rc = gguf_writer_new(&w, path, alignment, e);
    if (rc < 0) return rc;
    put_all(w, j);
    rc = gguf_writer_begin_data(w, e);
    for (uint64_t i = 0; i < j->n_tensor && rc == 0; i++)
        for (uint32_t k = 0; k < j->tensor[i].n_run && rc == 0; k++)
            rc = copy_run(j, &j->tensor[i].run[k], w, e);
    if (rc == 0) return gguf_writer_finish(w, e);
    gguf_writer_abort(w);
    return rc;
}

static int check_room(const struct join *j, const char *path, struct err *e) {
    uint64_t room;
    int rc = file_free_bytes(path, &room, e);
    if (rc == 0 && j->total > room)
        rc = err_set(e, ERR_IO, "not enough room on the disk: %llu bytes are needed, %llu are free",
                     (unsigned long long)j->total, (unsigned long long)room);
    return rc;
}

static void join_close(struct join *j) {
    for (uint32_t i = 0; i < j->n_source; i++) {
        struct source *s = &j->source[i];
        for (uint64_t k = 0; s->hash && k < gguf_n_tensors(s->g); k++) hash_stream_free(s->hash[k]);
        free(s->hash);
        gguf_close(s->g);
    }
    for (uint64_t i = 0; j->tensor && i < j->n_tensor; i++) free(j->tensor[i].run);
    free(j->tensor);
    free(j->source);
}

int shard_join(const struct file_names *files, const char *path,
               const struct shard_progress *progress, struct shard_join_result *out,
               struct err *e) {
    struct join j = { .progress = progress };
    uint32_t alignment = 0;
    int rc = open_sources(&j, files, e);
    for (uint32_t s = 0; s < j.n_source && rc == 0; s++)
        for (uint64_t i = 0; i < gguf_n_tensors(j.source[s].g) && rc == 0; i++) rc = add_tensor(&j, s, i, e);
    if (rc == 0) rc = check_tensors(&j, e);
    if (rc == 0 && (alignment = old_alignment(j.source[0].g)) == 0)
        rc = err_set(e, ERR_CORRUPT, "the model's alignment is damaged");
    if (rc == 0) rc = check_model(&j, alignment, e);
    if (rc == 0) rc = check_room(&j, path, e);
    if (rc == 0) rc = write_model(&j, path, alignment, e);
    *out = (struct shard_join_result){ j.total, j.n_tensor };
    join_close(&j);
    return rc;
}
