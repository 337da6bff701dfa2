// Accumulators -> logits, or a summary of the tile's rows: dequantise, bias, softcap, scale; logit bias,
// penalties, mask; temperature; then rounding and stores, or the best candidates and a sum of exponentials. A
// tile of logits passes through shared memory, [kBlockM][kBlockN] f32, and every step is one rounded f32
// operation in the CPU backend's order.
#pragma once
#include "answers/best.cuh"
#include "answers/exponential.cuh"
#include "answers/noise.cuh"
#include "answers/sampling.cuh"
#include "matmul/multiply.cuh"
#include "matmul/softcap.cuh"

namespace matmul {

template <class T>
DEVICE uint32_t logit_address(uint32_t row, uint32_t id) {
  return dynamic_shared() + row * T::kLogitPitch + 4 * id;
}

DEVICE float load_f32(const float *from) { return mov_f32_b32(ld_global_u32(from)); }
DEVICE bool is_finite(float v) { return (mov_b32_f32(v) & 0x7fffffffu) < 0x7f800000u; }
constexpr float kInfinity = __builtin_huge_valf();

// Sets a flag in a row's status where a lane of the warp has found it. Called by whole warps.
DEVICE void set_status(const MatmulParams &p, uint32_t row, bool found, uint32_t flag) {
  if (vote_any(found) && lane_id() == 0) atom_or_u32(p.logits.status + row, flag);
}

// Dequantise, bias and, where no softcap comes between, scale. Adding -0 and multiplying by 1 change no bits,
// so an absent bias or scale needs no branch.
template <class T>
DEVICE float dequantise(typename T::Type::Accumulator sum, float row_scale, float weight_scale, float bias,
                        float scale) {
  float v;
  if constexpr (T::Type::kRowScales)
    v = mul_rn_f32(cvt_rn_f32_s32(sum), row_scale);
  else
    v = sum;
  if constexpr (T::Type::kWeightScales) v = mul_rn_f32(v, weight_scale);
  return mul_rn_f32(add_rn_f32(v, bias), scale);
}

// Softcap, then scale.
DEVICE float softcap(const MatmulParams &p, float v) {
  return mul_rn_f32(mul_rn_f32(tanh(div_rn_f32(v, p.softcap)), p.softcap), p.scale);
}

// One row's penalties. `penalise` applies them to an id with `packed` counts: 2·(times in the output) + (in
// the prompt).
struct Penalties {
  float repetition, frequency, presence;
};
DEVICE Penalties load_penalties(const LogitAdjustments &a, uint32_t row) {
  return {load_f32(a.repetition + row), load_f32(a.frequency + row), load_f32(a.presence + row)};
}
DEVICE float penalise(float v, uint32_t packed, const Penalties &of) {
  const uint32_t count = packed >> 1;
  if (packed) v = v > 0 ? div_rn_f32(v, of.repetition) : mul_rn_f32(v, of.repetition);
  if (count)
    v = add_rn_f32(add_rn_f32(v, -mul_rn_f32(of.frequency, cvt_rn_f32_s32(int32_t(count)))), -of.presence);
  return v;
}

// Accumulator `n` of the four that a thread has of 16 ids x 8 rows: in the layout of mma.sync, and in that of
// wgmma, of which a warp has 16 ids.
template <class Accumulator, uint32_t kIdParts, uint32_t kRowParts>
DEVICE Accumulator accumulator_of(const Accumulator (&d)[kIdParts][kRowParts][4], uint32_t ids, uint32_t rows,
                                  uint32_t n) {
  return d[ids][rows][n];
}
template <class Accumulator, uint32_t kCount>
DEVICE Accumulator accumulator_of(const Accumulator (&d)[kCount], uint32_t, uint32_t rows, uint32_t n) {
  return d[4 * rows + n];
}

// Dequantises a thread's accumulators in registers, where only scales are waited for, and stores the logits
// to the tile.
template <class T, class AnyAccumulators>
DEVICE void dequant_bias(const MatmulParams &p, const TileCoord &at, const AnyAccumulators &d) {
  constexpr uint32_t kParts = T::kWarpN / 16, kRowParts = T::kWarpM / 8;
  const uint32_t lane = lane_id();
  const WarpCoord of_warp = warp_coord<T>(threadIdx.x / 32);
  const uint32_t column = of_warp.first_id + lane / 4, row = of_warp.first_row + lane % 4 * 2;
  const float scale = p.softcap != 0 ? 1.0f : p.scale;
  float weight_scale[kParts][2], bias[kParts][2];
#pragma unroll
  for (uint32_t i = 0; i < kParts; ++i)
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
      // Ids behind the last have its scale and bias, so that they set the same flags as it does.
      const uint32_t wanted = at.first_id + column + i * 16 + half * 8,
                     id = wanted < at.end_id ? wanted : at.end_id - 1;
      if constexpr (T::Type::kWeightScales) weight_scale[i][half] = load_f32(p.weights.scales + id);
      bias[i][half] = p.weights.bias ? load_f32(p.weights.bias + id) : -0.0f;
    }
  // All scales are loaded together, before the first is needed.
  [[maybe_unused]] float row_scale[kRowParts][2];
  if constexpr (T::Type::kRowScales)
#pragma unroll
    for (uint32_t j = 0; j < kRowParts; ++j)
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const uint32_t wanted = at.first_row + row + j * 8 + e,
                       of = wanted < p.row_count ? wanted : p.row_count - 1;
        row_scale[j][e] = load_f32(p.row_scales + of);
      }
  // Bit 2j + e: a logit of row 8j + e is NaN or infinite.
  uint32_t broken = 0;
