/* experts - the routed experts of a stage on several machines: who holds which, how their sums become
 * one, and the share of a helper.
 *
 * The sum over a row's experts is a binary tree over expert numbers (kernels.h, moe_experts). An
 * aligned power-of-two range of numbers is one branch of it, so each machine holds such a range, gives
 * one partial sum per row, and the lead goes on with the tree: the bits are those of one machine. A row
 * without experts in a range has no partial sum there (what came for it is not looked at). struct
 * experts is the helper's share, on its device; one thread at a time. */
#ifndef NODE_EXPERTS_H
#define NODE_EXPERTS_H

#include "node/stage.h"

enum { EXPERTS_PARTS_MAX = STAGE_HELPERS_MAX + 1 };

bool experts_range_is_branch(uint32_t begin, uint32_t end);    /* aligned, a power of two long */
/* Own range and helpers' together: branches, ascending, without gaps, all experts. */
int experts_check(const struct stage_experts *x, uint32_t n_expert, struct err *e);

/* out[row] = tree over part[p][row], p a range with experts of the row. Parts ascend; out may be one of
 * them. ids: [n_row][n_used], ascending per row. work: room for one row of each part. */
void experts_sum(float *out, const float *const *part, const struct stage_range *range, uint32_t n_part,
                 const int32_t *ids, uint32_t n_used, uint32_t n_row, uint32_t width, float *work);

/* ---- the helper ---- */

struct experts;

struct experts_config {
    const char *model_path;                        /* whole, or a shard with these experts */
    uint32_t layer_begin, layer_end, expert_begin, expert_end;
    uint32_t n_rows_max;
    struct kernels_config kernels;
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
};

int experts_open(struct experts **out, const struct experts_config *config, struct err *e);
void experts_close(struct experts *x);             /* NULL is fine */
/* sums[n_row][n_embd] of rows[n_row][n_embd] with weights and ids [n_row][n_used]. */
int experts_run(struct experts *x, uint32_t layer, uint32_t n_row, uint32_t n_used, const float *rows,
                const float *weights, const int32_t *ids, float *sums, struct err *e);
const struct hparams *experts_hparams(const struct experts *x);
struct stage_memory experts_memory(const struct experts *x);

#endif
