/* http_work - a few threads that read, render and tokenize requests, so that the HTTP thread never waits.
 *
 * http_work_put is called by one thread, which also takes back what is done; work in between belongs to
 * its worker. The lock and the condition are inside; `wake` is called on a worker's thread after each
 * piece. As many pieces may wait as there are jobs (struct http_limits). */
#ifndef COORDINATOR_HTTP_WORK_H
#define COORDINATOR_HTTP_WORK_H

#include "common/base/err.h"
#include "common/base/types.h"

struct http_piece {                               /* first member of the real thing */
    struct http_piece *next;
    void (*run)(struct http_piece *p);            /* on a worker */
};

struct http_work;

int http_work_new(struct http_work **out, int n_threads, void (*wake)(void *ctx), void *ctx, struct err *e);
void http_work_put(struct http_work *w, struct http_piece *p);
struct http_piece *http_work_take(struct http_work *w);  /* one that is done, oldest first; or NULL */
void http_work_free(struct http_work *w);         /* nothing may be under way; NULL is fine */

#endif
