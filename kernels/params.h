/* The structs that cross from host to device, one per kernel: plain C, the only input of bindgen.
 *
 * Pointers are device addresses. Sizes are counts of elements unless a name says bytes. */
#ifndef LMHEAD_PARAMS_H
#define LMHEAD_PARAMS_H

#include <stdint.h>

/* How TMA reads or writes a matrix; opaque. The driver encodes it (a CUtensorMap), the emulated device has
 * its own. */
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
  const int32_t *indices;    /* [row_count] into rows; one out of range is a row of zeros */
  float *out;                /* [row_count, vocab] */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t source_rows;
  uint32_t hidden;
} GatherMicrokernelParams;

/* The matmul kernels: logits[row, id] = epilogue(sum over k of rows[row, k]·weights[id, k]), for a shard of
 * `vocab` ids. Addresses that may be null say so; a null one means "none". */

/* What a kernel says of a row, or'ed into its status word. */
enum LmheadStatus {
  /* a logit, as it is delivered, is NaN or infinite; minus infinity from an adjustment is legal */
  LMHEAD_STATUS_NONFINITE = 1,
  LMHEAD_STATUS_ALLOWED = 2,     /* a logit is above minus infinity */
  LMHEAD_STATUS_BAD_INDEX = 4,   /* the row's index is not a row: it was taken for a row of zeros */
  LMHEAD_STATUS_ADJUSTED = 8     /* a logit is NaN or infinite by adjustments alone, where both are kept */
};

/* Types of logits, and of the rows that are quantised. */
enum LmheadDtype { LMHEAD_DTYPE_F32 = 0, LMHEAD_DTYPE_F16 = 1, LMHEAD_DTYPE_BF16 = 2 };

/* Row behind row; or packed, for wgmma_matmul: [blocks of 64 ids][pitch / 128 columns of 128 bytes of k][64
 * ids][128 bytes], each 64 x 128 bytes swizzled as in shared memory (kernels/swizzle.cuh). There is an even
 * number of blocks; ids behind the last are copies of it, and bytes behind the end of k are zeros. */
typedef struct WeightMatrix {
  const void *data;    /* [vocab, hidden], 16-byte aligned */
  /* bytes from row to row, a multiple of 16; packed: of a row's columns, a multiple of 128 */
  uint64_t pitch;
  const float *scales; /* [vocab]; of int8 weights */
  const float *bias;   /* [vocab], may be null */
  uint32_t packed;     /* 1: packed; 0: row behind row */
} WeightMatrix;

typedef struct RowMatrix {
  const void *data;       /* [source_rows, hidden], aligned to its elements; to 16 bytes it is read faster */
  uint64_t pitch;         /* bytes from row to row, a multiple of an element */
  const void *indices;    /* [row_count] numbers of rows, int32 or int64; may be null: row i is row i */
  uint32_t index_bytes;   /* 4 or 8 */
  uint32_t source_rows;
} RowMatrix;

typedef struct LogitMatrix {
  void *data;         /* [row_count, vocab], aligned to its elements; to 16 bytes it is written faster */
  /* bytes from row to row, a multiple of an element: a shard writes its columns of a wider row */
  uint64_t pitch;
  /* [row_count] LMHEAD_STATUS_*, or'ed: before, LMHEAD_STATUS_ALLOWED without adjustments, else 0 */
  uint32_t *status;
  uint32_t dtype;     /* LMHEAD_DTYPE_* */
} LogitMatrix;

/* What is done to the logits after bias, softcap and scale, in this order. Ids are the shard's own, from
 * 0. */
typedef struct LogitAdjustments {
  /* [row_count + 1], may be null: row i has entries offsets[i]..offsets[i + 1] */
  const uint32_t *logit_bias_offsets;
  const uint32_t *logit_bias_ids;     /* [entries], ascending within a row; equal ones are added in order */
  const float *logit_bias_values;     /* [entries] */
  const uint32_t *count_offsets;      /* [row_count + 1], may be null: no penalties */
  const uint32_t *count_ids;          /* [entries], ascending within a row, each once */
  const uint32_t *counts;             /* [entries]: 2·(times in the output) + (in the prompt) */
  const float *repetition;            /* [row_count] */
  const float *frequency;             /* [row_count] */
  const float *presence;              /* [row_count] */
  /* [row_count, allowed_pitch] words, may be null: bit id % 32 of word id / 32 */
  const uint32_t *allowed;
  uint64_t allowed_pitch;             /* words from row to row */
  const float *temperatures;          /* [row_count], may be null: divides the row's logits, unless it is 0 */
} LogitAdjustments;

/* A vocabulary id and its f32 logit. */
typedef struct Candidate {
  float value;
  uint32_t id;
} Candidate;

/* What a shard knows of one row, in flat bytes that kernels write, ranks exchange and the host merges. In a
 * matrix of them a row is this struct, then `k` places for Candidates, then `targets` counts (uint32_t) of
 * ids that beat a target, and zeros up to a multiple of 8 bytes. A part of fewer than k ids has a place for
 * each. Candidates of a shard come to kernels with the best first; those of tiles, and those that the host
 * merges, in any order. */
