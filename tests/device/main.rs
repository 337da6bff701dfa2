//! The products of `kernels/` on the emulated device, against float64, the CPU backend and each other. What is generic over the device
//! is in `product/`; a GPU runs the same table.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/end_to_end.rs"]
mod end_to_end;
mod limits;
mod out_of_order;
mod product;
mod properties;
mod refused;
#[path = "../common/requests.rs"]
mod requests;
mod seeds;
mod sizes;
mod whole;

use lmhead::backend::emulated::EmulatedDevice;

/// A device of its own for each test: launches of one wait for each other.
fn device() -> EmulatedDevice {
    EmulatedDevice::new(1)
}
