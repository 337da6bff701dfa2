// 16-bit heads: rows picked by index straight into shared memory, mma.sync m16n8k16.
//     logits[row, id] = epilogue(sum over k of rows[indices[row], k]·weights[id, k])
#include "matmul/matmul.cuh"

MATMUL_KERNEL(gather_matmul_bf16_8, Bf16Weights, 8, 2)
MATMUL_KERNEL(gather_matmul_bf16_16, Bf16Weights, 16, 2)
MATMUL_KERNEL(gather_matmul_bf16_32, Bf16Weights, 32, 2)
MATMUL_KERNEL(gather_matmul_bf16_64, Bf16Weights, 64, 2)
MATMUL_KERNEL(gather_matmul_bf16_128, Bf16Weights, 128, 1)

MATMUL_KERNEL(gather_matmul_f16_8, F16Weights, 8, 2)
MATMUL_KERNEL(gather_matmul_f16_16, F16Weights, 16, 2)
MATMUL_KERNEL(gather_matmul_f16_32, F16Weights, 32, 2)
MATMUL_KERNEL(gather_matmul_f16_64, F16Weights, 64, 2)
MATMUL_KERNEL(gather_matmul_f16_128, F16Weights, 128, 1)
