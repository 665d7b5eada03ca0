/* The planner: its numbers are the published ones, its plans are the best of all plans, its refusals
 * say what is missing. */
#include "common/model/plan.h"

#include "common/base/check.h"
#include "common/base/rng.h"
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

#include <math.h>

#define GIB ((uint64_t)1 << 30)

static struct plan_machine machine(const char *name, double gib, double gb_per_s) {
    struct plan_machine p = { .memory = (uint64_t)(gib * (double)GIB),
                              .bytes_per_s = gb_per_s * 1e9,
                              .int8_per_s = 20e12,
                              .f32_per_s = 5e12,
                              .layer_s = 20e-6 };
    snprintf(p.name, sizeof p.name, "%s", name);
    return p;
}

static struct plan_cluster *two_macs(double gib) {
    struct plan_cluster *c = xcalloc(1, sizeof *c);
    c->n = 2;
    c->machine[0] = machine("a", gib, 400);
    c->machine[1] = machine("b", gib, 400);
    plan_cluster_links(c, (struct plan_link){ 0.3e-3, 2.5e9 });
    return c;
}

static void flash(struct plan_model *m, enum dtype gate_up, enum dtype down) {
    struct hparams hp;
    hparams_flash(&hp);
    plan_model_shape(m, &hp, gate_up, down);
}

/* ---- the numbers of the model ---- */

static uint64_t touched(const struct plan_model *m, uint32_t l) {
    uint64_t row = l < m->hp.n_hash_layer ? 4 * m->hp.n_expert_used : 0;
    return m->layer[l].dense_bytes + m->hp.n_expert_used * m->layer[l].expert_bytes + row;
}

static void has_the_published_bytes_of_flash(void **state) {
    (void)state;
    struct plan_model m;
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    assert_true(plan_layer_bytes(&m, 0) == 1959129560 && plan_layer_bytes(&m, 2) == 1997415384);
    assert_true(plan_layer_bytes(&m, 4) == 1994313688 && plan_layer_bytes(&m, 3) == 1964549592);
    assert_true(touched(&m, 0) == 186554864 && touched(&m, 2) == 224840688 &&
                touched(&m, 4) == 224841688 && touched(&m, 3) == 195077592);
    assert_true(m.embed_bytes == 1059061760 && m.head_bytes == 562774036);
    uint64_t all = m.embed_bytes + m.head_bytes, token = m.head_bytes + 8192;
    double flop = m.head_int8 + m.head_f32;
    for (uint32_t l = 0; l < 43; l++) {
        all += plan_layer_bytes(&m, l), token += touched(&m, l);
        flop += m.layer[l].dense_int8 + m.layer[l].dense_f32 +
                6 * (m.layer[l].expert_int8 + m.layer[l].expert_f32);
    }
    assert_true(all == 86714775900);
    assert_true(token == 9559118244);
    assert_true(flop > 26.45e9 && flop < 26.55e9);
    flash(&m, DTYPE_Q4_K, DTYPE_Q4_K);
    assert_true(plan_layer_bytes(&m, 0) == 3771068888 && touched(&m, 3) == 237544920);
}

