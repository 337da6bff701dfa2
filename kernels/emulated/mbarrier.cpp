// mbarriers. Their state is kept beside shared memory; the eight bytes themselves hold noise, so that nothing
// can be read out of them.
#include "machine.hpp"

namespace emulated {
namespace {

constexpr uint32_t kCountLimit = (1u << 20) - 1;  // arrivals, and bytes of transactions (PTX ISA, "mbarrier")

uint32_t offset_of(Fiber &self, Block &block, uint32_t address) {
  return shared_offset(self, block, address, 8, 8);
}

void complete_phase(Mbarrier &barrier) {
  ++barrier.phase, ++barrier.time;
  barrier.pending = barrier.expected;
  if (barrier.completed.on()) {
    barrier.completed.assign(barrier.arriving);
    barrier.completed.plain[barrier.agent] = barrier.time;
    barrier.arriving.plain[barrier.agent] = barrier.time;
  }
  wake_all(barrier.waiting);
}

void add_transactions(Mbarrier &barrier, int64_t bytes) {
  barrier.transactions += bytes;
  if (barrier.transactions > int64_t(kCountLimit) || barrier.transactions < -int64_t(kCountLimit))
    fail_at(FaultKind::transactions, kSharedBase + barrier.offset,
            "mbarrier 0x%x: wanted a transaction count of at most %u bytes, got %lld",
            kSharedBase + barrier.offset, kCountLimit, (long long)barrier.transactions);
}

void invalidate(Block &block, Mbarrier &barrier) {
  barrier.valid = false;
  block.mbarrier_at[barrier.offset / 8] = 0;
  note_barrier(block, barrier.offset, false);
}

}  // namespace

Mbarrier &mbarrier_for(Fiber &self, Block &block, uint32_t offset) {
  const uint8_t number = block.mbarrier_at[offset / 8];
  const uint32_t address = kSharedBase + offset;
  if (number == 0)
    fail_at(FaultKind::barrier, address,
            "%s on shared 0x%x, where no mbarrier is (wanted mbarrier.init, and a barrier "
            "between it and this)",
            self.instruction, address);
  Mbarrier &barrier = block.mbarriers[number - 1];
  if (self.clock.on() && self.clock.plain[barrier.init_by->agent] < barrier.init_time)
    fail_at(FaultKind::race, address,
            "%s on mbarrier 0x%x: its mbarrier.init by thread %u is not ordered before this "
            "(wanted a barrier between the two)",
            self.instruction, address, barrier.init_by->thread);
  return barrier;
}

void mbarrier_init(uint32_t address, uint32_t arrivals) {
  Fiber &self = enter("mbarrier.init", address);
  Block &block = *self.block;
  const uint32_t offset = offset_of(self, block, address);
  if (arrivals == 0 || arrivals > kCountLimit)
    fail(FaultKind::operand, "mbarrier.init for %u arrivals: wanted 1 to %u", arrivals, kCountLimit);
  if (block.mbarrier_at[offset / 8])
    fail(FaultKind::barrier,
         "mbarrier.init on shared 0x%x, where an mbarrier is (wanted mbarrier.inval first)", address);
  note_write(block, offset, 8, self);
  note_barrier(block, offset, true);
  uint32_t number = 0;
  while (number < kMbarriers && block.mbarriers[number].valid) ++number;
  if (number == kMbarriers)
    fail(FaultKind::barrier, "a %uth mbarrier of one block: the emulated device keeps track of %u",
         kMbarriers + 1, kMbarriers);
  const uint32_t noise[2] = {self.cluster->random.next(), self.cluster->random.next()};
  std::memcpy(block.shared + offset, noise, 8);
  Mbarrier &barrier = block.mbarriers[number];
  block.mbarrier_at[offset / 8] = uint8_t(number + 1);
  barrier.valid = true, barrier.init_fenced = false;
  barrier.offset = offset;
  barrier.phase = 0, barrier.transactions = 0;
  barrier.expected = barrier.pending = arrivals;
  barrier.init_by = &self;
  if (!self.clock.on()) return;
  barrier.init_time = self.now();
  if (!barrier.arriving.on())
    barrier.arriving = self.cluster->clocks.take(), barrier.completed = self.cluster->clocks.take();
}

void mbarrier_inval(uint32_t address) {
  Fiber &self = enter("mbarrier.inval", address);
  Mbarrier &barrier = mbarrier_for(self, *self.block, offset_of(self, *self.block, address));
  if (barrier.waiting.first || barrier.transactions != 0)
    fail(FaultKind::barrier, "mbarrier.inval of 0x%x while %s", address,
         barrier.waiting.first ? "threads wait for it" : "copies are on their way");
  invalidate(*self.block, barrier);
}

void fence_mbarrier_init() {
  Fiber &self = enter("fence.mbarrier_init");
  for (Mbarrier &barrier : self.block->mbarriers)
    if (barrier.init_by == &self) barrier.init_fenced = true;
}

void arrive_on(Fiber *self, Mbarrier &barrier) {
  if (barrier.pending == 0)
    fail_at(FaultKind::barrier, kSharedBase + barrier.offset,
            "an arrival on mbarrier 0x%x, all of whose %u arrivals have come (%lld bytes are on their way)",
            kSharedBase + barrier.offset, barrier.expected, (long long)barrier.transactions);
  if (self) self->clock.release_to(barrier.arriving, self->agent);
  --barrier.pending;
  if (barrier.pending == 0 && barrier.transactions == 0) complete_phase(barrier);
}

void complete_transactions(Mbarrier &barrier, uint32_t bytes) {
  add_transactions(barrier, -int64_t(bytes));
  if (barrier.pending == 0 && barrier.transactions == 0) complete_phase(barrier);
}

void note_landed(Mbarrier &barrier, Fiber &issuer, uint32_t offset) {
  barrier.landed = barrier.time + 1, barrier.landed_by = &issuer, barrier.landed_at = offset;
  // Whoever waits for the phase knows that the issuer's block has begun.
  if (barrier.arriving.on() && barrier.arriving.plain[issuer.agent] == 0)
    barrier.arriving.plain[issuer.agent] = kBegun;
}

void mbarrier_arrive(uint32_t address) {
  Fiber &self = enter("mbarrier.arrive", address);
  Mbarrier &barrier = mbarrier_for(self, *self.block, offset_of(self, *self.block, address));
  arrive_on(&self, barrier);
  if (self.cluster->random.one_in(8)) yield();
}

void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
  Fiber &self = enter("mbarrier.arrive.expect_tx", address);
  Mbarrier &barrier = mbarrier_for(self, *self.block, offset_of(self, *self.block, address));
  add_transactions(barrier, bytes);
  arrive_on(&self, barrier);
  if (self.cluster->random.one_in(8)) yield();
}

