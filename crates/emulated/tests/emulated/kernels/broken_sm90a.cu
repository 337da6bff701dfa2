// Deliberately wrong kernels for sm_90a: n[0] selects the mistake, 0 is correct.
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

namespace {

DEVICE void wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait_parity(barrier, parity)) {
  }
}

enum Pipeline : uint32_t {
  kCorrect,
  kNoWaitForFull,
  kNoWaitForEmpty,
  kReleasedTooEarly,
  kExpectsTooMuch,
  kExpectsTooLittle,
  kNoInitFence,
  kNoBarrierAfterInit,
  kArrivesTwice,
  kNoWgmmaFence,
  kNoWgmmaWait,
  kNoFenceAfterStores,
  kUnalignedDescriptor,
  kDescriptorOutside,
  kWaitNotRepeated,
  kOneThreadSkips,
  kProducerStopsEarly,
  kEndsWhileCopying,
  kWrongParity,
  kOneWarpSetsRegisters,
  kRegistersThatNobodyGives,
  kOrdinaryStoreToBarrier,
  kNotATensorMap,
  kTileOutside,
  kOtherDescriptors,
  kOneLaneDoesNotWait,
  kWgmmaUnderWayAtTheEnd,
};

}  // namespace

// The microkernels' pipeline in small: a ring of two stages of 64 + 8 rows of 128 bytes, which n[1] loads
// pass through.
KERNEL(broken_pipeline, ProbeParams, 256, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], steps = params.n[1], t = threadIdx.x;
  constexpr uint32_t kStage = 72 * 128 + 1024 - 72 * 128 % 1024, kBarriers = 2 * kStage;
  const auto full = [&](uint32_t stage) { return s + kBarriers + 8 * stage; };
  const auto empty = [&](uint32_t stage) { return s + kBarriers + 16 + 8 * stage; };
  if (t == 0) {
    for (uint32_t i = 0; i < 2; ++i) {
      mbarrier_init(full(i), 1);
      mbarrier_init(empty(i), 1);
    }
    if (how != kNoInitFence) fence_mbarrier_init();
  }
  if (how != kNoBarrierAfterInit) barrier_sync_all();
  if (how == kOrdinaryStoreToBarrier && t == 9) st_shared_u32(full(1), 0);

  if (t < 128) {
    if (how == kOneWarpSetsRegisters && t < 32) setmaxnreg_dec<40>();
    if (t == 0) {
      for (uint32_t k = 0; k < steps; ++k) {
        const uint32_t stage = k % 2, at = s + stage * kStage;
        if (how == kProducerStopsEarly && k == 2) break;
        if (how != kNoWaitForEmpty) wait(empty(stage), how == kWrongParity ? k / 2 % 2 : k / 2 % 2 ^ 1);
        const uint32_t bytes = how == kExpectsTooMuch     ? 72 * 128 + 16
                               : how == kExpectsTooLittle ? 72 * 128 - 16
                                                          : 72 * 128;
        mbarrier_arrive_expect_tx(full(stage), bytes);
        if (how == kArrivesTwice) mbarrier_arrive(full(stage));
        const auto *map =
            how == kNotATensorMap ? reinterpret_cast<const TensorMap *>(params.in) : &params.map;
        tma_load_2d(how == kTileOutside ? s + 4 * kStage : at, map, int32_t(k * 128), 0, full(stage));
        tma_load_2d(at + 64 * 128, &params.map_out, int32_t(k * 128), 0, full(stage));
      }
      if (how == kEndsWhileCopying) {
        wait(empty(0), 1 ^ (steps / 2 % 2));
        mbarrier_arrive_expect_tx(full(0), 72 * 128);
        tma_load_2d(s, &params.map, 0, 0, full(0));
        tma_load_2d(s + 64 * 128, &params.map_out, 0, 0, full(0));
      }
    }
    return;
  }

  if (how == kRegistersThatNobodyGives) setmaxnreg_inc<256>();
  int32_t d[4];
  const bool speaks = t == 128;
  if (how == kNoFenceAfterStores)
    for (int i = 0; i < 4; ++i) d[i] = 0;
  for (uint32_t k = 0; k < steps; ++k) {
    const uint32_t stage = k % 2, at = s + stage * kStage;
    if (how == kWaitNotRepeated)
      mbarrier_try_wait_parity(full(stage), k / 2 % 2);
    else if (how != kNoWaitForFull && !(how == kOneLaneDoesNotWait && t == 200))
      wait(full(stage), k / 2 % 2);
    if (how != kNoWgmmaFence) wgmma_fence();
    const uint32_t start = how == kUnalignedDescriptor ? at + 256
                           : how == kDescriptorOutside ? s + 3 * kStage
                                                       : at;
    const uint64_t a =
        wgmma_descriptor(how == kOtherDescriptors && t == 255 ? start ^ 32 : start, Swizzle::bytes_128, 1024);
    const uint64_t b = wgmma_descriptor(at + 64 * 128, Swizzle::bytes_128, 1024);
    if (how == kReleasedTooEarly && speaks) mbarrier_arrive(empty(stage));
    for (int i = 0; i < 4; ++i)
      if (!(how == kOneThreadSkips && t == 131 && i == 3))
        wgmma_m64k32_s8<8>(d, a + uint64_t(2 * i), b + uint64_t(2 * i),
                           k != 0 || i != 0 || how == kNoFenceAfterStores);
    wgmma_commit_group();
    if (how == kNoWgmmaWait) {
      d[0] += 1;
      wgmma_wait_group<0>();
    } else if (how != kWgmmaUnderWayAtTheEnd || k + 1 < steps) {
      wgmma_wait_group<0>();
    }
    if (how == kNoFenceAfterStores && k == 1) {
      d[1] += 5;
      wgmma_m64k32_s8<8>(d, a, b, 1);
      wgmma_commit_group();
      wgmma_wait_group<0>();
    }
    if (how != kReleasedTooEarly && speaks) mbarrier_arrive(empty(stage));
  }
  if (how == kWgmmaUnderWayAtTheEnd) return;
  for (uint32_t i = 0; i < 4; ++i) st_global_u32(params.out + (t - 128) * 4 + i, uint32_t(d[i]));
}

