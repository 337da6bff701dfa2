// Checks a whole product of integers without another product: by a random combination of its columns
// (Freivalds 1977).
//     sum over ids of r(id)·logits[row, id] =
//     sum over k of rows[row, k]·(sum over ids of r(id)·weights[id, k])
// All of it modulo 2^64, where nothing is rounded. A wrong logit changes the left side by r(id) times its
// error.
#include "check/values.cuh"
#include "hopper/packed.cuh"
#include "step.cuh"

namespace {

using namespace check;

constexpr uint32_t kThreads = 256, kBlockN = 64;  // ids of a block of the first kernel

template <uint32_t kBytes>
DEVICE void project(const ProjectWeightsParams &p, uint32_t vector, uint32_t first_id) {
  constexpr uint32_t kEach = 16 / kBytes;
  uint64_t sums[kEach] = {};
  const uint32_t end = p.vocab - first_id < kBlockN ? p.vocab - first_id : kBlockN;
  for (uint32_t i = 0; i < end; ++i) {
    const uint32_t id = first_id + i;
    const U32x4 v = ld_global_v4(hopper::weight_vector(p.weights, id, vector));
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    uint64_t factor = random(p.seed, id);
    if (p.weights.scales) {
      const float scale = mov_f32_b32(ld_global_u32(p.weights.scales + id));
      factor *= uint64_t(int64_t(cvt_rzi_s32_f32(scale)));
    }
#pragma unroll
    for (uint32_t j = 0; j < kEach; ++j)
      sums[j] += factor * uint64_t(int64_t(integer_of(p.kind, words[j * kBytes / 4], j * kBytes % 4)));
  }
#pragma unroll
  for (uint32_t j = 0; j < kEach; ++j)
    // Behind `hidden` there is padding.
    if (vector * kEach + j < p.hidden) atom_add_u64(p.projection + vector * kEach + j, sums[j]);
}

DEVICE int64_t index_of(const RowMatrix &rows, uint32_t i) {
  if (!rows.indices) return i;
  if (rows.index_bytes == 4) return int32_t(ld_global_u32(static_cast<const int32_t *>(rows.indices) + i));
  const U32x2 v = ld_global_v2(static_cast<const int64_t *>(rows.indices) + i);
  return int64_t(uint64_t(v.y) << 32 | v.x);
}

// One element, at any alignment.
DEVICE int32_t element(uint32_t kind, const uint8_t *row, uint32_t k) {
  const uint64_t at = reinterpret_cast<uint64_t>(row) + uint64_t(k) * element_bytes(kind);
  return integer_of(kind, ld_global_u32(reinterpret_cast<const void *>(at & ~uint64_t(3))), uint32_t(at & 3));
}

}  // namespace

// Grid: 256 vectors of 16 bytes of a row, times groups of 64 ids.
STEP_KERNEL(project_weights, ProjectWeightsParams, 256, 2) {
  const uint32_t bytes = element_bytes(params.kind), vectors = (params.hidden * bytes + 15) / 16;
  const uint32_t across = (vectors + kThreads - 1) / kThreads;
  const uint32_t vector = blockIdx.x % across * kThreads + threadIdx.x,
                 first_id = blockIdx.x / across * kBlockN;
  if (vector >= vectors || first_id >= params.vocab) return;
  bytes == 1 ? project<1>(params, vector, first_id) : project<2>(params, vector, first_id);
}

// Grid: `parts` blocks for each row.
STEP_KERNEL(project_rows, ProjectRowsParams, 256, 2) {
  const uint32_t row = blockIdx.x / params.parts;
  const uint32_t first = blockIdx.x % params.parts * kThreads + threadIdx.x;
  const uint32_t step = params.parts * kThreads;
  if (row >= params.row_count) return;
  uint64_t sum = 0;
  const int64_t index = index_of(params.rows, row);
  if (index >= 0 && index < int64_t(params.rows.source_rows)) {  // another index is a row of zeros
    const uint8_t *data = static_cast<const uint8_t *>(params.rows.data);
    const uint8_t *from = data + uint64_t(index) * params.rows.pitch;
    for (uint32_t k = first; k < params.hidden; k += step) {
      const U32x2 v = ld_global_v2(params.projection + k);
      sum += uint64_t(int64_t(element(params.kind, from, k))) * (uint64_t(v.y) << 32 | v.x);
    }
  }
  const uint8_t *logits = reinterpret_cast<const uint8_t *>(params.logits) + row * params.pitch;
  for (uint32_t id = first; id < params.vocab; id += step) {
    const float logit = mov_f32_b32(ld_global_u32(logits + 4 * uint64_t(id)));
    const int32_t whole = cvt_rzi_s32_f32(logit);
    // NaN, fractions and what is beyond int32 change by the conversion: they make the row wrong.
    if (!(cvt_rn_f32_s32(whole) == logit)) sum += random(~params.seed, id);
    sum -= random(params.seed, id) * uint64_t(int64_t(whole));
  }
  atom_add_u64(params.difference + row, sum);
}
