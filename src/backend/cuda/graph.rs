//! Work that is recorded once and put on a stream again and again, as engines do with a decode step.

use super::device::CudaDevice;
use super::launch::Launched;
use super::stream::CudaStream;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// A CUDA graph, ready to be launched.
///
/// An engine that captures a step of its own needs nothing of this:
/// [`Matmul::run`](crate::backend::device::Matmul::run) on its capturing stream becomes a part of its graph.
/// Without an engine:
///
/// ```no_run
/// use lmhead::backend::cuda::{CudaDevice, Graph};
/// use lmhead::backend::device::{KernelDevice, Matmul, MatmulCall};
/// # fn call() -> MatmulCall { unimplemented!() }
/// # fn prepare(_: &CudaDevice) -> lmhead::Result<Matmul<CudaDevice>> { unimplemented!() }
/// # fn main() -> lmhead::Result<()> {
/// let device = CudaDevice::open(0)?;
/// let (product, call) = (prepare(&device)?, call());
/// // A stream of its own: other work on the device's stream would end the recording.
/// let own = device.open_stream()?;
/// let stream = device.on(&own);
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
    /// What it holds, as messages name it.
    contents: Arc<str>,
}

// SAFETY: a handle, which the driver takes from any thread, one at a time: launches borrow the graph, and the
// driver orders those of one graph among themselves.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` puts on the stream, without running it, and uploads the graph behind what is on
    /// the stream: so the first launch takes no longer than the others. `work` must not wait, copy from or to
    /// the host, or allocate: the driver refuses that while it records.
    ///
    /// # Errors
    /// The error of `work`; `Device` where the driver cannot record, or make no graph of the recording. The
    /// stream then no longer records.
    pub fn capture(
        device: &CudaDevice,
        stream: CudaStream,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        // Thread-local: other threads may allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // Before the recording: from now on no thread queries the stream, which would break it.
        device.recording_begins(stream);
        // SAFETY: a stream of this context, here and below.
        let begin = || unsafe { result::stream::begin_capture(stream.0, mode) };
        device.call(|| "a graph's beginning".into(), begin).inspect_err(|_| {
            device.recording_ends(stream);
        })?;
        let recording = Recording { device, stream, ended: false };
        let done = work();
        let recorded = recording.end();
        done?;
        let (recorded, launches) = recorded?;
        let contents: Arc<str> = words(&launches).into();
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: a whole graph.
        let raw = device.call(
            || format!("{contents}, made of what was recorded"),
            || unsafe { result::graph::instantiate(recorded.0, flags) },
        )?;
        let graph = Graph { device: device.clone(), raw, contents };
        // SAFETY: made just now, of the stream's context.
        let upload = || unsafe { result::graph::upload(raw, stream.0) };
        device.call(|| format!("{}, brought to the device", graph.contents), upload)?;
        Ok(graph)
    }

    /// Puts the work on the stream. Neither allocates nor waits.
    ///
    /// # Errors
    /// `Device` where the launch is refused.
    ///
    /// # Safety
    /// The memory that the recorded work uses lives until it has ended, and nothing else writes to it
    /// meanwhile. The stream is of the device's context.
    pub unsafe fn launch(&self, stream: CudaStream) -> Result<()> {
        // SAFETY: the caller's promise.
        let launch = || unsafe { result::graph::launch(self.raw, stream.0) };
        self.device.call(|| self.contents.to_string(), launch)?;
        self.device.launched(stream, Launched::Graph(Arc::clone(&self.contents)));
        Ok(())
    }
}

/// Names a graph in an error by its launches; equal ones are counted.
fn words(launches: &[Launched]) -> String {
    let mut alike: Vec<(String, usize)> = Vec::new();
    for text in launches.iter().map(Launched::to_string) {
        match alike.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => alike.push((text, 1)),
        }
    }
    let each = alike
        .iter()
        .map(|(text, count)| if *count == 1 { text.clone() } else { format!("{count} x {text}") });
    format!("a graph of [{}]", each.collect::<Vec<_>>().join("; "))
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, destroyed once; launches that are under way end first.
        let _ = self.device.call(String::new, || unsafe { result::graph::exec_destroy(self.raw) });
    }
}

/// A stream that records. When this is dropped the recording ends, as where `work` panics.
struct Recording<'a> {
    device: &'a CudaDevice,
    stream: CudaStream,
    ended: bool,
}

impl Recording<'_> {
    fn end(mut self) -> Result<(Recorded, Vec<Launched>)> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(Recorded, Vec<Launched>)> {
        self.ended = true;
        let launches = self.device.recording_ends(self.stream);
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream that began to record, and a pointer of this frame.
        let end = || unsafe { sys::cuStreamEndCapture(self.stream.0, &mut graph) }.result();
        self.device.call(|| "a graph's end".into(), end)?;
        Ok((Recorded(graph), launches))
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.stop();
        }
    }
}

/// A graph that is not instantiated yet.
struct Recorded(sys::CUgraph);

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by the end of a recording, destroyed once.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}
