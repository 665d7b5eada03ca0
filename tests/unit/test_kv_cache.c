/* The state of sequences without a model: what the next token would read must be there, whatever was
 * opened, forked, taken back, saved, refused or failed before. A "batch" here writes a number made of
 * (layer, kind, position, token) where the operations would write rows; the check reads all that the
 * next token needs and nothing else. */
#include "tests/harness/tiny_model.h"
#include "tests/harness/test.h"

#include "node/kv_cache.h"

enum { N_CTX = 5000, N_SLOTS = 6 };

/* ---- a device whose memory can run out ---- */

static const struct kernels_ops *real_ops;
static struct kernels_ops bad_ops;
static int allocs_left = -1;                          /* -1: no limit */
static int n_live;

static struct kmem *bad_alloc(struct kernels *k, uint64_t size, void **data, struct err *e) {
    *data = NULL;
    if (allocs_left == 0) {
        err_set(e, ERR_NOMEM, "no more memory in this test");
        return NULL;
    }
    if (allocs_left > 0) allocs_left--;
    struct kmem *mem = real_ops->alloc(k, size, data, e);
    n_live += mem != NULL;
    return mem;
}

static void bad_release(struct kernels *k, struct kmem *mem) {
    n_live--;
    real_ops->release(k, mem);
}

static struct kernels *device_open(void) {
    struct kernels_config config = { .backend = "cpu", .n_threads = 1 };
    struct kernels *k;
    struct err e;
    assert_fine(kernels_open(&k, &config, &e), &e);
    real_ops = k->ops;
    bad_ops = *k->ops;
    bad_ops.alloc = bad_alloc;
    bad_ops.release = bad_release;
    k->ops = &bad_ops;
    allocs_left = -1;
    n_live = 0;
    return k;
}

/* ---- sequences with contents ---- */

struct cache {
    struct kernels *k;
    struct hparams hp;
    struct kv_cache *kv;
    uint32_t layer_begin, layer_end;
    bool mtp;
};

struct seq {
    uint32_t slot, len;
    int32_t token[N_CTX];
};

static void cache_open_as(struct cache *c, const struct hparams *hp, enum numerics numerics,
                          uint32_t begin, uint32_t end, bool mtp) {
    struct err e;
    *c = (struct cache){ .k = device_open(), .hp = *hp, .layer_begin = begin, .layer_end = end, .mtp = mtp };
    struct kv_config config = { .hp = &c->hp,
                                .numerics = numerics,
                                .layer_begin = begin,
                                .layer_end = end,
                                .mtp = mtp,
                                .n_slots = N_SLOTS,
                                .n_ctx_max = N_CTX };
    assert_fine(kv_cache_new(&c->kv, c->k, &config, &e), &e);
}

static void cache_open(struct cache *c) {
    struct hparams hp;
    tiny_shape(&hp, 'a');
    cache_open_as(c, &hp, NUMERICS_OFFICIAL, 0, hp.n_layer, false);
}

static void cache_close(struct cache *c) {
    kv_cache_free(c->kv);
    assert_int_equal(n_live, 0);
    kernels_close(c->k);
}

static void fill(uint8_t *to, int32_t bytes, uint32_t layer, uint32_t kind, uint32_t pos, int32_t token) {
    uint64_t x = rng_at(layer * 8 + kind, (uint64_t)pos << 32 | (uint32_t)token);
    for (int32_t i = 0; i < bytes; i++) to[i] = (uint8_t)(x >> 8 * (i % 8)) ^ (uint8_t)i;
}

/* Where a row of each kind lies, and its size. */
struct place {
    uint8_t *at;
    int32_t bytes;
};

enum kind { RAW, HISTORY, ENTRY, KEY_HISTORY, KEY };

static struct place place(const struct kv_layer *layer, uint32_t slot, enum kind kind, uint32_t i) {
    const struct kv_slice *slice = &layer->slices[slot];
    int32_t columns = 2 * 4 * (layer->overlap + 1);
    struct place p = { NULL, kind == KEY ? layer->key_bytes : layer->row_bytes };
    if (kind == HISTORY || kind == KEY_HISTORY)
        p.bytes = columns * (kind == HISTORY ? layer->head_dim : layer->idx_dim);
    if (kind == RAW) p.at = slice->raw + i % (uint32_t)layer->raw_cap * (uint32_t)p.bytes;
    if (kind == HISTORY) p.at = (uint8_t *)slice->hist + i % (uint32_t)layer->hist_cap * (uint32_t)p.bytes;
    if (kind == KEY_HISTORY)
        p.at = (uint8_t *)slice->idx_hist + i % (uint32_t)layer->hist_cap * (uint32_t)p.bytes;
    if (kind == ENTRY) p.at = slice->pages[i / KV_PAGE] + i % KV_PAGE * (uint32_t)p.bytes;
    if (kind == KEY) p.at = slice->idx_pages[i / KV_PAGE] + i % KV_PAGE * (uint32_t)p.bytes;
    return p;
}

