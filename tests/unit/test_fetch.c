/* Weights over a link: what is asked, what is asked again, what ends up in the file. */
#include "tests/harness/test.h"

#include "common/base/rng.h"
#include "common/model/shard.h"
#include "common/model/share.h"
#include "common/sys/file.h"
#include "node/fetch_store.h"
#include "shard_tool/shard_tool.h"
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

#include <unistd.h>

static const uint64_t MS = 1000000;

/* ---- the pure half: a list of pieces, and a source that does what a test wants ---- */

enum { PIECES = 200, QUEUE = 64 };

struct source {                                    /* answers in order, each `took` after the one before */
    struct msg_weights_get ask[QUEUE];
    uint64_t at[QUEUE];
    uint32_t n;
    uint64_t took, free_at;
    struct rng rng;
    uint32_t lose, damage, busy;                   /* one in so many; 0: never */
    uint32_t most;                                 /* questions that it ever held */
};

static struct fetch_piece list[PIECES];

static void list_init(void) {
    for (uint32_t i = 0; i < PIECES; i++)
        list[i] = (struct fetch_piece){
            .tensor = i / 7, .bytes = 1000 + i, .offset = i * 5000, .at = i * 9000
        };
}

static void source_take(struct source *s, const struct msg_weights_get *get, uint64_t now) {
    if (s->lose && rng_below(&s->rng, s->lose) == 0) return;
    assert_true(s->n < QUEUE);
    s->free_at = MAX(s->free_at, now) + s->took;
    s->ask[s->n] = *get;
    s->at[s->n++] = s->free_at;
    s->most = MAX(s->most, s->n);
}

/* Runs until done or failed; counts how often each piece was stored. */
static uint64_t run_until_over(struct fetch *f, struct source *s, uint32_t stored[PIECES]) {
    uint64_t now = 1;
    struct msg_weights_get get;
    uint32_t piece;
    for (int step = 0; step < 1000000 && !fetch_is_done(f) && f->code == 0; step++) {
        while (fetch_next(f, &get, now)) source_take(s, &get, now);
        uint64_t deadline = fetch_deadline_ns(f), next = s->n ? s->at[0] : UINT64_MAX;
        assert_true(MIN(deadline, next) != UINT64_MAX);
        now = MAX(now, MIN(deadline, next));
        fetch_on_tick(f, now);
        if (!s->n || s->at[0] > now) continue;
        struct msg_weights w = { .id = s->ask[0].id, .tensor = s->ask[0].tensor, .offset = s->ask[0].offset };
        memmove(s->ask, s->ask + 1, --s->n * sizeof s->ask[0]);
        memmove(s->at, s->at + 1, s->n * sizeof s->at[0]);
        if (s->busy && rng_below(&s->rng, s->busy) == 0) w.code = ERR_BUSY;
        if (!fetch_on_answer(f, &w, &piece, now)) continue;
        bool damaged = s->damage && rng_below(&s->rng, s->damage) == 0;
        if (!damaged) stored[piece]++;
        fetch_stored(f, piece, damaged ? ERR_CORRUPT : 0, "damaged");
    }
    return now;
}

static void every_piece_is_stored_once_in_order(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = 3 * MS };
    uint32_t stored[PIECES] = { 0 };
    list_init();
    fetch_begin(&f, 1, 2, list, PIECES, 1);
    run_until_over(&f, &s, stored);
    assert_true(fetch_is_done(&f));
    for (int i = 0; i < PIECES; i++) assert_int_equal(stored[i], 1);
    assert_int_equal(s.most, FETCH_WINDOW_MAX);
    assert_int_equal(f.bytes_done, 1000 * PIECES + PIECES * (PIECES - 1) / 2);
    assert_int_equal(fetch_deadline_ns(&f), UINT64_MAX);
}

