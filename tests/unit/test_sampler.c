/* The sampler against a naive reference (full sort, libm, one long loop), and picks from candidates
 * against picks from rows. */
#include "common/model/sampler.h"

#include "common/base/rng.h"
#include "common/model/logits.h"

#include "tests/harness/test.h"

#include <math.h>
#include <time.h>

enum { N_MAX = 6000 };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the naive reference: the nine lines of sampler.h, said again in the plainest way ---- */

struct naive { int32_t id; float logit; };

static int naive_order(const void *a, const void *b) {
    const struct naive *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static float naive_adjust(float logit, int32_t id, const struct sampler_params *p,
                          const struct sampler_history *h) {
    double x = (double)logit;
    if (p->allowed && !(p->allowed[id / 64] >> id % 64 & 1)) return -INFINITY;
    for (int i = 0; h && i < h->n; i++) {
        if (h->seen[i].id != id) continue;
        x = x > 0 ? x / (double)p->repetition : x * (double)p->repetition;
        if (h->seen[i].n_output > 0) x = x - (double)p->frequency * h->seen[i].n_output - (double)p->presence;
    }
    for (int i = 0; i < p->n_bias; i++)
        if (p->bias[i].id == id) x += (double)p->bias[i].bias;
    return (float)x;
}

static int32_t naive_pick(const float *row, int n, const struct sampler_params *p,
                          const struct sampler_history *h, uint64_t position) {
    struct naive *a = calloc((size_t)n, sizeof *a);
    double *w = calloc((size_t)n, sizeof *w), total = 0;
    for (int i = 0; i < n; i++) a[i] = (struct naive){ i, naive_adjust(row[i], i, p, h) };
    qsort(a, (size_t)n, sizeof *a, naive_order);
    int32_t id = a[0].id;
    int keep = n;
    if (p->temperature > 0) {
        for (int i = 0; i < n; i++)
            w[i] = exp(((double)a[i].logit - (double)a[0].logit) / (double)p->temperature);
        while (w[keep - 1] < (double)p->min_p) keep--;
        if (p->top_k > 0 && p->top_k < keep) keep = p->top_k;
        for (int i = 0; i < keep; i++) total += w[i];
        if (p->top_p < 1) {
            double sum = 0, kept = total * (double)p->top_p;
            for (int i = 0; i < keep; i++) {
                sum += w[i];
                if (sum >= kept) {
                    keep = i + 1;
                    total = sum;
                }
            }
        }
        double at = rng_unit(rng_at(p->seed, position)) * total, sum = 0;
        for (int i = 0; i < keep; i++) {
            sum += w[i];
            if (w[i] > 0) id = a[i].id;
            if (sum > at) break;
        }
    }
    free(a);
    free(w);
    return id;
}

/* ---- random rows, parameters, histories ---- */

struct scene {
    struct sampler s;
    int n;
    float row[N_MAX];
    struct sampler_params p;
    struct sampler_bias bias[12];
    uint64_t allowed[N_MAX / 64 + 1];
    struct sampler_history h;
};

enum shape { FLAT, PEAKED, TIES, EQUAL, WIDE, SHAPES };

static void fill_row(struct rng *r, float *row, int n, enum shape shape) {
    for (int i = 0; i < n; i++) {
        float x = rng_normal(r);
        if (shape == FLAT) row[i] = 0.05f * x;
        if (shape == PEAKED) row[i] = 2.5f * x + (rng_below(r, 200) == 0 ? 10.0f : 0.0f);
        if (shape == TIES) row[i] = floorf(2.0f * x) * 0.5f * (rng_below(r, 2) ? 1.0f : -1.0f);
        if (shape == EQUAL) row[i] = -3.25f;
        if (shape == WIDE) row[i] = 300.0f * x;
    }
}

static void fill_params(struct rng *r, struct scene *c) {
    struct sampler_params *p = &c->p;
    sampler_params_init(p);
    p->seed = rng_u64(r);
    const float temperatures[] = { 0, 1, 1, 0.7f, 0.2f, 1.6f, 1e-4f };
    p->temperature = temperatures[rng_below(r, COUNT_OF(temperatures))];
    if (rng_below(r, 3) == 0) p->top_p = (float)rng_double(r);
    if (rng_below(r, 12) == 0) p->top_p = 0;
    if (rng_below(r, 4) == 0) p->min_p = (float)pow(rng_double(r), 3);
    if (rng_below(r, 4) == 0) p->top_k = 1 + (int32_t)rng_below(r, rng_below(r, 4) ? 50 : 2 * (uint64_t)c->n);
    p->logprobs = rng_below(r, 2);
    p->n_top = (int)rng_below(r, SAMPLER_TOP_MAX + 1);
    if (rng_below(r, 4) == 0) {
        p->bias = c->bias;
        int32_t id = (int32_t)rng_below(r, 3);
        for (; p->n_bias < 12 && id < c->n; id += 1 + (int32_t)rng_below(r, (uint64_t)c->n / 4 + 1)) {
            float bias = (float)(20 * rng_double(r) - 10);
            if (rng_below(r, 3) == 0 && id > 0) bias = -INFINITY;
            c->bias[p->n_bias++] = (struct sampler_bias){ id, bias };
        }
    }
    if (rng_below(r, 4) == 0) p->repetition = (float)(0.8 + 0.6 * rng_double(r));
    if (rng_below(r, 4) == 0) p->frequency = (float)(rng_double(r) - 0.3);
    if (rng_below(r, 4) == 0) p->presence = (float)(2 * rng_double(r) - 0.5);
}

/* One, few, half or nearly all of the tokens; id 0, which no bias bans, always. */
static void fill_allowed(struct rng *r, struct scene *c) {
    uint64_t share = (const uint64_t[]){ 0, 4, 500, 990 }[rng_below(r, 4)];
    for (int i = 0; i < c->n; i++)
        if (rng_below(r, 1000) < share) c->allowed[i / 64] |= (uint64_t)1 << i % 64;
    c->allowed[0] |= 1;
    c->p.allowed = c->allowed;
}

static void scene_make(struct rng *r, struct scene *c) {
    memset(c, 0, sizeof *c);
    const int sizes[] = { 1, 2, 7, 16, 33, 129, 300, 1000, 4096, N_MAX };
    c->n = sizes[rng_below(r, COUNT_OF(sizes))];
    assert_int_equal(sampler_init(&c->s, c->n, NULL), 0);
    fill_row(r, c->row, c->n, (enum shape)rng_below(r, SHAPES));
    for (uint64_t left = rng_below(r, 3) ? rng_below(r, 30) : rng_below(r, (uint64_t)c->n);
         left > 0; left--) {
        bool is_output = rng_below(r, 2);
        assert_int_equal(sampler_history_add(&c->h, (int32_t)rng_below(r, (uint64_t)c->n), is_output), 0);
    }
    fill_params(r, c);
    if (rng_below(r, 3) == 0) fill_allowed(r, c);
}

static void scene_drop(struct scene *c) {
    sampler_history_deinit(&c->h);
    sampler_deinit(&c->s);
}

static void assert_same(const struct sampler_result *a, const struct sampler_result *b) {
    assert_int_equal(a->id, b->id);
    assert_memory_equal(&a->logprob, &b->logprob, sizeof a->logprob);
    assert_int_equal(a->n_top, b->n_top);
    for (int i = 0; i < a->n_top; i++) {
        assert_int_equal(a->top[i].id, b->top[i].id);
        assert_memory_equal(&a->top[i].logprob, &b->top[i].logprob, sizeof a->top[i].logprob);
    }
}

static void picks_from_rows_what_the_naive_reference_picks(void **state) {
    (void)state;
    static struct scene c;
    struct rng r;
    rng_init(&r, 11, 0);
    for (int i = 0, n_rounds = test_rounds(6000); i < n_rounds; i++) {
        struct sampler_result out;
        struct err e = { 0 };
        scene_make(&r, &c);
        uint64_t position = rng_below(&r, 1 << 20);
        assert_int_equal(sampler_pick(&c.s, c.row, &c.p, &c.h, position, &out, &e), 0);
        int32_t expected = naive_pick(c.row, c.n, &c.p, &c.h, position);
        if (out.id != expected) fail_msg("scene %d: token %d, naive %d", i, out.id, expected);
        scene_drop(&c);
    }
}

static void reports_log_softmax_of_the_row_as_it_came(void **state) {
    (void)state;
    static struct scene c;
    struct rng r;
    rng_init(&r, 12, 0);
    for (int i = 0; i < 500; i++) {
        struct sampler_result out;
        scene_make(&r, &c);
        c.p.logprobs = true;
        assert_int_equal(sampler_pick(&c.s, c.row, &c.p, &c.h, 3, &out, NULL), 0);
        long double total = 0;
        for (int k = 0; k < c.n; k++) total += expl((long double)c.row[k] - (long double)c.row[0]);
        double lse = (double)(logl(total) + (long double)c.row[0]);
        if (!isfinite(lse)) {                         /* WIDE rows: e^x overflows for the naive way */
            scene_drop(&c);
            continue;
        }
        assert_true(fabs(out.logprob - ((double)c.row[out.id] - lse)) < 1e-11);
        assert_int_equal(out.n_top, MIN(c.p.n_top, c.n));
        for (int k = 0; k < out.n_top; k++) {
            int before = 0;                           /* its rank: how many come before it */
            float x = c.row[out.top[k].id];
            for (int32_t m = 0; m < c.n; m++) before += c.row[m] > x || (c.row[m] == x && m < out.top[k].id);
            assert_int_equal(before, k);
            assert_true(fabs(out.top[k].logprob - ((double)x - lse)) < 1e-11);
        }
        scene_drop(&c);
    }
}

static void candidates_give_the_rows_answer_or_ask_for_more(void **state) {
    (void)state;
    static struct scene c;
    struct rng r;
    int n_more = 0, n_whole = 0, n_same = 0;
    rng_init(&r, 13, 0);
    for (int i = 0, n_rounds = test_rounds(12000); i < n_rounds; i++) {
        struct sampler_result full, part;
        struct sampler_candidates cand;
        bool whole;
        scene_make(&r, &c);
        uint64_t position = rng_below(&r, 1 << 20);
        int n_item_max = 1 + (int)rng_below(&r, rng_below(&r, 2) ? 40 : (uint64_t)c.n + 10);
        assert_int_equal(sampler_pick(&c.s, c.row, &c.p, &c.h, position, &full, NULL), 0);
        const struct sampler_history *known = rng_below(&r, 2) ? &c.h : NULL;
        assert_int_equal(sampler_extract(&c.s, c.row, &c.p, known, n_item_max, &cand, &whole, NULL), 0);
        int rc = 0;
        if (whole) n_whole++;
        else {
            assert_in_range(cand.n_item, 1, MIN(n_item_max, c.n));
            rc = sampler_pick_from(&c.s, &cand, &c.p, &c.h, position, &part, NULL);
            assert_true(rc == 0 || rc == SAMPLER_NEED_MORE);
            n_more += rc == SAMPLER_NEED_MORE;
            n_same += rc == 0;
            if (rc == 0) assert_same(&full, &part);
        }
        for (int k = 0; k < c.n / 8 + 1; k++) assert_int_equal(c.s.mark[k], 0);
        scene_drop(&c);
    }
    print_message("     random scenes: %d decided, %d need more, %d whole rows\n", n_same, n_more, n_whole);
    assert_true(n_same > test_rounds(4000));
}

/* Candidates that another program cut: any first k, any parameters, other or no sum. They may ask for
 * more, never err. */
static void arbitrary_cuts_never_give_another_token(void **state) {
    (void)state;
    static struct scene c;
    static struct sampler_item item[N_MAX];
    static uint64_t key[N_MAX];
    struct rng r;
    int n_same = 0;
    rng_init(&r, 14, 0);
    for (int i = 0, n_rounds = test_rounds(12000); i < n_rounds; i++) {
        struct sampler_result full, part;
        scene_make(&r, &c);
        uint64_t position = rng_below(&r, 1 << 20);
        assert_int_equal(sampler_pick(&c.s, c.row, &c.p, &c.h, position, &full, NULL), 0);
        int n = 1 + (int)rng_below(&r, rng_below(&r, 2) ? MIN(20, (uint64_t)c.n) : (uint64_t)c.n);
        logits_first(c.row, c.n, MIN(n + 1, c.n), key);
        for (int k = 0; k < n; k++)
            item[k] = (struct sampler_item){ logits_key_id(key[k]), logits_key_logit(key[k]) };
        struct sampler_candidates cand = { .item = item, .n_item = n, .n_vocab = c.n, .lse = NAN };
        if (n < c.n) cand.left = (struct sampler_item){ logits_key_id(key[n]), logits_key_logit(key[n]) };
        cand.temperature = rng_below(&r, 4) ? c.p.temperature : (float)rng_below(&r, 3);
        if (cand.temperature > 0)
            cand.sum = logits_exp_sum(c.row, c.n, (double)item[0].logit, 1 / (double)cand.temperature);
        if (c.p.logprobs)
            cand.lse = (double)item[0].logit +
                       logits_log(logits_exp_sum(c.row, c.n, (double)item[0].logit, 1));
        int rc = sampler_pick_from(&c.s, &cand, &c.p, &c.h, position, &part, NULL);
        assert_true(rc == 0 || rc == SAMPLER_NEED_MORE);
        n_same += rc == 0;
        if (rc == 0) assert_same(&full, &part);
        scene_drop(&c);
    }
    print_message("     arbitrary cuts: %d of %d decided\n", n_same, test_rounds(12000));
    assert_true(n_same > test_rounds(3000));
}

/* ---- ordinary requests should nearly never need a second parcel ---- */

static int count_second_parcels(const struct sampler_params *p, const struct sampler_history *h,
                                int *n_items) {
    enum { N = 20000, ROUNDS = 400 };
    static float row[N];
    struct sampler s;
    struct rng r;
    int n_more = 0;
    rng_init(&r, 15, 0);
    assert_int_equal(sampler_init(&s, N, NULL), 0);
    *n_items = 0;
    for (int i = 0, n_rounds = test_rounds(ROUNDS); i < n_rounds; i++) {
        struct sampler_result full, part;
        struct sampler_candidates cand;
        bool whole;
        for (int k = 0; k < N; k++) row[k] = 2 * rng_normal(&r);
        for (int k = 0; k < 30; k++) row[rng_below(&r, N)] += 14 - 0.4f * (float)k;
        assert_int_equal(sampler_extract(&s, row, p, h, 2048, &cand, &whole, NULL), 0);
        if (whole) {
            n_more++;
            continue;
        }
        *n_items += cand.n_item;
        int rc = sampler_pick_from(&s, &cand, p, h, (uint64_t)i, &part, NULL);
        n_more += rc == SAMPLER_NEED_MORE;
        assert_int_equal(sampler_pick(&s, row, p, h, (uint64_t)i, &full, NULL), 0);
        if (rc == 0) assert_same(&full, &part);
    }
    *n_items /= ROUNDS;
    sampler_deinit(&s);
    return n_more;
}

static void ordinary_requests_nearly_never_need_more(void **state) {
    (void)state;
    struct sampler_params p;
    struct sampler_history h = { 0 };
    const struct {
        const char *what;
        float temperature, top_p, min_p;
        int32_t top_k;
        float frequency;
        int most;
    } cases[] = {
        { "greedy", 0, 1, 0, 0, 0, 0 },
        { "temperature 1", 1, 1, 0, 0, 0, 3 },
        { "temperature 0.6, top_p 0.95", 0.6f, 0.95f, 0, 0, 0, 0 },
        { "top_k 40", 0.8f, 1, 0, 40, 0, 0 },
        { "min_p 0.05", 1, 1, 0.05f, 0, 0, 0 },
        { "temperature 1, frequency 0.5", 1, 1, 0, 0, 0.5f, 12 },
        { "greedy, frequency 0.5", 0, 1, 0, 0, 0.5f, 0 },
    };
    for (int i = 0; i < 100; i++) assert_int_equal(sampler_history_add(&h, i * i % 20000, i % 2), 0);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int n_items;
        sampler_params_init(&p);
        p.temperature = cases[i].temperature;
        p.top_p = cases[i].top_p;
        p.min_p = cases[i].min_p;
        p.top_k = cases[i].top_k;
        p.frequency = cases[i].frequency;
        p.logprobs = true;
        p.n_top = 5;
        int n_more = count_second_parcels(&p, &h, &n_items);
        print_message("     %-32s %3d of 400 need more, %d items on average\n", cases[i].what,
                      n_more, n_items);
        assert_true(n_more <= cases[i].most);
    }
    sampler_history_deinit(&h);
}

