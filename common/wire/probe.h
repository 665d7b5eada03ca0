/* probe - the receiving side of measuring a link: rows of PROBE messages are counted until the last one.
 *
 * A row is told apart by its link and id. Its first message only starts the clock, so one alone measures a
 * round trip and several measure bytes per second. Pure; belongs to the shell that receives. At most
 * PROBES_MAX rows at the same time: one more takes the place of the oldest. */
#ifndef WIRE_PROBE_H
#define WIRE_PROBE_H

#include "common/wire/msg.h"

enum { PROBES_MAX = 16 };

struct probe_row { uint32_t link, id; uint64_t first_ns, bytes; };
struct probe_rows { struct probe_row row[PROBES_MAX]; };

/* True: that was the last one, and this is the answer. */
bool probe_arrives(struct probe_rows *rows, uint32_t link, const struct msg_probe *probe, uint64_t bytes,
                   uint64_t now_ns, struct msg_probe_done *done);

#endif
