// Kernels that follow one another on a stream: each may begin while the one before it still runs
// (programmatic dependent launch, since compute capability 9.0), so that its launch and its first
// instructions cost no time.
//
// Every kernel of a step waits, in all of its threads, before it touches what another kernel may touch; only
// then it lets the next one begin. So a kernel that has begun knows that all before the one in front of it
// have completed, and after its own wait that this one has, too. Only weights are loaded before the wait: no
// kernel of the step writes them.
#pragma once
#include "ptx.cuh"

// Called by all threads, before any access to global memory but loads of weights.
DEVICE void wait_for_kernel_before() {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
}

// A KERNEL of a step that waits first. Kernels with work before the wait use KERNEL and call
// wait_for_kernel_before() themselves.
#define STEP_KERNEL(name, Params, threads, blocks)  \
  DEVICE void name##_in_turn(const Params &params); \
  KERNEL(name, Params, threads, blocks) {           \
    wait_for_kernel_before();                       \
    name##_in_turn(params);                         \
  }                                                 \
  DEVICE void name##_in_turn(const Params &params)
