/* give - lets other machines read the model files of this node: WEIGHTS_GET over any link that said HELLO.
 *
 * Files are those of struct node_files, opened when first asked for and mapped until they leave that list
 * and nothing of them is being read. Loop thread; reading is share_server's. At most MSG_FILES_MAX files in
 * the list and as many that left it and are still read. */
#ifndef NODE_GIVE_H
#define NODE_GIVE_H

#include "common/share/share_server.h"
#include "node/files.h"

struct give;

struct give_config {
    struct loop *loop;
    struct slots *slots;
    const struct node_files *files;                /* outlives it */
    uint32_t n_slot_left;                          /* see share_server.h */
    uint64_t bytes_per_s;                          /* at most; 0: as fast as it goes */
    void (*send)(void *ctx, uint32_t link, struct msg *m, struct payload take_payload);
    void *ctx;
};

int give_new(struct give **out, const struct give_config *config, struct err *e);
void give_free(struct give *g);                    /* before links, slots and loop; NULL is fine */
void give_on_get(struct give *g, uint32_t link, const struct msg_weights_get *get);
void give_on_closed(struct give *g, uint32_t link);
void give_files_changed(struct give *g);           /* lets go of what is not in the list any more */

#endif