#pragma unroll
  for (uint32_t j = 0; j < kRowParts; ++j)
#pragma unroll
    for (uint32_t e = 0; e < 2; ++e) {
      const uint32_t r = row + j * 8 + e;
      float found = 0;
#pragma unroll
      for (uint32_t i = 0; i < kParts; ++i)
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
          float of_row = 1, of_weight = 1;
          if constexpr (T::Type::kRowScales) of_row = row_scale[j][e];
          if constexpr (T::Type::kWeightScales) of_weight = weight_scale[i][half];
          const float v =
              dequantise<T>(accumulator_of(d, i, j, 2 * half + e), of_row, of_weight, bias[i][half], scale);
          // NaN and infinity times 0 are NaN, and so is `found` from then on. What is not finite before the
          // scale is not after it.
          found = fma_rn_f32(v, 0.0f, found);
          st_shared_f32(logit_address<T>(r, column + i * 16 + half * 8), v);
        }
      broken |= uint32_t(!is_finite(found)) << (2 * j + e);
    }
  if (!vote_any(broken != 0)) return;
#pragma unroll 1
  for (uint32_t bit = 0; bit < 2 * kRowParts; ++bit) {
    // Lanes 4n + l have the rows of lane l.
    const uint32_t votes = vote_ballot(broken >> bit & 1), of = at.first_row + row + bit / 2 * 8 + bit % 2;
    if (lane < 4 && votes & 0x11111111u << lane && of < p.row_count)
      atom_or_u32(p.logits.status + of, LMHEAD_STATUS_NONFINITE);
  }
}

// Softcap of the tile: a thread has one id, of every (kThreads / kBlockN)-th row.
template <class T>
DEVICE void softcap(const MatmulParams &p, const TileCoord &at) {
  const uint32_t column = threadIdx.x % T::kBlockN;
#pragma unroll 1
  for (uint32_t r = threadIdx.x / T::kBlockN; r < T::kBlockM && at.first_row + r < p.row_count;
       r += T::kThreads / T::kBlockN) {
    const uint32_t to = logit_address<T>(r, column);
    const float v = softcap(p, ld_shared_f32(to));
    // Infinity before the softcap, which hides it, was found by `dequant_bias`.
    set_status(p, at.first_row + r, !is_finite(v), LMHEAD_STATUS_NONFINITE);
    st_shared_f32(to, v);
  }
}

