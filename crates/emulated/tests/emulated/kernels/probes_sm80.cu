// One small kernel for each group of sm_80 instructions; results go to `out`, by thread.
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

// in: the image of shared memory, n[0] words; n[1]: matrices; n[2]: transposed. out: 4 words per lane.
KERNEL(probe_ldmatrix, ProbeParams, 32, 1) {
  const uint32_t s = dynamic_shared(), lane = lane_id();
  for (uint32_t i = lane; i < params.n[0]; i += 32) st_shared_u32(s + 4 * i, ld_global_u32(params.in + i));
  bar_warp_sync();
  uint32_t v[4] = {}, two[2] = {};
  const uint32_t row = s + 16 * (lane % (8 * params.n[1]));
  switch (params.n[1] * 2 + params.n[2]) {
    case 2: ldmatrix_x1(v[0], row); break;
    case 3: ldmatrix_x1_trans(v[0], row); break;
    case 4: ldmatrix_x2(two, row); break;
    case 5: ldmatrix_x2_trans(two, row); break;
    case 8: ldmatrix_x4(v, row); break;
    case 9: ldmatrix_x4_trans(v, row); break;
  }
  if (params.n[1] == 2) v[0] = two[0], v[1] = two[1];
  for (uint32_t i = 0; i < 4; ++i) st_global_u32(params.out + lane * 4 + i, v[i]);
}

// in: per lane a (4), b (2), d (4) words; n[0]: 0 bf16, 1 f16, 2 s8. out: d, 4 words per lane.
KERNEL(probe_mma, ProbeParams, 32, 1) {
  const uint32_t lane = lane_id();
  const uint32_t *in = params.in + lane * 10;
  const uint32_t a[4] = {ld_global_u32(in), ld_global_u32(in + 1), ld_global_u32(in + 2),
                         ld_global_u32(in + 3)};
  const uint32_t b[2] = {ld_global_u32(in + 4), ld_global_u32(in + 5)};
  uint32_t *out = params.out + lane * 4;
  if (params.n[0] == 2) {
    int32_t d[4];
    for (int i = 0; i < 4; ++i) d[i] = int32_t(ld_global_u32(in + 6 + i));
    mma_m16n8k32(d, a, b);
    for (int i = 0; i < 4; ++i) st_global_u32(out + i, uint32_t(d[i]));
  } else {
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = ld_global_nc_f32(in + 6 + i);
    if (params.n[0] == 0)
      mma_m16n8k16(Bf16{}, d, a, b);
    else
      mma_m16n8k16(F16{}, d, a, b);
    for (int i = 0; i < 4; ++i) st_global_f32(out + i, d[i]);
  }
}

// n[0]: 4, 8 or 16 bytes, 0 for .cg, 1 for .cg with zero fill, 2 for .cg with .L2::256B; n[1]: bytes that
// each copy reads. in: 4 words per thread, out: what was copied.
KERNEL(probe_cp_async, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared() + 16 * threadIdx.x;
  const uint32_t *from = params.in + 4 * threadIdx.x;
  st_shared_v4(s, {~0u, ~0u, ~0u, ~0u});
  switch (params.n[0]) {
    case 4: cp_async_ca<4>(s, from, params.n[1]); break;
    case 8: cp_async_ca<8>(s, from, params.n[1]); break;
    case 16: cp_async_ca<16>(s, from, params.n[1]); break;
    case 1: cp_async_cg_16_or_zeros(s, from, params.n[1] == 0); break;
    case 2: cp_async_cg_16_l2_256b(s, from, params.n[1]); break;
    default: cp_async_cg_16(s, from, params.n[1]); break;
  }
  cp_async_commit_group();
  cp_async_wait_group<0>();
  barrier_sync_all();
  // Reads the neighbour's words, so that the barrier is needed.
  const uint32_t other = threadIdx.x ^ 1;
  const U32x4 v = ld_shared_v4(dynamic_shared() + 16 * other);
  st_global_v4(params.out + 4 * other, v);
}

// Three groups in flight, each waited for when it is the oldest; out: the sum of what each copied.
KERNEL(probe_cp_async_groups, ProbeParams, 32, 1) {
  const uint32_t s = dynamic_shared() + 4 * threadIdx.x;
  for (uint32_t g = 0; g < 3; ++g) {
    cp_async_ca<4>(s + 128 * g, params.in + 32 * g + threadIdx.x);
    cp_async_commit_group();
  }
  cp_async_wait_group<2>();
  uint32_t sum = ld_shared_u32(s);
  cp_async_wait_group<1>();
  sum += ld_shared_u32(s + 128);
  cp_async_wait_all();
  sum += ld_shared_u32(s + 256);
  st_global_u32(params.out + threadIdx.x, sum);
}

