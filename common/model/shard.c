/* What any file of a model tells: its fingerprint, what it covers, and the checked metadata of a shard.
 * The layout of files to be is in shard_layout.c. */
#include "common/model/shard.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

#define SHARD "pleiades.shard."

static bool begins(struct gguf_str s, const char *with) {
    size_t n = strlen(with);
    return s.len >= n && memcmp(s.data, with, n) == 0;
}

static bool ends(struct gguf_str s, const char *with) {
    size_t n = strlen(with);
    return s.len >= n && memcmp(s.data + s.len - n, with, n) == 0;
}

bool shard_layer_of(struct gguf_str name, uint32_t *layer, struct gguf_str *rest) {
    uint64_t i = 4;
    uint32_t n = 0;
    if (!begins(name, "blk.")) return false;
    for (; i < name.len && i < 8 && name.data[i] >= '0' && name.data[i] <= '9'; i++)
        n = n * 10 + (uint32_t)(name.data[i] - '0');
    if (i == 4 || i >= name.len || name.data[i] != '.') return false;
    *layer = n;
    if (rest) *rest = (struct gguf_str){ name.data + i + 1, name.len - i - 1 };
    return true;
}

bool shard_is_stack(const struct shard_part *p, struct gguf_str name) {
    uint32_t layer;
    return ends(name, "_exps.weight") && shard_layer_of(name, &layer, NULL) &&
           layer >= p->layer_begin && layer < p->layer_end;
}

bool shard_own_key(struct gguf_str key) {
    return begins(key, SHARD) || begins(key, "split.") || (key.len == 17 && begins(key, "general.alignment"));
}

bool shard_is(const struct gguf *g) {
    return gguf_find(g, SHARD "version") != NULL;
}

const struct gguf_kv *shard_was(const struct gguf *g, const char *key) {
    char name[GGUF_NAME_MAX + 32];
    snprintf(name, sizeof name, SHARD "was.%s", key);
    return gguf_find(g, name);
}

/* ---- fingerprint ---- */

static int compare_text(struct gguf_str a, struct gguf_str b) {
    int order = memcmp(a.data, b.data, (size_t)MIN(a.len, b.len));
    return order ? order : a.len < b.len ? -1 : a.len > b.len;
}

static int compare_kvs(const void *a, const void *b) {
    return compare_text((*(const struct gguf_kv *const *)a)->key, (*(const struct gguf_kv *const *)b)->key);
}

static int compare_tensors(const void *a, const void *b) {
    return compare_text((*(const struct gguf_tensor *const *)a)->name,
                        (*(const struct gguf_tensor *const *)b)->name);
}

static void hash_32(struct hash_stream *h, uint32_t value) { hash_stream_add(h, &value, sizeof value); }
static void hash_u64(struct hash_stream *h, uint64_t value) { hash_stream_add(h, &value, sizeof value); }

static void hash_text(struct hash_stream *h, struct gguf_str s) {
    hash_u64(h, s.len);
    hash_stream_add(h, s.data, (size_t)s.len);
}

static void hash_kv(struct hash_stream *h, const struct gguf_kv *kv) {
    hash_text(h, kv->key);
    hash_32(h, kv->type);
    if (kv->type == GGUF_ARRAY) {
        hash_32(h, kv->array_type);
        hash_u64(h, kv->n);
    }
    hash_text(h, (struct gguf_str){ (const char *)kv->data, (uint64_t)(kv->end - kv->data) });
}

static void hash_tensor(struct hash_stream *h, const struct gguf_tensor *t) {
    hash_text(h, t->name);
    hash_32(h, t->type);
    hash_32(h, t->n_dims);
    for (uint32_t i = 0; i < t->n_dims; i++) hash_u64(h, t->ne[i]);
    hash_u64(h, t->size);
}

static struct hash128 compute_fingerprint(const struct gguf *g) {
    uint64_t n_kv = 0, n = gguf_n_tensors(g);
    const struct gguf_kv **kvs = xcalloc(gguf_n_kv(g), sizeof *kvs);
    const struct gguf_tensor **tensors = xcalloc(n, sizeof *tensors);
    struct hash_stream *h = hash_stream_new();
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(g, i);
        if (!shard_own_key(kv->key) && !begins(kv->key, "pleiades.")) kvs[n_kv++] = kv;
    }
    for (uint64_t i = 0; i < n; i++) tensors[i] = gguf_tensor_at(g, i);
    if (n_kv) qsort(kvs, n_kv, sizeof *kvs, compare_kvs);
    if (n) qsort(tensors, n, sizeof *tensors, compare_tensors);
    for (uint64_t i = 0; i < n_kv; i++) hash_kv(h, kvs[i]);
    for (uint64_t i = 0; i < n; i++) hash_tensor(h, tensors[i]);
    struct hash128 value = hash_stream_value(h);
    hash_stream_free(h);
    free(tensors);
    free(kvs);
    return value;
}

