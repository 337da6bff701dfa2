// Inputs of each row that lie in device memory: targets, sampling parameters, masks, logit bias,
// penalties. They are checked where they are read: an illegal value leaves its row without an answer, and no
// address is computed from it.
#include "answers/digest.cuh"
#include "answers/padded.cuh"
#include "answers/shards.cuh"
#include "step.cuh"

namespace {

using namespace answers;
using namespace ptx;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kNone = UINT32_MAX;
constexpr uint64_t kNoTarget = uint64_t(-100);
constexpr uint32_t kNan = 0x7fc00000u, kInfinity = 0x7f800000u, kMinusInfinity = 0xff800000u;

DEVICE uint64_t load_u64(const void *from) {
  const U32x2 v = ld_global_v2(from);
  return uint64_t(v.y) << 32 | v.x;
}

DEVICE bool is_finite(uint32_t bits) { return (bits & 0x7fffffffu) < kInfinity; }

DEVICE void is_bad(uint32_t *status, uint32_t row) { atom_or_u32(status + row, LMHEAD_STATUS_BAD_INDEX); }

}  // namespace

STEP_KERNEL(encode_targets, EncodeTargetsParams, 256, 4) {
  const uint64_t n = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= params.count) return;
  // Negative ids are larger than any vocabulary.
  const uint64_t id = load_u64(params.ids + n);
  const bool there = id < params.vocab;
  st_global_u32(params.out + n, there ? uint32_t(id) : kNone);
  if (!there && id != kNoTarget) is_bad(params.status, uint32_t(n / params.per_row));
}

STEP_KERNEL(pick_targets, PickTargetsParams, 256, 4) {
  const uint64_t n = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= params.count) return;
  const uint32_t id = ld_global_u32(params.targets + n);
  uint32_t logit = kNan;
  if (id < params.vocab) {
    const uint32_t owner = owner_of(params.vocab, params.shards, id);
    logit = ld_global_u32(params.logits + owner * params.count + n);
  }
  st_global_v2(params.out + n, {logit, id < params.vocab ? id : kNone});
}

STEP_KERNEL(or_status, OrStatusParams, 256, 4) {
  const uint32_t row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= params.rows) return;
  st_global_u32(params.into + row, ld_global_u32(params.into + row) | ld_global_u32(params.from + row));
}

// A thread has a row.
STEP_KERNEL(sampling_rows, SamplingRowsParams, 256, 4) {
  const uint32_t row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= params.rows) return;
  const auto number = [row](const void *from, uint32_t otherwise) {
    return from ? ld_global_u32(static_cast<const uint32_t *>(from) + row) : otherwise;
  };
  const uint32_t one = 0x3f800000u;
  const uint64_t seed = params.seeds ? load_u64(params.seeds + row) : 0;
  const uint64_t position = params.positions ? load_u64(params.positions + row) : 0;
  const uint32_t top_k = number(params.top_k, 0);
  // -0 becomes +0, as on the host.
  const auto plain = [](uint32_t bits) { return bits == 0x80000000u ? 0u : bits; };
  const uint32_t temperature = plain(number(params.temperatures, one));
  const uint32_t top_p = plain(number(params.top_p, one)), min_p = plain(number(params.min_p, 0));
  // The bits of floats that are not negative order like their values; those of infinity, NaN and negative
  // floats are above.
  bool good = position >> 63 == 0 && top_k >> 31 == 0 && temperature < kInfinity && top_p - 1 < one &&
              min_p <= one;
  const bool filtered = (top_k && top_k < params.vocab) || top_p != one || min_p;
  if (params.unfiltered && filtered && temperature) good = false;
  uint8_t *out = reinterpret_cast<uint8_t *>(params.out + row);
  const auto low = [](uint64_t v) { return uint32_t(v); };
  const auto high = [](uint64_t v) { return uint32_t(v >> 32); };
  if (good) {
    const uint32_t kept = top_k < params.vocab ? top_k : 0;
    st_global_v4(out, {low(seed), high(seed), low(position), high(position)});
    st_global_v4(out + 16, {temperature, kept, top_p, min_p});
  } else {
    is_bad(params.status, row);
    st_global_v4(out, {0, 0, 0, 0});
    st_global_v4(out + 16, {0, 0, one, 0});
  }
}

