#include "node/stage.h"

#include "common/base/check.h"

void stage_close(struct stage *s) {
    if (s) s->ops->close(s);
}

int stage_seq_open(struct stage *s, uint32_t *slot, struct err *e) {
    return s->ops->seq_open(s, slot, e);
}

void stage_seq_close(struct stage *s, uint32_t slot) {
    s->ops->seq_close(s, slot);
}

uint32_t stage_seq_len(const struct stage *s, uint32_t slot) {
    return s->ops->seq_len(s, slot);
}

int stage_seq_rollback(struct stage *s, uint32_t slot, uint32_t n_tokens, struct err *e) {
    return s->ops->seq_rollback(s, slot, n_tokens, e);
}

int stage_seq_fork(struct stage *s, uint32_t from, uint32_t n_tokens, uint32_t *slot, struct err *e) {
    return s->ops->seq_fork(s, from, n_tokens, slot, e);
}

int stage_seq_save(struct stage *s, uint32_t slot, struct buf *out, struct err *e) {
    return s->ops->seq_save(s, slot, out, e);
}

int stage_seq_restore(struct stage *s, const void *data, size_t size, uint32_t *slot, struct err *e) {
    return s->ops->seq_restore(s, data, size, slot, e);
}

static int segs_check(const struct stage *s, const struct stage_seg *segs, uint32_t n_seg,
                      uint32_t n_rows, struct err *e) {
    uint32_t rows = 0;
    for (uint32_t i = 0; i < n_seg; i++) {
        if (segs[i].n == 0 || segs[i].n > s->n_rows_max - rows)
            return err_set(e, ERR_INVALID, "a batch of more than %u rows, or an empty segment",
                           s->n_rows_max);
        for (uint32_t j = 0; j < i; j++)
            if (segs[j].slot == segs[i].slot)
                return err_set(e, ERR_INVALID, "sequence %u is twice in one batch", segs[i].slot);
        for (uint32_t t = 0; t < segs[i].n; t++)
            if (segs[i].token[t] < 0 || (uint32_t)segs[i].token[t] >= s->hp.n_vocab)
                return err_set(e, ERR_INVALID,
                               "token id %d is out of range (the vocabulary has %u)",
                               segs[i].token[t], s->hp.n_vocab);
        rows += segs[i].n;
    }
    CHECK(rows == n_rows);
    return rows ? 0 : err_set(e, ERR_INVALID, "an empty batch");
}

int stage_run(struct stage *s, const struct stage_batch *batch, struct err *e) {
    int rc = segs_check(s, batch->segs, batch->n_seg, batch->n_rows, e);
    if (rc < 0) return rc;
    CHECK(s->has_embed ? !batch->x_in : batch->x_in != NULL);
    CHECK(batch->n_logits == 0 || s->has_head);
    return s->ops->run(s, batch, e);
}

int stage_run_mtp(struct stage *s, const struct stage_mtp_batch *batch, struct err *e) {
    if (!s->has_mtp) return err_set(e, ERR_UNSUPPORTED, "no MTP block is loaded");
    int rc = segs_check(s, batch->segs, batch->n_seg, batch->n_rows, e);
    return rc < 0 ? rc : s->ops->run_mtp(s, batch, e);
}
