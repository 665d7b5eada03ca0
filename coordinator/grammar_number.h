/* grammar_number - numbers between two bounds, as part of a grammar.
 *
 * Bounds are compared digit by digit as they are written, in decimal, so nothing is rounded. Numbers are
 * written without exponent, with at most 6 digits behind the point more than the bounds have, and not more
 * than a double tells apart. Limits: a bound has at most 18 digits before the point and 15 behind, 15 in all
 * when it is exclusive. A step that numbers are multiples of has at most 1000 units of its last digit and
 * 6 digits behind the point. */
#ifndef COORDINATOR_GRAMMAR_NUMBER_H
#define COORDINATOR_GRAMMAR_NUMBER_H

#include "coordinator/grammar.h"

enum {
    NUMBER_WHOLE_MAX = 18, NUMBER_FRACTION_MAX = 15,
    NUMBER_STEP_MAX = 1000, NUMBER_STEP_FRACTION_MAX = 6
};

struct number_bound {
    bool set, exclusive, negative;
    char whole[NUMBER_WHOLE_MAX + 1];             /* digits, without leading zeros, "0" for none */
    char fraction[NUMBER_FRACTION_MAX + 1];       /* without trailing zeros */
};

/* From the spelling of a JSON number. ERR_INVALID: too many digits. */
int number_bound_read(struct number_bound *b, struct chat_text text, bool exclusive, struct err *e);
int number_bound_compare(const struct number_bound *a, const struct number_bound *b);     /* the values */

struct number_step { uint32_t m, n_fraction; };   /* m units of 10^-n_fraction; m 0: any number will do */

/* Makes *s a step to multiples of this one, too. ERR_INVALID: not above 0, or finer than the limits. */
int number_step_read(struct number_step *s, struct chat_text text, struct err *e);
bool number_is_multiple(const struct number_bound *b, const struct number_step *s);

uint32_t grammar_then_range(struct grammar *g, uint32_t from, const struct number_bound *lo,
                            const struct number_bound *hi, const struct number_step *step, bool integer);

/* grammar_multiple.c: from -> a multiple of the step, not negative, between bounds likewise -> end. */
void grammar_add_multiples(struct grammar *g, uint32_t from, const struct number_bound *lo,
                           const struct number_bound *hi, bool integer, const struct number_step *step,
                           uint32_t end);

#endif
