/* share_server - answers WEIGHTS_GET for a process that has files of a model: the coordinator, or a node.
 *
 * Its folder stands above model, wire and sys, because it is what joins them; coordinator and node both
 * use it. Belongs to the loop's thread. A question becomes a job: the server's own thread copies the
 * bytes into a slot (a file that is not in memory is waited for there, not in the loop) and hashes
 * them; the answer goes back through `send`. The asker decides how much is on its way; here at most
 * SHARE_JOBS_MAX questions wait, and one more is told ERR_BUSY. Slots are taken only while more than
 * n_slot_left are free, so what else the process does finds its own. */
#ifndef SHARE_SERVER_H
#define SHARE_SERVER_H

#include "common/model/share.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "common/wire/msg.h"

enum { SHARE_JOBS_MAX = 256, SHARE_READING_MAX = 16 };

struct share_server;

struct share_server_config {
    struct loop *loop;
    struct slots *slots;
    uint32_t n_slot_left;                          /* small slots that stay for others */
    uint64_t bytes_per_s;                          /* given away at most; 0: as fast as it goes */
    /* Where the bytes lie. They stay there while share_server_is_idle says false. */
    int (*find)(void *ctx, const struct share_ask *ask, struct share_part *out);
    /* m lacks what every message of the process has (epoch, incarnation). The payload is taken. */
    void (*send)(void *ctx, uint32_t link, struct msg *m, struct payload take_payload);
    void *ctx;
};

int share_server_new(struct share_server **out, const struct share_server_config *config, struct err *e);
void share_server_free(struct share_server *s);    /* before links, slots and loop; NULL is fine */
void share_server_on_get(struct share_server *s, uint32_t link, const struct msg_weights_get *get);
void share_server_on_closed(struct share_server *s, uint32_t link);        /* its questions are forgotten */
bool share_server_is_idle(const struct share_server *s);       /* nothing waits or is read; NULL is idle */

struct share_totals { uint64_t n_piece, bytes, n_refused; };
struct share_totals share_server_totals(const struct share_server *s);

#endif
