// What an id weighs in the nucleus (top_p), and the filter min_p: both of x = (l - max) / T in f32. A mass is
// an integer, so that sums of masses have no order.
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
  // e^-128 is no mass in any unit. The comparison sends minus infinity there, too.
  const Term e = term(x > -128.0f ? x : -128.0f);
  // One bit more than the answer has, for rounding.
  const uint64_t twice = shr_u64(uint64_t(e.significand) << (unit - 22), uint32_t(-23 - e.exponent));
  return (twice + 1) >> 1;
}

}  // namespace answers
