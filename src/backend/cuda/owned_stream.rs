//! Streams that this library opens.

use super::device::CudaDevice;
use super::stream::CudaStream;
use crate::error::Result;
use cudarc::driver::result;

/// A stream that is destroyed when dropped. It and the default stream do not wait for each other.
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

    /// Its handle, valid while this lives.
    pub fn handle(&self) -> CudaStream {
        self.raw
    }
}

impl Drop for OwnedStream {
    fn drop(&mut self) {
        // Queued work ends first; where that takes too long, the device is lost.
        let _ = self.device.wait_own_stream(self.raw);
        self.device.disowns(self.raw);
        // SAFETY: made by `open`, destroyed once.
        let _ = self.device.call(String::new, || unsafe { result::stream::destroy(self.raw.0) });
    }
}
