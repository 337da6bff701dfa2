// int8 heads with 16-bit rows (W8A16), picked by index: weights are widened, exactly, in registers; mma.sync m16n8k16.
//     logits[row, id] = epilogue((sum over k of rows[indices[row], k]·weights[id, k]) · weight_scales[id])
#include "matmul/matmul.cuh"

MATMUL_KERNEL(w8a16_matmul_bf16_8, W8A16<ptx::Bf16>, 8, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_16, W8A16<ptx::Bf16>, 16, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_32, W8A16<ptx::Bf16>, 32, 2)
MATMUL_KERNEL(w8a16_matmul_bf16_64, W8A16<ptx::Bf16>, 64, 2)

MATMUL_KERNEL(w8a16_matmul_f16_8, W8A16<ptx::F16>, 8, 2)
MATMUL_KERNEL(w8a16_matmul_f16_16, W8A16<ptx::F16>, 16, 2)
MATMUL_KERNEL(w8a16_matmul_f16_32, W8A16<ptx::F16>, 32, 2)
MATMUL_KERNEL(w8a16_matmul_f16_64, W8A16<ptx::F16>, 64, 2)
