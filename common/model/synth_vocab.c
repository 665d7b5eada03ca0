/* synth_vocab - see the header.
 *
 * Syllables (consonant, vowel) are the first merges, learned merges come next, then a blank with a
 * syllable, pairs of syllables, triples. In an invented word the syllables therefore form first and do
 * not overlap; of a triple abc the pair with the lower rank forms next, which is why (ab)c or a(bc) is
 * chosen by rank. */
#include "common/model/synth_vocab.h"

#include "common/base/check.h"
#include "common/base/map.h"
#include "common/model/tokenizer_split.h"

#include <stdio.h>
#include <stdlib.h>

#define BAR "\xef\xbd\x9c"                            /* U+FF5C */
#define LOW "\xe2\x96\x81"                            /* U+2581 */
#define NAMED(id, text) { id, "<" BAR text BAR ">" }

enum {
    FIRST_BYTE = 3,
    FIRST_MERGE = FIRST_BYTE + 256,
    ADDED_FULL = 1280,
    FIRST_ADDED_FULL = SYNTH_VOCAB_FULL - ADDED_FULL,
    LEARNED_MAX = 640,
    PAIR_SLOTS = 1 << 13,
    TEXT_BYTES_MAX = 64 << 20,
};

/* The added tokens that programs look for. In a small vocabulary they keep this order at the end. */
static const struct { int32_t id; const char *text; } added[] = {
    NAMED(128800, "fim" LOW "hole"), NAMED(128801, "fim" LOW "begin"), NAMED(128802, "fim" LOW "end"),
    NAMED(128803, "User"), NAMED(128804, "Assistant"), { 128805, "<|EOT|>" },
    NAMED(128806, "tool" LOW "calls" LOW "begin"), NAMED(128807, "tool" LOW "calls" LOW "end"),
    NAMED(128808, "tool" LOW "call" LOW "begin"), NAMED(128809, "tool" LOW "call" LOW "end"),
    NAMED(128810, "tool" LOW "outputs" LOW "begin"), NAMED(128811, "tool" LOW "outputs" LOW "end"),
    NAMED(128812, "tool" LOW "output" LOW "begin"), NAMED(128813, "tool" LOW "output" LOW "end"),
    NAMED(128814, "tool" LOW "sep"),
    { 128821, "<think>" }, { 128822, "</think>" }, { 128825, BAR "DSML" BAR },
    NAMED(128826, "begin" LOW "sys"), NAMED(128827, "end" LOW "sys"), NAMED(128828, "latest_reminder"),
    NAMED(128829, "action"), NAMED(128830, "query"), NAMED(128831, "authority"), NAMED(128832, "domain"),
    NAMED(128836, "title"), { 128840, "<dsml:" }, { 128841, "</dsml:" },
    NAMED(128844, "extracted_url"), NAMED(128845, "read_url"), NAMED(128846, "end_of_query"),
};

/* What the merges are learned from: prose, chat, lists, code, numbers, JSON, some other scripts. */
static const char *const lessons[] = {
    "The pool is a set of machines that people own. Each machine holds a part of the model and no "
    "more than its part. ",
    "When a request comes, the first machine reads the words, works through its layers and sends "
    "what it "
    "has found to the next. ",
    "The last one answers. If a machine goes away, the others take over its layers and the answer "
    "goes on where it was.\n\n",
    "How do I start? You start the server on one machine, then you join the others with the key "
    "that it has printed. ",
    "There is nothing else to do. The server measures the links and the machines, makes a plan and "
    "tells every machine ",
    "which layers are its own. You can look at the plan, and you can ask what it would be with "
    "another machine.\n\n",
    "What is the weather like in the city today? I would like to know if it will rain this "
    "evening, because we want to go ",
    "out and see the old town. Thank you for the help! Please write a short story about a child "
    "who finds a small stone ",
    "that can talk. The stone says that it has been waiting for a thousand years, and that nobody "
    "has asked its name.\n\n",
    "1. First, open the file.\n2. Then read the header and check the numbers: 10, 100, 1000, 2048, "
    "4096.\n3. Close it again.\n\n",
    "```c\nint main(void) {\n    int sum = 0;\n    for (int i = 0; i < 10; i++) sum += i;\n"
    "    return sum == 45 ? 0 : 1;\n}\n```\n\n",
    "```python\ndef read(path):\n    with open(path) as f:\n        return [line.strip() for line "
    "in f if line]\n```\n\n",
    "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3, \"unit\": "
    "\"celsius\"}}\n",
    "{\"id\": 17, \"text\": \"an example\", \"values\": [0.5, 1.25, -3], \"done\": true, \"next\": "
    "null}\n\n",
    "Every layer has weights, and the weights are small numbers: 0.01, 0.02, 0.25. Many of them "
    "are near zero. ",
    "The state of a sequence grows with its length, so a long text needs more memory than a short "
    "one. It is kept in blocks, ",
    "and blocks that two texts have in common are kept once. That is why a second question about "
    "the same text is fast.\n\n",
    "\xc3\x9c"
    "ber die Br\xc3\xbc"
    "cke geht der Weg in die Stadt. "
    "O\xc3\xb9 est la gare? La gare est l\xc3\xa0-bas. \xc2\xbfQu\xc3\xa9 hora es? ",
    "\xe4\xbd\xa0\xe5\xa5\xbd\xef\xbc\x8c\xe4\xb8\x96\xe7\x95\x8c\xe3\x80\x82\xe4\xbd\xa0\xe5\xa5"
    "\xbd\xe3\x80\x82 ",
    "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82, \xd0\xbc\xd0\xb8\xd1\x80. "
    "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82.\n",
};

