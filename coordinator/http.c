/* http - the shell around libmicrohttpd: its callbacks, and the thread that polls.
 *
 *     poll( wake pipe, libmicrohttpd's sockets, listening sockets )
 *       -> notes of the service and finished work (http_desk.c) -> new connections -> libmicrohttpd -> tick
 *
 * libmicrohttpd runs without threads and without a listening socket of its own, so everything it calls back
 * is on this thread, and one thread serves TCP and Unix sockets alike. A connection that waits is
 * suspended: libmicrohttpd then looks away from its socket, and the tick watches it instead. A connection is
 * ended from our side by shutting its socket down; libmicrohttpd finds it closed and tidies up. */
#include "coordinator/http.h"

#include <microhttpd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "coordinator/http_private.h"
#include "coordinator/page.h"

enum { HTTP_POLL_MAX = 1 + HTTP_LISTEN_MAX + 2048, RESPONSE_BLOCK = 4096 };

/* ---- connections ---- */

static void conn_open(struct http *h, struct MHD_Connection *c, void **context) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct sockaddr_storage a = { .ss_family = AF_UNSPEC };
    socklen_t len = sizeof a;
    struct conn *k = xcalloc(1, sizeof *k);
    *k = (struct conn){
        .h = h, .next = h->conns, .fd = info ? (int)info->connect_fd : -1, .since_ns = h->now_ns
    };
    k->is_unix = getsockname(k->fd, (struct sockaddr *)&a, &len) == 0 && a.ss_family == AF_UNIX;
    if (h->conns) h->conns->prev = k;
    h->conns = k;
    h->n_conns++;
    *context = k;
}

static void conn_close(struct conn *k) {
    if (!k) return;
    if (k->prev) k->prev->next = k->next;
    else k->h->conns = k->next;
    if (k->next) k->next->prev = k->prev;
    k->h->n_conns--;
    free(k);
}

static void on_connection(void *cls, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what) {
    if (what == MHD_CONNECTION_NOTIFY_STARTED) conn_open(cls, c, context);
    else conn_close(*context), *context = NULL;
}

