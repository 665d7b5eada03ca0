/* msg - every message between two machines as a plain C struct; the one vocabulary of both cores, the
 * codec and the shells.
 *
 * A message is a header (kind, epoch, incarnation, sequence, trace) and one member of the union. Arrays
 * and long texts are borrowed: the sender's core keeps them until its next step, a decoder keeps them
 * in its own arena until the next message. Bulk bytes are never in here; a payload travels beside the
 * header as a raw frame and is named by a handle of the process it lies in. No functions, no ownership,
 * no thread. The limits below bound what a decoder may allocate for one message.
 *
 *   initiator                     acceptor                what                                    link
 *   node      HELLO           ->  coordinator, next hop   who I am, what I can
 *             every link, first
 *             WELCOME REFUSE  <-                          taken in, or why not
 *             PING            <->                         alive, counters, round trip             every link
 *   node      SURVEY          <-  coordinator             which links to measure, before a plan   control
 *             LINKS           ->                          what they are like
 *   node      ASSIGN SYNC     <-  coordinator             plan, what lives, rows wanted           control
 *             PROGRESS READY  ->                          how far, done
 *   stage 0   WORK            <-  coordinator             a batch enters                          control
 *   stage i   WORK            ->  stage i+1               a batch moves on, with its streams      data
 *             CREDIT          <-                          the batch was taken                     data
 *   last      RESULT          ->  coordinator             what the sampler needs                  control
 *   node      WEIGHTS_GET     ->  coordinator, any node   bytes of a model                        own
 *             WEIGHTS         <-
 *   node      FILES           ->  coordinator             what it can read now                    control
 *   node      PEERS           <-  coordinator             who may connect to it                   control
 *
 * Positions. A stage takes a segment only if it holds exactly pos0 tokens of the sequence, or more and
 * can go back (at most MSG_ROLLBACK). pos0 == 0 opens the sequence; so does, with another pos0, a segment
 * that names a sequence to be copied, which has to fulfil the same. Batch numbers rise strictly within
 * an epoch on every link. What is over. SYNC says completely what still lives, so it may be repeated,
 * lost or late: sequences below seq_next that are not listed are closed; batches below batch_done, and
 * those listed as dead, are forgotten with all they hold (credit, kept rows, place in a queue). It is
 * sent when something ends, and with every PING of the coordinator. */
#ifndef WIRE_MSG_H
#define WIRE_MSG_H

#include "common/base/payload.h"
#include "common/base/types.h"

enum {
    MSG_MAGIC = 0x49454c50,                        /* "PLEI", little endian */
    MSG_VERSION_MIN = 1, MSG_VERSION = 1,

    MSG_NAME_MAX = 64,                             /* with the ending 0, as all texts here */
    MSG_ADDRESS_MAX = 128,                         /* tcp://HOST:PORT or inproc://NAME */
    MSG_KEY_MAX = 41,                              /* Z85 of a CURVE public key */
    MSG_TEXT_MAX = 256,
    MSG_HEADER_BYTES_MAX = 1 << 20,                /* packed header frame */
    MSG_PAYLOAD_BYTES_MAX = 256 << 20,             /* largest that a WELCOME may allow: 4096 rows x 64 KiB */

    MSG_LAYERS_MAX = 256,                          /* HP_LAYERS_MAX */
    MSG_STAGES_MAX = 64,
    MSG_HELPERS_MAX = 16,                          /* of one stage */
    MSG_SOURCES_MAX = 8,                           /* where one node may get weights */
    MSG_FILES_MAX = 16,                            /* model files one node offers */
    MSG_PEERS_MAX = 64,                            /* measured links of one node */
    MSG_NODES_MAX = 256,                           /* nodes of one cluster */
    MSG_SEGS_MAX = 512,                            /* sequences in one batch */
    MSG_ROWS_MAX = 4096,                           /* rows of one batch */
    MSG_WANTS_MAX = 512,                           /* rows of one batch whose logits are wanted */
    MSG_BIAS_MAX = 1024,                           /* token ids always shipped, per batch */
    MSG_SEQS_MAX = 4096,                           /* sequences alive in a cluster */
    MSG_USED_MAX = 16,                             /* experts per token: HP_EXPERTS_USED_MAX */
    MSG_PIECE_BYTES_MAX = 4 << 20,                 /* weights that travel in one message */
    MSG_BATCHES_MAX = 128,                         /* batches in flight: twice MSG_STAGES_MAX */
    MSG_ROLLBACK = 16                              /* HP_ROLLBACK */
};
#define MSG_WEIGHTS_HEADER UINT32_MAX              /* in place of a tensor */
#define MSG_COORDINATOR "coordinator"              /* as the name of one end of a measured link */

