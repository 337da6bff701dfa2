/* The parameters of the kernels, one struct for each: plain C, from which bindgen writes src/params.rs.
 *
 * Pointers are device addresses. Sizes are counts of elements unless a name says bytes. Most comments
 * begin with the shape, as in [rows, k]. */
#ifndef LMHEAD_PARAMS_H
#define LMHEAD_PARAMS_H

#include <stdint.h>

/* How TMA reads or writes a matrix; opaque. The driver encodes it (a CUtensorMap); the emulated device has
 * an encoding of its own. */
typedef struct TensorMap {
  uint8_t opaque[128];
} __attribute__((aligned(64))) TensorMap;

/* kernels/microkernels: out[m, n] = sum over k of a[m, k]·b[n, k]. All row-major and contiguous. */

/* int8 through cp.async and mma.sync. hidden is a multiple of 16. */
typedef struct MmaMicrokernelParams {
  const int8_t *weights; /* [vocab, hidden] */
  const int8_t *rows;    /* [row_count, hidden] */
  int32_t *out;          /* [row_count, vocab] */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t hidden;
} MmaMicrokernelParams;

/* 16-bit or int8 through TMA and wgmma. */
typedef struct WgmmaMicrokernelParams {
  TensorMap weights; /* [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle */
  TensorMap rows;    /* [row_count, hidden], boxes of the kernel's row tile x 128 bytes, 128-byte swizzle */
  void *out;         /* [row_count, vocab], f32 or int32 */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t hidden;
} WgmmaMicrokernelParams;

/* bf16: TMA for the weights, cp.async for rows that are picked by index. */
typedef struct GatherMicrokernelParams {
  TensorMap weights;         /* [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle */
  const uint16_t *rows;      /* [source_rows, hidden] bf16 */
  const int32_t *indices;    /* [row_count] row numbers; out of range: a row of zeros */
  float *out;                /* [row_count, vocab] */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t source_rows;
  uint32_t hidden;
} GatherMicrokernelParams;

/* The matmul kernels: logits[row, id] = epilogue(sum over k of rows[row, k]·weights[id, k]), for a shard of
 * `vocab` ids. A pointer may be null only if its comment says so; then there is no such array. */

/* What kernels find out about a row: flags that they or into its status word. */
enum LmheadStatus {
  /* a logit, as it is delivered, is NaN or infinite; minus infinity from an adjustment is legal */
  LMHEAD_STATUS_NONFINITE = 1,
  LMHEAD_STATUS_ALLOWED = 2,     /* a logit is above minus infinity */
  LMHEAD_STATUS_BAD_INDEX = 4,   /* the row's index is out of range: the row was computed as zeros */
  /* where raw and adjusted logits are both stored: only adjustments made a logit NaN or infinite */
  LMHEAD_STATUS_ADJUSTED = 8
};

/* Types of logits, and of rows before they are quantised. */
enum LmheadDtype { LMHEAD_DTYPE_F32 = 0, LMHEAD_DTYPE_F16 = 1, LMHEAD_DTYPE_BF16 = 2 };

/* Row-major; or packed, for wgmma_matmul: [blocks of 64 ids][pitch / 128 columns of 128 bytes of k][64
 * ids][128 bytes], each 64 x 128 bytes swizzled as in shared memory (kernels/swizzle.cuh). The number of
 * blocks is even. Ids after the last one repeat it, and bytes after the end of k are zeros. */
typedef struct WeightMatrix {
  const void *data;    /* [vocab, hidden], 16-byte aligned */
  /* row-major: bytes from row to row, a multiple of 16; packed: bytes of all columns of a row, a multiple of
   * 128 */
  uint64_t pitch;
  const float *scales; /* [vocab], for int8 weights */
  const float *bias;   /* [vocab], may be null */
  uint32_t packed;     /* 1: packed; 0: row-major */
} WeightMatrix;

typedef struct RowMatrix {
  const void *data;       /* [source_rows, hidden], aligned to its elements; read faster if aligned to 16 */
  uint64_t pitch;         /* bytes from row to row, a multiple of the element size */
  const void *indices;    /* [row_count] row numbers, int32 or int64; may be null: row i is row i of data */
  uint32_t index_bytes;   /* 4 or 8 */
  uint32_t source_rows;
} RowMatrix;

typedef struct LogitMatrix {
  void *data;         /* [row_count, vocab], aligned to its elements; written faster if aligned to 16 */
  /* bytes from row to row, a multiple of the element size. A shard may write its columns of a wider matrix */
  uint64_t pitch;
  /* [row_count]; flags LMHEAD_STATUS_* are or'ed into it. The caller sets it before: to 0 if there are
   * adjustments, else to LMHEAD_STATUS_ALLOWED */
  uint32_t *status;
  uint32_t dtype;     /* LMHEAD_DTYPE_* */
} LogitMatrix;

/* Changes to the logits after bias, softcap and scale, in this order. Ids are counted from the shard's
 * first. */
typedef struct LogitAdjustments {
  /* [row_count + 1], may be null; row i has the entries offsets[i]..offsets[i + 1] */
  const uint32_t *logit_bias_offsets;
  const uint32_t *logit_bias_ids;     /* [entries], ascending within a row; values of equal ids are added in
                                         order */
  const float *logit_bias_values;     /* [entries] */
  const uint32_t *count_offsets;      /* [row_count + 1], may be null: no penalties */
  const uint32_t *count_ids;          /* [entries], ascending within a row, each once */
  const uint32_t *counts;             /* [entries]: 2·(times in the output) + (in the prompt) */
  const float *repetition;            /* [row_count] */
  const float *frequency;             /* [row_count] */
  const float *presence;              /* [row_count] */
  /* [row_count, allowed_pitch] words, may be null; an id is allowed if bit id % 32 of word id / 32 is 1 */
  const uint32_t *allowed;
  uint64_t allowed_pitch;             /* words from row to row */
  const float *temperatures;          /* [row_count], may be null; divide the rows' logits, unless 0 */
} LogitAdjustments;

/* A vocabulary id and its f32 logit. */
typedef struct Candidate {
  float value;
  uint32_t id;
} Candidate;

