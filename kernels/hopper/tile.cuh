// A tile of wgmma_matmul, and its layout in shared memory. The vocabulary is on wgmma's M (64), tokens are on
// its N.
//
//     [a part of the tile's logits][candidate lists][mbarriers][ring of stages]
//     a stage: weights [kIds / 64][kColumns][64 ids x 128 bytes] | rows [kColumns][kRows x 128 bytes]
#pragma once
#include "hopper/packed.cuh"
#include "matmul/epilogue.cuh"

namespace hopper {

// What epilogue.cuh asks of a tile, for a part of one: logits pass through shared memory few rows at a time,
// so that the ring has the room.
template <class Type_, uint32_t kIds_, uint32_t kRows_>
struct Part {
  using Type = Type_;
  static constexpr uint32_t kIds = kIds_, kRows = kRows_;
  // A warp has 16 ids of all rows.
  static constexpr uint32_t kWarpIds = 16, kWarpRows = kRows, kThreads = 2 * kIds,
                            kWarpsOfIds = kIds / kWarpIds;
  static constexpr uint32_t kLogitPitch = 4 * (kIds + 4);
  static constexpr uint32_t kLogitRoom = kRows * kLogitPitch + kThreads / 32 * answers::Best::kBytes;
  // Synchronises the warps that multiply, without those that copy.
  DEVICE static void sync() { barrier_sync(1, kThreads); }
};

// kColumns: columns of 128 bytes of k in a stage.
template <class Type_, uint32_t kIds_, uint32_t kRows_, uint32_t kColumns_>
struct Tile {
  using Type = Type_;
  using Part = hopper::Part<Type, kIds_, (kRows_ < 32 ? kRows_ : 32)>;
  static constexpr uint32_t kIds = kIds_, kRows = kRows_, kColumns = kColumns_;
  static constexpr uint32_t kBlocks = kIds / kBlockIds;  // blocks of 64 ids, each with a warpgroup of its own
  static constexpr uint32_t kMathThreads = 128 * kBlocks;
  // With eight math warps and one that copies, three warps share the registers of an SM's quarter: 168 a
  // thread. Accumulators of more than 64 rows leave the epilogue too few of those. A whole warpgroup copies
  // then, and gives its registers away.
  static constexpr bool kMovesRegisters = kRows > 64;
  static constexpr uint32_t kThreads = kMathThreads + (kMovesRegisters ? 128 : 32);
  static constexpr uint32_t kRowTile = kRows * kRowBytes;  // bytes of a column of the rows
  static constexpr uint32_t kWeightBytes = kBlocks * kColumns * kBlockBytes;
  static constexpr uint32_t kStageBytes = kWeightBytes + kColumns * kRowTile;
  // More stages than any device has room for.
  static constexpr uint32_t kMostStages = 16;
  static constexpr uint32_t kBarriers = Part::kLogitRoom;
  static constexpr uint32_t kRing = (kBarriers + 16 * kMostStages + 1023) / 1024 * 1024;
  static_assert(kRing + 2 * kStageBytes <= 232448, "compute capability 9.0 has 227 KB for a block");
};

// Stages that are filled and emptied in turn, with two mbarriers each: `full` counts the copies' bytes,
// `empty` the warpgroups that have read the stage. The n-th filling is phase n of both.
template <class T>
struct Ring {
  uint32_t stage = 0, phase = 0;

  // Called by one thread; a barrier of the block must follow.
  DEVICE static void init(uint32_t stages) {
#pragma unroll 1
    for (uint32_t i = 0; i < stages; ++i) {
      mbarrier_init(barriers() + 16 * i, 1);
      mbarrier_init(barriers() + 16 * i + 8, T::kBlocks);
    }
    fence_mbarrier_init();
  }
  DEVICE static uint32_t barriers() { return dynamic_shared() + T::kBarriers; }
  DEVICE uint32_t full() const { return barriers() + 16 * stage; }
  DEVICE uint32_t empty() const { return full() + 8; }
  // Where the weights of the stage's block `block` of 64 ids are.
  DEVICE uint32_t weights(uint32_t block) const {
    return dynamic_shared() + T::kRing + stage * T::kStageBytes + block * T::kColumns * kBlockBytes;
  }
  DEVICE uint32_t rows() const { return weights(0) + T::kWeightBytes; }

  DEVICE void wait_full() const { wait(full(), phase); }
  // The first round finds all stages empty: the phase before the first counts as completed.
  DEVICE void wait_empty() const { wait(empty(), phase ^ 1); }
  DEVICE void advance(const MatmulParams &p) {
    if (++stage == p.stages) stage = 0, phase ^= 1;
  }
  DEVICE static void wait(uint32_t barrier, uint32_t parity) {
    while (!mbarrier_try_wait_parity(barrier, parity)) {
    }
  }
};

template <class T>
DEVICE uint32_t tiles_of(const MatmulParams &p) {
  return ((p.vocab - 1) / T::kIds + 1) * ((p.row_count - 1) / T::kRows + 1);
}
template <class T>
DEVICE uint32_t columns_of(const MatmulParams &p) {
  return columns_of<T::Type::kWeightBytes>(p.hidden);
}

// A block's stages, in order: the columns of a tile, then those of the tile gridDim.x behind it.
template <class T>
struct Walk {
  uint32_t tile = blockIdx.x, column = 0;

  DEVICE bool more(const MatmulParams &p) const { return tile < tiles_of<T>(p); }
  // Columns of this stage: fewer than T::kColumns at the end of k.
  DEVICE uint32_t here(const MatmulParams &p) const {
    const uint32_t left = columns_of<T>(p) - column;
    return left < T::kColumns ? left : T::kColumns;
  }
  DEVICE void advance(const MatmulParams &p) {
    column += T::kColumns;
    if (column >= columns_of<T>(p)) column = 0, tile += gridDim.x;
  }
};

}  // namespace hopper
