// Every wrapper that sm_80 has, once, so that both compilers see all of them. Never launched.
#include "ptx.cuh"

struct EveryWrapperSm80Params {
  char *global;
};

KERNEL(every_wrapper_sm80, EveryWrapperSm80Params, 128, 1) {
  using namespace ptx;
  const uint32_t s = dynamic_shared();
  char *g = params.global;

  cp_async_ca<4>(s, g, 3);
  cp_async_ca<8>(s + 8, g);
  cp_async_ca<16>(s + 16, g);
  cp_async_cg_16(s + 32, g, 0);
  cp_async_commit_group();
  cp_async_wait_group<1>();
  cp_async_wait_all();
  mbarrier_init(s + 64, 1);
  cp_async_mbarrier_arrive_noinc(s + 64);
  mbarrier_arrive(s + 64);
  mbarrier_inval(s + 64);
  barrier_sync_all();
  barrier_arrive(1, 128);
  barrier_sync(2, 128);
  bar_warp_sync();

  uint32_t d0, d2[2], d4[4], e4[4];
  ldmatrix_x1(d0, s);
  ldmatrix_x2(d2, s);
  ldmatrix_x4(d4, s);
  float f[4] = {};
  mma_m16n8k16(Bf16{}, f, d4, d2);
  ldmatrix_x1_trans(d0, s);
  ldmatrix_x2_trans(d2, s);
  ldmatrix_x4_trans(e4, s);
  mma_m16n8k16(F16{}, f, e4, d2);
  int32_t i[4] = {};
  mma_m16n8k32(i, e4, d2);
  st_shared_u8(s, uint8_t(i[0] + i[1] + i[2] + i[3]));
  st_shared_u16(s, ld_shared_u16(s + 4) + ld_global_nc_u16(g));
  st_shared_u32(s, ld_shared_u32(s + 4) + d0);
  st_shared_f32(s, ld_shared_f32(s + 4) + f[0] + f[1] + f[2] + f[3]);
  const U32x4 v = ld_shared_v4(s);
  st_shared_v4(s + 16, v);
  st_shared_v2(s + 16, {v.x, v.y});

  const uint32_t votes = vote_ballot(lane_id() == 1) + vote_any(true) + vote_all(true);
  const uint32_t shuffled = shfl_bfly(votes, 1) + shfl_idx(votes, 2) + shfl_up(votes, 3) + shfl_down(votes, 4);
  st_global_u16(g, uint16_t(shuffled));
  st_global_u32(g, ld_global_u32(g + 4) + ld_global_nc_u32(g + 8));
  st_global_f32(g, ld_global_nc_f32(g + 8));
  st_global_v2(g, ld_global_v2(g + 8));
  st_global_v2(g, ld_global_nc_no_allocate_v2(g + 8));
  st_global_v4(g, ld_global_v4(g + 16));
  st_global_v4(g, ld_global_nc_no_allocate_v4(g + 16));
  fence_acq_rel_gpu();
  st_global_u32(g, atom_add_u32(g, 1) + atom_max_u32(g, 1) + atom_or_u32(g, 1) + atom_exch_u32(g, 1) +
                       atom_cas_u32(g, 1, 2) + uint32_t(atom_add_u64(g, 1) + atom_max_u64(g, 1)));
  trap();
}