/* A partial answer: what one part of the vocabulary (a tile or a shard) contributes to one row. Flat bytes:
 * kernels write them, ranks exchange them, the host merges them. In a matrix, each row has this struct, then
 * `k` places for Candidates, then `targets` counts (uint32_t) of the ids that beat each target, then zeros up
 * to a multiple of 8 bytes. A part of fewer than k ids has one place for each id. Kernels that read shards'
 * partials expect the best candidate first; the candidates of tiles are in any order, and so may be those
 * that the host merges. */
typedef struct PartialRow {
  uint64_t digits[3];   /* sum of exponentials: digits top - 2, top - 1 and top, without carries */
  int32_t top;          /* the highest digit's number; INT32_MIN if no logit has a term or no sum is wanted */
  uint32_t status;      /* LMHEAD_STATUS_* */
  uint32_t candidates;  /* number of places in use; the contents of the others have no meaning */
  uint32_t reserved;    /* 0 */
} PartialRow;

/* The most candidates that kernels find in a row. */
enum LmheadBest { LMHEAD_BEST = 64 };

/* How one row is sampled. A row with an illegal parameter gets the status of bad input. */
typedef struct SamplingRow {
  uint64_t seed;
  uint64_t position;
  float temperature;       /* 0: take the largest logit; else finite and above 0 */
  uint32_t top_k;          /* keep only the k largest; 0, or at least the vocabulary size: keep all */
  float top_p;             /* keep only the smallest set with this mass; above 0 and at most 1 */
  float min_p;             /* keep only ids at least this probable relative to the best; 0 to 1 */
} SamplingRow;

/* What a matmul writes for each tile of ids instead of logits: PartialRows without status, [tiles,
 * row_count]. A tile leaves out candidates that it saw beaten by other tiles. */
typedef struct TilePartials {
  uint8_t *data;        /* aligned to 8; null: logits are stored */
  /* [row_count], zeros before the launch. Each is a bound in the order of answers::ordered: the row's k-th
   * best logit is at least this; with draws: the score of the drawn id is at least this */
  uint32_t *bars;
  /* [row_count], may be null. If given, `data` has one Candidate for each row and tile instead, [row_count,
   * tiles]: the id that is drawn among the tile's without filters, in the whole vocabulary's numbers; minus
   * infinity if the tile saw that another one wins */
  const SamplingRow *draws;
  /* [row_count, target_count], in the whole vocabulary's numbers. Each tile counts how many of its ids beat
   * the target; for the id UINT32_MAX it counts none */
  const Candidate *targets;
  uint32_t k;           /* 1 to LMHEAD_BEST */
  uint32_t sum;         /* 0: no sums */
  uint32_t first_id;    /* first vocabulary id of the shard; added to the ids of draws and targets */
  uint32_t target_count; /* targets of each row; 0: no targets */
} TilePartials;

/* Fewest and most stages of k in shared memory, first for rings that cp.async fills, then for wgmma_matmul.
 * No device has room for more. */
enum LmheadStages {
  LMHEAD_MIN_STAGES = 3,
  LMHEAD_MAX_STAGES = 16,
  LMHEAD_WGMMA_MIN_STAGES = 2,
  LMHEAD_WGMMA_MAX_STAGES = 16
};

typedef struct MatmulParams {
  WeightMatrix weights;
  RowMatrix rows;          /* address and pitch are multiples of 16 */
  const float *row_scales; /* [row_count], for quantised rows */
  LogitMatrix logits;      /* where partials are asked for, only `status` is used */
  LogitAdjustments adjustments;
  float *raw;              /* [row_count, vocab] at logits.pitch, may be null: also store the f32 logits
                              without adjustments here */
  TilePartials partials;
  float softcap;      /* final_logit_softcapping; 0: no softcap */
  float scale;        /* multiplies the logit after the softcap */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t hidden;
  uint32_t stages;    /* within LmheadStages; the launch has shared memory for them */
  /* wgmma_matmul, if tail_ids > 0: tiles before this number have block_n ids, later ones tail_ids (the last
   * may have fewer). One tile then holds all rows */
  uint32_t whole_tiles;
  uint32_t tail_ids;  /* a multiple of 8, below block_n; 0: all tiles have block_n ids */
} MatmulParams;

/* kernels/target_logits_sm80.cu: the logits of a few ids of each row, with the same bits as the matmul's. It
 * runs before the matmul, whose tiles compare their own logits with these. */
typedef struct TargetLogitsParams {
  MatmulParams product;    /* the matmul; its logits, raw and partials are ignored, and its stages are
                              LMHEAD_TARGET_STAGES */
  const uint32_t *targets; /* [row_count, per_row] vocabulary ids */
  float *out;              /* [row_count, per_row]; NaN for an id of another shard */
  uint32_t per_row;        /* at least 1 */
  uint32_t first_id;       /* first vocabulary id of the shard */
} TargetLogitsParams;

/* Rows of a block, targets of each row that it takes at once, and stages of k. */
enum LmheadTargetTile { LMHEAD_TARGET_ROWS = 8, LMHEAD_TARGETS = 8, LMHEAD_TARGET_STAGES = 4 };

/* kernels/stage_rows_sm90a.cu: picks rows by index and lays them out as wgmma_matmul copies them to shared
 * memory. One block for each row, also for those that pad the last tile. */
typedef struct StageRowsParams {
  RowMatrix rows;
  /* [tiles of block_m rows][columns of 128 bytes of k][block_m][128 bytes], aligned to 16, each block_m x
   * 128 bytes swizzled; zeros after the last row and after the end of k. For 8-bit weights and 16-bit rows
   * the number of columns is even, and each 16 elements are in the order 0, 1, 4, 5, 8, 9, 12, 13, then the
   * other eight */
  uint8_t *out;
  float *scales;           /* [row_count], written for quantised rows */
  uint32_t *status;        /* [row_count], overwritten: status_before and the flags that are found */
  uint32_t *bars;          /* [row_count], set to 0; may be null */
  uint32_t row_count;
  uint32_t hidden;
  uint32_t block_m;        /* a multiple of 8 */
  uint32_t status_before;  /* LMHEAD_STATUS_* */
} StageRowsParams;

/* kernels/partials_sm80.cu: joins the partials of all parts of a vocabulary. One block for each row. */

/* Partials of all parts that have ids, one part after another: `gap` bytes, then [rows] PartialRows. Part i
 * begins where it would if every part before it had k places. A part is a tile (part_ids > 0) or a shard. */
