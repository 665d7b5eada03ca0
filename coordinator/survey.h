/* survey - links between nodes are measured before the plan that needs the figures.
 *
 *   plan is due, somebody is new      all answered, or time is up              every round is over
 *     ------------------------> round trips* -----------------> bytes, round 1* ... round n* -----> plan
 *                               (everybody to everybody:        (i to i + r: each sends to one and
 *                                a few small messages)           receives from one at a time)
 *
 * Part of the coordinator core, and only while no plan holds, so it disturbs nobody. The coordinator takes
 * part as a place that is measured. Pairs whose bytes are known are left out. Limits: survey_ms for all of
 * it before the first plan and a third of that before later ones, SURVEYS_MAX before each try at a plan;
 * what is not known by then is the planner's to guess. */
#ifndef COORDINATOR_SURVEY_H
#define COORDINATOR_SURVEY_H

#include "coordinator/core.h"

enum { SURVEYS_MAX = 3, SURVEY_ROUND_MS = 1500, SURVEY_SLACK_MS = 200 };

struct survey {
    bool active;
    uint32_t id;                                  /* of the round; comes back with LINKS */
    uint32_t round, n_made;                       /* 0: round trips. n_made: since the last try at a plan */
    uint32_t *member, n_member;                   /* places in the cluster's table */
    bool *waits;                                  /* for the answer of that member */
    struct msg_hop *all, *one;                    /* of messages: every member and us; one per member */
    uint64_t until_ns, round_until_ns;
};

struct coord;
struct coord_node;

void survey_init(struct coord *c);
void survey_deinit(struct coord *c);
/* True: the plan has to wait; begins a survey where one is due, and goes on with it. */
bool survey_holds(struct coord *c, struct coord_outs *outs);
void survey_on_links(struct coord *c, const struct coord_node *n, uint32_t id);
void survey_forget(struct coord *c);              /* a plan is tried */

#endif
