// Draws of a product's tiles -> the shard's candidate of each row; candidates of all shards -> the drawn id.
// A block has a row. Filters keep the candidates from a threshold key on, so nothing is sorted and the order
// of the candidates does not matter.
#include "answers/best.cuh"
#include "answers/bins.cuh"
#include "answers/mass.cuh"
#include "answers/messages.cuh"
#include "answers/noise.cuh"
#include "answers/sampling.cuh"
#include "step.cuh"

namespace {

using namespace answers;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;

// dynamic_shared() holds the bins; then, for each warp, List's sums of places, its Seen, and its draw.
constexpr uint32_t kBins = 256, kOffsets = 8 * kBins, kSeen = kOffsets + 48 * kWarps,
                   kDrawn = kSeen + 16 * kWarps;

DEVICE uint64_t shfl_bfly_u64(uint64_t v, uint32_t distance) {
  return uint64_t(shfl_bfly(uint32_t(v >> 32), distance)) << 32 | shfl_bfly(uint32_t(v), distance);
}

// Shards come in three sizes: larger ones, smaller ones, and the last one with ids.
struct Sizes {
  static constexpr uint32_t kCount = 3;

  uint32_t larger, last;
  uint32_t ids[kCount];

  DEVICE Sizes(uint32_t vocab, uint32_t shards) {
    const uint32_t blocks = (vocab + 63) / 64, each = blocks / shards;
    larger = blocks % shards;
    last = each ? shards - 1 : larger - 1;
    const Ids end = shard_ids(vocab, shards, last);
    ids[0] = 64 * (each + 1), ids[1] = 64 * each, ids[2] = end.end - end.first;
  }
  DEVICE uint32_t of(uint32_t shard) const { return shard == last ? 2 : shard < larger ? 0 : 1; }
  // How many shards before `shard` have each size.
  DEVICE void before(uint32_t shard, uint32_t (&count)[kCount]) const {
    count[0] = shard < larger ? shard : larger, count[1] = shard - count[0], count[2] = last < shard;
    if (count[2]) --count[last < larger ? 0 : 1];
  }
};

// A row's candidates.
struct List {
  const FinishDrawParams &params;
  Sizes sizes;
  bool listed;
  uint32_t top_k;
  // For each size of shard: places of all rows, and of the rows before this one. Unused where all rows have
  // `params.places`.
  uint64_t all[Sizes::kCount] = {}, before[Sizes::kCount] = {};

  // Called by the whole block.
  DEVICE List(const FinishDrawParams &params, const SamplingRow &row, uint32_t number)
      : params(params),
        sizes(params.vocab, params.shards),
        listed(kind_of(row, params.vocab) == DrawKind::kListed),
        top_k(row.top_k) {
    if (params.places) return;
    for (uint32_t other = threadIdx.x; other < params.rows; other += kThreads) {
      const SamplingRow theirs = load_sampling(params.sampling + other);
#pragma unroll
      for (uint32_t i = 0; i < Sizes::kCount; ++i) {
        const uint32_t places = places_of(theirs, params.vocab, sizes.ids[i]);
        all[i] += places, before[i] += other < number ? places : 0;
      }
    }
    const uint32_t at = dynamic_shared() + kOffsets;
#pragma unroll
    for (uint32_t i = 0; i < Sizes::kCount; ++i) {
#pragma unroll
      for (uint32_t distance = 16; distance; distance /= 2) {
        all[i] += shfl_bfly_u64(all[i], distance), before[i] += shfl_bfly_u64(before[i], distance);
      }
      if (lane_id() == 0)
        st_shared_v4(at + 48 * (threadIdx.x / 32) + 16 * i, {uint32_t(all[i]), uint32_t(all[i] >> 32),
                                                             uint32_t(before[i]), uint32_t(before[i] >> 32)});
      all[i] = before[i] = 0;
    }
    barrier_sync_all();
#pragma unroll 1
    for (uint32_t from = at; from < at + 48 * kWarps; from += 48)
#pragma unroll
      for (uint32_t i = 0; i < Sizes::kCount; ++i) {
        const U32x4 words = ld_shared_v4(from + 16 * i);
        all[i] += uint64_t(words.y) << 32 | words.x, before[i] += uint64_t(words.w) << 32 | words.z;
      }
  }