/* ---- single facts ---- */

static struct sampler_result pick(const float *row, int n, const struct sampler_params *p,
                                  const struct sampler_history *h, uint64_t position) {
    struct sampler s;
    struct sampler_result out;
    struct err e = { 0 };
    assert_int_equal(sampler_init(&s, n, NULL), 0);
    int rc = sampler_pick(&s, row, p, h, position, &out, &e);
    if (rc != 0) fail_msg("%s", e.text);
    sampler_deinit(&s);
    return out;
}

static void greedy_takes_the_lower_id_of_equals(void **state) {
    (void)state;
    struct sampler_params p;
    sampler_params_init(&p);
    p.temperature = 0;
    const float row[] = { 1, -0.0f, 2, 2, 0.0f, 2 };
    assert_int_equal(pick(row, 6, &p, NULL, 0).id, 2);
    const float zeros[] = { -1, -0.0f, 0.0f };        /* the same number: the order of ids decides */
    assert_int_equal(pick(zeros, 3, &p, NULL, 0).id, 1);
}

static void top_p_zero_min_p_one_and_top_k_one_are_greedy(void **state) {
    (void)state;
    const float row[] = { 1, 1.5f, 1.4f, 1.5f };
    for (uint64_t position = 0; position < 200; position++) {
        struct sampler_params p;
        sampler_params_init(&p);
        p.top_p = 0;
        assert_int_equal(pick(row, 4, &p, NULL, position).id, 1);
        sampler_params_init(&p);
        p.top_k = 1;
        assert_int_equal(pick(row, 4, &p, NULL, position).id, 1);
        sampler_params_init(&p);
        p.min_p = 1;                                  /* keeps both of weight 1 */
        assert_true(pick(row, 4, &p, NULL, position).id % 2 == 1);
    }
}

