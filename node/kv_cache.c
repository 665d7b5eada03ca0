/* Memory of one slot:
 *
 *   rings    one allocation: per layer raw rows, history rows, index history rows
 *   entries  per layer a list of pages of KV_PAGE entries, each page reference-counted
 *            ┌─ table (device): uint8_t *[room] ─┐
 *            page 0 (shared after a fork)   page 1   page 2 (being filled: private)
 *
 * Pages come from slabs and go back to a free list; slabs live until the cache is freed. */
#include "node/kv_cache.h"

#include "common/base/check.h"
#include "common/base/hash.h"

#include <stdlib.h>

enum { KV_SLAB_BYTES = 1 << 20, KV_TABLE_ROOM = 16, KV_VERSION = 2, KV_CTX_MAX = 1 << 30 };

struct kv_page {
    void *data;
    uint32_t refs;
    struct kv_page *next;                          /* in the free list */
};

struct kv_slab {
    struct kmem *mem;
    struct kv_page *pages;
    struct kv_slab *next;
};

struct kv_pool {                                   /* pages of one size */
    uint64_t page_bytes;
    struct kv_page *free;
    struct kv_slab *slabs;
    uint64_t n_used;
};

struct kv_list {                                   /* the pages of one slot and layer, entries or keys */
    struct kv_page **page;
    uint32_t n, room;
    struct kmem *table_mem;
    void *table;                                   /* device: the pages' addresses */
};

struct kv_slot_layer {
    struct kv_slice slice;                         /* as the device sees it */
    struct kv_list entries, keys;
};

struct kv_slot {
    bool open;
    uint32_t len, high; /* high: positions below it were written; the rings hold the last of those */
    struct kmem *rings;
    struct kv_slot_layer *layer;
};

struct kv_cache {
    struct kernels *k;
    struct kv_config config;
    uint32_t n_layers;                             /* stored layers, the MTP one included */
    struct kv_layer *layer;                        /* [n_layers] */
    struct kmem *slices_mem;
    struct kv_slot *slot;
    struct kv_pool rows, keys;
    uint64_t ring_bytes;                           /* of one slot */
};

/* ---- shapes ---- */

static uint32_t layer_ratio(const struct kv_cache *kv, uint32_t i) {
    uint32_t layer = kv->config.layer_begin + i;
    return layer < kv->config.layer_end ? kv->config.hp->ratio[layer] : 0;
}

static uint64_t hist_bytes(const struct kv_layer *layer, int32_t dim) {
    return 2 * (uint64_t)dim * (uint64_t)(layer->overlap + 1) * sizeof(float);
}

struct ring_sizes {
    uint64_t raw, hist, idx_hist;
};

static struct ring_sizes ring_sizes(const struct kv_layer *layer) {
    struct ring_sizes size = { .raw = ALIGN_UP((uint64_t)layer->raw_cap * (uint64_t)layer->row_bytes,
                                               (uint64_t)64) };
    if (layer->ratio) size.hist = (uint64_t)layer->hist_cap * hist_bytes(layer, layer->head_dim);
    if (layer->overlap) size.idx_hist = (uint64_t)layer->hist_cap * hist_bytes(layer, layer->idx_dim);
    return size;
}

static void layer_init(struct kv_cache *kv, uint32_t i) {
    const struct hparams *hp = kv->config.hp;
    struct kv_layer *layer = &kv->layer[i];
    *layer = (struct kv_layer){
        .numerics = kv->config.numerics,
        .head_dim = (int32_t)hp->head_dim, .n_rot = (int32_t)hp->n_rot, .idx_dim = (int32_t)hp->idx_dim,
        .ratio = (int32_t)layer_ratio(kv, i), .overlap = layer_ratio(kv, i) == 4,
        .n_swa = (int32_t)hp->n_swa, .raw_cap = (int32_t)hp->n_swa + KV_ROLLBACK,
    };
    layer->hist_cap = layer->ratio ? layer->ratio * (layer->overlap + 1) + KV_ROLLBACK : 0;
    layer->row_bytes = kv_row_bytes(layer->numerics, layer->head_dim, layer->n_rot);
    layer->key_bytes = kv_key_bytes(layer->numerics, layer->idx_dim);
}

