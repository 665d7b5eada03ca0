/* api_memory - tool calls as the model wrote them (replay.h), for all threads of an endpoint, and over
 * restarts of the server.
 *
 * Requests are read on several threads and answers end on another, so there is a lock, held for a lookup
 * or a copy. With a file it is read once and then written anew when something was added: by whoever calls
 * api_memory_save, one thread at a time. What is in the file is an optimization: lost or damaged, earlier
 * calls are rendered anew. The file is its owner's alone, as it holds pieces of conversations. Limits: those
 * of the memory, the file a little more. */
#ifndef COORDINATOR_API_MEMORY_H
#define COORDINATOR_API_MEMORY_H

#include "coordinator/api_request.h"
#include "coordinator/replay.h"

struct api_memory;

int api_memory_new(struct api_memory **out, size_t bytes_max, struct err *e);        /* 0: the default */
void api_memory_free(struct api_memory *m);       /* NULL is fine; nothing is written */

/* It lies in this folder (made if it is not there), which nobody else may use meanwhile: ERR_BUSY. A file
 * that is damaged, or that others could have written, is not read: a line in the log. ERR_IO: the folder. */
int api_memory_keep_in(struct api_memory *m, const char *folder, struct err *e);
bool api_memory_is_due(const struct api_memory *m);      /* something was added since it was written */
int api_memory_save(struct api_memory *m, struct err *e);

/* Into a request's history, and from an answer. Both may be no-ops. */
void api_memory_recall(struct api_memory *m, struct api_request *r);
void api_memory_remember(struct api_memory *m, const struct chat_text *ids, size_t n_ids,
                         struct chat_text block);
struct replay_stats api_memory_stats(struct api_memory *m);

#endif
