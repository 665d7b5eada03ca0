/* Which tensors go into a shard, in which order, and the header that says so.
 *
 * The order is that of use: embedding, then layer by layer what the attention half, the router and the
 * experts read, then the head, then what is left over. A tensor that is not in the list below comes
 * behind those of its layer that are. */
#include "common/model/shard.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

#define SHARD "pleiades.shard."

enum { HEADER_MAX = 1 << 30 };

static const char *const in_layer[] = {
    "hc_attn_fn.",
    "hc_attn_scale.",
    "hc_attn_base.",
    "attn_norm.",
    "attn_q_a.",
    "attn_q_a_norm.",
    "attn_q_b.",
    "attn_kv.",
    "attn_kv_a_norm.",
    "attn_compressor_kv.",
    "attn_compressor_gate.",
    "attn_compressor_ape.",
    "attn_compressor_norm.",
    "indexer_compressor_kv.",
    "indexer_compressor_gate.",
    "indexer_compressor_ape.",
    "indexer_compressor_norm.",
    "indexer.attn_q_b.",
    "indexer.proj.",
    "attn_sinks.",
    "attn_output_a.",
    "attn_output_b.",
    "hc_ffn_fn.",
    "hc_ffn_scale.",
    "hc_ffn_base.",
    "ffn_norm.",
    "ffn_gate_inp.",
    "exp_probs_b.",
    "ffn_gate_tid2eid.",
    "ffn_gate_shexp.",
    "ffn_up_shexp.",
    "ffn_down_shexp.",
    "ffn_gate_exps.",
    "ffn_up_exps.",
    "ffn_down_exps.",
};
static const char *const in_head[] = { "output_hc_fn.", "output_hc_scale.", "output_hc_base.",
                                       "output_norm.", "output." };

enum place { PLACE_EMBED, PLACE_LAYER, PLACE_HEAD, PLACE_REST };

struct sorted {                                       /* one tensor with its place in the order of use */
    enum place place;
    uint32_t layer, role, order;
    const struct gguf_tensor *t;
};

static bool begins(struct gguf_str s, const char *with) {
    size_t n = strlen(with);
    return s.len >= n && memcmp(s.data, with, n) == 0;
}

static uint32_t role_of(struct gguf_str name, const char *const *list, size_t n) {
    uint32_t i = 0;
    while (i < n && !begins(name, list[i])) i++;
    return i;
}

static struct sorted place_of(const struct gguf_tensor *t, uint32_t order, uint32_t n_layer) {
    struct sorted s = { PLACE_REST, 0, 0, order, t };
    struct gguf_str rest;
    if (shard_layer_of(t->name, &s.layer, &rest) && s.layer < n_layer) {
        s.place = PLACE_LAYER;
        s.role = role_of(rest, in_layer, COUNT_OF(in_layer));
        return s;
    }
    s.layer = 0;                                      /* "blk.43." of an MTP block belongs to no main layer */
    if (begins(t->name, "token_embd.")) {
        s.place = PLACE_EMBED;
    } else if (begins(t->name, "output")) {
        s.place = PLACE_HEAD;
        s.role = role_of(t->name, in_head, COUNT_OF(in_head));
    }
    return s;
}

static int compare_places(const void *a, const void *b) {
    const struct sorted *x = a, *y = b;
    if (x->place != y->place) return x->place < y->place ? -1 : 1;
    if (x->layer != y->layer) return x->layer < y->layer ? -1 : 1;
    if (x->role != y->role) return x->role < y->role ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

static bool wanted(const struct shard_part *p, const struct sorted *s) {
    switch (s->place) {
    case PLACE_EMBED: return p->embed;
    case PLACE_HEAD: return p->head;
    case PLACE_REST: return p->rest;
    case PLACE_LAYER: break;
    }
    if (s->layer < p->layer_begin || s->layer >= p->layer_end) return false;
    return shard_is_stack(p, s->t->name) ? p->n_range > 0 : p->dense;
}

/* ---- checks ---- */

static int check_part(const struct shard_part *p, const struct hparams *hp, struct err *e) {
    uint32_t at = 0;
    if (p->layer_begin >= p->layer_end || p->layer_end > hp->n_layer)
        return err_set(e, ERR_INVALID, "layers %u to %u of a model with %u", p->layer_begin,
                       p->layer_end, hp->n_layer);
    if (p->count < 1 || p->count > SHARD_COUNT_MAX || p->index >= p->count)
        return err_set(e, ERR_INVALID, "file %u of %u", p->index, p->count);
    if (p->n_range > SHARD_RANGES_MAX) return err_set(e, ERR_LIMIT, "%u ranges of experts", p->n_range);
    if (!p->dense && p->n_range == 0)
        return err_set(e, ERR_INVALID, "a file without dense tensors and without experts");
    for (uint32_t i = 0; i < p->n_range; at = p->expert[i++].end)
        if (p->expert[i].begin < at || p->expert[i].begin >= p->expert[i].end ||
            p->expert[i].end > hp->n_expert)
            return err_set(e, ERR_INVALID, "experts %u to %u of %u, or not in order",
                           p->expert[i].begin, p->expert[i].end, hp->n_expert);
    return 0;
}

static int check_tensor(const struct gguf_tensor *t, const struct hparams *hp, bool expert, struct err *e) {
    if (t->size == 0)
        return err_set(e, ERR_UNSUPPORTED, "tensor %.*s: of an unknown type",
                       (int)MIN(t->name.len, 96), t->name.data);
    if (expert && (t->ne[2] != hp->n_expert || t->n_dims != 3))
        return err_set(e, ERR_CORRUPT, "tensor %.*s: %llu experts of %u", (int)MIN(t->name.len, 96),
                       t->name.data, (unsigned long long)t->ne[2], hp->n_expert);
    return 0;
}

static uint32_t experts_held(const struct shard_part *p) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_range; i++) n += p->expert[i].end - p->expert[i].begin;
    return n;
}

