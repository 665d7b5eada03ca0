/* banned - include last in files that must be deterministic: the cores, their parts, and the simulation.
 *
 * Poisons, at compile time, what would make two runs with one seed differ (clocks, chance from
 * elsewhere, the environment) and what we never use. Time is a field of an event; chance comes from
 * rng. It has to be the last include, because system headers behind it could not even declare these
 * names. */
#ifndef BASE_BANNED_H
#define BASE_BANNED_H

#pragma GCC poison time clock clock_gettime gettimeofday nanosleep usleep sleep
#pragma GCC poison clock_now_ns
#pragma GCC poison rand srand random srandom drand48 arc4random getrandom getentropy
#pragma GCC poison getenv
#pragma GCC poison strcpy strcat sprintf vsprintf gets strtok

#endif