/* Row i of a kind is made of a position and its token; an entry's position is its window's last. */
static void put(const struct cache *c, uint32_t l, const struct seq *s, enum kind kind, uint32_t i,
                uint32_t pos) {
    struct place p = place(kv_layer_view(c->kv, l), s->slot, kind, i);
    fill(p.at, p.bytes, l, kind, pos, s->token[pos]);
}

static void expect(const struct cache *c, uint32_t l, const struct seq *s, enum kind kind,
                   uint32_t i, uint32_t pos) {
    static const char *const names[] = { "raw row", "history", "entry", "key history", "key" };
    struct place p = place(kv_layer_view(c->kv, l), s->slot, kind, i);
    uint8_t want[8192];
    CHECK(p.bytes <= (int32_t)sizeof want);
    fill(want, p.bytes, l, kind, pos, s->token[pos]);
    if (memcmp(p.at, want, (size_t)p.bytes) != 0)
        fail_msg("layer %u: %s %u (position %u) is not what was written", l, names[kind], i, pos);
}

/* What the operations write for one token. */
static void write_token(const struct cache *c, uint32_t l, const struct seq *s, uint32_t pos) {
    const struct kv_layer *layer = kv_layer_view(c->kv, l);
    uint32_t ratio = (uint32_t)layer->ratio;
    put(c, l, s, RAW, pos, pos);
    if (!ratio) return;
    put(c, l, s, HISTORY, pos, pos);
    if (layer->overlap) put(c, l, s, KEY_HISTORY, pos, pos);
    if ((pos + 1) % ratio) return;
    put(c, l, s, ENTRY, pos / ratio, pos);
    if (layer->overlap) put(c, l, s, KEY, pos / ratio, pos);
}

static uint32_t layer_end(const struct cache *c) {
    return c->layer_end + c->mtp;
}

static int try_batch(struct cache *c, struct seq *s, uint32_t n, int32_t token, struct err *e) {
    int rc = kv_slot_reserve(c->kv, s->slot, s->len + n, e);
    if (rc < 0) return rc;
    kv_slot_begin(c->kv, s->slot, n);
    for (uint32_t i = 0; i < n; i++) s->token[s->len + i] = token + (int32_t)i;
    for (uint32_t l = c->layer_begin; l < layer_end(c); l++)
        for (uint32_t i = 0; i < n; i++) write_token(c, l, s, s->len + i);
    kv_slot_advance(c->kv, s->slot, n);
    s->len += n;
    return 0;
}

static void batch(struct cache *c, struct seq *s, uint32_t n, int32_t token) {
    struct err e;
    assert_fine(try_batch(c, s, n, token, &e), &e);
}

/* What token `len` reads: n_swa - 1 rows, the window it may complete (with overlap the one before), all
 * entries and keys. */
static void check_layer(const struct cache *c, uint32_t l, const struct seq *s) {
    const struct kv_layer *layer = kv_layer_view(c->kv, l);
    uint32_t ratio = (uint32_t)layer->ratio, window = (uint32_t)layer->n_swa - 1;
    for (uint32_t pos = s->len > window ? s->len - window : 0; pos < s->len; pos++)
        expect(c, l, s, RAW, pos, pos);
    if (!ratio) return;
    uint32_t start = s->len / ratio * ratio, back = layer->overlap ? ratio : 0;
    for (uint32_t pos = start > back ? start - back : 0; pos < s->len; pos++) {
        expect(c, l, s, HISTORY, pos, pos);
        if (layer->overlap) expect(c, l, s, KEY_HISTORY, pos, pos);
    }
    for (uint32_t w = 0; w < s->len / ratio; w++) {
        expect(c, l, s, ENTRY, w, w * ratio + ratio - 1);
        if (layer->overlap) expect(c, l, s, KEY, w, w * ratio + ratio - 1);
    }
}

static void check(const struct cache *c, const struct seq *s) {
    assert_true(kv_slot_is_open(c->kv, s->slot));
    assert_int_equal(kv_slot_len(c->kv, s->slot), s->len);
    for (uint32_t l = c->layer_begin; l < layer_end(c); l++) check_layer(c, l, s);
}

