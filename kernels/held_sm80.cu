// Passes over logits that a product left in memory, [rows, ids] f32.
#include "answers/held.cuh"
#include "answers/bins.cuh"
#include "answers/join.cuh"
#include "answers/mass.cuh"
#include "answers/noise.cuh"
#include "step.cuh"

namespace {

using namespace answers;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;

// Offers ids first to first + ids of a row to the `best` of each warp, and where `sum`, adds their
// exponentials to `all`. Called by the whole block.
DEVICE void find(const float *logits, uint32_t ids, uint32_t first, bool sum, Row &all, Best &best) {
  // All lanes take equally many turns: candidates are offered by whole warps.
#pragma unroll 1
  for (uint32_t i = kEach * threadIdx.x; i - kEach * lane_id() < ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, ids, i, some);
    if (sum) all.sum.add(some);
    bool wanted = false;
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) wanted |= ordered(some[j]) >= best.least();
    if (!vote_any(wanted)) continue;
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) best.offer(i + j < ids, mov_b32_f32(some[j]), first + i + j);
  }
}

// Whether the filters keep the logit. Minus infinity is never kept.
DEVICE bool keeps(const KeptLogits &kept, float logit, uint32_t id) {
  const bool above = logit > kept.cut || (logit == kept.cut && id < kept.ties_end);
  return above && Scale{kept.max, kept.temperature}.below_max(logit) >= kept.least;
}

}  // namespace

// A block has a part of a row.
STEP_KERNEL(summarise_held, SummariseHeldParams, 256, 4) {
  const HeldMatrix &held = params.held;
  const uint32_t parts = (held.ids + params.part_ids - 1) / params.part_ids;
  const uint32_t row = blockIdx.x / parts, part = blockIdx.x % parts, first = part * params.part_ids;
  const uint32_t ids = held.ids - first < params.part_ids ? held.ids - first : params.part_ids;
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
  const float *logits = row_of(held, row) + first;
  Best best(Warps<kWarps>::list(warp), params.k);
  Row all;
  find(logits, ids, first, params.sum, all, best);
  Warps<kWarps>::join(all, best);

  const uint32_t places = params.k < ids ? params.k : ids;
  uint8_t *out = params.data + part * (held.rows * partial_bytes(params.k, params.target_count)) +
                 row * partial_bytes(places, params.target_count);
  if (warp == 0) store_partial(out, all, best, places, 0);
  // A warp has a target.
  uint8_t *counts = out + sizeof(PartialRow) + places * sizeof(Candidate);
#pragma unroll 1
  for (uint32_t n = warp; n < params.target_count; n += kWarps) {
    const U32x2 target = ld_global_v2(params.targets + uint64_t(row) * params.target_count + n);
    uint32_t count = 0;
    if (target.y != UINT32_MAX) {
      const uint64_t key = key_of(target.x, target.y);
#pragma unroll 1
      for (uint32_t i = kEach * lane; i < ids; i += kEach * 32) {
        float some[kEach];
        load(logits, ids, i, some);
#pragma unroll
        for (uint32_t j = 0; j < kEach; ++j)
          count += i + j < ids && key_of(mov_b32_f32(some[j]), held.first_id + first + i + j) > key;
      }
      count = sum_lanes(count);
    }
    if (lane == 0) st_global_u32(counts + 4 * n, count);
  }
}

// A thread has a target.
STEP_KERNEL(held_targets, HeldTargetsParams, 256, 4) {
  const uint64_t n = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= uint64_t(params.held.rows) * params.per_row) return;
  const uint32_t id = ld_global_u32(params.targets + n) - params.held.first_id;
  const float *row = row_of(params.held, uint32_t(n / params.per_row));
  st_global_u32(params.out + n, id < params.held.ids ? ld_global_u32(row + id) : 0x7fc00000u);
}

