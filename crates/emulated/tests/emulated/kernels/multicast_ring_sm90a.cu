// The int8 wgmma microkernel with clusters of two blocks along the rows: each loads half of the weights for
// both.
#include "microkernels/tile.cuh"

using namespace microkernels;

namespace {

constexpr uint32_t kBlocks = 2, kBlockN = 64, kBlockM = 32, kStages = 3;
constexpr uint32_t kWeightBytes = kBlockN * kRowBytes, kStageBytes = kWeightBytes + kBlockM * kRowBytes;

struct Product {
  const WgmmaMicrokernelParams &p;
  uint32_t shared = dynamic_shared();
  uint32_t rank = cluster_block_rank(), first_id = blockIdx.x * kBlockN, first_row = blockIdx.y * kBlockM;
  Ring<kStages> ring{shared + kStages * kStageBytes};

  DEVICE uint32_t stage() const { return shared + ring.stage * kStageBytes; }

  DEVICE void produce() {
    for (uint32_t k = 0; k < p.hidden; k += kRowBytes, ring.advance()) {
      // Both blocks' consumers have read the stage: this block overwrites half of it in both.
      ring.wait_empty();
      mbarrier_arrive_expect_tx(ring.full(), kStageBytes);
      const uint32_t half = rank * kBlockN / kBlocks;
      tma_load_2d_multicast(stage() + half * kRowBytes, &p.weights, int32_t(k), int32_t(first_id + half),
                            ring.full(), 3);
      tma_load_2d(stage() + kWeightBytes, &p.rows, int32_t(k), int32_t(first_row), ring.full());
    }
  }

  DEVICE void consume() {
    int32_t d[kBlockM / 2];
    for (uint32_t k = 0; k < p.hidden; k += kRowBytes, ring.advance()) {
      ring.wait_full();
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        wgmma_m64k32_s8<kBlockM>(d, tile_descriptor(stage()) + i * kNextK,
                                 tile_descriptor(stage() + kWeightBytes) + i * kNextK, k != 0 || i != 0);
      wgmma_commit_group();
      wgmma_wait_group<0>();
      if (threadIdx.x % 128 < kBlocks) mbarrier_arrive_cluster(mapa(ring.empty(), threadIdx.x % 128));
    }
    store_accumulators<kBlockM, int32_t>(static_cast<int32_t *>(p.out), d, first_id, first_row, p.vocab,
                                         p.row_count);
  }
};

}  // namespace

KERNEL(multicast_ring, WgmmaMicrokernelParams, 256, 1) {
  Product product{params};
  if (threadIdx.x == 0) product.ring.init(1, kBlocks);
  // The neighbour's barriers must be initialised before anything is sent.
  barrier_cluster_arrive();
  barrier_cluster_wait();
  if (threadIdx.x == 0) product.produce();
  if (threadIdx.x >= 128) product.consume();
  // A block must not end while its neighbour still sends.
  barrier_cluster_arrive();
  barrier_cluster_wait();
}