namespace {

// 32-bit words of the mask of `ids` ids: whole blocks of 64.
DEVICE uint32_t mask_words(const AdjustmentPlaces &places, uint32_t ids) {
  return places.masks ? (ids + 63) / 64 * 2 : 0;
}

DEVICE uint64_t message_bytes(const AdjustmentPlaces &places, uint32_t ids) {
  if (ids == 0) return 0;
  return 4ull * mask_words(places, ids) + 8ull * places.logit_bias +
         (places.counts ? 16 + 8ull * places.counts : 0);
}

// Whether `mine` is true in any thread of the block. dynamic_shared() holds a word for each warp.
DEVICE bool any_of_block(bool mine) {
  const bool warps = vote_any(mine);
  // All threads have read the words of the call before.
  barrier_sync_all();
  if (lane_id() == 0) st_shared_u32(dynamic_shared() + 4 * (threadIdx.x / 32), warps);
  barrier_sync_all();
  uint32_t all = 0;
#pragma unroll
  for (uint32_t warp = 0; warp < kWarps; ++warp) all |= ld_shared_u32(dynamic_shared() + 4 * warp);
  return all;
}

struct Entries {
  uint64_t first = 0;
  uint32_t count = 0;
  bool good = true;
};

// The CSR entries of a row; not good where offsets are illegal or it has more than `places`.
DEVICE Entries entries_of(const int64_t *offsets, uint32_t row, uint64_t total, uint32_t places) {
  Entries out;
  const uint64_t end = load_u64(offsets + row + 1);
  out.first = load_u64(offsets + row);
  // Negative offsets, taken as u64, are above any total.
  out.good = end <= total && out.first <= end && end - out.first <= places;
  if (out.good) out.count = uint32_t(end - out.first);
  return out;
}

// Writes the row's entries whose ids the shard has to `out`, by ascending id; those of one id stay in the
// order in which they came. `value(entry, &word)` sets the word beside the id, and returns whether the entry
// is legal. With `once` no id may come twice. Returns whether the whole row is legal. Where ids do not
// ascend, each is compared with all. Called by the whole block.
template <class Value>
DEVICE bool pack_entries(uint8_t *out, uint32_t places, const Entries &entries, const int64_t *ids,
                         uint32_t vocab, const Ids &shard, bool once, Value value) {
  for (uint32_t n = threadIdx.x; n < places; n += kThreads) st_global_v2(out + 8 * n, {kNone, 0});
  bool bad = !entries.good;
  for (uint32_t n = threadIdx.x; n < entries.count; n += kThreads) {
    uint32_t word;
    bad |= load_u64(ids + entries.first + n) >= vocab || !value(entries.first + n, word);
  }
  // Its barriers also order the clearing of the places before the stores below.
  if (any_of_block(bad)) return false;
  const auto id_of = [&](uint32_t n) { return uint32_t(load_u64(ids + entries.first + n)); };
  bool falls = false, twice = false;
  for (uint32_t n = threadIdx.x + 1; n < entries.count; n += kThreads) {
    const uint32_t before = id_of(n - 1), id = id_of(n);
    falls |= id < before, twice |= id == before;
  }
  const bool sorted = !any_of_block(falls);
  // How many ids are below the shard's first; used where ids ascend.
  uint32_t below = 0;
  for (uint32_t high = sorted ? entries.count : 0; below < high;) {
    const uint32_t middle = below + (high - below) / 2;
    if (id_of(middle) < shard.first)
      below = middle + 1;
    else
      high = middle;
  }
  for (uint32_t n = threadIdx.x; n < entries.count; n += kThreads) {
    const uint32_t id = id_of(n);
    const bool own = id - shard.first < shard.end - shard.first;
    uint32_t place = n - below;
    // An id that comes twice is to be reported by each of the replica's ranks, whatever shards it sends to:
    // so with `once` ids of other shards are compared too.
    if (!sorted && (own || once)) {
      place = 0;
#pragma unroll 1
      for (uint32_t other = 0; other < entries.count; ++other) {
        const uint32_t theirs = id_of(other);
        place += theirs >= shard.first && (theirs < id || (theirs == id && other < n));
        twice |= theirs == id && other != n;
      }
    }
    if (!own) continue;
    uint32_t word;
    value(entries.first + n, word);
    st_global_v2(out + 8 * place, {id - shard.first, word});
  }
  return !(once && any_of_block(twice));
}

}  // namespace

