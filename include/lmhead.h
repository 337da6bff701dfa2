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
 *  Status    0 is success. Host outputs are written only on success. lmhead_last_error() returns the message:
 *            what was wanted, what came, what to do. A panic of this library never reaches the caller: it
 *            becomes LMHEAD_ERROR_INTERNAL. The library prints nothing.
 *  Structs   Structs that begin with `size` are made by their lmhead_*_init(). Zero is the default of every
 *            other field. New versions append fields. A struct that is shorter than this library's is
 *            completed with zeros. A longer one is accepted if the rest of it is zero.
 *  Owning    Inputs are borrowed until the function returns, device memory until the stream has passed the
 *            step. Each handle is freed by the _free of its kind, which accepts NULL. A head keeps alive what
 *            it was made of, so handles can be freed in any order. A handle is a number, not an address. One
 *            that was freed, is of another kind or was made before a fork gives LMHEAD_ERROR_ARGUMENT.
 *  Threads   Backends, weights and exchanges can be used from several threads at once (each head has its own
 *            channel on its exchange). A head can be used from any thread, but only one at a time;
 *            lmhead_abort and lmhead_flight_recorder may be called at any time. "Collective" functions return
 *            when all members have made the same call, or at the deadline, so a process with several ranks
 *            needs a thread for each. A process opens backends after it has forked, not before.
 *  Streams   With host memory, a function returns when everything is done, and `stream` is NULL. With device
 *            memory, lmhead_run puts its work on `stream` (a cudaStream_t or CUstream of the device's primary
 *            context).
 *  Capture   A function may be called while a stream is being captured only if its comment says so.
 *  Sizes     Sizes are 64-bit, shapes row-major, token ids int64. The id -1 means "no id".
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
    LMHEAD_ERROR_INDEX = 4,   /* a row index is out of range */
    LMHEAD_ERROR_REQUEST = 5, /* the head cannot answer this request */
    LMHEAD_ERROR_FILE = 6,
    LMHEAD_ERROR_TENSOR = 7,        /* a file's tensor is missing, or unfit for a head */
    LMHEAD_ERROR_STEP_MISMATCH = 8, /* * the ranks did not make the same call; all of them get this */
    LMHEAD_ERROR_TIMEOUT = 9,       /* * a rank did not come before the deadline */
    LMHEAD_ERROR_RANK_LOST = 10,    /* * a rank is gone for good: make a new exchange and new heads */
    LMHEAD_ERROR_POISONED = 11,     /* an earlier step failed: call lmhead_rebuild on every rank */
    LMHEAD_ERROR_EXCHANGE = 12,     /* * the transport failed */
    LMHEAD_ERROR_UNSUPPORTED = 13,  /* this build or this machine cannot do it */
    LMHEAD_ERROR_DEVICE = 14,       /* * a device or its driver failed */
    LMHEAD_ERROR_ARGUMENT = 15, /* NULL, a size no version had, a freed or foreign handle, a wrong thread */
    LMHEAD_ERROR_INTERNAL = 16  /* * a bug in this library */
};
/* After a status marked * the head is poisoned. In a group of several ranks, any error of lmhead_run except
 * ARGUMENT poisons the head: the peers are told at once, so that nobody waits. */

/* A status as a word, such as "STEP_MISMATCH"; "?" for other numbers. Static. */
LMHEAD_API const char *lmhead_status_name(lmhead_status status);

/* The message of the calling thread's latest error; "" before the first. Valid until the thread's next call
 * of this library. */
LMHEAD_API const char *lmhead_last_error(void);

/* Global ranks that the latest error names: those that did not come, disagree or are gone, which an engine
 * would restart. Writes at most `capacity` of them; returns how many there are. */
LMHEAD_API size_t lmhead_last_error_ranks(int64_t *ranks, size_t capacity);

/* ---- this build ---- */

/* LMHEAD_ABI of the library. A program that loads it at run time compares this first. */
LMHEAD_API int32_t lmhead_abi(void);
LMHEAD_API const char *lmhead_version(void);  /* "0.1.0" */
LMHEAD_API const char *lmhead_features(void); /* "cpu cuda nccl" */

/* JSON: what this machine can run, and why it cannot run the rest. Free it with lmhead_string_free. */
LMHEAD_API lmhead_status lmhead_doctor(char **json);
LMHEAD_API void lmhead_string_free(char *string);

