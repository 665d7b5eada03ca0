#include "common/model/share.h"

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/model/shard.h"

#include <stdio.h>
#include <stdlib.h>

enum { HEADER_MAX = 1 << 30 };

struct share {
    const struct gguf *g;
    struct hash128 model;
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

int share_open(struct share **out, const struct gguf *g, struct err *e) {
    *out = NULL;
    if (shard_is(g))
        return err_set(e, ERR_UNSUPPORTED, "%s: is a shard; only whole models are shared", gguf_path(g, 0));
    int rc = check_tensors(g, e);
    if (rc < 0) return err_wrap(e, rc, "%s", gguf_path(g, 0));
    struct share *s = xcalloc(1, sizeof *s);
    s->g = g;
    buf_init(&s->made, HEADER_MAX);
    rc = shard_fingerprint(g, &s->model, e);
    if (rc == 0 && gguf_n_files(g) == 1) take_header(s);
    else if (rc == 0) rc = make_header(s, e);
    if (rc < 0) {
        share_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void share_close(struct share *s) {
    if (!s) return;
    buf_deinit(&s->made);
    free(s);
}

struct hash128 share_model(const struct share *s) {
    return s->model;
}

/* ---- ranges ---- */

int share_find(const struct share *s, const struct share_ask *ask, struct share_part *out, struct err *e) {
    const uint8_t *data = s->header;
    *out = (struct share_part){ .total_bytes = s->header_bytes, .file_bytes = s->file_bytes };
    if (!hash_equal(ask->model, s->model)) return err_set(e, ERR_NOTFOUND, "another model than the one here");
    if (ask->tensor != SHARE_HEADER) {
        if (ask->tensor >= gguf_n_tensors(s->g))
            return err_set(e, ERR_INVALID, "tensor %u of %llu", ask->tensor,
                           (unsigned long long)gguf_n_tensors(s->g));
        const struct gguf_tensor *t = gguf_tensor_at(s->g, ask->tensor);
        data = t->data;
        out->total_bytes = t->size;
    }
    if (ask->offset >= out->total_bytes || ask->bytes == 0)
        return err_set(e, ERR_INVALID, "byte %llu of %llu", (unsigned long long)ask->offset,
                       (unsigned long long)out->total_bytes);
    uint64_t left = out->total_bytes - ask->offset;
    out->data = data + ask->offset;
    out->bytes = (uint32_t)MIN((uint64_t)ask->bytes, left);
    out->last = out->bytes == left;
    return 0;
}
