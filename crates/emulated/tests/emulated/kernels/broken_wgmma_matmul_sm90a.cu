// wgmma_matmul with one mistake each: what the emulated device, or the result, must show. `how` 0 is the
// kernel itself.
#include "broken_matmul.h"
#include "hopper/matmul.cuh"

using namespace hopper;

namespace {

// hopper/matmul.cuh, run of Producer.
template <class T>
struct BrokenProducer : Producer<T> {
  using Producer<T>::p;
  uint32_t how;

  DEVICE void stage(const Walk<T> &at, const Ring<T> &to) const {
    if (how == 6) {  // the rows' bytes are not promised
      const uint32_t here = at.here(p);
      mbarrier_arrive_expect_tx(to.full(), here * T::kBlocks * kBlockBytes);
      const uint32_t block = matmul::place<T>(p, at.tile).first_id / kBlockIds;
      bulk_load(to.weights(0), packed_column(p.weights, block, at.column),
                here * kBlockBytes, to.full());
    } else {
      this->weights(at, to);
    }
  }

  DEVICE void run_broken() const {
    Walk<T> at, late;
    Ring<T> ring, late_ring;
    for (uint32_t i = 0; i < p.stages && at.more(p); ++i, at.advance(p), ring.advance(p)) {
      stage(at, ring);
      if (how == 4) this->rows(at, ring);  // on their way before they are there
    }
    griddepcontrol_wait();
    fence_proxy_async_global();
    if (how != 4)
      for (uint32_t i = 0; i < p.stages && late.more(p); ++i, late.advance(p), late_ring.advance(p))
        this->rows(late, late_ring);
    for (; at.more(p); at.advance(p), ring.advance(p)) {
      if (how != 1) ring.wait_empty();
      stage(at, ring);
      this->rows(at, ring);
    }
  }
};

// The same of Consumer.
template <class T>
struct BrokenConsumer : Consumer<T> {
  using Consumer<T>::p;
  uint32_t how;

  DEVICE void run_broken() const {
    using Base = Consumer<T>;
    if (how != 5) griddepcontrol_wait();
    const bool speaks = threadIdx.x % 128 == 0 || how == 11;  // 11: every thread gives the stage back
    Ring<T> ring;
    for (uint32_t tile = blockIdx.x; tile < tiles_of<T>(p); tile += gridDim.x) {
      typename Base::Sum d[T::kRows / 2];
      uint32_t finished = 0;
      for (Walk<T> at{tile}; at.tile == tile; at.advance(p), ring.advance(p)) {
        const uint32_t here = how == 7 ? T::kColumns : at.here(p);  // 7: what lies behind the end of k
        if (how != 3) ring.wait_full();
        if (how == 2 && speaks) mbarrier_arrive(ring.empty());  // given back before it has been read
        for (uint32_t column = 0; column < here; ++column) {
          wgmma_fence();
          Base::multiply(d, Base::descriptor(ring.weights(0) + column * kBlockBytes),
                         Base::descriptor(ring.rows() + column * T::kRowTile), at.column + column == 0);
          wgmma_commit_group();
          if (how != 13) wgmma_wait_group<1>();
          if (how != 2 && speaks && column == 0 && finished) mbarrier_arrive(finished);
        }
        finished = ring.empty();
      }
      if (how != 9) wgmma_wait_group<0>();
      // 10: the last of a tile is never given back.
      if (how != 2 && how != 10 && speaks) mbarrier_arrive(finished);
      this->finish(matmul::place<T>(p, tile), d);
    }
  }
};

template <class T>
DEVICE void run_broken(const MatmulParams &p, uint32_t how) {
  if (threadIdx.x == 0) Ring<T>::init(p.stages);
  if (how != 12) barrier_sync_all();
  if (threadIdx.x < T::kMathThreads)
    BrokenConsumer<T>{{p}, how}.run_broken();
  else if (threadIdx.x == T::kMathThreads)
    BrokenProducer<T>{{p}, how}.run_broken();
}

}  // namespace

KERNEL(broken_wgmma_matmul, BrokenMatmulParams, 160, 1) {
  run_broken<Tile<matmul::W8A8, 64, 16, 2>>(params.product, params.how);
}