/* Sets the process's log function, which gets messages of up to `max_level`: 1 error (in a call that returns
 * no status, such as lmhead_free), 2 warning (about a checkpoint, for example), 3 information, 4 debug. It is
 * called from any thread and must not call this library. NULL removes it. */
LMHEAD_API void lmhead_set_log(void (*log)(void *user, int32_t level, const char *text), void *user,
                               int32_t max_level);

/* ---- memory ---- */

/* Types as DLPack numbers them. (lmhead_dlpack.h converts DLPack's tensors.) */
#define LMHEAD_DTYPE(code, bits) ((uint32_t)(code) | (uint32_t)(bits) << 8 | 1u << 16)
enum {
    LMHEAD_F32 = LMHEAD_DTYPE(2, 32),
    LMHEAD_F16 = LMHEAD_DTYPE(2, 16),
    LMHEAD_BF16 = LMHEAD_DTYPE(4, 16),
    LMHEAD_I8 = LMHEAD_DTYPE(0, 8),
    LMHEAD_E4M3 = LMHEAD_DTYPE(10, 8), /* FP8 without infinities, only for weights */
    LMHEAD_I32 = LMHEAD_DTYPE(0, 32), /* only for indices */
    LMHEAD_I64 = LMHEAD_DTYPE(0, 64)  /* only for indices */
};

enum { LMHEAD_HOST = 1, LMHEAD_CUDA = 2, LMHEAD_CUDA_PINNED = 3 };

/* A matrix [rows, columns]. The struct is frozen: it never grows. The library writes to `data` only in
 * answers. */
typedef struct lmhead_tensor {
    void *data;
    int32_t device_type; /* LMHEAD_HOST ...; 0: LMHEAD_HOST */
    int32_t device_id;
    uint32_t dtype;    /* LMHEAD_F32 ... */
    uint32_t reserved; /* 0 */
    int64_t rows, columns;
    int64_t stride; /* elements from one row to the next; 0: columns */
} lmhead_tensor;

/* ---- who shares the head ---- */

enum { LMHEAD_ORDER_DP_PP_TP = 0 /* vLLM */, LMHEAD_ORDER_PP_DP_TP = 1 /* Megatron */ };
enum { LMHEAD_TP_SIZE_TENSOR_PARALLEL = -1, LMHEAD_TP_SIZE_AUTO = 0 };

/* Writes the global ranks of the head group that contains `rank`. tp_size is the number of ranks that share a
 * head: 1, or a multiple of tp that divides dp * tp; -1 means tp; 0 means tp if tp > 1, else 1. `*n` is the
 * capacity of `ranks` on entry (dp * tp is always enough), and their number on return: 0 if `rank` is not on
 * the last pipeline stage. */
LMHEAD_API lmhead_status lmhead_group_ranks(int64_t dp, int64_t tp, int64_t pp, int32_t order, int64_t rank,
                                            int64_t tp_size, int64_t *ranks, int64_t *n);

/* The vocabulary ids of a member's shard, for engines that load the weights themselves. May be empty. */
LMHEAD_API lmhead_status lmhead_shard_range(int64_t vocab_size, int64_t members, int64_t member,
                                            int64_t *first, int64_t *count);

/* ---- backend: where the arithmetic runs. One for all ranks of a process that use the same device ---- */

typedef struct lmhead_backend lmhead_backend;

typedef struct lmhead_backend_config {
    size_t size;
    int32_t device_type; /* LMHEAD_HOST, LMHEAD_CUDA; 0: LMHEAD_HOST */
    int32_t device_id;
    int32_t threads; /* CPU threads of a host backend; 0: one per CPU that the process may use */
} lmhead_backend_config;

LMHEAD_API lmhead_status lmhead_backend_open(const lmhead_backend_config *config, lmhead_backend **backend);
LMHEAD_API void lmhead_backend_free(lmhead_backend *backend);

/* ---- weights: one member's shard ---- */

typedef struct lmhead_weights lmhead_weights;

enum { LMHEAD_QUANT_AS_STORED = 0, LMHEAD_QUANT_NONE = 1, LMHEAD_QUANT_W8A8 = 2, LMHEAD_QUANT_W8A16 = 3 };

