/* A share over real links: sources and a receiver, each with its own zmq context, on one loop; reading and
 * writing are threads of their own. */
#include "tests/harness/test.h"

#include "common/model/shard.h"
#include "common/share/share_server.h"
#include "common/sys/clock.h"
#include "common/sys/file.h"
#include "common/sys/link.h"
#include "common/wire/frame.h"
#include "node/fetch_run.h"
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

#include <unistd.h>

#define MS UINT64_C(1000000)
enum { LINK = 3, FIRST = 32, SOURCES = 2 };

struct pair;

struct side {
    struct pair *pair;
    struct share_server *server;                   /* of a source */
    uint32_t number, n_given, dies_after;          /* pieces; 0: never */
    bool up;                                       /* the receiver's link to it */
    struct net *net;
    struct slots *slots;
    struct links *links;
    struct codec *codec;
    struct buf frame;
};

struct pair {
    struct loop *loop;
    struct loop_timer *limit;
    struct side source[SOURCES], node;
    uint32_t n_source;
    struct share *share;
    struct fetch_run *run;
    struct scratch model, store;
    struct tiny_model tiny;
    struct gguf *g;
    struct hash128 fingerprint;
    uint32_t n_done, n_progress, n_asked;
    uint64_t epoch, total, done;
    int code;
    char path[FILE_PATH_MAX], text[MSG_TEXT_MAX];
    uint32_t drop_every, damage_every, n_answer;  /* mistakes of the link; 0: none */
    uint32_t stop_after;                          /* questions; 0: never */
};

static void send_on(struct side *s, uint32_t link, struct msg *m, struct payload payload) {
    struct err e;
    m->incarnation = 1;
    buf_clear(&s->frame);
    assert_fine(frame_pack(m, payload.bytes, &s->frame, &e), &e);
    links_send(s->links, link, s->frame.data, s->frame.size, payload, false);
}

static int unpack(struct side *s, const void *header, size_t n, struct payload p, struct msg *m) {
    const struct frame_rules rules = { 0, slots_bytes_max(s->slots) };
    struct err e;
    assert_fine(frame_unpack(s->codec, header, n, p.bytes, &rules, m, &e), &e);
    return (int)m->kind;
}

/* ---- a source ---- */

/* The process ends: its links are lost to the others. */
static void die(struct side *s) {
    share_server_free(s->server);
    s->server = NULL;
    links_close(s->links);
    s->links = NULL;
    fetch_run_source_up(s->pair->run, s->number, false);
}

static void source_send(void *ctx, uint32_t link, struct msg *m, struct payload payload) {
    struct side *s = ctx;
    s->n_given++;
    send_on(s, link, m, payload);
}

static int source_find(void *ctx, const struct share_ask *ask, struct share_part *out) {
    struct side *s = ctx;
    return share_find(s->pair->share, ask, out, NULL);
}

static void source_on_frame(void *ctx, uint32_t link, const void *header, size_t n, struct payload payload) {
    struct side *s = ctx;
    struct msg m;
    assert_int_equal(unpack(s, header, n, payload, &m), MSG_WEIGHTS_GET);
    if (s->server) share_server_on_get(s->server, link, &m.u.weights_get);
}

static void source_on_closed(void *ctx, uint32_t link) {
    struct side *s = ctx;
    if (s->server) share_server_on_closed(s->server, link);
}

/* ---- the receiver ---- */

static void node_send(void *ctx, uint32_t source, const struct msg_weights_get *get) {
    struct pair *p = ctx;
    struct msg m = { .kind = MSG_WEIGHTS_GET, .u.weights_get = *get };
    p->n_asked++;
    if (p->stop_after && p->n_asked == p->stop_after) {
        loop_stop(p->loop);
        return;
    }
    send_on(&p->node, LINK + source, &m, (struct payload){ 0 });
}

static void node_on_frame(void *ctx, uint32_t link, const void *header, size_t n, struct payload payload) {
    struct pair *p = ((struct side *)ctx)->pair;
    struct side *from = &p->source[link - LINK];
    struct msg m;
    assert_int_equal(unpack(&p->node, header, n, payload, &m), MSG_WEIGHTS);
    p->n_answer++;
    if (p->damage_every && p->n_answer % p->damage_every == 0) m.u.weights.hash ^= 1;
    if (p->drop_every && p->n_answer % p->drop_every == 0) {
        slots_give(p->node.slots, payload);
        fetch_run_source_up(p->run, link - LINK, true);        /* as if it were lost with the connection */
        return;
    }
    fetch_run_on_weights(p->run, link - LINK, &m.u.weights, payload);
    if (from->dies_after && from->links && from->n_given >= from->dies_after) loop_stop(p->loop);
}