int kv_cache_new(struct kv_cache **out, struct kernels *k, const struct kv_config *config, struct err *e) {
    *out = NULL;
    if (config->n_slots < 1 || config->n_slots > 4096)
        return err_set(e, ERR_INVALID, "%u sequences at once: between 1 and 4096 are possible",
                       config->n_slots);
    if (config->n_ctx_max > KV_CTX_MAX)
        return err_set(e, ERR_INVALID, "a context of %u tokens: at most %d are possible", config->n_ctx_max,
                       KV_CTX_MAX);
    struct kv_cache *kv = xcalloc(1, sizeof *kv);
    kv->k = k;
    kv->config = *config;
    kv->n_layers = config->layer_end - config->layer_begin + (config->mtp ? 1 : 0);
    kv->layer = xcalloc(kv->n_layers, sizeof *kv->layer);
    kv->slot = xcalloc(config->n_slots, sizeof *kv->slot);
    void *slices = NULL;
    uint64_t per_layer = config->n_slots * sizeof(struct kv_slice);
    kv->slices_mem = kernels_alloc(k, per_layer * MAX(kv->n_layers, 1), &slices, e);
    if (!kv->slices_mem) {
        kv_cache_free(kv);
        return err_wrap(e, ERR_NOMEM, "tables of %u sequences", config->n_slots);
    }
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        layer_init(kv, i);
        kv->layer[i].slices = (const struct kv_slice *)(void *)((uint8_t *)slices + i * per_layer);
        struct ring_sizes size = ring_sizes(&kv->layer[i]);
        kv->ring_bytes += size.raw + size.hist + size.idx_hist;
    }
    const struct hparams *hp = config->hp;
    kv->rows.page_bytes =
        (uint64_t)KV_PAGE *
        (uint64_t)kv_row_bytes(config->numerics, (int32_t)hp->head_dim, (int32_t)hp->n_rot);
    kv->keys.page_bytes = (uint64_t)KV_PAGE * (uint64_t)kv_key_bytes(config->numerics, (int32_t)hp->idx_dim);
    *out = kv;
    return 0;
}

const struct kv_layer *kv_layer_view(const struct kv_cache *kv, uint32_t layer) {
    return &kv->layer[layer - kv->config.layer_begin];
}

/* ---- pages ---- */

static int pool_grow(struct kv_cache *kv, struct kv_pool *pool, struct err *e) {
    uint64_t n = MAX(KV_SLAB_BYTES / pool->page_bytes, 1);
    void *data;
    struct kmem *mem = kernels_alloc(kv->k, n * pool->page_bytes, &data, e);
    if (!mem) return err_wrap(e, ERR_NOMEM, "state of sequences, besides %llu pages",
                              (unsigned long long)pool->n_used);
    struct kv_slab *slab = xcalloc(1, sizeof *slab);
    *slab = (struct kv_slab){ .mem = mem, .pages = xcalloc(n, sizeof *slab->pages), .next = pool->slabs };
    pool->slabs = slab;
    for (uint64_t i = n; i-- > 0;) {
        slab->pages[i] =
            (struct kv_page){ .data = (uint8_t *)data + i * pool->page_bytes, .next = pool->free };
        pool->free = &slab->pages[i];
    }
    return 0;
}

static struct kv_page *page_get(struct kv_cache *kv, struct kv_pool *pool, struct err *e) {
    if (!pool->free && pool_grow(kv, pool, e) < 0) return NULL;
    struct kv_page *page = pool->free;
    pool->free = page->next;
    page->next = NULL;
    page->refs = 1;
    pool->n_used++;
    return page;
}

static void page_put(struct kv_pool *pool, struct kv_page *page) {
    if (--page->refs > 0) return;
    page->next = pool->free;
    pool->free = page;
    pool->n_used--;
}

