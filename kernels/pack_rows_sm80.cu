// Copies rows picked by index, unchanged, into consecutive rows. A block has a row.
#include "matmul/tile.cuh"
#include "step.cuh"

using namespace ptx;

STEP_KERNEL(pack_rows, PackRowsParams, 256, 4) {
  const uint32_t row = blockIdx.x, number = matmul::row_number(params.rows, row, params.row_count);
  const bool there = number != matmul::kNoRow;
  if (threadIdx.x == 0)
    st_global_u32(params.status + row, params.status_before | (there ? 0 : LMHEAD_STATUS_BAD_INDEX));
  const uint8_t *from =
      static_cast<const uint8_t *>(params.rows.data) + (there ? number * params.rows.pitch : 0);
  uint8_t *to = params.out + row * params.out_pitch;
  if ((uint64_t(params.out) | params.out_pitch) % 16 == 0) {
    const bool aligned = (uint64_t(params.rows.data) | params.rows.pitch) % 16 == 0;
    for (uint32_t at = 16 * threadIdx.x; at < params.row_bytes; at += 16 * blockDim.x) {
      const uint32_t left = params.row_bytes - at;
      U32x4 vector = {};
      if (there)
        vector = aligned && left >= 16 ? ld_global_v4(from + at) : matmul::load_halves(from + at, left);
      st_global_v4(to + at, vector);
    }
  } else {
    for (uint32_t at = 2 * threadIdx.x; at < params.row_bytes; at += 2 * blockDim.x)
      st_global_u16(to + at, there ? ld_global_u16(from + at) : uint16_t(0));
  }
}
