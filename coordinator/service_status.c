/* service_status - what the service shows of itself. The document (GET /v1/status, `pleiades status --json`);
 * times are microseconds, rates per second, absent things null:
 *
 *   state      "loading" "serving" "draining"       why        what it waits for, "" while serving
 *   model      its name                             epoch      of the plan
 *   uptime_s   since the start                      state_s    in this state of the cluster
 *   security   "curve" "none" "local"               address    where nodes join, or null
 *   plan       null, or { stages, slots, ctx, rows, window, chunk, wire, numerics, precision }
 *   requests   { queued, active, decoding, batches, total, done, failed, cancelled }
 *   tokens     { prompt, cached, output, output_per_s, prompt_per_s }       per_s: of the last seconds
 *   nodes      [ { name, state, backend, device, threads, address, stage (or null), helper, layers
 *                  [first, last], embed, head, rtt_us, memory { limit, used, weights, state, work },
 *                  speed { read, int8, f32 }, load { done, total } (bytes), busy (share of its time),
 *                  batches, rows, bytes_in, bytes_out, sequences, queued, refused } ]
 *   links      [ { from, to, rtt_us, bytes_per_s } ]        measured by `from`; 0: not measured; to a node or
 *                "coordinator"
 *   time       where the time between two tokens of a stream went, summed over tokens:
 *              { tokens, wall_us, wait_us, queue_us, compute_us, hold_us, wire_us, sample_us, attributed,
 *                bytes_per_token, stages [ { stage, node, queue_us, compute_us, hold_us, rows } ] (of
 *                  all batches),
 *                rows_fetched, batches, batches_lost, prefill_rows }
 *   batches    the last ones: [ { batch, rows, decode, stages, total_us, wait_us, queue_us, compute_us,
 *                                 hold_us, wire_us, sample_us } ]
 *
 * The loop makes the document; other threads take the last one, or ask for a new one and wait a moment. */
#include "coordinator/service_private.h"

#include "common/base/check.h"
#include "common/sys/clock.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

enum { SHOW_MS = 250, WAIT_MS = 100, BATCHES_SHOWN = 16 };

static const char *const state_names[SERVICE_STATES] = { "loading", "serving", "draining" };
static const char *const node_names[ND_STATES] = { "gone", "joined", "loading", "ready", "failed" };
static const char *const backend_names[MSG_BACKENDS] = { "cpu", "cuda", "metal" };
static const char *const numerics_names[] = { "official", "exact", "official-wide" };

#define LLU(x) ((unsigned long long)(x))

/* ---- JSON ---- */

static void put_text(struct buf *b, const char *key, const char *text) {
    buf_printf(b, "\"%s\": \"", key);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') buf_printf(b, "\\%c", *c);
        else if (*c < 0x20) buf_printf(b, "\\u%04x", *c);
        else buf_add_char(b, (char)*c);
    }
    buf_add_char(b, '"');
}

static void put_next(struct buf *b, bool *first) {
    buf_add_text(b, *first ? "" : ", ");
    *first = false;
}

/* ---- parts ---- */

static void put_plan(struct buf *b, const struct service *s, const struct coord_view *v) {
    const struct coord_plan *p = v->plan;
    if (!p || !p->n_stage) {
        buf_add_text(b, "\"plan\": null, ");
        return;
    }
    buf_printf(b,
               "\"plan\": {\"stages\": %u, \"slots\": %u, \"ctx\": %u, \"rows\": %u, \"window\": "
               "%u, \"chunk\": %u, ",
               p->n_stage, v->n_slot, p->n_ctx_max, p->n_rows_max, v->n_window, v->chunk);
    put_text(b, "wire", p->stage[0].wire == MSG_WIRE_F16S ? "f16s" : "f32");
    buf_add_text(b, ", ");
    put_text(b, "numerics", numerics_names[(size_t)s->config.numerics % COUNT_OF(numerics_names)]);
    buf_add_text(b, ", ");
    put_text(b, "precision", p->precision ? "f32" : "fast");
    buf_add_text(b, "}, ");
}

