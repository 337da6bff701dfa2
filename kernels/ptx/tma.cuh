// TMA: copies tiles of a matrix between global and shared memory by a tensor map, and consecutive bytes
// without one. x counts elements along a row, y rows.
#pragma once
#include "core.cuh"

namespace ptx {

PTX void prefetch_tensormap(const TensorMap *map) {
  EITHER(emulated::prefetch_tensormap(map), asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"));
}

// Executed by one thread. The tile's bytes are counted on the barrier, one of the same block, when they have
// landed.
PTX void tma_load_2d(uint32_t to, const TensorMap *map, int32_t x, int32_t y, uint32_t barrier) {
  EITHER(emulated::tma_load_2d("cp.async.bulk.tensor.2d", to, map, x, y, barrier, emulated::kOwnBlock),
         asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                      "l"(map), "r"(x), "r"(y), "r"(barrier)
                      : "memory"));
}
// The same with a cache policy (createpolicy).
PTX void tma_load_2d_hint(uint32_t to, const TensorMap *map, int32_t x, int32_t y, uint32_t barrier,
                          uint64_t policy) {
  EITHER((void(policy), emulated::tma_load_2d("cp.async.bulk.tensor.2d.L2::cache_hint", to, map, x, y,
                                              barrier, emulated::kOwnBlock)),
         asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                      "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy) : "memory"));
}
// tma_load_2d into every block of the cluster whose bit is set: to the same address there, with the barrier
// at the same address.
PTX void tma_load_2d_multicast(uint32_t to, const TensorMap *map, int32_t x, int32_t y, uint32_t barrier,
                               uint16_t blocks) {
  EITHER(emulated::tma_load_2d("cp.async.bulk.tensor.2d.multicast::cluster", to, map, x, y, barrier, blocks),
         asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
                      : "memory"));
}

// Copies consecutive bytes, without a map. Size and addresses are multiples of 16.
PTX void bulk_load(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
  EITHER(
      emulated::bulk_load("cp.async.bulk", to, from, bytes, barrier, emulated::kOwnBlock),
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
          "l"(from), "r"(bytes), "r"(barrier) : "memory"));
}
// bulk_load into every block of the cluster whose bit is set: to the same address there, with the barrier at
// the same address.
PTX void bulk_load_multicast(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier,
                             uint16_t blocks) {
  EITHER(emulated::bulk_load("cp.async.bulk.multicast::cluster", to, from, bytes, barrier, blocks),
         asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                      "[%0], [%1], %2, [%3], %4;" ::"r"(to),
                      "l"(from), "r"(bytes), "r"(barrier), "h"(blocks)
                      : "memory"));
}

// Elements outside of the matrix are not written. The tile in shared memory may not be changed before its
// group has been waited for.
PTX void tma_store_2d(const TensorMap *map, int32_t x, int32_t y, uint32_t from) {
  EITHER(emulated::tma_store_2d(map, x, y, from),
         asm volatile(
             "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
             "r"(x), "r"(y), "r"(from) : "memory"));
}
PTX void bulk_commit_group() {
  EITHER(emulated::bulk_commit_group(), asm volatile("cp.async.bulk.commit_group;" ::: "memory"));
}
// Waits until at most kPending groups have not been written.
template <int kPending>
PTX void bulk_wait_group() {
  EITHER(emulated::bulk_wait_group("cp.async.bulk.wait_group", kPending, false),
         asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory"));
}
// Waits until at most kPending groups still read shared memory.
template <int kPending>
PTX void bulk_wait_group_read() {
  EITHER(emulated::bulk_wait_group("cp.async.bulk.wait_group.read", kPending, true),
         asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory"));
}

// Cache policies: evict_first for data that is read once, evict_last for data that is read again and again.
PTX uint64_t createpolicy_evict_first() {
  uint64_t policy;
  EITHER(policy = 1, asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy)));
  return policy;
}
PTX uint64_t createpolicy_evict_last() {
  uint64_t policy;
  EITHER(policy = 2, asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy)));
  return policy;
}

// Orders ordinary (or cp.async) accesses to shared memory before those of TMA and wgmma.
PTX void fence_proxy_async() {
  EITHER(emulated::fence_proxy_async(), asm volatile("fence.proxy.async.shared::cta;" ::: "memory"));
}
// The same for global memory: executed between the acquire of what others stored and its copy by TMA.
PTX void fence_proxy_async_global() {
  EITHER(emulated::fence_proxy_async_global(), asm volatile("fence.proxy.async.global;" ::: "memory"));
}

}  // namespace ptx
