/* The protocol's bytes: every kind there and back, every limit, every way to cut a message short. */
#include "tests/harness/test.h"

#include <math.h>

#include "common/sys/clock.h"
#include "common/wire/frame.h"
#include "tests/harness/any_msg.h"

static struct codec *codec;
static struct buf bytes;
static struct err e;
static const struct frame_rules anything = { 0, MSG_PAYLOAD_BYTES_MAX };

static int setup(void **state) {
    (void)state;
    codec = codec_new();
    buf_init(&bytes, FRAME_HEADER_BYTES_MAX);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    codec_free(codec);
    buf_deinit(&bytes);
    return 0;
}

/* From a heap block of exactly its size, so that the address sanitizer sees a read behind it. */
static int unpack_exactly(const void *data, size_t n, struct msg *out) {
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, data, n);
    e.text[0] = 0;
    int rc = codec_unpack(codec, copy, n, out, &e);
    free(copy);
    return rc;
}

static int there_and_back(const struct msg *m, struct msg *out) {
    buf_clear(&bytes);
    assert_fine(codec_pack(m, &bytes, &e), &e);
    return unpack_exactly(bytes.data, bytes.size, out);
}

static void every_kind_comes_back_as_it_went(void **state) {
    (void)state;
    int n = test_rounds(300);
    static const uint32_t most[] = { 0, 1, 3, 20, 300, 5000 };
    for (int kind = MSG_NONE + 1; kind < MSG_KINDS; kind++) {
        for (int i = 0; i < n; i++) {
            struct any_msg any;
            struct msg m, out;
            any_msg_init(&any, (uint64_t)(kind * 1000 + i), most[i % (int)COUNT_OF(most)]);
            any_msg_make(&any, (enum msg_kind)kind, &m);
            assert_fine(there_and_back(&m, &out), &e);
            if (!any_msg_equal(&m, &out)) fail_msg("%s, seed %d", msg_kind_name(m.kind), i);
            any_msg_deinit(&any);
        }
    }
}

static void a_message_cut_short_is_an_error_or_a_message(void **state) {
    (void)state;
    size_t n_error = 0, n_fine = 0;
    for (int kind = MSG_NONE + 1; kind < MSG_KINDS; kind++) {
        struct any_msg any;
        struct msg m, out;
        any_msg_init(&any, (uint64_t)kind, 4);
        any_msg_make(&any, (enum msg_kind)kind, &m);
        buf_clear(&bytes);
        assert_fine(codec_pack(&m, &bytes, &e), &e);
        for (size_t cut = 0; cut < bytes.size; cut++) {
            if (unpack_exactly(bytes.data, cut, &out) == 0) n_fine++;
            else assert_true(e.text[0] && ++n_error);
        }
        any_msg_deinit(&any);
    }
    assert_true(n_error > 1000 && n_fine < n_error / 20);
}

static void damaged_bytes_never_make_a_message_that_breaks_a_promise(void **state) {
    (void)state;
    int n = test_rounds(20000), n_fine = 0;
    for (int i = 0; i < n; i++) {
        struct any_msg any;
        struct msg m, out;
        any_msg_init(&any, (uint64_t)i, 6);
        any_msg_make(&any, (enum msg_kind)any_between(&any, 1, MSG_KINDS - 1), &m);
        buf_clear(&bytes);
        assert_fine(codec_pack(&m, &bytes, &e), &e);
        for (uint64_t flips = any_between(&any, 1, 4); flips > 0; flips--)
            bytes.data[any_between(&any, 0, bytes.size - 1)] = (char)any_between(&any, 0, 255);
        if (unpack_exactly(bytes.data, bytes.size, &out) == 0) {
            struct msg again;
            n_fine++;
            assert_fine(there_and_back(&out, &again), &e);     /* what was taken can be sent on */
        }
        any_msg_deinit(&any);
    }
    assert_true(n_fine > n / 100 && n_fine < n);
}

