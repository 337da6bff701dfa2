// What the warps of a block know of one row, joined.
#pragma once
#include "answers/best.cuh"
#include "answers/exponential.cuh"

namespace answers {

// What is known of a row, beside its best candidates.
struct Row {
  ExpSum sum;
  uint32_t status = 0;
};

// The warps of a block search one row. dynamic_shared() holds the list of candidates of each warp, then what
// else each has found.
template <uint32_t kWarps>
struct Warps {
  static constexpr uint32_t kEach = 40;  // bytes: the sum's words, floor, status, candidates
  static constexpr uint32_t kBytes = kWarps * (Best::kBytes + kEach);

  DEVICE static uint32_t list(uint32_t warp) { return dynamic_shared() + warp * Best::kBytes; }
  DEVICE static uint32_t row(uint32_t warp) {
    return dynamic_shared() + kWarps * Best::kBytes + warp * kEach;
  }

  // Joins what the warps have found; called by the whole block, each warp with its own. The first warp then
  // has the whole, the best first.
  DEVICE static void join(Row &all, Best &best) {
    const uint32_t lane = lane_id(), warp = threadIdx.x / 32;
    best.keep();
    all.sum.merge_lanes();
    all.status = redux_or_b32(all.status);
    if (lane == 0) {
      const uint32_t to = row(warp);
      for (uint32_t i = 0; i < 3; ++i)
        st_shared_v2(to + 8 * i, {uint32_t(all.sum.words[i]), uint32_t(all.sum.words[i] >> 32)});
      st_shared_v2(to + 24, {uint32_t(all.sum.floor), all.status});
      st_shared_u32(to + 32, best.count);
    }
    barrier_sync_all();
    if (warp) return;
#pragma unroll 1
    for (uint32_t other = 1; other < kWarps; ++other) {
      const uint32_t from = row(other), count = ld_shared_u32(from + 32);
      ExpSum sum;
      for (uint32_t i = 0; i < 3; ++i) {
        const U32x2 word = ld_shared_v2(from + 8 * i);
        sum.words[i] = uint64_t(word.y) << 32 | word.x;
      }
      const U32x2 floor_status = ld_shared_v2(from + 24);
      sum.floor = int32_t(floor_status.x);
      all.sum.merge(sum);
      all.status |= floor_status.y;
#pragma unroll 1
      for (uint32_t n = 0; n < count; n += 32) {
        const bool has = n + lane < count;
        const U32x2 candidate = has ? ld_shared_v2(list(other) + 8 * (n + lane)) : U32x2{0, 0};
        best.offer(has, candidate.x, candidate.y);
      }
    }
    best.keep();
  }
};

// Stores a PartialRow with `places` candidates, by one warp. `first_id` is added to ids.
DEVICE void store_partial(uint8_t *out, const Row &all, const Best &best, uint32_t places,
                          uint32_t first_id) {
  const uint32_t lane = lane_id();
  if (lane < 3) {
    const uint64_t word = lane == 0 ? all.sum.words[0] : lane == 1 ? all.sum.words[1] : all.sum.words[2];
    st_global_v2(out + 8 * lane, {uint32_t(word), uint32_t(word >> 32)});
  }
  if (lane == 3) st_global_v2(out + offsetof(PartialRow, top), {uint32_t(all.sum.top()), all.status});
  if (lane == 4) st_global_v2(out + offsetof(PartialRow, candidates), {best.count, 0});
  for (uint32_t n = lane; n < places; n += 32) {
    // Places without a candidate are set, too: no stale byte is sent.
    U32x2 candidate = {0xff800000u, 0};
    if (n < best.count) candidate = ld_shared_v2(best.at(n)), candidate.y += first_id;
    st_global_v2(out + sizeof(PartialRow) + n * sizeof(Candidate), candidate);
  }
}

// Stores the counts of targets behind the candidates, by one warp. `count(n)`, called in all lanes, is that
// of target n. An odd number is padded by a zero.
template <class Count>
DEVICE void store_counts(uint8_t *out, uint32_t places, uint32_t targets, Count count) {
  uint8_t *to = out + sizeof(PartialRow) + places * sizeof(Candidate);
#pragma unroll 1
  for (uint32_t n = 0; n < (targets + 1) / 2 * 2; ++n) {
    const uint32_t beat = n < targets ? count(n) : 0;
    if (lane_id() == 0) st_global_u32(to + 4 * n, beat);
  }
}

DEVICE uint32_t sum_lanes(uint32_t v) {
#pragma unroll
  for (uint32_t distance = 16; distance; distance /= 2) v += shfl_bfly(v, distance);
  return v;
}

// The row's logsumexp; NaN where it has no candidate.
DEVICE double logsumexp_of(const Row &all, const Best &best) {
  return best.count ? logsumexp(all.sum, mov_f32_b32(ld_shared_v2(best.at(0)).x)) : constant(kNan64);
}

// Rounding may leave `lse` just below the largest logit: the logprob is at most 0.
DEVICE float logprob(float logit, double lse) {
  const double difference = subtract(cvt_f64_f32(logit), lse);
  return cvt_rn_f32_f64(difference < 0 ? difference : 0);
}

}  // namespace answers
