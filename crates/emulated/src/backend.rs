//! The emulated device under a whole [`Backend`](lmhead::backend::Backend).

use super::ffi::RawKernel;
use super::{Buffer, Device, Fault, Kernel, LaunchConfig, Params};
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::device::{DeviceBackend, Grid, KernelDevice};
use lmhead::error::{Error, Result};
use lmhead::plan::DeviceLimits;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An emulated device that several threads share: one launch after the other, each on all cores, checked for races.
#[derive(Debug, Clone, Default)]
pub struct EmulatedDevice {
    device: Arc<Mutex<Device>>,
    /// Of the next launch.
    seed: Arc<AtomicU64>,
}

/// Memory of an [`EmulatedDevice`], freed when dropped.
#[derive(Debug)]
pub struct EmulatedBuffer {
    device: EmulatedDevice,
    buffer: Buffer,
}

impl EmulatedDevice {
    /// `seed`: the schedule of the first launch; each further one has another.
    pub fn new(seed: u64) -> Self {
        EmulatedDevice { device: Arc::default(), seed: Arc::new(AtomicU64::new(seed)) }
    }

    /// A whole backend on this device; `host` does what comes after the logits.
    pub fn backend(self, host: CpuBackend) -> DeviceBackend<Self> {
        DeviceBackend::new(self, host)
    }

    /// A launch of that shape, by the next schedule.
    fn config(&self, grid: &Grid) -> LaunchConfig {
        LaunchConfig::new([grid.blocks, 1, 1], [grid.threads, 1, 1])
            .shared(u32::try_from(grid.shared_bytes).unwrap_or(u32::MAX))
            .seed(self.seed.fetch_add(1, Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EmulatedBuffer {
    fn drop(&mut self) {
        self.device.lock().free(self.buffer).expect("the device that made it");
    }
}

/// Host memory of an [`EmulatedDevice`]'s copies, which are done when they are queued.
#[derive(Debug)]
pub struct Staging {
    /// For their alignment.
    words: Vec<u64>,
    bytes: usize,
}

impl AsRef<[u8]> for Staging {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }
}

impl AsMut<[u8]> for Staging {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }
}

/// A fault as the crate's error.
fn failed(fault: Fault) -> Error {
    let what =
        if fault.kernel.is_empty() { "emulated device".into() } else { format!("kernel {}", fault.kernel) };
    let fix =
        "a mistake in the kernel or in what it was launched with; kernels/README.md tells how to find it";
    Error::Device { what, problem: fault.to_string(), fix: fix.into() }
}

impl KernelDevice for EmulatedDevice {
    type Buffer = EmulatedBuffer;
    type Staging = Staging;
    type Kernel<P: Params> = Kernel<P>;
    type Stream = ();
    type OwnedStream = ();

    fn name(&self) -> &'static str {
        "emulated"
    }

    /// The arithmetic of 16-bit products is an H100's, whatever the machine.
    fn fingerprint(&self) -> String {
        "emulated/9.0".into()
    }

    /// An H100's, so that the plans that are tried are those of the device whose arithmetic this is.
    fn limits(&self) -> DeviceLimits {
        DeviceLimits::H100
    }

    fn stream(&self) {}

    fn open_stream(&self) -> Result<()> {
        Ok(())
    }

    fn on(&self, (): &()) {}

    /// Launches have ended when they return.
    fn wait(&self, (): ()) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<EmulatedBuffer> {
        let buffer = self.lock().alloc(bytes).map_err(failed)?;
        Ok(EmulatedBuffer { device: self.clone(), buffer })
    }

    fn address(&self, buffer: &EmulatedBuffer) -> u64 {
        buffer.buffer.address()
    }

    fn staging(&self, bytes: usize) -> Result<Staging> {
        // Not zeros: what no copy brought shall show.
        Ok(Staging { words: vec![0xcbcb_cbcb_cbcb_cbcb; bytes.div_ceil(8)], bytes })
    }

    unsafe fn queue_write(&self, (): (), buffer: &EmulatedBuffer, at: usize, bytes: &[u8]) -> Result<()> {
        self.lock().write(buffer.buffer, at, bytes).map_err(failed)
    }

    unsafe fn queue_read(&self, (): (), buffer: &EmulatedBuffer, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.lock().read(buffer.buffer, at, bytes).map_err(failed)
    }

    fn kernel<P: Params>(&self, name: &'static str) -> Result<Kernel<P>> {
        let Some((_, raw)) = kernels().into_iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = kernels().into_iter().map(|(name, _)| name).collect();
            let wanted = format!("one of {}", known.join(", "));
            return Err(Error::unsupported("kernel", wanted, format!("\"{name}\""), "name one of those"));
        };
        // SAFETY: made by KERNEL; that its parameters are a `P` is compared, by size, at launch.
        Ok(unsafe { Kernel::new(raw) })
    }

    unsafe fn clear(&self, (): (), address: u64, words: usize) -> Result<()> {
        self.lock().clear(address, 4 * words).map_err(failed)
    }

    unsafe fn launch<P: Params>(&self, (): (), kernel: &Kernel<P>, grid: &Grid, params: &P) -> Result<()> {
        let config = self.config(grid);
        self.lock().launch(kernel, params, &config).map_err(failed)
    }

    /// Both run, the second beside the first as far as it goes, before this returns.
    unsafe fn launch_dependent<P: Params, Q: Params>(
        &self,
        (): (),
        first: (&Kernel<P>, &Grid, &P),
        second: (&Kernel<Q>, &Grid, &Q),
    ) -> Result<()> {
        let (one, other) = (self.config(first.1), self.config(second.1));
        let launches = ((first.0, first.2, &one), (second.0, second.2, &other));
        self.lock().launch_dependent(launches.0, launches.1).map_err(failed)
    }
}

/// Every kernel of `kernels/`, by name.
fn kernels() -> Vec<(&'static str, *const RawKernel)> {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lmhead::DType;
    use lmhead::plan::Precision;

    #[test]
    fn every_planned_kernel_is_there() {
        let known: Vec<_> = kernels().into_iter().map(|(name, _)| name).collect();
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for precision in
                [Precision::Bf16, Precision::F16, Precision::W8a8(dtype), Precision::W8a16(dtype)]
            {
                for kernel in precision.tiles().iter().map(|tile| tile.kernel).chain(precision.quantizer()) {
                    assert!(known.contains(&kernel), "{kernel} in {known:?}");
                }
            }
        }
    }
}
