// Rows picked by index -> int8 with one scale each, by the rule of promise 2: scale = absmax / 127; out = the
// nearest integer to x / scale, ties to even, within ±127. A scale below 2^-126 becomes 1, with zeros; a row
// with NaN or infinity gets scale NaN, with zeros. A block has a row.
#include "matmul/quantize.cuh"
#include "step.cuh"

namespace {

using namespace int8_rows;

template <class Type>
DEVICE void quantize(Type type, const QuantizeRowsParams &p) {
  const uint32_t row = blockIdx.x;
  const uint32_t number = matmul::row_number(p.rows, row, p.row_count);
  if (threadIdx.x == 0)
    st_global_u32(p.status + row, p.status_before | (number == matmul::kNoRow ? LMHEAD_STATUS_BAD_INDEX : 0));
  if (threadIdx.x == 0 && p.bars) st_global_u32(p.bars + row, 0);
  const uint8_t *from =
      static_cast<const uint8_t *>(p.rows.data) + (number == matmul::kNoRow ? 0 : number * p.rows.pitch);
  const uint32_t hidden = number == matmul::kNoRow ? 0 : p.hidden;
  const bool aligned = (uint64_t(p.rows.data) | p.rows.pitch) % 16 == 0;

  const Scale scale = Scale::of(largest_magnitude(type, from, hidden, aligned));
  if (threadIdx.x == 0) st_global_f32(p.scales + row, scale.value);

  float v[kChunk];
  int8_t *out = p.out + row * p.out_pitch;
  for (uint32_t k = threadIdx.x * kChunk; k < p.out_pitch; k += kThreads * kChunk) {
    uint32_t words[4] = {};
    if (!scale.zeros && k < hidden) {
      load_chunk(type, from, k, hidden, aligned, v);
      quantize_chunk(v, scale, words);
    }
    st_global_v4(out + k, {words[0], words[1], words[2], words[3]});
  }
}

}  // namespace

STEP_KERNEL(quantize_rows_bf16, QuantizeRowsParams, 256, 4) { quantize(Bf16{}, params); }
STEP_KERNEL(quantize_rows_f16, QuantizeRowsParams, 256, 4) { quantize(F16{}, params); }
STEP_KERNEL(quantize_rows_f32, QuantizeRowsParams, 256, 4) { quantize(F32{}, params); }
