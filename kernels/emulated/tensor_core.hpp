// The arithmetic of one matrix instruction over a whole tile. Tiles are dense: a [m][k], b [n][k], both
// k-major; d [m][stride] is read and written. n is a multiple of 8.
#pragma once
#include "tensor_core_model.hpp"

namespace emulated {

// d += a·bᵀ for 16 products of 16-bit operands with an f32 accumulator: the bits of
// tensor_core::dot_step<input, 16>.
void multiply_k16(tensor_core::Input input, const uint16_t *a, const uint16_t *b, float *d, int m, int n,
                  int stride);

// The tile of one mma.sync, word by word: a [16][8], b [8 words of k][8 columns], d [16][8].
void warp_multiply_k16(tensor_core::Input input, const uint32_t *a, const uint32_t *b, float *d);
void warp_multiply_k32(const uint32_t *a, const uint32_t *b, int32_t *d);

// The same one element at a time, by the model itself: what the fast path is compared with.
void multiply_k16_by_model(tensor_core::Input input, const uint16_t *a, const uint16_t *b, float *d, int m,
                           int n, int stride);

// d += a·bᵀ for 32 products of int8 with an int32 accumulator that wraps.
void multiply_k32(const int8_t *a, const int8_t *b, int32_t *d, int m, int n, int stride);

}  // namespace emulated
