// e^x as an integer significand and an exponent, the sum of such terms, and the sum's logarithm. The bits do
// not depend on the order or grouping of terms: each term depends on its own logit alone, and terms are added
// as integers. A logit takes f32 and integer operations; f64 is used once a row.
#pragma once
#include "answers/logarithm.cuh"

namespace answers {

// significand·2^exponent, with 2^23 <= significand < 2^24.
struct Term {
  uint32_t significand;
  int32_t exponent;
};

// e^x for finite |x| <= LMHEAD_EXP_LIMIT, within 1e-7 of it (the formula: params.h). For other x the result
// has no meaning.
DEVICE Term term(float x) {
  const float shift = mov_f32_b32(LMHEAD_EXP_SHIFT);
  const float t = fma_rn_f32(x, mov_f32_b32(LMHEAD_EXP_LOG2E), shift), n = add_rn_f32(t, -shift);
  float r = fma_rn_f32(-n, mov_f32_b32(LMHEAD_EXP_LN2_HI), x);
  r = fma_rn_f32(-n, mov_f32_b32(LMHEAD_EXP_LN2_LO), r);
  float p = fma_rn_f32(mov_f32_b32(LMHEAD_EXP_C6), r, mov_f32_b32(LMHEAD_EXP_C5));
  p = fma_rn_f32(p, r, mov_f32_b32(LMHEAD_EXP_C4));
  p = fma_rn_f32(p, r, mov_f32_b32(LMHEAD_EXP_C3));
  p = fma_rn_f32(p, r, mov_f32_b32(LMHEAD_EXP_C2));
  p = fma_rn_f32(fma_rn_f32(p, r, 1.0f), r, 1.0f);
  const uint32_t bits = mov_b32_f32(p);
  return {(bits & 0x7fffffu) | 0x800000u, int32_t((bits >> 23) + mov_b32_f32(t) - (LMHEAD_EXP_SHIFT + 150))};
}

// A sum of terms on an absolute grid of digits of 32 bits: digit j counts units of 2^(32·j). A term with
// exponent e has its low half in digit e >> 5 and its high half in the next. `top` is the highest digit of
// any term, and the words of digits top - 2, top - 1 and top are kept. Halves in lower digits are dropped. No
// carry goes from word to word before the logarithm is taken, so that what is dropped does not depend on the
// order. 2^30 terms fit a word.
struct ExpSum {
  // Below the exponents of all terms, and far enough from INT32_MIN that differences fit.
  static constexpr int32_t kNoFloor = -(1 << 24), kNoTerm = -(1 << 26);

  // 32·(top - 1): the least exponent of a term that reaches the highest word. Terms are compared with it.
  int32_t floor = kNoFloor;
  uint64_t words[3] = {0, 0, 0};

  // INT32_MIN where there is no term.
  DEVICE int32_t top() const { return floor == kNoFloor ? INT32_MIN : (floor >> 5) + 1; }
  DEVICE static int32_t floor_of(int32_t top) { return top == INT32_MIN ? kNoFloor : 32 * (top - 1); }

  // Adds the terms of these logits; minus infinity and logits beyond the limit have none. The highest digit
  // is checked once for all, so that four or eight at once cost less than one by one.
  template <uint32_t kCount>
  DEVICE void add(const float (&logits)[kCount]) {
    Term terms[kCount];
    int32_t highest = kNoTerm;
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      terms[i] = term(logits[i]);
      if (!(abs_f32(logits[i]) <= mov_f32_b32(LMHEAD_EXP_LIMIT))) terms[i].exponent = kNoTerm;
      highest = highest > terms[i].exponent ? highest : terms[i].exponent;
    }
    if (highest >= floor + 32) raise(highest & ~31);
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) add_digits(terms[i]);
  }

  DEVICE void merge(ExpSum other) {
    const int32_t higher = floor > other.floor ? floor : other.floor;
    raise(higher), other.raise(higher);
    for (uint32_t i = 0; i < 3; ++i) words[i] += other.words[i];
  }

  // The sum over each group of `lanes` neighbours (a power of two), in each of its lanes. Called by a whole
  // warp.
  DEVICE void merge_lanes(uint32_t lanes = 32) {
#pragma unroll 1
    for (uint32_t distance = lanes / 2; distance; distance /= 2) {
      ExpSum other;
      other.floor = int32_t(shfl_bfly(uint32_t(floor), distance));
      for (uint32_t i = 0; i < 3; ++i) {
        const uint32_t low = shfl_bfly(uint32_t(words[i]), distance);
        other.words[i] = uint64_t(shfl_bfly(uint32_t(words[i] >> 32), distance)) << 32 | low;
      }
      merge(other);
    }
  }

 private:
  // Raises the floor to one that is not lower: words move down by whole digits.
  DEVICE void raise(int32_t higher) {
    const uint32_t digits = uint32_t(higher - floor) >> 5;
    words[0] = digits == 0 ? words[0] : digits == 1 ? words[1] : digits == 2 ? words[2] : 0;
    words[1] = digits == 0 ? words[1] : digits == 1 ? words[2] : 0;
    words[2] = digits == 0 ? words[2] : 0;
    floor = higher;
  }

  // Adds a term that is not above the highest digit: both its halves, one of them, or none. Without branches,
  // as the lanes of a warp differ.
  DEVICE void add_digits(Term term) {
    // The exponent modulo 32 is how far the significand reaches into the higher digit.
    const uint32_t low = shf_l_wrap(0, term.significand, uint32_t(term.exponent));
    const uint32_t high = shf_l_wrap(term.significand, 0, uint32_t(term.exponent));
    const int32_t above = term.exponent - floor;
    const bool first = above >= 0, second = above >= -32 && !first, third = above >= -64 && above < -32;
    words[2] += first ? high : 0;
    words[1] += first ? low : second ? high : 0;
    words[0] += second ? low : third ? high : 0;
  }
};

// The logarithm of a row's sum of exponentials. `max` is the largest allowed logit; where its magnitude is
// above 2^20, or all are minus infinity, it is the answer.
DEVICE double logsumexp(const ExpSum &sum, float max) {
  if (!(abs_f32(max) <= mov_f32_b32(LMHEAD_LSE_LIMIT))) return cvt_f64_f32(max);
  const uint64_t middle = sum.words[1] + (sum.words[0] >> 32);
  // 128 bits, in units of 2^(32·(top - 2)).
  const uint64_t high = sum.words[2] + (middle >> 32), low = middle << 32 | uint32_t(sum.words[0]);
  // The 64 bits that begin with the leading one.
  const uint32_t zeros = high ? clz_b64(high) : 64 + clz_b64(low);
  const uint64_t leading =
      zeros >= 64 ? low << (zeros - 64) : zeros == 0 ? high : high << zeros | low >> (64 - zeros);
  // Scaled by 2^-63, which is exact: 1 <= f <= 2.
  const double f = multiply(cvt_rn_f64_u64(leading), constant(0x3c00000000000000));
  const double k = cvt_rn_f64_s32(sum.floor - 32 + 127 - int32_t(zeros));
  return add(add(multiply(k, constant(LMHEAD_LN2_HI64)), log(f)), multiply(k, constant(LMHEAD_LN2_LO64)));
}

}  // namespace answers