typedef struct PartialRow {
  uint64_t digits[3];   /* sum of exponentials: digits top - 2, top - 1 and top, none carried into the next */
  int32_t top;          /* the highest digit; INT32_MIN where no logit has a term, or no sum was asked for */
  uint32_t status;      /* LMHEAD_STATUS_* */
  uint32_t candidates;  /* places that are taken; what is in the others is nobody's */
  uint32_t none;        /* 0 */
} PartialRow;

/* The most candidates of a row that kernels find. */
enum LmheadBest { LMHEAD_BEST = 64 };

/* How one row is sampled. A row with a parameter that may not be is one of bad input. */
typedef struct SamplingRow {
  uint64_t seed;
  uint64_t position;
  float temperature;       /* 0: the largest logit; else finite and above 0 */
  uint32_t top_k;          /* only the k largest; 0, or the size of the vocabulary and above: all */
  float top_p;             /* only the smallest set with this mass, above 0 and at most 1 */
  float min_p;             /* only ids at least this probable relative to the best, 0 to 1 */
} SamplingRow;

/* What a product leaves of each tile of ids instead of logits: PartialRows without status, [row_count] of
 * each tile, tile behind tile. Candidates of a tile that others were seen to beat are left out. */
typedef struct TilePartials {
  uint8_t *data;        /* aligned to 8; null: logits are stored */
  uint32_t *bars;       /* [row_count] zeros before: a row's k-th best logit is known to be no smaller, in
                           the order of answers::ordered; or the score of the id that is drawn */
  const SamplingRow *draws; /* [row_count], may be null: of each row and tile there is one Candidate instead,
                           [row_count, tiles], the id of the vocabulary that is drawn of the tile's without
                           any filter; minus infinity where another tile's was seen to win */
  const Candidate *targets; /* [row_count, target_count], ids of the vocabulary: each tile counts its ids that
                           beat it; of id UINT32_MAX none */
  uint32_t k;           /* 1 to LMHEAD_BEST */
  uint32_t sum;         /* 0: no sums */
  uint32_t first_id;    /* of the shard, of draws and targets */
  uint32_t target_count; /* of a row; 0: none */
} TilePartials;

/* Fewest and most stages of k in shared memory: of a ring that cp.async fills, and of wgmma_matmul's, which
 * no device has room for more of. */
enum LmheadStages {
  LMHEAD_MIN_STAGES = 3,
  LMHEAD_MAX_STAGES = 16,
  LMHEAD_WGMMA_MIN_STAGES = 2,
  LMHEAD_WGMMA_MAX_STAGES = 16
};

typedef struct MatmulParams {
  WeightMatrix weights;
  RowMatrix rows;          /* address and pitch are multiples of 16 */
  const float *row_scales; /* [row_count]; of quantised rows */
  LogitMatrix logits;      /* of partials the status alone */
  LogitAdjustments adjustments;
  float *raw;              /* [row_count, vocab] at logits.pitch: f32 logits without adjustments, besides;
                              may be null */
  TilePartials partials;
  float softcap;      /* final_logit_softcapping; 0 is none */
  float scale;        /* multiplies the logit after the softcap */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t hidden;
  uint32_t stages;    /* within LmheadStages; the launch has room for them */
  uint32_t whole_tiles; /* of wgmma_matmul, if tail_ids is not 0: so many tiles have all of their ids, and
                         those behind them tail_ids. All rows are then in one tile */
  uint32_t tail_ids;  /* a multiple of 8, fewer than a tile has */
} MatmulParams;

/* kernels/target_logits_sm80.cu: the logits of single ids of each row, with the product's bits, and before
 * it: what its tiles compare their own with. */
typedef struct TargetLogitsParams {
  /* of it neither logits, raw nor partials are used; stages are LMHEAD_TARGET_STAGES */
  MatmulParams product;
  const uint32_t *targets; /* [row_count, per_row] ids of the vocabulary */
  float *out;              /* [row_count, per_row]; NaN where the id is not the shard's */
  uint32_t per_row;        /* at least 1 */
  uint32_t first_id;       /* of the shard */
} TargetLogitsParams;

/* A block's rows, targets of each of them, and stages of k. */
enum LmheadTargetTile { LMHEAD_TARGET_ROWS = 8, LMHEAD_TARGETS = 8, LMHEAD_TARGET_STAGES = 4 };

/* kernels/stage_rows_sm90a.cu: rows picked by index, as wgmma_matmul copies them to shared memory. A block a
 * row, those that fill the last tile included. */
typedef struct StageRowsParams {
  RowMatrix rows;
  uint8_t *out;            /* [tiles of block_m rows][columns of 128 bytes of k][block_m][128 bytes],
                              aligned to 16, each block_m x 128 bytes swizzled; zeros behind the last row
                              and the end of k. For 8-bit weights and 16-bit rows an even number of columns,
                              and of each 16 elements first 0, 1, 4, 5, 8, 9, 12, 13, then the others */
  float *scales;           /* [row_count]; of rows that are quantised */
  uint32_t *status;        /* [row_count] is stored: status_before and what is found */
  uint32_t *bars;          /* [row_count] zeros are stored; may be null */
  uint32_t row_count;
  uint32_t hidden;
  uint32_t block_m;        /* a multiple of 8 */
  uint32_t status_before;  /* LMHEAD_STATUS_* */
} StageRowsParams;