static void banned_tokens_never_come_and_banning_all_is_an_error(void **state) {
    (void)state;
    const float row[] = { 9, 8, 7 };
    struct sampler_bias bias[] = { { 0, -INFINITY }, { 1, -INFINITY }, { 2, -INFINITY } };
    struct sampler_params p;
    struct sampler s;
    struct sampler_result out;
    struct err e = { 0 };
    sampler_params_init(&p);
    p.bias = bias;
    p.n_bias = 2;
    for (uint64_t position = 0; position < 100; position++)
        assert_int_equal(pick(row, 3, &p, NULL, position).id, 2);
    p.n_bias = 3;
    assert_int_equal(sampler_init(&s, 3, NULL), 0);
    assert_int_equal(sampler_pick(&s, row, &p, NULL, 0, &out, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "every token is banned"));
    sampler_deinit(&s);
}

static void what_is_not_allowed_never_comes_and_is_still_reported(void **state) {
    (void)state;
    float row[70];
    for (int i = 0; i < 70; i++) row[i] = (float)(70 - i);
    uint64_t allowed[2] = { 0, (uint64_t)1 << 1 | (uint64_t)1 << 3 };         /* 65 and 67 */
    struct sampler_params p;
    sampler_params_init(&p);
    p.allowed = allowed;
    p.logprobs = true;
    p.n_top = 2;
    bool seen[2] = { false, false };
    for (uint64_t position = 0; position < 200; position++) {
        struct sampler_result out = pick(row, 70, &p, NULL, position);
        assert_true(out.id == 65 || out.id == 67);
        seen[out.id == 67] = true;
        assert_int_equal(out.top[0].id, 0);           /* of the row as it came */
        assert_true(out.logprob < -60);
    }
    assert_true(seen[0] && seen[1]);
    allowed[1] = 0;
    struct sampler s;
    struct sampler_result out;
    struct err e = { 0 };
    assert_int_equal(sampler_init(&s, 70, NULL), 0);
    assert_int_equal(sampler_pick(&s, row, &p, NULL, 0, &out, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "allowed"));
    sampler_deinit(&s);
}

