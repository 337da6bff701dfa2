// Who wrote and who read each cell of shared memory, and what a later access must know of that.
//
// A cell is 16 bytes, divided into four and again into single bytes where accesses are smaller: the tiles of
// matrix instructions stay cheap, and neighbours that are written by different threads are no race.
#pragma once
#include "clock.hpp"

namespace emulated {

struct Block;
struct Fiber;
struct Warpgroup;
struct Cluster;

enum class Proxy : uint8_t { generic, async };

// An access: an agent at its own time. Time 0: none.
constexpr uint8_t kPending = 1, kAtomic = 2;
struct Stamp {
  uint16_t agent;
  Proxy proxy;
  uint8_t state;  // of a write: kPending, of a copy that is under way; kAtomic
  uint32_t time;
};

struct Cell {
  Stamp writer;
  Stamp readers[4];
  uint32_t *many_readers;  // where four are not enough: the time of each agent
  Cell *parts;             // four of a quarter the size
  uint16_t reading;        // TMA stores under way
  bool barrier;            // holds an mbarrier
};

struct Shadow {
  Cell *cells;  // null: nothing is checked
  uint32_t count;
  void open(uint32_t bytes);
  void close();
};

// A wgmma instruction's knowledge: what all 128 lanes know.
struct WgmmaReader {
  Warpgroup &group;
  uint32_t time;
  // The last agent looked up, since neighbouring cells have the same writer.
  uint32_t agent = 0xffffffffu, plain = 0, fenced = 0;
};

// Each is about [offset, offset + bytes) of the block's shared memory, and ends the launch where something is
// wrong.
void note_read(Block &block, uint32_t offset, uint32_t bytes, Fiber &reader);
void note_write(Block &block, uint32_t offset, uint32_t bytes, Fiber &writer);
// Atomics need no order among themselves. After several, a later access has to know the last one.
void note_atomic(Block &block, uint32_t offset, uint32_t bytes, Fiber &writer);
// An asynchronous write is pending from its issue until somebody can know it; from then on it is known
// through `agent` at `time`.
void note_copy_issued(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer, Proxy proxy);
void note_copy_known(Block &block, uint32_t offset, uint32_t bytes, uint32_t agent, uint32_t time);
// TMA stores: shared memory is read from their issue until the issuer has waited.
void note_store_issued(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer);
void note_store_read(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer);
void note_wgmma_read(Block &block, uint32_t offset, uint32_t bytes, WgmmaReader &reader);
void note_barrier(Block &block, uint32_t offset, bool valid);

}  // namespace emulated
