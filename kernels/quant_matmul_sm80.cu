// int8 heads with int8 rows (W8A8), exact in int32: mma.sync m16n8k32. quantize_rows has picked and quantised the rows before.
//     logits[row, id] = epilogue((sum over k of rows[row, k]·weights[id, k]) · row_scales[row] · weight_scales[id])
#include "matmul/matmul.cuh"

MATMUL_KERNEL(quant_matmul_8, W8A8, 8, 2)
MATMUL_KERNEL(quant_matmul_16, W8A8, 16, 2)
MATMUL_KERNEL(quant_matmul_32, W8A8, 32, 2)
MATMUL_KERNEL(quant_matmul_64, W8A8, 64, 2)
MATMUL_KERNEL(quant_matmul_128, W8A8, 128, 1)