typedef struct lmhead_load {
    size_t size;
    /* The name of the head's tensor. NULL: `path` is a Hugging Face folder or a GGUF file, in which the
     * library finds the head */
    const char *tensor;
    int64_t vocab_size;      /* 0: as config.json says; without config.json, all rows of the tensor */
    int64_t members, member; /* loads the shard of `member`; members 0: the whole head */
    int32_t quantization;    /* LMHEAD_QUANT_; float heads are quantised while they are read */
    int32_t without_bias;    /* not 0: ignore a bias */
    uint64_t version; /* compared between the ranks; 0: a fingerprint of the checkpoint's head */
    void (*progress)(void *user, uint64_t done, uint64_t total); /* bytes; from any thread; may be NULL */
    void *user;
    int32_t copy; /* not 0: read rows into memory; 0: use them in the mapped file if possible */
} lmhead_load;

/* Reads (or maps) the rows of one shard, and a fixed sample of rows for the fingerprint. */
LMHEAD_API lmhead_status lmhead_weights_load(const char *path, const lmhead_load *load,
                                             lmhead_weights **weights);

typedef struct lmhead_weights_config {
    size_t size;
    int64_t vocab_size;          /* ids of the whole head */
    int64_t first;               /* vocabulary id of the matrix's row 0; the rows are those of the shard */
    lmhead_tensor matrix;        /* [shard, hidden]: f32, f16, bf16; i8 and e4m3 with scales */
    const float *scales;         /* [n_scales], in the same memory as the matrix */
    int64_t n_scales;            /* one for each row of the shard, 1 for the whole tensor, or 0 */
    const float *bias;           /* [shard], in the same memory as the matrix; may be NULL */
    int32_t quantization;        /* LMHEAD_QUANT_W8A8 or W8A16 if the matrix is i8, W8A16 if it is e4m3 */
    uint64_t version;            /* compared between the ranks; 0: not compared */
    void (*release)(void *user); /* NULL: the matrix is copied now. Else the matrix is used in place, and this
                                  * is called once, from any thread, when no head needs the matrix any more.
                                  * It is not called if lmhead_weights_wrap fails */
    void *user;
} lmhead_weights_config;

/* Makes a shard of weights that the engine has in host or device memory. */
LMHEAD_API lmhead_status lmhead_weights_wrap(const lmhead_weights_config *config, lmhead_weights **weights);
LMHEAD_API void lmhead_weights_free(lmhead_weights *weights);

typedef struct lmhead_weights_info {
    size_t size;
    int64_t vocab_size, hidden_size; /* sizes of the whole head */
    int64_t first, count;            /* the shard's ids: first .. first + count */
    uint32_t dtype;
    int32_t quantization; /* LMHEAD_QUANT_NONE, W8A8 or W8A16 */
    int32_t has_bias;
    uint64_t bytes;
} lmhead_weights_info;

LMHEAD_API lmhead_status lmhead_weights_about(const lmhead_weights *weights, lmhead_weights_info *info);

/* ---- exchange: bytes between the members of a group ---- */

typedef struct lmhead_exchange lmhead_exchange;

/* Writes `n` endpoints, for members 0..n, which are threads of this process. */
LMHEAD_API lmhead_status lmhead_exchange_local(int64_t n, lmhead_exchange **endpoints);

/* How a call of a transport ends. lmhead_peer marks the members that caused it with the same number. */
enum {
    LMHEAD_FAULT_NONE = 0,
    LMHEAD_FAULT_TIMEOUT = 1,   /* the marked members did not come before the deadline */
    LMHEAD_FAULT_LOST = 2,      /* the marked members are gone for good */
    LMHEAD_FAULT_BROKEN = 3,    /* the transport failed: `text` says how */
    LMHEAD_FAULT_ABORTED = 4,   /* the marked member gave up its step: `text` is its notice */
    LMHEAD_FAULT_LENGTH = 5,    /* the marked members sent `bytes`, not the length that was wanted. The
                                   shorter length was delivered, and the transport keeps working */
    LMHEAD_FAULT_OTHER_CALL = 6 /* the marked member is in another call: `text` says in which. The transport
                                   keeps working */
};

/* The structs of a transport are frozen. */
typedef struct lmhead_piece {
    void *data; /* may be NULL if there are no bytes */
    size_t bytes;
} lmhead_piece;