// Votes, reductions and shuffles; 17 words per lane.
KERNEL(probe_warp, ProbeParams, 32, 1) {
  const uint32_t lane = lane_id(), v = lane * 3 + 1;
  uint32_t *out = params.out + lane * 17;
  st_global_u32(out, vote_ballot(lane % 3 == 0));
  st_global_u32(out + 1, vote_any(lane == 31));
  st_global_u32(out + 2, vote_all(lane != 31));
  st_global_u32(out + 3, shfl_bfly(v, 5));
  st_global_u32(out + 4, shfl_idx(v, 7));
  st_global_u32(out + 5, shfl_up(v, 2));
  st_global_u32(out + 6, shfl_down(v, 4));
  // The halves of the warp separately.
  const uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  st_global_u32(out + 7, vote_ballot(true, half));
  st_global_u32(out + 8, shfl_bfly(v, 1, half));
  const uint32_t s = dynamic_shared();
  st_shared_u32(s + 4 * lane, v);
  bar_warp_sync();
  st_global_u32(out + 9, ld_shared_u32(s + 4 * (31 - lane)));
  // Only the lower five bits of the operand count.
  st_global_u32(out + 10, shfl_bfly(v, 32 + 5));
  st_global_u32(out + 11, shfl_idx(v, 64 + 7));
  st_global_u32(out + 12, shfl_up(v, 32 + 2));
  st_global_u32(out + 13, shfl_down(v, 96));
  st_global_u32(out + 14, redux_max_u32(v << 24));
  st_global_u32(out + 15, redux_max_u32(v, half));
  st_global_u32(out + 16, redux_or_b32(1u << lane, half));
}

// Adjacent bytes and 16-bit words written by different threads, then read as 32-bit words.
KERNEL(probe_small_stores, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared();
  st_shared_u8(s + threadIdx.x, uint8_t(threadIdx.x));
  st_shared_u16(s + 64 + 2 * threadIdx.x, uint16_t(1000 + threadIdx.x));
  st_shared_v2(s + 192 + 8 * threadIdx.x, {threadIdx.x, ~threadIdx.x});
  st_shared_f32(s + 704 + 4 * threadIdx.x, float(threadIdx.x));
  barrier_sync_all();
  st_global_u32(params.out + threadIdx.x, ld_shared_u32(s + threadIdx.x * 4 % 192));
  st_global_u32(params.out + 64 + threadIdx.x, ld_shared_u16(s + 64 + 2 * (63 - threadIdx.x)));
  st_global_u32(params.out + 128 + threadIdx.x, ld_shared_u32(s + 192 + 4 * (127 - threadIdx.x)));
  st_global_f32(params.out + 192 + threadIdx.x, ld_shared_f32(s + 704 + 4 * (63 - threadIdx.x)));
}

// Two warps repeatedly pass a value to two others through named barriers.
KERNEL(probe_named_barriers, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared();
  const bool sends = threadIdx.x < 64;
  uint32_t sum = 0;
  for (uint32_t round = 0; round < 8; ++round) {
    if (sends) {
      if (round > 0) barrier_sync(2, 128);
      st_shared_u32(s + 4 * threadIdx.x, round * 100 + threadIdx.x);
      barrier_arrive(1, 128);
    } else {
      barrier_sync(1, 128);
      sum += ld_shared_u32(s + 4 * (127 - threadIdx.x));
      if (round < 7) barrier_arrive(2, 128);
    }
  }
  if (!sends) st_global_u32(params.out + threadIdx.x - 64, sum);
}

// Loads and stores of every width, and the single bits of the last word; 19 words in and out.
KERNEL(probe_global, ProbeParams, 1, 1) {
  const uint32_t *in = params.in;
  uint32_t *out = params.out;
  st_global_u32(out, ld_global_u32(in));
  st_global_u32(out + 1, ld_global_nc_u32(in + 1));
  st_global_v2(out + 2, ld_global_v2(in + 2));
  st_global_v4(out + 4, ld_global_v4(in + 4));
  st_global_v2(out + 8, ld_global_nc_no_allocate_v2(in + 8));
  st_global_v4(out + 12, ld_global_nc_no_allocate_v4(in + 12));
  st_global_f32(out + 10, ld_global_nc_f32(in + 10));
  st_global_u16(out + 11, ld_global_nc_u16(in + 11));
  st_global_u16(reinterpret_cast<char *>(out + 11) + 2,
                ld_global_u16(reinterpret_cast<const char *>(in + 11) + 2));
  st_global_u32(out + 16, ld_relaxed_u32(in + 16));
  for (uint32_t i = 0; i < 4; ++i)
    st_global_u8(reinterpret_cast<char *>(out + 17) + i,
                 ld_global_u8(reinterpret_cast<const char *>(in + 17) + i));
  st_global_u32(out + 18, popc_b32(ld_global_u32(in + 18)));
}