void mbarrier_arrive_cluster(uint32_t address) {
  Fiber &self = enter("mbarrier.arrive.shared::cluster", address);
  Block &block = block_of(self, address);
  Mbarrier &barrier = mbarrier_for(self, block, offset_of(self, block, without_rank(address)));
  arrive_on(&self, barrier);
  if (self.cluster->random.one_in(8)) yield();
}

bool mbarrier_try_wait_parity(const char *instruction, uint32_t address, uint32_t parity) {
  Fiber &self = enter(instruction, address);
  if (parity > 1) fail(FaultKind::operand, "parity %u: wanted 0 or 1", parity);
  const uint32_t offset = offset_of(self, *self.block, address);
  for (;;) {
    Mbarrier &barrier = mbarrier_for(self, *self.block, offset);
    if ((barrier.phase & 1) != parity) {
      if (self.clock.on()) self.clock.join(barrier.completed);
      return true;
    }
    park(barrier.waiting);
    // The instruction may give up early: a caller that does not try again goes on too soon.
    if (self.cluster->random.one_in(8)) return false;
  }
}

void check_mbarriers_at_end(Block &block) {
  for (Mbarrier &barrier : block.mbarriers)
    if (barrier.valid && barrier.transactions != 0)
      fail_in(current, FaultKind::transactions, kSharedBase + barrier.offset,
              "the block ends, and mbarrier 0x%x has %lld bytes more expected than come (phase %u)",
              kSharedBase + barrier.offset, (long long)barrier.transactions, barrier.phase);
  // A copy that nobody has waited for might still be under way on a GPU, even if it has landed here.
  for (Mbarrier &barrier : block.mbarriers)
    if (barrier.landed && barrier.arriving.on() && known_in(block, barrier.agent) < barrier.landed)
      fail_in(barrier.landed_by, FaultKind::incomplete, kSharedBase + barrier.landed_at,
              "the block ends, and none of its threads "
              "knows that the copy to shared 0x%x is complete (wanted a wait for mbarrier 0x%x)",
              kSharedBase + barrier.landed_at, kSharedBase + barrier.offset);
}

void describe_mbarriers(Cluster &cluster, Writer &out, bool &unbalanced) {
  for (uint32_t i = 0; i < cluster.block_count; ++i)
    for (const Mbarrier &barrier : cluster.blocks[i].mbarriers) {
      if (!barrier.valid || !barrier.waiting.first) continue;
      if (cluster.block_count > 1) out.add(" Block %u:", i);
      out.add(" mbarrier 0x%x in phase %u lacks %u of %u arrivals and %lld bytes.",
              kSharedBase + barrier.offset, barrier.phase, barrier.pending, barrier.expected,
              (long long)barrier.transactions);
      if (barrier.pending == 0 && barrier.transactions != 0) unbalanced = true;
    }
}

}  // namespace emulated
