// cp.async: copies 4, 8 or 16 bytes from global to shared memory, asynchronously.
#pragma once
#include "core.cuh"

namespace ptx {

// Copies `from_bytes` (up to kBytes, 0 reads nothing) and fills the rest with zeros. .ca: through all caches.
template <int kBytes>
PTX void cp_async_ca(uint32_t to, const void *from, uint32_t from_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async.ca copies 4, 8 or 16 bytes");
  EITHER(emulated::cp_async("cp.async.ca", to, from, kBytes, from_bytes),
         asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                      "r"(from_bytes) : "memory"));
}
// .cg: bypasses the first-level cache.
PTX void cp_async_cg_16(uint32_t to, const void *from, uint32_t from_bytes = 16) {
  EITHER(emulated::cp_async("cp.async.cg", to, from, 16, from_bytes),
         asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                      "r"(from_bytes) : "memory"));
}
// The same with a hint that the 256 bytes around `from` will be wanted: the second-level cache then reads
// them from memory at once.
PTX void cp_async_cg_16_l2_256b(uint32_t to, const void *from, uint32_t from_bytes = 16) {
  EITHER(emulated::cp_async("cp.async.cg.L2::256B", to, from, 16, from_bytes),
         asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                      "r"(from_bytes)
                      : "memory"));
}
// cp_async_cg_16 of all 16 bytes, or with `zeros` of none: then nothing is read, whatever the address.
PTX void cp_async_cg_16_or_zeros(uint32_t to, const void *from, bool zeros) {
  EITHER(emulated::cp_async("cp.async.cg", to, from, 16, zeros ? 0 : 16),
         asm volatile(
             "{.reg .pred p; setp.ne.u32 p, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, p;}" ::"r"(to),
             "l"(from), "r"(uint32_t(zeros)) : "memory"));
}

PTX void cp_async_commit_group() {
  EITHER(emulated::cp_async_commit_group(), asm volatile("cp.async.commit_group;" ::: "memory"));
}
// Waits until at most kPending of the thread's latest groups are in flight.
template <int kPending>
PTX void cp_async_wait_group() {
  EITHER(emulated::cp_async_wait_group(kPending),
         asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory"));
}
PTX void cp_async_wait_all() {
  EITHER(emulated::cp_async_wait_all(), asm volatile("cp.async.wait_all;" :: : "memory"));
}

// Arrives on the barrier, as one of the arrivals it expects, when all earlier copies of this thread have
// landed.
PTX void cp_async_mbarrier_arrive_noinc(uint32_t barrier) {
  EITHER(emulated::cp_async_mbarrier_arrive_noinc(barrier),
         asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory"));
}

}  // namespace ptx
