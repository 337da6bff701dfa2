// A persistent block: one warp copies, one warpgroup for each 64 ids multiplies, tile after tile.
//
//     copies   wait until a stage is empty -> announce its bytes -> weights, rows
//     math     wait until it is full -> wgmma -> release the stage before -> ... -> epilogue
//
// The ring goes on across tiles: while the epilogue runs, the next tile's stages land. It holds 64 KB of
// weights or more, several microseconds of an SM's share of the memory bandwidth. That hides the epilogue
// where memory is the limit, so there is no second set of math warps. For many rows, where the tensor cores
// are, they wait while the epilogue runs.
//
// A last wave of whole tiles would leave SMs without work. Where weights are what takes time, its ids are cut
// into equal tail tiles instead, one for each block (MatmulParams::tail_ids). Only a tail tile's own ids are
// copied. The instructions compute 64 ids all the same: the spare ones, of whatever the stages held, are
// never stored.
#pragma once
#include "hopper/tile.cuh"
#include "step.cuh"

namespace hopper {

template <class T>
struct Producer {
  const MatmulParams &p;

  // Copies to the block's stage; what is shared, to the same place in both blocks of the cluster.
  template <bool kShared>
  DEVICE static void copy(uint32_t to, const uint8_t *from, uint32_t bytes, const Ring<T> &ring) {
    if constexpr (kShared)
      bulk_load_multicast(to, from, bytes, ring.full(), 0b11);
    else
      bulk_load(to, from, bytes, ring.full());
  }

  // Announces the bytes of a stage, with those of its rows and those that the other block of the cluster
  // copies, and starts the copies of the block's part of the weights.
  DEVICE void weights(const Walk<T> &at, const Ring<T> &to) const {
    if (is_tail_tile<T>(p, at.tile)) return tail_tile(at, to);
    const uint32_t here = at.here(p), first = T::kSharesWeights ? rank_in_cluster<T>() * T::kBlocksCopied : 0;
    const uint32_t first_block = tile_coord<T>(p, at.tile).first_id / kPackedIds;
    // Behind the last pair of packed blocks it is copied again: what becomes of it is not used.
    const uint32_t last_block = (p.vocab - 1) / kPackedIds | 1;
    mbarrier_arrive_expect_tx(to.full(), here * (T::kBlocks * kBlockBytes + T::kRowColumn));
#pragma unroll
    for (uint32_t block = first; block < first + T::kBlocksCopied; ++block) {
      const uint32_t wanted = first_block + block, number = wanted < last_block ? wanted : last_block;
      copy<T::kSharesWeights>(to.weights(block), packed_column(p.weights, number, at.column),
                              here * kBlockBytes, to);
    }
  }

  // Copies a tail tile, column by column. It may span more packed blocks than a stage has, so each run ends
  // at a block boundary of either.
  DEVICE void tail_tile(const Walk<T> &at, const Ring<T> &to) const {
    const matmul::TileCoord ids = tile_coord<T>(p, at.tile);
    const uint32_t here = at.here(p), groups = (ids.end_id - ids.first_id - 1) / kGroupIds + 1;
    mbarrier_arrive_expect_tx(to.full(), here * (groups * kGroupBytes + T::kRowColumn));
#pragma unroll 1
    for (uint32_t group = 0, run; group < groups; group += run) {
      const uint32_t from = ids.first_id / kGroupIds + group, in_packed = from % kBlockGroups;
      const uint32_t in_stage = group % kBlockGroups;
      run = kBlockGroups - (in_packed > in_stage ? in_packed : in_stage);
      if (run > groups - group) run = groups - group;
#pragma unroll 1
      for (uint32_t column = 0; column < here; ++column)
        bulk_load(to.weights(group / kBlockGroups) + column * kBlockBytes + in_stage * kGroupBytes,
                  packed_column(p.weights, from / kBlockGroups, at.column + column) + in_packed * kGroupBytes,
                  run * kGroupBytes, to.full());
    }
  }

  DEVICE void rows(const Walk<T> &at, const Ring<T> &to) const {
    const uint64_t tile = tile_coord<T>(p, at.tile).first_row / T::kBlockM;
    const uint8_t *from =
        static_cast<const uint8_t *>(p.rows.data) + (tile * columns_of<T>(p) + at.column) * T::kRowColumn;
    const uint32_t all = at.here(p) * T::kRowColumn, part = T::kSharesRows ? all / 2 : all;
    const uint32_t first = T::kSharesRows ? rank_in_cluster<T>() * part : 0;
    copy<T::kSharesRows>(to.rows() + first, from + first, part, to);
  }

