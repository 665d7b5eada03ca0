/* codec - struct msg to the bytes of proto/message.proto and back; the only place that knows protobuf.
 *
 * Packing keeps nothing. A codec is what unpacking needs: one block of CODEC_BYTES, taken at codec_new
 * and used anew for each message, so nothing from outside decides how much memory is taken. Both belong
 * to one thread at a time; a process needs one codec per thread that receives.
 *
 * After codec_unpack a core may rely on this, and need not look again:
 *   header    kind is one of enum msg_kind, its member is there and no other; incarnation is not 0
 *   enums     below their ..._MAX or ..._S; every count at most its MSG_..._MAX
 *   texts     end with 0 inside their array, are UTF-8 and hold no control characters; keys are empty
 *             or 40 characters long
 *   floats    temperature, top_p, min_p, bias, left_logit, sum are finite (lse may be NaN or infinite)
 *   HELLO     version_min <= version_max; held_begin <= held_end <= MSG_LAYERS_MAX
 *   ASSIGN    stage_i < n_stage; layer_begin < layer_end <= MSG_LAYERS_MAX; own experts and those of
 *             each helper are ranges, a helper's is not empty, helpers ascend and do not overlap;
 *             n_slot, n_ctx_max, n_rows_max are at least 1
 *   WORK      at least one segment, none empty; the segments' n sum up to n_row, which is the number of
 *             tokens; pos0 + n fits; tokens are not negative; wants ascend and are below n_row; a want's
 *             bias range lies in the list and ascends in it
 *   RESULT    rows ascend and are below MSG_ROWS_MAX
 *   SYNC      seq and dead ascend, seq below seq_next
 *   EXPERTS, EXPERTS_DONE     1 <= n_row <= MSG_ROWS_MAX; n_used <= MSG_USED_MAX
 *   WEIGHTS_GET  1 <= bytes <= MSG_PIECE_BYTES_MAX; offset + bytes fits
 *   WEIGHTS   offset <= total_bytes
 * What depends on a plan or a model (is there such a layer, such a token?) is the core's business; what
 * depends on the payload is frame's. */
#ifndef WIRE_CODEC_H
#define WIRE_CODEC_H

#include "common/base/buf.h"
#include "common/wire/msg.h"

enum {
    CODEC_BYTES = 512 * 1024                       /* the largest valid message needs less than half */
};

struct codec;

/* Appends the packed message. ERR_INVALID: one that codec_unpack would refuse for its counts or kind.
 * ERR_LIMIT: `out` may not grow so far. Texts are cleaned: what is not UTF-8 or is a control character
 * becomes '?'. */
int codec_pack(const struct msg *m, struct buf *out, struct err *e);

struct codec *codec_new(void);
void codec_free(struct codec *c);                  /* NULL is fine */
/* *out and what it points to live until the next codec_unpack or codec_free of this codec. ERR_CORRUPT
 * with the reason: not a message of ours; ERR_LIMIT: more than may be. */
int codec_unpack(struct codec *c, const void *data, size_t n, struct msg *out, struct err *e);

const char *msg_kind_name(enum msg_kind kind);     /* "WORK"; "?" for a number that is none */

#endif
