/* Schemas from anywhere: refused with a text, or there is always a token that may come next, and what is
 * whole parses. The first two bytes choose what the schema is for and the seed of the model. */
#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/model/chat_format.h"
#include "common/model/dsml.h"
#include "common/model/synth_vocab.h"
#include "coordinator/guide.h"

enum { STEPS = 250 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *t;
static struct guide_vocab *v;
static uint8_t closes[SYNTH_VOCAB_MIN];

static void open_vocab(void) {
    struct synth_vocab sv;
    struct err e;
    CHECK(synth_vocab_init(&sv, SYNTH_VOCAB_MIN, &e) == 0 && tokenizer_new_vocab(&t, &sv.vocab, &e) == 0);
    synth_vocab_deinit(&sv);
    CHECK(guide_vocab_new(&v, t, &e) == 0);
    for (int32_t id = 0; id < SYNTH_VOCAB_MIN; id++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(t, id, &len);
        closes[id] = len == 1 && *bytes && strchr("\"}]<>/", *bytes);
    }
    closes[tokenizer_eos(t)] = closes[tokenizer_find_added(t, CHAT_DSML)] = 1;
}

/* One of the allowed ones, after a while rather one that brings it to an end. */
static int32_t choose(const uint64_t *allowed, struct rng *r, bool hurry) {
    int32_t best = -1;
    uint64_t best_draw = 0;
    for (int32_t id = 0; id < SYNTH_VOCAB_MIN; id++) {
        if (!(allowed[id / 64] >> id % 64 & 1)) continue;
        uint64_t draw = (rng_u64(r) >> 2) + 1;
        if (hurry && closes[id]) draw += UINT64_MAX / 2;
        if (draw > best_draw) best = id, best_draw = draw;
    }
    return best;
}

static bool say(struct service_guide *g, uint64_t seed, struct buf *text) {
    struct rng r;
    rng_init(&r, seed, 0);
    for (int i = 0; i < STEPS; i++) {
        struct service_steer s;
        size_t len;
        g->next(g, &s);
        CHECK(s.allowed);
        int32_t id = choose(s.allowed, &r, i > 20);
        CHECK(id >= 0);                           /* there is always a way on */
        const char *bytes = tokenizer_token_bytes(t, id, &len);
        if (id != tokenizer_eos(t)) buf_add(text, bytes, len);
        if (g->accept(g, id)) return true;
    }
    return false;
}

static void judge(const struct buf *text, bool call) {
    struct dsml_options o = { .tools = true };
    struct dsml_message m;
    struct chat_json j;
    struct chat_text whole = { text->data, text->size };
    if (!call) {
        CHECK(chat_json_parse(&j, whole, NULL) == 0);
        chat_json_deinit(&j);
        return;
    }
    dsml_message_init(&m);
    CHECK(dsml_parse(&m, whole, &o, false, NULL) == 0);
    CHECK(m.n_calls > 0 && m.finish == DSML_FINISH_CALLS && m.content.size == 0);
    for (size_t i = 0; i < m.n_calls; i++) {
        struct chat_text arguments = { m.calls[i].arguments.data, m.calls[i].arguments.size };
        CHECK(strcmp(m.calls[i].name.data, "f") == 0);
        CHECK(chat_json_parse(&j, arguments, NULL) == 0);
        chat_json_deinit(&j);
    }
    dsml_message_deinit(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!t) open_vocab();
    if (size < 2 || size > 20000) return 0;
    bool call = data[0] & 1;
    struct chat_text schema = { (const char *)data + 2, size - 2 };
    struct guide_tool tool = { { "f", 1 }, schema, data[0] & 2 };
    struct guide_options o = { .format = call ? GUIDE_TEXT : GUIDE_JSON_SCHEMA,
                               .schema = schema,
                               .tools = &tool,
                               .n_tools = call,
                               .calls = call ? GUIDE_CALLS_REQUIRED : GUIDE_CALLS_NONE,
                               .one_call = data[0] & 4 };
    struct service_guide *g;
    struct err e = { 0 };
    struct buf text;
    if (guide_new(&g, v, &o, &e) < 0) {
        CHECK(e.text[0] && !g);
        return 0;
    }
    buf_init(&text, 1 << 24);
    if (say(g, data[1], &text)) judge(&text, call);
    buf_deinit(&text);
    g->free(g);
    return 0;
}
