// Who runs next. A ring of ready fibers; a fiber that waits stands in the list of what it waits for.
// Asynchronous work completes at a random turn, or when nothing else can go on.
#include "scheduler.hpp"

#include "fiber.hpp"

namespace emulated {

__thread Fiber *current = nullptr;

namespace {

inline void push(Cluster &cluster, Fiber &fiber) {
  cluster.ring[(cluster.ring_first + cluster.ring_count++) & cluster.ring_mask] = &fiber;
}

constexpr int kPrefetchedLines = 8;  // of a stack, from where its thread waits upwards

inline Fiber *pop(Cluster &cluster, uint32_t dice) {
  Fiber *&head = cluster.ring[cluster.ring_first & cluster.ring_mask];
  if ((dice & 7) == 0) {  // now and then somebody jumps the queue
    const uint32_t other = cluster.ring_first + uint32_t(uint64_t(dice) * cluster.ring_count >> 32);
    std::swap(head, cluster.ring[other & cluster.ring_mask]);
  }
  Fiber *fiber = head;
  ++cluster.ring_first, --cluster.ring_count;
  // Prefetches what the next fibers will touch, so that it is in the first-level cache when their turn comes.
  if (cluster.ring_count > 2) {
    __builtin_prefetch(cluster.ring[(cluster.ring_first + 2) & cluster.ring_mask]);
    const auto *stack =
        static_cast<const char *>(cluster.ring[cluster.ring_first & cluster.ring_mask]->stack_pointer);
    for (int line = 0; line < kPrefetchedLines; ++line) __builtin_prefetch(stack + 64 * line, 1);
  }
  return fiber;
}

// The fiber that runs next; null: nothing can ever run again.
Fiber *next(Cluster &cluster) {
  for (;;) {
    const uint32_t dice = cluster.random.next();
    const size_t tma = cluster.pending.size(), copies = cluster.copying.size();
    if (tma + copies != 0 && (cluster.ring_count == 0 || (dice >> 3 & (cluster.laziness - 1)) == 0)) {
      const uint32_t which = cluster.random.below(uint32_t(tma + copies));
      if (which < tma)
        complete_tma(cluster, which);
      else
        land_some_copies(cluster);
    }
    if (cluster.ring_count != 0) return pop(cluster, dice);
    if (tma + copies != 0) continue;
    if (!cluster.waiting_for_primary.first) return nullptr;
    check_against_primary(cluster);
    wake_all(cluster.waiting_for_primary);
  }
}

// Runs somebody else; the caller has put itself into a list, or has ended.
void go_on(Fiber &self) {
  Cluster &cluster = *self.cluster;
  Fiber *fiber = next(cluster);
  if (!fiber) {
    if (cluster.live != 0) report_deadlock(cluster);
    leave_fibers(cluster);
  }
  if (fiber != &self) switch_to(self, *fiber);
}

void end_block(Block &block) {
  check_copies_of_block(block);
  check_tma_of_block(block);
  check_mbarriers_at_end(block);
  check_reached(block);
  check_registers_at_end(block);
  check_turn_at_end(block);
  trigger_dependents(block);
}

void fiber_main() {
  Cluster &cluster = *current->cluster;
  arrived_in_fiber(*cluster.worker, cluster.worker->host_bottom == nullptr);
  cluster.launch->kernel->body(cluster.launch->params);
  Fiber &self = *current;
  enter("exit");
  check_exit(self);
  check_copies_at_exit(self);
  check_tma_at_exit(self);
  check_wgmma_at_exit(self);
  self.exited = true;
  self.warp->exited |= 1u << self.lane;
  leave_barriers(self);
  --cluster.live;
  if (--self.block->live == 0) end_block(*self.block);
  if (cluster.live == 0) check_against_primary(cluster);
  go_on(self);
  __builtin_unreachable();
}

}  // namespace

void enlist(WaitList &list, Fiber &fiber) {
  fiber.next_waiting = nullptr;
  (list.last ? list.last->next_waiting : list.first) = &fiber;
  list.last = &fiber;
}

void park(WaitList &list) {
  enlist(list, *current);
  go_on(*current);
}

void park() { go_on(*current); }

void yield() {
  push(*current->cluster, *current);
  go_on(*current);
}

void wake(Fiber &fiber) { push(*fiber.cluster, fiber); }

void wake_lanes(Warp &warp, uint32_t lanes) {
  Cluster &cluster = *warp.block->cluster;
  for (; lanes; lanes &= lanes - 1) push(cluster, warp.lanes[__builtin_ctz(lanes)]);
}

void wake_all(WaitList &list) {
  for (Fiber *fiber = list.first; fiber;) {
    Fiber *following = fiber->next_waiting;
    wake(*fiber);
    fiber = following;
  }
  list = {};
}

void trace(Fiber &self) {
  const Host &host = self.cluster->launch->host;
  char line[160];
  Writer out(line, sizeof line);
  out.add("block (%u, %u, %u) thread %u: %s", self.block->index.x, self.block->index.y, self.block->index.z,
          self.thread, self.instruction);
  if (self.has_address) out.add(" 0x%llx", (unsigned long long)self.address);
  host.trace(host.context, line, std::strlen(line));
}

void start_fibers(Cluster &cluster) {
  for (uint32_t i = 0; i < cluster.fiber_count; ++i) prepare_stack(cluster.fibers[i], fiber_main);
  // Warps in random order; half of the seeds mix single threads too.
  Fiber **ring = cluster.ring;
  for (uint32_t i = 0; i < cluster.fiber_count; ++i) ring[i] = &cluster.fibers[i];
  const uint32_t group = cluster.fiber_count % 32 == 0 && cluster.random.one_in(2) ? 32 : 1;
  for (uint32_t i = cluster.fiber_count / group; i-- > 1;) {
    const uint32_t j = cluster.random.below(i + 1);
    for (uint32_t k = 0; k < group; ++k) std::swap(ring[i * group + k], ring[j * group + k]);
  }
  cluster.ring_first = 0;
  cluster.ring_count = cluster.fiber_count;
  static const uint32_t kLaziness[] = {2, 8, 32, 256, 4096};
  cluster.laziness = kLaziness[cluster.random.below(5)];
  enter_fibers(cluster, *pop(cluster, cluster.random.next()));
  current = nullptr;
}

}  // namespace emulated
