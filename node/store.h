/* store - which of the shares that were fetched earlier stay in a node's --store folder.
 *
 * The rule. Of the files in the folder only those are looked at that fetch_store makes: MODEL-stage-NN-NN or
 * MODEL-helper-NN-NN with its endings, .gguf, or .gguf.tmp while unfinished. The share that was just loaded
 * stays, and so does what a process (this or another) has in use, and of the rest the n_keep that were used
 * last, finished or not: the plan of yesterday may come back when a machine does. All others are removed,
 * an unfinished one also when its finished one is there. When a new share finds no room on the disk, n_keep
 * is 0. Used means: written to, or loaded. The choice is pure; store_tidy blocks, on a thread that may. */
#ifndef NODE_STORE_H
#define NODE_STORE_H

#include "common/base/err.h"
#include "common/base/types.h"

enum { STORE_KEEP = 2, STORE_KEEP_MAX = 14, STORE_FILES_MAX = 4096 };

struct store_file {
    const char *name;
    bool unfinished, goes;
    int64_t used_s, used_ns;
    uint64_t bytes;
};

/* Is it the name of a share, or of an unfinished one? */
bool store_is_share(const char *name, bool *unfinished);
/* Sets `goes`. `current`: a name that stays, and whose unfinished file does not count; NULL: none. */
void store_choose(struct store_file *file, uint32_t n, const char *current, uint32_t n_keep);
/* Chooses and removes, and says in the log what and why. 0 or the number removed. */
int store_tidy(const char *folder, const char *current, uint32_t n_keep);

#endif
