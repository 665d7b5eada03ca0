/* scenario - how well the pipeline is used when nothing goes wrong: busy stages, bounded delay, prefill
 * that scales, fairness.
 *
 * The shape is set by hand, time is virtual, so the figures are exact and the same everywhere. A stage
 * takes (batch_ns + row_ns x rows) per layer: with these values one row costs as much as what a batch
 * costs anyway, as decode does on real machines. */
#include "tests/sim/world.h"

#include "common/base/check.h"

#include <stdio.h>

#include "common/base/banned.h"

static void shape(struct world *w, uint32_t n_stage) {
    world_open(w, 1, false);
    w->n_node = w->n_stage_max = w->n_node_min = n_stage;
    w->n_layer = LAYERS_MAX;
    w->n_slot = SLOTS_MAX;
    w->n_ctx = CTX_MAX;
    w->n_rows = 512;
    w->n_credit = 2;
    w->delay_ns = 3 * MS / 10;                    /* 0.3 ms each way */
    w->batch_ns = MS / 2;
    w->row_ns = MS / 10;
    w->load_ns = MS;
    w->even = w->endless = w->calm = true;
    w->end_by = UINT64_MAX;
    coord_config_init(&w->coord_config);
    snprintf(w->coord_config.name, sizeof w->coord_config.name, "coordinator");
    w->coord_config.n_node_expected = n_stage;
}

static void run_until(struct world *w, uint64_t t) {
    while (!w->failed && w->now < t) world_step(w);
}

static void run_all(struct world *w) {
    while (!w->failed && w->n_done < w->n_client) world_step(w);
}

static int verdict(const struct world *w, bool fine, const char *what, uint32_t n, double value,
                   double limit) {
    fine = fine && !w->failed;
    printf("%s - %s, %u stages\n", fine ? "ok" : "not ok", what, n);
    printf("# %.3f (limit %.3f)%s%s\n", value, limit, w->failed ? ": " : "", w->why);
    return !fine;
}

/* Decode only: the least busy stage, over a second in the middle. */
static int stages_are_busy(struct world *w, uint32_t n_stage, uint32_t n_stream, double least) {
    uint64_t before[ACTORS_MAX];
    double lowest = 1;
    shape(w, n_stage);
    for (uint32_t i = 0; i < n_stream; i++) clients_add(w, w->now + 4000 * MS, 4, 2000);
    actors_start(w);
    run_until(w, 7000 * MS);
    for (uint32_t a = 1; a <= n_stage; a++) before[a] = w->actor[a].busy_ns;
    uint64_t from = w->now;
    run_until(w, 8000 * MS);
    for (uint32_t a = 1; a <= n_stage; a++) {
        double busy = (double)(w->actor[a].busy_ns - before[a]) / (double)(w->now - from);
        if (busy < lowest) lowest = busy;
    }
    int failed = verdict(w, lowest >= least, "keeps every stage busy with two streams per stage", n_stage,
                         lowest, least);
    world_close(w);
    return failed;
}

static double prefill_seconds(struct world *w, uint32_t n_stage) {
    shape(w, n_stage);
    struct client *c = clients_add(w, w->now + 4000 * MS, 4096, 1);
    actors_start(w);
    run_all(w);
    double seconds = (double)(c->first_at - c->submitted_at) / 1e9;
    world_close(w);
    return seconds;
}

static int prefill_scales(struct world *w, uint32_t n_stage, double least) {
    double gain = prefill_seconds(w, 1) / prefill_seconds(w, n_stage);
    return verdict(w, gain >= least, "speeds up a long prompt with the number of stages", n_stage, gain,
                   least);
}

/* Streams decode; then somebody comes with 4096 tokens. How much later does any of them get a token? */
static int long_prompt_is_bounded(struct world *w, uint32_t n_stage, uint32_t bound_ms) {
    shape(w, n_stage);
    w->coord_config.bound_ms = bound_ms;
    for (uint32_t i = 0; i < 6; i++) clients_add(w, w->now + 4000 * MS, 4, 400);
    actors_start(w);
    run_until(w, 6500 * MS);
    uint64_t usual = 0, worst = 0;
    for (uint32_t i = 0; i < 6; i++) usual = MAX(usual, w->client[i].gap_max);
    for (uint32_t i = 0; i < 6; i++) w->client[i].gap_max = 0;
    struct client *late = clients_add(w, w->now, 4096, 4);
    while (!w->failed && late->n_got == 0) world_step(w);
    for (uint32_t i = 0; i < 6; i++) worst = MAX(worst, w->client[i].gap_max);
    double delay_ms = (double)(worst - MIN(worst, usual)) / 1e6;
    bool bounded = delay_ms <= bound_ms && delay_ms > 0;
    int failed = verdict(w, bounded, "bounds what a long prompt delays others by (ms)", n_stage, delay_ms,
                         bound_ms);
    double seconds = (double)(late->first_at - late->submitted_at) / 1e9;
    failed += verdict(w, seconds < 4, "does not starve the long prompt (seconds)", n_stage, seconds, 4);
    world_close(w);
    return failed;
}

