/* UTF-8: every code point, every two-byte sequence, and streams cut at every place. */
#include "tests/harness/test.h"

#include "common/base/utf8.h"

/* The same rules by ranges, as Unicode's table 3-7 prints them. */
static const struct row {
    uint8_t lo[4], hi[4];
    unsigned n;
} rows[] = {
    { { 0x00 }, { 0x7f }, 1 },
    { { 0xc2, 0x80 }, { 0xdf, 0xbf }, 2 },
    { { 0xe0, 0xa0, 0x80 }, { 0xe0, 0xbf, 0xbf }, 3 },
    { { 0xe1, 0x80, 0x80 }, { 0xec, 0xbf, 0xbf }, 3 },
    { { 0xed, 0x80, 0x80 }, { 0xed, 0x9f, 0xbf }, 3 },
    { { 0xee, 0x80, 0x80 }, { 0xef, 0xbf, 0xbf }, 3 },
    { { 0xf0, 0x90, 0x80, 0x80 }, { 0xf0, 0xbf, 0xbf, 0xbf }, 4 },
    { { 0xf1, 0x80, 0x80, 0x80 }, { 0xf3, 0xbf, 0xbf, 0xbf }, 4 },
    { { 0xf4, 0x80, 0x80, 0x80 }, { 0xf4, 0x8f, 0xbf, 0xbf }, 4 },
};

/* How many bytes at p belong to one row, and whether they complete it. */
static unsigned match_rows(const uint8_t *p, size_t len, bool *complete) {
    unsigned best = 0;
    *complete = false;
    for (size_t r = 0; r < COUNT_OF(rows); r++) {
        unsigned n = 0;
        while (n < rows[r].n && n < len && p[n] >= rows[r].lo[n] && p[n] <= rows[r].hi[n]) n++;
        best = MAX(best, n);
        if (n == rows[r].n) *complete = true;
    }
    return best;
}

static const char replacement[] = "\xef\xbf\xbd";

/* The text of all bytes at once, by the table. */
static size_t reference_text(const uint8_t *p, size_t len, char *out) {
    size_t n_out = 0;
    for (size_t at = 0; at < len;) {
        bool complete;
        unsigned n = match_rows(p + at, len - at, &complete);
        memcpy(out + n_out, complete ? (const char *)p + at : replacement, complete ? n : 3);
        n_out += complete ? n : 3;
        at += MAX(n, 1u);
    }
    return n_out;
}

static void every_code_point_survives_a_round_trip(void **state) {
    (void)state;
    for (uint32_t cp = 0; cp <= UTF8_CODE_POINT_MAX; cp++) {
        char text[UTF8_MAX];
        uint32_t back = 0;
        unsigned n = utf8_encode(cp, text);
        bool surrogate = cp >= 0xd800 && cp <= 0xdfff;
        assert_int_equal(utf8_decode((uint8_t *)text, (uint8_t *)text + n, &back), n);
        assert_int_equal(back, surrogate ? UTF8_REPLACEMENT : cp);
        assert_int_equal(n, surrogate ? 3 : cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4);
    }
    char text[UTF8_MAX];
    assert_int_equal(utf8_encode(UTF8_CODE_POINT_MAX + 1, text), 3);
    assert_memory_equal(text, replacement, 3);
}

static void decoding_takes_exactly_what_the_table_allows(void **state) {
    (void)state;
    static const uint8_t third[] = { 0x00, 0x7f, 0x80, 0xbf, 0xc0, 0xff };
    for (unsigned i = 0; i < 65536 * COUNT_OF(third) * COUNT_OF(third); i++) {
        unsigned pair = i % 65536, rest = i / 65536;
        uint8_t p[4] = { (uint8_t)(pair >> 8), (uint8_t)pair, third[rest % COUNT_OF(third)],
                         third[rest / COUNT_OF(third)] };
        for (size_t len = 1; len <= 4; len++) {
            bool complete;
            uint32_t cp;
            unsigned n = match_rows(p, len, &complete), got = utf8_decode(p, p + len, &cp);
            if (got != (complete ? n : 0))
                fail_msg("%02x %02x %02x %02x of %zu: %u", p[0], p[1], p[2], p[3], len, got);
        }
    }
}

