#include "node/experts_lead.h"

#include "common/base/check.h"
#include "node/experts.h"

#include <stdlib.h>

struct experts_lead {
    struct stage_experts config;
    struct kernels *k;
    uint32_t n_embd, n_used, n_part, own_i;
    struct stage_range range[EXPERTS_PARTS_MAX];   /* ascending */
    uint32_t helper_of[EXPERTS_PARTS_MAX];         /* of each part that is not our own */
    float *part[EXPERTS_PARTS_MAX], *rows, *weights, *work;    /* work: of the sum of one row */
    int32_t *ids;
    bool asked;
    int rc;
    struct err err;
};

static void put_parts(struct experts_lead *l) {
    uint32_t at = 0;
    for (l->n_part = 0; l->n_part <= l->config.n_helper; l->n_part++) {
        struct stage_range r = l->config.own;
        l->own_i = r.begin == at ? l->n_part : l->own_i;
        for (uint32_t i = 0; i < l->config.n_helper; i++) {
            if (l->config.helper[i].begin != at) continue;
            r = l->config.helper[i];
            l->helper_of[l->n_part] = i;
        }
        l->range[l->n_part] = r;
        at = r.end;
    }
}

int experts_lead_new(struct experts_lead **out, struct kernels *k, const struct hparams *hp,
                     const struct stage_experts *config, uint32_t n_rows_max, struct err *e) {
    *out = NULL;
    int rc = experts_check(config, hp->n_expert, e);
    if (rc < 0) return rc;
    struct experts_lead *l = xcalloc(1, sizeof *l);
    *l = (struct experts_lead){
        .config = *config, .k = k, .n_embd = hp->n_embd, .n_used = hp->n_expert_used
    };
    put_parts(l);
    uint64_t n = (uint64_t)n_rows_max * hp->n_embd, n_ids = (uint64_t)n_rows_max * hp->n_expert_used;
    l->rows = malloc(n * sizeof *l->rows);
    l->weights = malloc(n_ids * sizeof *l->weights);
    l->ids = malloc(n_ids * sizeof *l->ids);
    l->work = malloc((uint64_t)l->n_part * hp->n_embd * sizeof *l->work);
    bool fine = l->rows && l->weights && l->ids && l->work;
    for (uint32_t i = 0; i < l->n_part; i++) fine &= (l->part[i] = malloc(n * sizeof *l->part[i])) != NULL;
    *out = l;
    if (fine) return 0;
    experts_lead_free(l);
    *out = NULL;
    return err_set(e, ERR_NOMEM, "no memory for the rows of %u expert helpers", config->n_helper);
}

void experts_lead_free(struct experts_lead *l) {
    if (!l) return;
    for (uint32_t i = 0; i < EXPERTS_PARTS_MAX; i++) free(l->part[i]);
    free(l->rows);
    free(l->weights);
    free(l->ids);
    free(l->work);
    free(l);
}

void experts_lead_begin(struct experts_lead *l) {
    if (l) l->rc = 0;
}

static void fetch(struct experts_lead *l, void *to, const struct tensor *from, uint64_t n) {
    if (l->rc == 0) l->rc = kernels_download(l->k, to, from->data, n * 4, &l->err);
}

void experts_lead_ask(struct experts_lead *l, uint32_t layer, const struct tensor *x,
                      const struct tensor *weights, const struct tensor *ids, int32_t n) {
    l->asked = false;
    fetch(l, l->rows, x, (uint64_t)n * l->n_embd);
    fetch(l, l->weights, weights, (uint64_t)n * l->n_used);
    fetch(l, l->ids, ids, (uint64_t)n * l->n_used);
    if (l->rc < 0) return;
    l->rc = l->config.ask(l->config.ctx, layer, (uint32_t)n, l->rows, l->weights, l->ids, &l->err);
    l->asked = l->rc == 0;
}

/* Every question ends here, also after another one failed. */
void experts_lead_sum(struct experts_lead *l, struct tensor *y, int32_t n) {
    if (!l->asked) return;
    l->asked = false;
    for (uint32_t i = 0; i < l->n_part; i++) {
        struct err e;
        if (i == l->own_i) continue;
        int rc = l->config.wait(l->config.ctx, l->helper_of[i], l->part[i], &e);
        if (rc < 0 && l->rc == 0) l->rc = rc, l->err = e;
    }
    fetch(l, l->part[l->own_i], y, (uint64_t)n * l->n_embd);
    if (l->rc < 0) return;
    const float *part[EXPERTS_PARTS_MAX];
    for (uint32_t i = 0; i < l->n_part; i++) part[i] = l->part[i];
    experts_sum(l->rows, part, l->range, l->n_part, l->ids, l->n_used, (uint32_t)n, l->n_embd, l->work);
    l->rc = kernels_upload(l->k, y->data, l->rows, (uint64_t)n * l->n_embd * sizeof(float), &l->err);
}

int experts_lead_result(struct experts_lead *l, struct err *e) {
    if (!l || l->rc == 0) return 0;
    return err_set(e, l->rc, "%s", l->err.text);
}
