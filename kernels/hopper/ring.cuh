// Stages in shared memory that are filled and emptied in turn, with two mbarriers each: `full` and `empty`.
// The n-th filling of a stage is phase n of both.
#pragma once
#include "ptx.cuh"

namespace hopper {

using namespace ptx;

// `Self::barriers()` is the shared address of the mbarriers, 16 bytes for each stage.
template <class Self>
struct RingOf {
  uint32_t stage = 0, phase = 0;

  // Called by one thread; a barrier of the block, or of its cluster, must follow.
  DEVICE static void init(uint32_t barriers, uint32_t stages, uint32_t filling_arrivals,
                          uint32_t emptying_arrivals) {
#pragma unroll 1
    for (uint32_t i = 0; i < stages; ++i) {
      mbarrier_init(barriers + 16 * i, filling_arrivals);
      mbarrier_init(barriers + 16 * i + 8, emptying_arrivals);
    }
    fence_mbarrier_init();
  }
  DEVICE uint32_t full() const { return static_cast<const Self *>(this)->barriers() + 16 * stage; }
  DEVICE uint32_t empty() const { return full() + 8; }

  DEVICE void wait_full() const { wait(full(), phase); }
  // The first round finds all stages empty: the phase before the first counts as completed.
  DEVICE void wait_empty() const { wait(empty(), phase ^ 1); }
  DEVICE static void wait(uint32_t barrier, uint32_t parity) {
    while (!mbarrier_try_wait_parity(barrier, parity)) {
    }
  }
  DEVICE void advance(uint32_t stages) {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

}  // namespace hopper