/* kernels/partials_sm80.cu: what parts of a vocabulary know of rows is joined, a block a row. */

/* PartialRows of all parts: `gap` bytes and [rows] of each part, part behind part, as long as parts have
 * ids; but each part begins as if all before it had k places. */
typedef struct PartialParts {
  const uint8_t *data;     /* aligned to 8 */
  const uint32_t *status;  /* [rows] LMHEAD_STATUS_* that are known besides, may be null */
  uint64_t gap;            /* a multiple of 8 */
  uint32_t nonfinite;      /* LMHEAD_STATUS_* that leave a row without an answer */
  uint32_t rows;
  uint32_t k;              /* 1 to LMHEAD_BEST; of kernels/lists_sm80.cu any */
  uint32_t targets;
  uint32_t vocab;
  uint32_t parts;          /* with ids */
  uint32_t part_ids;       /* of each part but the last; 0: whole blocks of 64, spread over shards evenly */
  uint32_t whole_parts;    /* where part_ids is not 0: parts behind so many have tail_ids instead */
  uint32_t tail_ids;
  uint32_t shards;         /* where part_ids is 0: parts, those without ids included */
} PartialParts;

/* All parts become one. */
typedef struct MergePartialsParams {
  PartialParts from;
  uint8_t *out;            /* [rows] PartialRows of all ids, aligned to 8 */
  uint32_t first_id;       /* added to ids */
  uint32_t places;         /* of a row of `out`; those from from.k on are left as they are */
} MergePartialsParams;

/* Answers. A message that no shard can have sent makes status 3. */
typedef struct FinishParams {
  PartialParts from;
  int64_t *ids;            /* [rows, k]; -1 where there is none */
  float *values;           /* [rows, k], best first, minus infinity where there is none; null: not wanted */
  float *logsumexp;        /* [rows], beside values */
  uint8_t *row_status;     /* [rows] 0 good, 1 not finite, 2 nothing allowed, 3 bad input */
} FinishParams;

/* Logprobs. */
typedef struct FinishLogprobsParams {
  PartialParts from;
  const Candidate *targets; /* [rows, from.targets]; of id UINT32_MAX is none */
  float *logprobs;          /* [rows, from.targets] of the targets; NaN where there is none */
  int64_t *ranks;           /* beside them, from 1; -1 where there is none */
  int64_t *top_ids;         /* [rows, top_n] as FinishParams.ids */
  float *top_logprobs;      /* [rows, top_n] */
  uint8_t *row_status;      /* [rows] as FinishParams */
  uint32_t top_n;           /* 0 to from.k */
  uint32_t drawn;           /* 1: rows whose status is not 0 already stay so */
} FinishLogprobsParams;

/* kernels/lists_sm80.cu: the same answers from sorted lists of any length, the best first, that shards sent.
 * What FinishParams and FinishLogprobsParams say comes first, but for the best; then these are put in their
 * places, by several blocks a row. */
typedef struct PlaceListsParams {
  PartialParts from;
  const uint8_t *row_status; /* [rows] */
  int64_t *ids;             /* [rows, n] as FinishParams */
  float *values;            /* [rows, n]: logits, or logprobs */
  uint32_t n;
  uint32_t blocks;          /* of a row: a multiple of from.parts */
  uint32_t logprobs;
} PlaceListsParams;

/* Up to this top_k the candidates themselves are exchanged; above it the k-th largest is searched for. */
enum LmheadListed { LMHEAD_LISTED = 1024 };

/* kernels/draws_sm80.cu: a block a row. */

/* What a product's tiles have drawn becomes the shard's candidate of each row. */
typedef struct MergeDrawsParams {
  const Candidate *candidates; /* [rows, tiles] */
  const uint32_t *status;      /* [rows] LMHEAD_STATUS_*; null: 0 */
  const SamplingRow *sampling; /* [rows] */
  Candidate *out;              /* [rows]; minus infinity where nothing is allowed, NaN of a row without an
                                  answer, infinity of one whose parameters ask for more than one candidate */
  uint32_t nonfinite;          /* LMHEAD_STATUS_* that leave a row without an answer */
  uint32_t tiles;
  uint32_t vocab;              /* of all shards */
} MergeDrawsParams;

/* Candidates of all shards become one drawn id a row. Of each shard, shard behind shard, and row there are as
 * many places as `places` says; 0: as many as the row's parameters ask of so many ids, one or top_k. */
