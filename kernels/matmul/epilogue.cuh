// Sums -> logits: dequantise, bias, softcap, scale; additions, penalties, mask; temperature; rounding. A tile of logits passes
// through shared memory, [kRows][kIds] f32, and every step is one rounded f32 operation in the CPU backend's order.
#pragma once
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

// Says a flag of a row where one of a warp's lanes has found it. By whole warps.
DEVICE void say(const MatmulParams &p, uint32_t row, bool found, uint32_t flag) {
  if (vote_any(found) && lane_id() == 0) atom_or_u32(p.logits.status + row, flag);
}

// The warps' sums, as they are, into the tile.
template <class T>
DEVICE void spread(const Sums<T> &d) {
  const uint32_t warp = threadIdx.x / 32, lane = lane_id();
  const uint32_t id = warp % 4 * 32 + lane / 4, row = warp / 4 * T::kWarpRows + lane % 4 * 2;
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i)
#pragma unroll
    for (uint32_t j = 0; j < T::kWarpRows / 8; ++j)
#pragma unroll
      for (uint32_t e = 0; e < 4; ++e) {
        const uint32_t to = logit_address<T>(row + j * 8 + e % 2, id + i * 16 + e / 2 * 8);
        if constexpr (T::Type::kRowScales)
          st_shared_u32(to, uint32_t(d[i][j][e]));
        else
          st_shared_f32(to, d[i][j][e]);
      }
}

