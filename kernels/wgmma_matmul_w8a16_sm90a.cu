// int8 heads with 16-bit rows (W8A16): weights packed at load and widened in registers, exactly; rows as
// stage_rows_interleaved has left them; wgmma.m64nNk16.
//     logits[row, id] = epilogue((sum over k of rows[row, k]·weights[id, k]) · weight_scales[id])
#include "hopper/matmul.cuh"

WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_bf16_64x32, W8A16Bf16, 64, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_bf16_64x64, W8A16Bf16, 64, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_bf16_128x8, W8A16Bf16, 128, 8, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_bf16_128x32, W8A16Bf16, 128, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_bf16_128x64, W8A16Bf16, 128, 64, 1)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_bf16_128x128, W8A16Bf16, 128, 128, 1)

WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_f16_64x32, W8A16F16, 64, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_f16_64x64, W8A16F16, 64, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_f16_128x8, W8A16F16, 128, 8, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_f16_128x32, W8A16F16, 128, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_f16_128x64, W8A16F16, 128, 64, 1)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a16_f16_128x128, W8A16F16, 128, 128, 1)
