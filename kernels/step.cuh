// Kernels that follow one another on a stream: each may begin while the one before it still runs (programmatic
// dependent launch, since compute capability 9.0), so that its launch and its first instructions cost no time.
//
// Every kernel of a step waits before it touches what another kernel may touch, in all of its threads; only then
// it lets the next one begin. So whoever runs knows that all kernels but the one before it have completed,
// however long the row of them is, and after its own wait that one too. What is loaded before the wait is
// never written by a kernel of the step: weights.
#pragma once
#include "ptx.cuh"

// By all threads, before any access to global memory but those to weights.
DEVICE void wait_for_kernel_before() {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
}

// A KERNEL of a step that waits at once. Those which have something to do before call
// wait_for_kernel_before() themselves.
#define STEP_KERNEL(name, Params, threads, blocks)  \
  DEVICE void name##_in_turn(const Params &params); \
  KERNEL(name, Params, threads, blocks) {           \
    wait_for_kernel_before();                       \
    name##_in_turn(params);                         \
  }                                                 \
  DEVICE void name##_in_turn(const Params &params)