typedef struct FinishDrawParams {
  const Candidate *candidates; /* of each row and shard in any order; minus infinity where there is none */
  uint64_t count;              /* places in all: a row that would have some behind them is bad input */
  const uint32_t *status;      /* [rows] LMHEAD_STATUS_* that are known besides, may be null */
  const SamplingRow *sampling; /* [rows] */
  int64_t *ids;                /* [rows]; -1 where there is none */
  uint32_t *tokens;            /* [rows] the same; UINT32_MAX where there is none; may be null */
  uint8_t *row_status;         /* [rows] as FinishParams */
  uint32_t rows;
  uint32_t vocab;
  uint32_t shards;             /* as PartialParts.part_ids = 0 */
  uint32_t places;
} FinishDrawParams;

/* Rows of whole logits, from the shards' messages, and their status. Without shards: the status alone. */
typedef struct FinishLogitsParams {
  const uint8_t *data;     /* of each shard `gap` bytes, then [rows] of its logits and a status word, in the
                              last 4 of as many bytes as are a multiple of 16 */
  const uint32_t *words;   /* [answered] LMHEAD_STATUS_* besides, may be null */
  uint8_t *logits;         /* [answered, vocab] at logits_pitch, aligned to an element */
  uint64_t logits_pitch;   /* bytes between rows, whole elements */
  uint8_t *row_status;     /* [answered] as FinishParams */
  uint64_t gap;
  uint32_t rows;           /* of each message */
  uint32_t answered;       /* the first of these; a row has ceil(vocab / part_ids) blocks, at least one */
  uint32_t vocab;
  uint32_t shards;         /* as PartialParts.part_ids = 0 */
  uint32_t element_bytes;  /* of a logit: 2 or 4 */
  uint32_t part_ids;       /* ids of a block: a multiple of 64 */
} FinishLogitsParams;

/* kernels/pack_rows_sm80.cu: rows picked by index, one behind the other. */
typedef struct PackRowsParams {
  RowMatrix rows;
  uint8_t *out;            /* [row_count, row_bytes] at out_pitch, aligned to 2 bytes; where address and pitch
                              are multiples of 16 it is written faster, with zeros up to the next one */
  uint64_t out_pitch;      /* bytes between rows: at least row_bytes, a multiple of 2 */
  uint32_t *status;        /* [row_count] status_before, and LMHEAD_STATUS_BAD_INDEX where the index is none
                              and the row is zeros */
  uint32_t row_count;
  uint32_t row_bytes;      /* a multiple of 2 */
  uint32_t status_before;
} PackRowsParams;

/* kernels/capacity_sm80.cu: steps of a fixed shape, whose contract is compared on the device. */

/* A header (src/step.rs) in 16-bit words, and where it has what is not the same on every rank. */
enum LmheadHeader {
  LMHEAD_HEADER_HALVES = 48,
  LMHEAD_HEADER_SEQUENCE = 12, /* 4 of them: the step's number */
  LMHEAD_HEADER_ROWS = 20,     /* 4: rows of the replica */
  LMHEAD_HEADER_INPUTS = 36    /* 4: the digest of what a replica's ranks share */
};

/* What a head's device knows of its capacity steps. */
typedef struct CapacityState {
  uint64_t sequence;       /* steps that have begun */
  uint64_t mismatched;     /* the first of them whose headers differed, from 1; 0: none */
  uint32_t member;         /* whose header differed from the own one then, the lowest */
  uint32_t bad_rows;       /* own rows of the last step whose index was none */
  uint16_t own[LMHEAD_HEADER_HALVES];   /* the two headers */
  uint16_t other[LMHEAD_HEADER_HALVES];
} CapacityState;

/* Own rows, picked by index, with zeros behind the last; a block has a row. */
typedef struct PackCapacityParams {
  RowMatrix rows;
  uint8_t *out;            /* [capacity, row_bytes], aligned to 2 bytes; to 16 it is written faster */
  uint32_t *status;        /* [capacity] as PackRowsParams; 0 behind the last row */
  uint64_t *digests;       /* [capacity] of the rows' bits; null: not wanted */
  uint32_t row_count;      /* at most capacity */
  uint32_t row_bytes;      /* a multiple of 2 */
} PackCapacityParams;

/* The step's number is counted up, and the own header written; one block. */
typedef struct OpenCapacityParams {
  uint16_t header[LMHEAD_HEADER_HALVES]; /* without the step's number, and the digest where there is one */
  CapacityState *state;
  uint16_t *out;           /* [LMHEAD_HEADER_HALVES] */
  const uint64_t *digests; /* [row_count]; null: none */
  const uint64_t *adjusted; /* [row_count] digests of the rows' adjustments; null: they have none */
  const uint32_t *status;  /* [row_count] */
  const uint32_t *inputs;  /* [input_words] what else a replica's ranks share; of the digest */
  uint32_t input_words;
  uint32_t row_count;
} OpenCapacityParams;

/* Compares the headers that came, and says where the rows of all replicas lie; one block. Where headers
 * differ, or a replica has more rows than the capacity, there are none: each row is a bad index. */
