// Sets words, in place of a memset. Unlike a memset it lets the kernel behind it begin early and load weights
// (step.cuh). A step launches it before a product, for the rows' status and bars.
#include "params.h"
#include "step.cuh"

using namespace ptx;

STEP_KERNEL(set_words, SetWordsParams, 256, 4) {
#pragma unroll
  for (const WordsToSet &words : params.words) {
    if (!words.to) continue;
    for (uint64_t i = uint64_t(blockIdx.x) * 256 + threadIdx.x; i < words.count;
         i += uint64_t(gridDim.x) * 256)
      st_global_u32(words.to + i * words.pitch, words.value);
  }
}
