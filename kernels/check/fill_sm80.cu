// Fills an array with values of a seed: operands of tests and benches, and the poison that outputs hold
// before.
#include "check/values.cuh"
#include "step.cuh"

namespace {

using namespace check;

// For each element of the word: sign and mantissa are kept, and three random bits and a base make the
// exponent.
DEVICE uint64_t floats(uint32_t kind, uint64_t word) {
  switch (kind) {
    case LMHEAD_FILL_BF16:
      return (word & 0x807f807f807f807fu) |
             (((word >> 5) & 0x0007000700070007u) + 0x0077007700770077u) << 7;
    case LMHEAD_FILL_F16:
      return (word & 0x83ff83ff83ff83ffu) |
             (((word >> 7) & 0x0007000700070007u) + 0x0007000700070007u) << 10;
    case LMHEAD_FILL_F32:
      return (word & 0x807fffff807fffffu) |
             (((word >> 11) & 0x0000000700000007u) + 0x0000007700000077u) << 23;
    // The highest bit of the exponent is cleared: both NaNs have it set.
    case LMHEAD_FILL_E4M3: return word & 0xbfbfbfbfbfbfbfbfu;
    default: return word;
  }
}

// Four random bits of each element make an integer from -8 to 7; each p.row-th element is 127.
DEVICE uint64_t integers(const FillParams &p, uint64_t place, uint64_t word) {
  const uint32_t bytes = element_bytes(p.kind);
  uint64_t out = 0;
  for (uint32_t byte = 0; byte < 8; byte += bytes) {
    const uint32_t element = uint32_t(place) * (8 / bytes) + byte / bytes;
    const bool first = p.row != 0 && element % p.row == 0;
    const int32_t v = first ? 127 : int32_t(word >> 8 * byte & 15) - 8;
    out |= uint64_t(bits_of(p.kind, v)) << 8 * byte;
  }
  return out;
}

DEVICE uint64_t word_at(const FillParams &p, uint64_t place) {
  if (p.kind == LMHEAD_FILL_BYTES) return (p.seed & 0xff) * 0x0101010101010101u;
  const uint64_t word = random(p.seed, place);
  return p.kind < LMHEAD_FILL_SMALL_I8 ? floats(p.kind, word) : integers(p, place, word);
}

}  // namespace

STEP_KERNEL(fill, FillParams, 256, 4) {
  uint8_t *out = static_cast<uint8_t *>(params.out);
  const uint64_t step = uint64_t(gridDim.x) * 256;
  for (uint64_t i = uint64_t(blockIdx.x) * 256 + threadIdx.x; i < params.vectors; i += step) {
    const uint64_t place = 2 * (params.first + i);
    const uint64_t low = word_at(params, place), high = word_at(params, place + 1);
    st_global_v4(out + 16 * i, {uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32)});
  }
}
