// FP8 heads (E4M3) with 16-bit rows: weights packed at load and widened in registers, exactly; rows as
// stage_rows_interleaved has left them; wgmma.m64nNk16.
//     logits[row, id] = epilogue((sum over k of rows[row, k]·weights[id, k]) · weight_scales[id])
#include "hopper/matmul.cuh"

WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_bf16_64x32, E4m3Bf16, 64, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_bf16_64x64, E4m3Bf16, 64, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_bf16_128x8, E4m3Bf16, 128, 8, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_bf16_128x32, E4m3Bf16, 128, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_bf16_128x64, E4m3Bf16, 128, 64, 1)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_bf16_128x128, E4m3Bf16, 128, 128, 1)

WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_f16_64x32, E4m3F16, 64, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_f16_64x64, E4m3F16, 64, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_f16_128x8, E4m3F16, 128, 8, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_f16_128x32, E4m3F16, 128, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_f16_128x64, E4m3F16, 128, 64, 1)
WGMMA_MATMUL_KERNEL(wgmma_matmul_fp8_f16_128x128, E4m3F16, 128, 128, 1)