int shard_fingerprint(const struct gguf *g, struct hash128 *out, struct err *e) {
    struct shard_info info;
    if (!shard_is(g)) return *out = compute_fingerprint(g), 0;
    int rc = shard_info_read(&info, g, e);
    if (rc == 0) *out = info.model;
    return rc;
}

/* ---- metadata ---- */

static int damaged(struct err *e, const char *key) {
    return err_set(e, ERR_CORRUPT, "key " SHARD "%s is damaged", key);
}

/* An array of unsigned integers with n_min to n_max elements. */
static int find_array(const struct gguf *g, const char *key, uint64_t n_min, uint64_t n_max,
                      const struct gguf_kv **out, struct err *e) {
    char name[64];
    snprintf(name, sizeof name, SHARD "%s", key);
    const struct gguf_kv *kv = gguf_find(g, name);
    if (!kv) return err_set(e, ERR_CORRUPT, "key %s is missing", name);
    bool integers = kv->array_type == GGUF_U32 || kv->array_type == GGUF_U64;
    if (kv->type != GGUF_ARRAY || !integers || kv->n < n_min || kv->n > n_max) return damaged(e, key);
    *out = kv;
    return 0;
}

static uint64_t element(const struct gguf_kv *kv, uint64_t i) {
    uint64_t value = 0;
    memcpy(&value, kv->data + i * gguf_type_size(kv->array_type), gguf_type_size(kv->array_type));
    return value;
}

static int read_scalars(struct shard_info *s, const struct gguf *g, struct err *e) {
    uint32_t version = 0;
    int rc = gguf_get_u32(g, SHARD "version", &version, e);
    if (rc == 0 && version != SHARD_VERSION)
        return err_set(e, ERR_UNSUPPORTED, "a shard of version %u; this program reads version %d",
                       version, SHARD_VERSION);
    if (rc == 0) rc = gguf_get_u32(g, SHARD "index", &s->part.index, e);
    if (rc == 0) rc = gguf_get_u32(g, SHARD "count", &s->part.count, e);
    if (rc == 0) rc = gguf_get_bool(g, SHARD "dense", &s->part.dense, e);
    if (rc == 0) rc = gguf_get_bool(g, SHARD "embed", &s->part.embed, e);
    if (rc == 0) rc = gguf_get_bool(g, SHARD "head", &s->part.head, e);
    if (rc == 0) rc = gguf_get_bool(g, SHARD "rest", &s->part.rest, e);
    if (rc == 0) rc = gguf_get_u64(g, SHARD "tensors", &s->n_model_tensors, e);
    if (rc < 0) return rc;
    if (s->part.count < 1 || s->part.count > SHARD_COUNT_MAX || s->part.index >= s->part.count)
        return damaged(e, "index");
    if (s->n_model_tensors < gguf_n_tensors(g) || s->n_model_tensors > GGUF_TENSORS_MAX)
        return damaged(e, "tensors");
    return 0;
}

static int read_model(struct shard_info *s, const struct gguf *g, struct err *e) {
    char hex[HASH_HEX] = "";
    struct gguf_str text;
    int rc = gguf_get_str(g, SHARD "model", &text, e);
    if (rc < 0) return rc;
    if (text.len == HASH_HEX - 1) memcpy(hex, text.data, HASH_HEX - 1);
    return hash_from_hex(hex, &s->model) ? 0 : damaged(e, "model");
}

static int read_ranges(struct shard_info *s, const struct gguf *g, struct err *e) {
    const struct gguf_kv *layers, *experts;
    int rc = find_array(g, "layers", 2, 2, &layers, e);
    if (rc == 0) rc = find_array(g, "experts", 0, 2 * SHARD_RANGES_MAX, &experts, e);
    if (rc < 0) return rc;
    uint64_t begin = element(layers, 0), end = element(layers, 1), at = 0;
    if (begin >= end || end > HP_LAYERS_MAX) return damaged(e, "layers");
    s->part.layer_begin = (uint32_t)begin;
    s->part.layer_end = (uint32_t)end;
    if (experts->n % 2) return damaged(e, "experts");
    for (uint64_t i = 0; i < experts->n; i += 2, at = end) {
        begin = element(experts, i), end = element(experts, i + 1);
        if (begin < at || begin >= end || end > UINT32_MAX) return damaged(e, "experts");
        s->part.expert[s->part.n_range++] = (struct shard_range){ (uint32_t)begin, (uint32_t)end };
    }
    return 0;
}