/* ---- what is refused ---- */

static struct msg valid(enum msg_kind kind) {
    static struct any_msg any;
    struct msg m;
    any_msg_deinit(&any);
    any_msg_init(&any, 7, 9);
    for (;;) {
        any_msg_make(&any, kind, &m);
        if (kind == MSG_WORK && (m.u.work.n_want < 2 || m.u.work.n_bias < 4 || m.u.work.n_seg < 2)) continue;
        if (kind == MSG_SYNC && (m.u.sync.n_seq < 2 || m.u.sync.n_dead < 2)) continue;
        if (kind == MSG_RESULT && m.u.result.n_row < 2) continue;
        if (kind == MSG_ASSIGN && (m.u.assign.n_helper < 2 || m.u.assign.n_peer < 1)) continue;
        if (kind == MSG_HELLO && m.u.hello.n_file < 1) continue;
        return m;
    }
}

/* `change` breaks one promise of codec.h; the same message without it is fine. The lists lie in an arena of
 * ours, so the const of the struct may be cast away. */
#define REFUSED(kind_of, code, change)                                                              \
    do {                                                                                            \
        struct msg out_, sound_ = valid(MSG_##kind_of), *m = &sound_;                               \
        assert_fine(there_and_back(m, &out_), &e);                                                  \
        change;                                                                                     \
        int rc_ = there_and_back(m, &out_);                                                         \
        if (rc_ != (code)) fail_msg("%s: %d %s", #change, rc_, e.text);                             \
        assert_true(strlen(e.text) > 5);                                                            \
    } while (0)
#define MUTABLE(type, pointer) ((type *)(uintptr_t)(pointer))

static void promises_about_links_are_kept(void **state) {
    (void)state;
    REFUSED(PING, ERR_CORRUPT, m->incarnation = 0);
    REFUSED(HELLO, ERR_CORRUPT, m->u.hello.version_min = m->u.hello.version_max + 1);
    REFUSED(HELLO, ERR_CORRUPT, m->u.hello.held_end = MSG_LAYERS_MAX + 1);
    REFUSED(HELLO, ERR_CORRUPT, m->u.hello.role = MSG_ROLES);
    REFUSED(HELLO, ERR_CORRUPT, m->u.hello.backend = (enum msg_backend)-1);
    REFUSED(HELLO, ERR_CORRUPT, snprintf(m->u.hello.key, MSG_KEY_MAX, "short"));
    REFUSED(WELCOME, ERR_CORRUPT, m->u.welcome.role = MSG_ROLES);
}

static void promises_about_plans_are_kept(void **state) {
    (void)state;
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.stage_i = m->u.assign.n_stage);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.n_stage = MSG_STAGES_MAX + 1);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.layer_end = m->u.assign.layer_begin);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.layer_end = MSG_LAYERS_MAX + 1);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.wire = MSG_WIRE_FORMATS);
    REFUSED(ASSIGN, ERR_CORRUPT, snprintf(MUTABLE(struct msg_key, m->u.assign.peer)[0].text, 9, "short"));
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.n_slot = 0);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.n_ctx_max = 0);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.n_rows_max = MSG_ROWS_MAX + 1);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.n_credit = MSG_BATCHES_MAX + 1);
    REFUSED(ASSIGN, ERR_CORRUPT, m->u.assign.expert_begin = m->u.assign.expert_end + 1);
    REFUSED(ASSIGN, ERR_CORRUPT,
            MUTABLE(struct msg_helper, m->u.assign.helper)[1].expert_begin =
                m->u.assign.helper[0].expert_end - 1);
    REFUSED(ASSIGN, ERR_CORRUPT,
            MUTABLE(struct msg_helper, m->u.assign.helper)[1].expert_end =
                m->u.assign.helper[1].expert_begin);
}