// Bulk copies of plain bytes: a ring of two stages of 512 bytes, four copies, and a warp that adds up what
// has arrived.
KERNEL(broken_bulk, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x;
  // 1 no wait for the stage to be full; 2 no wait for it to be empty; 3 from an odd address; 4 a size that is
  // no multiple of 16; 5 beyond the array; 6 beyond shared memory; 7 to an odd address; 8 no fence after
  // mbarrier.init; 9 expect_tx of more bytes than arrive; 10 of fewer; 11 one more copy, never waited for; 12
  // released before it was read; 13 another block's memory.
  const uint32_t barriers = s + 1024;
  const auto full = [&](uint32_t k) { return barriers + 8 * (k % 2); };
  const auto empty = [&](uint32_t k) { return barriers + 16 + 8 * (k % 2); };
  if (t == 0) {
    for (uint32_t i = 0; i < 2; ++i) mbarrier_init(full(i), 1), mbarrier_init(empty(i), 1);
    if (how != 8) fence_mbarrier_init();
  }
  barrier_sync_all();
  if (t >= 32) {
    if (t != 32) return;
    const uint8_t *from = reinterpret_cast<const uint8_t *>(params.in);
    for (uint32_t k = 0; k < (how == 11 ? 6 : 4); ++k) {
      if (how != 2) wait(empty(k), k / 2 % 2 ^ 1);
      mbarrier_arrive_expect_tx(full(k), how == 9 ? 528 : how == 10 ? 496 : how == 4 ? 504 : 512);
      const uint32_t at = how == 6 ? s + 800 : s + k % 2 * 512;
      bulk_load(how == 7    ? at + 8
                : how == 13 ? at | 1u << 24
                            : at,
                from + 512 * (k % 4) +
                    (how == 3   ? 4
                     : how == 5 ? 16 * (k == 3)
                                : 0),
                how == 4 ? 504 : 512, full(k));
    }
    return;
  }
  uint32_t sum = 0;
  for (uint32_t k = 0; k < 4; ++k) {
    if (how != 1) wait(full(k), k / 2 % 2);
    if (how == 12 && t == 0) mbarrier_arrive(empty(k));
    for (uint32_t i = t; i < 128; i += 32) sum += ld_shared_u32(s + k % 2 * 512 + 4 * i);
    bar_warp_sync();
    if (how != 12 && t == 0) mbarrier_arrive(empty(k));
  }
  st_global_u32(params.out + t, sum);
}

