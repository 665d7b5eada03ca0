/* pool - the compute threads of the CPU backend.
 *
 * pool_run cuts a job into numbered tasks; the caller and the workers take them from one atomic counter
 * until none is left, so a slow core takes fewer. A task's result may not depend on which thread runs
 * it. Workers spin for some microseconds between jobs (a decode step is hundreds of short jobs) and
 * then sleep. One caller at a time. */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

#include "common/base/err.h"

#include <stdbool.h>

enum { POOL_THREADS_MAX = 256 };

struct pool;

typedef void pool_task(void *ctx, int task, int thread);                 /* thread: 0 .. n_threads-1 */

int pool_new(struct pool **out, int n_threads, bool pin, struct err *e);  /* n_threads 0: all cores */
void pool_free(struct pool *p);
int pool_threads(const struct pool *p);
void pool_run(struct pool *p, int n_tasks, pool_task *run, void *ctx);   /* returns when all tasks are done */

#endif