typedef struct PartialParts {
  const uint8_t *data;     /* aligned to 8 */
  const uint32_t *status;  /* [rows] further LMHEAD_STATUS_*, or'ed to those of the parts; may be null */
  uint64_t gap;            /* a multiple of 8 */
  uint32_t nonfinite;      /* LMHEAD_STATUS_* that leave a row without an answer */
  uint32_t rows;
  uint32_t k;              /* 1 to LMHEAD_BEST; any in kernels/lists_sm80.cu */
  uint32_t targets;        /* targets of each row */
  uint32_t vocab;          /* ids of all parts */
  uint32_t parts;          /* parts that have ids */
  uint32_t part_ids;       /* ids of a part (the last may have fewer). 0: parts are shards, of whole blocks of
                              64 ids that are spread evenly */
  uint32_t whole_parts;    /* if part_ids and tail_ids are not 0: parts from this number on have tail_ids */
  uint32_t tail_ids;       /* ids of such a part (the last may have fewer) */
  uint32_t shards;         /* if part_ids is 0: number of shards, also those without ids */
} PartialParts;

/* Joins all parts into one. */
typedef struct MergePartialsParams {
  PartialParts from;
  uint8_t *out;            /* [rows] PartialRows of all ids, aligned to 8 */
  uint32_t first_id;       /* added to each id */
  uint32_t places;         /* candidate places of a row of `out`; those after from.k are not written */
} MergePartialsParams;

/* Makes answers from partials. A message that no shard can have sent gives its row status 3. */
typedef struct FinishParams {
  PartialParts from;
  int64_t *ids;            /* [rows, k], best first; -1 in places without an id */
  float *values;           /* [rows, k], minus infinity in places without an id; null: not wanted */
  float *logsumexp;        /* [rows], written if values are wanted */
  uint8_t *row_status;     /* [rows] 0 good, 1 not finite, 2 nothing allowed, 3 bad input */
} FinishParams;

/* Makes the answers of logprobs from partials. */
typedef struct FinishLogprobsParams {
  PartialParts from;
  const Candidate *targets; /* [rows, from.targets]; id UINT32_MAX: no target */
  float *logprobs;          /* [rows, from.targets] of the targets; NaN without a target */
  int64_t *ranks;           /* [rows, from.targets] of the targets, from 1; -1 without a target */
  int64_t *top_ids;         /* [rows, top_n] as FinishParams.ids */
  float *top_logprobs;      /* [rows, top_n] */
  uint8_t *row_status;      /* [rows] as FinishParams */
  uint32_t top_n;           /* 0 to from.k */
  uint32_t drawn;           /* 1: a row whose row_status is not 0 before the launch keeps it */
} FinishLogprobsParams;

/* kernels/lists_sm80.cu: the same answers from lists of any length that shards sent, sorted with the best
 * first. One kernel takes FinishParams or FinishLogprobsParams and writes everything but the best ids. Then
 * this one puts the best ids in their places, with several blocks for each row. */
typedef struct PlaceListsParams {
  PartialParts from;
  const uint8_t *row_status; /* [rows] */
  int64_t *ids;             /* [rows, n] as FinishParams.ids */
  float *values;            /* [rows, n]: logits, or logprobs */
  uint32_t n;
  uint32_t blocks;          /* blocks of a row, a multiple of from.parts */
  uint32_t logprobs;        /* 1: values are logprobs; 0: logits */
} PlaceListsParams;

/* Up to this top_k, candidates are exchanged; above it, ranks search for the k-th largest logit. */
enum LmheadListed { LMHEAD_LISTED = 1024 };

/* kernels/draws_sm80.cu: one block for each row. */

/* Joins what the tiles of a matmul drew into the shard's candidate of each row. */
typedef struct MergeDrawsParams {
  const Candidate *candidates; /* [rows, tiles] */
  const uint32_t *status;      /* [rows] LMHEAD_STATUS_*; null: 0 */
  const SamplingRow *sampling; /* [rows] */
  /* [rows]; the value is minus infinity if nothing is allowed, NaN for a row without an answer, and infinity
   * if the row is bad input or its parameters ask for more than one candidate */
  Candidate *out;
  uint32_t nonfinite;          /* LMHEAD_STATUS_* that leave a row without an answer */
  uint32_t tiles;
  uint32_t vocab;              /* ids of all shards */
} MergeDrawsParams;

/* Draws one id for each row from the candidates of all shards, which lie one shard after another. Each row of
 * a shard has `places` candidates. With places = 0 it has as many as its parameters ask for (one, or top_k),
 * at most the shard's ids. */
typedef struct FinishDrawParams {
  const Candidate *candidates; /* in any order within a row and shard; minus infinity in unused places */
  uint64_t count;              /* length of `candidates`: a row with places beyond it is bad input */
  const uint32_t *status;      /* [rows] further LMHEAD_STATUS_*, may be null */
  const SamplingRow *sampling; /* [rows] */
  int64_t *ids;                /* [rows]; -1 for a row without an answer */
  uint32_t *tokens;            /* [rows] the same ids; UINT32_MAX without an answer; may be null */
  uint8_t *row_status;         /* [rows] as FinishParams */
  uint32_t rows;
  uint32_t vocab;              /* ids of all shards */
  uint32_t shards;             /* shards as PartialParts has them if part_ids is 0 */
  uint32_t places;
} FinishDrawParams;

/* Makes rows of whole logits, and their status, from the shards' messages. Without shards it writes only the
 * status. */
typedef struct FinishLogitsParams {
  /* Messages of the shards. Each: `gap` bytes, then [rows] of the shard's logits and a status word, which is
   * the last 4 bytes of the row padded to 16 */
  const uint8_t *data;
  const uint32_t *words;   /* [answered] further LMHEAD_STATUS_*, may be null */
  uint8_t *logits;         /* [answered, vocab] at logits_pitch, aligned to an element */
  uint64_t logits_pitch;   /* bytes from row to row, a multiple of the element size */
  uint8_t *row_status;     /* [answered] as FinishParams */
  uint64_t gap;
  uint32_t rows;           /* rows of each message */
  uint32_t answered;       /* only the first `answered` rows are written. A row takes max(1, ceil(vocab /
                              part_ids)) blocks */
  uint32_t vocab;          /* ids of all shards */
  uint32_t shards;         /* shards as PartialParts has them if part_ids is 0 */
  uint32_t element_bytes;  /* size of a logit: 2 or 4 */
  uint32_t part_ids;       /* ids of a block, a multiple of 64 */
} FinishLogitsParams;