// Ordinary accesses and those of TMA and wgmma to the same memory. 128 threads, 64 + 8 rows of 128 bytes.
KERNEL(broken_proxies, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x;
  // 1 wgmma reads ordinary stores without a fence; 2 only one thread executes the fence, before the barrier;
  // 3 a TMA store reads ordinary stores without a fence; 4 its tile is overwritten before the wait; 5 the
  // thread ends before the wait; 6 wgmma reads cp.async data without a fence; 7 the arrival comes before the
  // copy; 8 TMA overwrites ordinary stores; 10 the fence comes before the stores; 11 copies arrive on an
  // mbarrier that no thread waits for.
  const uint32_t barrier = s + 72 * 128;
  if (t == 0) {
    mbarrier_init(barrier, 128);
    mbarrier_init(barrier + 8, 1);
    fence_mbarrier_init();
  }
  barrier_sync_all();
  if (how == 11) {
    cp_async_cg_16(s + 16 * t, params.in);
    cp_async_mbarrier_arrive_noinc(barrier);
    return;
  }
  if (how == 6 || how == 7 || how == 9) {  // 9: the correct one
    if (how == 7) cp_async_mbarrier_arrive_noinc(barrier);
    for (uint32_t i = t; i < 72 * 8; i += 128) cp_async_cg_16(s + 16 * i, params.in + i % 16 * 4);
    if (how != 7) cp_async_mbarrier_arrive_noinc(barrier);
    wait(barrier, 0);
    if (how != 6) fence_proxy_async();
  } else {
    if (how == 10) fence_proxy_async();
    for (uint32_t i = t; i < 72 * 8; i += 128) st_shared_v4(s + 16 * i, {i, i, i, i});
    if (how != 1 && how != 3 && how != 8 && how != 10 && (how != 2 || t == 0)) fence_proxy_async();
    barrier_sync_all();
  }
  if (how == 8 && t == 0) {
    mbarrier_arrive_expect_tx(barrier + 8, 64 * 128);
    tma_load_2d(s, &params.map, 0, 0, barrier + 8);
  }
  if (how == 8) wait(barrier + 8, 0);
  if (how >= 3 && how <= 5) {
    if (t == 0) {
      tma_store_2d(&params.map_out, 0, 0, s);
      bulk_commit_group();
      if (how != 4 && how != 5) bulk_wait_group_read<0>();
    }
    if (how == 5) return;
    barrier_sync_all();
    st_shared_u32(s + 4 * t, 0);
    if (t == 0) bulk_wait_group<0>();
    return;
  }
  int32_t d[4];
  wgmma_fence();
  wgmma_m64k32_s8<8>(d, wgmma_descriptor(s, Swizzle::bytes_128, 1024),
                     wgmma_descriptor(s + 64 * 128, Swizzle::bytes_128, 1024), 0);
  wgmma_commit_group();
  wgmma_wait_group<0>();
  cp_async_wait_all();
  for (uint32_t i = 0; i < 4; ++i) st_global_u32(params.out + t * 4 + i, uint32_t(d[i]));
}

