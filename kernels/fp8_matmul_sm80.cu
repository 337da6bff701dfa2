// FP8 heads (E4M3) with 16-bit rows, picked by index: weights are widened, exactly, in registers; mma.sync
// m16n8k16.
//     logits[row, id] = epilogue((sum over k of rows[indices[row], k]·weights[id, k]) · weight_scales[id])
#include "matmul/matmul.cuh"

MATMUL_KERNEL(fp8_matmul_bf16_64x8, E4m3Bf16, 64, 8, 2)
MATMUL_KERNEL(fp8_matmul_bf16_64x16, E4m3Bf16, 64, 16, 2)
MATMUL_KERNEL(fp8_matmul_bf16_64x32, E4m3Bf16, 64, 32, 2)
MATMUL_KERNEL(fp8_matmul_bf16_64x64, E4m3Bf16, 64, 64, 2)
MATMUL_KERNEL(fp8_matmul_bf16_128x8, E4m3Bf16, 128, 8, 2)
MATMUL_KERNEL(fp8_matmul_bf16_128x16, E4m3Bf16, 128, 16, 2)
MATMUL_KERNEL(fp8_matmul_bf16_128x32, E4m3Bf16, 128, 32, 2)
MATMUL_KERNEL(fp8_matmul_bf16_128x64, E4m3Bf16, 128, 64, 2)

MATMUL_KERNEL(fp8_matmul_f16_64x8, E4m3F16, 64, 8, 2)
MATMUL_KERNEL(fp8_matmul_f16_64x16, E4m3F16, 64, 16, 2)
MATMUL_KERNEL(fp8_matmul_f16_64x32, E4m3F16, 64, 32, 2)
MATMUL_KERNEL(fp8_matmul_f16_64x64, E4m3F16, 64, 64, 2)
MATMUL_KERNEL(fp8_matmul_f16_128x8, E4m3F16, 128, 8, 2)
MATMUL_KERNEL(fp8_matmul_f16_128x16, E4m3F16, 128, 16, 2)
MATMUL_KERNEL(fp8_matmul_f16_128x32, E4m3F16, 128, 32, 2)
MATMUL_KERNEL(fp8_matmul_f16_128x64, E4m3F16, 128, 64, 2)
