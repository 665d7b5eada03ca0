/* scripted_stage - a stage for tests whose logits make the model say what a script says.
 *
 * It stands behind node/stage.h like the real model: sequences with the same rules (rollback, fork, save,
 * restore, batches of several), any range of layers, logits on the stage with the head. What it says is a
 * function of the sequence's tokens alone, so replays and restores go on with the same text. A script is
 * a file of JSON objects, one a line:
 *
 *     {"match": TEXT, "answer": TEXT, "repeat": N, "delay_us": N, "prefill_us": N}
 *
 * match    what stands right before the header of the answer: the end of the last user message, or of the
 *          last tool result with its closing tag; or, for raw completions, the end of the prompt
 * answer   what is said then: REASONING</think>CONTENT and perhaps a block of calls, or only what follows
 *          the </think>; without thinking only that is said. The end token follows
 * repeat   how often the answer is repeated (1); delay_us per token; prefill_us per token of a prompt
 *
 * The last line that matches counts. Where none does: OTHERWISE_TEXT. What a guide forces is followed as
 * far as the script goes along; beside it tokens are drawn by chance, short ones and ends preferred.
 * One thread at a time, as for every stage. Header only; link the library. */
#ifndef HARNESS_SCRIPTED_STAGE_H
#define HARNESS_SCRIPTED_STAGE_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/model/chat_format.h"
#include "common/model/chat_json.h"
#include "common/model/tokenizer.h"
#include "common/model/vocab_trie.h"
#include "common/sys/file.h"
#include "node/stage.h"

#define OTHERWISE_TEXT "I have no lines for this.</think>I have no lines for this."

enum {
    SCRIPT_LINES_MAX = 1024,
    SCRIPT_BYTES_MAX = 16 << 20,
    SCRIPT_TEXT_MAX = 8 << 20,
    SCRIPT_SLOTS_MAX = 4096
};

struct script_line {
    struct buf match, answer;                     /* the answer is repeated already */
    uint64_t delay_us, prefill_us;
};

struct script {
    struct stage_factory factory;                 /* first: service_config.stage */
    struct script_line *line;
    uint32_t n;
    struct script_line otherwise;                 /* what is said when no line matches */
};

/* ---- the script ---- */

static inline uint64_t script_number(const struct chat_json *j, uint32_t object, const char *key,
                                     uint64_t otherwise) {
    for (uint32_t m = chat_json_first(j, object); m; m = chat_json_next(j, m))
        if (chat_text_equal(j->values[m].key, chat_text_of(key)))
            return strtoull(j->values[m].text.data, NULL, 10);
    return otherwise;
}

static inline bool script_text(const struct chat_json *j, uint32_t object, const char *key, struct buf *out) {
    for (uint32_t m = chat_json_first(j, object); m; m = chat_json_next(j, m)) {
        if (!chat_text_equal(j->values[m].key, chat_text_of(key)) ||
            j->values[m].type != CHAT_JSON_STRING)
            continue;
        chat_json_put_string(j, m, out);
        return true;
    }
    return false;
}

static inline void script_repeat(struct buf *text, uint64_t times) {
    size_t n = text->size;
    char *once = malloc(n + 1);
    CHECK(once);
    memcpy(once, text->data, n);
    for (uint64_t i = 1; i < times && text->rc == 0; i++) buf_add(text, once, n);
    free(once);
}

/* An answer without reasoning still ends it where the prompt begins it. */
static inline void script_reason(struct buf *answer) {
    if (strstr(answer->data, CHAT_THINK_END)) return;
    size_t n = answer->size;
    buf_add_text(answer, CHAT_THINK_END);
    if (answer->rc < 0) return;
    memmove(answer->data + strlen(CHAT_THINK_END), answer->data, n);
    memcpy(answer->data, CHAT_THINK_END, strlen(CHAT_THINK_END));
}