/* ---- items ---- */

static void set_item(struct shard_item *item, const struct sorted *s, const struct shard_part *p,
                     bool expert) {
    *item = (struct shard_item){ .from = s->t, .size = s->t->size, .order = s->order, .cut = expert };
    memcpy(item->ne, s->t->ne, sizeof item->ne);
    if (!expert) return;
    item->ne[2] = experts_held(p);
    item->size = s->t->size / s->t->ne[2] * item->ne[2];
}

static int fill_items(struct shard_layout *l, const struct hparams *hp, struct err *e) {
    uint64_t n = gguf_n_tensors(l->g);
    bool seen[HP_LAYERS_MAX] = { false }, embed = false, head = false;
    struct sorted *all = xcalloc(n, sizeof *all);
    for (uint64_t i = 0; i < n; i++) all[i] = place_of(gguf_tensor_at(l->g, i), (uint32_t)i, hp->n_layer);
    if (n) qsort(all, n, sizeof *all, compare_places);
    l->item = xcalloc(n, sizeof *l->item);
    int rc = 0;
    for (uint64_t i = 0; i < n && rc == 0; i++) {
        if (!wanted(&l->part, &all[i])) continue;
        bool expert = all[i].place == PLACE_LAYER && shard_is_stack(&l->part, all[i].t->name);
        rc = check_tensor(all[i].t, hp, expert, e);
        if (rc == 0) set_item(&l->item[l->n++], &all[i], &l->part, expert);
        if (all[i].place == PLACE_LAYER) seen[all[i].layer] = true;
        embed |= all[i].place == PLACE_EMBED, head |= all[i].place == PLACE_HEAD;
    }
    free(all);
    for (uint32_t k = l->part.layer_begin; k < l->part.layer_end && rc == 0; k++)
        if (!seen[k]) rc = err_set(e, ERR_NOTFOUND, "no tensors of layer %u", k);
    if (rc == 0 && (embed != l->part.embed || head != l->part.head))
        rc = err_set(e, ERR_NOTFOUND, "the embedding or the output is missing");
    return rc;
}

/* ---- header ---- */

static void put_part(struct gguf_writer *w, const struct shard_layout *l) {
    const struct shard_part *p = &l->part;
    char hex[HASH_HEX];
    hash_to_hex(l->model, hex);
    gguf_put_u32(w, SHARD "version", SHARD_VERSION);
    gguf_put_str(w, SHARD "model", hex, HASH_HEX - 1);
    gguf_put_u32(w, SHARD "index", p->index);
    gguf_put_u32(w, SHARD "count", p->count);
    gguf_put_array(w, SHARD "layers", GGUF_U32, (uint32_t[]){ p->layer_begin, p->layer_end }, 2);
    gguf_put_bool(w, SHARD "dense", p->dense);
    gguf_put_array(w, SHARD "experts", GGUF_U32, p->expert, 2 * (uint64_t)p->n_range);
    gguf_put_bool(w, SHARD "embed", p->embed);
    gguf_put_bool(w, SHARD "head", p->head);
    gguf_put_bool(w, SHARD "rest", p->rest);
    gguf_put_u64(w, SHARD "tensors", gguf_n_tensors(l->g));
}

static bool key_is(struct gguf_str key, const char *name) {
    return key.len == strlen(name) && memcmp(key.data, name, (size_t)key.len) == 0;
}

