// merge_partials, finish_best, finish_logprobs and finish_logits of partials_sm80.cu with one mistake each;
// `how` selects it, 0 is none.
#include "answers/parts.cuh"
#include "broken.h"

using namespace answers;

namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;

// row_of of partials_sm80.cu.
DEVICE const uint8_t *row_of(const PartialParts &p, uint32_t how, uint32_t i, uint32_t row, uint32_t places) {
  const uint64_t gaps = how == 10 ? p.gap : (i + 1) * p.gap;  // 10: one gap, in front of the first part
  const uint32_t taken = how == 5 ? p.k : places;             // 5: k places in the last part, too
  return p.data + gaps + i * (p.rows * partial_bytes(p.k, p.targets)) + row * partial_bytes(taken, p.targets);
}

// ids_of of answers/parts.cuh.
DEVICE Ids ids_or_not(const PartialParts &p, uint32_t how, uint32_t i) {
  // 13: as if no part had fewer ids than the first
  if (how == 13) return cut(uint64_t(i) * p.part_ids, uint64_t(i + 1) * p.part_ids, p.vocab);
  return ids_of(p, i);
}

DEVICE uint32_t places_of(const PartialParts &p, const Ids &ids) {
  return p.k < ids.end - ids.first ? p.k : ids.end - ids.first;
}

// Warps::join of answers/join.cuh.
DEVICE void join_warps(uint32_t how, Row &all, Best &best) {
  using Lists = Warps<kWarps>;
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
  best.keep();
  all.sum.merge_lanes();
  if (how != 11)  // else one lane's status counts
    for (uint32_t distance = 16; distance; distance /= 2) all.status |= shfl_bfly(all.status, distance);
  if (lane == 0) {
    const uint32_t to = Lists::row(warp);
    for (uint32_t i = 0; i < 3; ++i)
      st_shared_v2(to + 8 * i, {uint32_t(all.sum.words[i]), uint32_t(all.sum.words[i] >> 32)});
    st_shared_v2(to + 24, {uint32_t(all.sum.floor), all.status});
    st_shared_u32(to + 32, best.count);
  }
  if (how != 2) barrier_sync_all();
  if (warp) return;
  for (uint32_t other = 1; other < kWarps; ++other) {
    const uint32_t from = Lists::row(other), count = ld_shared_u32(from + 32);
    ExpSum sum;
    for (uint32_t i = 0; i < 3; ++i) {
      const U32x2 word = ld_shared_v2(from + 8 * i);
      sum.words[i] = uint64_t(word.y) << 32 | word.x;
    }
    const U32x2 floor_status = ld_shared_v2(from + 24);
    sum.floor = how == 7 ? all.sum.floor : int32_t(floor_status.x);  // 7: words added as they lie
    all.sum.merge(sum);
    all.status |= floor_status.y;
    const U32x2 candidate = lane < count ? ld_shared_v2(Lists::list(other) + 8 * lane) : U32x2{0, 0};
    best.offer(lane < count, candidate.x, candidate.y);
  }
  if (how != 3) best.keep();  // else they are in no order
}

// join of partials_sm80.cu.
DEVICE Row join(const PartialParts &p, uint32_t how, uint32_t row, Best &best) {
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
  best = Best(Warps<kWarps>::list(warp), p.k);
  Row all;
  for (uint32_t first = 32 * warp; first < p.parts; first += kThreads) {
    const uint32_t i = first + lane;
    const bool there = i < p.parts || how == 4;  // 4: lanes behind the last part read one
    const Ids ids = ids_or_not(p, how, there ? i : 0);
    const uint32_t places = places_of(p, ids);
    const uint8_t *part = row_of(p, how, i, row, places);
    const uint32_t count = there ? take(all, part, places) : 0;
    uint64_t before = UINT64_MAX;
    for (uint32_t n = 0; vote_any(n < count); ++n) {
      U32x2 candidate = {0, 0};
      if (n < count) candidate = ld_global_v2(part + sizeof(PartialRow) + n * sizeof(Candidate));
      const bool finite = (candidate.x & 0x7fffffffu) < 0x7f800000u;
      const bool own = candidate.y - ids.first < ids.end - ids.first || how == 12;  // 12: not asked
      const uint64_t key = key_of(candidate.x, candidate.y);
      const bool good = finite && own && (p.part_ids || key < before);
      before = key;
      if (n < count && !good) all.status |= kDamaged;
      // 6: the higher of two ids wins; they are turned back below.
      best.offer(n < count && good, candidate.x, how == 6 ? ~candidate.y : candidate.y);
    }
  }
  join_warps(how, all, best);
  if (warp == 0 && p.status) all.status |= ld_global_u32(p.status + row);
  if (how == 6 && warp == 0) {
    bar_warp_sync();
    if (lane < best.count) {
      const U32x2 candidate = ld_shared_v2(best.at(lane));
      st_shared_v2(best.at(lane), {candidate.x, ~candidate.y});
    }
    bar_warp_sync();
  }
  return all;
}