typedef struct lmhead_peer {
    int32_t status; /* LMHEAD_FAULT_ */
    uint32_t reserved;
    uint64_t bytes; /* with LMHEAD_FAULT_LENGTH: how many bytes it sent */
} lmhead_peer;

/* Describes the call for which a callback runs. A callback that fails says in `peers` and `text` why. */
typedef struct lmhead_call {
    uint32_t head, instance; /* the channel: calls of different heads must never be mixed */
    uint32_t epoch;
    int32_t operation; /* lmhead_operation_name returns its name */
    uint64_t step, terms;
    uint64_t left_us; /* time to the deadline of the step, in microseconds: give up by then */
    void *stream;     /* the stream of a device transport, else NULL */
    /* Both are NULL for callbacks that return no status. */
    lmhead_peer *peers; /* [n], one for each member of the group; all LMHEAD_FAULT_NONE on entry */
    char *text;         /* [LMHEAD_TEXT_BYTES], UTF-8; empty on entry */
} lmhead_call;

#define LMHEAD_TEXT_BYTES 512

typedef struct lmhead_place {
    uint32_t head, instance, epoch;
    int32_t operation;
    uint64_t step;
    uint64_t age_us; /* since the last note */
} lmhead_place;

/* The engine's own transport between the members of one head group. Within a channel (head, instance) every
 * member makes the same calls in the same order. If the transport keeps channels apart, by tags or by several
 * communicators, different threads may step different heads at once. If not, heads must be stepped one after
 * the other, in the same order on every rank.
 *
 * Callbacks return a LMHEAD_FAULT_. They run on the thread that called this library, and must not call it for
 * the same head. A callback that returns an unknown number, or returns after the deadline, counts as failed.
 * A callback that never returns blocks its step: the library cannot end it.
 *
 * A notice ends the waits of its channel in its own step and in later steps of the same epoch. What was sent
 * before the notice still counts. A notice that belongs to a rebuilding ends only the waits in `reset`. */
typedef struct lmhead_transport {
    size_t size;
    int64_t n, me;
    /* Required. Sends send[m] to member m and receives recv[m] from it, for all members including the caller,
     * like MPI_Alltoallv or grouped ncclSend and ncclRecv. */
    int32_t (*all_to_all)(void *user, lmhead_call *call, const lmhead_piece *send, const lmhead_piece *recv);
    /* NULL: all_to_all is used instead. Each of the listed members (ascending, with the caller) sends `send`
     * to all of them, and receives recv[i] from members[i]. The list has all members of the group, or those
     * of equal tensor-parallel index. */
    int32_t (*all_gather)(void *user, lmhead_call *call, const int64_t *members, int64_t n_members,
                          const lmhead_piece *send, const lmhead_piece *recv);
    /* Sends `notice`, unchanged, to the peers when this rank gives up a step, and ends a wait of this rank in
     * another thread. Must not block; called from any thread. NULL: peers notice only at the deadline. */
    void (*notify_abort)(void *user, const lmhead_call *call, const char *notice);
    /* Notes where the caller is, for `place` on the other ranks. Called before every operation, around every
     * step, and every 0.1 s while the caller waits for a device, as a sign of life. Must not block. May be
     * NULL. */
    void (*note)(void *user, const lmhead_call *call);
    /* Writes where a member was last seen, for error messages. Returns 0, or another number if it was never
     * seen. Must not block. NULL: places are unknown. */
    int32_t (*place)(void *user, int64_t member, lmhead_place *place);
    /* Returns when all members have called it for the channel, after dropping everything that was not
     * delivered. NULL: lmhead_rebuild is not supported. */
    int32_t (*reset)(void *user, lmhead_call *call);
    /* Returns what a wait in `call` would return now. Called while this rank waits for a device. Must not
     * block. May be NULL. */
    int32_t (*pending)(void *user, lmhead_call *call);
    /* Tells the transport that the caller's head of this channel has been freed. May be NULL. */
    void (*leave)(void *user, uint32_t head, uint32_t instance);
    /* Called once, from any thread, when the transport is not needed any more; not if
     * lmhead_exchange_callbacks fails. May be NULL. */
    void (*release)(void *user);
    /* For a transport of device memory: the device's backend, and a host exchange of the same members, for
     * headers, notices and places. Callbacks put their work on call->stream. Both NULL: pieces are in host
     * memory. */
    const lmhead_backend *device;
    const lmhead_exchange *control;
} lmhead_transport;

