/* Parameters of the broken matmul; mirrored in crates/emulated/tests/emulated/broken_matmul.rs. */
#ifndef LMHEAD_TESTS_BROKEN_MATMUL_H
#define LMHEAD_TESTS_BROKEN_MATMUL_H
#include "params.h"

typedef struct BrokenMatmulParams {
  MatmulParams product;
  uint32_t how;
} BrokenMatmulParams;

#endif
