// Shared memory of the other blocks of a cluster. It exists from a block's beginning to its end: a thread
// must know that the block has begun, and the block, at its end, must know of the thread's access. Both learn
// it by barrier.cluster, or by mbarriers on which the blocks arrive.
#include <algorithm>

#include "machine.hpp"

namespace emulated {

uint32_t known_in(const Block &block, uint32_t agent) {
  uint32_t known = 0;
  for (uint32_t t = 0; t < block.thread_count; ++t)
    known = std::max(known, block.fibers[t].clock.plain[agent]);
  return known;
}

void check_begun(Fiber &self, const Block &block, uint32_t address) {
  if (&block == self.block || !self.clock.on()) return;
  for (uint32_t t = 0; t < block.thread_count; ++t)
    if (self.clock.plain[block.fibers[t].agent] != 0) return;
  fail_at(FaultKind::cluster, address,
          "%s on shared memory of the cluster's block %u, which may not have begun (wanted "
          "barrier.cluster before)",
          self.instruction, block.rank);
}

Block &block_of(Fiber &self, uint32_t address) {
  Cluster &cluster = *self.cluster;
  const uint32_t rank = address >> kRankShift;
  if (rank == 0) return *self.block;
  if (rank > cluster.block_count)
    fail_at(FaultKind::cluster, address,
            "shared::cluster 0x%x: wanted an address by mapa, of one of %u blocks", address,
            cluster.block_count);
  Block &block = cluster.blocks[rank - 1];
  if (block.live == 0)
    fail_at(FaultKind::cluster, address, "shared::cluster 0x%x: block %u of the cluster has ended (wanted "
            "barrier.cluster before the end of a block that others still reach)", address, rank - 1);
  check_begun(self, block, address);
  if (&block != self.block && block.reached)
    block.reached[self.agent] = {&self, self.instruction, self.now(), address};
  return block;
}

void check_reached(Block &block) {
  if (!block.reached) return;
  for (uint32_t agent = 0; agent < block.cluster->clocks.size(); ++agent) {
    const Reach &reach = block.reached[agent];
    if (!reach.fiber || known_in(block, agent) >= reach.time) continue;
    reach.fiber->instruction = reach.instruction;
    fail_in(reach.fiber, FaultKind::cluster, reach.address,
            "shared::cluster 0x%x: block %u of the cluster ends and does not know "
            "of this access, which might have come later (wanted barrier.cluster between the two)",
            reach.address, block.rank);
  }
}

uint32_t without_rank(uint32_t address) { return address & ((1u << kRankShift) - 1); }

uint32_t mapa(uint32_t address, uint32_t rank) {
  Fiber &self = enter("mapa", address);
  if (rank >= self.cluster->block_count)
    fail(FaultKind::cluster, "mapa: wanted a rank below %u, the blocks of the cluster, got %u",
         self.cluster->block_count, rank);
  return without_rank(address) | (rank + 1) << kRankShift;
}

void ld_shared_cluster(const char *instruction, uint32_t address, void *to, uint32_t bytes) {
  Fiber &self = enter(instruction, address);
  Block &block = block_of(self, address);
  const uint32_t offset = shared_offset(self, block, without_rank(address), bytes, bytes);
  note_read(block, offset, bytes, self);
  std::memcpy(to, block.shared + offset, bytes);
}

void st_shared_cluster(const char *instruction, uint32_t address, const void *from, uint32_t bytes) {
  Fiber &self = enter(instruction, address);
  Block &block = block_of(self, address);
  const uint32_t offset = shared_offset(self, block, without_rank(address), bytes, bytes);
  check_values(self, from, bytes);
  note_write(block, offset, bytes, self);
  std::memcpy(block.shared + offset, from, bytes);
}

uint32_t cluster_block_rank() { return current->block->rank; }
uint32_t cluster_block_count() { return current->cluster->block_count; }

}  // namespace emulated