static void a_slow_link_has_few_pieces_on_the_way(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = 170 * MS };
    uint32_t stored[PIECES] = { 0 };
    list_init();
    fetch_begin(&f, 1, 2, list, PIECES, 1);
    run_until_over(&f, &s, stored);
    assert_true(fetch_is_done(&f) && s.most <= 4);
}

static void nothing_is_lost_that_the_link_loses(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 30; seed++) {
        struct fetch f = { 0 };
        struct source s = { .took = 2 * MS, .lose = 9, .damage = 25, .busy = 13 };
        uint32_t stored[PIECES] = { 0 };
        rng_init(&s.rng, seed, 0);
        list_init();
        fetch_begin(&f, 1, 2, list, PIECES, 1);
        run_until_over(&f, &s, stored);
        assert_int_equal(f.code, 0);
        for (int i = 0; i < PIECES; i++) assert_int_equal(stored[i], 1);
        assert_true(f.odds.silent && f.odds.damaged && f.odds.busy);
    }
}

static void a_source_that_stays_silent_is_given_up(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = MS, .lose = 1 };
    uint32_t stored[PIECES] = { 0 };
    fetch_begin(&f, 1, 2, list, PIECES, 1);
    uint64_t now = run_until_over(&f, &s, stored);
    assert_int_equal(f.code, ERR_TIMEOUT);
    assert_int_equal((now - 1) / MS, FETCH_SILENT_MS * FETCH_SILENT_MAX);
}

static void a_source_that_sends_only_damage_is_given_up(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = MS, .damage = 1 };
    uint32_t stored[PIECES] = { 0 };
    fetch_begin(&f, 1, 2, list, PIECES, 1);
    run_until_over(&f, &s, stored);
    assert_int_equal(f.code, ERR_CORRUPT);
    assert_string_equal(f.text, "damaged");
}

static void an_answer_that_was_not_asked_ends_it_and_a_late_one_does_not(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_weights_get get;
    uint32_t piece;
    list_init();
    fetch_begin(&f, 1, 2, list, PIECES, 1);
    assert_true(fetch_next(&f, &get, 1));
    assert_false(fetch_on_answer(&f, &(struct msg_weights){ .id = get.id + 100, .tensor = 99 }, &piece, 2));
    assert_int_equal(f.code, 0);
    assert_int_equal(f.odds.late, 1);
    assert_false(fetch_on_answer(&f, &(struct msg_weights){ .id = get.id, .tensor = 5 }, &piece, 2));
    assert_int_equal(f.code, ERR_PEER);
    fetch_begin(&f, 1, 2, list, PIECES, 1);
    assert_true(fetch_next(&f, &get, 1));
    fetch_lost(&f, 2);                             /* asked again, and then the first answer comes */
    assert_true(fetch_next(&f, &get, 2));
    struct msg_weights first = { .id = get.id - 1, .tensor = get.tensor, .offset = get.offset };
    assert_true(fetch_on_answer(&f, &first, &piece, 3) && piece == 0);
    assert_false(fetch_on_answer(&f, &first, &piece, 3));
    fetch_begin(&f, 1, 2, list, PIECES, 1);
    assert_true(fetch_next(&f, &get, 1));
    assert_false(fetch_on_answer(&f, &(struct msg_weights){ .id = get.id, .code = ERR_NOTFOUND }, &piece, 2));
    assert_int_equal(f.code, ERR_NOTFOUND);
}

/* ---- with files ---- */

struct rig {
    struct scratch model, store, split;
    struct tiny_model tiny;
    struct gguf *g;
    struct share *share;
    struct hparams hp;
    char path[FILE_PATH_MAX];
};

static void open_rig(struct rig *r, char shape, const char *mix) {
    struct err e;
    scratch_open(&r->model);
    scratch_open(&r->store);
    scratch_open(&r->split);
    tiny_model_init(&r->tiny, shape, mix, 5);
    snprintf(r->path, sizeof r->path, "%s", scratch_path(&r->model, "model.gguf"));
    tiny_write(&r->tiny, r->path);
    assert_fine(gguf_open(&r->g, r->path, &e), &e);
    assert_fine(share_open(&r->share, r->g, &e), &e);
    assert_fine(hparams_read(&r->hp, r->g, &e), &e);
}

