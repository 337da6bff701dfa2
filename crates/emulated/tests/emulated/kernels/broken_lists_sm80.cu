// finish_lists, finish_lists_logprobs and place_lists of lists_sm80.cu with one mistake each; `how` selects
// it, 0 is none. Blocks have two warps: fewer threads to emulate.
#include "answers/lists.cuh"
#include "answers/parts.cuh"
#include "broken.h"

using namespace answers;

namespace {

constexpr uint32_t kThreads = 64, kWarps = kThreads / 32;

struct List {
  Ids ids;
  uint32_t places;
  const uint8_t *row;
};

DEVICE uint32_t least_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

DEVICE List list_of(const PartialParts &p, uint32_t how, uint32_t i, uint32_t row) {
  const Ids ids = shard_ids(p.vocab, p.shards, i);
  const uint32_t places = least_of(p.k, ids.end - ids.first);
  const uint32_t blocks = (p.vocab + 63) / 64, each = blocks / p.shards, more = blocks % p.shards;
  const uint64_t gap = how == 2 ? 0 : p.gap;  // 2: one gap, in front of the first
  const auto message = [&](uint32_t blocks) {
    const uint64_t ids = uint64_t(64) * blocks;
    // 3: places for all ids
    return gap + p.rows * partial_bytes(ids < p.k || how == 3 ? uint32_t(ids) : p.k, p.targets);
  };
  const uint32_t larger = least_of(i, how == 4 ? i : more);  // 4: messages as long as the first
  const uint8_t *own = p.data + larger * message(each + 1) + (i - larger) * message(each) + p.gap;
  // 5: rows of the last list as long as the others'
  return {ids, places, own + row * partial_bytes(how == 5 ? p.k : places, p.targets)};
}

DEVICE U32x2 candidate_of(const List &list, uint32_t n) {
  return ld_global_v2(list.row + sizeof(PartialRow) + uint64_t(n) * sizeof(Candidate));
}
DEVICE uint64_t key_of(U32x2 candidate) { return answers::key_of(candidate.x, candidate.y); }
DEVICE uint32_t count_of(const List &list) {
  return ld_global_u32(list.row + offsetof(PartialRow, candidates));
}

DEVICE bool can_be(const List &list, U32x2 candidate, uint32_t how) {
  const bool own = candidate.y - list.ids.first < list.ids.end - list.ids.first;
  return (candidate.x & 0x7fffffffu) < 0x7f800000u && (own || how == 6);  // 6: an id of another shard
}

DEVICE void take_all(const PartialParts &p, uint32_t how, uint32_t row, uint32_t warp, uint32_t warps,
                     Row &all, Best &best) {
  for (uint32_t first = 32 * warp; first < p.parts; first += 32 * warps) {
    const uint32_t i = first + lane_id();
    const bool there = i < p.parts;
    const List list = list_of(p, how, there ? i : 0, row);
    const bool any = there && take(all, list.row, list.places) > 0;
    const U32x2 candidate = any ? candidate_of(list, 0) : U32x2{0, 0};
    best.offer(any && can_be(list, candidate, how), candidate.x, candidate.y);
  }
}

DEVICE Row look_at(const PartialParts &p, uint32_t how, uint32_t row, Best &best) {
  const uint32_t warp = threadIdx.x / 32;
  best = Best(Warps<kWarps>::list(warp), 1);
  Row all;
  take_all(p, how, row, warp, kWarps, all, best);
  for (uint32_t i = 0; i < (how == 7 ? 1 : p.parts); ++i) {  // 7: the first list alone
    const List list = list_of(p, how, i, row);
    const uint32_t sent = count_of(list);
    const uint32_t count = how == 8 ? sent : least_of(sent, list.places);  // 8: a count that is not checked
    for (uint32_t n = threadIdx.x; n < count; n += how == 9 ? count : kThreads) {  // 9: the first round alone
      const U32x2 candidate = candidate_of(list, n);
      bool sorted = n + 1 == count && how != 10;  // 10: the last compared with what is behind it
      if (!sorted) {
        const U32x2 next = candidate_of(list, n + 1);
        // 11: a tie in any order
        sorted = how == 11 ? key_of(candidate) >> 32 >= key_of(next) >> 32 : key_of(candidate) > key_of(next);
      }
      if (!can_be(list, candidate, how) || !sorted) all.status |= kDamaged;
    }
  }
  Warps<kWarps>::join(all, best);
  if (warp == 0 && p.status && how != 12) all.status |= ld_global_u32(p.status + row);  // 12: not asked
  return all;
}

}  // namespace

KERNEL(broken_finish_lists, Broken<FinishParams>, 64, 4) {
  const FinishParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x;
  wait_or_not(how);
  Best best(0, 1);
  const Row all = look_at(p.from, how, row, best);
  if (threadIdx.x) return;
  const uint8_t status = status_of(all.status, best.count == 0);
  st_global_u8(p.row_status + row, status);
  const bool good = status == kGood || how == 13;  // 13: the sum of a row without an answer
  const double lse = good ? logsumexp_of(all, best) : constant(kNan64);
  st_global_f32(p.logsumexp + row, good ? cvt_rn_f32_f64(lse) : mov_f32_b32(kNan));
}

