/* api_site - what all requests share: the model, its names, the defaults, and the memory of tool calls.
 *
 * Made once when the model is known; immutable afterwards but for the memory of tool calls
 * (api_memory.h). Any thread. */
#ifndef COORDINATOR_API_SITE_H
#define COORDINATOR_API_SITE_H

#include "coordinator/api_error.h"
#include "coordinator/api_request.h"
#include "coordinator/service.h"

enum { API_NAME_MAX = 128, API_ALIASES_MAX = 32, API_ENDS_MAX = 16 };

struct api_site_config {                          /* borrowed for the call */
    const struct tokenizer *tokenizer;            /* must outlive the site */
    struct service_info info;                     /* model, context, vocabulary, start */
    const char *model_id;                         /* NULL: from the model's own name */
    const char *const *aliases;
    int n_aliases;
    bool strict_model, inline_thinking, loose_markup;
    struct api_defaults defaults;
    uint32_t max_tokens;                          /* 0: up to the context */
    double temperature, top_p, min_p;
    int top_k;
    bool steer;                                   /* guides for tools and formats */
    struct api_memory *memory;                    /* outlives the site; NULL: one of its own */
};

struct api_site {
    const struct tokenizer *tokenizer;
    char model_id[API_NAME_MAX], model_name[API_NAME_MAX], fingerprint[24];
    char aliases[API_ALIASES_MAX][API_NAME_MAX];
    int n_aliases;
    bool strict_model, inline_thinking, loose_markup, own_memory;
    struct api_defaults defaults;
    uint32_t max_tokens, n_ctx, n_vocab;
    double temperature, top_p, min_p;
    int top_k;
    int64_t created_s;
    int32_t think, think_end, dsml;               /* tokens of the protocol; -1: none */
    int32_t ends[API_ENDS_MAX];                   /* those that end an answer */
    uint32_t n_ends;
    struct api_memory *memory;
    struct guide_vocab *vocab;                    /* NULL: nothing is steered */
};

int api_site_new(struct api_site **out, const struct api_site_config *c, struct err *e);
void api_site_free(struct api_site *s);           /* NULL is fine */

/* Whether a request for this model is for us; false only with strict_model. */
bool api_site_serves(const struct api_site *s, struct chat_text model);
bool api_site_ends(const struct api_site *s, int32_t id);

/* Calls as the model wrote them: into a request's history, and from an answer. Both may be no-ops. */
void api_site_recall(const struct api_site *s, struct api_request *r);
void api_site_remember(const struct api_site *s, const struct chat_text *ids, size_t n_ids,
                       struct chat_text block);

struct replay_stats;
void api_site_memory(const struct api_site *s, struct replay_stats *out);

/* GET /v1/models and /v1/models/ID: 0, or ERR_NOTFOUND. */
void api_site_put_models(const struct api_site *s, struct buf *out);
int api_site_put_model(const struct api_site *s, struct chat_text id, struct buf *out);

#endif