enum msg_kind {
    MSG_NONE,
    MSG_HELLO, MSG_WELCOME, MSG_REFUSE, MSG_PING, MSG_LEAVE,                       /* any link */
    MSG_ASSIGN, MSG_PROGRESS, MSG_READY, MSG_FAILED, MSG_DRAIN, MSG_DRAINED,       /* plan */
    MSG_WORK, MSG_WORK_REFUSED, MSG_CREDIT, MSG_RESULT,                            /* batches */
    MSG_ROW_GET, MSG_ROW, MSG_SYNC,
    MSG_EXPERTS, MSG_EXPERTS_DONE,                /* a stage and its helpers */
    MSG_STATE_SAVE, MSG_STATE_LOAD, MSG_STATE_DROP, MSG_STATE_DONE,                /* snapshots */
    MSG_WEIGHTS_GET, MSG_WEIGHTS,                 /* a share of a model file */
    MSG_PROBE, MSG_PROBE_DONE, MSG_LINKS,                                          /* how fast a link is */
    MSG_FILES, MSG_PEERS,                         /* what changed of a HELLO and of an ASSIGN */
    MSG_SURVEY,                                   /* measure links */
    MSG_KINDS
};

enum msg_role { MSG_ROLE_NONE, MSG_ROLE_COORDINATOR, MSG_ROLE_NODE, MSG_ROLE_TOOL, MSG_ROLES };
enum msg_backend { MSG_BACKEND_CPU, MSG_BACKEND_CUDA, MSG_BACKEND_METAL, MSG_BACKENDS };
enum msg_wire_format { MSG_WIRE_F32, MSG_WIRE_F16S, MSG_WIRE_FORMATS };  /* streams between stages */

/* ---- any link ---- */

struct msg_file {                                  /* a model file, or a shard of one, that a node can read */
    uint64_t model_lo, model_hi;                   /* fingerprint of the whole model */
    uint64_t bytes;
    uint8_t layers[MSG_LAYERS_MAX / 8];            /* bit l: all tensors of layer l are in it */
    bool has_embed, has_head, has_rest;            /* rest: what belongs to no layer, an MTP block */
    bool is_whole;                                 /* no shard: everything, and the whole model's header */
    char name[MSG_NAME_MAX];
};

struct msg_hello {                                 /* first message of the initiator */
    uint32_t magic, version_min, version_max;
    enum msg_role role;
    char build[MSG_NAME_MAX];
    char name[MSG_NAME_MAX];                       /* node name, unique in the cluster */
    /* The rest only on a control link. */
    /* where other stages connect, and the server key there */
    char address[MSG_ADDRESS_MAX], key[MSG_KEY_MAX];
    enum msg_backend backend;
    char device[MSG_NAME_MAX];
    uint32_t n_threads;
    uint64_t memory_bytes;                         /* that weights, state and buffers may take */
    uint64_t read_bytes_per_s, f32_per_s, int8_per_s;        /* measured; 0: not known */
    const struct msg_file *file;
    uint32_t n_file;
    bool fetches;                                  /* has a place for weights that come over a link */
    bool gives;                                    /* answers WEIGHTS_GET */
    uint64_t held_model_lo, held_model_hi;    /* weights in memory from before (after a reconnect); 0: none */
    uint32_t held_begin, held_end;
};