LMHEAD_API lmhead_status lmhead_exchange_callbacks(const lmhead_transport *transport, void *user,
                                                   lmhead_exchange **endpoint);
/* NCCL between the GPUs of the members, for steps in device memory. Needs the feature nccl. `control` is a
 * host exchange of the same members, for headers, notices and error messages, because NCCL cannot say who is
 * late. With `nccl_comm` NULL each head makes a communicator of its own. Else it is the engine's own
 * ncclComm_t of these members in their order. The engine then orders the calls of all its users and destroys
 * it after the last head, and heads on it cannot be rebuilt. libnccl is looked for at run time: LMHEAD_NCCL
 * in the environment, the loader's path, PyPI's wheel. LMHEAD_NCCL_WINDOWS=on in the environment turns
 * windows on (docs/communicators.md). */
LMHEAD_API lmhead_status lmhead_exchange_nccl(const lmhead_backend *device, void *nccl_comm,
                                              const lmhead_exchange *control, lmhead_exchange **endpoint);

LMHEAD_API void lmhead_exchange_free(lmhead_exchange *endpoint);

/* An operation in words, such as "all_gather of hidden rows"; "?" for other numbers. Static. */
LMHEAD_API const char *lmhead_operation_name(int32_t operation);

/* ---- head ---- */

typedef struct lmhead_head lmhead_head;

enum {
    LMHEAD_VERIFY_DEFAULT = 0, /* always */
    LMHEAD_VERIFY_ALWAYS = 1,
    LMHEAD_VERIFY_PREPARE = 2,
    LMHEAD_VERIFY_EVERY = 3
};

/* The configuration of a head. It must be the same on every rank of a group. */
typedef struct lmhead_config {
    size_t size;
    char name[32]; /* tells the heads of a process apart (target, draft); "": lm_head */
    int64_t vocab_size, hidden_size;
    uint32_t hidden_dtype; /* type of the hidden rows; 0: that of the weights, bf16 for an int8 head */
    float logit_scale;     /* multiplies logits after the softcap; 0: 1. Granite's logits_scaling is its
                              inverse */
    float softcap;         /* Gemma's final_logit_softcapping; 0: no softcap */
    int32_t split_rows_over_tp; /* not 0: a tensor-parallel rank gets only its part of the replica's rows */
    int32_t verify;             /* LMHEAD_VERIFY_: when exact steps check the contract */
    uint32_t verify_every;      /* with LMHEAD_VERIFY_EVERY: every so many steps */
    uint32_t timeout_ms;           /* for a step, all its operations together; 0: 30000 */
    uint32_t create_timeout_ms;    /* for lmhead_create and lmhead_rebuild; 0: 300000 */
    uint64_t logprobs_chunk_bytes; /* memory of the logits that logprobs hold at once; 0: 64 MiB */
} lmhead_config;

/* Fills `config` from a model folder's config.json, then from `settings_json` (docs/configuration.md has the
 * keys; NULL: no settings). */
LMHEAD_API lmhead_status lmhead_config_from_model(const char *folder, const char *settings_json,
                                                  lmhead_config *config);

/* The ranks that share a head. Members are numbered as `ranks` lists them; member m holds shard m. Frozen. */
typedef struct lmhead_group {
    const int64_t *ranks; /* [n] global ranks, replica by replica, each with its tensor-parallel ranks */
    int64_t n;
    int64_t rank;     /* the caller's global rank */
    int64_t tp;       /* tensor-parallel ranks of a replica; 0: 1. It divides n, unless n is 1 (a tensor-
                         parallel rank with a head for itself) */
    int64_t tp_index; /* the caller's tensor-parallel index, used only if n is 1: with split_rows_over_tp it
                         tells which part of the rows is the caller's */
} lmhead_group;

/* Makes a head. Collective: the ranks compare their configurations, groups and weights. For a head without a
 * group, `group` and `exchange` are NULL. Not during capture. */
LMHEAD_API lmhead_status lmhead_create(const lmhead_config *config, const lmhead_group *group,
                                       const lmhead_weights *weights, const lmhead_exchange *exchange,
                                       const lmhead_backend *backend, lmhead_head **head);
/* Frees a head, after waiting for its work on streams. Peers that are in a step, or begin one, get RANK_LOST.
 * Not during capture. */
