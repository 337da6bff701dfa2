// int8 and bf16 by wgmma: out[row, id] = sum over k of weights[id, k]·rows[row, k].
//
// A block computes 128 ids x 64 rows. One warpgroup produces: a single thread has TMA fill stages of 128
// bytes of k. Two consume: each multiplies 64 of the ids. The vocabulary is on wgmma's M (64), so that few
// rows waste little.
#include "microkernels/tile.cuh"

namespace {

using namespace microkernels;

struct Int8 {
  using Accumulator = int32_t;
  static constexpr uint32_t kBytes = 1;
  template <int kBlockM>
  DEVICE static void multiply(int32_t (&d)[kBlockM / 2], uint64_t weights, uint64_t rows, int keep) {
    wgmma_m64k32_s8<kBlockM>(d, weights, rows, keep);
  }
};
struct BFloat16 {
  using Accumulator = float;
  static constexpr uint32_t kBytes = 2;
  template <int kBlockM>
  DEVICE static void multiply(float (&d)[kBlockM / 2], uint64_t weights, uint64_t rows, int keep) {
    wgmma_m64k16<kBlockM>(Bf16{}, d, weights, rows, keep);
  }
};

constexpr uint32_t kConsumers = 2, kBlockN = 64 * kConsumers, kBlockM = 64, kStages = 4;
constexpr uint32_t kWeightBytes = kBlockN * kRowBytes, kStageBytes = kWeightBytes + kBlockM * kRowBytes;

template <class Type>
struct Product {
  static constexpr uint32_t kStep = kRowBytes / Type::kBytes;  // elements of k per stage

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
    typename Type::Accumulator d[kBlockM / 2];
    const bool speaks = threadIdx.x % 128 == 0;
    uint32_t finished = 0;  // the barrier of the stage whose products are under way
    for (uint32_t k = 0; k < p.hidden; k += kStep, ring.advance()) {
      ring.wait_full();
      const uint64_t weights = tile_descriptor(stage() + consumer * 64 * kRowBytes);
      const uint64_t rows = tile_descriptor(stage() + kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        Type::template multiply<kBlockM>(d, weights + i * kNextK, rows + i * kNextK, k != 0 || i != 0);
      wgmma_commit_group();
      // All groups but the last have completed: the stage before this one has been read.
      wgmma_wait_group<1>();
      if (speaks && finished) mbarrier_arrive(finished);
      finished = ring.empty();
    }
    wgmma_wait_group<0>();
    using Accumulator = typename Type::Accumulator;
    store_accumulators<kBlockM, Accumulator>(static_cast<Accumulator *>(p.out), d, first_id + consumer * 64,
                                             first_row, p.vocab, p.row_count);
  }

  DEVICE void run() {
    const uint32_t role = threadIdx.x / 128;
    if (threadIdx.x == 0) ring.init(1, kConsumers);
    barrier_sync_all();
    if (role == 0) {
      setmaxnreg_dec<40>();
      if (threadIdx.x == 0) produce();
    } else {
      setmaxnreg_inc<232>();
      consume(role - 1);
    }
  }
};

}  // namespace

KERNEL(microkernel_wgmma_s8_sm90a, WgmmaMicrokernelParams, 384, 1) { Product<Int8>{params}.run(); }

KERNEL(microkernel_wgmma_bf16_sm90a, WgmmaMicrokernelParams, 384, 1) { Product<BFloat16>{params}.run(); }
