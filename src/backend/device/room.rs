//! Memory that a loaded shard keeps from call to call, and memory that heads keep.

use super::KernelDevice;
use crate::error::Result;
use crate::memory::{Allocation, Memory, Span, SpanMut};

/// Memory that grows to what the largest call needed.
pub(super) struct GrowBuffer<B> {
    memory: Option<(B, usize)>,
    /// A step that may use this memory is being captured.
    capturing: bool,
    /// A CUDA graph has its address: where the buffer must grow, this memory moves to `of_graphs` and stays
    /// allocated.
    stays: bool,
    of_graphs: Vec<B>,
}

impl<B> Default for GrowBuffer<B> {
    fn default() -> Self {
        GrowBuffer { memory: None, capturing: false, stays: false, of_graphs: Vec::new() }
    }
}

impl<B> GrowBuffer<B> {
    /// At least `bytes` bytes; what was there is lost where it grows.
    ///
    /// # Errors
    /// The error of `alloc`.
    pub fn at_least(&mut self, bytes: usize, alloc: impl FnOnce(usize) -> Result<B>) -> Result<&mut B> {
        if self.memory.as_ref().is_none_or(|(_, size)| *size < bytes) {
            // The old memory goes first: both need not fit at once.
            let old = self.memory.take();
            if std::mem::replace(&mut self.stays, self.capturing) {
                self.of_graphs.extend(old.map(|(memory, _)| memory));
            }
            self.memory = Some((alloc(bytes)?, bytes));
        }
        Ok(self.get())
    }

    /// What [`GrowBuffer::at_least`] returned last.
    ///
    /// # Panics
    /// Where that was never called.
    pub fn get(&mut self) -> &mut B {
        &mut self.memory.as_mut().expect("made before").0
    }

    /// Sets whether steps that may use this memory are captured from now on.
    pub fn capture(&mut self, capturing: bool) {
        self.capturing = capturing;
        self.stays |= capturing;
    }
}

/// Device memory of a head.
pub(super) struct DeviceMemory<D: KernelDevice> {
    device: D,
    buffer: D::Buffer,
    bytes: usize,
}

impl<D: KernelDevice> DeviceMemory<D> {
    /// `bytes` zeros.
    ///
    /// # Errors
    /// As [`KernelDevice::alloc`].
    pub fn new(device: &D, bytes: usize) -> Result<Self> {
        let words = bytes.div_ceil(4);
        let buffer = device.alloc(4 * words)?;
        // SAFETY: the whole of the buffer, and a wait.
        unsafe { device.clear(device.stream(), device.address(&buffer), words)? };
        device.wait(device.stream())?;
        Ok(DeviceMemory { device: device.clone(), buffer, bytes })
    }
}

impl<D: KernelDevice> Allocation for DeviceMemory<D> {
    fn span(&self) -> Span<'_> {
        let memory = Memory::Device(self.device.ordinal());
        // SAFETY: the buffer's own bytes, which are borrowed as long as the span is.
        unsafe { Span::from_raw(memory, self.device.address(&self.buffer), self.bytes) }
    }

    fn span_mut(&mut self) -> SpanMut<'_> {
        let memory = Memory::Device(self.device.ordinal());
        // SAFETY: as above, and borrowed alone.
        unsafe { SpanMut::from_raw(memory, self.device.address(&self.buffer), self.bytes) }
    }
}

/// Pinned host memory of a head.
pub(super) struct PinnedMemory<D: KernelDevice>(D::Staging);

impl<D: KernelDevice> PinnedMemory<D> {
    /// `bytes` zeros.
    ///
    /// # Errors
    /// As [`KernelDevice::staging`].
    pub fn new(device: &D, bytes: usize) -> Result<Self> {
        let mut staging = device.staging(bytes)?;
        staging.as_mut().fill(0);
        Ok(PinnedMemory(staging))
    }
}

impl<D: KernelDevice> Allocation for PinnedMemory<D> {
    fn span(&self) -> Span<'_> {
        Span::host(self.0.as_ref())
    }

    fn span_mut(&mut self) -> SpanMut<'_> {
        SpanMut::host(self.0.as_mut())
    }
}
