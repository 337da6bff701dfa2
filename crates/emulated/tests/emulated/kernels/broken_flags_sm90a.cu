// Deliberately wrong flags and bulk copies to several blocks: n[0] selects the mistake, 0 is correct.
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

namespace {

DEVICE void wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait_parity(barrier, parity)) {
  }
}

}  // namespace

// A warp stores 32 words and sets a flag; one thread of another warp waits for the flag and copies the words
// by TMA. Word 0 of `out` is the flag, words 4 to 35 the data, from 36 on what arrived; shared memory has 128
// bytes for the data and a barrier after it.
KERNEL(broken_flags, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x, barrier = s + 128;
  // 1 an ordinary store sets the flag; 2 an ordinary load reads it; 3 an .nc load reads it; 4 the flag is at
  // an odd address; 5 no fence between the acquire and TMA; 6 the fence before the acquire; 7 the fence of
  // shared memory; 8 the flag is never set; 9 the flag is in read-only memory; 10 a red counts in read-only
  // memory; 11 the flag is out of bounds; 12 an ordinary store clears the flag.
  uint32_t *flag = params.out, *data = params.out + 4;
  if (t == 32) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  barrier_sync_all();
  if (t < 32) {
    st_global_u32(data + t, 7 * t);
    if (how == 12 && t == 0) st_global_u32(flag, 0);
    bar_warp_sync();
    if (t != 0 || how == 8) return;
    if (how == 1)
      st_global_u32(flag, 1);
    else if (how == 4)
      st_release_sys_u32(reinterpret_cast<uint8_t *>(flag) + 2, 1);
    else if (how == 9)
      st_release_sys_u32(const_cast<uint32_t *>(params.in), 1);
    else if (how == 10)
      red_release_sys_add_u32(const_cast<uint32_t *>(params.in), 1);
    else if (how == 11)
      red_release_sys_add_u32(flag + 128, 1);
    else
      st_release_sys_u32(flag, 1);
    return;
  }
  if (t == 32) {
    if (how == 6) fence_proxy_async_global();
    if (how == 2) {
      while (ld_global_u32(flag) == 0) {
      }
    } else if (how == 3) {
      while (ld_global_nc_u32(flag) == 0) {
      }
    } else {
      while (ld_acquire_sys_u32(flag) == 0) {
      }
    }
    if (how != 5 && how != 6 && how != 7) fence_proxy_async_global();
    if (how == 7) fence_proxy_async();
    mbarrier_arrive_expect_tx(barrier, 128);
    bulk_load(s, data, 128, barrier);
  }
  wait(barrier, 0);
  st_global_u32(params.out + 36 + t - 32, ld_shared_u32(s + 4 * (t - 32)));
}

// A ring of two stages of 512 bytes in clusters of two blocks: each block's producer copies one half of a
// stage to both blocks, and a warp of each adds up what has arrived, for four stages.
KERNEL(broken_bulk_multicast, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x, rank = cluster_block_rank();
  // 1 released to this block only; 2 released before it was read; 3 copied to the neighbour only; 4 to this
  // block only; 5 to a third block; 6 to no block; 7 no barrier.cluster at the start; 8 none at the end;
  // 9 both copy the same half; 10 only this half's bytes are expected; 11 no wait for the stage to be
  // empty; 12 no wait for it to be full; 13 a size that is no multiple of 16; 14 from an odd address; 15 from
  // beyond the array; 16 the neighbour's barrier.
  const auto full = [&](uint32_t k) { return s + 1024 + 8 * (k % 2); };
  const auto empty = [&](uint32_t k) { return s + 1040 + 8 * (k % 2); };
  if (t == 0) {
    for (uint32_t i = 0; i < 2; ++i) mbarrier_init(full(i), 1), mbarrier_init(empty(i), how == 1 ? 1 : 2);
    fence_mbarrier_init();
  }
  if (how == 7) {
    barrier_sync_all();
  } else {
    barrier_cluster_arrive();
    barrier_cluster_wait();
  }
  if (t == 32) {
    for (uint32_t k = 0; k < 4; ++k) {
      if (how != 11) wait(empty(k), k / 2 % 2 ^ 1);
      mbarrier_arrive_expect_tx(full(k), how == 10 ? 256 : 512);
      const uint32_t half = how == 9 ? 0 : 256 * rank, own = 1u << rank;
      const uint32_t blocks = how == 3 ? own ^ 3 : how == 4 ? own : how == 5 ? 7 : how == 6 ? 0 : 3;
      const uint8_t *from = reinterpret_cast<const uint8_t *>(params.in) + 512 * k + half;
      bulk_load_multicast(s + k % 2 * 512 + half,
                          from + (how == 14   ? 8
                                  : how == 15 ? 512 * 4
                                              : 0),
                          how == 13 ? 252 : 256, how == 16 ? mapa(full(k), rank ^ 1) : full(k),
                          uint16_t(blocks));
    }
  } else if (t < 32) {
    uint32_t sum = 0;
    for (uint32_t k = 0; k < 4; ++k) {
      if (how != 12) wait(full(k), k / 2 % 2);
      if (how == 2 && t < 2) mbarrier_arrive_cluster(mapa(empty(k), t));
      for (uint32_t i = t; i < 128; i += 32) sum += ld_shared_u32(s + k % 2 * 512 + 4 * i);
      bar_warp_sync();
      if (how == 1) {
        if (t == 0) mbarrier_arrive(empty(k));
      } else if (how != 2 && t < 2) {
        mbarrier_arrive_cluster(mapa(empty(k), t));
      }
    }
    st_global_u32(params.out + 32 * rank + t, sum);
  }
  if (how == 8) return;
  barrier_cluster_arrive();
  barrier_cluster_wait();
}
