// How passes read logits that a product left in memory, [rows, ids] f32.
#pragma once
#include "ptx.cuh"

namespace answers {

using namespace ptx;

constexpr uint32_t kEach = 4;  // logits a thread takes at once

DEVICE const float *row_of(const HeldMatrix &held, uint32_t row) {
  return reinterpret_cast<const float *>(reinterpret_cast<const uint8_t *>(held.data) + row * held.pitch);
}

// Loads kEach logits of a row from number i on, a multiple of kEach; behind the last id, minus infinity.
DEVICE void load(const float *logits, uint32_t ids, uint32_t i, float (&some)[kEach]) {
  const bool whole = i + kEach <= ids;
  const U32x4 four = whole ? ld_global_v4(logits + i) : U32x4{};
  const uint32_t words[kEach] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (uint32_t j = 0; j < kEach; ++j)
    some[j] = whole         ? mov_f32_b32(words[j])
              : i + j < ids ? mov_f32_b32(ld_global_u32(logits + i + j))
                            : -__builtin_inff();
}

// Whether the row has an answer.
DEVICE bool is_good(const HeldMatrix &held, uint32_t row) {
  return !held.status || !(ld_global_u32(held.status + row) & held.nonfinite);
}

// Loads a struct; each thread for itself.
template <class T>
DEVICE T ask(const T *at) {
  static_assert(sizeof(T) % 8 == 0, "pairs of words");
  T out;
#pragma unroll
  for (uint32_t i = 0; i < sizeof(T); i += 8) {
    const U32x2 two = ld_global_v2(reinterpret_cast<const uint8_t *>(at) + i);
    __builtin_memcpy(reinterpret_cast<uint8_t *>(&out) + i, &two, 8);
  }
  return out;
}

// Stores a struct; each thread for itself.
template <class T>
DEVICE void tell(T *at, const T &value) {
  static_assert(sizeof(T) % 8 == 0, "pairs of words");
#pragma unroll
  for (uint32_t i = 0; i < sizeof(T); i += 8) {
    U32x2 two;
    __builtin_memcpy(&two, reinterpret_cast<const uint8_t *>(&value) + i, 8);
    st_global_v2(reinterpret_cast<uint8_t *>(at) + i, two);
  }
}

}  // namespace answers