static void promises_about_work_are_kept(void **state) {
    (void)state;
    REFUSED(WORK, ERR_CORRUPT, m->u.work.n_seg = 0);
    REFUSED(WORK, ERR_CORRUPT, m->u.work.n_row--);
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_seg, m->u.work.seg)[1].n++);
    REFUSED(WORK, ERR_CORRUPT, (MUTABLE(struct msg_seg, m->u.work.seg)[0].n += m->u.work.seg[1].n,
                                MUTABLE(struct msg_seg, m->u.work.seg)[1].n = 0));
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_seg, m->u.work.seg)[0].pos0 = UINT32_MAX);
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(int32_t, m->u.work.token)[0] = -1);
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_want, m->u.work.want)[1].row = m->u.work.want[0].row);
    REFUSED(WORK, ERR_CORRUPT,
            MUTABLE(struct msg_want, m->u.work.want)[m->u.work.n_want - 1].row = m->u.work.n_row);
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_want, m->u.work.want)[0].top_p = f32_from_bits(0x7fc00000));
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_want, m->u.work.want)[0].bias_begin = m->u.work.n_bias + 1);
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_want, m->u.work.want)[0].n_bias = m->u.work.n_bias + 1);
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_bias, m->u.work.bias)[0].bias = f32_from_bits(0x7f800000));
    REFUSED(WORK, ERR_CORRUPT, MUTABLE(struct msg_bias, m->u.work.bias)[0].id = -2);
    REFUSED(WORK, ERR_CORRUPT, (MUTABLE(struct msg_want, m->u.work.want)[0].bias_begin = 0,
                                MUTABLE(struct msg_want, m->u.work.want)[0].n_bias = 2,
                                MUTABLE(struct msg_bias, m->u.work.bias)[1].id = m->u.work.bias[0].id));
    REFUSED(WORK_REFUSED, ERR_CORRUPT, m->u.work_refused.reason = MSG_REFUSALS);
    REFUSED(WORK_REFUSED, ERR_CORRUPT, m->u.work_refused.stage_i = MSG_STAGES_MAX);
    REFUSED(RESULT, ERR_CORRUPT,
            MUTABLE(struct msg_row_result, m->u.result.row)[1].row = m->u.result.row[0].row);
    REFUSED(RESULT, ERR_CORRUPT,
            MUTABLE(struct msg_row_result, m->u.result.row)[m->u.result.n_row - 1].row = MSG_ROWS_MAX);
    REFUSED(RESULT, ERR_CORRUPT, MUTABLE(struct msg_row_result, m->u.result.row)[0].sum = (double)INFINITY);
    REFUSED(SYNC, ERR_CORRUPT, MUTABLE(uint64_t, m->u.sync.seq)[1] = m->u.sync.seq[0]);
    REFUSED(SYNC, ERR_CORRUPT, m->u.sync.seq_next = m->u.sync.seq[m->u.sync.n_seq - 1]);
    REFUSED(SYNC, ERR_CORRUPT, MUTABLE(uint64_t, m->u.sync.dead)[1] = m->u.sync.dead[0]);
}

static void promises_about_experts_and_weights_are_kept(void **state) {
    (void)state;
    REFUSED(EXPERTS, ERR_CORRUPT, m->u.experts.n_row = 0);
    REFUSED(EXPERTS, ERR_CORRUPT, m->u.experts.n_row = MSG_ROWS_MAX + 1);
    REFUSED(EXPERTS, ERR_CORRUPT, m->u.experts.n_used = MSG_USED_MAX + 1);
    REFUSED(EXPERTS, ERR_CORRUPT, m->u.experts.layer = MSG_LAYERS_MAX);
    REFUSED(EXPERTS_DONE, ERR_CORRUPT, m->u.experts_done.n_row = 0);
    REFUSED(WEIGHTS_GET, ERR_CORRUPT, m->u.weights_get.bytes = 0);
    REFUSED(WEIGHTS_GET, ERR_CORRUPT, m->u.weights_get.bytes = MSG_PIECE_BYTES_MAX + 1);
    REFUSED(WEIGHTS_GET, ERR_CORRUPT, m->u.weights_get.offset = UINT64_MAX);
    REFUSED(WEIGHTS, ERR_CORRUPT, m->u.weights.offset = m->u.weights.total_bytes + 1);
}

