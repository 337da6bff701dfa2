// Answers from the sorted lists of all shards, of any length. First a block a row checks the lists and stores
// the row's status and logsumexp or logprobs; then several blocks a row put the best into their places.
#include "answers/lists.cuh"
#include "answers/parts.cuh"
#include "step.cuh"

namespace {

using namespace answers;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;

// What a shard sent of a row.
struct List {
  Ids ids;
  uint32_t places;
  const uint8_t *row;  // the PartialRow
};

DEVICE uint32_t least_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

// The list of shard i. Shards before it have whole blocks of 64 ids, the larger ones first.
DEVICE List list_of(const PartialParts &p, uint32_t i, uint32_t row) {
  const Ids ids = shard_ids(p.vocab, p.shards, i);
  const uint32_t places = least_of(p.k, ids.end - ids.first);
  const uint32_t blocks = (p.vocab + 63) / 64, each = blocks / p.shards, more = blocks % p.shards;
  const auto message = [&](uint32_t blocks) {
    const uint64_t ids = uint64_t(64) * blocks;
    return p.gap + p.rows * partial_bytes(ids < p.k ? uint32_t(ids) : p.k, p.targets);
  };
  const uint32_t larger = least_of(i, more);
  const uint8_t *own = p.data + larger * message(each + 1) + (i - larger) * message(each) + p.gap;
  return {ids, places, own + row * partial_bytes(places, p.targets)};
}

DEVICE U32x2 candidate_of(const List &list, uint32_t n) {
  return ld_global_v2(list.row + sizeof(PartialRow) + uint64_t(n) * sizeof(Candidate));
}
DEVICE uint64_t key_of(U32x2 candidate) { return answers::key_of(candidate.x, candidate.y); }
// The list's number of candidates as it was sent: at most `places` only in a list that was found good.
DEVICE uint32_t count_of(const List &list) {
  return ld_global_u32(list.row + offsetof(PartialRow, candidates));
}

// Whether the list's shard can have sent that candidate: it is finite, and one of the shard's ids.
DEVICE bool can_be(const List &list, U32x2 candidate) {
  return (candidate.x & 0x7fffffffu) < 0x7f800000u &&
         candidate.y - list.ids.first < list.ids.end - list.ids.first;
}

// Joins the parts' rows into `all`, a part a lane, and offers the first candidate of each list to `best`.
DEVICE void take_all(const PartialParts &p, uint32_t row, uint32_t warp, uint32_t warps, Row &all,
                     Best &best) {
#pragma unroll 1
  for (uint32_t first = 32 * warp; first < p.parts; first += 32 * warps) {
    const uint32_t i = first + lane_id();
    const bool there = i < p.parts;
    const List list = list_of(p, there ? i : 0, row);
    const bool any = there && take(all, list.row, list.places) > 0;
    const U32x2 candidate = any ? candidate_of(list, 0) : U32x2{0, 0};
    best.offer(any && can_be(list, candidate), candidate.x, candidate.y);
  }
}

// Checks and joins all that was sent of the row. The result and `best` are valid in the first warp.
DEVICE Row look_at(const PartialParts &p, uint32_t row, Best &best) {
  const uint32_t warp = threadIdx.x / 32;
  best = Best(Warps<kWarps>::list(warp), 1);
  Row all;
  take_all(p, row, warp, kWarps, all, best);
#pragma unroll 1
  for (uint32_t i = 0; i < p.parts; ++i) {
    const List list = list_of(p, i, row);
    const uint32_t count = least_of(count_of(list), list.places);
#pragma unroll 1
    for (uint32_t n = threadIdx.x; n < count; n += kThreads) {
      const U32x2 candidate = candidate_of(list, n);
      const bool sorted = n + 1 == count || key_of(candidate) > key_of(candidate_of(list, n + 1));
      if (!can_be(list, candidate) || !sorted) all.status |= kDamaged;
    }
  }
  Warps<kWarps>::join(all, best);
  if (warp == 0 && p.status) all.status |= ld_global_u32(p.status + row);
  return all;
}

}  // namespace

// Status and logsumexp. A block has a row.
STEP_KERNEL(finish_lists, FinishParams, 256, 4) {
  const uint32_t row = blockIdx.x;
  Best best(0, 1);
  const Row all = look_at(params.from, row, best);
  if (threadIdx.x) return;
  const uint8_t status = status_of(all.status, best.count == 0);
  st_global_u8(params.row_status + row, status);
  const double lse = status == kGood ? logsumexp_of(all, best) : constant(kNan64);
  st_global_f32(params.logsumexp + row, status == kGood ? cvt_rn_f32_f64(lse) : mov_f32_b32(kNan));
}

