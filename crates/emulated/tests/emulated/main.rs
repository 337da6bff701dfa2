//! The emulated CUDA device: its instructions, its checks, and the carrier kernels on it.
#![allow(unsafe_code, reason = "parameters of kernels")]

mod answer_sampling;
mod answer_sums;
mod blame;
mod broken;
mod broken_flags;
mod broken_hopper;
mod broken_matmul;
mod broken_quant_matmul;
mod broken_wgmma_matmul;
mod carriers;
mod conversions;
mod flags;
mod hopper;
mod instructions;
mod matmul_parts;
mod planted;
mod probed;
mod readme;
mod reads;
mod refused;
mod tensor_core;
