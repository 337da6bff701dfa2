// Sorted lists: a key's place among several lists is its number in its own, plus how many keys are above it
// in each of the others, which a binary search counts.
#pragma once
#include "answers/best.cuh"

namespace answers {

// How many of `count` keys, the largest first, are above `key`; `at(n)` is key n.
template <class At>
DEVICE uint32_t count_above(uint64_t key, uint32_t count, At at) {
  uint32_t low = 0, high = count;
#pragma unroll 1
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (at(middle) > key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace answers
