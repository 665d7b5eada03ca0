/* shell (node) - carries out what the node's core decides.
 *
 *     frames in -> on_frame --+                    +-- SEND -> links_send -> frames out
 *     timer ------------------+-> node_step(event) +-- RUN, LOAD, SEQ_CLOSE -> job ring => compute thread
 *     answers <= result ring -+                    +-- CONNECT, DROP, FREE
 *
 * The slots of a batch's results are taken before the job goes to the compute thread, which owns their
 * bytes until the job is back. Measuring links is done beside the core, in shell_survey.c. */
#include "node/main_private.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/wire/link_set.h"
#include "node/store.h"

#include <stdio.h>
#include <stdlib.h>

enum { PROGRESS_MS = 200 };

/* ---- messages out ---- */

static void send(struct node_process *p, uint32_t link, const struct msg *m, struct payload payload,
                 bool borrows) {
    struct err e;
    buf_clear(&p->frame);
    if (frame_pack(m, payload.bytes, &p->frame, &e) < 0) {
        log_error("node", "%s cannot be packed: %s", msg_kind_name(m->kind), e.text);
        if (!borrows) slots_give(p->slots, payload);
        return;
    }
    links_send(p->links, link, p->frame.data, p->frame.size, payload, borrows);
}

void shell_say(struct node_process *p, uint32_t link, struct msg *m, struct payload payload) {
    m->epoch = node_view(p->core).epoch;
    m->incarnation = p->core_config.incarnation;
    send(p, link, m, payload, false);
}

static void drop(struct node_process *p, uint32_t link) {
    link_set_remove(p->known, NODE_KNOWN_MAX, link);
    links_drop(p->links, link);
}

/* ---- jobs ---- */

struct node_job_box *shell_box_take(struct node_process *p, enum compute_kind kind) {
    struct node_job_box *b = p->boxes;
    if (b) p->boxes = b->next;
    else b = xcalloc(1, sizeof *b);
    b->job.kind = kind;
    b->job.code = 0;
    b->is_progress = false;
    return b;
}

static void box_give(struct node_process *p, struct node_job_box *b) {
    b->next = p->boxes;
    p->boxes = b;
}

void shell_free_boxes(struct node_process *p) {
    for (struct node_job_box *b = p->boxes, *next; b; b = next) {
        next = b->next;
        free(b->job.row);
        free(b);
    }
    p->boxes = NULL;
}

void shell_push(struct node_process *p, struct node_job_box *b) {
    bool taken = worker_push(p->worker, b);
    CHECK(taken);                                 /* the ring holds more than the core can have open */
}

/* Compute thread. */
void shell_run_job(void *ctx, void *job) {
    struct node_process *p = ctx;
    struct node_job_box *b = job;
    if (b->job.kind == COMPUTE_LOAD) p->n_ask = MIN(b->job.assign.n_helper, (uint32_t)STAGE_HELPERS_MAX);
    if (b->job.kind == COMPUTE_RUN) p->running_batch = b->job.run->batch;
    if (b->job.code == 0) compute_do(p->compute, &b->job);
    worker_answer(p->worker, b);
}

void shell_drop_job(void *ctx, void *job) {
    box_give(ctx, job);
}

/* Compute thread. */
void shell_progress(void *ctx, uint64_t epoch, uint64_t done, uint64_t total) {
    struct node_process *p = ctx;
    uint64_t now = clock_now_ns();
    if (done < total && now < p->progress_ns + PROGRESS_MS * UINT64_C(1000000)) return;
    p->progress_ns = now;
    struct node_job_box *b = xcalloc(1, sizeof *b);
    b->is_progress = true;
    b->job.epoch = epoch;
    b->progress = (struct msg_progress){ .done_bytes = done, .total_bytes = total };
    worker_answer(p->worker, b);
}

/* Everybody in the cluster, and nobody else. */
static void allow_peers(struct node_process *p, const struct msg_key *peer, uint32_t n) {
    struct err e;
    if (!p->has_key) return;
    keyring_allow_nobody(p->keyring);
    for (uint32_t i = 0; i < n; i++)
        if (keyring_allow(p->keyring, peer[i].text, &e) < 0) log_warn("node", "%s", e.text);
}

/* ---- weights from elsewhere, and for others ---- */

void shell_give_send(void *ctx, uint32_t link, struct msg *m, struct payload payload) {
    shell_say(ctx, link, m, payload);
}

