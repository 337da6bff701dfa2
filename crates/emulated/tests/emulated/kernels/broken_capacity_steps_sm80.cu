// pack_capacity, open_capacity and check_capacity of capacity_sm80.cu with one mistake each; `how` selects
// it, 0 is none.
#include "answers/digest.cuh"
#include "answers/padded.cuh"
#include "broken.h"
#include "matmul/tile.cuh"

using namespace answers;
using namespace ptx;

namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kHalves = LMHEAD_HEADER_HALVES;
constexpr uint32_t kNobody = 0xffffffffu;

DEVICE uint32_t least_of_lanes(uint32_t v) {
  for (uint32_t distance = 16; distance; distance /= 2) {
    const uint32_t other = shfl_bfly(v, distance);
    v = other < v ? other : v;
  }
  return v;
}

DEVICE uint64_t load_u64(const void *from) {
  const U32x2 v = ld_global_v2(from);
  return uint64_t(v.y) << 32 | v.x;
}

DEVICE void store_u64(void *to, uint64_t v) { st_global_v2(to, {uint32_t(v), uint32_t(v >> 32)}); }

DEVICE uint16_t half_of(uint64_t v, uint32_t i) { return uint16_t(v >> 16 * i); }

DEVICE uint64_t number_at(const uint8_t *at) {
  uint64_t v = 0;
  for (uint32_t i = 0; i < 4; ++i) v |= uint64_t(ld_global_u16(at + 2 * i)) << 16 * i;
  return v;
}

}  // namespace

KERNEL(broken_pack_capacity, Broken<PackCapacityParams>, 256, 4) {
  const PackCapacityParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x;
  wait_or_not(how);
  // 2: indices behind the last
  const uint32_t number = matmul::row_number(p.rows, row, how == 2 ? row + 1 : p.row_count);
  const bool is_one = row < p.row_count, there = number != matmul::kNoRow;
  const bool bad = (is_one || how == 3) && !there;  // 3: a bad index of each row of padding
  if (threadIdx.x == 0) st_global_u32(p.status + row, bad ? LMHEAD_STATUS_BAD_INDEX : 0);
  const uint8_t *from = static_cast<const uint8_t *>(p.rows.data) + (there ? number * p.rows.pitch : 0);
  uint8_t *to = p.out + uint64_t(row) * (how == 4 ? p.rows.pitch : p.row_bytes);  // 4: rows as they lay
  const uint64_t all = uint64_t(p.rows.data) | p.rows.pitch | uint64_t(p.out) | p.row_bytes;
  const bool aligned = all % 16 == 0 || how == 5;  // 5: 16 bytes at a time, however they lie
  uint64_t digest = 0;
  const auto add = [&](uint32_t at, uint32_t word) {
    digest += digest_of(word & 0xffff, at / 2) + digest_of(word >> 16, at / 2 + 1);
  };
  if (!there && how == 6) return;  // 6: rows of padding left as they were
  if (aligned) {
    for (uint32_t at = 16 * threadIdx.x; at < p.row_bytes; at += 16 * blockDim.x) {
      const U32x4 v = there ? ld_global_v4(from + at) : U32x4{};
      st_global_v4(to + at, v);
      if (p.digests) add(at, v.x), add(at + 4, v.y), add(at + 8, v.z), add(at + 12, v.w);
    }
  } else {
    for (uint32_t at = 2 * threadIdx.x; at < p.row_bytes; at += 2 * blockDim.x) {
      const uint16_t v = there ? ld_global_u16(from + at) : uint16_t(0);
      st_global_u16(to + at, v);
      if (p.digests) digest += digest_of(v, how == 7 ? at : at / 2);  // 7: places by bytes
    }
  }
  if (!p.digests) return;
  digest = how == 8 ? sum_of_lanes(digest) : sum_of_block<kWarps>(digest);  // 8: of the first warp
  if (threadIdx.x) return;
  // 9: no number of the row
  digest = digest_of(uint32_t(digest), how == 9 ? 0 : row) + digest_of(uint32_t(digest >> 32), there);
  store_u64(p.digests + row, digest);
}

