//! Where work is queued: streams by their handles, an engine's and our own.

use cudarc::driver::sys;
use std::ffi::c_void;

/// A stream of a device's context, by its handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaStream(pub(super) sys::CUstream);

// SAFETY: a handle, which the driver takes from any thread.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

impl CudaStream {
    /// An engine's stream: its `CUstream`, which is also what a `cudaStream_t` is. Null is the context's
    /// default stream.
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