static void pool_deinit(struct kv_cache *kv, struct kv_pool *pool) {
    while (pool->slabs) {
        struct kv_slab *slab = pool->slabs;
        pool->slabs = slab->next;
        kernels_release(kv->k, slab->mem);
        free(slab->pages);
        free(slab);
    }
}

static int page_copy(struct kv_cache *kv, const struct kv_pool *pool, struct kv_page *to,
                     const struct kv_page *from, struct err *e) {
    void *bytes = malloc(pool->page_bytes);
    if (!bytes)
        return err_set(e, ERR_NOMEM, "cannot copy a page of %llu bytes",
                       (unsigned long long)pool->page_bytes);
    int rc = kernels_download(kv->k, bytes, from->data, pool->page_bytes, e);
    if (rc == 0) rc = kernels_upload(kv->k, to->data, bytes, pool->page_bytes, e);
    free(bytes);
    return rc;
}

static void list_free(struct kv_cache *kv, struct kv_pool *pool, struct kv_list *list) {
    for (uint32_t i = 0; i < list->n; i++) page_put(pool, list->page[i]);
    kernels_release(kv->k, list->table_mem);
    free(list->page);
    *list = (struct kv_list){ 0 };
}

static int list_upload(struct kv_cache *kv, struct kv_list *list, uint32_t first, struct err *e) {
    for (uint32_t i = first; i < list->n; i++) {
        int rc = kernels_upload(kv->k, (void **)list->table + i, &list->page[i]->data, sizeof(void *), e);
        if (rc < 0) return rc;
    }
    return 0;
}

/* Room for n page addresses, the first list->n kept. */
static int list_room(struct kv_cache *kv, struct kv_list *list, uint32_t n, struct err *e) {
    if (n <= list->room) return 0;
    uint32_t room = MAX(KV_TABLE_ROOM, list->room);
    while (room < n) room *= 2;
    void *table;
    struct kmem *mem = kernels_alloc(kv->k, room * sizeof(void *), &table, e);
    if (!mem) return err_wrap(e, ERR_NOMEM, "table of %u pages of state", room);
    kernels_release(kv->k, list->table_mem);
    list->page = xrealloc(list->page, room * sizeof(struct kv_page *));
    list->table_mem = mem;
    list->table = table;
    list->room = room;
    return list_upload(kv, list, 0, e);
}

/* The list reaches n pages, and those from `first` on are ours alone (they will be written). */
static int list_reserve(struct kv_cache *kv, struct kv_pool *pool, struct kv_list *list, uint32_t first,
                        uint32_t n, struct err *e) {
    int rc = list_room(kv, list, n, e);
    for (uint32_t i = first; rc == 0 && i < list->n; i++) {
        if (list->page[i]->refs == 1) continue;
        struct kv_page *own = page_get(kv, pool, e);
        if (!own) return ERR_NOMEM;
        rc = page_copy(kv, pool, own, list->page[i], e);
        page_put(pool, rc == 0 ? list->page[i] : own);
        if (rc == 0) list->page[i] = own;
    }
    uint32_t before = list->n;
    while (rc == 0 && list->n < n) {
        struct kv_page *page = page_get(kv, pool, e);
        if (!page) rc = ERR_NOMEM;
        else list->page[list->n++] = page;
    }
    int rc_upload = list_upload(kv, list, MIN(first, before), e);
    return rc < 0 ? rc : rc_upload;
}

/* ---- slots ---- */

static int slice_upload(struct kv_cache *kv, uint32_t slot, uint32_t i, struct err *e) {
    struct kv_slot_layer *layer = &kv->slot[slot].layer[i];
    layer->slice.pages = layer->entries.table;
    layer->slice.idx_pages = layer->keys.table;
    return kernels_upload(kv->k, (void *)(uintptr_t)(kv->layer[i].slices + slot), &layer->slice,
                          sizeof layer->slice, e);
}

