// A tile of wgmma_matmul, and its layout in shared memory. The vocabulary is on wgmma's M (64), tokens are on
// its N.
//
//     [a part of the tile's logits][candidate lists][mbarriers][ring of stages]
//     a stage: weights [kBlockN / 64][kColumns][64 ids x 128 bytes]
//            | rows [kColumns][kRowTiles][kBlockM x 128 bytes]
//
// Stated in kernels/hopper/tile.cuh and src/plan/hopper.rs; broken_wgmma_matmul.rs compares the two for every
// tile.
#pragma once
#include "hopper/packed.cuh"
#include "hopper/ring.cuh"
#include "matmul/epilogue.cuh"

namespace hopper {

// What epilogue.cuh asks of a tile, for a part of one: logits pass through shared memory few rows at a time,
// so that the ring has the room.
template <class Type_, uint32_t kBlockN_, uint32_t kBlockM_>
struct Part {
  using Type = Type_;
  static constexpr uint32_t kBlockN = kBlockN_, kBlockM = kBlockM_;
  // A warp has 16 ids of all rows.
  static constexpr uint32_t kWarpN = 16, kWarpM = kBlockM, kThreads = 2 * kBlockN, kWarpsN = kBlockN / kWarpN;
  static constexpr uint32_t kLogitPitch = 4 * (kBlockN + 4);
  static constexpr uint32_t kLogitRoom = kBlockM * kLogitPitch + kThreads / 32 * answers::Best::kBytes;
  // Parts of the vocabulary that partials are of.
  DEVICE static uint32_t parts(const MatmulParams &p) {
    if (p.tail_ids) return p.whole_tiles + (p.vocab - p.whole_tiles * kBlockN - 1) / p.tail_ids + 1;
    return (p.vocab - 1) / kBlockN + 1;
  }
  // Synchronises the warps that multiply, without those that copy.
  DEVICE static void sync() { barrier_sync(1, kThreads); }
};

// A block's tile. kColumns: columns of a stage; a column is 128 bytes of k of the weights, and as many k of
// the rows.
//
// From 128 x 128 on the rate of L2 would be the limit. There blocks work in clusters of two, each of which
// copies half of what both need, to both: with 128 ids the rows, for ids that follow each other; with 256 the
// weights, for rows that follow each other.
template <class Type_, uint32_t kBlockN_, uint32_t kBlockM_, uint32_t kColumns_>
struct Tile {
  using Type = Type_;
  using Part = hopper::Part<Type, (kBlockN_ < 128 ? kBlockN_ : 128), (kBlockM_ < 32 ? kBlockM_ : 32)>;
  static constexpr uint32_t kBlockN = kBlockN_, kBlockM = kBlockM_, kColumns = kColumns_;
  static constexpr uint32_t kBlocks = kBlockN / kPackedIds;  // of 64 ids
  // One warpgroup, or two. Warpgroup g multiplies blocks g, g + kGroups, ...
  static constexpr uint32_t kGroups = kBlocks < 2 ? 1 : 2, kBlocksOfGroup = kBlocks / kGroups;
  static constexpr uint32_t kMathThreads = 128 * kGroups;
  static constexpr bool kSharesWeights = kBlockN > 128, kSharesRows = !kSharesWeights && kBlockM > 64;
  static constexpr uint32_t kCluster = kSharesWeights || kSharesRows ? 2 : 1;
  // The blocks of 64 ids of a stage that a thread block copies.
  static constexpr uint32_t kBlocksCopied = kSharesWeights ? kBlocks / 2 : kBlocks;
  // With eight math warps and one that copies, three warps share the registers of an SM's quarter: 168 a
  // thread. Accumulators of more than 64 rows leave the epilogue too few of those. A whole warpgroup copies
  // then, and gives its registers away.
  static constexpr bool kMovesRegisters = kBlockM > 64;
  static constexpr int kMathRegisters = kBlockN > 128 ? 240 : 232, kCopyRegisters = kBlockN > 128 ? 24 : 40;
  static constexpr uint32_t kThreads = kMathThreads + (kMovesRegisters ? 128 : 32);
  static_assert(256 * kMathRegisters + 128 * kCopyRegisters == 384 * 168,
                "as many as the launch bounds give 384 threads: setmaxnreg would wait for more for ever");
  // Tiles of 128-byte rows in a column: two where the elements of rows are wider than those of weights.
  static constexpr uint32_t kRowTiles = Type::kRowElementBytes / Type::kWeightBytes;
  static constexpr uint32_t kRowTile = kBlockM * kRowBytes, kRowColumn = kRowTiles * kRowTile;
  static constexpr uint32_t kWeightBytes = kBlocks * kColumns * kBlockBytes;
  static constexpr uint32_t kStageBytes = kWeightBytes + kColumns * kRowColumn;
  // Where matmul::tile_coord puts a cluster's tile.
  struct OfCluster {
    static constexpr uint32_t kBlockN = Tile::kBlockN * (kSharesRows ? 2 : 1);
    static constexpr uint32_t kBlockM = Tile::kBlockM * (kSharesWeights ? 2 : 1);
  };
  static constexpr uint32_t kBarriers = Part::kLogitRoom;
  static constexpr uint32_t kRing = (kBarriers + 16 * LMHEAD_WGMMA_MAX_STAGES + 1023) / 1024 * 1024;
  static_assert(kRing + LMHEAD_WGMMA_MIN_STAGES * kStageBytes <= 232448,
                "compute capability 9.0 has 227 KB for a block");
};

// The ring of stages: `full` counts the copies' bytes, `empty` the warps of the cluster that have read the
// stage.
template <class T>
struct Ring : RingOf<Ring<T>> {
  using Base = RingOf<Ring<T>>;

