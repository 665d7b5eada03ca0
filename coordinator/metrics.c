/* metrics - see the header. */
#include "coordinator/metrics.h"

#include "common/base/mark.h"

static const double bounds[METRICS_BOUNDS] = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                               0.5,   1,      2.5,   5,    10,    30,   120, 600 };

void metrics_add(struct metrics_histogram *h, double seconds) {
    size_t i = 0;
    while (i < METRICS_BOUNDS && seconds > bounds[i]) i++;
    h->bucket[i]++;
    h->n++;
    h->sum += seconds;
}

enum metrics_outcome metrics_outcome_of(int status) {
    if (status == 429 || status == 503) return METRICS_REJECTED;
    if (status == 499) return METRICS_CANCELLED;
    return status >= 500 ? METRICS_FAILED : status >= 400 ? METRICS_CLIENT_ERROR : METRICS_OK;
}

/* Those before us take as long as requests took so far, n_slot at a time. */
int metrics_retry_s(const struct metrics *m, const struct service_info *info) {
    double each = m->request.n ? m->request.sum / (double)m->request.n : 2;
    double s = each * (info->n_queued + 1) / MAX(info->n_slot, 1u);
    return s < 1 ? 1 : s > 60 ? 60 : (int)s;
}

/* ---- text ---- */

static void put_head(struct buf *out, const char *name, const char *type, const char *help) {
    buf_printf(out, "# HELP pleiades_%s %s\n# TYPE pleiades_%s %s\n", name, help, name, type);
}

static void put_one(struct buf *out, const char *name, const char *type, double value, const char *help) {
    put_head(out, name, type, help);
    buf_printf(out, "pleiades_%s %.17g\n", name, value);
}

