// Steps of a static (padded) shape, which a CUDA graph can replay. Rows are padded with zeros; the device
// itself numbers the steps and compares the headers of all ranks. The host takes no part.
#include "answers/digest.cuh"
#include "answers/padded.cuh"
#include "matmul/tile.cuh"
#include "step.cuh"

namespace {

using namespace answers;
using namespace ptx;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kHalves = LMHEAD_HEADER_HALVES;
constexpr uint32_t kNobody = 0xffffffffu;

DEVICE uint32_t least_of_lanes(uint32_t v) {
#pragma unroll
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

// 16-bit word `i` of `v`, the lowest first.
DEVICE uint16_t half_of(uint64_t v, uint32_t i) { return uint16_t(v >> 16 * i); }

// The 64-bit number at `at`, read as four 16-bit words: headers are aligned to 2 bytes only.
DEVICE uint64_t number_at(const uint8_t *at) {
  uint64_t v = 0;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) v |= uint64_t(ld_global_u16(at + 2 * i)) << 16 * i;
  return v;
}

}  // namespace

// Copies the rank's own rows, pads them with zeros, and digests each if asked to. A block has a row.
// dynamic_shared() holds a sum for each warp.
STEP_KERNEL(pack_capacity, PackCapacityParams, 256, 4) {
  const uint32_t row = blockIdx.x, number = matmul::row_number(params.rows, row, params.row_count);
  const bool is_one = row < params.row_count, there = number != matmul::kNoRow;
  if (threadIdx.x == 0) st_global_u32(params.status + row, is_one && !there ? LMHEAD_STATUS_BAD_INDEX : 0);
  const uint8_t *from =
      static_cast<const uint8_t *>(params.rows.data) + (there ? number * params.rows.pitch : 0);
  uint8_t *to = params.out + uint64_t(row) * params.row_bytes;
  const bool aligned =
      (uint64_t(params.rows.data) | params.rows.pitch | uint64_t(params.out) | params.row_bytes) % 16 == 0;
  uint64_t digest = 0;
  // Both loops digest 16-bit words, so that the alignment of a row does not change its digest.
  const auto add = [&](uint32_t at, uint32_t word) {
    digest += digest_of(word & 0xffff, at / 2) + digest_of(word >> 16, at / 2 + 1);
  };
  if (aligned) {
    for (uint32_t at = 16 * threadIdx.x; at < params.row_bytes; at += 16 * blockDim.x) {
      const U32x4 v = there ? ld_global_v4(from + at) : U32x4{};
      st_global_v4(to + at, v);
      if (params.digests) add(at, v.x), add(at + 4, v.y), add(at + 8, v.z), add(at + 12, v.w);
    }
  } else {
    for (uint32_t at = 2 * threadIdx.x; at < params.row_bytes; at += 2 * blockDim.x) {
      const uint16_t v = there ? ld_global_u16(from + at) : uint16_t(0);
      st_global_u16(to + at, v);
      if (params.digests) digest += digest_of(v, at / 2);
    }
  }
  if (!params.digests) return;
  digest = sum_of_block<kWarps>(digest);
  if (threadIdx.x) return;
  // The digest also covers the row's position, and whether its index names a row.
  digest = digest_of(uint32_t(digest), row) + digest_of(uint32_t(digest >> 32), there);
  store_u64(params.digests + row, digest);
}