static struct conn *conn_of(struct MHD_Connection *c) {
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

void http_resume(struct exchange *x) {
    if (!x->suspended) return;
    x->suspended = false;
    MHD_resume_connection(x->connection);
}

/* libmicrohttpd may wait for room in the socket and ask us nothing: the socket has to fail. */
void http_cut(struct exchange *x) {
    x->gone = true;
    if (x->conn) shutdown(x->conn->fd, SHUT_RDWR);
    http_resume(x);
}

static void suspend(struct exchange *x) {
    x->suspended = true;
    MHD_suspend_connection(x->connection);
}

/* ---- responses ---- */

static void put_header(struct MHD_Response *r, const char *name, const char *value) {
    if (MHD_add_response_header(r, name, value) != MHD_YES) log_warn("http", "no memory for header %s", name);
}

static void put_fault_headers(struct MHD_Response *r, const struct exchange *x) {
    char number[16];
    if (x->fault.fault == API_FAULT_METHOD) put_header(r, "Allow", x->route.allow);
    if (x->fault.fault == API_FAULT_KEY) put_header(r, "WWW-Authenticate", "Bearer");
    if (!api_error_again(&x->fault)) put_header(r, "x-should-retry", "false");
    if (x->fault.retry_s <= 0) return;
    snprintf(number, sizeof number, "%d", x->fault.retry_s);
    put_header(r, "Retry-After", number);
}

static void put_cors(struct MHD_Response *r, const struct exchange *x) {
    const char *cors = x->h->guard.cors;
    if (!cors[0]) return;
    put_header(r, "Access-Control-Allow-Origin", cors);
    if (strcmp(cors, "*") != 0) put_header(r, "Vary", "Origin");
    put_header(r, "Access-Control-Expose-Headers", "x-request-id, request-id, retry-after");
    if (!x->route.preflight) return;
    put_header(r, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    put_header(r, "Access-Control-Allow-Headers", "*, authorization");
    put_header(r, "Access-Control-Max-Age", "86400");
}

static void put_headers(struct MHD_Response *r, const struct exchange *x) {
    put_header(r, "x-request-id", x->request_id);
    put_header(r, "request-id", x->request_id);
    if (x->type) put_header(r, "Content-Type", x->type);
    if (x->rejected) put_fault_headers(r, x);
    put_cors(r, x);
    if (x->route.endpoint != API_PAGE) return;
    for (const struct page_header *h = page_headers; h->name; h++) put_header(r, h->name, h->value);
}

static enum MHD_Result send_response(struct exchange *x, struct MHD_Response *r, int status) {
    if (!r) return MHD_NO;
    put_headers(r, x);
    enum MHD_Result ok = MHD_queue_response(x->connection, (unsigned)status, r);
    MHD_destroy_response(r);
    x->state = x->state == X_FLOW ? X_FLOW : X_SENT;
    return ok;
}

static enum MHD_Result send_answer(struct exchange *x) {
    size_t n = x->answer.rc < 0 ? 0 : x->answer.size;
    int status = x->answer.rc < 0 ? 500 : x->status;
    struct MHD_Response *r =
        MHD_create_response_from_buffer(n, n ? x->answer.data : (char *)(uintptr_t) "",
                                        n ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
    if (r && n) x->answer = (struct buf){ .data = NULL };            /* changed its owner */
    return send_response(x, r, status);
}

/* libmicrohttpd has room for `max` bytes of the stream. */
static ssize_t read_flow(void *cls, uint64_t pos, char *to, size_t max) {
    struct exchange *x = cls;
    bool end;
    (void)pos;
    if (x->gone) return MHD_CONTENT_READER_END_WITH_ERROR;
    struct chat_text text = desk_flow(x, &end);
    size_t n = MIN(text.len, max);
    if (n) {
        memcpy(to, text.data, n);
        desk_flowed(x, n);
        return (ssize_t)n;
    }
    if (end) return MHD_CONTENT_READER_END_OF_STREAM;
    suspend(x);
    return 0;
}

static enum MHD_Result send_flow(struct exchange *x) {
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, RESPONSE_BLOCK, read_flow, x, NULL);
    if (!r) return MHD_NO;
    put_header(r, "Cache-Control", "no-cache");
    put_header(r, "X-Accel-Buffering", "no");
    return send_response(x, r, 200);
}

/* ---- requests ---- */

static const char *header(struct MHD_Connection *c, const char *name) {
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
}

static struct exchange *exchange_new(struct http *h, struct MHD_Connection *c, const char *method,
                                     const char *path) {
    struct exchange *x = xcalloc(1, sizeof *x);
    const char *length = header(c, "Content-Length"), *expect = header(c, "Expect");
    struct http_headers in = { header(c, "Host"),
                               header(c, "Origin"),
                               header(c, "Authorization"),
                               header(c, "x-api-key"),
                               length ? strtoull(length, NULL, 10) : 0,
                               expect != NULL };
    x->h = h;
    x->connection = c;
    x->conn = conn_of(c);
    if (x->conn) x->conn->busy = true;
    snprintf(x->request_id, sizeof x->request_id, "req_%016llx", (unsigned long long)rng_u64(&h->rng));
    x->next = h->exchanges;
    if (h->exchanges) h->exchanges->prev = x;
    h->exchanges = x;
    h->n_exchanges++;
    atomic_fetch_add(&h->n_busy, 1);
    desk_head(x, method, path, &in);
    return x;
}

/* Called with the head, with each piece of the body, and (size 0) at its end; again after each resumption. */
static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url, const char *method,
                                  const char *version, const char *data, size_t *size, void **context) {
    struct exchange *x = *context;
    (void)version;
    if (!x) {
        *context = x = exchange_new(cls, c, method, url);
        if (!x->early) return x->conn ? MHD_YES : MHD_NO;
        desk_begin(x);
        return send_answer(x);
    }
    if (x->gone) return MHD_NO;
    if (*size) {
        desk_body(x, data, *size);
        *size = 0;
        return MHD_YES;
    }
    if (x->state == X_BODY) desk_begin(x);
    if (x->state == X_READY) return send_answer(x);
    if (x->state == X_FLOW) return send_flow(x);
    suspend(x);
    return MHD_YES;
}

static void on_completed(void *cls, struct MHD_Connection *c, void **context,
                         enum MHD_RequestTerminationCode why) {
    struct exchange *x = *context;
    (void)cls, (void)c;
    if (!x) return;
    if (x->conn) {
        x->conn->busy = false;
        x->conn->since_ns = x->h->now_ns;
    }
    *context = NULL;
    desk_leave(x, why == MHD_REQUEST_TERMINATED_COMPLETED_OK);
}

/* ---- libmicrohttpd ---- */

static void on_log(void *cls, const char *format, va_list args) PRINTF_LIKE(2, 0);

static void on_log(void *cls, const char *format, va_list args) {
    char text[256];
    (void)cls;
    int n = vsnprintf(text, sizeof text, format, args);
    while (n > 0 && n < (int)sizeof text && text[n - 1] == '\n') text[--n] = 0;
    log_debug("http", "libmicrohttpd: %s", text);
}

static struct MHD_Daemon *daemon_new(struct http *h, bool tls) {
    unsigned flags = MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
                     (tls ? MHD_USE_TLS : 0);
    if (MHD_is_feature_supported(MHD_FEATURE_EPOLL) == MHD_YES) flags |= MHD_USE_EPOLL;
    struct MHD_OptionItem options[] = {
        { MHD_OPTION_EXTERNAL_LOGGER, (intptr_t)on_log, NULL },
        { MHD_OPTION_CONNECTION_LIMIT, h->limit.connections + 8, NULL },
        { MHD_OPTION_CONNECTION_MEMORY_LIMIT, h->limit.head_bytes, NULL },
        { MHD_OPTION_CONNECTION_TIMEOUT, (h->limit.write_ms + 999) / 1000, NULL },
        { MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)on_completed, h },
        { MHD_OPTION_NOTIFY_CONNECTION, (intptr_t)on_connection, h },
        { MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, NULL },      /* the thread blocks all signals */
        { tls ? MHD_OPTION_HTTPS_MEM_CERT : MHD_OPTION_END, 0, h->cert },
        { tls ? MHD_OPTION_HTTPS_MEM_KEY : MHD_OPTION_END, 0, h->key },
        { MHD_OPTION_END, 0, NULL },
    };
    return MHD_start_daemon(flags, 0, NULL, NULL, on_request, h, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
}

int http_daemons_start(struct http *h, struct err *e) {
    bool tls = h->cert != NULL;
    if (MHD_is_feature_supported(MHD_FEATURE_EPOLL) != MHD_YES)      /* then it is select(), with its limit */
        h->limit.connections = MIN(h->limit.connections, FD_SETSIZE - 128);
    if (tls && MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES)
        return err_set(e, ERR_UNSUPPORTED, "this libmicrohttpd was built without TLS");
    for (int i = 0; i < (tls ? 2 : 1); i++) {     /* the Unix socket is never encrypted */
        h->daemon[i] = daemon_new(h, tls && i == 0);
        if (!h->daemon[i])
            return err_set(e, ERR_INVALID,
                           tls && i == 0 ? "TLS: the certificate and the key do not fit together"
                                         : "starting libmicrohttpd");
        h->n_daemons++;
    }
    return 0;
}

void http_daemons_stop(struct http *h) {
    for (int i = 0; i < h->n_daemons; i++) MHD_stop_daemon(h->daemon[i]);
    h->n_daemons = 0;
}

/* ---- the thread ---- */

void http_wake(void *ctx) {
    struct http *h = ctx;
    if (atomic_exchange(&h->awake, true)) return;
    ssize_t n = write(h->wake[1], "", 1);         /* a full pipe wakes just as well */
    (void)n;
}

static void drain_wake(struct http *h) {
    char bytes[64];
    while (read(h->wake[0], bytes, sizeof bytes) > 0) { }
    atomic_store(&h->awake, false);
}

/* Without epoll the descriptors are those of a select(), so there are fewer of them. */
static int add_daemon(struct MHD_Daemon *d, struct pollfd *p, int n) {
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(d, MHD_DAEMON_INFO_EPOLL_FD);
    if (info && info->epoll_fd >= 0) {
        p[n++] = (struct pollfd){ info->epoll_fd, POLLIN, 0 };
        return n;
    }
    fd_set r, w, x;
    MHD_socket max = -1;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_ZERO(&x);
    if (MHD_get_fdset(d, &r, &w, &x, &max) != MHD_YES) return n;
    for (int fd = 0; fd <= max && n < HTTP_POLL_MAX; fd++) {
        short events = (short)((FD_ISSET(fd, &r) ? POLLIN : 0) | (FD_ISSET(fd, &w) ? POLLOUT : 0));
        if (events) p[n++] = (struct pollfd){ fd, events, 0 };
    }
    return n;
}

static int timeout_ms(const struct http *h) {
    if (ring_count(&h->notes)) return 0;
    int ms = h->n_exchanges || h->n_tasks || !h->site ? HTTP_TICK_MS : 200;
    for (int i = 0; i < h->n_daemons; i++) {
        MHD_UNSIGNED_LONG_LONG theirs;
        if (MHD_get_timeout(h->daemon[i], &theirs) == MHD_YES && theirs < (unsigned)ms) ms = (int)theirs;
    }
    return ms;
}

static void cut(struct conn *k) {
    shutdown(k->fd, SHUT_RDWR);
    k->busy = true;                               /* once is enough */
}

/* Makes room for somebody who comes: the connection that was quiet for longest goes. */
static bool close_idle(struct http *h) {
    struct conn *oldest = NULL;
    for (struct conn *k = h->conns; k; k = k->next)
        if (!k->busy && k->fd >= 0 && (!oldest || k->since_ns < oldest->since_ns)) oldest = k;
    if (!oldest) return false;
    cut(oldest);
    return true;
}

static void accept_all(struct http *h, int i) {
    struct sockaddr_storage from;
    socklen_t len;
    bool full = false;
    while (h->n_conns < (uint32_t)h->limit.connections) {
        int fd = http_accept(h->listeners.fd[i], &from, &len, &full);
        if (fd < 0) break;
        int d = h->listeners.is_unix[i] ? h->n_daemons - 1 : 0;
        if (MHD_add_connection(h->daemon[d], fd, (struct sockaddr *)&from, len) != MHD_YES)
            log_warn("http", "a connection could not be taken");
    }
    if (full || h->n_conns >= (uint32_t)h->limit.connections) close_idle(h);
}

/* Heads and bodies that take too long, or will never be whole: libmicrohttpd misses an end that arrives
 * together with the last bytes, because epoll tells it of both at once. */
static void close_slow_bodies(struct http *h) {
    uint64_t limit = (uint64_t)h->limit.body_ms * 1000000;
    for (struct exchange *x = h->exchanges; x; x = x->next)
        if (x->state == X_BODY && (h->now_ns - x->begin_ns > limit || http_peer_done(x->conn->fd)))
            cut(x->conn);
}

static void close_slow_heads(struct http *h) {
    uint64_t limit = (uint64_t)h->limit.head_ms * 1000000;
    for (struct conn *k = h->conns; k; k = k->next)
        if (!k->busy && (h->now_ns - k->since_ns > limit || http_peer_done(k->fd))) cut(k);
}

static void tick(struct http *h) {
    if (h->now_ns - h->tick_ns < (uint64_t)HTTP_TICK_MS * 1000000) return;
    h->tick_ns = h->now_ns;
    desk_tick(h);
    close_slow_bodies(h);
    if (h->now_ns - h->slow_ns < (uint64_t)HTTP_SLOW_MS * 1000000) return;
    h->slow_ns = h->now_ns;
    close_slow_heads(h);
}

static void turn(struct http *h) {
    static _Thread_local struct pollfd p[HTTP_POLL_MAX];
    int n = 0, first;
    p[n++] = (struct pollfd){ h->wake[0], POLLIN, 0 };
    bool room = h->n_conns < (uint32_t)h->limit.connections && !atomic_load(&h->stopping);
    for (int i = 0; i < h->listeners.n && room; i++)
        p[n++] = (struct pollfd){ h->listeners.fd[i], POLLIN, 0 };
    first = 1;
    for (int i = 0; i < h->n_daemons; i++) n = add_daemon(h->daemon[i], p, n);
    poll(p, (nfds_t)n, timeout_ms(h));
    h->now_ns = clock_now_ns();
    drain_wake(h);
    desk_drain_notes(h);
    for (int i = 0; i < h->listeners.n && room; i++)
        if (p[first + i].revents) accept_all(h, i);
    for (int i = 0; i < h->n_daemons; i++) MHD_run(h->daemon[i]);
    tick(h);
}

void *http_serve(void *ctx) {
    struct http *h = ctx;
    h->now_ns = clock_now_ns();
    while (!atomic_load(&h->stopping)) turn(h);
    uint64_t begin_ns = h->now_ns, asked_ns = 0, said_ns = h->now_ns;
    while (h->n_tasks || h->n_exchanges || h->site_in_work || h->saving) {
        if (h->now_ns - asked_ns > 50000000) {    /* those that came in between, too */
            asked_ns = h->now_ns;
            desk_stop(h, h->now_ns - begin_ns > (uint64_t)HTTP_STOP_MS * 1000000);
        }
        if (h->now_ns > said_ns && h->now_ns - said_ns > 10000000000u) {
            said_ns = h->now_ns;
            log_warn("http", "still waiting for the end of %u requests", h->n_tasks);
        }
        turn(h);
    }
    return NULL;
}
