// Clusters: blocks that reach each other's shared memory.
#pragma once
#include "core.cuh"

namespace ptx {

PTX uint32_t cluster_block_rank() {
  uint32_t rank;
  EITHER(rank = emulated::cluster_block_rank(), asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)));
  return rank;
}
PTX uint32_t cluster_block_count() {
  uint32_t count;
  EITHER(count = emulated::cluster_block_count(), asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count)));
  return count;
}

// Executed by all threads of the cluster. No block may exit while another can still reach its shared memory.
PTX void barrier_cluster_arrive(PLACE) {
  EITHER(emulated::barrier_cluster_arrive(place),
         asm volatile("barrier.cluster.arrive.release.aligned;" :: : "memory"));
}
PTX void barrier_cluster_wait(PLACE) {
  EITHER(emulated::barrier_cluster_wait(place),
         asm volatile("barrier.cluster.wait.acquire.aligned;" :: : "memory"));
}

// The shared::cluster address of this address in another block.
PTX uint32_t mapa(uint32_t address, uint32_t rank) {
  uint32_t out;
  EITHER(out = emulated::mapa(address, rank),
         asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(address), "r"(rank)));
  return out;
}
PTX uint32_t ld_shared_cluster_u32(uint32_t address) {
  uint32_t v;
  EITHER(emulated::ld_shared_cluster("ld.shared::cluster.b32", address, &v, 4),
         asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory"));
  return v;
}
PTX void st_shared_cluster_u32(uint32_t address, uint32_t v) {
  EITHER(emulated::st_shared_cluster("st.shared::cluster.b32", address, &v, 4),
         asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(address), "r"(v) : "memory"));
}

}  // namespace ptx
