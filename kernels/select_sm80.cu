// The best k of held rows, best first, for any k. Radix selection: logits are mapped to keys, no two alike,
// and the k-th largest is found digit by digit, from the highest. Keys that are not below it are collected
// and sorted, in chunks that fit shared memory, and each chunk's keys are put in their places among all.
//
//   select_bins    once a digit: how many of the keys that may still be the k-th have each of its values
//   select_keys    which keys are not below the k-th, in no order
//   select_sort    chunks of these, sorted; where there is one, that is the answer
//   select_merge   the answer where there are several
//
// Each block of a row counts a part of it, after it has decided the digit before from the bins of all parts.
#include "answers/held.cuh"
#include "answers/lists.cuh"
#include "step.cuh"

namespace {

using namespace answers;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;
constexpr uint32_t kDigit = LMHEAD_SELECT_DIGIT, kBins = 1u << kDigit;
constexpr uint32_t kChunk = LMHEAD_SELECT_CHUNK;

// A query's row, how many candidates it wants, and where they go.
struct Wanted {
  uint32_t row, k;
  Candidate *out;
};

DEVICE Wanted wanted_of(const SelectParams &p, uint32_t i) {
  if (p.queries) {
    const HeldWanted query = ask(p.queries + i);
    return {query.kept.row, query.k, reinterpret_cast<Candidate *>(p.out) + query.place};
  }
  return {i, p.k, reinterpret_cast<Candidate *>(p.out + i * p.out_pitch + sizeof(PartialRow))};
}

// Keys of a row's candidates: larger values first, then lower ids. Ids count from the row's first.
DEVICE uint64_t key_of(const SelectParams &p, float logit, uint32_t id) {
  const uint64_t last = (uint64_t(1) << p.id_bits) - 1;
  return uint64_t(ordered(logit)) << p.id_bits | (last - id);
}
DEVICE uint32_t id_of(const SelectParams &p, uint64_t key) {
  const uint64_t last = (uint64_t(1) << p.id_bits) - 1;
  return uint32_t(last - (key & last));
}

// How many low bits of a key are open before a round, and after it. The last digit may be shorter.
DEVICE uint32_t bits_before(const SelectParams &p, uint32_t round) { return 32 + p.id_bits - round * kDigit; }
DEVICE uint32_t bits_behind(const SelectParams &p, uint32_t round) {
  const uint32_t before = bits_before(p, round);
  return before > kDigit ? before - kDigit : 0;
}

DEVICE SelectState load_state(const SelectState *from) {
  const U32x4 v = ld_global_v4(from);
  return {uint64_t(v.y) << 32 | v.x, v.z, v.w};
}

// Shared memory behind the bins: the sums of warps, then the bin that `narrow` has found.
constexpr uint32_t kSums = 4 * kBins, kFound = kSums + 4 * kWarps;

// The state after `round`, whose bins decide its digit. Called by the whole block.
DEVICE SelectState narrow(const SelectParams &p, uint32_t query, SelectState state, uint32_t round) {
  constexpr uint32_t kOwn = kBins / kThreads;
  static_assert(kOwn == 8, "two loads of four");
  const uint32_t lane = lane_id(), warp = threadIdx.x / 32, shared = dynamic_shared();
  // Thread 0 has the highest bins.
  const uint32_t first = kBins - kOwn * (threadIdx.x + 1);
  const uint32_t *bins = p.bins + (uint64_t(round) * p.count + query) * kBins + first;
  const U32x4 low = ld_global_v4(bins), high = ld_global_v4(bins + 4);
  const uint32_t counts[kOwn] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  uint32_t own = 0;
#pragma unroll
  for (uint32_t i = 0; i < kOwn; ++i) own += counts[i];
  uint32_t upto = own;  // sum of the lanes up to this one
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t lower = shfl_up(upto, distance);
    upto += lane >= distance ? lower : 0;
  }
  if (lane == 31) st_shared_u32(shared + kSums + 4 * warp, upto);
  barrier_sync_all();
  uint32_t all = 0;
#pragma unroll
  for (uint32_t other = 0; other < kWarps; ++other) {
    const uint32_t sum = ld_shared_u32(shared + kSums + 4 * other);
    all += sum, upto += other < warp ? sum : 0;
  }
  // Fewer keys than wanted, which the first round shows: all of them are taken.
  if (all < state.wanted) return {state.least, all, 1};
  uint32_t before = upto - own;
  if (before < state.wanted && state.wanted <= upto) {
#pragma unroll
    for (uint32_t i = kOwn; i-- > 0;) {
      if (before < state.wanted && state.wanted <= before + counts[i]) {
        st_shared_v2(shared + kFound, {first + i, state.wanted - before});
        st_shared_u32(shared + kFound + 8, counts[i] == state.wanted - before);
      }
      before += counts[i];
    }
  }
  barrier_sync_all();
  const U32x2 found = ld_shared_v2(shared + kFound);
  const uint64_t least = state.least | uint64_t(found.x) << bits_behind(p, round);
  return {least, found.y, ld_shared_u32(shared + kFound + 8)};
}

