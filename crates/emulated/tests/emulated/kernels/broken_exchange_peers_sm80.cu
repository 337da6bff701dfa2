// exchange_peers of exchange_peers_sm80.cu with one mistake each; `how` selects it, 0 is none. Where a
// mistake shows only if the other rank is slow or fast, somebody waits a while for it.
#include "broken.h"

using namespace ptx;

namespace {

using Params = ExchangePeersParams;

DEVICE void linger() {
  const uint64_t until = globaltimer() + 100000;
  while (globaltimer() < until) {
  }
}

struct Lane {
  uint8_t *window;
  uint32_t number;

  DEVICE Lane(uint8_t *window, uint32_t peer, uint32_t lane)
      : window(window), number(peer * LMHEAD_PEER_LANES + lane) {}
  DEVICE PeerFlags *flags() const { return reinterpret_cast<PeerFlags *>(window) + number; }
  DEVICE uint8_t *slot(const Params &p, uint32_t n) const {
    const uint64_t slots = p.size * LMHEAD_PEER_LANES * sizeof(PeerFlags);
    return window + slots + uint64_t(number * LMHEAD_PEER_SLOTS + n % LMHEAD_PEER_SLOTS) * p.slot_bytes;
  }
};

DEVICE bool wait_for(const Params &p, uint32_t how, const uint32_t *flag, uint32_t least, uint32_t peer,
                     uint64_t until) {
  // 7: the first look at the flag is an ordinary load
  if (how == 7 && int32_t(ld_global_u32(flag) - least) >= 0) return true;
  for (uint32_t polls = 1; int32_t(ld_acquire_sys_u32(flag) - least) < 0; ++polls) {
    if (polls % 64) continue;
    if (ld_acquire_sys_u32(&p.status->ended)) return false;
    if (globaltimer() < until) continue;
    st_release_sys_u32(&p.status->missing, peer + 1);
    st_release_sys_u32(&p.status->ended, 1);
    return false;
  }
  return true;
}

DEVICE void copy(uint8_t *to, const uint8_t *from, uint32_t bytes) {
  for (uint32_t at = 4 * threadIdx.x; at < bytes; at += 4 * blockDim.x)
    st_global_u32(to + at, ld_global_u32(from + at));
}

DEVICE void set(uint32_t *flag, uint32_t v, bool ordinary) {
  if (ordinary)
    st_global_u32(flag, v);
  else
    st_release_sys_u32(flag, v);
}

}  // namespace

PEER_KERNEL(broken_exchange_peers, Broken<ExchangePeersParams>, LMHEAD_PEER_THREADS) {
  const Params &p = params.right;
  const uint32_t how = params.how;
  wait_or_not(how);
  const uint32_t lane = blockIdx.x % p.lanes, peer = blockIdx.x / p.lanes % p.size;
  const bool takes = blockIdx.x >= p.lanes * p.size;
  const PeerPieces &pieces = p.members[peer];
  const uint64_t until = globaltimer() + p.timeout_ns, piece = takes ? pieces.recv_bytes : pieces.send_bytes;
  uint64_t at = uint64_t(lane) * p.slot_bytes;
  if (at >= piece) return;
  if (peer == p.me) {
    for (; at < piece; at += uint64_t(p.lanes) * p.slot_bytes) {
      const uint64_t left = piece - at, bytes = left < p.slot_bytes ? left : p.slot_bytes;
      if (!takes) copy(pieces.recv + at, pieces.send + at, uint32_t(bytes));
    }
    return;
  }
  // 9: a rank tells its peer in the lane of the peer
  const Lane here{p.members[p.me].window, peer, lane}, there{pieces.window, how == 9 ? peer : p.me, lane};
  PeerCounts *counts = p.counts + here.number;
  uint32_t *count = takes ? &counts->taken : &counts->pushed;
  uint32_t *told = takes ? &there.flags()->taken : &there.flags()->arrived;
  const uint32_t *awaited = takes ? &here.flags()->arrived : &here.flags()->taken;
  const uint32_t is_ready = dynamic_shared();
  uint32_t n = ld_global_u32(count);
#pragma unroll 1
  for (; at < piece; at += uint64_t(LMHEAD_PEER_LANES) * p.slot_bytes, ++n) {
    // 2: a chunk is taken before it has arrived   3: a slot is filled that is not empty
    const bool waits = !(how == 2 && takes) && !(how == 3 && !takes);
    if ((how == 2 || how == 12) && !takes) linger();
    if (threadIdx.x == 0) {
      const uint32_t least = takes ? n + 1 : n + 1 - LMHEAD_PEER_SLOTS;
      st_shared_u32(is_ready, !waits || wait_for(p, how, awaited, least, peer, until));
    }
    barrier_sync_all();
    if (!ld_shared_u32(is_ready)) return;
    // 4: a chunk counts as arrived before it is there   5: a slot counts as empty before it is
    const bool early = how == (takes ? 5 : 4);
    // 8: an ordinary store sets a lane's last flag
    const bool ordinary = how == 8 && at + uint64_t(LMHEAD_PEER_LANES) * p.slot_bytes >= piece;
    if (early && threadIdx.x == 0) set(told, n + 1, false);
    if (early || (how == 3 && takes)) linger();
    // 6: thread 0 tells that a chunk is there without waiting for the other threads
    if (how == 6 && !takes && threadIdx.x >= 16) linger();
    const uint64_t left = piece - at;
    // 10: the last chunk is as long as the others
    const uint32_t bytes = uint32_t(left < p.slot_bytes && how != 10 ? left : p.slot_bytes);
    // 11: always the first slot
    const uint32_t slot = how == 11 && !takes ? 0 : n;
    if (takes)
      copy(pieces.recv + at, here.slot(p, slot), bytes);
    else
      copy(there.slot(p, slot), pieces.send + at, bytes);
    if (how != 6) barrier_sync_all();
    if (!early && threadIdx.x == 0) set(told, n + 1, ordinary);
    if (how == 6) barrier_sync_all();
  }
  if (threadIdx.x == 0 && how != 12) st_global_u32(count, n);  // 12: how far the lane has come is forgotten
}
