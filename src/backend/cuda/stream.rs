//! Where work is queued: an engine's streams, and our own.

use super::device::CudaDevice;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// A stream of a device's context, by its handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaStream(pub(super) sys::CUstream);

// SAFETY: a handle, which the driver takes from any thread.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    /// An engine's stream: its `CUstream`, which is also what a `cudaStream_t` is. Null is the context's default stream.
    ///
    /// # Safety
    /// It belongs to the context of every device that it is used with, and lives as long as it is used.
    pub unsafe fn from_raw(handle: *mut c_void) -> Self {
        CudaStream(handle.cast())
    }

    /// The `CUstream`.
    pub fn as_raw(self) -> *mut c_void {
        self.0.cast()
    }
}

/// A stream that ends when dropped. It does not wait for the default stream, nor that for it.
#[derive(Debug)]
pub struct OwnedStream {
    device: CudaDevice,
    raw: CudaStream,
}

impl OwnedStream {
    pub(super) fn open(device: CudaDevice) -> Result<Self> {
        let open = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let raw = CudaStream(device.call(|| format!("a stream of {}", device.info().name), open)?);
        device.owns(raw);
        Ok(OwnedStream { device, raw })
    }

    /// Its handle, which is good while this lives.
    pub fn handle(&self) -> CudaStream {
        self.raw
    }
}

impl Drop for OwnedStream {
    fn drop(&mut self) {
        // What is queued ends first, or the device is lost.
        let _ = self.device.settle_one(self.raw);
        self.device.disowns(self.raw);
        // SAFETY: made by `open`, destroyed once.
        let _ = self.device.call(String::new, || unsafe { result::stream::destroy(self.raw.0) });
    }
}
