// Every sm_80 wrapper of ptx.cuh, once: compiled by the test, never launched.
#include "ptx.cuh"

struct WrapperParams {
  uint32_t *out;
  const void *in;
  uint32_t address;
};

KERNEL(shared_memory, WrapperParams, 128, 1) {
  const uint32_t at = params.address;
  const ptx::U32x4 four = ptx::ld_shared_v4(at);
  ptx::st_shared_u8(at, uint8_t(four.x)), ptx::st_shared_u16(at, ptx::ld_shared_u16(at));
  const ptx::U32x2 pair = ptx::ld_shared_v2(at);
  ptx::st_shared_v2(at, {pair.y, pair.x});
  ptx::st_shared_u32(at, ptx::ld_shared_u32(at)), ptx::st_shared_f32(at, ptx::ld_shared_f32(at));
  ptx::st_shared_v2(at, {four.y, four.z}), ptx::st_shared_v4(at, four);
  uint32_t one, two[2], eight[4];
  ptx::ldmatrix_x1(one, at), ptx::ldmatrix_x2(two, at), ptx::ldmatrix_x4(eight, at);
  ptx::st_shared_v4(at, {one, two[0] ^ two[1], eight[0] ^ eight[1], eight[2] ^ eight[3]});
  ptx::ldmatrix_x1_trans(one, at), ptx::ldmatrix_x2_trans(two, at), ptx::ldmatrix_x4_trans(eight, at);
  ptx::st_shared_v4(ptx::dynamic_shared(), {one, two[0] ^ two[1], eight[0] ^ eight[1], eight[2] ^ eight[3]});
  const uint64_t sum = ptx::atom_shared_add_u64(at, pair.x) + ptx::atom_shared_add_u32(at, pair.y);
  ptx::st_global_v2(params.out, {uint32_t(sum), uint32_t(sum >> 32)});
}

KERNEL(global_memory, WrapperParams, 128, 1) {
  uint32_t *out = params.out + 64 * threadIdx.x;
  const void *in = params.in;
  const ptx::U32x2 two = ptx::ld_global_v2(in), two_nc = ptx::ld_global_nc_no_allocate_v2(in);
  const ptx::U32x4 four = ptx::ld_global_v4(in), four_nc = ptx::ld_global_nc_no_allocate_v4(in);
  ptx::st_global_u16(out, ptx::ld_global_nc_u16(in)), ptx::st_global_u32(out + 1, ptx::ld_global_u32(in));
  ptx::st_global_u16(out + 19, ptx::ld_global_u16(in));
  ptx::st_global_u32(out + 2, ptx::ld_global_nc_u32(in)),
      ptx::st_global_f32(out + 3, ptx::ld_global_nc_f32(in));
  ptx::st_global_v2(out + 4, two), ptx::st_global_v2(out + 6, two_nc);
  ptx::st_global_v4(out + 8, four), ptx::st_global_v4(out + 12, four_nc);
  uint32_t *sums = params.out;
  uint32_t old = ptx::atom_add_u32(sums, 1) + ptx::atom_max_u32(sums, 2) + ptx::atom_or_u32(sums, 4);
  old += ptx::atom_exch_u32(sums, 5) + ptx::atom_cas_u32(sums, 6, 7);
  const uint64_t wide = ptx::atom_add_u64(sums, 1) + ptx::atom_max_u64(sums, 2);
  ptx::st_global_u8(out + 18, ptx::ld_global_u8(in)), old += ptx::ld_relaxed_u32(sums + 2);
  ptx::fence_acq_rel_gpu();
  ptx::st_global_v2(out + 16, {old + uint32_t(wide), uint32_t(wide >> 32)});
}

KERNEL(copies_and_barriers, WrapperParams, 128, 1) {
  const uint32_t at = params.address;
  ptx::cp_async_ca<4>(at, params.in), ptx::cp_async_ca<8>(at, params.in, 3),
      ptx::cp_async_ca<16>(at, params.in);
  ptx::cp_async_cg_16(at, params.in, at & 15), ptx::cp_async_cg_16_or_zeros(at, params.in, at & 1);
  ptx::cp_async_cg_16_l2_256b(at, params.in, at & 15);
  ptx::cp_async_commit_group(), ptx::cp_async_wait_group<1>(), ptx::cp_async_wait_all();
  ptx::mbarrier_init(at, 128);
  ptx::barrier_sync_all();
  ptx::mbarrier_arrive(at), ptx::cp_async_mbarrier_arrive_noinc(at), ptx::mbarrier_inval(at);
  if (threadIdx.x < 64)
    ptx::barrier_arrive(1, 128);
  else
    ptx::barrier_sync(1, 128);
}