static struct seq *seq_open(struct cache *c) {
    struct seq *s = xcalloc(1, sizeof *s);
    struct err e;
    assert_fine(kv_slot_open(c->kv, &s->slot, &e), &e);
    return s;
}

static void seq_close(struct cache *c, struct seq *s) {
    kv_slot_close(c->kv, s->slot);
    assert_false(kv_slot_is_open(c->kv, s->slot));
    free(s);
}

static void rollback(struct cache *c, struct seq *s, uint32_t n) {
    struct err e;
    assert_fine(kv_slot_rollback(c->kv, s->slot, n, &e), &e);
    s->len = n;
}

static struct seq *fork_at(struct cache *c, const struct seq *from, uint32_t n) {
    struct seq *s = xcalloc(1, sizeof *s);
    struct err e;
    *s = *from;
    assert_fine(kv_slot_fork(c->kv, from->slot, n, &s->slot, &e), &e);
    s->len = n;
    return s;
}

/* A cache with one sequence of n tokens. */
static struct seq *cache_open_with(struct cache *c, uint32_t n) {
    cache_open(c);
    struct seq *s = seq_open(c);
    if (n) batch(c, s, n, 1);
    return s;
}

static void cache_close_with(struct cache *c, struct seq *s) {
    seq_close(c, s);
    cache_close(c);
}

static void save(struct cache *c, const struct seq *s, struct buf *saved) {
    struct err e;
    buf_init(saved, 1 << 26);
    assert_fine(kv_slot_save(c->kv, s->slot, saved, &e), &e);
}

static uint32_t n_open(const struct cache *c) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < N_SLOTS; i++) n += kv_slot_is_open(c->kv, i);
    return n;
}

/* ---- limits ---- */

static void slots_are_limited_and_come_back(void **state) {
    struct cache c;
    struct seq *s[N_SLOTS];
    uint32_t slot;
    struct err e;
    (void)state;
    cache_open(&c);
    for (int i = 0; i < N_SLOTS; i++) s[i] = seq_open(&c);
    assert_int_equal(kv_slot_open(c.kv, &slot, &e), ERR_BUSY);
    assert_int_equal(kv_slot_fork(c.kv, s[0]->slot, 0, &slot, &e), ERR_BUSY);
    seq_close(&c, s[2]);
    s[2] = seq_open(&c);
    assert_int_equal(s[2]->len, 0);
    assert_false(kv_slot_is_open(c.kv, N_SLOTS));
    assert_false(kv_slot_is_open(c.kv, UINT32_MAX));
    for (int i = 0; i < N_SLOTS; i++) seq_close(&c, s[i]);
    kv_slot_close(c.kv, 0);                           /* closing twice is fine */
    assert_int_equal(kv_cache_bytes(c.kv), 0);
    cache_close(&c);
}

static void impossible_sizes_are_refused(void **state) {
    struct hparams hp;
    struct kernels *k = device_open();
    struct kv_cache *kv;
    struct err e;
    (void)state;
    tiny_shape(&hp, 'a');
    struct kv_config config = { .hp = &hp, .layer_end = hp.n_layer, .n_slots = 0, .n_ctx_max = 100 };
    assert_int_equal(kv_cache_new(&kv, k, &config, &e), ERR_INVALID);
    config.n_slots = 5000;
    assert_int_equal(kv_cache_new(&kv, k, &config, &e), ERR_INVALID);
    config.n_slots = 1, config.n_ctx_max = (1u << 30) + 1;
    assert_int_equal(kv_cache_new(&kv, k, &config, &e), ERR_INVALID);
    assert_null(kv);
    config.n_ctx_max = 100;
    allocs_left = 0;
    assert_int_equal(kv_cache_new(&kv, k, &config, &e), ERR_NOMEM);
    kv_cache_free(NULL);
    assert_int_equal(n_live, 0);
    kernels_close(k);
}

static void a_context_has_a_limit(void **state) {
    struct cache c;
    struct err e;
    (void)state;
    struct seq *s = cache_open_with(&c, N_CTX - 1);
    assert_int_equal(try_batch(&c, s, 2, 1, &e), ERR_LIMIT);
    assert_non_null(strstr(e.text, "5000"));
    check(&c, s);
    batch(&c, s, 1, 6);
    assert_int_equal(try_batch(&c, s, 1, 1, &e), ERR_LIMIT);
    check(&c, s);
    cache_close_with(&c, s);
}

/* ---- running out of memory ---- */

