/* keyring - who is known, who is let in, and which pair is used for which door. */
#include "common/sys/keyring.h"

#include "common/base/check.h"
#include "common/sys/clock.h"
#include "common/sys/keyring_private.h"

#include <stdio.h>

enum { ALLOWED_MAX = 256 };

struct keyring {
    bool is_cluster;
    struct key_pair own;
    /* coordinator */
    char folder[FILE_PATH_MAX];
    struct key_list list;
    struct file_facts facts;
    /* node */
    char path[FILE_PATH_MAX];                     /* "": nothing is kept */
    struct node_file node;
    struct key_pair token;                        /* of the invitation, while there is one */
    bool try_own;                                 /* before the token: perhaps we joined already */
    bool changed;                                 /* what is on disk is older */
    char url[KEYRING_ADDRESS_MAX + 8];
    char allowed[ALLOWED_MAX][KEY_TEXT];
    uint32_t n_allowed;
};

int keyring_supported(struct err *e) {
    if (curve_is_supported()) return 0;
    return err_set(e, ERR_UNSUPPORTED, "this build of zmq cannot encrypt (no CURVE); see 'pleiades version'");
}

void keyring_free(struct keyring *k) {
    if (!k) return;
    key_list_free(&k->list);
    curve_wipe(k, sizeof *k);
    free(k);
}

const char *keyring_public(const struct keyring *k) {
    return k->own.public_key;
}

/* ---- who is it? ---- */

static bool name_user(char *user, size_t size, const char *what, const char *name) {
    snprintf(user, size, "%s%s", what, name);
    return true;
}

bool keyring_find(const struct keyring *k, const uint8_t key[32], char *user, size_t user_size) {
    char text[KEY_TEXT];
    curve_encode(key, text);
    if (!k->is_cluster && strcmp(text, k->node.server_key) == 0)
        return name_user(user, user_size, "coordinator", "");
    for (uint32_t i = 0; i < k->n_allowed; i++)
        if (strcmp(text, k->allowed[i]) == 0) return name_user(user, user_size, "peer:", text);
    for (uint32_t i = 0; i < k->list.n; i++) {
        const struct keyring_client *c = &k->list.client[i];
        if (strcmp(text, c->key) == 0)
            return name_user(user, user_size, c->is_invite ? "invite:" : "node:", c->name);
    }
    return false;
}

static struct keyring_client *find_client(const struct key_list *list, bool is_invite, const char *name) {
    for (uint32_t i = 0; i < list->n; i++)
        if (list->client[i].is_invite == is_invite && strcmp(list->client[i].name, name) == 0)
            return &list->client[i];
    return NULL;
}

static struct keyring_client *client_of(const struct key_list *list, const char *user) {
    if (strncmp(user, "invite:", 7) == 0) return find_client(list, true, user + 7);
    if (strncmp(user, "node:", 5) == 0) return find_client(list, false, user + 5);
    return NULL;
}

bool keyring_knows(const struct keyring *k, const char *user) {
    if (k->is_cluster) return client_of(&k->list, user) != NULL;
    if (strcmp(user, "coordinator") == 0) return true;
    for (uint32_t i = 0; strncmp(user, "peer:", 5) == 0 && i < k->n_allowed; i++)
        if (strcmp(user + 5, k->allowed[i]) == 0) return true;
    return false;
}

/* ---- coordinator ---- */

int keyring_open_cluster(struct keyring **out, const char *folder, struct err *e) {
    int rc = keyring_supported(e);
    if (rc < 0) return rc;
    size_t n = strlen(folder);
    if (n + 32 > FILE_PATH_MAX) return err_set(e, ERR_INVALID, "the name of the key folder is too long");
    struct keyring *k = xcalloc(1, sizeof *k);
    k->is_cluster = true;
    memcpy(k->folder, folder, n);
    const char *file = "/cluster.key";            /* the file itself is a fine name for its folder */
    if (n > strlen(file) && strcmp(folder + n - strlen(file), file) == 0) k->folder[n - strlen(file)] = 0;
    rc = cluster_key_read(k->folder, &k->own, e);
    if (rc == 0) rc = key_list_read(k->folder, &k->list, &k->facts, e);
    if (rc < 0) {
        keyring_free(k);
        return rc;
    }
    *out = k;
    return 0;
}

