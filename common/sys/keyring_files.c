/* keyring_files - the three texts on disk, and the token.
 *
 * Lines of words; '#' begins a comment. The first line says what the file is and its version:
 *
 *     pleiades-cluster 1         pleiades-clients 1                       pleiades-node 1
 *     public KEY                 node NAME KEY SECONDS                    public KEY
 *     secret KEY                 invite NAME KEY SECONDS once|many        secret KEY
 *                                                                         server HOST:PORT KEY
 *                                                                         token SECRET      (not yet joined)
 *
 * A token is "pleiades1:" and, in base64url without padding: server key (32 bytes), client secret (32),
 * address (as text), and the low 32 bits of the XXH3 of all that, so that a lost character is noticed. */
#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/sys/clock.h"
#include "common/sys/keyring_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static const char token_prefix[] = "pleiades1:";
static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

bool key_name_is_valid(const char *name) {
    size_t n = strlen(name);
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!fine && c != '.' && c != '_' && c != '-') return false;
    }
    return n > 0 && n < KEYRING_NAME_MAX;
}

bool key_address_is_valid(const char *address) {
    const char *colon = strrchr(address, ':');
    if (!colon || colon == address || strlen(address) >= KEYRING_ADDRESS_MAX - 6) return false;
    for (const char *c = address; *c; c++)
        if (*c <= ' ' || *c > '~' || *c == '/') return false;
    unsigned port = 0;
    for (const char *c = colon + 1; *c; c++) {
        if (*c < '0' || *c > '9' || port > 65535) return false;
        port = port * 10 + (unsigned)(*c - '0');
    }
    return port > 0 && port <= 65535;
}

/* ---- base64url ---- */

static void base64_encode(const uint8_t *in, size_t n, char *out) {
    uint32_t bits = 0;
    int n_bits = 0;
    for (size_t i = 0; i < n; i++) {
        bits = bits << 8 | in[i];
        for (n_bits += 8; n_bits >= 6; n_bits -= 6) *out++ = letters[bits >> (n_bits - 6) & 63];
    }
    if (n_bits) *out++ = letters[bits << (6 - n_bits) & 63];
    *out = 0;
}

/* Bytes written, or -1. */
static int base64_decode(const char *in, uint8_t *out, size_t room) {
    uint32_t bits = 0;
    int n_bits = 0, n = 0;
    for (; *in; in++) {
        const char *at = strchr(letters, *in);
        if (!at) return -1;
        bits = bits << 6 | (uint32_t)(at - letters);
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        if ((size_t)n == room) return -1;
        out[n++] = (uint8_t)(bits >> n_bits);
    }
    return n;
}

/* ---- tokens ---- */

bool token_is_one(const char *text) {
    return strncmp(text, token_prefix, strlen(token_prefix)) == 0;
}

enum { TOKEN_BYTES_MAX = 2 * CURVE_BYTES + KEYRING_ADDRESS_MAX + 4 };

static uint32_t checksum(const uint8_t *bytes, size_t n) {
    return (uint32_t)hash_64(bytes, n, 1);
}

int token_encode(const struct token *t, char out[KEYRING_TOKEN_MAX], struct err *e) {
    uint8_t bytes[TOKEN_BYTES_MAX];
    size_t n = strlen(t->address);
    int rc = curve_decode(t->server_key, bytes, e);
    if (rc == 0) rc = curve_decode(t->secret_key, bytes + CURVE_BYTES, e);
    if (rc < 0) return rc;
    memcpy(bytes + 2 * CURVE_BYTES, t->address, n);
    n += 2 * CURVE_BYTES;
    uint32_t sum = checksum(bytes, n);
    for (int i = 0; i < 4; i++) bytes[n++] = (uint8_t)(sum >> 8 * i);
    memcpy(out, token_prefix, sizeof token_prefix);
    base64_encode(bytes, n, out + strlen(token_prefix));
    curve_wipe(bytes, sizeof bytes);
    return 0;
}

