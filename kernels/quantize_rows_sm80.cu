// Rows picked by index -> int8 with one scale each, by the rule of promise 2: scale = absmax / 127; out = the nearest integer to
// x / scale, ties to even, within ±127. A scale below 2^-126 becomes 1, with zeros; a row with NaN or infinity gets scale NaN,
// with zeros. A block has a row.
#include "matmul/tile.cuh"

namespace {

using namespace ptx;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kPiece = 16;  // elements a thread takes at once

struct F32 {};

DEVICE float element(F32, const uint8_t *row, uint32_t k) { return mov_f32_b32(ld_global_u32(row + 4 * uint64_t(k))); }
DEVICE float element(Bf16, const uint8_t *row, uint32_t k) {
  return mov_f32_b32(uint32_t(ld_global_nc_u16(row + 2 * uint64_t(k))) << 16);
}
DEVICE float element(F16, const uint8_t *row, uint32_t k) { return cvt_f32_f16({ld_global_nc_u16(row + 2 * uint64_t(k))}); }

// Two elements of a word, exactly.
DEVICE void both(Bf16, uint32_t word, float (&v)[2]) { v[0] = mov_f32_b32(word << 16), v[1] = mov_f32_b32(word & 0xffff0000u); }
DEVICE void both(F16, uint32_t word, float (&v)[2]) {
  v[0] = cvt_f32_f16({uint16_t(word)}), v[1] = cvt_f32_f16({uint16_t(word >> 16)});
}

// kPiece elements from k on, zeros past the end. Aligned rows are read 16 bytes at a time.
template <class Type>
DEVICE void piece(Type type, const uint8_t *row, uint32_t k, uint32_t hidden, bool aligned, float (&v)[kPiece]) {
  if (!aligned || k + kPiece > hidden) {
#pragma unroll
    for (uint32_t i = 0; i < kPiece; ++i) v[i] = k + i < hidden ? element(type, row, k + i) : 0.0f;
    return;
  }
  constexpr uint32_t kBytes = sizeof(Type) == 1 ? 4 : 2;
#pragma unroll
  for (uint32_t i = 0; i < kPiece * kBytes / 16; ++i) {
    const U32x4 four = ld_global_v4(row + uint64_t(k) * kBytes + 16 * i);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      if constexpr (kBytes == 4) {
        v[4 * i + j] = mov_f32_b32(words[j]);
      } else {
        float pair[2];
        both(type, words[j], pair);
        v[8 * i + 2 * j] = pair[0], v[8 * i + 2 * j + 1] = pair[1];
      }
    }
  }
}

// The largest of all threads' values. Magnitudes of floats order like their bits, NaN and infinity above all others.
DEVICE uint32_t block_max(uint32_t v) {
#pragma unroll
  for (uint32_t lanes = 16; lanes; lanes /= 2) {
    const uint32_t other = shfl_bfly(v, lanes);
    v = other > v ? other : v;
  }
  const uint32_t found = dynamic_shared();
  if (lane_id() == 0) st_shared_u32(found + 4 * (threadIdx.x / 32), v);
  barrier_sync_all();
#pragma unroll
  for (uint32_t warp = 0; warp < kWarps; ++warp) {
    const uint32_t other = ld_shared_u32(found + 4 * warp);
    v = other > v ? other : v;
  }
  return v;
}

template <class Type>
DEVICE void quantize(Type type, const QuantizeRowsParams &p) {
  const uint32_t row = blockIdx.x;
  // The product that follows may begin: its weights do not depend on the rows.
  griddepcontrol_launch_dependents();
  const uint32_t number = matmul::row_number(p.rows, row, p.row_count);
  if (threadIdx.x == 0)
    st_global_u32(p.status + row, p.status_before | (number == matmul::kNoRow ? LMHEAD_STATUS_BAD_INDEX : 0));
  const uint8_t *from = static_cast<const uint8_t *>(p.rows.data) + (number == matmul::kNoRow ? 0 : number * p.rows.pitch);
  const uint32_t hidden = number == matmul::kNoRow ? 0 : p.hidden;
  const bool aligned = (uint64_t(p.rows.data) | p.rows.pitch) % 16 == 0;

  uint32_t largest = 0;
  float v[kPiece];
  for (uint32_t k = threadIdx.x * kPiece; k < hidden; k += kThreads * kPiece) {
    piece(type, from, k, hidden, aligned, v);
#pragma unroll
    for (uint32_t i = 0; i < kPiece; ++i) {
      const uint32_t magnitude = mov_b32_f32(v[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  largest = block_max(largest);

  const bool broken = largest >= 0x7f800000u;
  float scale = broken ? mov_f32_b32(0x7fffffffu) : div_rn_f32(mov_f32_b32(largest), 127.0f);
  const bool zeros = broken || mov_b32_f32(scale) < 0x00800000u;
  if (zeros && !broken) scale = 1.0f;
  if (threadIdx.x == 0) st_global_f32(p.scales + row, scale);

  int8_t *out = p.out + row * p.out_pitch;
  for (uint32_t k = threadIdx.x * kPiece; k < p.out_pitch; k += kThreads * kPiece) {
    uint32_t words[4] = {};
    if (!zeros && k < hidden) {
      piece(type, from, k, hidden, aligned, v);
#pragma unroll
      for (uint32_t i = 0; i < kPiece; ++i) {
        // The largest may be an ulp above 127 times the scale: never more than 127 after rounding, but the rule says so.
        int32_t q = cvt_rni_s32_f32(div_rn_f32(v[i], scale));
        q = q > 127 ? 127 : q < -127 ? -127 : q;
        words[i / 4] |= uint32_t(uint8_t(q)) << (i % 4 * 8);
      }
    }
    st_global_v4(out + k, {words[0], words[1], words[2], words[3]});
  }
}

}  // namespace

KERNEL(quantize_rows_bf16, QuantizeRowsParams, 256, 4) { quantize(Bf16{}, params); }
KERNEL(quantize_rows_f16, QuantizeRowsParams, 256, 4) { quantize(F16{}, params); }
KERNEL(quantize_rows_f32, QuantizeRowsParams, 256, 4) { quantize(F32{}, params); }
