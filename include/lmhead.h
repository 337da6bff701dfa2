/* lmhead.h: the LM head of a language model, sharded over the ranks of an engine.
 *
 *   describe   lmhead_config, lmhead_group, lmhead_weights_*, lmhead_exchange_*, lmhead_backend_open
 *              -> lmhead_create
 *   plan       lmhead_plan      answered rows, workspace, whether the step can be captured
 *   prepare    lmhead_prepare   everything that allocates, loads or pages in happens here
 *   run        lmhead_run       one step: hidden rows -> gather -> matmul -> epilogue -> exchange -> answer
 *
 * plan, prepare and run take the same lmhead_step.
 *
 * Rules that hold for every function
 *
 *  Status    0 is success. Host outputs are written only then. lmhead_last_error() has the sentence: what was
 *            wanted, what came, what to do. A panic of this library never crosses: it is
 *            LMHEAD_ERROR_INTERNAL. Nothing is printed.
 *  Structs   Those that begin with `size` are made by their lmhead_*_init(); zero is every other field's
 *            default. New versions append fields. A shorter struct than this library's is completed with
 *            zeros, a longer one is accepted if what is too much is zero.
 *  Owning    Inputs are borrowed until the function returns, device memory until the stream has passed the
 *            step. What was made is freed by the _free of its kind, which takes NULL. A head keeps alive what
 *            it was made of: free handles in any order. A handle is a number, not an address: one that was
 *            freed, or is of another kind, or was made before a fork, is LMHEAD_ERROR_ARGUMENT.
 *  Threads   backend, weights, exchange: from any threads at once (each head has a channel of its own on its
 *            exchange). head: one thread at a time, any thread; lmhead_abort and lmhead_flight_recorder: any
 *            time. "Collective" functions return when all members have made the same call, or by the
 *            deadline: a process with several ranks has a thread for each. A process opens backends after it
 *            has forked, not before.
 *  Streams   With host memory a function returns when all is done, and `stream` is NULL. With device memory
 *            lmhead_run puts its work on `stream` (a cudaStream_t or CUstream of the device's primary
 *            context).
 *  Capture   Functions may be called while a stream is captured only where their comment says so.
 *  Sizes     are 64-bit; shapes are row-major; token ids are int64; -1 is "no id".
 */
#ifndef LMHEAD_H
#define LMHEAD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LMHEAD_VERSION_MAJOR 0
#define LMHEAD_VERSION_MINOR 1
#define LMHEAD_VERSION_PATCH 0
/* Raised when a program compiled with an older header would no longer work; part of the library's soname. */
#define LMHEAD_ABI 0

#if defined(_WIN32) && defined(LMHEAD_SHARED)
#define LMHEAD_API __declspec(dllimport)
#else
#define LMHEAD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---- */

typedef int32_t lmhead_status;
enum {
    LMHEAD_OK = 0,
    LMHEAD_ERROR_CONFIG = 1, /* a setting or a combination of settings */
    LMHEAD_ERROR_SHAPE = 2,  /* a length, a shape, a count, a workspace */
    LMHEAD_ERROR_DTYPE = 3,
    LMHEAD_ERROR_INDEX = 4,   /* a row index outside of the rows given */
    LMHEAD_ERROR_REQUEST = 5, /* something that this head does not have */
    LMHEAD_ERROR_FILE = 6,
    LMHEAD_ERROR_TENSOR = 7,        /* of a file: missing, or not what a head needs */
    LMHEAD_ERROR_STEP_MISMATCH = 8, /* * the ranks did not make the same call; all of them get this */
    LMHEAD_ERROR_TIMEOUT = 9,       /* * a rank did not come before the deadline */
    LMHEAD_ERROR_RANK_LOST = 10,    /* * a rank is gone for good: new exchange, new heads */
    LMHEAD_ERROR_POISONED = 11,     /* after a fault: lmhead_rebuild on every rank */
    LMHEAD_ERROR_EXCHANGE = 12,     /* * the transport failed */
    LMHEAD_ERROR_UNSUPPORTED = 13,  /* by this build or this machine */
    LMHEAD_ERROR_DEVICE = 14,       /* * a device or its driver failed */
    LMHEAD_ERROR_ARGUMENT = 15, /* NULL, a size no version had, a freed or foreign handle, a wrong thread */
    LMHEAD_ERROR_INTERNAL = 16  /* * a bug of this library */
};
/* After a status with * the head is poisoned. In a group of several, so it is after any other error of
 * lmhead_run but ARGUMENT: the peers are told, and nobody waits. */