static inline int script_add(struct script *s, struct chat_text text, struct err *e) {
    struct chat_json j;
    struct script_line *line = &s->line[s->n];
    if (s->n == SCRIPT_LINES_MAX)
        return err_set(e, ERR_LIMIT, "a script of over %d lines", SCRIPT_LINES_MAX);
    int rc = chat_json_parse(&j, text, e);
    if (rc < 0) return rc;
    buf_init(&line->match, SCRIPT_TEXT_MAX);
    buf_init(&line->answer, SCRIPT_TEXT_MAX);
    if (!script_text(&j, 0, "match", &line->match) || !script_text(&j, 0, "answer", &line->answer))
        rc = err_set(e, ERR_INVALID, "match and answer are needed");
    script_repeat(&line->answer, script_number(&j, 0, "repeat", 1));
    script_reason(&line->answer);
    line->delay_us = script_number(&j, 0, "delay_us", 0);
    line->prefill_us = script_number(&j, 0, "prefill_us", 0);
    chat_json_deinit(&j);
    s->n++;
    return rc;
}

static inline int script_parse(struct script *s, const char *text, size_t size, struct err *e) {
    int rc = 0;
    for (size_t at = 0, line = 1; at < size && rc == 0; line++) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t n = end ? (size_t)(end - text) - at : size - at;
        struct chat_text one = chat_json_trim((struct chat_text){ text + at, n });
        if (one.len && one.data[0] != '#') rc = script_add(s, one, e);
        if (rc < 0) err_wrap(e, rc, "line %zu of the script", line);
        at += n + 1;
    }
    return rc;
}

static inline int scripted_open(const struct stage_factory *f, struct stage **out,
                                const struct stage_config *config, struct err *e);

/* path NULL: an empty script. script_close after the stages. */
static inline int script_open(struct script *s, const char *path, struct err *e) {
    void *bytes = NULL;
    size_t size = 0;
    *s = (struct script){ .factory = { scripted_open }, .line = xcalloc(SCRIPT_LINES_MAX, sizeof *s->line) };
    buf_init(&s->otherwise.answer, SCRIPT_TEXT_MAX);
    buf_init(&s->otherwise.match, SCRIPT_TEXT_MAX);
    buf_add_text(&s->otherwise.answer, OTHERWISE_TEXT);
    int rc = path ? file_read_all(path, SCRIPT_BYTES_MAX, &bytes, &size, e) : 0;
    if (rc == 0) rc = script_parse(s, bytes, size, e);
    free(bytes);
    return rc;
}

static inline void script_close(struct script *s) {
    for (uint32_t i = 0; i < s->n; i++) {
        buf_deinit(&s->line[i].match);
        buf_deinit(&s->line[i].answer);
    }
    buf_deinit(&s->otherwise.match);
    buf_deinit(&s->otherwise.answer);
    free(s->line);
    *s = (struct script){ .line = NULL };
}

/* ---- sequences ---- */

struct scripted_seq {
    bool open;
    int32_t *token;
    uint32_t n, high, room;                       /* high: the longest it was since it was empty */
};

struct scripted_stage {
    struct stage base;                            /* must be first */
    const struct script *script;
    struct gguf *gguf;
    struct tokenizer *t;
    struct vocab_trie *trie;
    uint8_t *ends;                                /* tokens that close something */
    int32_t end_id, mark_id, close_id[2];         /* close: "<" and "/" */
    uint32_t n_slots, n_ctx_max;
    struct scripted_seq seq[SCRIPT_SLOTS_MAX];
    struct buf text;                              /* of the sequence that is asked about */
};

static inline struct scripted_stage *scripted_of(struct stage *s) {
    return (struct scripted_stage *)s;
}

static inline int scripted_seq_open(struct stage *base, uint32_t *slot, struct err *e) {
    struct scripted_stage *s = scripted_of(base);
    for (uint32_t i = 0; i < s->n_slots; i++) {
        if (s->seq[i].open) continue;
        s->seq[i] = (struct scripted_seq){ .open = true };
        *slot = i;
        return 0;
    }
    return err_set(e, ERR_BUSY, "all %u sequences are in use", s->n_slots);
}

static inline void scripted_seq_close(struct stage *base, uint32_t slot) {
    struct scripted_seq *q = &scripted_of(base)->seq[slot];
    free(q->token);
    *q = (struct scripted_seq){ .open = false };
}

static inline uint32_t scripted_seq_len(const struct stage *base, uint32_t slot) {
    return ((const struct scripted_stage *)base)->seq[slot].n;
}