/* After a failure the list before stays valid, and the next call tries again. */
int keyring_refresh(struct keyring *k, struct err *e) {
    char path[FILE_PATH_MAX + 32];
    struct file_facts facts;
    if (!k->is_cluster) return 0;
    snprintf(path, sizeof path, "%s/cluster.clients", k->folder);
    int rc = file_facts(&facts, path, e);
    if (rc < 0 || memcmp(&facts, &k->facts, sizeof facts) == 0) return rc;
    struct key_list list;
    rc = key_list_read(k->folder, &list, &facts, e);
    if (rc < 0) return rc;
    key_list_free(&k->list);
    k->list = list;
    k->facts = facts;
    return 0;
}

struct enrolment { const char *user, *name, *key; };

static int enrol(void *ctx, struct key_list *list, struct err *e) {
    const struct enrolment *want = ctx;
    struct keyring_client *invite = client_of(list, want->user);
    struct keyring_client *node = find_client(list, false, want->name);
    if (!invite) return err_set(e, ERR_DENIED, "this invitation was used or revoked");
    if (node && strcmp(node->key, want->key) != 0)
        return err_set(
            e, ERR_DENIED,
            "a machine named %s joined with another key; 'pleiades keys revoke %s' first",
            want->name, want->name);
    if (!node && list->n == KEYRING_CLIENTS_MAX) return err_set(e, ERR_LIMIT, "the list of machines is full");
    bool once = invite->once;
    if (once) *invite = list->client[--list->n];
    if (node && once) node = find_client(list, false, want->name);   /* it may have been the one that moved */
    if (!node) {
        node = &list->client[list->n++];
        memset(node, 0, sizeof *node);
        snprintf(node->name, sizeof node->name, "%s", want->name);
        memcpy(node->key, want->key, KEY_TEXT);
        node->created_s = (int64_t)(clock_wall_ms() / 1000);
    }
    return 0;
}

int keyring_admit(struct keyring *k, const char *user, const char *name, const char *key, struct err *e) {
    uint8_t bytes[CURVE_BYTES];
    CHECK(k->is_cluster);
    int rc = keyring_refresh(k, e);
    if (rc < 0) return rc;
    const struct keyring_client *c = client_of(&k->list, user);
    if (!c) return err_set(e, ERR_DENIED, "this key was revoked, or its invitation used");
    if (!key_name_is_valid(name) || curve_decode(key, bytes, NULL) < 0)
        return err_set(e, ERR_DENIED, "no usable name, or no public key in HELLO");
    if (c->is_invite) {
        rc = key_list_change(k->folder, enrol, &(struct enrolment){ user, name, key }, e);
        return rc < 0 ? rc : keyring_refresh(k, e);
    }
    if (strcmp(c->name, name) == 0 && strcmp(c->key, key) == 0) return 0;
    return err_set(e, ERR_DENIED, "this key belongs to the machine %s", c->name);
}

/* ---- node ---- */

static int use_token(struct keyring *k, const char *text, struct err *e) {
    struct token t;
    int rc = token_decode(text, &t, e);
    if (rc < 0) return rc;
    /* Perhaps we have joined that cluster with this token before; or we were revoked, and it is a new one. */
    k->try_own = strcmp(t.server_key, k->node.server_key) == 0 && !k->node.token_secret[0];
    k->changed = true;
    memcpy(k->node.address, t.address, sizeof t.address);
    memcpy(k->node.server_key, t.server_key, KEY_TEXT);
    memcpy(k->node.token_secret, t.secret_key, KEY_TEXT);
    curve_wipe(&t, sizeof t);
    if (k->node.own.secret_key[0]) return 0;
    return curve_pair_new(k->node.own.public_key, k->node.own.secret_key, e);
}

static char *trimmed(char *text) {
    text += strspn(text, " \t\r\n");
    text[strcspn(text, " \t\r\n")] = 0;
    return text;
}

/* A file that was stored by a run before, if there is one. */
static int load_stored(struct keyring *k, struct err *e) {
    char *text;
    int rc = k->path[0] ? private_read(k->path, &text, e) : ERR_NOTFOUND;
    if (rc < 0) return rc == ERR_NOTFOUND ? 0 : rc;
    rc = node_file_parse(text, k->path, &k->node, e);
    private_free(text);
    return rc;
}

static int from_text(struct keyring *k, char *text, const char *path, struct err *e) {
    char *token = text + strspn(text, " \t\r\n");
    if (!token_is_one(token)) return node_file_parse(text, path, &k->node, e);
    return use_token(k, trimmed(token), e);
}

