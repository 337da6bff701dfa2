// Counts the elements of a matrix whose bits are not those of another, and notes some of them. Blocks take
// turns at chunks of 256 elements.
#include "check/values.cuh"
#include "step.cuh"

namespace {

using namespace check;

DEVICE uint32_t load(const uint8_t *row, uint32_t column, uint32_t bytes) {
  const uint8_t *at = row + uint64_t(column) * bytes;
  if (bytes == 4) return ld_global_u32(at);
  // A 16-bit element is loaded with the word around it.
  const uint64_t address = reinterpret_cast<uint64_t>(at);
  return ld_global_u32(reinterpret_cast<const void *>(address & ~uint64_t(3))) >> (address & 2) * 8 & 0xffff;
}

DEVICE uint32_t rounded(uint32_t dtype, uint32_t bits) {
  const float v = mov_f32_b32(bits);
  return dtype == LMHEAD_DTYPE_BF16  ? cvt_rn_bf16_f32(v).bits
         : dtype == LMHEAD_DTYPE_F16 ? cvt_rn_f16_f32(v).bits
                                     : bits;
}

DEVICE void note(const CompareParams &p, const Mismatch &one) {
  const uint32_t place = atom_add_u32(&p.found->noted, 1);
  if (place < LMHEAD_MISMATCHES)
    st_global_v4(p.found->some + place, {one.row, one.column, one.want, one.got});
}

}  // namespace

STEP_KERNEL(count_mismatches, CompareParams, 256, 4) {
  const uint32_t bytes = params.dtype == LMHEAD_DTYPE_F32 ? 4 : 2;
  const uint32_t poison = bytes == 4 ? 0xffffffffu : 0xffffu;
  const uint32_t want_bytes = params.want_dtype == LMHEAD_DTYPE_F32 ? 4 : 2;
  // The block's next chunk, row by row, without a division for each.
  const uint32_t blocks_of_row = (params.columns + 255) / 256;
  uint32_t row = blockIdx.x / blocks_of_row, place = blockIdx.x % blocks_of_row;
  const uint32_t rows_on = gridDim.x / blocks_of_row, places_on = gridDim.x % blocks_of_row;
  const auto advance = [&] {
    row += rows_on, place += places_on;
    if (place >= blocks_of_row) place -= blocks_of_row, ++row;
  };
  uint32_t count = 0;
  for (; row < params.rows; advance()) {
    const uint32_t column = place * 256 + threadIdx.x;
    if (column >= params.columns) continue;
    const uint8_t *got_row = static_cast<const uint8_t *>(params.got) + row * params.got_pitch;
    const uint32_t got = load(got_row, column, bytes);
    uint32_t want = poison;
    if (params.want) {
      const uint8_t *want_row = static_cast<const uint8_t *>(params.want) + row * params.want_pitch;
      want = load(want_row, column, want_bytes);
      if (params.want_dtype != params.dtype) want = rounded(params.dtype, want);
    }
    // Poison is what nobody has written: a mismatch even where it equals what was wanted. Only where `want`
    // is null poison itself is wanted.
    if (got == want && (got != poison || !params.want)) continue;
    ++count;
    note(params, {row, column, want, got});
  }
  if (count != 0) atom_add_u64(&params.found->count, count);
}
