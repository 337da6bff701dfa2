// Rows picked by index -> the order in which wgmma_matmul copies them to shared memory, as they are or
// quantised to int8:
//     [tiles of block_m rows][columns of 128 bytes of k][block_m][128 bytes, swizzled]
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

  // Loads 16 bytes of 16-bit elements, the row's vector number `vector`; zeros behind its end.
  DEVICE U32x4 load(uint32_t vector) const {
    const uint32_t bytes = matmul::vector_bytes<2>(8 * vector, hidden);
    const uint8_t *at = from + 16 * uint64_t(vector);
    if (!bytes) return {0, 0, 0, 0};
    return aligned && bytes == 16 ? ld_global_v4(at) : matmul::load_halves(at, bytes);
  }

  // Stores them.
  DEVICE void store(uint32_t columns, uint32_t vector, const U32x4 &v) const {
    const uint32_t tile = blockIdx.x / p.block_m, row = blockIdx.x % p.block_m;
    const uint64_t column = (uint64_t(tile) * columns + vector / 8) * p.block_m * kRowBytes;
    st_global_v4(p.out + column + vector_address(0, row, vector % 8), v);
  }
};

DEVICE void stage_as_they_are(const StageRowsParams &p) {
  const Row row(p);
  const uint32_t columns = hopper::columns_of<2>(p.hidden);
  for (uint32_t vector = threadIdx.x; vector < 8 * columns; vector += kThreads)
    row.store(columns, vector, row.load(vector));
}

// For 8-bit weights that are widened in registers: within 16 elements, those that an instruction multiplies
// by the weights of a thread's first halves, then those of its second (Consumer::multiply_widened).
DEVICE void stage_interleaved(const StageRowsParams &p) {
  const Row row(p);
  const uint32_t columns = 2 * hopper::columns_of<1>(p.hidden);
  for (uint32_t vector = 2 * threadIdx.x; vector < 8 * columns; vector += 2 * kThreads) {
    const U32x4 v = row.load(vector), w = row.load(vector + 1);
    row.store(columns, vector, {v.x, v.z, w.x, w.z});
    row.store(columns, vector + 1, {v.y, v.w, w.y, w.w});
  }
}

template <class Type>
DEVICE void stage_quantised(Type type, const StageRowsParams &p) {
  const Row row(p);
  const uint32_t columns = hopper::columns_of<1>(p.hidden);
  const Scale scale = Scale::of(largest_magnitude(type, row.from, row.hidden, row.aligned));
  if (threadIdx.x == 0 && blockIdx.x < p.row_count) st_global_f32(p.scales + blockIdx.x, scale.value);
  float v[kChunk];
  for (uint32_t n = threadIdx.x; n < 8 * columns; n += kThreads) {
    uint32_t words[4] = {};
    if (!scale.zeros && n * kChunk < row.hidden) {
      load_chunk(type, row.from, n * kChunk, row.hidden, row.aligned, v);
      quantize_chunk(v, scale, words);
    }
    row.store(columns, n, {words[0], words[1], words[2], words[3]});
  }
}

}  // namespace

STEP_KERNEL(stage_rows, StageRowsParams, 256, 4) { stage_as_they_are(params); }
STEP_KERNEL(stage_rows_interleaved, StageRowsParams, 256, 4) { stage_interleaved(params); }
STEP_KERNEL(stage_rows_int8_bf16, StageRowsParams, 256, 4) { stage_quantised(Bf16{}, params); }
STEP_KERNEL(stage_rows_int8_f16, StageRowsParams, 256, 4) { stage_quantised(F16{}, params); }
STEP_KERNEL(stage_rows_int8_f32, StageRowsParams, 256, 4) { stage_quantised(F32{}, params); }
