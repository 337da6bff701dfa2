//! CUDA devices: the embedded kernels, and what is needed to load and launch them. Feature `cuda`.
//!
//! Nothing here is linked to CUDA: the driver is looked for at run time, and without one every call returns
//! an error that says so.

mod buffer;
mod context;
mod device;
mod driver;
mod event;
pub mod fatbins;
mod graph;
mod kernel;
mod launch;
mod owned_stream;
mod pinned;
mod stream;
mod tensor_map;

pub use buffer::Buffer;
pub use device::{CudaDevice, PATIENCE};
pub use driver::{DeviceInfo, DriverVersion, devices, driver};
pub use event::Event;
pub use graph::Graph;
pub use kernel::{Attributes, Kernel};
pub use launch::Launch;
pub use owned_stream::OwnedStream;
pub use pinned::Pinned;
pub use stream::CudaStream;
pub use tensor_map::encode;
