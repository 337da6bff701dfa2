// int8 heads with int8 rows (W8A8), exact in int32: weights packed at load, rows as stage_rows has left them,
// wgmma.m64nNk32.
//     logits[row, id] = epilogue(sum over k of rows[row, k]·weights[id, k])
#include "hopper/matmul.cuh"

WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_64x8, W8A8, 64, 8, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_64x16, W8A8, 64, 16, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_64x32, W8A8, 64, 32, 4)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_64x64, W8A8, 64, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_128x32, W8A8, 128, 32, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_128x64, W8A8, 128, 64, 2)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_128x128, W8A8, 128, 128, 1)
WGMMA_MATMUL_KERNEL(wgmma_matmul_w8a8_256x128, W8A8, 256, 128, 1)