static void too_many_of_anything_is_not_sent(void **state) {
    (void)state;
    static const struct { enum msg_kind kind; size_t at; uint32_t max; } counts[] = {
        { MSG_HELLO, offsetof(struct msg, u.hello.n_file), MSG_FILES_MAX },
        { MSG_ASSIGN, offsetof(struct msg, u.assign.n_helper), MSG_HELPERS_MAX },
        { MSG_ASSIGN, offsetof(struct msg, u.assign.n_peer), MSG_NODES_MAX },
        { MSG_ASSIGN, offsetof(struct msg, u.assign.n_source), MSG_SOURCES_MAX },
        { MSG_FILES, offsetof(struct msg, u.files.n_file), MSG_FILES_MAX },
        { MSG_PEERS, offsetof(struct msg, u.peers.n_peer), MSG_NODES_MAX },
        { MSG_WORK, offsetof(struct msg, u.work.n_seg), MSG_SEGS_MAX },
        { MSG_WORK, offsetof(struct msg, u.work.n_row), MSG_ROWS_MAX },
        { MSG_WORK, offsetof(struct msg, u.work.n_want), MSG_WANTS_MAX },
        { MSG_WORK, offsetof(struct msg, u.work.n_bias), MSG_BIAS_MAX },
        { MSG_WORK, offsetof(struct msg, u.work.n_timing), MSG_STAGES_MAX },
        { MSG_RESULT, offsetof(struct msg, u.result.n_row), MSG_WANTS_MAX },
        { MSG_RESULT, offsetof(struct msg, u.result.n_timing), MSG_STAGES_MAX },
        { MSG_SYNC, offsetof(struct msg, u.sync.n_seq), MSG_SEQS_MAX },
        { MSG_SYNC, offsetof(struct msg, u.sync.n_dead), MSG_BATCHES_MAX },
        { MSG_LINKS, offsetof(struct msg, u.links.n_link), MSG_PEERS_MAX },
    };
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        struct msg m = valid(counts[i].kind);
        uint32_t n = counts[i].max + 1;
        memcpy((char *)&m + counts[i].at, &n, sizeof n);
        buf_clear(&bytes);
        assert_int_equal(codec_pack(&m, &bytes, &e), ERR_INVALID);
        assert_int_equal(bytes.size, 0);
    }
    struct msg none = valid(MSG_PING);
    none.kind = MSG_NONE;
    assert_int_equal(codec_pack(&none, &bytes, &e), ERR_INVALID);
    none.kind = MSG_KINDS;
    assert_int_equal(codec_pack(&none, &bytes, &e), ERR_INVALID);
}

/* ---- by hand: what packing would never write ---- */

static void put_varint(uint64_t v) {
    for (; v >= 128; v >>= 7) buf_add_char(&bytes, (char)(v | 128));
    buf_add_char(&bytes, (char)v);
}

static void put_start(enum msg_kind kind) {
    static const char incarnation[] = { 3 << 3 | 1, 1, 0, 0, 0, 0, 0, 0, 0 };
    buf_clear(&bytes);
    put_varint(1 << 3);
    put_varint((uint64_t)kind);
    buf_add(&bytes, incarnation, sizeof incarnation);
}

static void put_body(uint32_t field, const void *body, size_t n) {
    put_varint(field << 3 | 2);
    put_varint(n);
    buf_add(&bytes, body, n);
}

static int unpack_here(void) {
    struct msg out;
    return unpack_exactly(bytes.data, bytes.size, &out);
}

