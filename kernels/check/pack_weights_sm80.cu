// Packs weights that were made on the device for a test or a bench: from row-major into the layout of
// wgmma_matmul (WeightMatrix in params.h). Real heads are packed by the host when they are loaded
// (backend/device/hopper.rs).
#include "step.cuh"
#include "swizzle.cuh"

namespace {

using namespace ptx;

constexpr uint32_t kVectors = kRowBytes / 16, kBlockN = 64;  // vectors of a column, ids of a packed block

// The first `bytes` bytes of `v`, then zeros.
DEVICE U32x4 beginning(const U32x4 &v, uint32_t bytes) {
  const auto word = [&](uint32_t w, uint32_t first) {
    return bytes >= first + 4 ? w : bytes <= first ? 0 : w & ((1u << 8 * (bytes - first)) - 1);
  };
  return {word(v.x, 0), word(v.y, 4), word(v.z, 8), word(v.w, 12)};
}

}  // namespace

// What it uses of PackRowsParams: rows.data and rows.pitch, aligned to 16 bytes; rows.source_rows, the number
// of ids; out_pitch, the bytes of a row's columns, a multiple of 128; row_count, the ids rounded up to an
// even number of blocks. No status is stored.
STEP_KERNEL(pack_weights, PackRowsParams, 256, 4) {
  const uint8_t *from = static_cast<const uint8_t *>(params.rows.data);
  const uint32_t columns = uint32_t(params.out_pitch / kRowBytes), last = params.rows.source_rows - 1;
  const uint64_t vectors = uint64_t(params.row_count) * columns * kVectors, step = uint64_t(gridDim.x) * 256;
  for (uint64_t i = uint64_t(blockIdx.x) * 256 + threadIdx.x; i < vectors; i += step) {
    const uint32_t tile = uint32_t(i / (kVectors * kBlockN)), row = uint32_t(i / kVectors) % kBlockN;
    const uint32_t vector = (uint32_t(i) % kVectors) ^ (row % 8),
                   at = tile % columns * kRowBytes + 16 * vector;
    const uint32_t place = tile / columns * kBlockN + row, id = place < last ? place : last;
    U32x4 v = {};
    if (at < params.row_bytes)
      v = beginning(ld_global_v4(from + id * params.rows.pitch + at), params.row_bytes - at);
    st_global_v4(params.out + 16 * i, v);
  }
}
