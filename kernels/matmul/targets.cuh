// The logits of given ids of each row, computed before the product whose logits are compared with them: by
// the product's walk and its chain of instructions, over rows of weights that are picked by id.
//
// A block has eight rows and eight targets of each: 64 rows of weights, target j of row r in column 8j + r.
// Only accumulators whose column belongs to their own row are used; the others cost instructions, but no
// bytes of memory.
#pragma once
#include "hopper/packed.cuh"
#include "matmul/matmul.cuh"

namespace matmul {

template <class Type>
using TargetTile = Tile<Type, LMHEAD_TARGET_ROWS * LMHEAD_TARGETS, LMHEAD_TARGET_ROWS>;

// No target, or one of another shard.
constexpr uint32_t kNoTarget = 0xffffffffu;

// A block's first row, and its first target of each row.
struct TargetCoord {
  uint32_t row, target;
};

// The target of a column, as an id of the shard.
template <class T>
DEVICE uint32_t target_of(const TargetLogitsParams &p, const TargetCoord &at, uint32_t column) {
  const uint32_t row = at.row + column % T::kBlockM, target = at.target + column / T::kBlockM;
  if (row >= p.product.row_count || target >= p.per_row) return kNoTarget;
  const uint32_t id = ld_global_u32(p.targets + uint64_t(row) * p.per_row + target) - p.first_id;
  return id < p.product.vocab ? id : kNoTarget;
}

// A target's logit from its accumulator.
template <class T>
DEVICE float logit_of(const MatmulParams &p, uint32_t row, uint32_t id, typename T::Type::Accumulator sum) {
  const LogitAdjustments &a = p.adjustments;
  float row_scale = 1, weight_scale = 1;
  if constexpr (T::Type::kRowScales) row_scale = load_f32(p.row_scales + row);
  if constexpr (T::Type::kWeightScales) weight_scale = load_f32(p.weights.scales + id);
  const float bias = p.weights.bias ? load_f32(p.weights.bias + id) : -0.0f;
  float v = dequantise<T>(sum, row_scale, weight_scale, bias, p.softcap != 0 ? 1.0f : p.scale);
  if (p.softcap != 0) v = softcap(p, v);
  if (a.logit_bias_offsets) {
    const uint32_t end = ld_global_u32(a.logit_bias_offsets + row + 1);
    uint32_t entry = first_not_below(a.logit_bias_ids, ld_global_u32(a.logit_bias_offsets + row), end, id);
    for (; entry < end && ld_global_u32(a.logit_bias_ids + entry) == id; ++entry)
      v = add_rn_f32(v, load_f32(a.logit_bias_values + entry));
  }
  if (a.count_offsets) {
    const Penalties penalties = load_penalties(a, row);
    const uint32_t end = ld_global_u32(a.count_offsets + row + 1);
    uint32_t entry = first_not_below(a.count_ids, ld_global_u32(a.count_offsets + row), end, id);
    for (; entry < end && ld_global_u32(a.count_ids + entry) == id; ++entry)
      v = penalise(v, ld_global_u32(a.counts + entry), penalties);
  }
  if (a.allowed && !(ld_global_u32(a.allowed + row * a.allowed_pitch + id / 32) >> id % 32 & 1))
    v = -kInfinity;
  const float temperature = a.temperatures ? load_f32(a.temperatures + row) : 0.0f;
  return temperature != 0 ? div_rn_f32(v, temperature) : v;
}

// Called by all threads of the block.
template <class T>
DEVICE void run_targets(const TargetLogitsParams &params) {
  constexpr uint32_t kBytes = T::Type::kWeightBytes;
  const MatmulParams &p = params.product;
  const uint32_t parts = (params.per_row + LMHEAD_TARGETS - 1) / LMHEAD_TARGETS;
  const TargetCoord at = {blockIdx.x / parts * T::kBlockM, blockIdx.x % parts * LMHEAD_TARGETS};
  // With this first_id find_rows sets no status: that is the product's.
  const TileCoord of_rows = {kNoTarget, at.row, kNoTarget, 0};
  const uint32_t ahead = (LMHEAD_TARGET_STAGES - 1) * T::kStep;
  const uint32_t column = threadIdx.x / 8, vector = threadIdx.x % 8, lane = lane_id(),
                 warp = threadIdx.x / 32;
  static_assert(uint32_t(LMHEAD_MIN_STAGES) <= LMHEAD_TARGET_STAGES &&
                    LMHEAD_TARGET_STAGES <= uint32_t(LMHEAD_MAX_STAGES),
                "what a ring takes");
  Ring<T::kStageBytes> ring(LMHEAD_TARGET_STAGES);
  const Fragments fragment = fragments<T>();

  wait_for_kernel_before();
  Sources<T> from;
  find_rows<T>(p, of_rows, from);
  from.weights_to = vector_address(0, column, vector);
  bool there[T::kWeightCopies];
#pragma unroll
  for (uint32_t n = 0; n < T::kWeightCopies; ++n) {
    const uint32_t id = target_of<T>(params, at, column + n * T::kWeightRowsApart);
    there[n] = id != kNoTarget;
    from.weights[n] = hopper::weight_vector(p.weights, there[n] ? id : 0, vector);
  }
  // Bytes from an id's 128 bytes of k to the next, packed or not.
  const uint32_t next_k = p.weights.packed ? hopper::kBlockBytes : kRowBytes;
  // Where there is no target, zeros are stored and nothing is read.
  const auto load = [&](uint32_t stage, uint32_t k0) {
    if (k0 < p.hidden) {
      const uint32_t bytes = vector_bytes<kBytes>(k0 + vector * (16 / kBytes), p.hidden);
#pragma unroll
      for (uint32_t n = 0; n < T::kWeightCopies; ++n) {
        cp_async_cg_16(stage + from.weights_to + n * T::kWeightRowsApart * kRowBytes, from.weights[n],
                       there[n] ? bytes : 0);
        from.weights[n] += next_k;
      }
      load_rows<T>(p, from, stage, k0, k0 + T::kStep <= p.hidden);
    }
    ring.commit();
  };

#pragma unroll 1
  for (uint32_t k = 0, stage = ring.first; k < ahead; k += T::kStep, stage += T::kStageBytes) load(stage, k);
  Accumulators<T> d = {};
#pragma unroll 1
  for (uint32_t k = 0; k < p.hidden; k += T::kStep) {
    ring.acquire();
    load(ring.fill, k + ahead);
    multiply<T>(d, fragment.in(ring.read));
    ring.advance();
  }

  // A lane has the accumulators of two of the warp's sixteen columns, lane / 4 and lane / 4 + 8, with rows
  // lane % 4 * 2 and the next.
  const uint32_t r = lane / 4, row = at.row + r;
  if (r / 2 != lane % 4 || row >= p.row_count) return;
#pragma unroll 1
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t target = at.target + 2 * warp + half;
    if (target >= params.per_row) continue;
    const uint32_t id = target_of<T>(params, at, (2 * warp + half) * T::kBlockM + r);
    const auto sum = half ? (r % 2 ? d[0][0][3] : d[0][0][2]) : (r % 2 ? d[0][0][1] : d[0][0][0]);
    const float logit = id != kNoTarget ? logit_of<T>(p, row, id, sum) : mov_f32_b32(0x7fc00000u);
    st_global_f32(params.out + uint64_t(row) * params.per_row + target, logit);
  }
}

}  // namespace matmul

// A kernel for weights and rows of one type.
#define TARGETS_KERNEL(name, Type)                                                            \
  KERNEL(name, TargetLogitsParams, (matmul::TargetTile<matmul::Type>::kThreads), 4) {         \
    matmul::run_targets<matmul::TargetTile<matmul::Type>>(params);                            \
  }
