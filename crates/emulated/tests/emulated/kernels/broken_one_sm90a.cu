// One thread of one block makes one mistake: n[0] selects it, n[1] is the block (counted along x, then y,
// then z) and n[2] the thread. 128 threads, clusters of two blocks, 1024 bytes of shared memory; `in` and
// `out` of 64 words.
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

KERNEL(broken_one, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), t = threadIdx.x, rank = cluster_block_rank(), barrier = s + 512;
  const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const bool here = block == params.n[1] && t == params.n[2];
  const uint32_t what = here ? params.n[0] : 0;
  if (t == 0) {
    mbarrier_init(barrier, 128);
    fence_mbarrier_init();
  }
  st_shared_u32(s + 4 * t, t);
  barrier_cluster_arrive();
  barrier_cluster_wait();
  uint32_t v = ld_shared_u32(s + 4 * t);
  if (what == 1) v += ld_shared_u32(s + 1024);
  if (what == 2) v += ld_shared_u32(s + 6);
  if (what == 3) v += ld_global_u32(params.in + 64);
  if (what == 4) st_global_u32(const_cast<uint32_t *>(params.in) + 5, v);
  if (what == 5) trap();
  if (what == 6) st_shared_u32(barrier, v);
  if (what == 7) v += ld_shared_cluster_u32(mapa(s + 1024, rank ^ 1));
  if (what == 8) mbarrier_arrive(s + 520);
  if (what == 9) v += shfl_idx(v, 7, 1u << t % 32);
  if (what == 10) cp_async_cg_16(s + 8, params.in);
  if (what == 11) st_shared_u32(s + 4 * (t ^ 1), v);  // the neighbour reads this word
  if (what == 12) cp_async_ca<4>(s + 4 * t, params.in);  // never waited for
  mbarrier_arrive(barrier);
  while (!mbarrier_try_wait_parity(barrier, 0)) {
  }
  st_global_u32(params.out + t % 64, v);
  barrier_cluster_arrive();
  barrier_cluster_wait();
}