KERNEL(broken_lists_logprobs, Broken<FinishLogprobsParams>, 64, 4) {
  const FinishLogprobsParams &p = params.right;
  const PartialParts &from = p.from;
  const uint32_t how = params.how, row = blockIdx.x, lane = lane_id();
  wait_or_not(how);
  Best best(0, 1);
  const Row all = look_at(from, how, row, best);
  if (threadIdx.x >= 32) return;
  uint8_t status = status_of(all.status, best.count == 0);
  if (p.drawn && how != 14) {  // 14: what a draw has found of the row is not asked
    const uint8_t known = ld_global_u8(p.row_status + row);
    status = known == kGood ? status : known;
  }
  const bool good = status == kGood;
  const double lse = good ? logsumexp_of(all, best) : constant(kNan64);
  for (uint32_t target = 0; target < from.targets; ++target) {
    uint32_t beat = 0;
    for (uint32_t i = lane; i < from.parts; i += 32) {
      const List list = list_of(from, how, i, row);
      // 15: counts behind k places
      beat += ld_global_u32(list.row + partial_bytes(how == 15 ? from.k : list.places, 0) + 4 * target);
    }
    if (how != 16) beat = sum_lanes(beat);  // 16: the first shard's count
    const uint64_t at = uint64_t(row) * from.targets + target;
    const U32x2 own = ld_global_v2(p.targets + (how == 17 ? target : at));  // 17: the first row's targets
    const bool there = good && (own.y != UINT32_MAX || how == 18);          // 18: a target that is none
    if (lane) continue;
    st_global_f32(p.logprobs + at, there ? logprob(mov_f32_b32(own.x), lse) : mov_f32_b32(kNan));
    store_id(p.ranks + at, there ? int64_t(beat) + (how != 19) : -1);  // 19: ranks from 0 on
  }
  bar_warp_sync();
  if (lane == 0) st_global_u8(p.row_status + row, status);
}

KERNEL(broken_place_lists, Broken<PlaceListsParams>, 64, 4) {
  const PlaceListsParams &p = params.right;
  const PartialParts &from = p.from;
  const uint32_t how = params.how, row = blockIdx.x / p.blocks, block = blockIdx.x % p.blocks;
  wait_or_not(how);
  const bool good = ld_global_u8(p.row_status + row) == kGood || how == 20;  // 20: a row without an answer
  const uint64_t first = uint64_t(row) * (how == 21 ? from.k : p.n);         // 21: rows of k places
  int64_t *ids = p.ids + first;
  float *values = p.values + first;
  uint32_t all = 0;
  for (uint32_t i = 0; good && i < from.parts; ++i) all += count_of(list_of(from, how, i, row));
  if (how == 22) all = p.n;  // 22: places without a candidate left as they were
  for (uint32_t i = block * kThreads + threadIdx.x; i < p.n; i += p.blocks * kThreads) {
    if (i < all) continue;
    store_id(ids + i, -1);
    st_global_u32(values + i, good ? kMinusInfinity : kNan);
  }
  if (!good) return;
  double lse = 0;
  if (p.logprobs) {
    const uint32_t shared = dynamic_shared() + Best::kBytes;
    if (threadIdx.x < 32) {
      Best best(dynamic_shared(), 1);
      Row known;
      take_all(from, how, row, 0, 1, known, best);
      best.keep();
      if (how != 23) known.sum.merge_lanes();  // 23: the first shard's sum
      const uint64_t bits = mov_b64_f64(logsumexp_of(known, best));
      if (threadIdx.x == 0) st_shared_v2(shared, {uint32_t(bits), uint32_t(bits >> 32)});
    }
    if (how != 24) barrier_sync_all();
    const U32x2 bits = ld_shared_v2(shared);
    lse = mov_f64_b64(uint64_t(bits.y) << 32 | bits.x);
  }
  const uint32_t own = block % from.parts;
  // 25: blocks of all lists counted for this one
  const uint32_t n = (how == 25 ? block : block / from.parts) * kThreads + threadIdx.x;
  const List list = list_of(from, how, own, row);
  if (n >= (how == 26 ? from.k : count_of(list))) return;  // 26: threads behind the last candidate
  const U32x2 candidate = candidate_of(list, n);
  // 27: a tie won by the list with the higher ids
  const uint64_t key = how == 27 ? key_of(candidate) | UINT32_MAX : key_of(candidate);
  uint32_t place = n;
  for (uint32_t i = 0; i < from.parts && place < p.n; ++i) {
    if (i == own) continue;
    const List other = list_of(from, how, i, row);
    const uint32_t count = count_of(other);
    const uint64_t above = how == 27 && i > own ? (key >> 32 << 32) - 1 : key;
    place += count_above(above, count, [&](uint32_t j) { return key_of(candidate_of(other, j)); });
  }
  if (place >= p.n && how != 28) return;  // 28: candidates behind the last place
  store_id(ids + place, int64_t(candidate.y));
  const float logit = mov_f32_b32(candidate.x);
  st_global_f32(values + place, p.logprobs && how != 29 ? logprob(logit, lse) : logit);  // 29: no logprobs
}
