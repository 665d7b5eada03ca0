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
    uint32_t lacks_from;                           /* parts from here on are not there; 0: all are */
    uint64_t dies_at, back_at;                     /* 0: never */
    bool dead;
    uint32_t most, n_stored;                       /* questions that it ever held; pieces that were stored */
};

static struct fetch_piece list[PIECES];
static const struct msg_source everything = { .has_embed = true, .has_head = true, .has_rest = true,
                                              .has_header = true };

static void list_init(void) {
    for (uint32_t i = 0; i < PIECES; i++)
        list[i] = (struct fetch_piece){
            .tensor = i / 7, .bytes = 1000 + i, .offset = i * 5000, .at = i * 9000, .part = i / 50
        };
}

static struct msg_source layers(uint32_t begin, uint32_t end) {
    struct msg_source s = { .has_header = true };
    for (uint32_t l = begin; l < end; l++) s.layers[l / 8] |= (uint8_t)(1 << l % 8);
    return s;
}

static void begin_with(struct fetch *f, const struct msg_source *what, uint32_t n_source) {
    list_init();
    fetch_begin(f, 1, 2, list, PIECES, FETCH_FROM_ANY, 1);
    for (uint32_t i = 0; i < n_source; i++) {
        fetch_source_set(f, i, &what[i], 1);
        fetch_source_up(f, i, true, 1);
    }
}

static void begin(struct fetch *f) {
    struct msg_source all = layers(0, 4);
    begin_with(f, &all, 1);
}

static void source_take(struct source *s, const struct msg_weights_get *get, uint64_t now) {
    if (s->dead || (s->lose && rng_below(&s->rng, s->lose) == 0)) return;
    assert_true(s->n < QUEUE);
    s->free_at = MAX(s->free_at, now) + s->took;
    s->ask[s->n] = *get;
    s->at[s->n++] = s->free_at;
    s->most = MAX(s->most, s->n);
}

static uint64_t next_of(const struct source *s, uint32_t n_source) {
    uint64_t next = UINT64_MAX;
    for (const struct source *x = s; x < s + n_source; x++) {
        if (x->n) next = MIN(next, x->at[0]);
        if (x->dies_at && !x->dead) next = MIN(next, x->dies_at);
        if (x->back_at && x->dead) next = MIN(next, x->back_at);
    }
    return next;
}

static void source_lives(struct fetch *f, struct source *s, uint32_t i, uint64_t now) {
    if (s->dies_at && !s->dead && now >= s->dies_at) {
        s->dead = true;
        s->dies_at = s->n = 0;
        fetch_source_up(f, i, false, now);
    }
    if (s->back_at && s->dead && now >= s->back_at) {
        s->dead = false;
        s->back_at = 0;
        fetch_source_up(f, i, true, now);
    }
}

static void source_answers(struct fetch *f, struct source *s, uint32_t i, uint64_t now,
                           uint32_t stored[PIECES]) {
    uint32_t piece;
    if (!s->n || s->at[0] > now) return;
    struct msg_weights w = { .id = s->ask[0].id, .tensor = s->ask[0].tensor, .offset = s->ask[0].offset };
    memmove(s->ask, s->ask + 1, --s->n * sizeof s->ask[0]);
    memmove(s->at, s->at + 1, s->n * sizeof s->at[0]);
    if (s->busy && rng_below(&s->rng, s->busy) == 0) w.code = ERR_BUSY;
    if (s->lacks_from && w.offset / 5000 / 50 >= s->lacks_from) w.code = ERR_NOTFOUND;
    if (!fetch_on_answer(f, i, &w, &piece, now)) return;
    bool damaged = s->damage && rng_below(&s->rng, s->damage) == 0;
    if (!damaged) stored[piece]++, s->n_stored++;
    fetch_stored(f, piece, damaged ? ERR_CORRUPT : 0, "damaged");
}

