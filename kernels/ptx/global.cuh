// Global memory: loads, stores, atomics. Addresses are aligned to the access.
#pragma once
#include "core.cuh"

namespace ptx {

PTX uint32_t ld_global_u32(const void *address) {
  uint32_t v;
  EITHER(emulated::ld_global("ld.global.b32", address, &v, 4),
         asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(address) : "memory"));
  return v;
}
PTX uint8_t ld_global_u8(const void *address) {
  uint32_t v = 0;
  EITHER(emulated::ld_global("ld.global.b8", address, &v, 1),
         asm volatile("ld.global.b8 %0, [%1];" : "=r"(v) : "l"(address) : "memory"));
  return uint8_t(v);
}
PTX uint16_t ld_global_u16(const void *address) {
  uint16_t v;
  EITHER(emulated::ld_global("ld.global.b16", address, &v, 2),
         asm volatile("ld.global.b16 %0, [%1];" : "=h"(v) : "l"(address) : "memory"));
  return v;
}
PTX U32x2 ld_global_v2(const void *address) {
  U32x2 v;
  EITHER(emulated::ld_global("ld.global.v2.b32", address, &v, 8),
         asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address) : "memory"));
  return v;
}
PTX U32x4 ld_global_v4(const void *address) {
  U32x4 v;
  EITHER(emulated::ld_global("ld.global.v4.b32", address, &v, 16),
         asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                      : "l"(address)
                      : "memory"));
  return v;
}

// Loads a word that other blocks change by atomics meanwhile.
PTX uint32_t ld_relaxed_u32(const void *address) {
  uint32_t v;
  EITHER(emulated::ld_global("ld.relaxed.gpu.global.b32", address, &v, 4),
         asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(address) : "memory"));
  return v;
}

