// What the driver hands over for a launch; mirrored in crates/emulated/src/ffi.rs.
#pragma once
#include "device.hpp"

namespace emulated {

struct Allocation {
  uint64_t address, bytes;
  uint32_t writable;
  uint32_t number;  // as the driver counts buffers
  uint8_t *marks;   // what this launch has done to each byte (Mark), room for a multiple of eight; or null
};

struct Host {
  void *context;
  int (*wait_for_primary)(void *context);        // 0: the launch before has failed
  void (*block_triggered)(void *context);        // once per block: at launch_dependents, or at its end
  void (*trace)(void *context, const char *line, uint64_t bytes);
};

struct Launch {
  const Kernel *kernel;
  const void *params;
  uint32_t grid[3], block[3], cluster[3];
  uint32_t dynamic_shared, shared_limit;
  uint64_t seed;
  uint32_t checks;     // 1: with vector clocks
  uint32_t traced;     // trace_block is set
  uint64_t trace_block;  // its linear index
  uint64_t instruction_limit;  // of a cluster's threads together
  const Allocation *allocations;  // sorted by address
  uint64_t allocation_count;
  const Allocation *primary;  // the same buffers, with the marks of the launch before; null: there is none
  uint32_t overlapped;        // the launch behind may begin before this one ends: reads are noted too
  uint32_t in_turn;  // held to the rules of kernels/step.cuh; the launch before, if any, has ended
  Host host;
};

}  // namespace emulated