  // Called by one thread. The weights of the first round do not wait for the kernel before, which stages the
  // rows.
  DEVICE void run() const {
    Walk<T> at, late;
    Ring<T> ring, late_ring;
#pragma unroll 1
    for (uint32_t i = 0; i < p.stages && at.more(p); ++i, at.advance(p), ring.advance(p)) weights(at, ring);
    wait_for_kernel_before();
    // The rows were stored through the generic proxy; bulk copies read through the async proxy.
    fence_proxy_async_global();
#pragma unroll 1
    for (uint32_t i = 0; i < p.stages && late.more(p); ++i, late.advance(p), late_ring.advance(p))
      rows(late, late_ring);
#pragma unroll 1
    for (; at.more(p); at.advance(p), ring.advance(p)) {
      ring.wait_empty();
      weights(at, ring);
      rows(at, ring);
    }
  }
};

template <class T>
struct Consumer {
  using Type = typename T::Type;
  using Accumulator = typename Type::Accumulator;
  using Accumulators = Accumulator[T::kBlocksOfGroup][T::kBlockM / 2];
  static constexpr uint64_t kNextK = 32 >> 4;  // 32 bytes of a row, in a descriptor's units

  const MatmulParams &p;
  Ring<T> ring;
  // The `empty` barrier of the stage before, whose products may still be under way; 0 where there is none.
  uint32_t finished = 0;

  // Where the lane's first 16 bytes of weights are in 64 packed ids, for ldmatrix: of ids 0-7 and 8-15 of the
  // warp's sixteen, then of the same ids' next 16 bytes.
  const uint32_t fragment =
      vector_address(0, threadIdx.x / 32 % 4 * 16 + lane_id() / 8 % 2 * 8 + lane_id() % 8, lane_id() / 16);

  DEVICE explicit Consumer(const MatmulParams &p) : p(p) {}

  DEVICE static uint64_t descriptor(uint32_t tile) {
    return wgmma_descriptor(tile, Swizzle::bytes_128, 8 * kRowBytes);
  }

  // Releases the stage before. Each warp does, after its own reads: wgmma's warps need not be equally far.
  // Without a branch around all of it: ptxas would end the pipeline of wgmma there, and make instructions
  // wait for each other (C7513). Nothing was stored that another block reads, so an arrival there is relaxed:
  // a release would be a fence of the whole device.
  DEVICE void release() {
    bar_warp_sync();
    if (lane_id() < T::kCluster && finished) {
      if constexpr (T::kCluster > 1)
        mbarrier_arrive_relaxed_cluster(mapa(finished, lane_id()));
      else
        mbarrier_arrive(finished);
    }
    finished = 0;
  }

  // A column of weights and rows with elements of the same size: four instructions of 32 bytes, one chain per
  // logit.
  DEVICE void multiply_alike(Accumulators &d, uint32_t weights, uint32_t rows, bool first) {
    // A fence and a group for each column: else ptxas, which follows accumulators from one column to the
    // next, adds fences of its own and a wait behind each instruction (C7520).
    wgmma_fence();
    constexpr uint32_t kNextBlock = T::kGroups * T::kColumns * kBlockBytes >> 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int keep = !first || i != 0;
      const uint64_t b = descriptor(rows) + i * kNextK;
#pragma unroll
      for (uint32_t block = 0; block < T::kBlocksOfGroup; ++block) {
        const uint64_t a = descriptor(weights) + block * kNextBlock + i * kNextK;
        if constexpr (Type::kRowScales)
          wgmma_m64k32_s8<T::kBlockM>(d[block], a, b, keep);
        else
          wgmma_m64k16<T::kBlockM>(typename Type::Half{}, d[block], a, b, keep);
      }
    }
    wgmma_commit_group();
    // All groups but this one have completed: the stage before has been read.
    wgmma_wait_group<1>();
    release();
  }

  // Weights in registers, widened to halves: those of two instructions that are under way, and of the next.
  // Four slots, so that each column begins with the same one.
  using Slots = uint32_t[4][4];

