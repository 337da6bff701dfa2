// A histogram in shared memory: 64-bit bins, one behind the other.
#pragma once
#include "ptx.cuh"

namespace answers {

using namespace ptx;

// Adds the lanes' weights to their bins, by a whole warp. Neighbouring lanes mostly have the same bin, where
// their atomics would wait for each other: the lanes of up to two bins are summed up first.
DEVICE void add_to_bins(uint32_t bins, bool counts, uint32_t bin, uint64_t weight) {
  uint32_t left = vote_ballot(counts);
#pragma unroll 1
  for (uint32_t turn = 0; turn < 2 && left; ++turn) {
    const uint32_t lowest = left & (0u - left), leader = 63 - clz_b64(lowest);
    const uint32_t theirs = shfl_idx(bin, leader);
    const bool same = counts && bin == theirs;
    uint64_t sum = same ? weight : 0;
#pragma unroll
    for (uint32_t distance = 16; distance; distance /= 2) {
      const uint32_t low = shfl_bfly(uint32_t(sum), distance);
      sum += uint64_t(shfl_bfly(uint32_t(sum >> 32), distance)) << 32 | low;
    }
    if (lane_id() == leader) atom_shared_add_u64(bins + 8 * bin, sum);
    left &= ~vote_ballot(same);
  }
  // The rest is spread over many bins.
  if (left >> lane_id() & 1) atom_shared_add_u64(bins + 8 * bin, weight);
}

// The bin in which a sum over bins reaches a goal, from the last bin down to the first.
struct Reached {
  uint32_t bin;
  uint64_t weight;  // sum of the bin
  uint64_t left;    // of the goal, below the bins above this one
};

DEVICE uint64_t shfl_idx_u64(uint64_t v, uint32_t lane) {
  return uint64_t(shfl_idx(uint32_t(v >> 32), lane)) << 32 | shfl_idx(uint32_t(v), lane);
}

// Finds that bin among 256, by a whole warp; each lane sums up eight. `goal_of(total)` is the goal, from 1 to
// total.
template <class Goal>
DEVICE Reached find_bin(uint32_t bins, Goal goal_of) {
  constexpr uint32_t kEach = 8;
  const uint32_t lane = lane_id(), last = 255 - kEach * lane;
  uint64_t own[kEach], sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) {
    const U32x2 words = ld_shared_v2(bins + 8 * (last - i));
    sum += own[i] = uint64_t(words.y) << 32 | words.x;
  }
  uint64_t upto = sum;  // sum of the lanes up to this one
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t low = shfl_up(uint32_t(upto), distance), high = shfl_up(uint32_t(upto >> 32), distance);
    if (lane >= distance) upto += uint64_t(high) << 32 | low;
  }
  const uint64_t goal = goal_of(shfl_idx_u64(upto, 31));
  // Valid in the lane whose bins reach the goal only.
  Reached found = {last, 0, goal - (upto - sum)};
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) {
    if (found.bin != last - i) continue;
    found.weight = own[i];
    if (own[i] < found.left) found.left -= own[i], --found.bin;
  }
  const uint32_t leader = 63 - clz_b64(vote_ballot(upto - sum < goal && goal <= upto));
  return {shfl_idx(found.bin, leader), shfl_idx_u64(found.weight, leader), shfl_idx_u64(found.left, leader)};
}

}  // namespace answers