static int from_file(struct keyring *k, const char *path, struct err *e) {
    char *text;
    if (strlen(path) >= sizeof k->path)
        return err_set(e, ERR_INVALID, "the name of the key file is too long");
    memcpy(k->path, path, strlen(path));
    int rc = private_read(path, &text, e);
    if (rc < 0) return rc;
    rc = from_text(k, text, path, e);
    private_free(text);
    return rc;
}

/* "" when there is none. */
static void read_token(char line[KEYRING_TOKEN_MAX], bool from_stdin) {
    const char *env = getenv("PLEIADES_TOKEN");
    if (from_stdin && !fgets(line, KEYRING_TOKEN_MAX, stdin)) line[0] = 0;
    if (!from_stdin && env && strlen(env) < KEYRING_TOKEN_MAX) memcpy(line, env, strlen(env) + 1);
}

/* Who is started again brings the token once more, or nothing: what was stored is enough. */
static int from_elsewhere(struct keyring *k, bool from_stdin, const char *store_path, struct err *e) {
    char line[KEYRING_TOKEN_MAX] = "";
    if (store_path && strlen(store_path) < sizeof k->path) memcpy(k->path, store_path, strlen(store_path));
    int rc = load_stored(k, e);
    if (rc < 0) return rc;
    read_token(line, from_stdin);
    const char *token = trimmed(line);
    if (*token) rc = use_token(k, token, e);
    else if (!k->node.own.secret_key[0])
        rc = err_set(e, ERR_NOTFOUND, "no join token %s", from_stdin ? "on stdin" : "in $PLEIADES_TOKEN");
    curve_wipe(line, sizeof line);
    return rc;
}

/* The own pair is on disk before anybody hears of it: after a crash the same machine comes back. A machine
 * that has joined writes nothing any more: its file may lie where only reading is possible. */
int keyring_open_node(struct keyring **out, const char *path, const char *store_path, struct err *e) {
    int rc = keyring_supported(e);
    if (rc < 0) return rc;
    struct keyring *k = xcalloc(1, sizeof *k);
    rc = path && strcmp(path, "-") != 0 ? from_file(k, path, e) : from_elsewhere(k, path, store_path, e);
    if (rc == 0 && k->path[0] && k->changed) rc = node_file_write(k->path, &k->node, e);
    if (rc == 0 && k->node.token_secret[0]) {
        memcpy(k->token.secret_key, k->node.token_secret, KEY_TEXT);
        rc = curve_public_of(k->token.secret_key, k->token.public_key, e);
    }
    if (rc < 0) {
        keyring_free(k);
        return rc;
    }
    k->own = k->node.own;
    snprintf(k->url, sizeof k->url, "tcp://%s", k->node.address);
    *out = k;
    return 0;
}

const char *keyring_server_address(const struct keyring *k) {
    return k->url;
}

const char *keyring_server_key(const struct keyring *k) {
    return k->node.server_key;
}

int keyring_enrolled(struct keyring *k, struct err *e) {
    if (!k->node.token_secret[0]) return 0;
    curve_wipe(k->node.token_secret, sizeof k->node.token_secret);
    curve_wipe(&k->token, sizeof k->token);
    return k->path[0] ? node_file_write(k->path, &k->node, e) : 0;
}

void keyring_allow_nobody(struct keyring *k) {
    k->n_allowed = 0;
}

int keyring_allow(struct keyring *k, const char *key, struct err *e) {
    uint8_t bytes[CURVE_BYTES];
    int rc = curve_decode(key, bytes, e);
    if (rc < 0) return rc;
    if (k->n_allowed == ALLOWED_MAX) return err_set(e, ERR_LIMIT, "more than %d machines", ALLOWED_MAX);
    memcpy(k->allowed[k->n_allowed++], key, KEY_TEXT);
    return 0;
}

/* ---- links ---- */

struct keyring_pair keyring_pair_for(const struct keyring *k, const char *server_key) {
    bool token = server_key && !k->is_cluster && k->token.secret_key[0] && !k->try_own &&
                 strcmp(server_key, k->node.server_key) == 0;
    const struct key_pair *pair = token ? &k->token : &k->own;
    return (struct keyring_pair){ pair->public_key, pair->secret_key };
}

void keyring_refused(struct keyring *k, const char *server_key) {
    if (!k->is_cluster && strcmp(server_key, k->node.server_key) == 0) k->try_own = !k->try_own;
}