/* Like "STEP_MISMATCH"; "?" for other numbers. Static. */
LMHEAD_API const char *lmhead_status_name(lmhead_status status);

/* The calling thread's latest error, "" before the first. Valid until the thread's next call of this library.
 */
LMHEAD_API const char *lmhead_last_error(void);

/* Global ranks that the latest error names (who did not come, who disagrees, who is gone): what to restart.
 * Writes at most `capacity`; returns how many there are. */
LMHEAD_API size_t lmhead_last_error_ranks(int64_t *ranks, size_t capacity);

/* ---- this build ---- */

LMHEAD_API int32_t
lmhead_abi(void); /* compare with LMHEAD_ABI before anything else, where the library is loaded at run time */
LMHEAD_API const char *lmhead_version(void);  /* "0.1.0" */
LMHEAD_API const char *lmhead_features(void); /* "cpu cuda nccl" */

/* JSON of what this machine can run and why not. Free it with lmhead_string_free. */
LMHEAD_API lmhead_status lmhead_doctor(char **json);
LMHEAD_API void lmhead_string_free(char *string);

/* `log` is told what is no error and yet worth knowing: level 1 error (of a call that has no status, as
 * lmhead_free), 2 warning (of a checkpoint, say), 3 information, 4 debug; up to `max_level`. From any thread;
 * it must not call this library. NULL ends it. For the process. */
LMHEAD_API void lmhead_set_log(void (*log)(void *user, int32_t level, const char *text), void *user,
                               int32_t max_level);

/* ---- memory ---- */

/* The numbers are DLPack's (lmhead_dlpack.h converts without a call). */
#define LMHEAD_DTYPE(code, bits) ((uint32_t)(code) | (uint32_t)(bits) << 8 | 1u << 16)
enum {
    LMHEAD_F32 = LMHEAD_DTYPE(2, 32),
    LMHEAD_F16 = LMHEAD_DTYPE(2, 16),
    LMHEAD_BF16 = LMHEAD_DTYPE(4, 16),
    LMHEAD_I8 = LMHEAD_DTYPE(0, 8),
    LMHEAD_E4M3 = LMHEAD_DTYPE(10, 8), /* FP8 without infinities: weights */
    LMHEAD_I32 = LMHEAD_DTYPE(0, 32), /* indices */
    LMHEAD_I64 = LMHEAD_DTYPE(0, 64)  /* indices */
};

enum { LMHEAD_HOST = 1, LMHEAD_CUDA = 2, LMHEAD_CUDA_PINNED = 3 };

/* [rows, columns]; frozen. `data` is only read where a function takes it const. */
typedef struct lmhead_tensor {
    void *data;
    int32_t device_type; /* LMHEAD_HOST ... */
    int32_t device_id;
    uint32_t dtype;    /* LMHEAD_F32 ... */
    uint32_t reserved; /* 0 */
    int64_t rows, columns;
    int64_t stride; /* elements from one row to the next; 0: columns */
} lmhead_tensor;

/* ---- who shares the head ---- */

enum { LMHEAD_ORDER_DP_PP_TP = 0 /* vLLM */, LMHEAD_ORDER_PP_DP_TP = 1 /* Megatron */ };
enum { LMHEAD_TP_SIZE_TENSOR_PARALLEL = -1, LMHEAD_TP_SIZE_AUTO = 0 };

/* Global ranks of the head group that `rank` is in. tp_size: how many ranks share one head; 1, or a multiple
 * of tp that divides dp * tp; -1 is tp; 0 is tp where that is above 1, else 1. `*n` is the capacity of
 * `ranks` (dp * tp is always enough), then how many there are: 0 off the last stage. */
LMHEAD_API lmhead_status lmhead_group_ranks(int64_t dp, int64_t tp, int64_t pp, int32_t order, int64_t rank,
                                            int64_t tp_size, int64_t *ranks, int64_t *n);

/* Vocabulary ids of a member's shard: what an engine that loads weights itself puts on that rank. May be
 * empty. */
