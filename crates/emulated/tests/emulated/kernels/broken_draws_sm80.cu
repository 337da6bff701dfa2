// The shared-memory code of finish_draw, deliberately wrong: n[0] selects the mistake, 0 is correct.
#include "answers/best.cuh"
#include "answers/bins.cuh"
#include "answers/noise.cuh"
#include "probe.h"

using namespace answers;

// 64 threads, `in` has 64 logits; shared memory: bins, what two warps have seen, what they have drawn. Out:
// the order key of the third best, the id drawn from these three with seed n[1], and the largest logit's key.
KERNEL(broken_draws, ProbeParams, 64, 1) {
  const uint32_t how = params.n[0], t = threadIdx.x, warp = t / 32, lane = t % 32;
  const uint32_t bins = dynamic_shared(), seen = bins + 8 * 256, places = seen + 16;
  const float logit = mov_f32_b32(ld_global_u32(params.in + t));
  const uint32_t key = ordered(logit);
  uint32_t largest = key;
  const auto join = [&](uint32_t other) { largest = other > largest ? other : largest; };
  for (uint32_t distance = 16; distance; distance /= 2) join(shfl_bfly(largest, distance));
  if (lane == 0) st_shared_u32(seen + 4 * warp, largest);
  if (how != 1) barrier_sync_all();
  join(ld_shared_u32(seen)), join(ld_shared_u32(seen + 4));

  uint32_t last = 0;
  uint64_t left = 3;
  for (int32_t shift = 24; shift >= 0; shift -= 8) {
    if (how != 2) barrier_sync_all();  // others read what the last round left
    for (uint32_t bin = t; bin < 256; bin += 64) st_shared_v2(bins + 8 * bin, {0, 0});
    if (how != 3) barrier_sync_all();
    const bool counts = shr_u64(key ^ last, uint32_t(shift + 8)) == 0 || how == 12;
    if (how != 6 || lane < 16) add_to_bins(bins, counts, key >> shift & 255, 1);
    if (how != 4) barrier_sync_all();
    const Reached found = find_bin(bins, [&](uint64_t) { return left; });
    left = found.left;
    last |= found.bin << shift;
  }

  const DrawScale scale = DrawScale::of(1);
  const bool kept = how == 10 ? key > last : key >= last;
  const uint32_t words[1] = {noise_word(params.n[1], 0, t)};
  Draw drawn;
  const float all[1] = {logit}, some[1] = {kept ? logit : -__builtin_inff()};
  if (how == 11) drawn.screen(scale, all, words);  // also raised by logits that are not kept
  drawn.take(scale, some, words, t);
  drawn.merge_lanes();
  drawn.merge_warps(2, how == 5 ? bins : places);
  if (t == 0) {
    st_global_u32(params.out, last);
    st_global_u32(params.out + 1, drawn.id);
    st_global_u32(params.out + 2, largest);
  }
}
