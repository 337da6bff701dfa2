// Every wrapper and every shape once, so that both compilers see all of them. Never launched.
#include "ptx.cuh"

struct EveryWrapperParams {
  TensorMap map;
  void *global;
};

namespace {

using namespace ptx;

template <int kN>
DEVICE void both_16(float *out, uint64_t a, uint64_t b, const uint32_t (&fragment)[4], int keep) {
  float d[kN / 2] = {};
  wgmma_fence();
  wgmma_m64k16<kN>(Bf16{}, d, a, b, keep);
  wgmma_m64k16<kN>(F16{}, d, a, b, keep);
  wgmma_m64k16<kN>(Bf16{}, d, fragment, b, keep);
  wgmma_m64k16<kN>(F16{}, d, fragment, b, keep);
  wgmma_commit_group();
  wgmma_wait_group<0>();
  for (int i = 0; i < kN / 2; ++i) st_global_f32(out + i, d[i]);
}
template <int kN>
DEVICE void both_8(float *out, uint64_t a, uint64_t b, const uint32_t (&fragment)[4], int keep) {
  if constexpr (kIsS8Columns<kN>) {
    int32_t d[kN / 2] = {};
    wgmma_fence();
    wgmma_m64k32_s8<kN>(d, a, b, keep);
    wgmma_m64k32_s8<kN>(d, fragment, b, keep);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    for (int i = 0; i < kN / 2; ++i) st_global_u32(out + i, uint32_t(d[i]));
  }
}
template <int kN>
DEVICE void all_shapes(float *out, uint64_t a, uint64_t b, const uint32_t (&fragment)[4], int keep) {
  both_16<kN>(out, a, b, fragment, keep);
  both_8<kN>(out, a, b, fragment, keep);
  if constexpr (kN > 8) all_shapes<kN - 8>(out, a, b, fragment, keep);
}

}  // namespace

KERNEL(every_wgmma_sm90a, EveryWrapperParams, 128, 1) {
  const uint32_t s = dynamic_shared();
  const uint32_t fragment[4] = {threadIdx.x, s, 2, 3};
  const uint64_t a = wgmma_descriptor(s, Swizzle::bytes_128, 1024);
  all_shapes<256>(static_cast<float *>(params.global), a, a, fragment, int(threadIdx.x));
}

KERNEL(every_wrapper_sm90a, EveryWrapperParams, 128, 1) {
  const uint32_t s = dynamic_shared();
  void *global = params.global;
  griddepcontrol_wait();
  griddepcontrol_launch_dependents();
  setmaxnreg_dec<40>();
  setmaxnreg_inc<232>();
  prefetch_tensormap(&params.map);

  mbarrier_init(s, 1);
  fence_mbarrier_init();
  barrier_cluster_arrive();
  barrier_cluster_wait();
  tma_load_2d(s + 1024, &params.map, 0, 0, s);
  tma_load_2d_hint(s + 1024, &params.map, 0, 0, s, createpolicy_evict_first() + createpolicy_evict_last());
  tma_load_2d_multicast(s + 1024, &params.map, 0, 0, s, 3);
  mbarrier_arrive(s);
  mbarrier_arrive_expect_tx(s, 128);
  mbarrier_arrive_cluster(mapa(s, cluster_block_rank() ^ 1));
  cp_async_mbarrier_arrive_noinc(s);
  while (!mbarrier_try_wait_parity(s, 0)) {
  }
  while (!mbarrier_try_wait_parity_cluster(s, 0)) {
  }
  fence_proxy_async();
  tma_store_2d(&params.map, 0, 0, s + 1024);
  bulk_commit_group();
  bulk_wait_group_read<0>();
  bulk_wait_group<0>();
  st_shared_cluster_u32(mapa(s, 0), ld_shared_cluster_u32(mapa(s, cluster_block_count() - 1)));
  mbarrier_inval(s);

  if (elect_sync()) st_global_u32(global, vote_ballot(vote_any(threadIdx.x == 3)));
  uint32_t v[4];
  ldmatrix_x1(v[0], s);
  stmatrix_x1(s, v[0]);
  stmatrix_x1_trans(s, v[0]);
  uint32_t pair[2];
  ldmatrix_x2(pair, s);
  stmatrix_x2(s, pair);
  stmatrix_x2_trans(s, pair);
  ldmatrix_x4(v, s);
  stmatrix_x4(s, v);
  stmatrix_x4_trans(s, v);
  trap();
}