// Clusters of two blocks of 32 threads, 256 bytes. 0 and 25 are correct.
KERNEL(broken_cluster, ProbeParams, 32, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x, rank = cluster_block_rank();
  const bool elected = elect_sync();
  const uint32_t votes = vote_ballot(elected);
  if (votes == 0 || (votes & (votes - 1)) != 0) trap();
  if (how == 18 && elected != (t == 0)) trap();  // relies on lane 0
  const uint32_t word = mapa(s + 4 * t, rank ^ 1), second = mapa(s + 128 + 4 * t, rank ^ 1),
                 barrier = s + 128;
  // Words that no other thread accesses, before the neighbour is known to have started.
  if (how == 19) st_global_u32(params.out + blockIdx.x * 32 + t, ld_shared_cluster_u32(second));
  if (how == 20) st_shared_cluster_u32(second, t);
  if ((how == 21 || how == 22 || how == 25) && t == 0) {
    mbarrier_init(barrier, how == 25 ? 32 : 1);
    fence_mbarrier_init();
  }
  if (how == 21 && t == 0) tma_load_2d_multicast(s, &params.map, 0, 0, barrier, 3);
  if (how != 21) st_shared_u32(s + 4 * t, t);
  if (how != 1) {  // 1: nothing between the write and the neighbour's read
    barrier_cluster_arrive();
    barrier_cluster_wait();
  }
  uint32_t v = 0;
  if (how == 3) {
    v = ld_shared_u32(word);  // another block's address, an instruction for this block's memory
  } else if (how == 4) {
    v = ld_shared_cluster_u32(mapa(s + 4 * t, 2));  // a third block
  } else if (how >= 6 && how <= 16) {
    // A neighbour's address in instructions that only take one of this block.
    const uint32_t far = mapa(s + 128, rank ^ 1);
    if (t == 0) {
      mbarrier_init(s + 128, 1);
      fence_mbarrier_init();
    }
    bar_warp_sync();
    uint32_t d[1] = {t};
    switch (how) {
      case 6: mbarrier_arrive(far); break;
      case 7: mbarrier_arrive_expect_tx(far, 16); break;
      case 8: mbarrier_try_wait_parity(far, 1); break;
      case 9: ldmatrix_x1(d[0], mapa(s + t % 8 * 16, rank ^ 1)); break;
      case 10: stmatrix_x1(mapa(s + t % 8 * 16, rank ^ 1), d[0]); break;
      case 11: cp_async_cg_16(mapa(s, rank ^ 1), params.in); break;
      case 12: cp_async_mbarrier_arrive_noinc(far); break;
      case 13: tma_load_2d(mapa(s, rank ^ 1), &params.map, 0, 0, s + 128); break;
      case 14: tma_load_2d(s, &params.map, 0, 0, far); break;
      case 15: tma_store_2d(&params.map_out, 0, 0, mapa(s, rank ^ 1)); break;
      case 16: tma_load_2d_multicast(s, &params.map, 0, 0, s + 128, 0); break;
    }
    v = d[0];
  } else if (how == 2) {
    // The neighbour may have ended.
    for (uint32_t i = 0; rank == 0 && i < 40; ++i)
      v += ld_shared_cluster_u32(mapa(s + 4 * t, 1)), bar_warp_sync();
  } else if (how == 22) {
    if (t == 0) mbarrier_arrive_cluster(mapa(barrier, rank ^ 1));  // the neighbour does not wait for it
  } else if (how == 23) {
    st_shared_u32(s + 4 * t, 2 * t);  // no barrier between this and the neighbour's read
    v = ld_shared_cluster_u32(word);
  } else if (how == 24) {
    st_shared_cluster_u32(second, t);  // the neighbour does not wait for it
  } else if (how == 25) {
    // Block 0 ends once it knows that block 1 has read; block 1, whose memory no block accesses, ends at any
    // time.
    if (rank == 1) {
      v = ld_shared_cluster_u32(word);
      mbarrier_arrive_cluster(mapa(barrier, 0));
    } else {
      wait(barrier, 0);
    }
  } else if (how < 19) {
    v = ld_shared_cluster_u32(word);
  }
  st_global_u32(params.out + blockIdx.x * 32 + t, v);
  if (how == 5) barrier_cluster_wait();  // without an arrival
  if (how == 17) {
    if (t < 16)  // half of a warp; the other half waits elsewhere
      barrier_cluster_arrive();
    else
      bar_warp_sync();
    return;
  }
  if (how == 2 || how == 22 || how == 24 || how == 25) return;
  barrier_cluster_arrive();
  barrier_cluster_wait();
}

