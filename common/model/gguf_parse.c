/* From bytes to structs. A cursor walks the file; each read is checked against what is left, and no count
 * is believed before the bytes that it would need are there:
 *
 *   "GGUF" version n_tensors n_kv | key type value ... | name n_dims dims type offset ... | padding |
 * data area header                    metadata            tensor infos data_start
 *
 * Lengths and offsets are compared by subtraction from what is left, never by adding, so nothing can wrap
 * around. */
#include "common/model/gguf_parts.h"
#include "common/base/check.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor data is used in place");

enum {
    KV_BYTES_MIN = 8 + 1 + 4 + 1,                     /* key of one byte, type, value of one byte */
    INFO_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8            /* name of one byte, one dimension */
};

struct cursor {
    const uint8_t *p, *end;
    const struct gguf_file *file;
};

static uint64_t left(const struct cursor *c) {
    return (uint64_t)(c->end - c->p);
}

static uint64_t position(const struct cursor *c) {
    return (uint64_t)(c->p - c->file->data);
}

/* The bytes at hand end too early: damage if they are the whole file, else the caller may fetch more. */
static int ends_early(const struct cursor *c, const char *inside, struct err *e) {
    bool whole = c->file->have == c->file->size;
    return err_set(e, whole ? ERR_CORRUPT : ERR_LIMIT, "%s inside %s, at byte %llu",
                   whole ? "the file ends" : "the header goes on", inside, (unsigned long long)position(c));
}

static int take(struct cursor *c, void *out, size_t size, const char *inside, struct err *e) {
    if (left(c) < size) return ends_early(c, inside, e);
    memcpy(out, c->p, size);
    c->p += size;
    return 0;
}

static int skip(struct cursor *c, uint64_t size, const char *inside, struct err *e) {
    if (left(c) < size) return ends_early(c, inside, e);
    c->p += size;
    return 0;
}

static int take_str(struct cursor *c, struct gguf_str *out, const char *inside, struct err *e) {
    int rc = take(c, &out->len, sizeof out->len, inside, e);
    if (rc < 0) return rc;
    out->data = (const char *)c->p;
    return skip(c, out->len, inside, e);
}

/* Keys and names end up in messages and terminals: bounded, not empty, no control characters. */
static int take_name(struct cursor *c, struct gguf_str *out, const char *inside, struct err *e) {
    int rc = take_str(c, out, inside, e);
    if (rc < 0) return rc;
    if (out->len == 0 || out->len > GGUF_NAME_MAX)
        return err_set(e, ERR_CORRUPT, "%s has %llu bytes; 1 to %d are possible", inside,
                       (unsigned long long)out->len, GGUF_NAME_MAX);
    for (uint64_t i = 0; i < out->len; i++)
        if ((uint8_t)out->data[i] < 0x20 || out->data[i] == 0x7f)
            return err_set(e, ERR_CORRUPT, "%s holds control characters", inside);
    return 0;
}

/* ---- header ---- */

/* A count is plausible if that many smallest items fit into what is left. */
static int check_count(const struct cursor *c, const char *what, uint64_t n, uint64_t bytes_min,
                       uint64_t n_max, struct err *e) {
    if (n > n_max)
        return err_set(e, ERR_CORRUPT, "%llu %s; the limit is %llu", (unsigned long long)n, what,
                       (unsigned long long)n_max);
    if (n <= left(c) / bytes_min) return 0;
    return err_set(e, ends_early(c, what, NULL), "%llu %s do not fit into the %llu bytes that follow",
                   (unsigned long long)n, what, (unsigned long long)left(c));
}