/* Two long prompts first, a short one a moment later: it does not wait for their end. */
static int short_prompt_overtakes(struct world *w, uint32_t n_stage) {
    shape(w, n_stage);
    struct client *a = clients_add(w, w->now + 4000 * MS, 4096, 1),
                  *b = clients_add(w, w->now + 4000 * MS, 4096, 1);
    struct client *c = clients_add(w, w->now + 4100 * MS, 32, 1);
    actors_start(w);
    run_all(w);
    double share = (double)(c->first_at - c->submitted_at) /
                   (double)(MIN(a->first_at, b->first_at) - a->submitted_at);
    int failed = verdict(w, share < 0.25, "serves a short prompt between the chunks of long ones",
                         n_stage, share, 0.25);
    double first = (double)(MIN(a->first_at, b->first_at) - a->submitted_at);
    double apart = (double)(MAX(a->first_at, b->first_at) - a->submitted_at) / first;
    failed += verdict(w, apart < 1.1, "serves two equal prompts equally", n_stage, apart, 1.1);
    world_close(w);
    return failed;
}

/* Throughput of 2 S streams over S stages against one stage that has all layers. */
static double tokens_per_second(struct world *w, uint32_t n_stage, uint32_t n_stream) {
    shape(w, n_stage);
    for (uint32_t i = 0; i < n_stream; i++) clients_add(w, w->now + 4000 * MS, 4, 200);
    actors_start(w);
    run_all(w);
    uint64_t first = UINT64_MAX, last = 0;
    for (uint32_t i = 0; i < n_stream; i++) {
        first = MIN(first, w->client[i].first_at);
        last = MAX(last, w->client[i].last_at);
    }
    double rate = 199.0 * n_stream / ((double)(last - first) / 1e9);
    world_close(w);
    return rate;
}

static int decode_scales(struct world *w, uint32_t n_stage, uint32_t n, double least) {
    double gain = tokens_per_second(w, n_stage, n_stage * n) / tokens_per_second(w, 1, n);
    return verdict(w, gain >= least, "S times the streams over S stages give nearly S times the tokens",
                   n_stage, gain, least);
}

/* A cancelled request leaves every stage within the time of one batch and its way. */
static int cancel_frees_at_once(struct world *w, uint32_t n_stage) {
    shape(w, n_stage);
    w->coord_config.n_park_max = 0;               /* else what is in so far would be kept */
    struct client *c = clients_add(w, w->now + 4000 * MS, 4096, 100);
    actors_start(w);
    run_until(w, 5500 * MS);
    coordinator_cancel(w, c);
    uint64_t from = w->now;
    uint32_t left = 1;
    while (!w->failed && left && w->now < from + 5000 * MS) {
        world_step(w);
        left = coord_seqs_alive(w->coord);
        for (uint32_t a = 1; a <= n_stage; a++) left += node_view(w->actor[a].node).n_seq;
    }
    double ms = (double)(w->now - from) / 1e6;
    double batch_ms = (double)((w->batch_ns + w->row_ns * 512) * w->n_layer + 4 * w->delay_ns) / 1e6;
    int failed = verdict(w, !left && ms <= batch_ms, "frees a cancelled request within one batch (ms)",
                         n_stage, ms, batch_ms);
    world_close(w);
    return failed;
}

/* data: the connection between the stages; else the coordinator's to the first one. */
static struct conn *conn_of(struct world *w, bool data) {
    struct conn *next = w->conn, *first = w->conn;
    while (!next->used || next->a_link != NODE_LINK_NEXT) next++;
    while (!first->used || first->a != next->a || first->b != COORDINATOR) first++;
    return data ? next : first;
}

static bool goes_back_and_breaks(struct world *w, bool data, uint64_t after_ns) {
    shape(w, 2);
    w->n_rows = 4;                                /* six segments, three of them within what was taken back */
    struct client *c = clients_add(w, w->now + 4000 * MS, 20, 4);
    actors_start(w);
    run_all(w);
    struct client *next = clients_go_on(w, c, w->now, 10, 12, 4);
    uint64_t at = w->now + after_ns;
    run_until(w, at);
    net_reset(w, conn_of(w, data));
    while (!w->failed && next->state != CLIENT_DONE) world_step(w);
    bool fine = !w->failed;
    world_close(w);
    return fine;
}

/* The answer of c begins in a copy of its prompt; another request wants to go on in the prompt itself. */
static bool copies_and_breaks(struct world *w, bool data, uint64_t after_ns) {
    shape(w, 2);
    w->coord_config.n_keep_min = 1;
    w->n_slot = 2;                                /* no third: it has to take the prompt itself */
    struct client *c = clients_add(w, w->now + 4000 * MS, 20, 8), *next;
    actors_start(w);
    while (!w->failed && c->n_got == 0) world_step(w);
    next = clients_go_on(w, c, w->now, 4, 12, 4);
    uint64_t at = w->now + after_ns;
    run_until(w, at);
    net_reset(w, conn_of(w, data));
    while (!w->failed && (c->state != CLIENT_DONE || next->state != CLIENT_DONE)) world_step(w);
    bool fine = !w->failed;
    world_close(w);
    return fine;
}