/* Runs until done or failed; counts how often each piece was stored. */
static uint64_t run_sources(struct fetch *f, struct source *s, uint32_t n_source, uint32_t stored[PIECES]) {
    uint64_t now = 1;
    struct msg_weights_get get;
    uint32_t to;
    for (int step = 0; step < 1000000 && !fetch_is_done(f) && f->code == 0; step++) {
        while (fetch_next(f, &to, &get, now)) source_take(&s[to], &get, now);
        uint64_t deadline = fetch_deadline_ns(f), next = next_of(s, n_source);
        assert_true(MIN(deadline, next) != UINT64_MAX);
        now = MAX(now, MIN(deadline, next));
        fetch_on_tick(f, now);
        for (uint32_t i = 0; i < n_source; i++) {
            source_lives(f, &s[i], i, now);
            source_answers(f, &s[i], i, now, stored);
        }
    }
    return now;
}

static uint64_t run_until_over(struct fetch *f, struct source *s, uint32_t stored[PIECES]) {
    return run_sources(f, s, 1, stored);
}

static void assert_each_once(const struct fetch *f, const uint32_t stored[PIECES]) {
    if (f->code < 0) fail_msg("%s", f->text);
    assert_true(fetch_is_done(f));
    for (int i = 0; i < PIECES; i++) assert_int_equal(stored[i], 1);
}

static void every_piece_is_stored_once_in_order(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = 3 * MS };
    uint32_t stored[PIECES] = { 0 };
    begin(&f);
    run_until_over(&f, &s, stored);
    assert_each_once(&f, stored);
    assert_int_equal(s.most, FETCH_WINDOW_MAX);
    assert_int_equal(f.bytes_done, 1000 * PIECES + PIECES * (PIECES - 1) / 2);
    assert_int_equal(f.source[0].bytes, f.bytes_done);
    assert_int_equal(fetch_deadline_ns(&f), UINT64_MAX);
    fetch_end(&f);
}

static void a_slow_link_has_few_pieces_on_the_way(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = 170 * MS };
    uint32_t stored[PIECES] = { 0 };
    begin(&f);
    run_until_over(&f, &s, stored);
    assert_true(fetch_is_done(&f) && s.most <= 4);
    fetch_end(&f);
}

static void nothing_is_lost_that_the_link_loses(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 30; seed++) {
        struct fetch f = { 0 };
        struct source s = { .took = 2 * MS, .lose = 9, .damage = 25, .busy = 13 };
        uint32_t stored[PIECES] = { 0 };
        rng_init(&s.rng, seed, 0);
        begin(&f);
        run_until_over(&f, &s, stored);
        assert_each_once(&f, stored);
        assert_true(f.odds.silent && f.odds.damaged && f.odds.busy);
        fetch_end(&f);
    }
}

static void a_source_that_stays_silent_is_given_up(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = MS, .lose = 1 };
    uint32_t stored[PIECES] = { 0 };
    begin(&f);
    uint64_t now = run_until_over(&f, &s, stored);
    assert_int_equal(f.code, ERR_TIMEOUT);
    assert_int_equal((now - 1) / MS, FETCH_SILENT_MS * FETCH_SILENT_MAX);
    fetch_end(&f);
}

static void a_source_that_sends_only_damage_is_given_up(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = MS, .damage = 1 };
    uint32_t stored[PIECES] = { 0 };
    begin(&f);
    run_until_over(&f, &s, stored);
    assert_int_equal(f.code, ERR_CORRUPT);
    assert_string_equal(f.text, "damaged");
    fetch_end(&f);
}

static void an_answer_that_was_not_asked_ends_it_and_a_late_one_does_not(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_weights_get get;
    uint32_t piece, to;
    begin(&f);
    assert_true(fetch_next(&f, &to, &get, 1) && to == 0);
    struct msg_weights late = { .id = get.id + 100, .tensor = 99 };
    assert_false(fetch_on_answer(&f, 0, &late, &piece, 2));
    assert_int_equal(f.code, 0);
    assert_int_equal(f.odds.late, 1);
    assert_false(fetch_on_answer(&f, 0, &(struct msg_weights){ .id = get.id, .tensor = 5 }, &piece, 2));
    assert_int_equal(f.code, ERR_PEER);
    begin(&f);
    assert_true(fetch_next(&f, &to, &get, 1));
    uint32_t old = get.id;
    fetch_source_up(&f, 0, true, 2);               /* asked again, and then the first answer comes */
    assert_true(fetch_next(&f, &to, &get, 2));
    struct msg_weights first = { .id = old, .tensor = get.tensor, .offset = get.offset };
    assert_true(fetch_on_answer(&f, 0, &first, &piece, 3) && piece == 0);
    assert_false(fetch_on_answer(&f, 0, &first, &piece, 3));
    begin(&f);
    assert_true(fetch_next(&f, &to, &get, 1));
    assert_false(fetch_on_answer(&f, 0, &first, &piece, 3));               /* of an older list */
    assert_int_equal(f.code, 0);
    struct msg_weights none = { .id = get.id, .code = ERR_NOTFOUND };
    assert_false(fetch_on_answer(&f, 0, &none, &piece, 2));
    assert_int_equal(f.code, ERR_NOTFOUND);
    fetch_end(&f);
}

