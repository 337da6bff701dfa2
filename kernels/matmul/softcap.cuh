// tanh in f32 with the bits of the CPU backend's (Rust's libm, which follows musl and FreeBSD's s_tanhf.c and
// s_expm1f.c by Ian Lance Taylor, Cygnus Support; Copyright (C) 1993 by Sun Microsystems, Inc., developed at
// SunPro. Permission to use, copy, modify, and distribute this software is freely granted, provided that this
// notice is preserved).
//
// The same operations in the same order, each rounded on its own. Only the cases that tanh asks for.
#pragma once
#include "ptx.cuh"

namespace matmul {

using namespace ptx;

DEVICE float subtract(float a, float b) { return add_rn_f32(a, -b); }

// e^x − 1 for |x| <= 20, by 2^k·(e^r) with |r| <= ln(2)/2.
DEVICE float expm1(float x) {
  constexpr float kLn2High = 6.9313812256e-01f, kLn2Low = 9.0580006145e-06f, kInverseLn2 = 1.4426950216e+00f;
  constexpr float kQ1 = -3.3333212137e-2f, kQ2 = 1.5807170421e-3f;
  const uint32_t magnitude = mov_b32_f32(x) & 0x7fffffffu;
  const bool negative = x < 0;
  int32_t k = 0;
  float c = 0;
  if (magnitude > 0x3eb17218) {  // ln(2)/2
    float high, low;
    if (magnitude < 0x3f851592) {  // 3·ln(2)/2
      high = add_rn_f32(x, negative ? kLn2High : -kLn2High);
      low = negative ? -kLn2Low : kLn2Low;
      k = negative ? -1 : 1;
    } else {
      k = cvt_rzi_s32_f32(add_rn_f32(mul_rn_f32(kInverseLn2, x), negative ? -0.5f : 0.5f));
      const float t = cvt_rn_f32_s32(k);
      high = subtract(x, mul_rn_f32(t, kLn2High));
      low = mul_rn_f32(t, kLn2Low);
    }
    x = subtract(high, low);
    c = subtract(subtract(high, x), low);
  } else if (magnitude < 0x33000000) {  // 2^-25
    return x;
  }
  const float hfx = mul_rn_f32(0.5f, x), hxs = mul_rn_f32(x, hfx);
  const float r1 = add_rn_f32(1.0f, mul_rn_f32(hxs, add_rn_f32(kQ1, mul_rn_f32(hxs, kQ2))));
  const float t = subtract(3.0f, mul_rn_f32(r1, hfx));
  float e = mul_rn_f32(hxs, div_rn_f32(subtract(r1, t), subtract(6.0f, mul_rn_f32(x, t))));
  if (k == 0) return subtract(x, subtract(mul_rn_f32(x, e), hxs));
  e = subtract(mul_rn_f32(x, subtract(e, c)), c);
  e = subtract(e, hxs);
  const float rest = subtract(x, e);
  if (k == -1) return subtract(mul_rn_f32(0.5f, rest), 0.5f);
  if (k == 1)
    return x < -0.25f ? mul_rn_f32(-2.0f, subtract(e, add_rn_f32(x, 0.5f)))
                      : add_rn_f32(1.0f, mul_rn_f32(2.0f, rest));
  const float two_k = mov_f32_b32(uint32_t(0x7f + k) << 23);
  if (k < 0) return subtract(mul_rn_f32(add_rn_f32(rest, 1.0f), two_k), 1.0f);
  const float two_minus_k = mov_f32_b32(uint32_t(0x7f - k) << 23);
  if (k < 23) return mul_rn_f32(add_rn_f32(rest, subtract(1.0f, two_minus_k)), two_k);
  return mul_rn_f32(add_rn_f32(subtract(x, add_rn_f32(e, two_minus_k)), 1.0f), two_k);
}

DEVICE float tanh(float x) {
  const uint32_t bits = mov_b32_f32(x), magnitude = bits & 0x7fffffffu;
  const float a = mov_f32_b32(magnitude);
  float t;
  if (magnitude > 0x41200000) {  // above 10, or NaN
    t = add_rn_f32(1.0f, div_rn_f32(0.0f, a));
  } else if (magnitude > 0x3f0c9f54) {  // ln(3)/2
    t = subtract(1.0f, div_rn_f32(2.0f, add_rn_f32(expm1(mul_rn_f32(2.0f, a)), 2.0f)));
  } else if (magnitude > 0x3e82c578) {  // ln(5/3)/2
    const float e = expm1(mul_rn_f32(2.0f, a));
    t = div_rn_f32(e, add_rn_f32(e, 2.0f));
  } else if (magnitude >= 0x00800000) {
    const float e = expm1(mul_rn_f32(-2.0f, a));
    t = div_rn_f32(-e, add_rn_f32(e, 2.0f));
  } else {
    t = a;
  }
  return bits >> 31 ? -t : t;
}

}  // namespace matmul