bool scenario_keeping(struct world *w) {
    bool fine = true;
    for (uint64_t after = 0; fine && after < 16 * MS; after += MS / 5)
        for (int data = 0; fine && data < 2; data++)
            fine = goes_back_and_breaks(w, data, after) && copies_and_breaks(w, data, after);
    return fine;
}

/* The most that any of six streams waits for a token from now on, until `until` or the first token of c. */
static uint64_t worst_gap(struct world *w, uint64_t until, const struct client *c) {
    uint64_t worst = 0;
    for (uint32_t i = 0; i < 6; i++) w->client[i].gap_max = 0;
    while (!w->failed && w->now < until && !(c && c->n_got)) world_step(w);
    for (uint32_t i = 0; i < 6; i++) worst = MAX(worst, w->client[i].gap_max);
    return worst;
}

/* By how much n_long prompts of 4096 tokens delay six streams, in ms over the bound; stages of any speed. */
static double over_the_bound(struct world *w, uint32_t n_stage, double batch_ms, double row_ms,
                             uint32_t bound_ms, uint32_t n_long) {
    shape(w, n_stage);
    w->batch_ns = (uint64_t)(batch_ms * MS);
    w->row_ns = (uint64_t)(row_ms * MS);
    w->coord_config.bound_ms = bound_ms;
    for (uint32_t i = 0; i < 6; i++) clients_add(w, w->now + 4000 * MS, 4, 4000);
    actors_start(w);
    run_until(w, 11000 * MS);
    uint64_t usual = worst_gap(w, 13000 * MS, NULL);
    const struct client *late = NULL;
    for (uint32_t i = 0; i < n_long; i++) late = clients_add(w, w->now, 4096, 1);
    uint64_t worst = worst_gap(w, 200000 * MS, late);
    world_close(w);
    return (double)(worst - MIN(worst, usual)) / 1e6 - bound_ms;
}

static int bound_holds_at_any_speed(struct world *w) {
    static const double batch_ms[] = { 0.1, 1, 12 }, row_ms[] = { 0.02, 0.1, 1 };
    double most = -1e9;
    for (uint32_t n = 1; n <= 4; n++)
        for (uint32_t i = 0; i < 9; i++) {
            double batch = batch_ms[i % 3], row = row_ms[i / 3];
            double over = over_the_bound(w, n, batch, row, i % 2 ? 100 : 250, n == 2 ? 3 : 1);
            if (over > 0) printf("# %u stages, %.2f + %.2f ms: %.1f ms over\n", n, batch, row, over);
            most = over > most ? over : most;
        }
    return verdict(w, most <= 0, "bounds the delay for stages of any speed (ms over), up to", 4, most, 0);
}

/* More streams than a batch takes segments, and a long prompt on top: all go on at the same pace. */
static int streams_share_equally(struct world *w, uint32_t n_stage) {
    shape(w, n_stage);
    w->coord_config.n_seg_max = 4;
    for (uint32_t i = 0; i < 18; i++) clients_add(w, w->now + 4000 * MS, 4 + i, 4000);
    clients_add(w, w->now + 6500 * MS, 4096, 1);
    actors_start(w);
    uint32_t least = UINT32_MAX, most = 0, before[18];
    run_until(w, 7000 * MS);
    for (uint32_t i = 0; i < 18; i++) before[i] = w->client[i].n_got;
    run_until(w, 12000 * MS);
    for (uint32_t i = 0; i < 18; i++) {
        least = MIN(least, w->client[i].n_got - before[i]);
        most = MAX(most, w->client[i].n_got - before[i]);
    }
    double share = (double)least / (double)MAX(most, 1);
    int failed = verdict(w, share > 0.9, "gives all streams the same pace", n_stage, share, 0.9);
    world_close(w);
    return failed;
}

int scenarios_run(struct world *w) {
    int failed = 0;
    for (uint32_t s = 1; s <= 4; s++) failed += stages_are_busy(w, s == 3 ? 2 : s, s == 3 ? 8 : 2 * s, 0.85);
    failed += prefill_scales(w, 2, 1.85);
    failed += prefill_scales(w, 4, 3.4);
    failed += decode_scales(w, 2, 4, 1.7);
    failed += decode_scales(w, 2, 8, 1.7);
    failed += decode_scales(w, 4, 4, 3.4);
    failed += long_prompt_is_bounded(w, 2, 250);
    failed += long_prompt_is_bounded(w, 4, 250);
    failed += long_prompt_is_bounded(w, 2, 50);
    failed += bound_holds_at_any_speed(w);
    failed += streams_share_equally(w, 1);
    failed += streams_share_equally(w, 3);
    failed += short_prompt_overtakes(w, 2);
    failed += cancel_frees_at_once(w, 2);
    bool fine = scenario_keeping(w);
    failed += verdict(w, fine, "takes sequences over and copies them, whatever breaks meanwhile", 2, 0, 0);
    return failed;
}
