// Joins what parts of a vocabulary know of rows: tiles of a product become a shard's partials, and the
// partials of all shards become answers. A block has a row; its lanes take parts in turn, and the order of
// the parts does not matter.
#include "answers/parts.cuh"
#include "step.cuh"

namespace {

using namespace answers;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;

// Where part i's row lies: all parts before it have k places.
DEVICE const uint8_t *row_of(const PartialParts &p, uint32_t i, uint32_t row, uint32_t places) {
  return p.data + i * (p.gap + p.rows * partial_bytes(p.k, p.targets)) + p.gap +
         row * partial_bytes(places, p.targets);
}

DEVICE uint32_t places_of(const PartialParts &p, const Ids &ids) {
  return p.k < ids.end - ids.first ? p.k : ids.end - ids.first;
}

// Joins all parts of the row. The result and `best`, the best first, are valid in the first warp.
DEVICE Row join(const PartialParts &p, uint32_t row, Best &best) {
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
  best = Best(Warps<kWarps>::list(warp), p.k);
  Row all;
#pragma unroll 1
  for (uint32_t first = 32 * warp; first < p.parts; first += kThreads) {
    const uint32_t i = first + lane;
    const bool there = i < p.parts;
    const Ids ids = ids_of(p, there ? i : 0);
    const uint32_t places = places_of(p, ids);
    const uint8_t *part = row_of(p, i, row, places);
    const uint32_t count = there ? take(all, part, places) : 0;
    // A shard sends its candidates best first, and none twice. Those of a tile are in no order.
    uint64_t before = UINT64_MAX;
#pragma unroll 1
    for (uint32_t n = 0; vote_any(n < count); ++n) {
      U32x2 candidate = {0, 0};
      if (n < count) candidate = ld_global_v2(part + sizeof(PartialRow) + n * sizeof(Candidate));
      const bool finite = (candidate.x & 0x7fffffffu) < 0x7f800000u;
      const bool own = candidate.y - ids.first < ids.end - ids.first;
      const uint64_t key = key_of(candidate.x, candidate.y);
      const bool good = finite && own && (p.part_ids || key < before);
      before = key;
      if (n < count && !good) all.status |= kDamaged;
      best.offer(n < count && good, candidate.x, candidate.y);
    }
  }
  Warps<kWarps>::join(all, best);
  if (warp == 0 && p.status) all.status |= ld_global_u32(p.status + row);
  return all;
}

// How many ids beat target n of the row, by one warp.
DEVICE uint32_t beating(const PartialParts &p, uint32_t row, uint32_t n) {
  uint32_t count = 0;
  for (uint32_t i = lane_id(); i < p.parts; i += 32) {
    const uint32_t places = places_of(p, ids_of(p, i));
    count +=
        ld_global_u32(row_of(p, i, row, places) + sizeof(PartialRow) + places * sizeof(Candidate) + 4 * n);
  }
  return sum_lanes(count);
}

}  // namespace

STEP_KERNEL(merge_partials, MergePartialsParams, 256, 4) {
  const PartialParts &from = params.from;
  const uint32_t row = blockIdx.x;
  Best best(0, from.k);
  Row all = join(from, row, best);
  if (threadIdx.x >= 32) return;
  const uint32_t places = from.k < from.vocab ? from.k : from.vocab;
  uint8_t *out = params.out + uint64_t(row) * partial_bytes(params.places, from.targets);
  // A row without an answer passes on its status alone: what else is known of it depends on the order of
  // blocks.
  const bool good = !(all.status & (from.nonfinite | kDamaged));
  if (good) {
    all.status = best.count ? LMHEAD_STATUS_ALLOWED : 0;
  } else {
    all.sum = ExpSum();
    best.count = 0;
    all.status = LMHEAD_STATUS_NONFINITE | (all.status & LMHEAD_STATUS_BAD_INDEX);
  }
  store_partial(out, all, best, places, params.first_id);
  store_counts(out, params.places, from.targets,
               [&](uint32_t n) { return good ? beating(from, row, n) : 0; });
}

namespace {

// Stores the best n ids of a row and, where `values` is set, `value(logit)` of each. One warp.
template <class Value>
DEVICE void store_best(const Best &best, bool good, uint32_t n, int64_t *ids, float *values, Value value) {
  for (uint32_t i = lane_id(); i < n; i += 32) {
    const bool there = good && i < best.count;
    const U32x2 candidate = there ? ld_shared_v2(best.at(i)) : U32x2{0, 0};
    store_id(ids + i, there ? int64_t(candidate.y) : -1);
    if (!values) continue;
    const float none = mov_f32_b32(good ? kMinusInfinity : kNan);
    st_global_f32(values + i, there ? value(mov_f32_b32(candidate.x)) : none);
  }
}

}  // namespace

STEP_KERNEL(finish_best, FinishParams, 256, 4) {
  const uint32_t row = blockIdx.x, k = params.from.k;
  Best best(0, k);
  const Row all = join(params.from, row, best);
  if (threadIdx.x >= 32) return;
  const uint8_t status = status_of(all.status, best.count == 0);
  const uint64_t first = uint64_t(row) * k;
  float *values = params.values ? params.values + first : nullptr;
  store_best(best, status == kGood, k, params.ids + first, values, [](float logit) { return logit; });
  if (lane_id()) return;
  st_global_u8(params.row_status + row, status);
  if (values)
    st_global_f32(params.logsumexp + row,
                  status == kGood ? cvt_rn_f32_f64(logsumexp_of(all, best)) : mov_f32_b32(kNan));
}