static void validation_points_at_the_first_bad_byte(void **state) {
    (void)state;
    assert_true(utf8_valid(NULL, 0));
    assert_true(utf8_valid("plain ascii, longer than eight", 30));
    assert_int_equal(utf8_valid_prefix("0123456789\xff", 11), 10);
    assert_int_equal(utf8_valid_prefix("\xe4\xb8\xad\xe4\xb8", 5), 3);
    assert_int_equal(utf8_valid_prefix("a\xed\xa0\x80", 4), 1);
    assert_true(utf8_valid("a\0b", 3));
}

/* Bytes that begin, continue, break and end sequences, in every order of five. */
static const uint8_t alphabet[] = { 'a', 0x80, 0x9f, 0xa0, 0xbf, 0xc2, 0xe0, 0xe4, 0xed, 0xf0, 0xf4, 0xff };

static void check_stream(const uint8_t *p, size_t len) {
    char expected[64], got[64];
    size_t n_expected = reference_text(p, len, expected);
    for (size_t cut = 0; cut <= len; cut++) {
        struct utf8_stream s = { 0 };
        size_t n = utf8_stream_push(&s, p, cut, got);
        assert_true(n <= UTF8_STREAM_ROOM(cut));
        size_t more = utf8_stream_push(&s, p + cut, len - cut, got + n);
        assert_true(more <= UTF8_STREAM_ROOM(len - cut));
        n += more;
        n += utf8_stream_flush(&s, got + n);
        assert_int_equal(n, n_expected);
        assert_memory_equal(got, expected, n);
        assert_int_equal(utf8_stream_flush(&s, got), 0);
    }
}

static void a_stream_cut_anywhere_gives_the_text_of_the_whole(void **state) {
    (void)state;
    size_t n = COUNT_OF(alphabet);
    for (size_t i = 0; i < n * n * n * n * n; i++) {
        uint8_t p[5];
        size_t left = i;
        for (size_t k = 0; k < 5; k++, left /= n) p[k] = alphabet[left % n];
        check_stream(p, 5);
    }
}

static void a_stream_delivers_all_that_cannot_change_any_more(void **state) {
    (void)state;
    struct utf8_stream s = { 0 };
    char out[32];
    assert_int_equal(utf8_stream_push(&s, "ab\xf0\x9f", 4, out), 2);
    assert_int_equal(utf8_stream_push(&s, "\x91", 1, out), 0);
    assert_int_equal(utf8_stream_push(&s, "\xa9!", 2, out), 5);
    assert_memory_equal(out, "\xf0\x9f\x91\xa9!", 5);
    assert_int_equal(utf8_stream_push(&s, "\xe2\x80", 2, out), 0);
    assert_int_equal(utf8_stream_push(&s, "x", 1, out), 4);
    assert_memory_equal(out, "\xef\xbf\xbdx", 4);
    assert_int_equal(utf8_stream_push(&s, "\xe0\x80", 2, out), 6);
    assert_int_equal(utf8_stream_push(&s, "\xe2\x80", 2, out), 0);
    assert_int_equal(utf8_stream_flush(&s, out), 3);
    assert_memory_equal(out, replacement, 3);
    assert_int_equal(utf8_stream_push(&s, NULL, 0, out), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_code_point_survives_a_round_trip),
        TEST(decoding_takes_exactly_what_the_table_allows),
        TEST(validation_points_at_the_first_bad_byte),
        TEST(a_stream_cut_anywhere_gives_the_text_of_the_whole),
        TEST(a_stream_delivers_all_that_cannot_change_any_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
