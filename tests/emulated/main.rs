//! The emulated CUDA device: its instructions, its checks, and the carrier kernels on it.

mod carriers;
mod cases;
mod data;
mod tensor_core;