/* kernels/pack_rows_sm80.cu: copies rows picked by index into a matrix. */
typedef struct PackRowsParams {
  RowMatrix rows;
  /* [row_count, row_bytes] at out_pitch, aligned to 2 bytes. If address and pitch are multiples of 16, it is
   * written faster, and each row is padded with zeros to a multiple of 16 */
  uint8_t *out;
  uint64_t out_pitch;      /* bytes from row to row: at least row_bytes, a multiple of 2 */
  uint32_t *status;        /* [row_count], overwritten: status_before, with LMHEAD_STATUS_BAD_INDEX if the
                              index is out of range; that row is zeros */
  uint32_t row_count;
  uint32_t row_bytes;      /* a multiple of 2 */
  uint32_t status_before;  /* LMHEAD_STATUS_* */
} PackRowsParams;

/* kernels/capacity_sm80.cu: steps of a fixed shape, whose contract is compared on the device. */

/* A header (src/step.rs) as 16-bit words: their number, and the first word of each field that may differ
 * between ranks. */
enum LmheadHeader {
  LMHEAD_HEADER_HALVES = 48,
  LMHEAD_HEADER_SEQUENCE = 12, /* 4 words: the step's number */
  LMHEAD_HEADER_ROWS = 20,     /* 4 words: rows of the replica */
  LMHEAD_HEADER_INPUTS = 36    /* 4 words: the digest of what a replica's ranks share */
};

/* The state of a head's capacity steps, in device memory. */
typedef struct CapacityState {
  uint64_t sequence;       /* number of steps that have begun */
  uint64_t mismatched;     /* the first step whose headers differed, counted from 1; 0: none differed */
  uint32_t member;         /* the lowest member whose header differed from this rank's in that step */
  uint32_t bad_rows;       /* rows of this rank in the last step whose index was out of range */
  uint16_t own[LMHEAD_HEADER_HALVES];   /* this rank's header in the step that differed */
  uint16_t other[LMHEAD_HEADER_HALVES]; /* that member's */
} CapacityState;

/* Copies this rank's rows, picked by index, and pads them with rows of zeros. One block for each row. */
typedef struct PackCapacityParams {
  RowMatrix rows;
  uint8_t *out;            /* [capacity, row_bytes], aligned to 2 bytes; written faster if aligned to 16 */
  uint32_t *status;        /* [capacity] as PackRowsParams.status; 0 after the last row */
  uint64_t *digests;       /* [capacity] digests of the rows' bits; null: not wanted */
  uint32_t row_count;      /* at most capacity */
  uint32_t row_bytes;      /* a multiple of 2 */
} PackCapacityParams;

/* Counts the step and writes this rank's header. One block. */
typedef struct OpenCapacityParams {
  uint16_t header[LMHEAD_HEADER_HALVES]; /* without the step's number and, if `digests` is given, the digest */
  CapacityState *state;
  uint16_t *out;           /* [LMHEAD_HEADER_HALVES] */
  const uint64_t *digests; /* [row_count] digests of the rows; null: the header has no digest */
  const uint64_t *adjusted; /* [row_count] digests of the rows' adjustments; null: no adjustments */
  const uint32_t *status;  /* [row_count] */
  const uint32_t *inputs;  /* [input_words] other inputs that a replica's ranks share; part of the digest */
  uint32_t input_words;
  uint32_t row_count;
} OpenCapacityParams;

/* Compares the headers that arrived, and writes where the rows of all replicas are. One block. If headers
 * differ, or a replica has more rows than the capacity, every row gets an index out of range. */
typedef struct CheckCapacityParams {
  const uint16_t *own;     /* [LMHEAD_HEADER_HALVES] this rank's header */
  const uint8_t *headers;  /* [members] headers, aligned to 2 bytes */
  uint64_t header_pitch;   /* bytes from header to header */
  CapacityState *state;
  int32_t *positions;      /* [members / ranks, parts, part_rows] row numbers; -1 after the last row */
  uint32_t members;
  uint32_t ranks;          /* members of each replica; their headers are side by side */
  uint32_t me;             /* this rank's number among the members */
  uint32_t capacity;       /* rows of a replica, at most */
  uint32_t parts;          /* a replica's rows are answered in this number of parts of nearly equal size */
  uint32_t part_rows;      /* rows of the largest part if a replica has `capacity` rows */
  uint32_t first_row;      /* number of the first replica's first row */
  uint32_t replica_rows;   /* distance between the first rows of neighbouring replicas */
} CheckCapacityParams;

/* kernels/held_sm80.cu: passes over logits that a matmul stored. */

typedef struct HeldMatrix {
  const float *data;       /* [rows, ids], 16-byte aligned */
  const uint32_t *status;  /* [rows] LMHEAD_STATUS_*; null for a shard without ids */
  uint64_t pitch;          /* bytes from row to row, a multiple of 16 */
  uint32_t nonfinite;      /* LMHEAD_STATUS_* that leave a row without an answer */
  uint32_t rows;
  uint32_t ids;            /* ids of the shard */
  uint32_t first_id;       /* first vocabulary id of the shard */
} HeldMatrix;

/* Makes the partials of each part of the held rows, like those of tiles: without status. */
typedef struct SummariseHeldParams {
  HeldMatrix held;
  uint8_t *data;            /* [parts, rows] PartialRows, with ids counted from the shard's first */
  const Candidate *targets; /* [rows, target_count]: counts the ids that beat each; none for id UINT32_MAX */
  uint32_t k;               /* 1 to LMHEAD_BEST, at most part_ids */
  uint32_t sum;             /* 0: no sums */
  uint32_t target_count;    /* targets of each row */
  uint32_t part_ids;        /* ids of a part (the last may have fewer), a multiple of 64 */
} SummariseHeldParams;

/* Reads the logits of targets. */
typedef struct HeldTargetsParams {
  HeldMatrix held;
  const uint32_t *targets;  /* [rows, per_row] vocabulary ids */
  float *out;               /* [rows, per_row]; NaN for an id of another shard */
  uint32_t per_row;
} HeldTargetsParams;

/* Which logits of a row a draw or a search keeps: those above `cut`, and those equal to it with an id below
 * `ties_end`, if (logit - max) / temperature >= `least`. */
typedef struct KeptLogits {
  float max;
  float temperature;
  float least;
  float cut;
  uint32_t ties_end;        /* a vocabulary id */
  uint32_t row;             /* number of the held row */
} KeptLogits;

