//! Spans of host or device memory, and the stream that device work is queued on.
//!
//! A [`Span`] is to memory of any kind what a slice is to host memory. Host slices become spans safely; a
//! span of device memory is made from an address, for which the caller vouches.

use crate::error::{Error, Result};
use bytemuck::Pod;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// The memory that bytes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Memory {
    /// Host memory, pinned or not.
    Host,
    /// Memory of the device with this ordinal.
    Device(u32),
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Host => f.write_str("host memory"),
            Memory::Device(ordinal) => write!(f, "memory of device {ordinal}"),
        }
    }
}

/// A queue of device work: the handle of a `CUstream` or `cudaStream_t` of the backend's context. Work in
/// host memory has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stream(u64);

impl Stream {
    /// No stream: for host memory, where functions return when their work is done.
    pub const NONE: Stream = Stream(0);

    /// The stream with this handle. 0 is the context's default stream, as in CUDA.
    ///
    /// # Safety
    /// The handle must be a stream of the context of the backend that gets it, for as long as it is used.
    pub unsafe fn from_raw(handle: u64) -> Self {
        // CUDA's 0 is stored as 1, CU_STREAM_LEGACY, which names the same stream: here 0 means no stream.
        Stream(if handle == 0 { 1 } else { handle })
    }

    /// The handle.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Whether there is no stream.
    pub fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Bytes that may be read, in memory of any kind. Spans are equal where they are the same bytes of the same
/// memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span<'a> {
    address: u64,
    len: usize,
    memory: Memory,
    borrowed: PhantomData<&'a [u8]>,
}

/// Bytes that may be written, in memory of any kind; as long as the span lives nothing else uses them.
pub struct SpanMut<'a> {
    address: u64,
    len: usize,
    memory: Memory,
    borrowed: PhantomData<&'a mut [u8]>,
}

macro_rules! common {
    ($span:ident) => {
        impl $span<'_> {
            /// Length in bytes.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether there are no bytes; the address then means nothing.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// The memory that the bytes are in.
            pub fn memory(&self) -> Memory {
                self.memory
            }

            /// Address of the first byte.
            pub fn address(&self) -> u64 {
                self.address
            }

            /// Checks the length. `what` names the span in the error.
            ///
            /// # Errors
            /// `Shape` where it is not `bytes`.
            pub fn check_len(&self, what: &str, bytes: usize) -> Result<()> {
                if self.len == bytes {
                    return Ok(());
                }
                let (wanted, got) = (format!("{bytes} bytes"), format!("{} bytes", self.len));
                Err(Error::shape(what, wanted, got, "pass a buffer of the answer's size"))
            }

            /// Checks the memory; empty spans pass. `what` names the span in the error.
            ///
            /// # Errors
            /// `Shape` where the bytes are in another memory.
            pub fn check_memory(&self, what: &str, memory: Memory) -> Result<()> {
                if self.memory == memory || self.is_empty() {
                    return Ok(());
                }
                let fix = "rows and buffers of one step lie in one memory";
                Err(Error::shape(what, memory, self.memory, fix))
            }

            /// Checks that the address is a multiple of `to`; empty spans pass. `what` names the span in the
            /// error.
            ///
            /// # Errors
            /// `Shape` where it is not.
            pub fn check_aligned(&self, what: &str, to: usize) -> Result<()> {
                if self.is_empty() || self.address.is_multiple_of(to as u64) {
                    return Ok(());
                }
                let (wanted, got) =
                    (format!("an address that is a multiple of {to}"), format!("{:#x}", self.address));
                Err(Error::shape(what, wanted, got, "align the buffer to its elements"))
            }

            /// True where both are in one memory and have a byte in common.
            pub fn overlaps(&self, other: Span<'_>) -> bool {
                self.memory == other.memory
                    && !self.is_empty()
                    && !other.is_empty()
                    && self.address < other.address + other.len as u64
                    && other.address < self.address + self.len as u64
            }
        }

        impl fmt::Debug for $span<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} bytes at {:#x} of {}", self.len, self.address, self.memory)
            }
        }

        // SAFETY: it is used as a slice would be.
        unsafe impl Send for $span<'_> {}
        // SAFETY: as above.
        unsafe impl Sync for $span<'_> {}
    };
}

common!(Span);
common!(SpanMut);

impl<'a> Span<'a> {
    /// No bytes, in host memory.
    pub const EMPTY: Span<'static> = Span { address: 0, len: 0, memory: Memory::Host, borrowed: PhantomData };

