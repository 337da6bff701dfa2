// Sizes of the tiles of wgmma_matmul, and the layout of packed weights.
#include "hopper/tile.cuh"
#include "probe.h"

namespace {

template <class T>
DEVICE void figures(uint32_t *&out) {
  const uint32_t all[5] = {T::kBlockN, T::kBlockM, T::kThreads, T::kRing, T::kStageBytes};
  for (uint32_t figure : all) ptx::st_global_u32(out++, figure);
}

// Figures of tiles with weights and rows of the same element size.
template <class Type>
DEVICE void figures_of_alike(uint32_t *&out) {
  figures<hopper::Tile<Type, 64, 8, 4>>(out), figures<hopper::Tile<Type, 64, 16, 4>>(out);
  figures<hopper::Tile<Type, 64, 32, 4>>(out), figures<hopper::Tile<Type, 64, 64, 2>>(out);
  figures<hopper::Tile<Type, 128, 32, 2>>(out), figures<hopper::Tile<Type, 128, 64, 2>>(out);
  figures<hopper::Tile<Type, 128, 128, 1>>(out), figures<hopper::Tile<Type, 256, 128, 1>>(out);
}

// Figures of tiles with 8-bit weights and 16-bit rows.
template <class Type>
DEVICE void figures_of_widened(uint32_t *&out) {
  figures<hopper::Tile<Type, 64, 32, 2>>(out), figures<hopper::Tile<Type, 64, 64, 2>>(out);
  figures<hopper::Tile<Type, 128, 8, 2>>(out), figures<hopper::Tile<Type, 128, 32, 2>>(out);
  figures<hopper::Tile<Type, 128, 64, 1>>(out), figures<hopper::Tile<Type, 128, 128, 1>>(out);
}

}  // namespace

// For every tile that plan/hopper.rs names: ids, rows, threads, bytes before the ring, bytes of a stage.
KERNEL(probe_hopper_tiles, ProbeParams, 1, 1) {
  uint32_t *out = params.out;
  figures_of_alike<matmul::Bf16Weights>(out), figures_of_alike<matmul::F16Weights>(out);
  figures_of_alike<matmul::W8A8>(out);
  figures_of_widened<matmul::W8A16<ptx::Bf16>>(out);
  figures_of_widened<matmul::W8A16<ptx::F16, matmul::E4m3>>(out);
}

// Where `weight_vector` finds vector n[4] of ids 0 to n[0], as an offset from the first byte of the weights,
// whose rows are n[1] bytes apart and which are packed if n[2] is set.
KERNEL(probe_weight_vector, ProbeParams, 1, 1) {
  const uint8_t *base = reinterpret_cast<const uint8_t *>(params.in);
  const WeightMatrix weights = {base, params.n[1], nullptr, nullptr, params.n[2]};
  for (uint32_t id = 0; id < params.n[0]; ++id)
    ptx::st_global_u32(params.out + id, uint32_t(hopper::weight_vector(weights, id, params.n[4]) - base));
}
