#include "cli/status_view.h"

#include "cli/http_client.h"

#include <jansson.h>
#include <stdio.h>

struct view {
    struct buf *out;
    const char *newline;
};

int status_connect(struct http_client **out, const struct status_source *s, const volatile sig_atomic_t *stop,
                   struct err *e) {
    struct http_client_options o = {
        .url = s->url, .api_key_file = s->api_key_file, .ca_file = s->ca_file, .stop = stop
    };
    return http_client_new(out, &o, e);
}

int status_fetch(struct http_client *c, struct buf *document, struct err *e) {
    return http_client_get(c, "/status", document, e);
}

/* ---- reading ---- */

static double number(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

static const char *text(const json_t *o, const char *key) {
    const char *value = json_string_value(json_object_get(o, key));
    return value ? value : "";
}

static bool truth(const json_t *o, const char *key) {
    return json_is_true(json_object_get(o, key));
}

/* ---- writing ---- */

static void line(struct view *v, const char *format, ...) PRINTF_LIKE(2, 3);

/* Names come from other machines and from model files: nothing of them may steer the terminal. */
static void line(struct view *v, const char *format, ...) {
    char row[256];
    va_list args;
    va_start(args, format);
    vsnprintf(row, sizeof row, format, args);
    va_end(args);
    for (char *c = row; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    buf_printf(v->out, "%.80s%s", row, v->newline);
}

/* "812", "4.1 K", "2.3 G": thousands. */
static const char *amount(double x, char out[16]) {
    static const char units[] = " KMGTP";
    int i = 0;
    for (; x >= 999.5 && i < 5; i++) x /= 1000;
    snprintf(out, 16, i ? "%.1f %c" : "%.0f", x, units[i]);
    return out;
}

static const char *duration(double us, char out[16]) {
    if (us >= 1e6) snprintf(out, 16, "%.2f s", us / 1e6);
    else if (us >= 100) snprintf(out, 16, "%.2f ms", us / 1e3);
    else snprintf(out, 16, "%.0f us", us);
    return out;
}

static void put_head(struct view *v, const json_t *d) {
    const json_t *r = json_object_get(d, "requests"), *t = json_object_get(d, "tokens"),
                 *p = json_object_get(d, "plan");
    int up = (int)number(d, "uptime_s");
    bool is_open = strcmp(text(d, "security"), "none") == 0 && *text(d, "address");
    char a[16], b[16];
    line(v, "%.40s: %s%s%.30s", text(d, "model"), text(d, "state"), *text(d, "why") ? ", " : "",
         text(d, "why"));
    line(v, "up %d:%02d:%02d  epoch %.0f  links %s", up / 3600, up / 60 % 60, up % 60, number(d, "epoch"),
         is_open ? "NOT ENCRYPTED (--insecure)" : text(d, "security"));
    if (*text(d, "address")) line(v, "nodes join at %.60s", text(d, "address"));
    if (json_is_object(p))
        line(v, "plan: %.0f stage%s, %.0f streams of %.0f tokens, wire %s, %s numerics, %s",
             number(p, "stages"), number(p, "stages") == 1 ? "" : "s", number(p, "slots"),
             number(p, "ctx"), text(p, "wire"), text(p, "numerics"), text(p, "precision"));
    line(v, "requests: %.0f active, %.0f queued; %.0f done, %.0f failed, %.0f cancelled", number(r, "active"),
         number(r, "queued"), number(r, "done"), number(r, "failed"), number(r, "cancelled"));
    line(v, "tokens: %s out, %.1f/s; %s in, %.1f/s", amount(number(t, "output"), a),
         number(t, "output_per_s"), amount(number(t, "prompt"), b), number(t, "prompt_per_s"));
}

static void put_node(struct view *v, const json_t *n) {
    const json_t *layers = json_object_get(n, "layers"), *m = json_object_get(n, "memory"),
                 *load = json_object_get(n, "load");
    char range[32] = "spare", state[24], memory[32], rtt[16], rows[16], busy[16];
    if (json_is_array(layers))
        snprintf(range, sizeof range, "%s%d-%d%s%s", truth(n, "helper") ? "experts of " : "",
                 (int)json_integer_value(json_array_get(layers, 0)),
                 (int)json_integer_value(json_array_get(layers, 1)), truth(n, "embed") ? " +in" : "",
                 truth(n, "head") ? " +out" : "");
    snprintf(state, sizeof state, "%s", text(n, "state"));
    if (strcmp(state, "loading") == 0 && number(load, "total") > 0)
        snprintf(state, sizeof state, "%3.0f %%", 100 * number(load, "done") / number(load, "total"));
    snprintf(memory, sizeof memory, "%.2f/%.1f", number(m, "used") / (1 << 30),
             number(m, "limit") / (1 << 30));
    snprintf(busy, sizeof busy, "%.0f %%", 100 * number(n, "busy"));
    line(v, "%-13.13s %-8.8s %-15.15s %12.12s %6s %8s %6s %5.0f", text(n, "name"), state, range, memory, busy,
         duration(number(n, "rtt_us"), rtt), amount(number(n, "rows"), rows), number(n, "sequences"));
}

static void put_nodes(struct view *v, const json_t *d) {
    const json_t *nodes = json_object_get(d, "nodes"), *n;
    size_t i;
    line(v, "%s", "");
    line(v, "%-13s %-8s %-15s %12s %6s %8s %6s %5s", "node", "state", "layers", "memory GiB",
         "busy", "rtt", "rows", "seqs");
    for (int stage = 0; stage < (int)json_array_size(nodes); stage++)  /* in the order of the plan */
        json_array_foreach((json_t *)nodes, i,
                           n) if (json_is_integer(json_object_get(n, "stage")) &&
                                  (int)number(n, "stage") == stage) put_node(v, n);
    json_array_foreach((json_t *)nodes, i, n)
        if (!json_is_integer(json_object_get(n, "stage"))) put_node(v, n);
}

static void put_links(struct view *v, const json_t *d) {
    const json_t *l;
    size_t i;
    char rtt[16], speed[16];
    json_array_foreach(json_object_get(d, "links"), i, l) {
        if (i == 0) line(v, "%s", "");
        line(v, "link %.20s -> %.20s: %s there and back, %sB/s", text(l, "from"), text(l, "to"),
             duration(number(l, "rtt_us"), rtt), amount(number(l, "bytes_per_s"), speed));
    }
}

static void put_part(struct view *v, const json_t *t, const char *key, const char *what) {
    double n = number(t, "tokens"), wall = number(t, "wall_us"), us = number(t, key);
    char each[16];
    line(v, "  %-34s %10s %5.1f %%", what, duration(n > 0 ? us / n : 0, each),
         wall > 0 ? 100 * us / wall : 0);
}

/* Of the time that tokens waited for computing, each stage's part, in proportion to all it computed. */
static void put_stages(struct view *v, const json_t *t) {
    const json_t *stages = json_object_get(t, "stages"), *s;
    double all = 0, n = number(t, "tokens"), wall = number(t, "wall_us");
    size_t i;
    char what[64], each[16];
    json_array_foreach((json_t *)stages, i, s) all += number(s, "compute_us");
    json_array_foreach((json_t *)stages, i, s) {
        double us = all > 0 ? number(t, "compute_us") * number(s, "compute_us") / all : 0;
        snprintf(what, sizeof what, "stage %.0f computes (%.14s)", number(s, "stage"), text(s, "node"));
        line(v, "  %-34s %10s %5.1f %%", what, duration(n > 0 ? us / n : 0, each),
             wall > 0 ? 100 * us / wall : 0);
    }
}

static void put_time(struct view *v, const json_t *d) {
    const json_t *t = json_object_get(d, "time");
    double n = number(t, "tokens");
    char each[16], bytes[16];
    if (n == 0) return;
    line(v, "%s", "");
    line(v, "a token takes %s (%.0f tokens, %.1f %% of the time accounted for):",
         duration(number(t, "wall_us") / n, each), n, 100 * number(t, "attributed"));
    put_part(v, t, "wait_us", "waits for a batch");
    put_part(v, t, "queue_us", "waits at stages");
    put_stages(v, t);
    put_part(v, t, "hold_us", "waits for the way on");
    put_part(v, t, "wire_us", "is on the way");
    put_part(v, t, "sample_us", "is chosen");
    line(v, "between machines: %sB per token; rows fetched again: %.0f of %.0f",
         amount(number(t, "bytes_per_token"), bytes), number(t, "rows_fetched"), n);
}

int status_table(const char *document, size_t size, const char *newline, struct buf *out, struct err *e) {
    json_error_t error;
    json_t *d = json_loadb(document, size, 0, &error);
    if (!json_is_object(d) || !json_is_string(json_object_get(d, "state"))) {
        json_decref(d);
        return err_set(e, ERR_CORRUPT, "the answer is no status document");
    }
    struct view v = { out, newline };
    put_head(&v, d);
    put_nodes(&v, d);
    put_links(&v, d);
    put_time(&v, d);
    json_decref(d);
    return out->rc < 0 ? err_set(e, out->rc, "the table is too long") : 0;
}
