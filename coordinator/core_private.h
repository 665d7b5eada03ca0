/* core_private - the coordinator core's inside, shared by core.c and its parts. Each part owns its
 * struct and is the only one that writes it. */
#ifndef COORDINATOR_CORE_PRIVATE_H
#define COORDINATOR_CORE_PRIVATE_H

#include "coordinator/cluster.h"
#include "coordinator/core.h"
#include "coordinator/pipeline.h"
#include "coordinator/request.h"
#include "coordinator/scheduler.h"

struct coord {
    struct coord_config config;
    uint64_t now_ns, epoch;
    bool stopped;
    struct cluster cluster;
    struct survey survey;
    struct requests requests;
    struct sequences sequences;
    struct sched sched;
    struct pipeline pipeline;
    struct coord_totals totals;
    struct coord_batch_trace trace[COORD_TRACES];
    uint64_t n_trace;
};

struct coord_out *coord_out(struct coord_outs *outs, enum coord_out_kind kind);
struct msg *coord_send(struct coord *c, struct coord_outs *outs, uint32_t link, enum msg_kind kind);
void coord_give(struct coord_outs *outs, struct payload *p);

static inline uint64_t ms_to_ns(uint64_t ms) {
    return ms * 1000000;
}

#endif