// The first of the ascending ids[from..end] that is not below `id`.
DEVICE uint32_t first_not_below(const uint32_t *ids, uint32_t from, uint32_t end, uint32_t id) {
  while (from < end) {
    const uint32_t middle = from + (end - from) / 2;
    if (ld_global_u32(ids + middle) < id)
      from = middle + 1;
    else
      end = middle;
  }
  return from;
}

// Applies logit bias, then penalties, to single logits: a thread goes through all of a row's entries, of
// which few are in a tile.
template <class T>
DEVICE void adjust(const MatmulParams &p, const TileCoord &at) {
  const LogitAdjustments &a = p.adjustments;
  const uint32_t end_id = at.first_id + T::kBlockN < at.end_id ? at.first_id + T::kBlockN : at.end_id;
  for (uint32_t r = threadIdx.x; r < T::kBlockM && at.first_row + r < p.row_count; r += T::kThreads) {
    const uint32_t row = at.first_row + r;
    if (a.logit_bias_offsets) {
      const uint32_t end = ld_global_u32(a.logit_bias_offsets + row + 1);
      uint32_t entry =
          first_not_below(a.logit_bias_ids, ld_global_u32(a.logit_bias_offsets + row), end, at.first_id);
      for (; entry < end; ++entry) {
        const uint32_t id = ld_global_u32(a.logit_bias_ids + entry);
        // Past the tile; or before it, where ids do not ascend: nothing outside of the tile is touched.
        if (id - at.first_id >= end_id - at.first_id) break;
        const uint32_t to = logit_address<T>(r, id - at.first_id);
        st_shared_f32(to, add_rn_f32(ld_shared_f32(to), load_f32(a.logit_bias_values + entry)));
      }
    }
    if (a.count_offsets) {
      const uint32_t end = ld_global_u32(a.count_offsets + row + 1);
      uint32_t entry = first_not_below(a.count_ids, ld_global_u32(a.count_offsets + row), end, at.first_id);
      const Penalties penalties = load_penalties(a, row);
      for (; entry < end; ++entry) {
        const uint32_t id = ld_global_u32(a.count_ids + entry);
        if (id - at.first_id >= end_id - at.first_id) break;
        const uint32_t to = logit_address<T>(r, id - at.first_id);
        st_shared_f32(to, penalise(ld_shared_f32(to), ld_global_u32(a.counts + entry), penalties));
      }
    }
  }
}

// Mask and temperature: a warp has a row. Each lane has the ids lane, lane + 32, ...
template <class T>
DEVICE void mask_temperature(const MatmulParams &p, const TileCoord &at, bool adjusted) {
  const LogitAdjustments &a = p.adjustments;
  const uint32_t lane = lane_id();
#pragma unroll 1
  for (uint32_t r = threadIdx.x / 32; r < T::kBlockM && at.first_row + r < p.row_count;
       r += T::kThreads / 32) {
    const uint32_t row = at.first_row + r;
    bool good = true, any = false;
    const float temperature = a.temperatures ? load_f32(a.temperatures + row) : 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < T::kBlockN / 32; ++i) {
      const uint32_t id = at.first_id + 32 * i + lane;
      if (id >= at.end_id) continue;
      const uint32_t from = logit_address<T>(r, 32 * i + lane);
      float v = ld_shared_f32(from);
      if (a.allowed && !(ld_global_u32(a.allowed + row * a.allowed_pitch + id / 32) >> id % 32 & 1))
        v = -kInfinity;
      good &= v < kInfinity, any |= v > -kInfinity;
      if (temperature != 0) {
        const bool finite = is_finite(v);
        v = div_rn_f32(v, temperature);
        good &= !finite || is_finite(v);
      }
      st_shared_f32(from, v);
    }
    set_status(p, row, !good, p.raw ? LMHEAD_STATUS_ADJUSTED : LMHEAD_STATUS_NONFINITE);
    if (adjusted) set_status(p, row, any, LMHEAD_STATUS_ALLOWED);
  }
}