static int rings_open(struct kv_cache *kv, uint32_t slot, struct err *e) {
    struct kv_slot *s = &kv->slot[slot];
    void *data;
    s->rings = kernels_alloc(kv->k, MAX(kv->ring_bytes, 1), &data, e);
    if (!s->rings) return err_wrap(e, ERR_NOMEM, "state of a new sequence");
    uint8_t *at = data;
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        struct ring_sizes size = ring_sizes(&kv->layer[i]);
        s->layer[i].slice.raw = at;
        s->layer[i].slice.hist = (float *)(void *)(at + size.raw);
        s->layer[i].slice.idx_hist = (float *)(void *)(at + size.raw + size.hist);
        at += size.raw + size.hist + size.idx_hist;
    }
    return 0;
}

int kv_slot_open(struct kv_cache *kv, uint32_t *slot, struct err *e) {
    uint32_t i = 0;
    while (i < kv->config.n_slots && kv->slot[i].open) i++;
    if (i == kv->config.n_slots)
        return err_set(e, ERR_BUSY, "all %u sequences are in use", kv->config.n_slots);
    struct kv_slot *s = &kv->slot[i];
    *s = (struct kv_slot){ .open = true, .layer = xcalloc(MAX(kv->n_layers, 1), sizeof *s->layer) };
    int rc = rings_open(kv, i, e);
    for (uint32_t l = 0; rc == 0 && l < kv->n_layers; l++) rc = slice_upload(kv, i, l, e);
    if (rc < 0) kv_slot_close(kv, i);
    else *slot = i;
    return rc;
}

void kv_slot_close(struct kv_cache *kv, uint32_t slot) {
    struct kv_slot *s = &kv->slot[slot];
    if (!s->open) return;
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        list_free(kv, &kv->rows, &s->layer[i].entries);
        list_free(kv, &kv->keys, &s->layer[i].keys);
    }
    kernels_release(kv->k, s->rings);
    free(s->layer);
    *s = (struct kv_slot){ 0 };
}

void kv_cache_free(struct kv_cache *kv) {
    if (!kv) return;
    for (uint32_t i = 0; i < kv->config.n_slots; i++) kv_slot_close(kv, i);
    pool_deinit(kv, &kv->rows);
    pool_deinit(kv, &kv->keys);
    kernels_release(kv->k, kv->slices_mem);
    free(kv->slot);
    free(kv->layer);
    free(kv);
}

bool kv_slot_is_open(const struct kv_cache *kv, uint32_t slot) {
    return slot < kv->config.n_slots && kv->slot[slot].open;
}

uint32_t kv_slot_len(const struct kv_cache *kv, uint32_t slot) {
    return kv->slot[slot].len;
}

int kv_slot_reserve(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens, struct err *e) {
    struct kv_slot *s = &kv->slot[slot];
    if (n_tokens > kv->config.n_ctx_max)
        return err_set(e, ERR_LIMIT, "position %u is past the context limit of %u tokens", n_tokens - 1,
                       kv->config.n_ctx_max);
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        uint32_t ratio = (uint32_t)kv->layer[i].ratio;
        if (!ratio) continue;
        uint32_t first = s->len / ratio / KV_PAGE, n = (n_tokens / ratio + KV_PAGE - 1) / KV_PAGE;
        int rc = list_reserve(kv, &kv->rows, &s->layer[i].entries, first, n, e);
        if (rc == 0 && kv->layer[i].overlap) rc = list_reserve(kv, &kv->keys, &s->layer[i].keys, first, n, e);
        if (rc == 0) rc = slice_upload(kv, slot, i, e);
        if (rc < 0) return rc;
    }
    return 0;
}

bool kv_slot_is_whole(const struct kv_cache *kv, uint32_t slot) {
    const struct kv_slot *s = &kv->slot[slot];
    return s->len == 0 || s->len + KV_ROLLBACK >= s->high;
}

void kv_slot_begin(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens) {
    struct kv_slot *s = &kv->slot[slot];
    s->high = s->len ? MAX(s->high, s->len + n_tokens) : n_tokens;
}