static void another_body_than_the_kind_says_is_refused(void **state) {
    (void)state;
    put_start(MSG_CREDIT);
    put_body(27, "\x08\x05", 2);
    assert_fine(unpack_here(), &e);
    put_start(MSG_CREDIT);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
    put_start(MSG_CREDIT);
    put_body(29, "\x08\x05", 2);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
    put_start(MSG_DRAIN);
    assert_fine(unpack_here(), &e);
    put_body(27, "\x08\x05", 2);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
    put_start(MSG_KINDS);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
    put_start(MSG_NONE);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
}

static void fields_of_a_later_version_are_passed_over(void **state) {
    (void)state;
    put_start(MSG_CREDIT);
    put_body(27, "\x08\x05\xfa\x3f\x03new", 8);
    put_body(2000, "something", 9);
    assert_fine(unpack_here(), &e);
}

/* Long and unclean texts, lists longer than their limits, columns of different lengths, and as much memory as
 * bytes can be made to ask for. */
static void what_no_sender_of_ours_writes_is_refused(void **state) {
    (void)state;
    char text[MSG_TEXT_MAX + 3] = { 2 << 3 | 2 };
    text[1] = (char)(MSG_TEXT_MAX | 128), text[2] = MSG_TEXT_MAX >> 7;
    memset(text + 3, 'a', MSG_TEXT_MAX);
    put_start(MSG_LEAVE);
    put_body(20, text, sizeof text);
    assert_int_equal(unpack_here(), ERR_LIMIT);
    put_start(MSG_LEAVE);
    put_body(20, "\x12\x03" "a\nb", 5);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
    put_start(MSG_LEAVE);
    put_body(20, "\x12\x03" "a\xff" "b", 5);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
    put_start(MSG_WORK);                           /* seq 1 and 2, pos0 0, n 1 */
    put_body(25, "\x1a\x02\x01\x02\x22\x01\x00\x2a\x01\x01\x32\x01\x07", 13);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
    put_start(MSG_HELLO);                          /* a file without its 32 bytes of layers */
    put_body(16, "\x82\x01\x00", 3);
    assert_int_equal(unpack_here(), ERR_CORRUPT);
}

static void no_bytes_can_ask_for_more_memory_than_there_is(void **state) {
    (void)state;
    struct msg out;
    char *ones = calloc(1, MSG_HEADER_BYTES_MAX);
    assert_non_null(ones);
    put_start(MSG_SYNC);                           /* numbers of one byte become eight */
    size_t n = MSG_HEADER_BYTES_MAX - 64;
    struct buf body;
    buf_init(&body, MSG_HEADER_BYTES_MAX);
    buf_add(&body, "\x1a\xb0\xff\x3f", 4);         /* field 3, 1048496 bytes */
    buf_add(&body, ones, 1048496);
    put_body(31, body.data, body.size);
    assert_true(bytes.size <= MSG_HEADER_BYTES_MAX && bytes.size > n);
    assert_int_equal(unpack_here(), ERR_LIMIT);
    put_start(MSG_CREDIT);                         /* fields that nobody knows, two bytes each */
    put_body(27, "\x08\x05", 2);
    for (int i = 0; i < 400000; i++) buf_add(&bytes, "\x78\x01", 2);
    assert_int_equal(unpack_here(), ERR_LIMIT);
    assert_int_equal(codec_unpack(codec, ones, MSG_HEADER_BYTES_MAX + 1, &out, &e), ERR_LIMIT);
    struct msg fine = valid(MSG_WORK);             /* and the codec works on as before */
    assert_fine(there_and_back(&fine, &out), &e);
    buf_deinit(&body);
    free(ones);
}