int token_decode(const char *text, struct token *out, struct err *e) {
    uint8_t bytes[TOKEN_BYTES_MAX];
    memset(out, 0, sizeof *out);
    if (!token_is_one(text))
        return err_set(e, ERR_INVALID, "not a join token: it begins with %s", token_prefix);
    int n = base64_decode(text + strlen(token_prefix), bytes, sizeof bytes) - 4;
    uint32_t sum = 0;
    for (int i = 0; i < 4 && n > 0; i++) sum |= (uint32_t)bytes[n + i] << 8 * i;
    if (n <= 2 * CURVE_BYTES || sum != checksum(bytes, (size_t)n)) {
        curve_wipe(bytes, sizeof bytes);
        return err_set(e, ERR_INVALID, "the join token is damaged: copy the whole line again");
    }
    curve_encode(bytes, out->server_key);
    curve_encode(bytes + CURVE_BYTES, out->secret_key);
    memcpy(out->address, bytes + 2 * CURVE_BYTES, MIN((size_t)n - 2 * CURVE_BYTES, sizeof out->address - 1));
    curve_wipe(bytes, sizeof bytes);
    if (key_address_is_valid(out->address)) return 0;
    curve_wipe(out, sizeof *out);
    return err_set(e, ERR_INVALID, "the join token names no HOST:PORT");
}

/* ---- reading ---- */

/* The size stands before the text: parsing puts zeros into it. */
static char *private_new(size_t size) {
    size_t *memory = xcalloc(1, sizeof size + size + 1);
    *memory = size;
    return (char *)(memory + 1);
}

void private_free(char *text) {
    if (!text) return;
    size_t *memory = (size_t *)(void *)text - 1;
    curve_wipe(text, *memory);
    free(memory);
}

static int read_fd(int fd, const char *path, char **out, struct err *e) {
    struct stat st;
    if (fstat(fd, &st) < 0) return err_errno(e, ERR_IO, "%s", path);
    if (!S_ISREG(st.st_mode)) return err_set(e, ERR_INVALID, "%s: not a plain file", path);
    if (st.st_mode & 077)
        return err_set(e, ERR_DENIED,
                       "%s: others may read or change this secret (mode %03o): chmod 600 %s", path,
                       (unsigned)st.st_mode & 0777, path);
    if (st.st_size > KEYRING_FILE_MAX) return err_set(e, ERR_LIMIT, "%s: too large for a key file", path);
    char *text = private_new((size_t)st.st_size);
    for (size_t n = 0; n < (size_t)st.st_size;) {
        ssize_t got = read(fd, text + n, (size_t)st.st_size - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            private_free(text);
            return err_errno(e, ERR_IO, "%s: read", path);
        }
        n += (size_t)got;
    }
    *out = text;
    return 0;
}

int private_read(const char *path, char **out, struct err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s", path);
    int rc = read_fd(fd, path, out, e);
    close(fd);
    return rc;
}

/* The next line in words; comments and empty lines are skipped. Number of words, 0 at the end. */
enum { WORDS_MAX = 6 };
static int next_line(char **at, char *word[WORDS_MAX]) {
    while (**at) {
        char *line = *at, *end = line + strcspn(line, "\n");
        int n = 0;
        *at = *end ? end + 1 : end;
        *end = 0;
        if (*line == '#') continue;
        for (char *save = NULL, *w = strtok_r(line, " \t\r", &save); w; w = strtok_r(NULL, " \t\r", &save)) {
            if (n == WORDS_MAX) return -1;
            word[n++] = w;
        }
        if (n) return n;
    }
    return 0;
}

/* One key of a line into its place; checked. */
static bool take_key(char to[KEY_TEXT], const char *text) {
    uint8_t bytes[CURVE_BYTES];
    bool fine = curve_decode(text, bytes, NULL) == 0;
    curve_wipe(bytes, sizeof bytes);
    if (fine) memcpy(to, text, KEY_TEXT);
    return fine;
}

static bool begins(char **at, const char *what) {
    char *word[WORDS_MAX];
    return next_line(at, word) == 2 && strcmp(word[0], what) == 0 && strcmp(word[1], "1") == 0;
}