DEVICE uint32_t beating(const PartialParts &p, uint32_t how, uint32_t row, uint32_t n) {
  uint32_t count = 0;
  for (uint32_t i = lane_id(); i < p.parts; i += 32) {
    const uint32_t places = places_of(p, ids_or_not(p, how, i));
    const uint8_t *part = row_of(p, how, i, row, places);
    count += ld_global_u32(part + sizeof(PartialRow) + places * sizeof(Candidate) + 4 * n);
  }
  return sum_lanes(count);
}

}  // namespace

KERNEL(broken_merge, Broken<MergePartialsParams>, 256, 4) {
  const MergePartialsParams &p = params.right;
  const PartialParts &from = p.from;
  const uint32_t how = params.how, row = blockIdx.x;
  wait_or_not(how);
  Best best(0, from.k);
  Row all = join(from, how, row, best);
  if (threadIdx.x >= 32) return;
  uint8_t *out = p.out + uint64_t(row) * partial_bytes(p.places, from.targets);
  const bool good = !(all.status & (from.nonfinite | kDamaged));
  if (good) {
    all.status = best.count ? LMHEAD_STATUS_ALLOWED : 0;
  } else {
    if (how != 8) all.sum = ExpSum();  // else what is known of a row without an answer is sent
    best.count = 0;
    all.status = LMHEAD_STATUS_NONFINITE | (all.status & LMHEAD_STATUS_BAD_INDEX);
  }
  store_partial(out, all, best, from.k, how == 9 ? 0 : p.first_id);  // 9: ids of the shard
  store_counts(out, p.places, from.targets,
               [&](uint32_t n) { return good ? beating(from, how, row, n) : 0; });
}

KERNEL(broken_finish, Broken<FinishParams>, 256, 4) {
  const FinishParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x, k = p.from.k, n = lane_id();
  wait_or_not(how);
  Best best(0, k);
  const Row all = join(p.from, how, row, best);
  if (threadIdx.x >= 32) return;
  const uint8_t status = status_of(all.status, best.count == 0);
  const bool good = status == kGood, there = good && n < best.count;
  if (n < k) {
    const U32x2 candidate = there ? ld_shared_v2(best.at(n)) : U32x2{good ? kMinusInfinity : kNan, 0};
    store_id(p.ids + row * k + n, there ? int64_t(candidate.y) : -1);
    st_global_u32(p.values + row * k + n, candidate.x);
  }
  if (n) return;
  const float max = mov_f32_b32(ld_shared_v2(best.at(0)).x);
  st_global_u8(p.row_status + row, status);
  st_global_f32(p.logsumexp + row, good ? cvt_rn_f32_f64(logsumexp(all.sum, max)) : mov_f32_b32(kNan));
}

KERNEL(broken_logprobs, Broken<FinishLogprobsParams>, 256, 4) {
  const FinishLogprobsParams &p = params.right;
  const PartialParts &from = p.from;
  const uint32_t how = params.how, row = blockIdx.x, lane = lane_id(), n = p.top_n;
  wait_or_not(how);
  Best best(0, from.k);
  const Row all = join(from, how, row, best);
  if (threadIdx.x >= 32) return;
  uint8_t status = status_of(all.status, best.count == 0);
  if (p.drawn && how != 13) {  // 13: what a draw has found of the row is not asked
    const uint8_t known = ld_global_u8(p.row_status + row);
    status = known == kGood ? status : known;
  }
  const bool good = status == kGood;
  const double lse = best.count ? logsumexp(all.sum, mov_f32_b32(ld_shared_v2(best.at(0)).x)) : 0;
  const auto logprob = [lse](float logit) {
    const double difference = subtract(cvt_f64_f32(logit), lse);
    return cvt_rn_f32_f64(difference < 0 ? difference : 0);
  };
  if (lane < n) {
    const bool there = good && lane < best.count;
    const U32x2 candidate = there ? ld_shared_v2(best.at(lane)) : U32x2{0, 0};
    const float value = mov_f32_b32(candidate.x), none = mov_f32_b32(good ? kMinusInfinity : kNan);
    // 14: rows with as many places as there are candidates; 15: logits
    const uint32_t at = row * (how == 14 ? from.k : n) + lane;
    store_id(p.top_ids + at, there ? int64_t(candidate.y) : -1);
    st_global_f32(p.top_logprobs + at, there ? (how == 15 ? value : logprob(value)) : none);
  }
  for (uint32_t i = 0; i < from.targets; ++i) {
    const uint64_t at = uint64_t(row) * from.targets + i;
    const U32x2 target = ld_global_v2(p.targets + (how == 16 ? i : at));  // 16: the first row's targets
    const uint32_t beat = beating(from, how, how == 17 ? 0 : row, i);     // 17: the first row's counts
    const bool there = good && (target.y != UINT32_MAX || how == 18);     // 18: a target that is none
    if (lane) continue;
    st_global_f32(p.logprobs + at, there ? logprob(mov_f32_b32(target.x)) : mov_f32_b32(kNan));
    store_id(p.ranks + at, there ? int64_t(beat) + (how != 19) : -1);  // 19: ranks from 0 on
  }
  bar_warp_sync();
  if (lane == 0) st_global_u8(p.row_status + row, status);
}

