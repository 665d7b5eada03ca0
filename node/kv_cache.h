/* kv_cache - the state that a range of layers keeps per sequence: window rows, compressor history,
 * compressed entries.
 *
 * One description serves growing, taking back, forking and saving: append-only pages of entries + fixed
 * rings + a length. Pages are counted references, so a fork shares them and copies only the page that is
 * still being filled. Entries behind the length are garbage that the next tokens overwrite; that is why
 * rollback is a smaller number. Belongs to the thread that runs the stage. Limits: n_slots sequences,
 * n_ctx_max tokens each, memory when it is asked for. */
#ifndef NODE_KV_CACHE_H
#define NODE_KV_CACHE_H

#include "common/base/buf.h"
#include "common/model/hparams.h"
#include "kernels/kernels.h"

struct kv_cache;

struct kv_config {
    const struct hparams *hp;                      /* outlives the cache */
    enum numerics numerics;
    uint32_t layer_begin, layer_end;
    uint32_t n_slots, n_ctx_max;
    bool mtp;                                      /* one more SWA layer: index layer_end */
};

int kv_cache_new(struct kv_cache **out, struct kernels *k, const struct kv_config *config, struct err *e);
void kv_cache_free(struct kv_cache *kv);                                        /* NULL is fine */

int kv_slot_open(struct kv_cache *kv, uint32_t *slot, struct err *e); /* ERR_BUSY: all slots taken */
void kv_slot_close(struct kv_cache *kv, uint32_t slot);
uint32_t kv_slot_len(const struct kv_cache *kv, uint32_t slot);                 /* tokens stored */
bool kv_slot_is_open(const struct kv_cache *kv, uint32_t slot);

/* Room for positions < n_tokens; call before a batch that goes there. On failure the slot is as before. */
int kv_slot_reserve(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens, struct err *e);
/* Around a batch: positions up to len + n_tokens are about to be written; they were, and count now. A
 * batch that fails in between has written over what the rings held; when it was longer than KV_ROLLBACK
 * the slot is no longer whole: it can only go back to 0 or be closed. */
void kv_slot_begin(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens);
void kv_slot_advance(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens);
bool kv_slot_is_whole(const struct kv_cache *kv, uint32_t slot);
/* Back to n_tokens. At most KV_ROLLBACK tokens behind the highest position ever written, or to 0. */
int kv_slot_rollback(struct kv_cache *kv, uint32_t slot, uint32_t n_tokens, struct err *e);
/* A new slot with the same tokens (n_tokens as in rollback). */
int kv_slot_fork(struct kv_cache *kv, uint32_t from, uint32_t n_tokens, uint32_t *slot, struct err *e);

/* The layer as kernels see it. */
const struct kv_layer *kv_layer_view(const struct kv_cache *kv, uint32_t layer);

/* Snapshot of one slot, device-independent:
 *   "PLKV" u32 version, numerics, n_tokens, n_written (with the tokens taken back), layer_begin,
 * layer_end, mtp, six u32 of shape, then per layer: window rows (positions n_written - n_swa -
 * KV_ROLLBACK .. n_tokens), history rows (likewise), entries, index history rows, keys; XXH3-128 of
 * everything before it. Restoring checks all of it: another model, another layer range or damage give an
 * error and leave no slot behind. */
int kv_slot_save(struct kv_cache *kv, uint32_t slot, struct buf *out, struct err *e);
int kv_slot_restore(struct kv_cache *kv, const void *data, size_t size, uint32_t *slot, struct err *e);

/* Device bytes in use by slots (pages and rings), and what one sequence of n_tokens will take. */
uint64_t kv_cache_bytes(const struct kv_cache *kv);
uint64_t kv_cache_bytes_for(const struct kv_cache *kv, uint32_t n_tokens);

#endif
