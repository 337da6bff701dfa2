// merge_draws and finish_draw of draws_sm80.cu, where each shard has as many places of every row, with one
// mistake each; `how` selects it, 0 is none. Blocks have two warps: fewer threads to emulate.
#include "answers/best.cuh"
#include "answers/bins.cuh"
#include "answers/mass.cuh"
#include "answers/messages.cuh"
#include "answers/noise.cuh"
#include "answers/sampling.cuh"
#include "broken.h"

using namespace answers;

namespace {

constexpr uint32_t kThreads = 64, kWarps = kThreads / 32;
constexpr uint32_t kBins = 256, kSeen = 8 * kBins, kDrawn = kSeen + 16 * kWarps;

// Draw::merge_warps of answers/noise.cuh.
DEVICE void merge_warps(Draw &drawn, uint32_t how) {
  const auto store = [](uint32_t to, double v) {
    const uint64_t bits = mov_b64_f64(v);
    st_shared_v2(to, {uint32_t(bits), uint32_t(bits >> 32)});
  };
  const auto read = [](uint32_t from) {
    const U32x2 bits = ld_shared_v2(from);
    return mov_f64_b64(uint64_t(bits.y) << 32 | bits.x);
  };
  const uint32_t at = dynamic_shared();
  if (lane_id() == 0) {
    const uint32_t own = at + (how == 13 ? 16 : 24) * (threadIdx.x / 32);  // 13: places of a score alone
    store(own, drawn.best.high), store(own + 8, drawn.best.low);
    st_shared_v2(own + 16, {drawn.id, mov_b32_f32(drawn.logit)});
  }
  if (how != 14) barrier_sync_all();
  for (uint32_t from = at; from < at + 24 * (how == 15 ? 1 : kWarps); from += 24) {  // 15: first warp only
    Draw theirs;
    theirs.best = {read(from), read(from + 8)};
    const U32x2 id_logit = ld_shared_v2(from + 16);
    theirs.id = id_logit.x, theirs.logit = mov_f32_b32(id_logit.y);
    drawn.merge(theirs);
  }
}

}  // namespace

KERNEL(broken_merge_draws, Broken<MergeDrawsParams>, 64, 4) {
  const MergeDrawsParams &p = params.right;
  const uint32_t how = params.how, number = blockIdx.x, lane = lane_id();
  wait_or_not(how);
  const SamplingRow row = load_sampling(p.sampling + (how == 2 ? 0 : number));  // 2: the first row's
  // 3: rows of whole warps
  const uint32_t pitch = how == 3 ? (p.tiles + 31) / 32 * 32 : p.tiles;
  const Candidate *own = p.candidates + uint64_t(number) * pitch;
  const DrawScale draws = DrawScale::of(row.temperature);
  Draw drawn;
  for (uint32_t i = threadIdx.x; (how == 4 ? i : i - lane) < p.tiles; i += kThreads) {
    U32x2 candidate = {0xff800000u, 0};
    if (i < p.tiles || how == 5) candidate = ld_global_v2(own + i);  // 5: lanes behind the last tile
    const float some[1] = {mov_f32_b32(candidate.x)};
    // 6: noise of the tile
    const uint32_t words[1] = {noise_word(row.seed, row.position, how == 6 ? i : candidate.y)};
    // 7: the higher of two ids wins; they are turned back below
    drawn.take(draws, some, words, how == 7 ? ~candidate.y : candidate.y);
  }
  if (how != 8) drawn.merge_lanes();  // 8: what a warp's first lane has drawn
  merge_warps(drawn, how);
  if (threadIdx.x) return;
  const bool nobody = drawn.id == Draw::kNobody;
  if (how == 7) drawn.id = ~drawn.id;
  const uint32_t status = p.status ? ld_global_u32(p.status + number) : 0;
  uint32_t value = nobody && how != 9 ? 0xff800000u : mov_b32_f32(drawn.logit);  // 9: the logit of nobody
  if (status & p.nonfinite) value = 0x7fc00000u;
  const bool none = status & LMHEAD_STATUS_BAD_INDEX && how != 10;  // 10: a bad index is not told
  // 11: filters are not asked for
  const bool more = kind_of(row, p.vocab) != DrawKind::kBest && how != 11;
  if (none || !is_legal(row) || more) value = 0x7f800000u;
  st_global_v2(p.out + number, {value, nobody && how != 12 ? 0 : drawn.id});  // 12: nobody's id
}