/* A forced token needs no row: when all that is allowed was shipped, nothing else counts. */
static void candidates_decide_among_the_allowed_that_they_hold(void **state) {
    (void)state;
    const struct sampler_item item[] = { { 5, 9 }, { 2, 8 }, { 7, 1 } };
    struct sampler_candidates cand = { .item = item, .n_item = 3, .n_vocab = 10, .left = { 4, 0.5f },
                                       .lse = NAN };
    struct sampler_params p;
    struct sampler s;
    struct sampler_result out;
    uint64_t allowed = 1 << 7;
    sampler_params_init(&p);
    p.allowed = &allowed;
    assert_int_equal(sampler_init(&s, 10, NULL), 0);
    assert_int_equal(sampler_pick_from(&s, &cand, &p, NULL, 0, &out, NULL), 0);
    assert_int_equal(out.id, 7);
    allowed = 1 << 4;                                 /* left out, and the only one: still not known */
    assert_int_equal(sampler_pick_from(&s, &cand, &p, NULL, 0, &out, NULL), SAMPLER_NEED_MORE);
    p.temperature = 0;
    allowed = 1 << 4 | 1 << 7 | 1 << 2;
    assert_int_equal(sampler_pick_from(&s, &cand, &p, NULL, 0, &out, NULL), 0);
    assert_int_equal(out.id, 2);
    sampler_deinit(&s);
}

