// wgmma_matmul with one mistake each, which the emulated device or the result must show. `how` selects the
// mistake, 0 is the correct kernel.
#include "broken_matmul.h"
#include "hopper/matmul.cuh"

using namespace hopper;

namespace {

// hopper/matmul.cuh, run of Producer.
template <class T>
struct BrokenProducer : Producer<T> {
  using Producer<T>::p;
  uint32_t how;

  // tail_tile of Producer.
  DEVICE void tail_tile(const Walk<T> &at, const Ring<T> &to) const {
    const matmul::TileCoord ids = tile_coord<T>(p, at.tile);
    const uint32_t here = at.here(p), groups = (ids.end_id - ids.first_id - 1) / kGroupIds + 1;
    const uint32_t promised = how == 25 ? kBlockGroups : groups;  // 25: those of a whole tile
    mbarrier_arrive_expect_tx(to.full(), here * (promised * kGroupBytes + T::kRowColumn));
    for (uint32_t group = 0, run; group < groups; group += run) {
      const uint32_t from = ids.first_id / kGroupIds + group + (how == 23);  // 23: 8 ids too far
      const uint32_t in_packed = from % kBlockGroups, in_stage = group % kBlockGroups;
      run = kBlockGroups - (in_packed > in_stage && how != 24 ? in_packed : in_stage);  // 24: one run for all
      if (run > groups - group) run = groups - group;
      for (uint32_t column = 0; column < here; ++column)
        bulk_load(to.weights(group / kBlockGroups) + column * kBlockBytes + in_stage * kGroupBytes,
                  packed_column(p.weights, from / kBlockGroups, at.column + column) + in_packed * kGroupBytes,
                  run * kGroupBytes, to.full());
    }
  }

