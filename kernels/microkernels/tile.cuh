// What the microkernels share: the layout of a tile in shared memory, and the ring of stages between producer
// and consumers.
#pragma once
#include "hopper/ring.cuh"
#include "swizzle.cuh"

namespace microkernels {

using namespace ptx;

// A tile of rows of 128 bytes, for wgmma; k advances by 32 bytes per instruction.
DEVICE uint64_t tile_descriptor(uint32_t tile) {
  return wgmma_descriptor(tile, Swizzle::bytes_128, 8 * kRowBytes);
}
constexpr uint64_t kNextK = 32 >> 4;

// A ring of kStages stages between producer and consumers.
template <uint32_t kStages>
struct Ring : hopper::RingOf<Ring<kStages>> {
  using Base = hopper::RingOf<Ring<kStages>>;
  uint32_t first;  // shared address of the mbarriers

  DEVICE explicit Ring(uint32_t address) : first(address) {}
  DEVICE uint32_t barriers() const { return first; }
  DEVICE void init(uint32_t filling_arrivals, uint32_t emptying_arrivals) const {
    Base::init(first, kStages, filling_arrivals, emptying_arrivals);
  }
  DEVICE void advance() { Base::advance(kStages); }
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
