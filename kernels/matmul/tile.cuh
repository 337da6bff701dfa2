// A block's tile: 128 or 64 ids x some rows, where it lies in the product, and what a thread copies of each
// stage.
//
//     weights [kBlockN, 128 bytes of k] ┐
//                                       ├─ one stage; stages follow each other along k
//     rows    [kBlockM, as many k]      ┘
#pragma once
#include "matmul/ring.cuh"
#include "swizzle.cuh"

namespace matmul {

// The types of a product's weights and rows, the bytes of their elements, and which of them have scales.
struct Bf16Weights {
  using Half = Bf16;
  using Accumulator = float;
  static constexpr uint32_t kWeightBytes = 2, kRowElementBytes = 2;
  static constexpr bool kWeightScales = false, kRowScales = false;
};
struct F16Weights {
  using Half = F16;
  using Accumulator = float;
  static constexpr uint32_t kWeightBytes = 2, kRowElementBytes = 2;
  static constexpr bool kWeightScales = false, kRowScales = false;
};
// int8 weights and rows.
struct W8A8 {
  using Accumulator = int32_t;
  static constexpr uint32_t kWeightBytes = 1, kRowElementBytes = 1;
  static constexpr bool kWeightScales = true, kRowScales = true;
};
// FP8 without infinities: a sign, four bits of exponent with bias 7, three of mantissa; 0x7f and 0xff are
// NaN.
struct E4m3 {};
// 8-bit weights, 16-bit rows.
template <class Half_, class Code_ = int8_t>
struct W8A16 {
  using Half = Half_;
  using Code = Code_;
  using Accumulator = float;
  static constexpr uint32_t kWeightBytes = 1, kRowElementBytes = 2;
  static constexpr bool kWeightScales = true, kRowScales = false;
};
using W8A16Bf16 = W8A16<Bf16>;
using W8A16F16 = W8A16<F16>;
using E4m3Bf16 = W8A16<Bf16, E4m3>;
using E4m3F16 = W8A16<F16, E4m3>;

template <class Type_, uint32_t kBlockN_, uint32_t kBlockM_>
struct Tile {
  using Type = Type_;
  static constexpr uint32_t kBlockN = kBlockN_, kBlockM = kBlockM_;
  // Four warps share the tile: side by side along the ids or, with more than 64 rows, two by two. A part of
  // 64 x 64 reads least of shared memory for each product.
  static constexpr uint32_t kThreads = 128, kWarpM = kBlockM > 64 ? 64 : kBlockM;
  static constexpr uint32_t kWarpN = kBlockN / 4 * (kBlockM / kWarpM);
  static constexpr uint32_t kWarpsN = kBlockN / kWarpN;
  static constexpr uint32_t kStep = kRowBytes / Type::kWeightBytes;  // elements of k per stage
  // How many tiles of 128-byte rows the rows' part of a stage has, one behind the other: two where the
  // elements of rows are wider than those of weights.
  static constexpr uint32_t kRowTiles = Type::kRowElementBytes / Type::kWeightBytes;
  static constexpr uint32_t kRowVectors = 8 * kRowTiles;
  static constexpr uint32_t kWeightTile = kBlockN * kRowBytes, kRowTile = kBlockM * kRowBytes;
  static constexpr uint32_t kStageBytes = kWeightTile + kRowTiles * kRowTile;
  // 16-byte vectors of a stage that a thread copies: the same vector of several rows, which lie this far
  // apart.
  static constexpr uint32_t kWeightCopies = kBlockN * 8 / kThreads, kWeightRowsApart = kThreads / 8;
  static constexpr uint32_t kRowCopies = (kBlockM * kRowVectors + kThreads - 1) / kThreads,
                            kRowsApart = kThreads / kRowVectors;
  static_assert(kWeightRowsApart % 8 == 0 && kRowsApart % 8 == 0, "a thread's vectors are swizzled alike");
  // In the epilogue logits overwrite the stages. Four floats of padding: what a warp writes of eight ids and
  // four pairs of rows falls into different banks, and rows stay aligned to 16 bytes.
  static constexpr uint32_t kLogitPitch = 4 * (kBlockN + 4);
  static constexpr uint32_t kLogitRoom = LMHEAD_MIN_STAGES * kStageBytes;
  static_assert(kBlockM * kLogitPitch <= kLogitRoom, "the stages hold a tile of logits");
  static_assert(kLogitRoom <= 101376, "compute capability 8.6 and 8.9 have 99 KB for a block");
  // Parts of the vocabulary that partials are of: the tiles of ids.
  DEVICE static uint32_t parts(const MatmulParams &p) { return (p.vocab - 1) / kBlockN + 1; }
  // Synchronises the threads of the epilogue: here those of the block.
  DEVICE static void sync() { barrier_sync_all(); }
};

// Which tile block `block` computes. Rows change fastest, 16 tiles or 2048 rows at most: blocks that run
// together then read the same weights, and rows that still fit the second-level cache.
struct TileCoord {
  uint32_t first_id, first_row;
  uint32_t end_id;  // behind the last of its ids
  uint32_t part;    // which of the parts that partials are of
};
template <class T>
DEVICE TileCoord tile_coord(const MatmulParams &p, uint32_t block) {
  constexpr uint32_t kGroup = T::kBlockM < 128 ? 16 : 2048 / T::kBlockM;
  const uint32_t row_tiles = (p.row_count + T::kBlockM - 1) / T::kBlockM,
                 id_tiles = (p.vocab - 1) / T::kBlockN + 1;
  const uint32_t whole = row_tiles < kGroup ? row_tiles : kGroup;
  const uint32_t group = block / (whole * id_tiles), rest = block % (whole * id_tiles);
  const uint32_t left = row_tiles - group * whole, width = left < whole ? left : whole;
  const uint32_t part = rest / width;
  return {part * T::kBlockN, (group * whole + rest % width) * T::kBlockM, p.vocab, part};
}

// No row: past the end, or a bad index.
constexpr uint32_t kNoRow = 0xffffffffu;

// The number of the source row that row `row` of the product is, by its index where there are indices; kNoRow
// where there is none.
DEVICE uint32_t row_number(const RowMatrix &rows, uint32_t row, uint32_t row_count) {
  if (row >= row_count) return kNoRow;
  if (!rows.indices) return row;
  uint64_t number;
  if (rows.index_bytes == 8) {
    const U32x2 words = ld_global_v2(static_cast<const uint64_t *>(rows.indices) + row);
    number = uint64_t(words.y) << 32 | words.x;
  } else {
    // With its sign: -2 is not row 2^32 - 2.
    number = uint64_t(int64_t(int32_t(ld_global_u32(static_cast<const uint32_t *>(rows.indices) + row))));
  }
  // Negative numbers, taken as u64, are above any row's.
  return number < rows.source_rows ? uint32_t(number) : kNoRow;
}

// Where vector `vector` of row `row` of the rows' part of a stage lies. Rows that are read by ldmatrix have
// the swizzle of swizzle.cuh. Those of W8A16 are read 8 bytes a lane, four rows x 32 bytes by half a warp:
// there pairs of vectors go to different banks in four rows that follow each other.
template <class T>
DEVICE uint32_t row_vector(uint32_t stage, uint32_t row, uint32_t vector) {
  const uint32_t tile = stage + T::kWeightTile + vector / 8 * T::kRowTile;
  if constexpr (T::kRowTiles == 1) return vector_address(tile, row, vector);
  return tile + row * kRowBytes + ((vector % 8 ^ (row & 3) << 1 ^ (row >> 2 & 1)) << 4);
}

// How many bytes of the vector that begins at k lie before the end of k.
template <uint32_t kElementBytes>
DEVICE uint32_t vector_bytes(uint32_t k, uint32_t hidden) {
  if (k >= hidden) return 0;
  const uint32_t bytes = (hidden - k) * kElementBytes;
  return bytes < 16 ? bytes : 16;
}

// The first `bytes` of a 16-byte vector of 16-bit elements, aligned to 2 bytes only; then zeros.
DEVICE U32x4 load_halves(const uint8_t *from, uint32_t bytes) {
  uint32_t words[4] = {};
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i)
    if (2 * i < bytes) words[i / 2] |= uint32_t(ld_global_u16(from + 2 * i)) << (i % 2 * 16);
  return {words[0], words[1], words[2], words[3]};
}