  DEVICE void stage(const Walk<T> &at, const Ring<T> &to) const {
    if (is_tail_tile<T>(p, at.tile)) {
      tail_tile(at, to);
    } else if (how == 6) {  // the rows' bytes are not expected
      const uint32_t here = at.here(p);
      mbarrier_arrive_expect_tx(to.full(), here * T::kBlocks * kBlockBytes);
      const uint32_t block = tile_coord<T>(p, at.tile).first_id / kPackedIds;
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
      if (how == 4) this->rows(at, ring);  // copied before they are there
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

// hopper/matmul.cuh, run of Consumer.
template <class T>
struct BrokenConsumer : Consumer<T> {
  using Base = Consumer<T>;
  using Base::finished;
  using Base::p;
  using Base::ring;
  uint32_t how;

  DEVICE BrokenConsumer(const MatmulParams &p, uint32_t how) : Base(p), how(how) {}

  DEVICE void release() {
    if (how == 2) return;
    // 11: every thread gives the stage back; 17 and 18: not to the other block of the cluster
    if (how != 11 && how != 17 && how != 18) return Base::release();
    bar_warp_sync();
    if (finished && (how == 11 || lane_id() == 0)) mbarrier_arrive(finished);
    finished = 0;
  }

  DEVICE void multiply_alike(typename Base::Accumulators &d, uint32_t weights, uint32_t rows, bool first) {
    wgmma_fence();
    const uint32_t next_block = T::kGroups * T::kColumns * kBlockBytes >> 4;
    const uint64_t a = Base::descriptor(weights), b = Base::descriptor(rows);
    for (int i = 0; i < 4; ++i)
      for (uint32_t block = 0; block < T::kBlocksOfGroup; ++block)
        wgmma_m64k32_s8<T::kBlockM>(d[block], a + block * next_block + i * Base::kNextK, b + i * Base::kNextK,
                                    !first || i != 0);
    wgmma_commit_group();
    if (how != 13) wgmma_wait_group<1>();
    release();
  }

  DEVICE void multiply_widened(typename Base::Accumulators &d, typename Base::Slots &slots, uint32_t weights,
                               uint32_t rows, bool first) {
    const uint32_t lane = lane_id(), id = threadIdx.x / 32 % 4 * 16 + lane / 8 % 2 * 8 + lane % 8;
    const uint32_t from = vector_address(weights, id, lane / 16);
    const uint64_t b = Base::descriptor(rows);
    uint32_t bytes[4];
    for (int i = 0; i < 8; ++i) {
      if (i % 2 == 0) ldmatrix_x4(bytes, from ^ i << 4);
      wgmma_wait_group<2>();
      if (i == (how == 14 ? 1 : 2)) release();  // 14: while rows of the stage before are read
      uint32_t(&a)[4] = slots[how == 15 ? i % 2 : i % 4];  // 15: a slot that is still read
      matmul::widen(typename T::Type::Code{}, typename T::Type::Half{}, bytes[i % 2 * 2], a[0], a[2]);
      matmul::widen(typename T::Type::Code{}, typename T::Type::Half{}, bytes[i % 2 * 2 + 1], a[1], a[3]);
      if (how != 16) wgmma_fence();
      const uint64_t of_rows = b + i / 4 * (T::kRowTile >> 4) + i % 4 * Base::kNextK;
      wgmma_m64k16<T::kBlockM>(typename T::Type::Half{}, d[0], a, of_rows, !first || i != 0);
      wgmma_commit_group();
    }
  }

  DEVICE void run_broken() {
    if (how != 5) griddepcontrol_wait();
    for (uint32_t tile = blockIdx.x / T::kCluster; tile < tiles_of<T>(p); tile += gridDim.x / T::kCluster) {
      typename Base::Accumulators d;
      [[maybe_unused]] typename Base::Slots slots;
      for (Walk<T> at{tile}; at.tile == tile; at.advance(p), ring.advance(p)) {
        const uint32_t here = how == 7 ? T::kColumns : at.here(p);  // 7: what lies beyond the end of k
        if (how != 3) ring.wait_full();
        if (how == 2 && lane_id() == 0) mbarrier_arrive(ring.empty());  // given back before it has been read
        for (uint32_t column = 0; column < here; ++column) {
          const uint32_t weights = ring.weights(threadIdx.x / 128) + column * kBlockBytes;
          const uint32_t rows = ring.rows() + column * T::kRowColumn;
          const bool first = at.column + column == 0;
          if constexpr (T::kRowTiles == 2)
            multiply_widened(d, slots, weights, rows, first);
          else
            multiply_alike(d, weights, rows, first);
        }
        finished = ring.empty();
      }
      if (how != 9) wgmma_wait_group<0>();
      if (how == 10) finished = 0;  // the last of a tile is never given back
      release();
      matmul::TileCoord at = tile_coord<T>(p, tile);
      // 21: spare ids are stored
      if (how == 21 && is_tail_tile<T>(p, tile)) at.end_id = at.first_id + T::kBlockN;
      if (how == 22 && is_tail_tile<T>(p, tile))
        finish_unmasked(at, d);
      else
        this->finish(at, d);
    }
  }

  // 22: finish of Consumer with the accumulators of spare ids
  DEVICE void finish_unmasked(const matmul::TileCoord &at, const typename Base::Accumulators &d) const {
    if constexpr (T::kCluster == 1) matmul::epilogue<typename T::Part>(p, at, d[0]);
  }
};

template <class T>
DEVICE void run_broken(const MatmulParams &p, uint32_t how) {
  if (threadIdx.x == 0) {
    Ring<T>::init(p.stages);
    // 18: as 17, and the producer waits for no more
    if (how == 18)
      for (uint32_t i = 0; i < p.stages; ++i)
        mbarrier_inval(Ring<T>::barriers() + 16 * i + 8),
            mbarrier_init(Ring<T>::barriers() + 16 * i + 8, T::kMathThreads / 32);
    if (how == 18) fence_mbarrier_init();
  }
  // 19: a barrier of the block where one of the cluster is needed
  if (how == 19)
    barrier_sync_all();
  else if (how != 12)
    sync_cluster<T>();
  if (threadIdx.x < T::kMathThreads)
    BrokenConsumer<T>{p, how}.run_broken();
  else if (threadIdx.x == T::kMathThreads)
    BrokenProducer<T>{{p}, how}.run_broken();
  // 20: a block ends while the other one arrives at its barriers
  if (T::kCluster > 1 && how != 20) sync_cluster<T>();
}

}  // namespace

KERNEL(broken_wgmma_matmul, BrokenMatmulParams, 160, 1) {
  run_broken<Tile<matmul::W8A8, 64, 16, 2>>(params.product, params.how);
}
CLUSTER_KERNEL(broken_wgmma_cluster, BrokenMatmulParams, 384, 2) {
  run_broken<Tile<matmul::W8A8, 256, 128, 1>>(params.product, params.how);
}
KERNEL(broken_wgmma_widened, BrokenMatmulParams, 160, 1) {
  run_broken<Tile<matmul::W8A16<Bf16>, 64, 16, 2>>(params.product, params.how);
}