static void texts_are_cleaned_before_they_are_sent(void **state) {
    (void)state;
    struct msg m = valid(MSG_LEAVE), out;
    snprintf(m.u.leave.text, sizeof m.u.leave.text, "two\nlines, \x1b[1m, \xc3( and half a \xe2\x86");
    assert_fine(there_and_back(&m, &out), &e);
    assert_string_equal(out.u.leave.text, "two?lines, ?[1m, ?( and half a ??");
    memset(m.u.leave.text, 'x', sizeof m.u.leave.text);        /* not terminated */
    assert_fine(there_and_back(&m, &out), &e);
    assert_int_equal(strlen(out.u.leave.text), MSG_TEXT_MAX - 1);
}

/* ---- frames ---- */

static int frame_there(const struct msg *m, uint32_t payload, const struct frame_rules *rules,
                       struct msg *out) {
    buf_clear(&bytes);
    assert_fine(frame_pack(m, payload, &bytes, &e), &e);
    return frame_unpack(codec, bytes.data, bytes.size, payload, rules, out, &e);
}

static void a_frame_shows_kind_and_sizes_before_it_is_parsed(void **state) {
    (void)state;
    struct msg m = valid(MSG_PROBE), out;
    struct frame_prefix p;
    assert_fine(frame_there(&m, 1000, &anything, &out), &e);
    assert_true(any_msg_equal(&m, &out));
    assert_fine(frame_peek(bytes.data, bytes.size, 1000, &anything, &p, &e), &e);
    assert_int_equal(p.kind, MSG_PROBE);
    assert_int_equal(p.version, MSG_VERSION);
    assert_int_equal(p.payload_bytes, 1000);
    assert_int_equal(p.header_bytes, bytes.size - FRAME_PREFIX_BYTES);
}

static int peek_with(size_t at, int value, struct frame_prefix *p) {
    struct msg m = valid(MSG_CREDIT);
    buf_clear(&bytes);
    assert_fine(frame_pack(&m, 0, &bytes, &e), &e);
    bytes.data[at] = (char)value;
    return frame_peek(bytes.data, bytes.size, 0, &anything, p, &e);
}

static void strangers_are_told_from_other_versions(void **state) {
    (void)state;
    struct frame_prefix p;
    assert_int_equal(frame_peek("GET / HTTP/1.1\r\nHost: x\r\n", 25, 0, &anything, &p, &e), ERR_INVALID);
    assert_int_equal(frame_peek("PLEI", 4, 0, &anything, &p, &e), ERR_INVALID);
    assert_int_equal(frame_peek("", 0, 0, &anything, &p, &e), ERR_INVALID);
    for (size_t i = 0; i < 4; i++) assert_int_equal(peek_with(i, 'x', &p), ERR_INVALID);
    assert_int_equal(peek_with(4, MSG_VERSION + 1, &p), ERR_UNSUPPORTED);
    assert_int_equal(p.version, MSG_VERSION + 1);
    assert_int_equal(peek_with(4, MSG_VERSION_MIN - 1, &p), ERR_UNSUPPORTED);
    assert_int_equal(peek_with(6, MSG_KINDS, &p), ERR_INVALID);
    assert_int_equal(peek_with(6, MSG_NONE, &p), ERR_INVALID);
    assert_int_equal(peek_with(8, 1, &p), ERR_INVALID);
    assert_int_equal(peek_with(11, 1, &p), ERR_LIMIT);
    assert_int_equal(peek_with(12, 1, &p), ERR_INVALID);
    assert_int_equal(peek_with(15, 127, &p), ERR_LIMIT);
    struct msg out;
    assert_int_equal(peek_with(6, MSG_ROW_GET, &p), 0);
    assert_int_equal(frame_unpack(codec, bytes.data, bytes.size, 0, &anything, &out, &e), ERR_CORRUPT);
}

static void a_greeting_of_a_later_version_can_be_read(void **state) {
    (void)state;
    struct msg m = valid(MSG_HELLO), out;
    assert_fine(frame_there(&m, 0, &anything, &out), &e);
    bytes.data[4] = MSG_VERSION + 9;
    assert_fine(frame_unpack(codec, bytes.data, bytes.size, 0, &anything, &out, &e), &e);
    assert_true(any_msg_equal(&m, &out));
}