// Numbers the step and writes this rank's header. One warp.
STEP_KERNEL(open_capacity, OpenCapacityParams, 32, 1) {
  const uint32_t lane = lane_id();
  uint64_t digest = 0, bad = 0;
  for (uint32_t row = lane; row < params.row_count; row += 32) {
    if (params.digests) digest += load_u64(params.digests + row);
    if (params.digests && params.adjusted) digest += load_u64(params.adjusted + row);
    bad += ld_global_u32(params.status + row) ? 1 : 0;
  }
  // Positions from 2^31 on, which no row has.
  for (uint32_t i = lane; params.digests && i < params.input_words; i += 32)
    digest += digest_of(ld_global_u32(params.inputs + i), (1ull << 31) + i);
  digest = sum_of_lanes(digest), bad = sum_of_lanes(bad);
  const uint64_t sequence = load_u64(&params.state->sequence);
  for (uint32_t i = lane; i < kHalves; i += 32) {
    uint16_t half = params.header[i];
    if (i - LMHEAD_HEADER_SEQUENCE < 4) half = half_of(sequence, i - LMHEAD_HEADER_SEQUENCE);
    if (params.digests && i - LMHEAD_HEADER_INPUTS < 4) half = half_of(digest, i - LMHEAD_HEADER_INPUTS);
    st_global_u16(params.out + i, half);
  }
  // All lanes have read `sequence` before lane 0 stores the next one.
  bar_warp_sync();
  if (lane) return;
  store_u64(&params.state->sequence, sequence + 1);
  st_global_u32(&params.state->bad_rows, uint32_t(bad));
}

// Compares the headers of all members, then stores where each replica's rows lie. dynamic_shared() holds for
// each warp the lowest member whose header differs.
STEP_KERNEL(check_capacity, CheckCapacityParams, 256, 1) {
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
  const uint8_t *own = reinterpret_cast<const uint8_t *>(params.own);
  const auto header = [&](uint32_t member) { return params.headers + member * params.header_pitch; };
  uint32_t differs = kNobody;
  for (uint32_t n = threadIdx.x; n < params.members * kHalves; n += kThreads) {
    const uint32_t member = n / kHalves, i = n % kHalves;
    const bool of_replica = i - LMHEAD_HEADER_ROWS < 4 || i - LMHEAD_HEADER_INPUTS < 4;
    // Row counts and inputs must be equal within a replica: they are compared with its first rank. The rest
    // is compared with this rank's own header.
    const uint8_t *like = of_replica ? header(member / params.ranks * params.ranks) : own;
    const bool same = ld_global_u16(header(member) + 2 * i) == ld_global_u16(like + 2 * i);
    const bool too_many = i == LMHEAD_HEADER_ROWS && number_at(header(member) + 2 * i) > params.capacity;
    if ((!same || too_many) && member < differs) differs = member;
  }
  differs = least_of_lanes(differs);
  if (lane == 0) st_shared_u32(dynamic_shared() + 4 * warp, differs);
  barrier_sync_all();
  for (uint32_t other = 0; other < kWarps; ++other) {
    const uint32_t theirs = ld_shared_u32(dynamic_shared() + 4 * other);
    differs = theirs < differs ? theirs : differs;
  }

  const uint32_t each = params.parts * params.part_rows, all = params.members / params.ranks * each;
  for (uint32_t n = threadIdx.x; n < all; n += kThreads) {
    const uint32_t replica = n / each;
    int32_t position = -1;
    if (differs == kNobody) {
      const uint32_t rows = uint32_t(number_at(header(replica * params.ranks) + 2 * LMHEAD_HEADER_ROWS));
      const uint32_t row = own_row(n % each, rows, params.parts, params.part_rows);
      if (row != kNobody) position = int32_t(params.first_row + replica * params.replica_rows + row);
    }
    st_global_u32(params.positions + n, uint32_t(position));
  }
  // Only the first mismatch is kept. The branch is uniform: all threads read the same word, which nobody has
  // written yet.
  if (differs == kNobody || load_u64(&params.state->mismatched)) return;
  // If this rank's own header is the one that differs, show the header that it was compared with.
  const uint32_t shown = differs == params.me ? params.me / params.ranks * params.ranks : differs;
  barrier_sync_all();
  if (threadIdx.x < kHalves) {
    st_global_u16(params.state->own + threadIdx.x, ld_global_u16(own + 2 * threadIdx.x));
    st_global_u16(params.state->other + threadIdx.x, ld_global_u16(header(shown) + 2 * threadIdx.x));
  }
  if (threadIdx.x) return;
  st_global_u32(&params.state->member, shown);
  store_u64(&params.state->mismatched, load_u64(&params.state->sequence));
}
