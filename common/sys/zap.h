/* zap - the guard at the doors of a process: says to zmq which client keys may come in.
 *
 * Answers ZMTP authentication requests (RFC 27, inproc://zeromq.zap.01) on the loop's thread from a
 * keyring, one at a time. A key that the ring does not know is rejected and logged once per address.
 * zmq shows the name that the ring gives ("node:NAME") with every message of the connection. A request
 * that is no CURVE request is rejected. */
#ifndef SYS_ZAP_H
#define SYS_ZAP_H

#include "common/base/err.h"

struct keyring;
struct loop;
struct zap;

int zap_new(struct zap **out, struct loop *l, void *zmq, struct keyring *k, struct err *e);
void zap_free(struct zap *z);                     /* NULL is fine */

#endif
