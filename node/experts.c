#include "node/experts.h"

#include "common/base/check.h"
#include "node/weights.h"

#include <stdlib.h>

bool experts_range_is_branch(uint32_t begin, uint32_t end) {
    uint32_t n = end - begin;
    return begin < end && (n & (n - 1)) == 0 && begin % n == 0;
}

int experts_check(const struct stage_experts *x, uint32_t n_expert, struct err *e) {
    uint32_t at = 0;
    if (x->n_helper > STAGE_HELPERS_MAX) return err_set(e, ERR_LIMIT, "%u helpers", x->n_helper);
    for (uint32_t found = 0; at < n_expert; found = 0) {
        struct stage_range r = x->own;
        for (uint32_t i = 0; i <= x->n_helper && !found; i++) {
            r = i < x->n_helper ? x->helper[i] : x->own;
            found = r.begin == at;
        }
        if (!found) return err_set(e, ERR_INVALID, "nobody holds expert %u of %u", at, n_expert);
        if (!experts_range_is_branch(r.begin, r.end) || r.end > n_expert)
            return err_set(e, ERR_INVALID, "experts %u to %u of %u are no aligned power of two",
                           r.begin, r.end, n_expert);
        at = r.end;
    }
    return 0;
}

/* ---- the sum ---- */

static bool has_id(const int32_t *ids, uint32_t n, const struct stage_range *r, int32_t *first) {
    for (uint32_t i = 0; i < n; i++) {
        *first = ids[i];
        if ((uint32_t)ids[i] >= r->begin && (uint32_t)ids[i] < r->end) return true;
    }
    return false;
}

static void add(float *to, const float *other, uint32_t width) {
    for (uint32_t d = 0; d < width; d++) to[d] += other[d];
}

/* Neighbours that share the most high bits first, as inside a range. `work` holds the sums: a partial
 * sum is added to only in there. */
static void sum_row(float *out, const float **part, const int32_t *id, uint32_t n, uint32_t width,
                    float *work) {
    int32_t key[EXPERTS_PARTS_MAX];
    float *sum[EXPERTS_PARTS_MAX];
    for (uint32_t i = 0; i < n; i++) {
        key[i] = id[i];
        sum[i] = work + (uint64_t)i * width;
        memcpy(sum[i], part[i], width * sizeof(float));
    }
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; i++)
            if ((key[i] ^ key[i + 1]) < (key[best] ^ key[best + 1])) best = i;
        add(sum[best], sum[best + 1], width);
        for (uint32_t i = best + 1; i + 1 < n; i++) {
            sum[i] = sum[i + 1];
            key[i] = key[i + 1];
        }
        n--;
    }
    if (n) memcpy(out, sum[0], width * sizeof(float));
    else memset(out, 0, width * sizeof(float));
}

void experts_sum(float *out, const float *const *part, const struct stage_range *range, uint32_t n_part,
                 const int32_t *ids, uint32_t n_used, uint32_t n_row, uint32_t width, float *work) {
    CHECK(n_part <= EXPERTS_PARTS_MAX);
    for (uint32_t row = 0; row < n_row; row++) {
        const float *has[EXPERTS_PARTS_MAX];
        int32_t id[EXPERTS_PARTS_MAX];
        uint32_t n = 0;
        for (uint32_t p = 0; p < n_part; p++)
            if (has_id(ids + (uint64_t)row * n_used, n_used, &range[p], &id[n]))
                has[n++] = part[p] + (uint64_t)row * width;
        sum_row(out + (uint64_t)row * width, has, id, n, width, work);
    }
}

/* ---- the helper ---- */

struct experts {
    struct gguf *g;
    struct hparams hp;
    struct kernels *k;
    struct weights *w;
    uint32_t n_rows_max;
    struct kmem *mem;
    uint64_t mem_bytes;
    struct tensor x, out, weights, ids;
};

static struct tensor lay(uint8_t **at, enum dtype type, uint32_t row, uint32_t rows, struct kmem *mem) {
    struct tensor t = { .data = *at, .mem = mem, .type = type, .ne = { row, rows, 1 } };
    *at += ALIGN_UP((uint64_t)row * rows * 4, (uint64_t)256);
    return t;
}

static int open_work(struct experts *x, struct err *e) {
    uint32_t n = x->n_rows_max, used = x->hp.n_expert_used;
    void *data;
    x->mem_bytes = 2 * ALIGN_UP((uint64_t)n * x->hp.n_embd * 4, (uint64_t)256) +
                   2 * ALIGN_UP((uint64_t)n * used * 4, (uint64_t)256);
    x->mem = kernels_alloc(x->k, x->mem_bytes, &data, e);
    if (!x->mem) return ERR_NOMEM;
    uint8_t *at = data;
    x->x = lay(&at, DTYPE_F32, x->hp.n_embd, n, x->mem);
    x->out = lay(&at, DTYPE_F32, x->hp.n_embd, n, x->mem);
    x->weights = lay(&at, DTYPE_F32, used, n, x->mem);
    x->ids = lay(&at, DTYPE_I32, used, n, x->mem);
    return 0;
}

