//! The emulated CUDA device: its instructions, its checks, and the carrier kernels on it.

mod broken;
mod carriers;
mod cases;
mod data;
mod hopper;
mod instructions;
mod probe;
mod refused;
mod tensor_core;
