// Parts of the matmul kernels by themselves.
#include "matmul/epilogue.cuh"
#include "probe.h"

using namespace ptx;

// out[i] = tanh of the float with bits n[0] + i·n[1], n[2] of them; 64 a thread.
KERNEL(probe_tanh, ProbeParams, 256, 1) {
  for (uint32_t j = 0; j < 64; ++j) {
    const uint32_t i = (blockIdx.x * 64 + j) * 256 + threadIdx.x;
    if (i < params.n[2]) st_global_f32(params.out + i, matmul::tanh(mov_f32_b32(params.n[0] + i * params.n[1])));
  }
}

template <uint32_t kIds, uint32_t kRows>
DEVICE void place_of(const MatmulParams &p, uint32_t block, uint32_t *out) {
  const matmul::Place at = matmul::place<matmul::Tile<matmul::Bf16Weights, kIds, kRows>>(p, block);
  st_global_v2(out, {at.first_id, at.first_row});
}

// in: numbers of blocks, n[0] of them; n[1], n[2]: rows and ids; n[3]: rows of a tile: 8 have 64 ids, 128 have 128.
// out: first id, first row of each.
KERNEL(probe_place, ProbeParams, 256, 1) {
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= params.n[0]) return;
  MatmulParams p = {};
  p.row_count = params.n[1], p.vocab = params.n[2];
  if (params.n[3] == 8)
    place_of<64, 8>(p, ld_global_u32(params.in + i), params.out + 2 * i);
  else
    place_of<128, 128>(p, ld_global_u32(params.in + i), params.out + 2 * i);
}

template <class T>
DEVICE void figures(uint32_t *&out) {
  const uint32_t all[5] = {T::kIds, T::kRows, T::kThreads, T::kStageBytes, T::kStep};
  for (uint32_t figure : all) st_global_u32(out++, figure);
}
template <class Type, uint32_t kIds>
DEVICE void figures_of(uint32_t *&out) {
  figures<matmul::Tile<Type, kIds, 8>>(out), figures<matmul::Tile<Type, kIds, 16>>(out);
  figures<matmul::Tile<Type, kIds, 32>>(out), figures<matmul::Tile<Type, kIds, 64>>(out);
}

// Ids, rows, threads, bytes of a stage and step of every tile that plan.rs names; then the fewest and the most stages.
KERNEL(probe_tiles, ProbeParams, 1, 1) {
  uint32_t *out = params.out;
  figures_of<matmul::Bf16Weights, 64>(out), figures_of<matmul::Bf16Weights, 128>(out);
  figures<matmul::Tile<matmul::Bf16Weights, 128, 128>>(out);
  figures_of<matmul::W8A8, 64>(out), figures_of<matmul::W8A8, 128>(out), figures<matmul::Tile<matmul::W8A8, 128, 128>>(out);
  figures_of<matmul::W8A16<Bf16>, 64>(out), figures_of<matmul::W8A16<Bf16>, 128>(out);
  st_global_u32(out, matmul::kMinStages), st_global_u32(out + 1, matmul::kMaxStages);
}
