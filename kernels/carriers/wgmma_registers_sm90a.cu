// bf16 by wgmma with the weights in registers: out[row, id] = sum over k of weights[id, k]·rows[row, k].
//
// The pipeline and the tile of wgmma_sm90a.cu, 128 ids x 64 rows; only where wgmma takes the weights from is another: a
// consumer reads them from the stage into fragments, where a kernel for weights of another type would convert them. It
// reads those of the next stage while the products of this one are under way.
#include "carriers/tile.cuh"

namespace {

using namespace carriers;

constexpr uint32_t kConsumers = 2, kWarps = 4 * kConsumers, kIds = 64 * kConsumers, kRows = 64, kStages = 4;
constexpr uint32_t kWeightBytes = kIds * kRowBytes, kStageBytes = kWeightBytes + kRows * kRowBytes;
constexpr uint32_t kStep = kRowBytes / 2;           // elements of k per stage
constexpr uint32_t kInstructions = kRowBytes / 32;  // per stage

// A stage's weights as one lane holds them, 4 registers per instruction.
struct Fragments {
  uint32_t a[kInstructions][4];
};

struct Product {
  const WgmmaCarrierParams &p;
  uint32_t shared = dynamic_shared();
  uint32_t first_id = blockIdx.x * kIds, first_row = blockIdx.y * kRows;
  Ring<kStages> ring{shared + kStages * kStageBytes};

  DEVICE uint32_t stage() const { return shared + ring.stage * kStageBytes; }

  DEVICE void produce() {
    for (uint32_t k = 0; k < p.hidden; k += kStep, ring.advance()) {
      ring.wait_empty();
      mbarrier_arrive_expect_tx(ring.full(), kStageBytes);
      for (uint32_t half = 0; half < kIds; half += 64)
        tma_load_2d(stage() + half * kRowBytes, &p.weights, int32_t(k), int32_t(first_id + half), ring.full());
      tma_load_2d(stage() + kWeightBytes, &p.rows, int32_t(k), int32_t(first_row), ring.full());
    }
  }

  // Waits for the stage and reads this warp's 16 ids of it.
  DEVICE void load(Fragments &to, uint32_t warp) const {
    const uint32_t lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
    ring.wait_full();
    // a is (ids 0-7, 8-15) of the first 16 bytes, then of the second.
#pragma unroll
    for (uint32_t i = 0; i < kInstructions; ++i)
      ldmatrix_x4(to.a[i], piece_address(stage(), warp * 16 + matrix % 2 * 8 + line, 2 * i + matrix / 2));
  }

  // Multiplies the stage's fragments, and reads those of the next stage into `next` meanwhile.
  DEVICE void step(float (&d)[kRows / 2], const Fragments &now, Fragments &next, uint32_t k, uint32_t warp) {
    const uint64_t rows = tile_descriptor(stage() + kWeightBytes);
    const uint32_t finished = ring.empty();
    wgmma_fence();  // the fragments have just been written
#pragma unroll
    for (uint32_t i = 0; i < kInstructions; ++i)
      wgmma_m64k16<kRows>(Bf16{}, d, now.a[i], rows + i * kNextK, k != 0 || i != 0);
    wgmma_commit_group();
    ring.advance();
    if (k + kStep < p.hidden) load(next, warp);
    // `now` is overwritten in the next step.
    wgmma_wait_group<0>();
    // Each warp has read weights by itself: one that is ahead cannot speak for the others.
    bar_warp_sync();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(finished);
  }

  DEVICE void consume(uint32_t consumer) {
    const uint32_t warp = threadIdx.x / 32 - 4;
    float d[kRows / 2];
    // Two by name: registers cannot be chosen by a number.
    Fragments even, odd;
    load(even, warp);
    for (uint32_t k = 0; k < p.hidden; k += 2 * kStep) {
      step(d, even, odd, k, warp);
      if (k + kStep < p.hidden) step(d, odd, even, k + kStep, warp);
    }
    store_accumulators<kRows, float>(static_cast<float *>(p.out), d, first_id + consumer * 64, first_row, p.vocab,
                                     p.row_count);
  }
};

}  // namespace

KERNEL(carrier_wgmma_registers_bf16_sm90a, WgmmaCarrierParams, 384, 1) {
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
