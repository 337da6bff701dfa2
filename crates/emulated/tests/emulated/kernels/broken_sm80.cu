// Deliberately wrong kernels: n[0] selects the mistake, 0 is correct. Each must be caught
// (crates/emulated/tests/emulated/broken.rs).
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

// Shared and global memory with ordinary instructions. 64 threads, 256 bytes, `in` and `out` of 64 words.
KERNEL(broken_memory, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), t = threadIdx.x, how = params.n[0];
  const uint32_t *in = params.in;
  uint32_t *out = params.out;
  st_shared_u32(s + 4 * t, ld_global_u32(in + t));
  if (how != 1) barrier_sync_all();
  uint32_t v = ld_shared_u32(s + 4 * (63 - t));
  switch (how) {
    case 2: v += ld_shared_u32(s + 4 * (t + 1)); break;                       // one too far
    case 3: v += ld_shared_u32(s + 4 * (t % 32) + 2); break;                  // not aligned
    case 4: v += ld_global_u32(in + t + 1); break;                            // one too far
    case 5: v += ld_global_u32(reinterpret_cast<const char *>(in + t % 32) + 2); break;
    case 6: st_global_u32(const_cast<uint32_t *>(in) + t, v); break;          // registered for reading only
    case 7: st_shared_u32(s + 4 * t, v); break;                               // others still read it
    case 8: st_global_v4(out + t % 32 / 4 * 4 + 1, {v, v, v, v}); break;      // 16 bytes need 16
    case 9: v += ld_shared_u32(s - 4); break;                                 // before the first byte
    case 10: if (t == 40) trap(); break;
  }
  st_global_u32(out + t, v);
}

// Divergent lanes. One warp, 256 bytes.
KERNEL(broken_warp, ProbeParams, 32, 1) {
  const uint32_t s = dynamic_shared(), t = threadIdx.x, how = params.n[0];
  st_shared_u32(s + 4 * t, t);
  if (how != 1) bar_warp_sync();
  uint32_t v = ld_shared_u32(s + 4 * (31 - t));
  uint32_t d[4];
  bar_warp_sync();
  switch (how) {
    case 2:
      if (t < 16) ldmatrix_x4(d, s);  // half of the warp
      break;
    case 3:
      if (t == 7) return;  // this lane has ended
      v = shfl_bfly(v, 1);
      break;
    case 4: v = t == 3 ? shfl_bfly(v, 1) : shfl_idx(v, 1); break;  // two instructions
    case 5: v = shfl_bfly(v, 1, t == 3 ? 0xfu : kFullWarp); break;  // two masks
    case 6: v = shfl_idx(v, 20, t < 16 ? 0x0000ffffu : 0xffff0000u); break;  // a lane outside of the mask
    case 7:
      if (t < 31) bar_warp_sync();  // one lane does not arrive
      break;
  }
  st_global_u32(params.out + t, v);
}

namespace {
// Code that a compiler may duplicate and unroll where lanes diverge around it: it still counts as one place.
DEVICE void load_all(uint32_t s, uint32_t (&d)[4]) {
#pragma GCC unroll 4
  for (uint32_t i = 0; i < 4; ++i) ldmatrix_x1(d[i], s + threadIdx.x % 8 * 16);
}
}  // namespace

// One instruction at two places of the source. 64 threads, 512 bytes. 0, 20 and 21 are correct.
KERNEL(broken_places, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x;
  const bool lower = t % 32 < 16;
  st_shared_u32(s + 4 * t, t);
  if (how == 1 && lower)
    barrier_sync_all();
  else
    barrier_sync_all();
  uint32_t d[4] = {t, t, t, t};
  int32_t sums[4] = {};
  float floats[4] = {};
  if (how == 20 && lower) d[0] = 1;
  load_all(s, d);
  if (how == 20 && lower) d[1] += 2;
  if (how == 20 && t % 2 == 0) d[2] = 3;
  load_all(s, d);
  switch (how) {
    case 2:
      if (lower)
        ldmatrix_x4(d, s + t % 8 * 16);
      else
        ldmatrix_x4(d, s + t % 8 * 16);
      break;
    case 3:
      if (t % 32 == 31)
        mma_m16n8k32(sums, d, {t, t});
      else
        mma_m16n8k32(sums, d, {t, t});
      break;
    case 4:
      if (lower)
        mma_m16n8k16(Bf16{}, floats, d, {t, t});
      else
        mma_m16n8k16(Bf16{}, floats, d, {t, t});
      break;
    case 5:
      if (lower)
        barrier_sync(1, 64);
      else
        barrier_sync(1, 64);
      break;
    case 6:
      if (lower)
        barrier_arrive(1, 64);
      else
        barrier_arrive(1, 64);
      break;
    case 21:  // not .aligned: lanes may have diverged
      if (lower)
        bar_warp_sync();
      else
        bar_warp_sync();
      if (lower)
        d[0] = shfl_bfly(d[0], 16);
      else
        d[0] = shfl_bfly(d[0], 16);
      break;
  }
  st_global_u32(params.out + t, d[0] + d[1] + d[2] + d[3] + uint32_t(sums[0]) + uint32_t(floats[0]));
}