// .nc: through the read-only path; nobody may write there while the kernel runs. ptxas relies on that,
// whether the asm is volatile or not: it merges such loads and moves them across griddepcontrol.wait. So
// never for what a kernel before may write, which in a step is all but weights.
PTX uint16_t ld_global_nc_u16(const void *address) {
  uint16_t v;
  EITHER(emulated::ld_global_nc("ld.global.nc.b16", address, &v, 2),
         asm("ld.global.nc.b16 %0, [%1];" : "=h"(v) : "l"(address)));
  return v;
}
PTX uint32_t ld_global_nc_u32(const void *address) {
  uint32_t v;
  EITHER(emulated::ld_global_nc("ld.global.nc.b32", address, &v, 4),
         asm("ld.global.nc.b32 %0, [%1];" : "=r"(v) : "l"(address)));
  return v;
}
PTX float ld_global_nc_f32(const void *address) {
  float v;
  EITHER(emulated::ld_global_nc("ld.global.nc.f32", address, &v, 4),
         asm("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(address)));
  return v;
}
// For data that is read once: it does not push other data out of the first-level cache.
PTX U32x2 ld_global_nc_no_allocate_v2(const void *address) {
  U32x2 v;
  EITHER(emulated::ld_global_nc("ld.global.nc.L1::no_allocate.v2.b32", address, &v, 8),
         asm("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address)));
  return v;
}
PTX U32x4 ld_global_nc_no_allocate_v4(const void *address) {
  U32x4 v;
  EITHER(emulated::ld_global_nc("ld.global.nc.L1::no_allocate.v4.b32", address, &v, 16),
         asm("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
             : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
             : "l"(address)));
  return v;
}

PTX void st_global_u8(void *address, uint8_t v) {
  EITHER(emulated::st_global("st.global.b8", address, &v, 1),
         asm volatile("st.global.b8 [%0], %1;" ::"l"(address), "r"(uint32_t(v)) : "memory"));
}
PTX void st_global_u16(void *address, uint16_t v) {
  EITHER(emulated::st_global("st.global.b16", address, &v, 2),
         asm volatile("st.global.b16 [%0], %1;" ::"l"(address), "h"(v) : "memory"));
}
PTX void st_global_u32(void *address, uint32_t v) {
  EITHER(emulated::st_global("st.global.b32", address, &v, 4),
         asm volatile("st.global.b32 [%0], %1;" ::"l"(address), "r"(v) : "memory"));
}
PTX void st_global_f32(void *address, float v) {
  EITHER(emulated::st_global("st.global.f32", address, &v, 4),
         asm volatile("st.global.f32 [%0], %1;" ::"l"(address), "f"(v) : "memory"));
}
PTX void st_global_v2(void *address, U32x2 v) {
  EITHER(emulated::st_global("st.global.v2.b32", address, &v, 8),
         asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(v.x), "r"(v.y) : "memory"));
}
PTX void st_global_v4(void *address, U32x4 v) {
  EITHER(emulated::st_global("st.global.v4.b32", address, &v, 16),
         asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.x), "r"(v.y), "r"(v.z),
                      "r"(v.w) : "memory"));
}

// Atomics at device scope, relaxed; each returns the value before.
PTX uint32_t atom_add_u32(void *address, uint32_t v) {
  uint32_t old;
  EITHER(old = emulated::atom_u32("atom.global.add.u32", address, emulated::Atomic::add, v),
         asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address),
                      "r"(v) : "memory"));
  return old;
}
PTX uint32_t atom_max_u32(void *address, uint32_t v) {
  uint32_t old;
  EITHER(old = emulated::atom_u32("atom.global.max.u32", address, emulated::Atomic::max, v),
         asm volatile("atom.relaxed.gpu.global.max.u32 %0, [%1], %2;" : "=r"(old) : "l"(address),
                      "r"(v) : "memory"));
  return old;
}
PTX uint32_t atom_or_u32(void *address, uint32_t v) {
  uint32_t old;
  EITHER(old = emulated::atom_u32("atom.global.or.b32", address, emulated::Atomic::bit_or, v),
         asm volatile("atom.relaxed.gpu.global.or.b32 %0, [%1], %2;" : "=r"(old) : "l"(address),
                      "r"(v) : "memory"));
  return old;
}
PTX uint32_t atom_exch_u32(void *address, uint32_t v) {
  uint32_t old;
  EITHER(old = emulated::atom_u32("atom.global.exch.b32", address, emulated::Atomic::exchange, v),
         asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], %2;" : "=r"(old) : "l"(address),
                      "r"(v) : "memory"));
  return old;
}
PTX uint32_t atom_cas_u32(void *address, uint32_t compare, uint32_t v) {
  uint32_t old;
  EITHER(old = emulated::atom_cas_u32("atom.global.cas.b32", address, compare, v),
         asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], %2, %3;"
                      : "=r"(old)
                      : "l"(address), "r"(compare), "r"(v)
                      : "memory"));
  return old;
}
PTX uint64_t atom_add_u64(void *address, uint64_t v) {
  uint64_t old;
  EITHER(old = emulated::atom_u64("atom.global.add.u64", address, emulated::Atomic::add, v),
         asm volatile("atom.relaxed.gpu.global.add.u64 %0, [%1], %2;" : "=l"(old) : "l"(address),
                      "l"(v) : "memory"));
  return old;
}
PTX uint64_t atom_max_u64(void *address, uint64_t v) {
  uint64_t old;
  EITHER(old = emulated::atom_u64("atom.global.max.u64", address, emulated::Atomic::max, v),
         asm volatile("atom.relaxed.gpu.global.max.u64 %0, [%1], %2;" : "=l"(old) : "l"(address),
                      "l"(v) : "memory"));
  return old;
}

// Orders earlier accesses before later ones for the whole device. __threadfence() is stronger: fence.sc, for
// which no kernel here has a use.
PTX void fence_acq_rel_gpu() {
  EITHER(emulated::fence_acq_rel_gpu(), asm volatile("fence.acq_rel.gpu;" ::: "memory"));
}

// Flags of system scope, by which kernels of other devices and processes are told. An acquire that sees what
// a release has stored also sees all that the releasing thread stored or knew of before.
PTX uint32_t ld_acquire_sys_u32(const void *address) {
  uint32_t v;
  EITHER(v = emulated::ld_acquire("ld.acquire.sys.global.b32", address),
         asm volatile("ld.acquire.sys.global.b32 %0, [%1];" : "=r"(v) : "l"(address) : "memory"));
  return v;
}
PTX void st_release_sys_u32(void *address, uint32_t v) {
  EITHER(emulated::st_release("st.release.sys.global.b32", address, v),
         asm volatile("st.release.sys.global.b32 [%0], %1;" ::"l"(address), "r"(v) : "memory"));
}
PTX void red_release_sys_add_u32(void *address, uint32_t v) {
  EITHER(emulated::red_add_release("red.release.sys.global.add.u32", address, v),
         asm volatile("red.release.sys.global.add.u32 [%0], %1;" ::"l"(address), "r"(v) : "memory"));
}

}  // namespace ptx