LMHEAD_API lmhead_status lmhead_shard_range(int64_t vocab_size, int64_t members, int64_t member,
                                            int64_t *first, int64_t *count);

/* ---- backend: where the arithmetic runs. One for all ranks of a process that use the same device ---- */

typedef struct lmhead_backend lmhead_backend;

typedef struct lmhead_backend_config {
    size_t size;
    int32_t device_type; /* LMHEAD_HOST, LMHEAD_CUDA */
    int32_t device_id;
    int32_t threads; /* of the backend of the host: 0 is one per CPU that the process may use */
} lmhead_backend_config;

LMHEAD_API lmhead_status lmhead_backend_open(const lmhead_backend_config *config, lmhead_backend **backend);
LMHEAD_API void lmhead_backend_free(lmhead_backend *backend);

/* ---- weights: one member's shard ---- */

typedef struct lmhead_weights lmhead_weights;

enum { LMHEAD_QUANT_AS_STORED = 0, LMHEAD_QUANT_NONE = 1, LMHEAD_QUANT_W8A8 = 2, LMHEAD_QUANT_W8A16 = 3 };

typedef struct lmhead_load {
    size_t size;
    const char
        *tensor; /* NULL: `path` is a Hugging Face folder or GGUF, and the head is found; else a tensor */
    int64_t vocab_size;      /* 0: what config.json says, else all rows */
    int64_t members, member; /* whose shard; members 0: the whole head */
    int32_t quantization;    /* float heads are quantised while they are read */
    int32_t without_bias;
    uint64_t version; /* compared between the ranks; 0: a fingerprint of the checkpoint's head */
    void (*progress)(void *user, uint64_t done, uint64_t total); /* bytes, by any thread; may be NULL */
    void *user;
    int32_t copy; /* not 0: read into memory; else rows stay in the file's mapping where they can */
} lmhead_load;

/* Reads (or maps) the rows of one shard, and a fixed sample of rows for the fingerprint. */
LMHEAD_API lmhead_status lmhead_weights_load(const char *path, const lmhead_load *load,
                                             lmhead_weights **weights);

typedef struct lmhead_weights_config {
    size_t size;
    int64_t vocab_size;          /* of the whole head */
    int64_t first;               /* matrix row 0 is this id; the rows are the shard's */
    lmhead_tensor matrix;        /* [shard, hidden]: f32, f16, bf16; i8, e4m3 with scales */
    const float *scales;         /* [n_scales], in the matrix's memory: one per row, or one for the tensor */
    int64_t n_scales;            /* shard rows, 1, or 0 */
    const float *bias;           /* [shard], or NULL; in its memory */
    int32_t quantization;        /* LMHEAD_QUANT_W8A8 or W8A16 where the matrix is i8, W8A16 for e4m3 */
    uint64_t version;            /* compared between the ranks; 0: not compared */
    void (*release)(void *user); /* NULL: the matrix is copied now. Else it is used in place and this called
                                  * once, by any thread, when no head needs it any more; never where
                                  * lmhead_weights_wrap has failed */
    void *user;
} lmhead_weights_config;

/* Weights that the engine has in memory, host or device. */
LMHEAD_API lmhead_status lmhead_weights_wrap(const lmhead_weights_config *config, lmhead_weights **weights);
LMHEAD_API void lmhead_weights_free(lmhead_weights *weights);

typedef struct lmhead_weights_info {
    size_t size;
    int64_t vocab_size, hidden_size; /* of the whole head */
    int64_t first, count;            /* ids of this shard */
    uint32_t dtype;
    int32_t quantization; /* LMHEAD_QUANT_NONE, W8A8 or W8A16 */
    int32_t has_bias;
    uint64_t bytes;
} lmhead_weights_info;

LMHEAD_API lmhead_status lmhead_weights_about(const lmhead_weights *weights, lmhead_weights_info *info);

/* ---- exchange: bytes between the members of a group ---- */

typedef struct lmhead_exchange lmhead_exchange;

/* Endpoints of members 0..n that are threads of this process. */
LMHEAD_API lmhead_status lmhead_exchange_local(int64_t n, lmhead_exchange **endpoints);

