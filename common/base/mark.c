#include "common/base/mark.h"

atomic_uint_fast64_t mark_counts[MARK_N];

const char *mark_name(enum mark_id id) {
    static const char *const names[MARK_N] = {
#define MARK_NAME(name) #name,
        MARK_LIST(MARK_NAME)
#undef MARK_NAME
    };
    return id < MARK_N ? names[id] : "?";
}