// Logits in the caller's type: one by one, or as many as 16 bytes hold.
struct F32 {
  uint32_t bits;
};
DEVICE void store_logit(F32, uint8_t *to, float v) { st_global_f32(to, v); }
DEVICE void store_logit(F16, uint8_t *to, float v) { st_global_u16(to, cvt_rn_f16_f32(v).bits); }
DEVICE void store_logit(Bf16, uint8_t *to, float v) { st_global_u16(to, cvt_rn_bf16_f32(v).bits); }
DEVICE uint32_t pack(F16, uint32_t low, uint32_t high) {
  return cvt_rn_f16_f32(mov_f32_b32(low)).bits | uint32_t(cvt_rn_f16_f32(mov_f32_b32(high)).bits) << 16;
}
DEVICE uint32_t pack(Bf16, uint32_t low, uint32_t high) {
  return cvt_rn_bf16_f32(mov_f32_b32(low)).bits | uint32_t(cvt_rn_bf16_f32(mov_f32_b32(high)).bits) << 16;
}
DEVICE U32x4 vector_of(F32, const U32x4 (&v)[1]) { return v[0]; }
template <class Half>
DEVICE U32x4 vector_of(Half half, const U32x4 (&v)[2]) {
  return {pack(half, v[0].x, v[0].y), pack(half, v[0].z, v[0].w), pack(half, v[1].x, v[1].y),
          pack(half, v[1].z, v[1].w)};
}

// The smallest magnitude, as bits, of a finite f32 that is rounded to infinity.
DEVICE constexpr uint32_t overflow_bits(F32) { return 0x7f800000u; }
DEVICE constexpr uint32_t overflow_bits(F16) { return 0x477ff000u; }   // 65520
DEVICE constexpr uint32_t overflow_bits(Bf16) { return 0x7f7f8000u; }
// Whether a finite logit becomes infinite by rounding. Infinity itself was found before, or is legal: minus
// infinity of a mask.
template <class Type>
DEVICE bool overflows(Type type, uint32_t bits) {
  return (bits & 0x7fffffffu) - overflow_bits(type) < 0x7f800000u - overflow_bits(type);
}

// Rounds and stores 16 bytes a thread, those of a row side by side.
template <class T, class Type>
DEVICE void store_wide(const MatmulParams &p, const TileCoord &at, Type type, uint8_t *data) {
  constexpr uint32_t kBytes = sizeof(Type), kEach = 16 / kBytes, kVectors = T::kBlockN / kEach,
                     kAll = T::kBlockM * kVectors;
  constexpr uint32_t kRounds = (kAll + T::kThreads - 1) / T::kThreads, kAtOnce = kRounds < 4 ? kRounds : 4;
#pragma unroll 1
  for (uint32_t round = 0; round < kRounds; round += kAtOnce) {
    // Several vectors are loaded together; threads beyond the last load others' and store none.
    U32x4 v[kAtOnce][kEach / 4];
#pragma unroll
    for (uint32_t n = 0; n < kAtOnce; ++n) {
      const uint32_t i = (threadIdx.x + (round + n) * T::kThreads) % kAll;
#pragma unroll
      for (uint32_t part = 0; part < kEach / 4; ++part)
        v[n][part] = ld_shared_v4(logit_address<T>(i / kVectors, i % kVectors * kEach + 4 * part));
    }
#pragma unroll
    for (uint32_t n = 0; n < kAtOnce; ++n) {
      const uint32_t i = threadIdx.x + (round + n) * T::kThreads;
      const uint32_t row = at.first_row + i / kVectors, id = at.first_id + i % kVectors * kEach;
      if (i >= kAll || row >= p.row_count) continue;
      st_global_v4(data + row * p.logits.pitch + uint64_t(id) * kBytes, vector_of(type, v[n]));
      bool over = false;
#pragma unroll
      for (uint32_t part = 0; part < kEach / 4; ++part)
        over |= overflows(type, v[n][part].x) | overflows(type, v[n][part].y) |
                overflows(type, v[n][part].z) | overflows(type, v[n][part].w);
      // Rare, so each thread sets it by itself.
      if (over) atom_or_u32(p.logits.status + row, LMHEAD_STATUS_NONFINITE);
    }
  }
}

