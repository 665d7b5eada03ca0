/* runner - runs test programs and scripts, prints one line for each when it is over, and counts.
 *
 *     runner [-t SECONDS] [-r FILE] [-j N] [-l LAUNCHER] PROGRAM...
 *                                                                  each speaks TAP: ok, not ok, skip; begun
 *                                                                  in this order, N at a time
 *     runner [-t SECONDS] [-r FILE] -c NAME COMMAND [WORD...]      one step; passed when it exits with 0
 *     runner -r FILE -k NAME REASON                                something that cannot run here
 *     runner -r FILE -s                                            the totals of FILE, as the last line
 *
 * A program gets its own process group and a deadline, and its output is kept: shown when something
 * failed, thrown away when not. It has failed too when it dies, exits with another status than its
 * results explain, or has no results at all - a test that silently stops running is the failure that
 * nobody sees. Exit status 1: something failed. */
#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/sys/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OUTPUT_MAX = 4 << 20, SHOWN_LINES_MAX = 120, WORDS_MAX = 64, DEADLINE_S = 300, NAME_WIDTH = 40 };
enum { JOBS_MAX = 64 };                           /* at a time */

struct counts {
    int passed, failed, skipped;
};

struct run {
    const char *name;                             /* NULL: nothing runs here */
    pid_t pid;
    int fd;
    uint64_t start_ns, end_ns;
    struct buf output;
    struct counts counts;
    int status;                                   /* from waitpid */
    bool late;
    double seconds;
};

struct runner {
    int deadline_s, n_jobs;
    const char *results;                          /* file for the totals, or NULL */
    char *launcher;                               /* "qemu-aarch64 -L root", or NULL */
};

/* ---- one child process ---- */

static pid_t start_child(char *const *words, int *output_fd) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_RDONLY);
        setpgid(0, 0);
        dup2(null, 0);
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        execvp(words[0], words);
        fprintf(stderr, "cannot run %s: %s\n", words[0], strerror(errno));
        _exit(127);
    }
    setpgid(pid, pid);                            /* both sides set it: whoever comes first */
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);          /* not for those who start later */
    close(ends[1]);
    *output_fd = ends[0];
    return pid;
}

static void run_start(const struct runner *r, struct run *run, const char *name, char *const *words) {
    *run = (struct run){ .name = name, .start_ns = clock_now_ns() };
    run->end_ns = run->start_ns + (uint64_t)r->deadline_s * UINT64_C(1000000000);
    buf_init(&run->output, OUTPUT_MAX);
    run->pid = start_child(words, &run->fd);
}

/* Reads what is there; what is over OUTPUT_MAX is dropped. True when the last writer closed. */
static bool run_read(struct run *run) {
    char piece[4096];
    ssize_t n = read(run->fd, piece, sizeof piece);
    if (n <= 0) return true;
    buf_add(&run->output, piece, MIN((size_t)n, run->output.limit - run->output.size));
    return false;
}

static void run_end(struct run *run) {
    kill(-run->pid, SIGKILL);                     /* late, or children of the program that were left behind */
    while (waitpid(run->pid, &run->status, 0) < 0 && errno == EINTR) { }
    close(run->fd);
    run->seconds = clock_seconds_since(run->start_ns);
}

/* Waits until one of them is over, and ends it. Some must run. */
static struct run *run_wait(struct run *run, int n) {
    for (;;) {
        struct pollfd wait[JOBS_MAX];
        for (int i = 0; i < n; i++)
            wait[i] = (struct pollfd){ .fd = run[i].name ? run[i].fd : -1, .events = POLLIN };
        poll(wait, (nfds_t)n, 1000);              /* a deadline may be a second late */
        for (int i = 0; i < n; i++) {
            if (!run[i].name) continue;
            bool over = wait[i].revents && run_read(&run[i]);
            run[i].late = !over && clock_now_ns() >= run[i].end_ns;
            if (!over && !run[i].late) continue;
            run_end(&run[i]);
            return &run[i];
        }
    }
}

/* ---- what it said ---- */

static bool begins(const char *line, const char *with) {
    return strncmp(line, with, strlen(with)) == 0;
}