// The first kernel of a pair of launches that overlap, two blocks each. It stores the even words of 0 to 127
// and reads words 128 to 191. It is correct.
KERNEL(broken_primary, ProbeParams, 32, 1) {
  const uint32_t at = blockIdx.x * 32 + threadIdx.x;
  griddepcontrol_launch_dependents();
  st_global_u32(params.out + 2 * at, ld_global_u32(params.out + 128 + at) + at);
}
KERNEL(broken_secondary, ProbeParams, 32, 1) {
  const uint32_t at = blockIdx.x * 32 + threadIdx.x, how = params.n[0];
  uint32_t *even = params.out + 2 * at, *read = params.out + 128 + at;
  uint32_t v = ld_global_nc_u32(params.in + at);
  // Before the wait, nothing that the first kernel accesses: the words between those that it stores are free.
  st_global_u32(even + 1, v);
  v += ld_global_u32(even + 1);
  if (how == 1) v += ld_global_u32(even);    // a word that the first kernel stores
  if (how == 2) st_global_u32(read, v);      // a word that it still reads
  if (how == 3) st_global_u32(even, v);      // a word that it stores
  if (how == 6) v += ld_global_nc_u32(even);  // by .nc
  if (how != 7 && (how < 4 || how > 5 || threadIdx.x == 0) && how != 20) griddepcontrol_wait();
  if (how == 20) {  // correct: one thread waits, a barrier tells the others
    if (threadIdx.x == 9) griddepcontrol_wait();
    barrier_sync_all();
  }
  // 4: one thread has waited, and no barrier tells the others; 5: the same, and they store; 7: no thread has
  // waited.
  if (how != 5) v += ld_global_u32(even);
  if (how == 5) st_global_u32(read, v);
  if (how == 8) v += ld_global_nc_u32(even);  // .nc may move before the wait
  st_global_u32(params.out + 192 + at, v);
}

// A kernel of a step (step.cuh), launched after itself; the previous launch has no mistake. Two blocks of 32.
KERNEL(broken_turn, ProbeParams, 32, 1) {
  const uint32_t at = blockIdx.x * 32 + threadIdx.x, how = params.n[0];
  uint32_t *mine = params.out + at, *unused = params.out + 128 + at;
  uint32_t v = ld_global_u32(params.in + at) + ld_global_u32(params.out + 192 + at);  // never stored
  if (how == 1) v += ld_global_u32(mine);        // a word that the previous one stores
  if (how == 2) st_global_u32(unused, v);        // wrong even if the previous one does nothing
  if (how == 3) atom_add_u32(unused, v);
  if (how == 4) griddepcontrol_launch_dependents();
  if (how == 5 && blockIdx.x == 1) return;
  if (how == 6 && threadIdx.x != 3) return;      // correct: a thread that ends has accessed nothing
  if ((how != 7 && how != 9 && how != 20) || threadIdx.x == 9) griddepcontrol_wait();
  if (how == 20) barrier_sync_all();             // correct: one thread waits, a barrier tells the others
  if (how == 8) v += ld_global_nc_u32(mine);     // .nc may move before the wait
  if (how != 9 || threadIdx.x == 9) griddepcontrol_launch_dependents();
  st_global_u32(mine, v + ld_global_u32(mine));
}

