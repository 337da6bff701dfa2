// mbarrier: a barrier in eight bytes of shared memory that counts arrivals and the bytes of asynchronous
// copies.
#pragma once
#include "core.cuh"

namespace ptx {

PTX void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
  EITHER(emulated::mbarrier_init(barrier, arrivals),
         asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory"));
}
// Required before the barrier's eight bytes are used for something else.
PTX void mbarrier_inval(uint32_t barrier) {
  EITHER(emulated::mbarrier_inval(barrier),
         asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory"));
}
// Makes inits visible to the cluster and to TMA. Executed after them, and before a barrier with the threads
// that use the mbarriers.
PTX void fence_mbarrier_init() {
  EITHER(emulated::fence_mbarrier_init(), asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"));
}

PTX void mbarrier_arrive(uint32_t barrier) {
  EITHER(emulated::mbarrier_arrive(barrier),
         asm volatile(
             "{.reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0];}" ::"r"(barrier) : "memory"));
}
// One arrival that also announces bytes of copies to come.
PTX void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  EITHER(emulated::mbarrier_arrive_expect_tx(barrier, bytes),
         asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                      "r"(bytes) : "memory"));
}
// mbarrier_arrive on a barrier of any block of the cluster, named by a shared::cluster address (mapa).
PTX void mbarrier_arrive_cluster(uint32_t barrier) {
  EITHER(
      emulated::mbarrier_arrive_cluster(barrier),
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory"));
}

// Relaxed: does not publish earlier stores; enough to hand back a buffer that was read.
PTX void mbarrier_arrive_relaxed_cluster(uint32_t barrier) {
  EITHER(
      emulated::mbarrier_arrive_cluster(barrier),
      asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory"));
}

// True once the phase with this parity has completed; false may mean "not yet": call it in a loop.
PTX bool mbarrier_try_wait_parity(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  EITHER(done = emulated::mbarrier_try_wait_parity("mbarrier.try_wait.parity", barrier, parity),
         asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, "
                      "0, p;}" : "=r"(done) : "r"(barrier),
                      "r"(parity) : "memory"));
  return done;
}
// The same where other blocks of the cluster arrive.
PTX bool mbarrier_try_wait_parity_cluster(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  EITHER(
      done = emulated::mbarrier_try_wait_parity("mbarrier.try_wait.parity.acquire.cluster", barrier, parity),
      asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
                   "selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier),
                   "r"(parity) : "memory"));
  return done;
}

}  // namespace ptx
