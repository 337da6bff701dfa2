// f32 operations, each rounded on its own to nearest even, whatever the compiler's flags: results whose bits
// are promised are computed with these. NaN results are 0x7fffffff, those of 16 bits 0x7fff.
#pragma once
#include "core.cuh"

namespace ptx {

PTX uint32_t mov_b32_f32(float v) {
  uint32_t bits;
  EITHER(emulated::bits_of(v, bits), asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(v)));
  return bits;
}
PTX float mov_f32_b32(uint32_t bits) {
  float v;
  EITHER(emulated::float_of(bits, v), asm("mov.b32 %0, %1;" : "=f"(v) : "r"(bits)));
  return v;
}

PTX float add_rn_f32(float a, float b) {
  float v;
  EITHER(v = emulated::canonical("add.rn.f32", a + b, a, b),
         asm("add.rn.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b)));
  return v;
}
PTX float mul_rn_f32(float a, float b) {
  float v;
  EITHER(v = emulated::canonical("mul.rn.f32", a * b, a, b),
         asm("mul.rn.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b)));
  return v;
}
PTX float div_rn_f32(float a, float b) {
  float v;
  EITHER(v = emulated::canonical("div.rn.f32", a / b, a, b),
         asm("div.rn.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b)));
  return v;
}
// a·b + c, rounded once.
PTX float fma_rn_f32(float a, float b, float c) {
  float v;
  EITHER(v = emulated::canonical("fma.rn.f32", __builtin_fmaf(a, b, c), a, b, c),
         asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(v) : "f"(a), "f"(b), "f"(c)));
  return v;
}

PTX float abs_f32(float v) {
  float out;
  EITHER(out = __builtin_fabsf(v), asm("abs.f32 %0, %1;" : "=f"(out) : "f"(v)));
  return out;
}

// The binary logarithm, approximately: within 2^-22 of it for 1/2 < v < 2, elsewhere within 2^-22 of its
// magnitude. Subnormals count as 0. Chips may differ in the last bits, so no promised bits may depend on it.
PTX float lg2_approx_ftz_f32(float v) {
  float out;
  EITHER(out = emulated::log2_approximate(v), asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v)));
  return out;
}

// To the nearest integer, ties to even. What is beyond int32 saturates; NaN becomes 0.
PTX int32_t cvt_rni_s32_f32(float v) {
  int32_t out;
  EITHER(out = emulated::nearest_s32(v), asm("cvt.rni.s32.f32 %0, %1;" : "=r"(out) : "f"(v)));
  return out;
}
// The same toward zero.
PTX int32_t cvt_rzi_s32_f32(float v) {
  int32_t out;
  EITHER(out = emulated::truncated_s32(v), asm("cvt.rzi.s32.f32 %0, %1;" : "=r"(out) : "f"(v)));
  return out;
}
PTX float cvt_rn_f32_s32(int32_t v) {
  float out;
  EITHER(out = emulated::f32_of_s32(v), asm("cvt.rn.f32.s32 %0, %1;" : "=f"(out) : "r"(v)));
  return out;
}
PTX float cvt_rn_f32_u32(uint32_t v) {
  float out;
  EITHER(out = float(v), asm("cvt.rn.f32.u32 %0, %1;" : "=f"(out) : "r"(v)));
  return out;
}
PTX Bf16 cvt_rn_bf16_f32(float v) {
  Bf16 out;
  EITHER(out.bits = emulated::bf16_of(v), asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)));
  return out;
}
PTX F16 cvt_rn_f16_f32(float v) {
  F16 out;
  EITHER(out.bits = emulated::f16_of(v), asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)));
  return out;
}
PTX float cvt_f32_f16(F16 v) {
  float out;
  EITHER(out = emulated::f32_of_f16(v.bits), asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits)));
  return out;
}

// Two f16 at once, each rounded on its own.
PTX uint32_t sub_rn_f16x2(uint32_t a, uint32_t b) {
  uint32_t out;
  EITHER(out = emulated::sub_f16x2(a, b), asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b)));
  return out;
}

// Two bf16 at once: a·b + c, rounded once.
PTX uint32_t fma_rn_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  EITHER(out = emulated::fma_bf16x2(a, b, c),
         asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c)));
  return out;
}

// Four bytes picked from the eight of (high, low). Digit i of the selector names byte i of the result: 0 to 3
// from low, 4 to 7 from high. Bit 3 of a digit asks for eight copies of that byte's sign bit instead.
PTX uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t out;
  EITHER(out = emulated::prmt(low, high, selector),
         asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector)));
  return out;
}

// The upper word of (high, low) << n, with n modulo 32.
PTX uint32_t shf_l_wrap(uint32_t low, uint32_t high, uint32_t n) {
  uint32_t out;
  EITHER(out = uint32_t((uint64_t(high) << 32 | low) << (n & 31) >> 32),
         asm("shf.l.wrap.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(n)));
  return out;
}
// v >> n; 0 where n is above 63.
PTX uint64_t shr_u64(uint64_t v, uint32_t n) {
  uint64_t out;
  EITHER(out = n > 63 ? 0 : v >> n, asm("shr.u64 %0, %1, %2;" : "=l"(out) : "l"(v), "r"(n)));
  return out;
}
// How many bits are set.
PTX uint32_t popc_b32(uint32_t v) {
  uint32_t out;
  EITHER(out = uint32_t(__builtin_popcount(v)), asm("popc.b32 %0, %1;" : "=r"(out) : "r"(v)));
  return out;
}
// How many leading zeros; 64 for 0.
PTX uint32_t clz_b64(uint64_t v) {
  uint32_t out;
  EITHER(out = v ? uint32_t(__builtin_clzll(v)) : 64, asm("clz.b64 %0, %1;" : "=r"(out) : "l"(v)));
  return out;
}

}  // namespace ptx
