// Rows -> int8 with one scale each, by the rule of promise 2: scale = absmax / 127; out = the nearest integer
// to x / scale, ties to even, within ±127. A scale below 2^-126 becomes 1, with zeros; a row with NaN or
// infinity gets scale NaN, with zeros. A block of kThreads has a row.
#pragma once
#include "matmul/tile.cuh"

namespace int8_rows {

using namespace ptx;

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32, kChunk = 16;  // elements a thread takes at once

struct F32 {};

DEVICE float element(F32, const uint8_t *row, uint32_t k) {
  return mov_f32_b32(ld_global_u32(row + 4 * uint64_t(k)));
}
DEVICE float element(Bf16, const uint8_t *row, uint32_t k) {
  return mov_f32_b32(uint32_t(ld_global_u16(row + 2 * uint64_t(k))) << 16);
}
DEVICE float element(F16, const uint8_t *row, uint32_t k) {
  return cvt_f32_f16({ld_global_u16(row + 2 * uint64_t(k))});
}

// The two elements of a word, exactly.
DEVICE void both(Bf16, uint32_t word, float (&v)[2]) {
  v[0] = mov_f32_b32(word << 16), v[1] = mov_f32_b32(word & 0xffff0000u);
}
DEVICE void both(F16, uint32_t word, float (&v)[2]) {
  v[0] = cvt_f32_f16({uint16_t(word)}), v[1] = cvt_f32_f16({uint16_t(word >> 16)});
}

// Loads kChunk elements from k on, zeros past the end. Aligned rows are read 16 bytes at a time.
template <class Type>
DEVICE void load_chunk(Type type, const uint8_t *row, uint32_t k, uint32_t hidden, bool aligned,
                       float (&v)[kChunk]) {
  if (!aligned || k + kChunk > hidden) {
#pragma unroll
    for (uint32_t i = 0; i < kChunk; ++i) v[i] = k + i < hidden ? element(type, row, k + i) : 0.0f;
    return;
  }
  constexpr uint32_t kBytes = sizeof(Type) == 1 ? 4 : 2;
#pragma unroll
  for (uint32_t i = 0; i < kChunk * kBytes / 16; ++i) {
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

// The largest of all threads' values. Magnitudes of floats order like their bits, NaN and infinity above all
// others.
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

// The largest magnitude of a row of `hidden` elements, as bits: by the whole block, which has kWarps words of
// shared memory.
template <class Type>
DEVICE uint32_t largest_magnitude(Type type, const uint8_t *row, uint32_t hidden, bool aligned) {
  uint32_t largest = 0;
  float v[kChunk];
  for (uint32_t k = threadIdx.x * kChunk; k < hidden; k += kThreads * kChunk) {
    load_chunk(type, row, k, hidden, aligned, v);
#pragma unroll
    for (uint32_t i = 0; i < kChunk; ++i) {
      const uint32_t magnitude = mov_b32_f32(v[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  return block_max(largest);
}

struct Scale {
  float value;
  bool zeros;  // the row's integers are zeros, whatever the row holds

  DEVICE static Scale of(uint32_t largest) {
    const bool broken = largest >= 0x7f800000u;
    const float scale = broken ? mov_f32_b32(0x7fffffffu) : div_rn_f32(mov_f32_b32(largest), 127.0f);
    const bool zeros = broken || mov_b32_f32(scale) < 0x00800000u;
    return {zeros && !broken ? 1.0f : scale, zeros};
  }
};

// Quantises kChunk elements to int8, four to a word.
DEVICE void quantize_chunk(const float (&v)[kChunk], const Scale &scale, uint32_t (&words)[4]) {
#pragma unroll
  for (uint32_t i = 0; i < kChunk; ++i) {
    // The quotient may be an ulp above 127. Rounding never makes that more than 127; the clamp is in the
    // rule.
    int32_t q = cvt_rni_s32_f32(div_rn_f32(v[i], scale.value));
    q = q > 127 ? 127 : q < -127 ? -127 : q;
    words[i / 4] |= uint32_t(uint8_t(q)) << (i % 4 * 8);
  }
}

}  // namespace int8_rows
