// Reads an array and nothing else, by bulk copies into shared memory: the roof of products that bring their
// weights by TMA.
//     out[0] += sum of all words, modulo 2^32, so that no copy can be left out
//
// A warp copies 32 KB at a time, six such stages ahead; four warps add up what has landed.
#include "microkernels/tile.cuh"
#include "step.cuh"

namespace {

using namespace microkernels;

constexpr uint32_t kStages = 6, kStageBytes = 32768, kConsumers = 4;  // the warps that add

struct Stream {
  uint32_t shared = dynamic_shared();
  Ring<kStages> ring{shared + kStages * kStageBytes};

  DEVICE uint32_t stage() const { return shared + ring.stage * kStageBytes; }
  DEVICE void init() const {
    if (threadIdx.x == 0) ring.init(1, kConsumers);
    barrier_sync_all();
  }
  DEVICE bool produces() const { return threadIdx.x / 32 == kConsumers; }

  // The sum of this thread's words of one stage. Called by all threads of the consuming warps.
  DEVICE uint32_t consume(uint32_t bytes) {
    ring.wait_full();
    uint32_t sum = 0;
#pragma unroll 4
    for (uint32_t at = 16 * threadIdx.x; at < bytes; at += 16 * 32 * kConsumers) {
      const U32x4 v = ld_shared_v4(stage() + at);
      sum += v.x + v.y + v.z + v.w;
    }
    bar_warp_sync();  // all lanes have read the stage; one releases it
    if (lane_id() == 0) mbarrier_arrive(ring.empty());
    ring.advance();
    return sum;
  }
};

DEVICE void add(uint32_t *out, uint32_t sum) {
#pragma unroll
  for (uint32_t lanes = 16; lanes; lanes /= 2) sum += shfl_bfly(sum, lanes);
  if (lane_id() == 0) atom_add_u32(out, sum);
}

}  // namespace

STEP_KERNEL(read_bulk, ReadBulkParams, 160, 1) {
  Stream stream;
  stream.init();
  const uint32_t chunks = uint32_t((params.bytes + kStageBytes - 1) / kStageBytes);
  const uint32_t run = params.run, skip = (gridDim.x - 1) * run;
  const auto bytes_of = [&](uint32_t chunk) {
    const uint64_t left = params.bytes - uint64_t(chunk) * kStageBytes;
    return uint32_t(left < kStageBytes ? left : kStageBytes);
  };
  // The block's next chunk.
  const auto next = [&](uint32_t chunk) { return chunk + 1 + ((chunk + 1) % run == 0 ? skip : 0); };
  if (stream.produces()) {
    if (lane_id() != 0) return;
    const uint8_t *from = static_cast<const uint8_t *>(params.data);
    for (uint32_t chunk = blockIdx.x * run; chunk < chunks; chunk = next(chunk), stream.ring.advance()) {
      stream.ring.wait_empty();
      mbarrier_arrive_expect_tx(stream.ring.full(), bytes_of(chunk));
      bulk_load(stream.stage(), from + uint64_t(chunk) * kStageBytes, bytes_of(chunk), stream.ring.full());
    }
    return;
  }
  uint32_t sum = 0;
  for (uint32_t chunk = blockIdx.x * run; chunk < chunks; chunk = next(chunk))
    sum += stream.consume(bytes_of(chunk));
  add(params.out, sum);
}

// Blocks take turns at blocks of rows, and read each from the first column to the last, as a product does.
STEP_KERNEL(read_boxes, ReadBoxesParams, 160, 1) {
  Stream stream;
  stream.init();
  const uint32_t box_rows = params.box_rows, box_bytes = box_rows * kRowBytes,
                 boxes = kStageBytes / box_bytes;
  // How many boxes the stage that begins at `column` has.
  const auto boxes_from = [&](uint32_t column) {
    return params.columns - column < boxes ? params.columns - column : boxes;
  };
  const bool produces = stream.produces();
  if (produces && lane_id() != 0) return;
  uint32_t sum = 0;
  for (uint32_t row = blockIdx.x * box_rows; row < params.rows; row += gridDim.x * box_rows)
    for (uint32_t column = 0; column < params.columns; column += boxes) {
      const uint32_t count = boxes_from(column);
      if (!produces) {
        sum += stream.consume(count * box_bytes);
        continue;
      }
      stream.ring.wait_empty();
      // Beyond the matrix TMA writes zeros, which count as bytes.
      mbarrier_arrive_expect_tx(stream.ring.full(), count * box_bytes);
#pragma unroll 1
      for (uint32_t i = 0; i < count; ++i)
        tma_load_2d(stream.stage() + i * box_bytes, &params.matrix,
                    int32_t((column + i) * (kRowBytes / params.element_bytes)), int32_t(row),
                    stream.ring.full());
      stream.ring.advance();
    }
  if (!produces) add(params.out, sum);
}
