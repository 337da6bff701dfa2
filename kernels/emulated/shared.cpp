// Shared memory through ordinary instructions and ldmatrix, stmatrix.
#include "machine.hpp"

namespace emulated {

uint32_t shared_offset(Fiber &self, Block &block, uint32_t address, uint32_t bytes, uint32_t alignment) {
  const uint32_t rank = address >> kRankShift;
  if (rank != 0 && rank <= block.cluster->block_count)
    fail_at(FaultKind::cluster, address,
            "%s on shared::cluster 0x%x: wanted an address of this block, or the "
            ".shared::cluster form of the instruction",
            self.instruction, address);
  const uint32_t size = block.cluster->launch->dynamic_shared, offset = address - kSharedBase;
  if (offset > size || size - offset < bytes) {
    char where[48];
    Writer out(where, sizeof where);
    if (&block != self.block) out.add(" of the cluster's block %u", block.rank);
    fail_at(FaultKind::shared_bounds, address,
            "%u bytes at shared 0x%x%s: wanted an address in [0x%x, 0x%x), the %u bytes "
            "that the launch asked for",
            bytes, address, where, kSharedBase, kSharedBase + size, size);
  }
  if (address % alignment != 0)
    fail_at(FaultKind::misaligned, address, "%s at shared 0x%x: wanted a multiple of %u", self.instruction,
            address, alignment);
  return offset;
}

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
  check_values(self, from, bytes);
  note_write(*self.block, offset, bytes, self);
  std::memcpy(self.block->shared + offset, from, bytes);
}

namespace {

template <class T>
T atom_add(const char *instruction, uint32_t address, T v) {
  Fiber &self = enter(instruction, address);
  const uint32_t offset = shared_offset(self, *self.block, address, sizeof v, sizeof v);
  check_values(self, &v, sizeof v);
  note_atomic(*self.block, offset, sizeof v, self);
  T old;
  std::memcpy(&old, self.block->shared + offset, sizeof v);
  v += old;
  std::memcpy(self.block->shared + offset, &v, sizeof v);
  yield();  // others may come between an atomic and what is made of it
  return old;
}

}  // namespace

uint32_t atom_shared_add_u32(uint32_t address, uint32_t v) {
  return atom_add("atom.shared.add.u32", address, v);
}
uint64_t atom_shared_add_u64(uint32_t address, uint64_t v) {
  return atom_add("atom.shared.add.u64", address, v);
}

namespace {

void transpose(uint8_t (&matrix)[8][16]) {
  uint16_t values[8][8], turned[8][8];
  std::memcpy(values, matrix, sizeof values);
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) turned[j][i] = values[i][j];
  std::memcpy(matrix, turned, sizeof turned);
}

// The pair of elements that a lane has of a matrix.
uint8_t *pair_of(MatrixSlots &slots, int matrix, uint32_t lane) {
  return &slots.rows[matrix][lane / 4][lane % 4 * 4];
}

// The row that this lane names: row lane % 8 of matrix lane / 8.
uint32_t row_offset(Fiber &self, uint32_t address) {
  return shared_offset(self, *self.block, address, 16, 16);
}

}  // namespace

void ldmatrix(uint32_t *d, int count, bool transposed, uint32_t address, Place place) {
  Fiber &self = enter(transposed ? "ldmatrix.trans" : "ldmatrix", address);
  MatrixSlots &slots = self.warp->slots;
  if (self.lane < uint32_t(count) * 8) {
    const uint32_t offset = slots.offsets[self.lane] = row_offset(self, address);
    note_read(*self.block, offset, 16, self);
  }
  if (meet(self, 0xffffffffu, uint64_t(count) << 1 | transposed, place)) {
    for (int i = 0; i < count; ++i) {
      for (int r = 0; r < 8; ++r)
        std::memcpy(slots.rows[i][r], self.block->shared + slots.offsets[i * 8 + r], 16);
      if (transposed) transpose(slots.rows[i]);
    }
    release(self, 0xffffffffu);
  }
  for (int i = 0; i < count; ++i) std::memcpy(d + i, pair_of(slots, i, self.lane), 4);
}

void stmatrix(const uint32_t *v, int count, bool transposed, uint32_t address, Place place) {
  Fiber &self = enter(transposed ? "stmatrix.trans" : "stmatrix", address);
  MatrixSlots &slots = self.warp->slots;
  check_values(self, v, uint32_t(count) * 4);
  if (self.lane < uint32_t(count) * 8) {
    const uint32_t offset = slots.offsets[self.lane] = row_offset(self, address);
    note_write(*self.block, offset, 16, self);
  }
  for (int i = 0; i < count; ++i) std::memcpy(pair_of(slots, i, self.lane), v + i, 4);
  if (!meet(self, 0xffffffffu, uint64_t(count) << 1 | transposed, place)) return;
  for (int i = 0; i < count; ++i) {
    if (transposed) transpose(slots.rows[i]);
    for (int r = 0; r < 8; ++r)
      std::memcpy(self.block->shared + slots.offsets[i * 8 + r], slots.rows[i][r], 16);
  }
  release(self, 0xffffffffu);
}

}  // namespace emulated