/* The same batch is tried with 0, 1, 2 ... allocations granted until it works. */
static void batch_with_failures(struct cache *c, struct seq *s, const struct seq *other, uint32_t n) {
    struct err e;
    for (int granted = 0;; granted++) {
        allocs_left = granted;
        int rc = try_batch(c, s, n, 1000, &e);
        allocs_left = -1;
        if (other) check(c, other);
        if (rc == 0) break;
        assert_int_equal(rc, ERR_NOMEM);
        assert_non_null(strstr(e.text, "no more memory in this test"));
        assert_int_equal(kv_slot_len(c->kv, s->slot), s->len);
        assert_true(granted < 100);
    }
    check(c, s);
}

static void a_failed_reservation_leaves_the_slot_as_it_was(void **state) {
    static const uint32_t starts[] = { 0, 1, 250, 255, 256, 511, 512, 2040, 4090 };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(starts); i++) {
        struct cache c;
        struct seq *s = cache_open_with(&c, starts[i]);
        batch_with_failures(&c, s, NULL, 300);
        struct seq *fork = fork_at(&c, s, s->len);    /* now pages are shared: writing needs copies */
        batch_with_failures(&c, fork, s, 9);
        batch_with_failures(&c, s, fork, 200);
        check(&c, fork);
        seq_close(&c, s);
        check(&c, fork);
        cache_close_with(&c, fork);
    }
}

static void failed_opens_forks_and_restores_leave_no_slot_behind(void **state) {
    struct cache c;
    struct buf saved;
    struct err e;
    uint32_t slot;
    (void)state;
    struct seq *s = cache_open_with(&c, 700);
    save(&c, s, &saved);
    for (int what = 0; what < 3; what++)
        for (int granted = 0;; granted++) {
            allocs_left = granted;
            int rc = what == 0 ? kv_slot_open(c.kv, &slot, &e)
                               : what == 1 ? kv_slot_fork(c.kv, s->slot, 695, &slot, &e)
                                           : kv_slot_restore(c.kv, saved.data, saved.size, &slot, &e);
            allocs_left = -1;
            check(&c, s);
            if (rc == 0) break;
            assert_int_equal(rc, ERR_NOMEM);
            assert_int_equal(n_open(&c), 1 + (uint32_t)what);
            assert_true(granted < 100);
        }
    assert_int_equal(n_open(&c), 4);
    buf_deinit(&saved);
    free(s);
    cache_close(&c);
}

/* ---- taking back ---- */

static void at_most_sixteen_tokens_can_be_taken_back_or_all(void **state) {
    struct cache c;
    struct err e;
    (void)state;
    struct seq *s = cache_open_with(&c, 300);
    assert_int_equal(kv_slot_rollback(c.kv, s->slot, 301, &e), ERR_INVALID);
    assert_int_equal(kv_slot_rollback(c.kv, s->slot, 283, &e), ERR_INVALID);
    check(&c, s);
    rollback(&c, s, 290);
    check(&c, s);
    rollback(&c, s, 284);
    check(&c, s);
    assert_int_equal(kv_slot_rollback(c.kv, s->slot, 283, &e), ERR_INVALID);
    batch(&c, s, 3, 50);                              /* 287: the ring still reaches back from 300 */
    assert_int_equal(kv_slot_rollback(c.kv, s->slot, 283, &e), ERR_INVALID);
    check(&c, s);
    batch(&c, s, 20, 70);
    check(&c, s);
    rollback(&c, s, 291);
    check(&c, s);
    rollback(&c, s, 0);
    batch(&c, s, 5, 90);
    check(&c, s);
    rollback(&c, s, 1);
    check(&c, s);
    cache_close_with(&c, s);
}