  // A column of 8-bit weights with 16-bit rows: eight instructions of 16 weights an id. A warp widens its 16
  // ids for one instruction while those before run. stage_rows_interleaved has put the rows into the order
  // of k that ldmatrix gives the weights (matmul::multiply_widened).
  DEVICE void multiply_widened(Accumulators &d, Slots &slots, uint32_t weights, uint32_t rows, bool first) {
    const uint32_t from = weights + fragment;
    const uint64_t b = descriptor(rows);
    uint32_t bytes[4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i % 2 == 0) ldmatrix_x4(bytes, from ^ i << 4);
      // The slot's last instruction has completed; at the third, so have all of the column before.
      wgmma_wait_group<2>();
      if (i == 2) release();
      uint32_t(&a)[4] = slots[i % 4];
      matmul::widen(typename Type::Code{}, typename Type::Half{}, bytes[i % 2 * 2], a[0], a[2]);
      matmul::widen(typename Type::Code{}, typename Type::Half{}, bytes[i % 2 * 2 + 1], a[1], a[3]);
      wgmma_fence();
      const uint64_t of_rows = b + i / 4 * (T::kRowTile >> 4) + i % 4 * kNextK;
      wgmma_m64k16<T::kBlockM>(typename Type::Half{}, d[0], a, of_rows, !first || i != 0);
      wgmma_commit_group();
    }
  }

  // Logits or partials of the whole tile, some ids and rows at a time.
  DEVICE void finish(const matmul::TileCoord &at, const Accumulators &d) const {
    using Part = typename T::Part;
    constexpr uint32_t kRowParts = T::kBlockM / Part::kBlockM, kAccumulators = Part::kBlockM / 2;
#pragma unroll 1
    for (uint32_t part = 0; part < T::kBlocksOfGroup * kRowParts; ++part) {
      matmul::TileCoord of_part = {at.first_id + part / kRowParts * Part::kBlockN,
                                   at.first_row + part % kRowParts * Part::kBlockM,
                                   T::kCluster == 1 ? at.end_id : p.vocab, at.part};
      if (of_part.first_id >= p.vocab || of_part.first_row >= p.row_count) continue;
      if constexpr (T::kCluster > 1) of_part.part = of_part.first_id / Part::kBlockN;
      // Copied by constant indices, since accumulators are registers. Spare ids become zeros: they set no
      // flag that the last real id would not. Accumulator i belongs to the lane's first id or, if i / 2 is
      // odd, to the id 8 after it.
      const uint32_t id = at.first_id + threadIdx.x / 32 * 16 + lane_id() / 4;
      const bool own[] = {T::kCluster > 1 || id < at.end_id, T::kCluster > 1 || id + 8 < at.end_id};
      Accumulator some[kAccumulators];
#pragma unroll
      for (uint32_t n = 0; n < T::kBlocksOfGroup * kRowParts; ++n)
        if (n == part)
#pragma unroll
          for (uint32_t i = 0; i < kAccumulators; ++i)
            some[i] = own[i / 2 % 2] ? d[n / kRowParts][n % kRowParts * kAccumulators + i] : 0;
      matmul::epilogue<Part>(p, of_part, some);
    }
  }

  DEVICE void run() {
    // The kernel before stores the scales and statuses of the rows.
    wait_for_kernel_before();
    const uint32_t group = threadIdx.x / 128;
#pragma unroll 1
    for (uint32_t tile = blockIdx.x / T::kCluster; tile < tiles_of<T>(p); tile += gridDim.x / T::kCluster) {
      Accumulators d;
      [[maybe_unused]] Slots slots;
#pragma unroll 1
      for (Walk<T> at{tile}; at.tile == tile; at.advance(p), ring.advance(p)) {
        const uint32_t here = at.here(p);
        ring.wait_full();
#pragma unroll 1
        for (uint32_t column = 0; column < here; ++column) {
          const uint32_t weights = ring.weights(group) + column * kBlockBytes;
          const uint32_t rows = ring.rows() + column * T::kRowColumn;
          const bool first = at.column + column == 0;
          if constexpr (T::kRowTiles == 2)
            multiply_widened(d, slots, weights, rows, first);
          else
            multiply_alike(d, weights, rows, first);
        }
        finished = ring.empty();
      }
      wgmma_wait_group<0>();
      release();
      finish(tile_coord<T>(p, tile), d);
    }
  }
};

// Executed by all threads of the cluster, or of the block where it is alone.
template <class T>
DEVICE void sync_cluster() {
  if constexpr (T::kCluster > 1) {
    bar_warp_sync();
    barrier_cluster_arrive();
    barrier_cluster_wait();
  } else {
    barrier_sync_all();
  }
}

template <class T>
DEVICE void run(const MatmulParams &p) {
  if (threadIdx.x == 0) Ring<T>::init(p.stages);
  sync_cluster<T>();
  if (threadIdx.x < T::kMathThreads) {
    if constexpr (T::kMovesRegisters) setmaxnreg_inc<T::kMathRegisters>();
    Consumer<T>{p}.run();
  } else {
    if constexpr (T::kMovesRegisters) setmaxnreg_dec<T::kCopyRegisters>();
    // One thread copies. The others only wait for the kernel before, as all threads of a step must.
    if (threadIdx.x == T::kMathThreads)
      Producer<T>{p}.run();
    else
      wait_for_kernel_before();
  }
  // No block ends while another may still arrive at its barriers.
  if constexpr (T::kCluster > 1) sync_cluster<T>();
}

}  // namespace hopper

// A kernel for tiles of `block_n` ids x `block_m` rows, with `columns` of 128 bytes of k a stage. One block
// per SM.
#define WGMMA_MATMUL_KERNEL(name, Type, block_n, block_m, columns)                                      \
  CLUSTER_KERNEL(name, MatmulParams, (hopper::Tile<matmul::Type, block_n, block_m, columns>::kThreads), \
                 (hopper::Tile<matmul::Type, block_n, block_m, columns>::kCluster)) {                   \
    hopper::run<hopper::Tile<matmul::Type, block_n, block_m, columns>>(params);                         \
  }