void shell_fetch_progress(void *ctx, uint64_t epoch, uint64_t done, uint64_t total) {
    struct node_event ev = { .kind = NODE_EV_PROGRESS };
    ev.load = (struct node_load){
        .epoch = epoch,
        .progress = { .done_bytes = done, .total_bytes = total, .is_transfer = true }
    };
    shell_step(ctx, &ev);
}

/* How long it took, and who gave how much. */
static void tell_fetched(const struct node_process *p, const char *path) {
    struct fetch_totals t = fetch_run_totals(p->fetch);
    char from[200] = "";
    size_t at = 0;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) {
        if (!t.source_bytes[i] || at >= sizeof from) continue;
        sum += t.source_bytes[i];
        at += (size_t)snprintf(from + at, sizeof from - at, ", %.1f MB from %.40s",
                               (double)t.source_bytes[i] / 1e6, sources_name(p, i));
    }
    double seconds = (double)MAX(t.ns, UINT64_C(1)) / 1e9;
    log_info("node", "%s is complete: %.1f MB in %.2f s, %.1f MB/s%s", path, (double)sum / 1e6, seconds,
             (double)sum / 1e6 / seconds, from);
}

/* Others may have it from us now, and a later plan counts it as here. */
static void announce_files(struct node_process *p) {
    struct node_event ev = { .kind = NODE_EV_FILES, .files = { p->files.file, p->files.n } };
    p->core_config.hello.n_file = p->files.n;
    shell_step(p, &ev);
}

void shell_fetch_tidied(void *ctx) {
    struct node_process *p = ctx;
    if (p->stopping || !node_files_prune(&p->files)) return;
    if (p->give) give_files_changed(p->give);
    announce_files(p);
}

/* What is used now stays; what was fetched for earlier plans goes, but for the last few. */
static void keep_store_tidy(struct node_process *p, const char *path) {
    size_t n = p->config.store_path ? strlen(p->config.store_path) : 0;
    bool unfinished, in_store = n && strncmp(path, p->config.store_path, n) == 0 && path[n] == '/';
    if (!p->fetch || !in_store || !store_is_share(path + n + 1, &unfinished)) return;
    struct err e;
    file_release(&p->held);
    if (file_hold(&p->held, path, &e) < 0) log_warn("node", "%s", e.text);
    else fetch_run_tidy(p->fetch, path, p->config.n_keep);
}

/* The job that waited goes on with what came. */
void shell_fetch_done(void *ctx, uint64_t epoch, const char *path, int code, const char *text) {
    struct node_process *p = ctx;
    struct node_job_box *b = p->fetching;
    struct err e;
    CHECK(b && b->job.epoch == epoch);
    p->fetching = NULL;
    b->job.code = code;
    snprintf(b->job.text, sizeof b->job.text, "%s", text);
    if (code == 0) {
        tell_fetched(p, path);
        node_files_prune(&p->files);               /* it may have needed their room */
        if (node_files_add(&p->files, path, &e) < 0) log_warn("node", "%s", e.text);
        snprintf(b->job.model_path, sizeof b->job.model_path, "%s", path);
    }
    sources_close(p);
    shell_push(p, b);
    if (code == 0) announce_files(p);
}

/* The job waits for a share that comes over the link. */
static void fetch_instead(struct node_process *p, const struct node_out *o, struct node_job_box *b) {
    log_info("node", "no file here holds layers %u to %u of %s: they come from %s%s", o->assign->layer_begin,
             o->assign->layer_end - 1, o->assign->model, o->assign->source[0].hop.name,
             o->assign->n_source > 1 ? " and others" : "");
    p->fetching = b;
    sources_close(p);
    fetch_run_start(p->fetch, o->epoch, o->assign);
    sources_set(p, o->assign->source, o->assign->n_source);
}