static void has_the_published_bytes_of_pro(void **state) {
    (void)state;
    struct plan_model m;
    struct hparams hp;
    hparams_pro(&hp);
    plan_model_shape(&m, &hp, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    uint64_t all = m.embed_bytes + m.head_bytes;
    for (uint32_t l = 0; l < 61; l++) all += plan_layer_bytes(&m, l);
    assert_true(all == 464621966732);
    assert_true(plan_layer_bytes(&m, 0) == 7549575896 && touched(&m, 4) == 571423448);
}

static void reads_from_a_file_what_the_shape_says(void **state) {
    (void)state;
    struct tiny_model tiny;
    struct scratch s;
    struct gguf *g;
    struct plan_model file, shape;
    struct err e;
    scratch_open(&s);
    tiny_model_init(&tiny, 'a', "q2q4", 7);
    tiny_write(&tiny, scratch_path(&s, "m.gguf"));
    assert_fine(gguf_open(&g, scratch_path(&s, "m.gguf"), &e), &e);
    assert_fine(plan_model_read(&file, g, &e), &e);
    uint64_t all = file.embed_bytes + file.head_bytes, bytes = 0;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) bytes += gguf_tensor_at(g, i)->size;
    for (uint32_t l = 0; l < file.hp.n_layer; l++) all += plan_layer_bytes(&file, l);
    assert_true(all == bytes);
    plan_model_shape(&shape, &tiny.hp, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    assert_true(shape.layer[0].expert_bytes == file.layer[0].expert_bytes &&
                shape.layer[4].expert_bytes < file.layer[4].expert_bytes);
    for (uint32_t l = 0; l < file.hp.n_layer; l++) {
        assert_true(file.layer[l].dense_bytes == shape.layer[l].dense_bytes &&
                    file.layer[l].table_bytes == shape.layer[l].table_bytes);
        assert_true(file.layer[l].dense_int8 == shape.layer[l].dense_int8 &&
                    file.layer[l].dense_f32 == shape.layer[l].dense_f32);
    }
    gguf_close(g);
    scratch_close(&s);
}

/* ---- predictions ---- */

static void one_machine_is_bound_by_its_bandwidth(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(120);
    c->n = 1;
    c->machine[0].layer_s = 0;
    plan_cluster_links(c, (struct plan_link){ 0, 1e15 });
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    o.depth = 0;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_int_equal(p.n_stage, 1);
    /* less one row of the embedding and three of the tables */
    assert_true(fabs(p.token_s * 400e9 - 9559118244.0) < 20e3);
    assert_int_equal(p.stage[0].bound, PLAN_BY_MEMORY);
    double shallow = p.token_s;
    o.n_ctx = o.depth = 1 << 20, c->machine[0].memory *= 2;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_true(p.token_s > shallow + 0.4e9 / 400e9);  /* state of a million tokens is read, too */
    free(c);
}

/* Many streams share the reading of weights, and two machines compute at the same time. */
static void many_streams_are_faster_together(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan one, two;
    struct err e;
    struct plan_cluster *c = two_macs(120);
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    o.objective = PLAN_THROUGHPUT, o.n_streams = 16;
    assert_fine(plan_search(&m, c, &o, &two, &e), &e);
    assert_int_equal(two.n_stage, 2);
    c->n = 1;
    assert_fine(plan_search(&m, c, &o, &one, &e), &e);
    assert_true(two.all_tokens_per_s > 1.2 * one.all_tokens_per_s);
    assert_true(one.all_tokens_per_s > 3 * one.stream_tokens_per_s);
    assert_true(two.prefill_tokens_per_s > 1.3 * one.prefill_tokens_per_s);
    free(c);
}

static void latency_uses_one_machine_where_it_fits(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(120);
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    c->machine[1].bytes_per_s *= 1.01;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_int_equal(p.n_stage, 1);
    assert_int_equal(p.stage[0].machine, 1);
    assert_int_equal(p.n_alternative, 2);
    assert_true(p.alternative[1].fits &&
                p.alternative[1].tokens_per_s < p.alternative[0].tokens_per_s && p.exact);
    free(c);
}

/* ---- against all plans there are ---- */

struct brute {
    const struct plan_model *m;
    const struct plan_cluster *c;
    const struct plan_options *o;
    struct plan p;
    bool used[PLAN_MACHINES_MAX], helpers;
    double best;
    uint64_t n_tried;
};

static void brute_rest(struct brute *b, uint32_t begin);

static void brute_try(struct brute *b) {
    struct plan p = b->p;
    b->n_tried++;
    if (plan_evaluate(b->m, b->c, b->o, &p, NULL) == 0) b->best = fmin(b->best, p.objective);
}

static void brute_next(struct brute *b, uint32_t end) {
    if (end == b->m->hp.n_layer) brute_try(b);
    else brute_rest(b, end);
}

/* Every set of helpers, every number of experts for each. */
static void brute_helpers(struct brute *b, struct plan_stage *s, uint32_t from) {
    for (uint32_t h = from; h < b->c->n && s->n_helper < PLAN_HELPERS_MAX; h++) {
        if (b->used[h]) continue;
        struct plan_stage before = *s;
        b->used[h] = true;
        s->helper[s->n_helper++].machine = h;
        for (uint32_t each = 1; each * s->n_helper <= b->m->hp.n_expert; each++) {
            if (!plan_experts_divide(b->m->hp.n_expert, s->n_helper, each)) continue;
            s->expert_end = b->m->hp.n_expert - each * s->n_helper;
            for (uint32_t i = 0; i < s->n_helper; i++) {
                s->helper[i].expert_begin = s->expert_end + i * each;
                s->helper[i].expert_end = s->expert_end + (i + 1) * each;
            }
            brute_next(b, s->layer_end);
        }
        brute_helpers(b, s, h + 1);
        b->used[h] = false;
        *s = before;
    }
}

static void brute_rest(struct brute *b, uint32_t begin) {
    for (uint32_t k = 0; k < b->c->n; k++) {
        if (b->used[k]) continue;
        if (b->o->ordered && b->p.n_stage && k < b->p.stage[b->p.n_stage - 1].machine) continue;
        b->used[k] = true;
        struct plan_stage *s = &b->p.stage[b->p.n_stage++];
        for (uint32_t end = begin + 1; end <= b->m->hp.n_layer; end++) {
            *s = (struct plan_stage){ .machine = k,
                                      .layer_begin = begin,
                                      .layer_end = end,
                                      .expert_end = b->m->hp.n_expert };
            brute_next(b, end);
            if (b->helpers) brute_helpers(b, s, 0);
        }
        b->p.n_stage--;
        b->used[k] = false;
    }
}

static double among(struct rng *r, double lo, double hi) {
    return lo * pow(hi / lo, rng_double(r));
}

static struct plan_link random_link(struct rng *r) {
    return (struct plan_link){ among(r, 1e-6, 1e-2), among(r, 1e6, 1e10) };
}

/* A third of the machines has everything, others lack some layers for a while or for good. */
static const struct plan_absent *random_absent(struct rng *r, struct plan_absent *a) {
    double never = rng_below(r, 2) ? INFINITY : among(r, 1, 1e5);
    if (rng_below(r, 3) == 0) return NULL;
    memset(a, 0, sizeof *a);
    for (uint32_t l = 0; l < 8; l++)
        if (rng_below(r, 2)) a->layer[l] = rng_below(r, 3) ? among(r, 0.1, 1e4) : never;
    a->embed = rng_below(r, 4) ? 0 : never;
    a->head = rng_below(r, 4) ? 0 : among(r, 0.1, 1e4);
    return a;
}

/* Often so little memory that every expert counts. */
static void random_cluster(struct rng *r, struct plan_cluster *c, uint32_t n, uint64_t model_bytes) {
    static struct plan_absent absent[3];
    struct plan_machine kinds[3];
    bool absents = rng_below(r, 2);
    c->n = n;
    for (uint32_t i = 0; i < 3; i++)
        kinds[i] = (struct plan_machine){
            .memory = (uint64_t)((double)model_bytes * among(r, 0.15, rng_below(r, 2) ? 1.5 : 0.7)),
            .bytes_per_s = among(r, 1e8, 1e11),
            .int8_per_s = among(r, 1e10, 1e12),
            .f32_per_s = among(r, 1e9, 1e12),
            .layer_s = among(r, 1e-7, 1e-3),
            .absent = absents ? random_absent(r, &absent[i]) : NULL
        };
    plan_cluster_links(c, random_link(r));
    bool wild = rng_below(r, 2);                      /* each link its own; then no two machines are alike */
    for (uint32_t i = 0; i < n; i++) {
        c->machine[i] = kinds[rng_below(r, 3)];
        snprintf(c->machine[i].name, PLAN_NAME_MAX, "m%u", i);
        for (uint32_t j = 0; j < n && wild; j++) c->link[i][j] = random_link(r);
        if (wild) c->coordinator[i] = random_link(r);
    }
}

static void random_model(struct rng *r, struct plan_model *m) {
    struct hparams hp;
    tiny_shape(&hp, 'a');
    hp.n_layer = 1 + (uint32_t)rng_below(r, 5);
    hp.n_expert = 3 + (uint32_t)rng_below(r, 6);
    for (uint32_t i = 0; i < hp.n_layer; i++) hp.ratio[i] = (const uint32_t[]){ 0, 4, 32 }[rng_below(r, 3)];
    plan_model_shape(m, &hp, DTYPE_Q4_K, DTYPE_Q4_K);
    for (uint32_t i = 0; i < hp.n_layer; i++) m->layer[i].dense_bytes *= 1 + rng_below(r, 20);
}

static void compare_with_brute_force(uint64_t seed, uint32_t n_max, bool helpers) {
    struct rng r;
    struct plan_model m;
    struct plan_options o;
    struct plan found;
    struct err e;
    struct plan_cluster *c = xcalloc(1, sizeof *c);
    struct brute b = { .m = &m, .c = c, .o = &o, .helpers = helpers, .best = INFINITY };
    rng_init(&r, seed, helpers);
    random_model(&r, &m);
    uint64_t bytes = m.embed_bytes + m.head_bytes;
    for (uint32_t l = 0; l < m.hp.n_layer; l++) bytes += plan_layer_bytes(&m, l);
    plan_options_init(&o);
    o.objective = rng_below(&r, 2) ? PLAN_LATENCY : PLAN_THROUGHPUT;
    o.helpers = helpers ? PLAN_HELPERS_AUTO : PLAN_HELPERS_NEVER;
    o.ordered = !helpers && rng_below(&r, 3) == 0;
    o.n_streams = 1 + (uint32_t)rng_below(&r, 12);
    o.n_ctx = 64 + rng_below(&r, 4000), o.depth = rng_below(&r, o.n_ctx),
    o.chunk = 1 + (uint32_t)rng_below(&r, 100);
    random_cluster(&r, c, 1 + (uint32_t)rng_below(&r, n_max),
                   bytes + plan_work_bytes(&m, &o) + plan_state_bytes(&m, &o, 0, m.hp.n_layer));
    brute_rest(&b, 0);
    int rc = plan_search(&m, c, &o, &found, &e);
    if (rc < 0 ? b.best < INFINITY : !(fabs(found.objective - b.best) <= 1e-9 * b.best))
        fail_msg("seed %llu: %g found, %g is possible (%llu plans; %s)", (unsigned long long)seed,
                 rc < 0 ? INFINITY : found.objective, b.best, (unsigned long long)b.n_tried,
                 rc < 0 ? e.text : "");
    if (rc == 0) assert_true(found.exact && found.helpers_tried == (helpers && c->n > 1));
    else assert_true(rc == ERR_NOMEM || rc == ERR_NOTFOUND);
    free(c);
}

/* Two machines, the second a little faster but without the file: worth the way only over a very fast link. */
static void a_model_is_not_moved_for_a_little_speed(void **state) {
    struct plan_absent absent = { .embed = 1, .head = 1 };
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct hparams hp;
    struct err e;
    struct plan_cluster *c = xcalloc(1, sizeof *c);
    (void)state;
    tiny_shape(&hp, 'a');
    plan_model_shape(&m, &hp, DTYPE_Q4_K, DTYPE_Q4_K);
    plan_options_init(&o);
    o.n_ctx = 1024, o.depth = 100;
    c->n = 2;
    for (uint32_t i = 0; i < 2; i++)
        c->machine[i] = (struct plan_machine){ .name = { (char)('a' + (char)i) },
                                               .memory = UINT64_C(1) << 40,
                                               .bytes_per_s = i ? 12e9 : 10e9,
                                               .int8_per_s = 1e12,
                                               .f32_per_s = 1e12,
                                               .layer_s = 1e-5 };
    plan_cluster_links(c, (struct plan_link){ 1e-3, 1e8 });
    assert_int_equal(plan_search(&m, c, &o, &p, &e), 0);
    assert_true(p.n_stage == 1 && p.stage[0].machine == 1);
    double token_s = p.token_s;
    c->machine[1].absent = &absent;
    absent.layer[0] = 1000;
    assert_int_equal(plan_search(&m, c, &o, &p, &e), 0);
    assert_true(p.n_stage == 1 && p.stage[0].machine == 0);
    absent.layer[0] = 1e-6, absent.embed = absent.head = 0;
    assert_int_equal(plan_search(&m, c, &o, &p, &e), 0);
    assert_true(p.n_stage == 1 && p.stage[0].machine == 1);
    assert_true(p.token_s == token_s);                /* what is reported stays the speed */
    absent.layer[0] = INFINITY;
    c->n = 1, c->machine[0] = c->machine[1];
    assert_int_equal(plan_search(&m, c, &o, &p, &e), ERR_NOTFOUND);
    free(c);
}

static void finds_the_best_of_all_plans(void **state) {
    (void)state;
    for (int i = 0; i < test_rounds(3000); i++) compare_with_brute_force((uint64_t)i, 4, false);
}

static void finds_the_best_of_all_plans_with_helpers(void **state) {
    (void)state;
    for (int i = 0; i < test_rounds(1000); i++) compare_with_brute_force((uint64_t)i, i % 8 ? 3 : 4, true);
}

/* The missing bytes are exact: with one less on every machine nothing fits, with all of them something
 * does. */
static void says_how_many_bytes_are_missing(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    unsigned long long more;
    struct plan_cluster *c = two_macs(32);
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    o.helpers = PLAN_HELPERS_NEVER;
    assert_int_equal(plan_search(&m, c, &o, &p, &e), ERR_NOMEM);
    const char *with = strstr(e.text, "with ");
    assert_non_null(with);
    assert_int_equal(sscanf(with, "with %llu more", &more), 1);
    for (uint32_t i = 0; i < 2; i++) c->machine[i].memory += more;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_int_equal(p.n_stage, 2);
    for (uint32_t i = 0; i < 2; i++) c->machine[i].memory -= 1;
    assert_int_equal(plan_search(&m, c, &o, &p, &e), ERR_NOMEM);
    free(c);
}

static void counts_state_of_all_streams(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(100);
    c->n = 1;
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    o.n_ctx = 1 << 20;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_true(p.stage[0].state > 3 * GIB && p.stage[0].state < 5 * GIB);
    o.n_streams = 8;
    assert_int_equal(plan_search(&m, c, &o, &p, &e), ERR_NOMEM);
    free(c);
}

/* Two machines that each hold half of the experts, where not even one layer with all of them fits on one. */
static void experts_are_divided_as_nodes_compute_with_them(void **state) {
    (void)state;
    assert_true(plan_experts_divide(256, 1, 128) && plan_experts_divide(256, 2, 64) &&
                plan_experts_divide(256, 3, 64));
    assert_true(plan_experts_divide(384, 1, 128) && plan_experts_divide(384, 2, 128));
    assert_false(plan_experts_divide(256, 1, 64) || plan_experts_divide(256, 1, 256) ||
                 plan_experts_divide(256, 2, 128) || plan_experts_divide(256, 3, 32));
}

static void takes_helpers_where_nothing_else_fits(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct hparams hp;
    hparams_flash(&hp);
    hp.n_layer = 1;
    plan_model_shape(&m, &hp, DTYPE_Q4_K, DTYPE_Q4_K);
    struct plan_cluster *c = two_macs(4.2);
    plan_options_init(&o);
    o.n_ctx = o.depth = 1024, o.chunk = 64;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_int_equal(p.n_stage, 1);
    assert_int_equal(p.stage[0].n_helper, 1);
    assert_true(p.plain_tokens_per_s == 0 && p.stage[0].helper[0].expert_end == 256);
    o.helpers = PLAN_HELPERS_NEVER;
    assert_int_equal(plan_search(&m, c, &o, &p, &e), ERR_NOMEM);
    free(c);
}

/* Where nothing lacks room: three servers of different speed that read memory slowly. One stream is faster
 * with the experts on all of them when the links are quick, and on one machine alone when they are not. */
static void takes_helpers_where_they_are_faster(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(300);
    flash(&m, DTYPE_Q4_K, DTYPE_Q4_K);
    plan_options_init(&o);
    c->n = 3;
    c->machine[0] = machine("a", 300, 40);
    c->machine[1] = machine("b", 300, 30);
    c->machine[2] = machine("c", 300, 35);
    plan_cluster_links(c, (struct plan_link){ 20e-6, 5e9 });
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_true(p.helpers_tried && p.exact);
    assert_int_equal(p.n_stage, 1);
    assert_int_equal(p.stage[0].machine, 0);
    assert_int_equal(p.stage[0].n_helper, 2);
    assert_int_equal(p.stage[0].helper[0].machine + p.stage[0].helper[1].machine, 3);
    assert_true(p.plain_tokens_per_s > 0 && p.stream_tokens_per_s > 1.1 * p.plain_tokens_per_s);
    struct plan_exchange x = plan_exchange(&m, c, &o, &p.stage[0], 1);
    assert_true(x.here_s < x.alone_s && fmax(x.here_s, x.way_s + x.there_s) < x.alone_s);
    assert_true(fabs(x.way_s - 43 * 2 * (20e-6 + 2 * 4 * 4096 / 5e9)) < 1e-9);
    plan_cluster_links(c, (struct plan_link){ 2e-3, 5e9 });
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_true(p.helpers_tried && p.n_stage == 1 && p.stage[0].n_helper == 0 && p.plain_tokens_per_s == 0);
    free(c);
}

/* The link to one helper is slow: the other one alone. */
static void chooses_helpers_by_their_links(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(300);
    flash(&m, DTYPE_Q4_K, DTYPE_Q4_K);
    plan_options_init(&o);
    c->n = 3;
    c->machine[0] = machine("a", 300, 40);
    c->machine[1] = machine("b", 300, 39);
    c->machine[2] = machine("c", 300, 30);
    plan_cluster_links(c, (struct plan_link){ 20e-6, 5e9 });
    c->link[0][1] = c->link[1][0] = (struct plan_link){ 5e-3, 1e8 };
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_int_equal(p.n_stage, 1);
    assert_int_equal(p.stage[0].n_helper, 1);
    assert_int_equal(p.stage[0].machine, 0);
    assert_int_equal(p.stage[0].helper[0].machine, 2);
    /* it would have to fetch its experts first, and never could: then without it */
    struct plan_absent absent = { .layer = { 0 } };
    for (uint32_t l = 0; l < 43; l++) absent.layer[l] = INFINITY;
    c->machine[2].absent = &absent;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_true(p.n_stage == 1 && p.stage[0].n_helper == 0);
    free(c);
}

/* Different machines: every set and order of stages is tried; with helpers as long as it is a matter of less
 * than a second, and what was not tried is said. */
static void leaves_helpers_out_where_trying_them_takes_too_long(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(100);
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    o.n_streams = 8;
    for (c->n = 3; c->n <= 7; c->n++) {
        for (uint32_t i = 0; i < c->n; i++) {
            c->machine[i] = machine("", 100 + i, 40 + i);
            snprintf(c->machine[i].name, PLAN_NAME_MAX, "m%u", i);
        }
        o.objective = c->n % 2 ? PLAN_LATENCY : PLAN_THROUGHPUT;
        assert_fine(plan_search(&m, c, &o, &p, &e), &e);
        assert_true(p.exact);
        assert_int_equal(p.helpers_tried, c->n != 6);
    }
    free(c);
}

static void gives_the_same_plan_twice(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan a, b;
    struct err e;
    struct plan_cluster *c = two_macs(20);
    c->n = 6;
    for (uint32_t i = 0; i < 6; i++) {
        c->machine[i] = c->machine[0];
        snprintf(c->machine[i].name, PLAN_NAME_MAX, "m%u", i);
    }
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    assert_fine(plan_search(&m, c, &o, &a, &e), &e);
    assert_fine(plan_search(&m, c, &o, &b, &e), &e);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(a.n_stage >= 5);
    /* of equals, the first ones */
    for (uint32_t i = 0; i < a.n_stage; i++) assert_int_equal(a.stage[i].machine, i);
    free(c);
}

/* Twelve different machines: more sets than are tried, so the order given is kept, and it is said. */
static void keeps_the_order_of_very_many_machines(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(12);
    c->n = 12;
    for (uint32_t i = 0; i < 12; i++) {
        c->machine[i] = machine("", 12 + 0.1 * i, 400 + i);
        snprintf(c->machine[i].name, PLAN_NAME_MAX, "m%u", i);
    }
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_false(p.exact);
    for (uint32_t i = 1; i < p.n_stage; i++) assert_true(p.stage[i].machine > p.stage[i - 1].machine);
    o.ordered = true;
    assert_fine(plan_search(&m, c, &o, &p, &e), &e);
    assert_true(p.exact);
    free(c);
}

/* ---- by hand ---- */

static void reads_plans_by_hand(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(64);
    static const struct { const char *text; int rc;
    } cases[] = {
        { "a=0-20,b=21-42", 0 },
        { "b=0-0,a=1-42", ERR_NOMEM },
        { "a=0-20,b=22-42", ERR_INVALID },
        { "a=0-20,b=20-42", ERR_INVALID },
        { "a=0-20", ERR_INVALID },
        { "a=0-20,a=21-42", ERR_INVALID },
        { "b=21-42,a=0-20", ERR_INVALID },
        { "a=0-20,c=21-42", ERR_NOTFOUND },
        { "a=0-20,b=21-43", ERR_INVALID },
        { "a=5-2,b=21-42", ERR_INVALID },
        { "", ERR_INVALID },
        { "a", ERR_INVALID },
        { "a=", ERR_INVALID },
        { "a=0-", ERR_INVALID },
        { "a=0-20;b=21-42", ERR_INVALID },
        { "a=0-20,", ERR_INVALID },
        { "=0-42", ERR_NOTFOUND },
        { "a=00000-42", ERR_INVALID },
        { "a=-1-42", ERR_INVALID },
    };
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int rc = plan_parse(&m, c, cases[i].text, &p, &e);
        if (rc == 0) rc = plan_evaluate(&m, c, &o, &p, &e);
        if (rc != cases[i].rc) fail_msg("'%s': %d, expected %d", cases[i].text, rc, cases[i].rc);
    }
    assert_fine(plan_parse(&m, c, "b=0-20,a=21-42", &p, &e), &e);
    assert_fine(plan_evaluate(&m, c, &o, &p, &e), &e);
    assert_true(p.n_stage == 2 && p.stage[0].machine == 1 && p.stage[0].layer_end == 21 &&
                p.stage[0].embed && p.stage[1].head);
    free(c);
}