LMHEAD_API void lmhead_free(lmhead_head *head);

/* How the other ranks' row counts are known. */
enum {
    LMHEAD_ROWS_EXACT = 0,    /* `counts` has the rows of every replica */
    LMHEAD_ROWS_CAPACITY = 1, /* a static (padded) shape, which a CUDA graph can replay */
    LMHEAD_ROWS_DISCOVER = 2  /* the ranks learn them at the beginning of the step */
};

/* Requests, and the arrays of lmhead_answer that each writes. */
enum {
    LMHEAD_LOGITS = 1,   /* logits */
    LMHEAD_ARGMAX = 2,   /* ids [rows] */
    LMHEAD_TOPK = 3,     /* ids, values [rows, k], logsumexp [rows] */
    LMHEAD_LOGPROBS = 4, /* for `targets`: logprobs, ranks [rows, n_targets]; for the k best ids: top_ids,
                            top_logprobs [rows, k] */
    LMHEAD_SAMPLE = 5    /* ids [rows]. With LMHEAD_WITH_LOGPROBS also for these ids: logprobs, ranks [rows];
                            for the k best ids: top_ids, top_logprobs [rows, k] */
};

/* Flags of a step. All must be the same on every rank of the group, except that LMHEAD_ADJUSTED may differ in
 * DISCOVER mode. */
enum {
    LMHEAD_ADJUSTED = 1,     /* some row of the group has adjustments */
    LMHEAD_PROCESSED = 2,    /* logprobs are those of the adjusted logits */
    LMHEAD_WITH_LOGPROBS = 4, /* SAMPLE: answer the tokens' logprobs and ranks, and the k best ids */
    LMHEAD_DEVICE_MASKS = 8,  /* some row of the group has `allowed` in device memory */
    LMHEAD_UNFILTERED = 16,   /* SAMPLE on a device, without logprobs: no row of the group has top_k, top_p or
                                 min_p. The host reads no parameter */
    LMHEAD_DEVICE_FILTERS = 32, /* SAMPLE on a device: the device finds out which rows have filters. The host
                                 reads no parameter. Every step takes the rounds of all filters, so that a
                                 graph can replay it */
    /* lmhead_run returns once the step is queued. Allowed for capturable steps, outside a capture.
     *  - Everything that is passed must stay valid until the stream has passed the step.
     *  - The answer counts if lmhead_async_status returns LMHEAD_OK then.
     *  - Call lmhead_prepare first: memory that is not prepared is allocated on the stream after earlier
     *    work. */
    LMHEAD_ASYNCHRONOUS = 64
};

/* Inputs of a step that are in device memory: on the device of `hidden`, aligned to their elements. The host
 * does not read them: an illegal id, offset or parameter gives its row the row_status BAD_INPUT. */
enum {
    LMHEAD_DEVICE_TARGETS = 1,
    LMHEAD_DEVICE_SAMPLING = 2,   /* all arrays of lmhead_sampling; the struct itself is in host memory */
    LMHEAD_DEVICE_ADJUSTMENTS = 4 /* all arrays of lmhead_adjustments; the struct itself is in host memory */
};

/* Sampling parameters, each [rows]. NULL: every row has the default, which stands first in the comment.
 * Frozen. */
typedef struct lmhead_sampling {
    const uint64_t *seed;     /* 0 */
    const int64_t *position;  /* 0. Absolute position of the sampled token: no two tokens share noise */
    const float *temperature; /* 1. With 0 the largest logit is taken */
    const int32_t *top_k;     /* 0: all ids */
    const float *top_p;       /* 1: all ids */
    const float *min_p;       /* 0: all ids */
} lmhead_sampling;

/* Checks parameters in host memory, for an engine that wants to know before a request joins a batch. */
LMHEAD_API lmhead_status lmhead_sampling_check(const lmhead_sampling *sampling, int64_t rows);

/* Changes to the logits of this rank's rows, over the whole vocabulary. NULL arrays change nothing. Offsets
 * are [rows + 1]: row i has the entries offsets[i] .. offsets[i + 1]. Frozen. */