static void load(struct node_process *p, const struct node_out *o) {
    if (p->fetching) {                            /* of an older plan */
        fetch_run_stop(p->fetch);
        sources_close(p);
        box_give(p, p->fetching);
        p->fetching = NULL;
    }
    struct node_job_box *b = shell_box_take(p, COMPUTE_LOAD);
    const char *path = node_files_find(&p->files, o->assign);
    b->job.epoch = o->epoch;
    b->job.assign = *o->assign;
    b->job.assign.helper = NULL;
    for (uint32_t i = 0; i < o->assign->n_helper && i < STAGE_HELPERS_MAX; i++)
        b->job.helper[i] = (struct stage_range){ o->assign->helper[i].expert_begin,
                                                 o->assign->helper[i].expert_end };
    b->job.assign.peer = NULL;
    b->job.assign.source = NULL;
    b->job.ready = (struct msg_ready){ 0 };
    snprintf(b->job.model_path, sizeof b->job.model_path, "%s", path ? path : "");
    bool fetches = p->fetch && o->assign->n_source;
    if (!path && !p->config.stage && !fetches) {
        b->job.code = ERR_NOTFOUND;
        snprintf(b->job.text, sizeof b->job.text,
                 "no file here holds layers %u to %u of %s, and %s", o->assign->layer_begin,
                 o->assign->layer_end - 1, o->assign->model,
                 p->fetch ? "nobody gives them" : "there is no --store");
    }
    log_info("node", "epoch %llu: stage %u of %u, layers %u to %u", (unsigned long long)o->epoch,
             o->assign->stage_i + 1, o->assign->n_stage, o->assign->layer_begin, o->assign->layer_end - 1);
    p->next_probed = false;
    compute_give_up(p->compute, o->epoch);
    if (path || p->config.stage || !fetches) shell_push(p, b);
    else fetch_instead(p, o, b);
}

static void *part(struct node_process *p, struct payload *to, uint64_t bytes, bool *ok) {
    *to = bytes <= UINT32_MAX ? slots_take(p->slots, (size_t)bytes) : (struct payload){ 0 };
    if (!to->generation) *ok = false;
    return to->generation ? slots_data(p->slots, *to) : NULL;
}

static void run(struct node_process *p, const struct node_job *j) {
    struct node_job_box *b = shell_box_take(p, COMPUTE_RUN);
    struct compute_job *c = &b->job;
    const struct msg_assign *a = node_view(p->core).assign;
    bool ok = true;
    c->run = j;
    c->in = j->take_in;
    c->out = c->kept = c->result = (struct payload){ 0 };
    c->x_in = c->in.generation ? slots_data(p->slots, c->in) : NULL;
    c->x_out = c->logits = NULL;
    c->parts = NULL;
    c->parts_bytes = 0;
    c->wire_in = c->in.bytes == streams_f16s_bytes(p->n_embd, j->n_row) ? MSG_WIRE_F16S : MSG_WIRE_F32;
    c->wire_out = a->wire;
    if (c->in.generation && c->in.bytes != compute_streams_bytes(p->n_embd, j->n_row, c->wire_in)) ok = false;
    if (!a->has_head) {
        c->x_out = part(p, &c->out, compute_streams_bytes(p->n_embd, j->n_row, c->wire_out), &ok);
    } else if (j->n_want) {
        c->logits = part(p, &c->kept, compute_logits_bytes(p->n_vocab, j->n_want), &ok);
        c->parts = part(p, &c->result, compute_parts_bytes(p->n_vocab, j->want, j->n_want), &ok);
        c->parts_bytes = c->result.bytes;
    }
    if (!ok) {
        c->code = ERR_NOMEM;
        snprintf(c->text, sizeof c->text, "no slots for a batch of %u rows, or its streams have another size",
                 j->n_row);
    }
    shell_push(p, b);
}

/* ---- answers ---- */

static void loaded(struct node_process *p, struct node_job_box *b) {
    struct compute_job *j = &b->job;
    if (j->code < 0) log_warn("node", "epoch %llu: %s", (unsigned long long)j->epoch, j->text);
    if (j->code == 0) keep_store_tidy(p, j->model_path);
    p->n_embd = j->code < 0 ? 0 : j->n_embd;
    p->n_vocab = j->code < 0 ? 0 : j->n_vocab;
    p->n_used = j->code < 0 ? 0 : j->n_expert_used;
    j->ready.n_rows_max = MIN(j->ready.n_rows_max, p->config.n_rows_max);
    struct node_event ev = { .kind = NODE_EV_LOADED };
    ev.load = (struct node_load){ .epoch = j->epoch, .ready = j->ready, .code = j->code, .text = j->text };
    shell_step(p, &ev);
}