// Counters shared by all blocks, and a ticket that determines the last block: out[0..7] the counters, [8] the
// last block's sum.
KERNEL(probe_atomics, ProbeParams, 64, 1) {
  uint32_t *out = params.out;
  const uint32_t id = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
  atom_add_u32(out, id);
  atom_max_u32(out + 1, id);
  atom_or_u32(out + 2, 1u << id % 32);
  atom_add_u64(out + 4, uint64_t(1) << 32 | 1);
  atom_max_u64(out + 6, uint64_t(id) << 32);
  uint32_t seen = 0, old;
  while ((old = atom_cas_u32(out + 3, seen, seen + 2)) != seen) seen = old;
  st_global_u32(out + 16 + id, id);
  fence_acq_rel_gpu();
  if (atom_add_u32(out + 9, 1) + 1 == all) {
    fence_acq_rel_gpu();
    uint32_t sum = 0;
    for (uint32_t i = 0; i < all; ++i) sum += ld_global_u32(out + 16 + i);
    atom_exch_u32(out + 8, sum);
  }
}

// Sums of a block in shared memory: thread t adds n[0]·t·2^20 + 1 to bin t % 4. Out: the four bins, then for
// each thread how many added to its bin before it, which the lowest bits of the old value tell; and the same
// with 32-bit words, to which each thread adds 1.
KERNEL(probe_shared_atomics, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), t = threadIdx.x, bin = s + 8 * (t % 4);
  if (t < 4) st_shared_v2(s + 8 * t, {0, 0}), st_shared_u32(s + 32 + 4 * t, 0);
  barrier_sync_all();
  const uint64_t before = atom_shared_add_u64(bin, (uint64_t(params.n[0]) * t << 20) + 1);
  const uint32_t words_before = atom_shared_add_u32(s + 32 + 4 * (t % 4), 1);
  barrier_sync_all();
  if (t < 4) st_global_v2(params.out + 2 * t, ld_shared_v2(s + 8 * t));
  st_global_u32(params.out + 8 + t, uint32_t(before) & 0xfffffu);
  if (t < 4) st_global_u32(params.out + 72 + t, ld_shared_u32(s + 32 + 4 * t));
  st_global_u32(params.out + 76 + t, words_before);
}

// The launch geometry as each thread sees it: 12 words per thread.
KERNEL(probe_geometry, ProbeParams, 256, 1) {
  const uint32_t blocks = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const uint32_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  uint32_t *out = params.out + 12 * (blocks * blockDim.x * blockDim.y * blockDim.z + thread);
  const uint32_t v[12] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z,
                          blockDim.x,  blockDim.y,  blockDim.z,  gridDim.x,  gridDim.y,  gridDim.z};
  for (int i = 0; i < 12; ++i) st_global_u32(out + i, v[i]);
}

// In: three words a thread, f32 bits; out: 9 words.
KERNEL(probe_arithmetic, ProbeParams, 256, 1) {
  const uint32_t t = blockIdx.x * 256 + threadIdx.x;
  if (t >= params.n[0]) return;
  const uint32_t *in = params.in + 3 * t;
  const float a = mov_f32_b32(ld_global_u32(in)), b = ld_global_nc_f32(in + 1), c = ld_global_nc_f32(in + 2);
  uint32_t *out = params.out + 9 * t;
  st_global_f32(out, add_rn_f32(a, b));
  st_global_f32(out + 1, mul_rn_f32(a, b));
  st_global_f32(out + 2, div_rn_f32(a, b));
  st_global_f32(out + 3, fma_rn_f32(a, b, c));
  st_global_u32(out + 4, uint32_t(cvt_rni_s32_f32(a)));
  st_global_f32(out + 5, cvt_rn_f32_s32(int32_t(mov_b32_f32(a))));
  st_global_u32(out + 6, cvt_rn_bf16_f32(a).bits);
  st_global_u32(out + 7, cvt_rn_f16_f32(a).bits);
  st_global_f32(out + 8, cvt_f32_f16(F16{uint16_t(mov_b32_f32(a))}));
}

DEVICE void st_global_u64(uint32_t *&out, uint64_t v) {
  st_global_v2(out, {uint32_t(v), uint32_t(v >> 32)});
  out += 2;
}

