// A collective of device memory: each rank stores what it sends into its peers' windows (see PeerFlags in
// params.h), and copies what arrives in its own window to where it belongs.
//
//     push   wait until the peer has emptied the slot -> store a chunk there -> say that it has arrived
//     take   wait until a chunk has arrived -> copy it -> say that the slot is empty
//
// A pair of ranks has lanes, each with slots of its own, so that several blocks share a long piece. A block
// pushes or takes the chunks of one lane; all blocks of all ranks must run at the same time. How far a lane
// has come is counted in memory, across launches, so a CUDA graph may replay the kernel.
//
// Every wait ends after `timeout_ns` at the latest, and earlier where the host ends it. A rank that has given
// up an exchange pushes nothing any more: its later kernels work with what did not arrive, and no peer may
// take that for good.
#include "step.cuh"

using namespace ptx;

namespace {

using Params = ExchangePeersParams;

// A lane between two ranks, in the window of one of them; `peer` is the other.
struct Lane {
  uint8_t *window;
  uint32_t number;

  DEVICE Lane(uint8_t *window, uint32_t peer, uint32_t lane)
      : window(window), number(peer * LMHEAD_PEER_LANES + lane) {}
  DEVICE PeerFlags *flags() const { return reinterpret_cast<PeerFlags *>(window) + number; }
  // The slot of the lane's n-th chunk.
  DEVICE uint8_t *slot(const Params &p, uint32_t n) const {
    const uint64_t slots = p.size * LMHEAD_PEER_LANES * sizeof(PeerFlags);
    return window + slots + uint64_t(number * LMHEAD_PEER_SLOTS + n % LMHEAD_PEER_SLOTS) * p.slot_bytes;
  }
};

// Gives up all exchanges of this rank. The first to do so says why: `why` is a word of the status.
DEVICE void give_up(const Params &p, uint32_t *why, uint32_t peer, uint32_t wanted, uint32_t got) {
  if (atom_cas_u32(p.cut, 0, 1)) return;
  st_global_u32(&p.status->wanted, wanted);
  st_global_u32(&p.status->got, got);
  st_release_sys_u32(why, peer + 1);
  st_release_sys_u32(&p.status->ended, 1);
}

// Waits until a flag of `peer` counts `least`; false where nobody waits any longer. Called by one thread.
DEVICE bool wait_for(const Params &p, const uint32_t *flag, uint32_t least, uint32_t peer, uint64_t until) {
  for (uint32_t polls = 1; int32_t(ld_acquire_sys_u32(flag) - least) < 0; ++polls) {
    // The status is in the host's memory, which is far from here.
    if (polls % 64) continue;
    const bool ended = ld_acquire_sys_u32(&p.status->ended);
    if (ended) atom_cas_u32(p.cut, 0, 1);
    if (!ended && globaltimer() < until) continue;
    if (!ended) give_up(p, &p.status->missing, peer, 0, 0);
    return false;
  }
  return true;
}

// Whether the chunk that has arrived is of a piece as long as is wanted.
DEVICE bool fits(const Params &p, const uint32_t *length, uint32_t wanted, uint32_t peer) {
  const uint32_t got = ld_global_u32(length);
  if (got != wanted) give_up(p, &p.status->mismatched, peer, wanted, got);
  return got == wanted;
}

// Copies 16 bytes at a time where both addresses allow it, else 4, else 1. All threads of a block take part.
DEVICE void copy(uint8_t *to, const uint8_t *from, uint32_t bytes) {
  const uint64_t addresses = uint64_t(to) | uint64_t(from);
  uint32_t done = 0;
  if (addresses % 16 == 0) {
    done = bytes / 16 * 16;
    // Eight loads are under way at once: memory is far away.
    constexpr uint32_t kLoads = 8;
    const uint32_t step = 16 * blockDim.x;
#pragma unroll 1
    for (uint32_t at = 16 * threadIdx.x; at < done; at += kLoads * step) {
      U32x4 vectors[kLoads];
#pragma unroll
      for (uint32_t i = 0; i < kLoads; ++i)
        if (at + i * step < done) vectors[i] = ld_global_v4(from + at + i * step);
#pragma unroll
      for (uint32_t i = 0; i < kLoads; ++i)
        if (at + i * step < done) st_global_v4(to + at + i * step, vectors[i]);
    }
  } else if (addresses % 4 == 0) {
    done = bytes / 4 * 4;
    for (uint32_t at = 4 * threadIdx.x; at < done; at += 4 * blockDim.x)
      st_global_u32(to + at, ld_global_u32(from + at));
  }
  for (uint32_t at = done + threadIdx.x; at < bytes; at += blockDim.x)
    st_global_u8(to + at, ld_global_u8(from + at));
}

// Walks the lane's chunks of a piece. `ready(n)`, called by one thread, waits for the lane's n-th chunk or
// for its slot; false ends the walk. `move(n, at, bytes)` copies; `done(n)`, called by one thread, tells the
// peer.
template <class Ready, class Move, class Done>
DEVICE void walk(const Params &p, uint32_t lane, uint64_t piece, uint32_t *count, Ready ready, Move move,
                 Done done) {
  uint64_t at = uint64_t(lane) * p.slot_bytes;
  if (at >= piece) return;
  const uint32_t is_ready = dynamic_shared();
  uint32_t n = ld_global_u32(count);
#pragma unroll 1
  for (; at < piece; at += uint64_t(LMHEAD_PEER_LANES) * p.slot_bytes, ++n) {
    if (threadIdx.x == 0) st_shared_u32(is_ready, !ld_relaxed_u32(p.cut) && ready(n));
    barrier_sync_all();
    if (!ld_shared_u32(is_ready)) return;
    const uint64_t left = piece - at;
    move(n, at, uint32_t(left < p.slot_bytes ? left : p.slot_bytes));
    barrier_sync_all();
    if (threadIdx.x == 0) done(n);
  }
  if (threadIdx.x == 0) st_global_u32(count, n);
}

}  // namespace

