/* fetch_run - gets a node's share of a model from other machines and hands out the path of the finished
 * file.
 *
 * Joins fetch (what to ask whom) and fetch_store (the file) with the loop: questions go out through `send`,
 * answers come in with fetch_run_on_weights, the file is written by a thread of its own. Who the sources
 * are, and whether they are there, the owner says after every start: places below MSG_SOURCES_MAX. One
 * share at a time; a new start gives up the one before, and what it had stays on the disk for later.
 * Belongs to the loop's thread, callbacks as well.
 *
 *   idle --start--> header* --whole--> opening* --missing list--> pieces* --all stored--> finishing*
 *                  --done--> idle
 *                  (* waits; failure or a new start from any of them) */
#ifndef NODE_FETCH_RUN_H
#define NODE_FETCH_RUN_H

#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "node/fetch.h"

struct fetch_run;

struct fetch_run_config {
    struct loop *loop;
    struct slots *slots;
    const char *folder;                            /* where shards are kept; copied */
    void (*send)(void *ctx, uint32_t source, const struct msg_weights_get *get);
    void (*progress)(void *ctx, uint64_t epoch, uint64_t done, uint64_t total);
    /* The folder was tidied, and files are gone. */
    void (*tidied)(void *ctx);
    /* code 0: the file is there under `path`. The only end of a start that was not given up. */
    void (*done)(void *ctx, uint64_t epoch, const char *path, int code, const char *text);
    void *ctx;
};

int fetch_run_new(struct fetch_run **out, const struct fetch_run_config *config, struct err *e);
void fetch_run_free(struct fetch_run *r);          /* before slots and loop; NULL is fine */

void fetch_run_start(struct fetch_run *r, uint64_t epoch, const struct msg_assign *a);
void fetch_run_stop(struct fetch_run *r);          /* gives up; without done() */
/* A share of this path is loaded: what the folder has of others may go, see store.h. */
void fetch_run_tidy(struct fetch_run *r, const char *path, uint32_t n_keep);
bool fetch_run_is_idle(const struct fetch_run *r); /* NULL is idle */

/* As fetch_source_set and fetch_source_up. */
void fetch_run_source(struct fetch_run *r, uint32_t source, const struct msg_source *what);
void fetch_run_source_up(struct fetch_run *r, uint32_t source, bool up);
/* Any WEIGHTS that comes in over the source's link. */
void fetch_run_on_weights(struct fetch_run *r, uint32_t source, const struct msg_weights *w,
                          struct payload take_payload);

struct fetch_totals {
    uint64_t bytes, n_piece, n_late, n_damaged, n_silent, n_twice;
    uint64_t source_bytes[MSG_SOURCES_MAX];        /* stored, of the last start */
    uint64_t ns;                                   /* from the first piece to the last, of the last start */
};
struct fetch_totals fetch_run_totals(const struct fetch_run *r);

#endif
