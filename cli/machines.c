#include "cli/machines.h"

#include "common/sys/file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MACHINES_FILE_MAX = 4 << 20 };

#define INT8_PER_BYTE 40.0 /* rates that are not given: operations per byte of bandwidth */
#define F32_PER_BYTE 10.0

/* ---- quantities ---- */

/* "128G", "2.5T" or 17; kilo is 1000 or 1024. */
static int read_quantity(const char *text, double kilo, double *out) {
    char *end;
    double value = strtod(text, &end), unit = 1;
    const char *units = "KMGT", *u = *end ? strchr(units, *end) : NULL;
    if (u) {
        unit = pow(kilo, (double)(u - units) + 1);
        end++;
    }
    if (end == text || *end || !(value >= 0) || value > 1e18) return ERR_INVALID;
    *out = value * unit;
    return 0;
}

static int set_memory(struct plan_machine *p, double bytes) {
    if (!(bytes > 0 && bytes < 1e18)) return ERR_INVALID;
    p->memory = (uint64_t)bytes;
    return 0;
}

/* One property of a machine, named as in the JSON or shorter; ERR_NOTFOUND: no such property. */
static int set_property(struct plan_machine *p, const char *key, const char *text) {
    double value = 0;
    bool memory = strcmp(key, "memory") == 0 || strcmp(key, "mem") == 0;
    if (strcmp(key, "name") == 0)
        return snprintf(p->name, sizeof p->name, "%s", text) < (int)sizeof p->name ? 0 : ERR_LIMIT;
    if (strcmp(key, "backend") == 0)
        return snprintf(p->backend, sizeof p->backend, "%s", text) < (int)sizeof p->backend
                   ? 0
                   : ERR_LIMIT;
    if (read_quantity(text, memory ? 1024 : 1000, &value) < 0) return ERR_INVALID;
    if (memory) return set_memory(p, value);
    if (strcmp(key, "bandwidth") == 0 || strcmp(key, "bw") == 0) p->bytes_per_s = value;
    else if (strcmp(key, "int8") == 0 || strcmp(key, "tensor") == 0) p->int8_per_s = value;
    else if (strcmp(key, "f32") == 0) p->f32_per_s = value;
    else if (strcmp(key, "layer_us") == 0) p->layer_s = value * 1e-6;
    else return ERR_NOTFOUND;
    return 0;
}

static int set_link(struct plan_link *l, const char *key, const char *text) {
    double value = 0;
    if (read_quantity(text, 1000, &value) < 0) return ERR_INVALID;
    if (strcmp(key, "latency_ms") == 0 || strcmp(key, "ms") == 0) l->latency_s = value * 1e-3;
    else if (strcmp(key, "bandwidth") == 0 || strcmp(key, "bw") == 0) l->bytes_per_s = value;
    else return ERR_NOTFOUND;
    return 0;
}

static int finish_machine(struct plan_machine *p, struct err *e) {
    if (!*p->name) return err_set(e, ERR_INVALID, "a machine without a name");
    if (strpbrk(p->name, "=,"))
        return err_set(e, ERR_INVALID, "machine %s: names have neither = nor ,", p->name);
    if (p->memory == 0 || p->bytes_per_s <= 0)
        return err_set(e, ERR_INVALID, "machine %s: memory and bandwidth are required", p->name);
    if (p->int8_per_s <= 0) p->int8_per_s = INT8_PER_BYTE * p->bytes_per_s;
    if (p->f32_per_s <= 0) p->f32_per_s = F32_PER_BYTE * p->bytes_per_s;
    return 0;
}

struct plan_machine *machines_new(struct plan_cluster *c, struct err *e) {
    if (c->n == PLAN_MACHINES_MAX) {
        err_set(e, ERR_LIMIT, "more than %d machines", PLAN_MACHINES_MAX);
        return NULL;
    }
    struct plan_machine *p = &c->machine[c->n++];
    *p = (struct plan_machine){ .layer_s = 20e-6 };
    return p;
}

/* ---- links by name ---- */

static int find_machine(const struct plan_cluster *c, const char *name, uint32_t *out) {
    for (uint32_t i = 0; i < c->n; i++)
        if (strcmp(c->machine[i].name, name) == 0) return *out = i, 0;
    return ERR_NOTFOUND;
}

