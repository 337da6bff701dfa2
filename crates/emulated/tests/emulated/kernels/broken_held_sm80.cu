// The passes of held_sm80.cu with one mistake each; `how` selects it, 0 is none.
#include "answers/held.cuh"
#include "answers/bins.cuh"
#include "answers/join.cuh"
#include "answers/mass.cuh"
#include "broken.h"

using namespace answers;

namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;

// find of held_sm80.cu. 2: threads without logits leave the loop, and their warps.
DEVICE void find(const float *logits, uint32_t how, uint32_t ids, uint32_t first, Row &all, Best &best) {
  const uint32_t others = how == 2 ? 0 : kEach * lane_id();
  for (uint32_t i = kEach * threadIdx.x; i - others < ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, ids, i, some);
    all.sum.add(some);
    for (uint32_t j = 0; j < kEach; ++j) best.offer(i + j < ids, mov_b32_f32(some[j]), first + i + j);
  }
}

DEVICE bool keeps(const KeptLogits &kept, float logit, uint32_t id) {
  return logit > kept.cut || (logit == kept.cut && id < kept.ties_end);
}

}  // namespace

// summarise_held.
KERNEL(broken_summary, Broken<SummariseHeldParams>, 256, 4) {
  const SummariseHeldParams &p = params.right;
  const HeldMatrix &held = p.held;
  const uint32_t how = params.how, lane = lane_id(), warp = threadIdx.x / 32;
  wait_or_not(how);
  const uint32_t parts = (held.ids + p.part_ids - 1) / p.part_ids;
  const uint32_t row = blockIdx.x / parts, part = blockIdx.x % parts, first = part * p.part_ids;
  // 3: the last part has as many ids as the others.
  const uint32_t ids = held.ids - first < p.part_ids && how != 3 ? held.ids - first : p.part_ids;
  const float *logits = row_of(held, row) + first;
  Best best(Warps<kWarps>::list(warp), p.k);
  Row all;
  find(logits, how, ids, first, all, best);
  Warps<kWarps>::join(all, best);
  uint8_t *out = p.data + part * (held.rows * partial_bytes(p.k, p.target_count)) +
                 row * partial_bytes(p.k, p.target_count);
  if (warp == 0) store_partial(out, all, best, p.k, 0);
  uint8_t *counts = out + sizeof(PartialRow) + p.k * sizeof(Candidate);
  for (uint32_t n = warp; n < p.target_count; n += kWarps) {
    const U32x2 target = ld_global_v2(p.targets + uint64_t(row) * p.target_count + n);
    const uint32_t first_id = how == 4 ? first : held.first_id + first;  // 4: ties told by ids of the shard
    uint32_t count = 0;
    for (uint32_t i = kEach * lane; i < ids; i += kEach * 32) {
      float some[kEach];
      load(logits, ids, i, some);
      for (uint32_t j = 0; j < kEach; ++j)
        count += i + j < ids && key_of(mov_b32_f32(some[j]), first_id + i + j) > key_of(target.x, target.y);
    }
    if (how != 5) count = sum_lanes(count);  // else one lane's
    if (lane == 0) st_global_u32(counts + 4 * n, count);
  }
}

// held_targets.
KERNEL(broken_held_targets, Broken<HeldTargetsParams>, 256, 4) {
  const HeldTargetsParams &p = params.right;
  const uint32_t how = params.how;
  wait_or_not(how);
  const uint64_t n = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= uint64_t(p.held.rows) * p.per_row && how != 2) return;  // 2: threads behind the last target
  const uint32_t id = ld_global_u32(p.targets + n) - (how == 4 ? 0 : p.held.first_id);
  const float *row = row_of(p.held, uint32_t(n / p.per_row));
  const bool there = id < p.held.ids + (how == 3);  // 3: the next shard's first id
  st_global_u32(p.out + n, there ? ld_global_u32(row + id) : 0x7fc00000u);
}

// held_maxima.
KERNEL(broken_maxima, Broken<HeldMaximaParams>, 256, 4) {
  const HeldMaximaParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x, warp = threadIdx.x / 32;
  wait_or_not(how);
  const float *logits = row_of(p.held, row);
  uint32_t largest = ordered(-__builtin_inff());
  for (uint32_t i = kEach * threadIdx.x; i < p.held.ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, how == 3 ? p.held.ids + kEach - 1 : p.held.ids, i, some);  // 3: whole vectors only
    for (uint32_t j = 0; j < kEach; ++j) {
      const uint32_t bits = mov_b32_f32(some[j]), key = how == 4 ? bits ^ 1u << 31 : ordered(some[j]);
      largest = key > largest ? key : largest;
    }
  }
  const auto larger = [](uint32_t a, uint32_t b) { return a > b ? a : b; };
  for (uint32_t distance = 16; distance; distance /= 2)
    largest = larger(largest, shfl_bfly(largest, distance));
  if (lane_id() == 0) st_shared_u32(dynamic_shared() + 4 * warp, largest);
  if (how != 2) barrier_sync_all();
  if (threadIdx.x) return;
  for (uint32_t other = 1; other < kWarps; ++other)
    largest = larger(largest, ld_shared_u32(dynamic_shared() + 4 * other));
  const bool good = how == 5 || is_good(p.held, row);  // 5: the row's status is not asked for
  st_global_u32(p.out + blockIdx.x, good ? mov_b32_f32(from_ordered(largest)) : 0x7fc00000u);
}