// A block has a row.
STEP_KERNEL(held_maxima, HeldMaximaParams, 256, 4) {
  const uint32_t row = params.rows ? ld_global_u32(params.rows + blockIdx.x) : blockIdx.x;
  const uint32_t warp = threadIdx.x / 32;
  const float *logits = row_of(params.held, row);
  uint32_t largest = ordered(-__builtin_inff());
#pragma unroll 1
  for (uint32_t i = kEach * threadIdx.x; i < params.held.ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, params.held.ids, i, some);
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) {
      const uint32_t key = ordered(some[j]);
      largest = key > largest ? key : largest;
    }
  }
  const auto larger = [](uint32_t a, uint32_t b) { return a > b ? a : b; };
#pragma unroll
  for (uint32_t distance = 16; distance; distance /= 2)
    largest = larger(largest, shfl_bfly(largest, distance));
  if (lane_id() == 0) st_shared_u32(dynamic_shared() + 4 * warp, largest);
  barrier_sync_all();
  if (threadIdx.x) return;
  for (uint32_t other = 1; other < kWarps; ++other)
    largest = larger(largest, ld_shared_u32(dynamic_shared() + 4 * other));
  const uint32_t bits = mov_b32_f32(from_ordered(largest));
  st_global_u32(params.out + blockIdx.x, is_good(params.held, row) ? bits : 0x7fc00000u);
}

// A block has a query; bins at dynamic_shared().
STEP_KERNEL(held_histograms, HeldHistogramsParams, 256, 4) {
  const HeldHistogram query = ask(params.queries + blockIdx.x);
  const KeptLogits &kept = query.kept;
  const float *logits = row_of(params.held, kept.row);
  const uint32_t bins = dynamic_shared();
  for (uint32_t bin = threadIdx.x; bin < params.bins; bin += kThreads) st_shared_v2(bins + 8 * bin, {0, 0});
  barrier_sync_all();
  const Scale scale = {kept.max, kept.temperature};
  // A row with non-finite logits counts nothing: some may lie above the maximum and weigh more than a mass
  // may.
  const bool counted = kept.least < __builtin_inff() && is_good(params.held, kept.row);
  const uint32_t ids = counted ? params.held.ids : 0;
  // All lanes take equally many turns: whole warps act together below.
#pragma unroll 1
  for (uint32_t i = kEach * threadIdx.x; i - kEach * lane_id() < ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, ids, i, some);
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) {
      const uint32_t key = ordered(some[j]);
      const bool counts =
          ((key ^ query.key) & query.known) == 0 && keeps(kept, some[j], params.held.first_id + i + j);
      const uint64_t weight = !counts ? 0 : query.masses ? mass(scale.below_max(some[j]), params.unit) : 1;
      add_to_bins(bins, counts, key >> query.shift & (params.bins - 1), weight);
    }
  }
  barrier_sync_all();
  for (uint32_t bin = threadIdx.x; bin < params.bins; bin += kThreads)
    st_global_v2(params.out + uint64_t(blockIdx.x) * params.bins + bin, ld_shared_v2(bins + 8 * bin));
}

// A block has a query, and goes through the row in the order of ids. dynamic_shared() holds each warp's
// number of ties, twice: turns alternate between the two.
STEP_KERNEL(held_ties, HeldTiesParams, 256, 4) {
  const HeldTies query = ask(params.queries + blockIdx.x);
  const float *logits = row_of(params.held, query.kept.row);
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32, ids = params.held.ids;
  uint32_t before = 0, turn = 0;
  if (query.allowance == 0) {
    if (threadIdx.x == 0) st_global_u32(params.out + blockIdx.x, 0);
    return;
  }
#pragma unroll 1
  for (uint32_t first = 0; first < ids && before < query.allowance; first += kEach * kThreads, turn ^= 1) {
    const uint32_t i = first + kEach * threadIdx.x;
    float some[kEach];
    load(logits, ids, i, some);
    uint32_t ties = 0;
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j)
      ties |= uint32_t(i + j < ids && some[j] == query.logit &&
                       keeps(query.kept, some[j], params.held.first_id + i + j))
              << j;
    const uint32_t own = popc_b32(ties);
    uint32_t upto = own;  // ties of the lanes up to this one
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t lower = shfl_up(upto, distance);
      upto += lane >= distance ? lower : 0;
    }
    const uint32_t counts = dynamic_shared() + 4 * kWarps * turn;
    if (lane == 31) st_shared_u32(counts + 4 * warp, upto);
    barrier_sync_all();
    uint32_t all = before;
    upto += before;
