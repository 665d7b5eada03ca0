/* worker - one thread that does long work for a loop: jobs in by a ring, answers out by a ring.
 *
 * The loop's thread pushes jobs; the worker's thread runs them one after the other and answers as often
 * as it likes (progress, results); answers are handed out on the loop's thread, in order. A pointer that
 * went through has changed owner. While a job runs it may ask the loop (an answer that means a question)
 * and wait for mail. Limits: n_job_max jobs waiting, n_answer_max answers not yet handed out (when they
 * are full, the worker waits). */
#ifndef SYS_WORKER_H
#define SYS_WORKER_H

#include "common/base/err.h"
#include "common/base/types.h"

struct loop;
struct worker;

struct worker_config {
    const char *name;                             /* of the thread, at most 15 bytes are shown */
    uint32_t n_job_max, n_answer_max;
    void (*begin)(void *ctx);                     /* first on the thread; may be NULL */
    void (*run)(void *ctx, void *job);            /* on the thread */
    void (*end)(void *ctx);                       /* last on the thread; may be NULL */
    void (*on_answer)(void *ctx, void *answer);   /* on the loop's thread */
    void *ctx;
};

int worker_start(struct worker **out, struct loop *l, const struct worker_config *config, struct err *e);

/* ---- loop's thread ---- */

bool worker_push(struct worker *w, void *job);    /* false: full, the job stays the caller's */
bool worker_mail(struct worker *w, void *mail);   /* to the job that runs: worker_wait_mail; false: full */
/* Ends: worker_is_stopping is true from now on and waits end; waits for the job that runs, then gives
 * jobs that never ran to `drop` (may be NULL), the answers that are left to on_answer, and frees. */
void worker_stop(struct worker *w, void (*drop)(void *ctx, void *job));

struct worker_times { uint64_t busy_us, idle_us; };            /* since the start; waiting for mail is idle */
struct worker_times worker_times(const struct worker *w);      /* any thread */

/* ---- worker's thread, inside run ---- */

void worker_answer(struct worker *w, void *answer);
void *worker_wait_mail(struct worker *w);         /* NULL: stopping */
bool worker_is_stopping(const struct worker *w);  /* any thread; long jobs look now and then */

#endif