/* How a call of a transport ends, and what a member did in it. */
enum {
    LMHEAD_FAULT_NONE = 0,
    LMHEAD_FAULT_TIMEOUT = 1,   /* the members marked did not come before the deadline */
    LMHEAD_FAULT_LOST = 2,      /* the members marked are gone for good */
    LMHEAD_FAULT_BROKEN = 3,    /* the transport failed: `text` says how */
    LMHEAD_FAULT_ABANDONED = 4, /* the member marked gave up its step: `text` is its notice */
    LMHEAD_FAULT_LENGTH = 5,    /* the members marked sent `bytes`, and not as many as were wanted; what is
                                   common was delivered, and the transport works on */
    LMHEAD_FAULT_OTHER_CALL = 6 /* the member marked is in another call: `text` says in which; as above */
};

/* The structs of a transport are frozen. */
typedef struct lmhead_piece {
    void *data; /* NULL where there are no bytes */
    size_t bytes;
} lmhead_piece;

typedef struct lmhead_peer {
    int32_t status; /* LMHEAD_FAULT_ */
    uint32_t reserved;
    uint64_t bytes; /* with LENGTH: how many it sent */
} lmhead_peer;

/* What a callback is called for, and where it says what went wrong. */
typedef struct lmhead_call {
    uint32_t head, instance; /* a channel: calls of several heads never meet */
    uint32_t epoch;
    int32_t operation; /* lmhead_operation_name has the words */
    uint64_t step, terms;
    uint64_t left_us; /* before the deadline of the step: give up by then */
    void *stream;     /* of a device transport, else NULL */
    /* For a callback that fails. NULL where it answers no status. */
    lmhead_peer *peers; /* [n], all good: one for each member of the group */
    char *text;         /* [LMHEAD_TEXT_BYTES], empty: UTF-8 */
} lmhead_call;

#define LMHEAD_TEXT_BYTES 512

typedef struct lmhead_place {
    uint32_t head, instance, epoch;
    int32_t operation;
    uint64_t step;
    uint64_t age_us; /* since the last note */
} lmhead_place;

/* The engine's own transport between the members of one head group. Every member makes the same calls in the
 * same order within a channel (head, instance). A transport with tags or several communicators keeps channels
 * apart by them, and heads may then be stepped from different threads at once; without, heads are stepped one
 * after the other, in the same order on every rank.
 *
 * Callbacks answer a LMHEAD_FAULT_, run on the thread that called this library, and must not call it for the
 * same head. One that fails in an unknown way, or returns after the deadline, has failed, whatever it says.
 * One that never returns blocks its step: nothing here can end it.
 *
 * A notice ends the waits of its channel in the step that it is of and in later ones of its epoch; what was
 * sent before the notice still counts. One of a rebuilding ends only the waits in `reset`. */
typedef struct lmhead_transport {
    size_t size;
    int64_t n, me;
    /* Required. Member m is sent send[m]; recv[m] comes from m, the caller itself included. As MPI_Alltoallv,
     * or grouped ncclSend and ncclRecv. */
    int32_t (*all_to_all)(void *user, lmhead_call *call, const lmhead_piece *send, const lmhead_piece *recv);
    /* NULL: by all_to_all. The members listed (ascending, the caller among them) send `send` to all of them;
     * recv[i] comes from members[i]. They are all members, or those of equal tensor-parallel index. */
    int32_t (*all_gather)(void *user, lmhead_call *call, const int64_t *members, int64_t n_members,
                          const lmhead_piece *send, const lmhead_piece *recv);
    /* NULL: peers learn of a given-up step by the deadline. Tells them `notice` as it stands, and ends the
     * caller's own wait, should another thread wait. Never blocks; from any thread. */
    void (*notify_abort)(void *user, const lmhead_call *call, const char *notice);
    /* May be NULL. Where the caller is, before every operation and around every step; and again every 0.1 s
     * while it waits for a device, as a sign that it lives: `place` has to see those, too. Never blocks. */
    void (*note)(void *user, const lmhead_call *call);
    /* NULL: not known. Where a member was last seen, for blame: 0, or other than 0 where it was not. Never
     * blocks. */
    int32_t (*place)(void *user, int64_t member, lmhead_place *place);
    /* NULL: lmhead_rebuild is not supported. Returns when all members have called it for the channel, with
     * everything undelivered dropped. */
    int32_t (*reset)(void *user, lmhead_call *call);
    /* May be NULL. What a wait in `call` would answer now; asked while a device is waited for. Never
     * blocks. */
    int32_t (*pending)(void *user, lmhead_call *call);
    /* May be NULL. The caller's head of that channel is gone. */
    void (*leave)(void *user, uint32_t head, uint32_t instance);
    /* May be NULL. Called once, by any thread, when nobody needs the transport any more; never where
     * lmhead_exchange_callbacks has failed. */
    void (*release)(void *user);
    /* For device memory; zeros: the pieces are host memory. The device's backend; a host exchange of the same
     * members for headers, notices and places. Work goes on call->stream. */
    const lmhead_backend *device;
    const lmhead_exchange *control;
} lmhead_transport;

