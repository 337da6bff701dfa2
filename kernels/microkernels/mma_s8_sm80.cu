// int8 by mma.sync: out[row, id] = sum over k of weights[id, k]·rows[row, k].
//
// A block computes 128 ids x 32 rows. Stages of 128 bytes of k are filled by cp.async, three ahead of the one
// that is multiplied; one barrier per stage says both "this one has landed" and "the one before it may be
// overwritten".
#include "microkernels/tile.cuh"

namespace {

using namespace microkernels;

constexpr uint32_t kBlockN = 128, kBlockM = 32, kStages = 4, kThreads = 128;
constexpr uint32_t kStageBytes = (kBlockN + kBlockM) * kRowBytes;

struct Stage {
  uint32_t weights, rows;
  DEVICE explicit Stage(uint32_t number)
      : weights(dynamic_shared() + number % kStages * kStageBytes), rows(weights + kBlockN * kRowBytes) {}
};

// One group of copies per stage, also past the end of k, so that "all but two" always means the same.
DEVICE void load(const MmaMicrokernelParams &p, const Stage &stage, uint32_t first_id, uint32_t first_row,
                 uint32_t k0) {
  for (uint32_t i = threadIdx.x; i < (kBlockN + kBlockM) * 8 && k0 < p.hidden; i += kThreads) {
    const uint32_t row = i / 8, vector = i % 8, k = k0 + vector * 16;
    const bool of_weights = row < kBlockN;
    const uint32_t source = of_weights ? first_id + row : first_row + row - kBlockN;
    const int8_t *matrix = of_weights ? p.weights : p.rows;
    const bool inside = source < (of_weights ? p.vocab : p.row_count) && k < p.hidden;
    cp_async_cg_16(of_weights ? vector_address(stage.weights, row, vector)
                              : vector_address(stage.rows, row - kBlockN, vector),
                   inside ? matrix + uint64_t(source) * p.hidden + k : matrix, inside ? 16 : 0);
  }
  cp_async_commit_group();
}

// A warp's 32 ids x 32 rows.
DEVICE void multiply(const Stage &stage, int32_t (&d)[2][4][4]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, matrix = lane / 8, line = lane % 8;
#pragma unroll
  for (uint32_t k = 0; k < kRowBytes / 32; ++k) {
    uint32_t weights[2][4], rows[2][4];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      // Fragments in the order of mma.sync: a is (rows 0-7, 8-15) of the first 16 bytes, then of the second;
      // b is (first, second 16 bytes) of eight columns, two of which one ldmatrix brings.
      ldmatrix_x4(weights[i], vector_address(stage.weights, warp * 32 + i * 16 + matrix % 2 * 8 + line,
                                             2 * k + matrix / 2));
      ldmatrix_x4(rows[i], vector_address(stage.rows, i * 16 + matrix / 2 * 8 + line, 2 * k + matrix % 2));
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i)
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j)
        mma_m16n8k32(d[i][j], weights[i], {rows[j / 2][j % 2 * 2], rows[j / 2][j % 2 * 2 + 1]});
  }
}

DEVICE void store(const MmaMicrokernelParams &p, const int32_t (&d)[2][4][4], uint32_t first_id,
                  uint32_t first_row) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i)
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j)
#pragma unroll
      for (uint32_t e = 0; e < 4; ++e) {
        const uint32_t id = first_id + warp * 32 + i * 16 + lane / 4 + (e & 2 ? 8 : 0);
        const uint32_t row = first_row + j * 8 + lane % 4 * 2 + (e & 1);
        if (id < p.vocab && row < p.row_count)
          st_global_u32(p.out + uint64_t(row) * p.vocab + id, uint32_t(d[i][j][e]));
      }
}

}  // namespace

KERNEL(microkernel_mma_s8_sm80, MmaMicrokernelParams, 128, 1) {
  const uint32_t first_id = blockIdx.x * kBlockN, first_row = blockIdx.y * kBlockM;
  int32_t d[2][4][4] = {};

  for (uint32_t s = 0; s + 1 < kStages; ++s) load(params, Stage(s), first_id, first_row, s * kRowBytes);
  for (uint32_t s = 0; s * kRowBytes < params.hidden; ++s) {
    cp_async_wait_group<kStages - 2>();
    barrier_sync_all();
    load(params, Stage(s + kStages - 1), first_id, first_row, (s + kStages - 1) * kRowBytes);
    multiply(Stage(s), d);
  }
  store(params, d, first_id, first_row);
}
