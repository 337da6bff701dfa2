//! What tests and benches share that run on a GPU. For those without one: the reader of machine code, and a
//! `libcuda.so` of the project's own that runs kernels on the emulated device.

#![allow(unsafe_code, reason = "launches")]

#[cfg(feature = "cuda")]
pub mod about;
#[cfg(feature = "cuda")]
pub mod answer_costs;
#[cfg(feature = "cuda")]
pub mod answers;
#[cfg(feature = "nccl")]
pub mod captured_steps;
pub mod check;
#[cfg(feature = "cuda")]
pub mod clocked;
pub mod code;
#[cfg(feature = "cuda")]
pub mod code_page;
#[cfg(feature = "cuda")]
pub mod device_step;
#[cfg(feature = "cuda")]
pub mod fake_driver;
#[cfg(feature = "cuda")]
pub mod fake_nccl;
pub mod fill;
#[cfg(feature = "cuda")]
pub mod heads;
#[cfg(feature = "cuda")]
pub mod kernels;
#[cfg(feature = "nccl")]
pub mod nccl_ranks;
#[cfg(feature = "cuda")]
pub mod needs;
pub mod operands;
#[cfg(feature = "cuda")]
pub mod peers;
#[cfg(feature = "cuda")]
pub mod probes;
#[cfg(feature = "cuda")]
pub mod products;
pub mod recorded;
#[cfg(feature = "cuda")]
pub mod roofs;
pub mod rounds;
#[cfg(feature = "cuda")]
pub mod tools;
#[cfg(feature = "cuda")]
pub mod tune;
#[cfg(feature = "cuda")]
pub mod windows;