int experts_open(struct experts **out, const struct experts_config *c, struct err *e) {
    struct weights_range range = { .layer_begin = c->layer_begin,
                                   .layer_end = c->layer_end,
                                   .expert_begin = c->expert_begin,
                                   .expert_end = c->expert_end,
                                   .experts_only = true };
    struct experts *x = xcalloc(1, sizeof *x);
    *out = NULL;
    x->n_rows_max = c->n_rows_max;
    int rc = gguf_open(&x->g, c->model_path, e);
    if (rc == 0) rc = hparams_read(&x->hp, x->g, e);
    if (rc == 0 && (c->layer_begin >= c->layer_end || c->layer_end > x->hp.n_layer))
        rc = err_set(e, ERR_INVALID, "layers %u to %u of a model with %u", c->layer_begin, c->layer_end,
                     x->hp.n_layer);
    if (rc == 0 && !experts_range_is_branch(c->expert_begin, c->expert_end))
        rc = err_set(e, ERR_INVALID, "experts %u to %u are no aligned power of two",
                     c->expert_begin, c->expert_end);
    if (rc == 0) rc = kernels_open(&x->k, &c->kernels, e);
    if (rc == 0) rc = weights_open(&x->w, x->k, x->g, &x->hp, &range, c->progress, c->progress_ctx, e);
    if (rc == 0) rc = open_work(x, e);
    if (rc < 0) {
        experts_close(x);
        return rc;
    }
    *out = x;
    return 0;
}

void experts_close(struct experts *x) {
    if (!x) return;
    if (x->k) {
        if (x->mem) kernels_release(x->k, x->mem);
        weights_close(x->w, x->k);
        kernels_close(x->k);
    }
    gguf_close(x->g);
    free(x);
}

static int check_ids(const struct experts *x, const int32_t *ids, uint64_t n, struct err *e) {
    for (uint64_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= x->hp.n_expert)
            return err_set(e, ERR_CORRUPT, "a row asks for expert %d of %u", ids[i], x->hp.n_expert);
    return 0;
}

int experts_run(struct experts *x, uint32_t layer, uint32_t n_row, uint32_t n_used, const float *rows,
                const float *weights, const int32_t *ids, float *sums, struct err *e) {
    if (layer < x->w->layer_begin || layer >= x->w->layer_end || n_row == 0 || n_row > x->n_rows_max ||
        n_used != x->hp.n_expert_used)
        return err_set(e, ERR_INVALID, "layer %u, %u rows, %u experts each", layer, n_row, n_used);
    const struct layer_weights *w = &x->w->layer[layer];
    uint64_t n_x = (uint64_t)n_row * x->hp.n_embd, n_ids = (uint64_t)n_row * n_used;
    int rc = check_ids(x, ids, n_ids, e);
    if (rc == 0) rc = kernels_upload(x->k, x->x.data, rows, n_x * sizeof *rows, e);
    if (rc == 0) rc = kernels_upload(x->k, x->weights.data, weights, n_ids * sizeof *weights, e);
    if (rc == 0) rc = kernels_upload(x->k, x->ids.data, ids, n_ids * sizeof *ids, e);
    if (rc < 0) return rc;
    kernels_moe_experts(x->k, &(struct moe_experts_args){ .out = &x->out,
                                                          .x = &x->x,
                                                          .ids = &x->ids,
                                                          .weights = &x->weights,
                                                          .gate = &w->ffn_gate_exps,
                                                          .up = &w->ffn_up_exps,
                                                          .down = &w->ffn_down_exps,
                                                          .clamp = x->hp.swiglu_clamp_exp[layer],
                                                          .n = (int32_t)n_row,
                                                          .n_used = (int32_t)n_used,
                                                          .e_begin = (int32_t)x->w->expert_begin,
                                                          .e_end = (int32_t)x->w->expert_end });
    rc = kernels_download(x->k, sums, x->out.data, n_x * sizeof *sums, e);
    int rc_finish = kernels_finish(x->k, rc < 0 ? NULL : e);
    return rc < 0 ? rc : rc_finish;
}

const struct hparams *experts_hparams(const struct experts *x) {
    return &x->hp;
}

struct stage_memory experts_memory(const struct experts *x) {
    return (struct stage_memory){ .weights = x->w->bytes, .work = x->mem_bytes };
}