/* Finds the largest logit of rows. */
typedef struct HeldMaximaParams {
  HeldMatrix held;
  const uint32_t *rows;     /* [count] row numbers; null: all held rows */
  float *out;               /* [count]; minus infinity: nothing is allowed; NaN: a row without an answer */
} HeldMaximaParams;

/* A query for a histogram: of the kept logits whose order keys have the known digits, how many (or what mass)
 * have each value of the next digit. */
typedef struct HeldHistogram {
  KeptLogits kept;
  uint32_t masses;          /* 1: add masses; 0: count ids */
  uint32_t known;           /* mask of the bits above the digit; there a logit's key must equal `key` */
  uint32_t key;
  uint32_t shift;           /* number of bits below the digit */
} HeldHistogram;

typedef struct HeldHistogramsParams {
  HeldMatrix held;
  const HeldHistogram *queries; /* [count] */
  uint64_t *out;            /* [count, bins] */
  uint32_t bins;            /* 2 to 256, a power of two */
  uint32_t unit;            /* the largest mass is 2 to this power */
} HeldHistogramsParams;

/* A query for the end of ties: where the `allowance`th kept id with this logit is. */
typedef struct HeldTies {
  KeptLogits kept;
  float logit;
  uint32_t allowance;
} HeldTies;

typedef struct HeldTiesParams {
  HeldMatrix held;
  const HeldTies *queries;  /* [count] */
  uint32_t *out;            /* [count] that id plus 1; 0 if the allowance is 0 or there are fewer ids */
} HeldTiesParams;

/* HeldWanted.filtered of a row with bad input: its candidate is infinity, which no draw accepts. */
enum LmheadDamaged { LMHEAD_DAMAGED = 2 };

/* A query for candidates of a row: the k best, or the one that is drawn. */
typedef struct HeldWanted {
  KeptLogits kept;          /* kept logits, for a draw with filters */
  uint32_t filtered;        /* 1: a draw with filters; 0: without; or LMHEAD_DAMAGED */
  uint32_t k;               /* 0: draw one */
  uint64_t seed;
  uint64_t position;
  uint64_t place;           /* index in `out` of the first candidate */
} HeldWanted;

typedef struct HeldCandidatesParams {
  HeldMatrix held;
  const HeldWanted *queries; /* [count] */
  Candidate *out;           /* minus infinity in unused places; for a row without an answer, first a NaN */
} HeldCandidatesParams;

/* kernels/cuts_sm80.cu: finds where filters cut held rows whose sampling parameters only the device has. */

/* What a row's owner has found for one shard: the order key of the last kept logit, as many digits as are
 * known. After the last digit also how many of the shard's ids with this logit are kept, the lowest first. */
typedef struct CutFound {
  uint32_t key;
  uint32_t allowance;       /* UINT32_MAX: the row got messages that no shard can have sent */
} CutFound;

/* State of the searches of all held rows, which kernels hand on from one to the next. One thread for each
 * row. */
typedef struct CutRowsParams {
  const SamplingRow *sampling; /* [rows] */
  const uint32_t *status;   /* [rows] of the held logits */
  const float *maxima;      /* [shards, rows] largest logit of each shard and row */
  const CutFound *found;    /* [rows] */
  const uint32_t *ends;     /* [rows] what HeldTiesParams.out has */
  SamplingRow *bare;        /* [rows] parameters without filters, because the shards apply the filters */
  HeldWanted *wanted;       /* [rows] what is kept so far, and the draw */
  HeldHistogram *histograms; /* [rows] */
  HeldTies *ties;           /* [rows] */
  uint32_t rows;
  uint32_t vocab;           /* ids of all shards */
  uint32_t shards;
  uint32_t ids;             /* ids of this rank's shard */
  uint32_t masses;          /* 1: search for the end of the nucleus; 0: for the last of top_k */
  uint32_t known;           /* HeldHistogram.known and shift of the next digit */
  uint32_t shift;
  uint32_t reserved;        /* 0 */
} CutRowsParams;

/* The search of a row, as its owner keeps it. */
typedef struct CutSearch {
  uint64_t left;            /* how much of the goal is left among logits with the known digits */
  uint32_t key;             /* the known digits */
  uint32_t damaged;         /* 1: a message that no shard can have sent */
} CutSearch;

/* Finds the next digit of the rows that this rank owns from the histograms of all shards. One block for each
 * row. */
typedef struct LearnCutsParams {
  const uint64_t *histograms; /* [shards, count, bins] */
  const SamplingRow *sampling; /* [count] */
  const HeldWanted *wanted; /* [count] */
  CutSearch *searches;      /* [count]; the first digit overwrites it */
  CutFound *found;          /* [shards, count] */
  uint32_t count;           /* rows */
  uint32_t vocab;           /* ids of all shards */
  uint32_t shards;
  uint32_t bins;            /* 2 to 256 */
  uint32_t masses;          /* as in CutRowsParams */
  uint32_t known;           /* HeldHistogram.known and shift of this digit */
  uint32_t shift;
  uint32_t reserved;        /* 0 */
} LearnCutsParams;

/* kernels/select_sm80.cu: the best k of held rows, best first, for any k. */

/* Bits of one digit of the keys that the selection looks at, and how many keys are sorted at once. */
enum LmheadSelect { LMHEAD_SELECT_DIGIT = 11, LMHEAD_SELECT_CHUNK = 2048 };

/* What is known of a query's k-th largest key. */
typedef struct SelectState {
  uint64_t least;           /* its known digits, followed by zeros */
  uint32_t wanted;          /* keys with these digits that are still wanted */
  uint32_t known;           /* 1: all keys with these digits are wanted, so every key >= `least` is */
} SelectState;

typedef struct SelectParams {
  HeldMatrix held;
  const HeldWanted *queries; /* [count], each with k > 0; null: the k best of each held row */
  uint8_t *out;             /* Candidates for `queries`; PartialRows for held rows, with candidates set */
  uint64_t out_pitch;       /* for held rows: bytes from row to row of `out` */
  uint32_t *bins;           /* [rounds, count, 2^LMHEAD_SELECT_DIGIT], zeros before the launch */
  SelectState *states;      /* [rounds, count] */
  uint32_t *found;          /* [count] number of keys in `keys`; zeros before the launch */
  uint64_t *keys;           /* [count, k] */
  uint32_t count;           /* queries, or held rows */
  uint32_t k;               /* at most held.ids; for `queries`: the smaller of the largest k and held.ids */
  uint32_t part_ids;        /* ids of a part of a row, a multiple of 64 */
  uint32_t id_bits;         /* bits of the largest id, counted from the shard's first */
  uint32_t rounds;          /* digits of a key; 0 if all ids are wanted */
  uint32_t round;
} SelectParams;