typedef struct CheckCapacityParams {
  const uint16_t *own;     /* [LMHEAD_HEADER_HALVES] */
  const uint8_t *headers;  /* [members], aligned to 2 bytes */
  uint64_t header_pitch;   /* bytes from one to the next */
  CapacityState *state;
  int32_t *positions;      /* [members / ranks, parts, part_rows]: numbers of rows, -1 behind the last */
  uint32_t members;
  uint32_t ranks;          /* whose headers came of each replica, side by side */
  uint32_t me;             /* of the members */
  uint32_t capacity;       /* rows */
  uint32_t parts;          /* a replica's rows are answered in so many parts, as even as can be */
  uint32_t part_rows;      /* of the largest part of `capacity` rows */
  uint32_t first_row;      /* of the first replica */
  uint32_t replica_rows;   /* from one replica's first row to the next one's */
} CheckCapacityParams;

/* kernels/held_sm80.cu: passes over logits that a product left. */

typedef struct HeldMatrix {
  const float *data;       /* [rows, ids], 16-byte aligned */
  const uint32_t *status;  /* [rows] LMHEAD_STATUS_*; null of a shard without ids */
  uint64_t pitch;          /* bytes from row to row, a multiple of 16 */
  uint32_t nonfinite;      /* flags of status that leave a row without an answer */
  uint32_t rows;
  uint32_t ids;
  uint32_t first_id;       /* of the shard: ids below count from 0 of the vocabulary */
} HeldMatrix;

/* What each part of the rows knows of them, as TilePartials: without status. */
typedef struct SummariseHeldParams {
  HeldMatrix held;
  uint8_t *data;            /* [parts, rows] PartialRows, of ids that count from the shard's first */
  const Candidate *targets; /* [rows, target_count]: how many ids beat it; of id UINT32_MAX none */
  uint32_t k;               /* 1 to LMHEAD_BEST, at most part_ids */
  uint32_t sum;
  uint32_t target_count;
  uint32_t part_ids;        /* a multiple of 64 */
} SummariseHeldParams;

typedef struct HeldTargetsParams {
  HeldMatrix held;
  const uint32_t *targets;  /* [rows, per_row] ids */
  float *out;               /* [rows, per_row]; NaN where the id is not the shard's */
  uint32_t per_row;
} HeldTargetsParams;

/* What of a row is kept by a draw or a search: of logits above `cut`, and equal to it of ids below
 * `ties_end`, those whose (logit - max) / temperature is not below `least`. */
typedef struct KeptLogits {
  float max;
  float temperature;
  float least;
  float cut;
  uint32_t ties_end;
  uint32_t row;             /* of the held ones */
} KeptLogits;

typedef struct HeldMaximaParams {
  HeldMatrix held;
  const uint32_t *rows;     /* [count]; null: all that are held */
  float *out;               /* [count] the largest logit; minus infinity, NaN of a row without an answer */
} HeldMaximaParams;

/* How many kept logits, or what mass of them, have which value of a digit of their order keys. */
typedef struct HeldHistogram {
  KeptLogits kept;
  uint32_t masses;          /* 1: masses are added up, 0: ids */
  uint32_t known;           /* mask of the bits above the digit, which are those of `key` */
  uint32_t key;
  uint32_t shift;           /* of the digit to the last bits */
} HeldHistogram;

typedef struct HeldHistogramsParams {
  HeldMatrix held;
  const HeldHistogram *queries; /* [count] */
  uint64_t *out;            /* [count, bins] */
  uint32_t bins;            /* 2 to 256, a power of two */
  uint32_t unit;            /* the largest mass is 2 to this power */
} HeldHistogramsParams;

typedef struct HeldTies {
  KeptLogits kept;
  float logit;
  uint32_t allowance;
} HeldTies;

typedef struct HeldTiesParams {
  HeldMatrix held;
  const HeldTies *queries;  /* [count] */
  uint32_t *out;            /* [count] the id behind the `allowance`th kept one with that logit; 0 for none */
} HeldTiesParams;

/* HeldWanted.filtered of a row of which something cannot be: its candidate is infinity, which no draw
 * takes. */
enum LmheadDamaged { LMHEAD_DAMAGED = 2 };

/* Candidates of a row: the k best, or the one that is drawn. */
typedef struct HeldWanted {
  KeptLogits kept;          /* of a draw, where `filtered` */
  uint32_t filtered;        /* 0 or 1 */
  uint32_t k;               /* 0: a draw, of one */
  uint64_t seed;
  uint64_t position;
  uint64_t place;           /* of the first candidate in `out` */
} HeldWanted;

typedef struct HeldCandidatesParams {
  HeldMatrix held;
  const HeldWanted *queries; /* [count] */
  Candidate *out;           /* minus infinity where there are fewer; of a row without an answer NaN first */
} HeldCandidatesParams;

/* kernels/cuts_sm80.cu: where filters cut held rows whose parameters only the device knows. */

/* What a row's owner has found: the order key of the last logit that is kept, as far as it is known, and
 * behind the last digit how many ids of a shard that have this logit are kept, the lowest first. */
typedef struct CutFound {
  uint32_t key;
  uint32_t allowance;       /* UINT32_MAX: of a row of which messages came that no shard can have sent */
} CutFound;