struct msg_welcome {                               /* the acceptor took the initiator in */
    uint32_t version;
    enum msg_role role;
    char name[MSG_NAME_MAX];
    uint32_t ping_ms, ping_misses;            /* heartbeat period of this link, and how many may be missing */
    uint32_t payload_bytes_max;
};

struct msg_refuse { int32_t code; char text[MSG_TEXT_MAX]; };      /* then the link is closed */
struct msg_leave { int32_t code; char text[MSG_TEXT_MAX]; };       /* the sender goes away on purpose */

struct msg_counters {                              /* since the process started */
    uint64_t busy_us, idle_us;                     /* compute thread */
    uint64_t n_batch, n_row, bytes_in, bytes_out, n_refused;
    uint64_t memory_used_bytes;
    uint32_t n_seq, n_queued;
};

struct msg_ping {                                  /* answered by the receiver's own periodic PING */
    uint64_t sent_us;                              /* sender's clock */
    uint64_t echo_us, held_us;     /* sent_us of the last PING received, and how long ago that was; 0: none */
    struct msg_counters counters;                  /* from nodes on the control link */
};

/* ---- plan ---- */

struct msg_hop { char name[MSG_NAME_MAX], address[MSG_ADDRESS_MAX], key[MSG_KEY_MAX]; };

struct msg_key { char text[MSG_KEY_MAX]; };        /* public CURVE key of a machine of the cluster */

struct msg_helper {                                /* holds experts begin..end-1 of each layer of the stage */
    struct msg_hop hop;
    uint32_t expert_begin, expert_end;
};

struct msg_source {                                /* who gives weights of the model, and which */
    struct msg_hop hop;                            /* address empty: the coordinator, over its own link */
    uint8_t layers[MSG_LAYERS_MAX / 8];            /* as in struct msg_file */
    bool has_embed, has_head, has_rest;
    bool has_header;                               /* that of the whole model */
};

struct msg_assign {                   /* header.epoch is the new epoch; everything of older ones is dropped */
    uint64_t model_lo, model_hi;
    char model[MSG_NAME_MAX];
    uint32_t stage_i, n_stage;
    uint32_t layer_begin, layer_end;
    bool has_embed, has_head;
    bool is_helper;                        /* computes experts for a lead; has no next hop and no sequences */
    struct msg_hop next;                           /* address empty on the last stage */
    uint32_t numerics, precision;                  /* enum numerics; precision policy of the backend */
    enum msg_wire_format wire;
    uint32_t n_slot, n_ctx_max, n_rows_max;        /* sequences at once, tokens of one, rows of one batch */
    uint32_t n_credit;                             /* batches on their way to the next hop */
    uint32_t n_window;                             /* batches in flight in the whole cluster */
    uint32_t expert_begin, expert_end;             /* own experts; 0, 0: all */
    const struct msg_helper *helper;
    uint32_t n_helper;
    const struct msg_key *peer;                    /* all nodes of the cluster: who may connect to this one */
    uint32_t n_peer;                               /* at most MSG_NODES_MAX; 0 in a cluster without keys */
    const struct msg_source *source;               /* of weights that are not here; a repeated ASSIGN may */
    uint32_t n_source;                             /* name others than the first did */
};

struct msg_progress { uint64_t done_bytes, total_bytes; bool is_transfer; };

struct msg_ready {
    uint64_t weights_bytes, state_bytes, work_bytes;
    uint32_t n_slot, n_ctx_max, n_rows_max;        /* may be less than assigned: what really fits */
    uint64_t state_tokens_max;          /* tokens of all sequences together that fit; 0: n_slot * n_ctx_max */
};

struct msg_failed {                                /* an assignment (batch 0) or a batch */
    uint64_t batch;
    int32_t code;
    char text[MSG_TEXT_MAX];
};

/* DRAIN: finish what is queued, take nothing new, answer DRAINED. No members. */

/* ---- batches ---- */

