// Stacks and the switch between them. One pool per OS thread that runs clusters.
#pragma once
#include "machine.hpp"

namespace emulated {

// Reused from launch to launch.
struct Worker {
  uint8_t *stacks;  // each with an unreachable page below it
  uint32_t stack_count;
  // The OS thread's own stack, as an address sanitizer wants to know it.
  const void *host_bottom;
  size_t host_bytes;
  void *host_asan_stack;
  char text[kFaultText];  // of a report, for which a thread's stack is small
};

Worker *open_worker();
void close_worker(Worker *worker);
bool reserve_stacks(Worker &worker, uint32_t count);  // false: no memory for them

void prepare_stack(Fiber &fiber, void (*entry)());
void switch_to(Fiber &from, Fiber &to);
void enter_fibers(Cluster &cluster, Fiber &first);  // from the OS thread's stack, until leave_fibers
[[noreturn]] void leave_fibers(Cluster &cluster);
void arrived_in_fiber(Worker &worker, bool first);  // first thing on a new stack

}  // namespace emulated
