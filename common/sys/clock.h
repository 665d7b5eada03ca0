/* clock - time that only goes forward, for measuring and waiting.
 *
 * Any thread. Nanoseconds since some start of the machine's own, not comparable between machines or across a
 * restart; cores get the time as a field of their events and never include this. */
#ifndef SYS_CLOCK_H
#define SYS_CLOCK_H

#include <stdint.h>

uint64_t clock_now_ns(void);
double clock_seconds_since(uint64_t start_ns);
uint64_t clock_wall_ms(void);                     /* since 1970, for files and answers that show a date */
void clock_sleep_ms(uint32_t ms);                 /* at least that long, signals or not */

#endif