static void count_line(const char *line, struct counts *c) {
    bool skip = strstr(line, "# SKIP") || strstr(line, "# skip") || begins(line, "skip ");
    bool ok = begins(line, "ok "), not_ok = begins(line, "not ok ");
    if (skip && (ok || not_ok || begins(line, "skip "))) c->skipped++;
    else if (ok) c->passed++;
    else if (not_ok) c->failed++;
}

static char *next_line(char **at) {
    char *line = *at, *end;
    if (!*line) return NULL;
    end = strchr(line, '\n');
    *at = end ? end + 1 : line + strlen(line);
    if (end) *end = 0;
    return line;
}

/* A build's progress ("  CC    a.c", "  NVCC  b.cu"). It would hide the error between. */
static bool is_progress(const char *line) {
    size_t word = begins(line, "  ") ? strspn(line + 2, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") : 0;
    return word >= 2 && line[2 + word] == ' ';
}

/* Prints what helps: everything but passed tests, plans and progress; of very long output the last lines. */
static void show_output(struct buf *output) {
    char *at = output->data, *line;
    char *shown[SHOWN_LINES_MAX];
    int n = 0;
    while ((line = next_line(&at))) {
        if (begins(line, "ok ") || begins(line, "1..") || is_progress(line)) continue;
        shown[n++ % SHOWN_LINES_MAX] = line;
    }
    for (int i = MAX(0, n - SHOWN_LINES_MAX); i < n; i++) printf("     | %s\n", shown[i % SHOWN_LINES_MAX]);
}

/* Why something could not be tested is said even when all else is well, each reason once. */
static void show_skips(struct buf *output) {
    char *at = output->data, *line, *last = NULL;
    while ((line = next_line(&at))) {
        if (!begins(line, "SKIP") && !begins(line, "skip ")) continue;
        if (!last || strcmp(last, line) != 0) printf("     | %s\n", line);
        last = line;
    }
}

static void count_output(struct run *run) {
    for (const char *line = run->output.data; *line;) {
        count_line(line, &run->counts);
        line = strchr(line, '\n');
        if (!line++) break;
    }
}

static void append_result(const struct runner *r, const char *name, const struct counts *c) {
    if (!r->results) return;
    FILE *f = fopen(r->results, "a");
    CHECK(f);
    fprintf(f, "%d %d %d %s\n", c->passed, c->failed, c->skipped, name);
    fclose(f);
}

static void print_result(const struct run *run, const char *reason) {
    const struct counts *c = &run->counts;
    char text[64];
    int n = snprintf(text, sizeof text, "%d passed", c->passed);
    if (c->failed) n += snprintf(text + n, sizeof text - (size_t)n, ", %d failed", c->failed);
    if (c->skipped) snprintf(text + n, sizeof text - (size_t)n, ", %d skipped", c->skipped);
    printf("%-4s %-*s %-30s %7.2f s%s%s\n", c->failed ? "FAIL" : "ok", NAME_WIDTH, run->name, text,
           run->seconds, reason ? "  " : "", reason ? reason : "");
}

/* Turns an ending that the counted lines do not explain into one failure more. NULL: all is explained. */
static const char *judge(struct run *run, bool is_step, char *text, size_t room) {
    struct counts *c = &run->counts;
    bool exited = WIFEXITED(run->status);
    int status = exited ? WEXITSTATUS(run->status) : 0;
    if (run->late) snprintf(text, room, "ran past its deadline");
    else if (!exited) snprintf(text, room, "killed by signal %d", WTERMSIG(run->status));
    else if (status && !c->failed) snprintf(text, room, "exit status %d", status);
    else if (!is_step && !c->passed && !c->failed && !c->skipped) snprintf(text, room, "reported no test");
    else return NULL;
    c->failed++;
    return text;
}

static bool finish_run(const struct runner *r, struct run *run, bool is_step) {
    char text[64];
    if (!is_step) count_output(run);
    const char *reason = judge(run, is_step, text, sizeof text);
    if (is_step && !reason) run->counts.passed = 1;
    print_result(run, reason);
    if (run->counts.failed) show_output(&run->output);
    else show_skips(&run->output);
    append_result(r, run->name, &run->counts);
    fflush(stdout);
    buf_deinit(&run->output);
    run->name = NULL;
    return run->counts.failed == 0;
}

/* ---- the ways to be called ---- */

/* LAUNCHER words, or bash for a script, then the program. */
static void program_words(char *program, char *launcher_copy, char **words) {
    static char bash[] = "bash";
    int n = 0;
    size_t length = strlen(program);
    if (launcher_copy) {
        for (char *word = launcher_copy; *word && n < WORDS_MAX - 2;) {
            words[n++] = word;
            word += strcspn(word, " ");
            while (*word == ' ') *word++ = 0;
        }
    } else if (length > 3 && strcmp(program + length - 3, ".sh") == 0) {
        words[n++] = bash;
    }
    words[n++] = program;
    words[n] = NULL;
}

static void start_program(const struct runner *r, struct run *run, char *program) {
    char *words[WORDS_MAX], *launcher = r->launcher ? strdup(r->launcher) : NULL;
    const char *slash = strrchr(program, '/');
    program_words(program, launcher, words);
    run_start(r, run, slash ? slash + 1 : program, words);
    free(launcher);
}

static bool run_programs(const struct runner *r, char **programs, int n_programs) {
    struct run run[JOBS_MAX] = { { 0 } };
    bool all_well = true;
    setenv("CMOCKA_MESSAGE_OUTPUT", "TAP", 1);
    for (int i = 0; i < MIN(r->n_jobs, n_programs); i++) start_program(r, &run[i], programs[i]);
    for (int begun = MIN(r->n_jobs, n_programs), over = 0; over < n_programs; over++) {
        struct run *done = run_wait(run, r->n_jobs);
        all_well &= finish_run(r, done, false);
        if (begun < n_programs) start_program(r, done, programs[begun++]);
    }
    return all_well;
}

static bool run_step(const struct runner *r, const char *name, char **words) {
    struct run run;
    run_start(r, &run, name, words);
    return finish_run(r, run_wait(&run, 1), true);
}

static bool note_skip(const struct runner *r, const char *name, const char *reason) {
    struct counts c = { .skipped = 1 };
    printf("SKIP %-*s %s\n", NAME_WIDTH, name, reason);
    append_result(r, name, &c);
    return true;
}

/* The last line is a contract: scripts read "N passed, N failed" from it. */
static bool print_totals(const char *results) {
    struct counts sum = { 0 }, one;
    char line[512];
    FILE *f = fopen(results, "r");
    while (f && fgets(line, sizeof line, f)) {
        int name_at = 0;
        if (sscanf(line, "%d %d %d %n", &one.passed, &one.failed, &one.skipped, &name_at) != 3) continue;
        if (one.failed) printf("failed: %s", line + name_at);
        sum.passed += one.passed;
        sum.failed += one.failed;
        sum.skipped += one.skipped;
    }
    if (f) fclose(f);
    printf("%d passed, %d failed", sum.passed, sum.failed);
    if (sum.skipped) printf(", %d skipped", sum.skipped);
    printf("\n");
    return sum.failed == 0 && sum.passed > 0;
}

static int usage(void) {
    fprintf(
        stderr,
        "runner [-t SECONDS] [-r FILE] [-j N] [-l LAUNCHER] PROGRAM...\n"
        "       [-t SECONDS] [-r FILE] -c NAME COMMAND... | -r FILE -k NAME REASON | -r FILE -s\n");
    return 2;
}

int main(int argc, char **argv) {
    struct runner r = { .deadline_s = DEADLINE_S, .n_jobs = 1 };
    const char *step = NULL, *skip = NULL;
    bool totals = false;
    int letter;
    /* "+": stop at the first plain word on every system; a command's own options are not ours. */
    while ((letter = getopt(argc, argv, "+t:r:j:l:c:k:s")) != -1) {
        switch (letter) {
        case 't': r.deadline_s = (int)strtol(optarg, NULL, 10); break;
        case 'r': r.results = optarg; break;
        case 'j': r.n_jobs = (int)strtol(optarg, NULL, 10); break;
        case 'l': r.launcher = optarg; break;
        case 'c': step = optarg; break;
        case 'k': skip = optarg; break;
        case 's': totals = true; break;
        default: return usage();
        }
    }
    if (totals) return r.results ? !print_totals(r.results) : usage();
    if (optind >= argc || r.deadline_s < 1 || r.n_jobs < 1 || r.n_jobs > JOBS_MAX) return usage();
    if (skip) return !note_skip(&r, skip, argv[optind]);
    if (step) return !run_step(&r, step, argv + optind);
    return !run_programs(&r, argv + optind, argc - optind);
}
