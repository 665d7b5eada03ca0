/* service_sample - the next token of a row, as the core asks for it: candidates or a whole row in, the
 * request's parameters, history and guide applied, one token out. */
#include "coordinator/service_private.h"

#include "common/sys/clock.h"

#include <math.h>

/* Once per token, however often the row has to be fetched. */
static void steer(struct entry *t) {
    if (t->steered || !t->guide) return;
    t->steer = (struct service_steer){ 0 };
    t->guide->next(t->guide, &t->steer);
    t->steered = true;
}

static struct sampler_params params_of(const struct entry *t) {
    struct sampler_params p = t->sampling;
    if (t->steer.greedy) p.temperature = 0;
    p.allowed = t->steer.allowed;
    return p;
}

/* Numbers of another machine: in order, finite, tokens of this vocabulary. */
static int items_read(struct service *s, const struct msg_row_result *row, const uint8_t *data) {
    uint32_t n_vocab = s->hp.n_vocab;
    if (row->n_item == 0 || row->n_item > n_vocab || row->bytes != row->n_item * sizeof(struct msg_item) ||
        row->left_id < 0 || (uint32_t)row->left_id >= n_vocab)
        return ERR_CORRUPT;
    for (uint32_t i = 0; i < row->n_item; i++) {
        struct msg_item item;
        memcpy(&item, data + i * sizeof item, sizeof item);
        if (item.id < 0 || (uint32_t)item.id >= n_vocab || !isfinite(item.logit)) return ERR_CORRUPT;
        s->item[i] = (struct sampler_item){ item.id, item.logit };
        const struct sampler_item *last = i ? &s->item[i - 1] : NULL;
        if (last && (last->logit < item.logit || (last->logit == item.logit && last->id >= item.id)))
            return ERR_CORRUPT;
    }
    return 0;
}

static int pick(struct service *s, const struct sampler_params *p, const struct sampler_history *history,
                const struct coord_sample *in, struct sampler_result *out, struct err *e) {
    const struct msg_row_result *row = in->row;
    if (!in->payload.generation || row->n_vocab != s->hp.n_vocab) return ERR_CORRUPT;
    const uint8_t *data = (const uint8_t *)slots_data(s->slots, in->payload) + row->offset;
    if (row->whole) {
        if (row->bytes != row->n_vocab * sizeof(float) || (uintptr_t)data % sizeof(float)) return ERR_CORRUPT;
        return sampler_pick(&s->sampler, (const float *)(const void *)data, p, history, in->position, out,
                            e);
    }
    int rc = items_read(s, row, data);
    if (rc < 0) return rc;
    struct sampler_candidates c = { .item = s->item,
                                    .n_item = (int)row->n_item,
                                    .n_vocab = (int)row->n_vocab,
                                    .left = { row->left_id, row->left_logit },
                                    .temperature = row->temperature,
                                    .sum = row->sum,
                                    .lse = row->lse };
    return sampler_pick_from(&s->sampler, &c, p, history, in->position, out, e);
}

/* The token of the prompt as if it were the only one allowed: chosen, with what the model thinks of it. The
 * stage has shipped it, wherever in the order it stands. */
static int score(struct service *s, struct entry *t, const struct coord_sample *in, struct err *e) {
    struct sampler_params p;
    struct sampler_result result;
    uint64_t *word = &s->only[in->token >> 6];
    sampler_params_init(&p);
    p.temperature = 0;
    p.logprobs = true;
    p.n_top = t->sampling.n_top;
    p.allowed = s->only;
    *word = (uint64_t)1 << (in->token & 63);
    int rc = pick(s, &p, NULL, in, &result, e);
    *word = 0;
    if (rc == 0 && result.id != in->token) rc = ERR_CORRUPT;
    if (rc == 0) entry_score(t, &result, in->position);
    return rc == SAMPLER_NEED_MORE ? ERR_CORRUPT : rc;
}

static bool ends(struct entry *t, int32_t id) {
    for (uint32_t i = 0; i < t->n_end_id; i++)
        if (t->end_id[i] == id) return true;
    return false;
}

static int choose(struct service *s, struct entry *t, const struct coord_sample *in,
                  struct coord_sampled *out, struct err *e) {
    steer(t);
    struct sampler_params p = params_of(t);
    int rc = pick(s, &p, t->has_history ? &t->history : NULL, in, &t->result, e);
    if (rc == SAMPLER_NEED_MORE) rc = COORD_NEED_MORE;
    if (rc == 0 && t->has_history) rc = sampler_history_add(&t->history, t->result.id, true);
    if (rc == 0) {
        t->ended = ends(t, t->result.id);
        if (t->guide && t->guide->accept(t->guide, t->result.id)) t->ended = true;
        t->steered = false;
        t->steer = (struct service_steer){ 0 };
        out->token = t->result.id;
        out->end = t->ended;
    }
    return rc;
}

int service_sample(void *ctx, const struct coord_sample *in, struct coord_sampled *out) {
    struct service *s = ctx;
    struct entry *t = entry_of_tag(in->tag);
    uint64_t start = clock_now_ns();
    struct err e = { 0 };
    int rc = in->known ? score(s, t, in, &e) : choose(s, t, in, out, &e);
    out->spent_us = (uint32_t)((clock_now_ns() - start) / 1000);
    return rc;
}
