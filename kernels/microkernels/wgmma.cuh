// The block that the wgmma microkernels share: out[row, id] = sum over k of weights[id, k]·rows[row, k].
//
// A block computes 128 ids x 64 rows. One warpgroup produces: a single thread has TMA fill stages of 128
// bytes of k. Two consume: each multiplies 64 of the ids. The vocabulary is on wgmma's M (64), so that few
// rows waste little.
#pragma once
#include "microkernels/tile.cuh"

namespace microkernels {

// `Consumer` has: kBytes of an element, kReleases: arrivals that empty a stage, and
// consume(product, consumer), which the threads of consumer 0 and 1 call.
template <class Consumer>
struct WgmmaProduct {
  static constexpr uint32_t kConsumers = 2, kBlockN = 64 * kConsumers, kBlockM = 64, kStages = 4;
  static constexpr uint32_t kWeightBytes = kBlockN * kRowBytes;
  static constexpr uint32_t kStageBytes = kWeightBytes + kBlockM * kRowBytes;
  static constexpr uint32_t kStep = kRowBytes / Consumer::kBytes;  // elements of k per stage

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

  // Stores a consumer's accumulators.
  template <class T>
  DEVICE void store(const T (&d)[kBlockM / 2], uint32_t consumer) const {
    store_accumulators<kBlockM, T>(static_cast<T *>(p.out), d, first_id + consumer * 64, first_row, p.vocab,
                                   p.row_count);
  }

  DEVICE void run() {
    const uint32_t role = threadIdx.x / 128;
    if (threadIdx.x == 0) ring.init(1, Consumer::kReleases);
    barrier_sync_all();
    if (role == 0) {
      setmaxnreg_dec<40>();
      if (threadIdx.x == 0) produce();
    } else {
      setmaxnreg_inc<232>();
      Consumer::consume(*this, role - 1);
    }
  }
};

}  // namespace microkernels
