//! What a device does for others: memory, marks, kernels and launches.

use super::CudaDevice;
use crate::backend::cuda::buffer::Buffer;
use crate::backend::cuda::driver::failed;
use crate::backend::cuda::event::Event;
use crate::backend::cuda::fatbins;
use crate::backend::cuda::kernel::Kernel;
use crate::backend::cuda::launch::Launch;
use crate::backend::cuda::owned_stream::OwnedStream;
use crate::backend::cuda::pinned::Pinned;
use crate::backend::cuda::stream::CudaStream;
use crate::backend::device::{CopyRows, Grid, KernelDevice, Params, Side};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::memory::{self, Memory, Span};
use crate::plan::DeviceLimits;
use cudarc::driver::{DriverError, result, sys};
use std::ffi::c_void;

impl CudaDevice {
    /// The embedded kernel of that name, which takes one struct `P` of [`crate::backend::params`]. Loads its
    /// file on first use.
    ///
    /// # Errors
    /// `Unsupported`: no such kernel, no code for this device, or a parameter of another size. `Device`: the
    /// driver refuses it.
    pub fn kernel<P: Copy>(&self, name: &str) -> Result<Kernel<P>> {
        let fatbin = fatbins::with_kernel(name)?;
        let architecture = fatbin.code_for(self.info().capability)?;
        // Loading a kernel may wait in the driver for all that runs: wait here first, with a deadline.
        self.wait_own_streams()?;
        let module = self.module(fatbin)?;
        let loading = |e| failed(format!("kernel {name} ({architecture}, {})", self.info().name), e);
        let text = std::ffi::CString::new(name).expect("a name in the source");
        let _bound = self.context().bind().map_err(loading)?;
        // SAFETY: the module stays loaded as long as the device, which the kernel keeps.
        let function = unsafe { result::module::get_function(module, text) }.map_err(loading)?;
        Kernel::new(self.clone(), name, architecture, function)
    }

    /// Device memory with every byte set to `value`.
    ///
    /// # Errors
    /// `Device`, for example where memory is short.
    pub fn filled(&self, bytes: usize, value: u8) -> Result<Buffer> {
        let buffer = Buffer::new(self.clone(), bytes)?;
        buffer.fill(value)?;
        Ok(buffer)
    }

    /// Device memory with a copy of `values`.
    ///
    /// # Errors
    /// As [`CudaDevice::filled`].
    pub fn upload<T: bytemuck::NoUninit>(&self, values: &[T]) -> Result<Buffer> {
        let values: &[u8] = bytemuck::cast_slice(values);
        let buffer = Buffer::new(self.clone(), values.len())?;
        self.write(&buffer, 0, values)?;
        Ok(buffer)
    }

    /// An event behind the work that is on the stream now; `None` where all of it has ended. Work that others
    /// add later, again and again, is not waited for.
    fn mark(&self, stream: CudaStream) -> Result<Option<Event>> {
        let what = || format!("{}, after {}", self.info().name, self.suspect(stream));
        // SAFETY: a stream of this context.
        let idle = self.call(what, || match unsafe { sys::cuStreamQuery(stream.0) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => answer.result().map(|()| true),
        })?;
        if idle {
            return Ok(None);
        }
        let mark = Event::untimed(self)?;
        mark.record(stream)?;
        Ok(Some(mark))
    }

    /// As [`CudaDevice::mark`], for a stream of ours; `None` while a graph records it, since nothing on it
    /// runs then.
    fn mark_ours(&self, stream: CudaStream) -> Result<Option<Event>> {
        // The lock is held until the mark is there, so that nobody begins to record: querying a stream that
        // is recorded breaks the recording.
        let recordings = lock(&self.0.recordings);
        if recordings.iter().any(|(on, _)| *on == stream) { Ok(None) } else { self.mark(stream) }
    }

    /// Waits for what is on one of our streams now.
    pub(in crate::backend::cuda) fn wait_own_stream(&self, stream: CudaStream) -> Result<()> {
        self.mark_ours(stream)?.map_or(Ok(()), |mark| mark.wait())
    }

