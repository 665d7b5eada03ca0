/* replay - see the header. Blocks lie in a list, most recently used first; ids in a table with chains.
 *
 * Saved form, little endian: "PLREPLAY", u32 version, u32 blocks; for each block u32 ids, u32 bytes of the
 * text, per id u32 bytes and the id, the text; at the end u64 XXH3 of everything before. */
#include "coordinator/replay.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/model/dsml.h"

enum { VERSION = 1, MAGIC_BYTES = 8, HEAD_BYTES = MAGIC_BYTES + 8, BUCKETS_FIRST = 256 };
static const char magic[MAGIC_BYTES + 1] = "PLREPLAY";

struct block;
struct id {
    struct id *next;                              /* in its bucket */
    struct block *block;
    uint64_t hash;
    struct chat_text text;                        /* in the block's memory */
};

struct block {
    struct block *newer, *older;
    struct chat_text text;
    size_t bytes;                                 /* all that it costs */
    uint32_t n_ids;
    struct id id[];                               /* then the texts */
};

struct replay {
    size_t bytes_max;
    struct block *newest, *oldest;
    struct id **bucket;
    uint32_t n_buckets;
    struct replay_stats stats;
};

/* ---- the list and the table ---- */

static void unlink_block(struct replay *r, struct block *b) {
    if (b->newer) b->newer->older = b->older;
    else r->newest = b->older;
    if (b->older) b->older->newer = b->newer;
    else r->oldest = b->newer;
}

static void link_newest(struct replay *r, struct block *b) {
    b->newer = NULL;
    b->older = r->newest;
    if (r->newest) r->newest->newer = b;
    else r->oldest = b;
    r->newest = b;
}

static struct id **place_of(const struct replay *r, struct chat_text text, uint64_t hash) {
    struct id **at = &r->bucket[hash & (r->n_buckets - 1)];
    while (*at && !((*at)->hash == hash && chat_text_equal((*at)->text, text))) at = &(*at)->next;
    return at;
}

static struct id *find_id(const struct replay *r, struct chat_text text) {
    return text.len ? *place_of(r, text, hash_64(text.data, text.len, 0)) : NULL;
}

static void drop_block(struct replay *r, struct block *b) {
    for (uint32_t i = 0; i < b->n_ids; i++) {
        struct id **at = &r->bucket[b->id[i].hash & (r->n_buckets - 1)];
        while (*at != &b->id[i]) at = &(*at)->next;
        *at = b->id[i].next;
    }
    unlink_block(r, b);
    r->stats.n_blocks--;
    r->stats.n_ids -= b->n_ids;
    r->stats.bytes -= b->bytes;
    free(b);
}

static void grow_table(struct replay *r) {
    uint32_t n = r->n_buckets * 2;
    struct id **bucket = calloc(n, sizeof *bucket);
    if (!bucket) return;                          /* longer chains will do */
    for (struct block *b = r->newest; b; b = b->older) {
        for (uint32_t i = 0; i < b->n_ids; i++) {
            struct id **at = &bucket[b->id[i].hash & (n - 1)];
            b->id[i].next = *at;
            *at = &b->id[i];
        }
    }
    r->stats.bytes += (n - r->n_buckets) * sizeof *bucket;
    free(r->bucket);
    r->bucket = bucket;
    r->n_buckets = n;
}

int replay_new(struct replay **out, size_t bytes_max, struct err *e) {
    struct replay *r = xcalloc(1, sizeof *r);
    r->bytes_max = bytes_max ? bytes_max : REPLAY_BYTES_DEFAULT;
    r->n_buckets = BUCKETS_FIRST;
    r->bucket = calloc(r->n_buckets, sizeof(struct id *));
    r->stats.bytes = sizeof *r + r->n_buckets * sizeof *r->bucket;
    *out = r;
    if (r->bucket) return 0;
    free(r);
    *out = NULL;
    return err_set(e, ERR_NOMEM, "memory of tool calls");
}

void replay_free(struct replay *r) {
    if (!r) return;
    while (r->newest) drop_block(r, r->newest);
    free(r->bucket);
    free(r);
}

/* ---- keeping ---- */