    /// A slice of host memory.
    pub fn host<T: Pod>(elements: &'a [T]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let address = bytes.as_ptr().expose_provenance() as u64;
        Span { address, len: bytes.len(), memory: Memory::Host, borrowed: PhantomData }
    }

    /// `len` bytes from `address` on.
    ///
    /// # Safety
    /// The bytes must be valid in that memory and not written for `'a`, and until all work that reads them
    /// and is queued on a stream has ended.
    pub unsafe fn from_raw(memory: Memory, address: u64, len: usize) -> Self {
        Span { address, len, memory, borrowed: PhantomData }
    }

    /// The bytes, where they are in host memory.
    pub fn as_host(&self) -> Option<&'a [u8]> {
        if self.len == 0 {
            return Some(&[]);
        }
        let start = std::ptr::with_exposed_provenance(self.address as usize);
        // SAFETY: the span was made from a slice borrowed for `'a`, or by `from_raw`, whose caller promises
        // the same.
        (self.memory == Memory::Host).then(|| unsafe { std::slice::from_raw_parts(start, self.len) })
    }

    /// The elements, where they are in host memory.
    ///
    /// # Errors
    /// `Shape` naming `what` where it is device memory, is not aligned, or ends within an element.
    pub fn host_elements<T: Pod>(&self, what: &str) -> Result<&'a [T]> {
        self.check_memory(what, Memory::Host)?;
        let bytes = self.as_host().unwrap_or_default();
        if bytes.is_empty() {
            return Ok(&[]);
        }
        bytemuck::try_cast_slice(bytes).map_err(|_| not_elements::<T>(what, self.address, self.len))
    }

    /// Bytes `range` of the span.
    ///
    /// # Panics
    /// When `range` ends beyond it.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        Span { address: self.address + range.start as u64, len: range.len(), ..*self }
    }
}

impl<'a> SpanMut<'a> {
    /// No bytes, in host memory.
    pub const EMPTY: SpanMut<'static> =
        SpanMut { address: 0, len: 0, memory: Memory::Host, borrowed: PhantomData };

    /// A slice of host memory.
    pub fn host<T: Pod>(elements: &'a mut [T]) -> Self {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(elements);
        let address = bytes.as_mut_ptr().expose_provenance() as u64;
        SpanMut { address, len: bytes.len(), memory: Memory::Host, borrowed: PhantomData }
    }

    /// `len` bytes from `address` on.
    ///
    /// # Safety
    /// They are in that memory, may be written and are used by nobody else for `'a`; where work on them is
    /// queued on a stream, until that work has ended. In host memory all of them must have been written
    /// before.
    pub unsafe fn from_raw(memory: Memory, address: u64, len: usize) -> Self {
        SpanMut { address, len, memory, borrowed: PhantomData }
    }

    /// The same bytes, for a shorter lifetime.
    pub fn reborrow(&mut self) -> SpanMut<'_> {
        SpanMut { ..*self }
    }

    /// The same bytes, for reading.
    pub fn as_span(&self) -> Span<'_> {
        Span { address: self.address, len: self.len, memory: self.memory, borrowed: PhantomData }
    }

    /// The same bytes, only to be read from now on.
    pub fn into_span(self) -> Span<'a> {
        Span { address: self.address, len: self.len, memory: self.memory, borrowed: PhantomData }
    }

    /// The bytes, where they are in host memory.
    pub fn into_host(self) -> Option<&'a mut [u8]> {
        if self.len == 0 {
            return Some(&mut []);
        }
        let start = std::ptr::with_exposed_provenance_mut(self.address as usize);
        // SAFETY: the span was made from a slice borrowed exclusively for `'a`, or by `from_raw`, whose
        // caller promises the same; and this call consumes the span.
        (self.memory == Memory::Host).then(|| unsafe { std::slice::from_raw_parts_mut(start, self.len) })
    }

    /// The elements, where they are in host memory.
    ///
    /// # Errors
    /// As [`Span::host_elements`].
    pub fn into_host_elements<T: Pod>(self, what: &str) -> Result<&'a mut [T]> {
        self.check_memory(what, Memory::Host)?;
        let (address, len) = (self.address, self.len);
        let bytes = self.into_host().unwrap_or_default();
        if bytes.is_empty() {
            return Ok(&mut []);
        }
        bytemuck::try_cast_slice_mut(bytes).map_err(|_| not_elements::<T>(what, address, len))
    }

    /// Bytes `range` of the span; the others are given up.
    ///
    /// # Panics
    /// When `range` ends beyond it.
    #[must_use]
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        SpanMut { address: self.address + range.start as u64, len: range.len(), ..self }
    }

    /// The bytes before `at`, and those from `at` on.
    ///
    /// # Panics
    /// When `at` is beyond them.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len, "byte {at} of {}", self.len);
        let SpanMut { address, len, memory, borrowed } = self;
        (
            SpanMut { address, len: at, memory, borrowed },
            SpanMut { address: address + at as u64, len: len - at, memory, borrowed },
        )
    }

    /// Takes the first `bytes` bytes; the span keeps the others.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn take(&mut self, bytes: usize) -> Self {
        let (taken, rest) = std::mem::replace(self, SpanMut::EMPTY).split_at(bytes);
        *self = rest;
        taken
    }
}

