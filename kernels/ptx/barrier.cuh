// Barriers of a block: all its threads, or a named barrier with a count.
#pragma once
#include "core.cuh"

namespace ptx {

// The same as __syncthreads().
PTX void barrier_sync_all(PLACE) {
  EITHER(emulated::barrier_sync("bar.sync", 0, 0, place), asm volatile("bar.sync 0;" ::: "memory"));
}

// id: 0 to 15 (0 is barrier_sync_all's). threads: a multiple of 32; how many arrive, by .sync and .arrive
// together.
PTX void barrier_sync(uint32_t id, uint32_t threads AND_PLACE) {
  EITHER(emulated::barrier_sync("bar.sync", id, threads, place),
         asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"));
}
PTX void barrier_arrive(uint32_t id, uint32_t threads AND_PLACE) {
  EITHER(emulated::barrier_arrive(id, threads, place),
         asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"));
}

}  // namespace ptx
