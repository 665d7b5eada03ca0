/* plan_parts - what the cost model (plan_cost.c) tells the search (plan.c). Private to them and
 * plan_evaluate. */
#ifndef MODEL_PLAN_PARTS_H
#define MODEL_PLAN_PARTS_H

#include "common/model/plan.h"

struct plan_work {                                     /* what a batch does in one layer */
    double bytes, int8, f32;
};

enum plan_kind { PLAN_DECODE, PLAN_PREFILL };          /* rows of different streams; of one and the same */

/* Everything of the layer but its routed experts, and one layer's experts when a machine holds all of
 * them. */
struct plan_work plan_work_dense(const struct plan_model *m, uint32_t layer, enum plan_kind kind,
                                 double rows, uint64_t depth);
struct plan_work plan_work_experts(const struct plan_model *m, uint32_t layer, double rows);
struct plan_work plan_work_head(const struct plan_model *m, double rows);
struct plan_work plan_work_add(struct plan_work a, struct plan_work b, double times_b);

double plan_seconds(const struct plan_machine *p, struct plan_work w);         /* without the fixed cost */
double plan_layer_seconds(const struct plan_model *m, const struct plan_machine *p, uint32_t layer,
                          enum plan_kind kind, double rows,
                          uint64_t depth); /* with it; all experts here */

/* One layer of a stage with n_helper helpers, as seen by one of them. */
struct plan_helped { double dense, here, way, there; };
struct plan_helped plan_helped(const struct plan_model *m, const struct plan_machine *lead,
                               const struct plan_machine *helper, const struct plan_link *link,
                               uint32_t n_helper, uint32_t n_each, uint32_t layer, enum plan_kind kind,
                               double rows, uint64_t depth);
static inline double plan_helped_seconds(struct plan_helped h) {
    double there = h.way + h.there;
    return h.dense + (h.here > there ? h.here : there);
}

/* streams: on the wire */
double plan_send_seconds(const struct plan_model *m, const struct plan_link *link, double rows);
double plan_result_seconds(const struct plan_link *link, double rows);
/* What fetching its weights of a layer adds to a token, see PLAN_FETCH_TOKENS: of a machine with this share
 * of the experts, with everything else or (a helper) without; and embedding and head. */
double plan_fetch_layer(const struct plan_model *m, const struct plan_machine *p, uint32_t layer,
                        double share, bool rest);
double plan_fetch_ends(const struct plan_machine *p, bool embed, bool head);
double plan_groups(const struct plan_options *o, uint32_t n_stage);

int plan_check_input(const struct plan_model *m, const struct plan_cluster *c,
                     const struct plan_options *o, struct err *e);

#endif