/* ---- `pleiades keys` ---- */

static int change_nothing(void *ctx, struct key_list *list, struct err *e) {
    (void)ctx;
    (void)list;
    (void)e;
    return 0;
}

int keyring_init_cluster(const char *folder, struct err *e) {
    struct key_pair pair;
    struct file_facts facts;
    char path[FILE_PATH_MAX];
    if (strlen(folder) + 32 > FILE_PATH_MAX)
        return err_set(e, ERR_INVALID, "the name of the folder is too long");
    snprintf(path, sizeof path, "%s/cluster.key", folder);
    if (file_facts(&facts, path, NULL) == 0)
        return err_set(e, ERR_INVALID, "%s is there already; delete it to begin a new cluster", path);
    int rc = file_make_folder(folder, e);
    if (rc == 0) rc = curve_pair_new(pair.public_key, pair.secret_key, e);
    if (rc == 0) rc = key_list_change(folder, change_nothing, NULL, e);
    if (rc == 0) rc = cluster_key_write(folder, &pair, e);    /* last: with it the cluster exists */
    curve_wipe(&pair, sizeof pair);
    return rc;
}

static int add_invite(void *ctx, struct key_list *list, struct err *e) {
    const struct keyring_client *c = ctx;
    if (find_client(list, true, c->name))
        return err_set(e, ERR_INVALID, "there is an invitation named %s already", c->name);
    if (list->n == KEYRING_CLIENTS_MAX)
        return err_set(e, ERR_LIMIT, "no more than %d machines and invitations", KEYRING_CLIENTS_MAX);
    list->client[list->n++] = *c;
    return 0;
}

static void name_invite(struct keyring_client *c, const char *name) {
    if (name) snprintf(c->name, sizeof c->name, "%s", name);
    else
        snprintf(c->name, sizeof c->name, "invite-%llx",
                 (unsigned long long)(clock_wall_ms() & 0xffffffffff));
}

int keyring_invite(const char *folder, const char *name, bool once, const char *address,
                   char token[KEYRING_TOKEN_MAX], struct err *e) {
    struct token t = { .address = "" };
    struct key_pair cluster = { .public_key = "" };
    struct keyring_client c = { .is_invite = true,
                                .once = once,
                                .created_s = (int64_t)(clock_wall_ms() / 1000) };
    if (name && !key_name_is_valid(name))
        return err_set(e, ERR_INVALID, "a name has 1 to %d letters, digits, '.', '_' and '-'",
                       KEYRING_NAME_MAX - 1);
    if (!key_address_is_valid(address))
        return err_set(e, ERR_INVALID, "--address is HOST:PORT, where machines reach 'pleiades serve'");
    int rc = cluster_key_read(folder, &cluster, e);
    if (rc == 0) rc = curve_pair_new(c.key, t.secret_key, e);
    if (rc == 0) {
        name_invite(&c, name);
        memcpy(t.server_key, cluster.public_key, KEY_TEXT);
        memcpy(t.address, address, strlen(address));
        rc = token_encode(&t, token, e);
    }
    if (rc == 0) rc = key_list_change(folder, add_invite, &c, e);
    curve_wipe(&cluster, sizeof cluster);
    curve_wipe(&t, sizeof t);
    return rc;
}

int keyring_list(const char *folder, struct keyring_client **out, uint32_t *n, struct err *e) {
    struct key_list list;
    struct file_facts facts;
    int rc = key_list_read(folder, &list, &facts, e);
    if (rc < 0) return rc;
    *out = list.client;
    *n = list.n;
    return 0;
}

static int remove_name(void *ctx, struct key_list *list, struct err *e) {
    const char *name = ctx;
    uint32_t n = 0;
    for (uint32_t i = 0; i < list->n; i++)
        if (strcmp(list->client[i].name, name) != 0) list->client[n++] = list->client[i];
    if (n == list->n) return err_set(e, ERR_NOTFOUND, "nobody is named %s here", name);
    list->n = n;
    return 0;
}

int keyring_revoke(const char *folder, const char *name, struct err *e) {
    char copy[KEYRING_NAME_MAX];
    if (!key_name_is_valid(name)) return err_set(e, ERR_INVALID, "'%s' is no name", name);
    memcpy(copy, name, strlen(name) + 1);
    return key_list_change(folder, remove_name, copy, e);
}
