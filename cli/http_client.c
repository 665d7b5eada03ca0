/* http_client - see the header. libcurl does the work: one easy handle per request, driven by a multi handle
 * so that waiting can be left at any time. */
#include "cli/http_client.h"

#include "common/base/utf8.h"
#include "common/sys/file.h"
#include "coordinator/api_json.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <strings.h>

enum { WAIT_MS = 100, KEY_BYTES_MAX = 4096, URL_BYTES_MAX = 2048, RETRY_AFTER_MAX = 3600 };

struct http_client {
    char *base, *key, *ca_file;                   /* base: without a slash at its end, with "/v1" */
    bool local;                                   /* the address is this machine's own */
    CURLM *multi;
    const volatile sig_atomic_t *stop;
    int retry_after;
    http_sse_comment *comment;
};

/* One request and what comes back. */
struct exchange {
    struct http_client *c;
    CURL *easy;
    long status;
    bool is_events;                               /* the answer's Content-Type */
    struct buf body;                              /* of answers that are no stream */
    struct http_sse sse;
    http_sse_event *event;                        /* NULL: a body is wanted */
    void *ctx;
    int rc;                                       /* of event */
    struct err *e;
};

/* ---- what comes ---- */

static size_t on_header(char *line, size_t one, size_t n, void *ctx) {
    struct exchange *x = ctx;
    size_t len = one * n;
    if (len > 5 && strncmp(line, "HTTP/", 5) == 0) {                          /* maybe after a 100 */
        x->is_events = false;
        x->c->retry_after = -1;
    }
    if (len > 13 && strncasecmp(line, "content-type:", 13) == 0)
        x->is_events = len > 31 && strncasecmp(line + 13 + strspn(line + 13, " "),
                                               "text/event-stream", 17) == 0;
    if (len > 12 && strncasecmp(line, "retry-after:", 12) == 0) {
        long seconds = strtol(line + 12, NULL, 10);
        if (seconds >= 0) x->c->retry_after = (int)MIN(seconds, (long)RETRY_AFTER_MAX);
    }
    return len;
}

static size_t on_body(char *bytes, size_t one, size_t n, void *ctx) {
    struct exchange *x = ctx;
    size_t len = one * n;
    curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &x->status);
    if (!x->event || !x->is_events || x->status != 200)
        return buf_add(&x->body, bytes, len) == 0 ? len : 0;
    x->rc = http_sse_feed(&x->sse, bytes, len, x->event, x->ctx, x->e);
    return x->rc == 0 ? len : 0;
}

/* ---- errors ---- */

static int code_of(long status) {
    switch (status) {
    case 401:
    case 403: return ERR_DENIED;
    case 404: return ERR_NOTFOUND;
    case 429: return ERR_BUSY;
    case 503: return ERR_STALE;
    default: return status >= 400 && status < 500 ? ERR_INVALID : ERR_PEER;
    }
}

/* {"error": {"message": ...}}, as both families of APIs write it; else the number alone. */
static int status_error(struct exchange *x, struct err *e) {
    json_t *root = NULL, *error = NULL;
    struct chat_text message = { 0 };
    int code = code_of(x->status);
    if (x->body.size && api_json_parse(&root, (struct chat_text){ x->body.data, x->body.size }, NULL) == 0 &&
        json_is_object(root) && api_json_object(root, "error", &error, NULL) == 1)
        api_json_string(error, "message", &message, NULL);
    if (message.len)
        err_set(e, code, "%.*s (HTTP %ld)", (int)MIN(message.len, (size_t)300), message.data,
                x->status);
    else err_set(e, code, "%s answered HTTP %ld", x->c->base, x->status);
    json_decref(root);
    return code;
}

static int judge(struct exchange *x, CURLcode result, const char *text, struct err *e) {
    if (x->rc == HTTP_SSE_LAST) return 0;
    if (x->rc < 0) return x->rc;
    if (x->body.rc < 0)
        return err_set(e, x->body.rc, "%s: an answer of more than %d MiB", x->c->base,
                       HTTP_CLIENT_BODY_MAX >> 20);
    if (result == CURLE_OPERATION_TIMEDOUT)
        return err_set(e, ERR_TIMEOUT, "%s: nothing came for too long", x->c->base);
    if (result != CURLE_OK)
        return err_set(e, ERR_PEER, "%s: %s", x->c->base, text[0] ? text : curl_easy_strerror(result));
    curl_easy_getinfo(x->easy, CURLINFO_RESPONSE_CODE, &x->status);
    if (x->status >= 300) return status_error(x, e);
    if (x->event && !x->is_events)
        return err_set(e, ERR_PEER, "%s: the answer is no stream of events; is this the address of an API?",
                       x->c->base);
    return 0;
}