static void close_rig(struct rig *r) {
    share_close(r->share);
    gguf_close(r->g);
    scratch_close(&r->model);
    scratch_close(&r->store);
    scratch_close(&r->split);
}

static struct msg_assign stage_of(const struct rig *r, uint32_t i, uint32_t n, uint32_t begin, uint32_t end) {
    struct hash128 model = share_model(r->share);
    return (struct msg_assign){ .model_lo = model.lo, .model_hi = model.hi, .stage_i = i, .n_stage = n,
                                .layer_begin = begin, .layer_end = end, .has_embed = i == 0,
                                .has_head = i + 1 == n };
}

static struct share_part ask(const struct rig *r, uint32_t tensor, uint64_t offset, uint32_t bytes) {
    struct share_ask a = { share_model(r->share), tensor, bytes, offset };
    struct share_part part;
    struct err e;
    assert_fine(share_find(r->share, &a, &part, &e), &e);
    return part;
}

static int open_store(struct rig *r, const struct msg_assign *a, struct fetch_store **s, struct err *e) {
    struct buf header;
    struct share_part part = { 0 };
    buf_init(&header, FETCH_HEADER_MAX);
    while (!part.last) {
        part = ask(r, SHARE_HEADER, header.size, 1000);
        buf_add(&header, part.data, part.bytes);
    }
    assert_int_equal(header.size, part.total_bytes);
    int rc = fetch_store_open(s, r->store.folder, a, &header, part.file_bytes, NULL, NULL, e);
    buf_deinit(&header);
    return rc;
}

/* Stores the missing pieces for which `which` has a bit. */
static void store_some(struct rig *r, struct fetch_store *s, uint64_t which) {
    uint32_t n;
    const struct fetch_piece *p = fetch_store_missing(s, &n);
    struct err e;
    for (uint32_t i = 0; i < n; i++) {
        if (!(which >> i % 64 & 1)) continue;
        struct share_part part = ask(r, p[i].tensor, p[i].offset, p[i].bytes);
        assert_int_equal(part.bytes, p[i].bytes);
        uint64_t hash = hash_64(part.data, part.bytes, 0);
        assert_fine(fetch_store_write(s, &p[i], part.data, part.bytes, hash, &e), &e);
    }
}

static void fetch_whole(struct rig *r, const struct msg_assign *a, char *path) {
    struct fetch_store *s;
    struct err e;
    assert_fine(open_store(r, a, &s, &e), &e);
    store_some(r, s, UINT64_MAX);
    assert_fine(fetch_store_finish(s, &e), &e);
    snprintf(path, FILE_PATH_MAX, "%s", fetch_store_path(s));
    fetch_store_close(s);
}

static void split_with(struct rig *r, const char *cuts, const char *experts) {
    struct shard_split_result result;
    struct err e;
    struct shard_split s = { .g = r->g, .folder = r->split.folder };
    assert_fine(shard_pieces_of_cuts(&s.pieces, &r->hp, cuts, experts, &e), &e);
    assert_fine(shard_split(&s, &result, &e), &e);
    shard_pieces_free(&s.pieces);
}