static int read_arrays(struct shard_info *s, const struct gguf *g, struct err *e) {
    uint64_t n = gguf_n_tensors(g);
    int rc = find_array(g, "order", n, n, &s->order, e);
    if (rc == 0) rc = find_array(g, "xxh3", 2 * n, 2 * n, &s->xxh3, e);
    if (rc == 0 && s->xxh3->array_type != GGUF_U64) rc = damaged(e, "xxh3");
    for (uint64_t i = 0; rc == 0 && i < n; i++)
        if (element(s->order, i) >= s->n_model_tensors) rc = damaged(e, "order");
    return rc;
}

/* Experts in the tensors must be as many as the ranges say. */
static int check_experts(const struct shard_info *s, const struct gguf *g, struct err *e) {
    uint64_t held = 0;
    for (uint32_t i = 0; i < s->part.n_range; i++) held += s->part.expert[i].end - s->part.expert[i].begin;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (t->size == 0)
            return err_set(e, ERR_UNSUPPORTED, "tensor %.*s has an unknown type",
                           (int)MIN(t->name.len, 96), t->name.data);
        if (shard_is_stack(&s->part, t->name) && t->ne[2] != held)
            return err_set(e, ERR_CORRUPT,
                           "tensor %.*s holds %llu experts, but key " SHARD "experts says %llu",
                           (int)MIN(t->name.len, 96), t->name.data, (unsigned long long)t->ne[2],
                           (unsigned long long)held);
    }
    return 0;
}

int shard_info_read(struct shard_info *out, const struct gguf *g, struct err *e) {
    memset(out, 0, sizeof *out);
    if (!shard_is(g)) return err_set(e, ERR_NOTFOUND, "%s: not a shard", gguf_path(g, 0));
    int rc = gguf_n_files(g) == 1 ? read_scalars(out, g, e) : err_set(e, ERR_INVALID, "a shard is one file");
    if (rc == 0) rc = read_model(out, g, e);
    if (rc == 0) rc = read_ranges(out, g, e);
    if (rc == 0) rc = read_arrays(out, g, e);
    if (rc == 0) rc = check_experts(out, g, e);
    return rc < 0 ? err_wrap(e, rc, "%s", gguf_path(g, 0)) : 0;
}

uint32_t shard_info_order(const struct shard_info *s, uint64_t tensor) {
    CHECK(tensor < s->order->n);
    return (uint32_t)element(s->order, tensor);
}

struct hash128 shard_info_hash(const struct shard_info *s, uint64_t tensor) {
    CHECK(2 * tensor < s->xxh3->n);
    return (struct hash128){ element(s->xxh3, 2 * tensor), element(s->xxh3, 2 * tensor + 1) };
}

/* ---- what a file covers ---- */

static bool has_layer(const struct gguf *g, const struct hparams *hp, uint32_t l) {
    static const char *const needed[] = { "attn_q_a",      "attn_output_b", "ffn_gate_inp",
                                          "ffn_gate_exps", "ffn_up_exps",   "ffn_down_exps",
                                          "ffn_down_shexp" };
    for (size_t i = 0; i < COUNT_OF(needed); i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.weight", l, needed[i]);
        const struct gguf_tensor *t = gguf_find_tensor(g, name);
        if (!t || (ends(t->name, "_exps.weight") && t->ne[2] != hp->n_expert)) return false;
    }
    return true;
}

int shard_coverage(struct shard_cover *out, const struct gguf *g, const struct hparams *hp, struct err *e) {
    struct shard_info info;
    memset(out, 0, sizeof *out);
    int rc = shard_is(g) ? shard_info_read(&info, g, e) : 0;
    if (rc < 0) return rc;
    for (uint32_t l = 0; l < hp->n_layer; l++)
        if (has_layer(g, hp, l)) out->layers[l / 8] |= (uint8_t)(1u << l % 8);
    out->embed = gguf_find_tensor(g, "token_embd.weight") != NULL;
    out->head = gguf_find_tensor(g, "output.weight") && gguf_find_tensor(g, "output_norm.weight");
    return 0;
}