STEP_KERNEL(pack_adjustments, PackAdjustmentsParams, 256, 4) {
  const AdjustmentPlaces &places = params.places;
  const uint32_t rows = params.parts * params.part_rows, place = blockIdx.x % rows, to = blockIdx.x / rows;
  const uint32_t row = own_row(place, params.rows, params.parts, params.part_rows);
  const bool there = row != kNone;
  Ids ids = {0, 0};
  uint64_t before = 0;
#pragma unroll 1
  for (uint32_t j = 0; j <= to; ++j) {
    before += rows * message_bytes(places, ids.end - ids.first);
    ids = shard_ids(params.vocab, params.shards, params.first_shard + j * params.shard_step);
  }
  // A shard without ids is sent nothing, but the row is checked: this rank may send to no other shard.
  const uint32_t count = ids.end - ids.first;
  const auto sent = [count](uint32_t entries) { return count ? entries : 0; };
  uint8_t *out = params.out + before + place * message_bytes(places, count);

  const uint32_t words = mask_words(places, count), own_words = (count + 31) / 32;
  const uint32_t *allowed = there ? params.allowed : nullptr;
  if (allowed) allowed += uint64_t(row) * ((params.vocab + 31) / 32) + ids.first / 32;
  for (uint32_t i = threadIdx.x; i < words; i += kThreads)
    st_global_u32(out + 4 * i, allowed && i < own_words ? ld_global_u32(allowed + i) : kNone);
  out += 4 * words;

  bool good = true;
  if (places.logit_bias) {
    Entries entries;
    if (there && params.logit_bias_offsets)
      entries = entries_of(params.logit_bias_offsets, row, params.logit_bias_entries, places.logit_bias);
    const auto value = [&](uint64_t entry, uint32_t &word) {
      word = ld_global_u32(params.logit_bias_values + entry);
      return is_finite(word) || word == kMinusInfinity;
    };
    good &= pack_entries(out, sent(places.logit_bias), entries, params.logit_bias_ids, params.vocab, ids,
                         false, value);
    out += 8 * places.logit_bias;
  }
  if (places.counts) {
    const auto number = [there, row](const float *from, uint32_t otherwise) {
      return there && from ? ld_global_u32(from + row) : otherwise;
    };
    const uint32_t repetition = number(params.repetition, 0x3f800000u);
    const uint32_t frequency = number(params.frequency, 0), presence = number(params.presence, 0);
    // The repetition penalty must be positive, finite and not subnormal.
    const bool legal =
        repetition - 0x00800000u < kInfinity - 0x00800000u && is_finite(frequency) && is_finite(presence);
    good &= legal;
    if (threadIdx.x == 0 && count) {
      st_global_v2(out, {legal ? repetition : 0x3f800000u, legal ? frequency : 0});
      st_global_v2(out + 8, {legal ? presence : 0, 0});
    }
    out += 16;
    Entries entries;
    if (there && params.count_offsets)
      entries = entries_of(params.count_offsets, row, params.count_entries, places.counts);
    const auto value = [&](uint64_t entry, uint32_t &word) {
      const uint32_t times = ld_global_u32(params.counts + entry);
      const uint8_t in_prompt = ld_global_u8(params.in_prompt + entry);
      word = times << 1 | in_prompt;
      return times >> 31 == 0 && in_prompt <= 1;
    };
    good &= pack_entries(out, sent(places.counts), entries, params.count_ids, params.vocab, ids, true, value);
  }
  if (!good && threadIdx.x == 0) is_bad(params.status, row);
}

