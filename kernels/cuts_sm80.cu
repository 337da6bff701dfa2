// Where filters cut held rows whose sampling parameters only the device knows. The searches are those of
// src/sampling/cut.rs, for all rows at once: every step has the same launches and messages, whatever its rows
// ask for.
//
//   begin_cuts   largest logits of all shards -> what min_p keeps; the first search, for the last of top_k
//   held_histograms, learn_cuts (by the row's owner), next_cuts     once a digit of the cut's order key
//   held_ties, end_cuts   -> what that search keeps; the second search, for the end of the nucleus
//
// A row that needs no search counts nothing, and keeps the cut it has.
#include "answers/best.cuh"
#include "answers/bins.cuh"
#include "answers/held.cuh"
#include "answers/mass.cuh"
#include "answers/sampling.cuh"
#include "answers/shards.cuh"
#include "step.cuh"

namespace {

using namespace answers;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kBins = 256;
constexpr uint32_t kInfinity = 0x7f800000u, kDamagedCut = UINT32_MAX;

// Whether the row needs the search for the end of the nucleus (`masses`), or for the last of top_k. Greedy
// rows, and rows without top_k and top_p, need neither.
DEVICE bool wants_cut(const SamplingRow &row, uint32_t vocab, bool masses) {
  const DrawKind kind = kind_of(row, vocab);
  if (kind != DrawKind::kListed && kind != DrawKind::kCut) return false;
  return masses ? row.top_p < 1 : row.top_k > 0 && row.top_k < vocab;
}

DEVICE void begin_search(const CutRowsParams &params, uint32_t row, const SamplingRow &sampling,
                         const KeptLogits &kept, bool masses) {
  HeldHistogram query = {kept, masses, params.known, 0, params.shift};
  if (!wants_cut(sampling, params.vocab, masses)) query.kept.least = __builtin_inff();
  tell(params.histograms + row, query);
}

DEVICE uint64_t add_saturated(uint64_t a, uint64_t b) { return a + b < a ? ~uint64_t(0) : a + b; }

DEVICE uint64_t load_u64(const uint64_t *from) {
  const U32x2 v = ld_global_v2(from);
  return uint64_t(v.y) << 32 | v.x;
}

// The saturated sum of `of(bin)` over all bins, by a whole warp.
template <class Of>
DEVICE uint64_t sum_bins(uint32_t bins, Of of) {
  uint64_t sum = 0;
#pragma unroll 1
  for (uint32_t bin = lane_id(); bin < bins; bin += 32) sum = add_saturated(sum, of(bin));
#pragma unroll
  for (uint32_t distance = 16; distance; distance /= 2) {
    const uint32_t low = shfl_bfly(uint32_t(sum), distance), high = shfl_bfly(uint32_t(sum >> 32), distance);
    sum = add_saturated(sum, uint64_t(high) << 32 | low);
  }
  return sum;
}

}  // namespace

STEP_KERNEL(begin_cuts, CutRowsParams, 256, 4) {
  const uint32_t row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= params.rows) return;
  const SamplingRow sampling = load_sampling(params.sampling + row);
  bool damaged = !is_legal(sampling);
  if (params.status) damaged |= (ld_global_u32(params.status + row) & LMHEAD_STATUS_BAD_INDEX) != 0;
  // NaN of any shard stays: that shard's logits may lie above every other maximum, and their masses would
  // have no bound.
  float max = -__builtin_inff();
#pragma unroll 1
  for (uint32_t shard = 0; shard < params.shards; ++shard) {
    const uint32_t bits = ld_global_u32(params.maxima + uint64_t(shard) * params.rows + row);
    const float theirs = mov_f32_b32(bits);
    damaged |= bits == kInfinity;
    if (max == max && !(theirs <= max)) max = theirs;
  }
  const float least = sampling.min_p > 0 ? least_of(sampling.min_p) : -__builtin_inff();
  const KeptLogits kept = {max, sampling.temperature, least, -__builtin_inff(), 0, row};
  const uint32_t filtered = kind_of(sampling, params.vocab) != DrawKind::kBest;
  const HeldWanted wanted = {
      kept, damaged ? uint32_t(LMHEAD_DAMAGED) : filtered, 0, sampling.seed, sampling.position, row};
  tell(params.wanted + row, wanted);
  const SamplingRow bare = {sampling.seed, sampling.position, sampling.temperature, 0, 1, 0};
  tell(params.bare + row, bare);
  begin_search(params, row, sampling, kept, false);
}

STEP_KERNEL(next_cuts, CutRowsParams, 256, 4) {
  const uint32_t row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= params.rows) return;
  const SamplingRow sampling = load_sampling(params.sampling + row);
  const CutFound found = ask(params.found + row);
  HeldHistogram query = ask(params.histograms + row);
  query.key = found.key, query.known = params.known, query.shift = params.shift;
  tell(params.histograms + row, query);
  const bool wants = wants_cut(sampling, params.vocab, params.masses);
  const HeldTies ties = {ask(params.wanted + row).kept, from_ordered(found.key), wants ? found.allowance : 0};
  tell(params.ties + row, ties);
}

