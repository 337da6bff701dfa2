// One small kernel for each group of instructions that sm_90a adds.
#include "probe.h"
#include "ptx.cuh"

using namespace ptx;

namespace {

DEVICE void wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait_parity(barrier, parity)) {
  }
}

DEVICE void copy_out(uint32_t from, uint32_t words, uint32_t *out) {
  for (uint32_t i = threadIdx.x; i < words; i += blockDim.x)
    st_global_u32(out + i, ld_shared_u32(from + 4 * i));
}

}  // namespace

// in: 4 words per lane; n[1]: matrices; n[2]: transposed; out: the n[0] words of shared memory.
KERNEL(probe_stmatrix, ProbeParams, 32, 1) {
  const uint32_t s = dynamic_shared(), lane = lane_id();
  uint32_t v[4];
  for (uint32_t i = 0; i < 4; ++i) v[i] = ld_global_u32(params.in + lane * 4 + i);
  const uint32_t two[2] = {v[0], v[1]};
  const uint32_t row = s + 16 * (lane % (8 * params.n[1]));
  switch (params.n[1] * 2 + params.n[2]) {
    case 2: stmatrix_x1(row, v[0]); break;
    case 3: stmatrix_x1_trans(row, v[0]); break;
    case 4: stmatrix_x2(row, two); break;
    case 5: stmatrix_x2_trans(row, two); break;
    case 8: stmatrix_x4(row, v); break;
    case 9: stmatrix_x4_trans(row, v); break;
  }
  bar_warp_sync();
  copy_out(s, params.n[0], params.out);
}

// Two threads pass a number back and forth n[0] times; out: its final value.
KERNEL(probe_mbarrier, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), ping = s + 16, pong = s + 24;
  if (threadIdx.x == 0) {
    mbarrier_init(ping, 1);
    mbarrier_init(pong, 1);
    fence_mbarrier_init();
    st_shared_u32(s, 1);
  }
  barrier_sync_all();
  for (uint32_t round = 0; round < params.n[0]; ++round) {
    if (threadIdx.x == 0) {
      st_shared_u32(s, ld_shared_u32(s) * 3);
      mbarrier_arrive(ping);
      wait(pong, round & 1);
    } else if (threadIdx.x == 32) {
      wait(ping, round & 1);
      st_shared_u32(s, ld_shared_u32(s) + 1);
      mbarrier_arrive(pong);
    }
  }
  barrier_sync_all();
  if (threadIdx.x == 5) st_global_u32(params.out, ld_shared_u32(s));
  barrier_sync_all();
  if (threadIdx.x == 0) {
    mbarrier_inval(ping);
    st_shared_u32(ping, 7);  // after inval the word is ordinary memory again
    mbarrier_init(pong + 8, 3);
  }
}

// n[0], n[1]: x and y; n[2]: words of a tile; n[3]: a cache policy or none; out: the tile as it lies in
// shared memory.
KERNEL(probe_tma_load, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), barrier = s + 4 * params.n[2];
  if (threadIdx.x == 0) {
    prefetch_tensormap(&params.map);
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(barrier, 4 * params.n[2]);
    if (params.n[3])
      tma_load_2d_hint(s, &params.map, int32_t(params.n[0]), int32_t(params.n[1]), barrier,
                       params.n[3] == 1 ? createpolicy_evict_first() : createpolicy_evict_last());
    else
      tma_load_2d(s, &params.map, int32_t(params.n[0]), int32_t(params.n[1]), barrier);
  }
  barrier_sync_all();
  wait(barrier, 0);
  copy_out(s, params.n[2], params.out);
}

// n[0] bytes from byte n[1] of `in` to byte n[2] of shared memory, in n[3] copies of one phase; out: all n[4]
// words of shared memory.
KERNEL(probe_bulk_load, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared(), barrier = s + 4 * params.n[4], bytes = params.n[0] / params.n[3];
  for (uint32_t i = threadIdx.x; i < params.n[4]; i += 64) st_shared_u32(s + 4 * i, ~i);
  fence_proxy_async();
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  barrier_sync_all();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, params.n[0]);
    const uint8_t *from = reinterpret_cast<const uint8_t *>(params.in) + params.n[1];
    for (uint32_t at = 0; at < params.n[0]; at += bytes)
      bulk_load(s + params.n[2] + at, from + at, bytes, barrier);
  }
  wait(barrier, 0);
  copy_out(s, params.n[4], params.out);
}