// The first id and row, within the tile, of a warp's part.
struct WarpCoord {
  uint32_t first_id, first_row;
};
template <class T>
DEVICE WarpCoord warp_coord(uint32_t warp) {
  return {warp % T::kWarpsN * T::kWarpN, warp / T::kWarpsN * T::kWarpM};
}

// What a thread copies, computed once: the same vectors of weights and rows of each stage, further along k
// each time.
template <class T>
struct Sources {
  // Addresses for the stage that is loaded next. Rows that are not there have some other aligned address.
  const uint8_t *weights[T::kWeightCopies];
  const uint8_t *rows[T::kRowCopies];
  bool row_there[T::kRowCopies];
  // Whether the thread copies rows: a tile may have fewer vectors of rows than the block has threads.
  bool any_row;
  // Where the thread's first vectors go, relative to a stage's beginning; those of further rows lie behind.
  uint32_t weights_to, rows_to;
};

// First weight addresses of this thread. Ids behind the last are computed like it, and never stored.
template <class T>
DEVICE void find_weights(const MatmulParams &p, const TileCoord &at, Sources<T> &from) {
  const uint32_t row = threadIdx.x / 8, vector = threadIdx.x % 8;
  from.weights_to = vector_address(0, row, vector);
#pragma unroll
  for (uint32_t n = 0; n < T::kWeightCopies; ++n) {
    const uint32_t id = at.first_id + row + n * T::kWeightRowsApart;
    from.weights[n] = static_cast<const uint8_t *>(p.weights.data) +
                      (id < p.vocab ? id : p.vocab - 1) * p.weights.pitch + vector * 16;
  }
}