static void penalties_follow_the_counts(void **state) {
    (void)state;
    struct sampler_params p;
    struct sampler_history h = { 0 };
    sampler_params_init(&p);
    p.temperature = 0;
    const float row[] = { 4, 3.7f, -1, 3 };
    sampler_history_add(&h, 0, false);                /* prompt tokens: the repetition penalty only */
    p.frequency = 1, p.presence = 1;
    assert_int_equal(pick(row, 4, &p, &h, 0).id, 0);
    p.frequency = p.presence = 0, p.repetition = 1.1f;
    assert_int_equal(pick(row, 4, &p, &h, 0).id, 1);
    p.repetition = 1, p.frequency = 0.2f;
    sampler_history_add(&h, 0, true);
    assert_int_equal(pick(row, 4, &p, &h, 0).id, 0);
    sampler_history_add(&h, 0, true);
    assert_int_equal(pick(row, 4, &p, &h, 0).id, 1);
    sampler_history_remove(&h, 0, true);
    assert_int_equal(pick(row, 4, &p, &h, 0).id, 0);
    sampler_history_remove(&h, 0, true);
    assert_int_equal(h.n, 1);
    sampler_history_remove(&h, 0, false);
    assert_int_equal(h.n, 0);
    sampler_history_deinit(&h);
}

static void logits_that_are_no_numbers_are_named(void **state) {
    (void)state;
    float row[40] = { 0 };
    struct sampler_params p;
    struct sampler s;
    struct sampler_result out;
    struct err e = { 0 };
    sampler_params_init(&p);
    assert_int_equal(sampler_init(&s, 40, NULL), 0);
    for (int i = 0; i < 40; i++) {
        char text[64];
        row[i] = i % 2 ? NAN : -INFINITY;
        assert_int_equal(sampler_pick(&s, row, &p, NULL, 0, &out, &e), ERR_CORRUPT);
        snprintf(text, sizeof text, "the logit of token %d is %s", i, i % 2 ? "not a number" : "infinite");
        assert_string_equal(e.text, text);
        row[i] = 0;
    }
    sampler_deinit(&s);
}

