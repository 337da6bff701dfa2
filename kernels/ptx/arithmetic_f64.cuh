// f64 operations, each rounded on its own to nearest even, as arithmetic.cuh has them for f32. They are for
// what is done once a row: many GPUs have one f64 unit for 64 of f32. A NaN result may have any payload.
#pragma once
#include "core.cuh"

namespace ptx {

PTX uint64_t mov_b64_f64(double v) {
  uint64_t bits;
  EITHER(__builtin_memcpy(&bits, &v, 8), asm("mov.b64 %0, %1;" : "=l"(bits) : "d"(v)));
  return bits;
}
PTX double mov_f64_b64(uint64_t bits) {
  double v;
  EITHER(__builtin_memcpy(&v, &bits, 8), asm("mov.b64 %0, %1;" : "=d"(v) : "l"(bits)));
  return v;
}

PTX double add_rn_f64(double a, double b) {
  double v;
  EITHER(v = a + b, asm("add.rn.f64 %0, %1, %2;" : "=d"(v) : "d"(a), "d"(b)));
  return v;
}
PTX double mul_rn_f64(double a, double b) {
  double v;
  EITHER(v = a * b, asm("mul.rn.f64 %0, %1, %2;" : "=d"(v) : "d"(a), "d"(b)));
  return v;
}
PTX double div_rn_f64(double a, double b) {
  double v;
  EITHER(v = a / b, asm("div.rn.f64 %0, %1, %2;" : "=d"(v) : "d"(a), "d"(b)));
  return v;
}

// Exact.
PTX double cvt_f64_f32(float v) {
  double out;
  EITHER(out = v, asm("cvt.f64.f32 %0, %1;" : "=d"(out) : "f"(v)));
  return out;
}
PTX double cvt_rn_f64_s32(int32_t v) {
  double out;
  EITHER(out = v, asm("cvt.rn.f64.s32 %0, %1;" : "=d"(out) : "r"(v)));
  return out;
}
PTX double cvt_rn_f64_u32(uint32_t v) {
  double out;
  EITHER(out = v, asm("cvt.rn.f64.u32 %0, %1;" : "=d"(out) : "r"(v)));
  return out;
}
// To the nearest, ties to even.
PTX double cvt_rn_f64_u64(uint64_t v) {
  double out;
  EITHER(out = double(v), asm("cvt.rn.f64.u64 %0, %1;" : "=d"(out) : "l"(v)));
  return out;
}
PTX float cvt_rn_f32_f64(double v) {
  float out;
  EITHER(out = float(v), asm("cvt.rn.f32.f64 %0, %1;" : "=f"(out) : "d"(v)));
  return out;
}

}  // namespace ptx