  // Index of the row's first candidate from `shard`.
  DEVICE uint64_t first(uint32_t shard, uint32_t row) const {
    if (params.places) return (uint64_t(shard) * params.rows + row) * params.places;
    uint32_t count[Sizes::kCount];
    sizes.before(shard, count);
    const uint32_t of = sizes.of(shard);
    uint64_t at = of == 0 ? before[0] : of == 1 ? before[1] : before[2];
#pragma unroll
    for (uint32_t i = 0; i < Sizes::kCount; ++i) at += count[i] * all[i];
    return at;
  }

  // Calls `visit(there, candidate, ids of its shard, fits)` for each candidate, by whole warps. Candidates
  // that do not fit would lie beyond the buffer and are not read.
  template <class Visit>
  DEVICE void each(uint32_t row, Visit visit) const {
    const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
    // A shard that sends many is taken by a warp, else by a lane.
    const uint32_t lanes = listed ? 32 : 1, own = listed ? lane : 0;
#pragma unroll 1
    for (uint32_t turn = listed ? warp : 32 * warp; turn < params.shards; turn += kThreads / lanes) {
      const uint32_t shard = listed ? turn : turn + lane;
      const bool is_shard = shard < params.shards;
      const Ids ids = shard_ids(params.vocab, params.shards, is_shard ? shard : 0);
      const uint32_t of_shard = ids.end - ids.first, n = !listed ? 1 : top_k < of_shard ? top_k : of_shard;
      const uint64_t from = first(is_shard ? shard : 0, row);
      const bool fits = from + n <= params.count && (!params.places || n <= params.places);
#pragma unroll 1
      for (uint32_t i = 0; i < n; i += lanes) {
        const bool there = is_shard && i + own < n;
        U32x2 candidate = {0xff800000u, 0};
        if (there && fits) candidate = ld_global_v2(params.candidates + from + i + own);
        visit(there, candidate, ids, fits);
      }
    }
  }
};

// What the block has seen of a row.
struct Seen {
  uint32_t status = 0;
  uint32_t count = 0;    // candidates above minus infinity
  uint32_t largest = 0;  // the largest of them, as `ordered`
};

DEVICE Seen look(const List &list, uint32_t row) {
  Seen seen;
  list.each(row, [&](bool there, U32x2 candidate, Ids ids, bool fits) {
    const uint32_t key = ordered(mov_f32_b32(candidate.x));
    const bool nan = (candidate.x & 0x7fffffffu) > 0x7f800000u, above = !nan && key >= kLeastOrdered;
    const bool own = candidate.y - ids.first < ids.end - ids.first;
    if (there && (!fits || candidate.x == 0x7f800000u || (above && !own))) seen.status |= kDamaged;
    if (there && nan) seen.status |= LMHEAD_STATUS_NONFINITE;
    if (!there || !above) return;
    ++seen.count;
    seen.largest = key > seen.largest ? key : seen.largest;
  });
  const auto join = [&](uint32_t status, uint32_t count, uint32_t largest) {
    seen.status |= status, seen.count += count;
    seen.largest = largest > seen.largest ? largest : seen.largest;
  };
#pragma unroll
  for (uint32_t distance = 16; distance; distance /= 2)
    join(shfl_bfly(seen.status, distance), shfl_bfly(seen.count, distance),
         shfl_bfly(seen.largest, distance));
  const uint32_t at = dynamic_shared() + kSeen;
  if (lane_id() == 0) st_shared_v4(at + 16 * (threadIdx.x / 32), {seen.status, seen.count, seen.largest, 0});
  barrier_sync_all();
  seen = Seen();
#pragma unroll 1
  for (uint32_t from = at; from < at + 16 * kWarps; from += 16) {
    const U32x4 words = ld_shared_v4(from);
    join(words.x, words.y, words.z);
  }
  return seen;
}

// The key of the last candidate that is kept, where the best are kept until their weights reach a goal.
// `weight(key, logit)` is a candidate's weight; `goal_of(total)` makes the goal of the weight of all, and is
// at most that. Candidates without weight rank behind those with some; with `all_weigh` there are none.
// Called by the whole block.
template <bool all_weigh, class Weight, class Goal>
DEVICE uint64_t find_last(const List &list, uint32_t row, Weight weight, Goal goal_of) {
  const uint32_t bins = dynamic_shared();
  uint64_t last = 0, left = 0;
#pragma unroll 1
  for (int32_t shift = 56; shift >= 0; shift -= 8) {
    // All threads have read the bins of the round before.
    barrier_sync_all();
    for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) st_shared_v2(bins + 8 * bin, {0, 0});
    barrier_sync_all();
    list.each(row, [&](bool there, U32x2 candidate, Ids, bool) {
      const uint64_t key = key_of(candidate.x, candidate.y);
      const bool known = shr_u64(key ^ last, uint32_t(shift + 8)) == 0;
      const bool counts = there && known && key >> 32 >= kLeastOrdered;
      const uint64_t of_it = counts ? weight(key, mov_f32_b32(candidate.x)) : 0;
      add_to_bins(bins, of_it != 0, uint32_t(key >> shift) & (kBins - 1), of_it);
    });
    barrier_sync_all();
    const Reached found = find_bin(bins, [&](uint64_t all) { return shift == 56 ? goal_of(all) : left; });
    left = found.left;
    last |= uint64_t(found.bin) << shift;
    // The whole bin is kept: lower digits decide nothing.
    if (all_weigh && found.weight == left) break;
  }
  return last;
}

}  // namespace

