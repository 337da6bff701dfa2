//! A whole [`Backend`](lmhead::backend::Backend) on the emulated device.

use super::ffi::RawKernel;
use super::{Buffer, Device, Fault, Kernel, LaunchConfig, Params};
use lmhead::backend::device::{CopyRows, DeviceBackend, Grid, KernelDevice};
use lmhead::error::{Error, Result};
use lmhead::memory::{self, Memory, Span};
use lmhead::plan::DeviceLimits;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An emulated device that several threads share: one launch after the other, each on all cores, checked for
/// races. Only kernels that wait for kernels of other ranks, which other threads launch, run beside others.
#[derive(Debug, Clone, Default)]
pub struct EmulatedDevice {
    device: Arc<Mutex<Device>>,
    /// Seed of the next launch.
    seed: Arc<AtomicU64>,
    ordinal: u32,
    /// Whether it says that host memory is not pinned; copies are the same either way.
    unpinned: bool,
    /// See [`EmulatedDevice::portable`].
    portable: bool,
    /// See [`EmulatedDevice::sms`]; 0 for an H100's.
    sms: usize,
    counts: Arc<Counted>,
}

/// What an [`EmulatedDevice`] has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Buffers, pinned memory, streams, events and kernels that were made.
    pub made: u64,
    /// Product kernels that ran: one a product. Kernels that quantise rows are not counted.
    pub products: u64,
    /// Copies of any kind.
    pub copies: u64,
}

#[derive(Debug, Default)]
struct Counted {
    made: AtomicU64,
    products: AtomicU64,
    copies: AtomicU64,
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
        EmulatedDevice { seed: Arc::new(AtomicU64::new(seed)), ..EmulatedDevice::default() }
    }

    /// The same, with that device ordinal.
    #[must_use]
    pub fn numbered(self, ordinal: u32) -> Self {
        EmulatedDevice { ordinal, ..self }
    }

    /// The same, but no host memory counts as pinned: callers then copy through staging memory, as with
    /// a GPU.
    #[must_use]
    pub fn unpinned(self) -> Self {
        EmulatedDevice { unpinned: true, ..self }
    }

    /// The same, as a device of compute capability 10.0: heads take the portable kernels, which are emulated
    /// several times as fast as those of 9.0.
    #[must_use]
    pub fn portable(self) -> Self {
        EmulatedDevice { portable: true, ..self }
    }

    /// The same, with that many SMs: with few, plans for small shapes choose the tiles of large ones.
    #[must_use]
    pub fn sms(self, sms: usize) -> Self {
        EmulatedDevice { sms, ..self }
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        let Counted { made, products, copies } = &*self.counts;
        let [made, products, copies] = [made, products, copies].map(|n| n.load(Ordering::Relaxed));
        Counts { made, products, copies }
    }

    fn count(&self, what: impl Fn(&Counted) -> &AtomicU64) {
        what(&self.counts).fetch_add(1, Ordering::Relaxed);
    }

    /// A whole backend on this device.
    pub fn backend(self) -> DeviceBackend<Self> {
        DeviceBackend::new(self)
    }

    /// A launch of that shape, with the next seed.
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

/// Host memory for copies of an [`EmulatedDevice`], which are complete as soon as they are queued. Kernels
/// reach it at its own address, as they reach pinned memory on a GPU.
#[derive(Debug)]
pub struct Staging(EmulatedBuffer);

impl AsRef<[u8]> for Staging {
    fn as_ref(&self) -> &[u8] {
        let Buffer { address, bytes, .. } = self.0.buffer;
        let start = std::ptr::with_exposed_provenance(address as usize);
        // SAFETY: the buffer is there until this is dropped; the device does not hand it to anyone else.
        // Whoever lets a kernel write there waits for it before reading, as with a GPU.
        unsafe { std::slice::from_raw_parts(start, bytes) }
    }
}

impl AsMut<[u8]> for Staging {
    fn as_mut(&mut self) -> &mut [u8] {
        let Buffer { address, bytes, .. } = self.0.buffer;
        let start = std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
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
    /// Everything before an event has ended when the event is recorded.
    type Event = ();

    fn name(&self) -> &'static str {
        "emulated"
    }

    /// The arithmetic of 16-bit products is an H100's, whatever the machine.
    fn fingerprint(&self) -> String {
        "emulated/9.0".into()
    }

    /// An H100's limits: the plans that are tried are then those of the device whose arithmetic this is.
    fn limits(&self) -> DeviceLimits {
        let capability = if self.portable { (10, 0) } else { (9, 0) };
        let num_sms = if self.sms == 0 { DeviceLimits::H100.num_sms } else { self.sms };
        DeviceLimits { capability, num_sms, ..DeviceLimits::H100 }
    }

    fn ordinal(&self) -> u32 {
        self.ordinal
    }

    fn stream(&self) {}

    fn open_stream(&self) -> Result<()> {
        self.count(|c| &c.made);
        Ok(())
    }

    unsafe fn stream_from(&self, _: memory::Stream) {}

