/* codec_private - which members of struct msg go to the wire as they are, once for both directions.
 *
 * V: a number or bool. N: an enum, with its type and the number of its values. T: a text in an array.
 * Lists and members of other kinds are written out in codec_pack.c and codec_unpack.c. Names are the
 * same in msg.h and in proto/. */
#ifndef WIRE_CODEC_PRIVATE_H
#define WIRE_CODEC_PRIVATE_H

#include "common/base/err.h"
#include "common/wire/codec.h"
#include "proto/message.pb-c.h"

#define FIELDS_FILE(V, N, T) V(model_lo) V(model_hi) V(bytes) V(has_embed) V(has_head) V(is_whole) \
    V(has_rest) T(name)
#define FIELDS_HELLO(V, N, T)                                                                       \
    V(magic) V(version_min) V(version_max) N(role, enum msg_role, MSG_ROLES) T(build) T(name)       \
    T(address) T(key) N(backend, enum msg_backend, MSG_BACKENDS) T(device) V(n_threads)             \
    V(memory_bytes) V(read_bytes_per_s) V(f32_per_s) V(int8_per_s) V(fetches) V(gives)              \
    V(held_model_lo)                                                                                \
    V(held_model_hi) V(held_begin) V(held_end)
#define FIELDS_WELCOME(V, N, T)                                                                     \
    V(version) N(role, enum msg_role, MSG_ROLES) T(name) V(ping_ms) V(ping_misses) V(payload_bytes_max)
#define FIELDS_REFUSE(V, N, T) V(code) T(text)
#define FIELDS_LEAVE(V, N, T) V(code) T(text)
#define FIELDS_COUNTERS(V, N, T)                                                                    \
    V(busy_us) V(idle_us) V(n_batch) V(n_row) V(bytes_in) V(bytes_out) V(n_refused)                 \
    V(memory_used_bytes) V(n_seq) V(n_queued)
#define FIELDS_PING(V, N, T) V(sent_us) V(echo_us) V(held_us)
#define FIELDS_HOP(V, N, T) T(name) T(address) T(key)
#define FIELDS_SOURCE(V, N, T) V(has_embed) V(has_head) V(has_rest) V(has_header)
#define FIELDS_ASSIGN(V, N, T)                                                                      \
    V(model_lo) V(model_hi) T(model) V(stage_i) V(n_stage) V(layer_begin) V(layer_end) V(has_embed) \
    V(has_head) V(is_helper) V(numerics) V(precision) N(wire, enum msg_wire_format, MSG_WIRE_FORMATS) \
    V(n_slot) V(n_ctx_max) V(n_rows_max) V(n_credit) V(n_window) V(expert_begin) V(expert_end)
#define FIELDS_PROGRESS(V, N, T) V(done_bytes) V(total_bytes) V(is_transfer)
#define FIELDS_READY(V, N, T)                                                                       \
    V(weights_bytes) V(state_bytes) V(work_bytes) V(n_slot) V(n_ctx_max) V(n_rows_max) V(state_tokens_max)
#define FIELDS_FAILED(V, N, T) V(batch) V(code) T(text)
#define FIELDS_WORK(V, N, T) V(batch) V(batch_done)
#define FIELDS_WORK_REFUSED(V, N, T)                                                                \
    V(batch) V(seq) N(reason, enum msg_refusal, MSG_REFUSALS) V(stage_i) V(have)
#define FIELDS_CREDIT(V, N, T) V(batch)
#define FIELDS_RESULT(V, N, T) V(batch)
#define FIELDS_ROW_GET(V, N, T) V(batch) V(row)
#define FIELDS_ROW(V, N, T) V(batch) V(row) V(n_vocab) V(code)
#define FIELDS_SYNC(V, N, T) V(seq_next) V(batch_done)
#define FIELDS_EXPERTS(V, N, T) V(batch) V(layer) V(n_row) V(n_used)
#define FIELDS_EXPERTS_DONE(V, N, T) V(batch) V(layer) V(n_row) V(compute_us) V(code)
#define FIELDS_STATE(V, N, T) V(job) V(seq) V(prefix_lo) V(prefix_hi) V(n_token)
#define FIELDS_STATE_DONE(V, N, T) V(job) V(bytes) V(code) V(n_token) T(text)
#define FIELDS_WEIGHTS_GET(V, N, T) V(model_lo) V(model_hi) V(offset) V(id) V(tensor) V(bytes) V(name)
#define FIELDS_WEIGHTS(V, N, T)                                                                     \
    V(offset) V(total_bytes) V(file_bytes) V(hash) V(id) V(tensor) V(code) V(last)
