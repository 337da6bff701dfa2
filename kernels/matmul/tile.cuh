// A block's tile: 128 ids x some rows, and the ring of stages that cp.async fills three (or two) ahead of the products.
//
//     weights [128 ids, 128 bytes of k] ┐
//                                       ├─ one stage; stages follow each other along k
//     rows    [kRows, as many k]        ┘
#pragma once
#include "swizzle.cuh"

namespace matmul {

using namespace ptx;

constexpr uint32_t kIds = 128;

// The weights' and rows' types of a product, and what one stage holds of a row.
struct Bf16Weights {
  using Half = Bf16;
  using Sum = float;
  static constexpr uint32_t kWeightBytes = 2, kRowElementBytes = 2;
  static constexpr bool kWeightScales = false, kRowScales = false;
};
struct F16Weights {
  using Half = F16;
  using Sum = float;
  static constexpr uint32_t kWeightBytes = 2, kRowElementBytes = 2;
  static constexpr bool kWeightScales = false, kRowScales = false;
};
// int8 weights and rows.
struct W8A8 {
  using Sum = int32_t;
  static constexpr uint32_t kWeightBytes = 1, kRowElementBytes = 1;
  static constexpr bool kWeightScales = true, kRowScales = true;
};
// int8 weights, 16-bit rows.
template <class Half_>
struct W8A16 {
  using Half = Half_;
  using Sum = float;
  static constexpr uint32_t kWeightBytes = 1, kRowElementBytes = 2;
  static constexpr bool kWeightScales = true, kRowScales = false;
};

template <class Type_, uint32_t kRows_>
struct Tile {
  using Type = Type_;
  static constexpr uint32_t kRows = kRows_;
  // Four warps cover the ids, 32 each; a second four take the other half of many rows.
  static constexpr uint32_t kWarpRows = kRows > 64 ? 64 : kRows;
  static constexpr uint32_t kThreads = 128 * (kRows / kWarpRows);
  static constexpr uint32_t kStep = kRowBytes / Type::kWeightBytes;  // elements of k per stage
  // A row's part of a stage, in tiles of 128 bytes one behind the other: two where rows are wider than weights.
  static constexpr uint32_t kRowTiles = Type::kRowElementBytes / Type::kWeightBytes;
  static constexpr uint32_t kRowPieces = 8 * kRowTiles;
  static constexpr uint32_t kWeightTile = kIds * kRowBytes, kRowTile = kRows * kRowBytes;
  static constexpr uint32_t kStageBytes = kWeightTile + kRowTiles * kRowTile;
  // All that fits into the 99 KB that a block has on compute capability 8.6 and 8.9, up to four.
  static constexpr uint32_t kStages = 4 * kStageBytes <= 98304 ? 4 : 3;
  // Behind the stages: the number of each row in the source.
  static constexpr uint32_t kRowNumbers = kStages * kStageBytes;
  static constexpr uint32_t kSharedBytes = kRowNumbers + 4 * kRows;
  // Logits on their way out take the place of the stages. Four floats of padding: what a warp writes of eight ids and four
  // pairs of rows falls into different banks, and rows stay aligned to 16 bytes.
  static constexpr uint32_t kLogitPitch = 4 * (kIds + 4);
  static_assert(kRows * kLogitPitch <= kRowNumbers, "the stages hold a tile of logits");
  static_assert(kSharedBytes <= 101376, "compute capability 8.6 and 8.9 have 99 KB for a block");
};

// Which tile block `block` computes. Rows change fastest, 16 tiles of them at most: blocks that run together then read the same
// weights, and rows that still fit the second-level cache.
struct Place {
  uint32_t first_id, first_row;
};
template <class T>
DEVICE Place place(const MatmulParams &p, uint32_t block) {
  constexpr uint32_t kGroup = 16;
  const uint32_t row_tiles = (p.row_count + T::kRows - 1) / T::kRows, id_tiles = (p.vocab - 1) / kIds + 1;
  const uint32_t whole = row_tiles < kGroup ? row_tiles : kGroup;
  const uint32_t group = block / (whole * id_tiles), rest = block % (whole * id_tiles);
  const uint32_t left = row_tiles - group * whole, width = left < whole ? left : whole;
  return {rest / width * kIds, (group * whole + rest % width) * T::kRows};
}

// A row that is not there, past the end or by a bad index.
constexpr uint32_t kNoRow = 0xffffffffu;

// The row of the source that row `row` of the product is; bad indices are said once, by the block of the first ids.
DEVICE uint32_t row_number(const RowMatrix &rows, uint32_t row, uint32_t row_count, bool say, uint32_t *status) {
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
  // Negative numbers are larger than any row's.
  if (number < rows.source_rows) return uint32_t(number);
  if (say) atom_or_u32(status + row, LMHEAD_STATUS_BAD_INDEX);
  return kNoRow;
}

template <class T>
DEVICE void number_rows(const MatmulParams &p, const Place &at) {
  for (uint32_t row = threadIdx.x; row < T::kRows; row += T::kThreads)
    st_shared_u32(dynamic_shared() + T::kRowNumbers + 4 * row,
                  row_number(p.rows, at.first_row + row, p.row_count, at.first_id == 0, p.logits.status));
}

// Where piece `piece` of row `row` of the rows' part of a stage lies. Rows that are read by ldmatrix have the swizzle of
// swizzle.cuh. Those of W8A16 are read 8 bytes a lane, four rows x 32 bytes by half a warp: there pairs of pieces go to
// different banks in four rows that follow each other.
template <class T>
DEVICE uint32_t row_piece(uint32_t stage, uint32_t row, uint32_t piece) {
  const uint32_t tile = stage + T::kWeightTile + piece / 8 * T::kRowTile;
  if constexpr (T::kRowTiles == 1) return piece_address(tile, row, piece);
  return tile + row * kRowBytes + ((piece % 8 ^ (row & 3) << 1 ^ (row >> 2 & 1)) << 4);
}

// Bytes of a piece that begins at k and lies before the end.
template <uint32_t kElementBytes>
DEVICE uint32_t piece_bytes(uint32_t k, uint32_t hidden) {
  if (k >= hidden) return 0;
  const uint32_t bytes = (hidden - k) * kElementBytes;
  return bytes < 16 ? bytes : 16;
}

// Sixteen bytes of 16-bit elements that are aligned to nothing more.
DEVICE U32x4 load_halves(const uint8_t *from, uint32_t bytes) {
  uint32_t words[4] = {};
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i)
    if (2 * i < bytes) words[i / 2] |= uint32_t(ld_global_nc_u16(from + 2 * i)) << (i % 2 * 16);
  return {words[0], words[1], words[2], words[3]};
}