// Status, and logprobs and ranks of targets. A block has a row.
STEP_KERNEL(finish_lists_logprobs, FinishLogprobsParams, 256, 4) {
  const PartialParts &from = params.from;
  const uint32_t row = blockIdx.x, lane = lane_id();
  Best best(0, 1);
  const Row all = look_at(from, row, best);
  if (threadIdx.x >= 32) return;
  const uint8_t status = status_of_drawn(params, row, status_of(all.status, best.count == 0));
  const bool good = status == kGood;
  const double lse = good ? logsumexp_of(all, best) : constant(kNan64);
#pragma unroll 1
  for (uint32_t target = 0; target < from.targets; ++target) {
    uint32_t beat = 0;
    for (uint32_t i = lane; i < from.parts; i += 32) {
      const List list = list_of(from, i, row);
      beat += ld_global_u32(list.row + partial_bytes(list.places, 0) + 4 * target);
    }
    beat = sum_lanes(beat);
    const uint64_t at = uint64_t(row) * from.targets + target;
    const U32x2 own = ld_global_v2(params.targets + at);
    const bool there = good && own.y != UINT32_MAX;
    if (lane) continue;
    st_global_f32(params.logprobs + at, there ? logprob(mov_f32_b32(own.x), lse) : mov_f32_b32(kNan));
    store_id(params.ranks + at, there ? int64_t(beat) + 1 : -1);
  }
  // All lanes have read `row_status` before lane 0 stores it.
  bar_warp_sync();
  if (lane == 0) st_global_u8(params.row_status + row, status);
}

// A thread puts a candidate into its place among all lists', and fills places that no candidate takes.
// dynamic_shared() holds the first warp's list, then the row's logsumexp.
STEP_KERNEL(place_lists, PlaceListsParams, 256, 4) {
  const PartialParts &from = params.from;
  const uint32_t row = blockIdx.x / params.blocks, block = blockIdx.x % params.blocks;
  const bool good = ld_global_u8(params.row_status + row) == kGood;
  const uint64_t first = uint64_t(row) * params.n;
  int64_t *ids = params.ids + first;
  float *values = params.values + first;
  uint32_t all = 0;
  for (uint32_t i = 0; good && i < from.parts; ++i) all += count_of(list_of(from, i, row));
  for (uint32_t i = block * kThreads + threadIdx.x; i < params.n; i += params.blocks * kThreads) {
    if (i < all) continue;
    store_id(ids + i, -1);
    st_global_u32(values + i, good ? kMinusInfinity : kNan);
  }
  if (!good) return;
  double lse = 0;
  if (params.logprobs) {
    const uint32_t shared = dynamic_shared() + Best::kBytes;
    if (threadIdx.x < 32) {
      Best best(dynamic_shared(), 1);
      Row known;
      take_all(from, row, 0, 1, known, best);
      best.keep(), known.sum.merge_lanes();
      const uint64_t bits = mov_b64_f64(logsumexp_of(known, best));
      if (threadIdx.x == 0) st_shared_v2(shared, {uint32_t(bits), uint32_t(bits >> 32)});
    }
    barrier_sync_all();
    const U32x2 bits = ld_shared_v2(shared);
    lse = mov_f64_b64(uint64_t(bits.y) << 32 | bits.x);
  }
  const uint32_t own = block % from.parts, n = block / from.parts * kThreads + threadIdx.x;
  const List list = list_of(from, own, row);
  if (n >= count_of(list)) return;
  const U32x2 candidate = candidate_of(list, n);
  const uint64_t key = key_of(candidate);
  uint32_t place = n;
#pragma unroll 1
  for (uint32_t i = 0; i < from.parts && place < params.n; ++i) {
    if (i == own) continue;
    const List other = list_of(from, i, row);
    place += count_above(key, count_of(other), [&](uint32_t j) { return key_of(candidate_of(other, j)); });
  }
  if (place >= params.n) return;
  store_id(ids + place, int64_t(candidate.y));
  const float logit = mov_f32_b32(candidate.x);
  st_global_f32(values + place, params.logprobs ? logprob(logit, lse) : logit);
}