#define FIELDS_LINKS(V, N, T) V(id)
#define FIELDS_FILES(V, N, T)
#define FIELDS_PEERS(V, N, T)
#define FIELDS_SURVEY(V, N, T) V(id) V(wait_ms) V(bulk)
#define FIELDS_PROBE(V, N, T) V(id) V(last)
#define FIELDS_PROBE_DONE(V, N, T) V(id) V(bytes) V(elapsed_us)
#define FIELDS_LINK(V, N, T) T(name) V(rtt_us) V(bytes_per_s)

/* Lists that travel as columns: member, type. */
#define COLUMNS_WANT(X)                                                                             \
    X(row) X(temperature) X(top_p) X(min_p) X(top_k) X(n_top) X(n_item_max) X(bias_begin) X(n_bias)
#define COLUMNS_TIMING(X) X(stage_i) X(queue_us) X(compute_us) X(hold_us) X(n_row)
#define COLUMNS_RESULT(X)                                                                           \
    X(row) X(whole) X(offset) X(bytes) X(n_item) X(n_vocab) X(left_id) X(left_logit) X(temperature) \
    X(sum) X(lse)

enum { WANT_LOGPROBS = 1, WANT_ADJUSTS = 2 };          /* Wants.flags */

/* Bodies: member here and in the oneof, its type there, its fields. */
#define CODEC_BODIES(X)                                                                             \
    X(hello, Hello, HELLO) X(welcome, Welcome, WELCOME) X(refuse, Refuse, REFUSE) X(ping, Ping, PING) \
    X(leave, Leave, LEAVE) X(assign, Assign, ASSIGN) X(progress, Progress, PROGRESS)                \
    X(ready, Ready, READY) X(failed, Failed, FAILED) X(work, Work, WORK)                            \
    X(work_refused, WorkRefused, WORK_REFUSED) X(credit, Credit, CREDIT) X(result, Result, RESULT)  \
    X(row_get, RowGet, ROW_GET) X(row, Row, ROW) X(sync, Sync, SYNC) X(experts, Experts, EXPERTS)   \
    X(experts_done, ExpertsDone, EXPERTS_DONE) X(state, State, STATE)                               \
    X(state_done, StateDone, STATE_DONE) X(weights_get, WeightsGet, WEIGHTS_GET)                    \
    X(weights, Weights, WEIGHTS) X(probe, Probe, PROBE) X(probe_done, ProbeDone, PROBE_DONE)        \
    X(links, Links, LINKS) X(files, Files, FILES) X(peers, Peers, PEERS) X(survey, Survey, SURVEY)

/* Kinds and their bodies; DRAIN and DRAINED have none. */
#define CODEC_KINDS(X)                                                                              \
    X(HELLO, hello, HELLO) X(WELCOME, welcome, WELCOME) X(REFUSE, refuse, REFUSE) X(PING, ping, PING) \
    X(LEAVE, leave, LEAVE) X(ASSIGN, assign, ASSIGN) X(PROGRESS, progress, PROGRESS)                \
    X(READY, ready, READY) X(FAILED, failed, FAILED) X(WORK, work, WORK)                            \
    X(WORK_REFUSED, work_refused, WORK_REFUSED) X(CREDIT, credit, CREDIT) X(RESULT, result, RESULT) \
    X(ROW_GET, row_get, ROW_GET) X(ROW, row, ROW) X(SYNC, sync, SYNC) X(EXPERTS, experts, EXPERTS)  \
    X(EXPERTS_DONE, experts_done, EXPERTS_DONE) X(STATE_SAVE, state, STATE)                         \
    X(STATE_LOAD, state, STATE) X(STATE_DROP, state, STATE)                                         \
    X(STATE_DONE, state_done, STATE_DONE) X(WEIGHTS_GET, weights_get, WEIGHTS_GET)                  \
    X(WEIGHTS, weights, WEIGHTS) X(PROBE, probe, PROBE) X(PROBE_DONE, probe_done, PROBE_DONE)       \
    X(LINKS, links, LINKS) X(FILES, files, FILES) X(PEERS, peers, PEERS) X(SURVEY, survey, SURVEY)

/* Control characters and what is not UTF-8 have no place in a text that may end in a log. */
size_t codec_text_clean(const char *text, size_t n);   /* bytes before the first that may not be there */

#endif