static void computed(struct node_process *p, struct node_job_box *b) {
    struct compute_job *j = &b->job;
    struct node_event ev = { .kind = NODE_EV_COMPUTED };
    slots_give(p->slots, j->in);
    if (j->code < 0) {
        slots_give(p->slots, j->out);
        slots_give(p->slots, j->kept);
        slots_give(p->slots, j->result);
        j->out = j->kept = j->result = (struct payload){ 0 };
    }
    j->result.bytes = j->parts_bytes;
    ev.take_payload = j->result.generation ? j->result : j->out;
    ev.done = (struct node_done){ .job = j->run->handle,
                                  .code = j->code,
                                  .text = j->text,
                                  .row = j->row,
                                  .n_row = j->code < 0 || !j->result.generation ? 0 : j->run->n_want,
                                  .compute_us = j->compute_us,
                                  .take_kept = j->kept };
    shell_step(p, &ev);
}

static void progressed(struct node_process *p, const struct node_job_box *b) {
    struct node_event ev = { .kind = NODE_EV_PROGRESS };
    ev.load = (struct node_load){ .epoch = b->job.epoch, .progress = b->progress };
    shell_step(p, &ev);
}

void shell_on_answer(void *ctx, void *answer) {
    struct node_process *p = ctx;
    struct node_job_box *b = answer;
    if (b->is_question) {                         /* its place is not from the list of boxes */
        shell_experts_question(p, b);
        return;
    }
    if (!p->stopping) {
        if (b->is_progress) progressed(p, b);
        else if (b->job.kind == COMPUTE_LOAD) loaded(p, b);
        else if (b->job.kind == COMPUTE_RUN) computed(p, b);
        else if (b->job.kind == COMPUTE_EXPERTS) shell_experts_computed(p, b);
    }
    box_give(p, b);
}

/* ---- outs ---- */

static void connect_to(struct node_process *p, uint32_t link, const struct msg_hop *hop) {
    struct err e;
    p->next_probed = false;
    if (links_connect(p->links, link, hop->address, hop->key, &e) < 0)
        log_warn("node", "%s at %s: %s", hop->name, hop->address, e.text);
}

static void carry_out(struct node_process *p) {
    for (uint32_t i = 0; i < p->outs.n; i++) {
        const struct node_out *o = &p->outs.item[i];
        switch (o->kind) {
        case NODE_OUT_SEND: send(p, o->link, o->msg, o->payload, o->borrows); break;
        case NODE_OUT_CONNECT: connect_to(p, o->link, o->hop); break;
        case NODE_OUT_DISCONNECT: links_disconnect(p->links, o->link); break;
        case NODE_OUT_DROP: drop(p, o->link); break;
        case NODE_OUT_LOAD: load(p, o); break;
        case NODE_OUT_SOURCES: if (p->fetching) sources_set(p, o->assign->source, o->assign->n_source); break;
        case NODE_OUT_RUN: run(p, o->job); break;
        case NODE_OUT_SEQ_CLOSE: {
            struct node_job_box *b = shell_box_take(p, COMPUTE_SEQ_CLOSE);
            b->job.slot = o->slot;
            shell_push(p, b);
            break;
        }
        case NODE_OUT_FREE: slots_give(p->slots, o->payload); break;
        case NODE_OUT_EXPERTS: shell_experts_compute(p, o); break;
        case NODE_OUT_EXPERTS_DONE: shell_experts_done(p, o); break;
        case NODE_OUT_NOTICE:
            if (o->code == ERR_CANCELLED) log_info("node", "%s", o->text);
            else log_warn("node", "%s (%s)", o->text, err_text(o->code));
            break;
        }
    }
}

/* ---- the step ---- */

void shell_step(struct node_process *p, struct node_event *ev) {
    CHECK(!p->in_step);
    p->in_step = true;
    ev->now_ns = clock_now_ns();
    node_step(p->core, ev, &p->outs);
    carry_out(p);
    loop_timer_set(p->timer, p->stopping ? LOOP_NEVER : p->outs.deadline_ns);
    p->in_step = false;
    sources_look(p);
    struct node_view v = node_view(p->core);
    if (v.next_up && !p->next_probed && v.next_rtt_us && v.state == NODE_READY) survey_next(p);
    p->next_probed = v.next_up && (p->next_probed || (v.next_rtt_us && v.state == NODE_READY));
}

void shell_on_timer(void *ctx) {
    shell_step(ctx, &(struct node_event){ .kind = NODE_EV_TICK });
}

/* ---- messages in ---- */

static bool is_source_link(uint32_t link) {
    return link >= NODE_LINK_SOURCE && link < NODE_LINK_SOURCE + MSG_SOURCES_MAX;
}

