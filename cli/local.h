/* local - the stage in the coordinator's own process: a node on a thread of its own, reached over inproc.
 *
 *     struct service_config config = { .local_stage = true, .local = &local_stage, .model_path = ... };
 *
 * The coordinator may not know the node's code; this is where the two meet. */
#ifndef CLI_LOCAL_H
#define CLI_LOCAL_H

#include "coordinator/service.h"

extern const struct service_local local_stage;

#endif