/* ---- the pure half, several sources ---- */

static void all_sources_work_and_the_fast_ones_do_more(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_source all[3] = { layers(0, 4), layers(0, 4), layers(0, 4) };
    struct source s[3] = { { .took = 10 * MS }, { .took = 2 * MS }, { .took = 300 * MS } };
    uint32_t stored[PIECES] = { 0 };
    begin_with(&f, all, 3);
    uint64_t now = run_sources(&f, s, 3, stored);
    assert_each_once(&f, stored);
    assert_true(s[1].n_stored > s[0].n_stored && s[0].n_stored > 10);
    assert_true(s[2].n_stored > 0 && s[2].n_stored < 4);
    if (now / MS > 600)                            /* the slow one's first two, when nobody knew */
        fail_msg("%llu ms, the fast one alone needs %d", (unsigned long long)(now / MS), 2 * PIECES);
    fetch_end(&f);
}

static void each_is_asked_only_for_what_it_has(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_source part[3] = { layers(0, 2), layers(2, 3), layers(3, 4) };
    struct source s[3] = { { .took = MS }, { .took = MS }, { .took = MS } };
    uint32_t stored[PIECES] = { 0 };
    begin_with(&f, part, 3);
    run_sources(&f, s, 3, stored);
    assert_each_once(&f, stored);
    assert_int_equal(s[0].n_stored, 100);
    assert_int_equal(s[1].n_stored, 50);
    assert_int_equal(s[2].n_stored, 50);
    fetch_end(&f);
}

/* What it said it had is gone meanwhile: the other one has it. */
static void a_source_that_lacks_a_part_is_not_asked_for_it_again(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_source all[2] = { layers(0, 4), layers(0, 4) };
    struct source s[2] = { { .took = MS, .lacks_from = 2 }, { .took = 5 * MS } };
    uint32_t stored[PIECES] = { 0 };
    begin_with(&f, all, 2);
    run_sources(&f, s, 2, stored);
    assert_each_once(&f, stored);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(f.source[0].lacks[i], i >= 2);
    fetch_end(&f);
}

static void what_a_dead_source_was_asked_comes_from_the_others_at_once(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_source all[2] = { layers(0, 4), layers(0, 4) };
    struct source s[2] = { { .took = 2 * MS, .dies_at = 80 * MS }, { .took = 2 * MS } };
    uint32_t stored[PIECES] = { 0 };
    begin_with(&f, all, 2);
    uint64_t now = run_sources(&f, s, 2, stored);
    assert_each_once(&f, stored);
    assert_true(s[0].n_stored > 0 && now / MS < 2 * PIECES);
    assert_int_equal(f.odds.silent, 0);
    fetch_end(&f);
}

static void the_only_source_may_die_and_come_back(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct source s = { .took = 2 * MS, .dies_at = 80 * MS, .back_at = 20000 * MS };
    uint32_t stored[PIECES] = { 0 };
    begin(&f);
    uint64_t now = run_until_over(&f, &s, stored);
    assert_each_once(&f, stored);
    assert_true(now / MS > 20000 && now / MS < 21000);
    struct fetch g = { 0 };
    struct source gone = { .took = 2 * MS, .dies_at = 80 * MS };
    memset(stored, 0, sizeof stored);
    begin(&g);
    now = run_until_over(&g, &gone, stored);
    assert_int_equal(g.code, ERR_NOTFOUND);
    assert_int_equal(now / MS, 80 + FETCH_ALONE_MS);
    fetch_end(&f);
    fetch_end(&g);
}

