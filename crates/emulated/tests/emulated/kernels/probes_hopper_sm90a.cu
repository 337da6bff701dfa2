// Sizes of the tiles of wgmma_matmul.
#include "hopper/tile.cuh"
#include "probe.h"

namespace {

template <class T>
DEVICE void figures(uint32_t *&out) {
  const uint32_t all[5] = {T::kIds, T::kRows, T::kThreads, T::kRing, T::kStageBytes};
  for (uint32_t figure : all) ptx::st_global_u32(out++, figure);
}

template <class Type>
DEVICE void figures_of(uint32_t *&out) {
  figures<hopper::Tile<Type, 64, 8, 4>>(out), figures<hopper::Tile<Type, 64, 16, 4>>(out);
  figures<hopper::Tile<Type, 64, 32, 4>>(out), figures<hopper::Tile<Type, 64, 64, 2>>(out);
  figures<hopper::Tile<Type, 128, 32, 2>>(out), figures<hopper::Tile<Type, 128, 64, 2>>(out);
  figures<hopper::Tile<Type, 128, 128, 1>>(out);
}

}  // namespace

// Ids, rows, threads, bytes before the ring and bytes of a stage of every tile that plan/hopper.rs names;
// then the most stages.
KERNEL(probe_hopper_tiles, ProbeParams, 1, 1) {
  uint32_t *out = params.out;
  figures_of<matmul::Bf16Weights>(out), figures_of<matmul::F16Weights>(out), figures_of<matmul::W8A8>(out);
  ptx::st_global_u32(out, hopper::Tile<matmul::W8A8, 64, 8, 4>::kMostStages);
}

// Where `weight_piece` finds piece n[4] of ids 0 to n[0], counted from the weights' first byte: of rows n[1]
// bytes apart, packed where n[2] says so.
KERNEL(probe_weight_piece, ProbeParams, 1, 1) {
  const uint8_t *base = reinterpret_cast<const uint8_t *>(params.in);
  const WeightMatrix weights = {base, params.n[1], nullptr, nullptr, params.n[2]};
  for (uint32_t id = 0; id < params.n[0]; ++id)
    ptx::st_global_u32(params.out + id, uint32_t(hopper::weight_piece(weights, id, params.n[4]) - base));
}