static void assert_same_files(const char *a, const char *b) {
    void *x, *y;
    size_t n, m;
    struct err e;
    assert_fine(file_read_all(a, 1 << 30, &x, &n, &e), &e);
    assert_fine(file_read_all(b, 1 << 30, &y, &m, &e), &e);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

static void a_fetched_share_is_the_file_that_split_writes(void **state) {
    (void)state;
    static const char shapes[] = "apb";
    for (int i = 0; i < 3; i++) {
        struct rig r;
        char path[FILE_PATH_MAX];
        open_rig(&r, shapes[i], "f32");
        uint32_t half = r.hp.n_layer / 2;
        char cuts[32];
        snprintf(cuts, sizeof cuts, "%u", half);
        split_with(&r, cuts, NULL);
        struct msg_assign first = stage_of(&r, 0, 2, 0, half),
                          second = stage_of(&r, 1, 2, half, r.hp.n_layer);
        fetch_whole(&r, &first, path);
        assert_same_files(path, scratch_path(&r.split, "stage-00.gguf"));
        fetch_whole(&r, &second, path);
        assert_same_files(path, scratch_path(&r.split, "stage-01.gguf"));
        close_rig(&r);
    }
}

/* Of each stack of experts a part only, and nothing else for a helper. */
static void a_helper_gets_its_experts_only(void **state) {
    (void)state;
    struct rig r;
    struct gguf *g;
    struct shard_info info;
    struct err e;
    char path[FILE_PATH_MAX];
    open_rig(&r, 'a', "q4");
    struct msg_assign a = stage_of(&r, 0, 1, 0, r.hp.n_layer);
    a.is_helper = true;
    a.expert_begin = r.hp.n_expert / 2;
    a.expert_end = r.hp.n_expert;
    fetch_whole(&r, &a, path);
    assert_fine(gguf_open_one(&g, path, &e), &e);
    assert_fine(shard_info_read(&info, g, &e), &e);
    assert_int_equal(gguf_n_tensors(g), 3 * r.hp.n_layer);
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i),
                                 *whole = gguf_tensor_at(r.g, shard_info_order(&info, i));
        assert_int_equal(t->size, whole->size / 2);
        assert_memory_equal(t->data, whole->data + whole->size / 2, t->size);
        assert_true(hash_equal(shard_info_hash(&info, i), hash_128(t->data, t->size)));
    }
    gguf_close(g);
    close_rig(&r);
}

static void what_was_there_before_a_stop_is_not_fetched_again(void **state) {
    (void)state;
    struct rig r;
    struct fetch_store *s;
    struct err e;
    uint32_t n, left;
    char path[FILE_PATH_MAX];
    open_rig(&r, 'a', "f32");
    split_with(&r, "1", NULL);
    struct msg_assign a = stage_of(&r, 0, 2, 0, 1);
    assert_fine(open_store(&r, &a, &s, &e), &e);
    fetch_store_missing(s, &n);
    assert_true(n > 20);
    store_some(&r, s, 0x5555555555555555);         /* every second one: no checksum can grow in order */
    fetch_store_close(s);
    assert_fine(open_store(&r, &a, &s, &e), &e);
    fetch_store_missing(s, &left);
    assert_int_equal(left, n / 2);
    fetch_store_close(s);
    fetch_whole(&r, &a, path);
    assert_same_files(path, scratch_path(&r.split, "stage-00.gguf"));
    close_rig(&r);
}

static void pieces_that_were_damaged_on_the_disk_are_fetched_again(void **state) {
    (void)state;
    struct rig r;
    struct fetch_store *s;
    struct err e;
    char path[FILE_PATH_MAX], tmp[FILE_PATH_MAX + 8];
    open_rig(&r, 'b', "f32");
    split_with(&r, "1", NULL);
    struct msg_assign a = stage_of(&r, 0, 2, 0, 1);
    assert_fine(open_store(&r, &a, &s, &e), &e);
    store_some(&r, s, UINT64_MAX);
    uint32_t n;
    uint64_t at = fetch_store_missing(s, &n)[3].at;
    snprintf(tmp, sizeof tmp, "%s.tmp", fetch_store_path(s));
    fetch_store_close(s);
    FILE *f = fopen(tmp, "r+b");
    assert_non_null(f);
    fseek(f, (long)at, SEEK_SET);
    int byte = fgetc(f);
    fseek(f, (long)at, SEEK_SET);
    fputc(byte ^ 1, f);
    fclose(f);
    assert_fine(open_store(&r, &a, &s, &e), &e);
    const struct fetch_piece *missing = fetch_store_missing(s, &n);
    assert_int_equal(n, 1);
    assert_int_equal(missing[0].at, at);
    fetch_store_close(s);
    fetch_whole(&r, &a, path);
    assert_same_files(path, scratch_path(&r.split, "stage-00.gguf"));
    close_rig(&r);
}