static void what_a_slow_source_is_late_with_is_asked_of_another(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_source all[2] = { layers(0, 4), layers(0, 4) };
    struct source s[2] = { { .took = 30000 * MS }, { .took = 2 * MS } };
    uint32_t stored[PIECES] = { 0 };
    begin_with(&f, all, 2);
    uint64_t now = run_sources(&f, s, 2, stored);
    assert_each_once(&f, stored);
    assert_true(f.odds.twice > 0 && now / MS < FETCH_LATE_MS + 2 * PIECES + 100);
    fetch_end(&f);
}

static void one_that_sends_damage_is_left_and_the_others_go_on(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_source all[2] = { layers(0, 4), layers(0, 4) };
    struct source s[2] = { { .took = MS, .damage = 1 }, { .took = 2 * MS } };
    uint32_t stored[PIECES] = { 0 };
    begin_with(&f, all, 2);
    run_sources(&f, s, 2, stored);
    assert_each_once(&f, stored);
    assert_true(f.source[0].given_up && !f.source[1].given_up);
    assert_int_equal(f.odds.damaged, FETCH_DAMAGED_MAX);
    fetch_end(&f);
}

static void many_sources_share_one_window(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct msg_source all[MSG_SOURCES_MAX];
    struct source s[MSG_SOURCES_MAX] = { { .took = 5 * MS } };
    uint32_t stored[PIECES] = { 0 }, most = 0;
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) all[i] = layers(0, 4), s[i].took = 5 * MS;
    begin_with(&f, all, MSG_SOURCES_MAX);
    run_sources(&f, s, MSG_SOURCES_MAX, stored);
    assert_each_once(&f, stored);
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) most += s[i].most;
    assert_true(most <= 2 * FETCH_WINDOW_MAX);
    fetch_end(&f);
}