    fn handle(&self, (): ()) -> memory::Stream {
        // SAFETY: there is one stream, and nobody looks at its handle.
        unsafe { memory::Stream::from_raw(0) }
    }

    fn event(&self) -> Result<()> {
        self.count(|c| &c.made);
        Ok(())
    }

    fn record(&self, (): &(), (): ()) -> Result<()> {
        Ok(())
    }

    fn stream_waits(&self, (): (), (): &()) -> Result<()> {
        Ok(())
    }

    fn reached(&self, (): &()) -> Result<bool> {
        Ok(true)
    }

    fn wait_for(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn on(&self, (): &()) {}

    /// Launches have ended when they return.
    fn wait(&self, (): ()) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<EmulatedBuffer> {
        self.count(|c| &c.made);
        let buffer = self.lock().alloc(bytes).map_err(failed)?;
        Ok(EmulatedBuffer { device: self.clone(), buffer })
    }

    fn address(&self, buffer: &EmulatedBuffer) -> u64 {
        buffer.buffer.address()
    }

    fn staging(&self, bytes: usize) -> Result<Staging> {
        Ok(Staging(self.alloc(bytes)?))
    }

    unsafe fn copy_rows(&self, (): (), copy: &CopyRows) -> Result<()> {
        if copy.is_empty() {
            return Ok(());
        }
        self.count(|c| &c.copies);
        let mut device = self.lock();
        let (mut row, bytes) = (Vec::new(), copy.row_bytes);
        for i in 0..copy.rows {
            let [from, to] = [copy.from, copy.to].map(|side| side.address + (i * side.pitch) as u64);
            match copy.from.memory {
                Memory::Host => {
                    let start = std::ptr::with_exposed_provenance(from as usize);
                    // SAFETY: the caller's promise.
                    row.splice(.., unsafe { std::slice::from_raw_parts(start, bytes) }.iter().copied());
                }
                Memory::Device(_) => {
                    row.splice(.., device.bytes(from, bytes).map_err(failed)?.iter().copied());
                }
            }
            match copy.to.memory {
                Memory::Host => {
                    let start = std::ptr::with_exposed_provenance_mut(to as usize);
                    // SAFETY: the caller's promise.
                    unsafe { std::slice::from_raw_parts_mut(start, bytes) }.copy_from_slice(&row);
                }
                Memory::Device(_) => device.bytes_mut(to, bytes).map_err(failed)?.copy_from_slice(&row),
            }
        }
        Ok(())
    }

    /// Copies are done when they are queued.
    fn is_pinned(&self, _: &Span<'_>) -> bool {
        !self.unpinned
    }

    unsafe fn queue_write(&self, (): (), buffer: &EmulatedBuffer, at: usize, bytes: &[u8]) -> Result<()> {
        self.count(|c| &c.copies);
        self.lock().write(buffer.buffer, at, bytes).map_err(failed)
    }

    unsafe fn queue_read(&self, (): (), buffer: &EmulatedBuffer, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.count(|c| &c.copies);
        self.lock().read(buffer.buffer, at, bytes).map_err(failed)
    }

    fn kernel<P: Params>(&self, name: &'static str) -> Result<Kernel<P>> {
        self.count(|c| &c.made);
        let Some((_, raw)) = kernels().into_iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = kernels().into_iter().map(|(name, _)| name).collect();
            let wanted = format!("one of {}", known.join(", "));
            return Err(Error::unsupported("kernel", wanted, format!("\"{name}\""), "name one of those"));
        };
        // SAFETY: made by KERNEL; that its parameters are a `P` is compared, by size, at launch.
        Ok(unsafe { Kernel::new(raw) })
    }

    unsafe fn fill(&self, (): (), address: u64, words: usize, value: u32) -> Result<()> {
        let mut device = self.lock();
        let bytes = device.bytes_mut(address, 4 * words).map_err(failed)?;
        bytes.as_chunks_mut().0.iter_mut().for_each(|word| *word = value.to_ne_bytes());
        Ok(())
    }

    unsafe fn launch<P: Params>(&self, (): (), kernel: &Kernel<P>, grid: &Grid, params: &P) -> Result<()> {
        let config = self.config(grid);
        if kernel.name().contains("matmul") {
            self.count(|c| &c.products);
        }
        if kernel.waits_for_peers() {
            // A statement of its own, at whose end the lock is given back.
            let launch = self.lock().prepare_for_peers(kernel, params, &config);
            // SAFETY: the caller's promise, as for a kernel that runs on a GPU.
            return unsafe { launch.map_err(failed)?.run() }.map_err(failed);
        }
        self.lock().launch_in_turn(kernel, params, &config).map_err(failed)
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
            for precision in [
                Precision::Bf16,
                Precision::F16,
                Precision::W8a8(dtype),
                Precision::W8a16(dtype),
                Precision::Fp8(dtype),
            ] {
                let packed = precision.packed_tiles().iter().map(|tile| tile.kernel);
                for kernel in precision.kernels().chain(packed).chain([precision.stager()]) {
                    assert!(known.contains(&kernel), "{kernel} in {known:?}");
                }
            }
        }
    }
}