static void refuses_nonsense(void **state) {
    (void)state;
    struct plan_model m;
    struct plan_options o;
    struct plan p;
    struct err e;
    struct plan_cluster *c = two_macs(64), *good = two_macs(64);
    flash(&m, DTYPE_IQ2_XXS, DTYPE_Q2_K);
    plan_options_init(&o);
#define BAD(change)                                                       \
    *c = *good, change;                                                   \
    assert_int_equal(plan_search(&m, c, &o, &p, &e), ERR_INVALID)
    BAD(c->n = 0);
    BAD(c->n = PLAN_MACHINES_MAX + 1);
    BAD(c->machine[1].bytes_per_s = 0);
    BAD(c->machine[1].f32_per_s = NAN);
    BAD(c->machine[0].layer_s = -1);
    BAD(c->machine[0].memory = UINT64_MAX);
    BAD(c->link[0][1].bytes_per_s = 0);
    BAD(c->coordinator[1].latency_s = NAN);
    BAD(c->machine[1] = c->machine[0]);
    *c = *good;
    o.depth = o.n_ctx + 1;
    assert_int_equal(plan_search(&m, c, &o, &p, &e), ERR_INVALID);
    free(good);
    free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(has_the_published_bytes_of_flash),
        TEST(has_the_published_bytes_of_pro),
        TEST(reads_from_a_file_what_the_shape_says),
        TEST(one_machine_is_bound_by_its_bandwidth),
        TEST(many_streams_are_faster_together),
        TEST(latency_uses_one_machine_where_it_fits),
        TEST(a_model_is_not_moved_for_a_little_speed),
        TEST(finds_the_best_of_all_plans),
        TEST(finds_the_best_of_all_plans_with_helpers),
        TEST(says_how_many_bytes_are_missing),
        TEST(counts_state_of_all_streams),
        TEST(experts_are_divided_as_nodes_compute_with_them),
        TEST(takes_helpers_where_nothing_else_fits),
        TEST(takes_helpers_where_they_are_faster),
        TEST(chooses_helpers_by_their_links),
        TEST(leaves_helpers_out_where_trying_them_takes_too_long),
        TEST(gives_the_same_plan_twice),
        TEST(keeps_the_order_of_very_many_machines),
        TEST(reads_plans_by_hand),
        TEST(refuses_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
