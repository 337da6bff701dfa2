//! Global memory of the emulated device.

use std::alloc::{Layout, alloc, dealloc};
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::Arc;

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

#[derive(Debug)]
struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: owned memory; whoever holds the device decides who touches it.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated by `Memory::new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Memory as a launch reaches it: there for as long as this is, though the device frees it meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Reachable {
    allocation: Arc<Allocation>,
    pub bytes: usize,
    pub writable: bool,
}

impl Reachable {
    pub fn address(&self) -> u64 {
        // SAFETY: the guard is inside of the allocation.
        unsafe { self.allocation.start.add(GUARD) }.as_ptr().expose_provenance() as u64
    }
}

/// Memory that kernels read and write through its address, and its device copies from and to.
#[derive(Debug)]
pub(super) struct Memory(Reachable);

impl Deref for Memory {
    type Target = Reachable;

    fn deref(&self) -> &Reachable {
        &self.0
    }
}

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
        Some(Memory(Reachable { allocation: Arc::new(Allocation { start, layout }), bytes, writable }))
    }

    pub fn reachable(&self) -> Reachable {
        self.0.clone()
    }

    /// # Panics
    /// Where the range is not within the memory; likewise [`Memory::bytes_mut`].
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        // SAFETY: inside of the allocation, which `new` has initialised. No launch writes there while the
        // device is borrowed: one that runs meanwhile is `PeerLaunch::run`, whose caller promises that.
        unsafe {
            std::slice::from_raw_parts(self.allocation.start.add(GUARD + range.start).as_ptr(), range.len())
        }
    }

    pub fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.bytes, "{range:?} of {} bytes", self.bytes);
        // SAFETY: as above, and borrowed for writing.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.allocation.start.add(GUARD + range.start).as_ptr(),
                range.len(),
            )
        }
    }
}