static void put_memory(struct buf *b, const struct coord_node_view *n) {
    const struct msg_ready *r = n->ready;
    bool ready = n->state == ND_READY;
    buf_printf(b,
               "\"memory\": {\"limit\": %llu, \"used\": %llu, \"weights\": %llu, \"state\": %llu, "
               "\"work\": %llu}, ",
               LLU(n->hello->memory_bytes), LLU(n->peer->counters.memory_used_bytes),
               LLU(ready ? r->weights_bytes : 0), LLU(ready ? r->state_bytes : 0),
               LLU(ready ? r->work_bytes : 0));
}

static void put_node(struct buf *b, const struct service *s, const struct coord_node_view *n) {
    const struct msg_hello *h = n->hello;
    const struct msg_counters *c = &n->peer->counters;
    uint64_t alive = c->busy_us + c->idle_us;
    buf_add_char(b, '{');
    put_text(b, "name", h->name);
    buf_printf(b, ", \"state\": \"%s\", \"backend\": \"%s\", ", node_names[n->state],
               backend_names[h->backend]);
    put_text(b, "device", h->device);
    buf_printf(b, ", \"threads\": %u, ", h->n_threads);
    put_text(b, "address", h->address);
    if (n->stage_i < 0) buf_add_text(b, ", \"stage\": null, \"helper\": false, \"layers\": null, ");
    else
        buf_printf(b, ", \"stage\": %d, \"helper\": %s, \"layers\": [%u, %u], ", n->stage_i,
                   n->is_helper ? "true" : "false", n->layer_begin, n->layer_end - 1);
    bool stage = n->stage_i >= 0 && !n->is_helper;
    buf_printf(b, "\"embed\": %s, \"head\": %s, \"rtt_us\": %u, ",
               stage && n->layer_begin == 0 ? "true" : "false",
               stage && n->layer_end == s->hp.n_layer ? "true" : "false", n->peer->rtt_us);
    put_memory(b, n);
    buf_printf(b, "\"speed\": {\"read\": %llu, \"int8\": %llu, \"f32\": %llu}, ", LLU(h->read_bytes_per_s),
               LLU(h->int8_per_s), LLU(h->f32_per_s));
    buf_printf(b, "\"load\": {\"done\": %llu, \"total\": %llu}, \"busy\": %.4f, ",
               LLU(n->progress.done_bytes), LLU(n->progress.total_bytes),
               alive ? (double)c->busy_us / (double)alive : 0.0);
    buf_printf(b, "\"batches\": %llu, \"rows\": %llu, \"bytes_in\": %llu, \"bytes_out\": %llu, ",
               LLU(c->n_batch), LLU(c->n_row), LLU(c->bytes_in), LLU(c->bytes_out));
    buf_printf(b, "\"sequences\": %u, \"queued\": %u, \"refused\": %llu}", c->n_seq, c->n_queued,
               LLU(c->n_refused));
}

static void put_nodes(struct buf *b, const struct service *s) {
    struct coord_node_view n;
    bool first = true;
    buf_add_text(b, "\"nodes\": [");
    for (uint32_t i = 0; i < s->coord_config.n_node_max; i++) {
        if (!coord_view_node(s->coord, i, &n)) continue;
        put_next(b, &first);
        put_node(b, s, &n);
    }
    buf_add_text(b, "], ");
}

static void put_links(struct buf *b, const struct service *s) {
    struct coord_node_view n;
    bool first = true;
    buf_add_text(b, "\"links\": [");
    for (uint32_t i = 0; i < s->coord_config.n_node_max; i++) {
        if (!coord_view_node(s->coord, i, &n)) continue;
        for (uint32_t k = 0; k < n.n_link; k++) {
            put_next(b, &first);
            buf_add_char(b, '{');
            put_text(b, "from", n.hello->name);
            buf_add_text(b, ", ");
            put_text(b, "to", n.link[k].name);
            buf_printf(b, ", \"rtt_us\": %u, \"bytes_per_s\": %llu}", n.link[k].rtt_us,
                       LLU(n.link[k].bytes_per_s));
        }
    }
    buf_add_text(b, "], ");
}

