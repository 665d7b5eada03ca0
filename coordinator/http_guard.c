/* http_guard - see the header. */
#include "coordinator/http_guard.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/sys/file.h"

enum { KEY_FILE_BYTES_MAX = 64 << 10 };

/* ---- keys ---- */

static int add_key(struct http_guard *g, const char *key, size_t len, struct err *e) {
    if (len == 0 || len >= HTTP_KEY_MAX)
        return err_set(e, ERR_INVALID, "an API key must have 1 to %d characters", HTTP_KEY_MAX - 1);
    if (g->n_keys == HTTP_KEYS_MAX) return err_set(e, ERR_LIMIT, "more than %d API keys", HTTP_KEYS_MAX);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)key[i] <= 32 || (unsigned char)key[i] > 126)
            return err_set(e, ERR_INVALID, "an API key has printable ASCII characters without blanks");
    memcpy(g->keys[g->n_keys], key, len);
    g->key_len[g->n_keys++] = len;
    return 0;
}

int http_guard_file(const char *path, struct err *e) {
    struct stat st;
    if (stat(path, &st) < 0) return err_errno(e, ERR_IO, "%s", path);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return err_set(e, ERR_DENIED, "%s can be read by others than its owner: chmod 600 %s", path, path);
    return 0;
}

/* One key a line; empty lines and those that begin with # are comments. */
static int read_keys(struct http_guard *g, const char *path, struct err *e) {
    void *data;
    size_t size;
    int rc = http_guard_file(path, e);
    if (rc == 0) rc = file_read_all(path, KEY_FILE_BYTES_MAX, &data, &size, e);
    if (rc < 0) return rc;
    int line = 0;
    for (const char *at = data; *at && rc == 0;) {
        size_t n = strcspn(at, "\n"), len = n;
        line++;
        while (len && (at[len - 1] == '\r' || at[len - 1] == ' ' || at[len - 1] == '\t')) len--;
        if (len && *at != '#') rc = add_key(g, at, len, e);
        at += n + (at[n] == '\n');
    }
    free(data);
    return rc < 0 ? err_wrap(e, rc, "%s: line %d", path, line) : 0;
}

static bool same_key(const struct http_guard *g, int i, const char *padded, size_t len) {
    size_t differs = g->key_len[i] ^ len;
    for (size_t k = 0; k < HTTP_KEY_MAX; k++)
        differs |= (unsigned char)g->keys[i][k] ^ (unsigned char)padded[k];
    return differs == 0;
}

static bool known_key(const struct http_guard *g, const char *key) {
    char padded[HTTP_KEY_MAX] = "";
    size_t len = strlen(key);
    bool known = false;
    memcpy(padded, key, MIN(len, sizeof padded));
    for (int i = 0; i < g->n_keys; i++) known |= same_key(g, i, padded, len);
    return known;
}

bool http_guard_key(const struct http_guard *g, const char *authorization, const char *x_api_key) {
    static const char bearer[] = "bearer ";
    if (!g->n_keys) return true;
    bool known = x_api_key && known_key(g, x_api_key);
    if (!authorization || strncasecmp(authorization, bearer, sizeof bearer - 1) != 0) return known;
    authorization += sizeof bearer - 1;
    return known_key(g, authorization + strspn(authorization, " ")) || known;
}

/* ---- hosts and origins ---- */

static int add_host(struct http_guard *g, const char *host, struct err *e) {
    if (g->n_hosts == (int)COUNT_OF(g->hosts)) return err_set(e, ERR_LIMIT, "too many names of this server");
    if (strlen(host) >= HTTP_HOST_MAX)
        return err_set(e, ERR_LIMIT, "a host name of %zu characters", strlen(host));
    snprintf(g->hosts[g->n_hosts++], HTTP_HOST_MAX, "%s", host);
    return 0;
}

/* "name:port", "[::1]:port", "name" */
static size_t host_length(const char *host) {
    if (*host == '[') return strcspn(host, "]") + (strchr(host, ']') != NULL);
    return strcspn(host, ":");
}

static bool is_host(const char *host, size_t n, const char *name) {
    if (n > 2 && *host == '[' && strlen(name) == n - 2 && strncasecmp(host + 1, name, n - 2) == 0)
        return true;
    return strlen(name) == n && strncasecmp(host, name, n) == 0;
}

bool http_guard_host(const struct http_guard *g, const char *host) {
    static const char *const ours[] = { "localhost", "127.0.0.1", "::1" };
    if (g->any_host || !host) return true;
    size_t n = host_length(host);
    for (size_t i = 0; i < COUNT_OF(ours); i++)
        if (is_host(host, n, ours[i])) return true;
    for (int i = 0; i < g->n_hosts; i++)
        if (is_host(host, n, g->hosts[i])) return true;
    return false;
}

bool http_guard_origin(const struct http_guard *g, const char *origin, const char *host) {
    if (!origin || strcmp(g->cors, "*") == 0 || strcasecmp(g->cors, origin) == 0) return true;
    const char *own = strstr(origin, "://");
    return own && host && strcasecmp(own + 3, host) == 0;
}

int http_guard_init(struct http_guard *g, const struct http_config *c, struct err *e) {
    int rc = 0;
    memset(g, 0, sizeof *g);
    for (int i = 0; i < HTTP_KEYS_MAX && c->keys[i] && rc == 0; i++)
        rc = add_key(g, c->keys[i], strlen(c->keys[i]), e);
    if (rc == 0 && c->key_file) rc = read_keys(g, c->key_file, e);
    if (rc == 0 && c->key_file && !g->n_keys) rc = err_set(e, ERR_INVALID, "%s has no key", c->key_file);
    if (rc == 0 && c->host) rc = add_host(g, c->host, e);
    for (int i = 0; i < HTTP_NAMES_MAX && c->allow_hosts[i] && rc == 0; i++)
        rc = add_host(g, c->allow_hosts[i], e);
    if (rc == 0 && c->cors_origin && strlen(c->cors_origin) >= sizeof g->cors)
        rc = err_set(e, ERR_INVALID, "CORS origin is too long");
    if (rc < 0) return rc;
    snprintf(g->cors, sizeof g->cors, "%s", c->cors_origin ? c->cors_origin : "");
    g->any_host = g->n_keys > 0 || c->insecure;
    return 0;
}