/* All rows that are held; a thread has a row. What each kernel writes of them the next ones read. */
typedef struct CutRowsParams {
  const SamplingRow *sampling; /* [rows] */
  const uint32_t *status;   /* [rows] of the held logits */
  const float *maxima;      /* [shards, rows] of all shards */
  const CutFound *found;    /* [rows] */
  const uint32_t *ends;     /* [rows] of HeldTiesParams */
  SamplingRow *bare;        /* [rows] parameters without filters: shards apply these */
  HeldWanted *wanted;       /* [rows] what is kept so far, and the draw */
  HeldHistogram *histograms; /* [rows] */
  HeldTies *ties;           /* [rows] */
  uint32_t rows;
  uint32_t vocab;
  uint32_t shards;
  uint32_t ids;             /* of the own shard */
  uint32_t masses;          /* what the search is for: 1: the end of the nucleus, 0: the last of top_k */
  uint32_t known;           /* of the digit that is counted next, as HeldHistogram */
  uint32_t shift;
  uint32_t none;            /* 0 */
} CutRowsParams;

/* A row's search, as its owner sees it. */
typedef struct CutSearch {
  uint64_t left;            /* of the goal, of logits with the known digits */
  uint32_t key;
  uint32_t damaged;
} CutSearch;

/* Histograms of all shards become the next digit of rows that this rank decides; a block has a row. */
typedef struct LearnCutsParams {
  const uint64_t *histograms; /* [shards, count, bins] */
  const SamplingRow *sampling; /* [count] */
  const HeldWanted *wanted; /* [count] */
  CutSearch *searches;      /* [count]; written by the first digit */
  CutFound *found;          /* [shards, count] */
  uint32_t count;
  uint32_t vocab;
  uint32_t shards;
  uint32_t bins;            /* 2 to 256 */
  uint32_t masses;
  uint32_t known;
  uint32_t shift;
  uint32_t none;            /* 0 */
} LearnCutsParams;

/* kernels/select_sm80.cu: the best k of held rows, best first, for any k. */

/* Bits of a digit of the keys that are selected among, and how many keys are sorted at once. */
enum LmheadSelect { LMHEAD_SELECT_DIGIT = 11, LMHEAD_SELECT_CHUNK = 2048 };

/* What is known of a query's k-th largest key. */
typedef struct SelectState {
  uint64_t least;           /* its known digits, and zeros behind them */
  uint32_t wanted;          /* of the keys with these digits */
  uint32_t known;           /* 1: that is all of these, so keys from `least` on are wanted */
} SelectState;

typedef struct SelectParams {
  HeldMatrix held;
  const HeldWanted *queries; /* [count] of k above 0; null: the k best of each held row */
  uint8_t *out;             /* of queries Candidates; of rows PartialRows, whose candidates are set */
  uint64_t out_pitch;       /* of rows: bytes from row to row */
  uint32_t *bins;           /* [rounds, count, 2^LMHEAD_SELECT_DIGIT], zeros before */
  SelectState *states;      /* [rounds, count] */
  uint32_t *found;          /* [count] keys that are wanted; zeros before */
  uint64_t *keys;           /* [count, k] */
  uint32_t count;
  uint32_t k;               /* at most held.ids; of queries the largest, but for that */
  uint32_t part_ids;        /* of a row's parts, a multiple of 64 */
  uint32_t id_bits;         /* of the largest id, which counts from 0 of the shard */
  uint32_t rounds;          /* digits of a key; 0 where all ids are wanted */
  uint32_t round;
} SelectParams;

/* kernels/inputs_sm80.cu: what belongs to rows and lies in device memory. What of it cannot be leaves its row
 * without an answer: LMHEAD_STATUS_BAD_INDEX is or'ed into the row's word of `status`. */

/* Targets as ranks exchange them. A thread has one. */
typedef struct EncodeTargetsParams {
  const int64_t *ids;      /* [count], per_row of each row; -100 is none */
  uint32_t *out;           /* [count]; UINT32_MAX is none, also where the id is none of the vocabulary */
  uint32_t *status;        /* [rows] */
  uint64_t count;
  uint32_t per_row;
  uint32_t vocab;
} EncodeTargetsParams;

/* Targets with their logits, each as the shard says that has the id. A thread has one. */
typedef struct PickTargetsParams {
  const uint32_t *targets; /* [count] */
  const float *logits;     /* [shards, count] */
  Candidate *out;          /* [count]; NaN where there is no target */
  uint64_t count;
  uint32_t vocab;
  uint32_t shards;         /* as PartialParts.part_ids = 0 */
} PickTargetsParams;

/* into[row] |= from[row]. */
typedef struct OrStatusParams {
  const uint32_t *from;    /* [rows] */
  uint32_t *into;
  uint32_t rows;
  uint32_t none;           /* 0 */
} OrStatusParams;

/* Arrays of [rows]; null is the value named for all rows. A row of which one is not legal becomes greedy. */
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
  uint32_t vocab;            /* a top_k that is as large or larger becomes 0: all */
  uint32_t unfiltered;       /* 1: a row with a filter, unless it is greedy, is one that cannot be */
  uint32_t none;             /* 0 */
} SamplingRowsParams;

