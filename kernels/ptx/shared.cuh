// Shared memory by address: loads, stores, matrices of 8 x 8 16-bit elements.
#pragma once
#include "core.cuh"

namespace ptx {

// The address of dynamic shared memory, of exactly the size that the launch asked for. Aligned to 1024 bytes:
// the pattern of the 128-byte swizzle repeats there.
PTX uint32_t dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(1024) unsigned char lmhead_dynamic_shared[];
  return uint32_t(__cvta_generic_to_shared(lmhead_dynamic_shared));
#else
  return emulated::dynamic_shared();
#endif
}

PTX uint32_t ld_shared_u32(uint32_t address) {
  uint32_t v;
  EITHER(emulated::ld_shared("ld.shared.b32", address, &v, 4),
         asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory"));
  return v;
}
PTX float ld_shared_f32(uint32_t address) {
  float v;
  EITHER(emulated::ld_shared("ld.shared.f32", address, &v, 4),
         asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory"));
  return v;
}
PTX uint16_t ld_shared_u16(uint32_t address) {
  uint16_t v;
  EITHER(emulated::ld_shared("ld.shared.b16", address, &v, 2),
         asm volatile("ld.shared.b16 %0, [%1];" : "=h"(v) : "r"(address) : "memory"));
  return v;
}
PTX U32x2 ld_shared_v2(uint32_t address) {
  U32x2 v;
  EITHER(emulated::ld_shared("ld.shared.v2.b32", address, &v, 8),
         asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory"));
  return v;
}
PTX U32x4 ld_shared_v4(uint32_t address) {
  U32x4 v;
  EITHER(emulated::ld_shared("ld.shared.v4.b32", address, &v, 16),
         asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                      : "r"(address)
                      : "memory"));
  return v;
}

PTX void st_shared_u8(uint32_t address, uint8_t v) {
  EITHER(emulated::st_shared("st.shared.b8", address, &v, 1),
         asm volatile("st.shared.b8 [%0], %1;" ::"r"(address), "r"(uint32_t(v)) : "memory"));
}
PTX void st_shared_u16(uint32_t address, uint16_t v) {
  EITHER(emulated::st_shared("st.shared.b16", address, &v, 2),
         asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(v) : "memory"));
}
PTX void st_shared_u32(uint32_t address, uint32_t v) {
  EITHER(emulated::st_shared("st.shared.b32", address, &v, 4),
         asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(v) : "memory"));
}
PTX void st_shared_f32(uint32_t address, float v) {
  EITHER(emulated::st_shared("st.shared.f32", address, &v, 4),
         asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory"));
}
PTX void st_shared_v2(uint32_t address, U32x2 v) {
  EITHER(emulated::st_shared("st.shared.v2.b32", address, &v, 8),
         asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(v.x), "r"(v.y) : "memory"));
}
PTX void st_shared_v4(uint32_t address, U32x4 v) {
  EITHER(emulated::st_shared("st.shared.v4.b32", address, &v, 16),
         asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
                      "r"(v.w) : "memory"));
}

// Atomics among the block's threads; each returns the value before.
PTX uint32_t atom_shared_add_u32(uint32_t address, uint32_t v) {
  uint32_t old;
  EITHER(old = emulated::atom_shared_add_u32(address, v),
         asm volatile("atom.relaxed.cta.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(address),
                      "r"(v) : "memory"));
  return old;
}
PTX uint64_t atom_shared_add_u64(uint32_t address, uint64_t v) {
  uint64_t old;
  EITHER(old = emulated::atom_shared_add_u64(address, v),
         asm volatile("atom.relaxed.cta.shared.add.u64 %0, [%1], %2;" : "=l"(old) : "r"(address),
                      "l"(v) : "memory"));
  return old;
}

// ldmatrix: lane 8i + r gives the address of row r of matrix i; lane l gets the pair (row l/4, columns
// 2(l%4), +1) of each. With .trans rows and columns change roles.
PTX void ldmatrix_x1(uint32_t &d0, uint32_t address AND_PLACE) {
  uint32_t d[1];
  EITHER(emulated::ldmatrix(d, 1, false, address, place),
         asm volatile(
             "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(d[0]) : "r"(address) : "memory"));
  d0 = d[0];
}
PTX void ldmatrix_x2(uint32_t (&d)[2], uint32_t address AND_PLACE) {
  EITHER(emulated::ldmatrix(d, 2, false, address, place),
         asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                      : "=r"(d[0]), "=r"(d[1])
                      : "r"(address)
                      : "memory"));
}
PTX void ldmatrix_x4(uint32_t (&d)[4], uint32_t address AND_PLACE) {
  EITHER(emulated::ldmatrix(d, 4, false, address, place),
         asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                      : "r"(address)
                      : "memory"));
}
PTX void ldmatrix_x1_trans(uint32_t &d0, uint32_t address AND_PLACE) {
  uint32_t d[1];
  EITHER(emulated::ldmatrix(d, 1, true, address, place),
         asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                      : "=r"(d[0])
                      : "r"(address)
                      : "memory"));
  d0 = d[0];
}
PTX void ldmatrix_x2_trans(uint32_t (&d)[2], uint32_t address AND_PLACE) {
  EITHER(emulated::ldmatrix(d, 2, true, address, place),
         asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                      : "=r"(d[0]), "=r"(d[1])
                      : "r"(address)
                      : "memory"));
}
PTX void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t address AND_PLACE) {
  EITHER(emulated::ldmatrix(d, 4, true, address, place),
         asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                      : "r"(address)
                      : "memory"));
}

// stmatrix (sm_90): the reverse of ldmatrix.
PTX void stmatrix_x1(uint32_t address, uint32_t v AND_PLACE) {
  EITHER(
      emulated::stmatrix(&v, 1, false, address, place),
      asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(v) : "memory"));
}
PTX void stmatrix_x2(uint32_t address, const uint32_t (&v)[2] AND_PLACE) {
  EITHER(emulated::stmatrix(v, 2, false, address, place),
         asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(v[0]),
                      "r"(v[1]) : "memory"));
}
PTX void stmatrix_x4(uint32_t address, const uint32_t (&v)[4] AND_PLACE) {
  EITHER(emulated::stmatrix(v, 4, false, address, place),
         asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                      "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory"));
}
PTX void stmatrix_x1_trans(uint32_t address, uint32_t v AND_PLACE) {
  EITHER(emulated::stmatrix(&v, 1, true, address, place),
         asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address),
                      "r"(v) : "memory"));
}
PTX void stmatrix_x2_trans(uint32_t address, const uint32_t (&v)[2] AND_PLACE) {
  EITHER(emulated::stmatrix(v, 2, true, address, place),
         asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
                      "r"(v[0]), "r"(v[1]) : "memory"));
}
PTX void stmatrix_x4_trans(uint32_t address, const uint32_t (&v)[4] AND_PLACE) {
  EITHER(emulated::stmatrix(v, 4, true, address, place),
         asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
                      "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                      : "memory"));
}

}  // namespace ptx