static const char *stage_node(const struct service *s, int32_t stage_i) {
    struct coord_node_view n;
    for (uint32_t i = 0; i < s->coord_config.n_node_max; i++)
        if (coord_view_node(s->coord, i, &n) && n.stage_i == stage_i && !n.is_helper) return n.hello->name;
    return "";
}

/* Bytes between machines for one token: what the nodes sent, over the rows that they sent it for. */
static double bytes_per_token(const struct service *s) {
    struct coord_node_view n;
    double sum = 0;
    for (uint32_t i = 0; i < s->coord_config.n_node_max; i++)
        if (coord_view_node(s->coord, i, &n) && n.peer->counters.n_row)
            sum += (double)n.peer->counters.bytes_out / (double)n.peer->counters.n_row;
    return sum;
}

static void put_time(struct buf *b, const struct service *s, const struct coord_view *v) {
    const struct coord_totals *t = v->totals;
    uint64_t parts = t->wait_us + t->queue_us + t->compute_us + t->hold_us + t->wire_us + t->sample_us;
    buf_printf(b, "\"time\": {\"tokens\": %llu, \"wall_us\": %llu, \"wait_us\": %llu, \"queue_us\": %llu, ",
               LLU(t->n_token), LLU(t->wall_us), LLU(t->wait_us), LLU(t->queue_us));
    buf_printf(b, "\"compute_us\": %llu, \"hold_us\": %llu, \"wire_us\": %llu, \"sample_us\": %llu, ",
               LLU(t->compute_us), LLU(t->hold_us), LLU(t->wire_us), LLU(t->sample_us));
    buf_printf(b, "\"attributed\": %.4f, \"bytes_per_token\": %.1f, \"stages\": [",
               t->wall_us ? (double)parts / (double)t->wall_us : 1.0, bytes_per_token(s));
    for (uint32_t i = 0; v->plan && i < v->plan->n_stage; i++) {
        buf_printf(b, "%s{\"stage\": %u, ", i ? ", " : "", i);
        put_text(b, "node", stage_node(s, (int32_t)i));
        buf_printf(b, ", \"queue_us\": %llu, \"compute_us\": %llu, \"hold_us\": %llu, \"rows\": %llu}",
                   LLU(t->stage_queue_us[i]), LLU(t->stage_compute_us[i]), LLU(t->stage_hold_us[i]),
                   LLU(t->stage_row[i]));
    }
    buf_printf(b,
               "], \"rows_fetched\": %llu, \"batches\": %llu, \"batches_lost\": %llu, "
               "\"prefill_rows\": %llu}, ",
               LLU(t->n_row_more), LLU(t->n_batch), LLU(t->n_batch_dead), LLU(t->n_prefill_row));
}

static void put_batches(struct buf *b, const struct coord_view *v) {
    uint64_t n = MIN(v->n_trace, (uint64_t)BATCHES_SHOWN);
    buf_add_text(b, "\"batches\": [");
    for (uint64_t i = v->n_trace - n; i < v->n_trace; i++) {
        const struct coord_batch_trace *t = &v->trace[i % COORD_TRACES];
        buf_printf(
            b,
            "%s{\"batch\": %llu, \"rows\": %u, \"decode\": %u, \"stages\": %u, \"total_us\": %u, ",
            i > v->n_trace - n ? ", " : "", LLU(t->batch), t->n_row, t->n_decode, t->n_stage,
            t->total_us);
        buf_printf(b,
                   "\"wait_us\": %u, \"queue_us\": %u, \"compute_us\": %u, \"hold_us\": %u, "
                   "\"wire_us\": %u, "
                   "\"sample_us\": %u}",
                   t->wait_us, t->queue_us, t->compute_us, t->hold_us, t->wire_us, t->sample_us);
    }
    buf_add_text(b, "]");
}

