// How a row is sampled; the rules of the host's `sampling::SamplingParams`.
#pragma once
#include "ptx.cuh"

namespace answers {

using namespace ptx;

// What each shard sends of a row that is drawn, and what it has to know of the row before.
enum class DrawKind {
  kBest,       // the best of every shard: by logit at temperature 0, else by score
  kListed,     // the top_k best logits of every shard
  kThreshold,  // one that each shard draws once it knows the row's largest logit
  kCut         // the same, once it also knows the last logit that is kept
};

DEVICE DrawKind kind_of(const SamplingRow &row, uint32_t vocab) {
  const bool top_k = row.top_k > 0 && row.top_k < vocab;
  if (row.temperature == 0) return DrawKind::kBest;
  if (top_k) return row.top_k <= LMHEAD_LISTED ? DrawKind::kListed : DrawKind::kCut;
  if (row.top_p < 1) return DrawKind::kCut;
  return row.min_p > 0 ? DrawKind::kThreshold : DrawKind::kBest;
}

// How many candidates a shard of `ids` ids sends for the row.
DEVICE uint32_t places_of(const SamplingRow &row, uint32_t vocab, uint32_t ids) {
  if (kind_of(row, vocab) != DrawKind::kListed) return 1;
  return row.top_k < ids ? row.top_k : ids;
}

// Whether the parameters are legal.
DEVICE bool is_legal(const SamplingRow &row) {
  const bool temperature = row.temperature >= 0 && row.temperature < __builtin_inff();
  return temperature && row.top_p > 0 && row.top_p <= 1 && row.min_p >= 0 && row.min_p <= 1;
}

DEVICE SamplingRow load_sampling(const SamplingRow *from) {
  const U32x4 numbers = ld_global_v4(from),
              filters = ld_global_v4(reinterpret_cast<const uint8_t *>(from) + 16);
  return {uint64_t(numbers.y) << 32 | numbers.x,
          uint64_t(numbers.w) << 32 | numbers.z,
          mov_f32_b32(filters.x),
          filters.y,
          mov_f32_b32(filters.z),
          mov_f32_b32(filters.w)};
}

}  // namespace answers