static void parameters_out_of_range_are_refused(void **state) {
    (void)state;
    struct sampler_params p;
    struct sampler_bias bias[] = { { 3, 1 }, { 3, 1 } };
    struct err e;
#define REFUSED(field, value)                                                             \
    do {                                                                                  \
        sampler_params_init(&p);                                                          \
        assert_int_equal(sampler_params_check(&p, 10, &e), 0);                            \
        p.field = (value);                                                                \
        assert_int_equal(sampler_params_check(&p, 10, &e), ERR_INVALID);                  \
    } while (0)
    REFUSED(temperature, -0.1f);
    REFUSED(temperature, NAN);
    REFUSED(temperature, INFINITY);
    REFUSED(top_p, 1.01f);
    REFUSED(top_p, NAN);
    REFUSED(min_p, -0.1f);
    REFUSED(repetition, 0);
    REFUSED(frequency, NAN);
    REFUSED(presence, INFINITY);
    REFUSED(n_top, 21);
    REFUSED(n_bias, -1);
    REFUSED(n_bias, 11);
    sampler_params_init(&p);
    p.bias = bias, p.n_bias = 2;
    assert_int_equal(sampler_params_check(&p, 10, &e), ERR_INVALID);  /* the same id twice */
    p.n_bias = 1;
    assert_int_equal(sampler_params_check(&p, 10, &e), 0);
    assert_int_equal(sampler_params_check(&p, 3, &e), ERR_INVALID);   /* beyond the vocabulary */
    bias[0].bias = INFINITY;
    assert_int_equal(sampler_params_check(&p, 10, &e), ERR_INVALID);
}

static void damaged_candidates_are_refused(void **state) {
    (void)state;
    struct sampler s;
    struct sampler_params p;
    struct sampler_result out;
    sampler_params_init(&p);
    p.temperature = 0;
    assert_int_equal(sampler_init(&s, 10, NULL), 0);
#define TRY(change, expected)                                                                      \
    do {                                                                                           \
        struct sampler_item item[3] = { { 4, 2 }, { 1, 1 }, { 2, 1 } };                            \
        struct sampler_candidates c = {                                                            \
            .item = item, .n_item = 3, .n_vocab = 10, .left = { 9, 0 }, .lse = NAN                 \
        };                                                                                         \
        change;                                                                                    \
        assert_int_equal(sampler_pick_from(&s, &c, &p, NULL, 0, &out, NULL), expected);            \
        for (int k = 0; k < 2; k++) assert_int_equal(s.mark[k], 0);                                \
    } while (0)
    TRY((void)0, 0);
    TRY(item[1].id = 10, ERR_CORRUPT);
    TRY(item[1].id = -1, ERR_CORRUPT);
    TRY(item[1].logit = NAN, ERR_CORRUPT);
    TRY(item[0].logit = INFINITY, ERR_CORRUPT);
    TRY(item[1].id = 4, ERR_CORRUPT);
    TRY((item[1].id = 2, item[2].id = 1), ERR_CORRUPT);
    TRY(item[2].logit = 5, ERR_CORRUPT);
    TRY(c.n_item = 0, ERR_CORRUPT);
    TRY(c.n_item = 11, ERR_CORRUPT);
    TRY(c.n_vocab = 9, ERR_CORRUPT);
    TRY(c.left.id = 10, ERR_CORRUPT);
    TRY(c.left.logit = NAN, ERR_CORRUPT);
    TRY(c.temperature = 1, ERR_CORRUPT);              /* without a sum */
    TRY(c.lse = 1, ERR_CORRUPT);                      /* below the largest logit */
    TRY(c.left = ((struct sampler_item){ 3, 2 }), SAMPLER_NEED_MORE);
    sampler_deinit(&s);
}

/* A bias can lift a token from anywhere: it travels with the others, and is no proof for the
 * alternatives in between. */
static void lifted_tokens_travel_with_the_first(void **state) {
    (void)state;
    enum { N = 3000 };
    static float row[N];
    struct sampler s;
    struct sampler_params p;
    struct sampler_candidates c;
    struct sampler_result out;
    struct sampler_bias bias[] = { { 17, -3 }, { 2900, 90 } };
    bool whole;
    for (int i = 0; i < N; i++) row[i] = -0.01f * (float)i;
    sampler_params_init(&p);
    p.temperature = 0, p.bias = bias, p.n_bias = 2;
    assert_int_equal(sampler_init(&s, N, NULL), 0);
    assert_int_equal(sampler_extract(&s, row, &p, NULL, 200, &c, &whole, NULL), 0);
    assert_false(whole);
    assert_int_equal(sampler_pick_from(&s, &c, &p, NULL, 0, &out, NULL), 0);
    assert_int_equal(out.id, 2900);
    p.logprobs = true, p.n_top = 5;
    assert_int_equal(sampler_extract(&s, row, &p, NULL, 200, &c, &whole, NULL), 0);
    assert_int_equal(sampler_pick_from(&s, &c, &p, NULL, 0, &out, NULL), 0);
    assert_int_equal(out.top[4].id, 4);
    struct sampler_item few[] = { { 0, 0 }, { 1, -0.01f }, { 2900, -29 } };
    c.item = few, c.n_item = 3, c.left = (struct sampler_item){ 2, -0.02f };
    p.n_top = 2;
    assert_int_equal(sampler_pick_from(&s, &c, &p, NULL, 0, &out, NULL), 0);
    p.n_top = 3;
    assert_int_equal(sampler_pick_from(&s, &c, &p, NULL, 0, &out, NULL), SAMPLER_NEED_MORE);
    sampler_deinit(&s);
}

