//! Pinned (page-locked) host memory, which the device reads and writes itself: a copy from or to it is queued
//! like a launch. A copy from or to other host memory goes through pinned memory of the driver's, and the
//! caller waits for it.

use super::device::CudaDevice;
use crate::error::Result;
use cudarc::driver::result;
use std::ptr::NonNull;

/// Freed when dropped. Aligned to a page.
#[derive(Debug)]
pub struct Pinned {
    device: CudaDevice,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: owned memory.
unsafe impl Send for Pinned {}
// SAFETY: shared references only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `bytes` zeros.
    pub(super) fn new(device: CudaDevice, bytes: usize) -> Result<Self> {
        let what = || format!("{bytes} bytes of pinned host memory for {}", device.info().name);
        // The driver allocates no less than a byte. No flags: memory that the processor caches, since it
        // reads logits there. SAFETY: it is written below before anybody reads it.
        let start = device.call(what, || unsafe { result::malloc_host(bytes.max(1), 0) })?;
        let start = NonNull::new(start.cast::<u8>()).expect("the driver said that it succeeded");
        // SAFETY: the whole of the allocation.
        unsafe { start.write_bytes(0, bytes) };
        device.pins(start.as_ptr().expose_provenance() as u64, bytes);
        Ok(Pinned { device, start, bytes })
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: all of it was written to; copies of the device are the queueing function's promise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // As with device memory: the driver would wait without a deadline.
        let _ = self.device.wait_own_streams();
        let what =
            format!("{} bytes of pinned host memory for {} freed", self.bytes, self.device.info().name);
        let start = self.start.as_ptr() as usize;
        self.device.unpins(start as u64);
        // SAFETY: allocated by `new`, freed once; nothing that was queued on it is left (the queueing
        // function's promise).
        let _ = self.device.call_in_time(what, move || unsafe { result::free_host(start as *mut _) });
    }
}
