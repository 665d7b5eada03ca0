#include "common/sys/zpump.h"

#include "common/base/check.h"
#include "common/sys/loop.h"

#include <uv.h>
#include <zmq.h>

struct zpump {
    uv_poll_t poll;
    uv_idle_t again;                              /* active: there is more than the budget took */
    struct loop_hook hook;
    void *socket;
    bool (*receive)(void *ctx);
    void *ctx;
    bool closing;
    int n_open;                                   /* uv handles */
};

static int events_of(struct zpump *z) {
    int events = 0;
    size_t size = sizeof events;
    if (z->closing || zmq_getsockopt(z->socket, ZMQ_EVENTS, &events, &size) != 0) return 0;
    return events;
}

static void pump(struct zpump *z, bool in_hook);

static void on_idle(uv_idle_t *again) {
    pump(again->data, false);
}

/* Whoever got a message in a hook may have called other sockets, whose hooks were before this one, and
 * eaten their signals: nobody waits before a round in which no hook has anything to hand out. */
static void pump(struct zpump *z, bool in_hook) {
    int left = ZPUMP_BUDGET;
    while (left > 0 && (events_of(z) & ZMQ_POLLIN) && z->receive(z->ctx)) left--;
    if (z->closing) return;                       /* its handles are on their way out */
    bool again = (in_hook && left < ZPUMP_BUDGET) || (events_of(z) & ZMQ_POLLIN);
    if (again) uv_idle_start(&z->again, on_idle);
    else uv_idle_stop(&z->again);
}

static void on_poll(uv_poll_t *poll, int status, int events) {
    (void)status;
    (void)events;
    pump(poll->data, false);
}

static void on_hook(struct loop_hook *hook) {
    pump((struct zpump *)(void *)((char *)hook - offsetof(struct zpump, hook)), true);
}

static void on_closed(uv_handle_t *handle) {
    struct zpump *z = handle->data;
    if (--z->n_open == 0) free(z);
}

int zpump_new(struct zpump **out, struct loop *l, void *socket, bool (*receive)(void *ctx), void *ctx,
              struct err *e) {
    uv_os_sock_t fd;
    size_t size = sizeof fd;
    if (zmq_getsockopt(socket, ZMQ_FD, &fd, &size) != 0)
        return err_set(e, ERR_IO, "a socket has no descriptor: %s", zmq_strerror(zmq_errno()));
    struct zpump *z = xcalloc(1, sizeof *z);
    int rc = uv_poll_init_socket(loop_uv(l), &z->poll, fd);
    if (rc < 0) {
        free(z);
        return err_set(e, ERR_IO, "a socket cannot be watched: %s", uv_strerror(rc));
    }
    uv_idle_init(loop_uv(l), &z->again);
    z->n_open = 2;
    z->poll.data = z->again.data = z;
    z->socket = socket;
    z->receive = receive;
    z->ctx = ctx;
    uv_poll_start(&z->poll, UV_READABLE, on_poll); /* for reading only, also when we wait to send */
    z->hook.run = on_hook;
    loop_hook_add(l, &z->hook);
    *out = z;
    return 0;
}

void zpump_free(struct zpump *z) {
    if (!z || z->closing) return;
    z->closing = true;
    loop_hook_remove(&z->hook);
    uv_close((uv_handle_t *)&z->poll, on_closed);
    uv_close((uv_handle_t *)&z->again, on_closed);
}