LMHEAD_API lmhead_status lmhead_exchange_callbacks(const lmhead_transport *transport, void *user,
                                                   lmhead_exchange **endpoint);
/* NCCL between the GPUs of the members, for steps in device memory. `control` is a host exchange of the same
 * members, for headers, notices and blame: NCCL cannot say who is late. `nccl_comm` is the engine's own
 * ncclComm_t of these members in their order: the engine keeps order among its users and destroys it after
 * the last head; heads on it cannot be rebuilt. NULL: each head makes a communicator of its own. NCCL is
 * looked for at run time: LMHEAD_NCCL in the environment, the loader's path, PyPI's wheel. Needs the feature
 * nccl. */
LMHEAD_API lmhead_status lmhead_exchange_nccl(const lmhead_backend *device, void *nccl_comm,
                                              const lmhead_exchange *control, lmhead_exchange **endpoint);

LMHEAD_API void lmhead_exchange_free(lmhead_exchange *endpoint);

/* Like "all_gather of hidden rows"; "?" for other numbers. Static. */
LMHEAD_API const char *lmhead_operation_name(int32_t operation);

/* ---- head ---- */

typedef struct lmhead_head lmhead_head;

enum {
    LMHEAD_VERIFY_DEFAULT = 0, /* always */
    LMHEAD_VERIFY_ALWAYS = 1,
    LMHEAD_VERIFY_PREPARE = 2,
    LMHEAD_VERIFY_EVERY = 3
};

/* The same on every rank of a group. */
typedef struct lmhead_config {
    size_t size;
    char name[32]; /* tells the heads of one process apart (target, draft); "": lm_head */
    int64_t vocab_size, hidden_size;
    uint32_t hidden_dtype; /* 0: the weights' own; bf16 for an int8 head */
    float logit_scale;     /* 0: 1. Multiplies, after the softcap; Granite's logits_scaling is its inverse */
    float softcap;         /* 0: none. Gemma's final_logit_softcapping */
    int32_t
        split_rows_over_tp; /* each tensor-parallel rank is answered only its part of its replica's rows */
    int32_t verify;         /* when exact steps check their contract */
    uint32_t verify_every;
    uint32_t timeout_ms;           /* of a step, all its operations together; 0: 30000 */
    uint32_t create_timeout_ms;    /* of lmhead_create and lmhead_rebuild; 0: 300000 */
    uint64_t logprobs_chunk_bytes; /* 0: 64 MiB */
} lmhead_config;

/* As a model folder's config.json says, then as `settings_json` says (NULL: nothing; its keys are the
 * documentation's). */
LMHEAD_API lmhead_status lmhead_config_from_model(const char *folder, const char *settings_json,
                                                  lmhead_config *config);

/* Frozen. Members are numbered as `ranks` lists them; member m holds shard m. */
typedef struct lmhead_group {
    const int64_t *ranks; /* global ranks, replica slowest, the tp of a replica side by side */
    int64_t n;
    int64_t rank;     /* the caller's */
    int64_t tp;       /* tensor-parallel ranks of a replica; 0: 1. Divides n, but for n = 1: a head for
                         itself */
    int64_t tp_index; /* of the caller; looked at where n is 1: its part of the rows with
                         split_rows_over_tp */
} lmhead_group;

/* Collective: the ranks compare everything here. group NULL: a head of its own, then exchange is NULL too.
 * Not during capture. */
LMHEAD_API lmhead_status lmhead_create(const lmhead_config *config, const lmhead_group *group,
                                       const lmhead_weights *weights, const lmhead_exchange *exchange,
                                       const lmhead_backend *backend, lmhead_head **head);
