// The scheduler's own interface; what instructions use of it is in machine.hpp.
#pragma once
#include "machine.hpp"

namespace emulated {

void start_fibers(Cluster &cluster);  // until all have ended, or one has failed
[[noreturn]] void report_deadlock(Cluster &cluster);  // nothing can go on (deadlock.cpp)
void check_copies_of_block(Block &block);

}  // namespace emulated