// n[0], n[1]: x and y; n[2]: words of a tile; in: the tile in its shared-memory layout.
KERNEL(probe_tma_store, ProbeParams, 64, 1) {
  const uint32_t s = dynamic_shared();
  for (uint32_t i = threadIdx.x; i < params.n[2]; i += 64)
    st_shared_u32(s + 4 * i, ld_global_u32(params.in + i));
  fence_proxy_async();
  barrier_sync_all();
  if (threadIdx.x == 0) {
    tma_store_2d(&params.map_out, int32_t(params.n[0]), int32_t(params.n[1]), s);
    bulk_commit_group();
    bulk_wait_group_read<0>();
  }
  barrier_sync_all();
  st_shared_u32(s + 4 * threadIdx.x, 0);  // free to be overwritten
  if (threadIdx.x == 0) bulk_wait_group<0>();
}

// A cluster of n[1] blocks: each loads a share of the tile of n[0] words, n[2] rows high, for all. out: each
// block's copy.
KERNEL(probe_multicast, ProbeParams, 32, 1) {
  const uint32_t blocks = params.n[1], rank = cluster_block_rank(), words = params.n[0];
  const uint32_t s = dynamic_shared(), barrier = s + 4 * words, share = 4 * words / blocks;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
  }
  barrier_cluster_arrive();
  barrier_cluster_wait();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, 4 * words);
    tma_load_2d_multicast(s + rank * share, &params.map, 0, int32_t(rank * params.n[2] / blocks), barrier,
                          uint16_t((1 << blocks) - 1));
  }
  wait(barrier, 0);
  copy_out(s, words, params.out + rank * words);
  barrier_cluster_arrive();
  barrier_cluster_wait();
}

// Every block writes into its right neighbour's memory, signals it by a remote arrival, and reads its left
// neighbour's memory.
KERNEL(probe_cluster, ProbeParams, 32, 1) {
  const uint32_t blocks = cluster_block_count(), rank = cluster_block_rank(), right = (rank + 1) % blocks;
  const uint32_t s = dynamic_shared(), barrier = s + 256, lane = lane_id();
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 64);
    fence_mbarrier_init();
  }
  st_shared_u32(s + 128 + 4 * lane, 1000 * rank + lane);
  barrier_cluster_arrive();
  barrier_cluster_wait();
  st_shared_cluster_u32(mapa(s + 4 * lane, right), 100 * rank + lane);
  mbarrier_arrive_relaxed_cluster(mapa(barrier, right)), mbarrier_arrive_cluster(mapa(barrier, right));
  while (!mbarrier_try_wait_parity_cluster(barrier, 0)) {
  }
  const uint32_t given = ld_shared_u32(s + 4 * (31 - lane));
  const uint32_t taken = ld_shared_cluster_u32(mapa(s + 128 + 4 * lane, (rank + blocks - 1) % blocks));
  uint32_t *out = params.out + 64 * blockIdx.x;
  st_global_u32(out + lane, given);
  st_global_u32(out + 32 + lane, taken);
  barrier_cluster_arrive();
  barrier_cluster_wait();
}

namespace {

template <int kN, class Type>
DEVICE void one_product(const ProbeParams &p, Type type, uint64_t a, uint64_t b,
                        const uint32_t (&fragment)[4]) {
  const uint32_t words = uint32_t(kN) / 2;
  const uint32_t *c = p.in + p.n[4] + 4 * 128 + threadIdx.x * words;
  if constexpr (sizeof(Type) == 4) {
    int32_t d[kN / 2];
    for (uint32_t i = 0; i < words; ++i) d[i] = int32_t(ld_global_u32(c + i));
    wgmma_fence();
    if (p.n[2])
      wgmma_m64k32_s8<kN>(d, fragment, b, p.n[3] & 1);
    else
      wgmma_m64k32_s8<kN>(d, a, b, p.n[3] & 1);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    for (uint32_t i = 0; i < words; ++i) st_global_u32(p.out + threadIdx.x * words + i, uint32_t(d[i]));
  } else {
    float d[kN / 2];
    for (uint32_t i = 0; i < words; ++i) d[i] = ld_global_nc_f32(c + i);
    wgmma_fence();
    if (p.n[2])
      wgmma_m64k16<kN>(type, d, fragment, b, p.n[3] & 1);
    else
      wgmma_m64k16<kN>(type, d, a, b, p.n[3] & 1);
    wgmma_commit_group();
    wgmma_wait_group<0>();
    for (uint32_t i = 0; i < words; ++i) st_global_f32(p.out + threadIdx.x * words + i, d[i]);
  }
}

template <int kN>
DEVICE void product_of(const ProbeParams &p, uint64_t a, uint64_t b, const uint32_t (&fragment)[4]) {
  if (int(p.n[1]) == kN) {
    const uint32_t type = p.n[0];
    if (type == 0) one_product<kN>(p, Bf16{}, a, b, fragment);
    if (type == 1) one_product<kN>(p, F16{}, a, b, fragment);
    if constexpr (kIsS8Columns<kN>)
      if (type == 2) one_product<kN>(p, 0, a, b, fragment);
  } else if constexpr (kN > 8) {
    product_of<kN - 8>(p, a, b, fragment);
  }
}

}  // namespace

