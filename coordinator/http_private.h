/* http_private - the inside of the endpoint: http.c is the shell around libmicrohttpd, http_desk.c decides
 * what becomes of each request, http_start.c is its life. All of it belongs to the HTTP thread but what
 * says otherwise.
 *
 *     exchange   one request and its answer on a connection; ends when libmicrohttpd says so
 *     task       the job of an exchange; outlives it until the service has said on_done to every choice
 *
 *     exchange: BODY -> WORK -> WAIT -> READY -> SENT     an answer in one piece
 *                 |       '---> FLOW -----------^         a stream, fed by the task
 *                 '-> READY                               what needs no work
 * In WORK and WAIT the connection is suspended, in FLOW whenever nothing is to be sent. */
#ifndef COORDINATOR_HTTP_PRIVATE_H
#define COORDINATOR_HTTP_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/base/ring.h"
#include "coordinator/api_job.h"
#include "coordinator/api_memory.h"
#include "coordinator/http.h"
#include "coordinator/http_guard.h"
#include "coordinator/http_net.h"
#include "coordinator/http_work.h"
#include "coordinator/metrics.h"

enum {
    HTTP_DAEMONS = 2,
    HTTP_NOTES_MAX = 1 << 16,
    HTTP_NOTES_TURN = 256,                        /* handled before libmicrohttpd has its turn */
    HTTP_TICK_MS = 20,
    HTTP_SLOW_MS = 100,
    HTTP_STOP_MS = 500
};

struct MHD_Connection;
struct MHD_Daemon;
struct pollfd;
struct task;

struct conn {                                     /* a connection, with or without a request on it */
    struct http *h;
    struct conn *prev, *next;
    int fd;
    uint64_t since_ns;                            /* when it was opened, or its last request ended */
    bool busy;                                    /* a request head has come in */
    bool is_unix;
};

enum exchange_state { X_BODY, X_WORK, X_WAIT, X_FLOW, X_READY, X_SENT };

struct exchange {
    struct http *h;
    struct conn *conn;
    struct exchange *prev, *next;
    struct MHD_Connection *connection;
    enum exchange_state state;
    bool suspended, gone, rejected, early;        /* early: refused before its body has come */
    struct api_route route;
    char path[256];                               /* what route.rest points into */
    char request_id[API_ID_MAX];
    struct api_error fault;                       /* of a rejected one */
    struct buf body;
    uint64_t body_counted;                        /* its share of h->bodies_bytes */
    struct task *task;
    uint64_t begin_ns, whole_ns;                  /* head, and all of it, have come */
    int status;
    const char *type;                             /* Content-Type */
    struct buf answer;
    size_t n_sent;                                /* of the task's out */
    uint64_t alive_ns;                            /* something was last said */
};

/* One choice under way: what the service's loop thread sees. */
struct watch {
    struct task *task;
    uint32_t index;
    uint64_t ticket;
    bool live, cancelled;
    uint64_t submitted_ns, token_ns;
    atomic_uint n_progress, n_progress_of;        /* written by the loop */
    atomic_bool lost, ended;                      /* likewise: tokens were lost; done is set */
    bool end_seen, told;                          /* its end was seen, was handled */
    struct service_done done;
    struct note *last;                            /* tells the end; nothing has to be allocated then */
};

struct task {
    struct http_piece piece;                      /* must be first */
    struct http *h;
    struct exchange *x;                           /* NULL: the client has left */
    struct task *prev, *next;
    enum api_endpoint endpoint;
    char request_id[API_ID_MAX];
    const struct api_site *site;
    struct buf body;
    uint64_t random;
    int64_t now_s;
    struct api_job *job;                          /* NULL: fault says why */
    struct api_error fault;
    struct buf status;                            /* API_STATUS */
    int rc;
    bool working;                                 /* a worker has it */
    struct watch *watch;                          /* one per choice */
    uint32_t n_submitted, n_live;
    bool counted;
};

/* From the service's loop to us. */
struct note {
    struct watch *watch;
    bool is_end;
    struct service_token token;
};

struct http {
    struct http_config config;                    /* texts are not kept here, but in what is made of them */
    struct http_limits limit;
    struct service *service;
    struct http_guard guard;
    struct http_listeners listeners;
    struct MHD_Daemon *daemon[HTTP_DAEMONS];      /* TCP, maybe with TLS; Unix */
    int n_daemons;
    char *cert, *key;                             /* PEM, NULL without TLS */
    char url[300];
    pthread_t thread;
    bool running, drained;                        /* drained: the thread knows of it */

    int wake[2];
    atomic_bool awake, draining, stopping;
    atomic_uint n_busy;                           /* exchanges and tasks; for http_idle */
    atomic_bool sweep;                            /* the ring was full once: look at all watches */
    struct ring notes;

    struct http_work *work;
    struct api_site_config site_config;           /* its texts are in names */
    char names[2 + HTTP_NAMES_MAX][API_NAME_MAX];
    const char *name_list[HTTP_NAMES_MAX];
    struct api_site *site;                        /* NULL until the service serves */
    bool site_in_work, saving;                    /* saving: a worker writes the memory */
    struct api_memory *memory;                    /* of tool calls */
    uint64_t saved_ns;                            /* when that was begun last */
    struct err site_error;
    struct rng rng;

    struct conn *conns;
    struct exchange *exchanges;
    struct task *tasks;
    uint32_t n_conns, n_exchanges, n_tasks;
    uint64_t bodies_bytes, now_ns, tick_ns, slow_ns;
    struct {                                      /* scratch of the watch over suspended connections */
        int *fd;
        bool *left;
        struct exchange **x;
        struct pollfd *poll;
    } peers;                                      /* limit.connections of each */
    struct metrics metrics;
};

/* ---- http_desk.c ---- */

struct http_headers {                             /* NULL: not there */
    const char *host, *origin, *authorization, *x_api_key;
    uint64_t length;                              /* of the body; 0: not said */
    bool expects;                                 /* 100-continue */
};
/* A request head came; path without the query. Afterwards x->early says that it is answered now. */
void desk_head(struct exchange *x, const char *method, const char *path, const struct http_headers *in);
void desk_refuse(struct exchange *x, enum api_fault fault, const char *text);
void desk_body(struct exchange *x, const char *data, size_t n);
void desk_begin(struct exchange *x);              /* all of it came: X_READY, X_WORK, or X_FLOW */
/* The bytes of a stream that wait; *end: nothing comes after them. */
struct chat_text desk_flow(struct exchange *x, bool *end);
void desk_flowed(struct exchange *x, size_t n);
void desk_leave(struct exchange *x, bool complete);       /* the exchange is over; frees it */

void desk_drain_notes(struct http *h);
void desk_tick(struct http *h);
void desk_stop(struct http *h, bool at_once);     /* ends everything: with a word to the client, or at once */
void desk_open_site(struct http *h);

/* ---- http.c ---- */

void http_resume(struct exchange *x);             /* its connection goes on, if it was suspended */
void http_cut(struct exchange *x);                /* its connection ends, whatever it waits for */
void http_wake(void *ctx);                        /* any thread; ctx is the struct http */
int http_daemons_start(struct http *h, struct err *e);
void http_daemons_stop(struct http *h);
void *http_serve(void *ctx);                      /* the thread */

#endif
