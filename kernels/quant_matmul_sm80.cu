// int8 heads with int8 rows (W8A8), exact in int32: mma.sync m16n8k32. quantize_rows has picked and quantised
// the rows before.
//     logits[row, id] =
//         epilogue((sum over k of rows[row, k]·weights[id, k]) · row_scales[row] · weight_scales[id])
#include "matmul/matmul.cuh"

MATMUL_KERNEL(quant_matmul_64x8, W8A8, 64, 8, 2)
MATMUL_KERNEL(quant_matmul_64x16, W8A8, 64, 16, 2)
MATMUL_KERNEL(quant_matmul_64x32, W8A8, 64, 32, 2)
MATMUL_KERNEL(quant_matmul_64x64, W8A8, 64, 64, 2)
MATMUL_KERNEL(quant_matmul_128x8, W8A8, 128, 8, 2)
MATMUL_KERNEL(quant_matmul_128x16, W8A8, 128, 16, 2)
MATMUL_KERNEL(quant_matmul_128x32, W8A8, 128, 32, 2)
MATMUL_KERNEL(quant_matmul_128x64, W8A8, 128, 64, 2)
MATMUL_KERNEL(quant_matmul_128x128, W8A8, 128, 128, 2)