static int check_put(const struct chat_text *ids, size_t n_ids, struct chat_text block, struct err *e) {
    if (n_ids == 0 || n_ids > REPLAY_IDS_MAX) return err_set(e, ERR_LIMIT, "a block of %zu calls", n_ids);
    if (block.len > REPLAY_BLOCK_BYTES_MAX) return err_set(e, ERR_LIMIT, "a block of %zu bytes", block.len);
    for (size_t i = 0; i < n_ids; i++) {
        if (!ids[i].len) return err_set(e, ERR_INVALID, "a tool call without an id");
        if (ids[i].len > REPLAY_ID_BYTES_MAX) return err_set(e, ERR_LIMIT, "an id of %zu bytes", ids[i].len);
        for (size_t k = 0; k < i; k++)
            if (chat_text_equal(ids[i], ids[k])) return err_set(e, ERR_INVALID, "two tool calls with one id");
    }
    return 0;
}

static size_t bytes_of(const struct chat_text *ids, size_t n_ids, struct chat_text block) {
    size_t bytes = sizeof(struct block) + n_ids * sizeof(struct id) + block.len;
    for (size_t i = 0; i < n_ids; i++) bytes += ids[i].len;
    return bytes;
}

static struct chat_text copy_to(char **at, struct chat_text text) {
    struct chat_text copy = { *at, text.len };
    if (text.len) memcpy(*at, text.data, text.len);
    *at += text.len;
    return copy;
}

int replay_put(struct replay *r, const struct chat_text *ids, size_t n_ids, struct chat_text block,
               struct err *e) {
    int rc = check_put(ids, n_ids, block, e);
    if (rc < 0) return rc;
    size_t bytes = bytes_of(ids, n_ids, block);
    if (bytes > r->bytes_max) return err_set(e, ERR_LIMIT, "a block of %zu bytes", block.len);
    struct block *b = malloc(bytes);
    if (!b) return err_set(e, ERR_NOMEM, "a block of %zu bytes", block.len);
    for (size_t i = 0; i < n_ids; i++) {
        struct id *old = find_id(r, ids[i]);
        if (old) drop_block(r, old->block);       /* without this id it could stand for nothing */
    }
    for (; r->oldest && r->stats.bytes + bytes > r->bytes_max; r->stats.n_evicted++) drop_block(r, r->oldest);
    char *texts = (char *)&b->id[n_ids];
    *b = (struct block){ .bytes = bytes, .n_ids = (uint32_t)n_ids };
    b->text = copy_to(&texts, block);
    link_newest(r, b);
    for (size_t i = 0; i < n_ids; i++) {
        struct chat_text text = copy_to(&texts, ids[i]);
        uint64_t hash = hash_64(text.data, text.len, 0);
        struct id **at = &r->bucket[hash & (r->n_buckets - 1)];
        b->id[i] = (struct id){ *at, b, hash, text };
        *at = &b->id[i];
    }
    r->stats.n_put++;
    r->stats.n_blocks++;
    r->stats.n_ids += n_ids;
    r->stats.bytes += bytes;
    if (r->stats.n_ids > r->n_buckets) grow_table(r);
    return 0;
}

/* ---- using ---- */

/* The block whose calls are just these, by their ids. */
static struct block *block_of(struct replay *r, const struct chat_message *m) {
    struct id *first = find_id(r, m->calls[0].id);
    if (!first || first->block->n_ids != m->n_calls) return NULL;
    for (size_t i = 0; i < m->n_calls; i++)
        if (!chat_text_equal(first->block->id[i].text, m->calls[i].id)) return NULL;
    return first->block;
}

static int fill_one(struct replay *r, struct chat_message *m, struct arena *a) {
    struct block *b = block_of(r, m);
    if (!b) {
        r->stats.n_miss++;
        return 0;
    }
    unlink_block(r, b);
    link_newest(r, b);
    if (!dsml_block_says(b->text, m->calls, m->n_calls)) {            /* the client changed something */
        r->stats.n_differ++;
        return 0;
    }
    char *copy = arena_text(a, b->text.data, b->text.len);
    if (!copy) return ERR_LIMIT;
    m->replay = (struct chat_text){ copy, b->text.len };
    r->stats.n_hit++;
    return 1;
}

int replay_fill(struct replay *r, struct chat_message *messages, size_t n, struct arena *a) {
    int n_filled = 0;
    for (size_t i = 0; i < n; i++) {
        if (messages[i].role != CHAT_ROLE_ASSISTANT || !messages[i].n_calls) continue;
        int rc = fill_one(r, &messages[i], a);
        if (rc < 0) return rc;
        n_filled += rc;
    }
    return n_filled;
}

struct replay_stats replay_stats(const struct replay *r) {
    return r->stats;
}

