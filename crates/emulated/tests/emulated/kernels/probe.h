/* Parameters of the test kernels; mirrored in crates/emulated/src/probe.rs. */
#ifndef LMHEAD_TESTS_PROBE_H
#define LMHEAD_TESTS_PROBE_H
#include "params.h"

typedef struct ProbeParams {
  TensorMap map;
  TensorMap map_out;
  const uint32_t *in;
  uint32_t *out;
  uint32_t n[6]; /* variants and sizes, by kernel */
} ProbeParams;

#endif