/* As far back as the real model could go. */
static inline int scripted_back(const struct scripted_seq *q, uint32_t n, struct err *e) {
    if (!q->open) return err_set(e, ERR_INVALID, "the sequence is not open");
    if (n > q->n) return err_set(e, ERR_INVALID, "rollback to %u of %u tokens", n, q->n);
    if (n > 0 && n + HP_ROLLBACK < q->high)
        return err_set(e, ERR_INVALID, "rollback to %u tokens, %u were written", n, q->high);
    return 0;
}

static inline int scripted_seq_rollback(struct stage *base, uint32_t slot, uint32_t n, struct err *e) {
    struct scripted_seq *q = &scripted_of(base)->seq[slot];
    int rc = scripted_back(q, n, e);
    if (rc < 0) return rc;
    q->n = n;
    if (n == 0) q->high = 0;
    return 0;
}

static inline int scripted_append(struct scripted_stage *s, uint32_t slot, const int32_t *token, uint32_t n,
                                  struct err *e) {
    struct scripted_seq *q = &s->seq[slot];
    if (!q->open) return err_set(e, ERR_INVALID, "sequence %u is not open", slot);
    if (n > s->n_ctx_max - q->n)
        return err_set(e, ERR_LIMIT, "the context of %u tokens is full", s->n_ctx_max);
    if (q->n + n > q->room) {
        q->room = MAX(2 * q->room, q->n + n);
        q->token = xrealloc(q->token, q->room * sizeof *q->token);
    }
    memcpy(q->token + q->n, token, n * sizeof *token);
    q->n += n;
    q->high = MAX(q->high, q->n);
    return 0;
}

static inline int scripted_seq_fork(struct stage *base, uint32_t from, uint32_t n, uint32_t *slot,
                                    struct err *e) {
    struct scripted_stage *s = scripted_of(base);
    int rc = scripted_back(&s->seq[from], n, e);
    if (rc == 0) rc = scripted_seq_open(base, slot, e);
    if (rc == 0 && n > 0) rc = scripted_append(s, *slot, s->seq[from].token, n, e);
    return rc;
}

static const char scripted_magic[] = "SCRIPTED";

static inline int scripted_seq_save(struct stage *base, uint32_t slot, struct buf *out, struct err *e) {
    const struct scripted_seq *q = &scripted_of(base)->seq[slot];
    buf_add(out, scripted_magic, 8);
    buf_add(out, q->token, q->n * sizeof *q->token);
    return out->rc < 0 ? err_set(e, out->rc, "snapshot of %u tokens", q->n) : 0;
}

static inline int scripted_seq_restore(struct stage *base, const void *data, size_t size, uint32_t *slot,
                                       struct err *e) {
    struct scripted_stage *s = scripted_of(base);
    size_t n = size < 8 ? 0 : (size - 8) / sizeof(int32_t);
    if (size < 8 || memcmp(data, scripted_magic, 8) != 0 || size != 8 + n * sizeof(int32_t))
        return err_set(e, ERR_CORRUPT, "not a snapshot of this stage");
    int32_t *token = xcalloc(n, sizeof *token);
    memcpy(token, (const char *)data + 8, n * sizeof *token);
    int rc = scripted_seq_open(base, slot, e);
    if (rc == 0) rc = scripted_append(s, *slot, token, (uint32_t)n, e);
    free(token);
    return rc;
}

/* ---- what is said ---- */

static inline void scripted_read(struct scripted_stage *s, const struct scripted_seq *q) {
    buf_clear(&s->text);
    for (uint32_t i = 0; i < q->n; i++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(s->t, q->token[i], &len);
        buf_add(&s->text, bytes, len);
    }
}

static inline bool scripted_ends_with(struct chat_text text, struct chat_text end) {
    return text.len >= end.len && memcmp(text.data + text.len - end.len, end.data, end.len) == 0;
}

/* text == ... match header (beginning of answer): what is left of the answer. The latest match counts, so
 * the shortest beginning is tried first. */
static inline bool scripted_rest(struct chat_text text, struct chat_text match, const char *header,
                                 struct chat_text answer, struct chat_text *rest) {
    size_t n_header = strlen(header);
    for (size_t said = 0; said <= answer.len && said + n_header + match.len <= text.len; said++) {
        struct chat_text before = { text.data, text.len - said };
        if (!scripted_ends_with(before, (struct chat_text){ header, n_header })) continue;
        before.len -= n_header;
        if (!scripted_ends_with(before, match)) continue;
        if (said && memcmp(text.data + text.len - said, answer.data, said) != 0) continue;
        *rest = (struct chat_text){ answer.data + said, answer.len - said };
        return true;
    }
    return false;
}