static int damaged(const char *path, const char *what, struct err *e) {
    return err_set(e, ERR_CORRUPT, "%s: not a %s file, or damaged", path, what);
}

static bool take_pair(struct key_pair *pair, char **word, int n) {
    if (n != 2) return false;
    if (strcmp(word[0], "public") == 0) return take_key(pair->public_key, word[1]);
    return strcmp(word[0], "secret") == 0 && take_key(pair->secret_key, word[1]);
}

static bool pair_is_whole(const struct key_pair *pair) {
    char public_key[KEY_TEXT];
    return pair->secret_key[0] && curve_public_of(pair->secret_key, public_key, NULL) == 0 &&
           memcmp(public_key, pair->public_key, KEY_TEXT) == 0;
}

static void path_in(const char *folder, const char *name, char out[FILE_PATH_MAX]) {
    snprintf(out, FILE_PATH_MAX, "%s/%s", folder, name);
}

int cluster_key_read(const char *folder, struct key_pair *out, struct err *e) {
    char path[FILE_PATH_MAX], *text, *word[WORDS_MAX];
    memset(out, 0, sizeof *out);
    path_in(folder, "cluster.key", path);
    int rc = private_read(path, &text, e), n;
    if (rc == ERR_NOTFOUND)
        return err_set(e, rc, "%s: no cluster key there; 'pleiades keys init' makes one", path);
    if (rc < 0) return rc;
    char *at = text;
    bool fine = begins(&at, "pleiades-cluster");
    while (fine && (n = next_line(&at, word))) fine = take_pair(out, word, n);
    if (!fine || !pair_is_whole(out)) rc = damaged(path, "cluster key", e);
    private_free(text);
    return rc;
}

static bool take_client(struct key_list *list, char **word, int n) {
    if (n < 4 || list->n == KEYRING_CLIENTS_MAX) return false;
    struct keyring_client *c = &list->client[list->n++];
    c->is_invite = strcmp(word[0], "invite") == 0;
    if ((!c->is_invite && strcmp(word[0], "node") != 0) || n != (c->is_invite ? 5 : 4)) return false;
    if (!key_name_is_valid(word[1]) || !take_key(c->key, word[2])) return false;
    memcpy(c->name, word[1], strlen(word[1]) + 1);
    c->created_s = strtoll(word[3], NULL, 10);
    c->once = c->is_invite && strcmp(word[4], "once") == 0;
    return true;
}

bool key_list_parse(char *text, struct key_list *out) {
    char *at = text, *word[WORDS_MAX];
    int n;
    *out = (struct key_list){ .client = xcalloc(KEYRING_CLIENTS_MAX, sizeof *out->client) };
    bool fine = begins(&at, "pleiades-clients");
    while (fine && (n = next_line(&at, word))) fine = take_client(out, word, n);
    return fine;
}

int key_list_read(const char *folder, struct key_list *out, struct file_facts *facts, struct err *e) {
    char path[FILE_PATH_MAX], *text;
    path_in(folder, "cluster.clients", path);
    int rc = file_facts(facts, path, e);          /* before: a change in between is read again */
    if (rc == 0) rc = private_read(path, &text, e);
    if (rc < 0) return rc;
    bool fine = key_list_parse(text, out);
    private_free(text);
    if (fine) return 0;
    key_list_free(out);
    return damaged(path, "cluster clients", e);
}

void key_list_free(struct key_list *list) {
    free(list->client);
    *list = (struct key_list){ .n = 0 };
}

/* ---- writing ---- */

static int write_line(struct file_writer *w, struct err *e, const char *format, ...) PRINTF_LIKE(3, 4);
static int write_line(struct file_writer *w, struct err *e, const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    CHECK(n >= 0 && (size_t)n < sizeof line);
    int rc = file_writer_write(w, line, (size_t)n, e);
    curve_wipe(line, sizeof line);
    return rc;
}

