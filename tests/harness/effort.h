/* effort - how much the long tests do: less where every step is slow (sanitizers, emulated processors),
 * all of it on request.
 *
 * PLEIADES_TEST_EFFORT = quick, normal or full decides; without it the build does. A test that leaves
 * something out says so in its own words; quick still runs every kind of check, on fewer models and
 * shorter texts. Header only. */
#ifndef HARNESS_EFFORT_H
#define HARNESS_EFFORT_H

#include <stdlib.h>
#include <string.h>

enum effort { EFFORT_QUICK, EFFORT_NORMAL, EFFORT_FULL };

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define EFFORT_SLOW_BUILD 1
#endif
#if __has_feature(thread_sanitizer)
#define EFFORT_THREADS_ONLY 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define EFFORT_THREADS_ONLY 1
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    (defined(__aarch64__) && defined(__linux__))
#define EFFORT_SLOW_BUILD 1
#endif

/* The thread sanitizer has nothing to say about tests with one thread: where these are slow they are left
 * to the other builds. Of `tests` those that need it come first. */
static inline int effort_tests(int n_with_threads, int n) {
#ifdef EFFORT_THREADS_ONLY
    (void)n;
    return n_with_threads;
#else
    (void)n_with_threads;
    return n;
#endif
}

static inline enum effort effort(void) {
    const char *asked = getenv("PLEIADES_TEST_EFFORT");
    if (asked && strcmp(asked, "full") == 0) return EFFORT_FULL;
    if (asked && strcmp(asked, "normal") == 0) return EFFORT_NORMAL;
    if (asked && strcmp(asked, "quick") == 0) return EFFORT_QUICK;
#ifdef EFFORT_SLOW_BUILD
    return EFFORT_QUICK;
#else
    return EFFORT_NORMAL;
#endif
}

#endif
