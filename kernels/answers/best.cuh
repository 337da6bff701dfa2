// The best k of candidates that come in any order: larger values first, then lower ids. A warp collects
// candidates in a list in shared memory, and drops all but the best k when the list is nearly full.
#pragma once
#include "ptx.cuh"

namespace answers {

using namespace ptx;

// Floats as integers of the same order. -0 is +0, NaN is above infinity.
DEVICE uint32_t ordered(float value) {
  const uint32_t bits = mov_b32_f32(add_rn_f32(value, 0.0f));
  return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}
DEVICE float from_ordered(uint32_t key) { return mov_f32_b32(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }
// `ordered` of the least float above minus infinity, which is never a candidate.
constexpr uint32_t kLeastOrdered = 0x00800000u;

// The better of two candidates has the larger key; no two ids have the same key.
DEVICE uint64_t key_of(uint32_t value_bits, uint32_t id) {
  return uint64_t(ordered(mov_f32_b32(value_bits))) << 32 | ~id;
}

// Bytes of a PartialRow with `places` candidates and the counts of `targets` targets.
DEVICE uint64_t partial_bytes(uint32_t places, uint32_t targets) {
  return sizeof(PartialRow) + places * sizeof(Candidate) + (4 * targets + 7) / 8 * 8;
}

struct Best {
  static constexpr uint32_t kPlaces = 2 * LMHEAD_BEST, kBytes = kPlaces * sizeof(Candidate);

  uint32_t list;  // address of kPlaces candidates in shared memory, the warp's own
  uint32_t k;
  uint32_t count = 0;
  uint64_t bar;  // keys below it are not wanted

  // `least`: values whose `ordered` is below are not wanted.
  DEVICE Best(uint32_t list, uint32_t k, uint32_t least = 0)
      : list(list), k(k), bar(uint64_t(least > kLeastOrdered ? least : kLeastOrdered) << 32) {}

  // Takes a candidate of each lane that `has` one. Called by whole warps, as all functions here.
  DEVICE void offer(bool has, uint32_t value_bits, uint32_t id) {
    const bool wanted = has && key_of(value_bits, id) >= bar;
    const uint32_t votes = vote_ballot(wanted);
    if (!votes) return;
    if (k == 1) return replace(wanted, value_bits, id);
    if (wanted) st_shared_v2(at(count + popc_b32(votes & ((1u << lane_id()) - 1))), {value_bits, id});
    count += popc_b32(votes);
    if (count > kPlaces - 32) keep();
  }

  // k = 1 needs no list: the best of the lanes' candidates replaces the only place.
  DEVICE void replace(bool has, uint32_t value_bits, uint32_t id) {
    const uint32_t value = ordered(mov_f32_b32(value_bits)), most = redux_max_u32(has ? value : 0);
    const uint32_t least_id = ~redux_max_u32(has && value == most ? ~id : 0);
    if (has && value == most && id == least_id) st_shared_v2(at(0), {value_bits, id});
    bar_warp_sync();
    count = 1;
    bar = uint64_t(most) << 32 | ~least_id;
  }

  // Sorts, best first, and keeps the best k.
  DEVICE void keep() {
    constexpr uint32_t kEach = kPlaces / 32;
    U32x2 own[kEach];
    uint64_t keys[kEach];
    uint32_t ranks[kEach] = {};
    bar_warp_sync();
#pragma unroll
    for (uint32_t i = 0; i < kEach; ++i) {
      const uint32_t n = 32 * i + lane_id();
      own[i] = n < count ? ld_shared_v2(at(n)) : U32x2{0, 0};
      keys[i] = key_of(own[i].x, own[i].y);
    }
#pragma unroll 1
    for (uint32_t n = 0; n < count; ++n) {
      const U32x2 other = ld_shared_v2(at(n));
      const uint64_t key = key_of(other.x, other.y);
#pragma unroll
      for (uint32_t i = 0; i < kEach; ++i) ranks[i] += key > keys[i];
    }
    bar_warp_sync();
#pragma unroll
    for (uint32_t i = 0; i < kEach; ++i)
      if (32 * i + lane_id() < count && ranks[i] < k) st_shared_v2(at(ranks[i]), own[i]);
    bar_warp_sync();
    if (count < k) return;
    count = k;
    const U32x2 last = ld_shared_v2(at(k - 1));
    bar = key_of(last.x, last.y);
  }

  DEVICE uint32_t at(uint32_t n) const { return list + 8 * n; }
  // `ordered` of the k-th best so far: what is below it is not wanted.
  DEVICE uint32_t least() const { return uint32_t(bar >> 32); }
};

}  // namespace answers
