/* plant - mistakes that the simulation switches on to see that it would notice them.
 *
 * In every normal build PLANT(name) is the constant false and costs nothing. Only the simulation is
 * compiled with PLEIADES_PLANTS, and there one variable says which mistake is made in this run. */
#ifndef BASE_PLANT_H
#define BASE_PLANT_H

#include <stdbool.h>

enum plant {
    PLANT_none,
    PLANT_epoch_unchecked,                        /* messages of an older plan are taken */
    PLANT_credit_lost,                            /* SYNC does not bring home the credit of a dead batch */
    PLANT_batch_twice,                            /* a repeated batch is computed again */
    PLANT_position_unchecked,                     /* a segment is taken at any position */
    PLANT_cancel_leaks,                           /* the sequence of a cancelled request is never closed */
    PLANT_replay_forgets,                      /* a replay starts from the prompt, without what was emitted */
    PLANT_late_ignored,                           /* deadlines of batches are not looked at */
    PLANT_old_result_taken,                    /* a result is applied to whatever request has the place now */
    PLANT_payload_leaks,                          /* bytes of a dropped message are not given back */
    PLANT_prefix_unchecked,                       /* a parked sequence is taken with a token that differs */
    PLANT_back_together,                       /* after going back, segments do not wait for the first one */
    PLANT_source_unpinned,                        /* what a copy begins from may change before it exists */
    PLANT_score_gap,                              /* rows of a prompt are told without those before them */
    PLANT_N
};

#ifdef PLEIADES_PLANTS
extern enum plant plant_now;
#define PLANT(name) (plant_now == PLANT_##name)
#else
#define PLANT(name) false
#endif

#endif