/* Two files of one model may have different headers. */
static void a_header_comes_from_one_source_or_begins_anew(void **state) {
    (void)state;
    struct fetch f = { 0 };
    struct fetch_piece header[3] = { { .tensor = MSG_WEIGHTS_HEADER, .bytes = 10, .part = FETCH_PART_HEADER },
                                     { .tensor = MSG_WEIGHTS_HEADER, .bytes = 10, .offset = 10,
                                       .part = FETCH_PART_HEADER },
                                     { .tensor = MSG_WEIGHTS_HEADER, .bytes = 10, .offset = 20,
                                       .part = FETCH_PART_HEADER } };
    struct msg_weights_get get;
    uint32_t to, piece;
    for (uint32_t i = 0; i < 2; i++) {
        fetch_source_set(&f, i, &everything, 1);
        fetch_source_up(&f, i, true, 1);
    }
    fetch_begin(&f, 1, 2, header, 3, FETCH_FROM_ONE, 1);
    assert_true(fetch_next(&f, &to, &get, 1) && to == 0);
    assert_true(fetch_next(&f, &to, &get, 1) && to == 0);
    struct msg_weights w = { .id = get.id, .tensor = get.tensor, .offset = get.offset };
    assert_true(fetch_on_answer(&f, 0, &w, &piece, 2));
    fetch_stored(&f, piece, 0, NULL);
    fetch_source_up(&f, 0, false, 3);
    assert_true(f.torn);
    assert_false(fetch_next(&f, &to, &get, 3));
    fetch_begin(&f, 1, 2, header, 3, FETCH_FROM_ONE, 3);
    assert_true(fetch_next(&f, &to, &get, 3) && to == 1);
    fetch_begin(&f, 1, 2, header, 1, FETCH_FROM_SAME, 4);
    fetch_source_up(&f, 0, true, 4);
    assert_true(fetch_next(&f, &to, &get, 4) && to == 1 && !f.torn);
    fetch_end(&f);
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

static void open_rig_of(struct rig *r, char shape, const char *mix, uint32_t n_vocab) {
    struct err e;
    scratch_open(&r->model);
    scratch_open(&r->store);
    scratch_open(&r->split);
    tiny_model_init(&r->tiny, shape, mix, 5);
    if (n_vocab) r->tiny.hp.n_vocab = n_vocab;
    snprintf(r->path, sizeof r->path, "%s", scratch_path(&r->model, "model.gguf"));
    tiny_write(&r->tiny, r->path);
    assert_fine(gguf_open(&r->g, r->path, &e), &e);
    assert_fine(share_open(&r->share, r->g, &e), &e);
    assert_fine(hparams_read(&r->hp, r->g, &e), &e);
}

static void open_rig(struct rig *r, char shape, const char *mix) {
    open_rig_of(r, shape, mix, 0);
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

static struct share_part ask(const struct rig *r, bool header, uint64_t name, uint64_t offset,
                             uint32_t bytes) {
    struct share_ask a = { share_model(r->share), header, name, bytes, offset };
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
        part = ask(r, true, 0, header.size, 1000);
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
        struct share_part part = ask(r, false, p[i].name, p[i].offset, p[i].bytes);
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

/* As from several sources at once: the checksum of a tensor of many pieces is that of the pieces in order. */
static void pieces_in_any_order_make_the_same_file(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 3; seed++) {
        struct rig r;
        struct fetch_store *s;
        struct rng rng;
        struct err e;
        uint32_t n;
        char path[FILE_PATH_MAX];
        open_rig_of(&r, 'a', "f32", 12000);        /* some pieces of an embedding */
        split_with(&r, "1", NULL);
        struct msg_assign a = stage_of(&r, 0, 2, 0, 1);
        assert_fine(open_store(&r, &a, &s, &e), &e);
        const struct fetch_piece *p = fetch_store_missing(s, &n);
        uint32_t *order = calloc(n, sizeof *order), most = 0;
        rng_init(&rng, seed, 0);
        for (uint32_t i = 0; i < n; i++) order[i] = i, most = MAX(most, p[i].number);
        for (uint32_t i = n; i-- > 1;) {
            uint32_t k = (uint32_t)rng_below(&rng, i + 1), other = order[k];
            order[k] = order[i];
            order[i] = other;
        }
        assert_true(most >= 4);
        for (uint32_t i = 0; i < n; i++) {
            const struct fetch_piece *one = &p[order[i]];
            struct share_part part = ask(&r, false, one->name, one->offset, one->bytes);
            uint64_t hash = hash_64(part.data, part.bytes, 0);
            assert_fine(fetch_store_write(s, one, part.data, part.bytes, hash, &e), &e);
            if (seed == 2) assert_fine(fetch_store_write(s, one, part.data, part.bytes, hash, &e), &e);
            if (seed != 1 || i != n / 2) continue;
            fetch_store_close(s);                  /* and once more from here, with holes */
            assert_fine(open_store(&r, &a, &s, &e), &e);
            break;
        }
        store_some(&r, s, seed == 1 ? UINT64_MAX : 0);
        assert_fine(fetch_store_finish(s, &e), &e);
        snprintf(path, sizeof path, "%s", fetch_store_path(s));
        fetch_store_close(s);
        assert_same_files(path, scratch_path(&r.split, "stage-00.gguf"));
        free(order);
        close_rig(&r);
    }
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
    struct share_part part = ask(&r, false, p->name, p->offset, p->bytes);
    uint64_t hash = hash_64(part.data, part.bytes, 0);
    assert_int_equal(fetch_store_write(s, p, part.data, part.bytes, hash ^ 1, &e), ERR_CORRUPT);
    assert_int_equal(fetch_store_write(s, p, part.data, part.bytes - 1, hash, &e), ERR_CORRUPT);
    fetch_store_close(s);
    a.layer_end = r.hp.n_layer + 1;
    assert_true(open_store(&r, &a, &s, &e) < 0);
    close_rig(&r);
}

static int find(const struct share *s, struct hash128 model, uint64_t name, uint32_t bytes, uint64_t offset,
                struct share_part *out) {
    return share_find(s, &(struct share_ask){ model, false, name, bytes, offset }, out, NULL);
}

static void a_share_gives_only_what_it_has(void **state) {
    (void)state;
    struct rig r;
    struct share_part part;
    open_rig(&r, 'a', "f32");
    struct hash128 model = share_model(r.share), other = { model.lo, model.hi + 1 };
    const struct gguf_tensor *t = gguf_tensor_at(r.g, 0);
    uint64_t size = t->size, name = share_name_hash(t->name);
    assert_true(share_is_whole(r.share));
    assert_int_equal(find(r.share, other, name, 1, 0, &part), ERR_NOTFOUND);
    assert_int_equal(find(r.share, model, name + 1, 1, 0, &part), ERR_NOTFOUND);
    assert_int_equal(find(r.share, model, name, 1, size, &part), ERR_INVALID);
    assert_int_equal(find(r.share, model, name, 0, 0, &part), ERR_INVALID);
    assert_int_equal(find(r.share, model, name, 4096, size - 3, &part), 0);
    assert_true(part.bytes == 3 && part.last && part.data == t->data + size - 3);
    close_rig(&r);
}

/* A node that has a part of the model gives it on: the same bytes under the same names. */
static void a_share_of_a_shard_gives_the_bytes_of_the_model(void **state) {
    (void)state;
    struct rig r;
    struct share *shard;
    struct gguf *g;
    struct share_part part, want;
    struct err e;
    char path[FILE_PATH_MAX];
    open_rig(&r, 'a', "q4");
    struct hash128 model = share_model(r.share);
    struct msg_assign a = stage_of(&r, 0, 2, 0, 1);
    a.expert_begin = 1;
    a.expert_end = r.hp.n_expert - 1;
    fetch_whole(&r, &a, path);
    assert_fine(gguf_open_one(&g, path, &e), &e);
    assert_fine(share_open(&shard, g, &e), &e);
    assert_true(!share_is_whole(shard) && hash_equal(share_model(shard), model));
    struct share_ask header = { model, true, 0, 1, 0 };
    assert_int_equal(share_find(shard, &header, &part, NULL), ERR_NOTFOUND);
    uint32_t n_here = 0, n_cut = 0;
    for (uint64_t i = 0; i < gguf_n_tensors(r.g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(r.g, i);
        uint64_t name = share_name_hash(t->name), begin = 0, bytes = t->size;
        char text[GGUF_NAME_MAX + 1];
        snprintf(text, sizeof text, "%.*s", (int)t->name.len, t->name.data);
        if (!gguf_find_tensor(g, text)) {
            assert_int_equal(find(shard, model, name, 1, 0, &part), ERR_NOTFOUND);
            continue;
        }
        n_here++;
        if (gguf_find_tensor(g, text)->size < t->size) {       /* a stack, without first and last expert */
            uint64_t each = t->size / t->ne[2];
            n_cut++;
            begin = each, bytes = each * (t->ne[2] - 2);
            assert_int_equal(find(shard, model, name, 1, each - 1, &part), ERR_NOTFOUND);
            assert_int_equal(find(shard, model, name, 1, begin + bytes, &part), ERR_NOTFOUND);
            assert_int_equal(find(shard, model, name, 2, begin + bytes - 1, &part), ERR_NOTFOUND);
            assert_int_equal(find(shard, model, name, 1, t->size, &part), ERR_INVALID);
        }
        assert_int_equal(find(shard, model, name, (uint32_t)bytes, begin, &part), 0);
        assert_int_equal(find(r.share, model, name, (uint32_t)bytes, begin, &want), 0);
        assert_true(part.bytes == want.bytes && part.total_bytes == want.total_bytes);
        assert_int_equal(part.last, want.last);
        assert_memory_equal(part.data, want.data, part.bytes);
    }
    assert_true(n_here > 20 && n_cut == 3);
    share_close(shard);
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
        TEST(all_sources_work_and_the_fast_ones_do_more),
        TEST(each_is_asked_only_for_what_it_has),
        TEST(a_source_that_lacks_a_part_is_not_asked_for_it_again),
        TEST(what_a_dead_source_was_asked_comes_from_the_others_at_once),
        TEST(the_only_source_may_die_and_come_back),
        TEST(what_a_slow_source_is_late_with_is_asked_of_another),
        TEST(one_that_sends_damage_is_left_and_the_others_go_on),
        TEST(many_sources_share_one_window),
        TEST(a_header_comes_from_one_source_or_begins_anew),
        TEST(a_fetched_share_is_the_file_that_split_writes),
        TEST(a_helper_gets_its_experts_only),
        TEST(what_was_there_before_a_stop_is_not_fetched_again),
        TEST(pieces_in_any_order_make_the_same_file),
        TEST(pieces_that_were_damaged_on_the_disk_are_fetched_again),
        TEST(a_damaged_piece_and_another_model_are_refused),
        TEST(a_share_gives_only_what_it_has),
        TEST(a_share_of_a_shard_gives_the_bytes_of_the_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