// First row addresses of this thread; bad indices are reported once, by the block of the first ids.
template <class T>
DEVICE void find_rows(const MatmulParams &p, const TileCoord &at, Sources<T> &from) {
  const uint32_t row = threadIdx.x / T::kRowVectors, vector = threadIdx.x % T::kRowVectors;
  from.rows_to = row_vector<T>(0, row, vector);
  from.any_row = row < T::kBlockM;
#pragma unroll
  for (uint32_t n = 0; n < T::kRowCopies; ++n) {
    const uint32_t in_tile = row + n * T::kRowsApart, of_all = at.first_row + in_tile;
    const uint32_t number = in_tile < T::kBlockM ? row_number(p.rows, of_all, p.row_count) : kNoRow;
    from.row_there[n] = number != kNoRow;
    from.rows[n] = static_cast<const uint8_t *>(p.rows.data) +
                   (from.row_there[n] ? number * p.rows.pitch + vector * 16 : 0);
    if (number == kNoRow && in_tile < T::kBlockM && of_all < p.row_count && at.first_id == 0 && vector == 0)
      atom_or_u32(p.logits.status + of_all, LMHEAD_STATUS_BAD_INDEX);
  }
}

// Copies the weights' part of `stage`, from k0 on; a `whole` stage ends before the end of k. The sources
// advance along k: with addresses computed from k0 the compiler would compute the rows' beginnings anew each
// time.
template <class T>
DEVICE void load_weights(const MatmulParams &p, Sources<T> &from, uint32_t stage, uint32_t k0, bool whole) {
  constexpr uint32_t kBytes = T::Type::kWeightBytes;
  const uint32_t to = stage + from.weights_to;
  if (whole) {
#pragma unroll
    for (uint32_t n = 0; n < T::kWeightCopies; ++n)
      cp_async_cg_16_l2_256b(to + n * T::kWeightRowsApart * kRowBytes, from.weights[n]);
  } else {
    // The row's end may lie within the vector, or before it.
    const uint32_t bytes = vector_bytes<kBytes>(k0 + threadIdx.x % 8 * (16 / kBytes), p.hidden);
#pragma unroll
    for (uint32_t n = 0; n < T::kWeightCopies; ++n)
      cp_async_cg_16_l2_256b(to + n * T::kWeightRowsApart * kRowBytes, from.weights[n], bytes);
  }
#pragma unroll
  for (uint32_t n = 0; n < T::kWeightCopies; ++n) from.weights[n] += kRowBytes;
}

// Copies the rows' part. Rows that are not there become zeros.
template <class T>
DEVICE void load_rows(const MatmulParams &p, Sources<T> &from, uint32_t stage, uint32_t k0, bool whole) {
  constexpr uint32_t kBytes = T::Type::kRowElementBytes;
  if (!from.any_row) return;
  const uint32_t to = stage + from.rows_to;
  if (whole) {
#pragma unroll
    for (uint32_t n = 0; n < T::kRowCopies; ++n)
      cp_async_cg_16_or_zeros(to + n * T::kRowsApart * kRowBytes, from.rows[n], !from.row_there[n]);
  } else {
    const uint32_t bytes = vector_bytes<kBytes>(k0 + threadIdx.x % T::kRowVectors * (16 / kBytes), p.hidden);
#pragma unroll
    for (uint32_t n = 0; n < T::kRowCopies; ++n)
      cp_async_cg_16(to + n * T::kRowsApart * kRowBytes, from.rows[n], from.row_there[n] ? bytes : 0);
  }
#pragma unroll
  for (uint32_t n = 0; n < T::kRowCopies; ++n) from.rows[n] += T::kStep * kBytes;
}

// Fills `stage` with the k from k0 on, or with nothing past the end of k.
template <class T>
DEVICE void load_stage(const MatmulParams &p, Sources<T> &from, uint32_t stage, uint32_t k0) {
  if (k0 >= p.hidden) return;
  const bool whole = k0 + T::kStep <= p.hidden;
  load_weights<T>(p, from, stage, k0, whole);
  load_rows<T>(p, from, stage, k0, whole);
}

}  // namespace matmul