/* A batch that failed half way has written rows; if they were many, the older ones are gone. */
static void a_slot_that_lost_its_rows_says_so(void **state) {
    struct cache c;
    struct buf saved;
    struct err e;
    uint32_t slot;
    (void)state;
    struct seq *s = cache_open_with(&c, 100);
    kv_slot_begin(c.kv, s->slot, KV_ROLLBACK);        /* and never advanced */
    assert_true(kv_slot_is_whole(c.kv, s->slot));
    check(&c, s);
    kv_slot_begin(c.kv, s->slot, KV_ROLLBACK + 1);
    assert_false(kv_slot_is_whole(c.kv, s->slot));
    buf_init(&saved, 1 << 24);
    assert_int_equal(kv_slot_save(c.kv, s->slot, &saved, &e), ERR_INVALID);
    assert_int_equal(kv_slot_fork(c.kv, s->slot, 100, &slot, &e), ERR_INVALID);
    assert_int_equal(kv_slot_rollback(c.kv, s->slot, 100, &e), ERR_INVALID);
    rollback(&c, s, 0);
    assert_true(kv_slot_is_whole(c.kv, s->slot));
    batch(&c, s, 40, 5);
    check(&c, s);
    assert_int_equal(saved.size, 0);
    buf_deinit(&saved);
    seq_close(&c, s);
    s = seq_open(&c);
    kv_slot_begin(c.kv, s->slot, 90);             /* fails at once: nothing was there that could be lost */
    assert_true(kv_slot_is_whole(c.kv, s->slot));
    batch(&c, s, 5, 5);
    assert_true(kv_slot_is_whole(c.kv, s->slot));
    rollback(&c, s, 4);
    check(&c, s);
    cache_close_with(&c, s);
}

/* ---- forks ---- */

static void forks_share_pages_until_one_of_them_writes(void **state) {
    static const uint32_t lengths[] = { 1,   255, 256, 257,  258,  259,  260,
                                        511, 512, 513, 1030, 2048, 2049, 4096 };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(lengths); i++)
        for (uint32_t back = 0; back < 8 && back < lengths[i]; back += 3) {
            struct cache c;
            struct seq *s = cache_open_with(&c, lengths[i]);
            uint64_t empty = kv_cache_bytes_for(c.kv, 0), before = kv_cache_bytes(c.kv);
            struct seq *a = fork_at(&c, s, lengths[i] - back), *b = fork_at(&c, a, lengths[i] - back);
            assert_int_equal(kv_cache_bytes(c.kv), before + 2 * empty);
            check(&c, a);
            check(&c, b);
            batch(&c, a, 7, 100);
            batch(&c, s, 5, 200);
            batch(&c, b, 9, 300);
            check(&c, s);
            check(&c, a);
            check(&c, b);
            seq_close(&c, s);
            check(&c, b);
            seq_close(&c, a);
            batch(&c, b, 300, 400);
            check(&c, b);
            seq_close(&c, b);
            assert_int_equal(kv_cache_bytes(c.kv), 0);
            cache_close(&c);
        }
}

/* ---- snapshots ---- */

static struct seq *restore(struct cache *c, const struct buf *saved, const struct seq *as) {
    struct seq *s = xcalloc(1, sizeof *s);
    struct err e;
    *s = *as;
    assert_fine(kv_slot_restore(c->kv, saved->data, saved->size, &s->slot, &e), &e);
    return s;
}

static void snapshots_hold_all_that_the_next_tokens_need(void **state) {
    static const uint32_t lengths[] = { 0,  1,  2,   3,   4,   15,  16,   17,   36,
                                        37, 38, 255, 256, 257, 700, 2048, 2100, 4500 };
    struct cache from, to;
    struct hparams hp;
    (void)state;
    tiny_shape(&hp, 'a');
    for (int numerics = 0; numerics < 3; numerics++)
        for (size_t i = 0; i < COUNT_OF(lengths); i++) {
            struct buf saved;
            struct err e;
            uint32_t back = lengths[i] > 20 ? (uint32_t)i % 17 : 0;
            cache_open_as(&from, &hp, (enum numerics)numerics, 1, 4, i % 2);
            struct seq *s = seq_open(&from);
            if (lengths[i]) batch(&from, s, lengths[i], 1);
            rollback(&from, s, lengths[i] - back);
            save(&from, s, &saved);
            int n_live_from = n_live;
            cache_open_as(&to, &hp, (enum numerics)numerics, 1, 4, i % 2);
            free(seq_open(&to));                      /* so that slots differ */
            struct seq *again = restore(&to, &saved, s);
            check(&to, again);
            for (uint32_t n = 0; n < KV_ROLLBACK && again->len > 0 && back + n < KV_ROLLBACK; n++) {
                rollback(&to, again, again->len - 1);
                check(&to, again);
            }
            assert_int_equal(
                kv_slot_rollback(to.kv, again->slot, again->len > 1 ? again->len - 1 : 2, &e),
                ERR_INVALID);
            batch(&to, again, 50, 9);
            check(&to, again);
            free(again);
            cache_close(&to);
            n_live = n_live_from;
            buf_deinit(&saved);
            free(s);
            cache_close(&from);
        }
}

static void snapshot_seal(struct buf *b) {
    struct hash128 sum = hash_128(b->data, b->size - sizeof sum);
    memcpy(b->data + b->size - sizeof sum, &sum, sizeof sum);
}