// Fills a stage with the k from k0 on. One group of copies per stage, also past the end of k, so that "all but the latest n"
// always means the same.
template <class T>
DEVICE void load_stage(const MatmulParams &p, const Place &at, uint32_t stage, uint32_t k0, bool rows_aligned) {
  using Type = typename T::Type;
  if (k0 < p.hidden) {
#pragma unroll
    for (uint32_t i = threadIdx.x; i < kIds * 8; i += T::kThreads) {
      const uint32_t row = i / 8, piece = i % 8, k = k0 + piece * (16 / Type::kWeightBytes), id = at.first_id + row;
      const uint32_t bytes = id < p.vocab ? piece_bytes<Type::kWeightBytes>(k, p.hidden) : 0;
      const uint8_t *weights = static_cast<const uint8_t *>(p.weights.data);
      cp_async_cg_16(piece_address(stage, row, piece),
                     bytes ? weights + id * p.weights.pitch + k * Type::kWeightBytes : weights, bytes);
    }
#pragma unroll
    for (uint32_t i = threadIdx.x; i < T::kRows * T::kRowPieces; i += T::kThreads) {
      const uint32_t row = i / T::kRowPieces, piece = i % T::kRowPieces, k = k0 + piece * (16 / Type::kRowElementBytes);
      const uint32_t number = ld_shared_u32(dynamic_shared() + T::kRowNumbers + 4 * row);
      const uint32_t bytes = number != kNoRow ? piece_bytes<Type::kRowElementBytes>(k, p.hidden) : 0;
      const uint8_t *rows = static_cast<const uint8_t *>(p.rows.data);
      const uint8_t *from = bytes ? rows + number * p.rows.pitch + k * Type::kRowElementBytes : rows;
      const uint32_t to = row_piece<T>(stage, row, piece);
      if (Type::kRowElementBytes == 1 || rows_aligned)
        cp_async_cg_16(to, from, bytes);
      else
        st_shared_v4(to, load_halves(from, bytes));
    }
  }
  cp_async_commit_group();
}

}  // namespace matmul
