// Parts of the matmul kernels by themselves.
#include "matmul/matmul.cuh"
#include "probe.h"

using namespace ptx;

// out[i] = tanh of the float with bits n[0] + i·n[1], n[2] of them; 64 a thread.
KERNEL(probe_tanh, ProbeParams, 256, 1) {
  for (uint32_t j = 0; j < 64; ++j) {
    const uint32_t i = (blockIdx.x * 64 + j) * 256 + threadIdx.x;
    if (i < params.n[2])
      st_global_f32(params.out + i, matmul::tanh(mov_f32_b32(params.n[0] + i * params.n[1])));
  }
}

template <uint32_t kIds, uint32_t kRows>
DEVICE void place_of(const MatmulParams &p, uint32_t block, uint32_t *out) {
  const matmul::Place at = matmul::place<matmul::Tile<matmul::Bf16Weights, kIds, kRows>>(p, block);
  st_global_v2(out, {at.first_id, at.first_row});
}

// in: numbers of blocks, n[0] of them; n[1], n[2]: rows and ids; n[3]: rows of a tile: 8 have 64 ids, 128
// have 128. out: first id, first row of each.
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

// The figures of every tile, in the order in which the kernels' own files name them: here each of their lines
// becomes a specialisation instead of a kernel.
namespace figures {

template <uint32_t n>
struct Of;

template <class T>
DEVICE void store(uint32_t *out, uint32_t blocks) {
  const uint32_t all[8] = {T::kIds,      T::kRows,       T::kThreads, T::kWarpIds,
                           T::kWarpRows, T::kStageBytes, T::kStep,    blocks};
  for (uint32_t figure : all) st_global_u32(out++, figure);
}

constexpr uint32_t kBefore = __COUNTER__ + 1;

}  // namespace figures

#undef MATMUL_KERNEL
#define MATMUL_KERNEL(name, Type, ids, rows, blocks) \
  FIGURES(__COUNTER__ - figures::kBefore, Type, ids, rows, blocks)
#define FIGURES(n, Type, ids, rows, blocks)                             \
  template <>                                                           \
  struct figures::Of<n> {                                               \
    static void store(uint32_t *out) {                                  \
      figures::store<matmul::Tile<matmul::Type, ids, rows>>(out, blocks); \
    }                                                                   \
  };
#include "fp8_matmul_sm80.cu"
#include "gather_matmul_sm80.cu"
#include "quant_matmul_sm80.cu"
#include "w8a16_matmul_sm80.cu"

namespace figures {

constexpr uint32_t kTiles = __COUNTER__ - kBefore;

template <uint32_t n = 0>
DEVICE void store_all(uint32_t *out) {
  Of<n>::store(out);
  if constexpr (n + 1 < kTiles) store_all<n + 1>(out + 8);
}

}  // namespace figures

// How many tiles there are, the fewest and the most stages; then of every tile ids, rows, threads, a warp's
// ids and rows, bytes of a stage, step and wanted blocks.
KERNEL(probe_tiles, ProbeParams, 1, 1) {
  st_global_u32(params.out, figures::kTiles);
  st_global_u32(params.out + 1, matmul::kMinStages), st_global_u32(params.out + 2, matmul::kMaxStages);
  figures::store_all(params.out + 3);
}