    /// Waits, with a deadline, for what a call of the driver's would wait for without one: the work that is
    /// on all of our streams now.
    pub(in crate::backend::cuda) fn wait_own_streams(&self) -> Result<()> {
        let marks: Vec<_> = {
            // The lock keeps each stream from being destroyed before its mark is there.
            let streams = lock(&self.0.streams);
            streams.iter().map(|stream| self.mark_ours(*stream)).collect::<Result<_>>()?
        };
        marks.iter().flatten().try_for_each(Event::wait)
    }
}

impl KernelDevice for CudaDevice {
    type Buffer = Buffer;
    type Staging = Pinned;
    type Kernel<P: Params> = Kernel<P>;
    type Stream = CudaStream;
    type OwnedStream = OwnedStream;
    type Event = Event;

    fn name(&self) -> &'static str {
        "cuda"
    }

    /// 16-bit products have the bits that the tensor cores give, which differ by compute capability.
    fn fingerprint(&self) -> String {
        format!("cuda/{}", self.info().capability)
    }

    fn limits(&self) -> DeviceLimits {
        let fatbins::Capability(major, minor) = self.info().capability;
        DeviceLimits {
            capability: (major, minor),
            num_sms: self.info().num_sms as usize,
            shared_bytes: self.shared_limit(),
            shared_per_sm: self.0.shared_per_sm,
        }
    }

    fn ordinal(&self) -> u32 {
        u32::try_from(self.info().ordinal).unwrap_or(u32::MAX)
    }

    fn stream(&self) -> CudaStream {
        self.0.own_stream
    }

    unsafe fn stream_from(&self, stream: memory::Stream) -> CudaStream {
        // SAFETY: the caller's promise.
        unsafe { CudaStream::from_raw(std::ptr::with_exposed_provenance_mut(stream.raw() as usize)) }
    }

    fn handle(&self, stream: CudaStream) -> memory::Stream {
        // SAFETY: a stream of this context.
        unsafe { memory::Stream::from_raw(stream.as_raw().expose_provenance() as u64) }
    }

    fn with_context(&self, run: &mut dyn FnMut()) -> Result<()> {
        self.bound(run)
    }

    fn is_capturing(&self, stream: CudaStream) -> Result<bool> {
        use sys::CUstreamCaptureStatus as S;
        let mut status = S::CU_STREAM_CAPTURE_STATUS_NONE;
        let what = || format!("a stream of {}", self.info().name);
        // SAFETY: a stream of this context, and a word of this frame.
        self.call(what, || unsafe { sys::cuStreamIsCapturing(stream.0, &mut status) }.result())?;
        match status {
            S::CU_STREAM_CAPTURE_STATUS_NONE => Ok(false),
            S::CU_STREAM_CAPTURE_STATUS_ACTIVE => Ok(true),
            S::CU_STREAM_CAPTURE_STATUS_INVALIDATED => Err(Error::Device {
                what: what(),
                problem: "the graph that is being captured there is broken".into(),
                fix:
                    "end the capture, and look at what was called meanwhile: nothing that waits or allocates \
                      is allowed"
                        .into(),
            }),
        }
    }

    fn event(&self) -> Result<Event> {
        Event::untimed(self)
    }

    fn record(&self, event: &Event, stream: CudaStream) -> Result<()> {
        event.record(stream)
    }

    fn stream_waits(&self, stream: CudaStream, event: &Event) -> Result<()> {
        event.holds(stream)
    }

    fn reached(&self, event: &Event) -> Result<bool> {
        event.reached()
    }

    fn wait_for(&self, event: &Event) -> Result<()> {
        event.wait()
    }

    fn open_stream(&self) -> Result<OwnedStream> {
        OwnedStream::open(self.clone())
    }

    fn on(&self, own: &OwnedStream) -> CudaStream {
        own.handle()
    }

    fn wait(&self, stream: CudaStream) -> Result<()> {
        self.mark(stream)?.map_or(Ok(()), |mark| mark.wait())
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Buffer::new(self.clone(), bytes)
    }

    fn address(&self, buffer: &Buffer) -> u64 {
        buffer.address()
    }

    fn staging(&self, bytes: usize) -> Result<Pinned> {
        Pinned::new(self.clone(), bytes)
    }

    unsafe fn copy_rows(&self, stream: CudaStream, copy: &CopyRows) -> Result<()> {
        let copy = copy.joined();
        let CopyRows { to, from, row_bytes, rows } = copy;
        if copy.is_empty() {
            return Ok(());
        }
        let what = || {
            let (name, suspect) = (&self.info().name, self.suspect(stream));
            format!(
                "{rows} rows of {row_bytes} bytes from {} to {} on {name}, after {suspect}",
                from.memory, to.memory
            )
        };
        let host = |side: Side| std::ptr::with_exposed_provenance_mut::<c_void>(side.address as usize);
        let queue = || {
            use sys::CUmemorytype as M;
            if rows > 1 {
                let [(source, from_host, from_device), (target, to_host, to_device)] =
                    [from, to].map(|side| match side.memory {
                        Memory::Host => (M::CU_MEMORYTYPE_HOST, host(side), 0),
                        Memory::Device(_) => (M::CU_MEMORYTYPE_DEVICE, std::ptr::null_mut(), side.address),
                    });
                let all = sys::CUDA_MEMCPY2D {
                    srcXInBytes: 0,
                    srcY: 0,
                    srcMemoryType: source,
                    srcHost: from_host,
                    srcDevice: from_device,
                    srcArray: std::ptr::null_mut(),
                    srcPitch: from.pitch,
                    dstXInBytes: 0,
                    dstY: 0,
                    dstMemoryType: target,
                    dstHost: to_host,
                    dstDevice: to_device,
                    dstArray: std::ptr::null_mut(),
                    dstPitch: to.pitch,
                    WidthInBytes: row_bytes,
                    Height: rows,
                };
                // SAFETY: the caller's promise, for this and what follows; the struct lives as long as the
                // call.
                return unsafe { sys::cuMemcpy2DAsync_v2(&all, stream.0) }.result();
            }
            match (from.memory, to.memory) {
                (Memory::Host, Memory::Host) => Err(DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE)),
                // SAFETY: as above.
                (Memory::Host, _) => unsafe {
                    sys::cuMemcpyHtoDAsync_v2(to.address, host(from), row_bytes, stream.0).result()
                },
                // SAFETY: as above.
                (_, Memory::Host) => unsafe {
                    sys::cuMemcpyDtoHAsync_v2(host(to), from.address, row_bytes, stream.0).result()
                },
                // SAFETY: as above.
                (_, _) => unsafe {
                    sys::cuMemcpyDtoDAsync_v2(to.address, from.address, row_bytes, stream.0).result()
                },
            }
        };
        self.call(what, queue)
    }

    fn is_pinned(&self, bytes: &Span<'_>) -> bool {
        let inside = |&(start, len): &(u64, usize)| {
            bytes.address() >= start && bytes.address() + bytes.len() as u64 <= start + len as u64
        };
        lock(&self.0.pinned).iter().any(inside)
    }

    unsafe fn queue_write(&self, stream: CudaStream, buffer: &Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { buffer.queue_write(stream, at, bytes) }
    }

    unsafe fn queue_read(
        &self,
        stream: CudaStream,
        buffer: &Buffer,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { buffer.queue_read(stream, at, bytes) }
    }

    fn kernel<P: Params>(&self, name: &'static str) -> Result<Kernel<P>> {
        CudaDevice::kernel(self, name)
    }

    unsafe fn fill(&self, stream: CudaStream, address: u64, words: usize, value: u32) -> Result<()> {
        let what = || format!("{words} words on {} set to {value}", self.info().name);
        // SAFETY: the caller's promise.
        self.call(what, || unsafe { sys::cuMemsetD32Async(address, value, words, stream.0) }.result())
    }

    unsafe fn launch<P: Params>(
        &self,
        stream: CudaStream,
        kernel: &Kernel<P>,
        grid: &Grid,
        params: &P,
    ) -> Result<()> {
        let launch = Launch {
            dynamic_shared: grid.shared_bytes,
            // Code for older architectures does not wait for the kernel before it, so it must not begin
            // early.
            programmatic: kernel.waits(),
            ..Launch::new([grid.blocks, 1, 1], [grid.threads, 1, 1])
        };
        // SAFETY: the caller's promise.
        unsafe { kernel.launch_on(stream, &launch, params) }
    }
}
