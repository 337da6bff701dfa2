// bf16 by wgmma for rows that are picked by index: out[row, id] = sum over k of weights[id,
// k]·rows[indices[row], k].
//
// A block computes 128 ids x 32 rows. TMA cannot gather rows, so the producing warpgroup's 128 threads copy
// them by cp.async, into the same stage that TMA fills with weights: the stage's barrier counts 128 threads'
// copies, and one arrival that announces TMA's bytes.
#include "microkernels/tile.cuh"

namespace {

using namespace microkernels;

constexpr uint32_t kConsumers = 2, kBlockN = 64 * kConsumers, kBlockM = 32, kStages = 4;
constexpr uint32_t kWeightBytes = kBlockN * kRowBytes, kStageBytes = kWeightBytes + kBlockM * kRowBytes;
constexpr uint32_t kGatherers = 128, kVectors = kRowBytes / 16, kRowsAtOnce = kGatherers / kVectors;
constexpr uint32_t kStep = kRowBytes / 2;  // elements of k per stage

struct Product {
  const GatherMicrokernelParams &p;
  uint32_t shared = dynamic_shared();
  uint32_t first_id = blockIdx.x * kBlockN, first_row = blockIdx.y * kBlockM;
  Ring<kStages> ring{shared + kStages * kStageBytes};

  DEVICE uint32_t stage() const { return shared + ring.stage * kStageBytes; }

  // The source of row `row` of the tile; null past the end, or where the index is out of range.
  DEVICE const uint16_t *source(uint32_t row) const {
    if (first_row + row >= p.row_count) return nullptr;
    const uint32_t index = ld_global_nc_u32(p.indices + first_row + row);
    return index < p.source_rows ? p.rows + uint64_t(index) * p.hidden : nullptr;
  }

  DEVICE void produce() {
    const uint32_t row = threadIdx.x / kVectors, vector = threadIdx.x % kVectors;
    const uint16_t *sources[kBlockM / kRowsAtOnce];
#pragma unroll
    for (uint32_t i = 0; i < kBlockM / kRowsAtOnce; ++i) sources[i] = source(row + i * kRowsAtOnce);

    for (uint32_t k = 0; k < p.hidden; k += kStep, ring.advance()) {
      ring.wait_empty();
      if (threadIdx.x == 0) {
        mbarrier_arrive_expect_tx(ring.full(), kWeightBytes);
        for (uint32_t half = 0; half < kBlockN; half += 64)
          tma_load_2d(stage() + half * kRowBytes, &p.weights, int32_t(k), int32_t(first_id + half),
                      ring.full());
      }
      const uint32_t at = k + vector * 8;
#pragma unroll
      for (uint32_t i = 0; i < kBlockM / kRowsAtOnce; ++i) {
        const bool inside = sources[i] && at < p.hidden;
        cp_async_cg_16(vector_address(stage() + kWeightBytes, row + i * kRowsAtOnce, vector),
                       inside ? sources[i] + at : p.rows, inside ? 16 : 0);
      }
      cp_async_mbarrier_arrive_noinc(ring.full());
    }
    cp_async_wait_all();  // a thread's copies may not outlive it
  }

  DEVICE void consume(uint32_t consumer) {
    float d[kBlockM / 2];
    const bool speaks = threadIdx.x % 128 == 0;
    uint32_t finished = 0;  // the barrier of the stage whose products are under way
    for (uint32_t k = 0; k < p.hidden; k += kStep, ring.advance()) {
      ring.wait_full();
      // cp.async writes through the generic proxy, as ordinary stores do. No thread of the producer runs
      // after a copy has landed, so the consumers execute the fence.
      fence_proxy_async();
      const uint64_t weights = tile_descriptor(stage() + consumer * 64 * kRowBytes);
      const uint64_t rows = tile_descriptor(stage() + kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        wgmma_m64k16<kBlockM>(Bf16{}, d, weights + i * kNextK, rows + i * kNextK, k != 0 || i != 0);
      wgmma_commit_group();
      wgmma_wait_group<1>();
      if (speaks && finished) mbarrier_arrive(finished);
      finished = ring.empty();
    }
    wgmma_wait_group<0>();
    store_accumulators<kBlockM, float>(p.out, d, first_id + consumer * 64, first_row, p.vocab, p.row_count);
  }
};

}  // namespace

KERNEL(microkernel_gather_bf16_sm90a, GatherMicrokernelParams, 384, 1) {
  Product product{params};
  const uint32_t role = threadIdx.x / 128;
  if (threadIdx.x == 0) product.ring.init(kGatherers + 1, kConsumers);
  barrier_sync_all();
  if (role == 0) {
    setmaxnreg_dec<40>();
    product.produce();
  } else {
    setmaxnreg_inc<232>();
    product.consume(role - 1);
  }
}
