// How a tile of 128-byte rows lies in shared memory.
#pragma once
#include "ptx.cuh"

// A row of a tile is 128 bytes of k, the width of the widest swizzle: eight vectors of 16 bytes, vector c of
// row r at c ^ (r % 8). Eight rows read at the same k then touch all banks once. TMA and wgmma do the same by
// themselves.
constexpr uint32_t kRowBytes = 128;
DEVICE uint32_t vector_address(uint32_t tile, uint32_t row, uint32_t vector) {
  return tile + row * kRowBytes + ((vector ^ (row & 7)) << 4);
}
