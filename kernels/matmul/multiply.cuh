// A stage's products: each warp its kWarpN x kWarpM, one chain of instructions per output, k ascending.
#pragma once
#include "matmul/tile.cuh"

namespace matmul {

// Accumulators of a warp: [16 ids each][8 rows each][as mma.sync has them].
template <class T>
using Accumulators = typename T::Type::Accumulator[T::kWarpN / 16][T::kWarpM / 8][4];

// Where a lane's first fragments lie, relative to a stage's beginning, which is a multiple of 128. Within a
// row of 128 bytes the swizzle is an exclusive or: the addresses of further k are these XOR a constant, those
// of further ids and rows these plus a constant.
struct Fragments {
  uint32_t weights, rows;

  DEVICE Fragments in(uint32_t stage) const { return {stage + weights, stage + rows}; }
};

template <class T>
DEVICE Fragments fragments() {
  const uint32_t lane = lane_id();
  const auto [first_id, first_row] = warp_coord<T>(threadIdx.x / 32);
  // ldmatrix: lane 8m + i gives the address of row i of matrix m. The matrices are ids 0-7 and 8-15 of 16
  // bytes, then of the next 16.
  const uint32_t weights = vector_address(0, first_id + lane / 8 % 2 * 8 + lane % 8, lane / 16);
  if constexpr (T::kRowTiles == 2)  // a lane has eight bytes of the row that is its column
    return {weights, row_vector<T>(0, first_row + lane / 4, lane % 4 / 2) + lane % 2 * 8};
  else if constexpr (T::kWarpM == 8)  // four times 16 bytes of eight rows, for two steps
    return {weights, row_vector<T>(0, lane % 8, lane / 8)};
  else  // (first, second 16 bytes) of eight rows, then of the next eight
    return {weights, row_vector<T>(0, first_row + lane / 16 * 8 + lane % 8, lane / 8 % 2)};
}

// Loads the ids' fragments of 32 bytes of k: ids 0-7 and 8-15 of the first 16 bytes, then of the second.
template <class T>
DEVICE void load_ids(uint32_t (&a)[T::kWarpN / 16][4], uint32_t weights, uint32_t step) {
#pragma unroll
  for (uint32_t i = 0; i < T::kWarpN / 16; ++i) ldmatrix_x4(a[i], (weights ^ step << 5) + i * 16 * kRowBytes);
}

template <class Half>
DEVICE void multiply_add(Half half, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k16(half, d, a, b);
}
DEVICE void multiply_add(int8_t, int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k32(d, a, b);
}

// Products of rows and weights with elements of the same size: 32 bytes of k are one instruction, of 16
// halves or 32 int8.
template <class T, class Kind>
DEVICE void multiply_alike(Kind kind, Accumulators<T> &d, const Fragments &at) {
  [[maybe_unused]] uint32_t two_steps[4];
#pragma unroll
  for (uint32_t step = 0; step < kRowBytes / 32; ++step) {
    uint32_t a[T::kWarpN / 16][4], b[T::kWarpM / 8][2];
    load_ids<T>(a, at.weights, step);
    if constexpr (T::kWarpM == 8) {
      if (step % 2 == 0) ldmatrix_x4(two_steps, at.rows ^ step << 5);
      b[0][0] = two_steps[step % 2 * 2], b[0][1] = two_steps[step % 2 * 2 + 1];
    } else {
#pragma unroll
      for (uint32_t j = 0; j < T::kWarpM / 8; j += 2) {
        uint32_t both[4];
        ldmatrix_x4(both, (at.rows ^ step << 5) + j * 8 * kRowBytes);
        b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < T::kWarpN / 16; ++i)
#pragma unroll
      for (uint32_t j = 0; j < T::kWarpM / 8; ++j) multiply_add(kind, d[i][j], a[i], b[j]);
  }
}

// For two E4M3 codes in the upper bytes of a word's halves: 0x7fc0 for a NaN, else 0.
DEVICE uint32_t e4m3_nan(uint32_t codes) {
  const uint32_t sign_if_nan = ((codes & 0x7f007f00u) + 0x01000100u) & 0x80008000u;
  return sign_if_nan - (sign_if_nan >> 9);
}

// Four int8 -> four halves, exactly: the first two in `low`, the others in `high`.
DEVICE void widen(int8_t, Bf16, uint32_t bytes, uint32_t &low, uint32_t &high) {
  // Behind an upper byte of 0x43 the byte makes a bf16. With the byte's sign bit cleared it is 128 + the
  // other seven bits; with those cleared it is 128 or, for a negative byte, 256. The difference is the byte.
  const auto pair = [bytes](uint32_t selector) {
    const uint32_t above = prmt(bytes, 0x43434343u, selector);
    return fma_rn_bf16x2(above & 0xff80ff80u, 0xbf80bf80u, above & 0xff7fff7fu);
  };
  low = pair(0x4140), high = pair(0x4342);
}
DEVICE void widen(int8_t, F16, uint32_t bytes, uint32_t &low, uint32_t &high) {
  // byte + 128 in the last bits of the f16 1024 makes 1152 + byte.
  const uint32_t shifted = bytes ^ 0x80808080u, exponent = 0x64646464u, offset = 0x64806480u;
  low = sub_rn_f16x2(prmt(shifted, exponent, 0x5150), offset);
  high = sub_rn_f16x2(prmt(shifted, exponent, 0x5352), offset);
}

// Four E4M3 -> four halves, exactly. Two codes stand in the upper bytes of a word's halves. Exponent and
// mantissa move to those of a bf16, which is then the code's value times 2^-120, subnormal where the code is;
// a product scales it back. For f16 the product leaves the value times 2^-112: its exponent bits are then
// those of the f16, which begin three bits further up.
DEVICE void widen(E4m3, Bf16, uint32_t bytes, uint32_t &low, uint32_t &high) {
  const auto pair = [bytes](uint32_t selector) {
    const uint32_t codes = prmt(bytes, 0, selector);
    const uint32_t moved = (codes & 0x7f007f00u) >> 4 | (codes & 0x80008000u);
    // Times 2^120; adding -0 keeps the sign of zeros.
    return fma_rn_bf16x2(moved, 0x7b807b80u, 0x80008000u) | e4m3_nan(codes);
  };
  low = pair(0x1404), high = pair(0x3424);
}
DEVICE void widen(E4m3, F16, uint32_t bytes, uint32_t &low, uint32_t &high) {
  const auto pair = [bytes](uint32_t selector) {
    const uint32_t codes = prmt(bytes, 0, selector);
    // Times 2^8.
    const uint32_t magnitude = fma_rn_bf16x2((codes & 0x7f007f00u) >> 4, 0x43804380u, 0) << 3;
    return magnitude | (codes & 0x80008000u) | e4m3_nan(codes);
  };
  low = pair(0x1404), high = pair(0x3424);
}

// 8-bit weights with rows of halves: 16 bytes of weights are one instruction. Within it k may have any order
// that both operands share. ldmatrix gives lane t the bytes 4t to 4t+3, which are taken for its columns 2t,
// 2t+1, 2t+8, 2t+9. The same four elements of a row are eight consecutive bytes.
template <class T>
DEVICE void multiply_widened(typename T::Type::Half half, Accumulators<T> &d, const Fragments &at) {
#pragma unroll
  for (uint32_t step = 0; step < kRowBytes / 32; ++step) {
    uint32_t bytes[T::kWarpN / 16][4];
    load_ids<T>(bytes, at.weights, step);
#pragma unroll
    for (uint32_t part = 0; part < 2; ++part) {
      uint32_t a[T::kWarpN / 16][4];
#pragma unroll
      for (uint32_t i = 0; i < T::kWarpN / 16; ++i) {
        widen(typename T::Type::Code{}, half, bytes[i][2 * part], a[i][0], a[i][2]);
        widen(typename T::Type::Code{}, half, bytes[i][2 * part + 1], a[i][1], a[i][3]);
      }
#pragma unroll
      for (uint32_t j = 0; j < T::kWarpM / 8; ++j) {
        // A step of the weights is 64 bytes of a row: the row's two tiles of 128 bytes hold two steps each.
        const U32x2 x =
            ld_shared_v2((at.rows ^ (step % 2 * 2 + part) << 5) + step / 2 * T::kRowTile + j * 8 * kRowBytes);
#pragma unroll
        for (uint32_t i = 0; i < T::kWarpN / 16; ++i) multiply_add(half, d[i][j], a[i], {x.x, x.y});
      }
    }
  }
}

// A stage's products.
template <class T>
DEVICE void multiply(Accumulators<T> &d, const Fragments &at) {
  using Type = typename T::Type;
  if constexpr (T::kRowTiles == 2)
    multiply_widened<T>(typename Type::Half{}, d, at);
  else if constexpr (Type::kWeightBytes == 1)
    multiply_alike<T>(int8_t{}, d, at);
  else
    multiply_alike<T>(typename Type::Half{}, d, at);
}

}  // namespace matmul