static const char consonants[] = "bdfghjklmnprstvwz", vowels[] = "aeiou";
enum { SYLLABLES = (sizeof consonants - 1) * (sizeof vowels - 1), STARTS = 2 * SYLLABLES };

struct maker {
    struct synth_vocab *sv;
    struct map ids;                             /* spelled text of a normal token: number + FIRST_BYTE = id */
    uint32_t n_merges, n_merges_max;
    int32_t byte_id[256];
    int32_t syllable[STARTS];                         /* ids; from SYLLABLES on with a blank before them */
    int32_t *corpus;                                  /* ids, -1 between pieces */
    int n_corpus;
    bool no_memory;
};

/* ---- tokens and merges ---- */

/* In the order of ids: the bytes that spell themselves, then the others. */
static int byte_at(int place) {
    if (place < 94) return 0x21 + place;
    if (place < 106) return 0xa1 + place - 94;
    if (place < 188) return 0xae + place - 106;
    if (place < 221) return place - 188;
    return place == 221 ? 0x7f : place < 255 ? 0x80 + place - 222 : 0xad;
}

static void add_byte(struct maker *m, int place) {
    char text[2];
    int byte = byte_at(place), code = place < 188 ? byte : 0x100 + place - 188;
    size_t len = code < 0x80 ? 1 : 2;
    text[0] = (char)(code < 0x80 ? code : 0xc0 | code >> 6);
    text[1] = (char)(0x80 | (code & 0x3f));
    char *copy = arena_text(&m->sv->text, text, len);
    uint32_t number;
    m->no_memory |= !copy;
    if (!copy) return;
    CHECK(map_add(&m->ids, copy, len, &number));
    m->byte_id[byte] = (int32_t)number + FIRST_BYTE;
    m->sv->tokens[FIRST_BYTE + number] = (struct gguf_str){ copy, len };
}

/* The id of left followed by right as one token. If there is none, it is made if `make` and a merge is
 * left; else -1. */
static int32_t join(struct maker *m, int32_t left, int32_t right, bool make) {
    char text[2 * TOKENIZER_TOKEN_BYTES_MAX];
    struct gguf_str l = m->sv->tokens[left], r = m->sv->tokens[right];
    if (l.len + r.len + 2 > sizeof text) return -1;
    size_t len = (size_t)(l.len + r.len);
    uint32_t number;
    memcpy(text, l.data, l.len);
    memcpy(text + l.len, r.data, r.len);
    if (map_find(&m->ids, text, len, &number)) return (int32_t)number + FIRST_BYTE;
    if (!make || m->n_merges == m->n_merges_max) return -1;
    char *token = arena_text(&m->sv->text, text, len), *rule = arena_alloc(&m->sv->text, len + 2);
    m->no_memory |= !token || !rule;
    if (m->no_memory) return -1;
    memcpy(rule, l.data, l.len);
    rule[l.len] = ' ';
    memcpy(rule + l.len + 1, r.data, r.len);
    CHECK(map_add(&m->ids, token, len, &number));
    m->sv->merges[m->n_merges++] = (struct gguf_str){ rule, len + 1 };
    m->sv->tokens[FIRST_BYTE + number] = (struct gguf_str){ token, len };
    return (int32_t)number + FIRST_BYTE;
}