static inline struct chat_text scripted_content(struct chat_text answer) {
    size_t n = strlen(CHAT_THINK_END);
    for (size_t i = 0; i + n <= answer.len; i++)
        if (memcmp(answer.data + i, CHAT_THINK_END, n) == 0)
            return (struct chat_text){ answer.data + i + n, answer.len - i - n };
    return answer;
}

/* The line that speaks now and what it has left to say; NULL: the text has left the script. */
static inline const struct script_line *scripted_find(struct scripted_stage *s, struct chat_text *rest) {
    const struct script *script = s->script;
    struct chat_text text = { s->text.data, s->text.size };
    /* from the last line to the first, then what is said otherwise */
    for (uint32_t i = script->n + 1; i-- > 0;) {
        const struct script_line *line = i == 0 ? &script->otherwise : &script->line[i - 1];
        struct chat_text match = { line->match.data, line->match.size };
        struct chat_text answer = { line->answer.data, line->answer.size },
                         content = scripted_content(answer);
        if (scripted_rest(text, match, CHAT_ASSISTANT CHAT_THINK, answer, rest) ||
            scripted_rest(text, match, CHAT_ASSISTANT CHAT_THINK_END, content, rest) ||
            (match.len && scripted_rest(text, match, "", content, rest)))
            return line;
    }
    return NULL;
}

/* Every token that begins the rest, longer ones rather; most of all the one that the tokenizer would take. */
static inline void scripted_want(struct scripted_stage *s, struct chat_text rest, float *logits) {
    struct token_buf ids = { 0 };
    uint32_t from = 0, end = s->trie->all.n;
    for (size_t i = 0; i < rest.len; i++) {
        const struct vocab_node *node = s->trie->all.node;
        uint32_t k = from;
        while (k < end && node[k].byte != (uint8_t)rest.data[i]) k = node[k].skip;
        if (k >= end) break;
        if (node[k].token >= 0) logits[node[k].token] = 30 + (float)i;
        from = k + 1;
        end = node[k].skip;
    }
    if (!rest.len) logits[s->end_id] = 60;
    else if (tokenizer_encode(s->t, rest.data, MIN(rest.len, 256), true, &ids, NULL) == 0 && ids.n)
        logits[ids.ids[0]] = 60;
    token_buf_free(&ids);
}

static inline const struct script_line *
scripted_logits(struct scripted_stage *s, const struct scripted_seq *q, float *logits) {
    struct rng r;
    struct chat_text rest;
    rng_init(&r, 4711, q->n);
    scripted_read(s, q);
    const struct script_line *line = scripted_find(s, &rest);
    for (uint32_t id = 0; id < s->base.hp.n_vocab; id++) {
        logits[id] = rng_normal(&r) + (s->ends[id] ? 4 : 0);
        if (tokenizer_token_kind(s->t, (int32_t)id) != TOKEN_NORMAL) logits[id] -= 10;
    }
    if (line) scripted_want(s, rest, logits);
    if (line) return line;
    logits[s->end_id] = 20;                       /* or, where a guide forbids it, the end of a value */
    if (s->mark_id >= 0) logits[s->mark_id] = 15;
    bool opened = s->text.size && s->text.data[s->text.size - 1] == '<';
    logits[s->close_id[opened]] = opened ? 15 : 9;
    return line;
}

static inline void scripted_sleep(uint64_t us) {
    struct timespec t = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };
    while (us && nanosleep(&t, &t) != 0) {}
}