static void a_link_takes_only_what_its_rules_allow(void **state) {
    (void)state;
    const struct frame_rules unknown = { FRAME_KIND(MSG_HELLO), 0 }, small = { 0, 100 };
    struct msg m = valid(MSG_PING), out;
    assert_int_equal(frame_there(&m, 0, &unknown, &out), ERR_DENIED);
    m = valid(MSG_HELLO);
    assert_fine(frame_there(&m, 0, &unknown, &out), &e);
    m = valid(MSG_PROBE);
    assert_fine(frame_there(&m, 100, &small, &out), &e);
    assert_int_equal(frame_there(&m, 101, &small, &out), ERR_LIMIT);
}

static void a_payload_has_to_fit_its_message(void **state) {
    (void)state;
    struct msg out, m = valid(MSG_CREDIT);
    assert_int_equal(frame_there(&m, 4, &anything, &out), ERR_CORRUPT);
    m = valid(MSG_ROW);
    m.u.row.code = 0, m.u.row.n_vocab = 1000;
    assert_fine(frame_there(&m, 4000, &anything, &out), &e);
    assert_int_equal(frame_there(&m, 4001, &anything, &out), ERR_CORRUPT);
    m.u.row.code = ERR_NOTFOUND;
    assert_int_equal(frame_there(&m, 4000, &anything, &out), ERR_CORRUPT);
    m = valid(MSG_EXPERTS);
    m.u.experts.n_row = 3, m.u.experts.n_used = 2;
    assert_fine(frame_there(&m, 3 * 4 * (64 + 4), &anything, &out), &e);
    assert_int_equal(frame_there(&m, 3 * 4 * 4, &anything, &out), ERR_CORRUPT);
    assert_int_equal(frame_there(&m, 3 * 4 * 68 + 4, &anything, &out), ERR_CORRUPT);
    m = valid(MSG_WEIGHTS);
    m.u.weights.code = 0, m.u.weights.offset = 10, m.u.weights.total_bytes = 20;
    assert_fine(frame_there(&m, 10, &anything, &out), &e);
    assert_int_equal(frame_there(&m, 11, &anything, &out), ERR_CORRUPT);
    assert_int_equal(frame_there(&m, 0, &anything, &out), ERR_CORRUPT);
}

static void parts_of_rows_lie_in_the_payload(void **state) {
    (void)state;
    struct msg_row_result row[2] = { { .row = 0, .offset = 0, .bytes = 16, .n_item = 2 },
                                     { .row = 1, .whole = true, .offset = 16, .bytes = 40, .n_vocab = 10 } };
    struct msg out, m = { .kind = MSG_RESULT, .incarnation = 1, .u.result = { .row = row, .n_row = 2 } };
    assert_fine(frame_there(&m, 56, &anything, &out), &e);
    assert_int_equal(frame_there(&m, 55, &anything, &out), ERR_CORRUPT);
    row[0].n_item = 3;
    assert_int_equal(frame_there(&m, 56, &anything, &out), ERR_CORRUPT);
    row[0].n_item = 2, row[1].offset = UINT32_MAX - 3;
    assert_int_equal(frame_there(&m, 56, &anything, &out), ERR_CORRUPT);
    row[1].offset = 14;
    assert_int_equal(frame_there(&m, 56, &anything, &out), ERR_CORRUPT);
}

static void versions_meet_or_do_not(void **state) {
    (void)state;
    assert_int_equal(frame_version_pick(1, 1), 1);
    assert_int_equal(frame_version_pick(1, 99), MSG_VERSION);
    assert_int_equal(frame_version_pick(MSG_VERSION + 1, MSG_VERSION + 2), 0);
    assert_int_equal(frame_version_pick(0, MSG_VERSION_MIN - 1), 0);
}

