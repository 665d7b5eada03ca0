/* frame - how a message lies in a multipart message between two machines, and what is checked before
 * anything of it is parsed.
 *
 *     [identity, on a ROUTER] | header part: prefix, packed message | payload part, when there is one
 *
 *     prefix, 16 bytes, little endian:
 *       0  u32  MSG_MAGIC
 *       4  u16  protocol version that this message is written in
 *       6  u16  kind
 *       8  u32  bytes of the packed message, to the end of this part
 *      12  u32  bytes of the payload part; 0: there is none
 *
 * HELLO, WELCOME and REFUSE keep their layout in all versions (fields are only added), so that two
 * versions that have nothing in common can still say so: HELLO carries the range that its sender
 * speaks, the acceptor picks one with frame_version_pick and names it in WELCOME. Pure functions; no
 * state but the codec's. Limits: FRAME_HEADER_BYTES_MAX, and for the payload what the rules say. */
#ifndef WIRE_FRAME_H
#define WIRE_FRAME_H

#include "common/wire/codec.h"

enum {
    FRAME_PREFIX_BYTES = 16,
    FRAME_HEADER_BYTES_MAX = FRAME_PREFIX_BYTES + MSG_HEADER_BYTES_MAX,
    FRAME_PARTS_MAX = 2                            /* without the identity */
};

#define FRAME_KIND(kind) (UINT64_C(1) << (kind))

struct frame_prefix {
    uint32_t version;
    enum msg_kind kind;
    uint32_t header_bytes, payload_bytes;          /* header_bytes: without the prefix */
};

/* What a link accepts now. A link whose other end is not known yet takes FRAME_KIND(MSG_HELLO) only
 * (or, on the connecting side, WELCOME and REFUSE) and no payload. */
struct frame_rules {
    uint64_t kinds;                                /* FRAME_KIND bits; 0: all */
    uint32_t payload_bytes_max;
};

/* Appends prefix and message to `out`. The payload part is the caller's to send after it. */
int frame_pack(const struct msg *m, uint32_t payload_bytes, struct buf *out, struct err *e);

/* Looks at the first 16 bytes and the sizes alone: magic, version, kind, lengths. n is the size of the
 * header part. ERR_INVALID: not one of ours (another magic, another length). ERR_UNSUPPORTED: another
 * version; *out is filled in. ERR_LIMIT: larger than may be. ERR_DENIED: a kind that the rules exclude. */
int frame_peek(const void *header, size_t n, uint64_t payload_bytes, const struct frame_rules *rules,
               struct frame_prefix *out, struct err *e);

/* frame_peek, codec_unpack, and whether the payload fits the message: n_vocab, parts of rows and pieces
 * lie in it, kinds without payload have none. */
int frame_unpack(struct codec *c, const void *header, size_t n, uint64_t payload_bytes,
                 const struct frame_rules *rules, struct msg *out, struct err *e);

/* The highest version that both speak; 0: none. */
uint32_t frame_version_pick(uint32_t version_min, uint32_t version_max);

#endif
