// The main loop of the matmul kernels with one mistake each, which the emulated device or the result must
// show. `how` selects the mistake, 0 is the correct kernel.
#include "broken_matmul.h"
#include "matmul/matmul.cuh"

using namespace matmul;

namespace {

// Sources of weights and rows, with mistakes.
template <class T>
DEVICE void find_weights_or_not(const MatmulParams &p, uint32_t how, const TileCoord &at, Sources<T> &from) {
  find_weights<T>(p, at, from);
  const uint32_t row = threadIdx.x / 8, vector = threadIdx.x % 8;
  if (how == 20)  // ids beyond the last are loaded like the others
    for (uint32_t n = 0; n < T::kWeightCopies; ++n)
      from.weights[n] = static_cast<const uint8_t *>(p.weights.data) +
                        (at.first_id + row + n * T::kWeightRowsApart) * p.weights.pitch + vector * 16;
  if (how == 23) from.weights_to = row * kRowBytes + vector * 16;  // no swizzle
}
template <class T>
DEVICE void find_rows_or_not(const MatmulParams &p, uint32_t how, const TileCoord &at, Sources<T> &from) {
  find_rows<T>(p, at, from);
  if (how == 24)  // a bad index is used like a good one
    for (uint32_t n = 0; n < T::kRowCopies; ++n)
      if (from.any_row && !from.row_there[n])
        from.row_there[n] = true,
        from.rows[n] = static_cast<const uint8_t *>(p.rows.data) + kNoRow * p.rows.pitch;
}

// Whether the stage from k0 on is complete.
template <class T>
DEVICE bool whole(const MatmulParams &p, uint32_t how, uint32_t k0) {
  return k0 + T::kStep <= p.hidden || how == 21;
}

// Whether this thread copies its vector at all: if it does not write zeros beyond k, data of an earlier stage
// stays.
template <class T>
DEVICE bool copies(const MatmulParams &p, uint32_t how, uint32_t k0) {
  return how != 22 || k0 + threadIdx.x % 8 * 16 / T::Type::kWeightBytes < p.hidden;
}

// load_stage of tile.cuh, and its commit.
template <class T>
DEVICE void load(const MatmulParams &p, uint32_t how, Sources<T> &from, uint32_t stage, uint32_t k0) {
  if (k0 < p.hidden && copies<T>(p, how, k0)) {
    load_weights<T>(p, from, stage, k0, whole<T>(p, how, k0));
    load_rows<T>(p, from, stage, k0, whole<T>(p, how, k0));
    if (how == 27)  // the same weights again
      for (uint32_t n = 0; n < T::kWeightCopies; ++n) from.weights[n] -= kRowBytes;
  }
  if (how != 6) cp_async_commit_group();
}

// run of matmul.cuh.
template <class T>
DEVICE void walk(const MatmulParams &p, uint32_t how) {
  const TileCoord at = tile_coord<T>(p, blockIdx.x);
  Ring<T::kStageBytes> ring(p.stages);
  const Fragments lane = fragments<T>();
  const uint32_t ahead = (p.stages - 1) * T::kStep;
  Sources<T> from;
  Accumulators<T> d = {};

  find_weights_or_not<T>(p, how, at, from);
  for (uint32_t k = 0, stage = ring.first; k < ahead; k += T::kStep, stage += T::kStageBytes)
    if (k < p.hidden && copies<T>(p, how, k)) load_weights<T>(p, from, stage, k, whole<T>(p, how, k));
  const auto wait = [how] {
    if (how != 30 && (how != 32 || threadIdx.x == 0)) griddepcontrol_wait();
  };
  if (how == 33)
    st_global_u32(p.logits.status + threadIdx.x % p.row_count,
                  0);  // before the kernel that stores it has ended
  if (how != 31) wait();
  find_rows_or_not<T>(p, how, at, from);
  for (uint32_t k = 0, stage = ring.first; k < ahead; k += T::kStep, stage += T::kStageBytes) {
    if (k < p.hidden && copies<T>(p, how, k)) load_rows<T>(p, from, stage, k, whole<T>(p, how, k));
    if (how != 6) ring.commit();
  }
  if (how == 31) wait();  // after the loads of rows were issued
  for (uint32_t k = 0; k < p.hidden; k += T::kStep) {
    wait_for_all_but(ring.pending + (how == 2));
    if (how == 5) load<T>(p, how, from, ring.fill, k + ahead);  // before the others have read that stage
    if (how != 3) barrier_sync_all();
    // 4: into the stage that is read next.
    if (how != 5) load<T>(p, how, from, how == 4 ? ring.read : ring.fill, k + ahead);
    multiply<T>(d, lane.in(ring.read));
    ring.advance();
    if (how == 28 && ring.read == ring.first) ring.read += T::kStageBytes;  // the first stage is left out
  }
  if (how != 10) barrier_sync_all();
  dequant_bias<T>(p, at, d);
  if (how != 11) barrier_sync_all();
  if (p.softcap != 0) {
    softcap<T>(p, at);
    if (how != 12) barrier_sync_all();
  }
  if (p.adjustments.logit_bias_offsets) {
    adjust<T>(p, at);
    if (how != 13) barrier_sync_all();
  }
  if (p.adjustments.temperatures) {
    mask_temperature<T>(p, at, p.adjustments.logit_bias_offsets != nullptr);
    if (how != 14 && how != 51) barrier_sync_all();
  }
  MatmulParams out = p;
  TileCoord left = at;
  if (how == 40 || how == 62) left.end_id = at.first_id + T::kBlockN;  // ids beyond the last, too
  if (p.partials.draws) {
    if (how == 50) out.row_count = at.first_row + T::kBlockM;  // rows beyond the last, too
    if (how == 52) out.partials.first_id += 4;
    draw<T>(out, at);
    return;
  }
  if (p.partials.data) {
    if (how == 61) out.partials.first_id += 64;             // ties are decided by other ids
    if (how == 63) out.partials.targets += 1;               // the targets of the next row
    const uint64_t stride = answers::partial_bytes(1, p.partials.target_count);
    count_greater<T>(out, left, p.partials.data + at.first_id / T::kBlockN * p.row_count * stride, stride, 1);
    return;
  }
  store<T>(out, left, F32{}, out.logits.data);
}

}  // namespace

KERNEL(broken_matmul, BrokenMatmulParams, 128, 1) {
  walk<Tile<Bf16Weights, 64, 16>>(params.product, params.how);
}
KERNEL(broken_quant_matmul, BrokenMatmulParams, 128, 1) {
  walk<Tile<W8A8, 64, 16>>(params.product, params.how);
}