typedef struct lmhead_adjustments {
    const int32_t *allowed; /* [rows, ceil(vocab / 32)]: an id is allowed if bit id % 32 of word id / 32 is 1;
                               xgrammar's and llguidance's layout */
    const int64_t *logit_bias_offsets;
    const int64_t *logit_bias_ids;
    const float *logit_bias_values;                 /* finite, or minus infinity */
    const float *repetition, *frequency, *presence; /* [rows]; 1, 0 and 0 change nothing */
    const int64_t *count_offsets;
    const int64_t *count_ids; /* ids that came before, each once in a row */
    const int32_t *counts;    /* how often each came in the output so far */
    const uint8_t *in_prompt; /* 1 if the prompt contains it, else 0 */
} lmhead_adjustments;

typedef struct lmhead_step {
    size_t size;

    /* The contract: all but `rows` must be the same on every rank of the group. Host values, read before the
     * function returns. */
    int32_t mode;          /* LMHEAD_ROWS_ */
    int32_t request;       /* LMHEAD_LOGITS .. LMHEAD_SAMPLE */
    int64_t rows;          /* output rows of this rank; a rank with 0 takes part like any other */
    const int64_t *counts; /* EXACT: [replicas] in group order. May be NULL if the group is one replica */
    int64_t capacity;      /* CAPACITY: the most rows of any replica. DISCOVER: the same for lmhead_prepare */
    int64_t k;             /* TOPK: at least 1. LOGPROBS, SAMPLE with logprobs: 0 or more */
    int64_t n_targets;     /* LOGPROBS: targets of each row; 0: 1 */
    uint32_t logits_dtype; /* LOGITS: f32, f16 or bf16 */
    uint32_t flags;        /* LMHEAD_ADJUSTED ... */

    /* This rank's rows. `hidden` and `indices` are both in host memory or both in device memory. Which of the
     * two must be the same on every rank, so a rank without rows sets it, too. The rest is in host memory,
     * except for what device_inputs names. If `indices` are in device memory, an index out of range gives its
     * row the row_status BAD_INPUT. */
    lmhead_tensor hidden; /* [any, hidden size]; without rows only device_type and device_id matter */
    const void *indices;  /* [rows]: output row i is row indices[i] of hidden; in any order, may repeat.
                             NULL: output row i is row i */
    uint32_t index_dtype; /* LMHEAD_I32 or LMHEAD_I64; 0: LMHEAD_I64 */
    const int64_t *targets; /* LOGPROBS: [rows, n_targets]; -100: no target */
    const lmhead_sampling *sampling; /* SAMPLE */
    const lmhead_adjustments *adjustments;

    /* Where it runs. */
    void *stream;
    void *workspace; /* of the size that lmhead_plan returns; NULL: the head's own, which may allocate */
    size_t workspace_bytes;

    /* Inputs in device memory. */
    uint32_t device_inputs; /* LMHEAD_DEVICE_TARGETS ... */
    uint32_t reserved;      /* 0 */
    /* If rows of the group have logit biases or counts in device memory: the most entries of one row; 0: no
     * row has any. Must be the same on every rank, in every mode; below 2^32. Every row's message has room
     * for this number of entries, and a row with more gets the row_status BAD_INPUT. */
    int64_t max_logit_bias, max_counts;
    int64_t n_logit_bias, n_counts; /* lengths of this rank's arrays in device memory */
} lmhead_step;

/* Values of row_status. A row that is not good has ids -1 and NaN in place of numbers. Its logits are as
 * computed. */
enum {
    LMHEAD_ROW_GOOD = 0,
    LMHEAD_ROW_NONFINITE = 1, /* a logit is NaN or infinite */
    LMHEAD_ROW_NOTHING_ALLOWED = 2,
    /* Only with device memory: an index out of range, an illegal input, a message that no rank can have sent,
     * or, in a capturable step, headers that differ between the ranks (see lmhead_async_status) */
    LMHEAD_ROW_BAD_INPUT = 3
};

typedef struct lmhead_stats {
    size_t size;
    int64_t rows_computed; /* rows computed for the whole group */
    uint64_t bytes_sent, bytes_received, weight_bytes;
    uint64_t contract_ns, gather_ns, matmul_ns, exchange_ns; /* 0 if they run on a stream */
    uint32_t rounds;                                         /* rounds of exchange */
} lmhead_stats;

/* The caller's memory for the answered rows. These are all rows of this rank, or with split_rows_over_tp the
 * part that lmhead_plan returns. Arrays that the request does not write may be NULL. All are in one kind of
 * memory: host or pinned for rows in host memory, device or pinned for rows in device memory. */