static int take_header(struct cursor *c, uint64_t *n_tensors, uint64_t *n_kv, struct err *e) {
    uint32_t magic = 0, version = 0;
    int rc = take(c, &magic, sizeof magic, "the header", e);
    if (rc < 0) return rc;
    if (magic != 0x46554747) return err_set(e, ERR_CORRUPT, "not a GGUF file (it begins with 0x%08x)", magic);
    rc = take(c, &version, sizeof version, "the header", e);
    if (rc < 0) return rc;
    if (version == 0x02000000 || version == 0x03000000)
        return err_set(e, ERR_UNSUPPORTED, "big-endian GGUF");
    if (version != 2 && version != 3)
        return err_set(e, ERR_UNSUPPORTED, "GGUF version %u; 2 and 3 can be read", version);
    rc = take(c, n_tensors, sizeof *n_tensors, "the header", e);
    if (rc == 0) rc = take(c, n_kv, sizeof *n_kv, "the header", e);
    if (rc == 0) rc = check_count(c, "metadata entries", *n_kv, KV_BYTES_MIN, GGUF_KV_MAX, e);
    if (rc == 0) rc = check_count(c, "tensors", *n_tensors, INFO_BYTES_MIN, GGUF_TENSORS_MAX, e);
    return rc;
}

/* ---- metadata ---- */

static int take_type(struct cursor *c, enum gguf_type *out, struct err *e) {
    uint32_t type = 0;
    int rc = take(c, &type, sizeof type, "a value's type", e);
    if (rc < 0) return rc;
    if (type >= GGUF_TYPES) return err_set(e, ERR_CORRUPT, "value type %u does not exist", type);
    *out = (enum gguf_type)type;
    return 0;
}

static int skip_elements(struct cursor *c, enum gguf_type type, uint64_t n, struct err *e) {
    uint32_t size = gguf_type_size(type);
    if (size) {
        if (n > left(c) / size) return ends_early(c, "an array", e);
        return skip(c, n * size, "an array", e);
    }
    if (type == GGUF_ARRAY) return err_set(e, ERR_UNSUPPORTED, "array of arrays");
    int rc = 0;
    struct gguf_str s = { NULL, 0 };
    for (uint64_t i = 0; i < n && rc == 0; i++) rc = take_str(c, &s, "an array of strings", e);
    return rc;                                        /* a wrong n ends with the file: each takes 8 bytes */
}

static int take_value(struct cursor *c, struct gguf_kv *kv, struct err *e) {
    int rc = take_type(c, &kv->type, e);
    kv->n = 1;
    kv->array_type = kv->type;
    if (rc == 0 && kv->type == GGUF_ARRAY) {
        rc = take_type(c, &kv->array_type, e);
        if (rc == 0) rc = take(c, &kv->n, sizeof kv->n, "an array's length", e);
    }
    if (rc < 0) return rc;
    kv->data = c->p;
    rc = skip_elements(c, kv->array_type, kv->n, e);
    kv->end = c->p;
    return rc;
}

static int take_kv(struct cursor *c, struct gguf_meta *meta, struct err *e) {
    struct gguf_kv *kv = &meta->kvs[meta->n];
    uint32_t number;
    int rc = take_name(c, &kv->key, "a key", e);
    if (rc < 0) return err_wrap(e, rc, "metadata entry %llu", (unsigned long long)meta->n);
    rc = take_value(c, kv, e);
    if (rc == 0 && !map_add(&meta->by_key, kv->key.data, (size_t)kv->key.len, &number))
        rc = err_set(e, ERR_CORRUPT, "twice in the metadata");
    if (rc < 0) return err_wrap(e, rc, "key %.*s", (int)kv->key.len, kv->key.data);
    meta->n++;
    return 0;
}

static int take_metadata(struct cursor *c, struct gguf_meta *meta, uint64_t n, struct err *e) {
    meta->kvs = calloc(n ? n : 1, sizeof *meta->kvs);
    if (!meta->kvs) return err_set(e, ERR_NOMEM, "%llu metadata entries", (unsigned long long)n);
    int rc = 0;
    for (uint64_t i = 0; i < n && rc == 0; i++) rc = take_kv(c, meta, e);
    return rc;
}

