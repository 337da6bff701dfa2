// Conversions by integer arithmetic: no library, no rounding mode of the processor.
#include "device.hpp"

#include <cstring>

namespace emulated {

void bits_of(float v, uint32_t &bits) { std::memcpy(&bits, &v, 4); }
void float_of(uint32_t bits, float &v) { std::memcpy(&v, &bits, 4); }

float canonical(float v) {
  if (v == v) return v;
  float nan;
  float_of(0x7fffffffu, nan);
  return nan;
}

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
  if (v != v || exponent < -1) return 0;
  if (exponent >= 31) return negative ? INT32_MIN : INT32_MAX;
  const uint32_t magnitude =
      exponent >= 23 ? significand << (exponent - 23) : shift_to_nearest(significand, 23 - exponent);
  return negative ? -int32_t(magnitude) : int32_t(magnitude);
}

uint16_t bf16_of(float v) {
  uint32_t bits;
  bits_of(v, bits);
  return v != v ? 0x7fff : uint16_t(shift_to_nearest(bits, 16));
}

uint16_t f16_of(float v) {
  uint32_t bits;
  bits_of(v, bits);
  if (v != v) return 0x7fff;
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

}  // namespace emulated
