//! What the CUDA and the emulated device have in common: memory and kernels. These run the matmuls of
//! `kernels/`, a whole [`Backend`](super::Backend), and an exchange of device memory between ranks that share
//! a device.
//!
//! ```text
//! describe (Spec) -> plan (crate::plan) -> prepare (Matmul: kernels loaded) -> run (Matmul::run: launches)
//! ```
//!
//! [`DeviceBackend`] is what [`LmHead`](crate::LmHead) drives: it loads a shard, which multiplies rows in
//! device memory in place and copies rows in host memory to the device. [`Matmul`] is the matmul alone.

mod adjustments;
mod backend;
mod capacity;
mod checks;
mod counters;
mod cuts;
mod draws;
mod finish;
mod held;
pub mod hopper;
mod inputs;
mod lists;
mod marks;
mod matmul;
mod pack;
mod partials;
mod passes;
mod peers;
mod room;
mod select;
mod shard;
pub mod shared_device;
mod targets;
mod weights;
mod words;

pub use adjustments::NO_ADJUSTMENTS;
pub use backend::DeviceBackend;
pub use marks::stream_marks;
pub use matmul::{Matmul, MatmulCall, Spec, TargetCall, target_kernel};
pub use partials::NO_PARTIALS;

pub use crate::params::Params;
use matmul::{dtype_code, of_product};

use crate::error::Result;
use crate::memory::{self, Memory, Span};
use crate::plan::DeviceLimits;

/// The most rows of a call that a plan can count; memory is the real limit.
const MAX_ROWS: usize = 1 << 24;

/// The shape of one launch; blocks and threads along x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub blocks: u32,
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// One side of a [`CopyRows`]: rows `pitch` bytes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    pub memory: Memory,
    pub address: u64,
    pub pitch: usize,
}

impl Side {
    /// Rows without gaps, of `pitch` bytes each, from the span's first byte on.
    pub fn of(span: &Span<'_>, pitch: usize) -> Self {
        Side { memory: span.memory(), address: span.address(), pitch }
    }
}

/// `rows` rows of `row_bytes` bytes each, from one place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRows {
    pub to: Side,
    pub from: Side,
    pub row_bytes: usize,
    pub rows: usize,
}

impl CopyRows {
    /// `bytes` bytes without a gap.
    pub fn whole((to, to_address): (Memory, u64), (from, from_address): (Memory, u64), bytes: usize) -> Self {
        let side = |memory, address| Side { memory, address, pitch: bytes };
        CopyRows { to: side(to, to_address), from: side(from, from_address), row_bytes: bytes, rows: 1 }
    }

    /// Whether there is nothing to copy; the addresses then mean nothing.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.row_bytes == 0
    }

    /// The same copy as one row, where neither side has gaps.
    #[must_use]
    pub fn joined(self) -> Self {
        let packed = |side: Side| self.rows == 1 || side.pitch == self.row_bytes;
        if !packed(self.to) || !packed(self.from) {
            return self;
        }
        let row_bytes = self.rows * self.row_bytes;
        let whole = |side| Side { pitch: row_bytes, ..side };
        CopyRows { to: whole(self.to), from: whole(self.from), row_bytes, rows: 1 }
    }
}

