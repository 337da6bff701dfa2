// The kernels of capacity steps (kernels/capacity_sm80.cu), deliberately wrong: n[0] selects the mistake, 0
// is correct.
#include "ptx.cuh"
#include "probe.h"

using namespace ptx;

// 64 threads, `in` has 64 words, 8 bytes of dynamic shared memory. Out: out[0] incremented, its old value in
// out[1 + lane]; in out[40] the smallest of the words.
KERNEL(broken_capacity, ProbeParams, 64, 1) {
  const uint32_t how = params.n[0], t = threadIdx.x, lane = t % 32, warp = t / 32;
  if (warp == 0) {
    st_global_u32(params.out + 1 + lane, ld_global_u32(params.out));
    if (how != 1) bar_warp_sync();  // after the lanes have read it
    if (lane == 0) st_global_u32(params.out, ld_global_u32(params.out) + 1);
  }
  uint32_t least = ld_global_u32(params.in + t);
  for (uint32_t distance = 16; distance; distance /= 2) {
    if (how == 2 && lane >= 16) break;  // only part of the warp goes on
    const uint32_t other = shfl_bfly(least, distance);
    least = other < least ? other : least;
  }
  if (lane == 0) st_shared_u32(dynamic_shared() + 4 * warp, least);
  if (how != 3) barrier_sync_all();
  const uint32_t a = ld_shared_u32(dynamic_shared()), b = ld_shared_u32(dynamic_shared() + 4);
  if (t == 0) st_global_u32(params.out + 40, a < b ? a : b);
}
