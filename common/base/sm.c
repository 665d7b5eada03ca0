#include "common/base/sm.h"

#include "common/base/check.h"

bool sm_may_move(const struct sm_table *table, int from, int to) {
    return from >= 0 && from < table->n_state && to >= 0 && to < table->n_state &&
           (table->state[from].next & SM_BIT(to));
}

const char *sm_name(const struct sm_table *table, int state) {
    return state >= 0 && state < table->n_state ? table->state[state].name : "?";
}

void sm_move(const struct sm_table *table, uint8_t *state, int to, uint64_t id, const struct trace *trace) {
    if (!sm_may_move(table, *state, to)) {
        fprintf(stderr, "%s %llu: no move from %s to %s\n", table->what, (unsigned long long)id,
                sm_name(table, *state), sm_name(table, to));
        abort();
    }
    TRACE(trace, "%s %llu: %s -> %s", table->what, (unsigned long long)id, sm_name(table, *state),
          sm_name(table, to));
    *state = (uint8_t)to;
}
