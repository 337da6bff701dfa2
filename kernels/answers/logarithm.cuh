// log and log1p in f64 with the bits of the CPU backend's (Rust's libm, which follows musl and FreeBSD's
// e_log.c and s_log1p.c; Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved. Developed at
// SunPro, a Sun Microsystems, Inc. business. Permission to use, copy, modify, and distribute this software is
// freely granted, provided that this notice is preserved).
//
// The same operations in the same order, each rounded on its own. About 25 operations and one or two
// divisions: for what is done once a row, and for the few candidates of a draw that the f32 screen
// (noise.cuh) leaves.
#pragma once
#include "ptx.cuh"

namespace answers {

using namespace ptx;

DEVICE double add(double a, double b) { return add_rn_f64(a, b); }
DEVICE double subtract(double a, double b) { return add_rn_f64(a, -b); }
DEVICE double multiply(double a, double b) { return mul_rn_f64(a, b); }
DEVICE double constant(uint64_t bits) { return mov_f64_b64(bits); }

constexpr uint64_t kOne64 = 0x3ff0000000000000u, kNan64 = 0x7ff8000000000000u;
constexpr uint64_t kMinusInfinity64 = 0xfff0000000000000u;
// The upper words of 1 and of sqrt(2)/2: significands are brought to sqrt(2)/2..sqrt(2).
constexpr uint32_t kOneHigh = 0x3ff00000, kRootHalfHigh = 0x3fe6a09e;

DEVICE double with_high(uint64_t bits, uint32_t high) {
  return constant(uint64_t(high) << 32 | uint32_t(bits));
}

// log(1 + f) + k·ln 2 for sqrt(2)/2 <= 1 + f < sqrt(2). `low` is k·LN2_LO plus the correction of log1p.
DEVICE double log_of_parts(double f, double k, double low) {
  const double half_square = multiply(multiply(0.5, f), f);
  const double s = div_rn_f64(f, add(2.0, f));
  const double z = multiply(s, s), w = multiply(z, z);
  double even = add(constant(0x3fcc71c51d8e78af), multiply(w, constant(0x3fc39a09d078c69f)));  // LG4, LG6
  even = multiply(w, add(constant(0x3fd999999997fa04), multiply(w, even)));                     // LG2
  double odd = add(constant(0x3fc7466496cb03de), multiply(w, constant(0x3fc2f112df3e5244)));    // LG5, LG7
  odd = add(constant(0x3fd2492494229359), multiply(w, odd));                                    // LG3
  odd = multiply(z, add(constant(0x3fe5555555555593), multiply(w, odd)));                       // LG1
  const double r = add(odd, even);
  double sum = add(multiply(s, add(half_square, r)), low);
  sum = add(subtract(sum, half_square), f);
  return add(sum, multiply(k, constant(LMHEAD_LN2_HI64)));
}

DEVICE double log(double x) {
  uint64_t bits = mov_b64_f64(x);
  uint32_t high = uint32_t(bits >> 32);
  int32_t k = 0;
  if (high < 0x00100000 || high >> 31) {
    if (bits << 1 == 0) return constant(kMinusInfinity64);
    if (high >> 31) return constant(kNan64);
    // Subnormal: multiplied by 2^54.
    k = -54;
    bits = mov_b64_f64(multiply(x, constant(0x4350000000000000)));
    high = uint32_t(bits >> 32);
  } else if (high >= 0x7ff00000) {
    return x;
  } else if (bits == kOne64) {
    return 0;
  }
  high += kOneHigh - kRootHalfHigh;
  k += int32_t(high >> 20) - 0x3ff;
  const double f = subtract(with_high(bits, (high & 0x000fffff) + kRootHalfHigh), 1.0), n = cvt_rn_f64_s32(k);
  return log_of_parts(f, n, multiply(n, constant(LMHEAD_LN2_LO64)));
}

// log(1 + x).
DEVICE double log1p(double x) {
  const uint32_t high = uint32_t(mov_b64_f64(x) >> 32);
  double f = x, c = 0;
  int32_t k = 1;
  if (high < 0x3fda827a || high >> 31) {                      // 1 + x < sqrt(2)
    if (high >= 0xbff00000) {                                 // x <= -1, or NaN with a sign
      return x == -1 ? constant(kMinusInfinity64) : constant(kNan64);
    }
    if (high << 1 < 0x3ca00000u << 1) return x;               // |x| < 2^-53
    if (high <= 0xbfd2bec4) k = 0;                            // sqrt(2)/2 <= 1 + x
  } else if (high >= 0x7ff00000) {
    return x;
  }
  if (k > 0) {
    const double u = add(1.0, x);
    const uint64_t bits = mov_b64_f64(u);
    const uint32_t moved = uint32_t(bits >> 32) + (kOneHigh - kRootHalfHigh);
    k = int32_t(moved >> 20) - 0x3ff;
    // What 1 + x lost by rounding, relative to u.
    if (k < 54) c = div_rn_f64(k >= 2 ? subtract(1.0, subtract(u, x)) : subtract(x, subtract(u, 1.0)), u);
    f = subtract(with_high(bits, (moved & 0x000fffff) + kRootHalfHigh), 1.0);
  }
  const double n = cvt_rn_f64_s32(k);
  return log_of_parts(f, n, add(multiply(n, constant(LMHEAD_LN2_LO64)), c));
}

}  // namespace answers
