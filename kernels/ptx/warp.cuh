// Instructions of a whole warp, or of the lanes of a mask: votes, shuffles, synchronisation.
#pragma once
#include "core.cuh"

namespace ptx {

PTX uint32_t lane_id() { return threadIdx.x % 32; }  // blocks are one-dimensional

// Waits for the lanes of the mask and orders their memory accesses.
PTX void bar_warp_sync(uint32_t mask = kFullWarp) {
  EITHER(emulated::bar_warp_sync(mask), asm volatile("bar.warp.sync %0;" ::"r"(mask) : "memory"));
}

// True in one lane of a full warp.
PTX bool elect_sync() {
  uint32_t elected;
  EITHER(elected = emulated::elect_sync(),
         asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(elected)));
  return elected;
}

PTX uint32_t vote_ballot(bool predicate, uint32_t mask = kFullWarp) {
  uint32_t votes;
  EITHER(votes = emulated::vote_ballot("vote.sync.ballot.b32", predicate, mask),
         asm volatile("{.reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.ballot.b32 %0, p, %2;}"
                      : "=r"(votes)
                      : "r"(uint32_t(predicate)), "r"(mask)));
  return votes;
}
PTX bool vote_any(bool predicate, uint32_t mask = kFullWarp) {
  uint32_t vote;
  EITHER(vote = emulated::vote_ballot("vote.sync.any.pred", predicate, mask) != 0,
         asm volatile("{.reg .pred p, q; setp.ne.u32 p, %1, 0; vote.sync.any.pred q, p, %2; selp.u32 %0, 1, "
                      "0, q;}" : "=r"(vote) : "r"(uint32_t(predicate)),
                      "r"(mask)));
  return vote;
}
PTX bool vote_all(bool predicate, uint32_t mask = kFullWarp) {
  uint32_t vote;
  EITHER(vote = emulated::vote_ballot("vote.sync.all.pred", predicate, mask) == mask,
         asm volatile("{.reg .pred p, q; setp.ne.u32 p, %1, 0; vote.sync.all.pred q, p, %2; selp.u32 %0, 1, "
                      "0, q;}" : "=r"(vote) : "r"(uint32_t(predicate)),
                      "r"(mask)));
  return vote;
}

// redux: of the values of all lanes.
PTX uint32_t redux_max_u32(uint32_t v, uint32_t mask = kFullWarp) {
  uint32_t out;
  EITHER(out = emulated::redux("redux.sync.max.u32", emulated::Reduction::max, v, mask),
         asm volatile("redux.sync.max.u32 %0, %1, %2;" : "=r"(out) : "r"(v), "r"(mask)));
  return out;
}
PTX uint32_t redux_or_b32(uint32_t v, uint32_t mask = kFullWarp) {
  uint32_t out;
  EITHER(out = emulated::redux("redux.sync.or.b32", emulated::Reduction::bit_or, v, mask),
         asm volatile("redux.sync.or.b32 %0, %1, %2;" : "=r"(out) : "r"(v), "r"(mask)));
  return out;
}

// shfl: the value of another lane; all 32 lanes are one segment. A lane number outside of it gives the lane's
// own value.
PTX uint32_t shfl_bfly(uint32_t v, uint32_t lane_mask, uint32_t mask = kFullWarp) {
  uint32_t out;
  EITHER(out = emulated::shuffle("shfl.sync.bfly.b32", emulated::Shuffle::butterfly, v, lane_mask, mask),
         asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, %3;" : "=r"(out) : "r"(v), "r"(lane_mask),
                      "r"(mask)));
  return out;
}
PTX uint32_t shfl_idx(uint32_t v, uint32_t lane, uint32_t mask = kFullWarp) {
  uint32_t out;
  EITHER(out = emulated::shuffle("shfl.sync.idx.b32", emulated::Shuffle::index, v, lane, mask),
         asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, %3;" : "=r"(out) : "r"(v), "r"(lane), "r"(mask)));
  return out;
}
PTX uint32_t shfl_up(uint32_t v, uint32_t delta, uint32_t mask = kFullWarp) {
  uint32_t out;
  EITHER(out = emulated::shuffle("shfl.sync.up.b32", emulated::Shuffle::up, v, delta, mask),
         asm volatile("shfl.sync.up.b32 %0, %1, %2, 0x0, %3;" : "=r"(out) : "r"(v), "r"(delta), "r"(mask)));
  return out;
}
PTX uint32_t shfl_down(uint32_t v, uint32_t delta, uint32_t mask = kFullWarp) {
  uint32_t out;
  EITHER(
      out = emulated::shuffle("shfl.sync.down.b32", emulated::Shuffle::down, v, delta, mask),
      asm volatile("shfl.sync.down.b32 %0, %1, %2, 0x1f, %3;" : "=r"(out) : "r"(v), "r"(delta), "r"(mask)));
  return out;
}

}  // namespace ptx