static void penalised_requests_carry_a_reserve(void **state) {
    (void)state;
    enum { N = 1000 };
    static float row[N];
    struct sampler s;
    struct sampler_params p;
    struct sampler_candidates c;
    struct sampler_result out;
    struct sampler_history h = { 0 };
    bool whole;
    for (int i = 0; i < N; i++) row[i] = -0.1f * (float)i;
    for (int32_t i = 0; i < 10; i++) sampler_history_add(&h, i, true);
    sampler_params_init(&p);
    p.temperature = 0, p.frequency = 2;
    assert_int_equal(sampler_init(&s, N, NULL), 0);
    assert_int_equal(sampler_extract(&s, row, &p, NULL, 200, &c, &whole, NULL), 0);
    assert_int_equal(sampler_pick_from(&s, &c, &p, &h, 0, &out, NULL), 0);
    assert_int_equal(out.id, 10);
    sampler_history_deinit(&h);
    sampler_deinit(&s);
}

static void draws_follow_the_softmax(void **state) {
    (void)state;
    enum { N = 12, DRAWS = 200000 };
    float row[N];
    double weight[N], total = 0, chi2 = 0;
    int count[N] = { 0 };
    struct sampler s;
    struct sampler_params p;
    struct sampler_result out;
    sampler_params_init(&p);
    p.temperature = 0.8f;
    for (int i = 0; i < N; i++) {
        row[i] = 0.25f * (float)(i * 7 % N);
        total += weight[i] = exp((double)row[i] / (double)p.temperature);
    }
    assert_int_equal(sampler_init(&s, N, NULL), 0);
    for (int i = 0; i < DRAWS; i++) {
        p.seed = (uint64_t)i / 500;                   /* neighbouring seeds and positions */
        assert_int_equal(sampler_pick(&s, row, &p, NULL, (uint64_t)i % 500, &out, NULL), 0);
        count[out.id]++;
    }
    for (int i = 0; i < N; i++) {
        double expected = DRAWS * weight[i] / total, d = count[i] - expected;
        chi2 += d * d / expected;
    }
    print_message("     chi-square %.1f with 11 degrees of freedom\n", chi2);
    assert_true(chi2 < 31.3);                         /* one in a thousand */
    sampler_deinit(&s);
}

static void chance_depends_on_seed_and_position_only(void **state) {
    (void)state;
    float row[200] = { 0 };
    struct sampler_params p;
    int differ = 0;
    sampler_params_init(&p);
    p.seed = 5;
    for (uint64_t position = 0; position < 100; position++) {
        int32_t id = pick(row, 200, &p, NULL, position).id;
        assert_int_equal(pick(row, 200, &p, NULL, position).id, id);
        differ += pick(row, 200, &p, NULL, position + 1).id != id;
    }
    assert_true(differ > 90);
}

/* ---- the row functions ---- */

static void exponential_and_logarithm_are_those_of_libm(void **state) {
    (void)state;
    struct rng r;
    rng_init(&r, 16, 0);
    assert_true(logits_exp(0) == 1);
    assert_true(logits_exp(-INFINITY) == 0);
    assert_true(logits_exp(-701) == 0);
    assert_true(logits_log(1) == 0);
    for (int i = 0; i < 200000; i++) {
        double z = -(i % 2 ? 2 : 699) * rng_double(&r), x = exp(-z);
        assert_true(fabs(logits_exp(z) - exp(z)) <= 1e-14 * exp(z));
        assert_true(fabs(logits_log(x) + z) <= 4e-16 * MAX(1, -z));
    }
}

/* The sum is a definition, not a good idea of the compiler's: eight lanes, then halves. */
static void the_sum_of_a_row_has_the_documented_order(void **state) {
    (void)state;
    static float row[1001];
    struct rng r;
    rng_init(&r, 17, 0);
    for (int n = 1; n <= 1001; n += n < 40 ? 1 : 137) {
        double lane[8] = { 0 };
        for (int i = 0; i < n; i++) row[i] = 9 * rng_normal(&r) - 60;
        for (int i = 0; i < n; i++) lane[i % 8] += logits_exp(((double)row[i] + 10) * 1.3);
        double sum = ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
                     ((lane[1] + lane[5]) + (lane[3] + lane[7]));
        double got = logits_exp_sum(row, n, -10, 1.3);
        assert_memory_equal(&sum, &got, sizeof sum);
    }
}

