//! Work that is recorded once and put on a stream again and again, as engines do with a decode step.

use super::device::CudaDevice;
use super::stream::CudaStream;
use crate::error::Result;
use cudarc::driver::{result, sys};

/// A CUDA graph, ready to be launched.
///
/// An engine that captures a step of its own needs nothing of this: [`Matmul::run`](crate::backend::device::Matmul::run) on its
/// capturing stream becomes a part of its graph. Without an engine:
///
/// ```no_run
/// use lmhead::backend::cuda::{CudaDevice, Graph};
/// use lmhead::backend::device::{Call, KernelDevice, Matmul};
/// # fn call() -> Call { unimplemented!() }
/// # fn prepare(_: &CudaDevice) -> lmhead::Result<Matmul<CudaDevice>> { unimplemented!() }
/// # fn main() -> lmhead::Result<()> {
/// let device = CudaDevice::open(0)?;
/// let (product, call) = (prepare(&device)?, call());
/// let stream = device.stream();
/// // SAFETY: the call's memory lives until the last replay has ended.
/// let graph = Graph::capture(&device, stream, || unsafe { product.run(&device, stream, &call) })?;
/// for _ in 0..10 {
///     // SAFETY: as above.
///     unsafe { graph.launch(stream) }?;
/// }
/// device.synchronize()
/// # }
/// ```
#[derive(Debug)]
pub struct Graph {
    device: CudaDevice,
    raw: sys::CUgraphExec,
}

// SAFETY: a handle, which the driver takes from any thread, one at a time: launches borrow the graph, and the driver orders those of
// one graph among themselves.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` puts on the stream, which runs nothing of it. `work` must not wait, copy from or to the host, or allocate: the
    /// driver refuses that while it records.
    ///
    /// # Errors
    /// What `work` says; `Device` where the driver cannot record, or not make a graph of it. The stream then records no more.
    pub fn capture(
        device: &CudaDevice,
        stream: CudaStream,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        // Other threads may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of this context, here and below.
        device.call(
            || "a graph's beginning".into(),
            || unsafe { result::stream::begin_capture(stream.0, mode) },
        )?;
        let recording = Recording { device, stream, ended: false };
        let done = work();
        let recorded = recording.end();
        done?;
        let recorded = recorded?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: a whole graph.
        let raw = device.call(
            || "a graph of what was recorded".into(),
            || unsafe { result::graph::instantiate(recorded.0, flags) },
        )?;
        Ok(Graph { device: device.clone(), raw })
    }

    /// Puts the work on the stream. Neither allocates nor waits.
    ///
    /// # Errors
    /// `Device` where the launch is refused.
    ///
    /// # Safety
    /// The memory that the recorded work uses lives until it has ended, and nothing else writes to it meanwhile. The stream is of the
    /// device's context.
    pub unsafe fn launch(&self, stream: CudaStream) -> Result<()> {
        // SAFETY: the caller's promise.
        self.device
            .call(|| "a graph's launch".into(), || unsafe { result::graph::launch(self.raw, stream.0) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, destroyed once; launches that are under way end first.
        let _ = self.device.call(String::new, || unsafe { result::graph::exec_destroy(self.raw) });
    }
}

/// A stream that records; it stops when this is dropped, as where `work` panics.
struct Recording<'a> {
    device: &'a CudaDevice,
    stream: CudaStream,
    ended: bool,
}

impl Recording<'_> {
    fn end(mut self) -> Result<Recorded> {
        self.stop()
    }

    fn stop(&mut self) -> Result<Recorded> {
        self.ended = true;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream that began to record, and a pointer of this frame.
        let end = || unsafe { sys::cuStreamEndCapture(self.stream.0, &mut graph) }.result();
        self.device.call(|| "a graph's end".into(), end)?;
        Ok(Recorded(graph))
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.stop();
        }
    }
}

/// A graph before it is made ready.
struct Recorded(sys::CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by the end of a recording, destroyed once.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}
