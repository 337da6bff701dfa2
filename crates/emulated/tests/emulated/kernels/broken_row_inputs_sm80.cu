// Kernels of inputs_sm80.cu with one mistake each; `how` selects it, 0 is none.
#include "answers/digest.cuh"
#include "answers/padded.cuh"
#include "answers/shards.cuh"
#include "broken.h"

using namespace answers;
using namespace ptx;

namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kNone = UINT32_MAX;
constexpr uint64_t kNoTarget = uint64_t(-100);
constexpr uint32_t kNan = 0x7fc00000u, kInfinity = 0x7f800000u, kMinusInfinity = 0xff800000u;

DEVICE uint64_t load_u64(const void *from) {
  const U32x2 v = ld_global_v2(from);
  return uint64_t(v.y) << 32 | v.x;
}

}  // namespace

KERNEL(broken_encode_targets, Broken<EncodeTargetsParams>, 256, 4) {
  const EncodeTargetsParams &p = params.right;
  const uint32_t how = params.how;
  const uint64_t n = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  wait_or_not(how);
  if (n >= p.count && how != 2) return;  // 2: threads behind the last target
  const uint64_t id = load_u64(p.ids + n);
  // 3: the low word of an id; 4: the id behind the last
  const bool there = how == 3 ? uint32_t(id) < p.vocab : how == 4 ? id <= p.vocab : id < p.vocab;
  st_global_u32(p.out + n, there ? uint32_t(id) : kNone);
  const uint32_t row = uint32_t(how == 5 ? n : n / p.per_row);  // 5: a row of each target
  const bool bad = !there && (id != kNoTarget || how == 6);     // 6: a row without targets
  if (bad && how != 7) atom_or_u32(p.status + row, LMHEAD_STATUS_BAD_INDEX);
  if (bad && how == 7) st_global_u32(p.status + row, LMHEAD_STATUS_BAD_INDEX);  // 7: without an atomic
}

KERNEL(broken_pick_targets, Broken<PickTargetsParams>, 256, 4) {
  const PickTargetsParams &p = params.right;
  const uint32_t how = params.how;
  const uint64_t n = uint64_t(blockIdx.x) * kThreads + threadIdx.x;
  wait_or_not(how);
  if (n >= p.count && how != 2) return;  // 2: threads behind the last target
  const uint32_t id = ld_global_u32(p.targets + n);
  const bool there = id < p.vocab || how == 3;  // 3: the shard of a target that is none
  uint32_t logit = kNan;
  if (there) {
    // 4: shards that all have as many ids
    const uint32_t owner = how == 4 ? id / (p.vocab / p.shards) : owner_of(p.vocab, p.shards, id);
    // 5: the shards of a target side by side
    logit = ld_global_u32(p.logits + (how == 5 ? n * p.shards + owner : owner * p.count + n));
  }
  st_global_v2(p.out + n, {logit, id < p.vocab ? id : how == 6 ? 0 : kNone});  // 6: id 0 where there is none
}

KERNEL(broken_or_status, Broken<OrStatusParams>, 256, 4) {
  const OrStatusParams &p = params.right;
  const uint32_t how = params.how, block = how == 3 ? 0 : blockIdx.x;  // 3: rows of the first block
  const uint32_t row = block * kThreads + threadIdx.x;
  wait_or_not(how);
  if (row >= p.rows && how != 2) return;  // 2: threads behind the last row
  const uint32_t from = ld_global_u32(p.from + row), into = ld_global_u32(p.into + row);
  st_global_u32(p.into + row, how == 4 ? from : into | from);  // 4: what was known is lost
}

