// Rows picked by index, one behind the other, as they are. A block has a row.
#include "matmul/tile.cuh"

using namespace ptx;

KERNEL(pack_rows, PackRowsParams, 256, 4) {
  const uint32_t row = blockIdx.x, number = matmul::row_number(params.rows, row, params.row_count);
  const bool there = number != matmul::kNoRow;
  if (threadIdx.x == 0) st_global_u32(params.status + row, there ? 0 : LMHEAD_STATUS_BAD_INDEX);
  const uint8_t *from =
      static_cast<const uint8_t *>(params.rows.data) + (there ? number * params.rows.pitch : 0);
  uint8_t *to = params.out + uint64_t(row) * params.row_bytes;
  const bool aligned =
      (uint64_t(params.rows.data) | params.rows.pitch | uint64_t(params.out) | params.row_bytes) % 16 == 0;
  if (aligned) {
    for (uint32_t at = 16 * threadIdx.x; at < params.row_bytes; at += 16 * blockDim.x)
      st_global_v4(to + at, there ? ld_global_v4(from + at) : U32x4{});
  } else {
    for (uint32_t at = 2 * threadIdx.x; at < params.row_bytes; at += 2 * blockDim.x)
      st_global_u16(to + at, there ? ld_global_nc_u16(from + at) : uint16_t(0));
  }
}
