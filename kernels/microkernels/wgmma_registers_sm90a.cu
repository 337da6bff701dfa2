// bf16 by wgmma with the weights from registers: out[row, id] = sum over k of weights[id, k]·rows[row, k].
//
// The same blocks, tiles and order of k as wgmma_sm90a.cu; but a consumer's warps bring their weights from
// the swizzled tile into registers with ldmatrix, where a kernel may convert them (int8 to bf16), and only
// the rows are read through a descriptor. One warpgroup's ldmatrix runs while the other one's wgmma does.
#include "microkernels/tile.cuh"

namespace {

using namespace microkernels;

constexpr uint32_t kConsumers = 2, kBlockN = 64 * kConsumers, kBlockM = 64, kStages = 4;
constexpr uint32_t kWeightBytes = kBlockN * kRowBytes, kStageBytes = kWeightBytes + kBlockM * kRowBytes;
constexpr uint32_t kStep = kRowBytes / 2;  // elements of k per stage
constexpr uint32_t kWarps = 4 * kConsumers;

struct Product {
  const WgmmaMicrokernelParams &p;
  uint32_t shared = dynamic_shared();
  uint32_t first_id = blockIdx.x * kBlockN, first_row = blockIdx.y * kBlockM;
  Ring<kStages> ring{shared + kStages * kStageBytes};

  DEVICE uint32_t stage() const { return shared + ring.stage * kStageBytes; }

  DEVICE void produce() {
    for (uint32_t k = 0; k < p.hidden; k += kStep, ring.advance()) {
      ring.wait_empty();
      mbarrier_arrive_expect_tx(ring.full(), kStageBytes);
      for (uint32_t half = 0; half < kBlockN; half += 64)
        tma_load_2d(stage() + half * kRowBytes, &p.weights, int32_t(k), int32_t(first_id + half),
                    ring.full());
      tma_load_2d(stage() + kWeightBytes, &p.rows, int32_t(k), int32_t(first_row), ring.full());
    }
  }

  DEVICE void consume(uint32_t consumer) {
    const uint32_t lane = threadIdx.x % 32, matrix = lane / 8;
    // A warp holds 16 of the 64 ids. Its fragment of 16 elements of k is four matrices of 8 ids x 16 bytes:
    // ids 0-7 and 8-15 of the first 16 bytes, then of the second.
    const uint32_t id = consumer * 64 + threadIdx.x % 128 / 32 * 16 + matrix % 2 * 8 + lane % 8;
    float d[kBlockM / 2];
    for (uint32_t k = 0; k < p.hidden; k += kStep, ring.advance()) {
      ring.wait_full();
      uint32_t weights[4][4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        ldmatrix_x4(weights[i], vector_address(stage(), id, 2 * i + matrix / 2));
      const uint64_t rows = tile_descriptor(stage() + kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        wgmma_m64k16<kBlockM>(Bf16{}, d, weights[i], rows + i * kNextK, k != 0 || i != 0);
      wgmma_commit_group();
      // The fragments belong to wgmma until here. (ptxas lets nothing else write such registers meanwhile: it
      // would give up all overlap and say so.)
      wgmma_wait_group<0>();
      bar_warp_sync();  // all lanes have read the stage; one releases it
      if (lane == 0) mbarrier_arrive(ring.empty());
    }
    store_accumulators<kBlockM, float>(static_cast<float *>(p.out), d, first_id + consumer * 64, first_row,
                                       p.vocab, p.row_count);
  }
};

}  // namespace

KERNEL(microkernel_wgmma_registers_bf16_sm90a, WgmmaMicrokernelParams, 384, 1) {
  Product product{params};
  const uint32_t role = threadIdx.x / 128;
  if (threadIdx.x == 0) product.ring.init(1, kWarps);
  barrier_sync_all();
  if (role == 0) {
    setmaxnreg_dec<40>();
    if (threadIdx.x == 0) product.produce();
  } else {
    setmaxnreg_inc<232>();
    product.consume(role - 1);
  }
}