/* Per second, between the oldest point we remember and now. */
static void put_tokens(struct buf *b, struct service *s, uint64_t now) {
    const struct service_totals *t = &s->totals;
    uint32_t oldest = s->n_rate > SERVICE_RATE_POINTS ? s->n_rate % SERVICE_RATE_POINTS : 0;
    const struct rate_point *p =
        s->n_rate ? &s->rate[oldest] : &(struct rate_point){ .at_ns = s->started_ns };
    double seconds = (double)(now - p->at_ns) / 1e9;
    double out = seconds > 0.01 ? (double)(t->n_output_token - p->n_output) / seconds : 0;
    double in = seconds > 0.01
                    ? (double)(coord_view(s->coord).totals->n_prefill_row - p->n_prompt) / seconds
                    : 0;
    buf_printf(b,
               "\"tokens\": {\"prompt\": %llu, \"cached\": %llu, \"output\": %llu, "
               "\"output_per_s\": %.2f, "
               "\"prompt_per_s\": %.2f}, ",
               LLU(t->n_prompt_token), LLU(t->n_cached_token), LLU(t->n_output_token), out, in);
}

static void remember_rate(struct service *s, uint64_t now) {
    const struct rate_point *last = &s->rate[(s->n_rate + SERVICE_RATE_POINTS - 1) % SERVICE_RATE_POINTS];
    if (s->n_rate && now - last->at_ns < SHOW_MS * UINT64_C(900000)) return;
    s->rate[s->n_rate++ % SERVICE_RATE_POINTS] =
        (struct rate_point){ now, s->totals.n_output_token, coord_view(s->coord).totals->n_prefill_row };
}

static void put_document(struct buf *b, struct service *s, const struct coord_view *v,
                         enum service_state state, uint64_t now) {
    const struct service_totals *t = &s->totals;
    const char *security = !s->config.bind ? "local" : s->config.key_path ? "curve" : "none";
    buf_add_char(b, '{');
    buf_printf(b, "\"state\": \"%s\", ", state_names[state]);
    put_text(b, "why", v->state == CL_SERVING ? "" : v->why);
    buf_add_text(b, ", ");
    put_text(b, "model", s->model_name);
    buf_printf(b,
               ", \"epoch\": %llu, \"uptime_s\": %.1f, \"state_s\": %.1f, \"security\": \"%s\", ",
               LLU(v->epoch), (double)(now - s->started_ns) / 1e9,
               (double)(now - MIN(v->since_ns ? v->since_ns : now, now)) / 1e9, security);
    if (s->node_links) put_text(b, "address", links_address(s->node_links));
    else buf_add_text(b, "\"address\": null");
    buf_add_text(b, ", ");
    put_plan(b, s, v);
    buf_printf(b,
               "\"requests\": {\"queued\": %u, \"active\": %u, \"decoding\": %u, \"batches\": %u, ",
               v->n_queued, v->n_active, v->n_decode, v->n_flying);
    buf_printf(b, "\"total\": %llu, \"done\": %llu, \"failed\": %llu, \"cancelled\": %llu}, ",
               LLU(t->n_request), LLU(t->n_done), LLU(t->n_failed), LLU(t->n_cancelled));
    put_tokens(b, s, now);
    put_nodes(b, s);
    put_links(b, s);
    put_time(b, s, v);
    put_batches(b, v);
    buf_add_char(b, '}');
}

/* ---- the snapshot ---- */

static void info_fill(struct service *s, const struct coord_view *v, struct service_info *out) {
    enum service_state state = v->state == CL_SERVING ? SERVICE_SERVING : SERVICE_LOADING;
    if (atomic_load(&s->draining)) state = SERVICE_DRAINING;
    *out = (struct service_info){ .state = state,
                                  .n_ctx = v->plan && v->plan->n_stage ? v->plan->n_ctx_max : s->config.n_ctx,
                                  .n_vocab = s->hp.n_vocab,
                                  .n_slot = v->n_slot ? v->n_slot : s->config.n_slot,
                                  .n_queued = v->n_queued,
                                  .n_active = v->n_active,
                                  .n_node = v->n_node,
                                  .created_s = s->created_s };
    snprintf(out->why, sizeof out->why, "%s", v->state == CL_SERVING ? "" : v->why);
    snprintf(out->model, sizeof out->model, "%s", s->model_name);
}