/* What a row's message to a shard has, one behind the other; nothing for a shard without ids:
 *   masks: a bit of each id, in an even number of words
 *   logit_bias: as many places for {id in the shard, f32}, ascending by id; UINT32_MAX where there are fewer
 *   counts: repetition, frequency, presence, 0; then as many places for {id in the shard, 2·count + in the
 *   prompt} */
typedef struct AdjustmentPlaces {
  uint32_t masks;          /* 1: there is one */
  uint32_t logit_bias;     /* places of a row; 0: none */
  uint32_t counts;
  uint32_t none;           /* 0 */
} AdjustmentPlaces;

/* Adjustments of rows -> their messages to some shards, [destinations][parts][part_rows]: the own rows in
 * `parts` parts of even sizes, each with room for `part_rows` rows. A row that is nobody's has all ids
 * allowed and no entries. A block has a row's message to one shard. Of digest_adjustments `out` is [rows]
 * digests of 64 bits, and a block has a row. */
typedef struct PackAdjustmentsParams {
  const uint32_t *allowed;           /* [rows, ceil(vocab / 32)], may be null: all are */
  const int64_t *logit_bias_offsets; /* [rows + 1], may be null: none; row i has entries offsets[i].. */
  const int64_t *logit_bias_ids;     /* [logit_bias_entries]; in any order, ascending is fastest; those of one
                                        id stay in theirs */
  const float *logit_bias_values;    /* finite, or minus infinity */
  const int64_t *count_offsets;      /* [rows + 1], may be null: no counts */
  const int64_t *count_ids;          /* [count_entries]; likewise, each once in a row */
  const uint32_t *counts;            /* below 2^31 */
  const uint8_t *in_prompt;          /* 0 or 1 */
  const float *repetition;           /* [rows], may be null: 1; above 0 and finite */
  const float *frequency;            /* [rows], may be null: 0; finite */
  const float *presence;             /* [rows], may be null: 0; finite */
  uint64_t logit_bias_entries;
  uint64_t count_entries;
  uint8_t *out;                      /* aligned to 8 */
  uint32_t *status;                  /* [rows] */
  AdjustmentPlaces places;           /* a row with more entries is one that cannot be */
  uint32_t rows;                     /* own ones */
  uint32_t parts;
  uint32_t part_rows;
  uint32_t vocab;
  uint32_t shards;                   /* as PartialParts.part_ids = 0 */
  uint32_t first_shard;              /* destination j is shard first_shard + j·shard_step */
  uint32_t shard_step;
  uint32_t none;                     /* 0 */
} PackAdjustmentsParams;

/* Messages for one shard -> LogitAdjustments; masks stay where they are. A block has a row. */
typedef struct UnpackAdjustmentsParams {
  const uint8_t *data;          /* [rows] messages, aligned to 8 */
  uint32_t *logit_bias_offsets; /* [rows + 1] */
  uint32_t *logit_bias_ids;     /* [rows, places.logit_bias] */
  float *logit_bias_values;
  uint32_t *count_offsets;      /* [rows + 1] */
  uint32_t *count_ids;          /* [rows, places.counts] */
  uint32_t *counts;
  float *repetition;            /* [rows] */
  float *frequency;
  float *presence;
  AdjustmentPlaces places;
  uint32_t rows;
  uint32_t ids;                 /* of the shard */
} UnpackAdjustmentsParams;

/* kernels/set_words_sm80.cu: what a step begins with, words of one value each. */
typedef struct WordsToSet {
  uint8_t *to;      /* aligned to 4; null where there are none */
  uint64_t pitch;   /* bytes from word to word, a multiple of 4 */
  uint64_t count;
  uint32_t value;
} WordsToSet;
typedef struct SetWordsParams {
  WordsToSet words[2];
} SetWordsParams;

/* kernels/quantize_rows_sm80.cu: picks rows by index and quantises each to int8 with one scale. */
typedef struct QuantizeRowsParams {
  RowMatrix rows;
  int8_t *out;         /* [row_count, hidden], 16-byte aligned */
  uint64_t out_pitch;  /* bytes from row to row, a multiple of 16; what is behind `hidden` is set to 0 */
  float *scales;       /* [row_count] */
  uint32_t *status;    /* [row_count] status_before, and LMHEAD_STATUS_BAD_INDEX where it is so; stored */
  uint32_t *bars;      /* [row_count] of TilePartials, zeros; may be null */
  uint32_t row_count;
  uint32_t hidden;
  uint32_t status_before;  /* LMHEAD_STATUS_ALLOWED where there are no adjustments, else 0 */
} QuantizeRowsParams;

/* kernels/read_stream_sm80.cu: reads an array. */
typedef struct ReadStreamParams {
  const void *data;   /* [vectors] of 16 bytes, 16-byte aligned */
  uint64_t vectors;
  uint32_t *out;      /* [1]: the sum of all 32-bit words is added to it, modulo 2^32 */
} ReadStreamParams;