// The same where rows are not aligned to 16 bytes, or end within the tile: a warp has a row, and its lanes
// store side by side.
template <class T, class Type>
DEVICE void store_narrow(const MatmulParams &p, const TileCoord &at, Type type, uint8_t *data) {
  constexpr uint32_t kBytes = sizeof(Type);
#pragma unroll 1
  for (uint32_t r = threadIdx.x / 32; r < T::kBlockM && at.first_row + r < p.row_count;
       r += T::kThreads / 32) {
    uint8_t *to = data + (at.first_row + r) * p.logits.pitch;
#pragma unroll
    for (uint32_t i = 0; i < T::kBlockN / 32; ++i) {
      const uint32_t column = 32 * i + lane_id(), id = at.first_id + column;
      if (id >= at.end_id) continue;
      const float v = ld_shared_f32(logit_address<T>(r, column));
      store_logit(type, to + uint64_t(id) * kBytes, v);
      if (overflows(type, mov_b32_f32(v)))
        atom_or_u32(p.logits.status + at.first_row + r, LMHEAD_STATUS_NONFINITE);
    }
  }
}

template <class T, class Type>
DEVICE void store(const MatmulParams &p, const TileCoord &at, Type type, void *data) {
  if ((uint64_t(data) | p.logits.pitch) % 16 == 0 && at.first_id + T::kBlockN <= at.end_id)
    store_wide<T>(p, at, type, static_cast<uint8_t *>(data));
  else
    store_narrow<T>(p, at, type, static_cast<uint8_t *>(data));
}

// The tile's candidates: a warp has a row.
template <class T>
DEVICE void find_best(const MatmulParams &p, const TileCoord &at, uint8_t *partials, uint64_t stride) {
  constexpr uint32_t kTileBytes = T::kBlockM * T::kLogitPitch;
  using answers::Best;
  static_assert(kTileBytes + T::kThreads / 32 * Best::kBytes <= T::kLogitRoom, "a tile's room holds both");
  const uint32_t list = dynamic_shared() + kTileBytes + threadIdx.x / 32 * Best::kBytes, lane = lane_id();
#pragma unroll 1
  for (uint32_t r = threadIdx.x / 32; r < T::kBlockM && at.first_row + r < p.row_count;
       r += T::kThreads / 32) {
    uint32_t *bar = p.partials.bars + at.first_row + r;
    const uint32_t known = ld_relaxed_u32(bar);
    Best best(list, p.partials.k, known);
    U32x2 own = {0xff800000u, 0};  // the best of the lane's, which alone is offered where one is wanted
#pragma unroll
    for (uint32_t i = 0; i < T::kBlockN / 32; ++i) {
      const uint32_t id = at.first_id + 32 * i + lane,
                     bits = ld_shared_u32(logit_address<T>(r, 32 * i + lane));
      if (best.k > 1)
        best.offer(id < at.end_id, bits, id);
      else if (id < at.end_id && mov_f32_b32(bits) > mov_f32_b32(own.x))
        own = {bits, id};
    }
    if (best.k == 1) best.offer(true, own.x, own.y);
    if (best.count >= best.k) {
      if (best.k > 1) best.keep();  // one alone is kept already
      if (lane == 0 && best.least() > known) atom_max_u32(bar, best.least());
    } else {
      bar_warp_sync();
    }
    uint8_t *row = partials + (at.first_row + r) * stride;
    if (lane == 0) st_global_v2(row + offsetof(PartialRow, candidates), {best.count, 0});
    for (uint32_t n = lane; n < best.count; n += 32)
      st_global_v2(row + sizeof(PartialRow) + n * sizeof(Candidate), ld_shared_v2(best.at(n)));
    // All lanes have read the list before the next row's candidates overwrite it.
    bar_warp_sync();
  }
}

