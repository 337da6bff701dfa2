//! The emulated CUDA device: its instructions, its checks, and the carrier kernels on it.

mod broken;
mod broken_matmul;
mod broken_quant_matmul;
mod carriers;
mod cases;
mod conversions;
mod data;
mod hopper;
mod instructions;
mod matmul_parts;
mod probe;
mod refused;
mod tensor_core;
