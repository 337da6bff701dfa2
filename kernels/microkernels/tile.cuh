// What the microkernels share: the layout of a tile in shared memory, and the ring of stages between producer
// and consumers.
#pragma once
#include "swizzle.cuh"

namespace microkernels {

using namespace ptx;

// A tile of rows of 128 bytes, for wgmma; k advances by 32 bytes per instruction.
DEVICE uint64_t tile_descriptor(uint32_t tile) {
  return wgmma_descriptor(tile, Swizzle::bytes_128, 8 * kRowBytes);
}
constexpr uint64_t kNextK = 32 >> 4;

DEVICE void wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait_parity(barrier, parity)) {
  }
}

// Stages that are filled and emptied in turn. `full` and `empty` are arrays of mbarriers, one per stage; a
// stage's n-th filling is phase n of both.
template <uint32_t kStages>
struct Ring {
  uint32_t barriers;  // shared address of 2·kStages mbarriers
  uint32_t stage = 0, phase = 0;

  DEVICE explicit Ring(uint32_t address) : barriers(address) {}
  // Called by one thread; a barrier of the block must follow.
  DEVICE void init(uint32_t filling_arrivals, uint32_t emptying_arrivals) const {
    for (uint32_t i = 0; i < kStages; ++i) {
      mbarrier_init(barriers + 8 * i, filling_arrivals);
      mbarrier_init(barriers + 8 * (kStages + i), emptying_arrivals);
    }
    fence_mbarrier_init();
  }
  DEVICE uint32_t full() const { return barriers + 8 * stage; }
  DEVICE uint32_t empty() const { return barriers + 8 * (kStages + stage); }
  // The first round finds all stages empty: the phase before the first counts as completed.
  DEVICE void wait_empty() const { wait(empty(), phase ^ 1); }
  DEVICE void wait_full() const { wait(full(), phase); }
  DEVICE void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// Stores a warpgroup's 64 x kBlockM accumulators to out [row_count, vocab]; the vocabulary is along the 64.
template <int kBlockM, class T>
DEVICE void store_accumulators(T *out, const T (&d)[kBlockM / 2], uint32_t first_id, uint32_t first_row,
                               uint32_t vocab, uint32_t row_count) {
  const uint32_t lane = threadIdx.x % 128;
  const uint32_t id = first_id + lane / 32 * 16 + lane % 32 / 4, row = first_row + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kBlockM / 2; ++i) {
    const uint32_t v = id + (i & 2 ? 8 : 0), r = row + i / 4 * 8 + (i & 1);
    if (v >= vocab || r >= row_count) continue;
    T *to = out + uint64_t(r) * vocab + v;
    if constexpr (sizeof(T) == 4 && T(1) / 2 != 0)
      st_global_f32(to, d[i]);
    else
      st_global_u32(to, uint32_t(d[i]));
  }
}

}  // namespace microkernels
