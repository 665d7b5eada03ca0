/* once - whether a line about an address outside is worth the log: once per address and hour, and never
 * more than ONCE_PER_MINUTE lines in all.
 *
 * So a port scan or a misconfigured machine that knocks twice a second leaves a line, not a full disk.
 * Belongs to one thread; fixed memory, the address heard longest ago gives way. */
#ifndef SYS_ONCE_H
#define SYS_ONCE_H

#include "common/base/types.h"

enum { ONCE_PLACES = 64, ONCE_PER_MINUTE = 12 };

struct once {                                     /* starts as zeros */
    struct once_place { uint64_t key, at_ns; } place[ONCE_PLACES];
    uint64_t minute_ns;
    uint32_t n_minute;
};

bool once_is_due(struct once *o, const char *what, const char *address, uint64_t now_ns);

#endif
