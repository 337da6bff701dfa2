// TMA. A tensor map is the emulated device's own struct, filled in by the driver
// (crates/emulated/src/tensor_map.rs).
#include "machine.hpp"

namespace emulated {

// Mirrored in crates/emulated/src/tensor_map.rs.
struct Map {
  uint64_t magic, address;
  uint64_t size[2];  // elements along x, y
  uint64_t pitch;    // bytes from row to row
  uint32_t box[2];
  uint32_t element_bytes;
  uint32_t swizzle;  // ptx::Swizzle
};
static_assert(sizeof(Map) <= sizeof(TensorMap), "a tensor map is 128 bytes");
constexpr uint64_t kMagic = 0x70616d2d64656168;

struct Pending {
  bool store, written;
  uint64_t ticket;
  Fiber *issuer;
  Block *block;  // whose shared memory
  Map map;
  int32_t x, y;
  uint32_t offset, barrier;
};

namespace {

// The rules of src/backend/tensor_map.rs once more: anyone can write the bytes of a map, and sizes beyond
// these would overflow what is computed from them.
bool as_the_driver_makes(const Map &map) {
  static const uint64_t kSpan[] = {0, 128, 64, 32};  // bytes of a tile's row, by ptx::Swizzle
  if (map.element_bytes != 1 && map.element_bytes != 2 && map.element_bytes != 4) return false;
  if (map.swizzle > 3 || map.address % 16 != 0 || map.pitch % 16 != 0 || map.pitch >> 40 != 0) return false;
  for (int i = 0; i < 2; ++i)
    if (map.size[i] == 0 || map.size[i] > uint64_t(1) << 32 || map.box[i] == 0 || map.box[i] > 256)
      return false;
  const uint64_t row_bytes = uint64_t(map.box[0]) * map.element_bytes;
  return map.pitch >= map.size[0] * map.element_bytes && row_bytes % 16 == 0 &&
         (map.swizzle == 0 || row_bytes == kSpan[map.swizzle]);
}

Map read_map(Fiber &self, const TensorMap *pointer) {
  const Launch &launch = *self.cluster->launch;
  const auto address = reinterpret_cast<uint64_t>(pointer),
             params = reinterpret_cast<uint64_t>(launch.params);
  if (address < params || address + sizeof(TensorMap) > params + launch.kernel->params_bytes)
    check_global(self, pointer, sizeof(TensorMap), 64, Access::constant);
  Map map;
  std::memcpy(&map, pointer, sizeof map);
  if (address % 64 != 0 || map.magic != kMagic || !as_the_driver_makes(map))
    fail_at(FaultKind::tensor_map, address,
            "no tensor map at 0x%llx: wanted one that the driver made, aligned to 64 bytes",
            (unsigned long long)address);
  return map;
}

uint32_t tile_bytes(const Map &map) { return map.box[0] * map.box[1] * map.element_bytes; }

// Where byte `at` of a tile at `offset` lies: 16-byte vectors are exchanged within rows of 32, 64 or 128
// bytes, by bits of the address above them.
uint32_t swizzled(uint32_t swizzle, uint32_t offset, uint32_t at) {
  const uint32_t address = kSharedBase + offset + at;
  static const uint32_t kMask[] = {0, 7, 3, 1};
  return (address ^ (address >> 7 & kMask[swizzle]) << 4) - kSharedBase;
}

// Calls move(bytes in shared memory, bytes in global memory or null outside of the matrix, count).
template <class Move>
void each_vector(const Pending &op, Move move) {
  const Map &map = op.map;
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  for (uint32_t r = 0; r < map.box[1]; ++r) {
    const int64_t y = int64_t(op.y) + r;
    for (uint32_t b = 0; b < row_bytes; b += map.element_bytes) {
      const int64_t x = int64_t(op.x) + b / map.element_bytes;
      const bool inside = x >= 0 && y >= 0 && uint64_t(x) < map.size[0] && uint64_t(y) < map.size[1];
      uint8_t *shared = op.block->shared + swizzled(map.swizzle, op.offset, r * row_bytes + b);
      auto *global = reinterpret_cast<uint8_t *>(map.address + (inside ? uint64_t(y) * map.pitch : 0) +
                                                 (inside ? uint64_t(x) * map.element_bytes : 0));
      // 16 bytes, a vector of the swizzle, at once where all of them are inside.
      uint32_t count = map.element_bytes;
      if (inside && b % 16 == 0 && uint64_t(x) + 16 / map.element_bytes <= map.size[0] && b + 16 <= row_bytes)
        count = 16, b += 16 - map.element_bytes;
      move(shared, inside ? global : nullptr, count);
    }
  }
}

// An acquire makes ordinary stores of others visible to this thread, but not yet to the asynchronous proxy.
void check_acquired(Fiber &self, const Allocation &buffer, uint64_t address) {
  if (self.acquired && buffer.writable && self.clock.on())
    fail_at(FaultKind::proxy, address,
            "a TMA load from buffer %u after ld.acquire: what others stored there may not be seen (wanted "
            "fence.proxy.async.global between the two, by the same thread)",
            buffer.number);
}

// The part of the box inside the matrix must be inside a buffer.
void check_box(Fiber &self, const Map &map, int32_t x, int32_t y, Access access) {
  const int64_t y0 = y < 0 ? 0 : y, x0 = x < 0 ? 0 : x;
  int64_t y1 = int64_t(y) + map.box[1], x1 = int64_t(x) + map.box[0];
  if (y1 > int64_t(map.size[1])) y1 = int64_t(map.size[1]);
  if (x1 > int64_t(map.size[0])) x1 = int64_t(map.size[0]);
  if (y0 >= y1 || x0 >= x1) return;
  const uint64_t first = map.address + uint64_t(y0) * map.pitch + uint64_t(x0) * map.element_bytes;
  const uint64_t last = map.address + uint64_t(y1 - 1) * map.pitch + uint64_t(x1) * map.element_bytes;
  const Allocation &buffer = global_buffer(self, reinterpret_cast<void *>(first), last - first, 1, access);
  if (access == Access::read) check_acquired(self, buffer, first);
  const uint64_t row_bytes = uint64_t(x1 - x0) * map.element_bytes;
  for (int64_t row = 0; buffer.marks && row < y1 - y0; ++row)
    note_global(self, buffer, first - buffer.address + uint64_t(row) * map.pitch, row_bytes, access);
}

void perform(Cluster &cluster, size_t which) {
  Pending *op = cluster.pending[which];
  cluster.pending.remove_unordered(which);
  if (op->store) {
    each_vector(*op, [](uint8_t *shared, uint8_t *global, uint32_t count) {
      if (global) std::memcpy(global, shared, count);
    });
  } else {
    each_vector(*op, [](uint8_t *shared, uint8_t *global, uint32_t count) {
      if (global)
        std::memcpy(shared, global, count);
      else
        std::memset(shared, 0, count);
    });
    Block &block = *op->block;
    const uint8_t number = block.mbarrier_at[op->barrier / 8];
    if (number == 0)
      fail_in(op->issuer, FaultKind::barrier, kSharedBase + op->barrier,
              "a TMA load lands, and mbarrier 0x%x is no more", kSharedBase + op->barrier);
    Mbarrier &barrier = block.mbarriers[number - 1];
    const uint32_t bytes = tile_bytes(op->map);
    note_copy_known(block, op->offset, bytes, barrier.agent, barrier.time + 1);
    note_landed(barrier, *op->issuer, op->offset);
    complete_transactions(barrier, bytes);
  }
  std::free(op);
}

Pending *begin(Fiber &self, bool store, Block &block, const Map &map, int32_t x, int32_t y, uint32_t address,
               uint32_t alignment = 128) {
  const uint32_t offset = shared_offset(self, block, address, tile_bytes(map), alignment);
  auto *op = static_cast<Pending *>(zeroed(sizeof(Pending)));
  op->store = store, op->ticket = ++self.cluster->tickets, op->issuer = &self, op->block = &block;
  op->map = map, op->x = x, op->y = y, op->offset = offset;
  self.cluster->pending.push(op);
  return op;
}

// Begins a load to one block; its bytes count on that block's mbarrier at `barrier_offset`.
void begin_load(Fiber &self, Block &block, const Map &map, int32_t x, int32_t y, uint32_t to,
                uint32_t barrier_offset, uint32_t alignment) {
  Mbarrier &barrier = mbarrier_for(self, block, barrier_offset);
  if (!barrier.init_fenced)
    fail_at(FaultKind::proxy, kSharedBase + barrier_offset,
            "TMA with mbarrier 0x%x, whose init the asynchronous proxy may not "
            "see (wanted fence.mbarrier_init after mbarrier.init, by the same thread)",
            kSharedBase + barrier_offset);
  Pending *op = begin(self, false, block, map, x, y, to, alignment);
  op->barrier = barrier_offset;
  note_copy_issued(block, op->offset, tile_bytes(map), self, Proxy::async);
}

// The same to every block whose bit is set.
void begin_loads(Fiber &self, uint32_t blocks, const Map &map, int32_t x, int32_t y, uint32_t to,
                 uint32_t barrier_address, uint32_t alignment) {
  Cluster &cluster = *self.cluster;
  const uint32_t targets = blocks == kOwnBlock ? 1u << self.block->rank : blocks;
  if (targets == 0) fail(FaultKind::operand, "multicast to no block: wanted one bit at least");
  if (targets >> cluster.block_count)
    fail(FaultKind::cluster, "multicast to blocks %04x: the cluster has %u", targets, cluster.block_count);
  const uint32_t barrier_offset = shared_offset(self, *self.block, barrier_address, 8, 8);
  for (uint32_t rank = 0; rank < cluster.block_count; ++rank) {
    if (!(targets >> rank & 1)) continue;
    Block &block = cluster.blocks[rank];
    if (block.live == 0)
      fail(FaultKind::cluster,
           "multicast to block %u of the cluster, which has ended (wanted barrier.cluster before the "
           "end of a block that others still write to)",
           rank);
    check_begun(self, block, to);
    begin_load(self, block, map, x, y, to, barrier_offset, alignment);
  }
  if (cluster.random.one_in(8)) yield();
}

}  // namespace

void prefetch_tensormap(const TensorMap *map) {
  Fiber &self = enter("prefetch.tensormap", reinterpret_cast<uint64_t>(map));
  read_map(self, map);
}

void tma_load_2d(const char *instruction, uint32_t to, const TensorMap *pointer, int32_t x, int32_t y,
                 uint32_t barrier_address, uint32_t blocks) {
  Fiber &self = enter(instruction, to);
  const Map map = read_map(self, pointer);
  check_box(self, map, x, y, Access::read);
  begin_loads(self, blocks, map, x, y, to, barrier_address, 128);
}

void bulk_load(const char *instruction, uint32_t to, const void *from, uint32_t bytes,
               uint32_t barrier_address, uint32_t blocks) {
  Fiber &self = enter(instruction, to);
  if (bytes == 0 || bytes % 16 != 0)
    fail(FaultKind::operand, "a bulk copy of %u bytes: wanted a multiple of 16", bytes);
  check_global(self, from, bytes, 16, Access::read);
  check_acquired(self, global_buffer(self, from, bytes, 16, Access::read), reinterpret_cast<uint64_t>(from));
  // A matrix of one row of bytes, whose box is all of it.
  const Map row = {kMagic, reinterpret_cast<uint64_t>(from), {bytes, 1}, bytes, {bytes, 1}, 1, 0};
  begin_loads(self, blocks, row, 0, 0, to, barrier_address, 16);
}

void tma_store_2d(const TensorMap *pointer, int32_t x, int32_t y, uint32_t from) {
  Fiber &self = enter("cp.async.bulk.tensor.2d.global", from);
  const Map map = read_map(self, pointer);
  check_box(self, map, x, y, Access::write);
  Pending *op = begin(self, true, *self.block, map, x, y, from);
  note_store_issued(*self.block, op->offset, tile_bytes(map), self);
  self.stores.push({self.store_group, op->offset, tile_bytes(map), op->ticket});
}

void bulk_commit_group() {
  Fiber &self = enter("cp.async.bulk.commit_group");
  ++self.store_group;
}

void bulk_wait_group(const char *instruction, uint32_t pending, bool read) {
  Fiber &self = enter(instruction);
  (void)read;  // a store is read and written in one moment, no later than here
  Cluster &cluster = *self.cluster;
  size_t count = 0;
  for (; count < self.stores.size() && self.stores[count].group + pending < self.store_group; ++count) {
    const BulkStore &store = self.stores[count];
    for (size_t i = 0; i < cluster.pending.size(); ++i)
      if (cluster.pending[i]->ticket == store.ticket) {
        perform(cluster, i);
        break;
      }
    note_store_read(*self.block, store.from, store.bytes, self);
  }
  self.stores.remove_first(count);
}

void fence_proxy_async() {
  Fiber &self = enter("fence.proxy.async");
  self.clock.fence();
  if (self.clock.on())
    ++self.clock.plain[self.agent];  // stores from here on are of another moment, not fenced
  for (Mbarrier &barrier : self.block->mbarriers)
    if (barrier.init_by == &self) barrier.init_fenced = true;
}

void complete_tma(Cluster &cluster, size_t which) { perform(cluster, which); }

void check_tma_at_exit(Fiber &self) {
  if (!self.stores.empty())
    fail_at(FaultKind::incomplete, kSharedBase + self.stores[0].from,
            "the thread ends while a TMA store may still read "
            "shared 0x%x (wanted cp.async.bulk.commit_group and cp.async.bulk.wait_group.read)",
            kSharedBase + self.stores[0].from);
}

void check_tma_of_block(Block &block) {
  for (const Pending *op : block.cluster->pending)
    if (op->block == &block)
      fail_in(op->issuer, FaultKind::incomplete, kSharedBase + op->offset,
              "the block ends while TMA is still writing its "
              "shared memory at 0x%x (wanted a wait for mbarrier 0x%x)",
              kSharedBase + op->offset, kSharedBase + op->barrier);
}

}  // namespace emulated
