// begin_cuts, next_cuts, end_cuts and learn_cuts of cuts_sm80.cu with one mistake each; `how` selects it, 0
// is none.
#include "answers/best.cuh"
#include "answers/bins.cuh"
#include "answers/held.cuh"
#include "answers/mass.cuh"
#include "answers/sampling.cuh"
#include "answers/shards.cuh"
#include "broken.h"

using namespace answers;

namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kBins = 256;
constexpr uint32_t kInfinity = 0x7f800000u, kDamagedCut = UINT32_MAX;

DEVICE bool wants_cut(const SamplingRow &row, uint32_t vocab, bool masses) {
  const DrawKind kind = kind_of(row, vocab);
  if (kind != DrawKind::kListed && kind != DrawKind::kCut) return false;
  return masses ? row.top_p < 1 : row.top_k > 0 && row.top_k < vocab;
}

DEVICE void begin_search(const CutRowsParams &p, uint32_t how, uint32_t row, const SamplingRow &sampling,
                         const KeptLogits &kept, bool masses) {
  HeldHistogram query = {kept, masses, p.known, 0, p.shift};
  // 3: a search for each row
  if (!wants_cut(sampling, p.vocab, masses) && how != 3) query.kept.least = __builtin_inff();
  tell(p.histograms + row, query);
}

DEVICE uint64_t add_saturated(uint64_t a, uint64_t b) { return a + b < a ? ~uint64_t(0) : a + b; }

DEVICE uint64_t load_u64(const uint64_t *from) {
  const U32x2 v = ld_global_v2(from);
  return uint64_t(v.y) << 32 | v.x;
}

template <class Of>
DEVICE uint64_t sum_bins(uint32_t bins, Of of) {
  uint64_t sum = 0;
  for (uint32_t bin = lane_id(); bin < bins; bin += 32) sum = add_saturated(sum, of(bin));
  for (uint32_t distance = 16; distance; distance /= 2) {
    const uint32_t low = shfl_bfly(uint32_t(sum), distance), high = shfl_bfly(uint32_t(sum >> 32), distance);
    sum = add_saturated(sum, uint64_t(high) << 32 | low);
  }
  return sum;
}

}  // namespace

KERNEL(broken_begin_cuts, Broken<CutRowsParams>, 256, 4) {
  const CutRowsParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x * kThreads + threadIdx.x;
  wait_or_not(how);
  if (row >= p.rows && how != 2) return;  // 2: threads behind the last row
  const SamplingRow sampling = load_sampling(p.sampling + row);
  bool damaged = !is_legal(sampling);
  const uint32_t flags = how == 4 ? UINT32_MAX : uint32_t(LMHEAD_STATUS_BAD_INDEX);  // 4: any flag
  if (p.status) damaged |= (ld_global_u32(p.status + row) & flags) != 0;
  float max = -__builtin_inff();
  for (uint32_t shard = 0; shard < p.shards; ++shard) {
    // 5: the shards of a row side by side
    const uint64_t at = how == 5 ? uint64_t(row) * p.shards + shard : uint64_t(shard) * p.rows + row;
    const uint32_t bits = ld_global_u32(p.maxima + at);
    const float theirs = mov_f32_b32(bits);
    damaged |= bits == kInfinity && how != 6;  // 6: a maximum of infinity
    if (how == 7 ? theirs > max : max == max && !(theirs <= max)) max = theirs;  // 7: NaN is left out
  }
  const float least = sampling.min_p > 0 ? least_of(sampling.min_p) : -__builtin_inff();
  const KeptLogits kept = {max, sampling.temperature, least, -__builtin_inff(), 0, row};
  // 8: a row without filters is filtered
  const uint32_t filtered = kind_of(sampling, p.vocab) != DrawKind::kBest || how == 8;
  const HeldWanted wanted = {
      kept, damaged ? uint32_t(LMHEAD_DAMAGED) : filtered, 0, sampling.seed, sampling.position, row};
  tell(p.wanted + row, wanted);
  const SamplingRow bare = {sampling.seed, sampling.position, sampling.temperature, 0, 1, 0};
  tell(p.bare + row, how == 9 ? sampling : bare);  // 9: shards apply filters, too
  begin_search(p, how, row, sampling, kept, false);
}

KERNEL(broken_next_cuts, Broken<CutRowsParams>, 256, 4) {
  const CutRowsParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x * kThreads + threadIdx.x;
  wait_or_not(how);
  if (row >= p.rows && how != 2) return;  // 2: threads behind the last row
  const SamplingRow sampling = load_sampling(p.sampling + row);
  const CutFound found = ask(p.found + row);
  HeldHistogram query = ask(p.histograms + row);
  // 3: the digits that were known before; 4: the digit that was counted before
  query.key = how == 3 ? query.key : found.key, query.known = p.known;
  query.shift = how == 4 ? query.shift : p.shift;
  tell(p.histograms + row, query);
  // 5: ties of a row that wants no cut; 6: ties of the last search's cut
  const bool wants = wants_cut(sampling, p.vocab, p.masses) || how == 5;
  const KeptLogits kept = how == 6 ? query.kept : ask(p.wanted + row).kept;
  const HeldTies ties = {kept, from_ordered(found.key), wants ? found.allowance : 0};
  tell(p.ties + row, ties);
}