/* kernels/inputs_sm80.cu: inputs of rows that are in device memory. An illegal value leaves its row without
 * an answer: LMHEAD_STATUS_BAD_INDEX is or'ed into the row's word of `status`. */

/* Writes targets as ranks exchange them. One thread for each. */
typedef struct EncodeTargetsParams {
  const int64_t *ids;      /* [count], per_row for each row; -100: no target */
  uint32_t *out;           /* [count]; UINT32_MAX: no target, or an id outside the vocabulary */
  uint32_t *status;        /* [rows] */
  uint64_t count;
  uint32_t per_row;
  uint32_t vocab;
} EncodeTargetsParams;

/* Joins targets with their logits, each from the shard that has the id. One thread for each. */
typedef struct PickTargetsParams {
  const uint32_t *targets; /* [count] */
  const float *logits;     /* [shards, count] */
  Candidate *out;          /* [count]; NaN and UINT32_MAX without a target */
  uint64_t count;
  uint32_t vocab;          /* ids of all shards */
  uint32_t shards;         /* shards as PartialParts has them if part_ids is 0 */
} PickTargetsParams;

/* into[row] |= from[row]. */
typedef struct OrStatusParams {
  const uint32_t *from;    /* [rows] */
  uint32_t *into;          /* [rows] */
  uint32_t rows;
  uint32_t reserved;       /* 0 */
} OrStatusParams;

/* Makes SamplingRows from arrays [rows]. For a null array every row has the value that stands first in its
 * comment. A row with an illegal value becomes greedy. */
typedef struct SamplingRowsParams {
  const uint64_t *seeds;     /* 0 */
  const int64_t *positions;  /* 0; not negative */
  const float *temperatures; /* 1; finite, not negative */
  const int32_t *top_k;      /* 0; not negative */
  const float *top_p;        /* 1; above 0 and at most 1 */
  const float *min_p;        /* 0; from 0 to 1 */
  SamplingRow *out;          /* [rows] */
  uint32_t *status;          /* [rows] */
  uint32_t rows;
  uint32_t vocab;            /* a top_k of at least this becomes 0: keep all */
  uint32_t unfiltered;       /* 1: a filter is illegal, unless the row is greedy */
  uint32_t reserved;         /* 0 */
} SamplingRowsParams;

/* What a row's message to a shard contains, in this order. A shard without ids gets nothing.
 *   masks: a bit for each id, in an even number of words
 *   logit_bias: this number of places for {id in the shard, f32}, ascending by id; unused places have the id
 *   UINT32_MAX
 *   counts: repetition, frequency, presence, 0; then this number of places for {id in the shard, 2·count + in
 *   the prompt} */
typedef struct AdjustmentPlaces {
  uint32_t masks;          /* 1: the message has a mask */
  uint32_t logit_bias;     /* places of a row; 0: no logit bias */
  uint32_t counts;         /* places of a row; 0: no penalties */
  uint32_t reserved;       /* 0 */
} AdjustmentPlaces;

/* Writes the messages with the adjustments of this rank's rows to some shards: [destinations][parts]
 * [part_rows]. The rows are divided into `parts` parts of nearly equal size, each with room for `part_rows`
 * rows. In unused places all ids are allowed and there are no entries. One block for each row and shard.
 *
 * For digest_adjustments `out` is [rows] digests of 64 bits, and there is one block for each row. */
typedef struct PackAdjustmentsParams {
  const uint32_t *allowed;           /* [rows, ceil(vocab / 32)], may be null: all ids are allowed */
  /* [rows + 1], may be null: no logit bias; row i has the entries offsets[i]..offsets[i + 1] */
  const int64_t *logit_bias_offsets;
  /* [logit_bias_entries], in any order, ascending is fastest; entries of the same id keep their order */
  const int64_t *logit_bias_ids;
  const float *logit_bias_values;    /* [logit_bias_entries]; finite, or minus infinity */
  const int64_t *count_offsets;      /* [rows + 1], may be null: no counts */
  const int64_t *count_ids;          /* [count_entries], each id once in a row; ascending is fastest */
  const uint32_t *counts;            /* [count_entries], below 2^31 */
  const uint8_t *in_prompt;          /* [count_entries], 0 or 1 */
  const float *repetition;           /* [rows], may be null: 1; above 0 and finite */
  const float *frequency;            /* [rows], may be null: 0; finite */
  const float *presence;             /* [rows], may be null: 0; finite */
  uint64_t logit_bias_entries;
  uint64_t count_entries;
  uint8_t *out;                      /* aligned to 8 */
  uint32_t *status;                  /* [rows] */
  AdjustmentPlaces places;           /* more entries than places are illegal */
  uint32_t rows;                     /* this rank's rows */
  uint32_t parts;
  uint32_t part_rows;
  uint32_t vocab;                    /* ids of all shards */
  uint32_t shards;                   /* shards as PartialParts has them if part_ids is 0 */
  uint32_t first_shard;              /* destination j is shard first_shard + j·shard_step */
  uint32_t shard_step;
  uint32_t reserved;                 /* 0 */
} PackAdjustmentsParams;

/* Makes LogitAdjustments from the messages to one shard. The masks are used where they are. One block for
 * each row. */
typedef struct UnpackAdjustmentsParams {
  const uint8_t *data;          /* [rows] messages, aligned to 8 */
  uint32_t *logit_bias_offsets; /* [rows + 1] */
  uint32_t *logit_bias_ids;     /* [rows, places.logit_bias] */
  float *logit_bias_values;     /* [rows, places.logit_bias] */
  uint32_t *count_offsets;      /* [rows + 1] */
  uint32_t *count_ids;          /* [rows, places.counts] */
  uint32_t *counts;             /* [rows, places.counts] */
  float *repetition;            /* [rows] */
  float *frequency;             /* [rows] */
  float *presence;              /* [rows] */
  AdjustmentPlaces places;
  uint32_t rows;
  uint32_t ids;                 /* ids of the shard */
} UnpackAdjustmentsParams;