static void node_on_up(void *ctx, uint32_t link) {
    struct pair *p = ((struct side *)ctx)->pair;
    p->source[link - LINK].up = true;
    fetch_run_source_up(p->run, link - LINK, true);
}

static void on_progress(void *ctx, uint64_t epoch, uint64_t done, uint64_t total) {
    struct pair *p = ctx;
    assert_true(done <= total && epoch == p->epoch);
    p->n_progress++;
    p->done = done;
    p->total = total;
}

static void on_tidied(void *ctx) {
    (void)ctx;
}

static void on_done(void *ctx, uint64_t epoch, const char *path, int code, const char *text) {
    struct pair *p = ctx;
    assert_int_equal(epoch, p->epoch);
    p->n_done++;
    p->code = code;
    snprintf(p->path, sizeof p->path, "%s", path ? path : "");
    snprintf(p->text, sizeof p->text, "%s", text);
    loop_stop(p->loop);
}

/* ---- both ---- */

static void on_limit(void *ctx) {
    loop_stop(((struct pair *)ctx)->loop);
}

static void side_open(struct pair *p, struct side *s, const char *bind) {
    struct err e;
    s->pair = p;
    struct slots_config slots = { .n_big = 2, .n_small = 40, .big_bytes = 1 << 22, .small_bytes = 1 << 20 };
    assert_fine(net_new(&s->net, &e), &e);
    assert_fine(slots_new(&s->slots, p->loop, &slots, &e), &e);
    struct links_config c = { .loop = p->loop,
                              .net = s->net,
                              .slots = s->slots,
                              .bind = bind,
                              .accepted_first = FIRST,
                              .redial_ms = 10,
                              .ctx = s };
    c.on_frame = bind ? source_on_frame : node_on_frame;
    c.on_closed = bind ? source_on_closed : NULL;
    c.on_up = bind ? NULL : node_on_up;
    assert_fine(links_open(&s->links, &c, &e), &e);
    s->codec = codec_new();
    buf_init(&s->frame, FRAME_HEADER_BYTES_MAX);
}

static void side_close(struct side *s) {
    links_close(s->links);
    net_free(s->net);
    codec_free(s->codec);
    buf_deinit(&s->frame);
}

static void make_model(struct pair *p, const char *mix) {
    struct err e;
    char path[FILE_PATH_MAX];
    scratch_open(&p->model);
    scratch_open(&p->store);
    tiny_model_init(&p->tiny, 'a', mix, 3);
    snprintf(path, sizeof path, "%s", scratch_path(&p->model, "model.gguf"));
    tiny_write(&p->tiny, path);
    assert_fine(gguf_open(&p->g, path, &e), &e);
    assert_fine(shard_fingerprint(p->g, &p->fingerprint, &e), &e);
}

static void open_source(struct pair *p, uint32_t i) {
    struct err e;
    struct side *s = &p->source[i];
    s->number = i;
    s->up = false;
    side_open(p, s, "tcp://127.0.0.1:0");
    struct share_server_config c = { .loop = p->loop, .slots = s->slots, .n_slot_left = 4,
                                     .find = source_find, .send = source_send, .ctx = s };
    assert_fine(share_server_new(&s->server, &c, &e), &e);
    assert_fine(links_connect(p->node.links, LINK + i, links_address(s->links), NULL, &e), &e);
}

static void open_ends(struct pair *p) {
    struct err e;
    if (!p->n_source) p->n_source = 1;
    assert_fine(loop_new(&p->loop, &e), &e);
    p->limit = loop_timer_new(p->loop, on_limit, p);
    assert_fine(share_open(&p->share, p->g, &e), &e);
    side_open(p, &p->node, NULL);
    struct fetch_run_config f = { p->loop,   p->node.slots, p->store.folder,
                                  node_send, on_progress,   on_tidied,
                                  on_done,   p };
    assert_fine(fetch_run_new(&p->run, &f, &e), &e);
    for (uint32_t i = 0; i < p->n_source; i++) open_source(p, i);
}

