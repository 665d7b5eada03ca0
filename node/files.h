/* files - the model files that a node can read, as it tells the coordinator: fingerprints and layers.
 *
 * Headers only, looked at once, at start or when a file was fetched. The tables belong to the struct; a
 * path is found again by what an assignment asks for. At most MSG_FILES_MAX files. Loop thread. */
#ifndef NODE_FILES_H
#define NODE_FILES_H

#include "common/model/hparams.h"
#include "common/model/shard.h"
#include "common/wire/msg.h"

struct node_files {
    struct msg_file file[MSG_FILES_MAX];
    char *path[MSG_FILES_MAX];
    struct shard_part part[MSG_FILES_MAX];        /* of a shard; count 0: a whole file */
    uint32_t n, n_embd, n_vocab;                  /* dimensions: the largest of all */
};

/* A file that must be readable; one of a folder that need not. */
int node_files_add(struct node_files *f, const char *path, struct err *e);
int node_files_add_folder(struct node_files *f, const char *folder, struct err *e);
bool node_files_prune(struct node_files *f);      /* those that are gone from the disk; true: some were */
void node_files_remove(struct node_files *f, const char *path);         /* fine if it is not there */
void node_files_deinit(struct node_files *f);     /* a zeroed struct is fine */

/* The file that holds what this stage needs; NULL: none does. */
const char *node_files_find(const struct node_files *f, const struct msg_assign *a);

#endif
