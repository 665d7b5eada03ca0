/* What a shard says about itself. Reads the header only. */
#include "shard_tool/shard_tool.h"

#include <stdio.h>

static void print_ranges(struct buf *out, const struct shard_part *p) {
    if (p->n_range == 0) buf_add_text(out, "none");
    for (uint32_t i = 0; i < p->n_range; i++)
        buf_printf(out, "%s%u-%u", i ? ", " : "", p->expert[i].begin, p->expert[i].end - 1);
}

static void print_holds(struct buf *out, const struct shard_part *p) {
    buf_printf(out, "%s%s%s%s", p->embed ? "embedding, " : "",
               p->dense ? "attention and router" : "nothing but experts", p->head ? ", output" : "",
               p->rest ? ", what is left over" : "");
}

static void print_tensors(struct buf *out, const struct gguf *g, const struct shard_info *s) {
    buf_printf(out, "\n%-40s %-8s %14s %14s  %s\n", "tensor", "type", "offset", "bytes", "XXH3-128");
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char hex[HASH_HEX];
        hash_to_hex(shard_info_hash(s, i), hex);
        buf_printf(out, "%-40.*s %-8s %14llu %14llu  %s\n", (int)MIN(t->name.len, 96), t->name.data,
                   dtype_name(t->type), (unsigned long long)t->file_offset,
                   (unsigned long long)t->size, hex);
    }
}

static int print_shard(struct buf *out, const struct gguf *g, bool tensors, struct err *e) {
    struct shard_info s;
    struct hparams hp;
    char hex[HASH_HEX];
    uint64_t bytes = 0;
    int rc = shard_info_read(&s, g, e);
    if (rc == 0) rc = hparams_read(&hp, g, e);
    if (rc < 0) return rc;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) bytes += gguf_tensor_at(g, i)->size;
    hash_to_hex(s.model, hex);
    buf_printf(out, "%s\n", gguf_path(g, 0));
    buf_printf(out, "  model        %s, %s\n", hp.name, hex);
    buf_printf(out, "  part         %u of %u\n", s.part.index + 1, s.part.count);
    buf_printf(out, "  layers       %u-%u of 0-%u\n", s.part.layer_begin, s.part.layer_end - 1,
               hp.n_layer - 1);
    buf_printf(out, "  holds        ");
    print_holds(out, &s.part);
    buf_printf(out, "\n  experts      ");
    print_ranges(out, &s.part);
    buf_printf(out, " of 0-%u\n  tensors      %llu of %llu, %llu bytes (file: %llu)\n",
               hp.n_expert - 1, (unsigned long long)gguf_n_tensors(g),
               (unsigned long long)s.n_model_tensors, (unsigned long long)bytes,
               (unsigned long long)gguf_file_size(g, 0));
    if (tensors) print_tensors(out, g, &s);
    return out->rc < 0 ? err_set(e, out->rc, "output is too large") : 0;
}

int shard_inspect(const char *path, bool tensors, struct buf *out, struct err *e) {
    struct gguf *g;
    int rc = gguf_open_one(&g, path, e);
    if (rc < 0) return rc;
    rc = print_shard(out, g, tensors, e);
    gguf_close(g);
    return rc;
}