/* ---- learning from the text ---- */

static void read_lessons(struct maker *m) {
    size_t size = 0;
    for (size_t i = 0; i < COUNT_OF(lessons); i++) size += strlen(lessons[i]);
    m->corpus = xcalloc(2 * size, sizeof *m->corpus);
    tokenizer_split_init();
    for (size_t i = 0; i < COUNT_OF(lessons); i++) {
        const uint8_t *p = (const uint8_t *)lessons[i], *end = p + strlen(lessons[i]);
        while (p < end) {
            const uint8_t *piece_end = tokenizer_split_next(p, end);
            while (p < piece_end) m->corpus[m->n_corpus++] = m->byte_id[*p++];
            m->corpus[m->n_corpus++] = -1;
        }
    }
}

static void merge_in_corpus(struct maker *m, int32_t left, int32_t right, int32_t merged) {
    int n = 0;
    for (int i = 0; i < m->n_corpus; i++) {
        bool hit = m->corpus[i] == left && i + 1 < m->n_corpus && m->corpus[i + 1] == right;
        m->corpus[n++] = hit ? merged : m->corpus[i];
        i += hit;
    }
    m->n_corpus = n;
}

struct pair_count { int32_t left, right, n; };

/* The most frequent pair that makes a new token; the lower ids where several are. n is 0 when none
 * comes twice. */
static struct pair_count most_frequent(struct maker *m, struct pair_count *slots) {
    struct pair_count best = { 0 };
    memset(slots, 0, PAIR_SLOTS * sizeof *slots);
    for (int i = 0; i + 1 < m->n_corpus; i++) {
        int32_t left = m->corpus[i], right = m->corpus[i + 1];
        if (left < 0 || right < 0) continue;
        uint32_t s = ((uint32_t)left * 0x9e3779b1u ^ (uint32_t)right * 0x85ebca6bu) >> 19;
        while (slots[s].n && (slots[s].left != left || slots[s].right != right)) s = (s + 1) % PAIR_SLOTS;
        slots[s].left = left;
        slots[s].right = right;
        slots[s].n++;
    }
    for (int s = 0; s < PAIR_SLOTS; s++) {
        const struct pair_count *p = &slots[s];
        bool before = p->left < best.left || (p->left == best.left && p->right < best.right);
        if (p->n < 2 || p->n < best.n || (p->n == best.n && !before)) continue;
        if (join(m, p->left, p->right, false) < 0) best = *p;
    }
    return best;
}

static void learn(struct maker *m) {
    struct pair_count *slots = xcalloc(PAIR_SLOTS, sizeof *slots);
    CHECK(m->n_corpus < PAIR_SLOTS);                  /* so there is always a free slot */
    for (int i = 0; i < LEARNED_MAX; i++) {
        struct pair_count p = most_frequent(m, slots);
        int32_t merged = p.n ? join(m, p.left, p.right, true) : -1;
        if (merged < 0) break;
        merge_in_corpus(m, p.left, p.right, merged);
    }
    free(slots);
}

/* ---- invented words ---- */

static void make_syllables(struct maker *m) {
    for (int i = 0; i < SYLLABLES; i++) {
        int32_t c = m->byte_id[(int)consonants[i / 5]], v = m->byte_id[(int)vowels[i % 5]];
        m->syllable[i] = join(m, c, v, true);
        merge_in_corpus(m, c, v, m->syllable[i]);
    }
}

static void make_starts(struct maker *m) {
    for (int i = 0; i < SYLLABLES; i++)
        m->syllable[SYLLABLES + i] = join(m, m->byte_id[' '], m->syllable[i], true);
}

static bool make_triple(struct maker *m, int a, int b, int c) {
    int32_t ab = join(m, m->syllable[a], m->syllable[b], false),
            bc = join(m, m->syllable[b], m->syllable[c], false);
    if (ab < 0 || bc < 0) return false;
    return ab <= bc ? join(m, ab, m->syllable[c], true) >= 0 : join(m, m->syllable[a], bc, true) >= 0;
}

/* Until all merges are used up: every pair, then triples, at each step another last syllable for every
 * pair. */
static void invent_words(struct maker *m) {
    for (int a = 0; a < STARTS; a++)
        for (int b = 0; b < SYLLABLES; b++)
            if (join(m, m->syllable[a], m->syllable[b], true) < 0) return;
    for (int step = 0; step < SYLLABLES; step++)
        for (int a = 0; a < STARTS; a++)
            for (int b = 0; b < SYLLABLES; b++)
                if (!make_triple(m, a, b, (7 * a + 13 * b + 29 * step) % SYLLABLES)) return;
}