  DEVICE static void init(uint32_t stages) {
    Base::init(barriers(), stages, 1, T::kCluster * T::kMathThreads / 32);
  }
  DEVICE static uint32_t barriers() { return dynamic_shared() + T::kBarriers; }
  // Where the weights of the stage's block `block` of 64 ids are.
  DEVICE uint32_t weights(uint32_t block) const {
    return dynamic_shared() + T::kRing + Base::stage * T::kStageBytes + block * T::kColumns * kBlockBytes;
  }
  DEVICE uint32_t rows() const { return weights(0) + T::kWeightBytes; }
  DEVICE void advance(const MatmulParams &p) { Base::advance(p.stages); }
};

// Tiles of clusters.
template <class T>
DEVICE uint32_t tiles_of(const MatmulParams &p) {
  if (T::kCluster == 1 && p.tail_ids) return T::Part::parts(p);
  using Whole = typename T::OfCluster;
  return ((p.vocab - 1) / Whole::kBlockN + 1) * ((p.row_count - 1) / Whole::kBlockM + 1);
}
template <class T>
DEVICE uint32_t rank_in_cluster() {
  if constexpr (T::kCluster > 1) return cluster_block_rank();
  return 0;
}
// Whether a tile is a tail tile, which may begin at any multiple of 8 ids.
template <class T>
DEVICE bool is_tail_tile(const MatmulParams &p, uint32_t tile) {
  return T::kCluster == 1 && p.tail_ids && tile >= p.whole_tiles;
}
// The block's part of a cluster's tile: it may begin behind the last id or row.
template <class T>
DEVICE matmul::TileCoord tile_coord(const MatmulParams &p, uint32_t tile) {
  if (is_tail_tile<T>(p, tile)) {
    const uint32_t first_id = p.whole_tiles * T::kBlockN + (tile - p.whole_tiles) * p.tail_ids;
    const uint32_t left = p.vocab - first_id;
    return {first_id, 0, first_id + (left < p.tail_ids ? left : p.tail_ids), tile};
  }
  matmul::TileCoord of_block = matmul::tile_coord<typename T::OfCluster>(p, tile);
  if constexpr (T::kSharesRows) of_block.first_id += rank_in_cluster<T>() * T::kBlockN;
  if constexpr (T::kSharesWeights) of_block.first_row += rank_in_cluster<T>() * T::kBlockM;
  return of_block;
}
template <class T>
DEVICE uint32_t columns_of(const MatmulParams &p) {
  return columns_of<T::Type::kWeightBytes>(p.hidden);
}

// A cluster's stages, in order: the columns of a tile, then those of the tile that lies as many tiles behind
// it as there are clusters.
template <class T>
struct Walk {
  uint32_t tile = blockIdx.x / T::kCluster, column = 0;

  DEVICE bool more(const MatmulParams &p) const { return tile < tiles_of<T>(p); }
  // Columns of this stage: fewer than T::kColumns at the end of k.
  DEVICE uint32_t here(const MatmulParams &p) const {
    const uint32_t left = columns_of<T>(p) - column;
    return left < T::kColumns ? left : T::kColumns;
  }
  DEVICE void advance(const MatmulParams &p) {
    column += T::kColumns;
    if (column >= columns_of<T>(p)) column = 0, tile += gridDim.x / T::kCluster;
  }
};

}  // namespace hopper