static void close_ends(struct pair *p) {
    fetch_run_free(p->run);
    side_close(&p->node);
    for (uint32_t i = 0; i < p->n_source; i++) {
        share_server_free(p->source[i].server);
        side_close(&p->source[i]);
        slots_free(p->source[i].slots);           /* dies when a slot was not given back */
        p->source[i] = (struct side){ .dies_after = 0 };
    }
    slots_free(p->node.slots);
    share_close(p->share);
    loop_timer_free(p->limit);
    loop_free(p->loop);
}

static void drop_model(struct pair *p) {
    gguf_close(p->g);
    scratch_close(&p->model);
    scratch_close(&p->store);
}

static struct msg_assign whole(const struct pair *p) {
    return (struct msg_assign){ .model_lo = p->fingerprint.lo, .model_hi = p->fingerprint.hi, .n_stage = 1,
                                .layer_end = p->tiny.hp.n_layer, .has_embed = true, .has_head = true };
}

static struct msg_source all_of(const struct pair *p) {
    struct msg_source s = { .has_embed = true, .has_head = true, .has_rest = true, .has_header = true };
    (void)p;
    memset(s.layers, 0xff, sizeof s.layers);
    return s;
}

static void run(struct pair *p) {
    loop_timer_set(p->limit, clock_now_ns() + 60000 * MS);
    loop_run(p->loop);
}

static void fetch(struct pair *p, const struct msg_assign *a) {
    struct msg_source what = all_of(p);
    p->n_done = p->n_asked = p->n_answer = 0;
    fetch_run_start(p->run, ++p->epoch, a);
    for (uint32_t i = 0; i < p->n_source; i++) {
        fetch_run_source(p->run, i, &what);
        if (p->source[i].up) fetch_run_source_up(p->run, i, true);
    }
    run(p);
}

/* Every tensor of the model is in the file, with the model's bytes. */
static void assert_whole(const struct pair *p) {
    struct gguf *g;
    struct err e;
    if (p->code < 0) fail_msg("%s", p->text);
    assert_int_equal(p->n_done, 1);
    assert_fine(gguf_open_one(&g, p->path, &e), &e);
    assert_int_equal(gguf_n_tensors(g), gguf_n_tensors(p->g));
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i), *from;
        char name[GGUF_NAME_MAX + 1];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        assert_non_null(from = gguf_find_tensor(p->g, name));
        assert_int_equal(t->size, from->size);
        assert_memory_equal(t->data, from->data, t->size);
    }
    gguf_close(g);
}

static void a_model_arrives_whole(void **state) {
    (void)state;
    struct pair p = { 0 };
    make_model(&p, "f32");
    open_ends(&p);
    struct msg_assign a = whole(&p);
    fetch(&p, &a);
    assert_whole(&p);
    assert_true(p.n_progress >= 2 && p.done == p.total && p.total > 1 << 20);
    assert_int_equal(share_server_totals(p.source[0].server).n_refused, 0);
    fetch(&p, &a);                                /* and once more, over the file that is there */
    assert_whole(&p);
    close_ends(&p);
    drop_model(&p);
}

static void a_bad_link_makes_it_slower_and_nothing_else(void **state) {
    (void)state;
    struct pair p = { .drop_every = 7, .damage_every = 11 };
    make_model(&p, "f32");
    open_ends(&p);
    struct msg_assign a = whole(&p);
    fetch(&p, &a);
    assert_whole(&p);
    struct fetch_totals t = fetch_run_totals(p.run);
    assert_true(t.n_damaged > 0 && t.n_late > 0);
    close_ends(&p);
    drop_model(&p);
}

static void a_receiver_that_stops_goes_on_where_it_was(void **state) {
    (void)state;
    struct pair p = { .stop_after = 80 };
    make_model(&p, "f32");
    open_ends(&p);
    struct msg_assign a = whole(&p);
    fetch(&p, &a);
    assert_int_equal(p.n_done, 0);
    close_ends(&p);
    p.stop_after = 0;
    open_ends(&p);
    fetch(&p, &a);
    assert_whole(&p);
    uint64_t bytes = fetch_run_totals(p.run).bytes;
    if (bytes >= p.total * 3 / 4)
        fail_msg("%llu of %llu once more", (unsigned long long)bytes, (unsigned long long)p.total);
    close_ends(&p);
    drop_model(&p);
}

