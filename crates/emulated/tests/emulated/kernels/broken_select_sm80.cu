// The kernels of selections and lists, deliberately wrong: n[0] selects the mistake, 0 is correct.
#include "answers/lists.cuh"
#include "probe.h"

using namespace answers;

// 64 threads, `in` has 64 words. Shared memory: 64 keys of 8 bytes, 8 bins of 4, the sums of both warps, what
// one thread has found, what one warp knows. Out: the words in descending order, how many have each value of
// the last three bits, the thread with the fifth odd word, the thread that each thread reports, the number of
// odd words, and these in any order.
KERNEL(broken_select, ProbeParams, 64, 1) {
  const uint32_t how = params.n[0], t = threadIdx.x, warp = t / 32, lane = t % 32;
  const uint32_t keys = dynamic_shared(), bins = keys + 512, sums = bins + 32, found = sums + 8,
                 known = found + 4;
  const uint32_t word = ld_global_u32(params.in + t), odd = word % 2;

  // A histogram of a digit.
  if (t < 8) st_shared_u32(bins + 4 * t, 0);
  if (how != 1) barrier_sync_all();
  atom_shared_add_u32(bins + 4 * (word % 8) + (how == 2 ? 2 : 0), 1);
  if (how != 3) barrier_sync_all();
  if (t < 8) st_global_u32(params.out + 64 + t, ld_shared_u32(bins + 4 * t));

  // The thread with the fifth odd word, by prefix sums over lanes and warps.
  uint32_t upto = odd;
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t lower = shfl_up(upto, distance);
    upto += lane >= distance ? lower : 0;
  }
  if (lane == 31) st_shared_u32(sums + 4 * warp, upto);
  if (how != 4) barrier_sync_all();
  upto += warp ? ld_shared_u32(sums) : 0;
  if (upto == 5 && odd) st_shared_u32(found, t);
  if (how != 5) barrier_sync_all();
  st_global_u32(params.out + 72 + t, ld_shared_u32(found));

  // The odd words, unordered.
  const uint32_t votes = how == 6 && lane < 16 ? 0 : vote_ballot(odd);
  uint32_t place = lane == 0 ? atom_add_u32(params.out + 136, popc_b32(votes)) : 0;
  place = shfl_idx(place, 0) + popc_b32(votes & ((1u << lane) - 1));
  if (odd) st_global_u32(params.out + 137 + place + (how == 7 ? 64 : 0), word);

  // All words, sorted.
  st_shared_v2(keys + 8 * t + (how == 8 ? 256 : 0), {t, word});
  const auto read = [](uint32_t from) {
    const U32x2 v = ld_shared_v2(from);
    return uint64_t(v.y) << 32 | v.x;
  };
  for (uint32_t length = 2; length <= 64; length *= 2) {
    for (uint32_t distance = length / 2; distance; distance /= 2) {
      if (how != 9 || distance == length / 2) barrier_sync_all();
      if (t >= 32) continue;
      const uint32_t n = 2 * t - (t & (distance - 1)), a = keys + 8 * n, b = a + 8 * distance;
      const uint64_t first = read(a), second = read(b);
      if ((first < second) == ((n & length) == 0)) {
        st_shared_v2(a, {uint32_t(second), uint32_t(second >> 32)});
        st_shared_v2(b, {uint32_t(first), uint32_t(first >> 32)});
      }
    }
  }
  if (how != 10) barrier_sync_all();
  st_global_u32(params.out + t, ld_shared_v2(keys + 8 * t).y);

  // A rank among others, and a value that a warp passes to all.
  const uint32_t others = how == 11 ? 1000 : 64;
  const uint32_t above = count_above(word, others, [&](uint32_t i) { return ld_global_u32(params.in + i); });
  if (t == 0) st_shared_u32(known, above <= 64);
  if (how != 12) barrier_sync_all();
  if (!ld_shared_u32(known)) trap();
}
