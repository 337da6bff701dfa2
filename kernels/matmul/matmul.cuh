// A block's walk: number the rows -> fill stages -> multiply -> epilogue.
#pragma once
#include "matmul/epilogue.cuh"

namespace matmul {

template <class T>
DEVICE void run(const MatmulParams &p) {
  const Place at = place<T>(p, blockIdx.x);
  const bool rows_aligned = (uint64_t(p.rows.data) | p.rows.pitch) % 16 == 0;
  const auto stage = [](uint32_t number) { return dynamic_shared() + number % T::kStages * T::kStageBytes; };
  Sums<T> d = {};

  number_rows<T>(p, at);
  barrier_sync_all();
  for (uint32_t s = 0; s + 1 < T::kStages; ++s) load_stage<T>(p, at, stage(s), s * T::kStep, rows_aligned);
  // One barrier per stage says both "this one has landed" and "the one before it may be overwritten".
  for (uint32_t s = 0; s * T::kStep < p.hidden; ++s) {
    cp_async_wait_group<T::kStages - 2>();
    barrier_sync_all();
    load_stage<T>(p, at, stage(s + T::kStages - 1), (s + T::kStages - 1) * T::kStep, rows_aligned);
    multiply<T>(d, stage(s));
  }
  epilogue<T>(p, at, d);
}

}  // namespace matmul

// A kernel for tiles of `rows` rows; `blocks` of them shall fit an SM's registers.
#define MATMUL_KERNEL(name, Type, rows, blocks)                                               \
  KERNEL(name, MatmulParams, (matmul::Tile<matmul::Type, rows>::kThreads), blocks) {          \
    matmul::run<matmul::Tile<matmul::Type, rows>>(params);                                    \
  }