static void refused(struct cache *c, const struct buf *saved, size_t size, int code) {
    struct err e = { 0 };
    uint32_t slot;
    uint64_t before = kv_cache_bytes(c->kv);
    uint8_t *exact = malloc(size ? size : 1);         /* so that a read past the end is seen */
    CHECK(exact);
    if (size) memcpy(exact, saved->data, size);
    int rc = kv_slot_restore(c->kv, exact, size, &slot, &e);
    free(exact);
    if (rc >= 0 || (code && rc != code)) fail_msg("restoring gave %d (%s), expected %d", rc, e.text, code);
    assert_true(strlen(e.text) > 0);
    assert_int_equal(kv_cache_bytes(c->kv), before);
}

static void damaged_snapshots_are_errors_wherever_the_damage_is(void **state) {
    struct cache c;
    struct buf saved;
    (void)state;
    struct seq *s = cache_open_with(&c, 530);
    save(&c, s, &saved);
    for (size_t at = 0; at < saved.size; at += at < 80 || at + 40 > saved.size ? 1 : 4099) {
        saved.data[at] ^= (char)(1 << at % 8);
        refused(&c, &saved, saved.size, 0);
        saved.data[at] ^= (char)(1 << at % 8);
    }
    for (size_t size = 0; size < saved.size; size += size < 100 || size + 40 > saved.size ? 1 : 7919)
        refused(&c, &saved, size, ERR_CORRUPT);
    assert_int_equal(n_open(&c), 1);
    check(&c, s);
    struct seq *again = restore(&c, &saved, s);
    check(&c, again);
    seq_close(&c, again);
    buf_deinit(&saved);
    cache_close_with(&c, s);
}

/* Checksums find accidents; a header that lies under a good checksum must not harm either. u32 fields
 * behind the magic. */
static void lying_snapshots_are_errors(void **state) {
    static const struct { int field; int add, code; } lies[] = {
        { 1, 1, ERR_CORRUPT },          /* version */
        { 2, 1, ERR_STALE },            /* numerics */
        { 3, 1, ERR_CORRUPT },          /* one token more than there are rows for */
        { 3, -1, ERR_CORRUPT },         /* one fewer: bytes are left over */
        { 3, -20, ERR_CORRUPT },        /* more taken back than can be */
        { 3, 1 << 20, ERR_CORRUPT },    /* more tokens than were written */
        { 4, 1, ERR_CORRUPT },          /* written */
        { 4, -1, ERR_CORRUPT },
        { 5, 1, ERR_STALE },            /* layers */
        { 6, -1, ERR_STALE },
        { 7, 1, ERR_STALE },            /* MTP */
        { 8, 64, ERR_STALE },           /* head_dim and the rest of the shape */
        { 9, 2, ERR_STALE },
        { 10, 1, ERR_STALE },
        { 11, 1, ERR_STALE },
        { 12, 1, ERR_STALE },
        { 13, 1, ERR_STALE },
    };
    struct cache c;
    (void)state;
    struct seq *s = cache_open_with(&c, 531);
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        struct buf saved;
        uint32_t field;
        save(&c, s, &saved);
        memcpy(&field, saved.data + 4 * lies[i].field, 4);
        field += (uint32_t)lies[i].add;
        memcpy(saved.data + 4 * lies[i].field, &field, 4);
        snapshot_seal(&saved);
        refused(&c, &saved, saved.size, lies[i].code);
        buf_deinit(&saved);
    }
    struct buf longer;
    uint32_t huge[2] = { N_CTX + 1, N_CTX + 1 };
    save(&c, s, &longer);
    memcpy(longer.data + 12, huge, sizeof huge);
    snapshot_seal(&longer);
    refused(&c, &longer, longer.size, ERR_LIMIT);
    buf_deinit(&longer);
    assert_int_equal(n_open(&c), 1);
    cache_close_with(&c, s);
}