PEER_KERNEL(exchange_peers, ExchangePeersParams, LMHEAD_PEER_THREADS) {
  wait_for_kernel_before();
  const Params &p = params;
  const uint32_t lane = blockIdx.x % p.lanes, peer = blockIdx.x / p.lanes % p.size;
  const bool takes = blockIdx.x >= p.lanes * p.size;
  const PeerPieces &pieces = p.members[peer];
  const uint64_t until = globaltimer() + p.timeout_ns;
  if (peer == p.me) {
    // Its own piece: no window.
    if (takes || pieces.send == pieces.recv) return;
    for (uint64_t at = uint64_t(lane) * p.slot_bytes; at < pieces.send_bytes;
         at += uint64_t(p.lanes) * p.slot_bytes) {
      const uint64_t left = pieces.send_bytes - at;
      copy(pieces.recv + at, pieces.send + at, uint32_t(left < p.slot_bytes ? left : p.slot_bytes));
    }
    return;
  }
  const Lane here{p.members[p.me].window, peer, lane}, there{pieces.window, p.me, lane};
  PeerCounts *counts = p.counts + here.number;
  if (takes)
    walk(
        p, lane, pieces.recv_bytes, &counts->taken,
        [&](uint32_t n) {
          const PeerFlags *flags = here.flags();
          return wait_for(p, &flags->arrived, n + 1, peer, until) &&
                 fits(p, flags->lengths + n % LMHEAD_PEER_SLOTS, uint32_t(pieces.recv_bytes), peer);
        },
        [&](uint32_t n, uint64_t at, uint32_t bytes) { copy(pieces.recv + at, here.slot(p, n), bytes); },
        [&](uint32_t n) { st_release_sys_u32(&there.flags()->taken, n + 1); });
  else
    walk(
        p, lane, pieces.send_bytes, &counts->pushed,
        [&](uint32_t n) {
          return wait_for(p, &here.flags()->taken, n + 1 - LMHEAD_PEER_SLOTS, peer, until);
        },
        [&](uint32_t n, uint64_t at, uint32_t bytes) { copy(there.slot(p, n), pieces.send + at, bytes); },
        [&](uint32_t n) {
          st_global_u32(there.flags()->lengths + n % LMHEAD_PEER_SLOTS, uint32_t(pieces.send_bytes));
          st_release_sys_u32(&there.flags()->arrived, n + 1);
        });
}
