// A bit-exact model of Hopper's 16-bit matrix instructions with f32 accumulators, in plain C++17.
//
// One instruction (mma.sync m16n8k8, m16n8k16, wgmma m64nNk16) does, for every element of its tile,
//
//     d = c + a[0]·b[0] + ... + a[k-1]·b[k-1]          k = 8 or 16, bf16 or f16
//
// as one fused sum on a fixed-point grid, not as k additions:
//
//   1. Products are exact. A product's exponent is the sum of its operands' exponents; it is not normalised,
//      so the significand lies in [0, 4). Subnormal operands keep their value, with the exponent of the
//      smallest normal number.
//   2. All products and c are aligned to the largest exponent among those that are not zero, but never to one
//      below -133, and cut toward zero to 25 bits after the binary point (c itself has 23).
//   3. The cut terms are added exactly: neither their order nor the position in the tile can matter.
//   4. The sum is cut toward zero to f32, subnormal results included. A zero is always +0, also where a
//      negative sum was cut to it or all zeros that came in were -0. 2^128 and above is infinity; only the
//      sum counts, products may lie beyond.
//   5. NaN, 0 times infinity and infinities of both signs give 0x7fffffff.
//
// Sources: P. Xie et al., "MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix Cores", arXiv
// 2511.10909 (the 25 bits, the cuts); F. A. Khattak, M. Mikaitis, "Accurate Models of NVIDIA Tensor Cores",
// arXiv 2512.07004; M. Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science
// 7:e330, 2021. The -133, the sign of zeros and the rules for zero products were settled by
// tensor_core_model.cu, which compares all of this with a GPU bit for bit. Measured for compute capability
// 9.0 only; by the first source sm_80 keeps 24 bits and takes k16 as two k8.
#pragma once
#include <cstdint>

namespace tensor_core {

enum class Input { bf16, f16 };

// One row's or column's k operands of one instruction, decoded once and used by many elements.
template <int kProducts>
struct Operands {
  int32_t significand[kProducts];  // with its sign, in units of 2^(exponent - mantissa bits)
  int32_t exponent[kProducts];
};

namespace detail {
template <Input kInput>
constexpr int kMantissa = kInput == Input::bf16 ? 7 : 10;
constexpr int kLeastAlignment = -133;
// Exponents out of any finite range, so that sums of two still tell what they are: zeros never are the
// largest, infinities and NaNs always are.
constexpr int32_t kZero = -10000, kSpecial = 30000, kAnySpecial = 10000;
constexpr int32_t kNan = 2;  // significand of a NaN; ±1 of an infinity

// significand·2^exponent, cut to f32.
inline uint32_t pack(int64_t significand, int exponent) {
  uint64_t magnitude = uint64_t(significand < 0 ? -significand : significand);
  if (magnitude == 0) return 0;
  int drop = 64 - __builtin_clzll(magnitude) - 24;     // to 24 bits; negative: append zeros
  if (exponent + drop < -149) drop = -149 - exponent;  // the subnormals' grid
  magnitude = drop > 63 ? 0 : drop >= 0 ? magnitude >> drop : magnitude << -drop;
  if (magnitude == 0) return 0;
  const uint32_t sign = significand < 0 ? 0x80000000u : 0u;
  if (magnitude < 0x800000u) return sign | uint32_t(magnitude);
  const int field = exponent + drop + 150;
  return field >= 255 ? sign | 0x7f800000u : sign | uint32_t(field) << 23 | (uint32_t(magnitude) & 0x7fffffu);
}

// Infinities and NaNs among the terms.
template <int kProducts>
inline uint32_t special(const Operands<kProducts> &a, const Operands<kProducts> &b, uint32_t c) {
  bool plus = c == 0x7f800000u, minus = c == 0xff800000u;
  if ((c & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  for (int i = 0; i < kProducts; ++i) {
    const bool special_a = a.exponent[i] == kSpecial, special_b = b.exponent[i] == kSpecial;
    if (!special_a && !special_b) continue;
    if ((special_a && a.significand[i] == kNan) || (special_b && b.significand[i] == kNan))
      return 0x7fffffffu;
    if (a.significand[i] == 0 || b.significand[i] == 0) return 0x7fffffffu;
    ((a.significand[i] < 0) != (b.significand[i] < 0) ? minus : plus) = true;
  }
  return plus && minus ? 0x7fffffffu : plus ? 0x7f800000u : 0xff800000u;
}
}  // namespace detail

template <Input kInput, int kProducts>
inline void decode(const uint16_t *bits, Operands<kProducts> &out) {
  constexpr int mantissa = detail::kMantissa<kInput>, ones = (1 << (15 - mantissa)) - 1, bias = ones / 2;
  for (int i = 0; i < kProducts; ++i) {
    const int field = bits[i] >> mantissa & ones, fraction = bits[i] & ((1 << mantissa) - 1);
    const bool zero = (bits[i] & 0x7fff) == 0, special = field == ones;
    int32_t magnitude = field ? fraction | 1 << mantissa : fraction;
    if (special) magnitude = 1;
    out.significand[i] = bits[i] >> 15 ? -magnitude : magnitude;
    if (special && fraction) out.significand[i] = detail::kNan;
    out.exponent[i] = special ? detail::kSpecial : zero ? detail::kZero : (field ? field : 1) - bias;
  }
}

// One instruction's work on one element; c and the result are f32 bits. kFractionBits is 25 on the hardware:
// other values show that a test would notice them.
template <Input kInput, int kProducts, int kFractionBits = 25>
inline uint32_t dot_step(const Operands<kProducts> &a, const Operands<kProducts> &b, uint32_t c) {
  constexpr int widen = kFractionBits - 2 * detail::kMantissa<kInput>, widen_c = kFractionBits - 23;
  static_assert(kProducts % 8 == 0 && widen >= 0 && widen_c >= 0 && kFractionBits <= 26,
                "partial sums of 8 fit 32 bits");
  const int field = c >> 23 & 255;
  int32_t top = (c & 0x7fffffffu) == 0 ? detail::kLeastAlignment : field ? field - 127 : -126;
  const int c_exponent = top;
  for (int i = 0; i < kProducts; ++i) {
    const int32_t e = a.exponent[i] + b.exponent[i];
    top = e > top ? e : top;
  }
  if (field == 255 || top >= detail::kAnySpecial) return detail::special(a, b, c);

  const auto cut = [top](int32_t significand, int bits, int32_t exponent) {
    const int32_t sign = significand >> 31, drop = top - exponent;
    const int32_t magnitude = (((significand ^ sign) - sign) << bits) >> (drop < 31 ? drop : 31);
    return (magnitude ^ sign) - sign;
  };
  const int32_t c_magnitude = int32_t(field ? (c & 0x7fffffu) | 0x800000u : c & 0x7fffffu);
  int64_t sum = cut(c >> 31 ? -c_magnitude : c_magnitude, widen_c, c_exponent);
  for (int half = 0; half < kProducts; half += 8) {
    int32_t eight = 0;
    for (int i = half; i < half + 8; ++i)
      eight += cut(a.significand[i] * b.significand[i], widen, a.exponent[i] + b.exponent[i]);
    sum += eight;
  }
  return detail::pack(sum, top - kFractionBits);
}

}  // namespace tensor_core