typedef struct lmhead_answer {
    size_t size;
    uint8_t *row_status;  /* [rows]; must not be NULL if there are rows */
    lmhead_tensor logits; /* [rows, vocab], in the step's logits_dtype */
    int64_t *ids;         /* ARGMAX, SAMPLE [rows]; TOPK [rows, k]: best first, ties by lowest id */
    float *values;        /* TOPK [rows, k]. If fewer than k ids are allowed, the rest has the id -1 and the
                             value minus infinity */
    float *logsumexp; /* TOPK [rows], over the whole vocabulary */
    float *logprobs;  /* LOGPROBS [rows, n_targets], SAMPLE [rows] */
    int64_t *ranks;   /* ranks of the same ids: 1 + number of ids that beat it */
    int64_t *top_ids; /* LOGPROBS, SAMPLE [rows, k] */
    float *top_logprobs; /* as top_ids */
    lmhead_stats *stats; /* in host memory; may be NULL */
} lmhead_answer;

typedef struct lmhead_needs {
    size_t size;
    size_t workspace_bytes; /* size of the workspace, which is in the backend's memory and aligned to 256
                               bytes. 0 on the host and for DISCOVER: the head uses its own */
    int64_t first_row, rows; /* the answered rows: first_row .. first_row + rows of this rank's rows */
    int32_t capturable;      /* 1: with a workspace, and after lmhead_prepare, a CUDA graph can capture it */
} lmhead_needs;

/* Returns what a step needs. Not collective; does not read through data pointers. Allowed during capture. */
LMHEAD_API lmhead_status lmhead_plan(const lmhead_head *head, const lmhead_step *step, lmhead_needs *needs);

/* Runs a step of each of these kinds with rows of zeros and without answers. Afterwards, steps of these
 * requests neither allocate nor load nor compile, in any mode, up to this number of rows: the largest of
 * `counts`, or the capacity; for a single replica in EXACT mode with `counts` NULL, `rows`. Collective, with
 * the same steps on every rank. Not during capture.
 *  - Of `hidden` only device_type is used, of all other pointers only `stream`.
 *  - For adjustments in device memory, pass the same LMHEAD_DEVICE_MASKS, max_logit_bias and max_counts as
 *    in the steps to come.
 *  - Two kinds of steps may still allocate once: one whose adjustments in host memory have more than one
 *    entry a row, and, on a device, one with partials in the caller's workspace. */
LMHEAD_API lmhead_status lmhead_prepare(lmhead_head *head, const lmhead_step *steps, size_t n);

/* Runs one step. Collective. A call that is refused with ARGUMENT has sent nothing: the head stays usable,
 * and the peers wait for the correct call until the deadline. Allowed during capture if lmhead_plan says
 * capturable, with a workspace. A replay of the graph is a step, and all ranks replay together. */
LMHEAD_API lmhead_status lmhead_run(lmhead_head *head, const lmhead_step *step, lmhead_answer *answer);

/* Returns POISONED for a poisoned head, else the fault of an asynchronous or replayed step whose device work
 * has ended, else LMHEAD_OK; like ncclCommGetAsyncError. Never waits. Allowed during capture. */
LMHEAD_API lmhead_status lmhead_async_status(lmhead_head *head);

/* Ends a step that waits: with STEP_MISMATCH on this rank and, as far as the transport can, on the others.
 * For shutting down. May be called from any thread while the head lives. Never blocks. */
LMHEAD_API lmhead_status lmhead_abort(lmhead_head *head, const char *reason);

/* Says that the engine has swapped the weights in place. The ranks compare this version in the next steps. */
LMHEAD_API lmhead_status lmhead_set_weights_version(lmhead_head *head, uint64_t version);

/* Frees the memory that the head has allocated for steps; the next step allocates what it needs. */
LMHEAD_API lmhead_status lmhead_release_memory(lmhead_head *head);

/* JSON: the last steps of this rank (step, operation, rows, bytes, times), and where each member was last
 * seen. Free it with lmhead_string_free. May be called from any thread. */
LMHEAD_API lmhead_status lmhead_flight_recorder(const lmhead_head *head, char **json);

/* Makes a poisoned group usable again, under a new epoch. Collective. Graphs captured before are invalid. Not
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
