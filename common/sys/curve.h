/* curve - CURVE key pairs as text, by way of zmq.
 *
 * Pure, any thread. A pair is two texts of 40 characters (Z85) and an ending 0. Secrets are the caller's
 * to wipe. */
#ifndef SYS_CURVE_H
#define SYS_CURVE_H

#include "common/base/err.h"
#include "common/base/types.h"

enum { CURVE_TEXT = 41, CURVE_BYTES = 32 };

bool curve_is_supported(void);                    /* by the zmq that is loaded */
int curve_pair_new(char public_key[CURVE_TEXT], char secret_key[CURVE_TEXT], struct err *e);
int curve_public_of(const char *secret_key, char public_key[CURVE_TEXT], struct err *e);

/* Exactly 40 characters of Z85; else ERR_INVALID. The text does not appear in the reason. */
int curve_decode(const char *text, uint8_t out[CURVE_BYTES], struct err *e);
void curve_encode(const uint8_t key[CURVE_BYTES], char text[CURVE_TEXT]);

void curve_wipe(void *memory, size_t size);       /* zeros that no compiler leaves out */

#endif
