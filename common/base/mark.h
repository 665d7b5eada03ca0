/* mark - counts how often rare branches ran. A safeguard that never ran looks just like one that works.
 *
 * MARK(name) in the branch, the name in the list below; the simulation must reach every one of them
 * (tests/sim fails otherwise). Any thread; counters only grow and are also part of the metrics. */
#ifndef BASE_MARK_H
#define BASE_MARK_H

#include <stdatomic.h>
#include <stdint.h>

#define MARK_LIST(X)                                                                                     \
    /* membership */                                                                                     \
    X(hello_missing)         /* a message on a link whose other end has not said who it is */            \
    X(hello_version)         /* no common protocol version */                                            \
    X(hello_repeated)        /* the same process again: its link was reset, or the answer was lost */    \
    X(hello_new_incarnation) /* a restarted process on the link of its predecessor */                    \
    X(hello_name_taken)      /* two processes with one name */                                           \
    X(hello_table_full)                                                                                  \
    X(incarnation_unknown) /* a message of a process that is gone */                                     \
    X(node_lost)           /* silent for too long */                                                     \
    X(node_left)                                                                                         \
    X(node_load_failed)                                                                                  \
    X(node_load_silent) /* neither progress nor an answer */                                             \
    X(assign_repeated)  /* the first one, or its answer, was lost */                                     \
    X(plan_impossible)                                                                                   \
    X(plan_again) /* epoch + 1 while requests were running */                                            \
    X(plan_restored) /* a substitute gives way to the wanted plan */                                     \
    X(survey_begun)  /* links are measured before a plan */                                              \
    X(survey_late)   /* a node does not say in time what it measured */                                  \
    X(coord_stale_epoch)                                                                                 \
    X(coord_link_lost) /* node: the coordinator is silent */                                             \
    X(coord_restarted) /* node: another coordinator process answers */                                   \
    X(next_link_lost)  /* node: the next stage is silent, or another process */                          \
    X(node_retired)    /* node: a newer plan goes on without it */                                       \
    X(drain_waits)     /* node: DRAIN while work is queued */                                            \
    /* batches */                                                                                        \
    X(batch_late)      /* its deadline passed */                                                         \
    X(batch_overtaken) /* a later one came back first: this one was lost on the way */                   \
    X(batch_unknown)   /* a result that nobody waits for any more */                                     \
    X(batch_refused)                                                                                     \
    X(batch_failed)    /* the computation gave an error */                                               \
    X(pipeline_wedged) /* nothing comes through: a new epoch */                                          \
    X(result_corrupt)  /* contradicts what was asked */                                                  \
    X(row_wanted)      /* NEED_MORE */                                                                   \
    X(row_gone)        /* the last stage does not have the row any more */                               \
    X(row_unknown)     /* a row that nobody waits for */                                                 \
    X(score_out_of_turn) /* rows of a prompt that came without those before them */                      \
    X(retry_in_place)  /* decode goes on at the same position */                                         \
    X(retry_replay)    /* the sequence is computed again from its tokens */                              \
    X(retry_given_up)                                                                                    \
    X(seq_mate_refused) /* a batch ended because of another sequence in it */                            \
    /* requests */                                                                                       \
    X(request_busy) /* the queue is full */                                                              \
    X(request_too_long)                                                                                  \
    X(request_waits_for_memory)                                                                          \
    X(request_waits_for_slot)                                                                            \
    X(request_cancelled_queued)                                                                          \
    X(request_cancelled_flying)                                                                          \
    X(request_handle_stale) /* for a request that is gone */                                             \
    X(request_timeout)                                                                                   \
    X(request_stalled)     /* no plan for too long */                                                    \
    X(chunk_cut_for_bound) /* a chunk is smaller because other streams wait */                           \
    X(chunk_joined)        /* even the smallest would delay others too much in a batch of its own */     \
    X(seq_taken_over)      /* a prompt goes on where an earlier request ended */                         \
    X(seq_goes_back)       /* the same, a few tokens before its end */                                   \
    X(seq_forked)          /* a prompt is kept beside its answer */                                      \
    X(seq_copied)          /* a request begins as a copy of a prompt that stays for others */            \
    X(seq_given_up)        /* a parked sequence makes room */                                            \
    /* node core */                                                                                      \
    X(node_stale_epoch)                                                                                  \
    X(node_batch_not_rising) /* repeated or out of order */                                              \
    X(node_batch_dead)       /* arrives after SYNC has ended it */                                       \
    X(node_position_refused)                                                                             \
    X(node_rolled_back)                                                                                  \
    X(node_forked)                                                                                       \
    X(node_slots_refused)                                                                                \
    X(node_waits_for_slot)                                                                               \
    X(node_state_refused)                                                                                \
    X(experts_unanswered) /* a helper is silent, gone, or in another plan */                             \
    X(experts_late)       /* an answer that nobody waits for any more */                                 \
    X(experts_refused)    /* helper: not in this plan */                                                 \
    X(node_waits_for_credit)                                                                             \
    X(node_credit_unknown) /* came after the batch was over */                                           \
    X(node_credit_healed)  /* the batch is over, and its CREDIT did not come */                          \
    X(node_dead_while_computing)                                                                         \
    X(node_dead_in_queue)                                                                                \
    X(node_compute_failed)                                                                               \
    X(node_seq_closed_by_sync)                                                                           \
    X(node_sync_old) /* an older SYNC after a newer one */

enum mark_id {
#define MARK_ENUM(name) MARK_##name,
    MARK_LIST(MARK_ENUM)
#undef MARK_ENUM
    MARK_N
};

extern atomic_uint_fast64_t mark_counts[MARK_N];

#define MARK(name) ((void)atomic_fetch_add_explicit(&mark_counts[MARK_##name], 1, memory_order_relaxed))

static inline uint64_t mark_count(enum mark_id id) {
    return atomic_load_explicit(&mark_counts[id], memory_order_relaxed);
}

const char *mark_name(enum mark_id id);

#endif
