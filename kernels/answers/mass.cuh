// What an id weighs in the nucleus (top_p), and the filter min_p: both functions of x = (l - max) / T in f32.
// A mass is an integer, so that sums of masses do not depend on their order.
#pragma once
#include "answers/exponential.cuh"

namespace answers {

// How the logits of one row are weighed. The largest logit is finite, the temperature above 0.
struct Scale {
  float max;
  float temperature;

  // (l - max) / T: at most 0, or minus infinity. The logarithm of the probability relative to the largest.
  DEVICE float below_max(float logit) const { return div_rn_f32(add_rn_f32(logit, -max), temperature); }
};

// The least x that min_p keeps; minus infinity for 0.
DEVICE float least_of(float min_p) { return cvt_rn_f32_f64(log(cvt_f64_f32(min_p))); }

// The largest logit's mass is 2 to this power: all masses of a vocabulary together fit 63 bits.
DEVICE uint32_t unit_of(uint32_t vocab) {
  const uint32_t bits = vocab <= 1 ? 0 : 64 - clz_b64(vocab - 1);
  return 63 - (bits < 23 ? 23 : bits);
}

// e^x·2^unit for x <= 0, rounded to the nearest, halves up; unit 31 to 40.
DEVICE uint64_t mass(float x, uint32_t unit) {
  // e^-128 rounds to mass 0 in every unit. Minus infinity is replaced by it, too.
  const Term e = term(x > -128.0f ? x : -128.0f);
  // One bit more than the answer has, for rounding.
  const uint64_t twice = shr_u64(uint64_t(e.significand) << (unit - 22), uint32_t(-23 - e.exponent));
  return (twice + 1) >> 1;
}

// The mass that the nucleus has to reach: the smallest integer not below top_p·total, and not below 1. For
// top_p above 0 and at most 1, exact.
DEVICE uint64_t share(float top_p, uint64_t total) {
  // top_p is significand·2^-shift, with a shift of 23 to 149.
  const uint32_t bits = mov_b32_f32(top_p), exponent = bits >> 23, fraction = bits & 0x7fffff;
  const uint32_t significand = exponent ? fraction | 0x800000 : fraction,
                 shift = exponent ? 150 - exponent : 149;
  // The product, which is below 2^88, in two words.
  const uint64_t upper = significand * (total >> 32), lower = significand * uint64_t(uint32_t(total));
  const uint64_t low = (upper << 32) + lower, high = (upper >> 32) + (low < lower);
  uint64_t part = 0;
  bool more = low | high;  // whether something is dropped
  if (shift < 64) {
    part = high << (64 - shift) | low >> shift;
    more = low << (64 - shift);
  } else if (shift < 88) {
    part = high >> (shift - 64);
    more = low | (high & ((1ull << (shift - 64)) - 1));
  }
  part += more;
  return part ? part : 1;
}

}  // namespace answers