KERNEL(broken_sampling_rows, Broken<SamplingRowsParams>, 256, 4) {
  const SamplingRowsParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x * kThreads + threadIdx.x;
  wait_or_not(how);
  if (row >= p.rows && how != 2) return;  // 2: threads behind the last row
  const auto number = [&](const void *from, uint32_t otherwise) {
    const uint32_t at = how == 3 ? threadIdx.x : row;  // 3: numbers of the first block's rows
    return from ? ld_global_u32(static_cast<const uint32_t *>(from) + at) : otherwise;
  };
  const uint32_t one = 0x3f800000u;
  const uint64_t seed = p.seeds ? load_u64(p.seeds + row) : 0;
  // 4: positions of 32 bits; 5: an array that is not there
  const bool placed = p.positions || how == 5;
  const uint64_t position = placed ? how == 4 ? number(p.positions, 0) : load_u64(p.positions + row) : 0;
  const uint32_t top_k = number(p.top_k, 0);
  const auto plain = [how](uint32_t bits) { return bits == 0x80000000u && how != 6 ? 0u : bits; };  // 6: -0
  const uint32_t temperature = plain(number(p.temperatures, one));
  const uint32_t top_p = plain(number(p.top_p, one)), min_p = plain(number(p.min_p, 0));
  const bool whole = how == 7 || (position >> 63 == 0 && top_k >> 31 == 0);  // 7: numbers below 0
  const bool finite = temperature < kInfinity || how == 8;                   // 8: any temperature
  const bool share = how == 9 ? top_p <= one : top_p - 1 < one;              // 9: top_p of 0
  bool good = whole && finite && share && (min_p <= one || how == 10);       // 10: any min_p
  // 11: top_k of the whole vocabulary is a filter
  const bool filtered = (top_k && (top_k < p.vocab || how == 11)) || top_p != one || min_p;
  if (p.unfiltered && filtered && (temperature || how == 12)) good = false;  // 12: also of a greedy row
  uint8_t *out = reinterpret_cast<uint8_t *>(p.out + row);
  const auto low = [](uint64_t v) { return uint32_t(v); };
  const auto high = [](uint64_t v) { return uint32_t(v >> 32); };
  if (!good && how != 13) atom_or_u32(p.status + row, LMHEAD_STATUS_BAD_INDEX);  // 13: it is not told
  if (good) {
    const uint32_t kept = top_k < p.vocab || how == 14 ? top_k : 0;  // 14: a top_k above the vocabulary
    st_global_v4(out, {low(seed), high(seed), low(position), high(position)});
    st_global_v4(out + 16, {temperature, kept, top_p, min_p});
  } else if (how != 15) {  // 15: parameters of a bad row left as they were
    st_global_v4(out, {0, 0, 0, 0});
    st_global_v4(out + 16, {0, 0, one, 0});
  }
}

namespace {

DEVICE bool is_finite(uint32_t bits) { return (bits & 0x7fffffffu) < kInfinity; }

DEVICE uint32_t mask_words(const AdjustmentPlaces &places, uint32_t ids) {
  return places.masks ? (ids + 63) / 64 * 2 : 0;
}

DEVICE uint64_t message_bytes(const AdjustmentPlaces &places, uint32_t ids) {
  if (ids == 0) return 0;
  return 4ull * mask_words(places, ids) + 8ull * places.logit_bias +
         (places.counts ? 16 + 8ull * places.counts : 0);
}

DEVICE bool any_of_block(uint32_t how, bool mine) {
  const bool warps = vote_any(mine);
  if (how != 2) barrier_sync_all();
  if (lane_id() == 0) st_shared_u32(dynamic_shared() + 4 * (threadIdx.x / 32), warps);
  if (how != 3) barrier_sync_all();
  uint32_t all = 0;
  for (uint32_t warp = 0; warp < kWarps; ++warp) all |= ld_shared_u32(dynamic_shared() + 4 * warp);
  return all;
}

struct Entries {
  uint64_t first = 0;
  uint32_t count = 0;
  bool good = true;
};

DEVICE Entries entries_of(uint32_t how, const int64_t *offsets, uint32_t row, uint64_t total,
                          uint32_t places) {
  Entries out;
  const uint64_t end = load_u64(offsets + row + 1);
  out.first = load_u64(offsets + row);
  // 4: offsets that are not checked
  out.good = (end <= total && out.first <= end && end - out.first <= places) || how == 4;
  if (out.good) out.count = uint32_t(end - out.first);
  return out;
}

template <class Value>
DEVICE bool pack_entries(uint32_t how, uint8_t *out, uint32_t places, const Entries &entries,
                         const int64_t *ids, uint32_t vocab, const Ids &shard, bool once, Value value) {
  // 5: places without an entry left as they were
  for (uint32_t n = threadIdx.x; n < places && how != 5; n += kThreads)
    st_global_v2(out + 8 * n, {kNone, 0});
  bool bad = !entries.good;
  for (uint32_t n = threadIdx.x; n < entries.count; n += kThreads) {
    uint32_t word;
    const bool there = load_u64(ids + entries.first + n) < vocab || how == 6;  // 6: an id that is none
    bad |= !there || !value(entries.first + n, word);
  }
  if (any_of_block(how, bad)) return false;
  const auto id_of = [&](uint32_t n) { return uint32_t(load_u64(ids + entries.first + n)); };
  bool falls = false, twice = false;
  for (uint32_t n = threadIdx.x + 1; n < entries.count; n += kThreads) {
    const uint32_t before = id_of(n - 1), id = id_of(n);
    falls |= id < before, twice |= id == before;
  }
  const bool sorted = !any_of_block(how, falls) || how == 7;  // 7: ids taken for ascending
  uint32_t below = 0;
  for (uint32_t high = sorted && how != 8 ? entries.count : 0; below < high;) {  // 8: of the whole vocabulary
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
    if (!sorted && (own || once)) {
      place = 0;
      for (uint32_t other = 0; other < entries.count; ++other) {
        const uint32_t theirs = id_of(other);
        // 9: the later of two values first
        const bool before = how == 9 ? other > n : other < n;
        place += theirs >= shard.first && (theirs < id || (theirs == id && before));
        twice |= theirs == id && other != n;
      }
    }
    if (!own) continue;
    uint32_t word;
    value(entries.first + n, word);
    st_global_v2(out + 8 * place, {how == 10 ? id : id - shard.first, word});  // 10: ids of the vocabulary
  }
  return !(once && any_of_block(how, twice)) || how == 11;  // 11: an id that comes twice
}

}  // namespace

