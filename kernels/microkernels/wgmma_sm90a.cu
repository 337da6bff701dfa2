// int8 and bf16 by wgmma, both operands from shared memory (microkernels/wgmma.cuh).
#include "microkernels/wgmma.cuh"

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

template <class Type>
struct FromShared {
  using Product = WgmmaProduct<FromShared>;
  // One thread of each consumer releases a stage.
  static constexpr uint32_t kBytes = Type::kBytes, kReleases = 2;

  DEVICE static void consume(Product &at, uint32_t consumer) {
    auto &ring = at.ring;
    typename Type::Accumulator d[Product::kBlockM / 2];
    const bool speaks = threadIdx.x % 128 == 0;
    uint32_t finished = 0;  // the barrier of the stage whose products are under way
    for (uint32_t k = 0; k < at.p.hidden; k += Product::kStep, ring.advance()) {
      ring.wait_full();
      const uint64_t weights = tile_descriptor(at.stage() + consumer * 64 * kRowBytes);
      const uint64_t rows = tile_descriptor(at.stage() + Product::kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        Type::template multiply<Product::kBlockM>(d, weights + i * kNextK, rows + i * kNextK,
                                                  k != 0 || i != 0);
      wgmma_commit_group();
      // All groups but the last have completed: the stage before this one has been read.
      wgmma_wait_group<1>();
      if (speaks && finished) mbarrier_arrive(finished);
      finished = ring.empty();
    }
    wgmma_wait_group<0>();
    at.store(d, consumer);
  }
};

}  // namespace

KERNEL(microkernel_wgmma_s8_sm90a, WgmmaMicrokernelParams, 384, 1) {
  WgmmaProduct<FromShared<Int8>>{params}.run();
}

KERNEL(microkernel_wgmma_bf16_sm90a, WgmmaMicrokernelParams, 384, 1) {
  WgmmaProduct<FromShared<BFloat16>>{params}.run();
}