/* ---- speed ---- */

/* Sixteen streams, each with one token, in the middle of a pipeline. */
static void decode_batch(struct msg *m, struct msg_seg *seg, int32_t *token, struct msg_want *want,
                         struct msg_timing *timing) {
    for (uint32_t i = 0; i < 16; i++) {
        seg[i] = (struct msg_seg){ 1000 + i, 20000 + i * 77, 1, 0 };
        token[i] = (int32_t)(i * 7919);
        want[i] = (struct msg_want){
            .row = i, .temperature = 0.7f, .top_p = 0.95f, .top_k = 40, .n_item_max = 256
        };
    }
    for (uint32_t i = 0; i < 4; i++) timing[i] = (struct msg_timing){ i, 120, 25000, 80, 16 };
    *m = (struct msg){ .kind = MSG_WORK, .epoch = 3, .incarnation = 0x123456789abcdef, .link_seq = 70000 };
    m->u.work = (struct msg_work){ .batch = 123456,
                                   .batch_done = 123400,
                                   .seg = seg,
                                   .token = token,
                                   .want = want,
                                   .timing = timing,
                                   .n_seg = 16,
                                   .n_row = 16,
                                   .n_want = 16,
                                   .n_timing = 4 };
}

static void a_decode_batch_packs_and_unpacks_in_microseconds(void **state) {
    (void)state;
    struct msg_seg seg[16];
    int32_t token[16];
    struct msg_want want[16];
    struct msg_timing timing[4];
    struct msg m, out;
    int n = test_rounds(20000);
    decode_batch(&m, seg, token, want, timing);
    double best[2] = { 1e9, 1e9 };
    for (int round = 0; round < 5; round++) {      /* the quickest of some: others use this machine, too */
        uint64_t t0 = clock_now_ns();
        for (int i = 0; i < n / 5; i++) {
            buf_clear(&bytes);
            codec_pack(&m, &bytes, NULL);
        }
        uint64_t t1 = clock_now_ns();
        for (int i = 0; i < n / 5; i++) codec_unpack(codec, bytes.data, bytes.size, &out, NULL);
        uint64_t t2 = clock_now_ns();
        best[0] = MIN(best[0], (double)(t1 - t0) / (n / 5));
        best[1] = MIN(best[1], (double)(t2 - t1) / (n / 5));
    }
    printf("WORK of 16 rows: %zu bytes, pack %.2f us, unpack %.2f us\n", bytes.size, best[0] / 1e3,
           best[1] / 1e3);
    if (effort() != EFFORT_QUICK) assert_true(best[0] < 10e3 && best[1] < 10e3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_kind_comes_back_as_it_went),
        TEST(a_message_cut_short_is_an_error_or_a_message),
        TEST(damaged_bytes_never_make_a_message_that_breaks_a_promise),
        TEST(promises_about_links_are_kept),
        TEST(promises_about_plans_are_kept),
        TEST(promises_about_work_are_kept),
        TEST(promises_about_experts_and_weights_are_kept),
        TEST(too_many_of_anything_is_not_sent),
        TEST(another_body_than_the_kind_says_is_refused),
        TEST(fields_of_a_later_version_are_passed_over),
        TEST(what_no_sender_of_ours_writes_is_refused),
        TEST(no_bytes_can_ask_for_more_memory_than_there_is),
        TEST(texts_are_cleaned_before_they_are_sent),
        TEST(a_frame_shows_kind_and_sizes_before_it_is_parsed),
        TEST(strangers_are_told_from_other_versions),
        TEST(a_greeting_of_a_later_version_can_be_read),
        TEST(a_link_takes_only_what_its_rules_allow),
        TEST(a_payload_has_to_fit_its_message),
        TEST(parts_of_rows_lie_in_the_payload),
        TEST(versions_meet_or_do_not),
        TEST(a_decode_batch_packs_and_unpacks_in_microseconds),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
