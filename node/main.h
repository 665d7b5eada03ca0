/* main (node) - one node as a process sees it: loop, links, compute thread and core put together.
 *
 * `pleiades node` runs one on its main thread; a coordinator with a stage of its own runs one on another.
 * A node finds its coordinator by itself, again and again, takes whatever it is assigned, and ends only
 * when it is told to: by node_process_stop or, where asked for, by a signal (a second one ends at once).
 * All texts of the configuration are copied; the net, when given, outlives the node. */
#ifndef NODE_MAIN_H
#define NODE_MAIN_H

#include "common/base/err.h"
#include "common/base/types.h"

struct net;
struct stage_factory;

struct node_process_config {
    const char *join;                      /* tcp://HOST:PORT, HOST:PORT or inproc://NAME; NULL: of the key */
    const char *name;                             /* unique in the cluster; NULL: of the host */
    const char *bind;                             /* tcp://HOST:PORT for other stages; NULL: no door */
    const char *key_path;                         /* see keyring.h; NULL: no encryption, or */
    bool key_from_environment;                    /* $PLEIADES_TOKEN */
    const char *cluster_keys;                     /* instead, the coordinator's folder: for our door only */
    const char *model_path, *store_path;          /* a file; a folder with some. Either may be NULL */
    const char *backend;                          /* NULL: the best one here */
    uint64_t memory_bytes;                      /* for weights, state and buffers; 0: most of what there is */
    uint32_t n_threads;                           /* 0: all cores */
    uint32_t n_rows_max;                          /* of one batch; 0: 1024 */
    uint32_t n_keep;                              /* shares of earlier plans that stay, see store.h */
    bool keeps_weights;                           /* gives none to others */
    uint64_t give_bytes_per_s;                    /* weights for others, at most; 0: as fast as it goes */
    bool measure;                                 /* speed of this machine, some 200 ms */
    bool take_signals;                            /* SIGINT and SIGTERM end it */
    const struct stage_factory *stage;            /* NULL: the real model */
    struct net *net;                              /* NULL: its own */
};

struct node_process;

int node_process_new(struct node_process **out, const struct node_process_config *config, struct err *e);
void node_process_run(struct node_process *p);    /* until it is stopped */
void node_process_stop(struct node_process *p);   /* any thread */
void node_process_free(struct node_process *p);   /* after run; NULL is fine */

const char *node_process_name(const struct node_process *p);
const char *node_process_address(const struct node_process *p);            /* of its door; "" without */

#endif