static void first_of_a_row_equal_a_full_sort(void **state) {
    (void)state;
    static float row[5000];
    static uint64_t key[5000];
    static struct naive sorted[5000];
    struct rng r;
    rng_init(&r, 18, 0);
    for (int round = 0; round < 400; round++) {
        int n = 1 + (int)rng_below(&r, round % 3 ? 300 : 5000), k = 1 + (int)rng_below(&r, (uint64_t)n);
        fill_row(&r, row, n, (enum shape)(round % SHAPES));
        if (round % 7 == 0) for (int i = 0; i < n; i++) row[i] = (float)(round % 2 ? i : -i);
        for (int i = 0; i < n; i++) sorted[i] = (struct naive){ i, row[i] };
        qsort(sorted, (size_t)n, sizeof *sorted, naive_order);
        logits_first(row, n, k, key);
        for (int i = 0; i < k; i++) assert_int_equal(logits_key_id(key[i]), sorted[i].id);
    }
}

static void is_fast_on_the_real_vocabulary(void **state) {
    (void)state;
    enum { N = 129280 };
    float *row = malloc(N * sizeof *row);
    struct sampler s;
    struct sampler_result out;
    struct rng r;
    rng_init(&r, 19, 0);
    for (int i = 0; i < N; i++) row[i] = 2.5f * rng_normal(&r);
    for (int i = 0; i < 40; i++) row[rng_below(&r, N)] += 12 - 0.25f * (float)i;
    assert_int_equal(sampler_init(&s, N, NULL), 0);
    const struct {
        const char *what;
        float temperature, top_p, min_p;
        int32_t top_k;
        bool logprobs;
    } cases[] = {
        { "greedy", 0, 1, 0, 0, false },
        { "greedy, logprobs", 0, 1, 0, 0, true },
        { "temperature 1", 1, 1, 0, 0, false },
        { "top_p 0.9", 0.7f, 0.9f, 0, 0, false },
        { "top_k 40", 1, 0.95f, 0, 40, false },
        { "min_p 0.05", 1, 1, 0.05f, 0, false },
        { "hot: temperature 2, top_p 0.99", 2, 0.99f, 0, 0, false },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct sampler_params p;
        struct sampler_candidates cand;
        double best = 1, best_extract = 1;
        bool whole;
        sampler_params_init(&p);
        p.temperature = cases[i].temperature, p.top_p = cases[i].top_p, p.min_p = cases[i].min_p;
        p.top_k = cases[i].top_k, p.logprobs = cases[i].logprobs, p.n_top = 5;
        for (int round = 0; round < 20; round++) {
            double t0 = seconds();
            assert_int_equal(sampler_pick(&s, row, &p, NULL, (uint64_t)round, &out, NULL), 0);
            double t1 = seconds();
            assert_int_equal(sampler_extract(&s, row, &p, NULL, 4096, &cand, &whole, NULL), 0);
            best = MIN(best, t1 - t0);
            best_extract = MIN(best_extract, seconds() - t1);
        }
        print_message("     %-32s pick %6.0f us, extract %6.0f us (%d items)\n", cases[i].what, 1e6 * best,
                      1e6 * best_extract, whole ? N : cand.n_item);
    }
    sampler_deinit(&s);
    free(row);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(picks_from_rows_what_the_naive_reference_picks),
        cmocka_unit_test(reports_log_softmax_of_the_row_as_it_came),
        cmocka_unit_test(candidates_give_the_rows_answer_or_ask_for_more),
        cmocka_unit_test(arbitrary_cuts_never_give_another_token),
        cmocka_unit_test(ordinary_requests_nearly_never_need_more),
        cmocka_unit_test(greedy_takes_the_lower_id_of_equals),
        cmocka_unit_test(top_p_zero_min_p_one_and_top_k_one_are_greedy),
        cmocka_unit_test(banned_tokens_never_come_and_banning_all_is_an_error),
        cmocka_unit_test(what_is_not_allowed_never_comes_and_is_still_reported),
        cmocka_unit_test(candidates_decide_among_the_allowed_that_they_hold),
        cmocka_unit_test(penalties_follow_the_counts),
        cmocka_unit_test(logits_that_are_no_numbers_are_named),
        cmocka_unit_test(parameters_out_of_range_are_refused),
        cmocka_unit_test(damaged_candidates_are_refused),
        cmocka_unit_test(lifted_tokens_travel_with_the_first),
        cmocka_unit_test(penalised_requests_carry_a_reserve),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(chance_depends_on_seed_and_position_only),
        cmocka_unit_test(exponential_and_logarithm_are_those_of_libm),
        cmocka_unit_test(the_sum_of_a_row_has_the_documented_order),
        cmocka_unit_test(first_of_a_row_equal_a_full_sort),
        cmocka_unit_test(is_fast_on_the_real_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
