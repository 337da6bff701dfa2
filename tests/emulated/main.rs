//! The emulated CUDA device: its instructions, its checks, and the carrier kernels on it.

mod tensor_core;
