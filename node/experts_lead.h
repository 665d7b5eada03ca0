/* experts_lead - the lead's side of experts on several machines, between the schedule of a layer and
 * whoever asks the helpers (stage_experts in stage.h).
 *
 * Owns the host copies of a layer's rows, routing and partial sums. Calls between begin and result
 * never fail; the first error is kept, nobody is asked after it, and result says it. Belongs to the
 * stage's thread. */
#ifndef NODE_EXPERTS_LEAD_H
#define NODE_EXPERTS_LEAD_H

#include "node/stage.h"

struct experts_lead;

int experts_lead_new(struct experts_lead **out, struct kernels *k, const struct hparams *hp,
                     const struct stage_experts *config, uint32_t n_rows_max, struct err *e);
void experts_lead_free(struct experts_lead *l);    /* NULL is fine */

void experts_lead_begin(struct experts_lead *l);   /* a batch; NULL is fine, as in result */
/* The helpers begin; x [n_embd, n], weights and ids [n_used, n] on the device. */
void experts_lead_ask(struct experts_lead *l, uint32_t layer, const struct tensor *x,
                      const struct tensor *weights, const struct tensor *ids, int32_t n);
/* y: the own partial sums in, the sums over all experts out. */
void experts_lead_sum(struct experts_lead *l, struct tensor *y, int32_t n);
int experts_lead_result(struct experts_lead *l, struct err *e);

#endif