static void snapshots_of_another_model_numerics_or_range_are_refused(void **state) {
    struct hparams a, b;
    struct cache c, other;
    struct buf saved;
    (void)state;
    tiny_shape(&a, 'a');
    cache_open_as(&c, &a, NUMERICS_OFFICIAL, 1, 4, false);
    struct seq *s = seq_open(&c);
    batch(&c, s, 100, 1);
    save(&c, s, &saved);
    cache_close_with(&c, s);
    for (int i = 0; i < 8; i++) {
        b = a;
        if (i == 0) b.n_swa++;
        if (i == 1) b.ratio[2] = 16;
        if (i == 2) tiny_shape(&b, 'b');
        enum numerics numerics = i == 3 ? NUMERICS_EXACT : i == 4 ? NUMERICS_WIDE : NUMERICS_OFFICIAL;
        cache_open_as(&other, &b, numerics, i == 5 ? 0 : 1, i == 6 ? 3 : 4, i == 7);
        refused(&other, &saved, saved.size, ERR_STALE);
        assert_int_equal(n_open(&other), 0);
        cache_close(&other);
    }
    cache_open_as(&other, &a, NUMERICS_OFFICIAL, 1, 4, false);
    refused(&other, &saved, saved.size - 1, ERR_CORRUPT);
    struct seq *again = restore(&other, &saved, s = xcalloc(1, sizeof *s));
    assert_int_equal(kv_slot_len(other.kv, again->slot), 100);
    free(again);
    free(s);
    buf_deinit(&saved);
    cache_close(&other);
}

/* ---- memory ---- */

static void memory_is_what_was_announced(void **state) {
    static const uint32_t lengths[] = { 0, 1, 4, 255, 256, 257, 512, 1023, 2048, 2600, 5000 };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        struct cache c;
        struct seq *s = cache_open_with(&c, 0);
        uint64_t announced = kv_cache_bytes_for(c.kv, lengths[i]),
                 pointers = lengths[i] / 4 / KV_PAGE * 8 * 5 + 64 * 5;
        if (lengths[i]) batch(&c, s, lengths[i], 1);
        uint64_t used = kv_cache_bytes(c.kv);
        assert_true(used <= announced && announced - used <= pointers);
        if (lengths[i] >= 16) {
            rollback(&c, s, lengths[i] - 16);         /* pages stay with the slot */
            assert_int_equal(kv_cache_bytes(c.kv), used);
        }
        seq_close(&c, s);
        assert_int_equal(kv_cache_bytes(c.kv), 0);
        cache_close(&c);
    }
}

/* One layer of each kind at the published dimensions, a million tokens reserved for real. */
static void a_million_tokens_of_flash_fit_four_gib(void **state) {
    struct hparams flash;
    uint64_t total = 0, of_kind[3] = { 0 }, n_kind[3] = { 0 };
    (void)state;
    hparams_flash(&flash);
    for (uint32_t l = 0; l < flash.n_layer; l++) n_kind[hparams_kind(&flash, l)]++;
    for (uint32_t l = 1; l < 4; l++) {                /* SWA, CSA, HCA */
        struct kernels *k = device_open();
        struct kv_cache *kv;
        struct err e;
        uint32_t slot;
        struct kv_config config = {
            .hp = &flash, .layer_begin = l, .layer_end = l + 1, .n_slots = 1, .n_ctx_max = 1u << 20
        };
        assert_fine(kv_cache_new(&kv, k, &config, &e), &e);
        assert_fine(kv_slot_open(kv, &slot, &e), &e);
        assert_fine(kv_slot_reserve(kv, slot, 1u << 20, &e), &e);
        of_kind[hparams_kind(&flash, l)] = kv_cache_bytes(kv);
        assert_true(kv_cache_bytes(kv) <= kv_cache_bytes_for(kv, 1u << 20));
        uint64_t planned = hparams_state_bytes(&flash, l, 1u << 20);
        assert_true(kv_cache_bytes(kv) >= planned && kv_cache_bytes(kv) <= planned + planned / 100);
        kv_cache_free(kv);
        assert_int_equal(n_live, 0);
        kernels_close(k);
    }
    for (int i = 0; i < 3; i++) total += n_kind[i] * of_kind[i];
    print_message("1048576 tokens of Flash: %llu x SWA %llu + %llu x CSA %llu + %llu x HCA %llu = "
                  "%llu bytes, %.3f GiB\n",
                  (unsigned long long)n_kind[0], (unsigned long long)of_kind[0],
                  (unsigned long long)n_kind[1], (unsigned long long)of_kind[1],
                  (unsigned long long)n_kind[2], (unsigned long long)of_kind[2],
                  (unsigned long long)total, (double)total / 1073741824);
    assert_true(n_kind[0] == 2 && n_kind[1] == 21 && n_kind[2] == 20);
    assert_true(total <= UINT64_C(4) << 30);
}

/* ---- everything at once ---- */

struct walk {
    struct cache c;
    struct seq *seq[N_SLOTS];
    uint32_t high[N_SLOTS];                           /* of each sequence: positions below were written */
    struct rng rng;
};