void kv_slot_advance(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens) {
    struct kv_slot *s = &kv->slot[slot];
    CHECK(s->len + n_tokens <= s->high);
    s->len += n_tokens;
}

static int rollback_check(const struct kv_slot *s, uint32_t n_tokens, struct err *e) {
    if (n_tokens > s->len)
        return err_set(e, ERR_INVALID, "cannot go back to %u tokens: only %u are stored", n_tokens, s->len);
    if (n_tokens == 0 || n_tokens + KV_ROLLBACK >= s->high) return 0;
    return err_set(e, ERR_INVALID, "cannot go back from %u to %u tokens: at most %d can be taken back",
                   s->high, n_tokens, KV_ROLLBACK);
}

int kv_slot_rollback(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens, struct err *e) {
    struct kv_slot *s = &kv->slot[slot];
    int rc = rollback_check(s, n_tokens, e);
    if (rc < 0) return rc;
    s->len = n_tokens;
    if (n_tokens == 0) s->high = 0;
    return 0;
}

static int list_share(struct kv_cache *kv, struct kv_list *to, const struct kv_list *from, uint32_t n,
                      struct err *e) {
    int rc = list_room(kv, to, n, e);
    for (; rc == 0 && to->n < n; to->n++) {
        to->page[to->n] = from->page[to->n];
        to->page[to->n]->refs++;
    }
    return rc == 0 ? list_upload(kv, to, 0, e) : rc;
}

static int rings_copy(struct kv_cache *kv, const struct kv_slot *to, const struct kv_slot *from,
                      struct err *e) {
    if (!kv->ring_bytes) return 0;
    void *bytes = malloc(kv->ring_bytes);
    if (!bytes)
        return err_set(e, ERR_NOMEM, "cannot copy %llu bytes of state",
                       (unsigned long long)kv->ring_bytes);
    int rc = kernels_download(kv->k, bytes, from->layer[0].slice.raw, kv->ring_bytes, e);
    if (rc == 0) rc = kernels_upload(kv->k, to->layer[0].slice.raw, bytes, kv->ring_bytes, e);
    free(bytes);
    return rc;
}

int kv_slot_fork(struct kv_cache *kv, uint32_t from, uint32_t n_tokens, uint32_t *slot, struct err *e) {
    const struct kv_slot *source = &kv->slot[from];
    uint32_t to;
    int rc = rollback_check(source, n_tokens, e);
    if (rc == 0) rc = kv_slot_open(kv, &to, e);
    if (rc < 0) return rc;
    rc = rings_copy(kv, &kv->slot[to], source, e);
    for (uint32_t i = 0; rc == 0 && i < kv->n_layers; i++) {
        uint32_t ratio = (uint32_t)kv->layer[i].ratio;
        if (!ratio) continue;
        uint32_t n = (n_tokens / ratio + KV_PAGE - 1) / KV_PAGE;
        rc = list_share(kv, &kv->slot[to].layer[i].entries, &source->layer[i].entries, n, e);
        if (rc == 0 && kv->layer[i].overlap)
            rc = list_share(kv, &kv->slot[to].layer[i].keys, &source->layer[i].keys, n, e);
        if (rc == 0) rc = slice_upload(kv, to, i, e);
    }
    if (rc < 0) {
        kv_slot_close(kv, to);
        return rc;
    }
    kv->slot[to].len = n_tokens;
    kv->slot[to].high = n_tokens ? source->high : 0;
    *slot = to;
    return 0;
}

/* ---- accounting ---- */

uint64_t kv_cache_bytes(const struct kv_cache *kv) {
    uint64_t total = kv->rows.n_used * kv->rows.page_bytes + kv->keys.n_used * kv->keys.page_bytes;
    for (uint32_t i = 0; i < kv->config.n_slots; i++)
        if (kv->slot[i].open) total += kv->ring_bytes;
    return total;
}