STEP_KERNEL(end_cuts, CutRowsParams, 256, 4) {
  const uint32_t row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= params.rows) return;
  const SamplingRow sampling = load_sampling(params.sampling + row);
  HeldWanted wanted = ask(params.wanted + row);
  if (wants_cut(sampling, params.vocab, params.masses)) {
    // If nothing is kept, the cut is NaN, above which no logit is.
    const HeldTies ties = ask(params.ties + row);
    wanted.kept.cut = ties.logit, wanted.kept.ties_end = ld_global_u32(params.ends + row);
    if (ties.allowance > params.ids) wanted.filtered = LMHEAD_DAMAGED;
    tell(params.wanted + row, wanted);
  }
  if (!params.masses) begin_search(params, row, sampling, wanted.kept, true);
}

// Finds the next digit of a row's cut. A block has a row. dynamic_shared() holds the bins summed over all
// shards, then a word for each warp: whether the histograms that it checked are possible.
STEP_KERNEL(learn_cuts, LearnCutsParams, 256, 4) {
  const uint32_t number = blockIdx.x, lane = lane_id(), warp = threadIdx.x / 32;
  const uint32_t bins = dynamic_shared(), fits_at = bins + 8 * kBins;
  const bool first = params.known == 0, last = params.shift == 0;
  const auto word = [&](uint32_t shard, uint32_t bin) {
    return load_u64(params.histograms + (uint64_t(shard) * params.count + number) * params.bins + bin);
  };
  CutSearch search = {};
  if (!first) search = ask(params.searches + number);
  const SamplingRow sampling = load_sampling(params.sampling + number);

  // A warp checks a shard: its bins cannot count more than all its ids.
  const uint32_t unit = unit_of(params.vocab);
  const uint64_t most_of_id = params.masses ? uint64_t(1) << unit : 1;
  bool fits = true;
#pragma unroll 1
  for (uint32_t shard = warp; shard < params.shards; shard += kWarps) {
    const Ids ids = shard_ids(params.vocab, params.shards, shard);
    const uint64_t all = sum_bins(params.bins, [&](uint32_t bin) { return word(shard, bin); });
    fits &= all <= (ids.end - ids.first) * most_of_id;
  }
  if (lane == 0) st_shared_u32(fits_at + 4 * warp, fits);
  uint64_t sum = 0;
  if (threadIdx.x < params.bins)
#pragma unroll 1
    for (uint32_t shard = 0; shard < params.shards; ++shard) sum += word(shard, threadIdx.x);
  st_shared_v2(bins + 8 * threadIdx.x, {uint32_t(sum), uint32_t(sum >> 32)});
  barrier_sync_all();
  for (uint32_t other = 0; other < kWarps; ++other) fits &= ld_shared_u32(fits_at + 4 * other) != 0;

  const uint64_t total = sum_bins(params.bins, [&](uint32_t bin) {
    const U32x2 words = ld_shared_v2(bins + 8 * bin);
    return uint64_t(words.y) << 32 | words.x;
  });
  if (first && params.masses) search.left = total ? share(sampling.top_p, total) : 0;
  if (first && !params.masses) search.left = sampling.top_k < total ? sampling.top_k : total;
  // Later rounds count only the bin that the round before chose, which holds at least `left`.
  search.damaged |= !fits || search.left > total;
  uint32_t bin = params.bins - 1;
  if (!search.damaged && search.left) {
    const Reached reached = find_bin(bins, [&](uint64_t) { return search.left; });
    bin = reached.bin, search.left = reached.left;
  }
  search.key |= bin << params.shift;
  if (threadIdx.x == 0) tell(params.searches + number, search);

  CutFound *found = params.found + number;
  if (search.damaged || !last) {
    const CutFound same = {search.key, search.damaged ? kDamagedCut : 0};
    for (uint32_t shard = threadIdx.x; shard < params.shards; shard += kThreads)
      tell(found + uint64_t(shard) * params.count, same);
    return;
  }
  if (threadIdx.x) return;
  uint64_t each = 1;
  if (params.masses) {
    const KeptLogits kept = ask(params.wanted + number).kept;
    const float logit = from_ordered(search.key);
    each = mass(Scale{kept.max, kept.temperature}.below_max(logit), unit);
    each = each ? each : 1;
  }
  uint64_t left = (search.left + each - 1) / each;
#pragma unroll 1
  for (uint32_t shard = 0; shard < params.shards; ++shard) {
    const uint64_t ties = word(shard, bin) / each, kept = left < ties ? left : ties;
    left -= kept;
    const CutFound of_shard = {search.key, uint32_t(kept)};
    tell(found + uint64_t(shard) * params.count, of_shard);
  }
}
