/* shard_tool - plans a division of a model over machines, cuts the model into files accordingly, checks
 * them, and puts them together.
 *
 * Each function is one `pleiades shard` command without its words and options; the command line
 * (cli/cmd_shard.c) parses, prints and shows progress. All of them block, hold a few megabytes whatever
 * the model's size (tensors are read through mappings), and keep nothing between calls. A file appears
 * under its name only when it is complete; a split that was stopped goes on. */
#ifndef SHARD_TOOL_SHARD_TOOL_H
#define SHARD_TOOL_SHARD_TOOL_H

#include "common/model/plan.h"
#include "common/model/shard.h"
#include "common/sys/file.h"

/* Called every few megabytes; false stops with ERR_CANCELLED. */
struct shard_progress {
    bool (*tell)(void *ctx, const char *what, uint64_t done, uint64_t total);
    void *ctx;
};

/* Every argument that is a folder is replaced by the shards in it, in order of their names. Free `out`
 * with file_names_free. */
int shard_tool_files(struct file_names *out, const char *const *args, int n_args, struct err *e);

/* ---- plan ---- */

/* A table of stages and predictions; with `explain` all numbers behind them and why other plans lose. */
void shard_plan_print(const struct plan_model *m, const struct plan_cluster *c,
                      const struct plan_options *o, const struct plan *p, bool explain,
                      struct buf *out);

/* ---- split ---- */

struct shard_piece {
    struct shard_part part;                            /* index and count are filled in */
    char machine[PLAN_NAME_MAX];                       /* for the manifest; may be empty */
};

struct shard_pieces {
    struct shard_piece *item;
    uint32_t n;
};

/* From a plan: a file per stage, and one per helper. */
void shard_pieces_of_plan(struct shard_pieces *out, const struct plan *p);
/* "10,20": stages that begin at layers 0, 10 and 20; experts "0-127,128-255" or NULL: who holds which,
 * the first stays with its stage. */
int shard_pieces_of_cuts(struct shard_pieces *out, const struct hparams *hp, const char *cuts,
                         const char *experts, struct err *e);
void shard_pieces_free(struct shard_pieces *p);

struct shard_split {
    const struct gguf *g;
    const char *folder;
    struct shard_pieces pieces;
    uint32_t alignment;                                /* 0: SHARD_ALIGNMENT */
    bool force;                                        /* replace files of other models */
    struct shard_progress progress;
};

struct shard_split_result {
    /* of all files; of tensors copied now; of tensors from an earlier run */
    uint64_t file_bytes, written_bytes, kept_bytes;
    uint32_t n_files, n_kept_files;
};

int shard_split(const struct shard_split *s, struct shard_split_result *out, struct err *e);

/* ---- verify ---- */

struct shard_verify {
    const struct file_names *files;
    int stage;                            /* only the files of this one; -1: all, and they must be complete */
    struct shard_progress progress;
    void (*damage)(void *ctx, const char *path, const char *what);     /* one line each */
    void *damage_ctx;
};

struct shard_verify_result {
    uint64_t n_tensors, bytes, n_damaged;
    uint32_t n_files;
};

/* 0 also when there is damage: n_damaged counts the lines. */
int shard_verify(const struct shard_verify *v, struct shard_verify_result *out, struct err *e);

/* ---- inspect, join ---- */

int shard_inspect(const char *path, bool tensors, struct buf *out, struct err *e);

struct shard_join_result { uint64_t bytes, n_tensors; };

/* Checks every checksum on the way; nothing appears under `path` unless all of the model is there and
 * undamaged. */
int shard_join(const struct file_names *files, const char *path,
               const struct shard_progress *progress, struct shard_join_result *out, struct err *e);

#endif