/* Waits for what is on streams. Peers that are in a step, or begin one, get RANK_LOST. Not during capture. */
LMHEAD_API void lmhead_free(lmhead_head *head);

/* How the other ranks' row counts are known. */
enum {
    LMHEAD_ROWS_EXACT = 0,    /* every replica's are in `counts` */
    LMHEAD_ROWS_CAPACITY = 1, /* a static (padded) shape, which a CUDA graph replays */
    LMHEAD_ROWS_DISCOVER = 2  /* learned at the beginning of the step */
};

enum {
    LMHEAD_LOGITS = 1,   /* logits */
    LMHEAD_ARGMAX = 2,   /* ids [rows] */
    LMHEAD_TOPK = 3,     /* ids, values [rows, k], logsumexp [rows] */
    LMHEAD_LOGPROBS = 4, /* of `targets`: logprobs, ranks [rows, n_targets]; of the k best: top_ids,
                            top_logprobs [rows, k] */
    LMHEAD_SAMPLE = 5    /* ids [rows]; with LMHEAD_WITH_LOGPROBS also logprobs, ranks [rows], and of the k
                            best top_ids, top_logprobs [rows, k] */
};

enum {
    LMHEAD_ADJUSTED = 1,     /* some row of the group has adjustments: of the contract, but with DISCOVER */
    LMHEAD_PROCESSED = 2,    /* logprobs are of the adjusted logits */
    LMHEAD_WITH_LOGPROBS = 4, /* SAMPLE: tell the tokens' logprobs and ranks, and the k best */
    LMHEAD_DEVICE_MASKS = 8,  /* some row of the group has `allowed` in device memory: of the contract */
    LMHEAD_UNFILTERED = 16,   /* SAMPLE on a device, without logprobs: no row of the group has top_k, top_p or
                                 min_p, and the host looks at no parameter: of the contract */
    LMHEAD_DEVICE_FILTERS = 32, /* SAMPLE on a device: the host looks at no parameter, and every step takes
                                 the rounds of all filters, so that a graph replays it: of the contract */
    LMHEAD_ASYNCHRONOUS = 64  /* of a step that could be captured, outside of a capture: lmhead_run returns
                                 when it is queued, as a graph's replay does. All that is passed lives until
                                 the stream has passed the step; the answer counts if lmhead_async_status is
                                 good then. Of the contract */
};

/* What of a step's inputs lies in device memory, that of `hidden`, aligned to its elements. The host looks at
 * none of it: an id, offset or parameter that is not legal makes a row with row_status BAD_INPUT. */
enum {
    LMHEAD_DEVICE_TARGETS = 1,
    LMHEAD_DEVICE_SAMPLING = 2,   /* all arrays of lmhead_sampling; the struct itself is the host's */
    LMHEAD_DEVICE_ADJUSTMENTS = 4 /* all arrays of lmhead_adjustments; likewise */
};

/* [rows] each; NULL is the default for all rows. Check before a request joins a batch: lmhead_sampling_check.
 * Frozen. */
typedef struct lmhead_sampling {
    const uint64_t *seed;     /* 0 */
    const int64_t *position;  /* 0. Absolute position of the token sampled, so that no two share noise */
    const float *temperature; /* 1. 0 is greedy */
    const int32_t *top_k;     /* 0: all */
    const float *top_p;       /* 1: all */
    const float *min_p;       /* 0: all */
} lmhead_sampling;

LMHEAD_API lmhead_status lmhead_sampling_check(const lmhead_sampling *sampling, int64_t rows);

/* Of own rows over the whole vocabulary; NULL changes nothing. Offsets are [rows + 1]. Frozen. */
typedef struct lmhead_adjustments {
    const int32_t *allowed; /* [rows, ceil(vocab / 32)]: bit id % 32 of word id / 32; xgrammar's and
                               llguidance's layout */
    const int64_t *logit_bias_offsets; /* row i: entries offsets[i] .. offsets[i + 1] */
    const int64_t *logit_bias_ids;
    const float *logit_bias_values;                 /* finite, or minus infinity */
    const float *repetition, *frequency, *presence; /* [rows]; neutral: 1, 0, 0 */
    const int64_t *count_offsets;                   /* ids that came before, each once in a row */
    const int64_t *count_ids;
    const int32_t *counts;    /* in the output so far */
    const uint8_t *in_prompt; /* 0 or 1 */
} lmhead_adjustments;

