#include "common/sys/zap.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/base/types.h"
#include "common/sys/clock.h"
#include "common/sys/keyring.h"
#include "common/sys/once.h"
#include "common/sys/zpump.h"

#include <zmq.h>

enum { ZAP_VERSION, ZAP_REQUEST, ZAP_DOMAIN, ZAP_ADDRESS, ZAP_IDENTITY, ZAP_MECHANISM, ZAP_KEY, ZAP_PARTS };

struct zap {
    void *socket;
    struct zpump *pump;
    struct keyring *keyring;
    struct once once;
};

static bool is_text(zmq_msg_t *part, const char *text) {
    return zmq_msg_size(part) == strlen(text) && memcmp(zmq_msg_data(part), text, strlen(text)) == 0;
}

/* Control characters and the like are the log's business; the length is ours. */
static void address_of(zmq_msg_t *part, char out[64]) {
    size_t n = MIN(zmq_msg_size(part), (size_t)63);
    memcpy(out, zmq_msg_data(part), n);
    out[n] = 0;
}

/* Fills `user` and says true for those who may come in. */
static bool decide(struct zap *z, zmq_msg_t part[ZAP_PARTS], int n, char user[KEYRING_USER_MAX]) {
    char address[64] = "?";
    struct err e;
    if (n > ZAP_ADDRESS) address_of(&part[ZAP_ADDRESS], address);
    if (n != ZAP_PARTS || !is_text(&part[ZAP_VERSION], "1.0") || !is_text(&part[ZAP_MECHANISM], "CURVE") ||
        zmq_msg_size(&part[ZAP_KEY]) != 32)
        return false;
    if (keyring_refresh(z->keyring, &e) < 0 && once_is_due(&z->once, "refresh", e.text, clock_now_ns()))
        log_error("keys", "%s", e.text);
    if (keyring_find(z->keyring, zmq_msg_data(&part[ZAP_KEY]), user, KEYRING_USER_MAX)) return true;
    if (once_is_due(&z->once, "key", address, clock_now_ns()))
        log_warn("keys", "refused a connection from %s: its key is not known here", address);
    return false;
}

static void answer(struct zap *z, zmq_msg_t part[ZAP_PARTS], int n, bool ok, const char *user) {
    const char *id = n > ZAP_REQUEST ? zmq_msg_data(&part[ZAP_REQUEST]) : "";
    size_t id_bytes = n > ZAP_REQUEST ? zmq_msg_size(&part[ZAP_REQUEST]) : 0;
    const char *code = ok ? "200" : "400", *text = ok ? "OK" : "unknown key";
    zmq_send(z->socket, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(z->socket, id, id_bytes, ZMQ_SNDMORE);
    zmq_send(z->socket, code, 3, ZMQ_SNDMORE);
    zmq_send(z->socket, text, strlen(text), ZMQ_SNDMORE);
    zmq_send(z->socket, user, strlen(user), ZMQ_SNDMORE);
    zmq_send(z->socket, "", 0, 0);
}

/* A REP socket takes the next request only after the answer, so every request gets one. */
static bool receive(void *ctx) {
    struct zap *z = ctx;
    zmq_msg_t part[ZAP_PARTS + 1];
    char user[KEYRING_USER_MAX] = "";
    int n = 0, more = 1;
    while (more) {
        zmq_msg_t *m = &part[MIN(n, (int)ZAP_PARTS)];
        if (n > ZAP_PARTS) zmq_msg_close(m);
        zmq_msg_init(m);
        if (zmq_msg_recv(m, z->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(m);
            break;
        }
        more = zmq_msg_more(m);
        n++;
    }
    if (n == 0) return false;
    bool ok = decide(z, part, n, user);
    answer(z, part, n, ok, ok ? user : "");
    for (int i = 0; i < MIN(n, ZAP_PARTS + 1); i++) zmq_msg_close(&part[i]);
    return true;
}

int zap_new(struct zap **out, struct loop *l, void *zmq, struct keyring *k, struct err *e) {
    struct zap *z = xcalloc(1, sizeof *z);
    int linger = 0, rc = 0;
    z->keyring = k;
    z->socket = zmq_socket(zmq, ZMQ_REP);
    if (z->socket) zmq_setsockopt(z->socket, ZMQ_LINGER, &linger, sizeof linger);
    if (!z->socket || zmq_bind(z->socket, "inproc://zeromq.zap.01") != 0)
        rc = err_set(e, ERR_IO, "connections cannot be guarded: %s", zmq_strerror(zmq_errno()));
    if (rc == 0) rc = zpump_new(&z->pump, l, z->socket, receive, z, e);
    if (rc < 0) {
        zap_free(z);
        return rc;
    }
    *out = z;
    return 0;
}

void zap_free(struct zap *z) {
    if (!z) return;
    zpump_free(z->pump);
    if (z->socket) zmq_close(z->socket);
    free(z);
}