// Dequantise, bias, softcap, scale: a thread has one id, of every (kThreads / kIds)-th row.
template <class T>
DEVICE void finish(const MatmulParams &p, const Place &at) {
  const uint32_t column = threadIdx.x % kIds, id = at.first_id + column;
  const bool inside = id < p.vocab;
  float weight_scale = 1, bias = 0;
  if constexpr (T::Type::kWeightScales)
    if (inside) weight_scale = load_f32(p.weights.scales + id);
  if (inside && p.weights.bias) bias = load_f32(p.weights.bias + id);
#pragma unroll 1
  for (uint32_t r = threadIdx.x / kIds; r < T::kRows && at.first_row + r < p.row_count; r += T::kThreads / kIds) {
    const uint32_t to = logit_address<T>(r, column), row = at.first_row + r;
    float v;
    if constexpr (T::Type::kRowScales)
      v = mul_rn_f32(cvt_rn_f32_s32(int32_t(ld_shared_u32(to))), load_f32(p.row_scales + row));
    else
      v = ld_shared_f32(to);
    if constexpr (T::Type::kWeightScales) v = mul_rn_f32(v, weight_scale);
    if (p.weights.bias) v = add_rn_f32(v, bias);
    // Before the softcap, which would hide an infinity, and after the scale.
    bool finite = is_finite(v);
    if (p.softcap != 0) v = mul_rn_f32(tanh(div_rn_f32(v, p.softcap)), p.softcap);
    if (p.scale != 1) v = mul_rn_f32(v, p.scale), finite &= is_finite(v);
    say(p, row, inside && !finite, LMHEAD_STATUS_NONFINITE);
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

// Additions, then penalties, to single logits: a thread has all of a row's entries, which are few in a tile.
template <class T>
DEVICE void adjust(const MatmulParams &p, const Place &at) {
  const LogitAdjustments &a = p.adjustments;
  const uint32_t end_id = at.first_id + kIds < p.vocab ? at.first_id + kIds : p.vocab;
  for (uint32_t r = threadIdx.x; r < T::kRows && at.first_row + r < p.row_count; r += T::kThreads) {
    const uint32_t row = at.first_row + r;
    if (a.addition_offsets) {
      const uint32_t end = ld_global_u32(a.addition_offsets + row + 1);
      uint32_t entry = first_not_below(a.addition_ids, ld_global_u32(a.addition_offsets + row), end, at.first_id);
      for (; entry < end; ++entry) {
        const uint32_t id = ld_global_u32(a.addition_ids + entry);
        // Past the tile; or before it, as where ids do not ascend: nothing outside of the tile is touched.
        if (id - at.first_id >= end_id - at.first_id) break;
        const uint32_t to = logit_address<T>(r, id - at.first_id);
        st_shared_f32(to, add_rn_f32(ld_shared_f32(to), load_f32(a.addition_values + entry)));
      }
    }
    if (a.count_offsets) {
      const uint32_t end = ld_global_u32(a.count_offsets + row + 1);
      uint32_t entry = first_not_below(a.count_ids, ld_global_u32(a.count_offsets + row), end, at.first_id);
      const float repetition = load_f32(a.repetition + row), frequency = load_f32(a.frequency + row);
      const float presence = load_f32(a.presence + row);
      for (; entry < end; ++entry) {
        const uint32_t id = ld_global_u32(a.count_ids + entry);
        if (id - at.first_id >= end_id - at.first_id) break;
        const uint32_t packed = ld_global_u32(a.counts + entry), count = packed >> 1, to = logit_address<T>(r, id - at.first_id);
        float v = ld_shared_f32(to);
        if (packed) v = v > 0 ? div_rn_f32(v, repetition) : mul_rn_f32(v, repetition);
        if (count) v = add_rn_f32(add_rn_f32(v, -mul_rn_f32(frequency, cvt_rn_f32_s32(int32_t(count)))), -presence);
        st_shared_f32(to, v);
      }
    }
  }
}

// A logit of the caller's type.
DEVICE void store_logit(const MatmulParams &p, uint32_t row, uint32_t id, float v) {
  uint8_t *to = static_cast<uint8_t *>(p.logits.data) + row * p.logits.pitch;
  if (p.logits.dtype == LMHEAD_DTYPE_F32)
    st_global_f32(to + 4 * uint64_t(id), v);
  else
    st_global_u16(to + 2 * uint64_t(id), p.logits.dtype == LMHEAD_DTYPE_F16 ? cvt_rn_f16_f32(v).bits : cvt_rn_bf16_f32(v).bits);
}
DEVICE uint32_t pack(const MatmulParams &p, float first, float second) {
  const bool f16 = p.logits.dtype == LMHEAD_DTYPE_F16;
  const uint32_t low = f16 ? cvt_rn_f16_f32(first).bits : cvt_rn_bf16_f32(first).bits;
  return low | uint32_t(f16 ? cvt_rn_f16_f32(second).bits : cvt_rn_bf16_f32(second).bits) << 16;
}

// Mask, temperature, rounding, and out: a warp has a row. Each lane has the ids lane, lane + 32, ...: of a mask one bit of each
// word.
template <class T>
DEVICE void store(const MatmulParams &p, const Place &at) {
  const LogitAdjustments &a = p.adjustments;
  const uint32_t lane = lane_id(), size = p.logits.dtype == LMHEAD_DTYPE_F32 ? 4 : 2;
  const bool adjusted = a.allowed || a.addition_offsets || a.count_offsets;
  // Sixteen bytes a lane where rows begin at multiples of 16 and the tile is whole.
  const bool wide = (uint64_t(p.logits.data) | p.logits.pitch) % 16 == 0 && at.first_id + kIds <= p.vocab;
#pragma unroll 1
  for (uint32_t r = threadIdx.x / 32; r < T::kRows && at.first_row + r < p.row_count; r += T::kThreads / 32) {
    const uint32_t row = at.first_row + r;
    if (adjusted || a.temperatures) {
      bool good = true, any = false;
      const float temperature = a.temperatures ? load_f32(a.temperatures + row) : 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < kIds / 32; ++i) {
        const uint32_t id = at.first_id + 32 * i + lane;
        if (id >= p.vocab) continue;
        const uint32_t from = logit_address<T>(r, 32 * i + lane);
        float v = ld_shared_f32(from);
        if (a.allowed && !(ld_global_u32(a.allowed + row * a.allowed_pitch + id / 32) >> lane & 1)) v = -kInfinity;
        good &= v < kInfinity, any |= v > -kInfinity;
        if (temperature != 0) {
          const bool finite = is_finite(v);
          v = div_rn_f32(v, temperature);
          good &= !finite || is_finite(v);
        }
        st_shared_f32(from, v);
      }
      say(p, row, !good, LMHEAD_STATUS_NONFINITE);
      if (adjusted) say(p, row, any, LMHEAD_STATUS_ALLOWED);
      bar_warp_sync();
    }
    if (!wide) {
#pragma unroll
      for (uint32_t i = 0; i < kIds / 32; ++i) {
        const uint32_t id = at.first_id + 32 * i + lane;
        if (id < p.vocab) store_logit(p, row, id, ld_shared_f32(logit_address<T>(r, 32 * i + lane)));
      }
      continue;
    }
    uint8_t *to = static_cast<uint8_t *>(p.logits.data) + row * p.logits.pitch + uint64_t(at.first_id) * size + 16 * lane;
    if (size == 4) {
      st_global_v4(to, ld_shared_v4(logit_address<T>(r, 4 * lane)));
    } else if (lane < kIds / 8) {
      const U32x4 low = ld_shared_v4(logit_address<T>(r, 8 * lane)), high = ld_shared_v4(logit_address<T>(r, 8 * lane + 4));
      const auto both = [&](uint32_t x, uint32_t y) { return pack(p, mov_f32_b32(x), mov_f32_b32(y)); };
      st_global_v4(to, {both(low.x, low.y), both(low.z, low.w), both(high.x, high.y), both(high.z, high.w)});
    }
  }
}

// By all threads of the block, after the last product.
template <class T>
DEVICE void epilogue(const MatmulParams &p, const Place &at, const Sums<T> &d) {
  // The tile takes the place of the stages, which other warps may still read.
  barrier_sync_all();
  spread<T>(d);
  barrier_sync_all();
  finish<T>(p, at);
  barrier_sync_all();
  if (p.adjustments.addition_offsets || p.adjustments.count_offsets) {
    adjust<T>(p, at);
    barrier_sync_all();
  }
  store<T>(p, at);
}

}  // namespace matmul
