// bf16 by wgmma with the weights from registers (microkernels/wgmma.cuh).
//
// A consumer's warps bring their weights from the swizzled tile into registers with ldmatrix, where a kernel
// may convert them (int8 to bf16), and only the rows are read through a descriptor. One warpgroup's ldmatrix
// runs while the other one's wgmma does.
#include "microkernels/wgmma.cuh"

namespace {

using namespace microkernels;

struct FromRegisters {
  using Product = WgmmaProduct<FromRegisters>;
  // A lane of each warp of both consumers releases a stage.
  static constexpr uint32_t kBytes = 2, kReleases = 8;

  DEVICE static void consume(Product &at, uint32_t consumer) {
    auto &ring = at.ring;
    const uint32_t lane = threadIdx.x % 32, matrix = lane / 8;
    // A warp holds 16 of the 64 ids. Its fragment of 16 elements of k is four matrices of 8 ids x 16 bytes:
    // ids 0-7 and 8-15 of the first 16 bytes, then of the second.
    const uint32_t id = consumer * 64 + threadIdx.x % 128 / 32 * 16 + matrix % 2 * 8 + lane % 8;
    float d[Product::kBlockM / 2];
    for (uint32_t k = 0; k < at.p.hidden; k += Product::kStep, ring.advance()) {
      ring.wait_full();
      uint32_t weights[4][4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i)
        ldmatrix_x4(weights[i], vector_address(at.stage(), id, 2 * i + matrix / 2));
      const uint64_t rows = tile_descriptor(at.stage() + Product::kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i)
        wgmma_m64k16<Product::kBlockM>(Bf16{}, d, weights[i], rows + i * kNextK, k != 0 || i != 0);
      wgmma_commit_group();
      // The fragments belong to wgmma until here. (ptxas lets nothing else write such registers meanwhile: it
      // would give up all overlap and say so.)
      wgmma_wait_group<0>();
      bar_warp_sync();  // all lanes have read the stage; one releases it
      if (lane == 0) mbarrier_arrive(ring.empty());
    }
    at.store(d, consumer);
  }
};

}  // namespace

KERNEL(microkernel_wgmma_registers_bf16_sm90a, WgmmaMicrokernelParams, 384, 1) {
  WgmmaProduct<FromRegisters>{params}.run();
}
