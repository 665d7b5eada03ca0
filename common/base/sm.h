/* sm - state machines by table: which states there are, what they are called, and which moves are allowed.
 *
 * A state is a small number in the owner's struct, and sm_move is its only writer. A move outside the
 * table is our own mistake and ends the program with both names; an allowed one writes a trace line. At
 * most 32 states. */
#ifndef BASE_SM_H
#define BASE_SM_H

#include "common/base/trace.h"
#include "common/base/types.h"

#define SM_BIT(state) (UINT32_C(1) << (state))

struct sm_state {
    const char *name;
    uint32_t next;                                /* SM_BIT of every state that may follow */
};

struct sm_table {
    const char *what;                             /* "request" */
    const struct sm_state *state;
    int n_state;
};

/* `id` tells machines of one kind apart in the trace. */
void sm_move(const struct sm_table *table, uint8_t *state, int to, uint64_t id, const struct trace *trace);
bool sm_may_move(const struct sm_table *table, int from, int to);
const char *sm_name(const struct sm_table *table, int state);

#endif