uint64_t kv_cache_bytes_for(const struct kv_cache *kv, uint32_t n_tokens) {
    uint64_t total = kv->ring_bytes;
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        uint32_t ratio = (uint32_t)kv->layer[i].ratio;
        if (!ratio) continue;
        uint64_t n = (n_tokens / ratio + KV_PAGE - 1) / KV_PAGE;
        total += n * (kv->rows.page_bytes + sizeof(void *));
        if (kv->layer[i].overlap) total += n * (kv->keys.page_bytes + sizeof(void *));
    }
    return total;
}

/* ---- snapshots ---- */

struct kv_header {
    char magic[4];
    uint32_t version, numerics, n_tokens, n_written, layer_begin, layer_end, mtp;
    uint32_t head_dim, n_rot, idx_dim, n_swa, rollback, ratios_hash;
};

static struct kv_header header_for(const struct kv_cache *kv, uint32_t n_tokens, uint32_t n_written) {
    const struct hparams *hp = kv->config.hp;
    struct kv_header h = {
        .magic = "PLKV",
        .version = KV_VERSION,
        .numerics = kv->config.numerics,
        .n_tokens = n_tokens,
        .n_written = n_written,
        .layer_begin = kv->config.layer_begin,
        .layer_end = kv->config.layer_end,
        .mtp = kv->config.mtp,
        .head_dim = hp->head_dim,
        .n_rot = hp->n_rot,
        .idx_dim = hp->idx_dim,
        .n_swa = hp->n_swa,
        .rollback = KV_ROLLBACK,
        .ratios_hash = (uint32_t)hash_64(hp->ratio, hp->n_layer * sizeof hp->ratio[0], 0),
    };
    return h;
}

/* One direction of a transfer between the device and the snapshot's bytes; save and restore walk the same
 * list. */
struct kv_transfer {
    struct kv_cache *kv;
    struct buf *out;                               /* saving */
    const uint8_t *in, *end;                       /* restoring */
    struct err *e;
    int rc;
};

static void transfer(struct kv_transfer *t, void *device, uint64_t size) {
    if (t->rc < 0 || size == 0) return;
    if (t->out) {
        char *to = buf_grow(t->out, size);
        t->rc = to ? kernels_download(t->kv->k, to, device, size, t->e)
                   : err_set(t->e, ERR_NOMEM, "the snapshot does not fit into memory");
    } else if ((uint64_t)(t->end - t->in) < size) {
        t->rc = err_set(t->e, ERR_CORRUPT, "the snapshot ends too early");
    } else {
        t->rc = kernels_upload(t->kv->k, device, t->in, size, t->e);
        t->in += size;
    }
}

/* What a ring still holds of the positions below len, by position. Rows that were taken back have
 * overwritten older ones, so the ring reaches back from the highest row ever written, not from len. */
static void transfer_ring(struct kv_transfer *t, void *ring, uint32_t cap, uint64_t row_bytes,
                          const struct kv_slot *s) {
    for (uint32_t pos = s->high > cap ? s->high - cap : 0; pos < s->len; pos++)
        transfer(t, (uint8_t *)ring + (pos % cap) * row_bytes, row_bytes);
}

static void transfer_pages(struct kv_transfer *t, const struct kv_list *list, uint64_t n, uint64_t bytes) {
    for (uint64_t i = 0; t->rc == 0 && i < n; i += KV_PAGE)   /* after a failure the pages may not exist */
        transfer(t, list->page[i / KV_PAGE]->data, MIN(n - i, KV_PAGE) * bytes);
}

