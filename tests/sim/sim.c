/* sim - runs seeds; says what failed and how to see it again; checks that planted mistakes are caught and
 * rare branches reached.
 *
 *     sim                      $SIM_SEEDS seeds (1000) from $SIM_FIRST (1), then the plants, then the
 * marks; TAP lines sim --seed N [--trace]   one seed, readable sim --plant NAME|N       seeds until the
 * planted mistake is caught */
#include "tests/sim/world.h"

#include "common/base/mark.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum plant plant_now;

static const char *const plant_names[PLANT_N] = {
    [PLANT_none] = "none",
    [PLANT_epoch_unchecked] = "epoch_unchecked",
    [PLANT_credit_lost] = "credit_lost",
    [PLANT_batch_twice] = "batch_twice",
    [PLANT_position_unchecked] = "position_unchecked",
    [PLANT_cancel_leaks] = "cancel_leaks",
    [PLANT_replay_forgets] = "replay_forgets",
    [PLANT_late_ignored] = "late_ignored",
    [PLANT_old_result_taken] = "old_result_taken",
    [PLANT_payload_leaks] = "payload_leaks",
    [PLANT_prefix_unchecked] = "prefix_unchecked",
    [PLANT_back_together] = "back_together",
    [PLANT_source_unpinned] = "source_unpinned",
    [PLANT_score_gap] = "score_gap",
};

static struct world world;
static uint64_t n_step;

static uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static bool run(uint64_t seed, bool trace) {
    bool fine = world_run(&world, seed, trace);
    n_step += world.n_step;
    return fine;
}

/* A core has found a contradiction in itself: say which seed, then end as CHECK wants. */
static void on_abort(int sig) {
    (void)sig;
    unsigned long long seed = (unsigned long long)world.seed;
    printf("# seed %llu: a CHECK failed (sim --seed %llu --trace)\n", seed, seed);
    fflush(stdout);
}

static int report(bool fine, const char *format, const char *what, uint64_t n) {
    printf("%s - ", fine ? "ok" : "not ok");
    printf(format, what, (unsigned long long)n);
    printf("\n");
    fflush(stdout);
    return !fine;
}

static int run_seeds(uint64_t first, uint64_t n) {
    int failed = 0;
    for (uint64_t seed = first; seed < first + n && failed < 10; seed++) {
        if (run(seed, false)) continue;
        failed++;
        printf("# seed %llu: %s (sim --seed %llu --trace)\n", (unsigned long long)seed, world.why,
               (unsigned long long)seed);
        fflush(stdout);
    }
    printf("# %llu seeds, %llu steps\n", (unsigned long long)n, (unsigned long long)n_step);
    return report(failed == 0, "a cluster keeps its promises under faults (%s%llu seeds)", "", n);
}

/* In a child of its own: some mistakes are caught by a CHECK, and that ends the program. */
static bool plant_is_caught(enum plant plant, uint64_t n) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(3);
        plant_now = plant;
        for (uint64_t seed = 1; seed <= n; seed++) {
            if (run(seed, false)) continue;
            printf("# %s: seed %llu: %s\n", plant_names[plant], (unsigned long long)seed, world.why);
            fflush(stdout);
            _exit(1);
        }
        _exit(scenario_keeping(&world) ? 0 : 1);                    /* what chance finds too rarely */
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) return false;
    return (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) ||
           (WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

/* Branches that only a unit test reaches, because no cluster that follows the protocol does. */
static const enum mark_id elsewhere[] = { MARK_drain_waits, MARK_node_slots_refused,
                                          MARK_experts_unanswered, MARK_experts_late,
                                          MARK_experts_refused };

static int check_marks(void) {
    int missed = 0;
    for (int m = 0; m < MARK_N; m++) {
        bool expected = true;
        for (size_t i = 0; i < COUNT_OF(elsewhere); i++) expected &= elsewhere[i] != (enum mark_id)m;
        if (!expected || mark_count((enum mark_id)m)) continue;
        printf("# never reached: %s\n", mark_name((enum mark_id)m));
        missed++;
    }
    return report(missed == 0, "reaches every rare branch (%s%llu marks)", "", MARK_N);
}

static void print_marks(void) {
    for (int m = 0; m < MARK_N; m++)
        printf("# %-26s %llu\n", mark_name((enum mark_id)m), (unsigned long long)mark_count((enum mark_id)m));
}

int main(int argc, char **argv) {
    uint64_t seed = 0;
    signal(SIGABRT, on_abort);
    bool trace = false, marks = false, plants = true;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--trace") == 0) trace = true;
        else if (strcmp(argv[i], "--marks") == 0) marks = true;
        else if (strcmp(argv[i], "--no-plants") == 0) plants = false;
        else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
            i++;
            for (int p = 1; p < PLANT_N; p++)
                if (strcmp(argv[i], plant_names[p]) == 0) plant_now = (enum plant)p;
        } else {
            fprintf(stderr, "sim [--seed N [--trace]] [--plant NAME] [--marks] [--no-plants]\n");
            return 2;
        }
    }
    if (seed) {
        bool fine = run(seed, trace);
        printf("seed %llu: %s, %llu steps\n", (unsigned long long)seed, fine ? "fine" : world.why,
               (unsigned long long)n_step);
        return !fine;
    }
    int failed = scenarios_run(&world);
    failed += run_seeds(number("SIM_FIRST", 1), number("SIM_SEEDS", 1000));
    if (marks) print_marks();
    failed += check_marks();
    for (int p = 1; plants && p < PLANT_N; p++)
        failed += report(plant_is_caught((enum plant)p, 1000),
                         "catches the planted mistake %s (within %llu seeds)", plant_names[p], 1000);
    return failed != 0;
}
