//! Marks on a stream, with the time between two of them.

use super::device::CudaDevice;
use super::stream::CudaStream;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::sync::{Mutex, PoisonError};

/// A CUDA event: a mark on a stream.
#[derive(Debug)]
pub struct Event {
    device: CudaDevice,
    raw: sys::CUevent,
    /// The stream that it was put on last.
    on: Mutex<Option<CudaStream>>,
}

// SAFETY: a handle, which the driver takes from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// # Errors
    /// `Device`.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// An event without a time: it only tells whether the device has come to it, which costs the device less.
    pub(super) fn untimed(device: &CudaDevice) -> Result<Self> {
        Self::with(device, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    fn with(device: &CudaDevice, flags: sys::CUevent_flags) -> Result<Self> {
        let raw = device.call(|| "an event".into(), || result::event::create(flags))?;
        Ok(Event { device: device.clone(), raw, on: Mutex::default() })
    }

    /// Puts the mark behind what is on the stream; an earlier one is forgotten.
    ///
    /// # Errors
    /// `Device`.
    pub fn record(&self, stream: CudaStream) -> Result<()> {
        // SAFETY: an event and a stream of this context.
        let record = || unsafe { result::event::record(self.raw, stream.0) };
        self.device.call(|| "an event's record".into(), record)?;
        *self.on.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(())
    }

    /// Whether the device has come to the mark.
    ///
    /// # Errors
    /// `Device`, of what is before the mark.
    pub(super) fn reached(&self) -> Result<bool> {
        // SAFETY: as above.
        let ask = || match unsafe { sys::cuEventQuery(self.raw) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => answer.result().map(|()| true),
        };
        self.device.call(|| format!("a mark on {}", self.device.info().name), ask)
    }

    /// Lets what is queued on the stream from now on begin only when the device has come to the mark.
    ///
    /// # Errors
    /// `Device`.
    pub(super) fn holds(&self, stream: CudaStream) -> Result<()> {
        // SAFETY: as above.
        let wait = || unsafe { sys::cuStreamWaitEvent(stream.0, self.raw, 0) }.result();
        self.device.call(|| format!("a stream of {} that waits", self.device.info().name), wait)
    }

    /// Waits until the device has come to the mark.
    ///
    /// # Errors
    /// As [`CudaDevice::wait`](crate::backend::device::KernelDevice::wait), of what is before the mark.
    pub fn wait(&self) -> Result<()> {
        let what = || {
            let on = *self.on.lock().unwrap_or_else(PoisonError::into_inner);
            let suspect = on.map_or("no launch".into(), |stream| self.device.suspect(stream));
            format!("{}, after {suspect}", self.device.info().name)
        };
        // SAFETY: as above.
        self.device.poll(what, || unsafe { sys::cuEventQuery(self.raw) })
    }

    /// Seconds from this mark to the `later` one, as the device counts them (to half a microsecond). Waits
    /// for the later one.
    ///
    /// # Errors
    /// `Device`, also where one of them was not recorded.
    pub fn seconds_to(&self, later: &Event) -> Result<f64> {
        later.wait()?;
        // SAFETY: as above.
        let milliseconds = self.device.call(
            || "the time between two events".into(),
            || unsafe { result::event::elapsed(self.raw, later.raw) },
        )?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        let _ = self.device.call(String::new, || unsafe { result::event::destroy(self.raw) });
    }
}
