//! A device's events as the marks that transports of device memory wait for.

use super::KernelDevice;
use super::counters::Counters;
use super::peers::Peers;
use crate::error::Error;
use crate::exchange::peers::PeerExchange;
use crate::exchange::{Fault, Pending, Scratch, StreamCounters, StreamMarks};
use crate::memory::{Memory, Stream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The marks of one member on the streams of `device`: one event for each mark that is awaited at the same
/// time.
pub fn stream_marks<D: KernelDevice>(device: &D) -> Arc<dyn StreamMarks> {
    Arc::new(Events { device: device.clone(), pending: Mutex::default() })
}

struct Events<D: KernelDevice> {
    device: D,
    /// Events by the number of their mark, and whether somebody still waits for them.
    pending: Mutex<Vec<(Arc<D::Event>, bool)>>,
}

impl<D: KernelDevice> Events<D> {
    fn pending(&self) -> MutexGuard<'_, Vec<(Arc<D::Event>, bool)>> {
        // Where the lock is poisoned the list is still good.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn broken(error: &Error) -> Fault {
    let fix = "make a new exchange and new heads on every rank".into();
    Fault::Broken { problem: error.to_string(), fix }
}

impl<D: KernelDevice> StreamMarks for Events<D> {
    fn memory(&self) -> Memory {
        Memory::Device(self.device.ordinal())
    }

    fn mark(&self, stream: Stream) -> Result<Pending, Fault> {
        // SAFETY: the promise of whoever made the handle.
        let stream = unsafe { self.device.stream_from(stream) };
        let mut pending = self.pending();
        let at = match pending.iter().position(|(_, awaited)| !awaited) {
            Some(at) => at,
            None => {
                pending.push((Arc::new(self.device.event().map_err(|error| broken(&error))?), false));
                pending.len() - 1
            }
        };
        let (event, awaited) = &mut pending[at];
        self.device.record(event, stream).map_err(|error| broken(&error))?;
        *awaited = true;
        Ok(Pending(at as u64))
    }

    fn is_reached(&self, mark: Pending) -> Result<bool, Fault> {
        let at = usize::try_from(mark.0).unwrap_or(usize::MAX);
        let known =
            self.pending().get(at).filter(|(_, awaited)| *awaited).map(|(event, _)| Arc::clone(event));
        let Some(event) = known else {
            let problem =
                format!("wanted a mark that was made here and not waited for, got number {}", mark.0);
            return Err(Fault::Broken { problem, fix: "wait once for each mark".into() });
        };
        self.device.reached(&event).map_err(|error| broken(&error))
    }

    fn give_back(&self, mark: Pending) {
        let at = usize::try_from(mark.0).unwrap_or(usize::MAX);
        if let Some((_, awaited)) = self.pending().get_mut(at) {
            *awaited = false;
        }
    }

    fn counters(&self) -> Result<Arc<dyn StreamCounters>, Fault> {
        let counters = Counters::new(&self.device).map_err(|error| broken(&error))?;
        Ok(Arc::new(counters))
    }

    fn scratch(&self, bytes: usize) -> Result<Box<dyn Scratch>, Fault> {
        let made = self.device.alloc(bytes).and_then(|buffer| Ok((buffer, self.device.open_stream()?)));
        let (buffer, stream) = made.map_err(|error| broken(&error))?;
        Ok(Box::new(DeviceScratch { device: self.device.clone(), buffer, stream }))
    }

    unsafe fn peer_exchange(&self, me: usize, windows: &[u64]) -> Result<Box<dyn PeerExchange>, Fault> {
        // SAFETY: the caller's promise.
        let made = unsafe { Peers::new(&self.device, me, windows) };
        Ok(Box::new(made.map_err(|error| broken(&error))?))
    }

    fn with_context(&self, run: &mut dyn FnMut()) -> Result<(), Fault> {
        self.device.with_context(run).map_err(|error| broken(&error))
    }
}

struct DeviceScratch<D: KernelDevice> {
    device: D,
    buffer: D::Buffer,
    stream: D::OwnedStream,
}

impl<D: KernelDevice> Scratch for DeviceScratch<D> {
    fn address(&self) -> u64 {
        self.device.address(&self.buffer)
    }

    fn stream(&self) -> Stream {
        self.device.handle(self.device.on(&self.stream))
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Fault> {
        let stream = self.device.on(&self.stream);
        self.device.write_on(stream, &self.buffer, 0, bytes).map_err(|error| broken(&error))
    }

    fn read(&self, bytes: &mut [u8]) -> Result<(), Fault> {
        let stream = self.device.on(&self.stream);
        self.device.read_on(stream, &self.buffer, 0, bytes).map_err(|error| broken(&error))
    }
}
