// bf16 heads: weights packed at load, rows as stage_rows has left them, wgmma.m64nNk16.
//     logits[row, id] = epilogue(sum over k of rows[row, k]·weights[id, k])
#include "hopper/matmul.cuh"

WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_64x8, Bf16Weights, 64, 8, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_64x16, Bf16Weights, 64, 16, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_64x32, Bf16Weights, 64, 32, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_64x64, Bf16Weights, 64, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_128x32, Bf16Weights, 128, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_128x64, Bf16Weights, 128, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_128x128, Bf16Weights, 128, 128, 1)
WGMMA_MATMUL_KERNEL(wgmma_matmul_bf16_256x128, Bf16Weights, 256, 128, 1)
