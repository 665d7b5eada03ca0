/* What several commands need: which files are meant, and which file holds what. */
#include "shard_tool/shard_tool.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- files ---- */

static bool is_gguf(const char *name) {
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".gguf") == 0;
}

static int add_file(struct file_names *out, const char *folder, const char *name, struct err *e) {
    if (out->n == SHARD_COUNT_MAX) return err_set(e, ERR_LIMIT, "more than %d files", SHARD_COUNT_MAX);
    size_t size = strlen(folder) + strlen(name) + 2;
    out->name = xrealloc(out->name, ((size_t)out->n + 1) * sizeof *out->name);
    out->name[out->n] = xcalloc(1, size);
    snprintf(out->name[out->n++], size, "%s%s%s", folder, *folder ? "/" : "", name);
    return 0;
}

/* Other GGUFs may lie in the folder: only shards count. */
static int add_folder(struct file_names *out, const char *folder, const struct file_names *names,
                      struct err *e) {
    int rc = 0, before = out->n;
    for (int i = 0; i < names->n && rc == 0; i++) {
        char path[2 * FILE_PATH_MAX];
        struct gguf *g;
        if (!is_gguf(names->name[i])) continue;
        snprintf(path, sizeof path, "%s/%s", folder, names->name[i]);
        bool other = gguf_open_one(&g, path, NULL) == 0 && !shard_is(g);
        gguf_close(g);
        if (!other) rc = add_file(out, folder, names->name[i], e);
    }
    return rc < 0 || out->n > before ? rc : err_set(e, ERR_NOTFOUND, "%s: no shards in this folder", folder);
}

int shard_tool_files(struct file_names *out, const char *const *args, int n_args, struct err *e) {
    int rc = 0;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n_args && rc == 0; i++) {
        struct file_names names;
        if (file_list(&names, args[i], NULL) < 0) {
            rc = add_file(out, "", args[i], e);
        } else {
            rc = add_folder(out, args[i], &names, e);
            file_names_free(&names);
        }
    }
    if (rc < 0) file_names_free(out);
    return rc;
}

/* ---- pieces ---- */

static struct shard_piece *add_piece(struct shard_pieces *p, uint32_t layer_begin, uint32_t layer_end) {
    p->item = xrealloc(p->item, (p->n + 1) * sizeof *p->item);
    struct shard_piece *piece = &p->item[p->n++];
    *piece = (struct shard_piece){ .part = { .layer_begin = layer_begin, .layer_end = layer_end } };
    return piece;
}

static void stage_piece(struct shard_piece *piece, bool first, bool last, uint32_t expert_begin,
                        uint32_t expert_end) {
    struct shard_part *part = &piece->part;
    part->dense = true;
    part->embed = first;
    part->head = part->rest = last;
    part->expert[0] = (struct shard_range){ expert_begin, expert_end };
    part->n_range = expert_end > expert_begin;
}

static void helper_piece(struct shard_piece *piece, uint32_t expert_begin, uint32_t expert_end) {
    piece->part.expert[0] = (struct shard_range){ expert_begin, expert_end };
    piece->part.n_range = 1;
}

static void number_pieces(struct shard_pieces *p) {
    for (uint32_t i = 0; i < p->n; i++) p->item[i].part.index = i, p->item[i].part.count = p->n;
}

void shard_pieces_of_plan(struct shard_pieces *out, const struct plan *p) {
    memset(out, 0, sizeof *out);
    for (uint32_t i = 0; i < p->n_stage; i++) {
        const struct plan_stage *s = &p->stage[i];
        stage_piece(add_piece(out, s->layer_begin, s->layer_end), i == 0, i + 1 == p->n_stage,
                    s->expert_begin, s->expert_end);
        for (uint32_t h = 0; h < s->n_helper; h++)
            helper_piece(add_piece(out, s->layer_begin, s->layer_end), s->helper[h].expert_begin,
                         s->helper[h].expert_end);
    }
    number_pieces(out);
}

static bool read_number(const char **at, uint32_t *out) {
    uint32_t n = 0, digits = 0;
    while (**at >= '0' && **at <= '9' && digits++ < 6) n = n * 10 + (uint32_t)(*(*at)++ - '0');
    return *out = n, digits > 0 && digits <= 6;
}

/* "0-127,128-255" must cover all experts, in order. */
static int read_experts(const char *text, uint32_t n_expert, struct shard_range *out, uint32_t *n,
                        struct err *e) {
    uint32_t next = 0, first, last;
    const char *at = text;
    bool good = true;
    for (*n = 0; good && (*n == 0 || *at == ',');) {
        if (*n) at++;
        good = false;
        if (*n == SHARD_RANGES_MAX || !read_number(&at, &first) || *at++ != '-' ||
            !read_number(&at, &last) || first != next || last < first || last >= n_expert)
            break;
        out[(*n)++] = (struct shard_range){ first, next = last + 1 };
        good = true;
    }
    if (good && !*at && next == n_expert) return 0;
    return err_set(e, ERR_INVALID,
                   "experts '%.64s': ascending ranges like 0-%u,%u-%u that leave out none", text,
                   n_expert / 2 - 1, n_expert / 2, n_expert - 1);
}

/* A layer behind `begin`, and the comma behind it unless it is the last one. */
static bool read_cut(const char **at, uint32_t begin, uint32_t n_layer, uint32_t *out) {
    if (!read_number(at, out) || *out <= begin || *out >= n_layer) return false;
    if (**at == 0) return true;
    return *(*at)++ == ',' && **at != 0;
}

int shard_pieces_of_cuts(struct shard_pieces *out, const struct hparams *hp, const char *cuts,
                         const char *experts, struct err *e) {
    struct shard_range range[SHARD_RANGES_MAX] = { { 0, hp->n_expert } };
    uint32_t n_range = 1, begin = 0, end = 0;
    const char *at = cuts ? cuts : "";
    memset(out, 0, sizeof *out);
    int rc = experts ? read_experts(experts, hp->n_expert, range, &n_range, e) : 0;
    while (rc == 0 && end < hp->n_layer) {
        end = hp->n_layer;
        if (*at && !read_cut(&at, begin, hp->n_layer, &end)) {
            rc = err_set(e, ERR_INVALID,
                         "cuts '%.64s': ascending layers between 1 and %u, separated by commas",
                         cuts, hp->n_layer - 1);
            break;
        }
        stage_piece(add_piece(out, begin, end), begin == 0, end == hp->n_layer, range[0].begin, range[0].end);
        for (uint32_t i = 1; i < n_range; i++)
            helper_piece(add_piece(out, begin, end), range[i].begin, range[i].end);
        begin = end;
    }
    number_pieces(out);
    if (rc < 0) shard_pieces_free(out);
    return rc;
}

void shard_pieces_free(struct shard_pieces *p) {
    free(p->item);
    memset(p, 0, sizeof *p);
}
