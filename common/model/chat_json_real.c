/* chat_json_real - numbers with a point or an exponent, printed as the model saw them in
 * training.
 *
 * That is Python's spelling: the fewest digits that read back as the same double, at least one
 * digit behind the point, an exponent only outside 1e-4 .. 1e16. printf and strtod do the
 * arithmetic; no text with a decimal point passes between them and us, so the process's locale
 * does not matter. */
#include "common/model/chat_json.h"

#include <stdio.h>
#include <stdlib.h>

/* Digits of a double without the point, and where the point stands: 0.d1d2d3... times 10^point. */
struct digits {
    char text[20];
    int n, point;
};

/* x > 0 rounded to n digits, read from printf's "d.ddde+xx" so that a locale's decimal point
 * does not matter. */
static void digits_of(struct digits *d, double x, int n) {
    char text[40];
    snprintf(text, sizeof text, "%.*e", n - 1, x);
    const char *exponent = strchr(text, 'e');
    d->n = 0;
    for (const char *p = text; p < exponent; p++)
        if (*p >= '0' && *p <= '9') d->text[d->n++] = *p;
    d->text[d->n] = 0;
    d->point = (int)strtol(exponent + 1, NULL, 10) + 1;
}

static bool digits_read_back(const struct digits *d, double x) {
    char text[40];
    snprintf(text, sizeof text, "%se%d", d->text, d->point - d->n);
    return strtod(text, NULL) == x;
}

/* The next decimal number of as many digits. */
static void digits_step(struct digits *d) {
    int i = d->n - 1;
    while (i >= 0 && d->text[i] == '9') d->text[i--] = '0';
    if (i >= 0) {
        d->text[i]++;
        return;
    }
    d->text[0] = '1';                 /* 999 became 000: 1000 has one digit more before the point */
    d->point++;
}

/* The fewest digits that read back as x. Fifteen digits hold every normal number that has so
 * few, so trying 15, 16 and 17 and cutting zeros is enough; only subnormal numbers need the
 * whole ladder. At a power of two the gap below is half the gap above: then the nearest 16
 * digits may read back as the neighbour where the next ones up read back as x. */
static void digits_shortest(struct digits *d, double x) {
    for (int n = x < 2.2250738585072014e-308 ? 1 : 15; n <= 17; n++) {
        digits_of(d, x, n);
        if (digits_read_back(d, x)) break;
        if (n != 16) continue;
        digits_step(d);
        if (digits_read_back(d, x)) break;
    }
    while (d->n > 1 && d->text[d->n - 1] == '0') d->n--;
}

static void put_zeros(struct buf *out, int n) {
    while (n-- > 0) buf_add_char(out, '0');
}

static void put_double(struct buf *out, double x) {
    if (x != x || x - x != 0) {                       /* 1e999: a number, but no double has it */
        buf_add_text(out, x < 0 ? "-Infinity" : "Infinity");
        return;
    }
    if (x == 0) {
        buf_add_text(out, 1 / x < 0 ? "-0.0" : "0.0");
        return;
    }
    struct digits d;
    if (x < 0) buf_add_char(out, '-');
    digits_shortest(&d, x < 0 ? -x : x);
    if (d.point < -3 || d.point > 16) {               /* 1e-05, 1.5e+16 */
        buf_add_char(out, d.text[0]);
        if (d.n > 1) buf_add_char(out, '.');
        buf_add(out, d.text + 1, (size_t)d.n - 1);
        buf_printf(out, "e%c%02d", d.point > 0 ? '+' : '-', abs(d.point - 1));
    } else if (d.point <= 0) {                        /* 0.00015 */
        buf_add_text(out, "0.");
        put_zeros(out, -d.point);
        buf_add(out, d.text, (size_t)d.n);
    } else {                                          /* 15.0, 1.5, 1500.0 */
        int n_whole = MIN(d.n, d.point);
        buf_add(out, d.text, (size_t)n_whole);
        put_zeros(out, d.point - n_whole);
        buf_add_char(out, '.');
        if (d.n > n_whole) buf_add(out, d.text + n_whole, (size_t)(d.n - n_whole));
        else buf_add_char(out, '0');
    }
}

enum { EXPONENT_MAX = 1 << 20 };           /* far beyond what any double needs, far below INT_MAX */

/* The value of a number's text. Its digits go to strtod without a point, for the locale's sake. */
static double real_of(struct chat_text number) {
    char text[CHAT_JSON_NUMBER_MAX + 16];
    size_t n = 0, i = 0;
    int exponent = 0, behind_point = 0;
    bool point = false;
    for (; i < number.len && number.data[i] != 'e' && number.data[i] != 'E'; i++) {
        if (number.data[i] == '.') point = true;
        else text[n++] = number.data[i];
        if (point && number.data[i] != '.') behind_point++;
    }
    bool negative = i + 1 < number.len && number.data[i + 1] == '-';
    for (; i < number.len; i++)
        if (number.data[i] >= '0' && number.data[i] <= '9')
            exponent = MIN(exponent * 10 + (number.data[i] - '0'), EXPONENT_MAX);
    snprintf(text + n, sizeof text - n, "e%d", (negative ? -exponent : exponent) - behind_point);
    return strtod(text, NULL);
}

void chat_json_put_real(struct chat_text number, struct buf *out) {
    put_double(out, real_of(number));
}
