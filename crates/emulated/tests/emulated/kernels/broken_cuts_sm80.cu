// The kernels of cuts, deliberately wrong: n[0] selects the mistake, 0 is correct.
#include "answers/bins.cuh"
#include "probe.h"

using namespace answers;

// 64 threads, `in` has the histograms of two shards over 32 bins, with weights of 3. Shared memory: 256 bins
// of 8 bytes, and for each warp whether its shard has at most 200. Out: whether both have, the bin in which
// 29 is reached from above, the rest, and how many ties each shard keeps.
KERNEL(broken_cuts, ProbeParams, 64, 1) {
  const uint32_t how = params.n[0], t = threadIdx.x, warp = t / 32, lane = t % 32;
  const uint32_t bins = dynamic_shared(), fits_at = bins + 8 * 256;
  const auto word = [&](uint32_t shard, uint32_t bin) { return ld_global_u32(params.in + 32 * shard + bin); };

  // Each warp has a shard.
  uint32_t all = word(warp, lane);
  for (uint32_t distance = 16; distance; distance /= 2)
    if (how != 1 || lane < 16) all += shfl_bfly(all, distance);
  if (lane == 0) st_shared_u32(fits_at + 4 * warp, all <= 200);
  for (uint32_t bin = t; bin < 256; bin += 64) {
    const uint32_t sum = bin < 32 ? word(0, bin) + word(1, bin) : 0;
    st_shared_v2(bins + 8 * bin + (how == 2 ? 64 : 0), {sum, 0});
  }
  if (how != 3) barrier_sync_all();
  const bool fits = ld_shared_u32(fits_at) && ld_shared_u32(fits_at + 4);
  const Reached found = find_bin(bins, [&](uint64_t) { return 29; });
  if (t) return;
  st_global_u32(params.out, fits);
  st_global_u32(params.out + 1, found.bin);
  st_global_u32(params.out + 2, uint32_t(found.left));
  // The lowest ids come first: the first shard keeps as many ties as it has.
  uint32_t left = how == 10 ? uint32_t(found.left) / 3 : uint32_t(found.left + 2) / 3;
  for (uint32_t shard = 0; shard < 2; ++shard) {
    const uint32_t ties = word(shard, found.bin) / 3, kept = left < ties ? left : ties;
    st_global_u32(params.out + 3 + shard, kept);
    if (how != 11) left -= kept;
  }
}