/* from: 0, or: where the sequence does not exist yet, it begins as a copy of this one's first pos0 tokens. */
struct msg_seg { uint64_t seq; uint32_t pos0, n; uint64_t from; };

/* What the last stage has to know to ship enough of a row (sampler_extract). */
struct msg_want {
    uint32_t row;                                  /* of the batch; ascending */
    float temperature, top_p, min_p;
    int32_t top_k;
    uint32_t n_top;                                /* alternatives reported */
    bool logprobs, adjusts;                        /* adjusts: penalties may reorder, ship a reserve */
    uint32_t n_item_max;
    uint32_t bias_begin, n_bias;                   /* in msg_work.bias: tokens with a bias, ascending */
};

struct msg_bias { int32_t id; float bias; };

/* One per stage that computed the batch. Each hop adds its own before sending. */
struct msg_timing {
    uint32_t stage_i;
    uint32_t queue_us;                             /* arrival to start of compute */
    uint32_t compute_us;
    uint32_t hold_us;                         /* end of compute to the send: waiting for credit, conversion */
    uint32_t n_row;
};

/* Payload: streams [n_row][4][n_embd] in the link's wire format; none to stage 0. */
struct msg_work {
    uint64_t batch;
    uint64_t batch_done;                           /* batches below are over, see SYNC */
    const struct msg_seg *seg;
    const int32_t *token;                          /* of all segments, one after the other */
    const struct msg_want *want;
    const struct msg_bias *bias;
    const struct msg_timing *timing;
    uint32_t n_seg, n_row, n_want, n_bias, n_timing;
};

enum msg_refusal {
    MSG_REFUSED_POSITION,                      /* the sequence holds `have` tokens, which does not fit pos0 */
    MSG_REFUSED_SLOTS,                             /* no slot free */
    MSG_REFUSED_MEMORY,
    MSG_REFUSED_STATE,                             /* not serving in this epoch */
    MSG_REFUSALS
};

struct msg_work_refused {                          /* to the coordinator; the whole batch was dropped */
    uint64_t batch, seq;
    enum msg_refusal reason;
    uint32_t stage_i, have;
};

struct msg_credit { uint64_t batch; };         /* the next stage took this batch out of its receive buffers */

struct msg_row_result {                            /* one wanted row */
    uint32_t row;
    bool whole;                                    /* payload part: float[n_vocab]; else msg_item[n_item] */
    uint32_t offset, bytes;                        /* of the part in the payload */
    uint32_t n_item, n_vocab;
    int32_t left_id;                               /* struct sampler_candidates */
    float left_logit, temperature;
    double sum, lse;                               /* lse: NaN when not computed */
};

struct msg_item { int32_t id; float logit; };

struct msg_result {                                /* payload: parts of the rows */
    uint64_t batch;
    const struct msg_row_result *row;
    const struct msg_timing *timing;
    uint32_t n_row, n_timing;
};

struct msg_row_get { uint64_t batch; uint32_t row; };
/* payload: float[n_vocab]; code < 0: not here */
struct msg_row { uint64_t batch; uint32_t row; uint32_t n_vocab; int32_t code; };

struct msg_sync {
    uint64_t seq_next;                    /* sequences from here on did not exist yet when this was written */
    uint64_t batch_done;                           /* all batches below are over */
    const uint64_t *seq;                           /* alive, ascending */
    const uint64_t *dead;                          /* batches >= batch_done that are over, ascending */
    uint32_t n_seq, n_dead;
};

/* ---- experts on helper nodes ---- */

/* Payload: rows float[n_row][n_embd], then weights float[n_row][n_used], then ids int32[n_row][n_used]. */
struct msg_experts {
    uint64_t batch;
    uint32_t layer, n_row, n_used;
};

struct msg_experts_done {                          /* payload: weighted partial sums float[n_row][n_embd] */
    uint64_t batch;
    uint32_t layer, n_row, compute_us;
    int32_t code;
};

/* ---- snapshots of state ---- */

