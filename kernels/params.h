/* The structs that cross from host to device, one per kernel: plain C, the only input of bindgen.
 *
 * Pointers are device addresses. Sizes are counts of elements unless a name says bytes. */
#ifndef LMHEAD_PARAMS_H
#define LMHEAD_PARAMS_H

#include <stdint.h>

/* How TMA reads or writes a matrix; opaque. The driver encodes it (a CUtensorMap), the emulated device has its own. */
typedef struct TensorMap {
  uint8_t opaque[128];
} __attribute__((aligned(64))) TensorMap;

/* kernels/carriers: out[m, n] = sum over k of a[m, k]·b[n, k]. All row-major and contiguous. */

/* int8 through cp.async and mma.sync. hidden is a multiple of 16. */
typedef struct MmaCarrierParams {
  const int8_t *weights; /* [vocab, hidden] */
  const int8_t *rows;    /* [row_count, hidden] */
  int32_t *out;          /* [row_count, vocab] */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t hidden;
} MmaCarrierParams;

/* 16-bit or int8 through TMA and wgmma. */
typedef struct WgmmaCarrierParams {
  TensorMap weights; /* [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle */
  TensorMap rows;    /* [row_count, hidden], boxes of the kernel's row tile x 128 bytes, 128-byte swizzle */
  void *out;         /* [row_count, vocab], f32 or int32 */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t hidden;
} WgmmaCarrierParams;

/* bf16: TMA for the weights, cp.async for rows that are picked by index. */
typedef struct GatherCarrierParams {
  TensorMap weights;         /* [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle */
  const uint16_t *rows;      /* [source_rows, hidden] bf16 */
  const int32_t *indices;    /* [row_count] into rows; one out of range is a row of zeros */
  float *out;                /* [row_count, vocab] */
  uint32_t vocab;
  uint32_t row_count;
  uint32_t source_rows;
  uint32_t hidden;
} GatherCarrierParams;

#endif