/* What the stages hold for sequences that are kept; looked at anew when one came or went. */
static void kept_fill(struct service *s, const struct coord_view *v) {
    struct service_totals *to = &s->totals;
    bool same = to->n_kept == v->n_parked && to->kept_tokens == v->parked_tokens &&
                to->n_given_up == v->n_given_up;
    if (same) return;
    uint32_t n_token[SERVICE_KEPT_MAX], n = coord_view_parked(s->coord, n_token, SERVICE_KEPT_MAX);
    to->n_kept = v->n_parked;
    to->kept_tokens = v->parked_tokens;
    to->n_given_up = v->n_given_up;
    to->kept_bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t l = 0; l < s->hp.n_layer; l++)
            to->kept_bytes += hparams_state_bytes(&s->hp, l, n_token[i]);
}

static void totals_fill(struct service *s, const struct coord_view *v) {
    const struct coord_totals *t = v->totals;
    struct service_totals *to = &s->totals;
    to->wall_us = t->wall_us;
    to->wait_us = t->wait_us;
    to->queue_us = t->queue_us;
    to->compute_us = t->compute_us;
    to->hold_us = t->hold_us;
    to->wire_us = t->wire_us;
    to->sample_us = t->sample_us;
    memcpy(to->stage_compute_us, t->stage_compute_us, sizeof to->stage_compute_us);
    kept_fill(s, v);
}

void service_show(struct service *s) {
    struct coord_view v = coord_view(s->coord);
    struct service_info info;
    uint64_t now = clock_now_ns();
    info_fill(s, &v, &info);
    totals_fill(s, &v);
    pthread_mutex_lock(&s->lock);
    s->info = info;
    s->totals_view = s->totals;
    bool wanted = s->status_wanted > s->status_no;
    pthread_mutex_unlock(&s->lock);
    if (!wanted && s->shown_ns && now < s->shown_ns + SHOW_MS * UINT64_C(1000000)) return;
    s->shown_ns = now;
    struct buf fresh;
    buf_init(&fresh, 4 << 20);
    put_document(&fresh, s, &v, info.state, now);
    remember_rate(s, now);
    pthread_mutex_lock(&s->lock);
    struct buf old = s->status;
    s->status = fresh;
    s->status_no = MAX(s->status_no + 1, s->status_wanted);
    pthread_cond_broadcast(&s->shown);
    pthread_mutex_unlock(&s->lock);
    buf_deinit(&old);
}

/* ---- any thread ---- */

void service_info(struct service *s, struct service_info *out) {
    pthread_mutex_lock(&s->lock);
    *out = s->info;
    pthread_mutex_unlock(&s->lock);
    if (atomic_load(&s->draining)) out->state = SERVICE_DRAINING;
}

void service_totals(struct service *s, struct service_totals *out) {
    pthread_mutex_lock(&s->lock);
    *out = s->totals_view;
    pthread_mutex_unlock(&s->lock);
}

struct show { struct loop_task task; struct service *s; };

static void show_run(struct loop_task *task) {
    struct service *s = ((struct show *)task)->s;
    free(task);
    service_show(s);
}

int service_status(struct service *s, struct buf *out, struct err *e) {
    struct timespec until;
    struct show *ask = xcalloc(1, sizeof *ask);
    *ask = (struct show){ .task = { .run = show_run }, .s = s };
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += WAIT_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&s->lock);
    uint64_t wanted = s->status_wanted = MAX(s->status_no, s->status_wanted) + 1;
    pthread_mutex_unlock(&s->lock);
    loop_post(s->loop, &ask->task);
    pthread_mutex_lock(&s->lock);
    while (s->status_no < wanted)
        if (pthread_cond_timedwait(&s->shown, &s->lock, &until) == ETIMEDOUT) break;
    int rc = s->status.size ? buf_add(out, s->status.data, s->status.size) : ERR_STALE;
    pthread_mutex_unlock(&s->lock);
    return rc < 0 ? err_set(e, rc, "no status yet") : 0;
}
