// Shared memory through ordinary instructions and ldmatrix, stmatrix.
#include "machine.hpp"

namespace emulated {

// A shared::cluster address: 1 + the block's rank above 24 bits of address. Plain addresses are those of the own block.
constexpr uint32_t kRankShift = 24;

uint32_t shared_offset(Fiber &self, Block &block, uint32_t address, uint32_t bytes, uint32_t alignment) {
  const uint32_t rank = address >> kRankShift;
  if (rank != 0 && rank <= block.cluster->block_count)
    fail_at(FaultKind::cluster, address, "%s on shared::cluster 0x%x: wanted an address of the own block, or the "
            ".shared::cluster form of the instruction", self.instruction, address);
  const uint32_t size = block.cluster->launch->dynamic_shared, offset = address - kSharedBase;
  if (offset > size || size - offset < bytes)
    fail_at(FaultKind::shared_bounds, address, "%u bytes at shared 0x%x: wanted an address in [0x%x, 0x%x), the %u bytes "
            "that the launch asked for", bytes, address, kSharedBase, kSharedBase + size, size);
  if (address % alignment != 0)
    fail_at(FaultKind::misaligned, address, "%s at shared 0x%x: wanted a multiple of %u", self.instruction, address,
            alignment);
  return offset;
}

Block &block_of(Fiber &self, uint32_t address) {
  Cluster &cluster = *self.cluster;
  const uint32_t rank = address >> kRankShift;
  if (rank == 0) return *self.block;
  if (rank > cluster.block_count)
    fail_at(FaultKind::cluster, address, "shared::cluster 0x%x: wanted an address by mapa, of one of %u blocks", address,
            cluster.block_count);
  Block &block = cluster.blocks[rank - 1];
  if (block.live == 0)
    fail_at(FaultKind::cluster, address, "shared::cluster 0x%x: block %u of the cluster has ended (wanted "
            "barrier.cluster before the end of a block that others still reach)", address, rank - 1);
  return block;
}

uint32_t without_rank(uint32_t address) { return address & ((1u << kRankShift) - 1); }

uint32_t dynamic_shared() { return kSharedBase; }

void ld_shared(const char *instruction, uint32_t address, void *to, uint32_t bytes) {
  Fiber &self = enter(instruction, address);
  const uint32_t offset = shared_offset(self, *self.block, address, bytes, bytes);
  note_read(*self.block, offset, bytes, self);
  std::memcpy(to, self.block->shared + offset, bytes);
}

void st_shared(const char *instruction, uint32_t address, const void *from, uint32_t bytes) {
  Fiber &self = enter(instruction, address);
  const uint32_t offset = shared_offset(self, *self.block, address, bytes, bytes);
  note_write(*self.block, offset, bytes, self);
  std::memcpy(self.block->shared + offset, from, bytes);
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
  note_write(block, offset, bytes, self);
  std::memcpy(block.shared + offset, from, bytes);
}

uint32_t mapa(uint32_t address, uint32_t rank) {
  Fiber &self = enter("mapa", address);
  if (rank >= self.cluster->block_count)
    fail(FaultKind::cluster, "mapa: wanted a rank below %u, the blocks of the cluster, got %u", self.cluster->block_count,
         rank);
  return without_rank(address) | (rank + 1) << kRankShift;
}

namespace {

struct Rows {
  uint32_t *values;
  uint32_t offset;  // of the row that this lane names
};

// Row `row` of matrix `matrix`, whose rows are named by lanes 8·matrix, 8·matrix + 1, ...
uint8_t *row_of(const Collective &all, Block &block, int matrix, int row) {
  return block.shared + static_cast<Rows *>(all.operands[matrix * 8 + row])->offset;
}

// move(register, shared memory, bytes) for every pair, or each of its halves where rows and columns change roles.
template <class Move>
void matrices(Fiber &self, uint32_t *values, int count, bool transposed, uint32_t address, bool write, Move move) {
  Rows rows{values, 0};
  Block &block = *self.block;
  if (self.lane < uint32_t(count) * 8) {
    rows.offset = shared_offset(self, block, address, 16, 16);
    if (write)
      note_write(block, rows.offset, 16, self);
    else
      note_read(block, rows.offset, 16, self);
  }
  Collective all;
  if (!meet(self, 0xffffffffu, uint64_t(count) << 1 | transposed, &rows, all)) return;
  for (int lane = 0; lane < 32; ++lane) {
    auto *registers = reinterpret_cast<uint8_t *>(static_cast<Rows *>(all.operands[lane])->values);
    const int major = lane / 4, minor = lane % 4 * 2;
    for (int i = 0; i < count; ++i, registers += 4) {
      if (!transposed) {
        move(registers, row_of(all, block, i, major) + minor * 2, std::integral_constant<int, 4>());
        continue;
      }
      move(registers, row_of(all, block, i, minor) + major * 2, std::integral_constant<int, 2>());
      move(registers + 2, row_of(all, block, i, minor + 1) + major * 2, std::integral_constant<int, 2>());
    }
  }
  release(self, 0xffffffffu);
}

}  // namespace

void ldmatrix(uint32_t *d, int count, bool transposed, uint32_t address) {
  Fiber &self = enter(transposed ? "ldmatrix.trans" : "ldmatrix", address);
  matrices(self, d, count, transposed, address, false,
           [](uint8_t *registers, uint8_t *shared, auto bytes) { std::memcpy(registers, shared, bytes); });
}

void stmatrix(const uint32_t *v, int count, bool transposed, uint32_t address) {
  Fiber &self = enter(transposed ? "stmatrix.trans" : "stmatrix", address);
  matrices(self, const_cast<uint32_t *>(v), count, transposed, address, true,
           [](uint8_t *registers, uint8_t *shared, auto bytes) { std::memcpy(shared, registers, bytes); });
}

}  // namespace emulated
