/* cmd_render - `render`: a request as JSON on stdin to the exact prompt text. The output format is
 * stable: the bytes of the prompt and nothing else; with --segments one line per segment, its kind
 * and its text as a JSON string. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "common/model/chat.h"
#include "common/model/gguf.h"
#include "coordinator/api_request.h"

#include <stdio.h>

enum { READ_STEP = 1 << 16, REQUEST_BYTES_MAX = 64 << 20 };

struct render_options {
    const char *model, *encoding, *api;
    bool generate, segments;
};

static int read_stdin(struct buf *b, struct err *e) {
    for (;;) {
        char *to = buf_grow(b, READ_STEP);
        if (!to) return err_set(e, b->rc, "the request is longer than %zu bytes", b->limit);
        size_t n = fread(to, 1, READ_STEP, stdin);
        buf_cut(b, b->size - (READ_STEP - n));
        if (n == 0) break;
    }
    return ferror(stdin) ? err_errno(e, ERR_IO, "reading the request") : 0;
}

static struct chat_text metadata(const struct gguf *g, const char *key) {
    struct gguf_str text;
    if (gguf_get_str(g, key, &text, NULL) < 0) return (struct chat_text){ NULL, 0 };
    return (struct chat_text){ text.data, (size_t)text.len };
}

/* What the user says, else what the weights need. */
static int find_encoding(const struct render_options *o, enum chat_encoding *encoding,
                         struct err *e) {
    struct gguf *g;
    if (o->encoding) return chat_encoding_read(o->encoding, encoding, e);
    int rc = gguf_open(&g, o->model, e);
    if (rc < 0) return rc;
    struct chat_text name = metadata(g, "general.name");
    *encoding = chat_encoding_guess(name, metadata(g, "tokenizer.chat_template"));
    gguf_close(g);
    return 0;
}

static int read_request(struct api_request *r, const struct render_options *o,
                        struct chat_text body, struct err *e) {
    struct api_defaults d = { .thinking = true };
    json_t *root;
    int rc = find_encoding(o, &d.encoding, e);
    if (rc == 0) rc = api_json_parse(&root, body, e);
    if (rc < 0) return rc;
    switch (o->api[0]) {
    case 'm': rc = api_request_messages(r, root, body, &d, e); break;
    case 'r': rc = api_request_responses(r, root, body, &d, e); break;
    default: rc = api_request_chat(r, root, body, &d, e); break;
    }
    json_decref(root);
    return rc;
}

static int print_segments(const struct chat_prompt *p, struct err *e) {
    struct buf line;
    buf_init(&line, (size_t)CHAT_PROMPT_BYTES_MAX * 6);
    for (size_t i = 0; i < p->n_segments; i++) {
        const struct chat_segment *s = &p->segments[i];
        buf_clear(&line);
        buf_add_text(&line, s->control ? "control " : "plain ");
        chat_json_put_quoted(&line, (struct chat_text){ p->text.data + s->at, s->len });
        if (line.rc < 0) break;
        puts(line.data);
    }
    int rc = line.rc < 0 ? err_set(e, line.rc, "a segment of this size") : 0;
    buf_deinit(&line);
    return rc;
}

static int print_prompt(const struct render_options *o, const struct chat_prompt *p,
                        struct err *e) {
    int rc = 0;
    if (o->segments) rc = print_segments(p, e);
    else fwrite(p->text.data, 1, p->text.size, stdout);
    if (rc < 0) return rc;
    return fflush(stdout) || ferror(stdout) ? err_errno(e, ERR_IO, "writing the prompt") : 0;
}

static int render(const struct render_options *o, struct err *e) {
    struct api_request r = { .messages = NULL };
    struct chat_prompt p;
    struct buf body;
    buf_init(&body, REQUEST_BYTES_MAX + READ_STEP);
    chat_prompt_init(&p);
    int rc = read_stdin(&body, e);
    if (rc == 0) rc = read_request(&r, o, (struct chat_text){ body.data, body.size }, e);
    r.options.open_turn = o->generate;
    if (rc == 0) rc = chat_render(&p, r.messages, r.n_messages, &r.options, e);
    if (rc == 0) rc = print_prompt(o, &p, e);
    api_request_deinit(&r);
    chat_prompt_deinit(&p);
    buf_deinit(&body);
    return rc;
}

int cmd_render(int argc, char **argv) {
    struct render_options o = { .api = "chat" };
    const struct opt table[] = {
        OPT_STRING('m', "model", &o.model, "FILE", "GGUF file whose metadata tells the encoding"),
        OPT_CHOICE('e', "encoding", &o.encoding, "v4-2604|v4-0731", "whatever the file says"),
        OPT_CHOICE('a', "api", &o.api, "chat|messages|responses", "which API the request is for"),
        OPT_FLAG('g', "generate", &o.generate, "begin an answer at the end, as the server does"),
        OPT_FLAG('s', "segments", &o.segments, "print control tokens and plain text line by line"),
    };
    const struct opts spec = { "render", "",
                               "Prints the prompt that the request on stdin becomes, byte by byte.",
                               table, COUNT_OF(table), 0, 0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!o.model && !o.encoding)
        return opts_usage_error(&spec, "--model FILE or --encoding NAME is required");
    struct err e;
    return render(&o, &e) < 0 ? opts_failure(&spec, &e) : 0;
}