// n: type (0 bf16, 1 f16, 2 s8), N, a from registers, keep | swizzle << 1, words of the image, distance of
// the tiles in bytes and their k offset << 24. in: the image of shared memory with both tiles, then a's
// fragments, then d.
KERNEL(probe_wgmma, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), words = params.n[4];
  for (uint32_t i = threadIdx.x; i < words; i += 128) st_shared_u32(s + 4 * i, ld_global_u32(params.in + i));
  fence_proxy_async();
  barrier_sync_all();
  uint32_t fragment[4];
  for (uint32_t i = 0; i < 4; ++i) fragment[i] = ld_global_u32(params.in + words + threadIdx.x * 4 + i);
  const uint32_t swizzle = params.n[3] >> 1, tile = params.n[5] & 0xffffff, k = params.n[5] >> 24;
  const uint32_t width = swizzle == 0 ? 16 : 256u >> swizzle;
  // Without a swizzle: the second 16 bytes of k are 128 bytes further, the next eight rows 256.
  const uint32_t stride = swizzle == 0 ? 256 : 8 * width, leading = swizzle == 0 ? 128 : 16;
  const auto kind = static_cast<Swizzle>(swizzle);
  product_of<256>(params, wgmma_descriptor(s + k, kind, stride, leading),
                  wgmma_descriptor(s + tile + k, kind, stride, leading), fragment);
}

// The first kernel of a pair stores, triggers the second, and stores once more; the second reads all of it.
KERNEL(probe_primary, ProbeParams, 32, 1) {
  const uint32_t at = blockIdx.x * 32 + threadIdx.x;
  griddepcontrol_launch_dependents();
  st_global_u32(params.out + at, at * at);
}
KERNEL(probe_secondary, ProbeParams, 32, 1) {
  const uint32_t at = blockIdx.x * 32 + threadIdx.x;
  uint32_t v = ld_global_nc_u32(params.in + at);  // not stored by the first kernel
  griddepcontrol_wait();
  v += ld_global_u32(params.out + (gridDim.x * 32 - 1 - at));
  st_global_u32(params.out + gridDim.x * 32 + at, v);
}

// One warpgroup waits for registers that the other releases. n[0]: how many the second requests.
KERNEL(probe_registers, ProbeParams, 256, 1) {
  if (threadIdx.x < 128) {
    setmaxnreg_inc<256>();
    st_global_u32(params.out, 1);
    setmaxnreg_dec<128>();
  } else {
    setmaxnreg_dec<152>();
    setmaxnreg_inc<200>();
    st_global_u32(params.out + 1, 1);
  }
}

// out: the two results of each thread.
KERNEL(probe_elect, ProbeParams, 64, 1) {
  st_global_u32(params.out + threadIdx.x, elect_sync());
  st_global_u32(params.out + 64 + threadIdx.x, elect_sync());
}

// n[0] groups of four int8 wgmma of 64 x 16, each waited for: the cost of wgmma. 80 rows of 128 bytes.
KERNEL(bench_wgmma, ProbeParams, 128, 1) {
  const uint32_t s = dynamic_shared(), t = threadIdx.x;
  for (uint32_t i = t; i < 80 * 8; i += 128) st_shared_v4(s + 16 * i, {i, i + 1, i + 2, i + 3});
  fence_proxy_async();
  barrier_sync_all();
  const uint64_t a = wgmma_descriptor(s, Swizzle::bytes_128, 1024),
                 b = wgmma_descriptor(s + 64 * 128, Swizzle::bytes_128, 1024);
  int32_t d[8];
  for (uint32_t i = 0; i < params.n[0]; ++i) {
    wgmma_fence();
    for (uint32_t k = 0; k < 4; ++k) wgmma_m64k32_s8<16>(d, a + 2 * k, b + 2 * k, i != 0 || k != 0);
    wgmma_commit_group();
    wgmma_wait_group<0>();
  }
  st_global_u32(params.out + t, uint32_t(d[0]) + uint32_t(d[7]));
}
