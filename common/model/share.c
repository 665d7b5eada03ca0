#include "common/model/share.h"

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/model/shard.h"

#include <stdio.h>
#include <stdlib.h>

enum { HEADER_MAX = 1 << 30 };

struct named { uint64_t hash, tensor; };

struct share {
    const struct gguf *g;
    struct hash128 model;
    struct named *name;                            /* of all tensors, by hash */
    struct shard_part part;                        /* of a shard; count 0: a whole model */
    uint32_t n_expert;
    struct buf made;                               /* of a model in several files */
    const uint8_t *header;
    uint64_t header_bytes, file_bytes;
};

/* ---- the header ---- */

static void put_metadata(struct gguf_writer *w, const struct gguf *g) {
    for (uint64_t i = 0; i < gguf_n_kv(g); i++)
        if (!shard_own_key(gguf_kv_at(g, i)->key)) gguf_put_kv(w, gguf_kv_at(g, i));
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[GGUF_NAME_MAX + 1];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        gguf_put_tensor(w, name, (enum dtype)t->type, t->n_dims, t->ne);
    }
}

static int make_header(struct share *s, struct err *e) {
    struct gguf_writer *w;
    uint32_t alignment = GGUF_ALIGNMENT;
    if (gguf_find(s->g, "general.alignment")) {
        int rc = gguf_get_u32(s->g, "general.alignment", &alignment, e);
        if (rc < 0) return rc;
    }
    int rc = gguf_writer_new(&w, NULL, alignment, e);
    if (rc < 0) return rc;
    put_metadata(w, s->g);
    rc = gguf_writer_header(w, &s->made, e);
    s->header = (const uint8_t *)s->made.data;
    s->header_bytes = s->made.size;
    s->file_bytes = rc < 0 ? 0 : gguf_writer_end(w);
    gguf_writer_abort(w);
    return rc;
}

/* What lies before the first tensor. */
static void take_header(struct share *s) {
    s->file_bytes = s->header_bytes = gguf_file_size(s->g, 0);
    for (uint64_t i = 0; i < gguf_n_tensors(s->g); i++)
        s->header_bytes = MIN(s->header_bytes, gguf_tensor_at(s->g, i)->file_offset);
    s->header = gguf_file_data(s->g, 0);
}

static int check_tensors(const struct gguf *g, struct err *e) {
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (!t->data || t->size == 0)
            return err_set(e, ERR_UNSUPPORTED, "tensor %.*s: no data, or of an unknown type",
                           (int)MIN(t->name.len, 96), t->name.data);
    }
    return 0;
}

/* ---- names ---- */

uint64_t share_name_hash(struct gguf_str name) {
    return hash_64(name.data, (size_t)name.len, 0);
}

static int by_hash(const void *a, const void *b) {
    const struct named *x = a, *y = b;
    return x->hash < y->hash ? -1 : x->hash > y->hash;
}

static int index_names(struct share *s, struct err *e) {
    uint64_t n = gguf_n_tensors(s->g);
    s->name = xcalloc(n, sizeof *s->name);
    for (uint64_t i = 0; i < n; i++)
        s->name[i] = (struct named){ share_name_hash(gguf_tensor_at(s->g, i)->name), i };
    if (n) qsort(s->name, n, sizeof *s->name, by_hash);
    for (uint64_t i = 1; i < n; i++)
        if (s->name[i].hash == s->name[i - 1].hash)
            return err_set(e, ERR_CORRUPT, "two tensors have one name");
    return 0;
}

static const struct gguf_tensor *find_name(const struct share *s, uint64_t hash) {
    struct named key = { .hash = hash };
    uint64_t n = gguf_n_tensors(s->g);
    const struct named *found = n ? bsearch(&key, s->name, n, sizeof *s->name, by_hash) : NULL;
    return found ? gguf_tensor_at(s->g, found->tensor) : NULL;
}

/* ---- life ---- */

static int read_shard(struct share *s, struct err *e) {
    struct shard_info info;
    struct hparams hp;
    int rc = shard_info_read(&info, s->g, e);
    if (rc == 0) rc = hparams_read(&hp, s->g, e);
    if (rc < 0) return rc;
    s->part = info.part;
    s->n_expert = hp.n_expert;
    return 0;
}

static int open_file(struct share *s, struct err *e) {
    int rc = check_tensors(s->g, e);
    if (rc == 0) rc = index_names(s, e);
    if (rc == 0) rc = shard_fingerprint(s->g, &s->model, e);
    if (rc < 0) return rc;
    if (shard_is(s->g)) return read_shard(s, e);
    if (gguf_n_files(s->g) > 1) return make_header(s, e);
    take_header(s);
    return 0;
}

int share_open(struct share **out, const struct gguf *g, struct err *e) {
    struct share *s = xcalloc(1, sizeof *s);
    *out = NULL;
    s->g = g;
    buf_init(&s->made, HEADER_MAX);
    int rc = open_file(s, e);
    if (rc < 0) {
        share_close(s);
        return err_wrap(e, rc, "%s", gguf_path(g, 0));
    }
    *out = s;
    return 0;
}

void share_close(struct share *s) {
    if (!s) return;
    buf_deinit(&s->made);
    free(s->name);
    free(s);
}

struct hash128 share_model(const struct share *s) {
    return s->model;
}

bool share_is_whole(const struct share *s) {
    return s->part.count == 0;
}

/* ---- ranges ---- */

struct run { const uint8_t *data; uint64_t begin, end, total; };     /* bytes begin..end-1 of the whole */

/* The run of a tensor's bytes in which `offset` lies; of a stack of experts a shard may hold some. */
static bool find_run(const struct share *s, const struct gguf_tensor *t, uint64_t offset, struct run *out) {
    *out = (struct run){ t->data, 0, t->size, t->size };
    if (share_is_whole(s) || !shard_is_stack(&s->part, t->name)) return true;
    uint64_t each = t->size / MAX(t->ne[2], UINT64_C(1));
    out->total = each * s->n_expert;
    for (uint32_t i = 0; i < s->part.n_range; i++) {
        out->begin = each * s->part.expert[i].begin;
        out->end = each * s->part.expert[i].end;
        if (offset >= out->begin && offset < out->end) return true;
        out->data += out->end - out->begin;
    }
    return false;
}

int share_find(const struct share *s, const struct share_ask *ask, struct share_part *out, struct err *e) {
    struct run run = { s->header, 0, s->header_bytes, s->header_bytes };
    *out = (struct share_part){ .file_bytes = s->file_bytes };
    if (!hash_equal(ask->model, s->model)) return err_set(e, ERR_NOTFOUND, "another model than the one here");
    const struct gguf_tensor *t = ask->header ? NULL : find_name(s, ask->name);
    if (ask->header ? !s->header : !t) return err_set(e, ERR_NOTFOUND, "not in this file");
    bool held = ask->header || find_run(s, t, ask->offset, &run);
    out->total_bytes = run.total;
    if (ask->offset >= run.total || ask->bytes == 0)
        return err_set(e, ERR_INVALID, "byte %llu of %llu", (unsigned long long)ask->offset,
                       (unsigned long long)run.total);
    uint64_t left = run.end - ask->offset;
    if (!held || (ask->bytes > left && run.end < run.total))
        return err_set(e, ERR_NOTFOUND, "not in this file");
    out->data = run.data + (ask->offset - run.begin);
    out->bytes = (uint32_t)MIN((uint64_t)ask->bytes, left);
    out->last = ask->offset + out->bytes == run.total;
    return 0;
}