/* ---- one request ---- */

static bool stopped(const struct http_client *c) {
    return c->stop && *c->stop;
}

/* Until the transfer is over or we are asked to stop. */
static int drive(struct http_client *c, CURL *easy, CURLcode *result, struct err *e) {
    int running = 1, n_left;
    curl_multi_add_handle(c->multi, easy);
    while (running && !stopped(c)) {
        CURLMcode code = curl_multi_perform(c->multi, &running);
        if (code == CURLM_OK && running) code = curl_multi_poll(c->multi, NULL, 0, WAIT_MS, NULL);
        if (code != CURLM_OK) {
            curl_multi_remove_handle(c->multi, easy);
            return err_set(e, ERR_INTERNAL, "libcurl: %s", curl_multi_strerror(code));
        }
    }
    const CURLMsg *msg = curl_multi_info_read(c->multi, &n_left);
    bool done = msg && msg->msg == CURLMSG_DONE;
    *result = done ? msg->data.result : CURLE_OK;
    curl_multi_remove_handle(c->multi, easy);
    return done ? 0 : err_set(e, ERR_CANCELLED, "stopped");
}

static void set_common(struct exchange *x, const char *url, char *error_text) {
    CURL *easy = x->easy;
    const struct http_client *c = x->c;
    curl_easy_setopt(easy, CURLOPT_URL, url);
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS, CURLPROTO_HTTP | CURLPROTO_HTTPS);
#endif
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1);
    /* CURLOPT_NOSIGNAL stays 0: so libcurl lets no SIGPIPE through when a server goes away. */
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, (long)HTTP_CLIENT_CONNECT_S);
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long)HTTP_CLIENT_SILENCE_S);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "pleiades");
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, error_text);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, x);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, x);
    if (c->local) curl_easy_setopt(easy, CURLOPT_PROXY, "");
    if (c->ca_file) curl_easy_setopt(easy, CURLOPT_CAINFO, c->ca_file);
}

/* The list is ours to free; NULL when there is no memory. */
static struct curl_slist *set_headers(struct exchange *x, bool has_body) {
    struct curl_slist *list = curl_slist_append(NULL, x->event ? "Accept: text/event-stream" : "Accept: */*");
    if (list && has_body) {
        struct curl_slist *more = curl_slist_append(list, "Content-Type: application/json");
        if (more) more = curl_slist_append(more, "Expect:");                  /* do not wait for a 100 */
        if (!more) goto no_memory;
    }
    if (list && x->c->key) {
        char line[KEY_BYTES_MAX + 32];
        snprintf(line, sizeof line, "Authorization: Bearer %s", x->c->key);
        if (!curl_slist_append(list, line)) goto no_memory;
    }
    curl_easy_setopt(x->easy, CURLOPT_HTTPHEADER, list);
    return list;
no_memory:
    curl_slist_free_all(list);
    return NULL;
}

static int exchange(struct exchange *x, const char *path, const struct buf *request, struct err *e) {
    char url[URL_BYTES_MAX + 64], error_text[CURL_ERROR_SIZE] = "";
    CURLcode result = CURLE_OK;
    x->c->retry_after = -1;
    x->e = e;
    x->easy = curl_easy_init();
    if (!x->easy) return err_set(e, ERR_NOMEM, "no memory for a request");
    snprintf(url, sizeof url, "%s%s", x->c->base, path);
    set_common(x, url, error_text);
    if (request) {
        curl_easy_setopt(x->easy, CURLOPT_POST, 1L);
        curl_easy_setopt(x->easy, CURLOPT_POSTFIELDS, request->data);
        curl_easy_setopt(x->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)request->size);
    }
    struct curl_slist *headers = set_headers(x, request);
    int rc = headers ? 0 : err_set(e, ERR_NOMEM, "no memory for a request");
    if (rc == 0) rc = drive(x->c, x->easy, &result, e);
    if (rc == 0) rc = judge(x, result, error_text, e);
    curl_easy_cleanup(x->easy);
    curl_slist_free_all(headers);
    return rc;
}

