/* Writing GGUF v3: the header is collected in memory (it is small), the data streams through the file
 * writer. The first mistake or failure sticks and is reported by begin_data, data and finish, so the
 * gguf_put_* need no checking. */
#include "common/model/gguf.h"
#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/sys/file.h"

enum { HEADER_MAX = 1 << 30 };

struct gguf_writer {
    struct file_writer *file;                         /* NULL: only a header is wanted, into `out` */
    struct buf *out;
    uint64_t data_start;
    uint32_t alignment;
    uint64_t n_kv, n_tensors;
    struct buf kvs, infos;
    /* offset: in the data area, then (after begin) absolute */
    struct slot { uint64_t offset, size; } *slots;
    uint64_t data_size;                               /* of all slots, padded */
    uint64_t slot_i, slot_used;                       /* where the next byte of data goes */
    bool began;
    int rc;
    struct err err;
};

static void put32(struct buf *b, uint32_t value) { buf_add(b, &value, sizeof value); }
static void put64(struct buf *b, uint64_t value) { buf_add(b, &value, sizeof value); }

static void put_text(struct buf *b, const char *data, uint64_t len) {
    put64(b, len);
    buf_add(b, data, len);
}

static void fail(struct gguf_writer *w, int code, const char *what, const char *name) {
    if (w->rc == 0) w->rc = err_set(&w->err, code, "%s: %s", name, what);
}

int gguf_writer_new(struct gguf_writer **out, const char *path, uint32_t alignment, struct err *e) {
    *out = NULL;
    if (alignment == 0 || alignment > GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return err_set(e, ERR_INVALID, "alignment %u is not a power of two up to %d", alignment,
                       GGUF_ALIGNMENT_MAX);
    struct file_writer *file = NULL;
    int rc = path ? file_writer_new(&file, path, e) : 0;
    if (rc < 0) return rc;
    struct gguf_writer *w = xcalloc(1, sizeof *w);
    w->file = file;
    w->alignment = alignment;
    buf_init(&w->kvs, HEADER_MAX);
    buf_init(&w->infos, HEADER_MAX);
    *out = w;
    if (alignment != GGUF_ALIGNMENT) gguf_put_u32(w, "general.alignment", alignment);
    return 0;
}

/* ---- metadata ---- */

static void put_key(struct gguf_writer *w, const char *key, size_t len, enum gguf_type type) {
    CHECK(!w->began);
    put_text(&w->kvs, key, len);
    put32(&w->kvs, type);
    w->n_kv++;
}

static void put_scalar(struct gguf_writer *w, const char *key, enum gguf_type type, const void *value) {
    put_key(w, key, strlen(key), type);
    buf_add(&w->kvs, value, gguf_type_size(type));
}

void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t value) {
    put_scalar(w, key, GGUF_U32, &value);
}
void gguf_put_u64(struct gguf_writer *w, const char *key, uint64_t value) {
    put_scalar(w, key, GGUF_U64, &value);
}
void gguf_put_u16(struct gguf_writer *w, const char *key, uint16_t value) {
    put_scalar(w, key, GGUF_U16, &value);
}
void gguf_put_i32(struct gguf_writer *w, const char *key, int32_t value) {
    put_scalar(w, key, GGUF_I32, &value);
}
void gguf_put_f32(struct gguf_writer *w, const char *key, float value) {
    put_scalar(w, key, GGUF_F32, &value);
}

void gguf_put_bool(struct gguf_writer *w, const char *key, bool value) {
    uint8_t byte = value;
    put_scalar(w, key, GGUF_BOOL, &byte);
}

void gguf_put_str(struct gguf_writer *w, const char *key, const char *value, size_t len) {
    put_key(w, key, strlen(key), GGUF_STRING);
    put_text(&w->kvs, value, len);
}

static void put_array_head(struct gguf_writer *w, const char *key, enum gguf_type type, uint64_t n) {
    put_key(w, key, strlen(key), GGUF_ARRAY);
    put32(&w->kvs, type);
    put64(&w->kvs, n);
}

void gguf_put_array(struct gguf_writer *w, const char *key, enum gguf_type type, const void *values,
                    uint64_t n) {
    CHECK(gguf_type_size(type) != 0);
    put_array_head(w, key, type, n);
    buf_add(&w->kvs, values, (size_t)n * gguf_type_size(type));
}

void gguf_put_strs(struct gguf_writer *w, const char *key, const struct gguf_str *values, uint64_t n) {
    put_array_head(w, key, GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) put_text(&w->kvs, values[i].data, values[i].len);
}

void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv) {
    put_key(w, kv->key.data, kv->key.len, kv->type);
    if (kv->type == GGUF_ARRAY) {
        put32(&w->kvs, kv->array_type);
        put64(&w->kvs, kv->n);
    }
    buf_add(&w->kvs, kv->data, (size_t)(kv->end - kv->data));
}

/* ---- tensors ---- */

