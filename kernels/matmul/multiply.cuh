// A stage's products: each warp its 32 ids x kWarpRows rows, one chain of instructions per output, k ascending.
#pragma once
#include "matmul/tile.cuh"

namespace matmul {

// Accumulators of a warp: [16 ids each][8 rows each][as mma.sync has them].
template <class T>
using Sums = typename T::Type::Sum[2][T::kWarpRows / 8][4];

// The ids' fragments of 32 bytes of k: (ids 0-7, 8-15) of the first 16 bytes, then of the second.
DEVICE void load_weights(uint32_t (&a)[2][4], uint32_t stage, uint32_t step) {
  const uint32_t lane = lane_id(), matrix = lane / 8, id = threadIdx.x / 32 % 4 * 32 + matrix % 2 * 8 + lane % 8;
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) ldmatrix_x4(a[i], piece_address(stage, id + i * 16, 2 * step + matrix / 2));
}

template <class Half>
DEVICE void multiply_add(Half half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k16(half, d, a, b);
}
DEVICE void multiply_add(int8_t, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_m16n8k32(d, a, b); }

// Rows of as many bytes as the weights: 32 bytes of k are one instruction, of 16 halves or 32 int8.
template <class T, class Kind>
DEVICE void multiply_alike(Kind kind, Sums<T> &d, uint32_t stage) {
  const uint32_t lane = lane_id(), first_row = threadIdx.x / 128 * T::kWarpRows;
#pragma unroll
  for (uint32_t step = 0; step < kRowBytes / 32; ++step) {
    uint32_t a[2][4], b[T::kWarpRows / 8][2];
    load_weights(a, stage, step);
    // (first, second 16 bytes) of eight rows; one ldmatrix.x4 brings two such.
    if constexpr (T::kWarpRows == 8) {
      ldmatrix_x2(b[0], row_piece<T>(stage, lane % 8, 2 * step + lane / 8 % 2));
    } else {
#pragma unroll
      for (uint32_t j = 0; j < T::kWarpRows / 8; j += 2) {
        uint32_t both[4];
        ldmatrix_x4(both, row_piece<T>(stage, first_row + j * 8 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
        b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i)
#pragma unroll
      for (uint32_t j = 0; j < T::kWarpRows / 8; ++j) multiply_add(kind, d[i][j], a[i], b[j]);
  }
}

// Four int8 -> four halves, exactly: the first two in `low`, the others in `high`.
DEVICE void widen(Bf16, uint32_t bytes, uint32_t &low, uint32_t &high) {
  // byte + 128 in the last bits of 2^23 is the f32 2^23 + 128 + byte; of the difference, an integer up to 128, the upper
  // half is the bf16.
  const uint32_t shifted = bytes ^ 0x80808080u, exponent = 0x4b000000u;
  constexpr float kOffset = -8388736.0f;
  const auto wide = [&](uint32_t selector) {
    return mov_b32_f32(add_rn_f32(mov_f32_b32(prmt(shifted, exponent, selector)), kOffset));
  };
  low = prmt(wide(0x7440), wide(0x7441), 0x7632);
  high = prmt(wide(0x7442), wide(0x7443), 0x7632);
}
DEVICE void widen(F16, uint32_t bytes, uint32_t &low, uint32_t &high) {
  // byte + 128 in the last bits of 1024 is the f16 1152 + byte.
  const uint32_t shifted = bytes ^ 0x80808080u, exponent = 0x64646464u, offset = 0x64806480u;
  low = sub_rn_f16x2(prmt(shifted, exponent, 0x5150), offset);
  high = sub_rn_f16x2(prmt(shifted, exponent, 0x5352), offset);
}

// int8 weights with rows of halves: 16 bytes of weights are one instruction. Within it k may stand in any order, so long as both
// operands keep it, and ldmatrix brings lane t the bytes 4t to 4t+3: they are taken for its columns 2t, 2t+1, 2t+8, 2t+9. The
// rows' 4t to 4t+3 are eight bytes in a row.
template <class T>
DEVICE void multiply_widened(typename T::Type::Half half, Sums<T> &d, uint32_t stage) {
  const uint32_t lane = lane_id(), first_row = threadIdx.x / 128 * T::kWarpRows;
#pragma unroll
  for (uint32_t step = 0; step < kRowBytes / 32; ++step) {
    uint32_t bytes[2][4];
    load_weights(bytes, stage, step);
#pragma unroll
    for (uint32_t part = 0; part < 2; ++part) {
      uint32_t a[2][4];
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        widen(half, bytes[i][2 * part], a[i][0], a[i][2]);
        widen(half, bytes[i][2 * part + 1], a[i][1], a[i][3]);
      }
#pragma unroll
      for (uint32_t j = 0; j < T::kWarpRows / 8; ++j) {
        const uint32_t row = first_row + j * 8 + lane / 4;
        const U32x2 x = ld_shared_v2(row_piece<T>(stage, row, 4 * step + 2 * part + lane % 4 / 2) + lane % 2 * 8);
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) multiply_add(half, d[i][j], a[i], {x.x, x.y});
      }
    }
  }
}

template <class T>
DEVICE void multiply(Sums<T> &d, uint32_t stage) {
  using Type = typename T::Type;
  if constexpr (T::kRowTiles == 2)
    multiply_widened<T>(typename Type::Half{}, d, stage);
  else if constexpr (Type::kWeightBytes == 1)
    multiply_alike<T>(int8_t{}, d, stage);
  else
    multiply_alike<T>(typename Type::Half{}, d, stage);
}

}  // namespace matmul