/// A device that runs the kernels of `kernels/`. A clone is the same device.
///
/// Work on one [`KernelDevice::Stream`] happens in order; that on two streams in any order, unless the host
/// waits for one in between.
pub trait KernelDevice: Clone + Send + Sync + 'static {
    /// Device memory, freed when dropped.
    type Buffer: Send + Sync;
    /// Host memory that queued copies go from and to, freed when dropped.
    type Staging: AsRef<[u8]> + AsMut<[u8]> + Send;
    /// A loaded kernel.
    type Kernel<P: Params>: Send + Sync;
    /// Where launches and copies are queued.
    type Stream: Copy + Send;
    /// A stream of one's own, which ends when dropped.
    type OwnedStream: Send;
    /// A mark on a stream (a CUDA event), which may be put anew, again and again.
    type Event: Send + Sync;

    /// `cuda`, `emulated`: the name of the backend.
    fn name(&self) -> &'static str;

    /// What a row's bits depend on beyond the head's types: architecture and version of the code.
    fn fingerprint(&self) -> String;

    fn limits(&self) -> DeviceLimits;

    /// Its number among the devices of its kind.
    fn ordinal(&self) -> u32;

    /// The device's own stream.
    fn stream(&self) -> Self::Stream;

    /// Another stream, so that concurrent callers do not wait for each other.
    ///
    /// # Errors
    /// `Device` where no stream can be made.
    fn open_stream(&self) -> Result<Self::OwnedStream>;

    /// The stream of [`KernelDevice::open_stream`].
    fn on(&self, own: &Self::OwnedStream) -> Self::Stream;

    /// The stream of that handle.
    ///
    /// # Safety
    /// As [`memory::Stream::from_raw`].
    unsafe fn stream_from(&self, stream: memory::Stream) -> Self::Stream;

    /// The handle of a stream, by which streams are told apart.
    fn handle(&self, stream: Self::Stream) -> memory::Stream;

    /// Runs `run` on this thread with the device's context current, as other libraries that call the device
    /// need it, and then restores the context before. A device without contexts has nothing to do.
    ///
    /// # Errors
    /// `Device` where it is refused; `run` has not run then.
    fn with_context(&self, run: &mut dyn FnMut()) -> Result<()> {
        run();
        Ok(())
    }

    /// Whether what is queued on the stream becomes part of a CUDA graph instead of running. May be asked
    /// while a graph is captured.
    ///
    /// # Errors
    /// `Device`, also where a graph that is being made there is broken.
    fn is_capturing(&self, stream: Self::Stream) -> Result<bool> {
        let _ = stream;
        Ok(false)
    }

    /// A new mark, on no stream: it counts as reached.
    ///
    /// # Errors
    /// `Device` where no mark can be made.
    fn event(&self) -> Result<Self::Event>;

    /// Puts the mark behind what is on the stream; an earlier one is forgotten.
    ///
    /// # Errors
    /// `Device`.
    fn record(&self, event: &Self::Event, stream: Self::Stream) -> Result<()>;

    /// Lets what is queued on the stream from now on begin only when the mark, as it is now, has been
    /// reached.
    ///
    /// # Errors
    /// `Device`.
    fn stream_waits(&self, stream: Self::Stream, event: &Self::Event) -> Result<()>;

    /// Whether the mark has been reached.
    ///
    /// # Errors
    /// `Device` where what is before it failed.
    fn reached(&self, event: &Self::Event) -> Result<bool>;

    /// Waits until the mark has been reached, with a deadline. Creates nothing.
    ///
    /// # Errors
    /// As [`KernelDevice::wait`].
    fn wait_for(&self, event: &Self::Event) -> Result<()>;

    /// Waits until everything on the stream has ended, with a deadline.
    ///
    /// # Errors
    /// `Device` where something on it failed, or does not end.
    fn wait(&self, stream: Self::Stream) -> Result<()>;

    /// Memory of undefined content, aligned to 256 bytes; 0 bytes are legal.
    ///
    /// # Errors
    /// `Device` where there is not that much.
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Device address of the first byte.
    fn address(&self, buffer: &Self::Buffer) -> u64;

    /// Host memory for queued copies, aligned to 8 bytes at least.
    ///
    /// # Errors
    /// `Device` where there is not that much.
    fn staging(&self, bytes: usize) -> Result<Self::Staging>;

    /// Queues a copy of `bytes` to `buffer` from byte `at` on; waits for nothing where they are
    /// [`KernelDevice::Staging`].
    ///
    /// # Errors
    /// `Shape` where the buffer is smaller; `Device` where the copy is refused, or what was on the stream
    /// before failed.
    ///
    /// # Safety
    /// The bytes live and stay as they are until the stream was waited for.
    unsafe fn queue_write(
        &self,
        stream: Self::Stream,
        buffer: &Self::Buffer,
        at: usize,
        bytes: &[u8],
    ) -> Result<()>;

    /// Queues a copy from `buffer`, from byte `at` on; waits for nothing where the bytes are
    /// [`KernelDevice::Staging`].
    ///
    /// # Errors
    /// As [`KernelDevice::queue_write`]; `bytes` are then of no particular content.
    ///
    /// # Safety
    /// Nobody looks at the bytes or frees them until the stream was waited for.
    unsafe fn queue_read(
        &self,
        stream: Self::Stream,
        buffer: &Self::Buffer,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<()>;

    /// Queues a copy from, to or within device memory; waits for nothing where the host's side, if there is
    /// one, is [pinned](KernelDevice::is_pinned).
    ///
    /// # Errors
    /// As [`KernelDevice::queue_write`].
    ///
    /// # Safety
    /// Both sides are there and live, nobody writes what is read or touches what is written, until the stream
    /// was waited for.
    unsafe fn copy_rows(&self, stream: Self::Stream, copy: &CopyRows) -> Result<()>;

    /// Whether all of these host bytes are pinned memory ([`KernelDevice::staging`]): copies from and to them
    /// need no detour.
    fn is_pinned(&self, bytes: &Span<'_>) -> bool;

    /// Copies `bytes` to `buffer` from byte `at` on, behind what is on the stream. The copy is done when this
    /// returns.
    ///
    /// # Errors
    /// As [`KernelDevice::queue_write`].
    fn write_on(&self, stream: Self::Stream, buffer: &Self::Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        // A copy from memory that is not pinned waits for what is before it, without a deadline: this wait
        // has one.
        self.wait(stream)?;
        // SAFETY: they are borrowed until the wait has returned; a copy that was refused touches nothing.
        unsafe { self.queue_write(stream, buffer, at, bytes)? };
        self.wait(stream)
    }

    /// Waits for the stream, then copies bytes from `buffer`, from byte `at` on.
    ///
    /// # Errors
    /// As [`KernelDevice::queue_read`].
    fn read_on(
        &self,
        stream: Self::Stream,
        buffer: &Self::Buffer,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<()> {
        // First what was launched: so its failure is reported as its own, not as the copy's, and nothing is
        // copied.
        self.wait(stream)?;
        // SAFETY: as above.
        unsafe { self.queue_read(stream, buffer, at, bytes)? };
        self.wait(stream)
    }

    /// [`KernelDevice::write_on`] the device's own stream.
    ///
    /// # Errors
    /// As [`KernelDevice::write_on`].
    fn write(&self, buffer: &Self::Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        self.write_on(self.stream(), buffer, at, bytes)
    }

    /// [`KernelDevice::read_on`] the device's own stream.
    ///
    /// # Errors
    /// As [`KernelDevice::read_on`].
    fn read(&self, buffer: &Self::Buffer, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.read_on(self.stream(), buffer, at, bytes)
    }

    /// The kernel of that name. Everything that takes time or memory happens here, not in the launch.
    ///
    /// # Errors
    /// `Unsupported` where there is no such kernel, or none for this device; `Device` where it cannot be
    /// loaded.
    fn kernel<P: Params>(&self, name: &'static str) -> Result<Self::Kernel<P>>;

    /// Sets `words` 32-bit words from `address` on to `value`, on the stream.
    ///
    /// # Errors
    /// `Device`.
    ///
    /// # Safety
    /// As [`KernelDevice::launch`].
    unsafe fn fill(&self, stream: Self::Stream, address: u64, words: usize, value: u32) -> Result<()>;

    /// [`KernelDevice::fill`] with zeros.
    ///
    /// # Errors
    /// As [`KernelDevice::fill`].
    ///
    /// # Safety
    /// As [`KernelDevice::fill`].
    unsafe fn clear(&self, stream: Self::Stream, address: u64, words: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.fill(stream, address, words, 0) }
    }

    /// Queues a launch; neither allocates nor waits. Every kernel that [`KernelDevice::kernel`] gives may
    /// begin while the one before it on the stream still runs (programmatic dependent launch): it waits
    /// itself, by the rules of `kernels/step.cuh`. On devices before compute capability 9.0 it begins
    /// afterwards.
    ///
    /// # Errors
    /// `Shape` or `Device` where it is refused. What goes wrong while the kernel runs is reported by the next
    /// wait or copy.
    ///
    /// # Safety
    /// The addresses in `params` are of this device and as large as its sizes say, and stay so until the
    /// kernel has ended.
    unsafe fn launch<P: Params>(
        &self,
        stream: Self::Stream,
        kernel: &Self::Kernel<P>,
        grid: &Grid,
        params: &P,
    ) -> Result<()>;
}
