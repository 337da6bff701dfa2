//! Global memory of the emulated device.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// Alignment of a buffer, as CUDA's allocations have it; as much unused memory lies before and behind.
const GUARD: usize = 256;

/// A buffer of a device; only that device knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    pub(super) number: u32,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Buffer {
    /// Device address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The address for the parameters of a kernel.
    pub fn pointer<T>(&self) -> *mut T {
        self.address as *mut T
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory that kernels read and write through its address.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    pub bytes: usize,
    pub writable: bool,
}

// SAFETY: owned memory; whoever holds the device decides who touches it.
unsafe impl Send for Memory {}
// SAFETY: shared references only read.
unsafe impl Sync for Memory {}

impl Memory {
    /// None where this machine has not that much memory.
    pub fn new(bytes: usize, writable: bool) -> Option<Self> {
        let size = bytes.checked_add(2 * GUARD)?;
        let layout = Layout::from_size_align(size, GUARD).ok()?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        // Not zeros, so that what a kernel forgets to write shows.
        // SAFETY: the whole allocation.
        unsafe { start.write_bytes(0xCB, size) };
        Some(Memory { start, layout, bytes, writable })
    }

    pub fn address(&self) -> u64 {
        // SAFETY: the guard is inside of the allocation.
        unsafe { self.start.add(GUARD) }.as_ptr() as u64
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: initialised by `new`; no launch runs while the device is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.add(GUARD).as_ptr(), self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(GUARD).as_ptr(), self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
