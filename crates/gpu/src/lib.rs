//! What is asked of a GPU, by tests and benches that share it; and of the compiled kernels without one: the reader of machine code, and a
//! `libcuda.so` of the project's own that runs kernels on the emulated device.

#![allow(unsafe_code, reason = "launches")]

#[cfg(feature = "cuda")]
pub mod clocked;
pub mod code;
#[cfg(feature = "cuda")]
pub mod fake_driver;
#[cfg(feature = "cuda")]
pub mod load;
#[cfg(feature = "cuda")]
pub mod needs;
#[cfg(feature = "cuda")]
pub mod operands;
#[cfg(feature = "cuda")]
pub mod products;
#[cfg(feature = "cuda")]
pub mod roofs;
#[cfg(feature = "cuda")]
pub mod table;
#[cfg(feature = "cuda")]
pub mod timing;
#[cfg(feature = "cuda")]
pub mod tools;
