// set_words, pack_rows and the walk of target_logits with one mistake each; `how` selects it, 0 is none.
#include "broken.h"
#include "matmul/targets.cuh"

using namespace ptx;

KERNEL(broken_set_words, Broken<SetWordsParams>, 256, 4) {
  const uint32_t how = params.how;
  if (how == 2) griddepcontrol_launch_dependents();  // the kernel behind begins too early
  wait_or_not(how);
  for (const WordsToSet &words : params.right.words) {
    if (!words.to && how != 3) continue;
    const uint64_t first = uint64_t(blockIdx.x) * 256 + threadIdx.x, apart = uint64_t(gridDim.x) * 256;
    uint64_t end = words.count + (how == 4);            // 4: one word behind the last
    if (how == 5) end = words.count / 256 * 256;        // 5: whole blocks of threads alone
    if (how == 6) end = end < apart ? end : apart;      // 6: a word for each thread and no more
    const uint64_t pitch = how == 7 ? 4 : words.pitch;  // 7: words side by side
    for (uint64_t i = first; i < end; i += apart) st_global_u32(words.to + i * pitch, words.value);
  }
}

KERNEL(broken_pack_rows, Broken<PackRowsParams>, 256, 4) {
  const PackRowsParams &p = params.right;
  const uint32_t how = params.how, row = blockIdx.x;
  wait_or_not(how);
  const uint32_t number = matmul::row_number(p.rows, row, p.row_count);
  const bool found = number != matmul::kNoRow, there = found || how == 2;  // 2: an index that is not checked
  if (threadIdx.x == 0)
    st_global_u32(p.status + row, p.status_before | (found ? 0 : LMHEAD_STATUS_BAD_INDEX));
  const uint8_t *from = static_cast<const uint8_t *>(p.rows.data) + (there ? number * p.rows.pitch : 0);
  uint8_t *to = p.out + row * p.out_pitch;
  // 3: a row without a source keeps what it had.
  if (!there && how == 3) return;
  if ((uint64_t(p.out) | p.out_pitch) % 16 == 0 || how == 4) {  // 4: vectors, however `out` lies
    // 5: only the first row has been looked at.
    const bool aligned = (uint64_t(p.rows.data) | (how == 5 ? 0 : p.rows.pitch)) % 16 == 0;
    for (uint32_t at = 16 * threadIdx.x; at < p.row_bytes; at += 16 * blockDim.x) {
      const uint32_t left = p.row_bytes - at;
      U32x4 vector = {};
      if (there)
        vector = aligned && (left >= 16 || how == 6) ? ld_global_v4(from + at)  // 6: behind the row's end
                                                     : matmul::load_halves(from + at, left);
      if (left >= 16 || how != 7) st_global_v4(to + at, vector);  // 7: the last bytes are left out
    }
  } else {
    for (uint32_t at = 2 * threadIdx.x; at < p.row_bytes; at += 2 * blockDim.x)
      st_global_u16(to + at, there ? ld_global_u16(from + at) : uint16_t(0));
  }
}

namespace {

using namespace matmul;

using T = TargetTile<Bf16Weights>;

// target_of of matmul/targets.cuh.
DEVICE uint32_t target_or_not(const TargetLogitsParams &p, uint32_t how, const TargetCoord &at,
                              uint32_t column) {
  const uint32_t row = at.row + column % T::kBlockM, target = at.target + column / T::kBlockM;
  if (row >= p.product.row_count && how != 5) return kNoTarget;  // 5: rows behind the last
  if (target >= p.per_row) return kNoTarget;
  const uint32_t id = ld_global_u32(p.targets + uint64_t(row) * p.per_row + target) - p.first_id;
  return id < p.product.vocab + (how == 6) ? id : kNoTarget;  // 6: the next shard's first id
}

// run_targets of matmul/targets.cuh.
DEVICE void walk_targets(const TargetLogitsParams &params, uint32_t how) {
  const MatmulParams &p = params.product;
  const uint32_t parts = (params.per_row + LMHEAD_TARGETS - 1) / LMHEAD_TARGETS;
  const TargetCoord at = {blockIdx.x / parts * T::kBlockM, blockIdx.x % parts * LMHEAD_TARGETS};
  const uint32_t ahead = (LMHEAD_TARGET_STAGES - 1) * T::kStep;
  const uint32_t column = threadIdx.x / 8, vector = threadIdx.x % 8, lane = lane_id(),
                 warp = threadIdx.x / 32;
  Ring<T::kStageBytes> ring(LMHEAD_TARGET_STAGES);
  const Fragments fragment = fragments<T>();
  Sources<T> from;
  bool there[T::kWeightCopies];
  const auto find_targets = [&] {
    from.weights_to = vector_address(0, column, vector);
    for (uint32_t n = 0; n < T::kWeightCopies; ++n) {
      const uint32_t id = target_or_not(params, how, at, column + n * T::kWeightRowsApart);
      there[n] = id != kNoTarget;
      from.weights[n] = hopper::weight_vector(p.weights, there[n] ? id : 0, vector);
    }
  };
  if (how == 2) find_targets();  // targets that the kernel before may still write
  wait_or_not(how);
  find_rows<T>(p, {kNoTarget, at.row, kNoTarget, 0}, from);
  if (how != 2) find_targets();
  const auto load = [&](uint32_t stage, uint32_t k0) {
    if (k0 < p.hidden) {
      const uint32_t bytes = how == 7 ? 16 : vector_bytes<2>(k0 + vector * 8, p.hidden);  // 7: whole vectors
      for (uint32_t n = 0; n < T::kWeightCopies; ++n) {
        cp_async_cg_16(stage + from.weights_to + n * T::kWeightRowsApart * kRowBytes, from.weights[n],
                       there[n] ? bytes : 0);
        from.weights[n] += kRowBytes;
      }
      load_rows<T>(p, from, stage, k0, k0 + T::kStep <= p.hidden);
    }
    ring.commit();
  };
  for (uint32_t k = 0, stage = ring.first; k < ahead; k += T::kStep, stage += T::kStageBytes) load(stage, k);
  Accumulators<T> d = {};
  for (uint32_t k = 0; k < p.hidden; k += T::kStep) {
    if (how == 3) load(ring.fill, k + ahead);  // others still read that stage
    if (how != 4)
      ring.acquire();
    else
      wait_for_all_but(ring.pending);  // for the thread's own copies
    if (how != 3) load(ring.fill, k + ahead);
    multiply<T>(d, fragment.in(ring.read));
    ring.advance();
  }
  const uint32_t r = lane / 4, row = at.row + r;
  if (r / 2 != lane % 4 || row >= p.row_count) return;
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t target = at.target + 2 * warp + half;
    if (target >= params.per_row) continue;
    const uint32_t id = target_or_not(params, how, at, (2 * warp + half) * T::kBlockM + r);
    const uint32_t of = how == 8 ? lane % 2 : r % 2;  // 8: the accumulator of the row beside it
    const float sum = half ? (of ? d[0][0][3] : d[0][0][2]) : (of ? d[0][0][1] : d[0][0][0]);
    const bool own = id != kNoTarget || how == 9;  // 9: a target of another shard has a logit
    const float logit = own ? logit_of<T>(p, row, own ? id : 0, sum) : mov_f32_b32(0x7fc00000u);
    st_global_f32(params.out + uint64_t(row) * params.per_row + target, logit);
  }
}

}  // namespace

KERNEL(broken_targets, Broken<TargetLogitsParams>, T::kThreads, 4) { walk_targets(params.right, params.how); }
