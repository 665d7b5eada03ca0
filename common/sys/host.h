/* host - what the system says of this machine: its memory, its name, and the address under which another
 * machine sees it.
 *
 * Any thread. Nothing is sent: the address is the one that the routing table would use. */
#ifndef SYS_HOST_H
#define SYS_HOST_H

#include "common/base/err.h"
#include "common/base/types.h"

enum { HOST_NAME_MAX_BYTES = 64, HOST_ADDRESS_MAX = 64 };

uint64_t host_memory_bytes(void);                 /* installed; 0: the system does not say */
uint32_t host_cores(void);                        /* that this process may use */
/* Letters, digits, '.', '_' and '-' only; "node" when the system has no name. */
void host_name(char out[HOST_NAME_MAX_BYTES]);
/* Our numeric address on the way to HOST (name or number). */
int host_address_towards(const char *host, const char *port, char out[HOST_ADDRESS_MAX], struct err *e);

/* Splits tcp://HOST:PORT or HOST:PORT; an IPv6 address stands in brackets. */
struct host_port { char host[256], port[16]; };
int host_port_parse(const char *text, struct host_port *out, struct err *e);

#endif