/* ---- added tokens, the whole ---- */

static void put_added(struct synth_vocab *sv, uint32_t id, const char *text) {
    bool shown = strncmp(text, "<" BAR, 4) != 0 && strncmp(text, "<|", 2) != 0;
    sv->tokens[id] = (struct gguf_str){ text, strlen(text) };
    sv->kinds[id] = shown ? TOKEN_USER : TOKEN_CONTROL;
}

static bool put_all_added(struct synth_vocab *sv, uint32_t n_tokens) {
    put_added(sv, 0, "<" BAR "begin" LOW "of" LOW "sentence" BAR ">");
    put_added(sv, 1, "<" BAR "end" LOW "of" LOW "sentence" BAR ">");
    put_added(sv, 2, "<" BAR LOW "pad" LOW BAR ">");
    if (n_tokens < SYNTH_VOCAB_FULL) {
        for (uint32_t i = 0; i < COUNT_OF(added); i++)
            put_added(sv, n_tokens - COUNT_OF(added) + i, added[i].text);
        return true;
    }
    for (uint32_t id = FIRST_ADDED_FULL; id < SYNTH_VOCAB_FULL; id++) {
        char text[48];
        int len = snprintf(text, sizeof text, "<" BAR "unused" LOW "%u" BAR ">", id);
        char *copy = arena_text(&sv->text, text, (size_t)len);
        if (!copy) return false;
        put_added(sv, id, copy);
    }
    for (uint32_t i = 0; i < COUNT_OF(added); i++) put_added(sv, (uint32_t)added[i].id, added[i].text);
    return true;
}

static void make_normal(struct maker *m) {
    for (int place = 0; place < 256; place++) add_byte(m, place);
    if (m->no_memory) return;
    read_lessons(m);
    make_syllables(m);
    learn(m);
    make_starts(m);
    invent_words(m);
}

int synth_vocab_init(struct synth_vocab *sv, uint32_t n_tokens, struct err *e) {
    memset(sv, 0, sizeof *sv);
    if (n_tokens != SYNTH_VOCAB_FULL && (n_tokens < SYNTH_VOCAB_MIN || n_tokens > SYNTH_VOCAB_FULL / 2))
        return err_set(e, ERR_INVALID, "a vocabulary of %u tokens; %d, or %d to %d are possible", n_tokens,
                       SYNTH_VOCAB_FULL, SYNTH_VOCAB_MIN, SYNTH_VOCAB_FULL / 2);
    uint32_t n_added = n_tokens == SYNTH_VOCAB_FULL ? ADDED_FULL : (uint32_t)COUNT_OF(added);
    struct maker m = { .sv = sv, .n_merges_max = n_tokens - FIRST_MERGE - n_added };
    arena_init(&sv->text, TEXT_BYTES_MAX);
    sv->tokens = xcalloc(n_tokens, sizeof *sv->tokens);
    sv->merges = xcalloc(m.n_merges_max, sizeof *sv->merges);
    sv->kinds = xcalloc(n_tokens, sizeof *sv->kinds);
    for (uint32_t id = 0; id < n_tokens; id++) sv->kinds[id] = TOKEN_NORMAL;
    bool complete = put_all_added(sv, n_tokens);
    if (complete) make_normal(&m);
    complete = complete && !m.no_memory;
    if (complete) CHECK(m.n_merges == m.n_merges_max);
    map_deinit(&m.ids);
    free(m.corpus);
    sv->vocab = (struct tokenizer_vocab){
        .pre = { "joyai-llm", strlen("joyai-llm") },
        .tokens = sv->tokens,
        .kinds = sv->kinds,
        .n_tokens = n_tokens,
        .merges = sv->merges,
        .n_merges = m.n_merges,
        .bos_id = 0,
        .eos_id = 1,
        .pad_id = 1,
    };
    if (complete) return 0;
    synth_vocab_deinit(sv);
    return err_set(e, ERR_NOMEM, "vocabulary of %u tokens", n_tokens);
}

void synth_vocab_deinit(struct synth_vocab *sv) {
    arena_deinit(&sv->text);
    free(sv->tokens);
    free(sv->merges);
    free(sv->kinds);
    memset(sv, 0, sizeof *sv);
}
