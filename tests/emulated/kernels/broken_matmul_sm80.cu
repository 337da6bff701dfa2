// The matmul kernels' walk with one mistake each: what the emulated device, or the result, must show. `how` 0 is the walk itself.
#include "broken_matmul.h"
#include "matmul/epilogue.cuh"

using namespace matmul;

namespace {

using T = Tile<Bf16Weights, 16>;

// load_stage of tile.cuh.
DEVICE void load(const MatmulParams &p, uint32_t how, const Place &at, uint32_t stage, uint32_t k0) {
  if (k0 < p.hidden) {
    for (uint32_t i = threadIdx.x; i < kIds * 8; i += T::kThreads) {
      const uint32_t row = i / 8, piece = i % 8, k = k0 + piece * 8, id = at.first_id + row;
      uint32_t bytes = id < p.vocab || how == 20 ? piece_bytes<2>(k, p.hidden) : 0;
      if (how == 21 && bytes) bytes = 16;    // the whole piece, also where the row ends in it
      if (how == 22 && !bytes) continue;     // nothing where there is nothing: no zeros either
      const uint8_t *weights = static_cast<const uint8_t *>(p.weights.data);
      const uint32_t to = how == 23 ? stage + row * kRowBytes + piece * 16 : piece_address(stage, row, piece);
      cp_async_cg_16(to, bytes ? weights + id * p.weights.pitch + k * 2 : weights, bytes);
    }
    for (uint32_t i = threadIdx.x; i < T::kRows * T::kRowPieces; i += T::kThreads) {
      const uint32_t row = i / T::kRowPieces, piece = i % T::kRowPieces, k = k0 + piece * 8;
      const uint32_t number = ld_shared_u32(dynamic_shared() + T::kRowNumbers + 4 * row);
      const uint32_t bytes = number != kNoRow || how == 24 ? piece_bytes<2>(k, p.hidden) : 0;
      if (how == 22 && !bytes) continue;
      const uint8_t *rows = static_cast<const uint8_t *>(p.rows.data);
      const uint8_t *from = bytes ? rows + number * p.rows.pitch + k * 2 : rows;
      const bool aligned = (uint64_t(p.rows.data) | p.rows.pitch) % 16 == 0;
      if (aligned || how == 25)
        cp_async_cg_16(row_piece<T>(stage, row, piece), from, bytes);
      else
        st_shared_v4(row_piece<T>(stage, row, piece), load_halves(from, bytes));
    }
  }
  if (how != 6) cp_async_commit_group();
}

}  // namespace

KERNEL(broken_matmul, BrokenMatmulParams, 128, 1) {
  const MatmulParams &p = params.product;
  const uint32_t how = params.how;
  const Place at = place<T>(p, blockIdx.x);
  const auto stage = [](uint32_t number) { return dynamic_shared() + number % T::kStages * T::kStageBytes; };
  Sums<T> d = {};

  number_rows<T>(p, at);
  if (how != 1) barrier_sync_all();
  for (uint32_t s = 0; s + 1 < T::kStages; ++s) load(p, how, at, stage(s), s * T::kStep);
  for (uint32_t s = 0; s * T::kStep < p.hidden; ++s) {
    const uint32_t ahead = s + T::kStages - 1;
    if (how == 2)
      cp_async_wait_group<T::kStages - 1>();
    else
      cp_async_wait_group<T::kStages - 2>();
    if (how == 5) load(p, how, at, stage(ahead), ahead * T::kStep);  // before the others have read that stage
    if (how != 3) barrier_sync_all();
    if (how == 4)
      load(p, how, at, stage(s), ahead * T::kStep);  // into the stage that is about to be read
    else if (how != 5)
      load(p, how, at, stage(ahead), ahead * T::kStep);
    multiply<T>(d, stage(s));
  }
  if (how != 10) barrier_sync_all();
  spread<T>(d);
  if (how != 11) barrier_sync_all();
  finish<T>(p, at);
  if (how != 12) barrier_sync_all();
  if (p.adjustments.addition_offsets) {
    adjust<T>(p, at);
    if (how != 13) barrier_sync_all();
  }
  store<T>(p, at);
}