namespace {

// The candidates of a row, of which each shard has `places`.
struct List {
  const FinishDrawParams &params;
  uint32_t how;
  bool listed;
  uint32_t top_k;

  template <class Visit>
  DEVICE void each(uint32_t row, Visit visit) const {
    const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
    const uint32_t lanes = listed ? 32 : 1, own = listed ? lane : 0;
    for (uint32_t turn = listed ? warp : 32 * warp; turn < params.shards; turn += kThreads / lanes) {
      const uint32_t shard = listed ? turn : turn + lane;
      const bool is_shard = shard < params.shards;
      const Ids ids = shard_ids(params.vocab, params.shards, is_shard ? shard : 0);
      const uint32_t of_shard = ids.end - ids.first, least = top_k < of_shard ? top_k : of_shard;
      const uint32_t n = !listed ? 1 : how == 2 ? params.places : least;  // 2: all places of a shard
      const uint32_t at = is_shard ? shard : 0;
      // 3: shards of a row side by side; 4: places of one candidate
      const uint64_t place = how == 3 ? uint64_t(row) * params.shards + at : uint64_t(at) * params.rows + row;
      const uint64_t from = place * (how == 4 ? 1 : params.places);
      const bool fits = (from + n <= params.count || how == 5) && n <= params.places;  // 5: no end
      for (uint32_t i = 0; i < n; i += lanes) {
        const bool there = is_shard && i + own < n;
        U32x2 candidate = {0xff800000u, 0};
        if (there && fits) candidate = ld_global_v2(params.candidates + from + i + own);
        visit(there, candidate, ids, fits);
      }
    }
  }
};

struct Seen {
  uint32_t status, count, largest;
};

DEVICE Seen look(const List &list, uint32_t row) {
  const uint32_t how = list.how;
  Seen seen = {0, 0, 0};
  list.each(row, [&](bool there, U32x2 candidate, Ids ids, bool fits) {
    const uint32_t key = ordered(mov_f32_b32(candidate.x));
    const bool nan = (candidate.x & 0x7fffffffu) > 0x7f800000u, above = !nan && key >= kLeastOrdered;
    const bool own = candidate.y - ids.first < ids.end - ids.first || how == 6;  // 6: whose id is not asked
    const bool infinity = candidate.x == 0x7f800000u && how != 7;  // 7: infinity is a logit
    if (there && (!fits || infinity || (above && !own))) seen.status |= kDamaged;
    if (there && nan) seen.status |= LMHEAD_STATUS_NONFINITE;
    if (!there || !above) return;
    ++seen.count;
    seen.largest = key > seen.largest ? key : seen.largest;
  });
  const auto join = [&](uint32_t status, uint32_t count, uint32_t largest) {
    seen.status |= status, seen.count += count;
    seen.largest = largest > seen.largest ? largest : seen.largest;
  };
  for (uint32_t distance = 16; distance; distance /= 2)
    join(shfl_bfly(seen.status, distance), shfl_bfly(seen.count, distance),
         shfl_bfly(seen.largest, distance));
  const uint32_t at = dynamic_shared() + kSeen;
  if (lane_id() == 0) st_shared_v4(at + 16 * (threadIdx.x / 32), {seen.status, seen.count, seen.largest, 0});
  if (how != 8) barrier_sync_all();
  seen = {0, 0, 0};
  // 9: what the first warp has seen
  for (uint32_t from = at; from < at + 16 * (how == 9 ? 1 : kWarps); from += 16) {
    const U32x4 words = ld_shared_v4(from);
    join(words.x, words.y, words.z);
  }
  return seen;
}

template <class Weight, class Goal>
DEVICE uint64_t find_last(const List &list, uint32_t row, Weight weight, Goal goal_of) {
  const uint32_t bins = dynamic_shared(), how = list.how;
  uint64_t last = 0, left = 0;
  // 15: values alone, not ids
  for (int32_t shift = 56; shift >= (how == 15 ? 32 : 0); shift -= 8) {
    if (how != 10) barrier_sync_all();
    for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) st_shared_v2(bins + 8 * bin, {0, 0});
    if (how != 11) barrier_sync_all();
    list.each(row, [&](bool there, U32x2 candidate, Ids, bool) {
      const uint64_t key = key_of(candidate.x, candidate.y);
      const bool known = shr_u64(key ^ last, uint32_t(shift + 8)) == 0 || how == 13;  // 13: any digits above
      const bool counts = there && known && key >> 32 >= kLeastOrdered;
      const uint64_t of_it = counts ? weight(key, mov_f32_b32(candidate.x)) : 0;
      add_to_bins(bins, of_it != 0, uint32_t(key >> shift) & (kBins - 1), of_it);
    });
    if (how != 12) barrier_sync_all();
    // 14: each digit has the whole goal
    const Reached found = find_bin(bins, [&](uint64_t all) { return shift == 56 ? goal_of(all) : left; });
    if (how != 14 || shift == 56) left = found.left;
    last |= uint64_t(found.bin) << shift;
  }
  return last;
}

}  // namespace