int http_client_get(struct http_client *c, const char *path, struct buf *body, struct err *e) {
    struct exchange x = { .c = c };
    buf_init(&x.body, HTTP_CLIENT_BODY_MAX);
    int rc = exchange(&x, path, NULL, e);
    if (rc == 0 && buf_add(body, x.body.data, x.body.size) < 0)
        rc = err_set(e, body->rc, "no memory for the answer of %s", c->base);
    buf_deinit(&x.body);
    return rc;
}

int http_client_stream(struct http_client *c, const char *path, const struct buf *request,
                       http_sse_event *event, void *ctx, struct err *e) {
    struct exchange x = { .c = c, .event = event, .ctx = ctx };
    buf_init(&x.body, HTTP_CLIENT_BODY_MAX);
    http_sse_init(&x.sse);
    x.sse.comment = c->comment;
    int rc = exchange(&x, path, request, e);
    buf_deinit(&x.body);
    http_sse_deinit(&x.sse);
    return rc;
}

void http_client_on_comment(struct http_client *c, http_sse_comment *comment) {
    c->comment = comment;
}

int http_client_retry_after(const struct http_client *c) {
    return c->retry_after;
}

/* ---- the client ---- */

/* One line of visible ASCII: anything else in a header would be an accident or an attack. */
static int read_key(struct http_client *c, const char *path, struct err *e) {
    void *data;
    size_t size;
    int rc = file_read_all(path, KEY_BYTES_MAX, &data, &size, e);
    if (rc < 0) return rc;
    char *key = data;
    key[strcspn(key, "\r\n")] = 0;
    size_t len = strlen(key);
    for (size_t i = 0; i < len; i++)
        if (key[i] <= ' ' || key[i] > '~') rc = ERR_INVALID;
    if (len == 0 || rc < 0) {
        free(data);
        return err_set(e, ERR_INVALID, "%s: the first line is to be a key, without blanks", path);
    }
    c->key = key;
    return 0;
}

static bool is_local(const char *url) {
    static const char *const names[] = { "localhost", "127.", "[::1]" };
    const char *host = strstr(url, "://");
    host = host ? host + 3 : url;
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strncasecmp(host, names[i], strlen(names[i])) == 0) return true;
    return false;
}

static int set_base(struct http_client *c, const char *url, struct err *e) {
    size_t len = strlen(url);
    bool http = strncasecmp(url, "http://", 7) == 0, https = strncasecmp(url, "https://", 8) == 0;
    if ((!http && !https) || strpbrk(url, " ?#\r\n\t") || len > URL_BYTES_MAX - 4)
        return err_set(e, ERR_INVALID, "'%.200s' is no address like http://127.0.0.1:8080", url);
    while (len > 8 && url[len - 1] == '/') len--;
    bool has_v1 = len > 3 && memcmp(url + len - 3, "/v1", 3) == 0;
    c->base = malloc(len + 4);
    if (!c->base) return err_set(e, ERR_NOMEM, "no memory for an address");
    snprintf(c->base, len + 4, "%.*s%s", (int)len, url, has_v1 ? "" : "/v1");
    c->local = is_local(url);
    return 0;
}

int http_client_new(struct http_client **out, const struct http_client_options *o, struct err *e) {
    static bool started;
    if (!started && curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return err_set(e, ERR_INTERNAL, "libcurl does not start");
    started = true;
    struct http_client *c = calloc(1, sizeof *c);
    if (!c) return err_set(e, ERR_NOMEM, "no memory for a connection");
    c->stop = o->stop;
    c->retry_after = -1;
    int rc = set_base(c, o->url, e);
    if (rc == 0 && o->api_key_file) rc = read_key(c, o->api_key_file, e);
    if (rc == 0 && o->ca_file && !(c->ca_file = strdup(o->ca_file)))
        rc = err_set(e, ERR_NOMEM, "no memory for a file's name");
    if (rc == 0 && !(c->multi = curl_multi_init())) rc = err_set(e, ERR_NOMEM, "no memory for a connection");
    if (rc < 0) http_client_free(c);
    else *out = c;
    return rc;
}

void http_client_free(struct http_client *c) {
    if (!c) return;
    if (c->multi) curl_multi_cleanup(c->multi);
    free(c->base);
    free(c->key);
    free(c->ca_file);
    free(c);
}
