// The logits of given ids of each row, with the bits of the whole product (kernels/matmul/targets.cuh).
//     out[row, n] = epilogue(sum over k of rows[indices[row], k]·weights[targets[row, n] - first_id, k])
#include "matmul/targets.cuh"

TARGETS_KERNEL(target_logits_bf16, Bf16Weights)
TARGETS_KERNEL(target_logits_f16, F16Weights)
TARGETS_KERNEL(target_logits_w8a8, W8A8)
TARGETS_KERNEL(target_logits_w8a16_bf16, W8A16Bf16)
TARGETS_KERNEL(target_logits_w8a16_f16, W8A16F16)
TARGETS_KERNEL(target_logits_fp8_bf16, E4m3Bf16)
TARGETS_KERNEL(target_logits_fp8_f16, E4m3F16)