static int read_alignment(struct gguf_file *f, struct err *e) {
    const char *key = "general.alignment";
    uint64_t alignment = GGUF_ALIGNMENT;
    if (gguf_meta_find(&f->meta, key)) {
        int rc = gguf_meta_u64(&f->meta, key, &alignment, e);
        if (rc < 0) return rc;
    }
    if (alignment == 0 || alignment > GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return err_set(e, ERR_CORRUPT, "key %s: %llu is not a power of two up to %d", key,
                       (unsigned long long)alignment, GGUF_ALIGNMENT_MAX);
    f->alignment = (uint32_t)alignment;
    return 0;
}

/* ---- tensor infos ---- */

bool gguf_tensor_size(uint32_t dtype, uint32_t n_dims, const uint64_t *ne, uint64_t *size) {
    if (!dtype_known(dtype) || n_dims < 1 || n_dims > GGUF_DIMS_MAX || ne[0] % dtype_block(dtype) != 0)
        return false;
    uint64_t limit = (uint64_t)1 << 62, n = ne[0] / dtype_block(dtype);
    if (n == 0 || n > limit / dtype_block_bytes(dtype)) return false;
    n *= dtype_block_bytes(dtype);
    for (uint32_t i = 1; i < n_dims; i++) {
        if (ne[i] == 0 || n > limit / ne[i]) return false;
        n *= ne[i];
    }
    *size = n;
    return true;
}

static int take_dims(struct cursor *c, struct gguf_tensor *t, struct err *e) {
    int rc = take(c, &t->n_dims, sizeof t->n_dims, "a tensor info", e);
    if (rc < 0) return rc;
    if (t->n_dims < 1 || t->n_dims > GGUF_DIMS_MAX)
        return err_set(e, ERR_CORRUPT, "%u dimensions; 1 to %d are possible", t->n_dims, GGUF_DIMS_MAX);
    for (uint32_t i = 0; i < GGUF_DIMS_MAX && rc == 0; i++) {
        t->ne[i] = 1;
        if (i < t->n_dims) rc = take(c, &t->ne[i], sizeof t->ne[i], "a tensor info", e);
    }
    return rc;
}

/* A type we do not know keeps size 0 and no data: it matters only to who needs that tensor. */
static int take_info_body(struct cursor *c, struct gguf_tensor *t, struct err *e) {
    int rc = take_dims(c, t, e);
    if (rc == 0) rc = take(c, &t->type, sizeof t->type, "a tensor info", e);
    if (rc == 0) rc = take(c, &t->file_offset, sizeof t->file_offset, "a tensor info", e);
    if (rc < 0) return rc;
    if (dtype_known(t->type) && !gguf_tensor_size(t->type, t->n_dims, t->ne, &t->size))
        return err_set(e, ERR_CORRUPT, "dimensions %llu x %llu x %llu x %llu are impossible for %s",
                       (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                       (unsigned long long)t->ne[2], (unsigned long long)t->ne[3], dtype_name(t->type));
    if (t->file_offset % c->file->alignment)
        return err_set(e, ERR_CORRUPT, "offset %llu is not a multiple of %u",
                       (unsigned long long)t->file_offset, c->file->alignment);
    return 0;
}

static int take_info(struct cursor *c, struct gguf *g, int file_i, struct err *e) {
    struct gguf_tensor *t = &g->tensors[g->n_tensors];
    uint32_t number;
    *t = (struct gguf_tensor){ .file_i = file_i };
    int rc = take_name(c, &t->name, "a tensor's name", e);
    if (rc < 0) return err_wrap(e, rc, "tensor %llu", (unsigned long long)g->n_tensors);
    rc = take_info_body(c, t, e);
    if (rc == 0 && !map_add(&g->by_name, t->name.data, (size_t)t->name.len, &number))
        rc = err_set(e, ERR_CORRUPT, "there is another one of this name in %s",
                     g->files[g->tensors[number].file_i].path);
    if (rc < 0) return err_wrap(e, rc, "tensor %.*s", (int)t->name.len, t->name.data);
    g->n_tensors++;
    return 0;
}

static int take_infos(struct cursor *c, struct gguf *g, int file_i, uint64_t n, struct err *e) {
    if (n > GGUF_TENSORS_MAX - g->n_tensors)
        return err_set(e, ERR_LIMIT, "more than %d tensors in all files", GGUF_TENSORS_MAX);
    struct gguf_tensor *grown = realloc(g->tensors, (g->n_tensors + n + 1) * sizeof *grown);
    if (!grown) return err_set(e, ERR_NOMEM, "%llu tensors", (unsigned long long)n);
    g->tensors = grown;
    int rc = 0;
    for (uint64_t i = 0; i < n && rc == 0; i++) rc = take_info(c, g, file_i, e);
    return rc;
}

/* ---- placing the tensors in the data area ---- */

/* From the offset in the data area to the one in the file, with everything inside the file. */
static int place(const struct gguf_file *f, struct gguf_tensor *t, struct err *e) {
    uint64_t room = f->size - f->data_start;
    if (t->file_offset > room || t->size > room - t->file_offset)
        return err_set(e, ERR_CORRUPT,
                       "tensor %.*s: needs %llu bytes at data offset %llu, but the file's data area "
                       "has %llu (download not complete?)",
                       (int)t->name.len, t->name.data, (unsigned long long)t->size,
                       (unsigned long long)t->file_offset, (unsigned long long)room);
    t->file_offset += f->data_start;
    bool at_hand = t->size > 0 && t->file_offset <= f->have && t->size <= f->have - t->file_offset;
    t->data = at_hand ? f->data + t->file_offset : NULL;
    return 0;
}

static int compare_offsets(const void *a, const void *b) {
    const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a,
                             *y = *(const struct gguf_tensor *const *)b;
    return x->file_offset < y->file_offset ? -1 : x->file_offset > y->file_offset;
}

static int check_overlap(const struct gguf_tensor *tensors, uint64_t n, struct err *e) {
    const struct gguf_tensor **sorted = calloc(n ? n : 1, sizeof *sorted);
    if (!sorted) return err_set(e, ERR_NOMEM, "%llu tensors", (unsigned long long)n);
    uint64_t n_sized = 0;
    for (uint64_t i = 0; i < n; i++)
        if (tensors[i].size > 0) sorted[n_sized++] = &tensors[i];
    qsort(sorted, n_sized, sizeof *sorted, compare_offsets);
    int rc = 0;
    for (uint64_t i = 1; i < n_sized && rc == 0; i++) {
        const struct gguf_tensor *a = sorted[i - 1], *b = sorted[i];
        if (b->file_offset - a->file_offset < a->size)
            rc = err_set(e, ERR_CORRUPT, "tensors %.*s and %.*s overlap", (int)a->name.len, a->name.data,
                         (int)b->name.len, b->name.data);
    }
    free(sorted);
    return rc;
}

static int place_all(struct gguf *g, struct gguf_file *f, uint64_t first, uint64_t infos_end, struct err *e) {
    uint64_t n = g->n_tensors - first;
    f->data_start = ALIGN_UP(infos_end, (uint64_t)f->alignment);
    if (n == 0) return 0;
    if (f->data_start > f->size) return err_set(e, ERR_CORRUPT, "the file ends before the tensor data");
    int rc = 0;
    for (uint64_t i = first; i < g->n_tensors && rc == 0; i++) rc = place(f, &g->tensors[i], e);
    return rc < 0 ? rc : check_overlap(g->tensors + first, n, e);
}

int gguf_parse(struct gguf *g, int file_i, struct err *e) {
    struct gguf_file *f = &g->files[file_i];
    struct cursor c = { f->data, f->data + f->have, f };
    uint64_t n_tensors = 0, n_kv = 0, first = g->n_tensors;
    if (f->size == 0) return err_set(e, ERR_CORRUPT, "the file is empty");
    int rc = take_header(&c, &n_tensors, &n_kv, e);
    if (rc == 0) rc = take_metadata(&c, &f->meta, n_kv, e);
    if (rc == 0) rc = read_alignment(f, e);
    if (rc == 0) rc = take_infos(&c, g, file_i, n_tensors, e);
    return rc < 0 ? rc : place_all(g, f, first, position(&c), e);
}