/* Rows are answered one after the other, each with its sequence as it is up to it. */
static inline int scripted_run(struct stage *base, const struct stage_batch *batch, struct err *e) {
    struct scripted_stage *s = scripted_of(base);
    uint32_t row = 0, next = 0;
    uint64_t delay = 0;
    for (uint32_t i = 0; i < batch->n_seg; i++) { /* all or nothing */
        const struct scripted_seq *q = &s->seq[batch->segs[i].slot];
        if (batch->segs[i].slot >= s->n_slots || !q->open)
            return err_set(e, ERR_INVALID, "sequence %u is not open", batch->segs[i].slot);
        if (batch->segs[i].n > s->n_ctx_max - q->n)
            return err_set(e, ERR_LIMIT, "the context of %u tokens is full", s->n_ctx_max);
    }
    for (uint32_t i = 0; i < batch->n_seg; i++) {
        const struct stage_seg *seg = &batch->segs[i];
        const struct script_line *line = NULL;
        for (uint32_t k = 0; k < seg->n; k++, row++) {
            int rc = scripted_append(s, seg->slot, &seg->token[k], 1, e);
            if (rc < 0) return rc;
            if (next == batch->n_logits || batch->logit_rows[next] != (int32_t)row) continue;
            line = scripted_logits(s, &s->seq[seg->slot], batch->logits + (size_t)next * base->hp.n_vocab);
            next++;
        }
        if (line) delay = MAX(delay, seg->n > 1 ? line->prefill_us * seg->n : line->delay_us);
    }
    if (batch->x_out)
        memset(batch->x_out, 0, (size_t)batch->n_rows * HP_HC * base->hp.n_embd * sizeof(float));
    scripted_sleep(delay);
    return 0;
}

static inline int scripted_run_mtp(struct stage *base, const struct stage_mtp_batch *batch, struct err *e) {
    (void)base;
    (void)batch;
    return err_set(e, ERR_UNSUPPORTED, "a script has no drafts");
}

/* ---- life ---- */

static inline void scripted_close(struct stage *base) {
    struct scripted_stage *s = scripted_of(base);
    for (uint32_t i = 0; i < s->n_slots; i++) free(s->seq[i].token);
    vocab_trie_free(s->trie);
    tokenizer_free(s->t);
    gguf_close(s->gguf);
    buf_deinit(&s->text);
    free(s->ends);
    free(s);
}

static inline void scripted_find_ends(struct scripted_stage *s) {
    s->ends = xcalloc(s->base.hp.n_vocab, 1);
    for (uint32_t id = 0; id < s->base.hp.n_vocab; id++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(s->t, (int32_t)id, &len);
        if (len == 1 && (*bytes == '<' || *bytes == '/')) s->close_id[*bytes == '/'] = (int32_t)id;
        for (size_t i = 0; i < len && len <= 2; i++)
            if (bytes[i] && strchr("\"}]<>/", bytes[i])) s->ends[id] = 1;
    }
}

static inline int scripted_open(const struct stage_factory *f, struct stage **out,
                                const struct stage_config *config, struct err *e) {
    static const struct stage_ops ops = { scripted_close,        scripted_seq_open,
                                          scripted_seq_close,    scripted_seq_len,
                                          scripted_seq_rollback, scripted_seq_fork,
                                          scripted_seq_save,     scripted_seq_restore,
                                          scripted_run,          scripted_run_mtp };
    struct scripted_stage *s = xcalloc(1, sizeof *s);
    s->script = (const struct script *)f;
    buf_init(&s->text, (size_t)1 << 30);
    s->base.ops = &ops;
    int rc = gguf_open(&s->gguf, config->model_path, e);
    if (rc == 0) rc = hparams_read(&s->base.hp, s->gguf, e);
    if (rc == 0) rc = tokenizer_new(&s->t, s->gguf, e);
    if (rc == 0) rc = vocab_trie_new(&s->trie, s->t, e);
    if (rc < 0) {
        scripted_close(&s->base);
        return rc;
    }
    uint32_t n_layer = s->base.hp.n_layer;
    s->base.layer_begin = config->layer_begin;
    s->base.layer_end = config->layer_end ? config->layer_end : n_layer;
    s->base.n_rows_max = config->n_rows_max ? config->n_rows_max : STAGE_ROWS_DEFAULT;
    s->base.has_embed = s->base.layer_begin == 0;
    s->base.has_head = s->base.layer_end == n_layer;
    s->n_slots = MIN(config->n_slots ? config->n_slots : 8, (uint32_t)SCRIPT_SLOTS_MAX);
    s->n_ctx_max = config->n_ctx_max ? config->n_ctx_max : s->base.hp.n_ctx_train;
    s->end_id = tokenizer_eos(s->t);
    s->mark_id = tokenizer_find_added(s->t, CHAT_DSML);
    scripted_find_ends(s);
    *out = &s->base;
    return 0;
}

#endif