static void a_newer_plan_takes_the_place_of_an_older_one(void **state) {
    (void)state;
    struct pair p = { .stop_after = 60 };
    make_model(&p, "f32");
    open_ends(&p);
    struct msg_assign first = whole(&p), second = first;
    second.layer_end = 2;
    second.has_head = false;
    second.n_stage = 2;
    fetch(&p, &first);
    assert_int_equal(p.n_done, 0);
    p.stop_after = 0;
    for (int i = 0; i < 20; i++) fetch_run_start(p.run, ++p.epoch, i % 2 ? &first : &second);
    fetch(&p, &second);
    if (p.code < 0) fail_msg("%s", p.text);
    assert_non_null(strstr(p.path, "-stage-00-01-embed.gguf"));
    close_ends(&p);
    drop_model(&p);
}

static void a_source_without_the_model_says_so(void **state) {
    (void)state;
    struct pair p = { 0 };
    make_model(&p, "q8");
    open_ends(&p);
    struct msg_assign a = whole(&p);
    a.model_hi++;
    fetch(&p, &a);
    assert_int_equal(p.n_done, 1);
    assert_int_equal(p.code, ERR_NOTFOUND);
    assert_non_null(strstr(p.text, "source"));
    close_ends(&p);
    drop_model(&p);
}

static void two_sources_give_it_together(void **state) {
    (void)state;
    struct pair p = { .n_source = 2 };
    make_model(&p, "f32");
    open_ends(&p);
    struct msg_assign a = whole(&p);
    fetch(&p, &a);
    assert_whole(&p);
    struct fetch_totals t = fetch_run_totals(p.run);
    assert_true(t.source_bytes[0] > 0 && t.source_bytes[1] > 0 && t.ns > 0);
    assert_int_equal(t.source_bytes[0] + t.source_bytes[1], p.total);
    close_ends(&p);
    drop_model(&p);
}

static void when_one_source_dies_the_other_gives_the_rest(void **state) {
    (void)state;
    struct pair p = { .n_source = 2 };
    make_model(&p, "f32");
    open_ends(&p);
    p.source[0].dies_after = 20;
    struct msg_assign a = whole(&p);
    fetch(&p, &a);
    assert_int_equal(p.n_done, 0);
    die(&p.source[0]);
    run(&p);
    assert_whole(&p);
    assert_true(fetch_run_totals(p.run).source_bytes[1] > 0);
    close_ends(&p);
    drop_model(&p);
}

/* Told while it waits: nobody was there, then somebody is. */
static void a_source_that_comes_later_is_asked_at_once(void **state) {
    (void)state;
    struct pair p = { 0 };
    make_model(&p, "q8");
    open_ends(&p);
    struct msg_assign a = whole(&p);
    struct msg_source what = all_of(&p);
    fetch_run_start(p.run, ++p.epoch, &a);
    while (!p.source[0].up) {
        loop_timer_set(p.limit, clock_now_ns() + 10 * MS);
        loop_run(p.loop);
    }
    assert_int_equal(p.n_asked, 0);
    fetch_run_source(p.run, 0, &what);
    assert_int_equal(p.n_asked, 0);
    fetch_run_source_up(p.run, 0, true);
    run(&p);
    assert_whole(&p);
    close_ends(&p);
    drop_model(&p);
}

static void a_source_gives_no_faster_than_it_was_told(void **state) {
    (void)state;
    struct pair p = { 0 };
    struct err e;
    make_model(&p, "q8");
    open_ends(&p);
    struct share_server_config c = { .loop = p.loop, .slots = p.source[0].slots, .bytes_per_s = 10000000,
                                     .find = source_find, .send = source_send, .ctx = &p.source[0] };
    share_server_free(p.source[0].server);
    assert_fine(share_server_new(&p.source[0].server, &c, &e), &e);
    struct msg_assign a = whole(&p);
    fetch(&p, &a);
    assert_whole(&p);
    double seconds = (double)fetch_run_totals(p.run).ns / 1e9, rate = (double)p.total / seconds;
    if (rate > 13e6) fail_msg("%.0f bytes in %.3f s", (double)p.total, seconds);
    close_ends(&p);
    drop_model(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_model_arrives_whole),
        TEST(a_bad_link_makes_it_slower_and_nothing_else),
        TEST(a_receiver_that_stops_goes_on_where_it_was),
        TEST(a_newer_plan_takes_the_place_of_an_older_one),
        TEST(a_source_without_the_model_says_so),
        TEST(two_sources_give_it_together),
        TEST(when_one_source_dies_the_other_gives_the_rest),
        TEST(a_source_that_comes_later_is_asked_at_once),
        TEST(a_source_gives_no_faster_than_it_was_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
