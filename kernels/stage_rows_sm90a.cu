// Rows picked by index -> the order in which wgmma_matmul copies them to shared memory, as they are or
// quantised to int8:
//     [tiles of tile_rows rows][columns of 128 bytes of k][tile_rows][128 bytes, swizzled]
// The product then needs neither indices nor cases for alignment or the end of k: one bulk copy brings a
// stage's rows. A block has a row. Rows behind the last, rows with a bad index and bytes behind the end of k
// are zeros.
#include "hopper/packed.cuh"
#include "matmul/quantize.cuh"
#include "step.cuh"

namespace {

using namespace int8_rows;

// What a block knows of its row.
struct Row {
  const StageRowsParams &p;
  const uint8_t *from;
  uint32_t hidden;  // elements of the row; 0 where its index is bad
  bool aligned;

  DEVICE Row(const StageRowsParams &p) : p(p) {
    const uint32_t row = blockIdx.x, number = matmul::row_number(p.rows, row, p.row_count);
    const bool there = number != matmul::kNoRow;
    if (threadIdx.x == 0 && row < p.row_count) {
      st_global_u32(p.status + row, p.status_before | (there ? 0 : LMHEAD_STATUS_BAD_INDEX));
      if (p.bars) st_global_u32(p.bars + row, 0);
    }
    from = static_cast<const uint8_t *>(p.rows.data) + (there ? number * p.rows.pitch : 0);
    hidden = there ? p.hidden : 0;
    aligned = (uint64_t(p.rows.data) | p.rows.pitch) % 16 == 0;
  }

  // Stores 16 bytes, the row's piece number `piece`.
  DEVICE void store(uint32_t columns, uint32_t piece, const U32x4 &v) const {
    const uint32_t tile = blockIdx.x / p.tile_rows, row = blockIdx.x % p.tile_rows;
    const uint64_t column = (uint64_t(tile) * columns + piece / 8) * p.tile_rows * kRowBytes;
    st_global_v4(p.out + column + piece_address(0, row, piece % 8), v);
  }
};

DEVICE void stage_as_they_are(const StageRowsParams &p) {
  const Row row(p);
  const uint32_t columns = hopper::columns_of<2>(p.hidden);
  for (uint32_t piece = threadIdx.x; piece < 8 * columns; piece += kThreads) {
    const uint32_t bytes = matmul::piece_bytes<2>(8 * piece, row.hidden);
    const uint8_t *from = row.from + 16 * uint64_t(piece);
    U32x4 v = {0, 0, 0, 0};
    if (bytes) v = row.aligned && bytes == 16 ? ld_global_v4(from) : matmul::load_halves(from, bytes);
    row.store(columns, piece, v);
  }
}

template <class Type>
DEVICE void stage_quantised(Type type, const StageRowsParams &p) {
  const Row row(p);
  const uint32_t columns = hopper::columns_of<1>(p.hidden);
  const Scale scale = Scale::of(largest_magnitude(type, row.from, row.hidden, row.aligned));
  if (threadIdx.x == 0 && blockIdx.x < p.row_count) st_global_f32(p.scales + blockIdx.x, scale.value);
  float v[kPiece];
  for (uint32_t n = threadIdx.x; n < 8 * columns; n += kThreads) {
    uint32_t words[4] = {};
    if (!scale.zeros && n * kPiece < row.hidden) {
      piece(type, row.from, n * kPiece, row.hidden, row.aligned, v);
      quantize_piece(v, scale, words);
    }
    row.store(columns, n, {words[0], words[1], words[2], words[3]});
  }
}

}  // namespace

STEP_KERNEL(stage_rows, StageRowsParams, 256, 4) { stage_as_they_are(params); }
STEP_KERNEL(stage_rows_int8_bf16, StageRowsParams, 256, 4) { stage_quantised(Bf16{}, params); }
STEP_KERNEL(stage_rows_int8_f16, StageRowsParams, 256, 4) { stage_quantised(F16{}, params); }
STEP_KERNEL(stage_rows_int8_f32, StageRowsParams, 256, 4) { stage_quantised(F32{}, params); }