#pragma unroll
    for (uint32_t other = 0; other < kWarps; ++other) {
      const uint32_t count = ld_shared_u32(counts + 4 * other);
      all += count, upto += other < warp ? count : 0;
    }
    // The `allowance`-th tie is among this thread's.
    if (upto - own < query.allowance && query.allowance <= upto) {
      uint32_t left = query.allowance - (upto - own);
#pragma unroll
      for (uint32_t j = 0; j < kEach; ++j)
        if (ties >> j & 1 && --left == 0)
          st_global_u32(params.out + blockIdx.x, params.held.first_id + i + j + 1);
    }
    before = all;
  }
  if (threadIdx.x == 0 && before < query.allowance) st_global_u32(params.out + blockIdx.x, 0);
}

namespace {

// The row's draw; valid in the first warp.
DEVICE Draw draw(const HeldMatrix &held, const HeldWanted &query) {
  const float *logits = row_of(held, query.kept.row);
  const DrawScale scale = DrawScale::of(query.kept.temperature);
  Draw drawn;
  // All lanes take equally many turns: whole warps act together below.
#pragma unroll 1
  for (uint32_t i = kEach * threadIdx.x; i - kEach * lane_id() < held.ids; i += kEach * kThreads) {
    const uint32_t id = held.first_id + i;
    float some[kEach];
    load(logits, held.ids, i, some);
    const U32x4 four = noise_words(query.seed, query.position, id);
    const uint32_t words[kEach] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j)
      if (query.filtered && !keeps(query.kept, some[j], id + j)) some[j] = -__builtin_inff();
    drawn.take(scale, some, words, id);
  }
  drawn.merge_lanes();
  drawn.merge_warps(kWarps, dynamic_shared());
  return drawn;
}

DEVICE void store(Candidate *to, uint32_t value_bits, uint32_t id) { st_global_v2(to, {value_bits, id}); }

}  // namespace

// A block has a query.
STEP_KERNEL(held_candidates, HeldCandidatesParams, 256, 2) {
  const HeldWanted query = ask(params.queries + blockIdx.x);
  const HeldMatrix &held = params.held;
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32, places = query.k ? query.k : 1;
  Candidate *out = params.out + query.place;
  if (query.filtered == LMHEAD_DAMAGED) {
    if (threadIdx.x == 0) store(out, 0x7f800000u, 0);
    return;
  }
  if (!is_good(held, query.kept.row)) {
    for (uint32_t n = threadIdx.x; n < places; n += kThreads)
      store(out + n, n ? 0xff800000u : 0x7fc00000u, 0);
    return;
  }
  if (query.k == 0) {
    const Draw drawn = draw(held, query);
    const bool nobody = drawn.id == Draw::kNobody;
    if (threadIdx.x == 0) store(out, nobody ? 0xff800000u : mov_b32_f32(drawn.logit), nobody ? 0 : drawn.id);
    return;
  }
  Best best(Warps<kWarps>::list(warp), query.k);
  Row all;
  find(row_of(held, query.kept.row), held.ids, held.first_id, false, all, best);
  Warps<kWarps>::join(all, best);
  if (warp) return;
  for (uint32_t n = lane; n < places; n += 32) {
    const bool there = n < best.count;
    const U32x2 candidate = there ? ld_shared_v2(best.at(n)) : U32x2{0xff800000u, 0};
    store(out + n, candidate.x, candidate.y);
  }
}
