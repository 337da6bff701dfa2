// The ring of stages in shared memory: cp.async fills it, all but one stage ahead of the products.
//
//     Ring<T::kStageBytes> ring(stages);
//     for (the first stages - 1 steps of k)  load(stage), ring.commit();
//     for (each step of k)                   ring.acquire(), load(ring.fill), ring.commit(),
//                                            multiply(ring.read), ring.advance();
#pragma once
#include "params.h"
#include "ptx.cuh"

namespace matmul {

using namespace ptx;

// Waits until at most `pending` of the thread's latest groups are in flight. The instruction takes a
// constant; within a block the number is always the same.
DEVICE void wait_for_all_but(uint32_t pending) {
  static_assert(LMHEAD_MIN_STAGES == 3 && LMHEAD_MAX_STAGES == 16,
                "one case for each number of stages, less two");
  switch (pending) {
    case 1: return cp_async_wait_group<1>();
    case 2: return cp_async_wait_group<2>();
    case 3: return cp_async_wait_group<3>();
    case 4: return cp_async_wait_group<4>();
    case 5: return cp_async_wait_group<5>();
    case 6: return cp_async_wait_group<6>();
    case 7: return cp_async_wait_group<7>();
    case 8: return cp_async_wait_group<8>();
    case 9: return cp_async_wait_group<9>();
    case 10: return cp_async_wait_group<10>();
    case 11: return cp_async_wait_group<11>();
    case 12: return cp_async_wait_group<12>();
    case 13: return cp_async_wait_group<13>();
    case 14: return cp_async_wait_group<14>();
    default: cp_async_wait_all();
  }
}

template <uint32_t kStageBytes>
struct Ring {
  // Shared addresses: the first stage, the end of the last, the stage to read, the stage to fill.
  uint32_t first, end, read, fill;
  // Groups that may be in flight while a stage is read.
  uint32_t pending;

  DEVICE explicit Ring(uint32_t stages)
      : first(dynamic_shared()),
        end(first + stages * kStageBytes),
        read(first),
        fill(end - kStageBytes),
        pending(stages - 2) {}

  // Closes this thread's copies of a stage, even if there are none, as one group: so "all but the latest n"
  // always means n stages.
  DEVICE void commit() const { cp_async_commit_group(); }

  // One barrier for both: stage `read` has landed, with the copies of all threads, and stage `fill` has been
  // read by all.
  DEVICE void acquire() const {
    wait_for_all_but(pending);
    barrier_sync_all();
  }

  // The stage that was read is the next one to be filled.
  DEVICE void advance() {
    fill = read;
    read = read + kStageBytes == end ? first : read + kStageBytes;
  }
};

}  // namespace matmul
