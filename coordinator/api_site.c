/* api_site - see the header. */
#include "coordinator/api_site.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/model/chat_format.h"
#include "coordinator/api_memory.h"
#include "coordinator/guide.h"

/* ---- names ---- */

/* "DeepSeek V4 Flash" -> "deepseek-v4-flash" */
static void make_id(char out[API_NAME_MAX], const char *name) {
    size_t n = 0;
    for (; *name && n + 1 < API_NAME_MAX; name++) {
        unsigned char c = (unsigned char)*name;
        if (isalnum(c) || c == '.' || c == '_' || c == '/') out[n++] = (char)tolower(c);
        else if (n && out[n - 1] != '-') out[n++] = '-';
    }
    while (n && out[n - 1] == '-') n--;
    out[n] = 0;
    if (!n) snprintf(out, API_NAME_MAX, "pleiades");
}

/* Equal prints mean: the same build, weights (as far as their metadata tells) and context. */
static void make_fingerprint(struct api_site *s) {
    char what[512];
    int n = snprintf(what, sizeof what, "%s|%s|%u|%u|%d|%d", PLEIADES_BUILD, s->model_name,
                     s->n_vocab, s->n_ctx, (int)s->defaults.encoding, (int)s->defaults.effort);
    snprintf(s->fingerprint, sizeof s->fingerprint, "fp_%012llx",
             (unsigned long long)(hash_64(what, MIN((size_t)n, sizeof what - 1), 0) >> 16));
}

static void find_ends(struct api_site *s) {
    static const char *const names[] = { CHAT_BOS,      CHAT_EOS,    CHAT_USER,    CHAT_ASSISTANT,
                                         CHAT_REMINDER, CHAT_ACTION, CHAT_QUERY,   CHAT_AUTHORITY,
                                         CHAT_DOMAIN,   CHAT_TITLE,  CHAT_READ_URL };
    int32_t eos = tokenizer_eos(s->tokenizer);
    if (eos >= 0) s->ends[s->n_ends++] = eos;
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        int32_t id = tokenizer_find_added(s->tokenizer, names[i]);
        if (id >= 0 && !api_site_ends(s, id)) s->ends[s->n_ends++] = id;
    }
    s->think = tokenizer_find_added(s->tokenizer, CHAT_THINK);
    s->think_end = tokenizer_find_added(s->tokenizer, CHAT_THINK_END);
    s->dsml = tokenizer_find_added(s->tokenizer, CHAT_DSML);
}

bool api_site_ends(const struct api_site *s, int32_t id) {
    for (uint32_t i = 0; i < s->n_ends; i++)
        if (s->ends[i] == id) return true;
    return false;
}

static bool names(const char *name, struct chat_text text) {
    return chat_text_equal(chat_text_of(name), text);
}

bool api_site_serves(const struct api_site *s, struct chat_text model) {
    if (!s->strict_model || !model.len || names(s->model_id, model)) return true;
    for (int i = 0; i < s->n_aliases; i++)
        if (names(s->aliases[i], model)) return true;
    return false;
}

/* ---- life ---- */

int api_site_new(struct api_site **out, const struct api_site_config *c, struct err *e) {
    struct api_site *s = xcalloc(1, sizeof *s);
    *out = NULL;
    s->tokenizer = c->tokenizer;
    snprintf(s->model_name, sizeof s->model_name, "%s", c->info.model);
    if (c->model_id) snprintf(s->model_id, sizeof s->model_id, "%s", c->model_id);
    else make_id(s->model_id, c->info.model);
    for (int i = 0; i < c->n_aliases && i < API_ALIASES_MAX; i++)
        snprintf(s->aliases[s->n_aliases++], API_NAME_MAX, "%s", c->aliases[i]);
    s->strict_model = c->strict_model;
    s->inline_thinking = c->inline_thinking;
    s->loose_markup = c->loose_markup;
    s->defaults = c->defaults;
    s->max_tokens = c->max_tokens;
    s->temperature = c->temperature, s->top_p = c->top_p, s->min_p = c->min_p, s->top_k = c->top_k;
    s->n_ctx = c->info.n_ctx;
    s->n_vocab = c->info.n_vocab;
    s->created_s = c->info.created_s;
    make_fingerprint(s);
    find_ends(s);
    s->memory = c->memory;
    s->own_memory = !c->memory;
    int rc = s->memory ? 0 : api_memory_new(&s->memory, 0, e);
    if (rc == 0 && c->steer) rc = guide_vocab_new(&s->vocab, s->tokenizer, e);
    if (rc < 0) {
        api_site_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void api_site_free(struct api_site *s) {
    if (!s) return;
    if (s->own_memory) api_memory_free(s->memory);
    guide_vocab_free(s->vocab);
    free(s);
}

/* ---- calls as they were written ---- */

void api_site_recall(const struct api_site *s, struct api_request *r) {
    api_memory_recall(s->memory, r);
}

void api_site_remember(const struct api_site *s, const struct chat_text *ids, size_t n_ids,
                       struct chat_text block) {
    api_memory_remember(s->memory, ids, n_ids, block);
}

void api_site_memory(const struct api_site *s, struct replay_stats *out) {
    *out = api_memory_stats(s->memory);
}

/* ---- models ---- */

static void put_date(struct buf *out, int64_t unix_s) {
    time_t t = (time_t)unix_s;
    struct tm tm;
    char text[32] = "";
    if (gmtime_r(&t, &tm)) strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    buf_printf(out, "\"%s\"", text);
}

static void put_model(const struct api_site *s, const char *id, struct buf *out) {
    buf_add_text(out, "{\"id\":");
    chat_json_put_quoted(out, chat_text_of(id));
    buf_printf(out,
               ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"local\",\"type\":\"model\","
               "\"display_name\":",
               (long long)s->created_s);
    chat_json_put_quoted(out, chat_text_of(s->model_name[0] ? s->model_name : id));
    buf_add_text(out, ",\"created_at\":");
    put_date(out, s->created_s);
    buf_printf(out, ",\"context_length\":%u,\"max_model_len\":%u,\"max_output_tokens\":%u}",
               s->n_ctx, s->n_ctx, s->max_tokens ? MIN(s->max_tokens, s->n_ctx) : s->n_ctx);
}

void api_site_put_models(const struct api_site *s, struct buf *out) {
    const char *last = s->n_aliases ? s->aliases[s->n_aliases - 1] : s->model_id;
    buf_add_text(out, "{\"object\":\"list\",\"data\":[");
    put_model(s, s->model_id, out);
    for (int i = 0; i < s->n_aliases; i++) {
        buf_add_char(out, ',');
        put_model(s, s->aliases[i], out);
    }
    buf_add_text(out, "],\"has_more\":false,\"first_id\":");
    chat_json_put_quoted(out, chat_text_of(s->model_id));
    buf_add_text(out, ",\"last_id\":");
    chat_json_put_quoted(out, chat_text_of(last));
    buf_add_char(out, '}');
}

int api_site_put_model(const struct api_site *s, struct chat_text id, struct buf *out) {
    const char *found = names(s->model_id, id) ? s->model_id : NULL;
    for (int i = 0; i < s->n_aliases && !found; i++)
        if (names(s->aliases[i], id)) found = s->aliases[i];
    if (!found) return ERR_NOTFOUND;
    put_model(s, found, out);
    return 0;
}
