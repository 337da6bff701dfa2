// Reads an array and nothing else: how fast weights can come from memory at best. Benches compare the
// products with it.
//     out[0] += sum of all words, modulo 2^32, so that no load can be left out
#include "params.h"
#include "step.cuh"

namespace {

using namespace ptx;

constexpr uint32_t kThreads = 512, kInFlight = 8;  // vectors of 16 bytes that a thread waits for at once

DEVICE uint32_t sum(const U32x4 &v) { return v.x + v.y + v.z + v.w; }

}  // namespace

STEP_KERNEL(read_stream, ReadStreamParams, 512, 2) {
  const uint8_t *from = static_cast<const uint8_t *>(params.data);
  uint32_t total = 0;
  for (uint64_t i = uint64_t(blockIdx.x) * kThreads * kInFlight + threadIdx.x; i < params.vectors;
       i += uint64_t(gridDim.x) * kThreads * kInFlight) {
    U32x4 v[kInFlight];
#pragma unroll
    for (uint32_t j = 0; j < kInFlight; ++j) {
      const uint64_t at = i + j * kThreads;
      v[j] = {0, 0, 0, 0};
      if (at < params.vectors) v[j] = ld_global_nc_no_allocate_v4(from + 16 * at);
    }
#pragma unroll
    for (uint32_t j = 0; j < kInFlight; ++j) total += sum(v[j]);
  }
#pragma unroll
  for (uint32_t lanes = 16; lanes; lanes /= 2) total += shfl_bfly(total, lanes);
  if (lane_id() == 0) atom_add_u32(params.out, total);
}