KERNEL(warps, WrapperParams, 128, 1) {
  const uint32_t lane = ptx::lane_id();
  ptx::bar_warp_sync();
  uint32_t v = lane * lane + ptx::vote_ballot(lane & 1) + ptx::vote_any(lane & 2) + ptx::vote_all(lane & 4);
  v = ptx::shfl_bfly(v, 4), v = ptx::shfl_up(v, 2), v = ptx::shfl_down(v, 1), v = ptx::shfl_idx(v, 3);
  v += ptx::redux_max_u32(v) + ptx::redux_or_b32(v);
  if (v == 12345) ptx::trap();
  params.out[threadIdx.x] = v;
}

KERNEL(mma_sync, WrapperParams, 32, 1) {
  const uint32_t a[4] = {1, 2, 3, threadIdx.x}, b[2] = {4, threadIdx.x};
  float d[4] = {0, 0, 0, 0};
  int32_t i[4] = {0, 0, 0, 0};
  ptx::mma_m16n8k16(ptx::Bf16(), d, a, b), ptx::mma_m16n8k16(ptx::F16(), d, a, b), ptx::mma_m16n8k32(i, a, b);
  for (int j = 0; j < 4; ++j) {
    ptx::st_global_f32(params.out + threadIdx.x * 8 + j, d[j]);
    ptx::st_global_u32(params.out + threadIdx.x * 8 + 4 + j, uint32_t(i[j]));
  }
}

KERNEL(arithmetic, WrapperParams, 32, 1) {
  const float a = ptx::mov_f32_b32(threadIdx.x), b = ptx::cvt_rn_f32_s32(int32_t(threadIdx.x));
  const float v = ptx::fma_rn_f32(ptx::add_rn_f32(a, b), ptx::mul_rn_f32(a, b), ptx::div_rn_f32(a, b));
  const ptx::F16 half = ptx::cvt_rn_f16_f32(v);
  params.out[threadIdx.x] = uint32_t(ptx::cvt_rni_s32_f32(v)) + ptx::cvt_rn_bf16_f32(v).bits +
                            ptx::mov_b32_f32(ptx::cvt_f32_f16(half));
  const uint32_t difference =
      ptx::sub_rn_f16x2(params.address, ptx::fma_rn_bf16x2(threadIdx.x, params.address, 7));
  params.out[32 + threadIdx.x] =
      ptx::prmt(difference, params.address, threadIdx.x) + uint32_t(ptx::cvt_rzi_s32_f32(v));
}

KERNEL(wide_arithmetic, WrapperParams, 32, 1) {
  const uint64_t bits = uint64_t(params.address) << 32 | threadIdx.x;
  const double a = ptx::mov_f64_b64(bits), b = ptx::cvt_rn_f64_u64(bits);
  const double c = ptx::cvt_rn_f64_u32(params.address);
  const double d = ptx::add_rn_f64(a, ptx::mul_rn_f64(b, ptx::cvt_rn_f64_s32(int32_t(threadIdx.x))));
  const float e = ptx::cvt_rn_f32_f64(ptx::div_rn_f64(d, c)), f = ptx::cvt_rn_f32_u32(params.address);
  const double g = ptx::cvt_f64_f32(ptx::abs_f32(ptx::lg2_approx_ftz_f32(ptx::mul_rn_f32(e, f))));
  params.out[threadIdx.x] = uint32_t(ptx::shr_u64(ptx::mov_b64_f64(g), params.address));
  const uint32_t funnel = ptx::shf_l_wrap(params.address, threadIdx.x, 7 * threadIdx.x);
  params.out[32 + threadIdx.x] = funnel + ptx::clz_b64(bits) + ptx::popc_b32(threadIdx.x);
}
