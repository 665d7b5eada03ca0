/* link_set - a small set of link numbers in an array of its owner: which incoming links have said HELLO, say.
 *
 * Unused places are 0, which is nobody's number; what has no room is not in the set, so the array is as
 * long as the door lets links in. Belongs to the thread of its owner. Header only. */
#ifndef WIRE_LINK_SET_H
#define WIRE_LINK_SET_H

#include "common/base/types.h"

static inline bool link_set_has(const uint32_t *set, uint32_t n_max, uint32_t link) {
    for (uint32_t i = 0; i < n_max; i++)
        if (set[i] == link) return true;
    return false;
}

static inline void link_set_remove(uint32_t *set, uint32_t n_max, uint32_t link) {
    for (uint32_t i = 0; i < n_max; i++)
        if (set[i] == link) set[i] = 0;
}

static inline void link_set_add(uint32_t *set, uint32_t n_max, uint32_t link) {
    if (link_set_has(set, n_max, link)) return;
    for (uint32_t i = 0; i < n_max; i++) {
        if (set[i]) continue;
        set[i] = link;
        return;
    }
}

#endif