STEP_KERNEL(merge_draws, MergeDrawsParams, 256, 4) {
  const uint32_t number = blockIdx.x, lane = lane_id();
  const SamplingRow row = load_sampling(params.sampling + number);
  const Candidate *own = params.candidates + uint64_t(number) * params.tiles;
  const DrawScale draws = DrawScale::of(row.temperature);
  Draw drawn;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i - lane < params.tiles; i += kThreads) {
    U32x2 candidate = {0xff800000u, 0};
    if (i < params.tiles) candidate = ld_global_v2(own + i);
    const float some[1] = {mov_f32_b32(candidate.x)};
    const uint32_t words[1] = {noise_word(row.seed, row.position, candidate.y)};
    drawn.take(draws, some, words, candidate.y);
  }
  drawn.merge_lanes();
  drawn.merge_warps(kWarps, dynamic_shared());
  if (threadIdx.x) return;
  const uint32_t status = params.status ? ld_global_u32(params.status + number) : 0;
  const bool nobody = drawn.id == Draw::kNobody;
  uint32_t value = nobody ? 0xff800000u : mov_b32_f32(drawn.logit);
  if (status & params.nonfinite) value = 0x7fc00000u;
  // Infinity, which no shard can send: the row's owner then reports bad input.
  const bool none = status & LMHEAD_STATUS_BAD_INDEX;
  if (none || !is_legal(row) || kind_of(row, params.vocab) != DrawKind::kBest) value = 0x7f800000u;
  st_global_v2(params.out + number, {value, nobody ? 0 : drawn.id});
}

STEP_KERNEL(finish_draw, FinishDrawParams, 256, 2) {
  const uint32_t number = blockIdx.x;
  const SamplingRow row = load_sampling(params.sampling + number);
  const List list(params, row, number);
  Seen seen = look(list, number);
  if (!is_legal(row)) seen.status |= kDamaged;
  if (params.status) seen.status |= ld_global_u32(params.status + number);
  const uint8_t status = status_of(seen.status, seen.count == 0);

  Draw drawn;
  if (status == kGood) {
    const Scale scale = {from_ordered(seen.largest), row.temperature};
    const float least = list.listed && row.min_p > 0 ? least_of(row.min_p) : -__builtin_inff();
    const uint32_t unit = unit_of(params.vocab);
    uint64_t last = 0;
    const auto keeps = [&](uint64_t key, float logit) {
      return key >= last && (!list.listed || scale.below_max(logit) >= least);
    };
    if (list.listed && row.top_k < seen.count)
      last = find_last<true>(
          list, number, [](uint64_t, float) { return 1; }, [&](uint64_t) { return row.top_k; });
    if (list.listed && row.top_p < 1)
      last = find_last<false>(
          list, number,
          [&](uint64_t key, float logit) {
            return keeps(key, logit) ? mass(scale.below_max(logit), unit) : 0;
          },
          [&](uint64_t all) { return share(row.top_p, all); });
    const DrawScale draws = DrawScale::of(row.temperature);
    list.each(number, [&](bool there, U32x2 candidate, Ids, bool) {
      const float logit = mov_f32_b32(candidate.x);
      const bool kept = there && keeps(key_of(candidate.x, candidate.y), logit);
      const float some[1] = {kept ? logit : -__builtin_inff()};
      const uint32_t words[1] = {noise_word(row.seed, row.position, candidate.y)};
      drawn.take(draws, some, words, candidate.y);
    });
    drawn.merge_lanes();
    drawn.merge_warps(kWarps, dynamic_shared() + kDrawn);
  }
  if (threadIdx.x) return;
  store_id(params.ids + number, drawn.id == Draw::kNobody ? -1 : int64_t(drawn.id));
  if (params.tokens) st_global_u32(params.tokens + number, drawn.id);
  st_global_u8(params.row_status + number, status);
}
