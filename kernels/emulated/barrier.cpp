// bar.sync, bar.arrive and barrier.cluster.
#include "machine.hpp"

namespace emulated {
namespace {

// True when this arrival was the last; then the others are awake.
bool arrive_at(Fiber &self, uint32_t id, uint32_t threads, bool waits) {
  Block &block = *self.block;
  if (id >= kNamedBarriers)
    fail(FaultKind::operand, "barrier %u: wanted 0 to %u", id, kNamedBarriers - 1);
  if (threads == 0) threads = block.thread_count;
  if ((threads % 32 != 0 && threads != block.thread_count) || threads > block.thread_count)
    fail(FaultKind::operand, "barrier %u for %u threads: wanted a multiple of 32 up to the block's %u", id, threads,
         block.thread_count);
  NamedBarrier &barrier = block.barriers[id];
  if (barrier.arrived != 0 && barrier.threads != threads)
    fail(FaultKind::barrier, "barrier %u for %u threads, and others came to it for %u", id, threads, barrier.threads);
  barrier.threads = threads;
  if (self.clock.on()) {
    if (!barrier.arriving.on()) barrier.arriving = self.cluster->clocks.take();
    if (barrier.arrived == 0) barrier.arriving.assign(self.clock);
    self.clock.release_to(barrier.arriving, self.agent);
  }
  if (++barrier.arrived != threads) return false;
  barrier.arrived = 0;
  if (self.clock.on()) {
    for (Fiber *fiber = barrier.waiting.first; fiber; fiber = fiber->next_waiting) fiber->clock.join(barrier.arriving);
    if (waits) self.clock.join(barrier.arriving);
  }
  wake_all(barrier.waiting);
  return true;
}

}  // namespace

void barrier_sync(const char *instruction, uint32_t id, uint32_t threads) {
  Fiber &self = enter(instruction, id);
  if (!arrive_at(self, id, threads, true)) park(self.block->barriers[id].waiting);
}

void barrier_arrive(uint32_t id, uint32_t threads) {
  Fiber &self = enter("bar.arrive", id);
  arrive_at(self, id, threads, false);
}

namespace {

void complete_cluster_phase(Cluster &cluster) {
  ++cluster.cluster_phase;
  cluster.cluster_missing = cluster.live;
  if (cluster.cluster_arriving.on()) cluster.cluster_completed.assign(cluster.cluster_arriving);
  wake_all(cluster.waiting_for_cluster);
}

}  // namespace

void barrier_cluster_arrive() {
  Fiber &self = enter("barrier.cluster.arrive");
  Cluster &cluster = *self.cluster;
  if (self.cluster_arrivals != self.cluster_waits)
    fail(FaultKind::barrier, "a second barrier.cluster.arrive without barrier.cluster.wait between");
  ++self.cluster_arrivals;
  if (self.clock.on()) {
    if (!cluster.cluster_arriving.on())
      cluster.cluster_arriving = cluster.clocks.take(), cluster.cluster_completed = cluster.clocks.take();
    self.clock.release_to(cluster.cluster_arriving, self.agent);
  }
  if (--cluster.cluster_missing == 0) complete_cluster_phase(cluster);
}

void barrier_cluster_wait() {
  Fiber &self = enter("barrier.cluster.wait");
  Cluster &cluster = *self.cluster;
  if (self.cluster_arrivals == self.cluster_waits)
    fail(FaultKind::barrier, "barrier.cluster.wait without barrier.cluster.arrive before it");
  ++self.cluster_waits;
  if (cluster.cluster_phase < self.cluster_waits) park(cluster.waiting_for_cluster);
  if (self.clock.on()) self.clock.join(cluster.cluster_completed);
}

// Threads that have ended are not waited for.
void leave_cluster_barrier(Fiber &self) {
  Cluster &cluster = *self.cluster;
  if (self.cluster_arrivals > cluster.cluster_phase) return;
  if (--cluster.cluster_missing == 0 && cluster.live > 1) {
    --cluster.live;
    complete_cluster_phase(cluster);
    ++cluster.live;
  }
}

uint32_t cluster_block_rank() { return current->block->rank; }
uint32_t cluster_block_count() { return current->cluster->block_count; }

}  // namespace emulated