// Stores how many of the tile's logits beat each target of its rows, behind a row's `places` candidates: a
// warp has a row.
template <class T>
DEVICE void count_greater(const MatmulParams &p, const TileCoord &at, uint8_t *partials, uint64_t stride,
                          uint32_t places) {
  const uint32_t lane = lane_id(), count = p.partials.target_count;
#pragma unroll 1
  for (uint32_t r = threadIdx.x / 32; r < T::kBlockM && at.first_row + r < p.row_count;
       r += T::kThreads / 32) {
    const uint32_t row = at.first_row + r;
    uint8_t *out = partials + row * stride + sizeof(PartialRow) + places * sizeof(Candidate);
#pragma unroll 1
    for (uint32_t n = 0; n < count; ++n) {
      const U32x2 target = ld_global_v2(p.partials.targets + uint64_t(row) * count + n);
      const uint64_t key = answers::key_of(target.x, target.y);
      uint32_t num_greater = 0;
#pragma unroll
      for (uint32_t i = 0; i < T::kBlockN / 32; ++i) {
        const uint32_t id = at.first_id + 32 * i + lane,
                       bits = ld_shared_u32(logit_address<T>(r, 32 * i + lane));
        num_greater +=
            popc_b32(vote_ballot(id < at.end_id && answers::key_of(bits, p.partials.first_id + id) > key));
      }
      if (lane == 0) st_global_u32(out + 4 * n, target.y != UINT32_MAX ? num_greater : 0);
    }
  }
}

// The tile's sums of exponentials: a row's threads are neighbours in a warp.
template <class T>
DEVICE void add_up(const MatmulParams &p, const TileCoord &at, uint8_t *partials, uint64_t stride) {
  constexpr uint32_t kLanes = T::kThreads / T::kBlockM < 32 ? T::kThreads / T::kBlockM : 32, kEach = 8;
  const uint32_t r = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  answers::ExpSum sum;
  if (p.partials.sum) {
#pragma unroll 1
    for (uint32_t column = kEach * lane; column < T::kBlockN; column += kEach * kLanes) {
      float some[kEach];
#pragma unroll
      for (uint32_t i = 0; i < kEach; i += 4) {
        const U32x4 four = ld_shared_v4(logit_address<T>(r, column + i));
        const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j)
          some[i + j] = at.first_id + column + i + j < at.end_id ? mov_f32_b32(words[j]) : -kInfinity;
      }
      sum.add(some);
    }
    sum.merge_lanes(kLanes);
  }
  if (lane || at.first_row + r >= p.row_count) return;
  uint8_t *row = partials + (at.first_row + r) * stride;
#pragma unroll
  for (uint32_t i = 0; i < 3; ++i)
    st_global_v2(row + 8 * i, {uint32_t(sum.words[i]), uint32_t(sum.words[i] >> 32)});
  // Status 0: a row's status is known only after all of its tiles.
  st_global_v2(row + offsetof(PartialRow, top), {uint32_t(sum.top()), 0});
}