typedef struct lmhead_step {
    size_t size;

    /* The contract: the same on every rank of the group, but `rows`. Host values, read before the function
     * returns. */
    int32_t mode;          /* LMHEAD_ROWS_ */
    int32_t request;       /* LMHEAD_LOGITS .. LMHEAD_SAMPLE */
    int64_t rows;          /* output rows that this rank brings; 0 takes part like any other */
    const int64_t *counts; /* EXACT: [replicas], in group order. NULL where the group is one replica */
    int64_t capacity;      /* CAPACITY; in lmhead_prepare of DISCOVER: the most rows of any rank */
    int64_t k;             /* TOPK: at least 1. LOGPROBS, SAMPLE with logprobs: 0 and above */
    int64_t n_targets;     /* LOGPROBS: ids per row; 0: 1 */
    uint32_t logits_dtype; /* LOGITS: f32, f16, bf16 */
    uint32_t flags;        /* LMHEAD_ADJUSTED ... */

    /* Own rows. `hidden` and `indices` lie in one memory, host or device; which of the two is part of the
     * contract, so that a rank without rows says it too. The rest is host memory, but for what device_inputs
     * names. In device memory a bad index is a row with row_status BAD_INPUT. */
    lmhead_tensor hidden; /* [any, hidden size]; without rows only device_type and device_id count */
    const void *indices;  /* [rows]: output row i is row indices[i] of hidden, unordered and repeated at will.
                             NULL: row i */
    uint32_t index_dtype; /* LMHEAD_I64 (0 too) or LMHEAD_I32 */
    const int64_t *targets; /* [rows, n_targets], LOGPROBS; -100: none */
    const lmhead_sampling *sampling; /* SAMPLE */
    const lmhead_adjustments *adjustments;

    /* Where it runs. */
    void *stream;
    void *workspace; /* as lmhead_plan says; NULL with 0 bytes: the head's own, which may allocate */
    size_t workspace_bytes;

    /* Inputs in device memory. */
    uint32_t device_inputs; /* LMHEAD_DEVICE_TARGETS ... */
    uint32_t reserved;      /* 0 */
    /* The most logit biases, and ids that came before, of a row, where rows of the group have them in device
     * memory; 0: none do. A row with more is one of BAD_INPUT. Of the contract, also with DISCOVER; below
     * 2^32. Messages have room for as many of every row. */
    int64_t max_logit_bias, max_counts;
    int64_t n_logit_bias, n_counts; /* entries of the own arrays in device memory: none beyond is read */
} lmhead_step;

enum {
    LMHEAD_ROW_GOOD = 0,
    LMHEAD_ROW_NONFINITE =
        1, /* a logit is NaN or infinite. Such rows have id -1 and NaN; logits are as computed */
    LMHEAD_ROW_NOTHING_ALLOWED = 2,
    LMHEAD_ROW_BAD_INPUT =
        3 /* only in device memory: an index outside of the rows, inputs that are not legal, a message that no
             rank can have sent, or a step of capturable kind in which the ranks' headers differ: see
             lmhead_async_status */
};

typedef struct lmhead_stats {
    size_t size;
    int64_t rows_computed; /* of the group */
    uint64_t bytes_sent, bytes_received, weight_bytes;
    uint64_t contract_ns, gather_ns, matmul_ns, exchange_ns; /* 0 where they run on a stream */
    uint32_t rounds;
} lmhead_stats;

/* Own memory, for the answered rows (lmhead_plan; all own rows but with split_rows_over_tp). What the request
 * does not write may be NULL. All in one memory: host or pinned with host rows; device or pinned with device
 * rows. */
typedef struct lmhead_answer {
    size_t size;
    uint8_t *row_status;  /* [rows]; never NULL where there are rows */
    lmhead_tensor logits; /* [rows, vocab], in the step's logits_dtype */
    int64_t *ids;         /* ARGMAX, SAMPLE [rows]; TOPK [rows, k] */
    float *values; /* TOPK [rows, k]: best first; ties by lowest id; places that are left: minus infinity and
                      -1 */
    float *logsumexp; /* TOPK [rows], over the whole vocabulary */
    float *logprobs;  /* LOGPROBS [rows, n_targets], SAMPLE [rows] */
    int64_t *ranks;   /* of the same: 1 + how many beat it */
    int64_t *top_ids; /* LOGPROBS, SAMPLE [rows, k] */
    float *top_logprobs;
    lmhead_stats *stats; /* host, or NULL */
} lmhead_answer;

