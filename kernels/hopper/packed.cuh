// Weights as wgmma_matmul has them in device memory (WeightMatrix::packed): what a stage needs of 64 ids is
// consecutive bytes, swizzled already, so that one bulk copy brings it.
//
//     [blocks of 64 ids][columns of 128 bytes of k][64 ids][128 bytes, swizzled]
#pragma once
#include "swizzle.cuh"

namespace hopper {

using namespace ptx;

constexpr uint32_t kPackedIds = 64, kBlockBytes = kPackedIds * kRowBytes;  // 64 ids x 128 bytes of k
// The fewest ids that can be copied: the swizzle's pattern repeats after them.
constexpr uint32_t kGroupIds = 8, kGroupBytes = kGroupIds * kRowBytes, kBlockGroups = kPackedIds / kGroupIds;

// Columns of 128 bytes that a row takes; the last may not be full.
template <uint32_t kElementBytes>
DEVICE uint32_t columns_of(uint32_t hidden) {
  return (hidden * kElementBytes + kRowBytes - 1) / kRowBytes;
}

// Where a column of a block of 64 ids begins; the block's further columns follow.
DEVICE const uint8_t *packed_column(const WeightMatrix &weights, uint32_t block, uint32_t column) {
  const uint32_t columns = uint32_t(weights.pitch / kRowBytes);
  return static_cast<const uint8_t *>(weights.data) + (uint64_t(block) * columns + column) * kBlockBytes;
}

// Vector `vector` (16 bytes) of the weights of one id, however they lie: for kernels that read single rows.
DEVICE const uint8_t *weight_vector(const WeightMatrix &weights, uint32_t id, uint32_t vector) {
  if (!weights.packed) return static_cast<const uint8_t *>(weights.data) + id * weights.pitch + vector * 16;
  return packed_column(weights, id / kPackedIds, vector / 8) + vector_address(0, id % kPackedIds, vector % 8);
}

}  // namespace hopper
