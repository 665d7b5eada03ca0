#include "common/sys/curve.h"

#include "common/base/check.h"

#include <zmq.h>

#include "common/base/banned.h"

bool curve_is_supported(void) {
    return zmq_has("curve");
}

static int unsupported(struct err *e) {
    return err_set(e, ERR_UNSUPPORTED, "this build of zmq cannot encrypt (no CURVE); see 'pleiades version'");
}

int curve_pair_new(char public_key[CURVE_TEXT], char secret_key[CURVE_TEXT], struct err *e) {
    if (!curve_is_supported()) return unsupported(e);
    if (zmq_curve_keypair(public_key, secret_key) == 0) return 0;
    return err_set(e, ERR_IO, "no key can be made: %s", zmq_strerror(zmq_errno()));
}

int curve_public_of(const char *secret_key, char public_key[CURVE_TEXT], struct err *e) {
    uint8_t bytes[CURVE_BYTES];
    if (!curve_is_supported()) return unsupported(e);
    int rc = curve_decode(secret_key, bytes, e);
    curve_wipe(bytes, sizeof bytes);
    if (rc < 0) return rc;
    if (zmq_curve_public(public_key, secret_key) == 0) return 0;
    return err_set(e, ERR_INVALID, "not a secret key");
}

/* Checked here as well: zmq's decoder takes any character. */
static bool is_z85(char c) {
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return true;
    return c && strchr(".-:+=^!/*?&<>()[]{}@%$#", c);
}

int curve_decode(const char *text, uint8_t out[CURVE_BYTES], struct err *e) {
    size_t n = 0;
    while (n < CURVE_TEXT && is_z85(text[n])) n++;
    if (n != CURVE_TEXT - 1 || text[n] != 0 || !zmq_z85_decode(out, text))
        return err_set(e, ERR_INVALID, "not a key: 40 characters of Z85 are expected");
    return 0;
}

void curve_encode(const uint8_t key[CURVE_BYTES], char text[CURVE_TEXT]) {
    CHECK(zmq_z85_encode(text, key, CURVE_BYTES));
}

void curve_wipe(void *memory, size_t size) {
    volatile unsigned char *p = memory;
    while (size--) *p++ = 0;
}
