// cp.async: each thread's copies land in order, at a random moment or when somebody waits for them.
#include "scheduler.hpp"

namespace emulated {
namespace {

void unlist(Fiber &fiber) {
  Cluster &cluster = *fiber.cluster;
  for (size_t i = 0; i < cluster.copying.size(); ++i)
    if (cluster.copying[i] == &fiber) {
      cluster.copying.remove_unordered(i);
      break;
    }
  fiber.copies_listed = false;
}

// Lands the thread's oldest copies until `count` of them are there.
void land(Fiber &fiber, size_t count) {
  Block &block = *fiber.block;
  while (fiber.copies_landed < count) {
    const Copy copy = fiber.copies[fiber.copies_landed];
    if (copy.kind == Copy::data) {
      uint8_t *to = block.shared + copy.to;
      if (copy.from_bytes == 16) {
        std::memcpy(to, copy.from, 16);
      } else {
        if (copy.from_bytes) std::memcpy(to, copy.from, copy.from_bytes);
        std::memset(to + copy.from_bytes, 0, size_t(copy.bytes - copy.from_bytes));
      }
      ++fiber.copies_landed;
      continue;
    }
    // Copies before the arrival are known to whoever waits for the phase in which it counts.
    const uint8_t number = block.mbarrier_at[copy.to / 8];
    if (number == 0)
      fail_in(&fiber, FaultKind::barrier, kSharedBase + copy.to,
              "copies want to arrive on shared 0x%x, where no mbarrier is any more",
              kSharedBase + copy.to);
    Mbarrier &barrier = block.mbarriers[number - 1];
    for (uint32_t i = 0; i < fiber.copies_landed; ++i)
      note_copy_known(block, fiber.copies[i].to, fiber.copies[i].bytes, barrier.agent, barrier.time + 1);
    bool found = false;
    for (Announced &one : fiber.announced)
      if (one.agent == barrier.agent) one.time = barrier.time + 1, found = true;
    if (!found) fiber.announced.push({barrier.agent, barrier.time + 1});
    if (fiber.copies_landed) note_landed(barrier, fiber, fiber.copies[0].to);
    count -= fiber.copies_landed + 1;
    fiber.copies.remove_first(fiber.copies_landed + 1);
    fiber.copies_landed = 0;
    arrive_on(nullptr, barrier);
  }
  if (fiber.copies_listed && fiber.copies_landed == fiber.copies.size()) unlist(fiber);
}

void add(Fiber &self, const Copy &copy) {
  self.copies.push(copy);
  if (self.copies_listed) return;
  self.copies_listed = true;
  self.cluster->copying.push(&self);
}

// Completes the thread's first `count` copies, for which it has waited.
void retire(Fiber &self, size_t count) {
  const size_t before = self.copies.size();
  land(self, count);
  count -= before - self.copies.size();  // those that an arrival took away
  for (size_t i = 0; i < count; ++i)
    note_copy_known(*self.block, self.copies[i].to, self.copies[i].bytes, self.agent,
                    self.clock.on() ? self.now() : 0);
  self.copies.remove_first(count);
  self.copies_landed -= uint32_t(count);
  if (self.clock.on())
    for (const Announced &one : self.announced) self.clock.learn(one.agent, one.time);
}

}  // namespace

void cp_async(const char *instruction, uint32_t to, const void *from, uint32_t bytes, uint32_t from_bytes) {
  Fiber &self = enter(instruction, to);
  if (from_bytes > bytes)
    fail(FaultKind::operand, "%u of %u bytes: wanted no more than the copy's size", from_bytes, bytes);
  const uint32_t offset = shared_offset(self, *self.block, to, bytes, bytes);
  if (from_bytes) check_global(self, from, from_bytes, 1, Access::read);
  if (reinterpret_cast<uint64_t>(from) % bytes != 0)
    fail_at(FaultKind::misaligned, reinterpret_cast<uint64_t>(from),
            "%s of %u bytes from global %p: wanted a multiple of its size",
            instruction, bytes, from);
  note_copy_issued(*self.block, offset, bytes, self, Proxy::generic);
  if (from_bytes) __builtin_prefetch(from);
  add(self, {Copy::data, uint8_t(bytes), uint8_t(from_bytes), offset, self.copy_group, from});
}

void cp_async_commit_group() {
  Fiber &self = enter("cp.async.commit_group");
  ++self.copy_group;
}

void cp_async_wait_group(uint32_t pending) {
  Fiber &self = enter("cp.async.wait_group");
  size_t count = 0;
  while (count < self.copies.size() && self.copies[count].group + pending < self.copy_group) ++count;
  retire(self, count);
}

void cp_async_wait_all() {
  Fiber &self = enter("cp.async.wait_all");
  ++self.copy_group;
  retire(self, self.copies.size());
}

void cp_async_mbarrier_arrive_noinc(uint32_t address) {
  Fiber &self = enter("cp.async.mbarrier.arrive.noinc", address);
  const uint32_t offset = shared_offset(self, *self.block, address, 8, 8);
  mbarrier_for(self, *self.block, offset);
  add(self, {Copy::arrival, 0, 0, offset, self.copy_group, nullptr});
}

void land_some_copies(Cluster &cluster) {
  Fiber &fiber = *cluster.copying[cluster.random.below(uint32_t(cluster.copying.size()))];
  const size_t under_way = fiber.copies.size() - fiber.copies_landed;
  land(fiber, fiber.copies_landed + 1 + cluster.random.below(uint32_t(under_way)));
}

void check_copies_at_exit(Fiber &self) {
  bool announced = false;
  for (size_t i = self.copies.size(); i-- > 0;) {
    announced |= self.copies[i].kind == Copy::arrival;
    if (!announced)
      fail_at(FaultKind::incomplete, kSharedBase + self.copies[i].to,
              "the thread ends with a cp.async to shared 0x%x that "
              "nobody waits for (wanted cp.async.wait_all, or an arrival on an mbarrier)",
              kSharedBase + self.copies[i].to);
  }
}

void check_copies_of_block(Block &block) {
  for (uint32_t i = 0; i < block.thread_count; ++i) {
    Fiber &fiber = block.fibers[i];
    if (!fiber.copies_listed) continue;
    const Copy &copy = fiber.copies[fiber.copies_landed];
    const uint32_t address = kSharedBase + copy.to;
    if (copy.kind == Copy::arrival)
      fail_in(&fiber, FaultKind::incomplete, address,
              "the block ends before copies have arrived on mbarrier 0x%x (wanted a wait for it)",
              address);
    fail_in(&fiber, FaultKind::incomplete, address,
            "the block ends while cp.async is still writing shared 0x%x (wanted a wait for "
            "the mbarrier that is told of it)",
            address);
  }
}

}  // namespace emulated
