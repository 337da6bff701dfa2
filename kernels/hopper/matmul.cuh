// A persistent block: one warp copies, one warpgroup for each 64 ids multiplies, tile after tile.
//
//     copies   wait until a stage is empty -> announce its bytes -> weights, rows
//     math     wait until it is full -> wgmma -> release the stage before -> ... -> epilogue
//
// The ring goes on across tiles: while the epilogue runs, the next tile's stages land. It holds 96 KB of
// weights or more, several microseconds of an SM's share of the memory bandwidth. That hides the epilogue, so
// no second set of math warps is needed.
#pragma once
#include "hopper/tile.cuh"
#include "step.cuh"

namespace hopper {

template <class T>
struct Producer {
  const MatmulParams &p;

  // Announces the bytes of a stage, those of its rows included, and starts the copies of the weights.
  DEVICE void weights(const Walk<T> &at, const Ring<T> &to) const {
    const uint32_t here = at.here(p);
    const uint32_t first_block = matmul::place<T>(p, at.tile).first_id / kBlockIds;
    mbarrier_arrive_expect_tx(to.full(), here * (T::kBlocks * kBlockBytes + T::kRowTile));
#pragma unroll
    for (uint32_t block = 0; block < T::kBlocks; ++block)
      bulk_load(to.weights(block), packed_column(p.weights, first_block + block, at.column),
                here * kBlockBytes, to.full());
  }

  DEVICE void rows(const Walk<T> &at, const Ring<T> &to) const {
    const uint64_t tile = matmul::place<T>(p, at.tile).first_row / T::kRows;
    const uint8_t *from =
        static_cast<const uint8_t *>(p.rows.data) + (tile * columns_of<T>(p) + at.column) * T::kRowTile;
    bulk_load(to.rows(), from, at.here(p) * T::kRowTile, to.full());
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
  using Sum = typename Type::Sum;

  const MatmulParams &p;

  // 128 bytes of k: four instructions of 32, one chain per logit.
  DEVICE static void multiply(Sum (&d)[T::kRows / 2], uint64_t weights, uint64_t rows, bool first) {
    constexpr uint64_t kNextK = 32 >> 4;  // in a descriptor's units
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int keep = !first || i != 0;
      if constexpr (Type::kRowScales)
        wgmma_m64k32_s8<T::kRows>(d, weights + i * kNextK, rows + i * kNextK, keep);
      else
        wgmma_m64k16<T::kRows>(typename Type::Half{}, d, weights + i * kNextK, rows + i * kNextK, keep);
    }
  }

  DEVICE static uint64_t descriptor(uint32_t tile) {
    return wgmma_descriptor(tile, Swizzle::bytes_128, 8 * kRowBytes);
  }

  // Logits or partials of the whole tile, some rows at a time.
  DEVICE void finish(const matmul::Place &at, const Sum (&d)[T::kRows / 2]) const {
    using Part = typename T::Part;
    constexpr uint32_t kParts = T::kRows / Part::kRows, kSums = Part::kRows / 2;
#pragma unroll 1
    for (uint32_t part = 0; part < kParts && at.first_row + part * Part::kRows < p.row_count; ++part) {
      // Copied by constant indices, since accumulators are registers.
      Sum some[kSums];
#pragma unroll
      for (uint32_t n = 0; n < kParts; ++n)
        if (n == part)
#pragma unroll
          for (uint32_t i = 0; i < kSums; ++i) some[i] = d[n * kSums + i];
      matmul::epilogue<Part>(p, {at.first_id, at.first_row + part * Part::kRows}, some);
    }
  }

  DEVICE void run() const {
    // The kernel before stores the scales and statuses of the rows.
    wait_for_kernel_before();
    const uint32_t block = threadIdx.x / 128;
    const bool speaks = threadIdx.x % 128 == 0;
    Ring<T> ring;
#pragma unroll 1
    for (uint32_t tile = blockIdx.x; tile < tiles_of<T>(p); tile += gridDim.x) {
      Sum d[T::kRows / 2];
      uint32_t finished = 0;  // the barrier of the stage whose products may still be under way
#pragma unroll 1
      for (Walk<T> at{tile}; at.tile == tile; at.advance(p), ring.advance(p)) {
        const uint32_t here = at.here(p);
        ring.wait_full();
#pragma unroll 1
        for (uint32_t column = 0; column < here; ++column) {
          // A fence and a group for each column: else ptxas, which follows accumulators from one column to
          // the next, adds fences of its own and a wait behind each instruction (C7520).
          wgmma_fence();
          multiply(d, descriptor(ring.weights(block) + column * kBlockBytes),
                   descriptor(ring.rows() + column * T::kRowTile), at.column + column == 0);
          wgmma_commit_group();
          // All groups but this one have completed: the stage before, if there is one, has been read.
          wgmma_wait_group<1>();
          if (speaks && column == 0 && finished) mbarrier_arrive(finished);
        }
        finished = ring.empty();
      }
      wgmma_wait_group<0>();
      if (speaks) mbarrier_arrive(finished);
      finish(matmul::place<T>(p, tile), d);
    }
  }
};

template <class T>
DEVICE void run(const MatmulParams &p) {
  if (threadIdx.x == 0) Ring<T>::init(p.stages);
  barrier_sync_all();
  if (threadIdx.x < T::kMathThreads) {
    if constexpr (T::kMovesRegisters) setmaxnreg_inc<232>();
    Consumer<T>{p}.run();
  } else {
    if constexpr (T::kMovesRegisters) setmaxnreg_dec<40>();
    // One thread copies. The others only wait for the kernel before, as all threads of a step must.
    if (threadIdx.x == T::kMathThreads)
      Producer<T>{p}.run();
    else
      wait_for_kernel_before();
  }
}

}  // namespace hopper

// A kernel for tiles of `ids` x `rows`, with `columns` of 128 bytes of k a stage. One block per SM.
#define WGMMA_MATMUL_KERNEL(name, Type, ids, rows, columns)                                   \
  KERNEL(name, MatmulParams, (hopper::Tile<matmul::Type, ids, rows, columns>::kThreads), 1) { \
    hopper::run<hopper::Tile<matmul::Type, ids, rows, columns>>(params);                      \
  }