// .nc loads of words that the kernel itself stores. Two blocks of 32.
KERNEL(broken_constant, ProbeParams, 32, 1) {
  const uint32_t at = blockIdx.x * 32 + threadIdx.x, how = params.n[0];
  uint32_t v = ld_global_nc_u32(params.in + at) + ld_global_nc_u32(params.out + 64 + at);
  if (how == 1) v += ld_global_nc_u32(params.out + at);  // the thread's own word, before the store
  st_global_u32(params.out + at, v);
  if (how == 2) v += ld_global_nc_u32(params.out + at);                                // after the store
  if (how == 3) v += ld_global_nc_u32(params.out + (at + 32) % 64);                    // the other block's
  if (how == 4) v += ld_global_nc_no_allocate_v4(params.out + at / 4 * 4).x;            // some bytes of it
  if (how == 5)
    st_global_u16(reinterpret_cast<uint16_t *>(params.out + 64 + at), uint16_t(v));  // what it has loaded
  if (how == 6) atom_add_u32(params.out + 64 + at, v);
  if (v == 0x12345678) trap();
}

namespace {
DEVICE void helper(uint32_t address, uint32_t v) { stmatrix_x1(address, v); }
}  // namespace

// One instruction at two places of the source. 128 threads, 72 rows of 128 bytes; the halves of every warp
// diverge.
KERNEL(broken_places_sm90a, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x;
  const bool lower = t % 32 < 16;
  for (uint32_t i = t; i < 72 * 8; i += 128) st_shared_v4(s + 16 * i, {i, i, i, i});
  fence_proxy_async();
  barrier_sync_all();
  const uint64_t a = wgmma_descriptor(s, Swizzle::bytes_128, 1024),
                 b = wgmma_descriptor(s + 64 * 128, Swizzle::bytes_128, 1024);
  const uint32_t row = s + t / 32 * 128 + t % 8 * 16;
  int32_t d[4];
  if (how == 1) {
    if (lower)
      wgmma_fence();
    else
      wgmma_fence();
  } else {
    wgmma_fence();
  }
  if ((how == 3 && lower) || (how == 17 && t < 32))  // 17: one warp of the four
    wgmma_m64k32_s8<8>(d, a, b, 0);
  else
    wgmma_m64k32_s8<8>(d, a, b, 0);
  if (how == 5 && t % 32 == 7)
    wgmma_commit_group();
  else
    wgmma_commit_group();
  if (how == 7 && lower)
    wgmma_wait_group<0>();
  else
    wgmma_wait_group<0>();
  if (how == 9 && lower)
    stmatrix_x1(row, t);
  else
    stmatrix_x1(row, t);
  if (how == 10) {  // not detected: one place in the source, in a helper called from two places
    if (lower)
      helper(row, t);
    else
      helper(row, t);
  }
  if (how == 11 && lower)
    barrier_cluster_arrive();
  else
    barrier_cluster_arrive();
  if (how == 13 && lower)
    barrier_cluster_wait();
  else
    barrier_cluster_wait();
  if (how == 15 && lower)
    setmaxnreg_dec<64>();
  else
    setmaxnreg_dec<64>();
  for (uint32_t i = 0; i < 4; ++i) st_global_u32(params.out + t * 4 + i, uint32_t(d[i]));
}

// Parameters of the largest size that a kernel may have, and larger. The first two words are the address to
// which the last one is stored.
struct ManyParams {
  uint32_t words[8191];
};
struct TooManyParams {
  uint32_t words[8192];
};
#if !defined(__CUDACC__)
KERNEL(probe_params, ManyParams, 1, 1) {
  st_global_u32(reinterpret_cast<void *>(uint64_t(params.words[1]) << 32 | params.words[0]),
                params.words[8190]);
}
KERNEL(broken_params, TooManyParams, 32, 1) { trap(); }
#endif
