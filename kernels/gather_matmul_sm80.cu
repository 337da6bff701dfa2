// 16-bit heads: rows picked by index straight into shared memory, mma.sync m16n8k16.
//     logits[row, id] = epilogue(sum over k of rows[indices[row], k]·weights[id, k])
#include "matmul/matmul.cuh"

MATMUL_KERNEL(gather_matmul_bf16_64x8, Bf16Weights, 64, 8, 2)
MATMUL_KERNEL(gather_matmul_bf16_64x16, Bf16Weights, 64, 16, 2)
MATMUL_KERNEL(gather_matmul_bf16_64x32, Bf16Weights, 64, 32, 2)
MATMUL_KERNEL(gather_matmul_bf16_64x64, Bf16Weights, 64, 64, 2)
MATMUL_KERNEL(gather_matmul_bf16_128x8, Bf16Weights, 128, 8, 2)
MATMUL_KERNEL(gather_matmul_bf16_128x16, Bf16Weights, 128, 16, 2)
MATMUL_KERNEL(gather_matmul_bf16_128x32, Bf16Weights, 128, 32, 2)
MATMUL_KERNEL(gather_matmul_bf16_128x64, Bf16Weights, 128, 64, 2)
MATMUL_KERNEL(gather_matmul_bf16_128x128, Bf16Weights, 128, 128, 2)

MATMUL_KERNEL(gather_matmul_f16_64x8, F16Weights, 64, 8, 2)
MATMUL_KERNEL(gather_matmul_f16_64x16, F16Weights, 64, 16, 2)
MATMUL_KERNEL(gather_matmul_f16_64x32, F16Weights, 64, 32, 2)
MATMUL_KERNEL(gather_matmul_f16_64x64, F16Weights, 64, 64, 2)
MATMUL_KERNEL(gather_matmul_f16_128x8, F16Weights, 128, 8, 2)
MATMUL_KERNEL(gather_matmul_f16_128x16, F16Weights, 128, 16, 2)
MATMUL_KERNEL(gather_matmul_f16_128x32, F16Weights, 128, 32, 2)
MATMUL_KERNEL(gather_matmul_f16_128x64, F16Weights, 128, 64, 2)
MATMUL_KERNEL(gather_matmul_f16_128x128, F16Weights, 128, 128, 2)