KERNEL(broken_pack_adjustments, Broken<PackAdjustmentsParams>, 256, 4) {
  const PackAdjustmentsParams &p = params.right;
  const uint32_t how = params.how;
  wait_or_not(how);
  const AdjustmentPlaces &places = p.places;
  const uint32_t rows = p.parts * p.part_rows, place = blockIdx.x % rows, to = blockIdx.x / rows;
  const uint32_t row = own_row(place, p.rows, p.parts, p.part_rows);
  const bool there = row != kNone || how == 12;  // 12: rows of padding
  Ids ids = {0, 0};
  uint64_t before = 0;
  for (uint32_t j = 0; j <= to; ++j) {
    // 13: messages of this rank's rows alone
    before += (how == 13 ? p.rows : rows) * message_bytes(places, ids.end - ids.first);
    ids = shard_ids(p.vocab, p.shards, p.first_shard + j * p.shard_step);
  }
  const uint32_t count = ids.end - ids.first;
  uint8_t *out = p.out + before + place * message_bytes(places, count);
  // 14: words of whole blocks
  const uint32_t words = mask_words(places, count), own_words = how == 14 ? words : (count + 31) / 32;
  const uint32_t *allowed = there ? p.allowed : nullptr;
  if (allowed) allowed += uint64_t(row) * ((p.vocab + 31) / 32) + ids.first / 32;
  for (uint32_t i = threadIdx.x; i < words; i += kThreads)
    st_global_u32(out + 4 * i, allowed && i < own_words ? ld_global_u32(allowed + i) : kNone);
  out += 4 * words;

  Entries entries;
  if (there) entries = entries_of(how, p.logit_bias_offsets, row, p.logit_bias_entries, places.logit_bias);
  const auto bias = [&](uint64_t entry, uint32_t &word) {
    word = ld_global_u32(p.logit_bias_values + entry);
    return is_finite(word) || word == kMinusInfinity;
  };
  bool good =
      pack_entries(how, out, places.logit_bias, entries, p.logit_bias_ids, p.vocab, ids, false, bias);
  out += 8 * places.logit_bias;
  const auto number = [there, row](const float *from, uint32_t otherwise) {
    return there ? ld_global_u32(from + row) : otherwise;
  };
  const uint32_t repetition = number(p.repetition, 0x3f800000u);
  const uint32_t frequency = number(p.frequency, 0), presence = number(p.presence, 0);
  const bool legal = (repetition - 0x00800000u < kInfinity - 0x00800000u || how == 15) &&  // 15: any penalty
                     is_finite(frequency) && is_finite(presence);
  good &= legal;
  if (threadIdx.x == 0) {
    st_global_v2(out, {legal ? repetition : 0x3f800000u, legal ? frequency : 0});
    st_global_v2(out + 8, {legal ? presence : 0, 0});
  }
  out += 16;
  entries = Entries();
  if (there) entries = entries_of(how, p.count_offsets, row, p.count_entries, places.counts);
  const auto of_counts = [&](uint64_t entry, uint32_t &word) {
    const uint32_t times = ld_global_u32(p.counts + entry);
    const uint8_t in_prompt = ld_global_u8(p.in_prompt + entry);
    word = times << 1 | in_prompt;
    return times >> 31 == 0 && in_prompt <= 1;
  };
  good &= pack_entries(how, out, places.counts, entries, p.count_ids, p.vocab, ids, true, of_counts);
  // 16: the status of the place
  if (!good && threadIdx.x == 0) atom_or_u32(p.status + (how == 16 ? place : row), LMHEAD_STATUS_BAD_INDEX);
}