/* kernels/set_words_sm80.cu: sets words of memory at the beginning of a step. */

/* `count` words that get the same value. */
typedef struct WordsToSet {
  uint8_t *to;      /* aligned to 4; may be null if count is 0 */
  uint64_t pitch;   /* bytes from word to word, a multiple of 4 */
  uint64_t count;
  uint32_t value;
} WordsToSet;
typedef struct SetWordsParams {
  WordsToSet words[2];
} SetWordsParams;

/* kernels/exchange_peers_sm80.cu: a collective by stores into the peers' windows. */
enum LmheadPeers {
  LMHEAD_MAX_PEERS = 64,       /* members of a group */
  LMHEAD_PEER_LANES = 8,       /* between two members, in each direction */
  LMHEAD_PEER_SLOTS = 2,       /* slots of a lane: one is filled while the other is emptied */
  LMHEAD_PEER_SLOT_BYTES = 32768,
  LMHEAD_PEER_THREADS = 64     /* most threads of a block */
};

/* What a peer says of one lane; it alone stores here. Lines of 128 bytes do not disturb each other. */
typedef struct PeerFlags {
  uint32_t arrived;        /* chunks that it has stored into this window's slots, modulo 2^32 */
  uint32_t taken;          /* chunks that it has copied from the slots of its own window */
  uint32_t lengths[LMHEAD_PEER_SLOTS]; /* of the piece whose chunk is in the slot, modulo 2^32 */
  uint32_t unused[28];
} PeerFlags;

/* A member's window: PeerFlags [size, LMHEAD_PEER_LANES], then slots [size, LMHEAD_PEER_LANES,
 * LMHEAD_PEER_SLOTS, slot_bytes]; `size` counts the peers whose lanes they are. Zeros at first. */

/* How many chunks a lane has passed on, modulo 2^32: in the rank's own memory, zeros at first. */
typedef struct PeerCounts {
  uint32_t pushed;
  uint32_t taken;
} PeerCounts;

/* In the host's pinned memory; zeros at first. */
typedef struct PeerStatus {
  uint32_t ended;          /* not 0: no kernel waits any longer. The host sets it, or a kernel giving up */
  uint32_t missing;        /* 1 + the member for which a kernel has waited in vain; 0: none */
  uint32_t mismatched;     /* 1 + the member whose piece has another length than is wanted; 0: none */
  uint32_t wanted;         /* the two lengths, modulo 2^32 */
  uint32_t got;
} PeerStatus;

typedef struct PeerPieces {
  const uint8_t *send;     /* [send_bytes] */
  uint8_t *recv;           /* [recv_bytes]; if the member is the rank itself, `send` is copied here */
  uint64_t send_bytes;     /* as the member's recv_bytes for this rank */
  uint64_t recv_bytes;
  uint8_t *window;         /* the member's, as this rank reaches it; aligned to 128 bytes */
} PeerPieces;

/* Blocks: [pushes, takes][size][lanes]. */
typedef struct ExchangePeersParams {
  PeerPieces members[LMHEAD_MAX_PEERS];
  PeerCounts *counts;      /* [size, LMHEAD_PEER_LANES] */
  PeerStatus *status;
  uint32_t *cut;           /* in this rank's own memory, 0 at first. Not 0: an exchange was given up, and
                              kernels push nothing more: it may be made of what did not arrive */
  uint64_t timeout_ns;     /* longest wait of a kernel */
  uint32_t slot_bytes;     /* a multiple of 128, the same on all members: pieces are cut into chunks of this
                              size */
  uint32_t size;           /* members */
  uint32_t me;
  uint32_t lanes;          /* lanes 0 to lanes - 1 are used: LMHEAD_PEER_LANES, or one for each chunk of the
                              longest piece if it has fewer */
} ExchangePeersParams;

/* kernels/quantize_rows_sm80.cu: picks rows by index and quantises each to int8 with one scale. */
typedef struct QuantizeRowsParams {
  RowMatrix rows;
  int8_t *out;         /* [row_count, hidden], 16-byte aligned */
  uint64_t out_pitch;  /* bytes from row to row, a multiple of 16; bytes after `hidden` are set to 0 */
  float *scales;       /* [row_count] */
  uint32_t *status;    /* [row_count], overwritten: status_before, with LMHEAD_STATUS_BAD_INDEX if the index
                          is out of range */
  uint32_t *bars;      /* [row_count] TilePartials.bars, set to 0; may be null */
  uint32_t row_count;
  uint32_t hidden;
  uint32_t status_before;  /* LMHEAD_STATUS_ALLOWED if there are no adjustments, else 0 */
} QuantizeRowsParams;

/* kernels/read_stream_sm80.cu: reads an array. */
typedef struct ReadStreamParams {
  const void *data;   /* [vectors] of 16 bytes, 16-byte aligned */
  uint64_t vectors;
  uint32_t *out;      /* [1]: the sum of all 32-bit words is added to it, modulo 2^32 */
} ReadStreamParams;

/* kernels/read_bulk_sm90a.cu: the same by bulk copies of 32 KB into a ring in shared memory, as matmuls with
 * TMA read their weights. */
typedef struct ReadBulkParams {
  const void *data;   /* [bytes], 16-byte aligned */
  uint64_t bytes;     /* a multiple of 16 */
  uint32_t *out;      /* [1]: as above */
  uint32_t run;       /* consecutive copies of a block, before it skips the other blocks' runs; at least 1 */
} ReadBulkParams;

/* The same for a row-major matrix, by boxes of 64 or 128 rows x 128 bytes. 32 KB of neighbouring boxes are
 * read at once. */
typedef struct ReadBoxesParams {
  TensorMap matrix;       /* boxes of box_rows x 128 bytes, 128-byte swizzle */
  uint32_t *out;          /* [1]: as above */
  uint32_t rows;          /* rows of the matrix */
  uint32_t columns;       /* columns of 128 bytes of a row; the last may be narrower */
  uint32_t box_rows;      /* 64 or 128 */
  uint32_t element_bytes; /* size of the map's elements */
} ReadBoxesParams;

/* kernels/check: makes operands and compares results on the device, for tests and benches. */