/* Both ways; one of the two may be "coordinator". */
static int name_link(struct plan_cluster *c, const char *from, const char *to, struct plan_link l,
                     struct err *e) {
    uint32_t a, b;
    if (strcmp(from, "coordinator") == 0)
        return strcmp(to, from) ? name_link(c, to, from, l, e)
                                : err_set(e, ERR_INVALID, "link to itself");
    if (find_machine(c, from, &a) < 0)
        return err_set(e, ERR_NOTFOUND, "link: no machine is called '%.64s'", from);
    if (strcmp(to, "coordinator") == 0) return c->coordinator[a] = l, 0;
    if (find_machine(c, to, &b) < 0)
        return err_set(e, ERR_NOTFOUND, "link: no machine is called '%.64s'", to);
    c->link[a][b] = c->link[b][a] = l;
    return 0;
}

/* ---- from options: "name,mem=128G,bw=400G", "a-b,ms=0.3,bw=1G" ---- */

typedef int set_fn(void *to, const char *key, const char *text);
static int set_machine_property(void *to, const char *key, const char *text) {
    return set_property(to, key, text);
}
static int set_link_property(void *to, const char *key, const char *text) { return set_link(to, key, text); }

/* The text up to the first ',' into head, then every key=value. */
static int read_words(const char *text, char *head, size_t head_size, set_fn *set, void *to, struct err *e) {
    size_t n = strcspn(text, ",");
    if (memchr(text, '=', n)) n = 0;                   /* no head: begins with a key */
    if (n >= head_size) return err_set(e, ERR_LIMIT, "'%.64s...': name is too long", text);
    memcpy(head, text, n);
    head[n] = 0;
    for (const char *at = text + n; *at;) {
        char key[16], value[32];
        if (*at == ',') at++;
        size_t k = strcspn(at, "="), v;
        if (k == 0 || k >= sizeof key || at[k] != '=')
            return err_set(e, ERR_INVALID, "'%.64s': key=value is expected after commas", text);
        memcpy(key, at, k);
        key[k] = 0;
        at += k + 1;
        v = strcspn(at, ",");
        if (v >= sizeof value) return err_set(e, ERR_INVALID, "'%.64s': value of %s is too long", text, key);
        memcpy(value, at, v);
        value[v] = 0;
        at += v;
        int rc = set(to, key, value);
        if (rc == ERR_NOTFOUND)
            return err_set(e, ERR_INVALID, "'%.64s': there is no property '%s'", text, key);
        if (rc < 0) return err_set(e, ERR_INVALID, "'%.64s': '%s' is not a value of %s", text, value, key);
    }
    return 0;
}

int machines_add(struct plan_cluster *c, const char *text, struct err *e) {
    struct plan_machine *p = machines_new(c, e);
    if (!p) return ERR_LIMIT;
    int rc = read_words(text, p->name, sizeof p->name, set_machine_property, p, e);
    return rc < 0 ? rc : finish_machine(p, e);
}

int machines_link(struct plan_cluster *c, const char *text, bool named, struct err *e) {
    char pair[2 * PLAN_NAME_MAX];
    struct plan_link l = { 0.3e-3, 1.25e9 };
    int rc = read_words(text, pair, sizeof pair, set_link_property, &l, e);
    if (rc < 0 || named != (*pair != 0)) return rc;    /* links for all come first, then those between two */
    if (!named) return plan_cluster_links(c, l), 0;
    for (char *dash = strchr(pair, '-'); dash; dash = strchr(dash + 1, '-')) {
        *dash = 0; /* names may have dashes, too: the one where both sides are known */
        if (name_link(c, pair, dash + 1, l, e) == 0) return 0;
        *dash = '-';
    }
    return err_set(e, ERR_INVALID,
                   "'%.64s': a link is A-B, between two machines or one and 'coordinator'", text);
}

/* ---- from JSON ---- */

static const char *json_quantity(const json_t *v, char *room, size_t size) {
    if (json_is_string(v)) return json_string_value(v);
    if (!json_is_number(v)) return NULL;
    snprintf(room, size, "%.17g", json_number_value(v));
    return room;
}

static int json_properties(json_t *object, set_fn *set, void *to, const char *what, struct err *e) {
    const char *key;
    json_t *value;
    char room[40];
    json_object_foreach(object, key, value) {
        const char *text = json_quantity(value, room, sizeof room);
        if (strcmp(key, "from") == 0 || strcmp(key, "to") == 0) continue;
        int rc = text ? set(to, key, text) : ERR_INVALID;
        if (rc == ERR_NOTFOUND) return err_set(e, ERR_INVALID, "%s: there is no property '%.32s'", what, key);
        if (rc < 0) return err_set(e, ERR_INVALID, "%s: '%.32s' has a value that cannot be used", what, key);
    }
    return 0;
}