KERNEL(broken_open_capacity, Broken<OpenCapacityParams>, 32, 1) {
  const OpenCapacityParams &p = params.right;
  const uint32_t how = params.how, lane = lane_id();
  wait_or_not(how);
  uint64_t digest = 0, bad = 0;
  for (uint32_t row = lane; how == 2 ? row - lane < p.row_count : row < p.row_count; row += 32) {
    if (p.digests) digest += load_u64(p.digests + row);
    if (p.digests && p.adjusted && how != 3) digest += load_u64(p.adjusted + row);  // 3: no adjustments
    bad += ld_global_u32(p.status + row) ? 1 : 0;
  }
  for (uint32_t i = lane; p.digests && i < p.input_words; i += 32)
    digest += digest_of(ld_global_u32(p.inputs + i), (1ull << 31) + (how == 4 ? 0 : i));  // 4: no places
  if (how != 5) digest = sum_of_lanes(digest), bad = sum_of_lanes(bad);  // 5: of the first lane
  const uint64_t sequence = load_u64(&p.state->sequence);
  for (uint32_t i = lane; i < kHalves; i += 32) {
    uint16_t half = p.header[i];
    // 6: the step's number is not told
    if (i - LMHEAD_HEADER_SEQUENCE < 4 && how != 6) half = half_of(sequence, i - LMHEAD_HEADER_SEQUENCE);
    // 7: the digest's lowest word alone
    if (p.digests && i - LMHEAD_HEADER_INPUTS < (how == 7 ? 1 : 4))
      half = half_of(digest, i - LMHEAD_HEADER_INPUTS);
    st_global_u16(p.out + i, half);
  }
  if (how != 8) bar_warp_sync();
  if (lane) return;
  store_u64(&p.state->sequence, how == 9 ? sequence : sequence + 1);  // 9: the step is not counted
  st_global_u32(&p.state->bad_rows, uint32_t(bad));
}

KERNEL(broken_check_capacity, Broken<CheckCapacityParams>, 256, 1) {
  const CheckCapacityParams &p = params.right;
  const uint32_t how = params.how, lane = lane_id(), warp = threadIdx.x / 32;
  wait_or_not(how);
  const uint8_t *own = reinterpret_cast<const uint8_t *>(p.own);
  const uint64_t pitch = how == 2 ? 2 * kHalves : p.header_pitch;  // 2: headers close together
  const auto header = [&](uint32_t member) { return p.headers + member * pitch; };
  uint32_t differs = kNobody;
  for (uint32_t n = threadIdx.x; n < p.members * kHalves; n += kThreads) {
    const uint32_t member = n / kHalves, i = n % kHalves;
    const bool of_replica = i - LMHEAD_HEADER_ROWS < 4 || i - LMHEAD_HEADER_INPUTS < 4;
    // 3: the first replica's; 4: rows and inputs are not compared; 5: the step's number is not
    const uint8_t *like = of_replica ? header(how == 3 ? 0 : member / p.ranks * p.ranks) : own;
    const bool skipped = (how == 4 && of_replica) || (how == 5 && i - LMHEAD_HEADER_SEQUENCE < 4);
    const bool same = ld_global_u16(header(member) + 2 * i) == ld_global_u16(like + 2 * i) || skipped;
    // 6: more rows than the capacity
    const bool too_many =
        i == LMHEAD_HEADER_ROWS && number_at(header(member) + 2 * i) > p.capacity && how != 6;
    // 7: the last that differs
    if ((!same || too_many) && (member < differs || how == 7)) differs = member;
  }
  differs = least_of_lanes(differs);
  if (lane == 0) st_shared_u32(dynamic_shared() + 4 * warp, differs);
  if (how != 8) barrier_sync_all();
  // 9: what this warp has compared
  for (uint32_t other = 0; other < kWarps && how != 9; ++other) {
    const uint32_t theirs = ld_shared_u32(dynamic_shared() + 4 * other);
    differs = theirs < differs ? theirs : differs;
  }

  const uint32_t each = p.parts * p.part_rows, all = p.members / p.ranks * each;
  for (uint32_t n = threadIdx.x; n < all; n += kThreads) {
    const uint32_t replica = n / each;
    int32_t position = -1;
    if (differs == kNobody) {
      // 10: rows of another rank's header
      const uint32_t of = how == 10 ? replica : replica * p.ranks;
      const uint32_t rows = uint32_t(number_at(header(of) + 2 * LMHEAD_HEADER_ROWS));
      const uint32_t row = own_row(n % each, rows, p.parts, p.part_rows);
      // 11: rows of padding; 12: replicas close together
      const uint32_t from = replica * (how == 12 ? rows : p.replica_rows);
      if (row != kNobody || how == 11) position = int32_t(p.first_row + from + row);
    }
    st_global_u32(p.positions + n, uint32_t(position));
  }
  if (differs == kNobody || (load_u64(&p.state->mismatched) && how != 13)) return;  // 13: the last is kept
  const uint32_t shown = differs == p.me && how != 14 ? p.me / p.ranks * p.ranks : differs;  // 14: its own
  if (how != 15) barrier_sync_all();
  if (threadIdx.x < kHalves) {
    st_global_u16(p.state->own + threadIdx.x, ld_global_u16(own + 2 * threadIdx.x));
    st_global_u16(p.state->other + threadIdx.x, ld_global_u16(header(shown) + 2 * threadIdx.x));
  }
  if (threadIdx.x) return;
  st_global_u32(&p.state->member, shown);
  store_u64(&p.state->mismatched, load_u64(&p.state->sequence));
}
