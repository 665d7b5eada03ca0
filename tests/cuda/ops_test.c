/* ops_test - every operation on a CUDA card against the CPU backend, over a table of cases with odd sizes.
 *
 *     ops_test [--small|--bench] [PART]     one line per case that fails, a summary last; exit status
 *       1 when anything failed
 *     OPS_TEST_SELF=1 ops_test      the CPU against itself: checks this program where there is no card
 *
 * Inputs are random, outputs are poisoned before each run, and every value must have been written.
 * Products at f32 precision and at fast precision must agree to rounding of sums: both backends define
 * fast products by the same integers. Roundings of the state (FP8, FP4) may flip where an f32 differs
 * in its last bit, so there a small share of values may. What a card promises exactly - the same bits
 * for any batch mates, chunks, and replays - is compared bit by bit. */
#include "tests/cuda/ops.h"

static const char *only;                           /* part to run, or NULL */

static bool wanted(const char *part) {
    return !only || strcmp(only, part) == 0;
}

static void open_sides(enum precision precision) {
    struct err e;
    for (int s = 0; s < SIDES; s++) {
        struct kernels_config config = { .backend =
                                             s == CPU || getenv("OPS_TEST_SELF") ? "cpu" : "cuda",
                                         .precision = precision };
        if (kernels_open(&side[s], &config, &e) < 0) fprintf(stderr, "ops_test: %s\n", e.text), exit(2);
    }
}

static void run_part(const char *name, void (*test)(void)) {
    if (!wanted(name)) return;
    int cases = n_cases, failed = n_failed;
    double start = now();
    test();
    printf("%-14s %4d checks, %d failed, %.1f s\n", name, n_cases - cases, n_failed - failed, now() - start);
    fflush(stdout);
}

int main(int argc, char **argv) {
    bool measure = argc > 1 && strcmp(argv[1], "--bench") == 0;
    small = argc > 1 && strcmp(argv[1], "--small") == 0;
    if (argc > 1 + (measure || small)) only = argv[1 + (measure || small)];
    rng_init(&chance, 20261120, 1);
    for (int precision = 0; precision < 2 && !measure; precision++) {
        open_sides(precision ? PRECISION_F32 : PRECISION_FAST);
        printf("--- %s precision\n", precision ? "f32" : "fast");
        if (!precision) {
            run_part("embed", test_embed);
            run_part("hc", test_hc);
            run_part("rows", test_rows);
            run_part("route", test_route);
            run_part("group", test_matmul_group);
            run_part("replay", test_replay);
        }
        run_part("matmul", test_matmul);
        run_part("experts", test_experts);
        run_part("state", test_state);
        run_part("chunks", test_chunks);
        for (int s = 0; s < SIDES; s++) kernels_close(side[s]);
    }
    if (measure) {
        open_sides(PRECISION_FAST);
        bench();
        for (int s = 0; s < SIDES; s++) kernels_close(side[s]);
        return 0;
    }
    printf("%d checks, %d failed\n", n_cases, n_failed);
    return n_failed ? 1 : 0;
}
