/* launch - what the next batch carries: decode rows of the streams whose turn it is, and as many rows of
 * prompts as those streams can bear (scheduler.h says how many that is).
 *
 * A batch is filled in the order of choice and then sorted by sequence, as stages want it. Choosing takes
 * the requests out of their lists (request_sent). Part of the pipeline, which owns the flights. */
#ifndef COORDINATOR_LAUNCH_H
#define COORDINATOR_LAUNCH_H

#include "coordinator/core.h"

struct coord;
struct flight;

/* Fills segments, tokens and wanted rows. false: nothing may go now, and nothing has changed. */
bool launch_choose(struct coord *c, struct flight *f);

#endif
