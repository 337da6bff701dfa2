// A block's walk: layout -> load, weights before rows -> multiply, stage by stage -> finish.
#pragma once
#include "matmul/epilogue.cuh"
#include "step.cuh"

namespace matmul {

template <class T>
DEVICE void run(const MatmulParams &p) {
  // Layout: the block's tile, its ring, and what of a stage is this thread's.
  const TileCoord at = tile_coord<T>(p, blockIdx.x);
  Ring<T::kStageBytes> ring(p.stages);
  const Fragments lane = fragments<T>();
  const uint32_t ahead = (p.stages - 1) * T::kStep;
  Sources<T> from;
  Accumulators<T> d = {};

  // Load all stages but one. Weights first: they wait neither for the rows' indices nor for the kernel
  // before.
  find_weights<T>(p, at, from);
#pragma unroll 1
  for (uint32_t k = 0, stage = ring.first; k < ahead && k < p.hidden; k += T::kStep, stage += T::kStageBytes)
    load_weights<T>(p, from, stage, k, k + T::kStep <= p.hidden);
  wait_for_kernel_before();
  find_rows<T>(p, at, from);
#pragma unroll 1
  for (uint32_t k = 0, stage = ring.first; k < ahead; k += T::kStep, stage += T::kStageBytes) {
    if (k < p.hidden) load_rows<T>(p, from, stage, k, k + T::kStep <= p.hidden);
    ring.commit();
  }

  // Compute, while the stage that was read last is filled.
#pragma unroll 1
  for (uint32_t k = 0; k < p.hidden; k += T::kStep) {
    ring.acquire();
    load_stage<T>(p, from, ring.fill, k + ahead);
    ring.commit();
    multiply<T>(d, lane.in(ring.read));
    ring.advance();
  }

  // Finish.
  epilogue<T>(p, at, d);
}

}  // namespace matmul

// A kernel of a step (step.cuh) for tiles of `block_n` ids x `block_m` rows. The registers of an SM must have
// room for `blocks` blocks.
#define MATMUL_KERNEL(name, Type, block_n, block_m, blocks)                                      \
  KERNEL(name, MatmulParams, (matmul::Tile<matmul::Type, block_n, block_m>::kThreads), blocks) { \
    matmul::run<matmul::Tile<matmul::Type, block_n, block_m>>(params);                           \
  }
