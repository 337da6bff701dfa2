// int8 heads with 16-bit rows (W8A16), picked by index: weights are widened, exactly, in registers; mma.sync
// m16n8k16.
//     logits[row, id] = epilogue((sum over k of rows[indices[row], k]·weights[id, k]) · weight_scales[id])
#include "matmul/matmul.cuh"

MATMUL_KERNEL(w8a16_matmul_bf16_64x8, W8A16Bf16, 64, 8, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_64x16, W8A16Bf16, 64, 16, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_64x32, W8A16Bf16, 64, 32, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_64x64, W8A16Bf16, 64, 64, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_128x8, W8A16Bf16, 128, 8, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_128x16, W8A16Bf16, 128, 16, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_128x32, W8A16Bf16, 128, 32, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_128x64, W8A16Bf16, 128, 64, 2)

MATMUL_KERNEL(w8a16_matmul_f16_64x8, W8A16F16, 64, 8, 2)
MATMUL_KERNEL(w8a16_matmul_f16_64x16, W8A16F16, 64, 16, 2)
MATMUL_KERNEL(w8a16_matmul_f16_64x32, W8A16F16, 64, 32, 2)
MATMUL_KERNEL(w8a16_matmul_f16_64x64, W8A16F16, 64, 64, 2)
MATMUL_KERNEL(w8a16_matmul_f16_128x8, W8A16F16, 128, 8, 2)
MATMUL_KERNEL(w8a16_matmul_f16_128x16, W8A16F16, 128, 16, 2)
MATMUL_KERNEL(w8a16_matmul_f16_128x32, W8A16F16, 128, 32, 2)
MATMUL_KERNEL(w8a16_matmul_f16_128x64, W8A16F16, 128, 64, 2)
