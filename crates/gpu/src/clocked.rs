//! A CUDA graph whose replays are timed.

use lmhead::Result;
use lmhead::backend::cuda::{CudaDevice, CudaStream, Event, Graph};
use std::cell::Cell;

/// Several launches alike, recorded once, and how long a replay of them takes.
pub struct Clocked {
    graph: Graph,
    stream: CudaStream,
    from: Event,
    to: Event,
    replays: Cell<usize>,
    /// Launches of one replay.
    pub launches: usize,
}

impl Clocked {
    /// `launch(i)` puts launch `i` on the stream. What it works on must live until the last replay has ended,
    /// and be nobody else's.
    pub fn new(
        device: &CudaDevice,
        stream: CudaStream,
        launches: usize,
        launch: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let graph = Graph::capture(device, stream, || (0..launches).try_for_each(launch))?;
        let (from, to) = (Event::new(device)?, Event::new(device)?);
        Ok(Clocked { graph, stream, from, to, replays: Cell::new(0), launches })
    }

    /// Seconds of one launch, by a replay of all. One more replay goes before it, so that the stream is busy
    /// when the clock starts: the time that the host takes to launch the graph is not in the result.
    pub fn replay(&self) -> Result<f64> {
        self.launch()?;
        self.from.record(self.stream)?;
        self.launch()?;
        self.to.record(self.stream)?;
        Ok(self.from.seconds_to(&self.to)? / self.launches as f64)
    }

    fn launch(&self) -> Result<()> {
        self.replays.set(self.replays.get() + 1);
        // SAFETY: the promise that `new` asks for.
        unsafe { self.graph.launch(self.stream) }
    }

    /// Replays so far, the untimed ones included.
    pub fn replays(&self) -> usize {
        self.replays.get()
    }
}
