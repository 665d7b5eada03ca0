/* Looking things up in an opened set of files, and reading values of whatever width the writer chose. */
#include "common/model/gguf_parts.h"

/* ---- files and tensors ---- */

int gguf_n_files(const struct gguf *g) {
    return g->n_files;
}

const char *gguf_path(const struct gguf *g, int file_i) {
    return g->files[file_i].path;
}

uint64_t gguf_file_size(const struct gguf *g, int file_i) {
    return g->files[file_i].size;
}

const void *gguf_file_data(const struct gguf *g, int file_i) {
    return g->files[file_i].data;
}

uint64_t gguf_n_tensors(const struct gguf *g) {
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint64_t i) {
    return i < g->n_tensors ? &g->tensors[i] : NULL;
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name) {
    uint32_t i;
    return map_find(&g->by_name, name, strlen(name), &i) ? &g->tensors[i] : NULL;
}

static void advise(const struct gguf *g, const struct gguf_tensor *t, enum file_advice advice) {
    file_map_advise(&g->files[t->file_i].map, t->file_offset, t->size, advice);
}

void gguf_prefetch(const struct gguf *g, const struct gguf_tensor *tensor) {
    advise(g, tensor, FILE_WILLNEED);
}

void gguf_release(const struct gguf *g, const struct gguf_tensor *tensor) {
    advise(g, tensor, FILE_DONTNEED);
}

/* ---- metadata ---- */

uint64_t gguf_n_kv(const struct gguf *g) {
    return g->files[0].meta.n;
}

const struct gguf_kv *gguf_kv_at(const struct gguf *g, uint64_t i) {
    return i < g->files[0].meta.n ? &g->files[0].meta.kvs[i] : NULL;
}

const struct gguf_kv *gguf_meta_find(const struct gguf_meta *meta, const char *key) {
    uint32_t i;
    return map_find(&meta->by_key, key, strlen(key), &i) ? &meta->kvs[i] : NULL;
}

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key) {
    return gguf_meta_find(&g->files[0].meta, key);
}

uint32_t gguf_type_size(enum gguf_type type) {
    switch (type) {
    case GGUF_U8: case GGUF_I8: case GGUF_BOOL: return 1;
    case GGUF_U16: case GGUF_I16: return 2;
    case GGUF_U32: case GGUF_I32: case GGUF_F32: return 4;
    case GGUF_U64: case GGUF_I64: case GGUF_F64: return 8;
    case GGUF_STRING: case GGUF_ARRAY: case GGUF_TYPES: break;
    }
    return 0;
}

/* The bytes of element i, zero-extended; ok when there is such an element and it is a scalar. */
static bool element_bits(const struct gguf_kv *kv, uint64_t i, uint64_t *bits) {
    uint32_t size = gguf_type_size(kv->array_type);
    if (size == 0 || i >= kv->n) return false;
    *bits = 0;
    memcpy(bits, kv->data + i * size, size);
    return true;
}

int gguf_kv_int(const struct gguf_kv *kv, uint64_t i, int64_t *out) {
    uint64_t bits;
    if (!element_bits(kv, i, &bits)) return ERR_CORRUPT;
    switch (kv->array_type) {
    case GGUF_U8: case GGUF_U16: case GGUF_U32: break;
    case GGUF_I8: bits = (uint64_t)(int64_t)(int8_t)bits; break;
    case GGUF_I16: bits = (uint64_t)(int64_t)(int16_t)bits; break;
    case GGUF_I32: bits = (uint64_t)(int64_t)(int32_t)bits; break;
    case GGUF_I64: break;
    case GGUF_U64:
        if (bits > INT64_MAX) return ERR_CORRUPT;
        break;
    case GGUF_BOOL:
        if (bits > 1) return ERR_CORRUPT;
        break;
    default: return ERR_CORRUPT;
    }
    *out = (int64_t)bits;
    return 0;
}

