/* keyring - the keys of one machine: its own CURVE key pair, and who may connect to it.
 *
 * The coordinator's ring is a folder that `pleiades keys init` makes:
 *
 *     cluster.key       its key pair; written once, mode 0600
 *     cluster.clients   who may come in: machines that joined, and invitations; rewritten whole, mode 0600
 *
 * A node's ring is one file, given with --key: at first the one line that `pleiades keys invite` printed,
 * afterwards the node's own key pair and where to join.
 *
 * Joining. An invitation is a token: the coordinator's address and public key, and the secret key of a
 * client that may do one thing, say HELLO. The node makes a key pair of its own, keeps it on disk before
 * it dials, and names the public half in HELLO.key. keyring_admit() then writes that key under the node's
 * name into cluster.clients, and strikes an invitation made with --once out. From its next connection on
 * the node uses its own key, which never left it. So a token that is seen by others after it was used
 * (--once) or revoked is worth nothing, and each machine can be revoked alone.
 *
 * What the keys protect against: anybody who can reach the ports, listen or alter traffic. CURVE proves
 * both ends and encrypts. Not against: a machine that was let in (it sees the activations and answers of
 * its own links, and can spoil answers), and whoever reads the key files or uses an unspent token first:
 * the true machine is then refused, which the log of both says.
 *
 * Belongs to one thread (the loop's); files are read and written by blocking calls, at start and when
 * somebody joins. Secrets are wiped from memory when it is freed, and appear in no log and no message.
 * Limits: KEYRING_CLIENTS_MAX entries. */
#ifndef SYS_KEYRING_H
#define SYS_KEYRING_H

#include "common/base/err.h"
#include "common/base/types.h"

enum {
    KEY_TEXT = 41,                                /* Z85 with the ending 0 */
    KEYRING_CLIENTS_MAX = 1024, KEYRING_NAME_MAX = 64, KEYRING_TOKEN_MAX = 512, KEYRING_USER_MAX = 96
};

struct keyring;

/* ---- both ---- */

/* Whether this build of zmq can encrypt; ERR_UNSUPPORTED says so. */
int keyring_supported(struct err *e);
void keyring_free(struct keyring *k);             /* NULL is fine */
const char *keyring_public(const struct keyring *k);           /* ours, as HELLO.key says it */
/* Who has this key? Writes "node:NAME", "invite:NAME", "coordinator" or "peer" and says true. */
bool keyring_find(const struct keyring *k, const uint8_t key[32], char *user, size_t user_size);
bool keyring_knows(const struct keyring *k, const char *user); /* still */
/* Reads the list again if its file changed (somebody invited or revoked). Cheap when not. */
int keyring_refresh(struct keyring *k, struct err *e);

/* ---- coordinator ---- */

int keyring_open_cluster(struct keyring **out, const char *folder, struct err *e);
/* HELLO came over a link of `user` (struct link_view), saying `name` and `key`: 0 when that is right, and
 * written down for an invitation; ERR_DENIED with the reason for REFUSE. */
int keyring_admit(struct keyring *k, const char *user, const char *name, const char *key, struct err *e);

/* ---- node ---- */

/* The file of --key (a token, or what became of it); "-": one line of stdin; NULL: $PLEIADES_TOKEN. What
 * became of those two is kept at `store_path` (NULL: nowhere), and is enough when no token comes later. */
int keyring_open_node(struct keyring **out, const char *path, const char *store_path, struct err *e);
const char *keyring_server_address(const struct keyring *k);   /* tcp://HOST:PORT of the coordinator; "" */
const char *keyring_server_key(const struct keyring *k);
int keyring_enrolled(struct keyring *k, struct err *e);        /* WELCOME came: the token is forgotten */
/* Who else may connect to this machine: the keys of ASSIGN. The coordinator always may. */
void keyring_allow_nobody(struct keyring *k);
int keyring_allow(struct keyring *k, const char *key, struct err *e);

/* ---- for links ---- */

/* The pair to dial the door with `server_key` with: our own; the token's for the coordinator while we
 * are not enrolled. keyring_refused: that dial ended because of keys, so the other one is next. */
struct keyring_pair { const char *public_key, *secret_key; };
struct keyring_pair keyring_pair_for(const struct keyring *k, const char *server_key); /* NULL: our own */
void keyring_refused(struct keyring *k, const char *server_key);

/* ---- keys on disk, for `pleiades keys` ---- */

struct keyring_client {
    char name[KEYRING_NAME_MAX], key[KEY_TEXT];
    bool is_invite, once;
    int64_t created_s;
};

int keyring_init_cluster(const char *folder, struct err *e);   /* ERR_INVALID when there is one already */
/* Adds an invitation and writes its token. */
int keyring_invite(const char *folder, const char *name, bool once, const char *address,
                   char token[KEYRING_TOKEN_MAX], struct err *e);
int keyring_list(const char *folder, struct keyring_client **out, uint32_t *n, struct err *e);
int keyring_revoke(const char *folder, const char *name, struct err *e);   /* machine and invitation */

#endif