// In: two f64 a thread, a and b, whose words are also used as other types; out: 22 words.
KERNEL(probe_wide_arithmetic, ProbeParams, 256, 1) {
  const uint32_t t = blockIdx.x * 256 + threadIdx.x;
  if (t >= params.n[0]) return;
  const U32x4 in = ld_global_v4(params.in + 4 * t);
  const uint64_t a_bits = uint64_t(in.y) << 32 | in.x, b_bits = uint64_t(in.w) << 32 | in.z;
  const double a = mov_f64_b64(a_bits), b = mov_f64_b64(b_bits);
  const float single = mov_f32_b32(in.x);
  uint32_t *out = params.out + 22 * t;
  const double wide[7] = {add_rn_f64(a, b),    mul_rn_f64(a, b),     div_rn_f64(a, b), cvt_f64_f32(single),
                          cvt_rn_f64_s32(int32_t(in.x)), cvt_rn_f64_u32(in.x), cvt_rn_f64_u64(a_bits)};
  for (double v : wide) st_global_u64(out, mov_b64_f64(v));
  st_global_u64(out, shr_u64(a_bits, in.z));
  st_global_u64(out, uint64_t(shf_l_wrap(in.x, in.y, in.z)) << 32 | clz_b64(a_bits >> (in.z & 63)));
  st_global_u64(out, uint64_t(mov_b32_f32(abs_f32(single))) << 32 | mov_b32_f32(cvt_rn_f32_u32(in.x)));
  const uint64_t logarithm = mov_b32_f32(lg2_approx_ftz_f32(single));
  st_global_u64(out, logarithm << 32 | mov_b32_f32(cvt_rn_f32_f64(a)));
}

// n[0]: 0 bf16, 1 f16, 2 s8; n[1] times the same product, on registers only: the cost of mma.sync.
KERNEL(bench_mma, ProbeParams, 128, 1) {
  const uint32_t t = threadIdx.x;
  // Small numbers in both 16-bit types.
  const uint32_t a[4] = {0x3c003c01 + t, 0x3c013c02 + t, 0x3c033c01 + t, 0x3c003c04 + t},
                 b[2] = {0x3c003c02 + t, 0x3c053c01};
  float d[4] = {};
  int32_t sum[4] = {};
  for (uint32_t i = 0; i < params.n[1]; ++i) {
    if (params.n[0] == 0) mma_m16n8k16(Bf16{}, d, a, b);
    if (params.n[0] == 1) mma_m16n8k16(F16{}, d, a, b);
    if (params.n[0] == 2) mma_m16n8k32(sum, a, b);
  }
  for (uint32_t i = 0; i < 4; ++i)
    st_global_u32(params.out + t % 16 * 4 + i, uint32_t(sum[i]) + uint32_t(d[i]));
}

// In: six words a thread: two to subtract, two and a selector to permute, a float to truncate to an integer;
// in bf16 the first two are also multiplied and the last added. Out: four words.
KERNEL(probe_conversions, ProbeParams, 256, 1) {
  const uint32_t t = blockIdx.x * 256 + threadIdx.x;
  if (t >= params.n[0]) return;
  const uint32_t *in = params.in + 6 * t;
  uint32_t *out = params.out + 4 * t;
  st_global_u32(out, sub_rn_f16x2(ld_global_u32(in), ld_global_u32(in + 1)));
  st_global_u32(out + 1, prmt(ld_global_u32(in + 2), ld_global_u32(in + 3), ld_global_u32(in + 4)));
  st_global_u32(out + 2, uint32_t(cvt_rzi_s32_f32(ld_global_nc_f32(in + 5))));
  st_global_u32(out + 3, fma_rn_bf16x2(ld_global_u32(in), ld_global_u32(in + 1), ld_global_u32(in + 5)));
}

// Eight bytes written by one lane and read by another.
KERNEL(probe_shared_pairs, ProbeParams, 32, 1) {
  const uint32_t s = dynamic_shared(), lane = lane_id();
  st_shared_u32(s + 8 * lane, 1000 + lane), st_shared_u32(s + 8 * lane + 4, ~lane);
  bar_warp_sync();
  const U32x2 v = ld_shared_v2(s + 8 * (31 - lane) + params.n[0]);
  st_global_v2(params.out + 2 * lane, v);
}

// Copies that arrive on an mbarrier when complete: 16 bytes a thread, read by its neighbour; twice, in two
// phases.
KERNEL(probe_noinc, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), t = threadIdx.x, barrier = s + 64 * 16;
  if (t == 0) mbarrier_init(barrier, 64);
  barrier_sync_all();
  for (uint32_t phase = 0; phase < 2; ++phase) {
    cp_async_cg_16(s + 16 * t, params.in + 4 * (64 * phase + t));
    cp_async_mbarrier_arrive_noinc(barrier);
    while (!mbarrier_try_wait_parity(barrier, phase)) {
    }
    st_global_v4(params.out + 4 * (64 * phase + t), ld_shared_v4(s + 16 * (63 - t)));
    barrier_sync_all();
  }
}

// Thread n[0] executes trap, if it exists.
KERNEL(probe_trap, ProbeParams, 64, 1) {
  if (threadIdx.x == params.n[0]) trap();
  st_global_u32(params.out + threadIdx.x, 1);
}