/* kernels/read_bulk_sm90a.cu: the same by bulk copies of 32 KB into a ring in shared memory, as a product
 * with TMA reads its weights. */
typedef struct ReadBulkParams {
  const void *data;   /* [bytes], 16-byte aligned */
  uint64_t bytes;     /* a multiple of 16 */
  uint32_t *out;      /* [1]: as above */
  uint32_t run;       /* copies of a block in a row, before it skips the other blocks' runs; at least 1 */
} ReadBulkParams;

/* The same of a row-major matrix, by boxes of 64 or 128 rows x 128 bytes, 32 KB of neighbours at once. */
typedef struct ReadBoxesParams {
  TensorMap matrix;       /* boxes of box_rows x 128 bytes, 128-byte swizzle */
  uint32_t *out;          /* [1]: as above */
  uint32_t rows;          /* of the matrix */
  uint32_t columns;       /* pieces of 128 bytes of a row; the last may be cut */
  uint32_t box_rows;      /* 64 or 128 */
  uint32_t element_bytes; /* of the map */
} ReadBoxesParams;

/* kernels/check: operands and comparisons of tests and benches on the device. */

/* What an array is filled with: functions of seed and place (kernels/check/values.cuh). */
enum LmheadFill {
  LMHEAD_FILL_BYTES = 0,    /* every byte the lowest of the seed */
  LMHEAD_FILL_I8 = 1,       /* all int8 */
  LMHEAD_FILL_BF16 = 2,     /* of both signs, magnitudes from 2^-8 to 1 */
  LMHEAD_FILL_F16 = 3,
  LMHEAD_FILL_F32 = 4,
  LMHEAD_FILL_E4M3 = 5,     /* all with magnitudes below 2, subnormal ones and both zeros among them */
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
  uint64_t first;      /* vectors before the first one, of a larger array whose part this is */
  uint64_t seed;
  /* elements; of small integers the first of each row is 127, below 2^32. 0: none, as of E4M3 */
  uint32_t row;
  uint32_t kind;       /* LMHEAD_FILL_* */
} FillParams;

/* One value that is not what it should be. */
typedef struct Mismatch {
  uint32_t row;
  uint32_t column;
  uint32_t want;       /* bits */
  uint32_t got;
} Mismatch;

/* Places for mismatches. */
enum LmheadMismatches { LMHEAD_MISMATCHES = 8 };

typedef struct Mismatches {
  uint64_t count;
  uint32_t noted;      /* those that asked for a place below; may be more than there are */
  uint32_t none;
  Mismatch some[LMHEAD_MISMATCHES];
} Mismatches;

/* kernels/check/compare_sm80.cu: counts the elements of a matrix whose bits are not those of another. */
typedef struct CompareParams {
  const void *want;    /* [rows, columns] of want_dtype; null: poison, which is ones in every bit */
  const void *got;     /* [rows, columns] of dtype; poison is a mismatch unless it is wanted */
  uint64_t want_pitch; /* bytes from row to row */
  uint64_t got_pitch;
  uint32_t rows;
  uint32_t columns;    /* at least 1 */
  uint32_t want_dtype; /* LMHEAD_DTYPE_*: as `dtype`, or f32, which is rounded to it first */
  uint32_t dtype;
  Mismatches *found;   /* [1], zeros before */
} CompareParams;

/* kernels/check/project_sm80.cu: whether a product of integers is right, by a random sum of its columns. */

/* projection[k] += sum over ids of r(id)·scale(id)·weights[id, k], modulo 2^64; all are integers. */
typedef struct ProjectWeightsParams {
  WeightMatrix weights; /* scales: integers, may be null; bias is left out */
  uint64_t *projection; /* [hidden], zeros before */
  uint64_t seed;        /* of r */
  uint32_t kind;        /* LMHEAD_FILL_SMALL_I8, _E4M3, _BF16 or _F16: the weights' type */
  uint32_t vocab;
  uint32_t hidden;
} ProjectWeightsParams;

/* difference[row] += sum over k of rows[row, k]·projection[k] - sum over ids of r(id)·logits[row, id], modulo
 * 2^64: 0 where the row is right. A logit that is no integer adds a random number. */
typedef struct ProjectRowsParams {
  RowMatrix rows;
  const uint64_t *projection; /* [hidden] */
  const float *logits;        /* [row_count, vocab] */
  uint64_t pitch;             /* bytes from row to row of logits */
  uint64_t *difference;       /* [row_count], zeros before */
  uint64_t seed;
  uint32_t kind;              /* LMHEAD_FILL_SMALL_BF16, _F16 or _F32: the rows' type */
  uint32_t row_count;
  uint32_t vocab;
  uint32_t hidden;
  uint32_t parts;             /* blocks of a row */
} ProjectRowsParams;

/* Sums of exponentials, masses and noise (kernels/answers): constants as bits, which host and device share.
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
/* 2^20, as f32: where the row's largest logit has a larger magnitude, the logarithm is that logit. */
#define LMHEAD_LSE_LIMIT 0x49800000u

#endif