impl<'a, T: Pod> From<&'a [T]> for Span<'a> {
    fn from(elements: &'a [T]) -> Self {
        Span::host(elements)
    }
}

impl<'a, T: Pod> From<&'a mut [T]> for SpanMut<'a> {
    fn from(elements: &'a mut [T]) -> Self {
        SpanMut::host(elements)
    }
}

fn not_elements<T>(what: &str, address: u64, len: usize) -> Error {
    let wanted = format!("whole elements of {} bytes, aligned to {}", size_of::<T>(), align_of::<T>());
    Error::shape(what, wanted, format!("{len} bytes at {address:#x}"), "align the buffer to its elements")
}

/// Memory that its owner keeps; freed when dropped.
pub trait Allocation: Send {
    fn span(&self) -> Span<'_>;

    fn span_mut(&mut self) -> SpanMut<'_>;
}

/// Zeroed host memory, aligned to 256 bytes.
#[derive(Default)]
pub struct HostMemory {
    lines: Vec<Line>,
    bytes: usize,
}

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(256))]
struct Line([u8; 256]);

impl HostMemory {
    /// Allocates `bytes` bytes. `what` names them in the error.
    ///
    /// # Errors
    /// `Shape` where this machine does not have that much memory.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        let too_large = |_| {
            let (wanted, fix) = ("a buffer that fits this machine's memory", "send fewer rows in one step");
            Error::shape(what, wanted, format!("{bytes} bytes"), fix)
        };
        let n = bytes.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(n).map_err(too_large)?;
        lines.resize(n, Line([0; 256]));
        Ok(HostMemory { lines, bytes })
    }

    pub fn as_slice(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.bytes]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.bytes]
    }
}

impl Allocation for HostMemory {
    fn span(&self) -> Span<'_> {
        Span::host(self.as_slice())
    }

    fn span_mut(&mut self) -> SpanMut<'_> {
        SpanMut::host(self.as_mut_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_slices_come_back_as_they_were() {
        let mut values = [1u32, 2, 3, 4];
        let span = Span::host(&values[..]);
        assert_eq!((span.len(), span.memory()), (16, Memory::Host));
        assert_eq!(span.part(4..12).host_elements::<u32>("values").unwrap(), [2, 3]);
        let (low, high) = SpanMut::host(&mut values[..]).split_at(8);
        assert!(!low.overlaps(high.as_span()) && low.overlaps(low.as_span()));
        high.into_host_elements::<u32>("values").unwrap()[0] = 7;
        assert_eq!(values, [1, 2, 7, 4]);
        assert_eq!(Span::EMPTY.as_host(), Some(&[][..]));
    }

    #[test]
    fn foreign_misaligned_and_cut_elements_are_refused_by_name() {
        let values = [0u64; 4];
        let span = Span::host(&values[..]);
        let said = |span: Span<'_>| span.host_elements::<u64>("ids").unwrap_err().to_string();
        assert!(said(span.part(4..20)).contains("ids: wanted whole elements of 8 bytes, aligned to 8"));
        assert!(said(span.part(0..20)).contains("got 20 bytes at"));
        // SAFETY: nobody reads it.
        let device = unsafe { Span::from_raw(Memory::Device(1), 0x1000, 64) };
        assert_eq!(device.as_host(), None);
        assert!(said(device).contains("ids: wanted host memory, got memory of device 1"));
        assert!(
            device.check_len("ids", 32).unwrap_err().to_string().contains("wanted 32 bytes, got 64 bytes")
        );
    }

    #[test]
    fn kept_memory_is_aligned() {
        let mut memory = HostMemory::new(1000, "test").unwrap();
        assert_eq!((memory.span().len(), memory.span().address() % 256), (1000, 0));
        memory.as_mut_slice()[999] = 1;
        assert!(HostMemory::new(usize::MAX / 2, "test").is_err());
        assert_eq!(HostMemory::new(0, "test").unwrap().span().len(), 0);
    }
}