static void reject(struct node_process *p, uint32_t link, int code, const char *text) {
    struct msg m = { .kind = MSG_REFUSE };
    links_complain(p->links, link, "node", text);
    if (link < NODE_LINK_ACCEPTED) return;
    m.u.refuse.code = code;
    snprintf(m.u.refuse.text, sizeof m.u.refuse.text, "%.250s", text);
    shell_say(p, link, &m, (struct payload){ 0 });
    drop(p, link);
}

static void on_welcome(struct node_process *p, uint32_t link, const struct msg_welcome *w) {
    struct err e;
    if (link != NODE_LINK_COORDINATOR) return;
    log_info("node", "joined %s as %s", w->name, p->name);
    p->told[0] = 0;
    if (p->has_key && keyring_enrolled(p->keyring, &e) < 0) log_error("node", "%s", e.text);
}

void shell_on_frame(void *ctx, uint32_t link, const void *header, size_t header_bytes,
                    struct payload payload) {
    struct node_process *p = ctx;
    bool accepted = link >= NODE_LINK_ACCEPTED;
    bool unknown = accepted && !link_set_has(p->known, NODE_KNOWN_MAX, link);
    struct frame_rules rules = { .kinds = unknown ? FRAME_KIND(MSG_HELLO) : 0,
                                 .payload_bytes_max = slots_bytes_max(p->slots) };
    struct msg m;
    struct err e = { 0 };
    int rc = p->stopping ? ERR_CANCELLED
                         : frame_unpack(p->codec, header, header_bytes, payload.bytes, &rules, &m, &e);
    if (rc < 0) {
        slots_give(p->slots, payload);
        if (!p->stopping) reject(p, link, rc, e.text);
        return;
    }
    if (accepted && m.kind == MSG_HELLO) link_set_add(p->known, NODE_KNOWN_MAX, link);
    if (is_source_link(link) || (m.kind == MSG_WEIGHTS && link == NODE_LINK_COORDINATOR)) {
        sources_on_msg(p, link, &m, payload);
        return;
    }
    if (m.kind == MSG_WEIGHTS_GET && p->give) {
        give_on_get(p->give, link, &m.u.weights_get);
        return;
    }
    if (link == NODE_LINK_COORDINATOR && m.kind != MSG_REFUSE) p->redialled = false;
    if (m.kind == MSG_WELCOME) on_welcome(p, link, &m.u.welcome);
    if (m.kind == MSG_ASSIGN && link == NODE_LINK_COORDINATOR && m.epoch > p->assigned_epoch) {
        p->assigned_epoch = m.epoch;
        survey_stop(p);
        allow_peers(p, m.u.assign.peer, m.u.assign.n_peer);
    }
    if (m.kind == MSG_PEERS && link == NODE_LINK_COORDINATOR)
        allow_peers(p, m.u.peers.peer, m.u.peers.n_peer);
    if (survey_takes(p, link, &m, payload)) return;
    shell_step(p, &(struct node_event){
                      .kind = NODE_EV_MSG, .link = link, .msg = &m, .take_payload = payload });
}

void shell_on_closed(void *ctx, uint32_t link) {
    struct node_process *p = ctx;
    link_set_remove(p->known, NODE_KNOWN_MAX, link);
    if (p->give) give_on_closed(p->give, link);
    if (!p->stopping) shell_step(p, &(struct node_event){ .kind = NODE_EV_LINK_CLOSED, .link = link });
}

void shell_on_up(void *ctx, uint32_t link) {
    struct node_process *p = ctx;
    if (survey_is_link(link)) {
        if (!p->stopping) survey_on_up(p, link);
        return;
    }
    if (link == NODE_LINK_NEXT) p->next_probed = false;
    if (link == NODE_LINK_COORDINATOR) p->redialled = true;
    if (is_source_link(link)) {
        if (!p->stopping) sources_on_up(p, link);
        return;
    }
    if (!p->stopping) shell_step(p, &(struct node_event){ .kind = NODE_EV_TICK });
}

/* Each reason once, until it comes up. */
void shell_on_refused(void *ctx, uint32_t link, const char *why) {
    struct node_process *p = ctx;
    if (survey_is_link(link)) {
        survey_on_refused(p, link);
        return;
    }
    if (strncmp(p->told, why, sizeof p->told - 1) != 0) {
        snprintf(p->told, sizeof p->told, "%s", why);
        log_warn("node", "%s: %s",
                 link == NODE_LINK_COORDINATOR ? p->join
                 : is_source_link(link)        ? sources_name(p, link - NODE_LINK_SOURCE)
                                               : "the next stage",
                 why);
    }
}
