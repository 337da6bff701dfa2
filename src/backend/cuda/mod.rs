//! CUDA devices: the embedded kernels, and what is needed to load and launch them. Feature `cuda`.
//!
//! Nothing here is linked to CUDA: the driver is looked for at run time, and without one every call returns an error that says so.

mod buffer;
mod device;
mod driver;
pub mod fatbins;
mod kernel;
mod tensor_map;

pub use crate::backend::tensor_map::{Swizzle, Tiled2d};
pub use buffer::Buffer;
pub use device::Device;
pub use driver::{DeviceInfo, DriverVersion, devices, driver};
pub use kernel::{Attributes, Kernel, Launch};
pub use tensor_map::tensor_map;