// What is known of the query's k-th key before round p.round. Called by the whole block.
DEVICE SelectState state_of(const SelectParams &p, uint32_t query, uint32_t k) {
  if (p.round == 0) return {0, k, p.rounds == 0};
  const uint32_t before = p.round - 1;
  const SelectState state = load_state(p.states + uint64_t(before) * p.count + query);
  return state.known ? state : narrow(p, query, state, before);
}

// A block's query and its part of the row.
struct Part {
  uint32_t query, first, ids;
};

DEVICE Part part_of(const SelectParams &p) {
  const uint32_t parts = (p.held.ids + p.part_ids - 1) / p.part_ids;
  const uint32_t first = blockIdx.x % parts * p.part_ids, left = p.held.ids - first;
  return {blockIdx.x / parts, first, left < p.part_ids ? left : p.part_ids};
}

// Minus infinity is never a candidate.
DEVICE bool is_candidate(float logit) { return ordered(logit) >= kLeastOrdered; }

}  // namespace

// A block has a part of a row.
STEP_KERNEL(select_bins, SelectParams, 256, 4) {
  const Part part = part_of(params);
  const Wanted wanted = wanted_of(params, part.query);
  if (!is_good(params.held, wanted.row)) return;
  const SelectState state = state_of(params, part.query, wanted.k);
  if (part.first == 0 && threadIdx.x == 0) {
    SelectState *to = params.states + uint64_t(params.round) * params.count + part.query;
    st_global_v4(to, {uint32_t(state.least), uint32_t(state.least >> 32), state.wanted, state.known});
  }
  if (state.known) return;
  const uint32_t shared = dynamic_shared();
  for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) st_shared_u32(shared + 4 * bin, 0);
  barrier_sync_all();
  const uint32_t before = bits_before(params, params.round), behind = bits_behind(params, params.round);
  const float *logits = row_of(params.held, wanted.row) + part.first;
#pragma unroll 1
  for (uint32_t i = kEach * threadIdx.x; i < part.ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, part.ids, i, some);
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) {
      const uint64_t key = key_of(params, some[j], part.first + i + j);
      if (!is_candidate(some[j]) || shr_u64(key ^ state.least, before)) continue;
      const uint32_t digit = uint32_t(shr_u64(key, behind)) & ((1u << (before - behind)) - 1);
      atom_shared_add_u32(shared + 4 * digit, 1);
    }
  }
  barrier_sync_all();
  uint32_t *bins = params.bins + (uint64_t(params.round) * params.count + part.query) * kBins;
  for (uint32_t bin = threadIdx.x; bin < kBins; bin += kThreads) {
    const uint32_t keys = ld_shared_u32(shared + 4 * bin);
    if (keys) atom_add_u32(bins + bin, keys);
  }
}

// A block has a part of a row. p.round is one behind the last.
STEP_KERNEL(select_keys, SelectParams, 256, 4) {
  const Part part = part_of(params);
  const Wanted wanted = wanted_of(params, part.query);
  if (!is_good(params.held, wanted.row)) return;
  const uint64_t least = state_of(params, part.query, wanted.k).least;
  const float *logits = row_of(params.held, wanted.row) + part.first;
  uint64_t *keys = params.keys + uint64_t(part.query) * params.k;
  const uint32_t lane = lane_id();
  // All lanes take equally many turns: a warp's keys are counted together.
#pragma unroll 1
  for (uint32_t i = kEach * threadIdx.x; i - kEach * lane < part.ids; i += kEach * kThreads) {
    float some[kEach];
    load(logits, part.ids, i, some);
    uint32_t votes[kEach], all = 0;
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) {
      const bool taken = is_candidate(some[j]) && key_of(params, some[j], part.first + i + j) >= least;
      votes[j] = vote_ballot(taken);
      all += popc_b32(votes[j]);
    }
    if (!all) continue;
    uint32_t place = lane == 0 ? atom_add_u32(params.found + part.query, all) : 0;
    place = shfl_idx(place, 0);
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j) {
      const uint64_t key = key_of(params, some[j], part.first + i + j);
      if (votes[j] >> lane & 1)
        st_global_v2(keys + place + popc_b32(votes[j] & ((1u << lane) - 1)),
                     {uint32_t(key), uint32_t(key >> 32)});
      place += popc_b32(votes[j]);
    }
  }
}

