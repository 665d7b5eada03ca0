/* test - what every unit test includes: cmocka with its prerequisites, and the few things it lacks.
 *
 * A test file ends with a list of TEST(name) in main; names are sentences. CMOCKA prints what failed
 * with both sides. */
#ifndef HARNESS_TEST_H
#define HARNESS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/types.h"
#include "tests/harness/effort.h"

#define TEST(name) cmocka_unit_test(name)

/* For code that returns 0 or an error with a text: shows the text instead of just the number. */
#define assert_fine(call, e)                                                       \
    do {                                                                           \
        int rc_ = (call);                                                          \
        if (rc_ < 0) fail_msg("%s: %d: %s", #call, rc_, (e)->text);                \
    } while (0)

/* How many random cases to try: n, or a share of them where each is slow (effort.h). Never for tests
 * that need their number, like statistics. */
static inline int test_rounds(int n) {
    return effort() == EFFORT_QUICK ? MAX(1, n / 10) : n;
}

#if defined(__SANITIZE_THREAD__)
/* zmq and libuv were built without the sanitizer: it does not see how they synchronise, only that their
 * threads touch memory. Our own code on their threads (free functions, callbacks) is still watched. */
const char *__tsan_default_options(void);
__attribute__((weak)) const char *__tsan_default_options(void) {
    return "ignore_noninstrumented_modules=1";
}
#endif

/* The folder with expected values, or NULL after a loud line; the test then calls skip(). */
static inline const char *vectors_folder(const char *part) {
    static char path[4096];
    const char *base = getenv("PLEIADES_VECTORS");
    snprintf(path, sizeof path, "%s/%s", base && *base ? base : "../shared/vectors", part);
    FILE *f = fopen(path, "r");
    if (f) {
        fclose(f);
        return path;
    }
    printf("SKIP no expected values in %s (set PLEIADES_VECTORS)\n", path);
    return NULL;
}

#endif