/* The model's own keys. What a shard must say differently is kept under was.KEY, right behind. */
static void put_metadata(struct gguf_writer *w, const struct shard_layout *l) {
    for (uint64_t i = 0; i < gguf_n_kv(l->g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(l->g, i);
        bool blocks = key_is(kv->key, "deepseek4.block_count"),
             nextn = key_is(kv->key, "deepseek4.nextn_predict_layers");
        bool alignment = key_is(kv->key, "general.alignment");
        if (shard_own_key(kv->key) && !alignment) continue;
        if (!blocks && !nextn && !alignment) {
            gguf_put_kv(w, kv);
            continue;
        }
        char name[96];
        struct gguf_kv was = *kv;
        snprintf(name, sizeof name, SHARD "was.%.*s", (int)kv->key.len, kv->key.data);
        was.key = (struct gguf_str){ name, strlen(name) };
        if (blocks) gguf_put_u32(w, "deepseek4.block_count", l->n_block_main);
        if (nextn) gguf_put_u32(w, "deepseek4.nextn_predict_layers", 0);
        gguf_put_kv(w, &was);
    }
}

static void put_tensors(struct gguf_writer *w, const struct shard_layout *l, const struct hash128 *hash) {
    uint32_t *order = xcalloc(l->n, sizeof *order);
    uint64_t *halves = xcalloc(2 * l->n, sizeof *halves);
    for (uint64_t i = 0; i < l->n; i++) {
        order[i] = l->item[i].order;
        if (hash) halves[2 * i] = hash[i].lo, halves[2 * i + 1] = hash[i].hi;
    }
    gguf_put_array(w, SHARD "order", GGUF_U32, order, l->n);
    gguf_put_array(w, SHARD "xxh3", GGUF_U64, halves, 2 * l->n);
    free(halves);
    free(order);
    for (uint64_t i = 0; i < l->n; i++) {
        const struct gguf_tensor *t = l->item[i].from;
        char name[GGUF_NAME_MAX + 1];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        gguf_put_tensor(w, name, (enum dtype)t->type, t->n_dims, l->item[i].ne);
    }
}

static int build_header(const struct shard_layout *l, const struct hash128 *hash,
                        struct gguf_writer **out, struct buf *bytes, struct err *e) {
    int rc = gguf_writer_new(out, NULL, l->alignment, e);
    if (rc < 0) return rc;
    put_part(*out, l);
    put_metadata(*out, l);
    put_tensors(*out, l, hash);
    rc = gguf_writer_header(*out, bytes, e);
    if (rc < 0) {
        gguf_writer_abort(*out);
        *out = NULL;
    }
    return rc;
}

int shard_layout_header(const struct shard_layout *l, const struct hash128 *hash, struct buf *out,
                        struct err *e) {
    struct gguf_writer *w;
    size_t before = out->size;
    int rc = build_header(l, hash, &w, out, e);
    if (rc < 0) return rc;
    gguf_writer_abort(w);
    CHECK(l->header_bytes == 0 || out->size - before == l->header_bytes);
    return 0;
}

static int measure(struct shard_layout *l, struct err *e) {
    struct gguf_writer *w;
    struct buf bytes;
    buf_init(&bytes, HEADER_MAX);
    int rc = build_header(l, NULL, &w, &bytes, e);
    if (rc == 0) {
        for (uint64_t i = 0; i < l->n; i++) l->item[i].offset = gguf_writer_tensor_offset(w, i);
        l->header_bytes = bytes.size;
        l->file_bytes = gguf_writer_end(w);
        gguf_writer_abort(w);
    }
    buf_deinit(&bytes);
    return rc;
}

int shard_layout_new(struct shard_layout **out, const struct gguf *g, const struct shard_part *part,
                     uint32_t alignment, struct err *e) {
    struct hparams hp;
    *out = NULL;
    if (shard_is(g))
        return err_set(e, ERR_INVALID, "%s: is a shard already; join the shards first",
                       gguf_path(g, 0));
    if (alignment < SHARD_ALIGNMENT_MIN)
        return err_set(e, ERR_INVALID, "alignment %u: at least %d", alignment, SHARD_ALIGNMENT_MIN);
    int rc = hparams_read(&hp, g, e);
    if (rc == 0) rc = check_part(part, &hp, e);
    if (rc < 0) return rc;
    struct shard_layout *l = xcalloc(1, sizeof *l);
    l->part = *part;
    l->g = g;
    l->alignment = alignment;
    l->n_block_main = hp.n_layer;
    rc = fill_items(l, &hp, e);
    if (rc == 0) rc = shard_fingerprint(g, &l->model, e);
    if (rc == 0) rc = measure(l, e);
    if (rc < 0) {
        shard_layout_free(l);
        return err_wrap(e, rc, "%s", gguf_path(g, 0));
    }
    *out = l;
    return 0;
}

void shard_layout_free(struct shard_layout *l) {
    if (!l) return;
    free(l->item);
    free(l);
}

uint64_t shard_item_begin(const struct shard_layout *l, const struct shard_item *item) {
    return item->cut ? item->from->size / item->from->ne[2] * l->part.expert[0].begin : 0;
}

bool shard_item_run(const struct shard_layout *l, const struct shard_item *item, uint32_t i,
                    const uint8_t **data, uint64_t *size) {
    const struct gguf_tensor *t = item->from;
    if (!item->cut) {
        *data = t->data, *size = t->size;
        return i == 0;
    }
    if (i >= l->part.n_range) return false;
    uint64_t each = t->size / t->ne[2];
    *data = t->data + each * l->part.expert[i].begin;
    *size = each * (l->part.expert[i].end - l->part.expert[i].begin);
    return true;
}
