// Sets words, where a memset would: unlike one it lets the kernel behind it begin, whose weights are then on their
// way already. A step puts it before a product, for the rows' status and bars.
#include "params.h"
#include "step.cuh"

using namespace ptx;

STEP_KERNEL(set_words, SetWordsParams, 256, 4) {
#pragma unroll
  for (const WordsToSet &words : params.words) {
    if (!words.to) continue;
    for (uint64_t i = uint64_t(blockIdx.x) * 256 + threadIdx.x; i < words.count; i += uint64_t(gridDim.x) * 256)
      st_global_u32(words.to + i * words.pitch, words.value);
  }
}