static int finish(struct file_writer *w, int rc, struct err *e) {
    if (rc == 0) return file_writer_finish(w, e);
    file_writer_abort(w);
    return rc;
}

int cluster_key_write(const char *folder, const struct key_pair *pair, struct err *e) {
    char path[FILE_PATH_MAX];
    struct file_writer *w;
    path_in(folder, "cluster.key", path);
    int rc = file_writer_new_private(&w, path, e);
    if (rc < 0) return rc;
    rc = write_line(
        w, e,
        "# Secret of a Pleiades coordinator. Machines get what 'pleiades keys invite' prints.\n"
        "pleiades-cluster 1\npublic %s\nsecret %s\n",
        pair->public_key, pair->secret_key);
    return finish(w, rc, e);
}

static int write_clients(struct file_writer *w, const struct key_list *list, struct err *e) {
    int rc = write_line(
        w, e,
        "# Who may connect to this cluster; 'pleiades keys' changes it.\npleiades-clients 1\n");
    for (uint32_t i = 0; rc == 0 && i < list->n; i++) {
        const struct keyring_client *c = &list->client[i];
        const char *uses = !c->is_invite ? "" : c->once ? " once" : " many";
        rc = write_line(w, e, "%s %s %s %lld%s\n", c->is_invite ? "invite" : "node", c->name, c->key,
                        (long long)c->created_s, uses);
    }
    return rc;
}

/* The .tmp of the writer is the lock: two processes that change the list do so one after the other. */
int key_list_change(const char *folder, int (*change)(void *ctx, struct key_list *list, struct err *e),
                    void *ctx, struct err *e) {
    char path[FILE_PATH_MAX];
    struct file_writer *w;
    struct file_facts facts;
    struct key_list list = { .n = 0 };
    path_in(folder, "cluster.clients", path);
    int rc = file_writer_new_private(&w, path, e);
    for (int tries = 0; rc == ERR_BUSY && tries < 50; tries++) {
        clock_sleep_ms(20);
        rc = file_writer_new_private(&w, path, e);
    }
    if (rc < 0) return rc;
    rc = key_list_read(folder, &list, &facts, e);
    if (rc == ERR_NOTFOUND) {
        list = (struct key_list){ .client = xcalloc(KEYRING_CLIENTS_MAX, sizeof *list.client) };
        rc = 0;
    }
    if (rc == 0) rc = change(ctx, &list, e);
    if (rc == 0) rc = write_clients(w, &list, e);
    rc = finish(w, rc, e);
    key_list_free(&list);
    return rc;
}

/* ---- a node's file ---- */

int node_file_parse(char *text, const char *path, struct node_file *out, struct err *e) {
    char *at = text, *word[WORDS_MAX];
    int n;
    memset(out, 0, sizeof *out);
    bool fine = begins(&at, "pleiades-node");
    while (fine && (n = next_line(&at, word))) {
        if (n == 3 && strcmp(word[0], "server") == 0) {
            fine = key_address_is_valid(word[1]) && take_key(out->server_key, word[2]);
            if (fine) memcpy(out->address, word[1], strlen(word[1]) + 1);
        } else if (n == 2 && strcmp(word[0], "token") == 0) {
            fine = take_key(out->token_secret, word[1]);
        } else {
            fine = take_pair(&out->own, word, n);
        }
    }
    if (fine && pair_is_whole(&out->own) && out->server_key[0]) return 0;
    curve_wipe(out, sizeof *out);
    return damaged(path, "join token or node key", e);
}

int node_file_write(const char *path, const struct node_file *f, struct err *e) {
    struct file_writer *w;
    int rc = file_writer_new_private(&w, path, e);
    if (rc < 0) return rc;
    rc = write_line(
        w, e,
        "# Secret of this machine in a Pleiades cluster.\npleiades-node 1\npublic %s\nsecret %s\n"
        "server %s %s\n",
        f->own.public_key, f->own.secret_key, f->address, f->server_key);
    if (rc == 0 && f->token_secret[0]) rc = write_line(w, e, "token %s\n", f->token_secret);
    return finish(w, rc, e);
}
