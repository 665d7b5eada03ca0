/* payload - names bytes that lie in a slot of this process (common/sys/slots.h).
 *
 * Cores, messages and links pass this name around instead of the bytes; whoever has it is the owner,
 * unless a contract says borrowed. A slot number that was freed comes back with another generation, so
 * an old name finds nothing. A plain value: no thread, no memory. */
#ifndef BASE_PAYLOAD_H
#define BASE_PAYLOAD_H

#include <stdint.h>

struct payload {
    uint32_t slot, generation;                     /* generation 0: no payload */
    uint32_t offset, bytes;
};

#endif