KERNEL(broken_end_cuts, Broken<CutRowsParams>, 256, 4) {
  const CutRowsParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x * kThreads + threadIdx.x;
  wait_or_not(how);
  if (row >= p.rows && how != 2) return;  // 2: threads behind the last row
  const SamplingRow sampling = load_sampling(p.sampling + row);
  HeldWanted wanted = ask(p.wanted + row);
  if (wants_cut(sampling, p.vocab, p.masses) || how == 4) {  // 4: the cut of a row that wants none
    const HeldTies ties = ask(p.ties + row);
    wanted.kept.cut = ties.logit;
    if (how != 5) wanted.kept.ties_end = ld_global_u32(p.ends + row);  // 5: all ties
    if (ties.allowance > p.ids && how != 6) wanted.filtered = LMHEAD_DAMAGED;  // 6: damage is not told
    tell(p.wanted + row, wanted);
  }
  // 7: the next search does not know what this one keeps
  if (how == 7) wanted.kept.cut = -__builtin_inff(), wanted.kept.ties_end = 0;
  if (!p.masses) begin_search(p, how, row, sampling, wanted.kept, how != 8);  // 8: the same search again
}

KERNEL(broken_learn_cuts, Broken<LearnCutsParams>, 256, 4) {
  const LearnCutsParams &p = params.right;
  const uint32_t how = params.how, number = blockIdx.x, lane = lane_id(), warp = threadIdx.x / 32;
  wait_or_not(how);
  const uint32_t bins = dynamic_shared(), fits_at = bins + 8 * kBins;
  const bool first = p.known == 0, last = p.shift == 0;
  const auto word = [&](uint32_t shard, uint32_t bin) {
    // 2: the shards of a row side by side
    const uint64_t at = how == 2 ? number * p.shards + shard : uint64_t(shard) * p.count + number;
    return load_u64(p.histograms + at * p.bins + bin);
  };
  CutSearch search = {};
  if (!first || how == 3) search = ask(p.searches + number);  // 3: a search that another step left
  const SamplingRow sampling = load_sampling(p.sampling + number);

  const uint32_t unit = unit_of(p.vocab);
  const uint64_t most_of_id = p.masses && how != 4 ? uint64_t(1) << unit : 1;  // 4: masses taken for ids
  bool fits = true;
  for (uint32_t shard = warp; shard < p.shards; shard += kWarps) {
    const Ids ids = shard_ids(p.vocab, p.shards, shard);
    const uint64_t all = sum_bins(p.bins, [&](uint32_t bin) { return word(shard, bin); });
    fits &= all <= (ids.end - ids.first) * most_of_id;
  }
  if (lane == 0) st_shared_u32(fits_at + 4 * warp, fits);
  uint64_t sum = 0;
  if (threadIdx.x < p.bins || how == 5)  // 5: threads behind the last bin
    for (uint32_t shard = 0; shard < p.shards; ++shard) sum += word(shard, threadIdx.x);
  st_shared_v2(bins + 8 * threadIdx.x, {uint32_t(sum), uint32_t(sum >> 32)});
  if (how != 6) barrier_sync_all();
  // 7: the histograms that this warp has checked
  for (uint32_t other = 0; other < kWarps && how != 7; ++other)
    fits &= ld_shared_u32(fits_at + 4 * other) != 0;

  const uint64_t total = sum_bins(p.bins, [&](uint32_t bin) {
    const U32x2 words = ld_shared_v2(bins + 8 * bin);
    return uint64_t(words.y) << 32 | words.x;
  });
  if (first && p.masses) search.left = total ? share(sampling.top_p, total) : 0;
  // 8: more ids than there are
  if (first && !p.masses) search.left = sampling.top_k < total || how == 8 ? sampling.top_k : total;
  search.damaged |= !fits || search.left > total;
  uint32_t bin = p.bins - 1;
  if (!search.damaged && search.left) {
    const Reached reached = find_bin(bins, [&](uint64_t) { return search.left; });
    bin = reached.bin;
    if (how != 9) search.left = reached.left;  // 9: the whole goal in each digit
  }
  search.key |= how == 10 ? bin : bin << p.shift;  // 10: the last digit
  if (threadIdx.x == 0) tell(p.searches + number, search);

  CutFound *found = p.found + number;
  const uint32_t pitch = how == 11 ? 1 : p.count;  // 11: the shards of a row side by side
  if (search.damaged || !last) {
    const CutFound same = {search.key, search.damaged && how != 12 ? kDamagedCut : 0};  // 12: not told
    for (uint32_t shard = threadIdx.x; shard < p.shards; shard += kThreads)
      tell(found + uint64_t(shard) * pitch, same);
    return;
  }
  if (threadIdx.x) return;
  uint64_t each = 1;
  if (p.masses) {
    const KeptLogits kept = ask(p.wanted + number).kept;
    const float logit = from_ordered(search.key);
    each = mass(Scale{kept.max, kept.temperature}.below_max(logit), unit);
    each = each ? each : 1;
  }
  uint64_t left = (search.left + (how == 13 ? 0 : each - 1)) / each;  // 13: rounded down
  for (uint32_t shard = 0; shard < p.shards; ++shard) {
    // 14: masses taken for ties
    const uint64_t ties = word(shard, bin) / (how == 14 ? 1 : each), kept = left < ties ? left : ties;
    if (how != 15) left -= kept;  // 15: each shard keeps as many
    const CutFound of_shard = {search.key, uint32_t(kept)};
    tell(found + uint64_t(shard) * pitch, of_shard);
  }
}
