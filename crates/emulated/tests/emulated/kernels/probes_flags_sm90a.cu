// Flags between kernels of several devices, and bulk copies to several blocks.
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

namespace {

// Waits for a limited time, because the other block may have failed.
DEVICE void wait_for_flag(const uint32_t *flag, uint32_t least) {
  const uint64_t begin = globaltimer();
  while (ld_acquire_sys_u32(flag) < least)
    if (globaltimer() - begin > uint64_t(120) * 1000000000) trap();
}

}  // namespace

// Two blocks exchange 32 words, n[0] times. out: a flag and a counter of each block, the words of each, and
// what each lane has computed from the words received.
KERNEL(probe_flags, ProbeParams, 32, 1) {
  const uint32_t block = blockIdx.x, lane = lane_id();
  uint32_t *flags = params.out, *counters = params.out + 2, *words = params.out + 16;
  uint32_t v = 0;
  for (uint32_t round = 1; round <= params.n[0]; ++round) {
    // The other block has read what is overwritten.
    if (lane == 0) wait_for_flag(counters + block, 32 * (round - 1));
    bar_warp_sync();
    st_global_u32(words + 32 * block + lane, 3 * v + lane + block);
    bar_warp_sync();
    if (lane == 0) {
      st_release_sys_u32(flags + block, round);
      wait_for_flag(flags + (block ^ 1), round);
    }
    bar_warp_sync();
    v = ld_global_u32(words + 32 * (block ^ 1) + lane) + round;
    red_release_sys_add_u32(counters + (block ^ 1), 1);
  }
  st_global_u32(params.out + 80 + 32 * block + lane, v);
}

// Each block of a rank exchanges words with one of another rank's kernel, n[0] times; the other rank's blocks
// are counted from behind. in: the other rank's `out`, which this one stores to. n[1]: the longest wait for a
// flag, in milliseconds; n[2]: the rank; n[3]: 1: stores before the wait for the kernel before. out: 80 words
// of each block, which are its flag, in how many rounds words came, and, from 16 on, 32 words of the other
// rank for even and for odd rounds; behind them, what each lane has computed.
PEER_KERNEL(probe_peers, ProbeParams, 32) {
  const uint32_t lane = lane_id(), block = blockIdx.x;
  uint32_t *mine = params.out + 80 * block;
  uint32_t *theirs = const_cast<uint32_t *>(params.in) + 80 * (gridDim.x - 1 - block);
  if (params.n[3] == 1) st_global_u32(mine + 2, 0);
  griddepcontrol_wait();
  uint32_t v = 0, came = 1;
  for (uint32_t round = 1; came != 0 && round <= params.n[0]; ++round) {
    const uint32_t at = 16 + 32 * (round % 2) + lane;
    st_global_u32(theirs + at, 3 * v + lane + 7 * block + params.n[2]);
    bar_warp_sync();
    if (lane == 0) {
      st_release_sys_u32(theirs, round);
      const uint64_t begin = globaltimer();
      while (came != 0 && ld_acquire_sys_u32(mine) < round)
        came = globaltimer() - begin < uint64_t(params.n[1]) * 1000000;
    }
    came = shfl_idx(came, 0);
    if (came == 0) continue;
    bar_warp_sync();
    v = ld_global_u32(mine + at) + round;
    if (lane == 0) st_global_u32(mine + 1, round);
  }
  st_global_u32(params.out + 80 * gridDim.x + 32 * block + lane, v);
}

// One block stores n[0] words and sets a flag; another brings them to its shared memory by a bulk copy. out:
// the flag, the words from 16 on, and after them what arrived.
KERNEL(probe_flags_bulk, ProbeParams, 32, 1) {
  const uint32_t lane = lane_id(), count = params.n[0], s = dynamic_shared(), barrier = s + 4 * count;
  uint32_t *words = params.out + 16;
  if (blockIdx.x == 0) {
    for (uint32_t i = lane; i < count; i += 32) st_global_u32(words + i, ld_global_u32(params.in + i));
    bar_warp_sync();
    if (lane == 0) st_release_sys_u32(params.out, 1);
    return;
  }
  if (lane == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    wait_for_flag(params.out, 1);
    fence_proxy_async_global();
    mbarrier_arrive_expect_tx(barrier, 4 * count);
    bulk_load(s, words, 4 * count, barrier);
  }
  bar_warp_sync();
  while (!mbarrier_try_wait_parity(barrier, 0)) {
  }
  for (uint32_t i = lane; i < count; i += 32) st_global_u32(words + count + i, ld_shared_u32(s + 4 * i));
}

// A cluster of n[1] blocks: each copies its share of n[0] words to byte n[2] of every block's memory. out:
// each block's words.
KERNEL(probe_bulk_multicast, ProbeParams, 32, 1) {
  const uint32_t blocks = params.n[1], rank = cluster_block_rank(), bytes = 4 * params.n[0],
                 share = bytes / blocks;
  const uint32_t s = dynamic_shared(), barrier = s, to = s + params.n[2];
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  barrier_cluster_arrive();
  barrier_cluster_wait();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, bytes);
    const uint8_t *from = reinterpret_cast<const uint8_t *>(params.in);
    bulk_load_multicast(to + rank * share, from + rank * share, share, barrier, uint16_t((1 << blocks) - 1));
  }
  while (!mbarrier_try_wait_parity(barrier, 0)) {
  }
  for (uint32_t i = threadIdx.x; i < params.n[0]; i += 32)
    st_global_u32(params.out + rank * params.n[0] + i, ld_shared_u32(to + 4 * i));
  barrier_cluster_arrive();
  barrier_cluster_wait();
}

// out: two readings for each thread, low words first; the second is the first that differs.
KERNEL(probe_timer, ProbeParams, 64, 1) {
  const uint64_t before = globaltimer();
  uint64_t after = before;
  while (after == before) after = globaltimer();
  uint32_t *out = params.out + 4 * threadIdx.x;
  st_global_v4(out, {uint32_t(before), uint32_t(before >> 32), uint32_t(after), uint32_t(after >> 32)});
}