struct msg_state {                                 /* STATE_SAVE, STATE_LOAD, STATE_DROP */
    uint64_t job, seq;
    uint64_t prefix_lo, prefix_hi;                 /* content key: model, numerics, tokens */
    uint32_t n_token;
};

struct msg_state_done { uint64_t job, bytes; int32_t code; uint32_t n_token; char text[MSG_TEXT_MAX]; };

/* ---- weights ---- */

/* A receiver that has nothing asks for the header first: tensor MSG_WEIGHTS_HEADER is the GGUF header of
 * the whole model, as one file would have it. Then it asks for bytes of tensors, by name: files of the same
 * model may have them in another order. One GET is answered by one WEIGHTS, so the receiver decides how
 * much is on its way. */
struct msg_weights_get {
    uint64_t model_lo, model_hi;
    uint64_t name;                                 /* XXH3-64 of the tensor's name; 0 with the header */
    uint64_t offset;                               /* in the tensor of the whole model */
    uint32_t id;                                   /* comes back with the answer */
    uint32_t tensor, bytes;                        /* tensor: comes back; else only HEADER matters */
};

struct msg_weights {                               /* payload: the bytes */
    uint64_t offset;                               /* as asked */
    uint64_t total_bytes;                          /* of the tensor, or of the header */
    uint64_t file_bytes;                           /* with the header: of the whole model as one file */
    uint64_t hash;                                 /* XXH3-64 of the payload */
    uint32_t id, tensor;
    int32_t code;                             /* < 0: no payload, it cannot be had here (ERR_BUSY: now) */
    bool last;                                     /* to the end of what there is */
};

/* ---- links ---- */

struct msg_probe { uint32_t id; bool last; };      /* payload: any bytes; a row of them measures bandwidth */
struct msg_probe_done { uint32_t id; uint64_t bytes, elapsed_us; };

struct msg_link { char name[MSG_NAME_MAX]; uint32_t rtt_us; uint64_t bytes_per_s; };
struct msg_links { const struct msg_link *link; uint32_t n_link; uint32_t id; };   /* node to coordinator */

/* Coordinator to node, before a plan: measure the ways to these, and answer with LINKS of the same id after
 * wait_ms at most, whatever is known by then. A hop with the receiver's own name is not one; without an
 * address it is the coordinator, over the link that this came on. */
struct msg_survey {
    uint32_t id, wait_ms;
    bool bulk;                                     /* bytes per second; else round trips */
    const struct msg_hop *hop;
    uint32_t n_hop;                                /* at most MSG_PEERS_MAX */
};

/* ---- what changed ---- */

struct msg_files { const struct msg_file *file; uint32_t n_file; };    /* instead of those of the HELLO */
struct msg_peers { const struct msg_key *peer; uint32_t n_peer; };     /* instead of those of the ASSIGN */

/* ---- the message ---- */

struct msg {
    enum msg_kind kind;
    uint64_t epoch;                                /* of the plan; 0 before the first */
    uint64_t incarnation;                   /* of the sender: chance, drawn once per process start; never 0 */
    uint64_t link_seq;                            /* 0: not counted */
    uint64_t trace;                                /* batch or request it belongs to; 0: none */
    union {
        struct msg_hello hello;
        struct msg_welcome welcome;
        struct msg_refuse refuse;
        struct msg_leave leave;
        struct msg_ping ping;
        struct msg_assign assign;
        struct msg_progress progress;
        struct msg_ready ready;
        struct msg_failed failed;
        struct msg_work work;
        struct msg_work_refused work_refused;
        struct msg_credit credit;
        struct msg_result result;
        struct msg_row_get row_get;
        struct msg_row row;
        struct msg_sync sync;
        struct msg_experts experts;
        struct msg_experts_done experts_done;
        struct msg_state state;
        struct msg_state_done state_done;
        struct msg_weights_get weights_get;
        struct msg_weights weights;
        struct msg_probe probe;
        struct msg_probe_done probe_done;
        struct msg_links links;
        struct msg_files files;
        struct msg_peers peers;
        struct msg_survey survey;
    } u;
};

#endif