namespace {

DEVICE uint64_t load_key(const uint64_t *from) {
  const U32x2 v = ld_global_v2(from);
  return uint64_t(v.y) << 32 | v.x;
}

// Loads the logit again, since keys do not tell -0 from +0.
DEVICE void store_candidate(const SelectParams &p, const Wanted &wanted, uint32_t place, uint64_t key) {
  const uint32_t id = id_of(p, key);
  st_global_v2(wanted.out + place, {ld_global_u32(row_of(p.held, wanted.row) + id), p.held.first_id + id});
}

// Fills a place that has no candidate. `nan`: the first place of a row without an answer.
DEVICE void store_nothing(const Wanted &wanted, uint32_t place, bool nan) {
  st_global_v2(wanted.out + place, {nan ? 0x7fc00000u : 0xff800000u, 0});
}

// Sorts `count` keys in shared memory, a power of two, the largest first: a bitonic network, by the block.
DEVICE void sort(uint32_t keys, uint32_t count) {
  const auto read = [](uint32_t from) {
    const U32x2 v = ld_shared_v2(from);
    return uint64_t(v.y) << 32 | v.x;
  };
#pragma unroll 1
  for (uint32_t length = 2; length <= count; length *= 2) {
#pragma unroll 1
    for (uint32_t distance = length / 2; distance; distance /= 2) {
      barrier_sync_all();
#pragma unroll 1
      for (uint32_t i = threadIdx.x; i < count / 2; i += kThreads) {
        const uint32_t n = 2 * i - (i & (distance - 1));
        const uint32_t a = keys + 8 * n, b = a + 8 * distance;
        const uint64_t first = read(a), second = read(b);
        if ((first < second) == ((n & length) == 0)) {
          st_shared_v2(a, {uint32_t(second), uint32_t(second >> 32)});
          st_shared_v2(b, {uint32_t(first), uint32_t(first >> 32)});
        }
      }
    }
  }
  barrier_sync_all();
}

}  // namespace

// A block sorts a chunk of a query's keys at dynamic_shared().
STEP_KERNEL(select_sort, SelectParams, 256, 4) {
  const uint32_t chunks = (params.k + kChunk - 1) / kChunk;
  const uint32_t query = blockIdx.x / chunks, first = blockIdx.x % chunks * kChunk;
  const uint32_t all = ld_global_u32(params.found + query);
  if (first && first >= all) return;
  const Wanted wanted = wanted_of(params, query);
  uint64_t *keys = params.keys + uint64_t(query) * params.k + first;
  const uint32_t shared = dynamic_shared(), n = all - first < kChunk ? all - first : kChunk;
  uint32_t size = 2;
  while (size < n) size *= 2;
  for (uint32_t i = threadIdx.x; i < size; i += kThreads) {
    // Padding: 0 is below all keys.
    const uint64_t key = i < n ? load_key(keys + i) : 0;
    st_shared_v2(shared + 8 * i, {uint32_t(key), uint32_t(key >> 32)});
  }
  sort(shared, size);
  const bool whole = all <= kChunk;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
    const U32x2 key = ld_shared_v2(shared + 8 * i);
    if (whole)
      store_candidate(params, wanted, i, uint64_t(key.y) << 32 | key.x);
    else
      st_global_v2(keys + i, key);
  }
  if (first) return;
  const bool nan = params.queries && !is_good(params.held, wanted.row);
  for (uint32_t i = all + threadIdx.x; i < wanted.k; i += kThreads) store_nothing(wanted, i, nan && i == 0);
  if (!params.queries && threadIdx.x == 0)
    st_global_u32(params.out + query * params.out_pitch + offsetof(PartialRow, candidates), all);
}

// A thread has a key: its place is its number in its own chunk plus the larger keys of the other chunks.
STEP_KERNEL(select_merge, SelectParams, 256, 4) {
  const uint32_t blocks = (params.k + kThreads - 1) / kThreads;
  const uint32_t query = blockIdx.x / blocks, i = blockIdx.x % blocks * kThreads + threadIdx.x;
  const uint32_t all = ld_global_u32(params.found + query);
  if (all <= kChunk || i >= all) return;
  const uint64_t *keys = params.keys + uint64_t(query) * params.k;
  const uint64_t key = load_key(keys + i);
  uint32_t place = i % kChunk;
#pragma unroll 1
  for (uint32_t first = 0; first < all; first += kChunk) {
    if (first == i / kChunk * kChunk) continue;
    const uint32_t n = all - first < kChunk ? all - first : kChunk;
    place += count_above(key, n, [&](uint32_t j) { return load_key(keys + first + j); });
  }
  store_candidate(params, wanted_of(params, query), place, key);
}
