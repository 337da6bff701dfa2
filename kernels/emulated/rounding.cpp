// Conversions by integer arithmetic: no library, no rounding mode of the processor.
#include "device.hpp"

#include <cstring>

namespace emulated {

namespace {

// v / 2^shift, to nearest even; shift 1 to 31.
uint32_t shift_to_nearest(uint32_t v, int shift) {
  const uint32_t half = 1u << (shift - 1), rest = v & ((half << 1) - 1), out = v >> shift;
  return out + (rest > half || (rest == half && (out & 1)));
}

}  // namespace

int32_t nearest_s32(float v) {
  uint32_t bits;
  bits_of(v, bits);
  const int exponent = int(bits >> 23 & 255) - 127;
  const uint32_t significand = (bits & 0x7fffffu) | 0x800000u;
  const bool negative = bits >> 31;
  if (v != v) check_f32("cvt.rni.s32.f32", v);
  if (v != v || exponent < -1) return 0;
  if (exponent >= 31) return negative ? INT32_MIN : INT32_MAX;
  const uint32_t magnitude =
      exponent >= 23 ? significand << (exponent - 23) : shift_to_nearest(significand, 23 - exponent);
  return negative ? -int32_t(magnitude) : int32_t(magnitude);
}

int32_t truncated_s32(float v) {
  if (v != v) return check_f32("cvt.rzi.s32.f32", v), 0;
  if (v >= 2147483648.0f) return INT32_MAX;
  return v < -2147483648.0f ? INT32_MIN : int32_t(v);
}

uint16_t bf16_of(float v) {
  uint32_t bits;
  bits_of(v, bits);
  if (v != v) return check_f32("cvt.rn.bf16.f32", v), 0x7fff;
  return uint16_t(shift_to_nearest(bits, 16));
}

uint16_t f16_of(float v) {
  uint32_t bits;
  bits_of(v, bits);
  if (v != v) return check_f32("cvt.rn.f16.f32", v), 0x7fff;
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x47800000u) return uint16_t(sign | 0x7c00u);  // 65536 and above
  const int exponent = int(magnitude >> 23) - 127;
  // Normal: exponents move from bias 127 to 15; rounding may carry into them, up to infinity.
  if (exponent >= -14) return uint16_t(sign | (shift_to_nearest(magnitude, 13) - (112u << 10)));
  if (exponent < -25) return uint16_t(sign);
  return uint16_t(sign | shift_to_nearest((magnitude & 0x7fffffu) | 0x800000u, -1 - exponent));
}

float f32_of_f16(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16, field = bits >> 10 & 31, fraction = bits & 0x3ffu;
  float out;
  if (field == 31)
    float_of(fraction ? 0x7fffffffu : sign | 0x7f800000u, out);
  else if (field)
    float_of(sign | (field + 112) << 23 | fraction << 13, out);
  else
    out = float(fraction) * 0x1p-24f * (sign ? -1.0f : 1.0f);
  return out;
}

// Nearly as far from the truth as PTX allows, in a direction that the operand's bits choose. So tests find
// results that depend on the last bits, which differ between chips.
float log2_approximate(float v) {
  uint32_t bits;
  bits_of(v, bits);
  float nan;
  float_of(0x7fffffffu, nan);
  if (v != v) return check_f32("lg2.approx.ftz.f32", v), nan;
  if ((bits & 0x7fffffffu) < 0x00800000u) return -__builtin_inff();
  if (bits >> 31) return nan;
  const double truth = __builtin_log2(v), magnitude = v > 0.5f && v < 2 ? 1 : __builtin_fabs(truth);
  const uint32_t mixed = (bits ^ bits >> 15) * 0x9e3779b1u;
  // Three quarters of the bound: the result is rounded to f32 besides.
  const double error = magnitude * 0x1.8p-23;
  return float(mixed >> 31 ? truth + error : truth - error);
}

// The difference of two f16 is exact in f32 where their exponents are near, and has fewer than 24 + 16 bits
// otherwise: in f64 it is always exact, so that it is rounded once.
uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  const auto one = [](uint16_t x, uint16_t y) -> uint32_t {
    const double exact = double(f32_of_f16(x)) - double(f32_of_f16(y));
    // Rounded to odd in f32 first: rounding that to f16 is rounding the exact value.
    float v = float(exact);
    uint32_t bits;
    bits_of(v, bits);
    if (double(v) != exact && !(bits & 1)) {
      const bool away = (exact > 0) == (double(v) > exact);
      bits = away ? bits - 1 : bits + 1;
      float_of(bits, v);
    }
    return f16_of(v);
  };
  return one(uint16_t(a), uint16_t(b)) | one(uint16_t(a >> 16), uint16_t(b >> 16)) << 16;
}

// The product of two bf16 has 16 bits: exact in f64. The sum with a third may not be, and is rounded to odd,
// twice: rounding that to bf16 is rounding the exact value.
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  const auto wide = [](uint32_t bits) {
    float v;
    float_of(bits << 16, v);
    return double(v);
  };
  const auto one = [&](uint32_t x, uint32_t y, uint32_t z) -> uint32_t {
    const double product = wide(x) * wide(y), addend = wide(z), sum = product + addend;
    // The rounding error of the sum, exactly (Knuth's two-sum); NaN where the sum is not finite.
    const double of_addend = sum - product, rest = (product - (sum - of_addend)) + (addend - of_addend);
    uint64_t odd;
    std::memcpy(&odd, &sum, sizeof odd);
    if (sum - sum == 0 && rest != 0 && !(odd & 1)) odd = (sum > 0) == (rest < 0) ? odd - 1 : odd + 1;
    double exact;
    std::memcpy(&exact, &odd, sizeof exact);
    float v = float(exact);
    uint32_t bits;
    bits_of(v, bits);
    if (v == v && double(v) != exact && !(bits & 1)) {
      bits = (exact > 0) == (double(v) > exact) ? bits - 1 : bits + 1;
      float_of(bits, v);
    }
    return bf16_of(v);
  };
  return one(a & 0xffff, b & 0xffff, c & 0xffff) | one(a >> 16, b >> 16, c >> 16) << 16;
}

}  // namespace emulated