int gguf_kv_float(const struct gguf_kv *kv, uint64_t i, float *out) {
    uint64_t bits;
    int64_t integer = 0;
    double wide;
    if (!element_bits(kv, i, &bits)) return ERR_CORRUPT;
    if (kv->array_type == GGUF_F32) {
        *out = f32_from_bits((uint32_t)bits);
    } else if (kv->array_type == GGUF_F64) {
        memcpy(&wide, &bits, sizeof wide);
        if (wide > 3.4028234e38 || wide < -3.4028234e38) return ERR_CORRUPT;
        *out = (float)wide;
    } else {
        if (kv->array_type == GGUF_BOOL || gguf_kv_int(kv, i, &integer) < 0) return ERR_CORRUPT;
        *out = (float)integer;
    }
    return 0;
}

bool gguf_kv_next_str(const struct gguf_kv *kv, const uint8_t **cursor, struct gguf_str *out) {
    if (kv->array_type != GGUF_STRING || *cursor >= kv->end) return false;
    memcpy(&out->len, *cursor, sizeof out->len);      /* inside: the parser has walked all of them */
    out->data = (const char *)*cursor + sizeof out->len;
    *cursor += sizeof out->len + out->len;
    return true;
}

static int missing(const char *key, struct err *e) {
    return err_set(e, ERR_NOTFOUND, "key %s is missing", key);
}

/* A single value of the key, not an array; NULL with the reason in *rc. */
static const struct gguf_kv *single(const struct gguf_meta *meta, const char *key, int *rc, struct err *e) {
    const struct gguf_kv *kv = gguf_meta_find(meta, key);
    *rc = !kv                      ? missing(key, e)
          : kv->type == GGUF_ARRAY ? err_set(e, ERR_CORRUPT, "key %s: is an array", key)
                                   : 0;
    return *rc < 0 ? NULL : kv;
}

int gguf_meta_u64(const struct gguf_meta *meta, const char *key, uint64_t *out, struct err *e) {
    int rc;
    int64_t value = 0;
    const struct gguf_kv *kv = single(meta, key, &rc, e);
    if (!kv) return rc;
    if (gguf_kv_int(kv, 0, &value) < 0) return err_set(e, ERR_CORRUPT, "key %s: not an integer", key);
    if (value < 0) return err_set(e, ERR_CORRUPT, "key %s: %lld is negative", key, (long long)value);
    *out = (uint64_t)value;
    return 0;
}

int gguf_meta_str(const struct gguf_meta *meta, const char *key, struct gguf_str *out, struct err *e) {
    int rc;
    const struct gguf_kv *kv = single(meta, key, &rc, e);
    if (!kv) return rc;
    const uint8_t *cursor = kv->data;
    return gguf_kv_next_str(kv, &cursor, out) ? 0 : err_set(e, ERR_CORRUPT, "key %s: not a string", key);
}

int gguf_get_u64(const struct gguf *g, const char *key, uint64_t *out, struct err *e) {
    return gguf_meta_u64(&g->files[0].meta, key, out, e);
}

int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out, struct err *e) {
    uint64_t wide = 0;
    int rc = gguf_get_u64(g, key, &wide, e);
    if (rc < 0) return rc;
    if (wide > UINT32_MAX)
        return err_set(e, ERR_CORRUPT, "key %s: %llu is too large", key, (unsigned long long)wide);
    *out = (uint32_t)wide;
    return 0;
}

int gguf_get_f32(const struct gguf *g, const char *key, float *out, struct err *e) {
    int rc;
    const struct gguf_kv *kv = single(&g->files[0].meta, key, &rc, e);
    if (!kv) return rc;
    return gguf_kv_float(kv, 0, out) < 0 ? err_set(e, ERR_CORRUPT, "key %s: not a number", key) : 0;
}

int gguf_get_bool(const struct gguf *g, const char *key, bool *out, struct err *e) {
    uint64_t value = 0;
    int rc = gguf_get_u64(g, key, &value, e);
    if (rc < 0) return rc;
    if (value > 1)
        return err_set(e, ERR_CORRUPT, "key %s: %llu is not a truth value", key,
                       (unsigned long long)value);
    *out = value != 0;
    return 0;
}

int gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out, struct err *e) {
    return gguf_meta_str(&g->files[0].meta, key, out, e);
}