/* Bytes of a tensor, or 0 with the failure noted. */
static uint64_t tensor_size(struct gguf_writer *w, const char *name, enum dtype type, uint32_t n_dims,
                            const uint64_t *ne) {
    uint64_t size;
    if (n_dims < 1 || n_dims > GGUF_DIMS_MAX)
        fail(w, ERR_INVALID, "1 to 4 dimensions are possible", name);
    else if (!gguf_tensor_size(type, n_dims, ne, &size))
        fail(w, ERR_INVALID, "unknown type, empty, too large, or a row that is not whole blocks", name);
    else
        return size;
    return 0;
}

void gguf_put_tensor(struct gguf_writer *w, const char *name, enum dtype type, uint32_t n_dims,
                     const uint64_t *ne) {
    CHECK(!w->began);
    uint64_t size = tensor_size(w, name, type, n_dims, ne);
    if (size == 0) return;
    if ((w->n_tensors & (w->n_tensors - 1)) == 0)     /* full at every power of two */
        w->slots = xrealloc(w->slots, MAX(1, 2 * (size_t)w->n_tensors) * sizeof *w->slots);
    w->slots[w->n_tensors++] = (struct slot){ w->data_size, size };
    put_text(&w->infos, name, strlen(name));
    put32(&w->infos, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) put64(&w->infos, ne[i]);
    put32(&w->infos, type);
    put64(&w->infos, w->data_size);
    w->data_size += ALIGN_UP(size, (uint64_t)w->alignment);
}

static int sticky(const struct gguf_writer *w, struct err *e) {
    if (w->rc < 0 && e) *e = w->err;
    return w->rc;
}

static int emit(struct gguf_writer *w, const void *data, size_t size) {
    if (w->rc == 0 && w->file) w->rc = file_writer_write(w->file, data, size, &w->err);
    else if (w->rc == 0 && buf_add(w->out, data, size) < 0)
        fail(w, w->out->rc, "header is too large", "GGUF");
    return w->rc;
}

static int emit_padding(struct gguf_writer *w, uint64_t size) {
    static const uint8_t zeros[4096];
    uint64_t padding = ALIGN_UP(size, (uint64_t)w->alignment) - size;
    for (; padding > 0 && w->rc == 0; padding -= MIN(padding, sizeof zeros))
        emit(w, zeros, (size_t)MIN(padding, sizeof zeros));
    return w->rc;
}

int gguf_writer_begin_data(struct gguf_writer *w, struct err *e) {
    CHECK(!w->began);
    if (w->kvs.rc < 0 || w->infos.rc < 0) fail(w, ERR_LIMIT, "header is too large", "GGUF");
    if (w->rc < 0) return sticky(w, e);
    struct buf head;
    buf_init(&head, 64);
    buf_add(&head, "GGUF", 4);
    put32(&head, 3);
    put64(&head, w->n_tensors);
    put64(&head, w->n_kv);
    uint64_t end = head.size + w->kvs.size + w->infos.size;
    emit(w, head.data, head.size);
    emit(w, w->kvs.data, w->kvs.size);
    emit(w, w->infos.data, w->infos.size);
    emit_padding(w, end);
    buf_deinit(&head);
    w->data_start = ALIGN_UP(end, (uint64_t)w->alignment);
    for (uint64_t i = 0; i < w->n_tensors; i++) w->slots[i].offset += w->data_start;
    w->began = true;
    return sticky(w, e);
}

int gguf_writer_header(struct gguf_writer *w, struct buf *out, struct err *e) {
    CHECK(!w->file);
    w->out = out;
    return gguf_writer_begin_data(w, e);
}

uint64_t gguf_writer_end(const struct gguf_writer *w) {
    CHECK(w->began);
    return w->data_start + w->data_size;
}

uint64_t gguf_writer_tensor_offset(const struct gguf_writer *w, uint64_t i) {
    CHECK(w->began && i < w->n_tensors);
    return w->slots[i].offset;
}

int gguf_writer_data(struct gguf_writer *w, const void *data, size_t size, struct err *e) {
    CHECK(w->began && w->file);
    const uint8_t *from = data;
    while (size > 0 && w->rc == 0) {
        if (w->slot_i == w->n_tensors) {
            fail(w, ERR_INVALID, "more bytes than the tensors hold", "tensor data");
            break;
        }
        uint64_t whole = w->slots[w->slot_i].size, left = whole - w->slot_used;
        size_t n = (size_t)MIN(left, size);
        emit(w, from, n);
        w->slot_used += n;
        from += n;
        size -= n;
        if (n < left) continue;
        emit_padding(w, whole);
        w->slot_i++;
        w->slot_used = 0;
    }
    return sticky(w, e);
}

static void writer_free(struct gguf_writer *w) {
    buf_deinit(&w->kvs);
    buf_deinit(&w->infos);
    free(w->slots);
    free(w);
}

int gguf_writer_finish(struct gguf_writer *w, struct err *e) {
    if (w->rc == 0 && (!w->began || w->slot_i < w->n_tensors))
        fail(w, ERR_INVALID, "fewer bytes than the tensors hold", "tensor data");
    int rc = sticky(w, e);
    if (rc < 0) {
        gguf_writer_abort(w);
        return rc;
    }
    rc = file_writer_finish(w->file, e);
    writer_free(w);
    return rc;
}

void gguf_writer_abort(struct gguf_writer *w) {
    if (!w) return;
    file_writer_abort(w->file);                       /* NULL is fine */
    writer_free(w);
}