// Digests each row's adjustments, which tensor-parallel ranks must share. A block has a row.
STEP_KERNEL(digest_adjustments, PackAdjustmentsParams, 256, 4) {
  const uint32_t row = blockIdx.x, words = (params.vocab + 31) / 32;
  uint64_t digest = 0;
  const auto add = [&digest](uint32_t bits, uint32_t kind, uint32_t i) {
    digest += digest_of(bits, kind << 28 | (i & 0xfffffffu));
  };
  for (uint32_t i = threadIdx.x; params.allowed && i < words; i += kThreads)
    add(ld_global_u32(params.allowed + uint64_t(row) * words + i), 0, i);
  const auto entries = [&](const int64_t *offsets, uint64_t total, uint32_t places, const int64_t *ids,
                           uint32_t kind) {
    Entries of;
    if (offsets) of = entries_of(offsets, row, total, places);
    if (threadIdx.x == 0) add(of.count << 1 | of.good, kind, 0);
    for (uint32_t n = threadIdx.x; n < of.count; n += kThreads) {
      const uint64_t id = load_u64(ids + of.first + n);
      add(uint32_t(id), kind + 1, n), add(uint32_t(id >> 32), kind + 2, n);
    }
    return of;
  };
  const Entries added = entries(params.logit_bias_offsets, params.logit_bias_entries,
                                params.places.logit_bias, params.logit_bias_ids, 1);
  for (uint32_t n = threadIdx.x; n < added.count; n += kThreads)
    add(ld_global_u32(params.logit_bias_values + added.first + n), 4, n);
  const Entries counted =
      entries(params.count_offsets, params.count_entries, params.places.counts, params.count_ids, 5);
  for (uint32_t n = threadIdx.x; n < counted.count; n += kThreads) {
    add(ld_global_u32(params.counts + counted.first + n), 8, n);
    add(ld_global_u8(params.in_prompt + counted.first + n), 9, n);
  }
  if (threadIdx.x == 0) {
    const float *const each[] = {params.repetition, params.frequency, params.presence};
#pragma unroll
    for (uint32_t i = 0; i < 3; ++i)
      if (each[i]) add(ld_global_u32(each[i] + row), 10, i);
  }
  digest = sum_of_block<kWarps>(digest);
  if (threadIdx.x) return;
  // The digest also covers the row's number.
  digest = digest_of(uint32_t(digest), 11u << 28 | row) + digest_of(uint32_t(digest >> 32), 12u << 28 | row);
  st_global_v2(params.out + 8ull * row, {uint32_t(digest), uint32_t(digest >> 32)});
}

namespace {

DEVICE void unpack_entries(const uint8_t *from, uint32_t row, uint32_t rows, uint32_t places,
                           uint32_t *offsets, uint32_t *ids, uint32_t *values) {
  const uint64_t first = uint64_t(row) * places;
  for (uint32_t n = threadIdx.x; n < places; n += kThreads) {
    const U32x2 entry = ld_global_v2(from + 8 * n);
    st_global_u32(ids + first + n, entry.x), st_global_u32(values + first + n, entry.y);
  }
  if (threadIdx.x) return;
  st_global_u32(offsets + row, row * places);
  if (row + 1 == rows) st_global_u32(offsets + rows, rows * places);
}

}  // namespace

STEP_KERNEL(unpack_adjustments, UnpackAdjustmentsParams, 256, 4) {
  const AdjustmentPlaces &places = params.places;
  const uint32_t row = blockIdx.x;
  const uint8_t *from =
      params.data + row * message_bytes(places, params.ids) + 4 * mask_words(places, params.ids);
  if (places.logit_bias) {
    unpack_entries(from, row, params.rows, places.logit_bias, params.logit_bias_offsets,
                   params.logit_bias_ids, reinterpret_cast<uint32_t *>(params.logit_bias_values));
    from += 8 * places.logit_bias;
  }
  if (!places.counts) return;
  if (threadIdx.x == 0) {
    const U32x2 two = ld_global_v2(from), more = ld_global_v2(from + 8);
    st_global_u32(params.repetition + row, two.x), st_global_u32(params.frequency + row, two.y);
    st_global_u32(params.presence + row, more.x);
  }
  unpack_entries(from + 16, row, params.rows, places.counts, params.count_offsets, params.count_ids,
                 params.counts);
}
