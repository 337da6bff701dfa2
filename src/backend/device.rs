//! What the CUDA and the emulated device have in common: memory, kernels, and on them the products of `kernels/` and a whole
//! [`Backend`](super::Backend).
//!
//! ```text
//! describe (Spec) -> plan (crate::plan) -> prepare (Matmul: kernels loaded, workspace size) -> run (Matmul::run: launches only)
//! ```
//!
//! An engine whose rows lie in device memory uses [`Matmul`]. [`DeviceBackend`] is what [`LmHead`](crate::LmHead) drives: rows come
//! from and answers go to host memory.

mod backend;
mod head;
mod heads;
mod matmul;
mod scratch;
mod transfer;

pub use backend::DeviceBackend;
pub use matmul::{Call, Matmul, Spec};
pub use scratch::NO_ADJUSTMENTS;

use crate::error::Result;
use crate::plan::DeviceLimits;

/// A struct of a kernel's parameters. Those of `kernels/params.h` are made with it ([`params`](super::params)).
///
/// # Safety
/// `repr(C)`, laid out as the struct that the kernel takes.
pub unsafe trait Params: Copy + 'static {}

/// The shape of one launch; blocks and threads along x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub blocks: u32,
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// A device that runs the kernels of `kernels/`.
///
/// Work on one [`KernelDevice::Stream`] happens in order; that on two streams in any order, unless the host waits for one in between.
pub trait KernelDevice: Send + Sync + 'static {
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

    /// `cuda`, `emulated`: the name of the backend.
    fn name(&self) -> &'static str;

    /// What a row's bits depend on beyond the head's types: architecture and version of the code.
    fn fingerprint(&self) -> String;

    fn limits(&self) -> DeviceLimits;

    /// The device's own stream.
    fn stream(&self) -> Self::Stream;

    /// Another stream, so that concurrent callers do not wait for each other.
    ///
    /// # Errors
    /// `Device` where there is none.
    fn open_stream(&self) -> Result<Self::OwnedStream>;

    /// The stream of [`KernelDevice::open_stream`].
    fn on(&self, own: &Self::OwnedStream) -> Self::Stream;

    /// Waits until everything on the stream has ended, but not for ever.
    ///
    /// # Errors
    /// `Device` where something on it failed, or does not end.
    fn wait(&self, stream: Self::Stream) -> Result<()>;

    /// Memory of no particular content, aligned to 256 bytes; of 0 bytes too.
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

    /// Queues a copy of `bytes` to `buffer` from byte `at` on; waits for nothing where they are [`KernelDevice::Staging`].
    ///
    /// # Errors
    /// `Shape` where the buffer is smaller; `Device` where the copy is refused, or what was on the stream before failed.
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

    /// Queues a copy from `buffer`, from byte `at` on; waits for nothing where the bytes are [`KernelDevice::Staging`].
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

    /// Copies `bytes` to `buffer` from byte `at` on, behind what is on the stream. The copy is done when this returns.
    ///
    /// # Errors
    /// As [`KernelDevice::queue_write`].
    fn write_on(&self, stream: Self::Stream, buffer: &Self::Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        // A copy from memory that is not locked waits for what is before it, and knows no deadline.
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
        // First what was launched: its failure is told as its own, not as the copy's, and nothing is copied then.
        self.wait(stream)?;
        // SAFETY: as above.
        unsafe { self.queue_read(stream, buffer, at, bytes)? };
        self.wait(stream)
    }

    /// [`KernelDevice::write_on`] the device's own stream.
    ///
    /// # Errors
    /// As that.
    fn write(&self, buffer: &Self::Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        self.write_on(self.stream(), buffer, at, bytes)
    }

    /// [`KernelDevice::read_on`] the device's own stream.
    ///
    /// # Errors
    /// As that.
    fn read(&self, buffer: &Self::Buffer, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.read_on(self.stream(), buffer, at, bytes)
    }

    /// The kernel of that name. Everything that takes time or memory happens here, not in the launch.
    ///
    /// # Errors
    /// `Unsupported` where there is none, or none for this device; `Device` where it cannot be loaded.
    fn kernel<P: Params>(&self, name: &'static str) -> Result<Self::Kernel<P>>;

    /// Sets `words` 32-bit words from `address` on to zero, on the stream.
    ///
    /// # Errors
    /// `Device`.
    ///
    /// # Safety
    /// As [`KernelDevice::launch`].
    unsafe fn clear(&self, stream: Self::Stream, address: u64, words: usize) -> Result<()>;

    /// Queues a launch; neither allocates nor waits.
    ///
    /// # Errors
    /// `Shape` or `Device` where it is refused. What goes wrong while the kernel runs is told by the next wait or copy.
    ///
    /// # Safety
    /// The addresses in `params` are of this device and as large as its sizes say, and stay so until the kernel has ended.
    unsafe fn launch<P: Params>(
        &self,
        stream: Self::Stream,
        kernel: &Self::Kernel<P>,
        grid: &Grid,
        params: &P,
    ) -> Result<()>;

    /// Queues two launches of which the second may begin before the first has ended (programmatic dependent launch): its kernel waits
    /// itself, by `griddepcontrol.wait`, for what the first writes. On devices before compute capability 9.0 it begins afterwards.
    ///
    /// # Errors
    /// As [`KernelDevice::launch`], of either; where the second is refused, the first is queued.
    ///
    /// # Safety
    /// As [`KernelDevice::launch`], of both.
    unsafe fn launch_dependent<P: Params, Q: Params>(
        &self,
        stream: Self::Stream,
        first: (&Self::Kernel<P>, &Grid, &P),
        second: (&Self::Kernel<Q>, &Grid, &Q),
    ) -> Result<()>;
}
