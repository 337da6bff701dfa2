// The status of a row: in messages of shards, and as answers deliver it.
#pragma once
#include "answers/shards.cuh"

namespace answers {

using namespace ptx;

// Row statuses, as answers deliver them.
constexpr uint8_t kGood = 0, kNotFinite = 1, kNothingAllowed = 2, kBadInput = 3;
// Flag in a row's status: a message came that no shard can have sent.
constexpr uint32_t kDamaged = 0x80000000u;

DEVICE uint8_t status_of(uint32_t words, bool nothing_allowed) {
  if (words & (LMHEAD_STATUS_BAD_INDEX | kDamaged)) return kBadInput;
  if (words & LMHEAD_STATUS_NONFINITE) return kNotFinite;
  return nothing_allowed ? kNothingAllowed : kGood;
}

DEVICE void store_id(int64_t *to, int64_t id) {
  st_global_v2(to, {uint32_t(id), uint32_t(uint64_t(id) >> 32)});
}

constexpr uint32_t kNan = 0x7fc00000u, kMinusInfinity = 0xff800000u;

}  // namespace answers