// cp.async. 64 threads, 512 bytes in two stages.
KERNEL(broken_copies, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), t = threadIdx.x, how = params.n[0];
  cp_async_ca<4>(s + 4 * t, params.in + t);
  cp_async_commit_group();
  cp_async_ca<4>(s + 256 + 4 * t, params.in + t);
  if (how != 6) cp_async_commit_group();
  if (how == 1) {
    // no wait
  } else if (how == 2) {
    cp_async_wait_group<1>();  // for the first copy only
  } else if (how == 6) {
    cp_async_wait_group<0>();  // the second was never committed
  } else {
    cp_async_wait_all();
  }
  if (how != 3) barrier_sync_all();
  uint32_t v = ld_shared_u32(s + 256 + 4 * (how == 2 ? t : 63 - t));
  if (how == 4) cp_async_ca<4>(s + 256 + 4 * t, params.in + t);  // others still read it
  if (how == 5) cp_async_ca<4>(s + 4 * t, params.in + t);         // never waited for
  if (how == 7) cp_async_ca<16>(s + 4 * (t | 1), params.in);     // not aligned
  if (how == 8) cp_async_ca<4>(s + 4 * t, params.in + t, 8);      // more bytes than the copy has
  if (how == 4) cp_async_wait_all();
  st_global_u32(params.out + t, v);
}

// Barriers of a block. 96 threads; 20 and 21 are correct, too.
KERNEL(broken_barriers, ProbeParams, 96, 1) {
  const uint32_t t = threadIdx.x, how = params.n[0];
  if (t >= 64) {  // the third warp ends at once
    if (how == 20 && t % 2 != 0) bar_warp_sync(0xaaaaaaaau);
    return;
  }
  switch (how) {
    case 1:
      if (t < 32)
        barrier_sync_all();  // half of the block; the other half waits elsewhere
      else
        barrier_sync(1, 64);
      break;
    case 7:
      if (t % 32 < 16) barrier_sync(1, 32);  // lanes of two warps that together make one warp
      break;
    case 8:
      if (t % 32 < 16)
        barrier_sync(1, 64);
      else
        barrier_sync(2, 64);
      break;
    case 9: barrier_arrive(1, 0); break;
    case 20: barrier_sync_all(); break;
    case 21:
      if (t % 3 == 0) return;
      barrier_sync_all();
      break;
    case 2:
      if (t < 32) barrier_sync(1, 64);  // waits for 64, but 32 arrive
      break;
    case 3: barrier_sync(1, t < 32 ? 64 : 32); break;  // two counts
    case 4: barrier_sync(16, 64); break;
    case 5: barrier_sync(1, 48); break;
    case 6: barrier_sync(t < 32 ? 1 : 2, 64); break;  // two places
    default: barrier_sync(1, 64); break;
  }
  st_global_u32(params.out + t, t);
}

// Waits for a word that another thread stores (n[0] = 0), or no thread (1).
KERNEL(broken_spin, ProbeParams, 64, 1) {
  if (threadIdx.x == 63 && params.n[0] == 0) st_global_u32(params.out + 63, 1);
  while (ld_global_u32(params.out + 63) == 0) {
  }
  st_global_u32(params.out + threadIdx.x, 1);
}

// Threads that alternate between two mbarriers on which no thread arrives.
KERNEL(broken_waits, ProbeParams, 512, 1) {
  const uint32_t barrier = dynamic_shared() + threadIdx.x % 2 * 8;
  if (threadIdx.x < 2) mbarrier_init(barrier, 3);
  barrier_sync_all();
  while (!mbarrier_try_wait_parity(barrier, 0)) {
  }
}

// A plain pointer, which the rules forbid because no wrapper checks it: 8 bytes past the unused memory behind
// the buffer.
KERNEL(broken_plain_pointer, ProbeParams, 32, 1) { params.out[64 + 64 + 2] = threadIdx.x; }
