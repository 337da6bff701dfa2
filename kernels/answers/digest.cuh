// Digests of what ranks must share: 64-bit sums of a hash of each word and its place.
#pragma once
#include "ptx.cuh"

namespace answers {

using namespace ptx;

// The hash of 32 bits at a place below 2^32; a digest is a sum of these. Multiplications and shifts of
// splitmix64.
DEVICE uint64_t digest_of(uint32_t bits, uint64_t place) {
  uint64_t v = (place << 32 | bits) * 0x9e3779b97f4a7c15u;
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
  return v ^ v >> 31;
}

DEVICE uint64_t sum_of_lanes(uint64_t v) {
#pragma unroll
  for (uint32_t distance = 16; distance; distance /= 2) {
    const uint32_t low = shfl_bfly(uint32_t(v), distance), high = shfl_bfly(uint32_t(v >> 32), distance);
    v += uint64_t(high) << 32 | low;
  }
  return v;
}

// The sum over a block of `kWarps` warps, in the first thread. Called by all threads, with 8 bytes for each
// warp at dynamic_shared().
template <uint32_t kWarps>
DEVICE uint64_t sum_of_block(uint64_t v) {
  v = sum_of_lanes(v);
  if (lane_id() == 0) st_shared_v2(dynamic_shared() + threadIdx.x / 4, {uint32_t(v), uint32_t(v >> 32)});
  barrier_sync_all();
  if (threadIdx.x) return 0;
  for (uint32_t other = 1; other < kWarps; ++other) {
    const U32x2 word = ld_shared_v2(dynamic_shared() + 8 * other);
    v += uint64_t(word.y) << 32 | word.x;
  }
  return v;
}

}  // namespace answers