static uint32_t draw(struct walk *w, uint32_t n) {
    return (uint32_t)rng_below(&w->rng, n);
}

static void walk_fork(struct walk *w, int from) {
    struct err e;
    for (int to = 0; to < N_SLOTS; to++) {
        if (w->seq[to]) continue;
        uint32_t lowest = w->high[from] > KV_ROLLBACK ? w->high[from] - KV_ROLLBACK : 0,
                 len = w->seq[from]->len;
        uint32_t n = len <= lowest ? len : lowest + draw(w, len - lowest + 1), slot;
        if (kv_slot_fork(w->c.kv, w->seq[from]->slot, n, &slot, &e) < 0) return;
        w->seq[to] = xcalloc(1, sizeof *w->seq[to]);
        *w->seq[to] = *w->seq[from];
        w->seq[to]->slot = slot, w->seq[to]->len = n;
        w->high[to] = n ? w->high[from] : 0;
        return;
    }
}

static void walk_snapshot(struct walk *w, int i) {
    struct buf saved;
    struct err e;
    uint32_t slot;
    save(&w->c, w->seq[i], &saved);
    if (kv_slot_restore(w->c.kv, saved.data, saved.size, &slot, &e) == 0) {
        kv_slot_close(w->c.kv, w->seq[i]->slot);
        w->seq[i]->slot = slot;
    }
    buf_deinit(&saved);
}

static void walk_step(struct walk *w) {
    int i = (int)draw(w, N_SLOTS);
    struct seq *s = w->seq[i];
    struct err e;
    uint32_t what = draw(w, 10), n;
    allocs_left = draw(w, 3) ? -1 : (int)draw(w, 6);
    if (!s) {
        s = xcalloc(1, sizeof *s);
        if (kv_slot_open(w->c.kv, &s->slot, &e) == 0) w->seq[i] = s, w->high[i] = 0;
        else free(s);
    } else if (what < 5) {
        n = 1 + (draw(w, 2) ? draw(w, 8) : draw(w, 400));
        if (try_batch(&w->c, s, n, (int32_t)draw(w, 1 << 20), &e) == 0) w->high[i] = MAX(w->high[i], s->len);
    } else if (what < 7) {
        uint32_t back = draw(w, KV_ROLLBACK + 3), to = back >= s->len || draw(w, 12) == 0 ? 0 : s->len - back;
        bool may = to == 0 || to + KV_ROLLBACK >= w->high[i];
        assert_int_equal(kv_slot_rollback(w->c.kv, s->slot, to, &e) == 0, may);
        if (may) s->len = to;
        if (s->len == 0) w->high[i] = 0;
    } else if (what == 7) {
        walk_fork(w, i);
    } else if (what == 8) {
        walk_snapshot(w, i);
    } else if (draw(w, 4) == 0) {
        seq_close(&w->c, s);
        w->seq[i] = NULL;
    }
    allocs_left = -1;
}

static void any_order_of_calls_and_failures_keeps_every_sequence(void **state) {
    struct walk w;
    (void)state;
    for (uint64_t seed = 0; seed < 12; seed++) {
        memset(&w, 0, sizeof w);
        rng_init(&w.rng, seed, 3);
        cache_open(&w.c);
        for (int step = 0; step < 250; step++) {
            walk_step(&w);
            if (step % 5 == 0 || step > 240)
                for (int i = 0; i < N_SLOTS; i++)
                    if (w.seq[i]) check(&w.c, w.seq[i]);
        }
        for (int i = 0; i < N_SLOTS; i++) free(w.seq[i]);
        cache_close(&w.c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(slots_are_limited_and_come_back),
        TEST(impossible_sizes_are_refused),
        TEST(a_context_has_a_limit),
        TEST(a_failed_reservation_leaves_the_slot_as_it_was),
        TEST(failed_opens_forks_and_restores_leave_no_slot_behind),
        TEST(at_most_sixteen_tokens_can_be_taken_back_or_all),
        TEST(a_slot_that_lost_its_rows_says_so),
        TEST(forks_share_pages_until_one_of_them_writes),
        TEST(snapshots_hold_all_that_the_next_tokens_need),
        TEST(damaged_snapshots_are_errors_wherever_the_damage_is),
        TEST(lying_snapshots_are_errors),
        TEST(snapshots_of_another_model_numerics_or_range_are_refused),
        TEST(memory_is_what_was_announced),
        TEST(a_million_tokens_of_flash_fit_four_gib),
        TEST(any_order_of_calls_and_failures_keeps_every_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
