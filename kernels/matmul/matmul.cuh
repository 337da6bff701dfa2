// A block's walk: fill stages, weights before rows -> multiply -> epilogue.
#pragma once
#include "matmul/epilogue.cuh"

namespace matmul {

// Until the stage that is read next has landed: all copies but those of the stages behind it.
DEVICE void wait_for_stage(uint32_t stages) {
  if (stages == kMaxStages)
    cp_async_wait_group<kMaxStages - 2>();
  else
    cp_async_wait_group<kMinStages - 2>();
}

template <class T>
DEVICE void run(const MatmulParams &p) {
  const Place at = place<T>(p, blockIdx.x);
  const uint32_t ring = dynamic_shared(), end = ring + p.stages * T::kStageBytes, ahead = (p.stages - 1) * T::kStep;
  Sources<T> from;
  Sums<T> d = {};

  // Weights first: they wait neither for the rows' numbers nor for the kernel before, if that is the one which quantises the rows.
  find_weights<T>(p, at, ring, from);
#pragma unroll 1
  for (uint32_t k = 0; k < ahead; k += T::kStep, from.weights_to += T::kStageBytes)
    if (k < p.hidden) load_weights<T>(p, from, k, k + T::kStep <= p.hidden);
  if constexpr (T::Type::kRowScales) griddepcontrol_wait();
  find_rows<T>(p, at, ring, from);
#pragma unroll 1
  for (uint32_t k = 0; k < ahead; k += T::kStep, from.rows_to += T::kStageBytes) {
    if (k < p.hidden) load_rows<T>(p, at, from, k, k + T::kStep <= p.hidden);
    cp_async_commit_group();
  }
  // One barrier per stage says both "this one has landed" and "the one before it may be overwritten". A thread's addresses go
  // around the ring with the stages: worked out from the stage's, they would be so anew in each.
  Fragments lane = fragments<T>(ring);
  uint32_t read = ring, write = end - T::kStageBytes;
  for (uint32_t k = 0; k < p.hidden; k += T::kStep) {
    wait_for_stage(p.stages);
    barrier_sync_all();
    load_stage<T>(p, at, from, k + ahead);
    multiply<T>(d, lane);
    const uint32_t next = read + T::kStageBytes == end ? ring : read + T::kStageBytes;
    lane.weights += next - read, lane.rows += next - read;
    from.weights_to += read - write, from.rows_to += read - write;
    write = read, read = next;
  }
  epilogue<T>(p, at, d);
}

}  // namespace matmul

// A kernel for tiles of `ids` x `rows`; `blocks` of them shall fit an SM's registers.
#define MATMUL_KERNEL(name, Type, ids, rows, blocks)                                               \
  KERNEL(name, MatmulParams, (matmul::Tile<matmul::Type, ids, rows>::kThreads), blocks) {          \
    matmul::run<matmul::Tile<matmul::Type, ids, rows>>(params);                                    \
  }