static void put_histogram(struct buf *out, const char *name, const struct metrics_histogram *h,
                          const char *help) {
    uint64_t n = 0;
    put_head(out, name, "histogram", help);
    for (size_t i = 0; i < METRICS_BOUNDS; i++) {
        n += h->bucket[i];
        buf_printf(out, "pleiades_%s_bucket{le=\"%g\"} %llu\n", name, bounds[i], (unsigned long long)n);
    }
    buf_printf(out, "pleiades_%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)h->n);
    buf_printf(out, "pleiades_%s_sum %.9g\npleiades_%s_count %llu\n", name, h->sum, name,
               (unsigned long long)h->n);
}

static void put_requests(const struct metrics *m, struct buf *out) {
    static const char *const outcomes[] = { "ok", "client_error", "cancelled", "rejected", "failed" };
    put_head(out, "requests_total", "counter", "Requests by endpoint and outcome.");
    for (int i = 0; i < API_ENDPOINTS; i++)
        for (int k = 0; k < METRICS_OUTCOMES; k++)
            if (m->requests[i][k] || api_generates((enum api_endpoint)i))
                buf_printf(out, "pleiades_requests_total{endpoint=\"%s\",outcome=\"%s\"} %llu\n",
                           api_endpoint_name((enum api_endpoint)i), outcomes[k],
                           (unsigned long long)m->requests[i][k]);
}

/* Label values: what would end the string is left out. */
static void put_label(struct buf *out, const char *text) {
    for (; *text; text++)
        if (*text != '"' && *text != '\\' && (unsigned char)*text >= 32) buf_add_char(out, *text);
}

static void put_build(const struct metrics_now *now, struct buf *out) {
    put_head(out, "build_info", "gauge", "Always 1; the labels say what runs.");
    buf_add_text(out, "pleiades_build_info{version=\"");
    put_label(out, now->version);
    buf_add_text(out, "\",model=\"");
    put_label(out, now->model);
    buf_add_text(out, "\"} 1\n");
}

/* Rare branches that ran (common/base/mark.h). */
static void put_marks(struct buf *out) {
    put_head(out, "marks_total", "counter", "How often rare branches ran.");
    for (int i = 0; i < MARK_N; i++)
        if (mark_count((enum mark_id)i))
            buf_printf(out, "pleiades_marks_total{mark=\"%s\"} %llu\n", mark_name((enum mark_id)i),
                       (unsigned long long)mark_count((enum mark_id)i));
}

static void put_decode(const struct service_totals *t, struct buf *out) {
    const struct {
        const char *part;
        uint64_t us;
    } parts[] = {
        { "wall", t->wall_us },       { "wait", t->wait_us }, { "queue", t->queue_us },
        { "compute", t->compute_us }, { "hold", t->hold_us }, { "wire", t->wire_us },
        { "sample", t->sample_us },
    };
    put_head(out, "decode_part_seconds_total", "counter", "Where the time of decoded tokens went.");
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        buf_printf(out, "pleiades_decode_part_seconds_total{part=\"%s\"} %.6f\n", parts[i].part,
                   (double)parts[i].us / 1e6);
}

static void put_service(const struct metrics_now *now, struct buf *out) {
    static const char *const states[] = { "loading", "serving", "draining" };
    const struct service_info *i = &now->info;
    put_head(out, "state", "gauge", "1 for the state that the service is in.");
    for (int k = 0; k < SERVICE_STATES; k++)
        buf_printf(out, "pleiades_state{state=\"%s\"} %d\n", states[k], (int)i->state == k);
    put_one(out, "requests_running", "gauge", i->n_active, "Sequences that are computed.");
    put_one(out, "requests_queued", "gauge", i->n_queued, "Sequences that wait for a slot.");
    put_one(out, "slots", "gauge", i->n_slot, "Sequences that can be computed at once.");
    put_one(out, "nodes", "gauge", i->n_node, "Machines of the cluster.");
    put_one(out, "context_tokens", "gauge", i->n_ctx, "Longest sequence.");
    put_decode(&now->totals, out);
}

/* What is kept of computed prompts, and of the calls that models wrote. */
static void put_caches(const struct metrics *m, const struct metrics_now *now, struct buf *out) {
    const struct replay_stats *r = &now->memory;
    double capacity = (double)now->info.n_slot * now->info.n_ctx;
    put_one(out, "kv_tokens", "gauge", (double)now->kv_tokens,
            "Tokens whose state is held for running sequences.");
    put_one(out, "kv_capacity_tokens", "gauge", capacity, "Tokens whose state all slots could hold.");
    put_one(out, "prefix_cache_hits_total", "counter", (double)m->n_hit,
            "Sequences whose beginning was not computed again.");
    put_one(out, "prefix_cache_misses_total", "counter", (double)m->n_miss,
            "Sequences that were computed from the start.");
    put_one(out, "prefix_cache_entries", "gauge", (double)now->totals.n_kept,
            "Sequences kept for prompts that begin like them.");
    put_one(out, "prefix_cache_tokens", "gauge", (double)now->totals.kept_tokens, "Tokens of those.");
    put_one(out, "prefix_cache_bytes", "gauge", (double)now->totals.kept_bytes,
            "State that the stages hold for them.");
    put_one(out, "prefix_cache_evictions_total", "counter", (double)now->totals.n_given_up,
            "Kept sequences that had to make room.");
    put_one(out, "call_memory_entries", "gauge", (double)r->n_blocks, "Remembered blocks of tool calls.");
    put_one(out, "call_memory_bytes", "gauge", (double)r->bytes, "Memory that they take.");
    put_one(out, "call_memory_hits_total", "counter", (double)r->n_hit,
            "Messages rendered from a remembered block.");
    put_one(out, "call_memory_evictions_total", "counter", (double)r->n_evicted,
            "Blocks that had to make room.");
}

void metrics_put(const struct metrics *m, const struct metrics_now *now, struct buf *out) {
    put_build(now, out);
    put_requests(m, out);
    put_service(now, out);
    put_caches(m, now, out);
    put_one(out, "connections", "gauge", now->connections, "Open connections.");
    put_one(out, "jobs", "gauge", now->jobs, "Requests being read, computed or written.");
    put_one(out, "prompt_tokens_total", "counter", (double)m->n_prompt, "Tokens of prompts.");
    put_one(out, "cached_prompt_tokens_total", "counter", (double)m->n_cached,
            "Tokens of prompts that were not computed again.");
    put_one(out, "generated_tokens_total", "counter", (double)m->n_output, "Tokens that were sampled.");
    put_one(out, "prefill_seconds_total", "counter", m->prefill_s, "Time spent on prompts.");
    put_one(out, "decode_seconds_total", "counter", m->decode_s, "Time spent on answers.");
    put_one(out, "request_bytes_total", "counter", (double)m->bytes_in, "Bytes of request bodies.");
    put_one(out, "response_bytes_total", "counter", (double)m->bytes_out, "Bytes of answers.");
    put_histogram(out, "time_to_first_token_seconds", &m->first_token,
                  "From the request's last byte to its first token.");
    put_histogram(out, "inter_token_seconds", &m->between_tokens, "Between two tokens of one choice.");
    put_histogram(out, "request_seconds", &m->request,
                  "From the request's first byte to the end of its answer.");
    put_histogram(out, "queue_seconds", &m->queue, "Waiting for a slot.");
    put_marks(out);
}