static int json_links(struct plan_cluster *c, json_t *root, struct err *e) {
    struct plan_link all = { 0.3e-3, 1.25e9 };
    json_t *link = json_object_get(root, "link"), *links = json_object_get(root, "links"), *item;
    size_t i;
    int rc = link ? json_properties(link, set_link_property, &all, "link", e) : 0;
    plan_cluster_links(c, all);
    json_array_foreach(links, i, item) {
        struct plan_link l = all;
        const char *from = json_string_value(json_object_get(item, "from")),
                   *to = json_string_value(json_object_get(item, "to"));
        if (rc == 0)
            rc = from && to ? json_properties(item, set_link_property, &l, "links", e)
                            : err_set(e, ERR_INVALID, "links: from and to are required");
        if (rc == 0) rc = name_link(c, from, to, l, e);
    }
    return rc;
}

static int json_cluster(struct plan_cluster *c, json_t *root, struct err *e) {
    json_t *machines = json_object_get(root, "machines"), *item;
    size_t i;
    int rc = 0;
    if (!json_is_array(machines)) return err_set(e, ERR_INVALID, "\"machines\" must be an array");
    json_array_foreach(machines, i, item) {
        struct plan_machine *p = rc == 0 ? machines_new(c, e) : NULL;
        if (!p) return rc < 0 ? rc : ERR_LIMIT;
        rc = json_is_object(item) ? json_properties(item, set_machine_property, p, "machines", e)
                                  : err_set(e, ERR_INVALID, "a machine is an object");
        if (rc == 0) rc = finish_machine(p, e);
    }
    return rc < 0 ? rc : json_links(c, root, e);
}

int machines_read_file(struct plan_cluster *c, const char *path, struct err *e) {
    json_error_t where;
    void *text;
    size_t size;
    int rc = file_read_all(path, MACHINES_FILE_MAX, &text, &size, e);
    if (rc < 0) return rc;
    json_t *root = json_loadb(text, size, 0, &where);
    free(text);
    rc = root ? json_cluster(c, root, e) : err_set(e, ERR_INVALID, "line %d: %s", where.line, where.text);
    json_decref(root);
    return rc < 0 ? err_wrap(e, rc, "%s", path) : 0;
}

/* ---- from a running service (coordinator/service_status.c) ---- */

static double number(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

/* A rate that a node did not measure: an ordinary machine's, so that there is a plan at all. */
static int status_machine(struct plan_cluster *c, const json_t *node, struct err *e) {
    static const double bytes_per_s = 20e9;
    const char *name = json_string_value(json_object_get(node, "name")),
               *backend = json_string_value(json_object_get(node, "backend"));
    const json_t *speed = json_object_get(node, "speed");
    struct plan_machine *p = name ? machines_new(c, e) : NULL;
    if (!p) return name ? ERR_LIMIT : err_set(e, ERR_CORRUPT, "a node without a name");
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(p->backend, sizeof p->backend, "%s", backend ? backend : "");
    int rc = set_memory(p, number(json_object_get(node, "memory"), "limit"));
    p->bytes_per_s = number(speed, "read") > 0 ? number(speed, "read") : bytes_per_s;
    p->int8_per_s = number(speed, "int8");
    p->f32_per_s = number(speed, "f32");
    return rc < 0 ? err_set(e, rc, "node %s does not say its memory", name) : finish_machine(p, e);
}

static int status_links(struct plan_cluster *c, const json_t *nodes, const json_t *links, struct err *e) {
    const json_t *item;
    size_t i;
    int rc = 0;
    json_array_foreach((json_t *)nodes, i, item)
        if (number(item, "rtt_us") > 0) c->coordinator[i].latency_s = number(item, "rtt_us") / 2e6;
    json_array_foreach((json_t *)links, i, item) {
        const char *from = json_string_value(json_object_get(item, "from")),
                   *to = json_string_value(json_object_get(item, "to"));
        struct plan_link l = { number(item, "rtt_us") / 2e6, number(item, "bytes_per_s") };
        if (rc == 0 && from && to && l.latency_s > 0 && l.bytes_per_s > 0) rc = name_link(c, from, to, l, e);
    }
    return rc;
}

int machines_read_status(struct plan_cluster *c, const char *document, size_t size, struct err *e) {
    json_t *root = json_loadb(document, size, 0, NULL), *nodes = json_object_get(root, "nodes"), *item;
    size_t i;
    int rc = json_is_array(nodes) ? 0 : err_set(e, ERR_CORRUPT, "the answer is no status document");
    if (rc == 0 && c->n) rc = err_set(e, ERR_INVALID, "machines of a service and of a file");
    json_array_foreach(nodes, i, item) if (rc == 0) rc = status_machine(c, item, e);
    if (rc == 0) rc = status_links(c, nodes, json_object_get(root, "links"), e);
    if (rc == 0 && c->n == 0) rc = err_set(e, ERR_NOTFOUND, "no node has joined that service");
    json_decref(root);
    return rc;
}
