//! Counters that the device increments itself, whoever replays what was queued.

use super::{Grid, KernelDevice};
use crate::error::Result;
use crate::exchange::{Fault, StreamCounters};
use crate::memory::Stream;
use crate::params::ReadStreamParams;
use std::sync::{Mutex, PoisonError};

/// One word counts how often the device has come to the beginning, the other how often to the end.
const WORDS: usize = 2;
/// Threads of a block of `kernels/read_stream_sm80.cu`.
const THREADS: u32 = 512;
/// Bytes that a thread of the kernel reads at once.
const VECTOR: usize = 16;

pub(super) struct Counters<D: KernelDevice> {
    device: D,
    /// Adds the sum of what it reads to a word: reading the words 1, 0, 0, 0 increments it.
    count: D::Kernel<ReadStreamParams>,
    one: D::Buffer,
    words: D::Buffer,
    /// Copies of the words, which the device writes.
    copies: Mutex<D::Staging>,
    /// Address of the copies.
    at: usize,
}

impl<D: KernelDevice> Counters<D> {
    /// # Errors
    /// `Device` where there is no memory; `Unsupported` where the device does not run the kernel.
    pub fn new(device: &D) -> Result<Self> {
        let (one, words) = (device.alloc(VECTOR)?, device.alloc(VECTOR)?);
        let mut vector = [0; VECTOR];
        device.write(&words, 0, &vector)?;
        vector[0] = 1;
        device.write(&one, 0, &vector)?;
        let mut copies = device.staging(4 * WORDS)?;
        copies.as_mut().fill(0);
        let at = copies.as_mut().as_mut_ptr().expose_provenance();
        let (device, count, copies) = (device.clone(), device.kernel("read_stream")?, Mutex::new(copies));
        Ok(Counters { device, count, one, words, copies, at })
    }

    /// Increments a word, and copies it to the host.
    fn count(&self, word: usize, stream: Stream) -> std::result::Result<(), Fault> {
        let data = self.device.address(&self.one) as *const _;
        let out = (self.device.address(&self.words) + 4 * word as u64) as *mut _;
        let params = ReadStreamParams { data, vectors: 1, out };
        let grid = Grid { blocks: 1, threads: THREADS, shared_bytes: 0 };
        // Where the lock is poisoned the copies are still good.
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = &mut copies.as_mut()[4 * word..4 * (word + 1)];
        // SAFETY: the promise of whoever made the handle; buffers that live as long as the work, by the
        // promise of whoever begins it. The host reads the copy by volatile words only.
        let queued = unsafe {
            let stream = self.device.stream_from(stream);
            self.device
                .launch(stream, &self.count, &grid, &params)
                .and_then(|()| self.device.queue_read(stream, &self.words, 4 * word, copy))
        };
        queued.map_err(|error| super::marks::broken(&error))
    }
}

impl<D: KernelDevice> StreamCounters for Counters<D> {
    fn begin(&self, stream: Stream) -> std::result::Result<(), Fault> {
        self.count(0, stream)
    }

    fn end(&self, stream: Stream) -> std::result::Result<(), Fault> {
        self.count(1, stream)
    }

    fn counted(&self) -> (u32, u32) {
        let words = std::ptr::with_exposed_provenance::<u32>(self.at);
        // The end first: a step that runs between the two questions has then begun, and not ended too early.
        // SAFETY: two aligned words that live as long as this. The device writes each at once.
        let (ended, begun) = unsafe { (words.add(1).read_volatile(), words.read_volatile()) };
        (begun, ended)
    }
}
