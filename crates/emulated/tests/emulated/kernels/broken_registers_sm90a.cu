// Kernels for sm_90a with deliberate mistakes in the registers of wgmma: n[0] selects the mistake, 0 is
// correct.
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

// Mistakes in writing them. 128 threads, 8 rows of 128 bytes for b, and 64 for a.
KERNEL(broken_registers, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x;
  for (uint32_t i = t; i < 72 * 8; i += 128) st_shared_v4(s + 16 * i, {i, i, i, i});
  fence_proxy_async();
  barrier_sync_all();
  const uint64_t a = wgmma_descriptor(s, Swizzle::bytes_128, 1024),
                 b = wgmma_descriptor(s + 64 * 128, Swizzle::bytes_128, 1024);
  // 1 fragments are rewritten without a fence, 2 after a wait, 3 in their second use; 4 accumulators are read
  // and written before a second tile, 5 only read; 6 they have another shape. 7 wgmma.fence, 8
  // wgmma.commit_group, 9 wgmma.wait_group: executed by one lane more. Between wgmma.fence and wgmma: 10
  // accumulators are changed, 11 fragments; 12 fragments that no wgmma used before, 13 such accumulators; 14
  // fragments of a group that was waited for after the fence.
  uint32_t fragments[2][4], fresh[4];
  int32_t d[8], (&narrow)[4] = reinterpret_cast<int32_t(&)[4]>(d), start[4];
  for (uint32_t i = 0; i < 4; ++i)
    fragments[0][i] = t + i, fragments[1][i] = t * i, start[i] = 7, fresh[i] = i;
  wgmma_fence();
  wgmma_m64k32_s8<8>(narrow, fragments[0], b, 0);
  wgmma_m64k32_s8<8>(narrow, fragments[1], b, 1);
  if (how == 14) {
    wgmma_commit_group();
    wgmma_fence();
    wgmma_wait_group<0>();
    fragments[0][1] += 1;
  } else if (how == 0 || how == 2 || how >= 4) {
    wgmma_commit_group();
    wgmma_wait_group<0>();
  }
  if (how <= 3) {
    if (how == 0) wgmma_m64k32_s8<8>(narrow, fragments[0], b, 1);  // no register was changed
    if (how == 0) wgmma_commit_group(), wgmma_wait_group<0>();
    for (uint32_t i = 0; i < 4; ++i) fragments[how == 3][i] += 1 + i;
    if (how == 0) {
      for (uint32_t i = 0; i < 4; ++i) narrow[i] -= 3, start[i] = int32_t(t), fresh[i] += t;
      wgmma_fence();
    }
    wgmma_m64k32_s8<8>(narrow, fragments[0], b, 1);
    wgmma_m64k32_s8<8>(narrow, fragments[1], b, 1);
    if (how == 0) {
      wgmma_m64k32_s8<8>(start, fresh, b, 1);
      wgmma_commit_group(), wgmma_wait_group<0>();
      wgmma_m64k32_s8<8>(start, fresh, b, 1);
    }
  } else if (how >= 10) {
    if (how != 14) wgmma_fence();
    if (how == 10) narrow[2] += 1;
    if (how == 11) fragments[1][3] ^= 1;
    if (how == 12) fresh[0] = t * t + 9;
    if (how == 13) start[3] = int32_t(t) + 100;
    wgmma_m64k32_s8<8>(how == 13 ? start : narrow, how == 12 ? fresh : fragments[how == 11], b, 1);
  } else if (how >= 7) {
    if (how == 7 && t == 40) wgmma_fence();
    if (how == 8 && t == 40) wgmma_commit_group();
    if (how == 9 && t == 40) wgmma_wait_group<1>();
    wgmma_m64k32_s8<8>(narrow, a, b, 1);
  } else if (how == 6) {
    wgmma_m64k32_s8<16>(d, a, a, 1);
  } else {
    for (uint32_t i = 0; i < 4; ++i) st_global_u32(params.out + t * 4 + i, uint32_t(d[i]));
    if (how == 4) d[0] += 1;
    wgmma_m64k32_s8<8>(narrow, a, b, 0);
  }
  wgmma_commit_group();
  wgmma_wait_group<0>();
  for (uint32_t i = 0; i < 4; ++i) st_global_u32(params.out + t * 4 + i, uint32_t(d[i]));
}

