/* loop - one thread that waits for time, sockets and other threads, and calls the owner of each.
 *
 * A core's shell lives on a loop: it sets one timer to the core's next deadline and steps the core from
 * the callbacks. Everything here belongs to the loop's thread (the one in loop_run; before that, whoever
 * made it), except loop_wake, loop_post and loop_stop, which any thread may call. Wake-ups are merged:
 * several before the callback runs are one call, so the callback drains. Callbacks must not block.
 * No limits of its own: timers, wakes and tasks lie in their owners' memory. */
#ifndef SYS_LOOP_H
#define SYS_LOOP_H

#include <stdatomic.h>

#include "common/base/err.h"
#include "common/base/types.h"

struct loop;

int loop_new(struct loop **out, struct err *e);
/* Everything that was made on it has been freed before; not from inside loop_run. NULL is fine. */
void loop_free(struct loop *l);

void loop_run(struct loop *l);                    /* until loop_stop; may be called again after that */
void loop_stop(struct loop *l);                   /* any thread; also before loop_run: that returns at once */
bool loop_is_here(const struct loop *l);          /* the caller is the thread in loop_run */
uint64_t loop_now_ns(const struct loop *l);       /* clock_now_ns() */

/* ---- timers ---- */

struct loop_timer;                                /* one deadline at a time; heap */
#define LOOP_NEVER UINT64_MAX

struct loop_timer *loop_timer_new(struct loop *l, void (*fire)(void *ctx), void *ctx);
/* Fires once, not before the deadline (clock_now_ns) and about a millisecond late at most; a later call
 * replaces it, LOOP_NEVER takes it away. A deadline that is over fires in the next round. */
void loop_timer_set(struct loop_timer *t, uint64_t deadline_ns);
void loop_timer_free(struct loop_timer *t);       /* NULL is fine; also from inside its own callback */

/* ---- from other threads ---- */

struct loop_wake;                                 /* heap */
struct loop_wake *loop_wake_new(struct loop *l, void (*run)(void *ctx), void *ctx);
void loop_wake(struct loop_wake *w);              /* any thread, never blocks */
/* Loop thread, when no thread calls loop_wake any more. NULL is fine. */
void loop_wake_free(struct loop_wake *w);

/* A call to be made on the loop's thread; in the caller's memory until `run` is called (it may free it).
 * In the order of posting per thread. Tasks that are still there when the loop is freed run then. */
struct loop_task {
    void (*run)(struct loop_task *t);
    struct loop_task *next;
};
void loop_post(struct loop *l, struct loop_task *t);

/* ---- signals ---- */

struct loop_signal;
/* `number`: SIGINT, SIGTERM, SIGHUP. NULL with a reason. */
struct loop_signal *loop_signal_new(struct loop *l, int number, void (*run)(void *ctx), void *ctx,
                                    struct err *e);
void loop_signal_free(struct loop_signal *s);     /* NULL is fine */

/* ---- for other files of sys ---- */

struct uv_loop_s *loop_uv(struct loop *l);

struct loop_hook {                                /* runs once per round, right before the loop would wait */
    void (*run)(struct loop_hook *h);
    struct loop_hook *next, **back;               /* back NULL: not in a loop */
    struct loop *loop;
};
void loop_hook_add(struct loop *l, struct loop_hook *h);
void loop_hook_remove(struct loop_hook *h);       /* fine when it is in no loop; also from a hook */

#endif
