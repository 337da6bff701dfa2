// What the deliberately wrong kernels of a step take and begin with.
#ifndef LMHEAD_TESTS_BROKEN_H
#define LMHEAD_TESTS_BROKEN_H
#include "step.cuh"

// Parameters of the kernel that is right, and which mistake is made: 0 is none. Mirrored in
// crates/emulated/tests/emulated/planted.rs.
template <class Params>
struct Broken {
  Params right;
  uint32_t how;
};

// wait_for_kernel_before of step.cuh; of each of these kernels mistake 1 is to forget it.
DEVICE void wait_or_not(uint32_t how) {
  if (how != 1) wait_for_kernel_before();
}

#endif
