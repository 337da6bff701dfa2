// The kernel that kernels/README.md shows, word for word (crates/emulated/tests/emulated/readme.rs).
#include "params.h"

typedef struct AddOneParams {
  uint32_t *data; /* [count] */
  uint32_t count;
} AddOneParams;

#include "ptx.cuh"

KERNEL(add_one, AddOneParams, 128, 1) {
  const uint32_t i = 128 * blockIdx.x + threadIdx.x;
  if (i < params.count) ptx::st_global_u32(params.data + i, ptx::ld_global_u32(params.data + i) + 1);
}