STEP_KERNEL(finish_logprobs, FinishLogprobsParams, 256, 4) {
  const PartialParts &from = params.from;
  const uint32_t row = blockIdx.x, lane = lane_id(), n = params.top_n;
  Best best(0, from.k);
  const Row all = join(from, row, best);
  if (threadIdx.x >= 32) return;
  const uint8_t status = status_of_drawn(params, row, status_of(all.status, best.count == 0));
  const bool good = status == kGood;
  const double lse = logsumexp_of(all, best);
  const auto logprob = [lse](float logit) { return answers::logprob(logit, lse); };
  const uint64_t first = uint64_t(row) * n;
  store_best(best, good, n, params.top_ids + first, params.top_logprobs + first, logprob);
#pragma unroll 1
  for (uint32_t i = 0; i < from.targets; ++i) {
    const uint64_t at = uint64_t(row) * from.targets + i;
    const U32x2 target = ld_global_v2(params.targets + at);
    const uint32_t beat = beating(from, row, i);
    const bool there = good && target.y != UINT32_MAX;
    if (lane) continue;
    st_global_f32(params.logprobs + at, there ? logprob(mov_f32_b32(target.x)) : mov_f32_b32(kNan));
    store_id(params.ranks + at, there ? int64_t(beat) + 1 : -1);
  }
  // All lanes have read `row_status` before lane 0 stores it.
  bar_warp_sync();
  if (lane == 0) st_global_u8(params.row_status + row, status);
}

namespace {

// The bytes of a row with that many logits in a shard's message.
DEVICE uint64_t message_row_bytes(const FinishLogitsParams &p, uint32_t ids) {
  return (uint64_t(ids) * p.element_bytes + 4 + 15) / 16 * 16;
}

// Where the row lies in shard i's message. All shards but the last that has ids have a multiple of 64: each
// of their rows is 16 bytes longer than its logits, as is one without ids.
DEVICE const uint8_t *message_row(const FinishLogitsParams &p, uint32_t i, const Ids &ids, uint32_t row) {
  const uint64_t before = message_row_bytes(p, ids.first) + 16ull * i - 16;
  return p.data + (i + 1) * p.gap + p.rows * before + row * message_row_bytes(p, ids.end - ids.first);
}

DEVICE void move(uint16_t *to, const uint16_t *from) { st_global_u16(to, ld_global_u16(from)); }
DEVICE void move(uint32_t *to, const uint32_t *from) { st_global_u32(to, ld_global_u32(from)); }
DEVICE void move(U32x4 *to, const U32x4 *from) { st_global_v4(to, ld_global_v4(from)); }

template <class T>
DEVICE void copy(uint8_t *to, const uint8_t *from, uint32_t bytes) {
  for (uint32_t at = threadIdx.x * sizeof(T); at < bytes; at += kThreads * sizeof(T))
    move(reinterpret_cast<T *>(to + at), reinterpret_cast<const T *>(from + at));
}

// Logits of 2 or 4 bytes; as many bytes at a time as both places are aligned to.
DEVICE void copy_any(uint8_t *to, const uint8_t *from, uint32_t bytes) {
  const uint64_t both = uint64_t(to) | uint64_t(from);
  const uint32_t wide = both % 16 == 0 ? bytes / 16 * 16 : 0;
  copy<U32x4>(to, from, wide);
  if ((both | bytes) % 4 == 0)
    copy<uint32_t>(to + wide, from + wide, bytes - wide);
  else
    copy<uint16_t>(to + wide, from + wide, bytes - wide);
}

}  // namespace

// A block has part of a row's ids, from one shard or several; the row's first block also writes the status.
STEP_KERNEL(finish_logits, FinishLogitsParams, 256, 4) {
  const uint32_t parts = (params.vocab + params.part_ids - 1) / params.part_ids, of_row = parts ? parts : 1;
  const uint32_t row = blockIdx.x / of_row, part = blockIdx.x % of_row;
  const Ids own = cut(uint64_t(part) * params.part_ids, (part + 1ull) * params.part_ids, params.vocab);
#pragma unroll 1
  for (uint32_t id = own.first; id < own.end;) {
    const uint32_t i = owner_of(params.vocab, params.shards, id);
    const Ids ids = shard_ids(params.vocab, params.shards, i);
    const uint32_t end = ids.end < own.end ? ids.end : own.end, size = params.element_bytes;
    uint8_t *to = params.logits + row * params.logits_pitch + uint64_t(id) * size;
    copy_any(to, message_row(params, i, ids, row) + uint64_t(id - ids.first) * size, (end - id) * size);
    id = end;
  }
  if (part || threadIdx.x >= 32) return;
  uint32_t words = params.words && lane_id() == 0 ? ld_global_u32(params.words + row) : 0;
  for (uint32_t i = lane_id(); i < params.shards; i += 32) {
    const Ids ids = shard_ids(params.vocab, params.shards, i);
    words |= ld_global_u32(message_row(params, i, ids, row) +
                           message_row_bytes(params, ids.end - ids.first) - 4);
  }
  // kDamaged is for kernels; a message cannot set it.
  words = redux_or_b32(words) & ~kDamaged;
  if (lane_id() == 0)
    st_global_u8(params.row_status + row, status_of(words, !(words & LMHEAD_STATUS_ALLOWED)));
}
