// Every wrapper of ptx.cuh that only sm_90a has, once: compiled by the test, never launched.
#include "ptx.cuh"

struct HopperWrapperParams {
  TensorMap map;
  uint32_t *out;
  uint32_t address;
  uint64_t descriptor;
};

KERNEL(clusters, HopperWrapperParams, 128, 1) {
  const uint32_t at = params.address;
  ptx::griddepcontrol_wait(), ptx::griddepcontrol_launch_dependents();
  ptx::mbarrier_init(at, 1), ptx::fence_mbarrier_init();
  ptx::barrier_cluster_arrive(), ptx::barrier_cluster_wait();
  const uint32_t there = ptx::mapa(at, ptx::cluster_block_rank() ^ 1);
  ptx::st_shared_cluster_u32(there, ptx::ld_shared_cluster_u32(there) + ptx::cluster_block_count());
  ptx::mbarrier_arrive_cluster(there), ptx::mbarrier_arrive_relaxed_cluster(there);
  while (!ptx::mbarrier_try_wait_parity_cluster(at, 0)) {
  }
  ptx::stmatrix_x1(at, at), ptx::stmatrix_x2(at, {at, at}), ptx::stmatrix_x4(at, {at, at, at, at});
  ptx::stmatrix_x1_trans(at, at), ptx::stmatrix_x2_trans(at, {at, at}),
      ptx::stmatrix_x4_trans(at, {at, at, at, at});
}

// Every ordinary load twice: the previous kernel may write their data until griddepcontrol.wait returns.
KERNEL(dependent_reads, HopperWrapperParams, 128, 1) {
  const uint32_t *in = params.out + 128 * threadIdx.x;
  const auto sum = [in] {
    const ptx::U32x2 two = ptx::ld_global_v2(in + 4);
    const ptx::U32x4 four = ptx::ld_global_v4(in + 8);
    return ptx::ld_global_u16(in + 12) + ptx::ld_global_u32(in) + two.x + two.y + four.x + four.y + four.z +
           four.w;
  };
  const uint32_t before = sum();
  ptx::griddepcontrol_wait();
  ptx::st_shared_v2(params.address, {before, sum()});
}

KERNEL(registers, HopperWrapperParams, 256, 1) {
  if (threadIdx.x < 128)
    ptx::setmaxnreg_dec<40>();
  else
    ptx::setmaxnreg_inc<232>();
  params.out[threadIdx.x] = threadIdx.x;
}

KERNEL(tma, HopperWrapperParams, 128, 1) {
  const uint32_t at = params.address;
  if (!ptx::elect_sync()) return;
  ptx::prefetch_tensormap(&params.map);
  ptx::mbarrier_arrive_expect_tx(at, 4096);
  ptx::tma_load_2d(at, &params.map, 0, 1, at);
  ptx::tma_load_2d_hint(at, &params.map, 0, 1, at, ptx::createpolicy_evict_first());
  ptx::tma_load_2d_hint(at, &params.map, 0, 1, at, ptx::createpolicy_evict_last());
  ptx::tma_load_2d_multicast(at, &params.map, 0, 1, at, 3);
  ptx::bulk_load(at, params.out, 64, at);
  while (!ptx::mbarrier_try_wait_parity(at, 0)) {
  }
  ptx::fence_proxy_async();
  ptx::tma_store_2d(&params.map, 0, 1, at), ptx::bulk_commit_group();
  ptx::bulk_wait_group_read<1>(), ptx::bulk_wait_group<0>();
}

KERNEL(flags, HopperWrapperParams, 128, 1) {
  const uint64_t begin = ptx::globaltimer();
  while (ptx::ld_acquire_sys_u32(params.out) == 0) {
  }
  ptx::fence_proxy_async_global();
  ptx::bulk_load_multicast(params.address, params.out + 4, 64, params.address + 64, 3);
  const uint64_t passed = ptx::globaltimer() - begin;
  ptx::st_release_sys_u32(params.out + 1, uint32_t(passed));
  ptx::red_release_sys_add_u32(params.out + 2, uint32_t(passed >> 32));
}

template <int kN, class Type>
DEVICE void wgmma_16(Type type, const HopperWrapperParams &params) {
  const uint64_t b = ptx::wgmma_descriptor(params.address, ptx::Swizzle::bytes_128, 1024);
  const uint32_t a[4] = {1, 2, 3, threadIdx.x};
  float d[kN / 2];
  ptx::wgmma_fence();
  ptx::wgmma_m64k16<kN>(type, d, params.descriptor, b, 0);
  ptx::wgmma_commit_group(), ptx::wgmma_wait_group<0>();
  ptx::wgmma_fence();
  ptx::wgmma_m64k16<kN>(type, d, a, b, 1);
  ptx::wgmma_commit_group(), ptx::wgmma_wait_group<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) ptx::st_global_f32(params.out + i * 128 + threadIdx.x, d[i]);
}
template <int kN>
DEVICE void wgmma_8(const HopperWrapperParams &params) {
  const uint64_t b = ptx::wgmma_descriptor(params.address, ptx::Swizzle::bytes_128, 1024);
  const uint32_t a[4] = {1, 2, 3, threadIdx.x};
  int32_t d[kN / 2];
  ptx::wgmma_fence();
  ptx::wgmma_m64k32_s8<kN>(d, params.descriptor, b, 0);
  ptx::wgmma_commit_group(), ptx::wgmma_wait_group<0>();
  ptx::wgmma_fence();
  ptx::wgmma_m64k32_s8<kN>(d, a, b, 1);
  ptx::wgmma_commit_group(), ptx::wgmma_wait_group<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) params.out[i * 128 + threadIdx.x] = d[i];
}

// A kernel for each N: in a single one all accumulators would be live at once.
#define WGMMA_16(n)                                            \
  KERNEL(wgmma_bf16_n##n, HopperWrapperParams, 128, 1) { wgmma_16<n>(ptx::Bf16(), params); } \
  KERNEL(wgmma_f16_n##n, HopperWrapperParams, 128, 1) { wgmma_16<n>(ptx::F16(), params); }
#define WGMMA_8(n) \
  KERNEL(wgmma_s8_n##n, HopperWrapperParams, 128, 1) { wgmma_8<n>(params); }
#define BOTH(n) WGMMA_16(n) WGMMA_8(n)
BOTH(8)
BOTH(16) BOTH(24) BOTH(32) WGMMA_16(40) BOTH(48) WGMMA_16(56) BOTH(64) WGMMA_16(72) BOTH(80) WGMMA_16(88)
    BOTH(96) WGMMA_16(104) BOTH(112) WGMMA_16(120) BOTH(128) WGMMA_16(136) BOTH(144) WGMMA_16(152) BOTH(160)
        WGMMA_16(168) BOTH(176) WGMMA_16(184) BOTH(192) WGMMA_16(200) BOTH(208) WGMMA_16(216) BOTH(224)
            WGMMA_16(232) BOTH(240) WGMMA_16(248) BOTH(256)