static void transfer_slot(struct kv_transfer *t, struct kv_slot *s) {
    for (uint32_t i = 0; i < t->kv->n_layers; i++) {
        const struct kv_layer *layer = &t->kv->layer[i];
        struct kv_slot_layer *state = &s->layer[i];
        transfer_ring(t, state->slice.raw, (uint32_t)layer->raw_cap, (uint64_t)layer->row_bytes, s);
        if (!layer->ratio) continue;
        uint64_t n = s->len / (uint32_t)layer->ratio;
        transfer_ring(t, state->slice.hist, (uint32_t)layer->hist_cap, hist_bytes(layer, layer->head_dim), s);
        transfer_pages(t, &state->entries, n, (uint64_t)layer->row_bytes);
        if (!layer->overlap) continue;
        transfer_ring(t, state->slice.idx_hist, (uint32_t)layer->hist_cap,
                      hist_bytes(layer, layer->idx_dim), s);
        transfer_pages(t, &state->keys, n, (uint64_t)layer->key_bytes);
    }
}

int kv_slot_save(struct kv_cache *kv, uint32_t slot, struct buf *out, struct err *e) {
    const struct kv_slot *s = &kv->slot[slot];
    struct kv_header header = header_for(kv, s->len, s->high);
    size_t start = out->size;
    if (!kv_slot_is_whole(kv, slot))
        return err_set(e, ERR_INVALID, "sequence %u lost its state in a batch that failed", slot);
    struct kv_transfer t = { .kv = kv, .out = out, .e = e };
    if (buf_add(out, &header, sizeof header) < 0)
        return err_set(e, ERR_NOMEM, "the snapshot does not fit into memory");
    transfer_slot(&t, &kv->slot[slot]);
    if (t.rc < 0) return t.rc;
    struct hash128 sum = hash_128(out->data + start, out->size - start);
    if (buf_add(out, &sum, sizeof sum) < 0)
        return err_set(e, ERR_NOMEM, "the snapshot does not fit into memory");
    return 0;
}

static int snapshot_check(const struct kv_cache *kv, const uint8_t *data, size_t size,
                          struct kv_header *header, struct err *e) {
    struct hash128 sum;
    if (size < sizeof *header + sizeof sum)
        return err_set(e, ERR_CORRUPT, "%zu bytes are too few for a snapshot", size);
    memcpy(header, data, sizeof *header);
    if (memcmp(header->magic, "PLKV", 4) != 0 || header->version != KV_VERSION)
        return err_set(e, ERR_CORRUPT, "not a snapshot of this version");
    memcpy(&sum, data + size - sizeof sum, sizeof sum);
    if (!hash_equal(sum, hash_128(data, size - sizeof sum)))
        return err_set(e, ERR_CORRUPT, "the snapshot's checksum is wrong");
    struct kv_header want = header_for(kv, header->n_tokens, header->n_written);
    if (memcmp(&want, header, sizeof want) != 0)
        return err_set(e, ERR_STALE, "the snapshot belongs to another model, numerics or layer range");
    uint32_t n = header->n_tokens, n_back = header->n_written - n, n_back_max = n ? KV_ROLLBACK : 0;
    if (header->n_written < n || n_back > n_back_max)
        return err_set(e, ERR_CORRUPT, "the snapshot has %u tokens of %u written", n, header->n_written);
    return 0;
}

int kv_slot_restore(struct kv_cache *kv, const void *data, size_t size, uint32_t *slot, struct err *e) {
    struct kv_header header;
    uint32_t to;
    int rc = snapshot_check(kv, data, size, &header, e);
    if (rc == 0) rc = kv_slot_open(kv, &to, e);
    if (rc < 0) return rc;
    rc = kv_slot_reserve(kv, to, header.n_tokens, e);
    kv->slot[to].len = header.n_tokens;
    kv->slot[to].high = header.n_written;
    struct kv_transfer t = { .kv = kv, .in = (const uint8_t *)data + sizeof header, .e = e, .rc = rc };
    t.end = (const uint8_t *)data + size - sizeof(struct hash128);
    transfer_slot(&t, &kv->slot[to]);
    if (t.rc == 0 && t.in != t.end) t.rc = err_set(e, ERR_CORRUPT, "the snapshot has bytes left over");
    if (t.rc == 0) t.rc = kernels_finish(kv->k, e);
    if (t.rc < 0) kv_slot_close(kv, to);
    else *slot = to;
    return t.rc;
}