static void a_damaged_piece_and_another_model_are_refused(void **state) {
    (void)state;
    struct rig r;
    struct fetch_store *s;
    struct err e;
    uint32_t n;
    open_rig(&r, 'a', "f32");
    struct msg_assign a = stage_of(&r, 0, 2, 0, 1), other = a;
    other.model_lo ^= 1;
    assert_int_equal(open_store(&r, &other, &s, &e), ERR_CORRUPT);
    assert_fine(open_store(&r, &a, &s, &e), &e);
    const struct fetch_piece *p = fetch_store_missing(s, &n);
    struct share_part part = ask(&r, p->tensor, p->offset, p->bytes);
    uint64_t hash = hash_64(part.data, part.bytes, 0);
    assert_int_equal(fetch_store_write(s, p, part.data, part.bytes, hash ^ 1, &e), ERR_CORRUPT);
    assert_int_equal(fetch_store_write(s, p, part.data, part.bytes - 1, hash, &e), ERR_CORRUPT);
    fetch_store_close(s);
    a.layer_end = r.hp.n_layer + 1;
    assert_true(open_store(&r, &a, &s, &e) < 0);
    close_rig(&r);
}

static void a_share_gives_only_what_it_has(void **state) {
    (void)state;
    struct rig r;
    struct share *of_shard;
    struct gguf *g;
    struct share_part part;
    struct err e;
    char path[FILE_PATH_MAX];
    open_rig(&r, 'a', "f32");
    struct hash128 model = share_model(r.share), other = { model.lo, model.hi + 1 };
    uint32_t n = (uint32_t)gguf_n_tensors(r.g);
    uint64_t size = gguf_tensor_at(r.g, 0)->size;
    assert_int_equal(share_find(r.share, &(struct share_ask){ other, 0, 1, 0 }, &part, &e), ERR_NOTFOUND);
    assert_int_equal(share_find(r.share, &(struct share_ask){ model, n, 1, 0 }, &part, &e), ERR_INVALID);
    assert_int_equal(share_find(r.share, &(struct share_ask){ model, 0, 1, size }, &part, &e), ERR_INVALID);
    assert_int_equal(share_find(r.share, &(struct share_ask){ model, 0, 0, 0 }, &part, &e), ERR_INVALID);
    assert_fine(share_find(r.share, &(struct share_ask){ model, 0, 4096, size - 3 }, &part, &e), &e);
    assert_true(part.bytes == 3 && part.last && part.data == gguf_tensor_at(r.g, 0)->data + size - 3);
    struct msg_assign a = stage_of(&r, 0, 2, 0, 1);
    fetch_whole(&r, &a, path);
    assert_fine(gguf_open_one(&g, path, &e), &e);
    assert_int_equal(share_open(&of_shard, g, &e), ERR_UNSUPPORTED);
    gguf_close(g);
    close_rig(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_piece_is_stored_once_in_order),
        TEST(a_slow_link_has_few_pieces_on_the_way),
        TEST(nothing_is_lost_that_the_link_loses),
        TEST(a_source_that_stays_silent_is_given_up),
        TEST(a_source_that_sends_only_damage_is_given_up),
        TEST(an_answer_that_was_not_asked_ends_it_and_a_late_one_does_not),
        TEST(a_fetched_share_is_the_file_that_split_writes),
        TEST(a_helper_gets_its_experts_only),
        TEST(what_was_there_before_a_stop_is_not_fetched_again),
        TEST(pieces_that_were_damaged_on_the_disk_are_fetched_again),
        TEST(a_damaged_piece_and_another_model_are_refused),
        TEST(a_share_gives_only_what_it_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
