/* What a device is measured to do, on the one device that every machine has: figures that could be true. */
#include "tests/harness/test.h"

#include "kernels/kernels.h"

#include <time.h>

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The figures of the model's own products are below what the processor does at best, and not far below. */
static void a_device_is_measured_by_its_own_products(void **state) {
    (void)state;
    struct kernels_config c = { .backend = "cpu", .n_threads = 1 };
    struct kernels_peaks peaks, own;
    struct kernels *k;
    struct err e;
    assert_fine(kernels_open(&k, &c, &e), &e);
    double start = seconds_now();
    assert_fine(kernels_measure(k, &own, &e), &e);
    double spent = seconds_now() - start;
    kernels_close(k);
    assert_fine(kernels_cpu_measure(&peaks, 1, &e), &e);
    print_message("# %.2f s: %.1f GB/s of %.1f, %.1f G int8/s of %.1f, %.1f G f32/s of %.1f\n", spent,
                  own.read_bytes_s / 1e9, peaks.read_bytes_s / 1e9, own.int8_ops_s / 1e9,
                  peaks.int8_ops_s / 1e9, own.f32_ops_s / 1e9, peaks.f32_ops_s / 1e9);
    assert_true(own.read_bytes_s > 0 && own.int8_ops_s > 0 && own.f32_ops_s > 0);
    /* others may use the machine meanwhile, so only what is impossible fails */
    if (peaks.read_bytes_s > 0) assert_true(own.read_bytes_s < 3 * peaks.read_bytes_s);
    if (peaks.int8_ops_s > 0) assert_true(own.int8_ops_s < 3 * peaks.int8_ops_s);
    if (peaks.f32_ops_s > 0) assert_true(own.f32_ops_s < 3 * peaks.f32_ops_s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_device_is_measured_by_its_own_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
