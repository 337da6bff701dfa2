// Parts of the matmul kernels by themselves.
#include "matmul/matmul.cuh"
#include "probe.h"

using namespace ptx;

// out[i] = tanh of the n[2] floats with bits n[0] + i·n[1]; 64 a thread.
KERNEL(probe_tanh, ProbeParams, 256, 1) {
  for (uint32_t j = 0; j < 64; ++j) {
    const uint32_t i = (blockIdx.x * 64 + j) * 256 + threadIdx.x;
    if (i < params.n[2])
      st_global_f32(params.out + i, matmul::tanh(mov_f32_b32(params.n[0] + i * params.n[1])));
  }
}

template <uint32_t kBlockN, uint32_t kBlockM>
DEVICE void store_coord(const MatmulParams &p, uint32_t block, uint32_t *out) {
  const matmul::TileCoord at =
      matmul::tile_coord<matmul::Tile<matmul::Bf16Weights, kBlockN, kBlockM>>(p, block);
  st_global_v2(out, {at.first_id, at.first_row});
}

// in: n[0] block numbers; n[1], n[2]: rows and ids; n[3]: rows of a tile (8: with 64 ids, 128: with 128).
// out: first id and first row of each.
KERNEL(probe_tile_coord, ProbeParams, 256, 1) {
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= params.n[0]) return;
  MatmulParams p = {};
  p.row_count = params.n[1], p.vocab = params.n[2];
  if (params.n[3] == 8)
    store_coord<64, 8>(p, ld_global_u32(params.in + i), params.out + 2 * i);
  else
    store_coord<128, 128>(p, ld_global_u32(params.in + i), params.out + 2 * i);
}

// The sizes of every tile, in the order in which the kernel files name them: here each of their lines becomes
// a specialisation instead of a kernel.
namespace figures {

template <uint32_t n>
struct Of;

template <class T>
DEVICE void store(uint32_t *out, uint32_t blocks) {
  const uint32_t all[8] = {T::kBlockN, T::kBlockM,     T::kThreads, T::kWarpN,
                           T::kWarpM,  T::kStageBytes, T::kStep,    blocks};
  for (uint32_t figure : all) st_global_u32(out++, figure);
}

constexpr uint32_t kBefore = __COUNTER__ + 1;

}  // namespace figures

#undef MATMUL_KERNEL
#define MATMUL_KERNEL(name, Type, block_n, block_m, blocks) \
  FIGURES(__COUNTER__ - figures::kBefore, Type, block_n, block_m, blocks)
#define FIGURES(n, Type, block_n, block_m, blocks)                               \
  template <>                                                                    \
  struct figures::Of<n> {                                                        \
    static void store(uint32_t *out) {                                           \
      figures::store<matmul::Tile<matmul::Type, block_n, block_m>>(out, blocks); \
    }                                                                            \
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

// The number of tiles; then for every tile ids, rows, threads, a warp's ids and rows, bytes of a stage, step
// and wanted blocks.
KERNEL(probe_tiles, ProbeParams, 1, 1) {
  st_global_u32(params.out, figures::kTiles);
  figures::store_all(params.out + 1);
}
