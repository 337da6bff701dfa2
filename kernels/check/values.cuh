// Values that tests and benches fill arrays with: functions of a seed and a place, which the host computes
// too (crates/gpu/src/fill.rs); and integers in each type.
#pragma once
#include "ptx.cuh"

namespace check {

using namespace ptx;

// 64 random bits of a place (the finisher of splitmix64, Steele et al. 2014).
DEVICE uint64_t random(uint64_t seed, uint64_t place) {
  uint64_t v = seed + (place + 1) * 0x9e3779b97f4a7c15u;
  v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9u;
  v = (v ^ v >> 27) * 0x94d049bb133111ebu;
  return v ^ v >> 31;
}

DEVICE constexpr uint32_t element_bytes(uint32_t kind) {
  if (kind == LMHEAD_FILL_F32 || kind == LMHEAD_FILL_SMALL_F32) return 4;
  const bool is_16_bit = kind == LMHEAD_FILL_BF16 || kind == LMHEAD_FILL_SMALL_BF16 ||
                         kind == LMHEAD_FILL_F16 || kind == LMHEAD_FILL_SMALL_F16;
  return is_16_bit ? 2 : 1;
}

// A normal number's E4M3 magnitude is its f32 bits without the last 20 of the significand, less this: both
// keep three bits of the significand, and their exponents have the biases 127 and 7.
constexpr uint32_t kE4m3 = (127 - 7) << 3;

// The bits of a small integer in the type of a kind.
DEVICE uint32_t bits_of(uint32_t kind, int32_t v) {
  const float f = cvt_rn_f32_s32(v);
  switch (kind) {
    case LMHEAD_FILL_SMALL_I8: return uint32_t(v) & 0xff;
    case LMHEAD_FILL_SMALL_BF16: return mov_b32_f32(f) >> 16;
    case LMHEAD_FILL_SMALL_F16: return cvt_rn_f16_f32(f).bits;
    case LMHEAD_FILL_SMALL_E4M3:
      return v == 0 ? 0 : (((mov_b32_f32(f) & 0x7fffffff) >> 20) - kE4m3) | (v < 0 ? 0x80 : 0);
    default: return mov_b32_f32(f);
  }
}

// The integer that the element at byte `byte` of `word` is.
DEVICE int32_t integer_of(uint32_t kind, uint32_t word, uint32_t byte) {
  const uint32_t bits = word >> 8 * byte;
  switch (kind) {
    case LMHEAD_FILL_SMALL_I8: return int8_t(bits);
    case LMHEAD_FILL_SMALL_BF16: return cvt_rzi_s32_f32(mov_f32_b32(bits << 16));
    case LMHEAD_FILL_SMALL_F16: return cvt_rzi_s32_f32(cvt_f32_f16({uint16_t(bits)}));
    case LMHEAD_FILL_SMALL_E4M3:
      if ((bits & 0x7f) == 0) return 0;
      return cvt_rzi_s32_f32(mov_f32_b32((bits & 0x80) << 24 | ((bits & 0x7f) + kE4m3) << 20));
    default: return cvt_rzi_s32_f32(mov_f32_b32(bits));
  }
}

}  // namespace check
