// How PartialRows of parts of a vocabulary are read: which ids a part has, what its row says, and whether any
// rank can have sent that.
#pragma once
#include "answers/join.cuh"
#include "answers/messages.cuh"

namespace answers {

// The highest digit of e^l for |l| <= 2^21.
constexpr int32_t kHighestDigit = 94549;

// The ids of part i.
DEVICE Ids ids_of(const PartialParts &p, uint32_t i) {
  if (p.part_ids) {
    const uint32_t whole = i < p.whole_parts ? i : p.whole_parts;
    const uint64_t first = uint64_t(whole) * p.part_ids + uint64_t(i - whole) * p.tail_ids;
    return cut(first, first + (i < p.whole_parts ? p.part_ids : p.tail_ids), p.vocab);
  }
  return shard_ids(p.vocab, p.shards, i);
}

DEVICE uint64_t load_u64(const uint8_t *from) {
  const U32x2 v = ld_global_v2(from);
  return uint64_t(v.y) << 32 | v.x;
}

// Adds the sum and status of one lane's part of the row to `all`. Returns how many candidates follow.
DEVICE uint32_t take(Row &all, const uint8_t *part, uint32_t places) {
  ExpSum sum;
  for (uint32_t i = 0; i < 3; ++i) sum.words[i] = load_u64(part + 8 * i);
  const U32x2 top_status = ld_global_v2(part + offsetof(PartialRow, top));
  const U32x2 candidates = ld_global_v2(part + offsetof(PartialRow, candidates));
  const int32_t top = int32_t(top_status.x);
  all.status |= top_status.y & ~kDamaged;
  const bool empty = !(sum.words[0] | sum.words[1] | sum.words[2]);
  const bool fits = (sum.words[0] | sum.words[1] | sum.words[2]) >> 63 == 0 && -kHighestDigit <= top &&
                    top <= kHighestDigit;
  if (!(empty ? top == INT32_MIN : fits) || candidates.x > places || candidates.y) {
    all.status |= kDamaged;
    return 0;
  }
  sum.floor = ExpSum::floor_of(top);
  all.sum.merge(sum);
  return candidates.x;
}

// The status for logprobs of a row that is `status` by itself: a draw that was not good decides.
DEVICE uint8_t status_of_drawn(const FinishLogprobsParams &p, uint32_t row, uint8_t status) {
  if (!p.drawn) return status;
  const uint8_t drawn = ld_global_u8(p.row_status + row);
  return drawn == kGood ? status : drawn;
}

}  // namespace answers