// Draws an id of each of the tile's rows. A lane has four ids, whose noise comes from one counter; a warp has
// a row, or two.
template <class T>
DEVICE void draw(const MatmulParams &p, const TileCoord &at) {
  using namespace answers;
  constexpr uint32_t kEach = 4, kLanes = T::kBlockN / kEach, kRowsAtOnce = 32 / kLanes,
                     kWarps = T::kThreads / 32;
  static_assert(kLanes == 16 || kLanes == 32, "whole rows in a warp");
  const uint32_t lane = lane_id(), part = lane % kLanes, first_lane = lane - part, column = kEach * part;
  const uint32_t parts = T::parts(p);
#pragma unroll 1
  for (uint32_t turn = threadIdx.x / 32 * kRowsAtOnce; turn < T::kBlockM && at.first_row + turn < p.row_count;
       turn += kWarps * kRowsAtOnce) {
    // A row behind the last reads the last one's parameters, and stores nothing.
    const uint32_t r = turn + lane / kLanes, wanted = at.first_row + r;
    const bool is_row = wanted < p.row_count;
    const uint32_t row = is_row ? wanted : p.row_count - 1;
    const SamplingRow sampling = load_sampling(p.partials.draws + row);
    uint32_t *bar = p.partials.bars + row;
    Draw drawn;
    const uint32_t known = ld_relaxed_u32(bar);
    if (known) drawn.floor = from_ordered(known);
    const float before = drawn.floor;

    const U32x4 four = ld_shared_v4(logit_address<T>(r, column));
    float logits[kEach] = {mov_f32_b32(four.x), mov_f32_b32(four.y), mov_f32_b32(four.z),
                           mov_f32_b32(four.w)};
#pragma unroll
    for (uint32_t i = 0; i < kEach; ++i)
      if (at.first_id + column + i >= at.end_id) logits[i] = -kInfinity;
    const DrawScale scale = DrawScale::of(sampling.temperature);
    const uint32_t first_id = p.partials.first_id + at.first_id + column;
    U32x4 noise = {0, 0, 0, 0};
    if (sampling.temperature != 0) noise = noise_words(sampling.seed, sampling.position, first_id);
    const uint32_t words[kEach] = {noise.x, noise.y, noise.z, noise.w};
    const uint32_t contenders = drawn.screen(scale, logits, words, kLanes);
    if (is_row && part == 0 && drawn.floor > before) atom_max_u32(bar, ordered(drawn.floor));

    // A single contender wins without a score.
    const uint32_t lanes = vote_ballot(contenders != 0) >> first_lane & (0xffffffffu >> (32 - kLanes));
    const bool some = contenders != 0, several = (contenders & (contenders - 1)) || (lanes & (lanes - 1));
    bool speaks = lanes ? some : part == 0;
    if (vote_any(some && several)) {
      drawn.offer_some(contenders, scale, logits, words, first_id);
      drawn.merge_lanes(kLanes);
      speaks = part == 0;
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kEach; ++i)
        if (contenders == 1u << i) drawn.id = first_id + i, drawn.logit = logits[i];
    }
    const bool nobody = drawn.id == Draw::kNobody;
    Candidate *out =
        reinterpret_cast<Candidate *>(p.partials.data) + uint64_t(row) * parts + at.part;
    if (is_row && speaks)
      st_global_v2(out, {nobody ? 0xff800000u : mov_b32_f32(drawn.logit), nobody ? 0 : drawn.id});
  }
}

// Stores what the tile knows of its rows, PartialRows, instead of logits.
template <class T>
DEVICE void summarise(const MatmulParams &p, const TileCoord &at) {
  const uint32_t left = at.end_id - at.first_id, ids = left < T::kBlockN ? left : T::kBlockN;
  const uint32_t k = p.partials.k, targets = p.partials.target_count;
  const auto stride = [=](uint32_t ids) { return answers::partial_bytes(k < ids ? k : ids, targets); };
  uint8_t *partials = p.partials.data + at.part * (p.row_count * stride(T::kBlockN));
  find_best<T>(p, at, partials, stride(ids));
  if (targets) count_greater<T>(p, at, partials, stride(ids), k < ids ? k : ids);
  add_up<T>(p, at, partials, stride(ids));
}

// Called by the first T::kThreads threads of the block, after the last product.
template <class T, class AnyAccumulators>
DEVICE void epilogue(const MatmulParams &p, const TileCoord &at, const AnyAccumulators &d) {
  const LogitAdjustments &a = p.adjustments;
  // The tile of logits overwrites the stages, or the tile before, which other warps may still read.
  T::sync();
  dequant_bias<T>(p, at, d);
  T::sync();
  if (p.softcap != 0) {
    softcap<T>(p, at);
    T::sync();
  }
  if (p.raw) {
    store<T>(p, at, F32{}, p.raw);
    T::sync();
  }
  if (a.logit_bias_offsets || a.count_offsets) {
    adjust<T>(p, at);
    T::sync();
  }
  const bool adjusted = a.allowed || a.logit_bias_offsets || a.count_offsets;
  if (adjusted || a.temperatures) {
    mask_temperature<T>(p, at, adjusted);
    T::sync();
  }
  if (p.partials.draws)
    draw<T>(p, at);
  else if (p.partials.data)
    summarise<T>(p, at);
  else if (p.logits.dtype == LMHEAD_DTYPE_F32)
    store<T>(p, at, F32{}, p.logits.data);
  else if (p.logits.dtype == LMHEAD_DTYPE_F16)
    store<T>(p, at, F16{}, p.logits.data);
  else
    store<T>(p, at, Bf16{}, p.logits.data);
}

}  // namespace matmul