KERNEL(broken_digest_adjustments, Broken<PackAdjustmentsParams>, 256, 4) {
  const PackAdjustmentsParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x;
  wait_or_not(how);
  const uint32_t words = how == 2 ? (p.vocab + 63) / 64 * 2 : (p.vocab + 31) / 32;  // 2: of whole blocks
  uint64_t digest = 0;
  const auto add = [&digest](uint32_t bits, uint32_t kind, uint32_t i) {
    digest += digest_of(bits, kind << 28 | (i & 0xfffffffu));
  };
  for (uint32_t i = threadIdx.x; i < words; i += kThreads)
    add(ld_global_u32(p.allowed + uint64_t(row) * words + i), 0, i);
  const auto entries = [&](const int64_t *offsets, uint64_t total, uint32_t places, const int64_t *ids,
                           uint32_t kind) {
    const Entries of = entries_of(how, offsets, row, total, places);
    if (threadIdx.x == 0) add(of.count << 1 | of.good, kind, 0);
    for (uint32_t n = threadIdx.x; n < of.count; n += kThreads) {
      const uint64_t id = load_u64(ids + of.first + n);
      add(uint32_t(id), kind + 1, n), add(uint32_t(id >> 32), kind + 2, n);
    }
    return of;
  };
  const Entries added =
      entries(p.logit_bias_offsets, p.logit_bias_entries, p.places.logit_bias, p.logit_bias_ids, 1);
  for (uint32_t n = threadIdx.x; n < added.count; n += kThreads)
    add(ld_global_u32(p.logit_bias_values + added.first + n), how == 6 ? 2 : 4, n);  // 6: of the ids' kind
  const Entries counted = entries(p.count_offsets, p.count_entries, p.places.counts, p.count_ids, 5);
  for (uint32_t n = threadIdx.x; n < counted.count; n += kThreads) {
    add(ld_global_u32(p.counts + counted.first + n), 8, n);
    add(ld_global_u8(p.in_prompt + counted.first + n), 9, n);
  }
  if (threadIdx.x == 0) {
    const float *const each[] = {p.repetition, p.frequency, p.presence};
    // 7: the penalties of the first row
    for (uint32_t i = 0; i < 3; ++i) add(ld_global_u32(each[i] + (how == 7 ? 0 : row)), 10, i);
  }
  // sum_of_block of answers/digest.cuh.
  if (how != 5) digest = sum_of_lanes(digest);  // 5: the sum of the first lane
  const uint32_t at = dynamic_shared();
  if (lane_id() == 0) st_shared_v2(at + threadIdx.x / 4, {uint32_t(digest), uint32_t(digest >> 32)});
  if (how != 3) barrier_sync_all();
  if (threadIdx.x) return;
  for (uint32_t other = 1; other < kWarps; ++other) {
    const U32x2 word = ld_shared_v2(at + 8 * other);
    digest += uint64_t(word.y) << 32 | word.x;
  }
  const uint32_t number = how == 8 ? 0 : row;  // 8: no number of the row
  digest = digest_of(uint32_t(digest), 11u << 28 | number) +
           digest_of(uint32_t(digest >> 32), 12u << 28 | number);
  st_global_v2(p.out + 8ull * row, {uint32_t(digest), uint32_t(digest >> 32)});
}

namespace {

DEVICE void unpack_entries(uint32_t how, const uint8_t *from, uint32_t row, uint32_t rows, uint32_t places,
                           uint32_t *offsets, uint32_t *ids, uint32_t *values) {
  const uint64_t first = how == 4 ? 0 : uint64_t(row) * places;  // 4: places of the first row
  for (uint32_t n = threadIdx.x; n < places; n += kThreads) {
    const U32x2 entry = ld_global_v2(from + 8 * n);
    st_global_u32(ids + first + n, entry.x), st_global_u32(values + first + n, entry.y);
  }
  if (threadIdx.x) return;
  st_global_u32(offsets + row, row * places);
  // 5: no offset behind the last row
  if (row + 1 == rows && how != 5) st_global_u32(offsets + rows, rows * places);
}

}  // namespace

KERNEL(broken_unpack_adjustments, Broken<UnpackAdjustmentsParams>, 256, 4) {
  const UnpackAdjustmentsParams &p = params.right;
  const AdjustmentPlaces &places = p.places;
  const uint32_t how = params.how, row = blockIdx.x;
  wait_or_not(how);
  const uint32_t words = how == 2 ? (p.ids + 31) / 32 : mask_words(places, p.ids);  // 2: of no whole blocks
  const uint8_t *from = p.data + row * message_bytes(places, p.ids) + 4 * words;
  unpack_entries(how, from, row, p.rows, places.logit_bias, p.logit_bias_offsets, p.logit_bias_ids,
                 reinterpret_cast<uint32_t *>(p.logit_bias_values));
  from += 8 * places.logit_bias;
  if (threadIdx.x == 0) {
    const U32x2 two = ld_global_v2(from), more = ld_global_v2(from + 8);
    st_global_u32(p.repetition + row, two.x), st_global_u32(p.frequency + row, two.y);
    st_global_u32(p.presence + row, more.x);
  }
  from += how == 3 ? 0 : 16;  // 3: entries where penalties are
  unpack_entries(how, from, row, p.rows, places.counts, p.count_offsets, p.count_ids, p.counts);
}
