// The shared-memory code of the answer kernels, deliberately wrong: n[0] selects the mistake, 0 is correct.
#include "answers/best.cuh"
#include "probe.h"

using namespace answers;

// 64 threads, `in` has 64 words; shared memory: two lists of candidates, then 8 bins of 8 bytes. Out: the
// best three words of each warp, then of both, and how many words have each value of the last three bits.
KERNEL(broken_answers, ProbeParams, 64, 1) {
  const uint32_t how = params.n[0], t = threadIdx.x, warp = t / 32, lane = t % 32;
  const uint32_t bins = dynamic_shared() + 2 * Best::kBytes;
  const uint32_t word = ld_global_u32(params.in + t);
  const auto list = [](uint32_t warp) { return dynamic_shared() + warp * Best::kBytes; };
  Best best(list(warp), 3);
  for (uint32_t turn = 0; turn < 2; ++turn) {
    best.count = 0, best.bar = 0;
    if (how != 6 || lane < 16) best.offer(true, word, t);
    best.keep();
    if (lane < 3) st_global_u32(params.out + 3 * warp + lane, ld_shared_v2(best.at(lane)).y);
    if (how != 2) bar_warp_sync();  // before the next row's candidates replace them
  }
  if (how != 1) barrier_sync_all();
  if (warp == 0) {
    const U32x2 theirs = lane < 3 ? ld_shared_v2(list(1) + 8 * lane) : U32x2{0, 0};
    best.offer(lane < 3, theirs.x, theirs.y);
    best.keep();
    if (lane < 3) st_global_u32(params.out + 6 + lane, ld_shared_v2(best.at(lane)).y);
  }

  if (t < 8) st_shared_v2(bins + 8 * t, {0, 0});
  if (how != 3) barrier_sync_all();
  const uint32_t bin = bins + 8 * (word % 8);
  if (how == 5) {
    const U32x2 sum = ld_shared_v2(bin);
    st_shared_v2(bin, {sum.x + 1, sum.y});
  } else {
    atom_shared_add_u64(bin, 1);
  }
  if (how != 4) barrier_sync_all();
  if (t < 8) st_global_u32(params.out + 16 + t, ld_shared_u32(bins + 8 * t));
  if (how == 7) atom_shared_add_u64(bin + 4, 1);  // not aligned
}

// Best::replace of answers/best.cuh. 32 threads, `in` has 96 words, offered in three turns; out: the value
// and id of the best.
KERNEL(broken_replace, ProbeParams, 32, 1) {
  const uint32_t how = params.n[0], lane = threadIdx.x;
  Best best(dynamic_shared(), 1);
  for (uint32_t turn = 0; turn < 3; ++turn) {
    const uint32_t id = 32 * turn + lane, bits = ld_global_u32(params.in + id);
    const bool has = key_of(bits, id) >= best.bar;
    if (!vote_any(has)) continue;
    const uint32_t value = ordered(mov_f32_b32(bits)), most = redux_max_u32(has ? value : 0);
    const bool largest = has && value == most;
    // 1: the highest of equal ids
    const uint32_t own = how == 1 ? redux_max_u32(largest ? id : 0) : ~redux_max_u32(largest ? ~id : 0);
    // 2: all lanes that have the value
    if (how == 2 ? largest : has && id == own) st_shared_v2(best.at(0), {bits, id});
    if (how != 3) bar_warp_sync();
    best.bar = uint64_t(how == 4 ? 0 : most) << 32 | ~own;  // 4: no bar for the next turn
  }
  const U32x2 found = ld_shared_v2(best.at(0));
  if (lane < 2) st_global_u32(params.out + lane, lane ? found.y : found.x);
}
