//! The matmuls of `kernels/` on the emulated device, against float64, the CPU backend and each other. What is
//! generic over devices is in `lmhead_testkit::product`; a GPU runs the same table.
#![allow(unsafe_code, reason = "launches")]

mod callbacks;
mod fp8;
mod golden;
mod limits;
mod out_of_order;
mod peers;
mod properties;
mod refused;
mod seeds;
mod shards;
mod shared_device;
mod sizes;
mod tails;
mod targets;
mod tuned;
mod unaligned;
mod whole;

use lmhead_emulated::EmulatedDevice;

/// Each test has a device of its own, because launches on one device wait for each other.
fn device() -> EmulatedDevice {
    EmulatedDevice::new(1)
}
