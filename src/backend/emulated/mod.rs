//! A CUDA device on the CPU, for the kernels of `kernels/`: feature `emulated`.

pub mod arithmetic;
mod ffi;