typedef struct lmhead_needs {
    size_t size;
    size_t workspace_bytes; /* aligned to 256 bytes, in the backend's memory; 0 on the host, and for DISCOVER:
                               the head's own */
    int64_t first_row, rows; /* answered, of the own rows */
    int32_t capturable;      /* a CUDA graph may have such a step: with a workspace, after lmhead_prepare */
} lmhead_needs;

/* What such a step takes. Pure: not collective; data pointers are not looked at. During capture: yes. */
LMHEAD_API lmhead_status lmhead_plan(const lmhead_head *head, const lmhead_step *step, lmhead_needs *needs);

/* Runs steps of each of these kinds with rows of zeros, without answers: after it, steps of these requests
 * with as many rows as the largest of `counts` (or the capacity) or fewer neither allocate nor load nor
 * compile, in any mode. Collective, with the same steps on every rank. Where `counts` is NULL (one replica,
 * EXACT) `rows` is the largest; else it is not looked at. Of `hidden` only device_type counts, of other
 * pointers nothing but `stream`. Adjustments in device memory: as LMHEAD_DEVICE_MASKS, max_logit_bias and
 * max_counts say, which steps to come repeat. Adjustments in host memory with more than an entry a row may
 * allocate once more, and so may, on a device, partials in a workspace that is lent. Not during capture. */
LMHEAD_API lmhead_status lmhead_prepare(lmhead_head *head, const lmhead_step *steps, size_t n);

/* One step. Collective. ARGUMENT is refused before anything is sent, and the head stays usable: the peers
 * wait for the call that is right, by the deadline. During capture: yes, where lmhead_plan says capturable,
 * with a workspace; a replay is a step and all ranks replay together. */
LMHEAD_API lmhead_status lmhead_run(lmhead_head *head, const lmhead_step *step, lmhead_answer *answer);

/* What device work that has ended says: OK, or the fault of an asynchronous step (as ncclCommGetAsyncError).
 * Never waits. During capture: yes. */
LMHEAD_API lmhead_status lmhead_async_status(lmhead_head *head);

/* Ends a step that waits, on this rank with STEP_MISMATCH and, as far as the transport can, on the others:
 * for shutting down. From any thread, while the head lives. Never blocks. */
LMHEAD_API lmhead_status lmhead_abort(lmhead_head *head, const char *reason);

/* Says that the engine has swapped the weights in place: the version is part of the next steps' contract. */
LMHEAD_API lmhead_status lmhead_set_weights_version(lmhead_head *head, uint64_t version);

/* Gives back what one large step made the head's own workspace grow to. */
LMHEAD_API lmhead_status lmhead_release_memory(lmhead_head *head);

/* JSON of the last steps of this rank (step, operation, rows, bytes, times) and where each member was last
 * seen. From any thread. */
LMHEAD_API lmhead_status lmhead_flight_recorder(const lmhead_head *head, char **json);

/* Brings a poisoned group back, under a new epoch. Collective, on every rank. Captured graphs are void. Not
 * during capture. */
LMHEAD_API lmhead_status lmhead_rebuild(lmhead_head *head);

/* ---- initialisers ---- */

#define LMHEAD_INIT_(type)                                   \
    static inline lmhead_##type lmhead_##type##_init(void) { \
        lmhead_##type value;                                 \
        memset(&value, 0, sizeof value);                     \
        value.size = sizeof value;                           \
        return value;                                        \
    }
LMHEAD_INIT_(backend_config)
LMHEAD_INIT_(load)
LMHEAD_INIT_(weights_config)
LMHEAD_INIT_(weights_info)
LMHEAD_INIT_(transport)
LMHEAD_INIT_(config)
LMHEAD_INIT_(step)
LMHEAD_INIT_(stats)
LMHEAD_INIT_(answer)
LMHEAD_INIT_(needs)
#undef LMHEAD_INIT_

#ifdef __cplusplus
}
#endif
#endif