/* What an array is filled with: functions of seed and index (kernels/check/values.cuh). */
enum LmheadFill {
  LMHEAD_FILL_BYTES = 0,    /* every byte is the lowest byte of the seed */
  LMHEAD_FILL_I8 = 1,       /* any int8 */
  LMHEAD_FILL_BF16 = 2,     /* both signs, magnitudes from 2^-8 to 1 */
  LMHEAD_FILL_F16 = 3,
  LMHEAD_FILL_F32 = 4,
  LMHEAD_FILL_E4M3 = 5,     /* any magnitude below 2, with subnormal numbers and both zeros */
  LMHEAD_FILL_SMALL_I8 = 6, /* integers from -8 to 7 */
  LMHEAD_FILL_SMALL_BF16 = 7,
  LMHEAD_FILL_SMALL_F16 = 8,
  LMHEAD_FILL_SMALL_F32 = 9,
  LMHEAD_FILL_SMALL_E4M3 = 10
};

/* kernels/check/fill_sm80.cu. */
typedef struct FillParams {
  void *out;           /* [vectors] of 16 bytes, 16-byte aligned */
  uint64_t vectors;
  uint64_t first;      /* if `out` is part of a larger array: number of vectors before it */
  uint64_t seed;
  /* For small integers: elements of a row, whose first one becomes 127; below 2^32. 0: no such element, as
   * for E4M3 */
  uint32_t row;
  uint32_t kind;       /* LMHEAD_FILL_* */
} FillParams;

/* One element with wrong bits. */
typedef struct Mismatch {
  uint32_t row;
  uint32_t column;
  uint32_t want;       /* bits */
  uint32_t got;
} Mismatch;

/* How many mismatches are kept. */
enum LmheadMismatches { LMHEAD_MISMATCHES = 8 };

typedef struct Mismatches {
  uint64_t count;      /* all mismatches */
  uint32_t noted;      /* how many asked for a place in `some`; may exceed LMHEAD_MISMATCHES */
  uint32_t reserved;   /* 0 */
  Mismatch some[LMHEAD_MISMATCHES];
} Mismatches;

/* kernels/check/compare_sm80.cu: counts the elements of a matrix whose bits differ from those of another. */
typedef struct CompareParams {
  const void *want;    /* [rows, columns] of want_dtype; null: poison, which has every bit set */
  const void *got;     /* [rows, columns] of dtype; poison is a mismatch unless it is wanted */
  uint64_t want_pitch; /* bytes from row to row */
  uint64_t got_pitch;
  uint32_t rows;
  uint32_t columns;    /* at least 1 */
  uint32_t want_dtype; /* LMHEAD_DTYPE_*: the same as `dtype`, or f32, which is first rounded to `dtype` */
  uint32_t dtype;
  Mismatches *found;   /* [1], zeros before the launch */
} CompareParams;

/* kernels/check/project_sm80.cu: checks a matmul of integers by a random sum of its columns. */

/* projection[k] += sum over ids of r(id)·scale(id)·weights[id, k], modulo 2^64; all are integers. */
typedef struct ProjectWeightsParams {
  WeightMatrix weights; /* scales: integers, may be null; the bias is ignored */
  uint64_t *projection; /* [hidden], zeros before the launch */
  uint64_t seed;        /* seed of r */
  uint32_t kind;        /* LMHEAD_FILL_SMALL_I8, _E4M3, _BF16 or _F16: the weights' type */
  uint32_t vocab;
  uint32_t hidden;
} ProjectWeightsParams;

/* difference[row] += sum over k of rows[row, k]·projection[k] - sum over ids of r(id)·logits[row, id], modulo
 * 2^64. It is 0 if the row is right. A logit that is no integer adds a random number. */
typedef struct ProjectRowsParams {
  RowMatrix rows;
  const uint64_t *projection; /* [hidden] */
  const float *logits;        /* [row_count, vocab] */
  uint64_t pitch;             /* bytes from row to row of logits */
  uint64_t *difference;       /* [row_count], zeros before the launch */
  uint64_t seed;
  uint32_t kind;              /* LMHEAD_FILL_SMALL_BF16, _F16 or _F32: the rows' type */
  uint32_t row_count;
  uint32_t vocab;
  uint32_t hidden;
  uint32_t parts;             /* blocks of a row */
} ProjectRowsParams;

/* Sums of exponentials, masses and noise (kernels/answers): constants as bits, shared by host and device.
 *
 * e^x for finite |x| <= LMHEAD_EXP_LIMIT, in f32 operations that are each rounded on their own:
 *   t = fma(x, LOG2E, SHIFT);  n = t - SHIFT                  n = round(x / ln 2), an integer in t's low bits
 *   r = fma(-n, LN2_LO, fma(-n, LN2_HI, x))                   ln 2 in two parts, after Cody and Waite
 *   p = 1 + r*(1 + r*(C2 + r*(C3 + r*(C4 + r*(C5 + r*C6)))))  Horner's rule in fma
 *   e^x = p * 2^n, with a relative error of at most 1e-7
 * C2 to C6 are a minimax fit of e^r on |r| <= 0.42 (ln(2)/2, and what LOG2E's rounding adds at the limit),
 * with c0 = c1 = 1 and an error of 1.2e-8. Each was rounded to f32 before the next was fitted. */
#define LMHEAD_EXP_LOG2E 0x3fb8aa3bu
#define LMHEAD_EXP_SHIFT 0x4b400000u  /* 1.5 * 2^23: adding it rounds to an integer */
#define LMHEAD_EXP_LN2_HI 0x3f317218u
#define LMHEAD_EXP_LN2_LO 0xb102e308u /* negative */
#define LMHEAD_EXP_C2 0x3efffff9u
#define LMHEAD_EXP_C3 0x3e2aa9d9u
#define LMHEAD_EXP_C4 0x3d2aae94u
#define LMHEAD_EXP_C5 0x3c0961e3u
#define LMHEAD_EXP_C6 0x3ab49ae8u
#define LMHEAD_EXP_LIMIT 0x4a000000u  /* 2^21: a logit of a larger magnitude has no term */

/* The logarithm of a sum, in f64: ln 2 in two parts, as FreeBSD's e_log.c has it. The first part ends in
 * 21 zero bits, so that its product with an exponent is exact. */
#define LMHEAD_LN2_HI64 0x3fe62e42fee00000u
#define LMHEAD_LN2_LO64 0x3dea39ef35793c76u
/* 2^20, as f32: if the row's largest logit has a larger magnitude, the logarithm is that logit. */
#define LMHEAD_LSE_LIMIT 0x49800000u

#endif
