// bar.sync, bar.arrive and barrier.cluster: a warp's lanes come to them together (.aligned), and are counted
// as a warp.
#include "machine.hpp"

namespace emulated {

uint32_t wanted(const Block &block, const NamedBarrier &barrier) {
  if (!barrier.all) return barrier.threads;
  uint32_t threads = 0;
  for (uint32_t w = 0; w < block.warp_count; ++w)
    if (live_lanes(block.warps[w])) threads += block.warps[w].count;
  return threads;
}

namespace {

void complete(Block &block, NamedBarrier &barrier) {
  barrier.arrived = 0, barrier.all = false;
  if (barrier.arriving.on()) {
    const uint64_t base = ++block.cluster->clock_bases;
    for (Fiber *leader = barrier.waiting.first; leader; leader = leader->next_waiting)
      for (uint32_t rest = live_lanes(*leader->warp); rest; rest &= rest - 1) {
        Fiber &lane = leader->warp->lanes[__builtin_ctz(rest)];
        lane.clock.adopt(barrier.arriving, lane.agent, block.fibers[0].agent, block.thread_count, base);
      }
  }
  wake_all(barrier.waiting);
}

// `threads` 0: all of the block.
void come_to(Fiber &self, uint32_t id, uint32_t threads, bool waits, Place place) {
  Block &block = *self.block;
  if (id >= kNamedBarriers)
    fail(FaultKind::operand, "barrier %u: wanted 0 to %u", id, kNamedBarriers - 1);
  const bool all = threads == 0;
  if (all) threads = block.thread_count;
  if ((threads % 32 != 0 && threads != block.thread_count) || threads > block.thread_count)
    fail(FaultKind::operand, "barrier %u for %u threads: wanted a multiple of 32 up to the block's %u", id,
         threads, block.thread_count);
  const uint64_t detail = uint64_t(id) << 32 | threads;
  uint32_t lanes = self.warp->there;
  if (all ? !meet_live(self, detail, place, lanes) : !meet(self, lanes, detail, place)) return;
  NamedBarrier &barrier = block.barriers[id];
  if (barrier.arrived != 0 && barrier.threads != threads)
    fail(FaultKind::barrier, "barrier %u for %u threads, and others came to it for %u", id, threads,
         barrier.threads);
  barrier.threads = threads, barrier.all |= all;
  if (self.clock.on()) {
    if (!barrier.arriving.on()) barrier.arriving = self.cluster->clocks.take();
    if (barrier.arrived == 0) barrier.arriving.assign(self.clock);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      Fiber &lane = self.warp->lanes[__builtin_ctz(rest)];
      lane.clock.release_to(barrier.arriving, lane.agent);
    }
  }
  barrier.arrived += self.warp->count;  // lanes that have ended count, too
  const bool last = barrier.arrived >= wanted(block, barrier);
  if (waits) enlist(barrier.waiting, self);
  if (last) complete(block, barrier);
  if (waits) park();
  release(self, lanes);
}

}  // namespace

void barrier_sync(const char *instruction, uint32_t id, uint32_t threads, Place place) {
  Fiber &self = enter(instruction, id);
  come_to(self, id, threads, true, place);
}

void barrier_arrive(uint32_t id, uint32_t threads, Place place) {
  Fiber &self = enter("bar.arrive", id);
  if (threads == 0)
    fail(FaultKind::operand, "bar.arrive on barrier %u for 0 threads: wanted their number", id);
  come_to(self, id, threads, false, place);
}

namespace {

void complete_cluster_phase(Cluster &cluster) {
  ++cluster.cluster_phase;
  cluster.cluster_missing = cluster.live;
  if (cluster.cluster_arriving.on()) cluster.cluster_completed.assign(cluster.cluster_arriving);
  wake_all(cluster.waiting_for_cluster);
}

}  // namespace

void barrier_cluster_arrive(Place place) {
  Fiber &self = enter("barrier.cluster.arrive");
  Cluster &cluster = *self.cluster;
  if (self.cluster_arrivals != self.cluster_waits)
    fail(FaultKind::barrier, "a second barrier.cluster.arrive without barrier.cluster.wait between");
  uint32_t lanes;
  if (!meet_live(self, 0, place, lanes)) return;
  if (self.clock.on() && !cluster.cluster_arriving.on())
    cluster.cluster_arriving = cluster.clocks.take(), cluster.cluster_completed = cluster.clocks.take();
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    Fiber &lane = self.warp->lanes[__builtin_ctz(rest)];
    ++lane.cluster_arrivals;
    lane.clock.release_to(cluster.cluster_arriving, lane.agent);
    --cluster.cluster_missing;
  }
  if (cluster.cluster_missing == 0) complete_cluster_phase(cluster);
  release(self, lanes);
}

void barrier_cluster_wait(Place place) {
  Fiber &self = enter("barrier.cluster.wait");
  Cluster &cluster = *self.cluster;
  if (self.cluster_arrivals == self.cluster_waits)
    fail(FaultKind::barrier, "barrier.cluster.wait without barrier.cluster.arrive before it");
  uint32_t lanes;
  if (!meet_live(self, 0, place, lanes)) return;
  if (cluster.cluster_phase <= self.cluster_waits) park(cluster.waiting_for_cluster);
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    Fiber &lane = self.warp->lanes[__builtin_ctz(rest)];
    ++lane.cluster_waits;
    if (lane.clock.on()) lane.clock.join(cluster.cluster_completed);
  }
  release(self, lanes);
}

// Threads that have ended are not waited for.
void leave_barriers(Fiber &self) {
  if (live_lanes(*self.warp) == 0)
    for (NamedBarrier &barrier : self.block->barriers)
      if (barrier.all && barrier.arrived >= wanted(*self.block, barrier)) complete(*self.block, barrier);
  Cluster &cluster = *self.cluster;
  if (self.cluster_arrivals > cluster.cluster_phase) return;
  if (--cluster.cluster_missing == 0 && cluster.live > 1) {
    --cluster.live;
    complete_cluster_phase(cluster);
    ++cluster.live;
  }
}

}  // namespace emulated
