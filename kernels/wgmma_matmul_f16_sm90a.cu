// f16 heads: weights packed at load, rows as stage_rows has left them, wgmma.m64nNk16.
//     logits[row, id] = epilogue(sum over k of rows[row, k]·weights[id, k])
#include "hopper/matmul.cuh"

WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_64x8, F16Weights, 64, 8, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_64x16, F16Weights, 64, 16, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_64x32, F16Weights, 64, 32, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_64x64, F16Weights, 64, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_128x32, F16Weights, 128, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_128x64, F16Weights, 128, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_128x128, F16Weights, 128, 128, 1)
WGMMA_MATMUL_KERNEL(wgmma_matmul_f16_256x128, F16Weights, 256, 128, 1)