KERNEL(broken_finish_draw, Broken<FinishDrawParams>, 64, 2) {
  const FinishDrawParams &p = params.right;
  const uint32_t how = params.how, number = blockIdx.x;
  wait_or_not(how);
  const SamplingRow row = load_sampling(p.sampling + number);
  const List list = {p, how, kind_of(row, p.vocab) == DrawKind::kListed, row.top_k};
  Seen seen = look(list, number);
  if (!is_legal(row) && how != 16) seen.status |= kDamaged;  // 16: any parameters
  if (p.status && how != 17) seen.status |= ld_global_u32(p.status + number);  // 17: the shards' word
  const uint8_t status = status_of(seen.status, seen.count == 0);
  Draw drawn;
  if (status == kGood) {
    const Scale scale = {from_ordered(seen.largest), row.temperature};
    const bool filters = list.listed && row.min_p > 0 && how != 18;  // 18: no min_p
    const float least = filters ? least_of(row.min_p) : -__builtin_inff();
    const uint32_t unit = unit_of(p.vocab);
    uint64_t last = 0;
    const auto keeps = [&](uint64_t key, float logit) {
      const bool upto = how == 19 ? key > last : key >= last;  // 19: but the last
      return upto && (!list.listed || scale.below_max(logit) >= least);
    };
    if (list.listed && row.top_k < seen.count)
      last = find_last(
          list, number, [](uint64_t, float) { return 1; }, [&](uint64_t) { return row.top_k; });
    if (list.listed && row.top_p < 1)
      last = find_last(
          list, number,
          [&](uint64_t key, float logit) {
            const bool kept = keeps(key, logit) || how == 20;  // 20: of all candidates
            return kept ? mass(scale.below_max(logit), unit) : 0;
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
    drawn.merge_warps(kWarps, dynamic_shared() + (how == 21 ? 0 : kDrawn));  // 21: where bins are
  }
  if (threadIdx.x) return;
  const bool nobody = drawn.id == Draw::kNobody && how != 22;  // 22: nobody's id
  store_id(p.ids + number, nobody ? -1 : int64_t(drawn.id));
  if (p.tokens) st_global_u32(p.tokens + number, drawn.id);
  st_global_u8(p.row_status + number, status);
}
