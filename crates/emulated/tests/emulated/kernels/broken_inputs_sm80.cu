// The kernels of inputs in device memory, deliberately wrong: n[0] selects the mistake, 0 is correct.
#include "answers/padded.cuh"
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

// 64 threads, `in` has 64 words: 16 targets of 8 bytes, then 32 ids of entries. Out: the targets for a
// vocabulary of 50 in the form that ranks exchange, a status word shared by each target and the one eight
// later, the ids in ascending order, whether one is above 900 and one above 990, and of the ids 5 rows in 2
// parts of 4 entries.
KERNEL(broken_inputs, ProbeParams, 64, 1) {
  const uint32_t how = params.n[0], t = threadIdx.x;
  uint32_t *targets = params.out, *status = params.out + 16, *places = params.out + 24;
  // Each warp has eight targets.
  const uint32_t n = t / 32 * 8 + t % 32;
  if (t % 32 < 8 || how == 1) {
    const U32x2 id = ld_global_v2(params.in + 2 * n + (how == 2));
    const bool there = id.y == 0 && id.x < 50;
    if (how == 3) st_global_u32(targets + id.x, id.x);  // the address uses an id that was not checked
    st_global_u32(targets + n, there ? id.x : UINT32_MAX);
    if (!there) atom_or_u32(status + n % 8, LMHEAD_STATUS_BAD_INDEX);
  }

  const auto any_of_block = [how](bool mine, bool first) {
    const bool warps = vote_any(mine);
    if (how != 5 || first) barrier_sync_all();
    if (lane_id() == 0) st_shared_u32(dynamic_shared() + 4 * (threadIdx.x / 32), warps);
    if (how != 4) barrier_sync_all();
    return ld_shared_u32(dynamic_shared()) | ld_shared_u32(dynamic_shared() + 4);
  };
  const uint32_t id = t < 32 ? ld_global_u32(params.in + 32 + t) : 0;
  if (t >= 32) st_global_u32(places + t - 32, UINT32_MAX);
  const uint32_t large = any_of_block(id > 900, true);
  if (t < 32) {
    uint32_t place = 0;
    for (uint32_t other = 0; other < 32; ++other) {
      const uint32_t theirs = ld_global_u32(params.in + 32 + other);
      place += theirs < id || (theirs == id && other < t);
    }
    st_global_u32(places + place, id);
  }
  const uint32_t larger = any_of_block(id > 990, false);
  if (t == 0) st_global_u32(params.out + 56, large), st_global_u32(params.out + 57, larger);
  if (t < 8) {
    const uint32_t row = answers::own_row(t, 5, 2, 4);
    const bool there = row != UINT32_MAX || how == 6;
    st_global_u32(params.out + 58 + t, there ? ld_global_u32(params.in + 32 + row) : 0);
  }
}