// Fragments of a in registers that are rewritten while wgmma reads them: only a wait helps, not a fence.
// n[0]: 1 before the wait, 2 before the wait for the right group.
KERNEL(broken_fragments, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x;
  for (uint32_t i = t; i < 8 * 8; i += 128) st_shared_v4(s + 16 * i, {i, i, i, i});
  fence_proxy_async();
  barrier_sync_all();
  const uint64_t b = wgmma_descriptor(s, Swizzle::bytes_128, 1024);
  uint32_t fragments[2][4];
  int32_t d[4];
  for (uint32_t k = 0; k < 4; ++k) {
    uint32_t(&mine)[4] = fragments[how == 1 ? 0 : k % 2];
    if (how == 2 && k == 3) fragments[0][0] = t;  // the other set, which wgmma still reads
    for (uint32_t i = 0; i < 4; ++i) mine[i] = t * k + i;
    wgmma_fence();
    wgmma_m64k32_s8<8>(d, mine, b, k != 0);
    if (how == 2 && k == 3) wgmma_m64k32_s8<8>(d, fragments[0], b, 1);
    wgmma_commit_group();
    wgmma_wait_group<1>();
  }
  wgmma_wait_group<0>();
  for (uint32_t i = 0; i < 4; ++i) st_global_u32(params.out + t * 4 + i, uint32_t(d[i]));
}

// Mistakes in reading accumulators. 128 threads, 64 + 8 rows of 128 bytes and 16 bytes a thread; 8 output
// words a thread. Two groups, int8 and bf16, are in flight and are waited for one after the other.
KERNEL(broken_accumulators, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), how = params.n[0], t = threadIdx.x, own = s + 72 * 128 + 16 * t;
  for (uint32_t i = t; i < 72 * 8; i += 128) st_shared_v4(s + 16 * i, {i, i, i, i});
  fence_proxy_async();
  barrier_sync_all();
  const uint64_t a = wgmma_descriptor(s, Swizzle::bytes_128, 1024),
                 b = wgmma_descriptor(s + 64 * 128, Swizzle::bytes_128, 1024);
  uint32_t *out = params.out + 8 * t;
  int32_t d[4], sums[4] = {};
  float f[4], scaled = 0;
  uint32_t read[4] = {}, words = 0;
  // Every instruction that reads a word from a register: wrong before the wait, correct after it.
  const auto use = [&](uint32_t what) {
    switch (what) {
      case 1:
        for (uint32_t i = 0; i < 4; ++i) st_global_u32(out + i, uint32_t(d[i]));
        break;
      case 2: st_shared_v4(own, {uint32_t(d[0]), uint32_t(d[1]), uint32_t(d[2]), uint32_t(d[3])}); break;
      case 3:
        for (uint32_t i = 0; i < 4; ++i) read[i] = uint32_t(d[i]);
        break;
      case 4: words += shfl_bfly(uint32_t(d[1]), 4); break;
      case 5: scaled = add_rn_f32(scaled, cvt_rn_f32_s32(d[3])); break;
      case 6: scaled = fma_rn_f32(f[2], 0.5f, scaled); break;
      case 7: words += cvt_rn_bf16_f32(f[0]).bits + cvt_rn_f16_f32(f[1]).bits; break;
      case 8:
        stmatrix_x4(s + 72 * 128 + 512 * (t / 32) + 16 * (t % 32),
                    {uint32_t(d[0]), uint32_t(d[1]), uint32_t(d[2]), uint32_t(d[3])});
        break;
      case 9:
        for (uint32_t i = 0; i < 4; ++i) st_global_f32(out + i, f[i]);
        break;
      case 10:
        if (t == 77) st_global_v4(out, {uint32_t(d[0]), uint32_t(d[1]), uint32_t(d[2]), uint32_t(d[3])});
        break;
      case 11: atom_add_u32(out, uint32_t(d[0])); break;
      case 12: mma_m16n8k32(sums, {uint32_t(d[0]), uint32_t(d[1]), 0, 0}, {t, t}); break;
      case 13: words += uint32_t(cvt_rni_s32_f32(f[3])) + uint32_t(cvt_rzi_s32_f32(f[3])); break;
    }
  };
  wgmma_fence();
  wgmma_m64k32_s8<8>(d, a, b, 0);
  wgmma_commit_group();
  wgmma_m64k16<8>(Bf16{}, f, a, b, 0);
  wgmma_commit_group();
  use(how);
  if (how == 14) {  // as fragments of the next wgmma
    for (uint32_t i = 0; i < 4; ++i) read[i] = uint32_t(d[i]);
    int32_t e[4];
    wgmma_fence();
    wgmma_m64k32_s8<8>(e, read, b, 0);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    words = uint32_t(e[0]);
  }
  wgmma_wait_group<1>();
  constexpr uint32_t kOfF = 1 << 6 | 1 << 7 | 1 << 9 | 1 << 13;
  for (uint32_t what = 1; how == 0 && what <= 13; ++what)
    if (!(kOfF >> what & 1)) use(what);  // d is complete, f is not
  if (how == 15) use(9);
  wgmma_wait_group<0>();
  for (uint32_t what = 1; how == 0 && what <= 13; ++what)
    if (kOfF >> what & 1) use(what);
  for (uint32_t i = 0; i < 4; ++i) st_global_u32(out + i, read[i] + uint32_t(sums[i]));
  st_global_u32(out + 4, words);
  st_global_f32(out + 5, scaled);
}