namespace {

// Functions of finish_logits.
DEVICE uint64_t message_row_bytes(const FinishLogitsParams &p, uint32_t how, uint32_t ids) {
  // 2: rows as long as their logits and status are
  return how == 2 ? uint64_t(ids) * p.element_bytes + 4
                  : (uint64_t(ids) * p.element_bytes + 4 + 15) / 16 * 16;
}

DEVICE const uint8_t *message_row(const FinishLogitsParams &p, uint32_t how, uint32_t i, const Ids &ids,
                                  uint32_t row) {
  const uint64_t before = message_row_bytes(p, how, ids.first) + 16ull * i - 16;
  const uint64_t gaps = how == 7 ? p.gap : (i + 1) * p.gap;     // 7: one gap, in front of the first
  const uint32_t rows = how == 8 ? p.answered : p.rows;         // 8: of the rows that are answered
  return p.data + gaps + rows * before + row * message_row_bytes(p, how, ids.end - ids.first);
}

}  // namespace

KERNEL(broken_logits, Broken<FinishLogitsParams>, 256, 4) {
  const FinishLogitsParams &p = params.right;
  const uint32_t how = params.how, parts = (p.vocab + p.part_ids - 1) / p.part_ids, size = p.element_bytes;
  const uint32_t row = blockIdx.x / parts, part = blockIdx.x % parts;
  wait_or_not(how);
  const Ids own = cut(uint64_t(part) * p.part_ids, (part + 1ull) * p.part_ids, p.vocab);
  for (uint32_t id = own.first; id < own.end;) {
    const uint32_t i = owner_of(p.vocab, p.shards, id);
    const Ids ids = shard_ids(p.vocab, p.shards, i);
    // 3: all ids from the first shard
    const uint32_t end = ids.end < own.end && how != 3 ? ids.end : own.end, bytes = (end - id) * size;
    // 5: rows that lie close together
    uint8_t *to = p.logits + row * (how == 5 ? p.vocab * size : p.logits_pitch) + uint64_t(id) * size;
    const uint8_t *from = message_row(p, how, i, ids, row) + uint64_t(id - ids.first) * size;
    const uint64_t all = uint64_t(to) | uint64_t(from) | bytes;
    // 4: 16 bytes at a time, however they lie
    const uint32_t each = all % 16 == 0 || how == 4 ? 16 : 2;
    for (uint32_t at = threadIdx.x * each; at < bytes; at += kThreads * each) {
      if (each == 16)
        st_global_v4(to + at, ld_global_v4(from + at));
      else
        st_global_u16(to + at, ld_global_u16(from + at));
    }
    id = end;
  }
  if (part || threadIdx.x >= 32) return;
  uint32_t words = lane_id() == 0 ? ld_global_u32(p.words + row) : 0;
  for (uint32_t i = lane_id(); i < p.shards; i += 32) {
    const Ids ids = shard_ids(p.vocab, p.shards, i);
    words |= ld_global_u32(message_row(p, how, i, ids, row) +
                           message_row_bytes(p, how, ids.end - ids.first) - 4);
  }
  if (how != 6) words = redux_or_b32(words);  // 6: the status of the first shard
  if (lane_id() == 0) st_global_u8(p.row_status + row, status_of(words, !(words & LMHEAD_STATUS_ALLOWED)));
}
