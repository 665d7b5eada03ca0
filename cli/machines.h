/* machines - descriptions of machines and links for the planner, from options or from a JSON file:
 *
 *   { "machines": [ { "name": "a", "backend": "metal", "memory": "128G", "bandwidth": "400G",
 *                     "int8": "20T", "f32": "10T", "layer_us": 20 } ],
 *     "link": { "latency_ms": 0.3, "bandwidth": "2.5G" },
 *     "links": [ { "from": "a", "to": "b", "latency_ms": 0.1, "bandwidth": "5G" } ] }
 *
 * "link" is for all that are not named in "links"; those hold both ways, and "to" may be "coordinator".
 * Quantities are numbers or texts; K M G T are powers of 1024 for memory and of 1000 for rates. Rates that
 * are left out follow from the bandwidth. Main thread; limits are those of struct plan_cluster. */
#ifndef CLI_MACHINES_H
#define CLI_MACHINES_H

#include "common/model/plan.h"

int machines_read_file(struct plan_cluster *c, const char *path, struct err *e);       /* sets all links */
/* The nodes of a running service, from its status document: what they measured of themselves and of links. */
int machines_read_status(struct plan_cluster *c, const char *document, size_t size, struct err *e);

/* "name,mem=128G,bw=400G". Links come after all machines. */
int machines_add(struct plan_cluster *c, const char *text, struct err *e);
/* "ms=0.3,bw=1G" is for all links and only done when !named; "a-b,ms=0.3,bw=1G" for one, only when named. */
int machines_link(struct plan_cluster *c, const char *text, bool named, struct err *e);

/* An empty one to fill in; NULL: no room. */
struct plan_machine *machines_new(struct plan_cluster *c, struct err *e);

#endif