// held_histograms, of numbers of ids.
KERNEL(broken_histograms, Broken<HeldHistogramsParams>, 256, 4) {
  const HeldHistogramsParams &p = params.right;
  const uint32_t how = params.how, bins = dynamic_shared();
  wait_or_not(how);
  const HeldHistogram query = ask(p.queries + blockIdx.x);
  const float *logits = row_of(p.held, query.kept.row);
  for (uint32_t bin = threadIdx.x; bin < p.bins; bin += kThreads) st_shared_v2(bins + 8 * bin, {0, 0});
  if (how != 2) barrier_sync_all();
  const uint32_t ids = is_good(p.held, query.kept.row) ? p.held.ids : 0;
  for (uint32_t i = kEach * threadIdx.x; i - kEach * lane_id() < ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, ids, i, some);
    for (uint32_t j = 0; j < kEach; ++j) {
      const uint32_t key = ordered(some[j]), other = (key ^ query.key) & query.known;
      const bool counts = (other == 0 || how == 4) &&  // 4: whatever the digits above are
                          keeps(query.kept, some[j], p.held.first_id + i + j);
      add_to_bins(bins, counts, key >> query.shift & (p.bins - 1), counts);
    }
  }
  if (how != 3) barrier_sync_all();
  for (uint32_t bin = threadIdx.x; bin < p.bins; bin += kThreads)
    st_global_v2(p.out + uint64_t(blockIdx.x) * p.bins + bin, ld_shared_v2(bins + 8 * bin));
}

// held_ties.
KERNEL(broken_ties, Broken<HeldTiesParams>, 256, 4) {
  const HeldTiesParams &p = params.right;
  const uint32_t how = params.how, lane = lane_id(), warp = threadIdx.x / 32, ids = p.held.ids;
  wait_or_not(how);
  const HeldTies query = ask(p.queries + blockIdx.x);
  const float *logits = row_of(p.held, query.kept.row);
  uint32_t before = 0, turn = 0;
  for (uint32_t first = 0; first < ids && before < query.allowance; first += kEach * kThreads) {
    const uint32_t i = first + kEach * threadIdx.x;
    float some[kEach];
    load(logits, ids, i, some);
    uint32_t ties = 0;
    for (uint32_t j = 0; j < kEach; ++j)
      ties |= uint32_t(i + j < ids && some[j] == query.logit &&
                       keeps(query.kept, some[j], p.held.first_id + i + j))
              << j;
    const uint32_t own = popc_b32(ties);
    uint32_t upto = own;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t lower = shfl_up(upto, distance);
      upto += lane >= distance ? lower : 0;
    }
    const uint32_t counts = dynamic_shared() + 4 * kWarps * turn;
    if (how != 2) turn ^= 1;  // else the next turn writes where others still read
    if (lane == 31) st_shared_u32(counts + 4 * warp, how == 4 ? own : upto);  // 4: the last lane's alone
    if (how != 3) barrier_sync_all();
    uint32_t all = before;
    upto += before;
    for (uint32_t other = 0; other < kWarps; ++other) {
      const uint32_t count = ld_shared_u32(counts + 4 * other);
      all += count, upto += other < warp ? count : 0;
    }
    if (upto - own < query.allowance && query.allowance <= upto) {
      uint32_t left = query.allowance - (upto - own);
      const uint32_t behind = p.held.first_id + i + (how == 5 ? 0 : 1);  // 5: the tie's own id
      for (uint32_t j = 0; j < kEach; ++j)
        if (ties >> j & 1 && --left == 0) st_global_u32(p.out + blockIdx.x, behind + j);
    }
    before = all;
  }
  if (threadIdx.x == 0 && before < query.allowance) st_global_u32(p.out + blockIdx.x, 0);
}

// held_candidates, of the k best.
KERNEL(broken_candidates, Broken<HeldCandidatesParams>, 256, 2) {
  const HeldCandidatesParams &p = params.right;
  const uint32_t how = params.how, warp = threadIdx.x / 32;
  wait_or_not(how);
  const HeldWanted query = ask(p.queries + blockIdx.x);
  Candidate *out = p.out + (how == 4 ? blockIdx.x * query.k : query.place);  // 4: places of k each
  if (!is_good(p.held, query.kept.row)) {
    if (threadIdx.x < query.k) st_global_v2(out + threadIdx.x, {threadIdx.x ? 0xff800000u : 0x7fc00000u, 0});
    return;
  }
  Best best(Warps<kWarps>::list(warp), query.k);
  Row all;
  find(row_of(p.held, query.kept.row), how, p.held.ids, p.held.first_id, all, best);
  Warps<kWarps>::join(all, best);
  if (warp) return;
  for (uint32_t n = lane_id(); n < (how == 3 ? best.count : query.k); n += 32)  // 3: what is left is not set
    st_global_v2(out + n, n < best.count ? ld_shared_v2(best.at(n)) : U32x2{0xff800000u, 0});
}
