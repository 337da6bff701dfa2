//! Exchanges through windows between ranks that are threads and share the GPU.

use crate::needs::{GpuTest, Needs, small};
use libtest_mimic::Failed;
use lmhead::backend::cuda::CudaDevice;
use lmhead_testkit::product::peers::{long_pieces_arrive_through_windows, pieces_arrive_through_windows};

/// Not among the kernels that a sanitizer runs: it may run one kernel after the other, and these wait for
/// each other.
pub const TESTS: &[GpuTest] =
    &[GpuTest { name: "windows::pieces_arrive", needs: Needs::Kernel("exchange_peers"), run: pieces_arrive }];

fn pieces_arrive(device: &CudaDevice) -> Result<(), Failed> {
    let (groups, rounds) = if small() { (3, 2) } else { (40, 6) };
    for seed in 0..groups {
        pieces_arrive_through_windows(device, 2 + seed as usize % 3, rounds, seed);
    }
    long_pieces_arrive_through_windows(device);
    Ok(())
}