/* ---- saving ---- */

static void put_u32(struct buf *out, size_t value) {
    const uint8_t bytes[4] = { (uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
                               (uint8_t)(value >> 24) };
    buf_add(out, bytes, sizeof bytes);
}

static bool is_wanted(const struct block *b, const struct chat_text *ids, size_t n_ids) {
    for (uint32_t i = 0; i < b->n_ids; i++)
        for (size_t k = 0; k < n_ids; k++)
            if (chat_text_equal(b->id[i].text, ids[k])) return true;
    return n_ids == 0;
}

static void save_block(const struct block *b, struct buf *out) {
    put_u32(out, b->n_ids);
    put_u32(out, b->text.len);
    for (uint32_t i = 0; i < b->n_ids; i++) {
        put_u32(out, b->id[i].text.len);
        buf_add(out, b->id[i].text.data, b->id[i].text.len);
    }
    buf_add(out, b->text.data, b->text.len);
}

int replay_save(const struct replay *r, const struct chat_text *ids, size_t n_ids, struct buf *out) {
    size_t start = out->size, n = 0;
    for (const struct block *b = r->oldest; b; b = b->newer) n += is_wanted(b, ids, n_ids);
    buf_add(out, magic, MAGIC_BYTES);
    put_u32(out, VERSION);
    put_u32(out, n);
    for (const struct block *b = r->oldest; b; b = b->newer)
        if (is_wanted(b, ids, n_ids)) save_block(b, out);
    if (out->rc < 0) return out->rc;
    uint64_t sum = hash_64(out->data + start, out->size - start, 0);
    put_u32(out, sum & UINT32_MAX);
    put_u32(out, sum >> 32);
    return out->rc;
}

/* ---- loading ---- */

struct reader { const uint8_t *at, *end; };

static bool read_u32(struct reader *in, uint32_t *value) {
    if (in->end - in->at < 4) return false;
    *value = (uint32_t)in->at[0] | (uint32_t)in->at[1] << 8 | (uint32_t)in->at[2] << 16 |
             (uint32_t)in->at[3] << 24;
    in->at += 4;
    return true;
}

static bool read_text(struct reader *in, uint32_t n, struct chat_text *text) {
    if ((size_t)(in->end - in->at) < n) return false;
    *text = (struct chat_text){ (const char *)in->at, n };
    in->at += n;
    return true;
}

/* One block; r NULL: only looks whether it is one. */
static bool load_block(struct reader *in, struct replay *r) {
    struct chat_text ids[REPLAY_IDS_MAX], text;
    uint32_t n_ids, n_text, n;
    if (!read_u32(in, &n_ids) || !read_u32(in, &n_text) || n_ids > REPLAY_IDS_MAX) return false;
    for (uint32_t i = 0; i < n_ids; i++)
        if (!read_u32(in, &n) || !read_text(in, n, &ids[i])) return false;
    if (!read_text(in, n_text, &text) || check_put(ids, n_ids, text, NULL) < 0) return false;
    if (r) replay_put(r, ids, n_ids, text, NULL); /* too large for this memory: then without it */
    return true;
}

int replay_load(struct replay *r, const void *data, size_t size, struct err *e) {
    struct reader in = { data, (const uint8_t *)data + size };
    uint32_t version = 0, n = 0, lo = 0, hi = 0;
    if (size < HEAD_BYTES + 8 || memcmp(data, magic, MAGIC_BYTES) != 0)
        return err_set(e, ERR_CORRUPT, "not a memory of tool calls");
    struct reader tail = { in.end - 8, in.end };
    uint64_t sum = hash_64(data, size - 8, 0);
    read_u32(&tail, &lo);
    read_u32(&tail, &hi);
    if (sum != ((uint64_t)hi << 32 | lo))
        return err_set(e, ERR_CORRUPT, "memory of tool calls: wrong checksum");
    in.at += MAGIC_BYTES;
    in.end -= 8;
    read_u32(&in, &version);
    read_u32(&in, &n);
    if (version != VERSION) return err_set(e, ERR_CORRUPT, "memory of tool calls: version %u", version);
    struct reader look = in;
    bool fits = true;
    for (uint32_t i = 0; i < n && fits; i++) fits = load_block(&look, NULL);
    if (!fits || look.at != look.end) return err_set(e, ERR_CORRUPT, "memory of tool calls: damaged");
    for (uint32_t i = 0; i < n; i++) load_block(&in, r);
    return 0;
}
